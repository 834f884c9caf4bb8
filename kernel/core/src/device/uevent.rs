//! Uevents: what the kernel tells everybody about a device.
//!
//! A message is `ACTION@DEVPATH` and then `KEY=VALUE` strings, each with its NUL; the last is `SEQNUM`, which counts all of
//! them. They go to group 1 of `NETLINK_KOBJECT_UEVENT`. A write to a `uevent` file asks for one again ([`Synthetic`]).
//!
//! References: `lib/kobject_uevent.c`, `Documentation/ABI/testing/sysfs-uevent`.

use alloc::{
    borrow::Cow,
    format,
    string::{String, ToString},
    vec::Vec,
};

use crate::{
    Errno, Result,
    net::netlink,
    wait::{Mutex, WaitQueue},
};

/// The number of the last uevent. Held while it is sent, so that numbers arrive in order.
static SEQUENCE: Mutex<u64> = Mutex::with_queue(0, WaitQueue::new());

/// What happened to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It is there.
    Add,
    /// It is gone.
    Remove,
    /// Its state changed.
    Change,
    /// It has another name or parent.
    Move,
    /// It was switched on.
    Online,
    /// It was switched off.
    Offline,
    /// A driver took it.
    Bind,
    /// Its driver let it go.
    Unbind,
}

impl Action {
    const ALL: [Action; 8] = [
        Action::Add,
        Action::Remove,
        Action::Change,
        Action::Move,
        Action::Online,
        Action::Offline,
        Action::Bind,
        Action::Unbind,
    ];

    /// Its name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Action::Add => "add",
            Action::Remove => "remove",
            Action::Change => "change",
            Action::Move => "move",
            Action::Online => "online",
            Action::Offline => "offline",
            Action::Bind => "bind",
            Action::Unbind => "unbind",
        }
    }

    /// The action called `name`.
    pub fn parse(name: &str) -> Option<Action> {
        Action::ALL.into_iter().find(|action| action.name() == name)
    }
}

/// The number of the last uevent: `/sys/kernel/uevent_seqnum`.
pub fn sequence() -> u64 {
    *SEQUENCE.lock()
}

fn push(message: &mut Vec<u8>, key: &str, value: &str) {
    message.extend_from_slice(key.as_bytes());
    message.push(b'=');
    message.extend_from_slice(value.as_bytes());
    message.push(0);
}

/// Sends a uevent: `extra` comes before the object's own variables.
pub fn send(action: Action, path: &str, subsystem: &str, extra: &[(&str, &str)], env: &[(Cow<'_, str>, Cow<'_, str>)]) {
    let mut message = Vec::from(format!("{}@{path}\0", action.name()));
    push(&mut message, "ACTION", action.name());
    push(&mut message, "DEVPATH", path);
    push(&mut message, "SUBSYSTEM", subsystem);
    for (key, value) in extra {
        push(&mut message, key, value);
    }
    for (key, value) in env {
        push(&mut message, key, value);
    }
    broadcast(message);
}

/// Numbers a message and sends it to the listeners of the kernel's group.
pub fn broadcast(mut message: Vec<u8>) {
    let mut sequence = SEQUENCE.lock();
    *sequence += 1;
    push(&mut message, "SEQNUM", &sequence.to_string());
    netlink::uevent::multicast(message);
}

/// A decoded write to a `uevent` file: `ACTION [UUID [KEY=VALUE …]]`.
#[derive(Debug, PartialEq, Eq)]
pub struct Synthetic {
    /// What to send.
    pub action: Action,
    /// `SYNTH_UUID` and `SYNTH_ARG_*`.
    pub variables: Vec<(String, String)>,
}

impl Synthetic {
    /// Decodes it.
    ///
    /// # Errors
    /// `EINVAL` for an unknown action, a malformed UUID or malformed arguments.
    pub fn parse(text: &[u8]) -> Result<Synthetic> {
        let text = core::str::from_utf8(text).map_err(|_| Errno::EINVAL)?;
        let text = text.strip_suffix(['\n', '\0']).unwrap_or(text);
        let mut words = text.split(' ');
        let action = words.next().and_then(Action::parse).ok_or(Errno::EINVAL)?;
        let Some(uuid) = words.next() else {
            return Ok(Synthetic { action, variables: alloc::vec![("SYNTH_UUID".to_string(), "0".to_string())] });
        };
        if !is_uuid(uuid) {
            return Err(Errno::EINVAL);
        }
        let mut variables = alloc::vec![("SYNTH_UUID".to_string(), uuid.to_string())];
        for word in words {
            let (key, value) = word.split_once('=').ok_or(Errno::EINVAL)?;
            let plain = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric());
            if !plain(key) || !plain(value) {
                return Err(Errno::EINVAL);
            }
            variables.push((format!("SYNTH_ARG_{key}"), value.to_string()));
        }
        Ok(Synthetic { action, variables })
    }
}

/// `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx`
fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(i, b)| match i {
            8 | 13 | 18 | 23 => b == b'-',
            _ => b.is_ascii_hexdigit(),
        })
}
