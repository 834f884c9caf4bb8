//! Force feedback: which effects a device holds, whose they are, and the requests to its driver that are under way.
//!
//! Uploading and erasing are answered by the driver, a process: [`Device::ff_upload`](crate::Device::ff_upload) checks and
//! leaves a request, [`Device::ff_finish`](crate::Device::ff_finish) takes the driver's answer.

use std::collections::BTreeMap;

use linux_uapi::input::{
    FF_EFFECT_MAX, FF_EFFECT_MIN, FF_MAX_EFFECTS, FF_PERIODIC, FF_RUMBLE, FF_SINE, FF_WAVEFORM_MAX, FF_WAVEFORM_MIN,
    FfEffect,
};

use serde::{Deserialize, Serialize};

use crate::{Bits, ClientId};

/// Requests under way at once, as Linux's uinput.
const REQUESTS_MAX: u32 = 16;

/// Why an effect is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FfError {
    /// The device has no force feedback.
    Unsupported,
    /// No such effect, or one that the device cannot play.
    Invalid,
    /// Another client's effect.
    NotYours,
    /// The device holds no more.
    Full,
    /// Too many requests are under way.
    Busy,
}

/// What the driver is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FfRequest {
    /// Take this effect, in the place of an old one or not.
    Upload {
        /// The new one.
        #[serde(with = "crate::plain::one")]
        effect: FfEffect,
        /// The old one.
        #[serde(with = "crate::plain::option")]
        old: Option<FfEffect>,
    },
    /// Forget this effect.
    Erase {
        /// Its number.
        effect: i16,
    },
}

/// A request has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FfStarted {
    /// By which the driver answers.
    pub request: u32,
    /// The effect's number, which an upload's caller is told.
    pub effect: i16,
}

#[derive(Debug, Serialize, Deserialize)]
struct Pending {
    what: FfRequest,
    owner: ClientId,
}

/// A device's effects.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ForceFeedback {
    /// What the driver itself can play.
    own: Bits<2>,
    /// By number: the effect and whose it is.
    #[serde(with = "crate::plain::places")]
    effects: Vec<Option<(FfEffect, ClientId)>>,
    pending: BTreeMap<u32, Pending>,
}

fn waveform(effect: &FfEffect) -> u16 {
    effect.parameters[0] as u16
}

impl ForceFeedback {
    /// Effects of a device that plays what `bits` says. `None` where it can hold none, or too many.
    pub(crate) fn new(bits: &mut Bits<2>, max: u32) -> Option<ForceFeedback> {
        if max == 0 || max > FF_MAX_EFFECTS {
            return None;
        }
        let own = *bits;
        // Rumble can be played as a periodic effect.
        if own.contains(FF_PERIODIC) {
            bits.insert(FF_RUMBLE);
        }
        Some(ForceFeedback { own, effects: vec![None; max as usize], pending: BTreeMap::new() })
    }

    pub(crate) fn max(&self) -> usize {
        self.effects.len()
    }

    fn begin(&mut self, what: FfRequest, owner: ClientId) -> Result<u32, FfError> {
        let request = (0..REQUESTS_MAX).find(|id| !self.pending.contains_key(id)).ok_or(FfError::Busy)?;
        self.pending.insert(request, Pending { what, owner });
        Ok(request)
    }

    fn check_owner(&self, effect: i16, owner: ClientId) -> Result<FfEffect, FfError> {
        let slot = usize::try_from(effect).ok().and_then(|id| self.effects.get(id)).ok_or(FfError::Invalid)?;
        match slot {
            None => Err(FfError::Invalid),
            Some((_, theirs)) if *theirs != owner => Err(FfError::NotYours),
            Some((effect, _)) => Ok(*effect),
        }
    }

    pub(crate) fn upload(
        &mut self,
        bits: &Bits<2>,
        mut effect: FfEffect,
        owner: ClientId,
    ) -> Result<FfStarted, FfError> {
        if !(FF_EFFECT_MIN..=FF_EFFECT_MAX).contains(&effect.kind) || !bits.contains(effect.kind) {
            return Err(FfError::Invalid);
        }
        if effect.kind == FF_PERIODIC {
            let waveform = waveform(&effect);
            if !(FF_WAVEFORM_MIN..=FF_WAVEFORM_MAX).contains(&waveform) || !bits.contains(waveform) {
                return Err(FfError::Invalid);
            }
        }
        if !self.own.contains(effect.kind) {
            effect = as_periodic(&effect)?;
        }
        let old = if effect.id == -1 {
            // A slot that a request under way will fill is taken as well.
            let uploading = |id: usize| {
                self.pending
                    .values()
                    .any(|p| matches!(p.what, FfRequest::Upload { effect, .. } if effect.id as usize == id))
            };
            let free = (0..self.effects.len()).find(|id| self.effects[*id].is_none() && !uploading(*id));
            effect.id = free.ok_or(FfError::Full)? as i16;
            None
        } else {
            let old = self.check_owner(effect.id, owner)?;
            if old.kind != effect.kind || effect.kind == FF_PERIODIC && waveform(&old) != waveform(&effect) {
                return Err(FfError::Invalid);
            }
            Some(old)
        };
        let request = self.begin(FfRequest::Upload { effect, old }, owner)?;
        Ok(FfStarted { request, effect: effect.id })
    }

    pub(crate) fn erase(&mut self, effect: i16, owner: ClientId) -> Result<FfStarted, FfError> {
        self.check_owner(effect, owner)?;
        let request = self.begin(FfRequest::Erase { effect }, owner)?;
        Ok(FfStarted { request, effect })
    }

    /// The effects of a client.
    pub(crate) fn owned_by(&self, owner: ClientId) -> Vec<i16> {
        let mine = |(id, slot): (usize, &Option<(FfEffect, ClientId)>)| {
            slot.filter(|(_, theirs)| *theirs == owner).map(|_| id as i16)
        };
        self.effects.iter().enumerate().filter_map(mine).collect()
    }

    pub(crate) fn request(&self, id: u32) -> Option<FfRequest> {
        self.pending.get(&id).map(|pending| pending.what)
    }

    /// The driver's answer, or that nobody waits for it any more. Says whether there was such a request.
    pub(crate) fn finish(&mut self, id: u32, good: bool) -> bool {
        let Some(Pending { what, owner }) = self.pending.remove(&id) else { return false };
        match what {
            FfRequest::Upload { effect, .. } if good => {
                if let Some(slot) = self.effects.get_mut(effect.id as usize) {
                    *slot = Some((effect, owner));
                }
            }
            FfRequest::Erase { effect } if good => {
                if let Some(slot) = self.effects.get_mut(effect as usize) {
                    *slot = None;
                }
            }
            _ => {}
        }
        true
    }
}

/// A rumble as a periodic effect, for devices that only have those.
fn as_periodic(effect: &FfEffect) -> Result<FfEffect, FfError> {
    if effect.kind != FF_RUMBLE {
        return Err(FfError::Invalid);
    }
    let (strong, weak) = (effect.parameters[0] as u16, (effect.parameters[0] >> 16) as u16);
    // Two thirds of the strong motor and one of the weak one, in the range of a signed magnitude.
    let magnitude = u64::from(strong / 3 + weak / 6);
    // waveform, period, magnitude, offset; then phase, attack length and level, fade length.
    let parameters = [u64::from(FF_SINE) | 50 << 16 | magnitude << 32, 0, 0, 0];
    Ok(FfEffect { kind: FF_PERIODIC, parameters, ..*effect })
}
