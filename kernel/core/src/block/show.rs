//! What sysfs and `/proc` show of block devices.
//!
//! References: `Documentation/ABI/stable/sysfs-block`, `Documentation/block/stat.rst`, proc(5).

use alloc::{
    string::String,
    sync::{Arc, Weak},
    vec::Vec,
};
use core::fmt::Write;
use core::sync::atomic::Ordering::Relaxed;

use super::{SECTOR, Volume, disk, request::Statistics};
use crate::Errno;
use crate::device::{DeviceSpec, Value};
use crate::fs::dev::{major, minor};

/// An attribute of `volume` that is made for each read.
fn text(volume: &Arc<Volume>, show: impl Fn(&Volume) -> String + Send + Sync + 'static) -> Value {
    let volume: Weak<Volume> = Arc::downgrade(volume);
    Value::text(move |out| {
        let volume = volume.upgrade().ok_or(Errno::ENODEV)?;
        out.extend_from_slice(show(&volume).as_bytes());
        out.push(b'\n');
        Ok(())
    })
}

/// The numbers that a line of statistics has.
fn numbers(statistics: &Statistics) -> String {
    let mut out = String::new();
    let ms = |kind: usize| statistics.time[kind].load(Relaxed) / 1_000_000;
    let in_flight: u32 = statistics.in_flight.iter().map(|n| n.load(Relaxed)).sum();
    let busy: u64 = (0..4).map(ms).sum();
    for kind in 0..3 {
        let (count, sectors) = (statistics.count[kind].load(Relaxed), statistics.sectors[kind].load(Relaxed));
        // Nothing is merged. Writing to a string cannot fail.
        let _ = write!(out, "{count:8} 0 {sectors:8} {:8} ", ms(kind));
        if kind == 1 {
            let _ = write!(out, "{in_flight:8} {busy:8} {busy:8} ");
        }
    }
    let _ = write!(out, "{:8} {:8}", statistics.count[3].load(Relaxed), ms(3));
    out
}

fn common(spec: DeviceSpec, volume: &Arc<Volume>) -> DeviceSpec {
    let flights = |volume: &Volume| {
        let [reads, others] = &volume.statistics.in_flight;
        alloc::format!("{:8} {:8}", reads.load(Relaxed), others.load(Relaxed))
    };
    spec.attribute("size", 0o444, text(volume, |volume| alloc::format!("{}", volume.sectors())))
        .attribute("ro", 0o444, text(volume, |volume| alloc::format!("{}", u8::from(volume.is_read_only()))))
        .attribute("stat", 0o444, text(volume, |volume| numbers(&volume.statistics)))
        .attribute("inflight", 0o444, text(volume, flights))
        .line("alignment_offset", "0")
        .line("discard_alignment", "0")
}

/// Adds a disk's attributes.
pub(super) fn disk(spec: DeviceSpec, volume: &Arc<Volume>) -> DeviceSpec {
    let limits = &volume.disk.limits;
    let line = |spec: DeviceSpec, name: &'static str, value: u64| spec.line(name, &alloc::format!("{value}"));
    let mut spec = common(spec, volume)
        .line("removable", "0")
        .line("hidden", "0")
        .line("range", "16")
        .line("ext_range", "256")
        .line("capability", "0")
        .line("events", "")
        .line("events_async", "")
        .line("events_poll_msecs", "-1")
        .line("diskseq", &alloc::format!("{}", volume.disk.sequence))
        .line("queue/scheduler", "[none]")
        .line("queue/zoned", "none")
        .line("queue/write_cache", if limits.write_cache { "write back" } else { "write through" });
    let kilobytes = limits.max_bytes >> 10;
    for (name, value) in [
        ("queue/logical_block_size", limits.logical_block.into()),
        ("queue/hw_sector_size", limits.logical_block.into()),
        ("queue/physical_block_size", limits.physical_block.into()),
        ("queue/minimum_io_size", limits.io_min.into()),
        ("queue/optimal_io_size", limits.io_opt.into()),
        ("queue/max_sectors_kb", kilobytes),
        ("queue/max_hw_sectors_kb", kilobytes),
        ("queue/max_segments", limits.max_bytes >> 12),
        ("queue/max_segment_size", limits.max_bytes),
        ("queue/discard_granularity", limits.discard_granularity.into()),
        ("queue/discard_max_bytes", limits.max_discard * SECTOR),
        ("queue/discard_max_hw_bytes", limits.max_discard * SECTOR),
        ("queue/discard_zeroes_data", 0),
        ("queue/write_zeroes_max_bytes", limits.max_write_zeroes * SECTOR),
        ("queue/write_same_max_bytes", 0),
        ("queue/fua", 0),
        ("queue/nr_requests", 128),
        ("queue/nr_zones", 0),
        ("queue/chunk_sectors", 0),
        ("queue/read_ahead_kb", 128),
        ("queue/rotational", 0),
        ("queue/add_random", 0),
        ("queue/iostats", 1),
        ("queue/nomerges", 2),
        ("queue/rq_affinity", 0),
        ("queue/dma_alignment", 511),
        ("queue/stable_writes", 0),
        ("queue/io_poll", 0),
    ] {
        spec = line(spec, name, value);
    }
    spec.attribute("serial", 0o444, text(volume, |volume| volume.disk.backend.serial().unwrap_or_default()))
}

/// Adds a partition's attributes.
pub(super) fn partition(spec: DeviceSpec, volume: &Arc<Volume>) -> DeviceSpec {
    common(spec, volume)
        .line("partition", &alloc::format!("{}", volume.number))
        .line("start", &alloc::format!("{}", volume.start))
}

/// `/proc/partitions`
pub fn partitions(out: &mut dyn Write) -> core::fmt::Result {
    out.write_str("major minor  #blocks  name\n\n")?;
    for volume in shown() {
        let (dev, blocks) = (volume.dev, volume.len() >> 10);
        writeln!(out, "{:4}  {:7} {blocks:10} {}", major(dev), minor(dev), volume.name())?;
    }
    Ok(())
}

/// `/proc/diskstats`
pub fn diskstats(out: &mut dyn Write) -> core::fmt::Result {
    for volume in disk::all_volumes() {
        let numbers: Vec<String> =
            numbers(&volume.statistics).split_whitespace().map(alloc::string::ToString::to_string).collect();
        writeln!(out, "{:4} {:7} {} {}", major(volume.dev), minor(volume.dev), volume.name(), numbers.join(" "))?;
    }
    Ok(())
}

/// The volumes that hold something.
fn shown() -> Vec<Arc<Volume>> {
    disk::all_volumes().into_iter().filter(|volume| volume.sectors() > 0).collect()
}
