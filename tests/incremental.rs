//! Incremental backups of real servers: what each source of changes must see, when none may be trusted, and that what is
//! restored is what was there.

mod support;

#[path = "incremental/bases.rs"]
mod bases;
#[path = "incremental/clone.rs"]
mod clone;
#[path = "incremental/lost_databases.rs"]
mod lost_databases;
#[path = "incremental/oracle.rs"]
mod oracle;
#[path = "incremental/resume.rs"]
mod resume;
#[path = "incremental/scenarios.rs"]
mod scenarios;
#[path = "backup/site.rs"]
#[allow(dead_code, reason = "shared with the tests of full backups")]
mod site;
