//! `backup_label`, `tablespace_map` and configuration files from any text; what is read is written and read again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use walhold::pg::backup_label::{BackupLabel, format_tablespace_map, parse_tablespace_map};
use walhold::pg::recovery::{parse_settings, remove_settings, replace_settings, setting};

fuzz_target!(|text: &str| {
    let _ = BackupLabel::parse(text);
    if let Ok(entries) = parse_tablespace_map(text) {
        assert_eq!(parse_tablespace_map(&format_tablespace_map(&entries)), Ok(entries));
    }
    let _ = remove_settings(text, &["restore_command"]);
    if let Ok(settings) = parse_settings(text) {
        for found in &settings {
            if found.value.contains('\0') {
                continue;
            }
            let pair = (found.name.clone(), found.value.clone());
            let replaced =
                parse_settings(&replace_settings(text, &[pair])).expect("a replaced setting can be read");
            assert_eq!(setting(&replaced, &found.name).as_deref(), Some(found.value.as_str()));
        }
    }
});
