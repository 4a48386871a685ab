//! `config`: the effective settings with their origins.
//!
//! 1. Print every setting, its value (secrets hidden) and where it comes from.

use serde::Serialize;

use crate::config::{Config, Origin};
use crate::error::Failure;
use crate::exit_status::Outcome;
use crate::output::{self, Align, Table};

/// Print the effective settings with their origins, secrets hidden
#[derive(Debug, clap::Args)]
pub struct ConfigArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Shown<'a> {
    file: Option<String>,
    settings: Vec<ShownLine<'a>>,
}

#[derive(Serialize)]
struct ShownLine<'a> {
    key: &'a str,
    value: Option<&'a str>,
    hidden: bool,
    origin: &'static str,
    #[serde(rename = "where")]
    place: Option<String>,
}

/// Runs the command.
pub fn run(args: ConfigArgs, config: &Config) -> Result<Outcome, Failure> {
    if args.json {
        print_json(config)?
    } else {
        print_table(config)?
    }
    Ok(Outcome::Done)
}

fn print_table(config: &Config) -> Result<(), Failure> {
    let mut table = Table::new([("setting", Align::Left), ("value", Align::Left), ("origin", Align::Left)]);
    for setting in &config.table {
        let value = setting.value.clone().unwrap_or_else(|| "(not set)".to_owned());
        table.add([setting.key.clone(), crate::error::one_line(&value), setting.origin.to_string()]);
    }
    Ok(table.print()?)
}

fn print_json(config: &Config) -> Result<(), Failure> {
    let settings = config.table.iter().map(|setting| {
        let (origin, place) = match &setting.origin {
            Origin::Flag(flag) => ("flag", Some((*flag).to_owned())),
            Origin::Variable(name) => ("variable", Some(name.clone())),
            Origin::File { path, line } => ("file", Some(format!("{}:{line}", path.display()))),
            Origin::Default => ("default", None),
        };
        ShownLine {
            key: &setting.key,
            value: setting.value.as_deref(),
            hidden: setting.hidden,
            origin,
            place,
        }
    });
    let file = config.file.as_ref().map(|path| path.display().to_string());
    Ok(output::print_json(&Shown { file, settings: settings.collect() })?)
}
