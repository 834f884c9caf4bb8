//! Further screens of a virtio-gpu, plugged in and out while the machine runs.
//!
//! QEMU shows each on a VNC server of its own, whose socket is in the machine's folder. A screen is plugged in, and has its size, when
//! a client of that server asks for one, and pulled out when it asks for none: [`plug`] is this client (RFC 6143; the request is
//! SetDesktopSize of <https://github.com/rfbproto/rfbproto/blob/master/rfbproto.rst>). QMP has no command for it.

use super::{Gpu, Options};
use anyhow::{Context, Result, ensure};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The display device's name in QEMU.
pub const DEVICE: &str = "gpu";

const VERSION: &[u8; 12] = b"RFB 003.008\n";
/// The security type of those who need not say who they are.
const SECURITY_NONE: u8 = 1;
const SET_DESKTOP_SIZE: u8 = 251;
/// The pseudo-encoding ExtendedDesktopSize, in which the request is answered.
const EXTENDED_DESKTOP_SIZE: i32 = -308;
/// Its status of a request that was passed on to whoever makes the picture.
const FORWARDED: u16 = 4;

fn socket(folder: &Path, head: u32) -> PathBuf {
    folder.join(format!("screen{head}.vnc"))
}

/// QEMU's words for the servers of all screens but the first.
pub fn arguments(options: &Options, gpu: Gpu, folder: &Path) -> Vec<String> {
    let heads = if gpu == Gpu::Virtio { 1..options.outputs } else { 0..0 };
    let server =
        |head| ["-vnc".into(), format!("unix:{},display={DEVICE},head={head}", socket(folder, head).display())];
    heads.flat_map(server).collect()
}

/// Plugs a screen of this size into a machine, or pulls it out if the size is nothing.
///
/// # Errors
/// When the machine has no such screen, or QEMU refuses the size.
pub fn plug(folder: &Path, head: u32, (width, height): (u16, u16)) -> Result<()> {
    let path = socket(folder, head);
    let mut stream = UnixStream::connect(&path).with_context(|| format!("there is no screen {head} to plug"))?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    request(&mut stream, (width, height)).with_context(|| format!("{}", path.display()))
}

fn request(stream: &mut (impl Read + Write), (width, height): (u16, u16)) -> Result<()> {
    let version = read::<12>(stream)?;
    ensure!(version.starts_with(b"RFB 003."), "not a VNC server");
    stream.write_all(VERSION)?;
    let [count] = read(stream)?;
    let mut kinds = vec![0; count.into()];
    stream.read_exact(&mut kinds)?;
    ensure!(kinds.contains(&SECURITY_NONE), "the VNC server wants a password");
    stream.write_all(&[SECURITY_NONE])?;
    ensure!(u32::from_be_bytes(read(stream)?) == 0, "the VNC server refuses");
    // Others may be connected as well.
    stream.write_all(&[1])?;
    // Size and pixel format; the desktop's name.
    read::<20>(stream)?;
    let mut name = vec![0; u32::from_be_bytes(read(stream)?).min(4096) as usize];
    stream.read_exact(&mut name)?;

    let size = [width.to_be_bytes(), height.to_be_bytes()].concat();
    // One screen, number 0, at the origin, without flags.
    let screen = [&[0; 8], &size[..], &[0; 4]].concat();
    stream.write_all(&[&[SET_DESKTOP_SIZE, 0], &size[..], &[1, 0], &screen].concat())?;
    // FramebufferUpdate of one rectangle; why it comes stands in x, the status in y.
    let head = read::<4>(stream)?;
    ensure!(head == [0, 0, 0, 1], "the VNC server says {head:?}, which is no answer");
    let rectangle = read::<12>(stream)?;
    let status = u16::from_be_bytes([rectangle[2], rectangle[3]]);
    let encoding = i32::from_be_bytes([rectangle[8], rectangle[9], rectangle[10], rectangle[11]]);
    ensure!(encoding == EXTENDED_DESKTOP_SIZE, "the VNC server sends encoding {encoding} for an answer");
    ensure!(status == 0 || status == FORWARDED, "the size is refused with status {status}");
    Ok(())
}

fn read<const N: usize>(stream: &mut impl Read) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).context("the VNC server does not answer")?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    /// A server that has said all that it will say.
    struct Server {
        says: Cursor<Vec<u8>>,
        hears: Vec<u8>,
    }

    impl Read for Server {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            self.says.read(buffer)
        }
    }

    impl Write for Server {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.hears.write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn server(status: u8) -> Server {
        let greeting = [&VERSION[..], &[1, SECURITY_NONE], &[0; 4], &[0; 20], &[0, 0, 0, 4], b"QEMU"].concat();
        let answer = [&[0, 0, 0, 1, 0, 1, 0, status, 0, 0, 0, 0], &EXTENDED_DESKTOP_SIZE.to_be_bytes()[..]].concat();
        Server { says: Cursor::new([greeting, answer].concat()), hears: Vec::new() }
    }

    #[test]
    fn a_screens_size_is_asked_for() {
        let mut qemu = server(4);
        request(&mut qemu, (1024, 768)).unwrap();
        let message = [251, 0, 4, 0, 3, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 3, 0, 0, 0, 0, 0];
        assert_eq!(qemu.hears, [&VERSION[..], &[SECURITY_NONE, 1], &message].concat());
    }

    #[test]
    fn refusals_and_silence_are_told() {
        assert!(request(&mut server(3), (1024, 768)).is_err());
        let mut cut = server(4);
        cut.says.get_mut().truncate(40);
        assert!(request(&mut cut, (1024, 768)).is_err());
    }
}
