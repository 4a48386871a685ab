//! The connection service file (`src/interfaces/libpq/fe-connect.c`, `parseServiceInfo`).

use std::path::Path;

use super::connection_string::Pairs;

/// The settings of `[service]` in `text`; `None` if it has no such section. The error says which line is wrong.
fn find_in(text: &str, service: &str) -> Result<Option<Pairs>, String> {
    let mut found: Option<Pairs> = None;
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(name) = line.strip_prefix('[') {
            if found.is_some() {
                break;
            }
            if name.strip_suffix(']') == Some(service) {
                found = Some(Pairs::new());
            }
            continue;
        }
        let Some(pairs) = &mut found else { continue };
        match line.split_once('=') {
            Some(("service", _)) => {
                return Err(format!("line {}: a service cannot name a service", index + 1));
            }
            // Values are taken as they are: no quotes, no escapes.
            Some((keyword, value)) => pairs.push((keyword.to_owned(), value.to_owned())),
            None if line.starts_with("ldap") => {
                return Err(format!("line {}: LDAP is not supported", index + 1));
            }
            None => return Err(format!("line {}: keyword=value was expected", index + 1)),
        }
    }
    Ok(found)
}

/// Looks through the files in order; the first that defines the service counts. Files that are not there are skipped.
pub fn find(files: &[&Path], service: &str) -> Result<Pairs, String> {
    for file in files {
        let text = match std::fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(format!("read service file {}: {error}", file.display())),
        };
        match find_in(&text, service) {
            Ok(Some(pairs)) => return Ok(pairs),
            Ok(None) => {}
            Err(problem) => return Err(format!("service file {}, {problem}", file.display())),
        }
    }
    let files: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
    Err(format!("service {service:?} is not defined in {}", files.join(" or ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# services\n[a]\nhost=one\n\n[b]\n  host=two \nport=5433\npassword=it's = here\n[c]\nwrong\n[d]\nservice=a\n";

    #[test]
    fn reads_one_section() {
        let pairs = find_in(TEXT, "b").unwrap().unwrap();
        let expected = [("host", "two"), ("port", "5433"), ("password", "it's = here")];
        assert_eq!(pairs, expected.map(|(k, v)| (k.to_owned(), v.to_owned())));
        assert_eq!(find_in(TEXT, "x"), Ok(None));
        assert_eq!(find_in(TEXT, "c"), Err("line 10: keyword=value was expected".to_owned()));
        assert_eq!(find_in(TEXT, "d"), Err("line 12: a service cannot name a service".to_owned()));
    }

    #[test]
    fn the_first_file_that_has_it_counts() {
        let directory = tempfile::tempdir().unwrap();
        let (first, second) = (directory.path().join("first"), directory.path().join("second"));
        std::fs::write(&second, TEXT).unwrap();
        assert_eq!(find(&[&first, &second], "a").unwrap().len(), 1);
        std::fs::write(&first, "[a]\nhost=x\nport=1\n").unwrap();
        assert_eq!(find(&[&first, &second], "a").unwrap().len(), 2);
        let problem = find(&[&first], "b").unwrap_err();
        assert_eq!(problem, format!("service \"b\" is not defined in {}", first.display()));
    }
}
