//! Device nodes: owner, group and mode, and the links that lead to them.
//!
//! The kernel makes the nodes (devtmpfs). A link may be claimed by several devices; each claim is a file
//! `/run/udev/links/LINK/ID`, a symbolic link to `PRIORITY:/dev/NODE`, and the highest priority has the link. Links are replaced
//! by renaming, so that at any moment a link is there and leads to one of its claimants.
//!
//! Locking: one lock for all links; finding the winner and setting the link belong together.

use std::{
    fs, io,
    os::{
        fd::AsRawFd,
        unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
    sync::Mutex,
};

use rustix::fs::{Mode, OFlags};

use crate::{
    device::{Device, Paths},
    event::Event,
    log,
    record::{Store, absent_is_fine, beside},
    rules::{
        Rules,
        apply::{group, user},
        parse::Key,
    },
};

static LINKS: Mutex<()> = Mutex::new(());

/// Owner, group and mode of a node, as far as anybody said something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// The owner.
    pub owner: Option<u32>,
    /// The group.
    pub group: Option<u32>,
    /// The mode.
    pub mode: Option<u32>,
}

impl Access {
    /// What the rules said, or else the kernel.
    #[must_use]
    pub fn of(event: &Event) -> Access {
        let number = |key, radix| event.properties.get(key).and_then(|text| u32::from_str_radix(text, radix).ok());
        Access {
            owner: event.owner.value.or_else(|| number("DEVUID", 10)),
            group: event.group.value.or_else(|| number("DEVGID", 10)),
            mode: event.mode.value.or_else(|| number("DEVMODE", 8)),
        }
    }

    /// Applies it to a node that is a device with this number.
    ///
    /// # Errors
    /// `InvalidInput` for any other file; what changing mode and owner gives.
    pub fn apply(mut self, node: &Path, is_block: Option<bool>, number: Option<(u32, u32)>) -> io::Result<()> {
        // A group that is given shall be of use.
        self.mode = self.mode.or(self.group.filter(|&group| group > 0).map(|_| 0o660));
        if self == Access::default() {
            return Ok(());
        }
        // The open file is the one that is looked at and the one that is changed, whoever replaces the name meanwhile.
        let file = rustix::fs::open(node, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let data = fs::metadata(&path)?;
        let kind = data.file_type();
        let fits = match is_block {
            Some(true) => kind.is_block_device(),
            Some(false) => kind.is_char_device(),
            None => kind.is_block_device() || kind.is_char_device(),
        };
        let found = (rustix::fs::major(data.rdev()), rustix::fs::minor(data.rdev()));
        if !fits || number.is_some_and(|number| number != found) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let owner = self.owner.filter(|&owner| owner != data.uid());
        let group = self.group.filter(|&group| group != data.gid());
        let mode = self.mode.filter(|&mode| mode & 0o777 != data.mode() & 0o777);
        if owner.is_some() || group.is_some() {
            // Nobody shall have access in between that has it neither before nor after.
            let both = data.mode() & self.mode.unwrap_or(data.mode()) & 0o777;
            fs::set_permissions(&path, fs::Permissions::from_mode(both))?;
            std::os::unix::fs::chown(&path, owner, group)?;
        }
        if mode.is_some() || owner.is_some() || group.is_some() {
            let mode = self.mode.unwrap_or(data.mode()) & 0o7777;
            fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        }
        Ok(())
    }
}

/// Brings a device's node to what the event found: access, and links against those that it had.
pub fn update(event: &Event) {
    let device = &event.device;
    let (Some(node), Some(number)) = (device.node(), device.number_of_node()) else { return };
    let paths = device.paths();
    if let Err(error) = Access::of(event).apply(&paths.dev.join(node), Some(device.is_block()), Some(number))
        && error.kind() != io::ErrorKind::NotFound
    {
        log::warning(format_args!("/dev/{node}: cannot set owner and mode: {error}"));
    }
    for link in event.old.links.difference(&event.record.links) {
        report(link, release(paths, device, link));
    }
    for link in &event.record.links {
        report(link, claim(paths, device, link, event.record.link_priority));
    }
    let by_number = by_number(device, number);
    report(&by_number, point(paths, &by_number, node));
}

/// Takes back all links of a device that is gone.
pub fn remove(event: &Event) {
    let device = &event.device;
    let Some(number) = device.number_of_node() else { return };
    for link in &event.old.links {
        report(link, release(device.paths(), device, link));
    }
    let by_number = by_number(device, number);
    // The number may belong to another device by now.
    let path = device.paths().dev.join(&by_number);
    if device.node().is_some_and(|node| fs::read_link(&path).is_ok_and(|target| target == relative(&by_number, node))) {
        report(&by_number, absent_is_fine(fs::remove_file(path)));
    }
}

/// Takes back the links of a device of which only the record is left.
pub fn forget(paths: &Paths, id: &str, links: impl Iterator<Item = String>) {
    for link in links {
        report(&link, release_id(paths, id, &link));
    }
}

fn report(link: &str, result: io::Result<()>) {
    if let Err(error) = result {
        log::warning(format_args!("/dev/{link}: {error}"));
    }
}

fn by_number(device: &Device, (major, minor): (u32, u32)) -> String {
    format!("{}/{major}:{minor}", if device.is_block() { "block" } else { "char" })
}

/// The folder of the claims to a link. Its name is the link's with slashes and backslashes written as `\x2f` and `\x5c`.
fn claims(store: &Store, link: &str) -> PathBuf {
    store.folder().join("links").join(escape(link))
}

/// A path as a file name.
fn escape(path: &str) -> String {
    let mut out = String::new();
    for char in path.chars() {
        match char {
            '/' => out.push_str("\\x2f"),
            '\\' => out.push_str("\\x5c"),
            other => out.push(other),
        }
    }
    out
}

fn claim(paths: &Paths, device: &Device, link: &str, priority: i32) -> io::Result<()> {
    let (Some(id), Some(node)) = (device.id(), device.node()) else { return Ok(()) };
    let _lock = LINKS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let folder = claims(&paths.store, link);
    fs::create_dir_all(&folder)?;
    let claim = folder.join(&id);
    let text = format!("{priority}:/dev/{node}");
    if fs::read_link(&claim).ok().as_deref() != Some(Path::new(&text)) {
        replace_link(&claim, Path::new(&text))?;
    }
    let winner = best(paths, &folder, Some((priority, node.to_owned())));
    point(paths, link, winner.as_deref().unwrap_or(node))
}

fn release(paths: &Paths, device: &Device, link: &str) -> io::Result<()> {
    match device.id() {
        Some(id) => release_id(paths, &id, link),
        None => Ok(()),
    }
}

fn release_id(paths: &Paths, id: &str, link: &str) -> io::Result<()> {
    let _lock = LINKS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let folder = claims(&paths.store, link);
    absent_is_fine(fs::remove_file(folder.join(id)))?;
    match best(paths, &folder, None) {
        Some(node) => point(paths, link, &node),
        None => {
            let _ = fs::remove_dir(&folder);
            let path = paths.dev.join(link);
            if fs::symlink_metadata(&path).is_ok_and(|data| data.is_symlink()) {
                absent_is_fine(fs::remove_file(&path))?;
            }
            // Folders that were made for links go with the last one.
            let mut parent = path.parent();
            while let Some(folder) = parent.filter(|folder| *folder != paths.dev && folder.starts_with(&paths.dev)) {
                if fs::remove_dir(folder).is_err() {
                    break;
                }
                parent = folder.parent();
            }
            Ok(())
        }
    }
}

/// The node with the highest claim. Of equal claims the first in the order of ids wins, but one's own against others'.
fn best(paths: &Paths, folder: &Path, own: Option<(i32, String)>) -> Option<String> {
    let mut best = own;
    let mut names: Vec<PathBuf> =
        fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    names.sort();
    for name in names {
        let Ok(claim) = fs::read_link(&name) else { continue };
        let Some((priority, node)) = claim.to_str().and_then(|text| text.split_once(':')) else { continue };
        let (Ok(priority), Some(node)) = (priority.parse::<i32>(), node.strip_prefix("/dev/")) else { continue };
        let is_better = best.as_ref().is_none_or(|(known, _)| priority > *known);
        if is_better && paths.dev.join(node).exists() {
            best = Some((priority, node.to_owned()));
        }
    }
    best.map(|(_, node)| node)
}

/// Lets a link below `/dev` lead to a node.
fn point(paths: &Paths, link: &str, node: &str) -> io::Result<()> {
    let path = paths.dev.join(link);
    let target = relative(link, node);
    match fs::symlink_metadata(&path) {
        Ok(data) if !data.is_symlink() => {
            // The node itself is as good as a link to it; anything else is not ours to replace.
            return if link == node { Ok(()) } else { Err(io::ErrorKind::AlreadyExists.into()) };
        }
        Ok(_) if fs::read_link(&path)? == target => return Ok(()),
        _ => {}
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    replace_link(&path, &target)
}

fn replace_link(path: &Path, target: &Path) -> io::Result<()> {
    let new = beside(path);
    symlink(target, &new)?;
    fs::rename(&new, path).inspect_err(|_| drop(fs::remove_file(&new)))
}

/// What a link at one place below `/dev` has to hold to lead to another.
fn relative(link: &str, node: &str) -> PathBuf {
    let from: Vec<&str> = link.split('/').collect();
    let to: Vec<&str> = node.split('/').collect();
    let most = (from.len() - 1).min(to.len() - 1);
    let common = (0..most).take_while(|&at| from[at] == to[at]).count();
    let up = std::iter::repeat_n("..", from.len() - 1 - common);
    up.chain(to[common..].iter().copied()).collect()
}

/// Gives nodes that exist before their drivers what rules say about them (`OPTIONS+="static_node=…"`).
pub fn static_nodes(paths: &Paths, rules: &Rules) {
    for rule in rules.static_nodes() {
        let mut access = Access::default();
        let (mut names, mut tags) = (Vec::new(), Vec::new());
        for token in &rule.tokens {
            match &token.key {
                Key::Owner => access.owner = user(&token.value),
                Key::Group => access.group = group(&token.value),
                Key::Mode => access.mode = u32::from_str_radix(&token.value, 8).ok(),
                Key::Tag => tags.push(token.value.as_str()),
                Key::StaticNode => names.push(token.value.as_str()),
                _ => {}
            }
        }
        for name in names {
            let node = paths.dev.join(name);
            if fs::symlink_metadata(&node).is_err() {
                continue;
            }
            report(name, access.apply(&node, None, None));
            for tag in &tags {
                let mark = paths.store.folder().join("static_node-tags").join(tag).join(escape(name));
                report(
                    name,
                    fs::create_dir_all(mark.parent().unwrap_or(&mark)).and_then(|()| replace_link(&mark, &node)),
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::device::Properties;

    fn paths(folder: &Path) -> Arc<Paths> {
        let paths = Paths { dev: folder.join("dev"), store: Store::new(folder.join("run")), ..Paths::default() };
        fs::create_dir_all(paths.dev.join("input")).unwrap();
        Arc::new(paths)
    }

    fn device(paths: &Arc<Paths>, node: &str, minor: u32) -> Device {
        fs::write(paths.dev.join(node), "").unwrap();
        let properties: Properties = [
            ("SUBSYSTEM", "input".to_owned()),
            ("DEVNAME", format!("/dev/{node}")),
            ("MAJOR", "13".into()),
            ("MINOR", minor.to_string()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into();
        Device::of_event(paths, &format!("/devices/virtual/{node}"), properties)
    }

    #[test]
    fn links_are_relative() {
        assert_eq!(relative("dri/by-path/x-card", "dri/card0"), Path::new("../card0"));
        assert_eq!(relative("char/13:64", "input/event0"), Path::new("../input/event0"));
        assert_eq!(relative("rtc", "rtc0"), Path::new("rtc0"));
        assert_eq!(relative("a/b", "a"), Path::new("../a"));
    }

    #[test]
    fn the_highest_priority_has_the_link() {
        let folder = tempfile::tempdir().unwrap();
        let paths = paths(folder.path());
        let first = device(&paths, "input/event0", 64);
        let second = device(&paths, "input/event1", 65);
        let link = "input/by-path/same";
        let target = || fs::read_link(paths.dev.join(link)).ok();
        claim(&paths, &first, link, 0).unwrap();
        assert_eq!(target().unwrap(), Path::new("../event0"));
        claim(&paths, &second, link, -5).unwrap();
        assert_eq!(target().unwrap(), Path::new("../event0"));
        claim(&paths, &second, link, 5).unwrap();
        assert_eq!(target().unwrap(), Path::new("../event1"));
        let claims = paths.store.folder().join("links/input\\x2fby-path\\x2fsame");
        assert_eq!(fs::read_link(claims.join("c13:65")).unwrap(), Path::new("5:/dev/input/event1"));
        release(&paths, &second, link).unwrap();
        assert_eq!(target().unwrap(), Path::new("../event0"));
        release(&paths, &first, link).unwrap();
        assert_eq!(target(), None);
        assert!(!claims.exists() && !paths.dev.join("input/by-path").exists() && paths.dev.join("input").exists());
    }

    #[test]
    fn a_file_in_the_links_place_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let paths = paths(folder.path());
        let first = device(&paths, "input/event0", 64);
        fs::write(paths.dev.join("taken"), "precious").unwrap();
        assert!(claim(&paths, &first, "taken", 0).is_err());
        release(&paths, &first, "taken").unwrap();
        assert_eq!(fs::read(paths.dev.join("taken")).unwrap(), b"precious");
    }

    #[test]
    fn only_devices_are_given_access() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let access = Access { mode: Some(0o666), ..Access::default() };
        assert!(access.apply(&file, None, None).is_err());
        assert!(access.apply(Path::new("/dev/null"), Some(false), Some((1, 5))).is_err());
        assert!(access.apply(Path::new("/dev/null"), Some(true), Some((1, 3))).is_err());
        // It has that mode already: nothing is changed, and nothing refused.
        assert!(access.apply(Path::new("/dev/null"), Some(false), Some((1, 3))).is_ok());
        assert!(Access::default().apply(Path::new("/nonexistent"), None, None).is_ok());
    }
}
