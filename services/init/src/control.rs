//! The control socket: one line asks, the answer follows, the connection closes.
//!
//! The program itself is the client when it runs under another name or with arguments (`initctl status`, `poweroff`).

use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::{
        fs::PermissionsExt,
        net::{UnixListener, UnixStream},
    },
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::system::Down;

/// The longest request line.
const LINE_MAX: u64 = 512;

/// What a client asks for.
#[derive(Debug, PartialEq)]
pub enum Request {
    /// `status`
    Status,
    /// `start NAME`
    Start(String),
    /// `stop NAME`
    Stop(String),
    /// `poweroff`, `reboot`, `halt`
    Down(Down),
}

impl Request {
    fn parse(line: &str) -> Option<Request> {
        let mut words = line.split_whitespace();
        let request = match (words.next()?, words.next()) {
            ("status", None) => Request::Status,
            ("start", Some(name)) => Request::Start(name.to_owned()),
            ("stop", Some(name)) => Request::Stop(name.to_owned()),
            ("poweroff", None) => Request::Down(Down::PowerOff),
            ("reboot", None) => Request::Down(Down::Reboot),
            ("halt", None) => Request::Down(Down::Halt),
            _ => return None,
        };
        words.next().is_none().then_some(request)
    }
}

/// Opens the socket for root alone.
///
/// # Errors
/// Those of bind(2).
pub fn bind(path: &Path) -> Result<UnixListener> {
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Reads one request; a client that does not send its line at once is not waited for.
pub fn read_request(stream: &UnixStream) -> Option<Request> {
    stream.set_read_timeout(Some(Duration::from_millis(200))).ok()?;
    let mut line = String::new();
    BufReader::new(stream.take(LINE_MAX)).read_line(&mut line).ok()?;
    let request = Request::parse(&line);
    if request.is_none() {
        answer(stream.try_clone().ok()?, "error: not a request\n");
    }
    request
}

/// Sends the answer; a client that is gone is no concern of ours.
pub fn answer(mut stream: UnixStream, text: &str) {
    let _ = stream.set_write_timeout(Some(Duration::from_millis(200)));
    let _ = stream.write_all(text.as_bytes());
}

/// The client's half: sends a request and prints the answer.
///
/// # Errors
/// When the supervisor cannot be reached or says so.
pub fn ask(path: &Path, line: &str) -> Result<()> {
    let mut stream = UnixStream::connect(path).with_context(|| format!("{}", path.display()))?;
    writeln!(stream, "{line}")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if let Some(error) = answer.strip_prefix("error: ") {
        bail!("{}", error.trim_end());
    }
    print!("{answer}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_exact() {
        assert_eq!(Request::parse("start a\n"), Some(Request::Start("a".into())));
        assert_eq!(Request::parse("poweroff"), Some(Request::Down(Down::PowerOff)));
        assert_eq!(Request::parse("start"), None);
        assert_eq!(Request::parse("start a b"), None);
        assert_eq!(Request::parse(""), None);
    }
}
