//! The virtual file system.
