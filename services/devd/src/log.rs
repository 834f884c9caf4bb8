//! What devd says: one line a message on standard error, which init keeps, up to a level that `udevadm control` can change.

use std::{
    fmt,
    sync::atomic::{AtomicU8, Ordering},
};

static LEVEL: AtomicU8 = AtomicU8::new(6);

/// Sets the highest level that is shown, as syslog(3) counts: 3 errors, 4 warnings, 6 information, 7 everything.
pub fn set_level(level: u8) {
    LEVEL.store(level, Ordering::Relaxed);
}

/// Whether messages of a level are shown.
pub fn shows(level: u8) -> bool {
    level <= LEVEL.load(Ordering::Relaxed)
}

fn say(level: u8, message: fmt::Arguments<'_>) {
    if shows(level) {
        eprintln!("devd: {message}");
    }
}

/// Something failed.
pub fn error(message: fmt::Arguments<'_>) {
    say(3, message);
}

/// Something is odd.
pub fn warning(message: fmt::Arguments<'_>) {
    say(4, message);
}

/// Something worth knowing.
pub fn info(message: fmt::Arguments<'_>) {
    say(6, message);
}

/// For those who look for a fault.
pub fn debug(message: fmt::Arguments<'_>) {
    say(7, message);
}
