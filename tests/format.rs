//! What lies in a repository: every layout goes both ways, old ones stay readable, and damage is never data.

#[path = "format/damage.rs"]
mod damage;
#[path = "format/envelope.rs"]
mod envelope;
#[path = "format/golden.rs"]
mod golden;
#[path = "format/objects.rs"]
mod objects;
