//! The ext4 file system, over any block device.
//!
//! [`Fs::mount`] takes a [`BlockDevice`] and gives a file system whose methods are what `ext4d` answers requests with: they
//! take and give [`Inode`]s, never paths, and may be called from many threads. What they do is atomic: a power cut leaves a
//! disk on which each has happened or has not, and [`Fs::fsync`] says when it has.
//!
//! ```text
//!   namei  readdir  file  xattr        operations
//!   dir  htree  extent  orphan         structures: names, maps of files, what is to be cleaned up
//!   inode  balloc  ialloc  group       inodes and blocks
//!   journal  cache                     transactions; metadata in memory
//!   again                              what a server that died had done and not committed
//!   device                             bytes
//! ```
//!
//! A change goes through a [`Handle`](journal::Handle): the operation names how many blocks it may touch, changes buffers,
//! and lets go. Data go to the device before the handle that makes them part of a file is taken. [`journal`] has the rest of
//! this story, [`balloc`] what happens on a full disk.
//!
//! Understood is what `mke2fs` of Debian 12 and 13 makes by default, with and without each of those features. What this
//! library does not know is refused, or mounted read-only, as the superblock asks. A disk that contradicts itself is an
//! error (`EUCLEAN`), after which nothing is written any more.
//!
//! References: Linux `Documentation/filesystems/ext4/`, `fs/ext4`, `fs/jbd2`; e2fsprogs.
#![deny(unsafe_code)]

mod again;
pub mod balloc;
pub mod cache;
pub mod csum;
pub mod device;
mod dir;
pub mod disk;
mod error;
mod extent;
mod file;
mod fs;
pub mod group;
mod hash;
mod htree;
mod ialloc;
mod indirect;
mod inode;
pub mod journal;
mod namei;
mod orphan;
mod readdir;
mod xattr;

pub use again::{Again, again};
pub use device::{BlockDevice, FileDevice, MemDevice};
pub use dir::dirent_type;
pub use disk::inode::Time;
pub use error::{Error, Result};
pub use file::{FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE, SetAttr, SetTime};
pub use fs::{Caller, Fs, Geometry, Live, Options, StatFs};
pub use inode::{Inode, S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG, S_IFSOCK, Stat};
pub use journal::{Done, Ledger, Progress};
pub use namei::{RENAME_EXCHANGE, RENAME_NOREPLACE};
pub use readdir::DirEntry;
pub use rustix::io::Errno;
pub use xattr::Existing;
