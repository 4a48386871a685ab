//! Collects the values of all settings: flags over variables over the file over defaults.
//!
//! In: [`Sources`], what the process was given. Out: [`Effective`], one checked value and its origin per setting.
//! Nothing unknown is let pass: a misspelt name would silently leave a setting at its default, and for a key file
//! that means plaintext in the repository.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, Origin};
use super::redact;
use super::schema::{
    self, CONFIG_VARIABLE, Fallback, Kind, OPTIONS_TABLE, REPOSITORY_URL, SETTINGS, Secrecy, Setting,
};
use super::suggest;
use super::value::{Refusal, Value};
use crate::error::{one_line, system_words};

/// What our own variables begin with.
const PREFIX: &str = "WALHOLD_";

/// What the process was given.
pub struct Sources {
    /// Flags with their values, [`Setting::flag`] first.
    pub flags: Vec<(&'static str, OsString)>,
    /// `--config`.
    pub config_flag: Option<PathBuf>,
    /// The whole environment.
    pub variables: Vec<(OsString, OsString)>,
    /// The file that is read if it exists and no other is named.
    pub default_file: Option<PathBuf>,
}

impl Sources {
    /// This process's environment and `/etc/walhold/walhold.toml`, under these flags.
    pub fn of_process(flags: Vec<(&'static str, OsString)>, config_flag: Option<PathBuf>) -> Sources {
        Sources {
            flags,
            config_flag,
            variables: std::env::vars_os().collect(),
            default_file: Some(PathBuf::from(schema::DEFAULT_FILE)),
        }
    }
}

/// A value and where it comes from.
#[derive(Clone)]
pub struct Found {
    /// The checked value.
    pub value: Value,
    /// Where it comes from.
    pub origin: Origin,
}

/// One value at most per setting, and the options that pass through.
#[derive(Default)]
pub struct Effective {
    /// The TOML file that was read.
    pub file: Option<PathBuf>,
    values: BTreeMap<&'static str, Found>,
    /// `[repository.options]` with the origin of each.
    pub options: BTreeMap<String, (String, Origin)>,
}

impl Effective {
    /// What holds for this setting; `None` if it is unset.
    pub fn get(&self, setting: &Setting) -> Option<&Found> {
        self.values.get(setting.key)
    }

    /// A later source never replaces what an earlier one said.
    fn add(&mut self, setting: &'static Setting, value: Value, origin: Origin) {
        self.values.entry(setting.key).or_insert(Found { value, origin });
    }
}

/// Reads all sources, strongest first.
pub fn collect(sources: &Sources) -> Result<Effective, ConfigError> {
    let mut effective = Effective::default();
    collect_flags(sources, &mut effective)?;
    collect_variables(sources, &mut effective)?;
    if let Some((path, text)) = read_file(sources)? {
        collect_file(&text, &path, &mut effective)?;
        effective.file = Some(path);
    }
    collect_foreign_variables(sources, &mut effective)?;
    collect_defaults(&mut effective)?;
    Ok(effective)
}

fn collect_flags(sources: &Sources, effective: &mut Effective) -> Result<(), ConfigError> {
    for (flag, text) in &sources.flags {
        let Some(setting) = schema::by_flag(flag) else { continue };
        let origin = Origin::Flag(flag);
        let value =
            setting.kind.read_text(text).map_err(|refusal| refused_text(setting, &origin, text, refusal))?;
        effective.add(setting, value, origin);
    }
    Ok(())
}

fn collect_variables(sources: &Sources, effective: &mut Effective) -> Result<(), ConfigError> {
    for (name, text) in &sources.variables {
        if !name.as_bytes().starts_with(PREFIX.as_bytes()) || name == CONFIG_VARIABLE {
            continue;
        }
        let name = name.to_string_lossy();
        match SETTINGS.into_iter().find(|setting| setting.variable == name) {
            Some(setting) => collect_variable(setting, &name, text, effective)?,
            None if is_foreign(&name) => {}
            None => return Err(unknown_variable(&name)),
        }
    }
    Ok(())
}

fn collect_variable(
    setting: &'static Setting,
    name: &str,
    text: &OsStr,
    effective: &mut Effective,
) -> Result<(), ConfigError> {
    let origin = Origin::Variable(name.to_owned());
    let value =
        setting.kind.read_text(text).map_err(|refusal| refused_text(setting, &origin, text, refusal))?;
    effective.add(setting, value, origin);
    Ok(())
}

/// Variables of other programs that begin as ours do: Kubernetes describes a service called `walhold` to every
/// container beside it (`WALHOLD_SERVICE_HOST`, `WALHOLD_PORT_8080_TCP`, …), and archiving must not stop for that.
fn is_foreign(name: &str) -> bool {
    let described_service =
        name.ends_with("_SERVICE_HOST") || name.contains("_SERVICE_PORT") || name == "WALHOLD_PORT" || {
            let port = name.split_once("_PORT_").map(|(_, port)| port).unwrap_or_default();
            port.starts_with(|first: char| first.is_ascii_digit())
        };
    described_service || (cfg!(debug_assertions) && name.starts_with("WALHOLD_TEST_"))
}

fn unknown_variable(name: &str) -> ConfigError {
    // What all of them begin with says nothing about which one is meant.
    let own_part = |name: &'static str| name.strip_prefix(PREFIX).unwrap_or(name);
    let known = SETTINGS.into_iter().map(|setting| setting.variable).chain([CONFIG_VARIABLE]).map(own_part);
    let wrong = name.strip_prefix(PREFIX).unwrap_or(name);
    let suggestion = suggest::nearest(wrong, known).map(|near| format!("{PREFIX}{near}"));
    ConfigError::UnknownVariable { name: one_line(name), suggestion }
}

/// The named file, which must exist, or the default one if it does.
fn read_file(sources: &Sources) -> Result<Option<(PathBuf, String)>, ConfigError> {
    let variable = sources.variables.iter().find(|(name, _)| name == CONFIG_VARIABLE).map(|(_, value)| value);
    let named = match (&sources.config_flag, variable) {
        (Some(path), _) => Some(path.clone()),
        (None, Some(text)) if text.is_empty() => {
            return Err(ConfigError::Value {
                key: "configuration file".to_owned(),
                origin: Origin::Variable(CONFIG_VARIABLE.to_owned()),
                problem: "the value is empty; expected a path, or unset the variable".to_owned(),
            });
        }
        (None, Some(text)) => Some(PathBuf::from(text)),
        (None, None) => None,
    };
    let (path, must_exist) = match (named, &sources.default_file) {
        (Some(path), _) => (path, true),
        (None, Some(path)) => (path.clone(), false),
        (None, None) => return Ok(None),
    };
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Some((path, text))),
        Err(error) if error.kind() == ErrorKind::NotFound && !must_exist => Ok(None),
        Err(error) => Err(ConfigError::File { path, problem: system_words(&error) }),
    }
}

/// Reads a TOML file's text.
pub fn collect_file(text: &str, path: &Path, effective: &mut Effective) -> Result<(), ConfigError> {
    let document = DeTable::parse(text).map_err(|error| ConfigError::Syntax {
        path: path.to_owned(),
        line: error.span().map_or(1, |span| line_of(text, span.start)),
        problem: error.message().split_whitespace().collect::<Vec<_>>().join(" "),
    })?;
    let mut file = File { text, path, effective };
    file.table("", document.get_ref())
}

/// The line, counted from 1, that the byte at `offset` lies in.
fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|&byte| byte == b'\n').count()
}

struct File<'a> {
    text: &'a str,
    path: &'a Path,
    effective: &'a mut Effective,
}

impl File<'_> {
    fn origin(&self, offset: usize) -> Origin {
        Origin::File { path: self.path.to_owned(), line: line_of(self.text, offset) }
    }

    fn table(&mut self, prefix: &str, table: &DeTable<'_>) -> Result<(), ConfigError> {
        for (name, value) in table {
            let key = match prefix {
                "" => name.get_ref().to_string(),
                _ => format!("{prefix}.{}", name.get_ref()),
            };
            self.entry(&key, self.origin(name.span().start), value.get_ref())?;
        }
        Ok(())
    }

    fn entry(&mut self, key: &str, origin: Origin, value: &DeValue<'_>) -> Result<(), ConfigError> {
        let is_section = key == OPTIONS_TABLE
            || SETTINGS
                .into_iter()
                .any(|setting| setting.key.strip_prefix(key).is_some_and(|rest| rest.starts_with('.')));
        let setting = match (schema::by_key(key), value) {
            (Some(setting), _) => setting,
            (None, DeValue::Table(options)) if key == OPTIONS_TABLE => return self.options(options),
            (None, DeValue::Table(table)) if is_section => return self.table(key, table),
            (None, DeValue::String(_)) if key == "repository" => &REPOSITORY_URL,
            (None, _) if is_section => {
                let problem = format!("expected a table, [{key}], found {}", value.type_str());
                return Err(ConfigError::Value { key: key.to_owned(), origin, problem });
            }
            (None, DeValue::Table(_)) => return Err(unknown_table(key, origin)),
            (None, _) => return Err(unknown_key(key, origin)),
        };
        let read = setting.kind.read_toml(value);
        let read =
            read.map_err(|refusal| refused(setting, &origin, found_in_toml(setting, value), refusal))?;
        self.effective.add(setting, read, origin);
        Ok(())
    }

    /// object_store's own keys: text, or numbers and booleans that are written without quotes.
    fn options(&mut self, options: &DeTable<'_>) -> Result<(), ConfigError> {
        for (name, value) in options {
            let origin = self.origin(name.span().start);
            let text = match value.get_ref() {
                DeValue::String(text) => text.to_string(),
                DeValue::Integer(number) if number.radix() == 10 => number.as_str().to_owned(),
                DeValue::Boolean(yes) => yes.to_string(),
                other => {
                    return Err(ConfigError::Value {
                        key: format!("{OPTIONS_TABLE}.{}", name.get_ref()),
                        origin,
                        problem: format!(
                            "expected text, a whole number or true or false, found {}",
                            other.type_str()
                        ),
                    });
                }
            };
            self.effective.options.insert(name.get_ref().to_string(), (text, origin));
        }
        Ok(())
    }
}

fn unknown_table(key: &str, origin: Origin) -> ConfigError {
    let sections =
        SETTINGS.into_iter().filter_map(|setting| setting.key.split_once('.')).map(|(section, _)| section);
    let suggestion =
        suggest::nearest(key, sections.chain([OPTIONS_TABLE])).map(|section| format!("[{section}]"));
    ConfigError::UnknownKey { key: one_line(key), origin, suggestion }
}

fn unknown_key(key: &str, origin: Origin) -> ConfigError {
    // A key that stands in the wrong section is nearer than any misspelling.
    let name = key.rsplit('.').next().unwrap_or(key);
    let by_name = |name: &str| SETTINGS.into_iter().find(|setting| setting.name() == name);
    let suggestion = by_name(name)
        .map(|setting| setting.key)
        .or_else(|| suggest::nearest(key, SETTINGS.into_iter().map(|setting| setting.key)))
        .or_else(|| {
            let near = suggest::nearest(name, SETTINGS.into_iter().map(|setting| setting.name()))?;
            by_name(near).map(|setting| setting.key)
        });
    ConfigError::UnknownKey { key: one_line(key), origin, suggestion: suggestion.map(str::to_owned) }
}

/// `PGDATA` and the like: weaker than anything said to walhold itself. Empty means unset, as in libpq.
fn collect_foreign_variables(sources: &Sources, effective: &mut Effective) -> Result<(), ConfigError> {
    for setting in SETTINGS {
        let Some(name) = setting.foreign_variable else { continue };
        let found = sources.variables.iter().find(|(variable, text)| variable == name && !text.is_empty());
        if let Some((_, text)) = found {
            collect_variable(setting, name, text, effective)?;
        }
    }
    Ok(())
}

/// Adds what holds when nobody said anything.
pub fn collect_defaults(effective: &mut Effective) -> Result<(), ConfigError> {
    for setting in SETTINGS {
        if let Fallback::Text(text) = setting.default {
            let origin = Origin::Default;
            let value = setting.kind.read_text(OsStr::new(text));
            let value = value.map_err(|refusal| refused_text(setting, &origin, OsStr::new(text), refusal))?;
            effective.add(setting, value, origin);
        }
    }
    Ok(())
}

fn refused_text(setting: &Setting, origin: &Origin, text: &OsStr, refusal: Refusal) -> ConfigError {
    refused(setting, origin, quoted(setting, &text.to_string_lossy()), refusal)
}

fn found_in_toml(setting: &Setting, value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => quoted(setting, text),
        DeValue::Integer(number) => number.as_str().to_owned(),
        DeValue::Boolean(yes) => yes.to_string(),
        other => other.type_str().to_owned(),
    }
}

/// The value between quotes on one line, or only its type where it may be secret.
fn quoted(setting: &Setting, text: &str) -> String {
    match (setting.secrecy, setting.kind) {
        // A path that is refused may be the key itself, put where its file's name belongs.
        (Secrecy::Open, Kind::AbsolutePaths) => "something else".to_owned(),
        (Secrecy::Open, _) => format!("{text:?}"),
        (secrecy, _) => match redact::shown(secrecy, text) {
            shown if shown == text => format!("{text:?}"),
            _ => redact::HIDDEN.to_owned(),
        },
    }
}

fn refused(setting: &Setting, origin: &Origin, found: String, refusal: Refusal) -> ConfigError {
    let allowed = setting.kind.allowed();
    let problem = match refusal {
        Refusal::NotAllowed => format!("expected {allowed}, found {found}"),
        Refusal::NotUtf8 => format!("expected {allowed}, found text that is not UTF-8"),
        Refusal::Empty => match origin {
            Origin::Variable(_) => format!("the value is empty; expected {allowed}, or unset the variable"),
            _ => format!("the value is empty; expected {allowed}"),
        },
        Refusal::Because(problem) => problem,
    };
    ConfigError::Value { key: setting.key.to_owned(), origin: origin.clone(), problem }
}
