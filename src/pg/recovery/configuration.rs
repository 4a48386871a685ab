//! Text of `postgresql.conf` and `postgresql.auto.conf` (`src/backend/utils/misc/guc-file.l`).

/// A line that sets something.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Setting {
    /// Counted from 1.
    pub line: usize,
    /// In lower case, as PostgreSQL compares names.
    pub name: String,
    /// Without its quotes.
    pub value: String,
}

/// A line that PostgreSQL would refuse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("syntax error in line {line}: {text:?}")]
pub struct ParseConfigurationError {
    /// Counted from 1.
    pub line: usize,
    /// The line.
    pub text: String,
}

/// All settings in order; `include` directives appear as settings of that name and are not followed.
pub fn parse_settings(text: &str) -> Result<Vec<Setting>, ParseConfigurationError> {
    let mut settings = Vec::new();
    for (number, line) in numbered_lines(text) {
        match parse_line(line) {
            Ok(None) => {}
            Ok(Some((name, value))) => settings.push(Setting { line: number, name, value }),
            Err(SyntaxError) => return Err(ParseConfigurationError { line: number, text: line.to_owned() }),
        }
    }
    Ok(settings)
}

/// What `name` is set to: the last line wins.
pub fn setting(settings: &[Setting], name: &str) -> Option<String> {
    let name = name.to_ascii_lowercase();
    settings.iter().rev().find(|setting| setting.name == name).map(|setting| setting.value.clone())
}

/// A value as the configuration files take it: quotes and backslashes doubled, line ends as `\n` and `\r`, in quotes.
/// The inverse of what `DeescapeQuotedString` does.
pub fn quote_value(value: &str) -> String {
    let mut quoted = String::with_capacity(value.len() + 2);
    quoted.push('\'');
    for character in value.chars() {
        match character {
            '\'' => quoted.push_str("''"),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            other => quoted.push(other),
        }
    }
    quoted.push('\'');
    quoted
}

/// The text without the lines that set any of `names`; everything else, comments included, stays as it is.
pub fn remove_settings(text: &str, names: &[&str]) -> String {
    let removed = |line: &str| match parse_line(line) {
        Ok(Some((name, _))) => names.iter().any(|n| n.eq_ignore_ascii_case(&name)),
        // A line that PostgreSQL refuses is for people to mend; it says itself where it is.
        Ok(None) | Err(SyntaxError) => false,
    };
    text.split_inclusive('\n').filter(|line| !removed(line.trim_end_matches(['\n', '\r']))).collect()
}

/// The text with these settings, in this order, at its end, and nowhere else.
pub fn replace_settings(text: &str, settings: &[(String, String)]) -> String {
    let names: Vec<&str> = settings.iter().map(|(name, _)| name.as_str()).collect();
    let mut replaced = remove_settings(text, &names);
    if !replaced.is_empty() && !replaced.ends_with('\n') {
        replaced.push('\n');
    }
    for (name, value) in settings {
        replaced.push_str(&format!("{name} = {}\n", quote_value(value)));
    }
    replaced
}

struct SyntaxError;

fn numbered_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(index, line)| (index + 1, line))
}

/// `name [=] value [# comment]`; `None` for a blank line or a comment.
fn parse_line(line: &str) -> Result<Option<(String, String)>, SyntaxError> {
    let rest = skip_space(line);
    if rest.is_empty() || rest.starts_with('#') {
        return Ok(None);
    }
    let name_end = rest.find(|c| !is_name_character(c)).unwrap_or(rest.len());
    let (name, rest) = rest.split_at_checked(name_end).ok_or(SyntaxError)?;
    if !is_name(name) {
        return Err(SyntaxError);
    }
    let rest = skip_space(rest);
    let rest = skip_space(rest.strip_prefix('=').unwrap_or(rest));
    let (value, rest) = match rest.strip_prefix('\'') {
        Some(quoted) => parse_quoted(quoted)?,
        None => parse_bare(rest)?,
    };
    let rest = skip_space(rest);
    match rest.is_empty() || rest.starts_with('#') {
        true => Ok(Some((name.to_ascii_lowercase(), value))),
        false => Err(SyntaxError),
    }
}

/// `GUC_WHITESPACE`: blank, tab, carriage return.
fn skip_space(text: &str) -> &str {
    text.trim_start_matches([' ', '\t', '\r'])
}

/// Letters are those of the lexer: ASCII, underscore and every byte above 127.
fn is_letter(character: char) -> bool {
    character.is_ascii_alphabetic() || character == '_' || !character.is_ascii()
}

fn is_name_character(character: char) -> bool {
    is_letter(character) || character.is_ascii_digit() || character == '.' || character == '$'
}

/// A name, or a class and a name with a dot between them.
fn is_name(name: &str) -> bool {
    name.split('.').all(|part| part.starts_with(is_letter))
}

/// A word or a number without quotes.
fn parse_bare(text: &str) -> Result<(String, &str), SyntaxError> {
    let allowed = |c: char| is_letter(c) || c.is_ascii_digit() || "-+._:/$".contains(c);
    let end = text.find(|c| !allowed(c)).unwrap_or(text.len());
    match text.split_at_checked(end) {
        Some((value, rest)) if !value.is_empty() => Ok((value.to_owned(), rest)),
        _ => Err(SyntaxError),
    }
}

/// What follows an opening quote, up to its end (`DeescapeQuotedString`).
fn parse_quoted(text: &str) -> Result<(String, &str), SyntaxError> {
    let mut value = String::new();
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '\'' => match characters.as_str().strip_prefix('\'') {
                Some(rest) => {
                    value.push('\'');
                    characters = rest.chars();
                }
                None => return Ok((value, characters.as_str())),
            },
            '\\' => {
                let rest = characters.as_str();
                let octal = rest.bytes().take(3).take_while(|b| (b'0'..=b'7').contains(b)).count();
                if octal > 0 {
                    let (digits, after) = rest.split_at_checked(octal).ok_or(SyntaxError)?;
                    // Bytes above 127 cannot be told apart from text here; PostgreSQL keeps the low 8 bits.
                    value.push(char::from(
                        (u32::from_str_radix(digits, 8).map_err(|_| SyntaxError)? & 0xFF) as u8,
                    ));
                    characters = after.chars();
                } else {
                    value.push(match characters.next().ok_or(SyntaxError)? {
                        'b' => '\u{8}',
                        'f' => '\u{c}',
                        'n' => '\n',
                        'r' => '\r',
                        't' => '\t',
                        other => other,
                    });
                }
            }
            other => value.push(other),
        }
    }
    Err(SyntaxError)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &str = "# settings\n\
        max_connections = 100\t\t# (change requires restart)\n\
        Restore_Command 'cp /a/%f %p'\n\
        #restore_command = 'not this'\n\
        restore_command='it''s \\'here\\' \\101'  # last\n\
        my.own = on\n\
        shared_buffers=128MB\n\
        include_dir 'conf.d'\n";

    #[test]
    fn the_last_line_wins() {
        let settings = parse_settings(TEXT).unwrap();
        let value = |name| setting(&settings, name);
        assert_eq!(value("restore_command").as_deref(), Some("it's 'here' A"));
        assert_eq!(value("MAX_CONNECTIONS").as_deref(), Some("100"));
        assert_eq!(value("my.own").as_deref(), Some("on"));
        assert_eq!(value("shared_buffers").as_deref(), Some("128MB"));
        assert_eq!(value("include_dir").as_deref(), Some("conf.d"));
        assert_eq!(value("archive_command"), None);
        assert_eq!(settings[1].line, 3);
    }

    #[test]
    fn what_postgresql_refuses_is_named() {
        for line in ["port", "port =", "= 1", "port = 'x", "port = 1 2", "1port = 2", "a..b = 1", "a = 'b' c"]
        {
            let text = format!("a = 1\n{line}\n");
            let error = parse_settings(&text).unwrap_err();
            assert_eq!((error.line, error.text.as_str()), (2, line));
        }
    }

    #[test]
    fn replacing_leaves_everything_else() {
        let settings =
            [("restore_command".to_owned(), "a'b\\c\nd".to_owned()), ("port".to_owned(), "1".to_owned())];
        let replaced = replace_settings(TEXT, &settings);
        assert!(replaced.starts_with(
            "# settings\nmax_connections = 100\t\t# (change requires restart)\n#restore_command"
        ));
        assert!(replaced.ends_with("include_dir 'conf.d'\nrestore_command = 'a''b\\\\c\\nd'\nport = '1'\n"));
        assert_eq!(replace_settings(&replaced, &settings), replaced);
        assert_eq!(replace_settings("a = 1", &[]), "a = 1\n");
        assert_eq!(remove_settings("Port = 1\r\nb = 2", &["port"]), "b = 2");
    }

    proptest! {
        #[test]
        fn every_value_survives(value in "[^\\x00]{0,30}") {
            let text = replace_settings("", &[("a".to_owned(), value.clone())]);
            prop_assert_eq!(setting(&parse_settings(&text).unwrap(), "a"), Some(value));
        }

        #[test]
        fn any_text_is_survived(text in "(a ?=? ?|[a-z='\\\\ #.0-9\\n]|\\PC){0,60}") {
            let _ = parse_settings(&text);
            let _ = remove_settings(&text, &["a"]);
            for found in parse_settings(&text).unwrap_or_default() {
                let replaced = replace_settings(&text, &[(found.name.clone(), found.value.clone())]);
                prop_assert_eq!(setting(&parse_settings(&replaced).unwrap(), &found.name), Some(found.value));
            }
        }
    }
}
