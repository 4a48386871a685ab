//! Lines on standard error: what `tracing` macros say, and the one line that a failure ends with.
//!
//! Text lines are short and carry no time, because PostgreSQL's log or the journal adds its own; JSON lines carry
//! everything. There is no colour unless standard error is a terminal. A closed standard error is no error.

use std::fmt::{self, Write as _};
use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;

use serde::Serialize;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber, span};

use crate::config::{LogFormat, LogSettings};
use crate::error::{Failure, one_line};
use crate::progress;

/// How lines look, once it is known.
static FORMAT: OnceLock<LogFormat> = OnceLock::new();

/// Decides how lines look from now on. The first decision stands.
pub fn set_format(format: LogFormat) {
    let _ = FORMAT.set(format);
}

/// Lets `tracing` macros write from now on.
pub fn start(settings: &LogSettings) {
    set_format(settings.format);
    let level = settings.level.parse().unwrap_or(Level::INFO);
    // Fails only where a test of the library has its own subscriber.
    let _ = tracing::subscriber::set_global_default(Lines { level });
}

/// Writes the line that a failed command ends with.
pub fn report(failure: &Failure, status: u8, verb: Option<&str>) {
    let message = one_line(&failure.message);
    let hint = failure.hint.as_deref().map(one_line);
    match format() {
        LogFormat::Text => {
            let hint = hint.map(|hint| format!("  HINT: {hint}")).unwrap_or_default();
            write_text("ERROR", &format!("{message}{hint}"));
        }
        LogFormat::Json => write_json(&FailureLine {
            level: "error",
            time: now(),
            message: &message,
            hint: hint.as_deref(),
            cause: failure.cause.name(),
            status,
            verb,
        }),
    }
}

fn format() -> LogFormat {
    FORMAT.get().copied().unwrap_or(LogFormat::Text)
}

#[derive(Serialize)]
struct FailureLine<'a> {
    level: &'static str,
    time: String,
    message: &'a str,
    hint: Option<&'a str>,
    cause: &'static str,
    status: u8,
    verb: Option<&'a str>,
}

#[derive(Serialize)]
struct EventLine<'a> {
    level: &'static str,
    time: String,
    message: &'a str,
    #[serde(flatten)]
    fields: &'a serde_json::Map<String, serde_json::Value>,
}

fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}

fn write_text(severity: &'static str, text: &str) {
    let colour = match severity {
        "ERROR" => "31",
        "WARNING" => "33",
        _ => "2",
    };
    let wants_colour =
        io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    write_line(match wants_colour {
        true => format!("walhold: \x1b[{colour}m{severity}\x1b[0m: {text}\n"),
        false => format!("walhold: {severity}: {text}\n"),
    });
}

fn write_json(line: &impl Serialize) {
    if let Ok(text) = serde_json::to_string(line) {
        write_line(text + "\n");
    }
}

/// One write per line, so that lines of several processes do not mix. Nobody can be told if it fails.
fn write_line(line: String) {
    progress::hidden_while(|| {
        let _ = io::stderr().lock().write_all(line.as_bytes());
    });
}

fn severity(level: Level) -> &'static str {
    match level {
        Level::ERROR => "ERROR",
        Level::WARN => "WARNING",
        Level::INFO => "INFO",
        Level::DEBUG => "DEBUG",
        Level::TRACE => "TRACE",
    }
}

/// Writes events; spans are not kept.
struct Lines {
    level: Level,
}

impl Lines {
    /// Libraries speak up for warnings only: their debug lines hold headers and addresses with signatures.
    fn allows(&self, metadata: &Metadata<'_>) -> bool {
        let ours = metadata.target() == "walhold" || metadata.target().starts_with("walhold::");
        let level = if ours { self.level } else { self.level.min(Level::WARN) };
        *metadata.level() <= level
    }
}

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && self.allows(metadata)
    }

    fn max_level_hint(&self) -> Option<tracing::level_filters::LevelFilter> {
        Some(self.level.into())
    }

    fn new_span(&self, _span: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _span: &span::Id, _values: &span::Record<'_>) {}

    fn record_follows_from(&self, _span: &span::Id, _follows: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut said = Said::default();
        event.record(&mut said);
        let severity = severity(*event.metadata().level());
        match format() {
            LogFormat::Text => write_text(severity, &one_line(&said.text())),
            LogFormat::Json => write_json(&EventLine {
                level: match severity {
                    "ERROR" => "error",
                    "WARNING" => "warning",
                    "INFO" => "info",
                    "DEBUG" => "debug",
                    _ => "trace",
                },
                time: now(),
                message: &said.message,
                fields: &said.fields,
            }),
        }
    }

    fn enter(&self, _span: &span::Id) {}

    fn exit(&self, _span: &span::Id) {}
}

/// An event's message and its other fields.
#[derive(Default)]
struct Said {
    message: String,
    fields: serde_json::Map<String, serde_json::Value>,
}

impl Said {
    fn text(&self) -> String {
        let mut text = self.message.clone();
        for (name, value) in &self.fields {
            let _ = write!(text, " {name}={value}");
        }
        text
    }

    fn add(&mut self, field: &Field, value: impl Into<serde_json::Value>) {
        self.fields.insert(field.name().to_owned(), value.into());
    }
}

impl Visit for Said {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "message" => self.message = format!("{value:?}"),
            _ => self.add(field, format!("{value:?}")),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.message = value.to_owned(),
            _ => self.add(field, value),
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, value);
    }
}
