//! What `/proc/PID` tells in text: `stat`, `status`, `statm`, command line, limits, accounting …
//!
//! Reference: proc(5), `fs/proc/array.c`, `fs/proc/base.c`.

use alloc::{string::String, sync::Arc, vec::Vec};
use core::{fmt::Write, sync::atomic::Ordering::Relaxed};

use ursa_hal::VirtAddr;

use super::{
    Text,
    pid::{Target, jump},
};
use crate::{
    Errno, Result,
    fs::{
        file::{File, FileOps, seek_from},
        inode::{Inode, InodeOps, LinkTarget},
        io::Sink,
    },
    process::{self, Cap, Process, Resource, Thread, capable, pid::Identity, usage::UsageTotals},
    sched::{self, SleepState},
};

const PAGE: u64 = 4096;
/// Clock ticks a second in user interfaces.
pub const USER_HZ: u64 = 100;

/// Nanoseconds as ticks of `USER_HZ`.
pub fn ticks(ns: u64) -> u64 {
    ns / (1_000_000_000 / USER_HZ)
}

/// The state letter and word of a thread.
fn state(target: &Target, thread: Option<&Arc<Thread>>) -> (char, &'static str) {
    let zombie = target.process().is_ok_and(|p| p.is_zombie());
    let Some(thread) = thread.filter(|_| !zombie) else { return ('Z', "zombie") };
    if thread.is_dead() {
        return ('Z', "zombie");
    }
    let Some(task) = thread.task() else { return ('Z', "zombie") };
    let sleep = sched::ext_of(&task).sleep_state();
    if sleep.contains(SleepState::TRACED) {
        ('t', "tracing stop")
    } else if sleep.contains(SleepState::STOPPED) {
        ('T', "stopped")
    } else if sleep.contains(SleepState::DEAD) {
        ('Z', "zombie")
    } else if sleep.contains(SleepState::INTERRUPTIBLE) {
        ('S', "sleeping")
    } else if sleep.intersects(SleepState::UNINTERRUPTIBLE | SleepState::KILLABLE) {
        ('D', "disk sleep")
    } else {
        ('R', "running")
    }
}

/// The figures of the thread, or of the whole process.
fn usage(target: &Target, process: &Process, thread: &Thread) -> UsageTotals {
    if target.is_task { thread.usage.totals() } else { process.usage() }
}

/// `/proc/PID/stat`
pub fn stat(target: &Target, out: &mut Text) -> Result {
    let process = target.process()?;
    let thread = target.thread()?;
    let (letter, _) = state(target, Some(&thread));
    let group = process.group();
    let seen = |identity: &Identity| identity.seen_from(target.namespace());
    let terminal = process.terminal();
    let tty = terminal.as_ref().map_or(0, |t| t.device_number());
    let tpgid = terminal.as_ref().and_then(|t| t.foreground_group()).map_or(-1, |group| seen(group.identity()));
    let used = usage(target, &process, &thread);
    let children = process.children_usage();
    let vm = process.try_vm();
    let memory = vm.as_ref().map(|vm| vm.usage()).unwrap_or_default();
    let layout = vm.as_ref().map(|vm| vm.layout());
    // Addresses are for those who may look into the process.
    let shown = target.may_inspect().is_ok();
    let at = |f: fn(&crate::mm::Layout) -> u64| layout.as_ref().filter(|_| shown).map_or(0, f);
    let task = thread.task();
    let params = task.as_ref().map(|t| sched::ext_of(t).params());
    let (nice, rt, policy) =
        params.map_or((0, 0, 0), |p| (i32::from(p.nice), i32::from(p.rt_priority), p.policy.raw()));
    let priority = if rt > 0 { -1 - rt } else { 20 + nice };
    let actions = process.signals.actions();
    let (ignored, caught) = actions.ignored_and_caught();
    let blocked = thread.signals.blocked();
    let pending = thread.signals.pending();
    let exit_status = if shown { process.exit_status() } else { 0 };
    write!(
        out,
        "{} ({}) {} {} {} {} {} {} {} ",
        target.shown_id(),
        thread.name(),
        letter,
        process.parent_seen_from(target.namespace()),
        seen(group.identity()),
        seen(group.session().identity()),
        tty,
        tpgid,
        // PF_FORKNOEXEC for a process that has not executed a program since its fork.
        if process.has_execed() { 0x40_0000 } else { 0x40_0040 },
    )?;
    write!(
        out,
        "{} {} {} {} {} {} {} {} {} {} {} 0 {} {} {} {} ",
        used.minor_faults,
        children.minor_faults,
        used.major_faults,
        children.major_faults,
        ticks(used.user_ns),
        ticks(used.system_ns),
        ticks(children.user_ns),
        ticks(children.system_ns),
        priority,
        nice,
        process.live_threads().max(1),
        ticks(if target.is_task { thread.start_ns() } else { process.start_ns() }),
        memory.vm_size * PAGE,
        memory.rss(),
        process.rlimits.soft(Resource::Rss),
    )?;
    write!(
        out,
        "{} {} {} 0 0 {} {} {} {} 0 0 0 {} {} {} {} 0 0 0 {} {} {} {} {} {} {} {}",
        at(|l| l.start_code),
        at(|l| l.end_code),
        at(|l| l.start_stack),
        pending.0 & 0x7fff_ffff,
        blocked.0 & 0x7fff_ffff,
        ignored.0 & 0x7fff_ffff,
        caught.0 & 0x7fff_ffff,
        process.exit_signal(),
        task.as_ref().map_or(0, |t| sched::ext_of(t).cpu()),
        rt,
        policy,
        at(|l| l.start_data),
        at(|l| l.end_data),
        at(|l| l.start_brk),
        at(|l| l.arg_start),
        at(|l| l.arg_end),
        at(|l| l.env_start),
        at(|l| l.env_end),
        exit_status,
    )?;
    out.push('\n');
    Ok(())
}

fn set(out: &mut Text, label: &str, value: u64) -> Result {
    Ok(writeln!(out, "{label}:\t{value:016x}")?)
}

/// `/proc/PID/status`
pub fn status(target: &Target, out: &mut Text) -> Result {
    let process = target.process()?;
    let thread = target.thread()?;
    let (letter, word) = state(target, Some(&thread));
    let cred = thread.cred();
    let name: String = thread.name().chars().flat_map(escape).collect();
    writeln!(out, "Name:\t{name}")?;
    if !process.is_zombie() {
        writeln!(out, "Umask:\t{:04o}", thread.fs().umask())?;
    }
    writeln!(out, "State:\t{letter} ({word})")?;
    let namespace = target.namespace();
    let tracer = crate::ptrace::tracer_id(&thread, namespace);
    writeln!(
        out,
        "Tgid:\t{}\nNgid:\t0\nPid:\t{}\nPPid:\t{}\nTracerPid:\t{}",
        process.seen_from(namespace),
        thread.identity().seen_from(namespace),
        process.parent_seen_from(namespace),
        tracer
    )?;
    writeln!(out, "Uid:\t{}\t{}\t{}\t{}", cred.uid, cred.euid, cred.suid, cred.fsuid)?;
    writeln!(out, "Gid:\t{}\t{}\t{}\t{}", cred.gid, cred.egid, cred.sgid, cred.fsgid)?;
    writeln!(out, "FDSize:\t{}", if process.is_zombie() { 0 } else { thread.files().capacity() })?;
    out.push_str("Groups:\t");
    for group in cred.groups.iter() {
        write!(out, "{group} ")?;
    }
    let group = process.group();
    out.push('\n');
    let path = process.pid_namespace().path();
    for (label, identity) in [
        ("NStgid", process.identity()),
        ("NSpid", &thread.identity()),
        ("NSpgid", group.identity()),
        ("NSsid", group.session().identity()),
    ] {
        write!(out, "{label}:")?;
        let deeper = path.iter().skip(namespace.level());
        deeper.map(|at| identity.seen_from(at)).try_for_each(|number| write!(out, "\t{number}"))?;
        out.push('\n');
    }
    out.push_str("Kthread:\t0\n");
    if let Some(vm) = process.try_vm().filter(|_| !process.is_zombie()) {
        let m = vm.usage();
        for (label, pages) in [
            ("VmPeak", m.vm_peak),
            ("VmSize", m.vm_size),
            ("VmLck", m.vm_lck),
            ("VmPin", 0),
            ("VmHWM", m.vm_hwm),
            ("VmRSS", m.rss()),
            ("RssAnon", m.rss_anon),
            ("RssFile", m.rss_file),
            ("RssShmem", m.rss_shmem),
            ("VmData", m.vm_data),
            ("VmStk", m.vm_stk),
            ("VmExe", m.vm_exe),
            ("VmLib", m.vm_lib),
            ("VmPTE", m.vm_pte),
            ("VmSwap", 0),
            ("HugetlbPages", 0),
        ] {
            writeln!(out, "{label}:\t{:>8} kB", pages * (PAGE / 1024))?;
        }
        writeln!(out, "CoreDumping:\t{}", u32::from(process.is_dumping()))?;
        writeln!(out, "THP_enabled:\t{}", u32::from(!process.wants_no_huge_pages()))?;
        out.push_str("untag_mask:\t0xffffffffffffffff\n");
    }
    writeln!(out, "Threads:\t{}", process.live_threads().max(1))?;
    let queued = cred.user.pending_signals.load(Relaxed);
    writeln!(out, "SigQ:\t{}/{}", queued, process.rlimits.soft(Resource::Sigpending))?;
    let (ignored, caught) = process.signals.actions().ignored_and_caught();
    set(out, "SigPnd", thread.signals.pending().0)?;
    set(out, "ShdPnd", process.signals.pending().0)?;
    set(out, "SigBlk", thread.signals.blocked().0)?;
    set(out, "SigIgn", ignored.0)?;
    set(out, "SigCgt", caught.0)?;
    set(out, "CapInh", cred.inheritable.bits())?;
    set(out, "CapPrm", cred.permitted.bits())?;
    set(out, "CapEff", cred.effective.bits())?;
    set(out, "CapBnd", cred.bounding.bits())?;
    set(out, "CapAmb", cred.ambient.bits())?;
    writeln!(out, "NoNewPrivs:\t{}", u32::from(cred.no_new_privs))?;
    out.push_str("Seccomp:\t0\nSeccomp_filters:\t0\n");
    out.push_str("Speculation_Store_Bypass:\tnot vulnerable\nSpeculationIndirectBranch:\tunknown\n");
    let online = sched::online_cpus();
    let allowed = thread.task().map_or(online, |t| sched::ext_of(&t).affinity() & online);
    writeln!(out, "Cpus_allowed:\t{}", mask_words(allowed))?;
    writeln!(out, "Cpus_allowed_list:\t{}", mask_list(allowed))?;
    out.push_str("Mems_allowed:\t1\nMems_allowed_list:\t0\n");
    writeln!(out, "voluntary_ctxt_switches:\t{}", thread.usage.totals().voluntary_switches)?;
    writeln!(out, "nonvoluntary_ctxt_switches:\t{}", thread.usage.totals().involuntary_switches)?;
    // Shadow stacks are not offered, so no thread has a feature.
    out.push_str("x86_Thread_features:\t\nx86_Thread_features_locked:\t\n");
    Ok(())
}

/// A character of a name as `status` shows it.
fn escape(c: char) -> alloc::vec::IntoIter<char> {
    let text: Vec<char> = match c {
        '\n' => Vec::from(['\\', 'n']),
        '\\' => Vec::from(['\\', '\\']),
        c => Vec::from([c]),
    };
    text.into_iter()
}

/// A CPU mask as hexadecimal words of 32 bits: what is online decides how many digits there are.
pub fn mask_words(mask: u64) -> String {
    let cpus = ursa_hal::smp::cpu_count().max(1);
    if cpus <= 32 {
        alloc::format!("{:0width$x}", mask, width = cpus.div_ceil(4))
    } else {
        alloc::format!("{:0width$x},{:08x}", mask >> 32, mask & 0xffff_ffff, width = (cpus - 32).div_ceil(4))
    }
}

/// A CPU mask as a list of ranges: `0-3,6`.
pub fn mask_list(mask: u64) -> String {
    let mut out = String::new();
    let mut cpu = 0;
    while cpu < 64 {
        if mask >> cpu & 1 == 0 {
            cpu += 1;
            continue;
        }
        let first = cpu;
        while cpu < 63 && mask >> (cpu + 1) & 1 != 0 {
            cpu += 1;
        }
        let comma = if out.is_empty() { "" } else { "," };
        let _ = if first == cpu { write!(out, "{comma}{first}") } else { write!(out, "{comma}{first}-{cpu}") };
        cpu += 1;
    }
    out
}

/// `/proc/PID/statm`
pub fn statm(target: &Target, out: &mut Text) -> Result {
    let m = target.process()?.try_vm().map(|vm| vm.usage()).unwrap_or_default();
    writeln!(out, "{} {} {} {} 0 {} 0", m.vm_size, m.rss(), m.rss_file + m.rss_shmem, m.code, m.vm_data + m.vm_stk)?;
    Ok(())
}

/// Memory of another process, as much of it as is there.
fn remote(target: &Target, start: u64, end: u64) -> Result<Vec<u8>> {
    let Some(vm) = target.process()?.try_vm() else { return Ok(Vec::new()) };
    let len = usize::try_from(end.saturating_sub(start)).unwrap_or(0).min(2 << 20);
    let mut buf = alloc::vec![0; len];
    let n = vm.read_remote(VirtAddr::new(start), &mut buf).unwrap_or(0);
    buf.truncate(n);
    Ok(buf)
}

/// `/proc/PID/cmdline`
pub fn cmdline(target: &Target, out: &mut Text) -> Result {
    let process = target.process()?;
    let Some(layout) = process.try_vm().map(|vm| vm.layout()) else { return Ok(()) };
    if layout.arg_end <= layout.arg_start {
        return Ok(());
    }
    let mut bytes = remote(target, layout.arg_start, layout.arg_end)?;
    // A program that overwrote the final NUL has put a title there: it may run on into the environment.
    if bytes.last().is_some_and(|b| *b != 0) {
        let more = remote(target, layout.arg_end, layout.env_end)?;
        bytes.extend(more);
        let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
        bytes.truncate(end);
    }
    out.push_bytes(&bytes);
    Ok(())
}

/// `/proc/PID/environ`
pub fn environ(target: &Target, out: &mut Text) -> Result {
    let process = target.process()?;
    let Some(layout) = process.try_vm().map(|vm| vm.layout()) else { return Ok(()) };
    let bytes = remote(target, layout.env_start, layout.env_end)?;
    out.push_bytes(&bytes);
    Ok(())
}

/// `/proc/PID/auxv`: the vector as the program got it, in binary.
pub struct Auxv {
    /// Whose.
    pub target: Target,
}

impl InodeOps for Auxv {
    fn open(&self, _inode: &Arc<Inode>, _flags: u32) -> Result<Arc<dyn FileOps>> {
        self.target.may_inspect()?;
        let bytes = self.target.process()?.try_vm().map(|vm| vm.auxv()).unwrap_or_default();
        Ok(Arc::new(Bytes(bytes)))
    }
}

/// A file of fixed bytes.
struct Bytes(Vec<u8>);

impl FileOps for Bytes {
    fn read(&self, _f: &File, dst: &mut Sink<'_>, pos: u64) -> Result<usize> {
        let from = usize::try_from(pos).unwrap_or(usize::MAX).min(self.0.len());
        dst.put(&self.0[from..])
    }

    fn is_stream(&self) -> bool {
        false
    }

    fn seek(&self, _f: &File, offset: i64, whence: u32, pos: u64) -> Result<u64> {
        seek_from(offset, whence, pos, None)
    }
}

/// `/proc/PID/personality`
pub fn personality(target: &Target, out: &mut Text) -> Result {
    writeln!(out, "{:08x}", target.thread()?.personality.load(Relaxed))?;
    Ok(())
}

/// `/proc/PID/limits`
pub fn limits(target: &Target, out: &mut Text) -> Result {
    const NAMES: [(Resource, &str, &str); 16] = [
        (Resource::Cpu, "Max cpu time", "seconds"),
        (Resource::Fsize, "Max file size", "bytes"),
        (Resource::Data, "Max data size", "bytes"),
        (Resource::Stack, "Max stack size", "bytes"),
        (Resource::Core, "Max core file size", "bytes"),
        (Resource::Rss, "Max resident set", "bytes"),
        (Resource::Nproc, "Max processes", "processes"),
        (Resource::Nofile, "Max open files", "files"),
        (Resource::Memlock, "Max locked memory", "bytes"),
        (Resource::As, "Max address space", "bytes"),
        (Resource::Locks, "Max file locks", "locks"),
        (Resource::Sigpending, "Max pending signals", "signals"),
        (Resource::Msgqueue, "Max msgqueue size", "bytes"),
        (Resource::Nice, "Max nice priority", ""),
        (Resource::Rtprio, "Max realtime priority", ""),
        (Resource::Rttime, "Max realtime timeout", "us"),
    ];
    let process = target.process()?;
    writeln!(out, "{:<25} {:<20} {:<20} {:<10}", "Limit", "Soft Limit", "Hard Limit", "Units")?;
    for (resource, name, unit) in NAMES {
        write!(out, "{name:<25} ")?;
        for value in [process.rlimits.soft(resource), process.rlimits.hard(resource)] {
            if value == u64::MAX {
                write!(out, "{:<20} ", "unlimited")?;
            } else {
                write!(out, "{value:<20} ")?;
            }
        }
        if unit.is_empty() {
            out.push('\n');
        } else {
            writeln!(out, "{unit:<10}")?;
        }
    }
    Ok(())
}

/// `/proc/PID/comm`
pub fn comm(target: &Target, out: &mut Text) -> Result {
    writeln!(out, "{}", target.thread()?.name())?;
    Ok(())
}

/// Writing `comm`: a thread of one's own process.
pub fn set_comm(target: &Target, text: &str) -> Result {
    let thread = target.thread()?;
    if !Arc::ptr_eq(thread.process(), process::current().process()) {
        return Err(Errno::EINVAL);
    }
    thread.set_name(text.as_bytes());
    Ok(())
}

/// `/proc/PID/sched`: the figures without the debugging ones.
pub fn sched(target: &Target, out: &mut Text) -> Result {
    let process = target.process()?;
    let thread = target.thread()?;
    writeln!(out, "{} ({}, #threads: {})", thread.name(), target.shown_id(), process.live_threads())?;
    out.push_str("-------------------------------------------------------------------\n");
    let t = thread.usage.totals();
    let runtime = thread.task().map_or(0, |task| sched::ext_of(&task).run_ns());
    for (name, value) in [
        ("nr_switches", t.voluntary_switches + t.involuntary_switches),
        ("nr_voluntary_switches", t.voluntary_switches),
        ("nr_involuntary_switches", t.involuntary_switches),
    ] {
        writeln!(out, "{name:<45}:{value:>21}")?;
    }
    writeln!(out, "{:<45}:{:>14}.{:06}", "se.sum_exec_runtime", runtime / 1_000_000, runtime % 1_000_000)?;
    if let Some(task) = thread.task() {
        let params = sched::ext_of(&task).params();
        let prio =
            if params.policy.is_realtime() { 99 - i32::from(params.rt_priority) } else { 120 + i32::from(params.nice) };
        writeln!(out, "{:<45}:{:>21}", "policy", params.policy.raw())?;
        writeln!(out, "{:<45}:{prio:>21}", "prio")?;
    }
    Ok(())
}

/// `/proc/PID/timers`: timer_create(2)'s timers of the process.
pub fn timers(target: &Target, out: &mut Text) -> Result {
    let process = target.process()?;
    process.signals.timers.show(&process, out)
}

/// `/proc/PID/schedstat`
pub fn schedstat(target: &Target, out: &mut Text) -> Result {
    let thread = target.thread()?;
    let t = thread.usage.totals();
    let (run, wait) =
        thread.task().map_or((0, 0), |task| (sched::ext_of(&task).run_ns(), sched::ext_of(&task).wait_ns()));
    writeln!(out, "{run} {wait} {}", t.voluntary_switches + t.involuntary_switches)?;
    Ok(())
}

/// `/proc/PID/cgroup`
pub fn cgroup(target: &Target, out: &mut Text) -> Result {
    let group = crate::fs::cgroup::group_of(&*target.thread()?);
    out.push_str("0::");
    out.push_bytes(&group.path());
    out.push_str(if group.is_dead() { " (deleted)\n" } else { "\n" });
    Ok(())
}

/// `/proc/PID/oom_score`
pub fn oom_score(target: &Target, out: &mut Text) -> Result {
    let score = target.process()?.try_vm().map_or(0, |vm| crate::mm::oom::score(&vm));
    writeln!(out, "{score}")?;
    Ok(())
}

/// `/proc/PID/oom_score_adj`
pub fn oom_score_adj(target: &Target, out: &mut Text) -> Result {
    writeln!(out, "{}", target.process()?.oom_score_adj.load(Relaxed))?;
    Ok(())
}

fn change_oom(target: &Target, value: i32) -> Result {
    let process = target.process()?;
    let old = process.oom_score_adj.load(Relaxed);
    if value < old && !capable(Cap::SysResource) {
        return Err(Errno::EACCES);
    }
    process.oom_score_adj.store(value, Relaxed);
    if let Some(vm) = process.try_vm() {
        vm.set_oom_score_adj(value);
    }
    Ok(())
}

/// Writing `oom_score_adj`.
pub fn set_oom_score_adj(target: &Target, text: &str) -> Result {
    let value: i32 = text.trim().parse().map_err(|_| Errno::EINVAL)?;
    if !(-1000..=1000).contains(&value) {
        return Err(Errno::EINVAL);
    }
    change_oom(target, value)
}

/// `/proc/PID/oom_adj`, the old scale from -17 to 15.
pub fn oom_adj(target: &Target, out: &mut Text) -> Result {
    let value = target.process()?.oom_score_adj.load(Relaxed);
    writeln!(out, "{}", if value == 1000 { 15 } else { value * 17 / 1000 })?;
    Ok(())
}

/// Writing `oom_adj`.
pub fn set_oom_adj(target: &Target, text: &str) -> Result {
    let value: i32 = text.trim().parse().map_err(|_| Errno::EINVAL)?;
    match value {
        15 => change_oom(target, 1000),
        -17..=14 => change_oom(target, value * 1000 / 17),
        _ => Err(Errno::EINVAL),
    }
}

/// `/proc/PID/loginuid`: nobody has set one (there is no audit system to keep it).
pub fn loginuid(_target: &Target, out: &mut Text) -> Result {
    out.push_str("4294967295");
    Ok(())
}

/// Writing `loginuid`: as on a kernel whose audit system is switched off, the number is checked and not kept.
pub fn set_loginuid(target: &Target, text: &str) -> Result {
    if !Arc::ptr_eq(&target.process()?, process::current().process()) {
        return Err(Errno::EPERM);
    }
    text.trim().parse::<u32>().map(|_| ()).map_err(|_| Errno::EINVAL)
}

/// `/proc/PID/sessionid`
pub fn sessionid(_target: &Target, out: &mut Text) -> Result {
    out.push_str("4294967295");
    Ok(())
}

/// `/proc/PID/coredump_filter`
pub fn coredump_filter(target: &Target, out: &mut Text) -> Result {
    writeln!(out, "{:08x}", target.process()?.coredump_filter.load(Relaxed))?;
    Ok(())
}

/// Writing `coredump_filter`.
pub fn set_coredump_filter(target: &Target, text: &str) -> Result {
    let text = text.trim();
    let value = match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16),
        None => text.parse(),
    };
    target.process()?.coredump_filter.store(value.map_err(|_| Errno::EINVAL)? & 0x1ff, Relaxed);
    Ok(())
}

/// `/proc/PID/io`
pub fn io(target: &Target, out: &mut Text) -> Result {
    let process = target.process()?;
    let thread = target.thread()?;
    let u = usage(target, &process, &thread);
    writeln!(
        out,
        "rchar: {}\nwchar: {}\nsyscr: {}\nsyscw: {}\nread_bytes: {}\nwrite_bytes: {}\ncancelled_write_bytes: 0",
        u.read_bytes, u.written_bytes, u.read_calls, u.write_calls, u.storage_read_bytes, u.storage_written_bytes
    )?;
    Ok(())
}

/// `/proc/PID/uid_map`, `gid_map`: the initial user name space.
pub fn id_map(_target: &Target, out: &mut Text) -> Result {
    writeln!(out, "{:>10} {:>10} {:>10}", 0, 0, u32::MAX)?;
    Ok(())
}

/// `/proc/PID/timerslack_ns`
pub fn timerslack(target: &Target, out: &mut Text) -> Result {
    writeln!(out, "{}", target.thread()?.timer_slack_ns.load(Relaxed))?;
    Ok(())
}

/// `/proc/PID/task/TID/children`
pub fn children(target: &Target, out: &mut Text) -> Result {
    let process = target.process()?;
    if !target.thread()?.is_leader() {
        return Ok(());
    }
    for child in process.children() {
        write!(out, "{} ", child.seen_from(target.namespace()))?;
    }
    Ok(())
}

/// `/proc/PID/cwd`
pub fn cwd(target: &Target) -> Result<LinkTarget> {
    if target.process()?.is_zombie() {
        return Err(Errno::ENOENT);
    }
    jump(target.thread()?.fs().cwd())
}

/// `/proc/PID/root`
pub fn root(target: &Target) -> Result<LinkTarget> {
    if target.process()?.is_zombie() {
        return Err(Errno::ENOENT);
    }
    jump(target.thread()?.fs().root())
}

/// `/proc/PID/exe`
pub fn exe(target: &Target) -> Result<LinkTarget> {
    let vm = target.process()?.try_vm().ok_or(Errno::ENOENT)?;
    let file = vm.exe().ok_or(Errno::ENOENT)?;
    jump(crate::fs::anon::path_of(&file)?)
}
