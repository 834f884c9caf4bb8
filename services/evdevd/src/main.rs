//! The evdevd daemon: serves its connection, and sleeps until a key repeats or a request comes.

use std::{path::Path, sync::Arc};

use anyhow::{Context, Result};
use evdevd::{Server, SystemClock};
use input_core::Clock;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};
use scheme::Connection;

/// What the connection may do.
const GRANT: &str = "/usr/lib/ursa/evdevd/scheme.toml";

fn main() -> Result<()> {
    let connection = Connection::open(Path::new(GRANT)).context("cannot get a scheme connection")?;
    let clock = Arc::new(SystemClock);
    let mut server = Server::new(Arc::new(connection.clone()), clock.clone(), &connection.unanswered())
        .context("cannot take up the service")?;
    connection.start_watchdog().context("no watchdog")?;
    // Without a service manager nobody waits for it.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    loop {
        // Waits in the kernel while nothing is due at any time, which is whenever no key is held.
        connection.serve_while(&mut server, |server| server.deadline().is_none())?;
        let Some(deadline) = server.deadline() else { continue };
        let wait = deadline.saturating_sub(clock.monotonic());
        let timeout = Timespec { tv_sec: (wait / 1_000_000_000) as i64, tv_nsec: (wait % 1_000_000_000) as i64 };
        match connection.rest(|| poll(&mut [PollFd::new(&connection, PollFlags::IN)], Some(&timeout))) {
            Ok(_) | Err(Errno::INTR) => server.tick(),
            Err(errno) => return Err(errno).context("cannot wait"),
        }
    }
}
