//! `/dev/kmsg`: the kernel log as records, and writing into it.
//!
//! A read gives one record, `LEVEL,SEQUENCE,MICROSECONDS,-;TEXT`; a write of a line, with an optional `<LEVEL>`, logs it.
//! The log is a ring of lines `<LEVEL>[SECONDS.MICROS] TEXT`; sequence numbers are positions in it.
//!
//! References: `Documentation/ABI/testing/dev-kmsg`.

use alloc::{format, string::String, sync::Arc, vec::Vec};

use linux_uapi::raw::general as uapi;
use ursa_hal::log;

use crate::{
    Errno, Result,
    fs::{
        file::{File, FileOps},
        io::{Sink, Source},
    },
    poll::{PollEvents, PollTable},
    syslog,
    wait::Mutex,
};

/// An open `/dev/kmsg`.
pub struct KmsgDevice {
    /// Position of the next record in the ring.
    next: Mutex<u64>,
}

impl KmsgDevice {
    /// Opens it; reading needs `CAP_SYSLOG`, unless `dmesg_restrict` is 0.
    ///
    /// # Errors
    /// `EPERM`.
    pub fn open(flags: u32) -> Result<Arc<dyn FileOps>> {
        if flags & uapi::O_ACCMODE != uapi::O_WRONLY {
            syslog::may(syslog::READ_ALL)?;
        }
        Ok(Arc::new(KmsgDevice { next: Mutex::new(0) }))
    }
}

/// The record at or after `from`: its text as `/dev/kmsg` gives it and the position behind it.
fn record(from: u64) -> Option<(String, u64)> {
    let mut from = from;
    let mut chunk = [0u8; 512];
    loop {
        let (at, n) = log::read_ring(from, &mut chunk);
        if n == 0 {
            return None;
        }
        let text = &chunk[..n];
        let Some(end) = text.iter().position(|b| *b == b'\n') else {
            // Longer than any line that is written: skip what is there.
            if n == chunk.len() {
                from = at + n as u64;
                continue;
            }
            return None;
        };
        let line = String::from_utf8_lossy(&text[..end]).into_owned();
        let next = at + end as u64 + 1;
        // When the ring moved on under the reader, it may stand in the middle of a line.
        let Some((level, rest)) = line.strip_prefix('<').and_then(|l| l.split_once(">[")) else {
            from = next;
            continue;
        };
        let Some((time, message)) = rest.split_once("] ") else {
            from = next;
            continue;
        };
        let (sec, micro) = time.trim().split_once('.').unwrap_or(("0", "0"));
        let us = sec.trim().parse::<u64>().unwrap_or(0) * 1_000_000 + micro.parse::<u64>().unwrap_or(0);
        let level = level.parse::<u32>().unwrap_or(6);
        return Some((format!("{level},{at},{us},-;{message}\n"), next));
    }
}

impl FileOps for KmsgDevice {
    fn read(&self, f: &File, dst: &mut Sink<'_>, _pos: u64) -> Result<usize> {
        let mut next = self.next.lock();
        loop {
            if let Some((text, behind)) = record(*next) {
                if text.len() > dst.remaining() {
                    return Err(Errno::EINVAL);
                }
                dst.put_all(text.as_bytes())?;
                *next = behind;
                return Ok(text.len());
            }
            if f.is_nonblocking() {
                return Err(Errno::EAGAIN);
            }
            syslog::wait_for(|| record(*next).is_some())?;
        }
    }

    fn write(&self, _f: &File, src: &mut Source<'_>, _pos: u64) -> Result<usize> {
        let len = src.remaining();
        if len > 1024 {
            return Err(Errno::EINVAL);
        }
        let mut line: Vec<u8> = alloc::vec![0; len];
        src.take_all(&mut line)?;
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end_matches('\n');
        let (level, text) = match text.strip_prefix('<').and_then(|t| t.split_once('>')) {
            Some((level, rest)) => (level.parse::<u32>().unwrap_or_else(|_| syslog::default_level()), rest),
            None => (syslog::default_level(), text),
        };
        for part in text.split('\n') {
            log::write(log::Level::of(level), format_args!("{part}"));
        }
        Ok(len)
    }

    fn seek(&self, _f: &File, offset: i64, whence: u32, _pos: u64) -> Result<u64> {
        if offset != 0 {
            return Err(Errno::ESPIPE);
        }
        let mut next = self.next.lock();
        match whence {
            uapi::SEEK_SET => *next = 0,
            uapi::SEEK_DATA => *next = syslog::cleared_to(),
            uapi::SEEK_END => *next = log::head(),
            _ => return Err(Errno::EINVAL),
        }
        Ok(0)
    }

    fn poll(&self, _f: &File, pt: Option<&mut PollTable>) -> PollEvents {
        if let Some(pt) = pt {
            pt.register_static(&syslog::READERS);
        }
        let ready = self.next.try_lock().is_some_and(|next| *next < log::head());
        if ready { PollEvents::READABLE | PollEvents::WRITABLE } else { PollEvents::WRITABLE }
    }
}
