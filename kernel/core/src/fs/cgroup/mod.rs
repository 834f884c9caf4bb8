//! cgroup2: the tree in which processes are kept together.
//!
//! | module | what |
//! |---|---|
//! | [`tree`] | the groups, who is told when one becomes empty |
//! | [`member`] | which task is in which: births, ends, moves |
//! | [`controller`] | which controllers are handed on to groups below, domains and threaded groups |
//! | [`pids`] | the controller of the number of tasks |
//! | [`freezer`] | `cgroup.freeze`: threads that rest where they would return to user mode |
//! | [`control`] | the files of a group: what they say and what writing them does |
//! | `node` | inodes and listings |
//! | `notice` | when listeners hear of changes of the files |
//!
//! There is one tree, shown by every mount of the type. A process is in one group, its threads perhaps in threaded groups below.
//! What a session manager wants of it is all here: groups made and removed, processes moved, forked into
//! (`CLONE_INTO_CGROUP`), listed, counted, frozen and killed together, and news of the last one's end.
//!
//! Reference: Linux `Documentation/admin-guide/cgroup-v2.rst`.

pub mod control;
pub mod controller;
pub mod freezer;
pub mod member;
mod node;
mod notice;
mod pids;
pub mod tree;

pub use freezer::{process_rests, rest_while_freezing, resting_during};
pub use member::{Membership, Place, gone, group_of, join, leave, may_fork_into, unjoin};
pub use node::{init, of_file};
pub use tree::{Cgroup, News, count, root};
