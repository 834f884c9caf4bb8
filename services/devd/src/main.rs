//! `ursa-devd`: the device manager's daemon. See the library.
//!
//! Run as root, once. It says `READY=1` (sd_notify(3)) when all devices that are there at its start are set up.
//! `SIGHUP` lets it read its rules again, `SIGTERM` and `SIGINT` end it after the events that are being worked on.
#![deny(unsafe_code)]

use std::{io::Write, os::unix::net::UnixStream, process::ExitCode, thread};

use anyhow::{Context, Result};
use devd::{daemon::Daemon, device::Paths, log};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

fn main() -> ExitCode {
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--debug" => log::set_level(7),
            _ => {
                eprintln!("usage: ursa-devd [--debug]");
                return ExitCode::from(2);
            }
        }
    }
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error(format_args!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    // Files get the modes that are asked for.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let (mut sender, receiver) = UnixStream::pair().context("cannot make a pipe for signals")?;
    receiver.set_nonblocking(true)?;
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM]).context("cannot take signals")?;
    thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in &mut signals {
            let byte = if signal == SIGHUP { b"h" } else { b"t" };
            if sender.write_all(byte).is_err() {
                return;
            }
        }
    })?;
    Daemon::start(Paths::default())?.run(receiver)
}
