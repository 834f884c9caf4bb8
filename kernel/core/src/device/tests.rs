//! Tests of the device model and its tree; run with `ktest=device`.

use alloc::{sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use ursa_hal::ktest;

use super::*;
use crate::{
    fs::{dentry::hash_name, path, sysfs},
    sched,
};

fn files(directory: &Arc<Directory>, names: &[&str]) -> bool {
    names.iter().all(|name| directory.contains(name))
}

/// Whether devtmpfs has the node: nobody can make another of its name.
fn node_exists(name: &str) -> bool {
    let probe = devfs::create_node(name, 0o020_600, make_dev(240, 99));
    if probe.is_ok() {
        devfs::remove_node(name, make_dev(240, 99)).expect("just made");
    }
    probe == Err(Errno::EEXIST)
}

fn uevent_text(device: &Device) -> String {
    let mut text = Vec::new();
    UeventFile(device.me.clone()).show(&mut text).expect("a registered device answers");
    String::from_utf8(text).expect("text")
}

/// Looks a path of the tree up as a program would.
fn look(name: &str) -> Result<Arc<crate::fs::Dentry>> {
    let mut at = sysfs::root_dentry()?;
    for part in name.split('/') {
        at = path::lookup_child(&at, hash_name(part.as_bytes()), part.as_bytes())?;
    }
    Ok(at)
}

static STOP: AtomicBool = AtomicBool::new(false);
static LOOKING: AtomicU32 = AtomicU32::new(0);
static FOUND: AtomicU32 = AtomicU32::new(0);

ktest! {
    /// Devices come and go while others look them up: nobody finds what is gone once it is gone.
    fn lookups_race_with_registrations() {
        STOP.store(false, Ordering::SeqCst);
        for _ in 0..3 {
            LOOKING.fetch_add(1, Ordering::SeqCst);
            sched::spawn_kernel("look", || {
                while !STOP.load(Ordering::SeqCst) {
                    if look("devices/virtual/ktestr/r/sub/uevent").is_ok() {
                        FOUND.fetch_add(1, Ordering::SeqCst);
                    }
                    let _ = look("class/ktestr/r");
                    sched::cond_resched();
                }
                LOOKING.fetch_sub(1, Ordering::SeqCst);
            })
            .expect("a task");
        }
        let limit = crate::time::Deadline::after(20_000_000_000);
        let mut rounds = 0;
        while (rounds < 300 || FOUND.load(Ordering::SeqCst) < 20) && !limit.has_passed() {
            let device = Device::register(DeviceSpec::class("ktestr", "r")).expect("registered");
            Device::register(DeviceSpec::class("ktestr", "sub").below(&device)).expect("registered");
            sched::yield_now();
            device.unregister();
            assert_eq!(look("devices/virtual/ktestr/r").err(), Some(Errno::ENOENT));
            assert_eq!(look("class/ktestr/r").err(), Some(Errno::ENOENT));
            rounds += 1;
        }
        STOP.store(true, Ordering::SeqCst);
        while LOOKING.load(Ordering::SeqCst) > 0 {
            sched::yield_now();
        }
        assert!(FOUND.load(Ordering::SeqCst) > 0, "nobody ever looked in time");
    }

    /// Everything that a registration makes is there, and gone after the end.
    fn device_appears_everywhere_and_disappears() {
        let bus = Device::register(
            DeviceSpec { driver: Some("kd".into()), ..DeviceSpec::bus("ktest", "0:1").at("devices/ktest0") }
                .env("MODALIAS", "ktest:1")
                .line("vendor", "0x1af4")
                .binary("config", 0o644, 3, Arc::new(alloc::vec![1u8, 2, 3])),
        ).expect("registered");
        assert_eq!(bus.path(), "/devices/ktest0/0:1");
        assert!(files(bus.directory(), &["uevent", "subsystem", "driver", "vendor", "config"]));
        assert!(files(&sysfs::find("bus/ktest/devices").expect("the bus"), &["0:1"]));
        assert!(files(&sysfs::find("bus/ktest/drivers/kd").expect("the driver"), &["0:1", "uevent"]));
        assert_eq!(uevent_text(&bus), "DRIVER=kd\nMODALIAS=ktest:1\n");

        let node = Devnode::char("ktest/card0", 240, 1, 0o660);
        let card = Device::register(DeviceSpec::class("ktestc", "card0").below(&bus).node(node).devtype("minor"))
            .expect("registered");
        assert_eq!(card.path(), "/devices/ktest0/0:1/ktestc/card0");
        assert!(files(card.directory(), &["dev", "device", "subsystem", "uevent"]));
        assert!(files(&sysfs::find("dev/char").expect("made"), &["240:1"]));
        assert_eq!(uevent_text(&card), "MAJOR=240\nMINOR=1\nDEVNAME=ktest/card0\nDEVMODE=0660\nDEVTYPE=minor\n");
        assert!(node_exists("ktest/card0"));
        // Below a device of a class there is no glue.
        let port = Device::register(DeviceSpec::class("ktestc", "card0-A").below(&card)).expect("registered");
        assert_eq!(port.path(), "/devices/ktest0/0:1/ktestc/card0/card0-A");
        assert_eq!(Device::register(DeviceSpec::class("ktestc", "card0").below(&bus)).err(), Some(Errno::EEXIST));

        // The parent takes what is below with it.
        bus.unregister();
        assert!(!port.is_registered() && !card.is_registered() && !bus.is_registered());
        assert!(sysfs::find("devices/ktest0/0:1").is_none());
        assert!(sysfs::find("class/ktestc").expect("stays").is_empty());
        assert!(sysfs::find("bus/ktest/devices").expect("stays").is_empty());
        assert!(!sysfs::find("bus/ktest/drivers/kd").expect("stays").contains("0:1"));
        assert!(!sysfs::find("dev/char").expect("made").contains("240:1"));
        assert!(!node_exists("ktest/card0"));
        assert_eq!(card.set_attribute("x", Vec::new()), Err(Errno::ENOENT));
        assert_eq!(Device::register(DeviceSpec::class("ktestc", "late").below(&bus)).err(), Some(Errno::ENODEV));
        card.unregister();
    }

    /// A registration that fails half-way leaves nothing behind.
    fn failed_registration_leaves_nothing() {
        let taken = DeviceSpec::class("ktestf", "other").node(Devnode::char("null", 240, 2, 0));
        assert_eq!(Device::register(taken).err(), Some(Errno::EEXIST));
        assert!(sysfs::find("devices/virtual/ktestf").is_none());
        assert!(sysfs::find("class/ktestf").expect("stays").is_empty());
        assert!(!sysfs::find("dev/char").expect("made").contains("240:2"));
        assert!(node_exists("null"), "another's node was taken away");
        for (name, what) in [("", "no name"), ("..", "a way up"), ("a\0b", "a NUL"), ("a\nb", "a line")] {
            let spec = DeviceSpec::class("ktestf", name);
            assert_eq!(Device::register(spec).err(), Some(Errno::EINVAL), "{what}");
        }
        for node in ["../x", "a//b", "/a", "a/", "x\ny"] {
            let spec = DeviceSpec::class("ktestf", "n").node(Devnode::char(node, 240, 2, 0));
            assert_eq!(Device::register(spec).err(), Some(Errno::EINVAL), "{node}");
        }
        let much = DeviceSpec::class("ktestf", "n").env("A", "x".repeat(2000));
        assert_eq!(Device::register(much).err(), Some(Errno::ENOMEM));
        let twice = DeviceSpec::class("ktestf", "n").line("a", "1").line("a", "2");
        assert_eq!(Device::register(twice).err(), Some(Errno::EEXIST));
        assert!(sysfs::find("devices/virtual/ktestf").is_none());
    }

    /// A name that somebody looked up is not remembered after its device went, nor its absence after it came.
    fn name_cache_follows_the_tree() {
        for _ in 0..3 {
            assert_eq!(look("class/ktestn/a/dev").err(), Some(Errno::ENOENT));
            assert_eq!(look("devices/virtual/ktestn/a/uevent").err(), Some(Errno::ENOENT));
            let device = Device::register(DeviceSpec::class("ktestn", "a")).expect("registered");
            let kept = look("devices/virtual/ktestn/a").expect("there");
            assert!(look("devices/virtual/ktestn/a/uevent").is_ok());
            device.unregister();
            assert_eq!(look("devices/virtual/ktestn/a/uevent").err(), Some(Errno::ENOENT));
            // Whoever still stands in the directory finds nothing.
            assert_eq!(path::lookup_child(&kept, hash_name(b"uevent"), b"uevent").err(), Some(Errno::ENOENT));
        }
    }

    /// Uevents' variables and their limits.
    fn variables_and_attributes_change() {
        let device = Device::register(DeviceSpec::class("ktestv", "v").line("state", "old")).expect("registered");
        device.set_env("A", "1").expect("set");
        device.set_env("B", "2").expect("set");
        device.set_env("A", "3").expect("replaced");
        assert_eq!(uevent_text(&device), "A=3\nB=2\n");
        assert_eq!(device.set_env("A=", "x"), Err(Errno::EINVAL));
        assert_eq!(device.set_env("A", "x\ny"), Err(Errno::EINVAL));
        assert_eq!(device.set_env("C", &"x".repeat(2000)), Err(Errno::ENOMEM));
        assert_eq!(device.set_attribute("state", b"new\n".to_vec()), Ok(()));
        assert_eq!(device.set_attribute("uevent", Vec::new()), Err(Errno::EPERM));
        assert_eq!(device.set_driver(Some("x")), Err(Errno::EINVAL), "a class has no drivers");
        let before = uevent::sequence();
        device.uevent(Action::Change, &[("HOTPLUG", "1")]);
        assert!(uevent::sequence() > before);
        device.unregister();
    }

    /// The text that a write to a uevent file may hold.
    fn synthetic_requests_are_parsed() {
        let parse = |text: &str| uevent::Synthetic::parse(text.as_bytes());
        let uuid = "fe4d7c9d-b8c6-4a70-9ef1-3d8a58d18eed";
        let plain = parse("add\n").expect("an action");
        assert_eq!((plain.action, &plain.variables[0].1[..]), (Action::Add, "0"));
        let long = parse(&format!("change {uuid} A=1 bc=2d")).expect("arguments");
        let names: Vec<&str> = long.variables.iter().map(|(k, _)| k.as_str()).collect();
        assert_eq!(names, ["SYNTH_UUID", "SYNTH_ARG_A", "SYNTH_ARG_bc"]);
        for bad in ["", "\n", "ad", "addx", "add ", "add x", "Add", "\u{e9}"] {
            assert_eq!(parse(bad), Err(Errno::EINVAL), "{bad:?}");
        }
        for bad in [" A", " =1", " A=", " A=b-c", "  A=1", " A=1 ", " A=1\n\n"] {
            assert_eq!(parse(&format!("add {uuid}{bad}")), Err(Errno::EINVAL), "{bad:?}");
        }
        assert_eq!(parse(uuid), Err(Errno::EINVAL));
    }
}
