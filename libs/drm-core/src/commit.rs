//! Commits under way: from an accepted change to the screen, and the events and fences that tell of it.
//!
//! A change becomes the card's state when it is accepted (what clients read back is what they set), and a [`Flight`] takes
//! it to the screen: it waits for its fences, is handed to the driver, and is complete on each CRTC when the driver says so
//! and the frame ends. Then the CRTC's event is sent and its out fence signalled. Until it is complete the flight holds both
//! states, so a framebuffer that is being replaced lives as long as it may be scanned out.

use std::rc::Rc;

use crate::card::{Card, Open};
use crate::driver::{Change, Completion};
use crate::error::Wake;
use crate::fence::Fence;
use crate::file::Fh;
use crate::uapi::*;

/// What tells of a commit's completion on a CRTC.
#[derive(Debug, Default)]
pub(crate) struct Signal {
    pub(crate) crtc: usize,
    /// File and user data of a page-flip event, room for which is promised.
    pub(crate) event: Option<(Fh, u64)>,
    /// The driver's number of the out fence.
    pub(crate) fence: Option<u64>,
}

/// A commit on its way.
#[derive(Debug)]
pub(crate) struct Flight {
    pub(crate) id: u64,
    pub(crate) change: Rc<Change>,
    /// Fences that have to signal first.
    pub(crate) fences: Vec<Rc<Fence>>,
    /// The driver has it.
    pub(crate) launched: bool,
    /// CRTCs that it is not complete on.
    pub(crate) crtcs: u32,
    /// Of these, those that the driver has to report.
    pub(crate) device: u32,
    /// When the frame ends, by CRTC.
    pub(crate) due: Vec<(usize, u64)>,
    pub(crate) signals: Vec<Signal>,
}

impl Card {
    /// CRTCs with a commit under way.
    pub(crate) fn busy_crtcs(&self) -> u32 {
        self.flights.iter().fold(0, |mask, flight| mask | flight.crtcs)
    }

    /// Makes an accepted change the state and sends it on its way. The number of the flight, if it is not complete at once.
    pub(crate) fn submit(&mut self, change: Change, signals: Vec<Signal>, fences: Vec<Rc<Fence>>) -> Option<u64> {
        self.state = change.new.clone();
        for plane in &mut self.state.planes {
            plane.damage = None;
        }
        self.follow_dpms(&change);
        if change.unpaced {
            self.hurry(&change);
        }
        let fences: Vec<_> = fences.into_iter().filter(|fence| !fence.signalled()).collect();
        let id = self.next_flight;
        self.next_flight += 1;
        let crtcs = if change.unpaced { 0 } else { change.crtcs };
        let wake = Wake { fences: fences.clone(), ..Wake::default() };
        self.watch(&wake);
        let launched = fences.is_empty();
        let mut flight =
            Flight { id, change: Rc::new(change), fences, launched, crtcs, device: 0, due: Vec::new(), signals };
        if launched {
            self.launch(&mut flight);
        }
        self.land(&mut flight);
        if flight.launched && flight.crtcs == 0 {
            return None;
        }
        self.flights.push(flight);
        Some(id)
    }

    /// `DPMS` follows what a modeset does (`drm_atomic_helper_update_legacy_modeset_state`).
    fn follow_dpms(&mut self, change: &Change) {
        for (index, connector) in self.connectors.iter_mut().enumerate() {
            let (old, new) = (change.old.connectors[index].crtc, change.new.connectors[index].crtc);
            let on = match new {
                Some(crtc) if change.modeset(crtc) => change.new.crtcs[crtc].active,
                None if old.is_some() => false,
                _ => continue,
            };
            connector.dpms = if on { DRM_MODE_DPMS_ON } else { DRM_MODE_DPMS_OFF };
        }
    }

    /// Hands a flight to the driver.
    fn launch(&mut self, flight: &mut Flight) {
        flight.launched = true;
        let now = self.now();
        let completion = self.driver.atomic_commit(&flight.change);
        for (crtc, _, new) in flight.change.crtcs() {
            let vblank = &mut self.crtcs[crtc].vblank;
            let modeset = flight.change.modeset(crtc);
            match (&new.mode, new.active) {
                (Some(mode), true) if modeset => vblank.start(now, mode),
                (_, false) => vblank.stop(now),
                _ => {}
            }
            if flight.crtcs & 1 << crtc == 0 {
                continue;
            }
            let due = if new.active && !modeset { vblank.next(now) } else { now };
            flight.due.push((crtc, due));
            if completion == Completion::Pending && new.active {
                flight.device |= 1 << crtc;
            }
        }
    }

    /// Completes a flight on the CRTCs where it is due.
    fn land(&mut self, flight: &mut Flight) {
        if !flight.launched {
            return;
        }
        let now = self.now();
        for &(crtc, due) in &flight.due {
            let bit = 1 << crtc;
            if flight.crtcs & bit == 0 || flight.device & bit != 0 || due > now {
                continue;
            }
            flight.crtcs &= !bit;
            let (sequence, time) = self.crtcs[crtc].vblank.at(due);
            let crtc_id = self.crtcs[crtc].id;
            for signal in flight.signals.iter().filter(|signal| signal.crtc == crtc) {
                if let Some((fh, user_data)) = signal.event {
                    let event = EventVblank::new(DRM_EVENT_FLIP_COMPLETE, user_data, time, sequence, crtc_id);
                    self.send_event(fh, &event);
                }
                if let Some(fence) = signal.fence {
                    self.fence_source.signal(fence);
                }
            }
        }
    }

    /// Puts a promised event into a file, if it is still open.
    pub(crate) fn send_event(&mut self, fh: Fh, event: &(impl zerocopy::IntoBytes + zerocopy::Immutable)) {
        self.touched.files.insert(fh);
        if let Some(Open::Client(file)) = self.files.get_mut(&fh)
            && file.push_event(event)
        {
            self.readable.push(fh);
        }
    }

    /// Launches what still waits for fences with a plane of this change: what cannot wait comes after it, not before.
    pub(crate) fn hurry(&mut self, change: &Change) {
        let mut flights = std::mem::take(&mut self.flights);
        for flight in &mut flights {
            if !flight.launched && flight.change.planes & change.planes != 0 {
                flight.fences.clear();
                self.launch(flight);
            }
        }
        self.flights = flights;
    }

    /// The driver reports that the commit on a CRTC is on the screen.
    pub(crate) fn flip_done(&mut self, crtc: usize) {
        // The first that the driver still owes: it does them in order.
        let owed = |flight: &&mut Flight| flight.launched && crtc < 32 && flight.device & 1 << crtc != 0;
        if let Some(flight) = self.flights.iter_mut().find(owed) {
            flight.device &= !(1 << crtc);
        }
    }

    /// Brings all flights as far as they are.
    pub(crate) fn settle(&mut self) {
        let mut flights = std::mem::take(&mut self.flights);
        let mut done = Vec::new();
        flights.retain_mut(|flight| {
            if !flight.launched && flight.fences.iter().all(|fence| fence.signalled()) {
                self.launch(flight);
            }
            self.land(flight);
            if flight.launched && flight.crtcs == 0 {
                done.push(flight.id);
            }
            !flight.launched || flight.crtcs != 0
        });
        self.flights = flights;
        for flight in done {
            self.answer_commit(flight);
        }
    }

    /// When the next flight is due.
    pub(crate) fn flight_deadline(&self) -> Option<u64> {
        let due = |flight: &Flight| {
            let owed = flight.crtcs & !flight.device;
            flight.due.iter().filter(|(crtc, _)| owed & 1 << crtc != 0).map(|&(_, due)| due).min()
        };
        self.flights.iter().filter_map(due).min()
    }
}
