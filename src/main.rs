//! From the command line to a command, and from its end to a line on standard error and an exit status.
//!
//! 1. The command line decides how statuses are read, before anything can fail.
//! 2. Parse it, load the settings, begin to log and to listen to signals.
//! 3. Run the command; a panic is caught.
//! 4. Report a failure in one place and end with its status, or by the signal that interrupted us.

use std::any::Any;
use std::ffi::OsString;
use std::panic::{AssertUnwindSafe, PanicHookInfo};
use std::process::ExitCode;

use walhold::cli::{self, Parsed, Verb};
use walhold::command;
use walhold::config::{Config, LogFormat};
use walhold::error::Failure;
use walhold::exit_status::{Cause, Outcome, StatusRule, verb_of};
use walhold::{interrupt, logging, output};

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let rule = StatusRule::of_command_line(&arguments);
    if asks_for_json(&arguments) {
        logging::set_format(LogFormat::Json);
    }
    std::panic::set_hook(Box::new(keep_panic_message));
    let result = std::panic::catch_unwind(AssertUnwindSafe(|| run(&arguments)));
    let result = result.unwrap_or_else(|panic| Err(panicked(panic.as_ref())));
    match result {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Absent) => ExitCode::from(1),
        Err(failure) => end(&failure, rule, verb_of(&arguments)),
    }
}

fn run(arguments: &[OsString]) -> Result<Outcome, Failure> {
    let mut line = match cli::parse(arguments)? {
        Parsed::Command(line) => line,
        Parsed::Text(text) => {
            output::print(&text)?;
            return Ok(Outcome::Done);
        }
    };
    let sources = line.sources();
    match line.verb {
        Verb::Man(args) => return command::man::run(&args),
        Verb::Completions(args) => return command::completions::run(&args),
        _ => {}
    }
    let config = Config::load(&sources)?;
    drop(sources);
    logging::start(&config.log);
    interrupt::install();
    panic_if_asked_to();
    dispatch(line.verb, &config)
}

fn dispatch(verb: Verb, config: &Config) -> Result<Outcome, Failure> {
    match verb {
        Verb::Config(args) => return command::config::run(args, config),
        Verb::Keygen(args) => return command::keygen::run(args, config),
        _ => config.require_repository()?,
    }
    match verb {
        Verb::Init(args) => command::init::run(args, config),
        Verb::WalPush(args) => command::wal_push::run(args, config),
        Verb::WalFetch(args) => command::wal_fetch::run(args, config),
        Verb::Agent(args) => command::agent::run(args, config),
        Verb::WalPrefetch(args) => command::wal_prefetch::run(args, config),
        Verb::WalShow(args) => command::wal_show::run(args, config),
        Verb::WalVerify(args) => command::wal_verify::run(args, config),
        Verb::BackupPush { args, .. } => command::backup_push::run(args, config),
        Verb::BackupList(args) => command::backup_list::run(args, config),
        Verb::BackupShow(args) => command::backup_show::run(args, config),
        Verb::BackupMark(args) => command::backup_mark::run(args, config),
        Verb::Check(args) => command::check::run(args, config),
        Verb::Status(args) => command::status::run(args, config),
        Verb::Verify { args, .. } => command::verify::run(args, config),
        Verb::Expire { args, .. } => command::expire::run(args, config),
        Verb::Restore { args, .. } => command::restore::run(*args, config),
        Verb::Config(_) | Verb::Keygen(_) | Verb::Man(_) | Verb::Completions(_) => Ok(Outcome::Done),
    }
}

/// Reports the failure and ends the process as the command's family asks for.
fn end(failure: &Failure, rule: StatusRule, verb: Option<&str>) -> ExitCode {
    let status = rule.status(failure.cause);
    if failure.reader_gone {
        interrupt::die_by(nix::sys::signal::Signal::SIGPIPE);
        return ExitCode::from(status);
    }
    logging::report(failure, status, verb);
    // The archiver counts on an exit status; everybody else is told by the signal itself. A fetch that fails
    // after SIGTERM dies by it whatever the failure was, because it may be a consequence.
    if let Some(signal) = interrupt::requested() {
        let dies = match rule {
            StatusRule::Push => false,
            StatusRule::Fetch => true,
            StatusRule::Operator => failure.cause == Cause::Interrupted,
        };
        if dies {
            interrupt::die_by(signal);
        }
    }
    ExitCode::from(status)
}

/// Whether failures are to be reported in JSON even before the settings are known.
fn asks_for_json(arguments: &[OsString]) -> bool {
    let mut format = std::env::var_os("WALHOLD_LOG_FORMAT");
    for (at, argument) in arguments.iter().enumerate() {
        if argument == "--log-format" {
            format = arguments.get(at + 1).cloned();
        } else if let Some(text) = argument.to_str().and_then(|text| text.strip_prefix("--log-format=")) {
            format = Some(OsString::from(text));
        }
    }
    format.is_some_and(|format| format == "json")
}

thread_local! {
    /// Where and why this thread panicked.
    static PANIC: std::cell::RefCell<Option<String>> = const { std::cell::RefCell::new(None) };
}

/// Instead of Rust's three lines with a backtrace: the main thread's panic becomes a failure, another thread's
/// (which its parent turns into one) is logged here, because only the hook knows its place.
fn keep_panic_message(panic: &PanicHookInfo<'_>) {
    let place = panic.location().map(|location| format!("{}:{}", location.file(), location.line()));
    let text = format!("{} at {}", panic_words(panic.payload()), place.unwrap_or_default());
    if std::thread::current().name() == Some("main") {
        let _ = PANIC.try_with(|kept| kept.replace(Some(text)));
    } else {
        tracing::error!("internal error: {text}");
    }
}

fn panic_words(payload: &(dyn Any + Send)) -> &str {
    match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
        (Some(words), _) => words,
        (None, Some(words)) => words,
        (None, None) => "panic",
    }
}

fn panicked(payload: &(dyn Any + Send)) -> Failure {
    let kept = PANIC.try_with(|kept| kept.take()).ok().flatten();
    let text = kept.unwrap_or_else(|| panic_words(payload).to_owned());
    Failure::new(Cause::Internal, format!("internal error: {text}"))
        .with_hint("this is a mistake in walhold: please report it with this line and what was running")
}

/// Lets a test see what a panic ends with; not compiled into releases.
fn panic_if_asked_to() {
    #[cfg(debug_assertions)]
    if std::env::var_os("WALHOLD_TEST_PANIC").is_some() {
        panic!("asked to panic");
    }
}
