//! cgroup2: the tree in which processes are kept together, without controllers.
//!
//! | module | what |
//! |---|---|
//! | [`tree`] | the groups, which process is in which, who is told when one becomes empty |
//! | [`freezer`] | `cgroup.freeze`: threads that rest where they would return to user mode |
//! | [`control`] | the files of a group: what they say and what writing them does |
//! | `node` | inodes and listings |
//!
//! There is one tree, shown by every mount of the type. A process is in one group as a whole: without controllers no group
//! can be threaded. What a session manager wants of it is all here: groups made and removed, processes moved, forked into
//! (`CLONE_INTO_CGROUP`), listed, frozen and killed together, and news of the last one's end.
//!
//! Reference: Linux `Documentation/admin-guide/cgroup-v2.rst`.

pub mod control;
pub mod freezer;
mod node;
pub mod tree;

pub use freezer::{process_rests, rest_while_freezing, thread_exits};
pub use node::{init, of_file};
pub use tree::{Cgroup, Membership, News, join, leave, may_fork_into, root};
