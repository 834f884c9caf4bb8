//! `/dev/console`: the terminal that boot messages and the first process use.
//!
//! The boot option `console=` names it (the last one wins, as on Linux): `ttyS0`, `tty1`, or `tty0` for the virtual terminal in
//! the foreground. Without the option it is the first serial line. Kernel messages go to the serial line in any case.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;

use ursa_hal::sync::Once;

use super::{Tty, serial, vt};
use crate::fs::dev::minor;

static CONSOLE: Once<Arc<Tty>> = Once::new();

/// Chooses the console among the serial lines and the virtual terminals.
pub fn choose(lines: &[Option<Arc<Tty>>]) {
    let named = ursa_hal::boot::option("console").and_then(|value| value.split(',').next()).and_then(|name| match name
        .strip_prefix("ttyS")
    {
        Some(index) => lines.get(index.parse::<usize>().ok()?)?.clone(),
        None => vt::named(name),
    });
    if let Some(tty) = named.or_else(|| lines.iter().flatten().next().cloned()) {
        let _ = CONSOLE.set(tty);
    }
}

/// The console's terminal, if there is one.
pub fn get() -> Option<&'static Arc<Tty>> {
    CONSOLE.get()
}

/// The name of its device, empty without one.
pub fn name() -> String {
    let Some(tty) = get() else { return String::new() };
    match minor(tty.dev).checked_sub(serial::FIRST_MINOR) {
        Some(line) => format!("ttyS{line}"),
        None => format!("tty{}", minor(tty.dev)),
    }
}
