//! libpq's two ways to write a connection (`src/interfaces/libpq/fe-connect.c`, `conninfo_parse`, `conninfo_uri_parse`).

/// Keywords and values in the order in which they were written; of a keyword written twice the last one counts.
pub type Pairs = Vec<(String, String)>;

/// Parses either form. The error names the problem and never quotes a value.
pub fn parse(text: &str) -> Result<Pairs, String> {
    match text.strip_prefix("postgresql://").or_else(|| text.strip_prefix("postgres://")) {
        Some(rest) => parse_uri(rest),
        None => parse_pairs(text),
    }
}

/// `key=value …` without passwords, sorted; `None` if it cannot be parsed.
pub fn without_secrets(text: &str) -> Option<String> {
    let mut pairs = parse(text).ok()?;
    pairs.retain(|(keyword, _)| !keyword.contains("password") && !keyword.ends_with("_key"));
    pairs.sort();
    let shown: Vec<String> =
        pairs.iter().map(|(keyword, value)| format!("{keyword}={}", quote(value))).collect();
    Some(shown.join(" "))
}

fn quote(value: &str) -> String {
    if !value.is_empty() && !value.contains(|c: char| c.is_whitespace() || c == '\'' || c == '\\') {
        return value.to_owned();
    }
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// `key = value`, values quoted with `'` where they hold blanks, `\` before any character.
fn parse_pairs(text: &str) -> Result<Pairs, String> {
    let mut pairs = Pairs::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let end = rest.find(|c: char| c == '=' || c.is_whitespace()).unwrap_or(rest.len());
        let (keyword, after) = rest.split_at_checked(end).unwrap_or((rest, ""));
        // What stands without an equals sign may be a part of a password.
        let after = after
            .trim_start()
            .strip_prefix('=')
            .ok_or("there is a word without \"=\" in the connection string")?;
        if keyword.is_empty() {
            return Err("there is a \"=\" without a keyword in the connection string".to_owned());
        }
        let (value, after) =
            parse_value(after.trim_start()).ok_or_else(|| format!("the value of {keyword} has no end"))?;
        pairs.push((keyword.to_owned(), value));
        rest = after.trim_start();
    }
    Ok(pairs)
}

/// `None` for a quote that is never closed.
fn parse_value(text: &str) -> Option<(String, &str)> {
    let quoted = text.strip_prefix('\'');
    let mut value = String::new();
    let mut characters = quoted.unwrap_or(text).chars();
    loop {
        let rest = characters.as_str();
        match characters.next() {
            Some('\\') => value.extend(characters.next()),
            Some('\'') if quoted.is_some() => return Some((value, characters.as_str())),
            Some(c) if quoted.is_none() && c.is_whitespace() => return Some((value, rest)),
            Some(c) => value.push(c),
            None => return quoted.is_none().then_some((value, "")),
        }
    }
}

/// `[user[:password]@][host[:port][,…]][/database][?keyword=value&…]`.
fn parse_uri(rest: &str) -> Result<Pairs, String> {
    let mut pairs = Pairs::new();
    let mut push = |keyword: &str, value: &str| -> Result<(), String> {
        if !value.is_empty() {
            pairs.push((keyword.to_owned(), decode(keyword, value)?));
        }
        Ok(())
    };
    let (before_query, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, database) = before_query.split_once('/').unwrap_or((before_query, ""));
    if !authority.contains('@') && database.contains('@') {
        // A password would otherwise be taken for a port, and shown as one.
        return Err(
            "write / in the connection URI's password as %2F, and @ in its database as %40".to_owned()
        );
    }
    let (user, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
    let (user, password) = user.split_once(':').unwrap_or((user, ""));
    push("user", user)?;
    push("password", password)?;
    let (hosts, ports) = split_hosts(hosts)?;
    push("host", &hosts)?;
    push("port", &ports)?;
    push("dbname", database)?;
    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        let (keyword, value) =
            parameter.split_once('=').ok_or("there is a parameter without \"=\" in the connection URI")?;
        let keyword = decode("parameter", keyword)?;
        match (keyword.as_str(), value) {
            // As libpq: JDBC writes it so.
            ("ssl", "true") => pairs.push(("sslmode".to_owned(), "require".to_owned())),
            _ => pairs.push((keyword.clone(), decode(&keyword, value)?)),
        }
    }
    Ok(pairs)
}

/// `a:1,[::1]:2,c` as `a,::1,c` and `1,2,`; no ports at all as an empty string.
fn split_hosts(text: &str) -> Result<(String, String), String> {
    let (mut hosts, mut ports) = (Vec::new(), Vec::new());
    for part in text.split(',') {
        let (host, port) = match part.strip_prefix('[') {
            Some(address) => {
                let (address, port) =
                    address.split_once(']').ok_or("an IPv6 address in the connection URI lacks its \"]\"")?;
                (address, port.strip_prefix(':').unwrap_or(port))
            }
            None => part.split_once(':').unwrap_or((part, "")),
        };
        hosts.push(host);
        ports.push(port);
    }
    if ports.iter().any(|port| port.bytes().any(|b| !b.is_ascii_digit())) {
        return Err("a port in the connection URI is not a number".to_owned());
    }
    let ports = if ports.iter().all(|port| port.is_empty()) { String::new() } else { ports.join(",") };
    Ok((hosts.join(","), ports))
}

/// Percent-decoding; a plus sign is a plus sign.
fn decode(keyword: &str, text: &str) -> Result<String, String> {
    let wrong = || format!("the value of {keyword} in the connection URI has a wrong percent escape");
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|b| char::from(b).to_digit(16));
        let (high, low) = (digit().ok_or_else(wrong)?, digit().ok_or_else(wrong)?);
        match u8::try_from(high * 16 + low) {
            Ok(0) | Err(_) => return Err(wrong()),
            Ok(byte) => bytes.push(byte),
        }
    }
    String::from_utf8(bytes).map_err(|_| format!("the value of {keyword} in the connection URI is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(text: &str) -> Vec<(String, String)> {
        parse(text).unwrap()
    }

    fn expect(text: &str, expected: &[(&str, &str)]) {
        let expected: Pairs = expected.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        assert_eq!(pairs(text), expected, "{text}");
    }

    #[test]
    fn reads_keywords_and_values() {
        expect("", &[]);
        expect(" host=db  port = 5433 ", &[("host", "db"), ("port", "5433")]);
        expect(
            r"password='it\'s a \\' user=a\ b dbname=''",
            &[("password", r"it's a \"), ("user", "a b"), ("dbname", "")],
        );
        expect("a='x'b=y", &[("a", "x"), ("b", "y")]);
    }

    #[test]
    fn reads_uris() {
        expect("postgresql://", &[]);
        expect("postgres://db", &[("host", "db")]);
        expect(
            "postgresql://u%40x:p%3A@db:5433/my%20db?sslmode=verify-full&application_name=a+b",
            &[
                ("user", "u@x"),
                ("password", "p:"),
                ("host", "db"),
                ("port", "5433"),
                ("dbname", "my db"),
                ("sslmode", "verify-full"),
                ("application_name", "a+b"),
            ],
        );
        expect("postgresql://a:1,[::1]:2,c/", &[("host", "a,::1,c"), ("port", "1,2,")]);
        expect(
            "postgresql://%2Ftmp/x?ssl=true",
            &[("host", "/tmp"), ("dbname", "x"), ("sslmode", "require")],
        );
        expect("postgresql:///x?host=/tmp", &[("dbname", "x"), ("host", "/tmp")]);
    }

    #[test]
    fn refuses_without_quoting_values() {
        for (text, problem) in [
            ("host", "there is a word without \"=\" in the connection string"),
            ("=x", "there is a \"=\" without a keyword in the connection string"),
            ("password='hush", "the value of password has no end"),
            (
                "postgresql://u:%hush@db",
                "the value of password in the connection URI has a wrong percent escape",
            ),
            (
                "postgresql://u:%00@db",
                "the value of password in the connection URI has a wrong percent escape",
            ),
            ("postgresql://u:%ff@db", "the value of password in the connection URI is not UTF-8"),
            ("postgresql://[::1/x", "an IPv6 address in the connection URI lacks its \"]\""),
            (
                "postgresql://u:1234/hush@db",
                "write / in the connection URI's password as %2F, and @ in its database as %40",
            ),
            ("postgresql://u:hush?a=b@db", "a port in the connection URI is not a number"),
            ("postgresql://db?x", "there is a parameter without \"=\" in the connection URI"),
        ] {
            assert_eq!(parse(text), Err(problem.to_owned()));
        }
    }

    #[test]
    fn survives_any_text() {
        proptest::proptest!(|(text in "(postgresql://)?([a-z=:@/?&%',\\\\\\[\\] ]|\\PC){0,40}")| {
            let _ = parse(&text);
            let _ = without_secrets(&text);
        });
    }
}
