//! What may be shown of a setting that can hold a secret. In doubt nothing is shown.

use super::schema::Secrecy;

/// Stands for what is not shown.
pub const HIDDEN: &str = "(hidden)";

/// True for an object_store key whose value is not shown.
pub fn is_secret_option(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    ["key", "secret", "token", "password", "sas", "sig", "credential", "authorization"]
        .iter()
        .any(|word| key.contains(word))
}

/// The text as far as it may be shown.
pub fn shown(secrecy: Secrecy, text: &str) -> String {
    match secrecy {
        Secrecy::Open => text.to_owned(),
        Secrecy::Connection => connection_without_passwords(text),
        Secrecy::Command => command_name(text),
    }
}

/// The first word of a command; the rest may hold a token.
pub fn command_name(command: &str) -> String {
    let mut words = command.split_whitespace();
    match (words.next(), words.next()) {
        (Some(first), _) if first.contains(['=', '"', '\'', '$', '`', '(']) => HIDDEN.to_owned(),
        (Some(first), None) => first.to_owned(),
        (Some(first), Some(_)) => format!("{first} …"),
        (None, _) => String::new(),
    }
}

/// A libpq connection string or URI with its passwords hidden; all of it hidden if it cannot be understood.
pub fn connection_without_passwords(connection: &str) -> String {
    if connection.contains("://") {
        uri_without_passwords(connection)
    } else {
        pairs_without_passwords(connection)
    }
}

fn uri_without_passwords(uri: &str) -> String {
    let Some((scheme, rest)) = uri.split_once("://") else { return HIDDEN.to_owned() };
    // libpq takes everything before an '@' for the user's part, '?' included, so that is looked at first.
    let (user, place) = match rest.rsplit_once('@') {
        Some((user, _)) if user.contains(['/', '?']) => return format!("{scheme}://{HIDDEN}"),
        Some((user, place)) => match user.split_once(':') {
            Some((name, _)) => (format!("{name}:{HIDDEN}@"), place),
            None => (format!("{user}@"), place),
        },
        None => (String::new(), rest),
    };
    let Some((place, parameters)) = place.split_once('?') else { return format!("{scheme}://{user}{place}") };
    let hide = |pair: &str| match pair.split_once('=') {
        Some((key, _)) if is_secret_parameter(key) => format!("{key}={HIDDEN}"),
        _ => pair.to_owned(),
    };
    let parameters = parameters.split('&').map(hide).collect::<Vec<_>>().join("&");
    format!("{scheme}://{user}{place}?{parameters}")
}

fn is_secret_parameter(key: &str) -> bool {
    // A '%' may hide the word: `%70assword` is a valid spelling.
    key.contains('%')
        || ["pass", "secret", "token"].iter().any(|word| key.to_ascii_lowercase().contains(word))
            && key != "passfile"
}

/// `key = value` pairs as in libpq's `conninfo_parse`: values may be quoted with `'` and hold `\` escapes.
fn pairs_without_passwords(pairs: &str) -> String {
    let mut shown = Vec::new();
    let mut rest = pairs.trim_start();
    while !rest.is_empty() {
        let Some((key, value)) = rest.split_once('=') else { return HIDDEN.to_owned() };
        let key = key.trim();
        if key.is_empty() || key.contains(char::is_whitespace) {
            return HIDDEN.to_owned();
        }
        let value = value.trim_start();
        let Some(length) = value_length(value) else { return HIDDEN.to_owned() };
        let Some((text, remaining)) = value.split_at_checked(length) else { return HIDDEN.to_owned() };
        shown.push(match is_secret_parameter(key) {
            true => format!("{key}={HIDDEN}"),
            false => format!("{key}={text}"),
        });
        rest = remaining.trim_start();
    }
    shown.join(" ")
}

/// Bytes of the value at the beginning of `text`; `None` for a quote that does not end.
fn value_length(text: &str) -> Option<usize> {
    let quoted = text.starts_with('\'');
    let mut escaped = false;
    for (at, letter) in text.char_indices().skip(usize::from(quoted)) {
        match letter {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '\'' if quoted => return Some(at + 1),
            _ if !quoted && letter.is_whitespace() => return Some(at),
            _ => {}
        }
    }
    if quoted { None } else { Some(text.len()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::client::ConnectionSettings;

    #[test]
    fn passwords_in_connection_strings_are_hidden() {
        for (connection, expected) in [
            ("host=db user=me", "host=db user=me"),
            ("host=db password=geheim user=me", "host=db password=(hidden) user=me"),
            ("password = 'ge heim\\' x' host=db", "password=(hidden) host=db"),
            ("sslpassword=geheim", "sslpassword=(hidden)"),
            ("passfile=/home/me/.pgpass", "passfile=/home/me/.pgpass"),
            ("password='geheim", HIDDEN),
            ("geheim", HIDDEN),
            ("host db password=geheim", HIDDEN),
            ("postgresql://me:geheim@db:5432/app", "postgresql://me:(hidden)@db:5432/app"),
            ("postgresql://me:ge@heim@db/app", "postgresql://me:(hidden)@db/app"),
            ("postgresql://me:ge?he@im@db/app", "postgresql://(hidden)"),
            ("postgres://db/app?user=a@b&password=geheim", "postgres://(hidden)"),
            ("postgres://db/app?user=me&password=geheim", "postgres://db/app?user=me&password=(hidden)"),
            ("postgres://db/app?%70assword=geheim", "postgres://db/app?%70assword=(hidden)"),
        ] {
            assert_eq!(connection_without_passwords(connection), expected);
        }
    }

    #[test]
    fn only_the_name_of_a_command_is_shown() {
        assert_eq!(command_name("vault read -token=geheim"), "vault …");
        assert_eq!(command_name("/usr/bin/print-key"), "/usr/bin/print-key");
        assert_eq!(command_name("TOKEN=geheim vault read"), HIDDEN);
    }

    #[test]
    fn debug_output_holds_no_secret() {
        let settings = ConnectionSettings { connection: Some("password=geheim".to_owned()) };
        assert!(!format!("{settings:?}").contains("geheim"));
    }
}
