//! Tests of the machine side of hal, run by [`crate::ktest!`].

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::irq::{self, IrqError, Polarity, Trigger, lapic, vector};
use crate::smp::{self, CpuSet, call_on};
use crate::time::{self, calibrate::difference_ppm, reference};
use crate::{acpi, cpu, panic, pci, rand, rtc};

/// A function that sends nothing.
const NOBODY: pci::Address = pci::Address { bus: 0, device: 31, function: 7 };

/// Waits up to a second for `cond`, with interrupts on.
fn eventually(cond: impl Fn() -> bool) -> bool {
    let end = time::monotonic_ns() + 1_000_000_000;
    while time::monotonic_ns() < end {
        if cond() {
            return true;
        }
        core::hint::spin_loop();
    }
    cond()
}

ktest! {
    fn function_calls_run_once_on_each_cpu() {
        let ran: Vec<AtomicUsize> = (0..crate::percpu::possible()).map(|_| AtomicUsize::new(0)).collect();
        for _ in 0..50 {
            call_on(smp::running(), &|| {
                ran[smp::current_cpu()].fetch_add(1, Ordering::Relaxed);
            });
        }
        for cpu in smp::running().iter() {
            assert_eq!(ran[cpu].load(Ordering::Relaxed), 50, "CPU {cpu}");
        }
    }

    fn the_clock_never_goes_back_between_cpus() {
        // The callers run one after the other, so each must see at least what the one before saw.
        let last = AtomicU64::new(time::monotonic_ns());
        for _ in 0..200 {
            for cpu in smp::running().iter() {
                call_on(CpuSet::single(cpu), &|| {
                    let now = time::monotonic_ns();
                    let before = last.swap(now, Ordering::SeqCst);
                    assert!(now >= before, "CPU {}: {now} after {before}", smp::current_cpu());
                });
            }
        }
    }

    fn the_clock_agrees_with_a_reference() {
        let Some(r) = reference::hpet().or_else(reference::pm_timer) else { return };
        let edge = || time::calibrate::edge(16, time::monotonic_ns, || r.ns());
        let a = edge();
        time::spin_ns(50_000_000);
        let b = edge();
        let (ours, theirs) = (b.counter - a.counter, b.ref_ns - a.ref_ns);
        let doubt = (a.width + b.width) * 1_000_000 / ours;
        assert!(difference_ppm(ours, theirs) < 2_000 + doubt, "{ours} ns against {theirs} ns");
    }

    fn the_timer_interrupts_after_its_deadline_and_not_before() {
        let me = smp::current_cpu();
        let count = || irq::count(me, vector::TIMER);
        let irqs = cpu::irq_save();
        let at = time::monotonic_ns() + 3_000_000;
        time::set_deadline(Some(at));
        cpu::irq_restore(irqs);
        let before = count();
        // Another user of the timer may have come in between; then its interrupt is the one that counts.
        assert!(eventually(|| count() != before), "no timer interrupt");
        assert!(irqs, "tests run with interrupts on");
    }

    fn every_cpu_has_a_running_timer() {
        for cpu in smp::running().iter() {
            let before = irq::count(cpu, vector::TIMER);
            call_on(CpuSet::single(cpu), &|| time::set_deadline(Some(time::monotonic_ns() + 1_000_000)));
            assert!(eventually(|| irq::count(cpu, vector::TIMER) != before), "CPU {cpu}");
        }
    }

    fn a_message_interrupt_reaches_its_handler_until_it_is_dropped() {
        let hits = Arc::new(AtomicUsize::new(0));
        let counter = hits.clone();
        let msi = irq::alloc_msi(NOBODY, Arc::new(move || { counter.fetch_add(1, Ordering::SeqCst); })).unwrap();
        assert_eq!(msi.address >> 20, 0xfee);
        let v = msi.vector();
        assert_eq!(irq::vector_use(v), Some(None));
        // What a device's write to the address would do: an interrupt with this vector.
        lapic::send_ipi(smp::apic_id(0), msi.vector());
        assert!(eventually(|| hits.load(Ordering::SeqCst) == 1));
        drop(msi);
        assert_eq!(irq::vector_use(v), None);
        assert_eq!(Arc::strong_count(&hits), 1, "the handler was dropped");
        lapic::send_ipi(smp::apic_id(0), v);
        time::spin_ns(1_000_000);
        assert_eq!(hits.load(Ordering::SeqCst), 1);
    }

    fn vectors_run_out_with_an_error_and_come_back() {
        let mut held = Vec::new();
        let error = loop {
            match irq::alloc_msi(NOBODY, Arc::new(|| {})) {
                Ok(msi) => held.push(msi),
                Err(e) => break e,
            }
        };
        assert_eq!(error, IrqError::NoVector);
        let n = held.len();
        assert!(n > 100);
        held.clear();
        held.extend((0..n).map(|_| irq::alloc_msi(NOBODY, Arc::new(|| {})).unwrap()));
    }

    fn a_line_interrupt_arrives_and_exclusive_lines_stay_so() {
        // Only where there is an I/O APIC; the PIT ticks on ISA line 0 every 55 ms.
        if irq::ioapic::gsi_end() == 0 {
            return;
        }
        reference::pit();
        let hits = Arc::new(AtomicUsize::new(0));
        let counter = hits.clone();
        let handle = irq::request_isa(0, Arc::new(move || { counter.fetch_add(1, Ordering::SeqCst); })).unwrap();
        assert!(eventually(|| hits.load(Ordering::SeqCst) > 0), "the PIT does not tick");
        assert_eq!(irq::request_isa(0, Arc::new(|| {})).err(), Some(IrqError::Busy));
        handle.mask();
        time::spin_ns(1_000_000);
        let n = hits.load(Ordering::SeqCst);
        time::spin_ns(120_000_000);
        assert_eq!(hits.load(Ordering::SeqCst), n, "masked");
        drop(handle);
        let nowhere = irq::request_gsi(irq::ioapic::gsi_end() + 7, Trigger::Level, Polarity::Low, Arc::new(|| {}));
        assert_eq!(nowhere.err(), Some(IrqError::NoSuchLine));
    }

    fn level_lines_are_shared() {
        let gsi = (16..irq::ioapic::gsi_end()).find(|g| {
            irq::request_gsi(*g, Trigger::Level, Polarity::Low, Arc::new(|| {})).is_ok()
        });
        let Some(gsi) = gsi else { return };
        let line = || irq::request_gsi(gsi, Trigger::Level, Polarity::Low, Arc::new(|| {}));
        let (a, b) = (line().unwrap(), line().unwrap());
        assert_eq!(irq::request_gsi(gsi, Trigger::Level, Polarity::High, Arc::new(|| {})).err(), Some(IrqError::Busy));
        drop(a);
        let c = line().unwrap();
        drop((b, c));
        // The last one freed the line, so it can be had in another mode.
        assert!(irq::request_gsi(gsi, Trigger::Level, Polarity::High, Arc::new(|| {})).is_ok());
    }

    fn firmware_says_how_to_power_off() {
        if acpi::tables().is_empty() {
            return;
        }
        assert!(acpi::fadt().is_some_and(|f| f.pm1a_cnt.address != 0));
        assert!(acpi::parse::s5(acpi::dsdt().unwrap()).is_some());
        assert!(acpi::tables().iter().all(|t| acpi::parse::checksum_ok(t.bytes)));
    }

    fn the_wall_clock_is_plausible_and_follows_the_rtc() {
        let rtc = rtc::read().expect("a valid time");
        assert!(rtc > 1_577_836_800, "after 2020: {rtc}");
        let now = time::realtime_ns() / 1_000_000_000;
        assert!(now.abs_diff(rtc) < 600, "{now} against {rtc}");
    }

    fn pci_finds_the_host_bridge_and_refuses_bad_accesses() {
        let all = pci::scan();
        let Some(host) = all.first() else { return };
        assert_eq!((host.address.bus, host.address.device, host.class >> 8), (0, 0, 0x0600));
        assert!(all.windows(2).all(|w| w[0].address < w[1].address), "sorted, each once");
        let a = host.address;
        assert_eq!(pci::config_read(a, 0, pci::Width::Dword) as u16, host.vendor);
        assert_eq!(pci::config_read(a, 1, pci::Width::Dword), u32::MAX);
        assert_eq!(pci::config_read(a, pci::config_size(a), pci::Width::Byte), 0xff);
        assert_eq!(pci::config_read(pci::Address { device: 32, ..a }, 0, pci::Width::Word), 0xffff);
    }

    fn seeds_differ() {
        let mut seen = Vec::new();
        for _ in 0..16 {
            let mut s = [0; 32];
            rand::seed_bytes(&mut s);
            assert!(!seen.contains(&s));
            let ones: u32 = s.iter().map(|b| b.count_ones()).sum();
            assert!((64..192).contains(&ones), "{ones} of 256 bits set");
            seen.push(s);
        }
    }

    fn backtraces_reach_the_runner_and_have_names() {
        let mut names = Vec::new();
        let mut n = 0;
        panic::backtrace::walk(panic::backtrace::here(), |rip| {
            n += 1;
            names.extend(panic::symbols::find(rip - 1).map(|s| s.0));
        });
        assert!(n >= 3);
        // A kernel without the post-link step has no names.
        if panic::ksyms_len() > 16 {
            assert!(names.iter().any(|n| n.contains("run_all")), "{names:?}");
        }
    }

    fn the_log_ring_keeps_what_was_logged() {
        let from = crate::log::head();
        crate::debug!("ring test {}", 42);
        let mut buf = [0; 4096];
        let (at, n) = crate::log::read_ring(from, &mut buf);
        assert_eq!(at, from);
        let text = core::str::from_utf8(&buf[..n]).unwrap();
        assert!(text.lines().any(|l| l.starts_with("<7>[") && l.ends_with("] ring test 42")), "{text}");
        // Positions that are gone or in the future are moved, never a panic.
        assert_eq!(crate::log::read_ring(u64::MAX, &mut buf).1, 0);
    }
}
