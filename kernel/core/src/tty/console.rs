//! `/dev/console`: the terminal that boot messages and the first process use.
//!
//! The boot option `console=` names it (the last one wins, as on Linux); without the option it is the first serial line.

use alloc::sync::Arc;

use ursa_hal::sync::Once;

use super::Tty;

static CONSOLE: Once<Arc<Tty>> = Once::new();

/// Chooses the console among the serial lines.
pub fn choose(lines: &[Option<Arc<Tty>>]) {
    let named = ursa_hal::boot::option("console")
        .and_then(|value| value.split(',').next())
        .and_then(|name| name.strip_prefix("ttyS"))
        .and_then(|index| index.parse::<usize>().ok())
        .and_then(|index| lines.get(index)?.clone());
    if let Some(tty) = named.or_else(|| lines.iter().flatten().next().cloned()) {
        let _ = CONSOLE.set(tty);
    }
}

/// The console's terminal, if there is one.
pub fn get() -> Option<&'static Arc<Tty>> {
    CONSOLE.get()
}
