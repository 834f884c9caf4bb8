//! Error numbers: [`Errno`], one associated constant per `asm-generic/errno.h` name.
//!
//! The values come from `linux-raw-sys`. The restart codes (512..=516, `include/linux/errno.h`) are
//! for use inside the kernel only: signal delivery turns them into `EINTR` or a restarted call.

use linux_raw_sys::errno as raw;

/// A Linux error number, as a system call returns it negated.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Errno(u16);

macro_rules! errnos {
    ($($name:ident)*) => {
        #[expect(missing_docs, reason = "the names are those of errno(3)")]
        impl Errno {
            $(pub const $name: Errno = Errno(raw::$name as u16);)*
        }

        impl Errno {
            /// Returns the symbolic name, such as `"ENOENT"`.
            pub fn name(self) -> &'static str {
                match self {
                    $(Errno::$name => stringify!($name),)*
                    Errno::ERESTARTSYS => "ERESTARTSYS",
                    Errno::ERESTARTNOINTR => "ERESTARTNOINTR",
                    Errno::ERESTARTNOHAND => "ERESTARTNOHAND",
                    Errno::ERESTART_RESTARTBLOCK => "ERESTART_RESTARTBLOCK",
                    _ => "E?",
                }
            }
        }
    };
}

errnos! {
    EPERM
    ENOENT
    ESRCH
    EINTR
    EIO
    ENXIO
    E2BIG
    ENOEXEC
    EBADF
    ECHILD
    EAGAIN
    ENOMEM
    EACCES
    EFAULT
    ENOTBLK
    EBUSY
    EEXIST
    EXDEV
    ENODEV
    ENOTDIR
    EISDIR
    EINVAL
    ENFILE
    EMFILE
    ENOTTY
    ETXTBSY
    EFBIG
    ENOSPC
    ESPIPE
    EROFS
    EMLINK
    EPIPE
    EDOM
    ERANGE
    EDEADLK
    ENAMETOOLONG
    ENOLCK
    ENOSYS
    ENOTEMPTY
    ELOOP
    ENOMSG
    EIDRM
    ECHRNG
    EL2NSYNC
    EL3HLT
    EL3RST
    ELNRNG
    EUNATCH
    ENOCSI
    EL2HLT
    EBADE
    EBADR
    EXFULL
    ENOANO
    EBADRQC
    EBADSLT
    EBFONT
    ENOSTR
    ENODATA
    ETIME
    ENOSR
    ENONET
    ENOPKG
    EREMOTE
    ENOLINK
    EADV
    ESRMNT
    ECOMM
    EPROTO
    EMULTIHOP
    EDOTDOT
    EBADMSG
    EOVERFLOW
    ENOTUNIQ
    EBADFD
    EREMCHG
    ELIBACC
    ELIBBAD
    ELIBSCN
    ELIBMAX
    ELIBEXEC
    EILSEQ
    ERESTART
    ESTRPIPE
    EUSERS
    ENOTSOCK
    EDESTADDRREQ
    EMSGSIZE
    EPROTOTYPE
    ENOPROTOOPT
    EPROTONOSUPPORT
    ESOCKTNOSUPPORT
    EOPNOTSUPP
    EPFNOSUPPORT
    EAFNOSUPPORT
    EADDRINUSE
    EADDRNOTAVAIL
    ENETDOWN
    ENETUNREACH
    ENETRESET
    ECONNABORTED
    ECONNRESET
    ENOBUFS
    EISCONN
    ENOTCONN
    ESHUTDOWN
    ETOOMANYREFS
    ETIMEDOUT
    ECONNREFUSED
    EHOSTDOWN
    EHOSTUNREACH
    EALREADY
    EINPROGRESS
    ESTALE
    EUCLEAN
    ENOTNAM
    ENAVAIL
    EISNAM
    EREMOTEIO
    EDQUOT
    ENOMEDIUM
    EMEDIUMTYPE
    ECANCELED
    ENOKEY
    EKEYEXPIRED
    EKEYREVOKED
    EKEYREJECTED
    EOWNERDEAD
    ENOTRECOVERABLE
    ERFKILL
    EHWPOISON
}

impl Errno {
    /// Same value as [`Errno::EAGAIN`].
    pub const EWOULDBLOCK: Errno = Errno::EAGAIN;
    /// Interrupted before any effect: restarted if the handler has `SA_RESTART`, else `EINTR`. Kernel-internal.
    pub const ERESTARTSYS: Errno = Errno(512);
    /// Always restarted, whatever the handler says. Kernel-internal.
    pub const ERESTARTNOINTR: Errno = Errno(513);
    /// Restarted only when no handler runs. Kernel-internal.
    pub const ERESTARTNOHAND: Errno = Errno(514);
    /// Restarted through `restart_syscall` with the remaining time. Kernel-internal.
    pub const ERESTART_RESTARTBLOCK: Errno = Errno(516);

    /// Makes an error number from its positive value; `None` outside `1..4096`.
    pub const fn from_raw(value: u32) -> Option<Errno> {
        if value >= 1 && value < 4096 { Some(Errno(value as u16)) } else { None }
    }

    /// The positive value.
    pub const fn raw(self) -> u32 {
        self.0 as u32
    }

    /// The value that a system call puts into `rax`.
    pub const fn to_return(self) -> u64 {
        -(self.0 as i64) as u64
    }
}

impl core::fmt::Debug for Errno {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}({})", self.name(), self.0)
    }
}

impl core::fmt::Display for Errno {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.name())
    }
}

impl core::error::Error for Errno {}

impl From<core::fmt::Error> for Errno {
    fn from(_: core::fmt::Error) -> Errno {
        Errno::EIO
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_linux() {
        assert_eq!(Errno::EPERM.raw(), 1);
        assert_eq!(Errno::EHWPOISON.raw(), 133);
        assert_eq!(Errno::ENOSYS.to_return(), -38i64 as u64);
        assert_eq!(Errno::EAGAIN.name(), "EAGAIN");
        assert_eq!(Errno::from_raw(0), None);
        assert_eq!(Errno::from_raw(4096), None);
    }
}
