//! [`Client`]: one open file of a device: its queue, clock and masks.

use std::collections::VecDeque;

use linux_uapi::input::{
    FF_CNT, InputEvent,
    codes::{
        ABS_CNT, EV_ABS, EV_CNT, EV_FF, EV_KEY, EV_LED, EV_MSC, EV_REL, EV_SND, EV_SW, EV_SYN, KEY_CNT, LED_CNT,
        MSC_CNT, REL_CNT, SND_CNT, SW_CNT, SYN_DROPPED, SYN_REPORT,
    },
};

use serde::{Deserialize, Serialize};

use crate::{Bits, Clock, Nanos};

/// Least length of a queue, in events.
const QUEUE_MIN: usize = 64;
/// How many packets a queue holds.
const QUEUE_PACKETS: usize = 8;

/// The clock of a client's events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClockId {
    /// `CLOCK_REALTIME`.
    #[default]
    Realtime,
    /// `CLOCK_MONOTONIC`.
    Monotonic,
    /// `CLOCK_BOOTTIME`.
    Boottime,
}

impl ClockId {
    /// The clock with this number.
    pub fn from_raw(number: i32) -> Option<ClockId> {
        match number {
            0 => Some(ClockId::Realtime),
            1 => Some(ClockId::Monotonic),
            7 => Some(ClockId::Boottime),
            _ => None,
        }
    }
}

/// Why there is nothing to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadError {
    /// No packet is complete.
    Empty,
    /// The device is gone, or taken away from this client.
    Gone,
}

/// The time of one packet, in all clocks; asked for once.
#[derive(Clone, Copy)]
pub(crate) struct Stamp<'a> {
    pub(crate) monotonic: Nanos,
    pub(crate) clock: &'a dyn Clock,
}

impl Stamp<'_> {
    fn event(&self, id: ClockId, kind: u16, code: u16, value: i32) -> InputEvent {
        let nanos = match id {
            ClockId::Monotonic => self.monotonic,
            ClockId::Realtime => self.monotonic.saturating_add_signed(self.clock.realtime_offset()),
            ClockId::Boottime => self.monotonic.saturating_add_signed(self.clock.boottime_offset()),
        };
        let (sec, usec) = ((nanos / 1_000_000_000) as i64, (nanos % 1_000_000_000 / 1000) as i64);
        InputEvent { sec, usec, kind, code, value }
    }
}

/// How many codes a type has, where a mask of it means something. Of `EV_SYN` it is the mask of types.
pub(crate) fn mask_len(kind: u16) -> Option<u16> {
    Some(match kind {
        EV_SYN => EV_CNT,
        EV_KEY => KEY_CNT,
        EV_REL => REL_CNT,
        EV_ABS => ABS_CNT,
        EV_MSC => MSC_CNT,
        EV_SW => SW_CNT,
        EV_LED => LED_CNT,
        EV_SND => SND_CNT,
        EV_FF => FF_CNT,
        _ => return None,
    })
}

/// Bytes of a bitmap of so many codes.
pub(crate) fn bitmap_len(codes: u16) -> usize {
    usize::from(codes).div_ceil(64) * 8
}

/// One open file of a device.
#[derive(Debug, Serialize, Deserialize)]
pub struct Client {
    /// The ring; events from `complete` on belong to a packet that has no `SYN_REPORT` yet.
    #[serde(with = "crate::plain::list")]
    queue: VecDeque<InputEvent>,
    complete: usize,
    capacity: usize,
    clock: ClockId,
    masks: [Option<Box<Bits<12>>>; EV_CNT as usize],
    pub(crate) revoked: bool,
}

impl Client {
    /// A client whose queue holds some packets of so many events.
    pub(crate) fn new(events_per_packet: usize) -> Client {
        let capacity = (events_per_packet * QUEUE_PACKETS).max(QUEUE_MIN).next_power_of_two();
        Client {
            queue: VecDeque::with_capacity(QUEUE_MIN),
            complete: 0,
            capacity,
            clock: ClockId::default(),
            masks: [const { None }; EV_CNT as usize],
            revoked: false,
        }
    }

    /// Whether a packet is complete.
    pub fn is_readable(&self) -> bool {
        self.complete != 0
    }

    /// Whether the device was taken away from it.
    pub fn is_revoked(&self) -> bool {
        self.revoked
    }

    /// Takes up to `max` events of complete packets.
    pub(crate) fn take(&mut self, max: usize) -> impl Iterator<Item = InputEvent> + '_ {
        let count = self.complete.min(max);
        self.complete -= count;
        self.queue.drain(..count)
    }

    /// Appends one event; a full queue shrinks to `SYN_DROPPED` and this event.
    fn push(&mut self, event: InputEvent) {
        self.queue.push_back(event);
        // The kernel's ring is full when its head meets its tail: at `capacity`, not beyond.
        if self.queue.len() == self.capacity {
            let dropped = InputEvent { kind: EV_SYN, code: SYN_DROPPED, value: 0, ..event };
            self.queue.clear();
            self.queue.push_back(dropped);
            self.queue.push_back(event);
            self.complete = 0;
        }
        if event.kind == EV_SYN && event.code == SYN_REPORT {
            self.complete = self.queue.len();
        }
    }

    /// Appends `SYN_DROPPED`, to be read with the next packet.
    fn push_dropped(&mut self, stamp: Stamp<'_>) {
        self.queue.push_back(stamp.event(self.clock, EV_SYN, SYN_DROPPED, 0));
        if self.queue.len() == self.capacity {
            self.queue.drain(..self.capacity - 1);
            self.complete = 0;
        }
    }

    /// Appends a packet. Says whether it became readable by it.
    pub(crate) fn pass(&mut self, packet: &[(u16, u16, i32)], stamp: Stamp<'_>) -> bool {
        if self.revoked {
            return false;
        }
        let mut report = false;
        for (kind, code, value) in packet {
            if self.is_filtered(*kind, *code) {
                continue;
            }
            if *kind == EV_SYN && *code == SYN_REPORT {
                // A packet of which nothing is left.
                if self.complete == self.queue.len() {
                    continue;
                }
                report = true;
            }
            self.push(stamp.event(self.clock, *kind, *code, *value));
        }
        report
    }

    /// Whether a mask keeps an event out.
    fn is_filtered(&self, kind: u16, code: u16) -> bool {
        if kind == EV_SYN || kind >= EV_CNT {
            return false;
        }
        if self.masks[0].as_ref().is_some_and(|types| !types.contains(kind)) {
            return true;
        }
        mask_len(kind).is_some_and(|codes| code < codes)
            && self.masks[usize::from(kind)].as_ref().is_some_and(|mask| !mask.contains(code))
    }

    /// The mask of a type as bytes (all ones where none was set); `None` for a type that has none.
    pub fn mask(&self, kind: u16) -> Option<Vec<u8>> {
        let len = bitmap_len(mask_len(kind)?);
        Some(match &self.masks[usize::from(kind)] {
            Some(mask) => mask.to_bytes()[..len].to_vec(),
            None => vec![0xff; len],
        })
    }

    /// Bytes of a type's mask; `None` for a type that has none.
    pub fn mask_bytes(kind: u16) -> Option<usize> {
        mask_len(kind).map(bitmap_len)
    }

    /// Sets the mask of a type; a type that has none is ignored.
    pub fn set_mask(&mut self, kind: u16, bytes: &[u8]) {
        if let Some(codes) = mask_len(kind) {
            let bytes = &bytes[..bytes.len().min(bitmap_len(codes))];
            self.masks[usize::from(kind)] = Some(Box::new(Bits::from_bytes(bytes)));
        }
    }

    /// Chooses the clock. Events stamped by another one are dropped.
    pub fn set_clock(&mut self, id: ClockId, clock: &dyn Clock) {
        if self.clock == id {
            return;
        }
        self.clock = id;
        if !self.queue.is_empty() {
            self.queue.clear();
            self.complete = 0;
            self.push_dropped(Stamp { monotonic: clock.monotonic(), clock });
        }
    }

    /// Drops the queued events of a type, since the client now gets the state that they led to; packets that become empty
    /// go as well.
    pub(crate) fn flush(&mut self, kind: u16) {
        let mut kept = 0;
        let mut complete = 0;
        // A leading SYN_REPORT stays.
        let mut in_packet = 1;
        for index in 0..self.queue.len() {
            let event = self.queue[index];
            let is_report = event.kind == EV_SYN && event.code == SYN_REPORT;
            if event.kind == kind || is_report && in_packet == 0 {
                continue;
            }
            self.queue[kept] = event;
            kept += 1;
            in_packet += 1;
            if is_report {
                in_packet = 0;
                complete = kept;
            }
        }
        self.queue.truncate(kept);
        self.complete = complete;
    }

    /// The state that [`Client::flush`] made room for could not be delivered: the client must ask again.
    pub(crate) fn lost(&mut self, clock: &dyn Clock) {
        self.push_dropped(Stamp { monotonic: clock.monotonic(), clock });
    }
}
