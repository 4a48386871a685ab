//! To be written: recovery settings as PostgreSQL 12+ reads them.
