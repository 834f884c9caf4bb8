//! `/proc/sys`: kernel parameters.
//!
//! A parameter is a number or a text that some module owns; here are its name, who may write it and its range. Parameters
//! whose only value is the one shown are read-only.
//!
//! References: `Documentation/admin-guide/sysctl/`, proc_sys_kernel(5), proc_sys_fs(5), proc_sys_vm(5).

use alloc::string::String;
use core::{
    fmt::Write,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};

use ursa_hal::sync::Once;

use super::{Text, node::Generator, register, register_text, system::uts_field};
use crate::{
    Errno, Result, coredump,
    fs::{dentry, fdtable, lease, mount::namespace::MOUNT_MAX, permission},
    ipc::{self, mqueue::fs::Tunables, sysv::NextId},
    net::inet::{datagram, ip, ports, tcp},
    process::{self, Cap, capable, rng, syscall::system},
    syslog,
};

/// A number in an atomic, within a range.
struct Number {
    value: &'static AtomicU32,
    min: u32,
    max: u32,
}

impl Generator for Number {
    fn show(&self, out: &mut Text) -> Result {
        writeln!(out, "{}", self.value.load(Relaxed))?;
        Ok(())
    }

    fn store(&self, text: &str) -> Result {
        let value: u32 = text.trim().parse().map_err(|_| Errno::EINVAL)?;
        if !(self.min..=self.max).contains(&value) {
            return Err(Errno::EINVAL);
        }
        self.value.store(value, Relaxed);
        Ok(())
    }
}

impl Generator for NextId {
    fn show(&self, out: &mut Text) -> Result {
        writeln!(out, "{}", self.get())?;
        Ok(())
    }

    fn store(&self, text: &str) -> Result {
        self.set(text.trim().parse().map_err(|_| Errno::EINVAL)?)
    }
}

/// A text that can be changed, with what happens then.
struct Editable {
    show: fn(&mut Text) -> Result,
    store: fn(&str) -> Result,
}

impl Generator for Editable {
    fn show(&self, out: &mut Text) -> Result {
        (self.show)(out)
    }

    fn store(&self, text: &str) -> Result {
        (self.store)(text)
    }
}

/// A fixed text.
fn fixed(path: &str, text: &'static str) -> Result {
    register_text(path, move |out| {
        out.push_str(text);
        out.push('\n');
        Ok(())
    })
}

fn number(path: &str, value: &'static AtomicU32, min: u32, max: u32) -> Result {
    register(path, 0o644, Number { value, min, max })
}

/// Eight hexadecimal groups as a UUID of version 4.
fn uuid(bytes: [u8; 16]) -> String {
    let mut bytes = bytes;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut out = String::new();
    for (i, byte) in bytes.iter().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            out.push('-');
        }
        let _ = write!(out, "{byte:02x}");
    }
    out
}

fn random_uuid() -> String {
    let mut bytes = [0; 16];
    rng::fill(&mut bytes);
    uuid(bytes)
}

static PTRACE_SCOPE: AtomicU32 = AtomicU32::new(0);
static PANIC: AtomicU32 = AtomicU32::new(0);
static SYSRQ: AtomicU32 = AtomicU32::new(0x1b6);
static SWAPPINESS: AtomicU32 = AtomicU32::new(60);
static MAX_MAP_COUNT: AtomicU32 = AtomicU32::new(65530);

/// Registers the parameters.
pub fn init() -> Result {
    kernel()?;
    files()?;
    memory()?;
    net()
}

fn kernel() -> Result {
    register(
        "sys/kernel/hostname",
        0o644,
        Editable {
            show: |out| {
                writeln!(out, "{}", uts_field(&system::utsname().nodename))?;
                Ok(())
            },
            store: |text| system::set_hostname(text.as_bytes()),
        },
    )?;
    register(
        "sys/kernel/domainname",
        0o644,
        Editable {
            show: |out| {
                writeln!(out, "{}", uts_field(&system::utsname().domainname))?;
                Ok(())
            },
            store: |text| system::set_domainname(text.as_bytes()),
        },
    )?;
    for (name, field) in [
        ("ostype", (|u| uts_field(&u.sysname).into()) as fn(&linux_uapi::process::Utsname) -> String),
        ("osrelease", |u| uts_field(&u.release).into()),
        ("version", |u| uts_field(&u.version).into()),
    ] {
        register_text(&alloc::format!("sys/kernel/{name}"), move |out| {
            writeln!(out, "{}", field(&system::utsname()))?;
            Ok(())
        })?;
    }
    fixed("sys/kernel/arch", "x86_64")?;
    register_text("sys/kernel/pid_max", |out| {
        writeln!(out, "{}", process::pid::PID_MAX)?;
        Ok(())
    })?;
    register_text("sys/kernel/threads-max", |out| {
        writeln!(out, "{}", process::fork::threads_max())?;
        Ok(())
    })?;
    register_text("sys/kernel/cap_last_cap", |out| {
        writeln!(out, "{}", process::caps::CAP_LAST)?;
        Ok(())
    })?;
    register_text("sys/kernel/ngroups_max", |out| {
        writeln!(out, "{}", process::cred::NGROUPS_MAX)?;
        Ok(())
    })?;
    register(
        "sys/kernel/core_pattern",
        0o644,
        Editable {
            show: |out| {
                out.push_str(&coredump::core_pattern());
                out.push('\n');
                Ok(())
            },
            store: coredump::set_core_pattern,
        },
    )?;
    number("sys/kernel/core_uses_pid", &coredump::CORE_USES_PID, 0, 1)?;
    number("sys/kernel/core_pipe_limit", &coredump::PIPE_LIMIT, 0, i32::MAX as u32)?;
    fixed("sys/kernel/randomize_va_space", "2")?;
    fixed("sys/kernel/overflowuid", "65534")?;
    fixed("sys/kernel/overflowgid", "65534")?;
    register(
        "sys/kernel/printk",
        0o644,
        Editable {
            show: |out| {
                let [console, message, minimum, default] = syslog::levels();
                writeln!(out, "{console}\t{message}\t{minimum}\t{default}")?;
                Ok(())
            },
            store: syslog::set_levels,
        },
    )?;
    fixed("sys/kernel/tainted", "0")?;
    fixed("sys/kernel/kptr_restrict", "2")?;
    fixed("sys/kernel/perf_event_paranoid", "4")?;
    fixed("sys/kernel/unprivileged_bpf_disabled", "2")?;
    fixed("sys/kernel/modules_disabled", "1")?;
    fixed("sys/kernel/kexec_load_disabled", "1")?;
    fixed("sys/kernel/sched_rt_period_us", "1000000")?;
    fixed("sys/kernel/sched_rt_runtime_us", "950000")?;
    fixed("sys/kernel/sched_autogroup_enabled", "0")?;
    fixed("sys/kernel/sem", "32000\t1024000000\t500\t32000")?;
    fixed("sys/kernel/shmmax", "18446744073692774399")?;
    fixed("sys/kernel/shmall", "18446744073692774399")?;
    fixed("sys/kernel/shmmni", "4096")?;
    fixed("sys/kernel/msgmax", "8192")?;
    fixed("sys/kernel/msgmnb", "16384")?;
    fixed("sys/kernel/msgmni", "32000")?;
    for (name, next) in [("shm", NextId::Shm), ("sem", NextId::Sem), ("msg", NextId::Msg)] {
        register(&alloc::format!("sys/kernel/{name}_next_id"), 0o644, next)?;
    }
    register(
        "sys/kernel/acct",
        0o644,
        Editable {
            show: |out| {
                let [resume, suspend, seconds] = &process::acct::LIMITS;
                writeln!(out, "{}\t{}\t{}", resume.load(Relaxed), suspend.load(Relaxed), seconds.load(Relaxed))?;
                Ok(())
            },
            store: |text| {
                for (limit, number) in process::acct::LIMITS.iter().zip(text.split_ascii_whitespace()) {
                    limit.store(number.parse().map_err(|_| Errno::EINVAL)?, Relaxed);
                }
                Ok(())
            },
        },
    )?;
    register(
        "sys/kernel/dmesg_restrict",
        0o644,
        Editable {
            show: |out| {
                writeln!(out, "{}", u8::from(syslog::RESTRICTED.load(Relaxed)))?;
                Ok(())
            },
            store: syslog::set_restricted,
        },
    )?;
    number("sys/kernel/panic", &PANIC, 0, u32::MAX)?;
    number("sys/kernel/sysrq", &SYSRQ, 0, 0x1ff)?;
    number("sys/kernel/yama/ptrace_scope", &PTRACE_SCOPE, 0, 3)?;
    static BOOT_ID: Once<String> = Once::new();
    register_text("sys/kernel/random/boot_id", |out| {
        writeln!(out, "{}", BOOT_ID.call_once(random_uuid))?;
        Ok(())
    })?;
    register_text("sys/kernel/random/uuid", |out| {
        writeln!(out, "{}", random_uuid())?;
        Ok(())
    })?;
    fixed("sys/kernel/random/entropy_avail", "256")?;
    fixed("sys/kernel/random/poolsize", "256")?;
    fixed("sys/kernel/random/urandom_min_reseed_secs", "60")?;
    fixed("sys/kernel/random/write_wakeup_threshold", "256")?;
    super::register_dir("sys/kernel/keys")?;
    crate::namespace::init()?;
    super::register_dir("sys/debug")?;
    super::register_dir("sys/dev")
}

fn files() -> Result {
    // `sysctl_nr_open_min`, `sysctl_nr_open_max`.
    number("sys/fs/nr_open", &fdtable::NR_OPEN, 64, i32::MAX as u32 & !63)?;
    fixed("sys/fs/file-max", "9223372036854775807")?;
    register_text("sys/fs/file-nr", |out| {
        let open: usize =
            process::processes().iter().filter_map(|p| p.representative()).map(|t| t.files().count()).sum();
        writeln!(out, "{open}\t0\t9223372036854775807")?;
        Ok(())
    })?;
    register_text("sys/fs/inode-nr", |out| {
        writeln!(out, "{}\t0", dentry::cached_entries())?;
        Ok(())
    })?;
    register_text("sys/fs/inode-state", |out| {
        writeln!(out, "{}\t0\t0\t0\t0\t0\t0", dentry::cached_entries())?;
        Ok(())
    })?;
    register_text("sys/fs/dentry-state", |out| {
        writeln!(out, "{}\t0\t45\t0\t0\t0", dentry::cached_entries())?;
        Ok(())
    })?;
    fixed("sys/fs/pipe-max-size", "1048576")?;
    fixed("sys/fs/pipe-user-pages-hard", "0")?;
    fixed("sys/fs/pipe-user-pages-soft", "16384")?;
    number("sys/fs/mount-max", &MOUNT_MAX, 1, i32::MAX as u32)?;
    number("sys/fs/lease-break-time", &lease::BREAK_TIME, 0, i32::MAX as u32)?;
    number("sys/fs/leases-enable", &lease::ENABLED, 0, i32::MAX as u32)?;
    fixed("sys/fs/aio-max-nr", "65536")?;
    fixed("sys/fs/aio-nr", "0")?;
    fixed("sys/fs/overflowuid", "65534")?;
    fixed("sys/fs/overflowgid", "65534")?;
    fixed("sys/fs/epoll/max_user_watches", "1048576")?;
    fixed("sys/fs/inotify/max_queued_events", "16384")?;
    fixed("sys/fs/inotify/max_user_instances", "128")?;
    fixed("sys/fs/inotify/max_user_watches", "1048576")?;
    mqueues()?;
    super::register_dir("sys/fs/binfmt_misc")?;
    number("sys/fs/suid_dumpable", &coredump::SUID_DUMPABLE, 0, 2)?;
    number("sys/fs/protected_symlinks", &permission::PROTECTED_SYMLINKS, 0, 1)?;
    number("sys/fs/protected_hardlinks", &permission::PROTECTED_HARDLINKS, 0, 1)?;
    number("sys/fs/protected_fifos", &permission::PROTECTED_FIFOS, 0, 2)?;
    number("sys/fs/protected_regular", &permission::PROTECTED_REGULAR, 0, 2)
}

/// A limit of the message queues of the caller's IPC namespace.
struct QueueLimit {
    field: fn(&Tunables) -> &AtomicU32,
    min: u32,
    max: u32,
}

impl Generator for QueueLimit {
    fn show(&self, out: &mut Text) -> Result {
        writeln!(out, "{}", (self.field)(&ipc::namespace::current().mqueue.tunables).load(Relaxed))?;
        Ok(())
    }

    fn store(&self, text: &str) -> Result {
        let value: u32 = text.trim().parse().map_err(|_| Errno::EINVAL)?;
        if !(self.min..=self.max).contains(&value) {
            return Err(Errno::EINVAL);
        }
        (self.field)(&ipc::namespace::current().mqueue.tunables).store(value, Relaxed);
        Ok(())
    }
}

fn mqueues() -> Result {
    type Field = fn(&Tunables) -> &AtomicU32;
    for (name, field, min, max) in [
        ("queues_max", (|of| &of.queues_max) as Field, 0, i32::MAX as u32),
        ("msg_max", |of| &of.msg_max, 1, 65_536),
        ("msgsize_max", |of| &of.msgsize_max, 128, 16 << 20),
        ("msg_default", |of| &of.msg_default, 1, 65_536),
        ("msgsize_default", |of| &of.msgsize_default, 128, 16 << 20),
    ] {
        register(&alloc::format!("sys/fs/mqueue/{name}"), 0o644, QueueLimit { field, min, max })?;
    }
    Ok(())
}

fn memory() -> Result {
    use crate::mm::account::{OVERCOMMIT, OVERCOMMIT_RATIO};
    number("sys/vm/overcommit_memory", &OVERCOMMIT, 0, 2)?;
    number("sys/vm/overcommit_ratio", &OVERCOMMIT_RATIO, 0, 1000)?;
    number("sys/vm/swappiness", &SWAPPINESS, 0, 200)?;
    number("sys/vm/max_map_count", &MAX_MAP_COUNT, 65530, 65530)?;
    register(
        "sys/vm/drop_caches",
        0o200,
        Editable {
            show: |_| Err(Errno::EACCES),
            store: |text| match text.trim() {
                what @ ("1" | "2" | "3" | "4") => {
                    if !capable(Cap::SysAdmin) {
                        return Err(Errno::EPERM);
                    }
                    if matches!(what, "1" | "3") {
                        crate::mm::reclaim::drop_caches();
                    }
                    if matches!(what, "2" | "3") {
                        dentry::shrink_cache(dentry::cached_entries());
                    }
                    Ok(())
                }
                _ => Err(Errno::EINVAL),
            },
        },
    )?;
    fixed("sys/vm/mmap_min_addr", "65536")?;
    fixed("sys/vm/mmap_rnd_bits", "28")?;
    fixed("sys/vm/legacy_va_layout", "0")?;
    fixed("sys/vm/dirty_ratio", "20")?;
    fixed("sys/vm/dirty_background_ratio", "10")?;
    fixed("sys/vm/dirty_expire_centisecs", "3000")?;
    fixed("sys/vm/dirty_writeback_centisecs", "500")?;
    fixed("sys/vm/nr_hugepages", "0")?;
    fixed("sys/vm/oom_kill_allocating_task", "0")?;
    fixed("sys/vm/panic_on_oom", "0")?;
    fixed("sys/vm/vfs_cache_pressure", "100")?;
    register(
        "sys/vm/memfd_noexec",
        0o644,
        Editable {
            show: |out| {
                writeln!(out, "{}", process::current().process().pid_namespace().memfd_noexec())?;
                Ok(())
            },
            store: |text| {
                if !capable(Cap::SysAdmin) {
                    return Err(Errno::EPERM);
                }
                let value = text.trim().parse().map_err(|_| Errno::EINVAL)?;
                process::current().process().pid_namespace().set_memfd_noexec(value)
            },
        },
    )
}

fn pair(out: &mut Text, [a, b]: [&AtomicU32; 2]) -> Result {
    writeln!(out, "{}\t{}", a.load(Relaxed), b.load(Relaxed))?;
    Ok(())
}

fn two_numbers(text: &str) -> Result<(u32, u32)> {
    let mut numbers = text.split_ascii_whitespace().map(|n| n.parse().map_err(|_| Errno::EINVAL));
    match (numbers.next(), numbers.next(), numbers.next()) {
        (Some(first), Some(last), None) => Ok((first?, last?)),
        _ => Err(Errno::EINVAL),
    }
}

fn net() -> Result {
    number("sys/net/core/somaxconn", &tcp::BACKLOG_MAX, 0, i32::MAX as u32)?;
    number("sys/net/ipv4/ip_default_ttl", &ip::DEFAULT_TTL, 1, 255)?;
    number("sys/net/ipv4/ip_unprivileged_port_start", &ports::UNPRIVILEGED, 0, 65_535)?;
    register(
        "sys/net/ipv4/ip_local_port_range",
        0o644,
        Editable {
            show: |out| pair(out, [&ports::RANGE_FIRST, &ports::RANGE_LAST]),
            store: |text| {
                let (first, last) = two_numbers(text)?;
                if first < 1 || last > 65_535 || first > last {
                    return Err(Errno::EINVAL);
                }
                ports::RANGE_FIRST.store(first, Relaxed);
                ports::RANGE_LAST.store(last, Relaxed);
                Ok(())
            },
        },
    )?;
    register(
        "sys/net/ipv4/ping_group_range",
        0o644,
        Editable {
            show: |out| pair(out, [&datagram::PING_GROUPS[0], &datagram::PING_GROUPS[1]]),
            store: |text| {
                let (first, last) = two_numbers(text)?;
                datagram::PING_GROUPS[0].store(first, Relaxed);
                datagram::PING_GROUPS[1].store(last, Relaxed);
                Ok(())
            },
        },
    )?;
    fixed("sys/net/ipv4/ip_forward", "0")?;
    fixed("sys/net/ipv4/tcp_rmem", "4096\t131072\t6291456")?;
    fixed("sys/net/ipv4/tcp_wmem", "4096\t16384\t4194304")?;
    fixed("sys/net/ipv4/tcp_fin_timeout", "60")?;
    fixed("sys/net/ipv4/tcp_keepalive_time", "7200")?;
    fixed("sys/net/ipv4/tcp_keepalive_intvl", "75")?;
    fixed("sys/net/ipv4/tcp_keepalive_probes", "9")?;
    fixed("sys/net/ipv4/tcp_congestion_control", "reno")?;
    fixed("sys/net/ipv4/tcp_available_congestion_control", "reno")?;
    fixed("sys/net/ipv6/bindv6only", "0")?;
    fixed("sys/net/ipv6/conf/all/disable_ipv6", "0")?;
    fixed("sys/net/ipv6/conf/default/disable_ipv6", "0")?;
    fixed("sys/net/ipv6/conf/lo/disable_ipv6", "0")?;
    fixed("sys/net/ipv6/conf/all/forwarding", "0")?;
    fixed("sys/net/core/rmem_default", "212992")?;
    fixed("sys/net/core/rmem_max", "212992")?;
    fixed("sys/net/core/wmem_default", "212992")?;
    fixed("sys/net/core/wmem_max", "212992")?;
    fixed("sys/net/core/optmem_max", "131072")?;
    fixed("sys/net/unix/max_dgram_qlen", "512")
}
