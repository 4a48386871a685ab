//! The files that AWS's own tools keep credentials and settings in (`~/.aws/credentials`, `~/.aws/config`), which
//! object_store does not read.
//!
//! In: the files' text and a profile's name. Out: the settings of that profile that a static key needs. Profiles that
//! need a conversation (SSO, assumed roles, `credential_process`) are refused by name rather than passed over.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// What a profile says.
#[derive(Clone, PartialEq, Eq, Default)]
pub(super) struct Profile {
    pub(super) access_key_id: Option<String>,
    pub(super) secret_access_key: Option<String>,
    pub(super) session_token: Option<String>,
    pub(super) region: Option<String>,
    pub(super) endpoint_url: Option<String>,
}

/// Settings of profiles that get their credentials in a way that is not supported.
const UNSUPPORTED: [&str; 5] =
    ["sso_session", "sso_start_url", "role_arn", "credential_process", "web_identity_token_file"];

/// Reads the profile that the environment names, or `default`; `None` if nothing was asked for and there is none.
pub(super) fn from_environment(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Profile>, String> {
    let named = variable("AWS_PROFILE").or_else(|| variable("AWS_DEFAULT_PROFILE"));
    let home = || variable("HOME").map(PathBuf::from).or_else(home_of_user);
    let file = |name: &str, default: &str| match variable(name) {
        Some(path) => Some(PathBuf::from(path)),
        None => home().map(|home| home.join(".aws").join(default)),
    };
    let read = |path: Option<PathBuf>| match path {
        None => Ok(String::new()),
        Some(path) => match std::fs::read_to_string(&path) {
            Ok(text) => Ok(text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
            Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::PermissionDenied => {
                Ok(String::new())
            }
            Err(error) => Err(format!("read {}: {}", path.display(), crate::error::system_words(&error))),
        },
    };
    let credentials = read(file("AWS_SHARED_CREDENTIALS_FILE", "credentials"))?;
    let config = read(file("AWS_CONFIG_FILE", "config"))?;
    let name = named.as_deref().unwrap_or("default");
    match (parse(&credentials, &config, name)?, named) {
        (None, Some(name)) => Err(format!("AWS_PROFILE names profile {name:?}, which no file has")),
        (profile, _) => Ok(profile),
    }
}

fn home_of_user() -> Option<PathBuf> {
    let user = nix::unistd::User::from_uid(nix::unistd::Uid::effective()).ok()??;
    Some(user.dir)
}

fn parse(credentials: &str, config: &str, name: &str) -> Result<Option<Profile>, String> {
    let mut settings = BTreeMap::new();
    // In the config file every profile but the default one is called `profile <name>`. Credentials win.
    let mut is_known = collect(config, &format!("profile {name}"), &mut settings);
    if name == "default" {
        is_known |= collect(config, name, &mut settings);
    }
    is_known |= collect(credentials, name, &mut settings);
    if !is_known {
        return Ok(None);
    }
    let mut take = |name: &str| settings.remove(name);
    let profile = Profile {
        access_key_id: take("aws_access_key_id"),
        secret_access_key: take("aws_secret_access_key"),
        session_token: take("aws_session_token"),
        region: take("region"),
        endpoint_url: take("endpoint_url"),
    };
    if profile.access_key_id.is_none()
        && let Some(setting) = UNSUPPORTED.iter().find(|setting| settings.contains_key(**setting))
    {
        return Err(format!(
            "AWS profile {name:?} gets its credentials through {setting}, which walhold cannot; \
             `aws configure export-credentials --profile {name}` prints keys that it can use"
        ));
    }
    Ok(Some(profile))
}

/// Adds a section's settings; whether it is there. Indented lines belong to the setting above them.
fn collect(text: &str, section: &str, settings: &mut BTreeMap<String, String>) -> bool {
    let (mut inside, mut found) = (false, false);
    for line in text.lines() {
        let trimmed = line.trim();
        if trimmed.is_empty() || trimmed.starts_with(['#', ';']) {
            continue;
        }
        if let Some(header) = line.strip_prefix('[') {
            let name = header.split(']').next().unwrap_or_default();
            inside = name.split_whitespace().eq(section.split_whitespace());
            found |= inside;
        } else if let (true, false, Some((name, value))) =
            (inside, line.starts_with([' ', '\t']), trimmed.split_once('='))
        {
            // A comment after a value is set off by a blank.
            let value = value.split(" #").next().unwrap_or_default();
            let value = value.split(" ;").next().unwrap_or_default().trim();
            settings.insert(name.trim().to_ascii_lowercase(), value.to_owned());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const CREDENTIALS: &str = "# keys\n[default]\naws_access_key_id = AKIDEFAULT\naws_secret_access_key=geheim/+=1\n\n\
        [backup]\nAWS_ACCESS_KEY_ID=AKIBACKUP # for the archive\naws_secret_access_key = geheim2\n\
        aws_session_token = token==\n";
    const CONFIG: &str = "[default]\nregion = eu-west-1\ns3 =\n  endpoint_url = http://nested\n  region = no\n\
        [profile backup]\nregion=us-east-2\nendpoint_url = https://minio.example\n\
        [profile sso]\nsso_session = corp\nregion = us-east-1\n[services x]\nregion = other\n";

    fn text(value: &str) -> Option<String> {
        Some(value.to_owned())
    }

    #[test]
    fn both_files_make_a_profile() {
        let default = parse(CREDENTIALS, CONFIG, "default").unwrap().unwrap();
        assert_eq!(default.access_key_id, text("AKIDEFAULT"));
        assert_eq!(default.secret_access_key, text("geheim/+=1"));
        assert_eq!((default.region, default.endpoint_url), (text("eu-west-1"), None));
        let backup = parse(CREDENTIALS, CONFIG, "backup").unwrap().unwrap();
        assert_eq!(backup.access_key_id, text("AKIBACKUP"));
        assert_eq!(backup.session_token, text("token=="));
        assert_eq!(backup.endpoint_url, text("https://minio.example"));
    }

    #[test]
    fn a_profile_that_cannot_be_used_is_told() {
        assert!(parse(CREDENTIALS, CONFIG, "none").unwrap().is_none());
        let problem = parse(CREDENTIALS, CONFIG, "sso").err().unwrap();
        assert!(problem.contains("sso_session"), "{problem}");
        let variable = |name: &str| match name {
            "AWS_PROFILE" => text("missing"),
            "AWS_SHARED_CREDENTIALS_FILE" | "AWS_CONFIG_FILE" => text("/nonexistent/aws"),
            _ => None,
        };
        assert_eq!(
            from_environment(variable).err().unwrap(),
            "AWS_PROFILE names profile \"missing\", which no file has"
        );
    }

    #[test]
    fn files_are_found_where_the_environment_says() {
        let place = tempfile::tempdir().unwrap();
        std::fs::create_dir(place.path().join(".aws")).unwrap();
        std::fs::write(place.path().join(".aws/credentials"), CREDENTIALS).unwrap();
        std::fs::write(place.path().join("config"), CONFIG).unwrap();
        let variable = |name: &str| match name {
            "HOME" => Some(place.path().display().to_string()),
            "AWS_CONFIG_FILE" => Some(place.path().join("config").display().to_string()),
            _ => None,
        };
        let profile = from_environment(variable).unwrap().unwrap();
        assert_eq!((profile.access_key_id, profile.region), (text("AKIDEFAULT"), text("eu-west-1")));
        let nowhere = |name: &str| (name == "HOME").then(|| "/nonexistent".to_owned());
        assert!(from_environment(nowhere).unwrap().is_none());
    }
}
