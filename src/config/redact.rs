//! What may be shown of a setting that can hold a secret. In doubt nothing is shown.

use super::schema::Secrecy;
use crate::pg::client::ConnectionSettings;

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

/// A connection string without what may be secret.
fn connection_without_passwords(connection: &str) -> String {
    ConnectionSettings { connection: Some(connection.to_owned()) }.shown().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_in_connection_strings_are_hidden() {
        for connection in [
            "host=db password=geheim user=me",
            "host=db password = 'ge heim\\' geheim' user=me",
            "host=db sslpassword=geheim",
            "postgresql://me:geheim@db:5432/app",
            "postgresql://me:ge@geheim@db/app",
            "postgresql://me:ge?geheim@db/app",
            "postgres://db/app?user=me&password=geheim",
            "postgres://db/app?%70assword=geheim",
            "host=db password='geheim",
            "host=db geheim",
        ] {
            let shown = shown(Secrecy::Connection, connection);
            assert!(!shown.contains("geheim"), "{connection} is shown as {shown}");
            assert!(shown.contains("db") || shown == "(malformed)", "{connection} is shown as {shown}");
        }
    }

    #[test]
    fn only_the_name_of_a_command_is_shown() {
        assert_eq!(command_name("vault read -token=geheim"), "vault …");
        assert_eq!(command_name("/usr/bin/print-key"), "/usr/bin/print-key");
        assert_eq!(command_name("TOKEN=geheim vault read"), HIDDEN);
    }
}
