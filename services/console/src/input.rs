//! Keyboards: every event device that has letters.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
};

use evdev::{Device, EventSummary, EventType, InputEvent, KeyCode, LedCode};

use crate::keys::Lights;

/// Where event devices are.
pub const DEVICES: &str = "/dev/input";

/// The keyboards that are plugged in.
#[derive(Default)]
pub struct Keyboards(BTreeMap<PathBuf, Device>);

/// A key that went up, down, or repeats.
pub struct KeyEvent {
    /// Which.
    pub key: KeyCode,
    /// 0 up, 1 down, 2 repeated.
    pub value: i32,
}

impl Keyboards {
    /// Opens what is new and forgets what is gone; whether a keyboard went.
    pub fn scan(&mut self) -> bool {
        let entries = std::fs::read_dir(DEVICES).into_iter().flatten().flatten();
        let present: Vec<PathBuf> = entries
            .map(|entry| entry.path())
            .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("event")))
            .collect();
        let before = self.0.len();
        self.0.retain(|path, _| present.contains(path));
        let gone = self.0.len() < before;
        for path in present {
            if !self.0.contains_key(&path)
                && let Some(device) = open(&path)
            {
                self.0.insert(path, device);
            }
        }
        gone
    }

    /// Descriptors to wait for.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.0.values().map(|device| device.as_fd())
    }

    /// What happened; whether a keyboard went.
    pub fn events(&mut self) -> (Vec<KeyEvent>, bool) {
        let mut events = Vec::new();
        let before = self.0.len();
        self.0.retain(|path, device| match device.fetch_events() {
            Ok(fetched) => {
                events.extend(fetched.filter_map(|event| match event.destructure() {
                    EventSummary::Key(_, key, value) => Some(KeyEvent { key, value }),
                    _ => None,
                }));
                true
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => true,
            Err(error) => {
                eprintln!("console: {}: {error}", path.display());
                false
            }
        });
        let gone = self.0.len() < before;
        (events, gone)
    }

    /// Sets the lights of all keyboards.
    pub fn set_lights(&mut self, lights: Lights) {
        let on = |code: LedCode, bit: u8| InputEvent::new(EventType::LED.0, code.0, i32::from(lights >> bit & 1));
        let events = [on(LedCode::LED_SCROLLL, 0), on(LedCode::LED_NUML, 1), on(LedCode::LED_CAPSL, 2)];
        for device in self.0.values_mut() {
            // A keyboard without lights, or one opened for reading only, refuses.
            let _ = device.send_events(&events);
        }
    }
}

fn open(path: &Path) -> Option<Device> {
    let device = Device::open(path).ok()?;
    let is_keyboard = device.supported_keys().is_some_and(|keys| keys.contains(KeyCode::KEY_A));
    (is_keyboard && device.set_nonblocking(true).is_ok()).then_some(device)
}
