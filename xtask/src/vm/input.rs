//! Keyboard and pointer through QMP's `input-send-event`.

use super::keys;
use crate::machine::qmp::Qmp;
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::time::Duration;

/// Between events, so that a guest that polls sees each.
const PAUSE: Duration = Duration::from_millis(20);

/// The range of an absolute axis.
const AXIS: u64 = 0x7fff;

const BUTTONS: &[&str] = &["left", "middle", "right", "wheel-up", "wheel-down", "side", "extra"];

fn send(qmp: &mut Qmp, events: Vec<Value>) -> Result<()> {
    qmp.execute("input-send-event", json!({ "events": events }))?;
    std::thread::sleep(PAUSE);
    Ok(())
}

fn key(name: &str, down: bool) -> Value {
    json!({ "type": "key", "data": { "down": down, "key": { "type": "qcode", "data": name } } })
}

fn press_keys(qmp: &mut Qmp, keys: &[String]) -> Result<()> {
    for name in keys {
        send(qmp, vec![key(name, true)]).with_context(|| format!("is there a key called {name:?}?"))?;
    }
    for name in keys.iter().rev() {
        send(qmp, vec![key(name, false)])?;
    }
    Ok(())
}

/// Presses keys together and releases them.
pub fn press(qmp: &mut Qmp, combo: &str) -> Result<()> {
    let keys = keys::combination(combo);
    if keys.is_empty() {
        bail!("{combo:?} names no key");
    }
    press_keys(qmp, &keys)
}

/// Types a text. A backslash and an n are the return key.
pub fn type_text(qmp: &mut Qmp, text: &str) -> Result<()> {
    for c in text.replace("\\n", "\n").chars() {
        let keys = keys::for_character(c).with_context(|| format!("no key of the American layout gives {c:?}"))?;
        press_keys(qmp, &keys)?;
    }
    Ok(())
}

/// Moves the pointer to a pixel of a screen of this size.
pub fn move_to(qmp: &mut Qmp, (x, y): (u32, u32), (width, height): (u32, u32)) -> Result<()> {
    if x >= width || y >= height {
        bail!("the screen has {width} × {height} pixels");
    }
    let axis = |name: &str, at: u32, size: u32| {
        let value = u64::from(at) * AXIS / u64::from(size.max(2) - 1);
        json!({ "type": "abs", "data": { "axis": name, "value": value } })
    };
    send(qmp, vec![axis("x", x, width), axis("y", y, height)])
}

/// Clicks a button, or turns the wheel by a notch.
pub fn click(qmp: &mut Qmp, button: &str) -> Result<()> {
    if !BUTTONS.contains(&button) {
        bail!("there is no button {button:?}; there are {}", BUTTONS.join(", "));
    }
    for down in [true, false] {
        send(qmp, vec![json!({ "type": "btn", "data": { "button": button, "down": down } })])?;
    }
    Ok(())
}
