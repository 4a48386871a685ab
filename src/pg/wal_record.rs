//! To be written: WAL records.
