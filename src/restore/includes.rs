//! What restored configuration leads to outside of itself: included files and directories, and the files of TLS.
//!
//! In: the configuration files of the backup. Out: empty stand-ins for what they include from their own directory and the backup does
//! not have (Debian's `include_dir = 'conf.d'` is usually empty, and backups hold files), and warnings about what must be on this machine.
//! What must hold: nothing outside PGDATA is made. PostgreSQL does not start where an included file or directory is missing
//! (`ParseConfigFile` and `ParseConfigDirectory`, `src/backend/utils/misc/guc-file.l`).

use std::path::{Component, Path, PathBuf};

use super::error::RestoreError;
use super::packs::read_file;
use super::plan::{RestorePlan, find_file};
use crate::codec::KeyRing;
use crate::pg::recovery::{Setting, parse_settings, setting};
use crate::repository::Repository;

/// Something empty in the restored PGDATA that a configuration file includes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StandIn {
    /// Relative to PGDATA.
    pub path: PathBuf,
    /// What it is.
    pub kind: Included,
}

/// What an `include` or `include_dir` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Included {
    /// A configuration file.
    File,
    /// A directory of configuration files.
    Directory,
}

/// Settings that name files without which TLS, and with it the server, does not start.
const TLS_FILES: [&str; 5] =
    ["ssl_cert_file", "ssl_key_file", "ssl_ca_file", "ssl_crl_file", "ssl_dh_params_file"];

impl RestorePlan {
    /// Notes the stand-ins, and warns of what is missing. `settings` are those of the main file and of postgresql.auto.conf.
    pub(super) fn look_for_included(
        &mut self,
        settings: &[Setting],
        repository: &Repository,
        keys: &KeyRing,
    ) -> Result<(), RestoreError> {
        let mut texts = Vec::new();
        for adopted in &self.adopted {
            let is_settings = adopted.to.extension().is_some_and(|extension| extension == "conf")
                && !["pg_hba.conf", "pg_ident.conf"].iter().any(|other| adopted.to.ends_with(other));
            if let Some(file) = self.manifest.files.get(adopted.file).filter(|_| is_settings) {
                let text = read_file(repository, &self.packs, keys, file)?;
                texts.push((adopted.to.clone(), String::from_utf8_lossy(&text).into_owned()));
            }
        }
        for (from, text) in texts {
            for (kind, named) in included(&text) {
                self.judge_included(&from, kind, &named);
            }
        }
        self.warn_of_missing_tls_files(settings);
        Ok(())
    }

    fn judge_included(&mut self, from: &Path, kind: Included, named: &str) {
        let named = Path::new(named);
        if named.is_absolute() {
            if !named.exists() {
                self.warnings.push(format!(
                    "{} includes {}, which is not on this machine: the server does not start before it is",
                    from.display(),
                    named.display()
                ));
            }
            return;
        }
        let path = from.parent().unwrap_or(Path::new("")).join(named);
        if !path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
            self.warnings.push(format!(
                "{} includes {}, which lay beside the original's configuration and is not restored: the server does not start before it is there",
                from.display(),
                named.display()
            ));
            return;
        }
        let bytes = std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str());
        let is_there = match kind {
            Included::File => {
                self.adopted.iter().any(|adopted| adopted.to == path)
                    || find_file(&self.manifest, bytes).is_some()
            }
            Included::Directory => self.adopted.iter().any(|adopted| adopted.to.starts_with(&path)),
        };
        let stand_in = StandIn { path, kind };
        if !is_there && !self.stand_ins.contains(&stand_in) {
            self.notes.push(format!(
                "{} is included by {} and set nothing: it is made, empty",
                self.place.pgdata.join(&stand_in.path).display(),
                from.display()
            ));
            self.stand_ins.push(stand_in);
        }
    }

    fn warn_of_missing_tls_files(&mut self, settings: &[Setting]) {
        let is_on =
            |value: String| ["on", "true", "yes", "1"].iter().any(|on| value.eq_ignore_ascii_case(on));
        if !setting(settings, "ssl").is_some_and(is_on) {
            return;
        }
        for name in TLS_FILES {
            let Some(file) = setting(settings, name).filter(|file| Path::new(file).is_absolute()) else {
                continue;
            };
            if !Path::new(&file).exists() {
                self.warnings.push(format!(
                    "{name} = {file} is not on this machine, and without it the server does not start: copy it here, or start with --start-option=-cssl=off"
                ));
            }
        }
    }
}

/// What a configuration file cannot do without; `include_if_exists` can.
fn included(text: &str) -> Vec<(Included, String)> {
    let settings = parse_settings(text).unwrap_or_default();
    let kind = |setting: &Setting| match setting.name.as_str() {
        "include" => Some(Included::File),
        "include_dir" => Some(Included::Directory),
        _ => None,
    };
    settings.into_iter().filter_map(|setting| Some((kind(&setting)?, setting.value))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_must_be_there_counts() {
        let text = "include 'a.conf'\n#include 'b.conf'\ninclude_if_exists 'c.conf'\ninclude_dir = 'conf.d'\t# x\nport = 1\n";
        let found = [(Included::File, "a.conf".to_owned()), (Included::Directory, "conf.d".to_owned())];
        assert_eq!(included(text), found);
    }
}
