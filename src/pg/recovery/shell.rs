//! Words of `restore_command` and `archive_command`: PostgreSQL replaces `%f`, `%p`, `%r` and `%%`, then `/bin/sh -c` reads the rest.

/// One word of POSIX sh, whatever it holds (NUL cannot be part of one).
pub fn shell_word(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"/._-+:,@=".contains(&b);
    // A word with `=` in front of the command would be an assignment, a leading `~` is not plain at all.
    if !text.is_empty() && text.bytes().all(plain) && !text.contains('=') {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// The same for a command in PostgreSQL's configuration, where a percent sign is written twice
/// (`src/common/percentrepl.c`; 16 and later refuse a lone one).
pub fn command_word(text: &str) -> String {
    shell_word(text).replace('%', "%%")
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn plain_words_stay_readable() {
        for word in ["/usr/bin/walhold", "--config", "wal-fetch", "s3://bucket/prefix"] {
            assert_eq!(shell_word(word), word);
        }
        assert_eq!(shell_word(""), "''");
        assert_eq!(shell_word("it's"), r"'it'\''s'");
        assert_eq!(command_word("100%"), "'100%%'");
        assert_eq!(shell_word("a=b"), "'a=b'");
        assert_eq!(shell_word("~"), "'~'");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn the_shell_gives_every_word_back(text in "[^\\x00]{0,20}") {
            let output = Command::new("/bin/sh").arg("-c").arg(format!("printf %s {}", shell_word(&text))).output().unwrap();
            prop_assert_eq!(String::from_utf8(output.stdout).unwrap(), text);
        }
    }
}
