//! The system as a whole: uname(2), sethostname(2), sysinfo(2), getrandom(2), reboot(2).

use linux_uapi::process::{Sysinfo, UTS_LEN, Utsname};
use linux_uapi::signal::{SIGHUP, SIGINT};

use crate::namespace::uts;
use crate::process::pid::Pid;
use crate::process::{Cap, fork, rng};
use crate::syscall::Cx;
use crate::user::{self, UserAddr, UserPtr};
use crate::wait::WaitQueue;
use crate::{Errno, Result};

/// The Linux release whose interfaces these are: programs compare it with what they need.
pub const RELEASE: &str = "6.12.0-ursa";
const VERSION: &str = concat!("#1 SMP Ursa ", env!("CARGO_PKG_VERSION"));

const fn constant(text: &str) -> uts::Name {
    let mut bytes = [0; UTS_LEN];
    let text = text.as_bytes();
    let mut i = 0;
    while i < text.len() {
        bytes[i] = text[i];
        i += 1;
    }
    bytes
}

/// Returns the names of the system, as the running thread's UTS namespace has them.
pub fn utsname() -> Utsname {
    let names = uts::current().names();
    Utsname {
        sysname: constant("Linux"),
        nodename: names.host,
        release: constant(RELEASE),
        version: constant(VERSION),
        machine: constant("x86_64"),
        domainname: names.domain,
    }
}

/// Returns the names of the system.
pub fn sys_uname(_cx: &mut Cx<'_>, out: UserPtr<Utsname>) -> Result {
    out.write(&utsname())
}

/// Sets the host name.
pub fn sys_sethostname(cx: &mut Cx<'_>, from: UserAddr, len: i32) -> Result {
    let name = read_name(cx, from, len)?;
    uts::current().change(|names| names.host = name);
    Ok(())
}

/// Sets the NIS domain name.
pub fn sys_setdomainname(cx: &mut Cx<'_>, from: UserAddr, len: i32) -> Result {
    let name = read_name(cx, from, len)?;
    uts::current().change(|names| names.domain = name);
    Ok(())
}

/// Sets the host name from the kernel's side (`/proc/sys/kernel/hostname`).
pub fn set_hostname(text: &[u8]) -> Result {
    let name = uts::name(text)?;
    uts::current().change(|names| names.host = name);
    Ok(())
}

/// Sets the NIS domain name from the kernel's side (`/proc/sys/kernel/domainname`).
pub fn set_domainname(text: &[u8]) -> Result {
    let name = uts::name(text)?;
    uts::current().change(|names| names.domain = name);
    Ok(())
}

fn read_name(cx: &Cx<'_>, from: UserAddr, len: i32) -> Result<uts::Name> {
    cx.thread.cred().require(Cap::SysAdmin)?;
    let len = usize::try_from(len).ok().filter(|n| *n < UTS_LEN).ok_or(Errno::EINVAL)?;
    let mut bytes = [0; UTS_LEN];
    user::read_bytes(from, &mut bytes[..len])?;
    Ok(bytes)
}

/// Returns load and memory figures.
pub fn sys_sysinfo(_cx: &mut Cx<'_>, out: UserPtr<Sysinfo>) -> Result {
    const LOAD_SHIFT: u32 = 16 - 11;
    let memory = crate::mm::memory_totals();
    out.write(&Sysinfo {
        uptime: (ursa_hal::time::boot_ns() / 1_000_000_000) as i64,
        loads: crate::sched::load_averages().map(|load| load << LOAD_SHIFT),
        totalram: memory.total,
        freeram: memory.free,
        sharedram: memory.shared,
        bufferram: 0,
        procs: u16::try_from(fork::thread_count()).unwrap_or(u16::MAX),
        mem_unit: 1,
        ..Sysinfo::default()
    })
}

const GRND_NONBLOCK: u32 = 1;
const GRND_RANDOM: u32 = 2;
const GRND_INSECURE: u32 = 4;

/// Fills a buffer with random bytes. The generator is seeded before the first program runs, so nothing ever waits.
pub fn sys_getrandom(_cx: &mut Cx<'_>, buf: UserAddr, len: usize, flags: u32) -> Result<usize> {
    if flags & !(GRND_NONBLOCK | GRND_RANDOM | GRND_INSECURE) != 0
        || flags & (GRND_RANDOM | GRND_INSECURE) == GRND_RANDOM | GRND_INSECURE
    {
        return Err(Errno::EINVAL);
    }
    let len = len.min(i32::MAX as usize & !4095);
    let mut chunk = [0; 1024];
    if len <= 128 {
        rng::fill(&mut chunk[..len]);
        let result = user::write_bytes(buf, &chunk[..len]);
        chunk[..len].fill(0);
        return result.map(|()| len);
    }
    let mut fill = rng::stream();
    let mut done = 0;
    while done < len {
        let n = chunk.len().min(len - done);
        fill(&mut chunk[..n]);
        if user::write_bytes(UserAddr::new(buf.as_u64().wrapping_add(done as u64)), &chunk[..n]).is_err() {
            return if done == 0 { Err(Errno::EFAULT) } else { Ok(done) };
        }
        done += n;
        if done % 65536 == 0 {
            if crate::sched::signal_pending() {
                break;
            }
            crate::sched::cond_resched();
        }
    }
    Ok(done)
}

const REBOOT_MAGIC1: u32 = 0xfee1_dead;
const REBOOT_MAGIC2: [u32; 4] = [672_274_793, 85_072_278, 369_367_448, 537_993_216];
const REBOOT_RESTART: u32 = 0x0123_4567;
const REBOOT_RESTART2: u32 = 0xa1b2_c3d4;
const REBOOT_HALT: u32 = 0xcdef_0123;
const REBOOT_POWER_OFF: u32 = 0x4321_fedc;
const REBOOT_CAD_ON: u32 = 0x89ab_cdef;
const REBOOT_CAD_OFF: u32 = 0;

/// Restarts or powers off the machine. Nothing is synchronised here: that is init's work before. In a nested PID namespace it ends that
/// one: its first process seems to have died of SIGHUP (restart) or SIGINT (halt, power off).
pub fn sys_reboot(cx: &mut Cx<'_>, magic1: u32, magic2: u32, command: u32, arg: UserAddr) -> Result<Pid> {
    cx.thread.cred().require(Cap::SysBoot)?;
    if magic1 != REBOOT_MAGIC1 || !REBOOT_MAGIC2.contains(&magic2) {
        return Err(Errno::EINVAL);
    }
    let namespace = cx.thread.process().pid_namespace();
    if namespace.level() > 0 {
        namespace.reboot(match command {
            REBOOT_RESTART | REBOOT_RESTART2 => SIGHUP,
            REBOOT_HALT | REBOOT_POWER_OFF => SIGINT,
            _ => return Err(Errno::EINVAL),
        });
        // The caller is killed with all the others.
        return WaitQueue::new().wait_killable(|| None);
    }
    match command {
        REBOOT_CAD_ON | REBOOT_CAD_OFF => Ok(0),
        REBOOT_RESTART => {
            ursa_hal::info!("restarting");
            ursa_hal::power::reboot()
        }
        REBOOT_RESTART2 => {
            let how = user::read_cstr(arg, 256)?;
            ursa_hal::info!("restarting: {}", alloc::string::String::from_utf8_lossy(&how));
            ursa_hal::power::reboot()
        }
        REBOOT_HALT => {
            ursa_hal::info!("system halted");
            ursa_hal::power::halt()
        }
        REBOOT_POWER_OFF => {
            ursa_hal::info!("powering off");
            ursa_hal::power::off()
        }
        _ => Err(Errno::EINVAL),
    }
}
