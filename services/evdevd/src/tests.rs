//! Drivers and readers against the server, through the same messages as in the kernel.

use std::cell::Cell;
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use input_core::{Bits, Clock, Nanos};
use linux_uapi::{
    input::{codes::*, *},
    zerocopy::{FromBytes, IntoBytes},
};
use scheme::{
    Errno, Ready,
    fake::{FakeChannel, FakeClient},
};

use crate::Server;

#[derive(Default)]
struct TestClock(AtomicU64);

impl Clock for TestClock {
    fn monotonic(&self) -> Nanos {
        self.0.load(Ordering::Relaxed)
    }
    fn realtime_offset(&self) -> i64 {
        0
    }
    fn boottime_offset(&self) -> i64 {
        0
    }
}

const UINPUT: u64 = 1;
const INPUT0: u64 = 1 << 32;
const EVENT0: u64 = 2 << 32;

thread_local! {
    /// The server is killed after every request that the fixture makes.
    static MORTAL: Cell<bool> = const { Cell::new(false) };
}

struct Fixture {
    channel: FakeChannel,
    clock: Arc<TestClock>,
    server: Server,
    driver: FakeClient,
    reader: FakeClient,
}

impl Fixture {
    fn new() -> Fixture {
        let channel = FakeChannel::new();
        let clock = Arc::new(TestClock::default());
        clock.0.store(100_000_000_000, Ordering::Relaxed);
        let server = Server::new(Arc::new(channel.clone()), clock.clone(), &channel.unanswered()).unwrap();
        let (driver, reader) = (channel.client(1), channel.client(2));
        Fixture { channel, clock, server, driver, reader }
    }

    /// The server is killed, and its successor takes over; if this is such a test.
    fn come_around(&mut self) {
        if MORTAL.get() {
            self.restart();
        }
    }

    fn restart(&mut self) {
        self.server = Server::new(Arc::new(self.channel.clone()), self.clock.clone(), &self.channel.unanswered())
            .expect("the record is good");
        self.channel.resend(&mut self.server);
    }

    fn set(&mut self, fh: u64, cmd: u32, codes: &[u16]) {
        for code in codes {
            assert_eq!(self.driver.ioctl_raw(&mut self.server, fh, cmd, u64::from(*code)), Ok((0, vec![])));
        }
    }

    fn text(&mut self, fh: u64, cmd: u32, text: &str) -> Result<i32, Errno> {
        let addr = self.driver.alloc(format!("{text}\0").as_bytes());
        let result = self.driver.ioctl_raw(&mut self.server, fh, cmd, addr).map(|(result, _)| result);
        self.come_around();
        result
    }

    fn name(&mut self, fh: u64, name: &str, ff_effects_max: u32) -> Result<i32, Errno> {
        let id = InputId { bustype: BUS_I8042, vendor: 1, product: 2, version: 0xab41 };
        let mut setup = UinputSetup { id, name: [0; 80], ff_effects_max };
        setup.name[..name.len()].copy_from_slice(name.as_bytes());
        let result = self.driver.ioctl(&mut self.server, fh, UI_DEV_SETUP, &mut setup);
        self.come_around();
        result
    }

    fn create(&mut self, fh: u64) -> Result<i32, Errno> {
        let result = self.driver.ioctl_raw(&mut self.server, fh, UI_DEV_CREATE, 0).map(|(result, _)| result);
        self.come_around();
        result
    }

    /// A keyboard with LEDs, and the driver's open file.
    fn keyboard(&mut self) -> u64 {
        let fh = self.driver.open(&mut self.server, UINPUT, 2).unwrap();
        self.set(fh, UI_SET_EVBIT, &[EV_KEY, EV_LED, EV_MSC, EV_REP]);
        self.set(fh, UI_SET_KEYBIT, &[KEY_A, KEY_B, KEY_MUTE]);
        self.set(fh, UI_SET_LEDBIT, &[LED_CAPSL]);
        self.set(fh, UI_SET_MSCBIT, &[MSC_SCAN]);
        self.text(fh, UI_SET_PHYS, "isa0060/serio0/input0").unwrap();
        self.name(fh, "AT Translated Set 2 keyboard", 0).unwrap();
        self.create(fh).unwrap();
        fh
    }

    fn send(&mut self, fh: u64, events: &[(u16, u16, i32)]) -> Result<usize, Errno> {
        let mut data: Vec<u8> = Vec::new();
        for (kind, code, value) in events {
            data.extend_from_slice(InputEvent::new(*kind, *code, *value).as_bytes());
        }
        data.extend_from_slice(InputEvent::new(EV_SYN, SYN_REPORT, 0).as_bytes());
        let result = self.driver.write(&mut self.server, fh, &data);
        self.come_around();
        result
    }

    fn events(data: &[u8]) -> Vec<(u16, u16, i32)> {
        let events = data.chunks(24).map(|bytes| InputEvent::read_from_bytes(bytes).unwrap());
        events.map(|event| (event.kind, event.code, event.value)).collect()
    }

    fn read(&mut self, fh: u64) -> Result<Vec<(u16, u16, i32)>, Errno> {
        let read = self.reader.read(&mut self.server, fh, 4096).map(|data| Fixture::events(&data));
        self.come_around();
        read
    }

    fn ask(&mut self, fh: u64, cmd: u32, size: usize) -> Result<(i32, Vec<u8>), Errno> {
        let addr = self.reader.alloc(&vec![0; size]);
        let result = self.reader.ioctl_raw(&mut self.server, fh, cmd | (size as u32) << 16, addr);
        self.come_around();
        result
    }
}

const SYN: (u16, u16, i32) = (EV_SYN, SYN_REPORT, 0);

#[test]
fn a_device_looks_in_sysfs_as_linux_shows_it() {
    let mut f = Fixture::new();
    f.keyboard();
    let records = f.channel.description(INPUT0).unwrap();
    let expected = [
        "name=input0",
        "parent=virtual",
        "class=input",
        "attr=name:0444:AT Translated Set 2 keyboard\n",
        "attr=phys:0444:isa0060/serio0/input0\n",
        "attr=uniq:0444:\n",
        "attr=properties:0444:0\n",
        "dyn=inhibited:0644:1",
        "attr=id/bustype:0444:0011\n",
        "attr=id/version:0444:ab41\n",
        "attr=capabilities/ev:0444:120013\n",
        "attr=capabilities/key:0444:2000000000000 1000040000000\n",
        "attr=capabilities/rel:0444:0\n",
        "env=PRODUCT=11/1/2/ab41",
        "env=NAME=\"AT Translated Set 2 keyboard\"",
        "env=PHYS=\"isa0060/serio0/input0\"",
        "env=PROP=0",
        "env=EV=120013",
        "env=LED=2",
        "env=MODALIAS=input:b0011v0001p0002eAB41-e0,1,4,11,14,k71,ram4,l1,sfw",
    ];
    for record in expected {
        assert!(records.iter().any(|r| r == record), "{record} is not in {records:#?}");
    }
    assert!(!records.iter().any(|r| r.starts_with("env=REL=") || r.starts_with("env=UNIQ=")));
    let event = f.channel.description(EVENT0).unwrap();
    let expected = [
        "cookie=8589934592",
        "name=event0",
        "parent=cookie:4294967296",
        "class=input",
        "node=c:13:64:0000:0:0:input/event0",
    ];
    assert_eq!(event, expected);
}

#[test]
fn what_a_driver_writes_a_reader_reads_and_back() {
    let mut f = Fixture::new();
    let driver = f.keyboard();
    let reader = f.reader.open(&mut f.server, EVENT0, 2).unwrap();
    assert_eq!(f.channel.readiness(reader), Some(Ready::OUT));
    assert_eq!(f.read(reader), Err(Errno::AGAIN));
    assert_eq!(f.send(driver, &[(EV_MSC, MSC_SCAN, 30), (EV_KEY, KEY_A, 1)]), Ok(72));
    assert_eq!(f.channel.readiness(reader), Some(Ready::OUT | Ready::IN));
    // One event by itself leaves the rest readable.
    assert_eq!(f.reader.read(&mut f.server, reader, 47).map(|data| data.len()), Ok(24));
    assert_eq!(f.channel.readiness(reader), Some(Ready::OUT | Ready::IN));
    assert_eq!(f.reader.read(&mut f.server, reader, 23), Err(Errno::INVAL));
    assert_eq!(f.read(reader), Ok(vec![(EV_KEY, KEY_A, 1), SYN]));
    assert_eq!(f.channel.readiness(reader), Some(Ready::OUT));
    // An LED goes to the driver.
    assert_eq!(f.channel.readiness(driver), Some(Ready::OUT));
    let led = InputEvent::new(EV_LED, LED_CAPSL, 1);
    assert_eq!(f.reader.write(&mut f.server, reader, led.as_bytes()), Ok(24));
    assert_eq!(f.channel.readiness(driver), Some(Ready::OUT | Ready::IN));
    let told = f.driver.read(&mut f.server, driver, 4096).unwrap();
    assert_eq!(Fixture::events(&told), [(EV_LED, LED_CAPSL, 1)]);
    assert_eq!(f.channel.readiness(driver), Some(Ready::OUT));
    assert_eq!(f.reader.write(&mut f.server, reader, &[0; 23]), Err(Errno::INVAL));
}

#[test]
fn a_driver_can_ask_what_it_has_written() {
    let mut f = Fixture::new();
    let unmade = f.driver.open(&mut f.server, UINPUT, 2).unwrap();
    let mut written = 0_u32;
    assert_eq!(f.driver.ioctl(&mut f.server, unmade, UI_URSA_GET_WRITTEN, &mut written), Err(Errno::NODEV));
    let driver = f.keyboard();
    let reader = f.reader.open(&mut f.server, EVENT0, 2).unwrap();
    let mut expected = 0;
    for round in 0..20 {
        assert_eq!(f.driver.ioctl(&mut f.server, driver, UI_URSA_GET_WRITTEN, &mut written), Ok(0));
        // What changes nothing counts as well, and what a reader writes does not.
        assert_eq!(written, expected);
        f.send(driver, &[(EV_KEY, KEY_A, round % 2), (EV_KEY, KEY_A, round % 2)]).unwrap();
        f.reader.write(&mut f.server, reader, InputEvent::new(EV_LED, LED_CAPSL, 1).as_bytes()).unwrap();
        expected += 3;
        if round % 5 == 0 {
            f.restart();
        }
    }
}

#[test]
fn two_hundred_keys_arrive_in_order() {
    let mut f = Fixture::new();
    let driver = f.keyboard();
    let reader = f.reader.open(&mut f.server, EVENT0, 0).unwrap();
    let mut sent = Vec::new();
    let mut got = Vec::new();
    for n in 0..200 {
        let key = if n % 3 == 0 { KEY_A } else { KEY_B };
        for value in [1, 0] {
            f.send(driver, &[(EV_KEY, key, value)]).unwrap();
            sent.extend([(EV_KEY, key, value), SYN]);
        }
        // The reader falls behind now and then.
        if n % 7 == 6 {
            got.extend(f.read(reader).unwrap());
        }
    }
    got.extend(f.read(reader).unwrap());
    assert_eq!(got, sent);
}

#[test]
fn a_held_key_repeats_when_its_time_comes() {
    let mut f = Fixture::new();
    let driver = f.keyboard();
    let reader = f.reader.open(&mut f.server, EVENT0, 0).unwrap();
    f.send(driver, &[(EV_KEY, KEY_A, 1)]).unwrap();
    f.read(reader).unwrap();
    assert_eq!(f.server.deadline(), Some(100_250_000_000));
    f.clock.0.store(100_250_000_000, Ordering::Relaxed);
    f.server.tick();
    assert_eq!(f.read(reader), Ok(vec![(EV_KEY, KEY_A, 2), (EV_SYN, SYN_REPORT, 1)]));
    assert_eq!(f.ask(reader, EVIOCGREP & 0xffff | 2 << 30, 8).unwrap().1, [250i32, 33].as_bytes());
    f.send(driver, &[(EV_KEY, KEY_A, 0)]).unwrap();
    assert_eq!(f.server.deadline(), None);
}

#[test]
fn answers_have_the_lengths_of_linux() {
    let mut f = Fixture::new();
    f.keyboard();
    let reader = f.reader.open(&mut f.server, EVENT0, 0).unwrap();
    assert_eq!(f.ask(reader, EVIOCGBIT + u32::from(EV_KEY), 96).unwrap().0, 96);
    assert_eq!(f.ask(reader, EVIOCGBIT + u32::from(EV_KEY), 10).unwrap().0, 10);
    assert_eq!(f.ask(reader, EVIOCGBIT, 64).unwrap(), (8, 0x12_0013u64.as_bytes().to_vec()));
    assert_eq!(f.ask(reader, EVIOCGBIT + u32::from(EV_FF), 64).unwrap().0, 16);
    assert_eq!(f.ask(reader, EVIOCGBIT + u32::from(EV_REP), 64), Err(Errno::INVAL));
    assert_eq!(f.ask(reader, EVIOCGKEY, 200).unwrap().0, 96);
    assert_eq!(f.ask(reader, EVIOCGNAME, 255).unwrap(), (29, b"AT Translated Set 2 keyboard\0".to_vec()));
    assert_eq!(f.ask(reader, EVIOCGPHYS, 4).unwrap(), (4, b"isa0".to_vec()));
    assert_eq!(f.ask(reader, EVIOCGUNIQ, 9), Err(Errno::NOENT));
    assert_eq!(f.ask(reader, EVIOCGABS, 24), Err(Errno::INVAL));
    assert_eq!(f.ask(reader, EVIOCGMTSLOTS, 24), Err(Errno::INVAL));
    assert_eq!(f.reader.ioctl_raw(&mut f.server, reader, EVIOCGVERSION, 0), Err(Errno::FAULT));
    let addr = f.reader.alloc(&[0; 8]);
    assert_eq!(f.reader.ioctl_raw(&mut f.server, reader, EVIOCGVERSION, addr).unwrap().1, EV_VERSION.as_bytes());
    assert_eq!(f.reader.ioctl_raw(&mut f.server, reader, EVIOCGKEYCODE, addr), Err(Errno::INVAL));
    let mut clock = 3i32;
    assert_eq!(f.reader.ioctl(&mut f.server, reader, EVIOCSCLOCKID, &mut clock), Err(Errno::INVAL));
}

#[test]
fn masks_are_exchanged_through_the_callers_memory() {
    let mut f = Fixture::new();
    let driver = f.keyboard();
    let reader = f.reader.open(&mut f.server, EVENT0, 0).unwrap();
    let codes = f.reader.alloc(&Bits::<12>::from_iter([KEY_B]).to_bytes());
    let mut mask = InputMask { kind: EV_KEY.into(), codes_size: 96, codes };
    assert_eq!(f.reader.ioctl(&mut f.server, reader, EVIOCSMASK, &mut mask), Ok(0));
    f.send(driver, &[(EV_KEY, KEY_A, 1), (EV_KEY, KEY_B, 1)]).unwrap();
    assert_eq!(f.read(reader), Ok(vec![(EV_KEY, KEY_B, 1), SYN]));
    let back = f.reader.alloc(&[7; 128]);
    let mut ask = InputMask { kind: EV_KEY.into(), codes_size: 128, codes: back };
    // Both the structure and the buffer are brought in when they are not there.
    f.reader.evict(back);
    assert_eq!(f.reader.ioctl(&mut f.server, reader, EVIOCGMASK, &mut ask), Ok(0));
    let bytes = f.reader.peek(back, 128).unwrap();
    assert_eq!((&bytes[..96], &bytes[96..]), (&f.reader.peek(codes, 96).unwrap()[..], &[0; 32][..]));
    let mut odd = InputMask { codes_size: 7, ..mask };
    assert_eq!(f.reader.ioctl(&mut f.server, reader, EVIOCSMASK, &mut odd), Err(Errno::INVAL));
    let mut later = InputMask { kind: 77, codes_size: 7, codes: 0 };
    assert_eq!(f.reader.ioctl(&mut f.server, reader, EVIOCSMASK, &mut later), Ok(0));
}

#[test]
fn the_old_way_of_describing_a_device_works() {
    let mut f = Fixture::new();
    let fh = f.driver.open(&mut f.server, UINPUT, 2).unwrap();
    f.set(fh, UI_SET_EVBIT, &[EV_ABS]);
    f.set(fh, UI_SET_ABSBIT, &[ABS_X]);
    f.set(fh, UI_SET_PROPBIT, &[INPUT_PROP_DIRECT]);
    let mut user = UinputUserDev::default();
    assert_eq!(f.driver.write(&mut f.server, fh, user.as_bytes()), Err(Errno::INVAL), "a device has a name");
    user.name[0] = b'x';
    user.absmin[0] = 5;
    assert_eq!(f.driver.write(&mut f.server, fh, user.as_bytes()), Err(Errno::INVAL), "an axis has a range");
    user.absmax[0] = 9;
    assert_eq!(f.driver.write(&mut f.server, fh, &user.as_bytes()[1..]), Err(Errno::INVAL));
    assert_eq!(f.create(fh), Err(Errno::INVAL));
    assert_eq!(f.driver.write(&mut f.server, fh, user.as_bytes()), Ok(1116));
    assert_eq!(f.create(fh), Ok(0));
    assert_eq!(f.driver.ioctl_raw(&mut f.server, fh, UI_SET_EVBIT, 1), Err(Errno::INVAL), "it exists");
    let name = f.driver.alloc(&[0; 16]);
    assert_eq!(
        f.driver.ioctl_raw(&mut f.server, fh, UI_GET_SYSNAME | 16 << 16, name).unwrap(),
        (7, b"input0\0".to_vec())
    );
    let reader = f.reader.open(&mut f.server, EVENT0, 0).unwrap();
    let (result, info) = f.ask(reader, EVIOCGABS, 24).unwrap();
    let info = AbsInfo::read_from_bytes(&info).unwrap();
    assert_eq!((result, info.minimum, info.maximum), (0, 5, 9));
    // A shorter structure leaves the resolution 0.
    let mut set = [1i32, 2, 30, 0, 0];
    assert_eq!(f.reader.ioctl(&mut f.server, reader, EVIOCSABS & !(0x3fff << 16) | 20 << 16, &mut set), Ok(0));
    let (_, info) = f.ask(reader, EVIOCGABS, 24).unwrap();
    assert_eq!(AbsInfo::read_from_bytes(&info).unwrap().maximum, 30);
}

#[test]
fn a_parent_is_a_plain_path_and_roots_to_give() {
    let mut f = Fixture::new();
    let fh = f.driver.open(&mut f.server, UINPUT, 2).unwrap();
    for bad in ["/sys/x", "/devices/../x", "/devices/a//b", "relative"] {
        assert_eq!(f.text(fh, UI_URSA_SET_PARENT, bad), Err(Errno::INVAL), "{bad}");
    }
    f.driver.uid = 1000;
    assert_eq!(f.text(fh, UI_URSA_SET_PARENT, "/devices/platform/i8042"), Err(Errno::PERM));
    f.driver.uid = 0;
    assert_eq!(f.text(fh, UI_URSA_SET_PARENT, "/devices/platform/i8042"), Ok(0));
    assert_eq!(f.text(fh, UI_URSA_SET_UNIQ, "serial"), Ok(0));
    f.name(fh, "x", 0).unwrap();
    f.create(fh).unwrap();
    let records = f.channel.description(INPUT0).unwrap();
    assert!(records.contains(&"parent=/devices/platform/i8042".to_owned()));
    assert!(records.contains(&"env=UNIQ=\"serial\"".to_owned()));
}

#[test]
fn readers_of_a_device_that_goes_are_told_and_numbers_are_used_again() {
    let mut f = Fixture::new();
    let driver = f.keyboard();
    let reader = f.reader.open(&mut f.server, EVENT0, 0).unwrap();
    f.send(driver, &[(EV_KEY, KEY_A, 1)]).unwrap();
    f.driver.close(&mut f.server, driver);
    assert_eq!(f.channel.published(), [UINPUT]);
    assert!(f.channel.readiness(reader).unwrap().contains(Ready::HUP | Ready::ERR));
    assert_eq!(f.read(reader), Err(Errno::NODEV));
    assert_eq!(f.ask(reader, EVIOCGNAME, 8), Err(Errno::NODEV));
    assert_eq!(f.reader.write(&mut f.server, reader, &[0; 24]), Err(Errno::NODEV));
    assert_eq!(f.reader.open(&mut f.server, EVENT0, 0), Err(Errno::NODEV));
    // The next device is input1 and, since the old one's number is still in use, event1; then event0 again.
    f.keyboard();
    assert!(f.channel.description(EVENT0 + 1).unwrap().contains(&"name=event1".to_owned()));
    f.reader.close(&mut f.server, reader);
    f.keyboard();
    assert!(f.channel.description(EVENT0 + 2).unwrap().contains(&"name=event0".to_owned()));
    assert!(f.channel.description(INPUT0 + 2).unwrap().contains(&"name=input2".to_owned()));
}

#[test]
fn a_session_that_loses_its_device_reads_no_more() {
    let mut f = Fixture::new();
    let driver = f.keyboard();
    let one = f.reader.open(&mut f.server, EVENT0, 0).unwrap();
    let other = f.reader.open(&mut f.server, EVENT0, 0).unwrap();
    assert_eq!(f.reader.ioctl_raw(&mut f.server, one, EVIOCGRAB, 1), Ok((0, vec![])));
    assert_eq!(f.reader.ioctl_raw(&mut f.server, other, EVIOCGRAB, 1), Err(Errno::BUSY));
    assert_eq!(f.reader.ioctl_raw(&mut f.server, other, EVIOCGRAB, 0), Err(Errno::INVAL));
    assert_eq!(f.reader.ioctl_raw(&mut f.server, one, EVIOCREVOKE, 1), Err(Errno::INVAL));
    assert_eq!(f.reader.ioctl_raw(&mut f.server, one, EVIOCREVOKE, 0), Ok((0, vec![])));
    assert_eq!(f.channel.readiness(one), Some(Ready::HUP | Ready::ERR));
    assert_eq!(f.read(one), Err(Errno::NODEV));
    f.send(driver, &[(EV_KEY, KEY_A, 1)]).unwrap();
    assert_eq!(f.read(other).unwrap().len(), 2, "the grab went with it");
}

#[test]
fn an_effect_is_uploaded_through_the_driver() {
    let mut f = Fixture::new();
    let driver = f.driver.open(&mut f.server, UINPUT, 2).unwrap();
    f.set(driver, UI_SET_EVBIT, &[EV_FF]);
    f.set(driver, UI_SET_FFBIT, &[FF_RUMBLE]);
    f.name(driver, "pad", 0).unwrap();
    assert_eq!(f.create(driver), Err(Errno::INVAL), "without room for effects there is no force feedback");
    f.name(driver, "pad", 4).unwrap();
    f.create(driver).unwrap();
    let reader = f.reader.open(&mut f.server, EVENT0, 2).unwrap();
    let effect = FfEffect { kind: FF_RUMBLE, id: -1, ..FfEffect::default() };
    let addr = f.reader.alloc(effect.as_bytes());
    let pending = f.reader.ioctl_begin(&mut f.server, reader, EVIOCSFF, addr).unwrap_err().unwrap();
    let told = Fixture::events(&f.driver.read(&mut f.server, driver, 24).unwrap());
    assert_eq!(told, [(EV_UINPUT, UI_FF_UPLOAD, 0)]);
    let mut upload = UinputFfUpload { request_id: 9, ..UinputFfUpload::default() };
    assert_eq!(f.driver.ioctl(&mut f.server, driver, UI_BEGIN_FF_UPLOAD, &mut upload), Err(Errno::INVAL));
    upload.request_id = 0;
    assert_eq!(f.driver.ioctl(&mut f.server, driver, UI_BEGIN_FF_UPLOAD, &mut upload), Ok(0));
    assert_eq!((upload.effect.kind, upload.effect.id), (FF_RUMBLE, 0));
    assert!(f.channel.take_late(pending.0).is_none());
    assert_eq!(f.driver.ioctl(&mut f.server, driver, UI_END_FF_UPLOAD, &mut upload), Ok(0));
    assert!(f.channel.take_late(pending.0).unwrap().is_ok());
    assert_eq!(f.reader.peek(addr + 2, 2).unwrap(), [0, 0]);
    // A driver that never answers.
    let pending = f.reader.ioctl_begin(&mut f.server, reader, EVIOCRMFF, 0).unwrap_err().unwrap();
    f.clock.0.fetch_add(31_000_000_000, Ordering::Relaxed);
    f.server.tick();
    assert_eq!(f.channel.take_late(pending.0), Some(Err(Errno::TIMEDOUT)));
    // A reader that is interrupted, and one whose driver goes away.
    let pending = f.reader.ioctl_begin(&mut f.server, reader, EVIOCSFF, addr).unwrap_err().unwrap();
    f.reader.interrupt(&mut f.server, pending);
    assert_eq!(f.channel.take_late(pending.0), Some(Err(Errno::INTR)));
    let pending = f.reader.ioctl_begin(&mut f.server, reader, EVIOCRMFF, 0).unwrap_err().unwrap();
    f.driver.close(&mut f.server, driver);
    assert_eq!(f.channel.take_late(pending.0), Some(Err(Errno::NODEV)));
}

#[test]
fn inhibited_is_an_attribute() {
    let mut f = Fixture::new();
    let driver = f.keyboard();
    let reader = f.reader.open(&mut f.server, EVENT0, 0).unwrap();
    assert_eq!(f.reader.attr_show(&mut f.server, INPUT0, 1).unwrap(), b"0\n");
    f.reader.attr_store(&mut f.server, INPUT0, 1, b"1\n").unwrap();
    f.send(driver, &[(EV_KEY, KEY_A, 1)]).unwrap();
    assert_eq!(f.read(reader), Err(Errno::AGAIN));
    assert_eq!(f.reader.attr_store(&mut f.server, INPUT0, 1, b"maybe"), Err(Errno::INVAL));
    assert_eq!(f.reader.attr_show(&mut f.server, INPUT0, 1).unwrap(), b"1\n");
}

#[test]
fn whatever_is_asked_nothing_breaks() {
    let mut random = fastrand::Rng::with_seed(3);
    let mut f = Fixture::new();
    let mut files = vec![f.keyboard()];
    for round in 0..60_000 {
        let fh = random.choice(&files).copied().unwrap();
        let cmd = u32::from(random.choice([b'E', b'U']).unwrap()) << 8
            | random.u32(..4) << 30
            | random.u32(..200) << 16
            | random.u32(..256);
        let known =
            [UI_DEV_SETUP, UI_DEV_CREATE, UI_DEV_DESTROY, UI_ABS_SETUP, EVIOCSFF, EVIOCRMFF, EVIOCGMASK, EVIOCSMASK];
        let cmd = if random.bool() { cmd } else { random.choice(known).unwrap() };
        let arg = match random.u8(..3) {
            0 => random.u64(..200),
            1 => random.u64(..),
            _ => 0x10_0000 + random.u64(..4000),
        };
        if round == 0 {
            f.reader.alloc(&(0..4096u32).map(|n| (n * 7 % 251) as u8).collect::<Vec<_>>());
        }
        match random.u8(..12) {
            0 => files.push(f.reader.open(&mut f.server, UINPUT, 0).unwrap()),
            1 => files.extend(f.reader.open(&mut f.server, EVENT0 + random.u64(..8), 0).ok()),
            2 if files.len() > 6 => {
                let index = random.usize(..files.len());
                f.reader.close(&mut f.server, files.swap_remove(index));
            }
            3 => drop(f.reader.read(&mut f.server, fh, random.usize(..100))),
            4 => {
                let data: Vec<u8> = (0..random.usize(..100)).map(|_| random.u8(..)).collect();
                let _ = f.reader.write(&mut f.server, fh, &data);
            }
            5 => {
                let _ = f.reader.write(
                    &mut f.server,
                    fh,
                    UinputUserDev { name: [b'n'; 80], ..Default::default() }.as_bytes(),
                );
            }
            _ => drop(f.reader.ioctl_begin(&mut f.server, fh, cmd, arg)),
        }
        f.clock.0.fetch_add(random.u64(..10_000_000), Ordering::Relaxed);
        f.server.tick();
    }
    for fh in files {
        f.reader.close(&mut f.server, fh);
    }
    assert_eq!(f.channel.published(), [UINPUT], "everything goes with who made it");
}

/// The same tests with a server that is killed again and again: nobody notices.
mod mortal {
    macro_rules! mortal {
        ($($test:ident)*) => {$(
            #[test]
            fn $test() {
                super::MORTAL.set(true);
                super::$test();
                super::MORTAL.set(false);
            }
        )*};
    }
    mortal! { a_device_looks_in_sysfs_as_linux_shows_it what_a_driver_writes_a_reader_reads_and_back two_hundred_keys_arrive_in_order a_held_key_repeats_when_its_time_comes answers_have_the_lengths_of_linux masks_are_exchanged_through_the_callers_memory the_old_way_of_describing_a_device_works a_parent_is_a_plain_path_and_roots_to_give readers_of_a_device_that_goes_are_told_and_numbers_are_used_again a_session_that_loses_its_device_reads_no_more an_effect_is_uploaded_through_the_driver inhibited_is_an_attribute }
}
