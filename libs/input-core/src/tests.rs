//! The behaviour that programs rely on, as Linux has it.

use std::cell::Cell;

use linux_uapi::input::{AbsInfo, FF_PERIODIC, FF_RUMBLE, FfEffect, InputEvent, codes::*};

use crate::*;

#[derive(Default)]
struct TestClock(Cell<Nanos>);

impl Clock for TestClock {
    fn monotonic(&self) -> Nanos {
        self.0.get()
    }
    fn realtime_offset(&self) -> i64 {
        1_000_000_000_000
    }
    fn boottime_offset(&self) -> i64 {
        5_000_000_000
    }
}

const A: ClientId = ClientId(1);
const B: ClientId = ClientId(2);

fn keyboard() -> Device {
    let mut description = Description { name: b"keyboard".to_vec(), ..Description::default() };
    description.codes.ev = Bits::from_iter([EV_KEY, EV_MSC, EV_LED, EV_REP]);
    description.codes.key = (1..=120).collect();
    description.codes.msc.insert(MSC_SCAN);
    description.codes.led = Bits::from_iter([LED_NUML, LED_CAPSL]);
    Device::new(description).unwrap()
}

fn touch(slots: i32) -> Device {
    let mut description = Description::default();
    description.codes.ev = Bits::from_iter([EV_KEY, EV_ABS]);
    description.codes.key.insert(BTN_TOUCH);
    let axis = |maximum, fuzz| AbsInfo { maximum, fuzz, ..AbsInfo::default() };
    description.add_axis(ABS_MT_SLOT, axis(slots - 1, 0));
    description.add_axis(ABS_MT_TRACKING_ID, axis(10, 0));
    description.add_axis(ABS_MT_POSITION_X, axis(1000, 0));
    description.add_axis(ABS_X, axis(1000, 8));
    Device::new(description).unwrap()
}

fn send(device: &mut Device, events: &[(u16, u16, i32)], clock: &TestClock) {
    for (kind, code, value) in events {
        device.report(*kind, *code, *value, clock);
    }
    device.report(EV_SYN, SYN_REPORT, 0, clock);
}

fn read(device: &mut Device, id: ClientId) -> Vec<(u16, u16, i32)> {
    match device.read(id, usize::MAX) {
        Ok(events) => events.iter().map(|e| (e.kind, e.code, e.value)).collect(),
        Err(error) => {
            assert_eq!(error, ReadError::Empty);
            Vec::new()
        }
    }
}

const SYN: (u16, u16, i32) = (EV_SYN, SYN_REPORT, 0);

#[test]
fn a_packet_is_read_as_a_whole_and_repetitions_are_dropped() {
    let (mut device, clock) = (keyboard(), TestClock::default());
    device.open(A);
    device.report(EV_KEY, KEY_A, 1, &clock);
    assert_eq!(device.read(A, 10), Err(ReadError::Empty));
    assert!(device.take_woken().is_empty());
    device.report(EV_SYN, SYN_REPORT, 0, &clock);
    assert_eq!(device.take_woken(), [A]);
    assert_eq!(read(&mut device, A), [(EV_KEY, KEY_A, 1), SYN]);
    // Pressed already, not declared, an unknown type: nothing is left of the packet.
    send(&mut device, &[(EV_KEY, KEY_A, 1), (EV_KEY, KEY_MAX, 1), (EV_REL, REL_X, 1), (99, 0, 1)], &clock);
    assert!(device.take_woken().is_empty() && read(&mut device, A).is_empty());
}

#[test]
fn a_full_queue_becomes_syn_dropped_and_the_newest_event() {
    let (mut device, clock) = (keyboard(), TestClock::default());
    device.open(A);
    // The queue has 64 places: 31 packets of two fit, and one event.
    for n in 0..32 {
        send(&mut device, &[(EV_KEY, KEY_A, (n + 1) % 2)], &clock);
    }
    assert_eq!(read(&mut device, A), [(EV_SYN, SYN_DROPPED, 0), SYN]);
    for n in 0..31 {
        send(&mut device, &[(EV_KEY, KEY_A, (n + 1) % 2)], &clock);
    }
    assert_eq!(read(&mut device, A).len(), 62);
}

#[test]
fn each_client_has_its_clock() {
    let (mut device, clock) = (keyboard(), TestClock::default());
    clock.0.set(2_000_003_999);
    device.open(A);
    device.open(B);
    device.set_clock(B, ClockId::Monotonic, &clock);
    send(&mut device, &[(EV_KEY, KEY_A, 1)], &clock);
    let time = |events: Vec<InputEvent>| (events[0].sec, events[0].usec);
    assert_eq!(time(device.read(A, 1).unwrap()), (1002, 3));
    assert_eq!(time(device.read(B, 2).unwrap()), (2, 3));
    // What was stamped by another clock goes, and SYN_DROPPED comes with the next packet.
    device.set_clock(A, ClockId::Boottime, &clock);
    assert!(read(&mut device, A).is_empty());
    device.set_time(1_000_000);
    send(&mut device, &[(EV_KEY, KEY_A, 0)], &clock);
    let events = device.read(A, 9).unwrap();
    assert_eq!(events.iter().map(|e| e.code).collect::<Vec<_>>(), [SYN_DROPPED, KEY_A, SYN_REPORT]);
    assert_eq!((events[1].sec, events[1].usec), (5, 1000));
}

#[test]
fn a_held_key_repeats_until_any_key_is_released() {
    let (mut device, clock) = (keyboard(), TestClock::default());
    device.open(A);
    send(&mut device, &[(EV_KEY, KEY_A, 1)], &clock);
    assert_eq!(device.next_repeat(), Some(250_000_000));
    read(&mut device, A);
    device.repeat(&clock);
    assert!(read(&mut device, A).is_empty(), "before its time nothing repeats");
    clock.0.set(251_000_000);
    device.repeat(&clock);
    assert_eq!(read(&mut device, A), [(EV_KEY, KEY_A, 2), (EV_SYN, SYN_REPORT, 1)]);
    assert_eq!(device.next_repeat(), Some(283_000_000));
    send(&mut device, &[(EV_KEY, KEY_B, 1)], &clock);
    assert_eq!(device.next_repeat(), Some(501_000_000), "the last key pressed repeats");
    send(&mut device, &[(EV_KEY, KEY_A, 0)], &clock);
    assert_eq!(device.next_repeat(), None);
    // Other rates, and none at all.
    device.report(EV_REP, REP_DELAY, 100, &clock);
    device.report(EV_REP, REP_PERIOD, 0, &clock);
    assert_eq!(device.repeat_rate(), Some([100, 0]));
    send(&mut device, &[(EV_KEY, KEY_C, 1)], &clock);
    assert_eq!(device.next_repeat(), None);
}

#[test]
fn leds_reach_the_driver_and_all_clients_once() {
    let (mut device, clock) = (keyboard(), TestClock::default());
    device.open(A);
    device.open(B);
    for _ in 0..2 {
        device.report(EV_LED, LED_CAPSL, 1, &clock);
        device.report(EV_SYN, SYN_REPORT, 0, &clock);
    }
    let told: Vec<_> = device.take_for_driver(9).iter().map(|e| (e.kind, e.code, e.value)).collect();
    assert_eq!(told, [(EV_LED, LED_CAPSL, 1)]);
    assert_eq!(read(&mut device, B), [(EV_LED, LED_CAPSL, 1), SYN]);
    assert_eq!(device.state_for(A, EV_LED).unwrap()[0], 1 << LED_CAPSL);
    // Who asks for the state gets no old event of it; a leading SYN_REPORT stays, as on Linux.
    assert_eq!(read(&mut device, A), [SYN]);
}

#[test]
fn state_drops_the_queued_events_that_led_to_it() {
    let (mut device, clock) = (keyboard(), TestClock::default());
    device.open(A);
    send(&mut device, &[(EV_MSC, MSC_SCAN, 4), (EV_KEY, KEY_A, 1)], &clock);
    send(&mut device, &[(EV_KEY, KEY_A, 0)], &clock);
    send(&mut device, &[(EV_KEY, KEY_B, 1)], &clock);
    let keys = device.state_for(A, EV_KEY).unwrap();
    assert_eq!((keys.len(), Bits::<12>::from_bytes(&keys).iter().collect::<Vec<_>>()), (96, vec![KEY_B]));
    assert_eq!(read(&mut device, A), [(EV_MSC, MSC_SCAN, 4), SYN]);
}

#[test]
fn a_grab_keeps_events_from_others_and_a_revoked_client_gets_none() {
    let (mut device, clock) = (keyboard(), TestClock::default());
    device.open(A);
    device.open(B);
    assert_eq!(device.ungrab(A), Err(GrabError::NotGrabbed));
    device.grab(A).unwrap();
    assert_eq!(device.grab(B), Err(GrabError::Busy));
    send(&mut device, &[(EV_KEY, KEY_A, 1)], &clock);
    assert_eq!((read(&mut device, A).len(), read(&mut device, B).len()), (2, 0));
    device.revoke(A);
    send(&mut device, &[(EV_KEY, KEY_A, 0)], &clock);
    assert_eq!(device.read(A, 1), Err(ReadError::Gone));
    assert_eq!(read(&mut device, B).len(), 2, "revoking ends the grab");
    device.disconnect();
    assert_eq!(device.read(B, 1), Err(ReadError::Gone));
}

#[test]
fn masks_keep_codes_and_types_out_but_never_a_packet_apart() {
    let (mut device, clock) = (keyboard(), TestClock::default());
    device.open(A);
    assert_eq!(device.client(A).unwrap().mask(EV_KEY).unwrap(), [0xff; 96]);
    let client = device.client_mut(A).unwrap();
    client.set_mask(EV_KEY, &Bits::<12>::from_iter([KEY_B]).to_bytes());
    client.set_mask(200, &[1]);
    assert_eq!(client.mask(200), None);
    send(&mut device, &[(EV_MSC, MSC_SCAN, 1), (EV_KEY, KEY_A, 1)], &clock);
    send(&mut device, &[(EV_KEY, KEY_A, 0)], &clock);
    assert_eq!(read(&mut device, A), [(EV_MSC, MSC_SCAN, 1), SYN]);
    device.client_mut(A).unwrap().set_mask(EV_SYN, &[1 << EV_KEY, 0, 0, 0]);
    send(&mut device, &[(EV_MSC, MSC_SCAN, 1), (EV_KEY, KEY_B, 1)], &clock);
    assert_eq!(read(&mut device, A), [(EV_KEY, KEY_B, 1), SYN]);
}

#[test]
fn contacts_have_state_and_the_slot_is_named_when_it_changes() {
    let (mut device, clock) = (touch(3), TestClock::default());
    device.open(A);
    assert_eq!(device.axis_info(ABS_MT_TRACKING_ID).unwrap().maximum, 0xffff);
    send(&mut device, &[(EV_ABS, ABS_MT_SLOT, 0), (EV_ABS, ABS_MT_TRACKING_ID, 7)], &clock);
    assert_eq!(read(&mut device, A), [(EV_ABS, ABS_MT_TRACKING_ID, 7), SYN]);
    let both = [
        (EV_ABS, ABS_MT_SLOT, 2),
        (EV_ABS, ABS_MT_TRACKING_ID, 8),
        (EV_ABS, ABS_MT_POSITION_X, 5),
        (EV_ABS, ABS_MT_SLOT, 99),
        (EV_ABS, ABS_MT_POSITION_X, 5),
    ];
    send(&mut device, &both, &clock);
    let expected = [(EV_ABS, ABS_MT_SLOT, 2), (EV_ABS, ABS_MT_TRACKING_ID, 8), (EV_ABS, ABS_MT_POSITION_X, 5), SYN];
    assert_eq!(read(&mut device, A), expected);
    assert_eq!(device.contacts(ABS_MT_TRACKING_ID).unwrap().collect::<Vec<_>>(), [7, -1, 8]);
    assert!(device.contacts(ABS_X).is_none() && keyboard().contacts(ABS_MT_POSITION_X).is_none());
    assert!(!device.set_axis_info(ABS_MT_SLOT, AbsInfo::default()));
    // Selecting a slot and saying nothing about it is no event.
    send(&mut device, &[(EV_ABS, ABS_MT_SLOT, 1)], &clock);
    assert!(read(&mut device, A).is_empty());
}

#[test]
fn noise_within_the_fuzz_is_smoothed() {
    let (mut device, clock) = (touch(1), TestClock::default());
    device.open(A);
    let mut at = |value| {
        send(&mut device, &[(EV_ABS, ABS_X, value)], &clock);
        read(&mut device, A).first().map(|event| event.2)
    };
    assert_eq!(at(100), Some(100));
    assert_eq!(at(103), None);
    assert_eq!(at(105), Some(101));
    assert_eq!(at(113), Some(107));
    assert_eq!(at(200), Some(200));
}

#[test]
fn a_long_packet_is_passed_on_in_parts() {
    let (mut device, clock) = (keyboard(), TestClock::default());
    device.open(A);
    // 8 events are expected of a keyboard: room for 8 before a SYN_REPORT of our own.
    for code in 1..=20 {
        device.report(EV_KEY, code, 1, &clock);
    }
    device.report(EV_SYN, SYN_REPORT, 0, &clock);
    let events = read(&mut device, A);
    assert_eq!(events.iter().filter(|event| event.0 == EV_KEY).count(), 20);
    assert_eq!(events.iter().filter(|event| **event == (EV_SYN, SYN_REPORT, 1)).count(), 2);
}

#[test]
fn inhibiting_releases_what_is_pressed() {
    let (mut device, clock) = (keyboard(), TestClock::default());
    device.open(A);
    send(&mut device, &[(EV_KEY, KEY_A, 1)], &clock);
    read(&mut device, A);
    device.inhibit(true, &clock);
    assert_eq!(read(&mut device, A), [(EV_KEY, KEY_A, 0), (EV_SYN, SYN_REPORT, 1)]);
    send(&mut device, &[(EV_KEY, KEY_A, 1)], &clock);
    assert!(read(&mut device, A).is_empty());
}

fn rumbler() -> Device {
    let mut description = Description { ff_effects_max: 2, ..Description::default() };
    description.codes.ev.insert(EV_FF);
    description.codes.ff = Bits::from_iter([FF_PERIODIC, linux_uapi::input::FF_SINE]);
    Device::new(description).unwrap()
}

#[test]
fn effects_belong_to_who_uploaded_them() {
    let (mut device, clock) = (rumbler(), TestClock::default());
    device.open(A);
    let rumble =
        FfEffect { kind: FF_RUMBLE, id: -1, parameters: [0x6000 | 0x3000 << 16, 0, 0, 0], ..FfEffect::default() };
    let first = device.ff_upload(A, rumble).unwrap();
    let second = device.ff_upload(A, rumble).unwrap();
    assert_eq!((first.effect, second.effect), (0, 1));
    assert_eq!(device.ff_upload(A, rumble), Err(FfError::Full));
    let Some(FfRequest::Upload { effect, old: None }) = device.ff_request(first.request) else { panic!() };
    assert_eq!((effect.kind, effect.parameters[0] >> 32), (FF_PERIODIC, 0x2000 + 0x800));
    assert!(device.ff_finish(first.request, true) && device.ff_finish(second.request, false));
    assert!(!device.ff_finish(first.request, true));
    assert_eq!(device.ff_owned_by(A), [0]);
    assert_eq!(device.ff_erase(B, 0, &clock), Err(FfError::NotYours));
    assert_eq!(device.ff_erase(A, 1, &clock), Err(FfError::Invalid));
    let erase = device.ff_erase(A, 0, &clock).unwrap();
    assert!(device.ff_finish(erase.request, true));
    assert!(device.ff_owned_by(A).is_empty());
    assert_eq!(keyboard().ff_upload(A, rumble), Err(FfError::Unsupported));
    assert_eq!(device.ff_upload(A, FfEffect { kind: 0x7f, ..rumble }), Err(FfError::Invalid));
}

#[test]
fn descriptions_that_cannot_be_are_refused() {
    let axis = |minimum, maximum, flat| AbsInfo { minimum, maximum, flat, ..AbsInfo::default() };
    assert!(Description::check_axis(ABS_X, &axis(0, 0, 5)).is_ok());
    assert!(Description::check_axis(ABS_X, &axis(1, 0, 0)).is_err());
    assert!(Description::check_axis(ABS_X, &axis(0, 4, 5)).is_err());
    assert!(Description::check_axis(ABS_X, &axis(i32::MIN, i32::MAX, 0)).is_err());
    assert!(Description::check_axis(ABS_MT_SLOT, &axis(0, 100, 0)).is_err());
    let mut description = Description::default();
    description.codes.ev.insert(EV_FF);
    assert!(Device::new(description).is_none());
}

#[test]
fn the_modalias_is_that_of_linux() {
    let id = linux_uapi::input::InputId { bustype: 3, vendor: 0x627, product: 1, version: 0x111 };
    let mut description = Description { id, ..Description::default() };
    description.codes.ev = Bits::from_iter([EV_KEY, EV_LED]);
    description.codes.key = Bits::from_iter([KEY_A, KEY_MUTE, BTN_LEFT]);
    description.codes.led.insert(LED_NUML);
    let device = Device::new(description).unwrap();
    assert_eq!(device.description().modalias(), "input:b0003v0627p0001e0111-e0,1,11,k71,110,raml0,sfw");
}

#[test]
fn whatever_is_reported_and_asked_nothing_breaks() {
    let mut random = fastrand::Rng::with_seed(7);
    let clock = TestClock::default();
    for mut device in [keyboard(), touch(5), rumbler()] {
        device.open(A);
        device.open(B);
        for _ in 0..200_000 {
            clock.0.set(clock.0.get() + random.u64(..20_000_000));
            let (kind, code) = (random.u16(..0x22), random.u16(..0x310));
            let value = if random.bool() { random.i32(-2..3) } else { random.i32(..) };
            match random.u8(..24) {
                0 => drop(device.state_for(A, kind)),
                1 => drop(device.grab(A)),
                2 => drop(device.ungrab(A)),
                3 => device.set_clock(B, random.choice([ClockId::Realtime, ClockId::Boottime]).unwrap(), &clock),
                4 => device.client_mut(B).unwrap().set_mask(kind, &code.to_le_bytes()),
                5 => drop(device.set_axis_info(code, AbsInfo { fuzz: value, ..AbsInfo::default() })),
                6 => device.inhibit(random.bool(), &clock),
                7 => device.repeat(&clock),
                8 => drop(
                    device.ff_upload(A, FfEffect { kind: 0x50 + kind % 9, id: value as i16, ..FfEffect::default() }),
                ),
                9 => drop(device.ff_finish(u32::from(kind), random.bool())),
                10 => drop(device.ff_erase(A, value as i16, &clock)),
                11 => drop(device.take_for_driver(3)),
                12 => drop(device.read(A, random.usize(..9))),
                13..=16 => device.report(EV_SYN, SYN_REPORT, 0, &clock),
                _ => device.report(kind, code, value, &clock),
            }
            assert!(device.read(B, 1).map_or(true, |events| events.len() <= 1));
        }
    }
}
