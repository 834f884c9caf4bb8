//! The description of a device that `SCHEME_IOC_PUBLISH` takes: records `key=value`, each ended by NUL.
//!
//! | record | meaning |
//! |---|---|
//! | `cookie=N` | the `nodeid` of the device's requests; required, not 0 |
//! | `name=card0` | required |
//! | `parent=/devices/…`, `parent=cookie:N`, `parent=virtual` | where it hangs in sysfs |
//! | `class=drm`, `devtype=drm_minor` | |
//! | `node=c:226:0:0660:0:0:dri/card0` | kind, major, minor, mode (octal), uid, gid, name below `/dev` |
//! | `env=KEY=VALUE` | a variable of its uevents |
//! | `attr=name:0444:VALUE` | a static attribute; VALUE reaches to the NUL |
//! | `dyn=name:0644:ID` | an attribute that `SCHEME_ATTR_SHOW` and `SCHEME_ATTR_STORE` answer |
//! | `bin=name:0444:HEX` | a static binary attribute |
//!
//! Attribute names may have one `/`, for a group. [`records`] checks the form of everything and the meaning of nothing.

/// The longest attribute, class or device name.
pub const NAME_MAX: usize = 64;
/// The longest name of a device node below `/dev`.
pub const NODE_NAME_MAX: usize = 128;

/// Where a device hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parent<'a> {
    /// Below a device by its path in sysfs, from `/devices` on.
    Path(&'a str),
    /// Below another device of the same connection.
    Cookie(u64),
    /// Below `/devices/virtual`.
    Virtual,
}

/// A device node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node<'a> {
    /// A block device, otherwise a character device.
    pub block: bool,
    /// Its number: major.
    pub major: u32,
    /// Its number: minor.
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Name below `/dev`.
    pub name: &'a str,
}

/// One record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the module documentation has the table of records")]
pub enum Record<'a> {
    Cookie(u64),
    Parent(Parent<'a>),
    Name(&'a str),
    Class(&'a str),
    Devtype(&'a str),
    Node(Node<'a>),
    Env { key: &'a str, value: &'a str },
    Attr { name: &'a str, mode: u32, value: &'a [u8] },
    Dyn { name: &'a str, mode: u32, id: u64 },
    Bin { name: &'a str, mode: u32, hex: &'a str },
}

/// A record that is not one; the number of the record, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed(pub usize);

/// Splits a description into its records.
pub fn records(text: &[u8]) -> impl Iterator<Item = Result<Record<'_>, Malformed>> {
    let mut rest = text;
    let mut number = 0;
    core::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let this = number;
        number += 1;
        let Some(end) = rest.iter().position(|&byte| byte == 0) else {
            // A last record without its NUL was cut off.
            rest = &[];
            return Some(Err(Malformed(this)));
        };
        let record = record(&rest[..end]);
        rest = if record.is_some() { &rest[end + 1..] } else { &[] };
        Some(record.ok_or(Malformed(this)))
    })
}

fn record(bytes: &[u8]) -> Option<Record<'_>> {
    let at = bytes.iter().position(|&byte| byte == b'=')?;
    let (key, value) = (&bytes[..at], &bytes[at + 1..]);
    if key == b"attr" {
        // The value alone may be something else than text.
        let (name, rest) = split_byte(value, b':')?;
        let (mode, value) = split_byte(rest, b':')?;
        return Some(Record::Attr { name: attribute_name(text(name)?)?, mode: octal(text(mode)?)?, value });
    }
    let value = text(value)?;
    Some(match key {
        b"cookie" => Record::Cookie(number(value).filter(|&cookie| cookie != 0)?),
        b"parent" => Record::Parent(match value {
            "virtual" => Parent::Virtual,
            path if path.starts_with("/devices/") && is_clean_path(&path[1..]) => Parent::Path(path),
            other => Parent::Cookie(number(other.strip_prefix("cookie:")?)?),
        }),
        b"name" => Record::Name(name(value)?),
        b"class" => Record::Class(name(value)?),
        b"devtype" => Record::Devtype(name(value)?),
        b"node" => Record::Node(node(value)?),
        b"env" => {
            let (key, value) = value.split_once('=')?;
            let plain = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_';
            (!key.is_empty() && key.len() <= NAME_MAX && key.bytes().all(plain) && !value.contains('\n'))
                .then_some(Record::Env { key, value })?
        }
        b"dyn" => {
            let (name, mode, id) = three(value)?;
            Record::Dyn { name: attribute_name(name)?, mode: octal(mode)?, id: number(id)? }
        }
        b"bin" => {
            let (name, mode, hex) = three(value)?;
            let is_hex = hex.len().is_multiple_of(2) && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
            is_hex.then_some(Record::Bin { name: attribute_name(name)?, mode: octal(mode)?, hex })?
        }
        _ => return None,
    })
}

fn split_byte(bytes: &[u8], at: u8) -> Option<(&[u8], &[u8])> {
    let index = bytes.iter().position(|&byte| byte == at)?;
    Some((&bytes[..index], &bytes[index + 1..]))
}

fn text(bytes: &[u8]) -> Option<&str> {
    core::str::from_utf8(bytes).ok()
}

fn three(value: &str) -> Option<(&str, &str, &str)> {
    let (first, rest) = value.split_once(':')?;
    let (second, third) = rest.split_once(':')?;
    Some((first, second, third))
}

fn number<T: core::str::FromStr>(text: &str) -> Option<T> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

fn octal(text: &str) -> Option<u32> {
    if text.is_empty() || text.len() > 5 || !text.bytes().all(|byte| (b'0'..b'8').contains(&byte)) {
        return None;
    }
    u32::from_str_radix(text, 8).ok().filter(|mode| mode & !0o777 == 0)
}

/// A component of a path.
fn is_name(text: &str, max: usize) -> bool {
    !text.is_empty()
        && text.len() <= max
        && text != "."
        && text != ".."
        && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/')
}

fn name(text: &str) -> Option<&str> {
    is_name(text, NAME_MAX).then_some(text)
}

fn attribute_name(text: &str) -> Option<&str> {
    let valid = match text.split_once('/') {
        Some((group, attribute)) => is_name(group, NAME_MAX) && is_name(attribute, NAME_MAX),
        None => is_name(text, NAME_MAX),
    };
    valid.then_some(text)
}

fn is_clean_path(path: &str) -> bool {
    path.split('/').all(|part| is_name(part, NODE_NAME_MAX))
}

fn node(value: &str) -> Option<Node<'_>> {
    let mut parts = value.splitn(7, ':');
    let mut next = || parts.next();
    let block = match next()? {
        "c" => false,
        "b" => true,
        _ => return None,
    };
    let node = Node {
        block,
        major: number(next()?)?,
        minor: number(next()?)?,
        mode: octal(next()?)?,
        uid: number(next()?)?,
        gid: number(next()?)?,
        name: next()?,
    };
    // Major and minor have 12 and 20 bits.
    let fits = node.major < 1 << 12 && node.minor < 1 << 20;
    (fits && node.name.len() <= NODE_NAME_MAX && is_clean_path(node.name)).then_some(node)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Result<Record<'_>, Malformed> {
        // `text` ends in NUL.
        records(text.as_bytes()).next().unwrap()
    }

    #[test]
    fn every_kind_of_record_is_read() {
        assert_eq!(one("cookie=7\0"), Ok(Record::Cookie(7)));
        assert_eq!(one("parent=virtual\0"), Ok(Record::Parent(Parent::Virtual)));
        assert_eq!(one("parent=cookie:3\0"), Ok(Record::Parent(Parent::Cookie(3))));
        let path = "/devices/pci0000:00/0000:00:02.0";
        assert_eq!(one("parent=/devices/pci0000:00/0000:00:02.0\0"), Ok(Record::Parent(Parent::Path(path))));
        let node = Node { block: false, major: 226, minor: 0, mode: 0o660, uid: 0, gid: 44, name: "dri/card0" };
        assert_eq!(one("node=c:226:0:0660:0:44:dri/card0\0"), Ok(Record::Node(node)));
        assert_eq!(one("env=ID=a=b\0"), Ok(Record::Env { key: "ID", value: "a=b" }));
        let attr = Record::Attr { name: "capabilities/ev", mode: 0o444, value: b"1:2\n" };
        assert_eq!(one("attr=capabilities/ev:0444:1:2\n\0"), Ok(attr));
        assert_eq!(one("dyn=status:0644:9\0"), Ok(Record::Dyn { name: "status", mode: 0o644, id: 9 }));
        assert_eq!(one("bin=edid:0444:00ff\0"), Ok(Record::Bin { name: "edid", mode: 0o444, hex: "00ff" }));
    }

    #[test]
    fn what_could_leave_its_place_is_refused() {
        for bad in [
            "cookie=0\0",
            "cookie=-1\0",
            "cookie=99999999999999999999\0",
            "name=\0",
            "name=..\0",
            "name=a/b\0",
            "parent=/devices/../x\0",
            "parent=/sys\0",
            "node=c:226:0:0660:0:0:../x\0",
            "node=c:226:0:0660:0:0:a//b\0",
            "node=c:4096:0:0660:0:0:a\0",
            "node=c:1:0:4755:0:0:a\0",
            "node=c:1:0\0",
            "attr=a/b/c:0444:x\0",
            "attr=x:9:y\0",
            "bin=x:0444:0\0",
            "env=lower=1\0",
            "what=1\0",
            "noequals\0",
            "cut=off",
        ] {
            assert_eq!(records(bad.as_bytes()).next(), Some(Err(Malformed(0))), "{bad:?}");
        }
    }

    #[test]
    fn a_malformed_record_ends_the_list() {
        let mut all = records(b"cookie=1\0name=a/b\0class=x\0");
        assert_eq!(all.next(), Some(Ok(Record::Cookie(1))));
        assert_eq!(all.next(), Some(Err(Malformed(1))));
        assert_eq!(all.next(), None);
    }
}
