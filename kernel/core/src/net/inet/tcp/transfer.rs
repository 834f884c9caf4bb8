//! Sending and receiving on a connection. References: send(2), recv(2), `tcp_sendmsg_locked`, `tcp_recvmsg_locked`.

use alloc::sync::Arc;
use core::sync::atomic::Ordering::Relaxed;

use linux_uapi::raw::net as uapi;

use super::{Link, Phase, Tcp};
use crate::net::inet::stream::{FIN, GONE, RESET};
use crate::net::inet::wait;
use crate::net::{Incoming, Outgoing};
use crate::time::Deadline;
use crate::{Errno, Result};

impl Tcp {
    /// The connection, waited for if it is being made.
    fn connected(&self, nonblocking: bool, deadline: Option<Deadline>) -> Result<Option<Arc<Link>>> {
        loop {
            {
                let state = self.state.lock();
                if !matches!(state.phase, Phase::Connecting) {
                    return Ok(state.link.clone());
                }
            }
            if nonblocking {
                return Err(Errno::EAGAIN);
            }
            wait(&self.writers, deadline, || !matches!(self.state.lock().phase, Phase::Connecting))?;
        }
    }

    pub(super) fn send_message(&self, out: &mut Outgoing<'_, '_>) -> Result<usize> {
        let urgent = out.flags & uapi::MSG_OOB != 0;
        let nonblocking = out.flags & uapi::MSG_DONTWAIT != 0;
        let deadline = self.options.send_deadline();
        let broken = || self.error.take().unwrap_or(Errno::EPIPE);
        let link = self.connected(nonblocking, deadline)?.ok_or_else(broken)?;
        let tx = &link.tx;
        if urgent && tx.is_pumped() {
            // The engine has no urgent data.
            return Err(Errno::EOPNOTSUPP);
        }
        let mut sent = 0;
        let partial = |sent: usize, error: Errno| if sent > 0 { Ok(sent) } else { Err(error) };
        loop {
            if tx.has(FIN | RESET) {
                return if sent > 0 { Ok(sent) } else { Err(broken()) };
            }
            if self.error.is_set() {
                return if sent > 0 { Ok(sent) } else { Err(broken()) };
            }
            if out.data.remaining() == 0 {
                return Ok(sent);
            }
            if tx.has(GONE) {
                // Nobody reads any more: the bytes go, and what answers them breaks the connection off.
                let len = out.data.remaining();
                out.data.skip(len);
                self.error.set(if link.rx.has(FIN) { Errno::EPIPE } else { Errno::ECONNRESET });
                tx.mark(RESET);
                link.rx.mark(RESET);
                return Ok(sent + len);
            }
            // The last byte is the urgent one, and goes by itself.
            let step = match out.data.remaining() - usize::from(urgent) {
                0 => tx.write_urgent(out.data),
                ordinary => tx.write(out.data, ordinary),
            };
            match step {
                Ok(0) => {}
                Ok(n) => {
                    sent += n;
                    continue;
                }
                Err(error) => return partial(sent, error),
            }
            if nonblocking {
                return partial(sent, Errno::EAGAIN);
            }
            let ready = || tx.is_writable() || tx.has(FIN | RESET | GONE) || self.error.is_set();
            if let Err(error) = wait(&self.writers, deadline, ready) {
                return partial(sent, error);
            }
        }
    }

    pub(super) fn receive_message(&self, into: &mut Incoming<'_, '_>) -> Result<usize> {
        if into.flags & uapi::MSG_ERRQUEUE != 0 {
            return Err(Errno::EAGAIN);
        }
        if into.flags & uapi::MSG_OOB != 0 {
            return self.receive_urgent(into);
        }
        let deadline = self.options.receive_deadline();
        let Some(link) = self.connected(into.is_nonblocking(), deadline)? else {
            return match self.error.take() {
                Some(error) => Err(error),
                // After a failed attempt there is nothing, and never was.
                None if matches!(self.state.lock().phase, Phase::Failed) => Ok(0),
                None => Err(Errno::ENOTCONN),
            };
        };
        let rx = &link.rx;
        let peek = into.flags & uapi::MSG_PEEK != 0;
        let drops = into.flags & uapi::MSG_TRUNC != 0 && !peek;
        let wanted = into.data.remaining();
        let least = self.options.receive_low_water.load(Relaxed).max(1) as usize;
        let target = if into.flags & uapi::MSG_WAITALL != 0 { wanted } else { least.min(wanted) };
        let mut copied = 0;
        loop {
            // Before the look at the bytes: whatever was written came before the end.
            let over = rx.has(FIN | RESET) || self.state.lock().receive_shut;
            let step =
                if drops { Ok(rx.discard(wanted - copied, copied > 0)) } else { rx.read(into.data, peek, copied) };
            match step {
                Ok(n) => copied += n,
                Err(error) if copied == 0 => return Err(error),
                Err(_) => return Ok(copied),
            }
            if copied >= target.max(1) || wanted == 0 {
                return Ok(copied);
            }
            if copied > 0 {
                if over
                    || rx.is_at_urgent(if peek { copied } else { 0 })
                    || self.error.is_set()
                    || into.is_nonblocking()
                {
                    return Ok(copied);
                }
            } else {
                if rx.has(FIN) && over {
                    return Ok(0);
                }
                if let Some(error) = self.error.take() {
                    return Err(error);
                }
                if over {
                    return Ok(0);
                }
                if into.is_nonblocking() {
                    return Err(Errno::EAGAIN);
                }
            }
            let seen = if peek { copied } else { 0 };
            // A peek passes the urgent byte over and leaves it there.
            let passes_urgent = || peek && rx.passes_over();
            let ready = || {
                rx.len() > seen + usize::from(passes_urgent())
                    || rx.has(FIN | RESET)
                    || self.error.is_set()
                    || self.state.lock().receive_shut
            };
            if let Err(error) = wait(&self.readers, deadline, ready) {
                return if copied > 0 { Ok(copied) } else { Err(error) };
            }
        }
    }

    /// Reads the urgent byte out of band.
    fn receive_urgent(&self, into: &mut Incoming<'_, '_>) -> Result<usize> {
        let link = {
            let state = self.state.lock();
            if matches!(state.phase, Phase::Listening(_)) {
                return Err(Errno::ENOTCONN);
            }
            state.link.clone()
        };
        if self.options.has(uapi::SO_OOBINLINE) {
            return Err(Errno::EINVAL);
        }
        let byte = link.ok_or(Errno::EINVAL)?.rx.take_urgent(into.flags & uapi::MSG_PEEK != 0)?;
        into.out_flags |= uapi::MSG_OOB;
        if into.data.remaining() == 0 {
            into.out_flags |= uapi::MSG_TRUNC;
            return Ok(0);
        }
        if into.flags & uapi::MSG_TRUNC == 0 {
            into.data.put_all(&[byte])?;
        }
        Ok(1)
    }
}
