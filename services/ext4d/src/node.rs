//! Node numbers and attributes as FUSE has them.

use ext4::{Stat, Time};
use fuse_abi::{Attr, EntryOut, ROOT_ID};

/// The root's inode.
const ROOT_INO: u32 = 2;
/// How long the kernel may believe what it was told, in seconds: nobody but it changes anything.
pub const VALID: u64 = 1 << 30;

/// The node number of an inode: number and generation. The root has FUSE's.
pub fn number(ino: u32, generation: u32) -> u64 {
    if ino == ROOT_INO { ROOT_ID } else { u64::from(generation) << 32 | u64::from(ino) }
}

/// The same of what `stat` tells.
pub fn node_of(stat: &Stat) -> u64 {
    number(stat.ino, stat.generation)
}

/// The number of the inode of a node, and the generation that it must have; none for the root.
pub fn inode_of(node: u64) -> (u32, Option<u32>) {
    if node == ROOT_ID { (ROOT_INO, None) } else { (node as u32, Some((node >> 32) as u32)) }
}

/// Attributes.
pub fn attr_of(stat: &Stat, block_size: u32) -> Attr {
    let Time { sec: atime, nsec: atimensec } = stat.atime;
    let Time { sec: mtime, nsec: mtimensec } = stat.mtime;
    let Time { sec: ctime, nsec: ctimensec } = stat.ctime;
    Attr {
        ino: stat.ino.into(),
        size: stat.size,
        blocks: stat.blocks,
        atime: atime as u64,
        mtime: mtime as u64,
        ctime: ctime as u64,
        atimensec,
        mtimensec,
        ctimensec,
        mode: stat.mode,
        nlink: stat.nlink,
        uid: stat.uid,
        gid: stat.gid,
        rdev: stat.rdev,
        blksize: block_size,
        flags: 0,
    }
}

/// What a look-up answers.
pub fn entry_of(stat: &Stat, block_size: u32) -> EntryOut {
    EntryOut {
        nodeid: node_of(stat),
        generation: stat.generation.into(),
        entry_valid: VALID,
        attr_valid: VALID,
        entry_valid_nsec: 0,
        attr_valid_nsec: 0,
        attr: attr_of(stat, block_size),
    }
}
