//! Options of the level `IPPROTO_TCP`: [`TcpOptions`]. Reference: tcp(7).

use alloc::vec::Vec;
use core::sync::atomic::{AtomicI32, Ordering::Relaxed};

use linux_uapi::raw::net as uapi;

use crate::{Errno, Result};

/// `SOL_TCP`
pub const SOL_TCP: i32 = 6;
/// The algorithm that connections to other machines use; within the machine nothing is congested.
const CONGESTION: &[u8] = b"reno";
/// Bytes of `TCP_CONGESTION`'s buffer (`TCP_CA_NAME_MAX`).
const CONGESTION_MAX: usize = 16;
/// Numbers of options that are plain numbers lie below.
const NUMBERS: usize = 40;

/// What `TCP_INFO` tells.
pub struct Info {
    /// `TCP_*` state.
    pub state: u8,
    /// The longest segment.
    pub mss: u32,
    /// Bytes sent and received.
    pub sent: u64,
    /// Bytes received.
    pub received: u64,
    /// Bytes not yet sent.
    pub unsent: u32,
    /// For a listener: connections that wait, and how many may.
    pub backlog: Option<(u32, u32)>,
}

/// The options.
pub struct TcpOptions([AtomicI32; NUMBERS]);

impl TcpOptions {
    /// A new socket's.
    pub fn new() -> TcpOptions {
        let options = TcpOptions([const { AtomicI32::new(0) }; NUMBERS]);
        for (name, value) in [
            (uapi::TCP_KEEPIDLE, 7200),
            (uapi::TCP_KEEPINTVL, 75),
            (uapi::TCP_KEEPCNT, 9),
            (uapi::TCP_SYNCNT, 6),
            (uapi::TCP_LINGER2, 60),
            (uapi::TCP_QUICKACK, 1),
            (uapi::TCP_NOTSENT_LOWAT, 0),
        ] {
            options.0[name as usize].store(value, Relaxed);
        }
        options
    }

    /// Takes over a listener's.
    pub fn inherit(&self, from: &TcpOptions) {
        for (to, from) in self.0.iter().zip(&from.0) {
            to.store(from.load(Relaxed), Relaxed);
        }
    }

    /// An option's number.
    pub fn number(&self, name: u32) -> i32 {
        self.0[name as usize].load(Relaxed)
    }

    /// Sets an option.
    ///
    /// # Errors
    /// `ENOPROTOOPT` for one that is not known, `EINVAL`, `ENOENT` for an algorithm that does not exist.
    pub fn set(&self, name: u32, value: &[u8]) -> Result {
        if name == uapi::TCP_CONGESTION {
            let end = value.iter().position(|b| *b == 0).unwrap_or(value.len()).min(CONGESTION_MAX);
            return match &value[..end] {
                b"" => Err(Errno::EINVAL),
                CONGESTION => Ok(()),
                _ => Err(Errno::ENOENT),
            };
        }
        let number = value.first_chunk::<4>().map(|v| i32::from_ne_bytes(*v)).ok_or(Errno::EINVAL)?;
        let range = match name {
            uapi::TCP_NODELAY | uapi::TCP_CORK | uapi::TCP_QUICKACK | uapi::TCP_THIN_LINEAR_TIMEOUTS => {
                self.0[name as usize].store(i32::from(number != 0), Relaxed);
                return Ok(());
            }
            uapi::TCP_MAXSEG if number == 0 => 0..=0,
            uapi::TCP_MAXSEG => 88..=32767,
            uapi::TCP_KEEPIDLE | uapi::TCP_KEEPINTVL => 1..=32767,
            uapi::TCP_KEEPCNT | uapi::TCP_SYNCNT => 1..=127,
            uapi::TCP_LINGER2 | uapi::TCP_NOTSENT_LOWAT => i32::MIN..=i32::MAX,
            uapi::TCP_DEFER_ACCEPT | uapi::TCP_WINDOW_CLAMP => 0..=i32::MAX,
            uapi::TCP_USER_TIMEOUT => 0..=i32::MAX,
            uapi::TCP_INQ => 0..=1,
            _ => return Err(Errno::ENOPROTOOPT),
        };
        if !range.contains(&number) {
            return Err(Errno::EINVAL);
        }
        self.0[name as usize].store(number, Relaxed);
        Ok(())
    }

    /// An option's value.
    ///
    /// # Errors
    /// `ENOPROTOOPT` for one that is not known.
    pub fn get(&self, name: u32, info: impl FnOnce() -> Info) -> Result<Vec<u8>> {
        let number = match name {
            uapi::TCP_INFO => return Ok(encode(&info())),
            uapi::TCP_CONGESTION => {
                let mut name = CONGESTION.to_vec();
                name.resize(CONGESTION_MAX, 0);
                return Ok(name);
            }
            uapi::TCP_MAXSEG => match self.number(name) {
                0 => info().mss as i32,
                mss => mss,
            },
            uapi::TCP_NODELAY
            | uapi::TCP_CORK
            | uapi::TCP_QUICKACK
            | uapi::TCP_THIN_LINEAR_TIMEOUTS
            | uapi::TCP_KEEPIDLE
            | uapi::TCP_KEEPINTVL
            | uapi::TCP_KEEPCNT
            | uapi::TCP_SYNCNT
            | uapi::TCP_LINGER2
            | uapi::TCP_NOTSENT_LOWAT
            | uapi::TCP_DEFER_ACCEPT
            | uapi::TCP_WINDOW_CLAMP
            | uapi::TCP_USER_TIMEOUT
            | uapi::TCP_INQ => self.number(name),
            uapi::TCP_FASTOPEN | uapi::TCP_REPAIR => 0,
            _ => return Err(Errno::ENOPROTOOPT),
        };
        Ok(number.to_ne_bytes().to_vec())
    }
}

/// `struct tcp_info`: what is known here; the rest is zero.
fn encode(info: &Info) -> Vec<u8> {
    const SIZE: usize = 248;
    let mut bytes = alloc::vec![0; SIZE];
    bytes[0] = info.state;
    let mut word = |at: usize, value: u32| bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    // tcpi_rto, tcpi_ato (µs), tcpi_snd_mss, tcpi_rcv_mss.
    word(8, 204_000);
    word(12, 40_000);
    word(16, info.mss);
    word(20, info.mss);
    if let Some((waiting, most)) = info.backlog {
        // tcpi_unacked and tcpi_sacked of a listener.
        word(24, waiting);
        word(28, most);
    }
    // tcpi_pmtu, tcpi_rcv_ssthresh, tcpi_rtt, tcpi_rttvar, tcpi_snd_ssthresh, tcpi_snd_cwnd, tcpi_advmss, tcpi_reordering.
    word(60, info.mss + 40);
    word(64, 65_483);
    word(68, 50);
    word(72, 25);
    word(76, i32::MAX as u32);
    word(80, 10);
    word(84, info.mss);
    word(88, 3);
    // tcpi_notsent_bytes.
    word(144, info.unsent);
    // tcpi_bytes_acked, tcpi_bytes_received.
    bytes[120..128].copy_from_slice(&info.sent.to_ne_bytes());
    bytes[128..136].copy_from_slice(&info.received.to_ne_bytes());
    bytes
}
