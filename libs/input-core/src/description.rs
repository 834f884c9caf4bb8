//! [`Description`]: what a device is, before it exists: names, identity, the codes that it can report.

use std::fmt::Write as _;

use linux_uapi::input::{
    ABS_MT_FIRST, ABS_MT_LAST, AbsInfo, InputId,
    codes::{
        ABS_CNT, ABS_MAX, ABS_MT_POSITION_X, ABS_MT_SLOT, ABS_MT_TRACKING_ID, EV_ABS, EV_FF, EV_KEY, EV_LED, EV_MAX,
        EV_MSC, EV_REL, EV_SND, EV_SW, EV_SYN, KEY_MAX, KEY_MUTE, KEY_RESERVED, LED_MAX, MSC_MAX, REL_MAX, SND_MAX,
        SW_MAX,
    },
};

use crate::Bits;
use serde::{Deserialize, Serialize};

/// The codes that a device can report, by type.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Codes {
    /// Event types.
    pub ev: Bits<1>,
    /// Keys and buttons.
    pub key: Bits<12>,
    /// Relative axes.
    pub rel: Bits<1>,
    /// Absolute axes.
    pub abs: Bits<1>,
    /// Miscellaneous.
    pub msc: Bits<1>,
    /// LEDs.
    pub led: Bits<1>,
    /// Sounds.
    pub snd: Bits<1>,
    /// Force feedback.
    pub ff: Bits<2>,
    /// Switches.
    pub sw: Bits<1>,
}

/// What a device is.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Description {
    /// Name for people.
    pub name: Vec<u8>,
    /// Where it is plugged in.
    pub phys: Option<Vec<u8>>,
    /// Unique identifier.
    pub uniq: Option<Vec<u8>>,
    /// Bus, vendor, product, version.
    #[serde(with = "crate::plain::one")]
    pub id: InputId,
    /// Properties (`INPUT_PROP_…`).
    pub prop: Bits<1>,
    /// What it can report.
    pub codes: Codes,
    /// Its axes, where any was described.
    #[serde(with = "axes")]
    pub abs: Option<Box<[AbsInfo; ABS_CNT as usize]>>,
    /// How many force-feedback effects it can hold.
    pub ff_effects_max: u32,
}

/// The axes as their bytes.
mod axes {
    use linux_uapi::input::{AbsInfo, codes::ABS_CNT};
    use linux_uapi::zerocopy::{FromBytes, IntoBytes};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    type Axes = Option<Box<[AbsInfo; ABS_CNT as usize]>>;

    pub(super) fn serialize<S: Serializer>(axes: &Axes, serializer: S) -> Result<S::Ok, S::Error> {
        axes.as_ref().map(|axes| axes[..].as_bytes()).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Axes, D::Error> {
        let bytes = Option::<Vec<u8>>::deserialize(deserializer)?;
        Ok(bytes.map(|bytes| {
            let mut axes = Box::new([AbsInfo::default(); ABS_CNT as usize]);
            for (axis, info) in axes.iter_mut().zip(bytes.chunks_exact(size_of::<AbsInfo>())) {
                *axis = AbsInfo::read_from_bytes(info).unwrap_or_default();
            }
            axes
        }))
    }
}

/// Whether an axis is one of those that each contact has.
pub(crate) fn is_contact_axis(code: u16) -> bool {
    (ABS_MT_FIRST..=ABS_MT_LAST).contains(&code)
}

/// An axis that cannot be: its minimum is above its maximum, its flat range beyond both, or it wants too many contacts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadAxis;

/// The most contacts that a device made by a program may have.
const CONTACTS_MAX: i32 = 99;

impl Description {
    /// Its axes, for changing.
    pub fn abs_mut(&mut self) -> &mut [AbsInfo; ABS_CNT as usize] {
        self.abs.get_or_insert_with(|| Box::new([AbsInfo::default(); ABS_CNT as usize]))
    }

    /// Adds an axis.
    pub fn add_axis(&mut self, code: u16, info: AbsInfo) {
        self.codes.ev.insert(EV_ABS);
        self.codes.abs.insert(code);
        if let Some(axis) = self.abs_mut().get_mut(usize::from(code)) {
            *axis = info;
        }
    }

    /// Whether an axis can be.
    ///
    /// # Errors
    /// It cannot.
    pub fn check_axis(code: u16, info: &AbsInfo) -> Result<(), BadAxis> {
        let (min, max) = (info.minimum, info.maximum);
        if min == 0 && max == 0 {
            return Ok(());
        }
        let range = max.checked_sub(min).filter(|range| *range >= 0).ok_or(BadAxis)?;
        if info.flat > range || code == ABS_MT_SLOT && max > CONTACTS_MAX {
            return Err(BadAxis);
        }
        Ok(())
    }

    /// Whether its declared axes can all be.
    ///
    /// # Errors
    /// One cannot.
    pub fn check_axes(&self) -> Result<(), BadAxis> {
        if !self.codes.ev.contains(EV_ABS) {
            return Ok(());
        }
        for code in self.codes.abs.iter() {
            Description::check_axis(code, &self.abs.as_ref().ok_or(BadAxis)?[usize::from(code)])?;
        }
        Ok(())
    }

    /// Puts in what every device has, and takes out the codes of types that it does not report.
    pub(crate) fn complete(&mut self) {
        let codes = &mut self.codes;
        codes.ev.insert(EV_SYN);
        codes.key.remove(KEY_RESERVED);
        macro_rules! cleanse {
            ($($ty:ident $field:ident),*) => {
                $(if !codes.ev.contains($ty) { codes.$field = Bits::default(); })*
            };
        }
        cleanse!(EV_KEY key, EV_REL rel, EV_ABS abs, EV_MSC msc, EV_LED led, EV_SND snd, EV_FF ff, EV_SW sw);
        if codes.ev.contains(EV_ABS) {
            self.abs_mut();
        }
    }

    /// How many events one packet holds at most, by Linux's estimate.
    pub(crate) fn events_per_packet(&self, slots: usize, hint: usize) -> usize {
        let codes = &self.codes;
        let contacts = if slots != 0 {
            slots
        } else if codes.abs.contains(ABS_MT_TRACKING_ID) {
            let axis = self.abs.as_ref().map_or(AbsInfo::default(), |abs| abs[usize::from(ABS_MT_TRACKING_ID)]);
            i64::from(axis.maximum).saturating_sub(axis.minimum.into()).saturating_add(1).clamp(2, 32) as usize
        } else if codes.abs.contains(ABS_MT_POSITION_X) {
            2
        } else {
            0
        };
        let mut events = contacts + 1;
        if codes.ev.contains(EV_ABS) {
            let of_axis = |code| if code == ABS_MT_SLOT || is_contact_axis(code) { contacts } else { 1 };
            events += codes.abs.iter().map(of_axis).sum::<usize>();
        }
        if codes.ev.contains(EV_REL) {
            events += codes.rel.count();
        }
        (events + 7).max(hint)
    }

    /// The string by which modules and hwdb know the device.
    pub fn modalias(&self) -> String {
        let InputId { bustype, vendor, product, version } = self.id;
        let mut text = format!("input:b{bustype:04X}v{vendor:04X}p{product:04X}e{version:04X}-");
        let mut add = |letter: char, codes: &mut dyn Iterator<Item = u16>, from: u16, below: u16| {
            text.push(letter);
            for code in codes.filter(|code| (from..below).contains(code)) {
                let _ = write!(text, "{code:X},");
            }
        };
        let codes = &self.codes;
        add('e', &mut codes.ev.iter(), 0, EV_MAX);
        // Ordinary keys say nothing about a device (KEY_MIN_INTERESTING).
        add('k', &mut codes.key.iter(), KEY_MUTE, KEY_MAX);
        add('r', &mut codes.rel.iter(), 0, REL_MAX);
        add('a', &mut codes.abs.iter(), 0, ABS_MAX);
        add('m', &mut codes.msc.iter(), 0, MSC_MAX);
        add('l', &mut codes.led.iter(), 0, LED_MAX);
        add('s', &mut codes.snd.iter(), 0, SND_MAX);
        add('f', &mut codes.ff.iter(), 0, linux_uapi::input::FF_MAX);
        add('w', &mut codes.sw.iter(), 0, SW_MAX);
        text
    }
}
