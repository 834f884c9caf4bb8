//! Request and notification numbers.

macro_rules! numbered {
    ($(#[$meta:meta])* $name:ident { $($variant:ident = $value:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        #[expect(missing_docs, reason = "the variants carry the names of the C header, which documents them")]
        pub enum $name { $($variant = $value,)* }

        impl $name {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The one with this number, if there is one.
            pub const fn from_raw(value: u32) -> Option<Self> {
                match value {
                    $($value => Some(Self::$variant),)*
                    _ => None,
                }
            }
        }
    };
}

numbered! {
    /// What a request asks for (`enum fuse_opcode`; those named `Scheme…` are Ursa's own, see [`scheme`](crate::scheme)).
    #[doc(alias = "fuse_opcode")]
    Opcode {
        Lookup = 1,
        Forget = 2,
        Getattr = 3,
        Setattr = 4,
        Readlink = 5,
        Symlink = 6,
        Mknod = 8,
        Mkdir = 9,
        Unlink = 10,
        Rmdir = 11,
        Rename = 12,
        Link = 13,
        Open = 14,
        Read = 15,
        Write = 16,
        Statfs = 17,
        Release = 18,
        Fsync = 20,
        Setxattr = 21,
        Getxattr = 22,
        Listxattr = 23,
        Removexattr = 24,
        Flush = 25,
        Init = 26,
        Opendir = 27,
        Readdir = 28,
        Releasedir = 29,
        Fsyncdir = 30,
        Getlk = 31,
        Setlk = 32,
        Setlkw = 33,
        Access = 34,
        Create = 35,
        Interrupt = 36,
        Bmap = 37,
        Destroy = 38,
        Ioctl = 39,
        Poll = 40,
        NotifyReply = 41,
        BatchForget = 42,
        Fallocate = 43,
        Readdirplus = 44,
        Rename2 = 45,
        Lseek = 46,
        CopyFileRange = 47,
        Setupmapping = 48,
        Removemapping = 49,
        Syncfs = 50,
        Tmpfile = 51,
        CuseInit = 4096,
        Statx = 52,
        SchemeMmap = 6000,
        SchemeFault = 6001,
        SchemeAttrShow = 6002,
        SchemeAttrStore = 6003,
    }
}

numbered! {
    /// What a notification says (`enum fuse_notify_code`).
    #[doc(alias = "fuse_notify_code")]
    NotifyCode {
        Poll = 1,
        InvalInode = 2,
        InvalEntry = 3,
        Store = 4,
        Retrieve = 5,
        Delete = 6,
        Resend = 7,
    }
}

impl Opcode {
    /// Whether the server never answers this request. (`INTERRUPT` may be answered, with `EAGAIN` or `ENOSYS` only.)
    pub const fn has_no_reply(self) -> bool {
        matches!(self, Opcode::Forget | Opcode::BatchForget | Opcode::NotifyReply)
    }

    /// Whether it may change what a file system keeps: what a resumable connection retains until it is durable.
    pub const fn changes_files(self) -> bool {
        use Opcode::*;
        matches!(
            self,
            Setattr
                | Symlink
                | Mknod
                | Mkdir
                | Unlink
                | Rmdir
                | Rename
                | Rename2
                | Link
                | Write
                | Setxattr
                | Removexattr
                | Create
                | Tmpfile
                | Fallocate
                | CopyFileRange
        )
    }

    /// Whether its answer begins with an [`EntryOut`](crate::EntryOut), which counts as a look-up of the node.
    pub const fn answers_entry(self) -> bool {
        use Opcode::*;
        matches!(self, Lookup | Symlink | Mknod | Mkdir | Link | Create | Tmpfile)
    }

    /// Whether its answer counts look-ups: of one node ([`Opcode::answers_entry`]) or of one with each name.
    pub const fn counts_lookups(self) -> bool {
        self.answers_entry() || matches!(self, Opcode::Readdirplus)
    }
}
