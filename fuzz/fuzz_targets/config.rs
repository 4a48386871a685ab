//! Any text as a configuration file: it is read or refused in one line, and shown without a panic.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use walhold::config::Config;
use walhold::error::{Failure, one_line};

fuzz_target!(|text: &str| {
    match Config::from_toml(text, Path::new("walhold.toml")) {
        Ok(config) => assert!(!format!("{config:?}").is_empty()),
        Err(error) => {
            let line = one_line(&Failure::from(error).to_string());
            assert!(!line.is_empty() && !line.contains('\n'));
        }
    }
});
