//! A shell command's words, where it is simple enough to have some.

/// The words as `/bin/sh` would pass them; `None` if it takes more than quotes to say (variables, pipes, lists, substitutions), or a quote is not closed.
pub fn words(command: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut characters = command.chars();
    while let Some(character) = characters.next() {
        match character {
            ' ' | '\t' | '\n' => words.extend(word.take()),
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match characters.next()? {
                        '\'' => break,
                        inside => word.push(inside),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match characters.next()? {
                        '"' => break,
                        '$' | '`' => return None,
                        '\\' => match characters.next()? {
                            escaped @ ('"' | '\\' | '$' | '`') => word.push(escaped),
                            other => word.extend(['\\', other]),
                        },
                        inside => word.push(inside),
                    }
                }
            }
            '\\' => word.get_or_insert_default().push(characters.next()?),
            '$' | '`' | '|' | '&' | ';' | '<' | '>' | '(' | ')' | '*' | '?' | '[' | '#' | '~' => return None,
            other => word.get_or_insert_default().push(other),
        }
    }
    words.extend(word);
    Some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_are_understood_and_the_shell_s_language_is_not() {
        let words = |command: &str| words(command).map(|words| words.join("|"));
        for (command, expected) in [
            ("walhold wal-push %p", "walhold|wal-push|%p"),
            (
                "A='x y' \"/opt/wal hold\"/bin/walhold  wal-push '%p'",
                "A=x y|/opt/wal hold/bin/walhold|wal-push|%p",
            ),
            (r"B=it\'s x", "B=it's|x"),
            ("a '' b", "a||b"),
        ] {
            assert_eq!(words(command).as_deref(), Some(expected), "{command}");
        }
        for command in ["a && b", "a | b", "$HOME/x", "test ! -f /a/%f; cp %p /a", "'open", "a `b`", "cd ~"] {
            assert_eq!(words(command), None, "{command}");
        }
    }
}
