//! Frame counters: when a frame ends, and how many have ended (`drm_vblank.c`).
//!
//! No card that this crate serves interrupts at the end of a frame, so the counter is computed: the mode's frame time from
//! the moment the CRTC was set up. It paces page flips everywhere; `WAIT_VBLANK` and the sequence ioctls exist where the
//! driver says so ([`Features::vblank`](crate::driver::Features::vblank)).

use linux_uapi::Errno;
use serde::{Deserialize, Serialize};
use zerocopy::IntoBytes;

use crate::card::Card;
use crate::driver::Mode;
use crate::error::{Error, Outcome, Wake};
use crate::file::Fh;
use crate::uapi::*;

/// Frame time where a mode does not say one.
const DEFAULT_FRAME: u64 = 1_000_000_000 / 60;

/// A CRTC's frame counter.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub(crate) struct Vblank {
    /// When `base` frames had ended.
    epoch: u64,
    base: u64,
    /// Nanoseconds a frame; `None`: it does not scan out.
    frame: Option<u64>,
    /// Events that were asked for.
    waits: Vec<VblankWait>,
}

/// An event that is due at the end of a frame.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct VblankWait {
    sequence: u64,
    fh: Fh,
    user_data: u64,
    /// `DRM_EVENT_CRTC_SEQUENCE` rather than `DRM_EVENT_VBLANK`.
    extended: bool,
}

impl Vblank {
    /// The CRTC scans out with this mode from now on.
    pub(crate) fn start(&mut self, now: u64, mode: &Mode) {
        self.stop(now);
        let pixels = u64::from(mode.htotal) * u64::from(mode.vtotal);
        let frame = (pixels * 1_000_000).checked_div(u64::from(mode.clock)).unwrap_or(0);
        // 1 ms to 1 s: whatever a client's mode says, flips go on.
        self.frame = Some(if frame == 0 { DEFAULT_FRAME } else { frame.clamp(1_000_000, 1_000_000_000) });
        self.epoch = now;
    }

    /// It stops; the counter stays.
    pub(crate) fn stop(&mut self, now: u64) {
        (self.base, self.epoch) = (self.at(now).0, now);
        self.frame = None;
    }

    /// Frames that have ended by `time`, and when the last of them did.
    pub(crate) fn at(&self, time: u64) -> (u64, u64) {
        match self.frame {
            Some(frame) => {
                let frames = time.saturating_sub(self.epoch) / frame;
                (self.base + frames, self.epoch + frames * frame)
            }
            None => (self.base, time),
        }
    }

    /// When the frame ends that is being shown.
    pub(crate) fn next(&self, now: u64) -> u64 {
        match self.frame {
            Some(frame) => self.at(now).1 + frame,
            None => now,
        }
    }

    /// When frame number `sequence` ends; past ones and a stopped CRTC: now.
    fn time_of(&self, sequence: u64, now: u64) -> u64 {
        match self.frame {
            Some(frame) => self.epoch.saturating_add(sequence.saturating_sub(self.base).saturating_mul(frame)),
            None => now,
        }
    }
}

impl Card {
    /// `DRM_IOCTL_WAIT_VBLANK`.
    pub(crate) fn wait_vblank(&mut self, fh: Fh, wait: &mut WaitVblank) -> Outcome<i32> {
        if !self.features.vblank {
            return Err(Errno::EOPNOTSUPP.into());
        }
        let known = DRM_VBLANK_TYPES_MASK
            | DRM_VBLANK_HIGH_CRTC_MASK
            | DRM_VBLANK_EVENT
            | DRM_VBLANK_NEXTONMISS
            | DRM_VBLANK_SECONDARY;
        if wait.kind & DRM_VBLANK_SIGNAL != 0 || wait.kind & !known != 0 {
            return Err(Errno::EINVAL.into());
        }
        let high = wait.kind & DRM_VBLANK_HIGH_CRTC_MASK;
        let crtc = if high != 0 {
            high >> DRM_VBLANK_HIGH_CRTC_SHIFT
        } else {
            u32::from(wait.kind & DRM_VBLANK_SECONDARY != 0)
        } as usize;
        let crtc = self.visible_crtc(fh, crtc)?;
        let now = self.now();
        let vblank = &self.crtcs[crtc].vblank;
        if vblank.frame.is_none() {
            return Err(Errno::EINVAL.into());
        }
        let (current, _) = vblank.at(now);
        let relative = wait.kind & DRM_VBLANK_TYPES_MASK == DRM_VBLANK_RELATIVE;
        let mut target = if relative {
            current + u64::from(wait.sequence)
        } else {
            // In 32 bits: the frame nearest to now that has this number.
            current.wrapping_add(i64::from(wait.sequence.wrapping_sub(current as u32) as i32) as u64)
        };
        let passed = |target: u64| current.wrapping_sub(target) as i64 >= 0;
        let asks = relative && wait.sequence == 0;
        if wait.kind & DRM_VBLANK_NEXTONMISS != 0 && passed(target) && !asks {
            target = current + 1;
        }
        if wait.kind & DRM_VBLANK_EVENT != 0 {
            self.file_mut(fh)?.reserve_event(size_of::<EventVblank>())?;
            let user_data = wait.signal_or_sec;
            let entry = VblankWait { sequence: target, fh, user_data, extended: false };
            self.crtcs[crtc].vblank.waits.push(entry);
            wait.sequence = if passed(target) { current as u32 } else { target as u32 };
            return Ok(0);
        }
        if !passed(target) {
            // Made again at that time as an absolute wait, since a relative one would never end.
            let kind = wait.kind & !(DRM_VBLANK_RELATIVE | DRM_VBLANK_NEXTONMISS);
            let argument = WaitVblank { kind, sequence: target as u32, ..*wait }.as_bytes().to_vec();
            let deadline = Some(vblank.time_of(target, now));
            let argument = Some(argument);
            return Err(Error::Park(Wake { deadline, argument, ..Wake::default() }));
        }
        let (sequence, time) = self.crtcs[crtc].vblank.at(now);
        wait.sequence = sequence as u32;
        wait.signal_or_sec = time / 1_000_000_000;
        wait.usec = time % 1_000_000_000 / 1000;
        Ok(0)
    }

    /// The n-th CRTC that a file reaches.
    fn visible_crtc(&self, fh: Fh, index: usize) -> Result<usize, Errno> {
        (0..self.crtcs.len()).filter(|&crtc| self.lease_held(fh, self.crtcs[crtc].id)).nth(index).ok_or(Errno::EINVAL)
    }

    fn counted_crtc(&self, fh: Fh, id: u32) -> Result<usize, Errno> {
        if !self.features.vblank {
            return Err(Errno::EOPNOTSUPP);
        }
        self.crtc_by_id(fh, id)
    }

    /// `DRM_IOCTL_CRTC_GET_SEQUENCE`.
    pub(crate) fn crtc_get_sequence(&mut self, fh: Fh, request: &mut CrtcGetSequence) -> Outcome<i32> {
        let crtc = self.counted_crtc(fh, request.crtc_id)?;
        let (sequence, time) = self.crtcs[crtc].vblank.at(self.now());
        request.active = u32::from(self.state.crtcs[crtc].active);
        request.sequence = sequence;
        request.sequence_ns = time as i64;
        Ok(0)
    }

    /// `DRM_IOCTL_CRTC_QUEUE_SEQUENCE`.
    pub(crate) fn crtc_queue_sequence(&mut self, fh: Fh, request: &mut CrtcQueueSequence) -> Outcome<i32> {
        let crtc = self.counted_crtc(fh, request.crtc_id)?;
        if request.flags & !(DRM_CRTC_SEQUENCE_RELATIVE | DRM_CRTC_SEQUENCE_NEXT_ON_MISS) != 0 {
            return Err(Errno::EINVAL.into());
        }
        let now = self.now();
        let vblank = &self.crtcs[crtc].vblank;
        if vblank.frame.is_none() {
            return Err(Errno::EINVAL.into());
        }
        let (current, _) = vblank.at(now);
        let mut sequence = request.sequence;
        if request.flags & DRM_CRTC_SEQUENCE_RELATIVE != 0 {
            sequence = sequence.wrapping_add(current);
        }
        if request.flags & DRM_CRTC_SEQUENCE_NEXT_ON_MISS != 0 && current.wrapping_sub(sequence) as i64 >= 0 {
            sequence = current + 1;
        }
        self.file_mut(fh)?.reserve_event(size_of::<EventCrtcSequence>())?;
        let wait = VblankWait { sequence, fh, user_data: request.user_data, extended: true };
        self.crtcs[crtc].vblank.waits.push(wait);
        request.sequence = sequence;
        Ok(0)
    }

    /// Sends the events that are due.
    pub(crate) fn send_vblank_events(&mut self) {
        let now = self.now();
        for index in 0..self.crtcs.len() {
            let crtc = &mut self.crtcs[index];
            if crtc.vblank.waits.is_empty() {
                continue;
            }
            let (current, time) = crtc.vblank.at(now);
            let stopped = crtc.vblank.frame.is_none();
            let due = |wait: &VblankWait| stopped || current.wrapping_sub(wait.sequence) as i64 >= 0;
            let (due, rest): (Vec<_>, Vec<_>) = crtc.vblank.waits.drain(..).partition(due);
            crtc.vblank.waits = rest;
            let crtc_id = crtc.id;
            for wait in due {
                let user_data = wait.user_data;
                if wait.extended {
                    let length = size_of::<EventCrtcSequence>() as u32;
                    let kind = DRM_EVENT_CRTC_SEQUENCE;
                    let time_ns = time as i64;
                    self.send_event(
                        wait.fh,
                        &EventCrtcSequence { kind, length, user_data, time_ns, sequence: current },
                    );
                } else {
                    let event = EventVblank::new(DRM_EVENT_VBLANK, user_data, time, current, crtc_id);
                    self.send_event(wait.fh, &event);
                }
            }
        }
    }

    /// When the next event of a frame counter is due.
    pub(crate) fn vblank_deadline(&self) -> Option<u64> {
        let now = self.now();
        let due = |crtc: &crate::card::Crtc| {
            crtc.vblank.waits.iter().map(|wait| crtc.vblank.time_of(wait.sequence, now)).min()
        };
        self.crtcs.iter().filter_map(due).min()
    }

    /// A file is closed: its events are nobody's.
    pub(crate) fn drop_vblank_waits(&mut self, fh: Fh) {
        for crtc in &mut self.crtcs {
            crtc.vblank.waits.retain(|wait| wait.fh != fh);
        }
    }
}
