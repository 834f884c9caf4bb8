//! [`Device`]: a device's state, what becomes of an event, and who gets it.

use std::collections::{BTreeMap, VecDeque};

use linux_uapi::input::{
    ABS_MT_FIRST, ABS_MT_LAST, AbsInfo, FfEffect, InputEvent,
    codes::{
        ABS_MT_POSITION_X, ABS_MT_SLOT, ABS_MT_TRACKING_ID, EV_ABS, EV_FF, EV_KEY, EV_LED, EV_MSC, EV_PWR, EV_REL,
        EV_REP, EV_SND, EV_SW, EV_SYN, REP_DELAY, REP_MAX, REP_PERIOD, SYN_CONFIG, SYN_MT_REPORT, SYN_REPORT,
    },
};

use serde::{Deserialize, Serialize};

use crate::{
    Bits, Client, Clock, ClockId, Description, FfError, FfRequest, FfStarted, Nanos, ReadError, client::Stamp,
    description::is_contact_axis, ff::ForceFeedback,
};

/// Delay before autorepeat, in ms.
const REPEAT_DELAY: i32 = 250;
/// Time between repeats, in ms.
const REPEAT_PERIOD: i32 = 33;
/// Value of a key event that repeats.
const REPEATED: i32 = 2;
/// What waits for a driver at most; it should read at once.
const FOR_DRIVER_MAX: usize = 64;
/// The largest tracking id (`TRKID_MAX`).
const TRACKING_ID_MAX: i32 = 0xffff;
/// Events in a packet of a device with anonymous contacts, as uinput guesses.
const ANONYMOUS_CONTACTS_HINT: usize = 60;
/// Axes of one contact.
const CONTACT_AXES: usize = (ABS_MT_LAST - ABS_MT_FIRST + 1) as usize;

/// Names an open file of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClientId(pub u64);

/// Why a grab or its end is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrabError {
    /// Somebody has the device.
    Busy,
    /// This client does not have it.
    NotGrabbed,
}

/// Contacts of a touch device (protocol B).
#[derive(Debug, Serialize, Deserialize)]
struct Slots {
    /// The one that events are about.
    current: usize,
    values: Vec<[i32; CONTACT_AXES]>,
}

/// Where an event goes.
#[derive(Clone, Copy, Default)]
struct Disposition {
    to_clients: bool,
    to_driver: bool,
    /// The slot must be named before the event.
    slot: Option<i32>,
}

impl Disposition {
    const IGNORE: Disposition = Disposition { to_clients: false, to_driver: false, slot: None };
    const CLIENTS: Disposition = Disposition { to_clients: true, to_driver: false, slot: None };
    const DRIVER: Disposition = Disposition { to_clients: false, to_driver: true, slot: None };
    const ALL: Disposition = Disposition { to_clients: true, to_driver: true, slot: None };

    fn clients_if(yes: bool) -> Disposition {
        if yes { Disposition::CLIENTS } else { Disposition::IGNORE }
    }

    fn all_if(yes: bool) -> Disposition {
        if yes { Disposition::ALL } else { Disposition::IGNORE }
    }
}

/// An input device. As a value to be serialised it is without its clients, which are values of their own.
#[derive(Debug, Serialize, Deserialize)]
pub struct Device {
    description: Description,
    key: Bits<12>,
    led: Bits<1>,
    snd: Bits<1>,
    sw: Bits<1>,
    /// Delay and period of autorepeat, in ms.
    rep: [i32; 2],
    slots: Option<Slots>,
    /// The packet being collected.
    packet: Vec<(u16, u16, i32)>,
    packet_max: usize,
    per_packet: usize,
    /// When the packet happened, if the driver said so.
    time: Option<Nanos>,
    /// The key that repeats, and when.
    repeat: Option<(u16, Nanos)>,
    #[serde(skip)]
    clients: BTreeMap<ClientId, Client>,
    grab: Option<ClientId>,
    inhibited: bool,
    gone: bool,
    /// The event at hand is the driver's.
    reporting: bool,
    #[serde(with = "crate::plain::list")]
    for_driver: VecDeque<InputEvent>,
    #[serde(skip)]
    woken: Vec<ClientId>,
    ff: Option<ForceFeedback>,
}

impl Device {
    /// A device of this description. `None` where its force feedback or its contacts cannot be.
    pub fn new(mut description: Description) -> Option<Device> {
        let mut slots = None;
        let mut hint = 0;
        if description.codes.ev.contains(EV_ABS) {
            if description.codes.abs.contains(ABS_MT_SLOT) {
                let maximum = description.abs_mut()[usize::from(ABS_MT_SLOT)].maximum;
                let count = usize::try_from(maximum.checked_add(1)?).ok()?;
                if count > 1024 {
                    return None;
                }
                if count > 0 {
                    let mut contact = [0; CONTACT_AXES];
                    contact[usize::from(ABS_MT_TRACKING_ID - ABS_MT_FIRST)] = -1;
                    slots = Some(Slots { current: 0, values: vec![contact; count] });
                    description.add_axis(ABS_MT_SLOT, AbsInfo { maximum, ..AbsInfo::default() });
                    let tracking = AbsInfo { maximum: TRACKING_ID_MAX, ..AbsInfo::default() };
                    description.add_axis(ABS_MT_TRACKING_ID, tracking);
                }
            } else if description.codes.abs.contains(ABS_MT_POSITION_X) {
                hint = ANONYMOUS_CONTACTS_HINT;
            }
        }
        let mut ff = None;
        if description.codes.ev.contains(EV_FF) || description.ff_effects_max != 0 {
            ff = Some(ForceFeedback::new(&mut description.codes.ff, description.ff_effects_max)?);
            description.codes.ev.insert(EV_FF);
        }
        description.complete();
        let per_packet = description.events_per_packet(slots.as_ref().map_or(0, |slots| slots.values.len()), hint);
        let repeats = description.codes.ev.contains(EV_REP);
        Some(Device {
            description,
            key: Bits::default(),
            led: Bits::default(),
            snd: Bits::default(),
            sw: Bits::default(),
            rep: if repeats { [REPEAT_DELAY, REPEAT_PERIOD] } else { [0; 2] },
            slots,
            packet: Vec::with_capacity(per_packet + 2),
            packet_max: per_packet + 2,
            per_packet,
            time: None,
            repeat: None,
            clients: BTreeMap::new(),
            grab: None,
            inhibited: false,
            gone: false,
            reporting: false,
            for_driver: VecDeque::new(),
            woken: Vec::new(),
            ff,
        })
    }

    /// What it is.
    pub fn description(&self) -> &Description {
        &self.description
    }

    // ---- events

    /// Says when the packet that is being collected happened.
    pub fn set_time(&mut self, monotonic: Nanos) {
        self.time = Some(monotonic);
    }

    /// One event of a program that writes to the device. `SYN_REPORT` ends the packet.
    pub fn event(&mut self, kind: u16, code: u16, value: i32, clock: &dyn Clock) {
        if self.description.codes.ev.contains(kind) {
            self.handle(kind, code, value, clock);
        }
    }

    /// One event of the driver. As [`Device::event`], but scan codes (`EV_MSC`) do not go back to the driver, as they do on
    /// Linux: it would be woken with every key.
    pub fn report(&mut self, kind: u16, code: u16, value: i32, clock: &dyn Clock) {
        self.reporting = true;
        self.event(kind, code, value, clock);
        self.reporting = false;
    }

    fn handle(&mut self, kind: u16, code: u16, mut value: i32, clock: &dyn Clock) {
        let disposition = self.disposition(kind, code, &mut value);
        if disposition.to_driver {
            self.tell_driver(kind, code, value, clock);
        }
        if disposition.to_clients {
            if let Some(slot) = disposition.slot {
                self.packet.push((EV_ABS, ABS_MT_SLOT, slot));
            }
            self.packet.push((kind, code, value));
        }
        if disposition.to_clients && kind == EV_SYN && code == SYN_REPORT {
            // A SYN_REPORT alone says nothing.
            if self.packet.len() >= 2 {
                self.pass(clock);
            }
            self.packet.clear();
            self.time = None;
        } else if self.packet.len() >= self.packet_max - 2 {
            self.packet.push((EV_SYN, SYN_REPORT, 1));
            self.pass(clock);
            self.packet.clear();
        }
    }

    /// Where an event goes, with the state brought up to date.
    fn disposition(&mut self, kind: u16, code: u16, value: &mut i32) -> Disposition {
        if self.inhibited {
            return Disposition::IGNORE;
        }
        let codes = &self.description.codes;
        let on = *value != 0;
        match kind {
            EV_SYN => match code {
                SYN_CONFIG => Disposition::ALL,
                SYN_REPORT | SYN_MT_REPORT => Disposition::CLIENTS,
                _ => Disposition::IGNORE,
            },
            EV_KEY if codes.key.contains(code) => {
                Disposition::clients_if(*value == REPEATED || self.key.assign(code, on))
            }
            EV_SW if codes.sw.contains(code) => Disposition::clients_if(self.sw.assign(code, on)),
            EV_ABS if codes.abs.contains(code) => self.axis(code, value),
            EV_REL if codes.rel.contains(code) => Disposition::clients_if(on),
            EV_MSC if codes.msc.contains(code) => {
                if self.reporting {
                    Disposition::CLIENTS
                } else {
                    Disposition::ALL
                }
            }
            EV_LED if codes.led.contains(code) => Disposition::all_if(self.led.assign(code, on)),
            EV_SND if codes.snd.contains(code) => {
                self.snd.assign(code, on);
                Disposition::ALL
            }
            EV_REP if code <= REP_MAX && *value >= 0 && self.rep[usize::from(code)] != *value => {
                self.rep[usize::from(code)] = *value;
                Disposition::ALL
            }
            EV_FF if *value >= 0 => Disposition::DRIVER,
            EV_PWR => Disposition::ALL,
            _ => Disposition::IGNORE,
        }
    }

    /// An absolute axis: noise and repetitions are dropped, of each contact by itself.
    fn axis(&mut self, code: u16, value: &mut i32) -> Disposition {
        let Some(axes) = &mut self.description.abs else { return Disposition::IGNORE };
        if code == ABS_MT_SLOT {
            // Remembered, and told with the next event that is about it.
            if let (Some(slots), Ok(slot)) = (&mut self.slots, usize::try_from(*value))
                && slot < slots.values.len()
            {
                slots.current = slot;
            }
            return Disposition::IGNORE;
        }
        let fuzz = axes[usize::from(code)].fuzz;
        let mut slot = None;
        let old = if !is_contact_axis(code) {
            Some(&mut axes[usize::from(code)].value)
        } else if let Some(slots) = &mut self.slots {
            if axes[usize::from(ABS_MT_SLOT)].value != slots.current as i32 {
                slot = Some(slots.current as i32);
            }
            Some(&mut slots.values[slots.current][usize::from(code - ABS_MT_FIRST)])
        } else {
            // Anonymous contacts have no state.
            None
        };
        if let Some(old) = old {
            *value = defuzz(*value, *old, fuzz);
            if *value == *old {
                return Disposition::IGNORE;
            }
            *old = *value;
        }
        if let Some(slot) = slot {
            axes[usize::from(ABS_MT_SLOT)].value = slot;
        }
        Disposition { slot, ..Disposition::CLIENTS }
    }

    /// Gives the collected packet to the clients, and starts or ends autorepeat.
    fn pass(&mut self, clock: &dyn Clock) {
        let now = self.time.unwrap_or_else(|| clock.monotonic());
        let stamp = Stamp { monotonic: now, clock };
        let (packet, woken) = (&self.packet, &mut self.woken);
        let mut give = |id: ClientId, client: &mut Client| {
            if client.pass(packet, stamp) && !woken.contains(&id) {
                woken.push(id);
            }
        };
        match self.grab {
            Some(grab) => {
                if let Some(client) = self.clients.get_mut(&grab) {
                    give(grab, client);
                }
            }
            None => self.clients.iter_mut().for_each(|(id, client)| give(*id, client)),
        }
        if self.description.codes.ev.contains(EV_REP) && self.description.codes.ev.contains(EV_KEY) {
            for (_, code, value) in self.packet.iter().filter(|event| event.0 == EV_KEY && event.2 != REPEATED) {
                if *value == 0 {
                    self.repeat = None;
                } else if self.rep.iter().all(|ms| *ms != 0) {
                    self.repeat = Some((*code, clock.monotonic() + milliseconds(self.rep[usize::from(REP_DELAY)])));
                }
            }
        }
    }

    /// When [`Device::repeat`] is to be called, in `CLOCK_MONOTONIC`.
    pub fn next_repeat(&self) -> Option<Nanos> {
        self.repeat.map(|(_, deadline)| deadline)
    }

    /// Repeats the key that is held, if its time has come.
    pub fn repeat(&mut self, clock: &dyn Clock) {
        let now = clock.monotonic();
        let Some((code, deadline)) = self.repeat.filter(|(_, deadline)| *deadline <= now) else { return };
        self.repeat = None;
        if self.inhibited || !self.key.contains(code) {
            return;
        }
        self.time = Some(now);
        self.handle(EV_KEY, code, REPEATED, clock);
        self.handle(EV_SYN, SYN_REPORT, 1, clock);
        let period = self.rep[usize::from(REP_PERIOD)];
        if period != 0 {
            // From the deadline on, so that the rate does not depend on how late we are; unless we are very late.
            let next = deadline + milliseconds(period);
            self.repeat = Some((code, if next > now { next } else { now + milliseconds(period) }));
        }
    }

    fn tell_driver(&mut self, kind: u16, code: u16, value: i32, clock: &dyn Clock) {
        let now = clock.monotonic();
        if self.for_driver.len() == FOR_DRIVER_MAX {
            self.for_driver.pop_front();
        }
        let (sec, usec) = ((now / 1_000_000_000) as i64, (now % 1_000_000_000 / 1000) as i64);
        self.for_driver.push_back(InputEvent { sec, usec, kind, code, value });
    }

    /// Puts an event of its own into the driver's queue (force-feedback requests).
    pub fn ask_driver(&mut self, kind: u16, code: u16, value: i32, clock: &dyn Clock) {
        self.tell_driver(kind, code, value, clock);
    }

    /// Takes up to `max` events that the driver is to carry out.
    pub fn take_for_driver(&mut self, max: usize) -> Vec<InputEvent> {
        let count = self.for_driver.len().min(max);
        self.for_driver.drain(..count).collect()
    }

    /// Whether there are any.
    pub fn has_for_driver(&self) -> bool {
        !self.for_driver.is_empty()
    }

    // ---- clients

    /// Adds a client.
    pub fn open(&mut self, id: ClientId) {
        self.clients.insert(id, Client::new(self.per_packet));
    }

    /// Takes a client back in that a predecessor of this device had.
    pub fn restore(&mut self, id: ClientId, client: Client) {
        self.clients.insert(id, client);
    }

    /// Removes a client, with its grab.
    pub fn close(&mut self, id: ClientId) {
        if self.grab == Some(id) {
            self.grab = None;
        }
        self.clients.remove(&id);
        self.woken.retain(|woken| *woken != id);
    }

    /// A client.
    pub fn client(&self, id: ClientId) -> Option<&Client> {
        self.clients.get(&id)
    }

    /// A client, for changing.
    pub fn client_mut(&mut self, id: ClientId) -> Option<&mut Client> {
        self.clients.get_mut(&id)
    }

    /// All clients.
    pub fn clients(&self) -> impl Iterator<Item = ClientId> + '_ {
        self.clients.keys().copied()
    }

    /// Clients that have something to read since the last call.
    pub fn take_woken(&mut self) -> Vec<ClientId> {
        std::mem::take(&mut self.woken)
    }

    /// Whether the device is there for this client.
    pub fn is_alive(&self, id: ClientId) -> bool {
        !self.gone && self.clients.get(&id).is_some_and(|client| !client.revoked)
    }

    /// Takes up to `max` events for a client.
    ///
    /// # Errors
    /// Nothing is there, or the device is not.
    pub fn read(&mut self, id: ClientId, max: usize) -> Result<Vec<InputEvent>, ReadError> {
        if !self.is_alive(id) {
            return Err(ReadError::Gone);
        }
        let client = self.clients.get_mut(&id).ok_or(ReadError::Gone)?;
        if max == 0 || client.is_readable() { Ok(client.take(max).collect()) } else { Err(ReadError::Empty) }
    }

    /// Gives all events to one client alone.
    ///
    /// # Errors
    /// [`GrabError::Busy`].
    pub fn grab(&mut self, id: ClientId) -> Result<(), GrabError> {
        if self.grab.is_some() {
            return Err(GrabError::Busy);
        }
        self.grab = Some(id);
        Ok(())
    }

    /// Ends that.
    ///
    /// # Errors
    /// [`GrabError::NotGrabbed`].
    pub fn ungrab(&mut self, id: ClientId) -> Result<(), GrabError> {
        if self.grab != Some(id) {
            return Err(GrabError::NotGrabbed);
        }
        self.grab = None;
        Ok(())
    }

    /// Takes the device away from a client for good.
    pub fn revoke(&mut self, id: ClientId) {
        let _ = self.ungrab(id);
        if let Some(client) = self.clients.get_mut(&id) {
            client.revoked = true;
        }
    }

    /// The driver is gone: nobody reads anything any more.
    pub fn disconnect(&mut self) {
        self.gone = true;
        self.repeat = None;
    }

    // ---- state

    /// The pressed keys, lit LEDs, sounds or switches, as a bitmap. What a client has queued of that type is dropped, since
    /// it knows the outcome now.
    pub fn state_for(&mut self, id: ClientId, kind: u16) -> Option<Vec<u8>> {
        let bytes = match kind {
            EV_KEY => self.key.to_bytes(),
            EV_LED => self.led.to_bytes(),
            EV_SND => self.snd.to_bytes(),
            EV_SW => self.sw.to_bytes(),
            _ => return None,
        };
        self.clients.get_mut(&id)?.flush(kind);
        Some(bytes)
    }

    /// That state did not reach the client.
    pub fn state_lost(&mut self, id: ClientId, clock: &dyn Clock) {
        if let Some(client) = self.clients.get_mut(&id) {
            client.lost(clock);
        }
    }

    /// Chooses a client's clock.
    pub fn set_clock(&mut self, id: ClientId, clock_id: ClockId, clock: &dyn Clock) {
        if let Some(client) = self.clients.get_mut(&id) {
            client.set_clock(clock_id, clock);
        }
    }

    /// An axis with its value; `None` where the device has no axes at all.
    pub fn axis_info(&self, code: u16) -> Option<AbsInfo> {
        self.description.abs.as_ref()?.get(usize::from(code)).copied()
    }

    /// Changes an axis. Says whether that was possible: the number of contacts cannot be changed.
    pub fn set_axis_info(&mut self, code: u16, info: AbsInfo) -> bool {
        match &mut self.description.abs {
            Some(axes) if code != ABS_MT_SLOT => axes.get_mut(usize::from(code)).map(|axis| *axis = info).is_some(),
            _ => false,
        }
    }

    /// One axis of each contact; `None` where there are no contacts or it is none of their axes.
    pub fn contacts(&self, code: u16) -> Option<impl Iterator<Item = i32> + '_> {
        let slots = self.slots.as_ref().filter(|_| is_contact_axis(code))?;
        Some(slots.values.iter().map(move |contact| contact[usize::from(code - ABS_MT_FIRST)]))
    }

    /// Delay and period of autorepeat in ms; `None` where the device does not repeat.
    pub fn repeat_rate(&self) -> Option<[i32; 2]> {
        self.description.codes.ev.contains(EV_REP).then_some(self.rep)
    }

    /// Whether events are ignored.
    pub fn is_inhibited(&self) -> bool {
        self.inhibited
    }

    /// Ignores events, or no longer. What is pressed is released first.
    pub fn inhibit(&mut self, inhibited: bool, clock: &dyn Clock) {
        if inhibited && !self.inhibited {
            self.release_all(clock);
        }
        let ends = self.inhibited && !inhibited;
        self.inhibited = inhibited;
        if ends {
            // The driver may have lost them.
            for code in self.led.iter().collect::<Vec<_>>() {
                self.tell_driver(EV_LED, code, 1, clock);
            }
        }
    }

    fn release_all(&mut self, clock: &dyn Clock) {
        let tracking = usize::from(ABS_MT_TRACKING_ID - ABS_MT_FIRST);
        let touching: Vec<usize> = self.slots.as_ref().map_or(Vec::new(), |slots| {
            (0..slots.values.len()).filter(|slot| slots.values[*slot][tracking] >= 0).collect()
        });
        for slot in touching {
            self.handle(EV_ABS, ABS_MT_SLOT, slot as i32, clock);
            self.handle(EV_ABS, ABS_MT_TRACKING_ID, -1, clock);
        }
        for code in self.key.iter().collect::<Vec<_>>() {
            self.handle(EV_KEY, code, 0, clock);
        }
        self.handle(EV_SYN, SYN_REPORT, 1, clock);
    }

    // ---- force feedback

    /// How many effects it can hold.
    pub fn ff_effects(&self) -> usize {
        self.ff.as_ref().map_or(0, ForceFeedback::max)
    }

    /// Begins to upload an effect.
    ///
    /// # Errors
    /// [`FfError`].
    pub fn ff_upload(&mut self, id: ClientId, effect: FfEffect) -> Result<FfStarted, FfError> {
        let bits = self.description.codes.ff;
        self.ff.as_mut().ok_or(FfError::Unsupported)?.upload(&bits, effect, id)
    }

    /// Begins to erase an effect, which stops at once.
    ///
    /// # Errors
    /// [`FfError`].
    pub fn ff_erase(&mut self, id: ClientId, effect: i16, clock: &dyn Clock) -> Result<FfStarted, FfError> {
        let started = self.ff.as_mut().ok_or(FfError::Unsupported)?.erase(effect, id)?;
        self.tell_driver(EV_FF, effect as u16, 0, clock);
        Ok(started)
    }

    /// The effects of a client.
    pub fn ff_owned_by(&self, id: ClientId) -> Vec<i16> {
        self.ff.as_ref().map_or(Vec::new(), |ff| ff.owned_by(id))
    }

    /// A request that is under way.
    pub fn ff_request(&self, request: u32) -> Option<FfRequest> {
        self.ff.as_ref()?.request(request)
    }

    /// The driver carried a request out, or not. Says whether there was one.
    pub fn ff_finish(&mut self, request: u32, good: bool) -> bool {
        self.ff.as_mut().is_some_and(|ff| ff.finish(request, good))
    }
}

fn milliseconds(ms: i32) -> Nanos {
    ms.max(0) as u64 * 1_000_000
}

/// Smooths a value that moved less than the axis is noisy.
fn defuzz(value: i32, old: i32, fuzz: i32) -> i32 {
    if fuzz == 0 {
        return value;
    }
    let (value, old, fuzz) = (i64::from(value), i64::from(old), i64::from(fuzz));
    let within = |range: i64| value > old - range && value < old + range;
    let smoothed = if within(fuzz / 2) {
        old
    } else if within(fuzz) {
        (old * 3 + value) / 4
    } else if within(fuzz * 2) {
        (old + value) / 2
    } else {
        value
    };
    smoothed as i32
}
