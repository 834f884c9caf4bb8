//! The virtual file system: from descriptors to files, from paths to inodes, and the file systems of the kernel itself.
//!
//! | module | what |
//! |---|---|
//! | [`fdtable`] | descriptor → open file |
//! | [`file`], [`io`], [`owner`] | open file descriptions, what implements them, where bytes come from and go to |
//! | [`inode`], [`dentry`], [`mount`] | files, names and where file systems show |
//! | [`path`], [`permission`], [`context`] | from a path to a dentry, and who may |
//! | [`lock`], [`notify`] | file locks, inotify's hooks |
//! | [`dev`] | device numbers and their drivers |
//!
//! A system call decodes its arguments in `fs::syscall`, finds a [`File`] or a [`Path`], and calls one method.

pub mod context;
pub mod dentry;
pub mod dev;
pub mod fdtable;
pub mod file;
pub mod inode;
pub mod io;
pub mod lock;
pub mod mount;
pub mod notify;
pub mod owner;
pub mod path;
pub mod permission;

pub use context::FsContext;
pub use dentry::Dentry;
pub use fdtable::FdTable;
pub use file::{DirSink, File, FileMode, FileOps};
pub use inode::{Attr, FileKind, FileSystem, Inode, InodeOps, SuperBlock};
pub use io::{IoRange, PageSink, PageSource, Sink, Source};
pub use mount::Mount;
pub use path::{LookupFlags, Path};
