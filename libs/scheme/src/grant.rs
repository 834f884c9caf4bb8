//! [`Grant`]: what a server's `scheme.toml` lists, which is all that its connection may do.
//!
//! ```toml
//! name = "evdev"
//! extensions = ["copy", "ready"]
//! resumable = false
//! [[numbers]]
//! major = 13
//! first = 64
//! count = 960
//! ```

use std::{io, path::Path};

pub use fuse_abi::scheme::Extensions;
use serde::Deserialize;

/// Device numbers that a connection may publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NumberRange {
    /// Major number.
    pub major: u32,
    /// First minor number.
    pub first: u32,
    /// How many.
    pub count: u32,
}

/// A granted connection's rights.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    /// Name of the scheme: `/scheme/NAME`.
    pub name: String,
    /// Extensions by name.
    #[serde(default)]
    extensions: Vec<ExtensionName>,
    /// Whether clients outlive the server.
    #[serde(default)]
    pub resumable: bool,
    /// Device numbers.
    #[serde(default)]
    pub numbers: Vec<NumberRange>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum ExtensionName {
    Copy,
    Files,
    Mmap,
    Revoke,
    Ready,
    Keep,
}

impl Grant {
    /// Reads `scheme.toml`.
    ///
    /// # Errors
    /// The file cannot be read; `InvalidData` where it is no grant.
    pub fn load(path: &Path) -> io::Result<Grant> {
        let text = std::fs::read_to_string(path)?;
        Grant::parse(&text)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {error}", path.display())))
    }

    /// Reads the text of a `scheme.toml`.
    ///
    /// # Errors
    /// It is no grant.
    pub fn parse(text: &str) -> Result<Grant, toml::de::Error> {
        toml::from_str(text)
    }

    /// The extensions.
    pub fn extensions(&self) -> Extensions {
        self.extensions.iter().fold(Extensions::empty(), |all, name| {
            all | match name {
                ExtensionName::Copy => Extensions::COPY,
                ExtensionName::Files => Extensions::FILES,
                ExtensionName::Mmap => Extensions::MMAP,
                ExtensionName::Revoke => Extensions::REVOKE,
                ExtensionName::Ready => Extensions::READY,
                ExtensionName::Keep => Extensions::KEEP,
            }
        })
    }

    /// The structures of `SCHEME_IOC_CREATE`.
    pub(crate) fn wire(&self) -> io::Result<(fuse_abi::scheme::Create, Vec<fuse_abi::scheme::Range>)> {
        let mut create = fuse_abi::scheme::Create { ext_mask: self.extensions().bits(), ..Default::default() };
        if self.name.len() >= create.name.len() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a scheme's name has at most 31 bytes"));
        }
        create.name[..self.name.len()].copy_from_slice(self.name.as_bytes());
        if self.resumable {
            create.flags |= fuse_abi::scheme::CreateFlags::RESUMABLE.bits();
        }
        let ranges = self
            .numbers
            .iter()
            .map(|range| fuse_abi::scheme::Range {
                major: range.major,
                first_minor: range.first,
                count: range.count,
                padding: 0,
            })
            .collect();
        Ok((create, ranges))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_is_read_and_becomes_structures() {
        let grant = Grant::parse(
            "name = \"evdev\"\nextensions = [\"copy\", \"ready\"]\n[[numbers]]\nmajor = 13\nfirst = 64\ncount = 960\n",
        )
        .unwrap();
        assert_eq!(grant.extensions(), Extensions::COPY | Extensions::READY);
        let (create, ranges) = grant.wire().unwrap();
        assert_eq!(&create.name[..6], b"evdev\0");
        assert_eq!(create.flags, 0);
        assert_eq!((ranges[0].major, ranges[0].first_minor, ranges[0].count), (13, 64, 960));
    }

    #[test]
    fn what_is_not_known_is_refused() {
        assert!(Grant::parse("name = \"x\"\nextensions = [\"everything\"]\n").is_err());
        assert!(Grant::parse("name = \"x\"\nroot = true\n").is_err());
        assert!(Grant::parse("name = \"a-name-that-is-longer-than-the-field\"\n").unwrap().wire().is_err());
    }
}
