//! To be written: which files a base backup holds.
