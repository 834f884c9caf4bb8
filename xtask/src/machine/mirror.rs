//! A Debian mirror for guests: the packages that an image was made of, as a flat repository (`deb URL ./`, sources.list(5)).
//!
//! QEMU's user network starts [`serve`] for each connection to 10.0.2.100, port 80, with the connection as its standard input
//! and output. So no port of the host is opened, and the guest stays cut off from every other host.
//!
//! The repository is not signed: a guest has to call it `[trusted=yes]`.

use crate::{image, shell};
use anyhow::{Context, Result, ensure};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Component, Path, PathBuf};
use std::process::Command;

/// A request's head may not be longer.
const LONGEST_HEAD: usize = 64 << 10;

/// The name of a copy of this program beside the repository: a build may replace this one's file while the machine runs.
const PROGRAM: &str = "mirror-server";

/// The program that serves a repository, as `PROGRAM serve-mirror REPOSITORY`.
pub fn program(root: &Path) -> PathBuf {
    root.with_file_name(PROGRAM)
}

/// Makes the repository of an image's packages in `folder`.
///
/// # Errors
/// When the image cannot be made, or its packages are no longer in the cache.
pub fn make(image: &str, folder: &Path) -> Result<PathBuf> {
    image::get(image)?;
    let root = folder.join("mirror");
    fs::create_dir_all(root.join("pool"))?;
    fs::copy("/proc/self/exe", program(&root)).context("copying this program")?;
    let mut packages = String::new();
    for package in image::packages(image)? {
        let fields = shell::output(Command::new("dpkg-deb").arg("--field").arg(&package))?;
        let field = |name: &str| {
            let found = fields.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            found.with_context(|| format!("{} has no {name}", package.display()))
        };
        // Without the version, whose colon is a `%3a` in the names of downloaded files.
        let name = format!("pool/{}_{}.deb", field("Package")?, field("Architecture")?);
        std::os::unix::fs::symlink(&package, root.join(&name))?;
        let (size, sum) = (package.metadata()?.len(), image::checksum(&package)?);
        packages += &format!("{}\nFilename: {name}\nSize: {size}\nSHA256: {sum}\n\n", fields.trim_end());
    }
    ensure!(
        !packages.is_empty(),
        "no packages of {image} in the cache: `cargo xtask image {image} --update` gets them"
    );
    let list = root.join("Packages");
    fs::write(&list, &packages)?;
    let (size, sum) = (packages.len(), image::checksum(&list)?);
    let date = shell::output(Command::new("date").args(["-u", "-R"]))?;
    fs::write(root.join("Release"), format!("Origin: Ursa\nDate: {date}\nSHA256:\n {sum} {size} Packages\n"))?;
    Ok(root)
}

/// Answers the requests of one HTTP/1.1 connection (RFC 9112) with the files below `root`, until the other side closes it.
/// Requests may come before earlier ones are answered, as apt's do.
///
/// # Errors
/// When the connection breaks or what comes is no HTTP.
pub fn serve(root: &Path, mut input: impl Read, mut output: impl Write) -> Result<()> {
    let mut received = Vec::new();
    loop {
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut request = httparse::Request::new(&mut headers);
        let httparse::Status::Complete(head) = request.parse(&received)? else {
            ensure!(received.len() < LONGEST_HEAD, "a request's head is longer than {LONGEST_HEAD} bytes");
            let mut chunk = [0; 4096];
            let length = input.read(&mut chunk)?;
            if length == 0 {
                return Ok(());
            }
            received.extend_from_slice(&chunk[..length]);
            continue;
        };
        let (method, target) = (request.method.unwrap_or_default(), request.path.unwrap_or_default());
        if method != "GET" && method != "HEAD" {
            // What follows may be the request's content, which nobody reads.
            write!(output, "HTTP/1.1 501 Not Implemented\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?;
            return Ok(output.flush()?);
        }
        match open(root, target) {
            Some((mut file, size)) => {
                write!(output, "HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n")?;
                if method == "GET" {
                    std::io::copy(&mut file, &mut output)?;
                }
            }
            None => write!(output, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")?,
        }
        output.flush()?;
        received.drain(..head);
    }
}

/// The file that a request's target names, and its size. Nothing outside of `root` is found.
fn open(root: &Path, target: &str) -> Option<(File, u64)> {
    let path = decode(target.split(['?', '#']).next()?.strip_prefix('/')?)?;
    let inside = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
    if !Path::new(&path).components().all(inside) {
        return None;
    }
    let file = File::open(root.join(path)).ok()?;
    let data = file.metadata().ok()?;
    data.is_file().then_some((file, data.len()))
}

/// Resolves percent encoding, RFC 3986 section 2.1.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        if first != b'%' {
            bytes.push(first);
            continue;
        }
        let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(requests: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("mirror")).unwrap();
        fs::write(folder.path().join("secret"), "secret").unwrap();
        fs::write(folder.path().join("mirror/a+b"), "found").unwrap();
        let mut output = Vec::new();
        serve(&folder.path().join("mirror"), requests.as_bytes(), &mut output).unwrap();
        String::from_utf8(output).unwrap()
    }

    #[test]
    fn requests_in_a_row_are_answered_in_order() {
        let shown =
            answers("GET /./a%2bb HTTP/1.1\r\nHost: x\r\n\r\nHEAD /a+b HTTP/1.1\r\n\r\nGET /c HTTP/1.1\r\n\r\n");
        let found = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
        assert_eq!(shown, format!("{found}found{found}HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"));
    }

    #[test]
    fn nothing_outside_of_the_mirror_is_found() {
        for target in ["/../secret", "/%2e%2e/secret", "//etc/passwd", "/", "/%", "/%zz", "x"] {
            assert!(answers(&format!("GET {target} HTTP/1.1\r\n\r\n")).starts_with("HTTP/1.1 404 "), "{target}");
        }
    }

    #[test]
    fn other_methods_are_refused_and_end_the_connection() {
        let shown = answers("POST /a+b HTTP/1.1\r\nContent-Length: 30\r\n\r\nGET /a+b HTTP/1.1\r\n\r\n");
        assert!(shown.starts_with("HTTP/1.1 501 ") && shown.matches("HTTP/").count() == 1);
    }
}
