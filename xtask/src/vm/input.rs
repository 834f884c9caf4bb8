//! Keyboard and pointer through QMP's `input-send-event`.

use super::keys;
use crate::machine::qmp::Qmp;
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Between a person's actions, so that a guest that polls sees each.
const PAUSE: Duration = Duration::from_millis(20);

/// Between a typed text's characters. A virtio keyboard holds 64 events, 16 characters; QEMU drops those that a guest on a busy host does
/// not fetch in time.
const TYPING_PAUSE: Duration = Duration::from_millis(50);

/// From one key to the next in a burst: 200 a second.
const BURST_STEP: Duration = Duration::from_millis(5);

/// The range of an absolute axis.
const AXIS: u64 = 0x7fff;

const BUTTONS: &[&str] = &["left", "middle", "right", "wheel-up", "wheel-down", "side", "extra"];

fn send(qmp: &mut Qmp, events: Vec<Value>) -> Result<()> {
    send_at_once(qmp, events)?;
    std::thread::sleep(PAUSE);
    Ok(())
}

fn send_at_once(qmp: &mut Qmp, events: Vec<Value>) -> Result<()> {
    qmp.execute("input-send-event", json!({ "events": events }))?;
    Ok(())
}

fn key(name: &str, down: bool) -> Value {
    json!({ "type": "key", "data": { "down": down, "key": { "type": "qcode", "data": name } } })
}

/// Without pauses: programs repeat a key by their own clocks until they hear of its release, and a guest on a busy host takes a
/// pause between the two for a long one.
fn press_keys(qmp: &mut Qmp, keys: &[String]) -> Result<()> {
    press_and_release(qmp, keys)?;
    std::thread::sleep(PAUSE);
    Ok(())
}

fn press_and_release(qmp: &mut Qmp, keys: &[String]) -> Result<()> {
    for name in keys {
        send_at_once(qmp, vec![key(name, true)]).with_context(|| format!("is there a key called {name:?}?"))?;
    }
    for name in keys.iter().rev() {
        send_at_once(qmp, vec![key(name, false)])?;
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
        std::thread::sleep(TYPING_PAUSE);
    }
    Ok(())
}

/// Types a text, a key each 5 ms on the host's clock: what falls behind is caught up.
pub fn burst(qmp: &mut Qmp, text: &str) -> Result<()> {
    let start = Instant::now();
    for (place, c) in (0..).zip(text.chars()) {
        let keys = keys::for_character(c).with_context(|| format!("no key of the American layout gives {c:?}"))?;
        std::thread::sleep((start + place * BURST_STEP).saturating_duration_since(Instant::now()));
        press_and_release(qmp, &keys)?;
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

/// Moves with the left button held.
pub fn drag(qmp: &mut Qmp, from: (u32, u32), to: (u32, u32), size: (u32, u32)) -> Result<()> {
    const STEPS: u32 = 8;
    let button = |down: bool| vec![json!({ "type": "btn", "data": { "button": "left", "down": down } })];
    move_to(qmp, from, size)?;
    send(qmp, button(true))?;
    for step in 1..=STEPS {
        let between = |a: u32, b: u32| (a * (STEPS - step) + b * step) / STEPS;
        move_to(qmp, (between(from.0, to.0), between(from.1, to.1)), size)?;
    }
    send(qmp, button(false))
}

/// Does what a line says: `type TEXT`, `burst TEXT` (200 keys a second), `key COMBO`, `move X Y`, `click [BUTTON]`,
/// `drag X Y X Y`. `size` asks for the screen's, where the pointer goes to a place.
pub fn perform(qmp: &mut Qmp, line: &str, size: impl FnOnce(&mut Qmp) -> Result<(u32, u32)>) -> Result<()> {
    let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
    let numbers = || -> Result<Vec<u32>> {
        rest.split_whitespace().map(|word| word.parse().with_context(|| format!("{line:?}: {word:?}"))).collect()
    };
    match verb {
        "type" => type_text(qmp, rest),
        "burst" => burst(qmp, rest),
        "key" => press(qmp, rest),
        "click" => click(qmp, if rest.is_empty() { "left" } else { rest }),
        "move" => match numbers()?[..] {
            [x, y] => {
                let size = size(qmp)?;
                move_to(qmp, (x, y), size)
            }
            _ => bail!("{line:?}: two numbers are needed"),
        },
        "drag" => match numbers()?[..] {
            [x1, y1, x2, y2] => {
                let size = size(qmp)?;
                drag(qmp, (x1, y1), (x2, y2), size)
            }
            _ => bail!("{line:?}: four numbers are needed"),
        },
        _ => bail!("{line:?}: there is no such action"),
    }
}
