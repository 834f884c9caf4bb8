//! Tests of trees and groups that need no program; run with `ktest=mount`.

use alloc::sync::Arc;
use alloc::vec::Vec;

use ursa_hal::ktest;

use super::{Change, Mount, MountFlags, Propagation, group::Groups, propagation, set_attributes};
use crate::fs::inode::{NewInode, SbFlags};
use crate::fs::tmpfs::Tmpfs;

fn mounts(count: usize) -> Vec<Arc<Mount>> {
    let root = NewInode { mode: 0o040_755, uid: 0, gid: 0, rdev: 0 };
    let sb = Tmpfs::create("tmpfs", 16, 0, &root, SbFlags::empty());
    let new = |_| Mount::of(sb.clone(), b"test", MountFlags::empty());
    (0..count).map(new).collect::<crate::Result<_>>().expect("a new file system has a root")
}

ktest! {
    /// A slave follows the peers that it left; when the last of them goes, it follows whom they followed, or nobody.
    fn slaves_pass_to_their_masters_master() {
        let mut groups = Groups::new();
        let m = mounts(4);
        groups.make_shared(&m[0]);
        let top = m[0].group();
        groups.join(&m[1], top);
        groups.make_slave(&m[1]);
        assert_eq!((m[1].group(), m[1].master()), (0, top));
        groups.make_shared(&m[1]);
        let middle = m[1].group();
        assert!(middle != 0 && middle != top && m[1].master() == top);
        groups.join(&m[2], middle);
        groups.follow(&m[2], top);
        groups.follow(&m[3], middle);
        let ids = |list: Vec<Arc<Mount>>| list.iter().map(|m| m.id).collect::<Vec<_>>();
        let mut followers = ids(groups.followers(&m[0], |_| true));
        followers.sort_unstable();
        assert_eq!(followers, [m[1].id, m[2].id, m[3].id]);
        groups.make_private(&m[1], false);
        assert_eq!(m[3].master(), middle);
        groups.make_private(&m[2], false);
        assert_eq!(m[3].master(), top);
        groups.make_private(&m[0], true);
        assert!(m[3].master() == 0 && m[0].is_unbindable());
        assert!(groups.followers(&m[0], |_| true).is_empty());
    }

    /// A mount that is in no tree has no propagation type to set.
    fn unmounted_mounts_are_refused() {
        let m = mounts(1);
        assert!(set_attributes(&m[0], &Change::propagation(Propagation::Shared), false).is_err());
        let root = m[0].root_path();
        assert_eq!(propagation(&m[0], super::namespace::initial(), &root).group, 0);
    }
}
