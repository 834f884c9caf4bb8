//! Framing: where a message begins and ends.

use zerocopy::FromBytes;

use crate::scheme::{EXT_REPLAY, Replay};
use crate::{Dirent, EntryOut, InHeader, NotifyCode, Opcode, OutHeader};

/// Why bytes are not a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// Shorter than a header.
    Short,
    /// The length in the header is not the number of bytes.
    Length,
    /// `error` is neither 0 nor the negative of a valid error number.
    Error,
    /// A notification with an unknown code.
    Notification,
}

/// A request as a server receives it.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Its header.
    pub header: InHeader,
    /// What follows, without the extensions at the end.
    pub body: &'a [u8],
    /// The extensions (`total_extlen`).
    pub extensions: &'a [u8],
}

impl<'a> Request<'a> {
    /// Splits one message.
    ///
    /// # Errors
    /// [`FrameError::Short`], [`FrameError::Length`].
    pub fn parse(bytes: &'a [u8]) -> Result<Request<'a>, FrameError> {
        let (header, rest) = InHeader::read_from_prefix(bytes).map_err(|_| FrameError::Short)?;
        let extensions = usize::from(header.total_extlen) * 8;
        if header.len as usize != bytes.len() || extensions > rest.len() {
            return Err(FrameError::Length);
        }
        let (body, extensions) = rest.split_at(rest.len() - extensions);
        Ok(Request { header, body, extensions })
    }

    /// What it asks for; `None` for a number that this version does not know.
    pub fn opcode(&self) -> Option<Opcode> {
        Opcode::from_raw(self.header.opcode)
    }

    /// What is known of a request that was done before, if it was.
    pub fn replay(&self) -> Option<Replay> {
        let mut rest = self.extensions;
        loop {
            let ([size, kind], _) = <[u32; 2]>::read_from_prefix(rest).ok()?;
            if kind == EXT_REPLAY {
                return Replay::read_from_prefix(rest).ok().map(|(replay, _)| replay);
            }
            rest = rest.get((size.max(8) as usize).next_multiple_of(8)..)?;
        }
    }

    /// Reads a structure at the front of the body; what follows it comes back as well.
    pub fn args<T: FromBytes>(&self) -> Option<(T, &'a [u8])> {
        T::read_from_prefix(self.body).ok()
    }
}

/// A reply or notification as the kernel receives it.
#[derive(Clone, Copy, Debug)]
pub enum Reply<'a> {
    /// The request `unique` succeeded.
    Done {
        /// Which request.
        unique: u64,
        /// The result.
        body: &'a [u8],
    },
    /// The request `unique` failed.
    Failed {
        /// Which request.
        unique: u64,
        /// The error number, positive.
        errno: u16,
    },
    /// Nobody asked.
    Notification {
        /// What it is about.
        code: NotifyCode,
        /// What it says.
        body: &'a [u8],
    },
}

/// One past the largest error number that a server may return, as Linux checks it (`fuse_dev_do_write`).
const ERRNO_END: i32 = 512;

impl<'a> Reply<'a> {
    /// Splits one message.
    ///
    /// # Errors
    /// All of [`FrameError`].
    pub fn parse(bytes: &'a [u8]) -> Result<Reply<'a>, FrameError> {
        let (header, body) = OutHeader::read_from_prefix(bytes).map_err(|_| FrameError::Short)?;
        if header.len as usize != bytes.len() {
            return Err(FrameError::Length);
        }
        let OutHeader { error, unique, .. } = header;
        match (unique, error) {
            (0, code) => {
                let code = u32::try_from(code).ok().and_then(NotifyCode::from_raw).ok_or(FrameError::Notification)?;
                Ok(Reply::Notification { code, body })
            }
            (_, 0) => Ok(Reply::Done { unique, body }),
            (_, error) if error < 0 && error > -ERRNO_END => {
                // A failure carries no body.
                if body.is_empty() {
                    Ok(Reply::Failed { unique, errno: -error as u16 })
                } else {
                    Err(FrameError::Length)
                }
            }
            _ => Err(FrameError::Error),
        }
    }
}

/// Takes one NUL-terminated name off the front; `None` when there is no NUL, or the name is empty or has a slash.
pub fn split_name(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|byte| *byte == 0)?;
    let name = &bytes[..end];
    (!name.is_empty() && !name.contains(&b'/')).then_some((name, &bytes[end + 1..]))
}

/// Bytes of a `READDIR` record with a name of `name` bytes.
pub const fn dirent_len(name: usize) -> usize {
    (size_of::<Dirent>() + name).next_multiple_of(8)
}

/// Takes one `READDIR` record off the front: what heads it, and its name, which may be any bytes. `None` when it is not whole.
pub fn split_dirent(bytes: &[u8]) -> Option<(Dirent, &[u8], &[u8])> {
    let (dirent, rest) = Dirent::read_from_prefix(bytes).ok()?;
    let name = rest.get(..dirent.namelen as usize)?;
    Some((dirent, name, bytes.get(dirent_len(name.len())..)?))
}

/// Takes one `READDIRPLUS` record off the front, as [`split_dirent`].
pub fn split_direntplus(bytes: &[u8]) -> Option<(EntryOut, Dirent, &[u8], &[u8])> {
    let (entry_out, rest) = EntryOut::read_from_prefix(bytes).ok()?;
    let (dirent, name, rest) = split_dirent(rest)?;
    Some((entry_out, dirent, name, rest))
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes;

    use super::*;
    use crate::{ReadIn, wire::ForgetIn};

    fn request(body: &[u8], extlen: u16, len: u32) -> Vec<u8> {
        let header =
            InHeader { len, opcode: Opcode::Forget as u32, unique: 7, total_extlen: extlen, ..Default::default() };
        [header.as_bytes(), body].concat()
    }

    #[test]
    fn a_replay_is_found_behind_other_extensions() {
        let replay = Replay { size: 32, kind: EXT_REPLAY, result: 77, ..Replay::default() };
        let other = [12u32, 32, 1, 0].map(u32::to_le_bytes).concat();
        let body = [&other[..], replay.as_bytes()].concat();
        let bytes = request(&body, 6, 40 + body.len() as u32);
        assert_eq!(Request::parse(&bytes).unwrap().replay(), Some(replay));
        // One that ends early, and one whose size would never end.
        for torn in [&body[..40], &[0; 16]] {
            let bytes = request(torn, torn.len() as u16 / 8, 40 + torn.len() as u32);
            assert_eq!(Request::parse(&bytes).unwrap().replay(), None);
        }
    }

    #[test]
    fn a_request_is_split_into_body_and_extensions() {
        let body = [ForgetIn { nlookup: 3 }.as_bytes(), &[9; 8]].concat();
        let bytes = request(&body, 1, 56);
        let request = Request::parse(&bytes).unwrap();
        assert_eq!(request.args::<ForgetIn>().unwrap().0.nlookup, 3);
        assert_eq!(request.extensions, [9; 8]);
        assert!(request.args::<ReadIn>().is_none(), "a body that is too short gives no arguments");
    }

    #[test]
    fn wrong_lengths_are_refused() {
        assert_eq!(Request::parse(&[0; 39]).unwrap_err(), FrameError::Short);
        assert_eq!(Request::parse(&request(&[], 0, 41)).unwrap_err(), FrameError::Length);
        assert_eq!(Request::parse(&request(&[], 1, 40)).unwrap_err(), FrameError::Length);
    }

    #[test]
    fn replies_are_told_apart() {
        let reply = |error, unique, body: &[u8]| {
            [OutHeader { len: 16 + body.len() as u32, error, unique }.as_bytes(), body].concat()
        };
        assert!(matches!(Reply::parse(&reply(0, 5, b"x")).unwrap(), Reply::Done { unique: 5, body: b"x" }));
        assert!(matches!(Reply::parse(&reply(-2, 5, b"")).unwrap(), Reply::Failed { unique: 5, errno: 2 }));
        assert!(matches!(Reply::parse(&reply(1, 0, b"")).unwrap(), Reply::Notification { code: NotifyCode::Poll, .. }));
        assert_eq!(Reply::parse(&reply(-2, 5, b"x")).unwrap_err(), FrameError::Length);
        assert_eq!(Reply::parse(&reply(2, 5, b"")).unwrap_err(), FrameError::Error);
        assert_eq!(Reply::parse(&reply(i32::MIN, 5, b"")).unwrap_err(), FrameError::Error);
        assert_eq!(Reply::parse(&reply(99, 0, b"")).unwrap_err(), FrameError::Notification);
    }

    #[test]
    fn names_end_at_their_nul() {
        assert_eq!(split_name(b"a\0b\0"), Some((&b"a"[..], &b"b\0"[..])));
        assert_eq!(split_name(b"a"), None);
        assert_eq!(split_name(b"\0"), None);
        assert_eq!(split_name(b"a/b\0"), None);
    }

    #[test]
    fn directory_records_are_taken_off_one_by_one() {
        let record = |name: &[u8]| {
            let head = Dirent { ino: 7, off: 3, namelen: name.len() as u32, kind: 8 };
            let mut bytes = [head.as_bytes(), name].concat();
            bytes.resize(dirent_len(name.len()), 0);
            bytes
        };
        let two = [record(b"a"), record(b"eight by")].concat();
        let (first, name, rest) = split_dirent(&two).unwrap();
        assert_eq!((first.ino, name, rest.len()), (7, &b"a"[..], 32));
        let (_, name, rest) = split_dirent(rest).unwrap();
        assert_eq!((name, rest), (&b"eight by"[..], &b""[..]));
        assert!(split_dirent(&two[..31]).is_none() && split_dirent(rest).is_none());
        let plus = [EntryOut { nodeid: 5, ..EntryOut::default() }.as_bytes(), &two].concat();
        let (entry, dirent, name, rest) = split_direntplus(&plus).unwrap();
        assert_eq!((entry.nodeid, dirent.off, name, rest.len()), (5, 3, &b"a"[..], 32));
        let endless = Dirent { namelen: u32::MAX, ..Dirent::default() };
        assert!(split_dirent(endless.as_bytes()).is_none());
    }
}
