//! The entry points, with the names and the ABI of Linux's `linux-vdso.so.1`.
//!
//! Pointers come from the program and are used as they are: a bad one faults in user mode, as vdso(7) says.

mod random;

use core::arch::{asm, x86_64::_rdtsc};

use crate::{CPU_SELECTOR, Data};

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Nothing in the image can panic: the link fails if something refers to the code for it. The compiler wants this
    // function all the same.
    loop {
        core::hint::spin_loop();
    }
}

const PAGE: usize = 4096;
const EINVAL: i32 = 22;

const SYS_GETTIMEOFDAY: usize = 96;
const SYS_TIME: usize = 201;
const SYS_CLOCK_GETTIME: usize = 228;
const SYS_CLOCK_GETRES: usize = 229;

/// The page that the kernel writes: it stands just before the image.
#[inline]
fn data() -> &'static Data {
    let image: *const u8;
    // SAFETY: computes an address. `__ehdr_start` is the linker's name of the image's first byte.
    unsafe {
        asm!("lea {}, [rip + __ehdr_start]", out(reg) image, options(nomem, nostack, pure, preserves_flags));
    }
    // SAFETY: the kernel maps `Data` in the page before the image, for as long as the image, and changes it only through
    // atomic operations.
    unsafe { &*image.sub(PAGE).cast::<Data>() }
}

/// A system call of up to five arguments.
#[inline]
fn syscall(number: usize, arguments: [usize; 5]) -> isize {
    let [a, b, c, d, e] = arguments;
    let result: isize;
    // SAFETY: the x86-64 system call convention; what the kernel does with the caller's pointers is the caller's wish.
    unsafe {
        asm!("syscall", inlateout("rax") number => result, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e,
            out("rcx") _, out("r11") _, options(nostack));
    }
    result
}

/// The time-stamp counter, read after all loads before it.
#[inline]
fn counter() -> u64 {
    // SAFETY: LFENCE and RDTSC are there on every x86-64 CPU, and user mode may read the counter where it is the clock.
    unsafe {
        asm!("lfence", options(nostack, preserves_flags));
        _rdtsc()
    }
}

/// `struct timespec` and `struct timeval`.
#[repr(C)]
struct Time {
    seconds: i64,
    fraction: i64,
}

/// clock_gettime(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn __vdso_clock_gettime(clock: i32, to: *mut Time) -> i32 {
    match data().read(counter).and_then(|now| now.clock(clock)) {
        Some(ns) => {
            let time = Time { seconds: (ns / 1_000_000_000) as i64, fraction: (ns % 1_000_000_000) as i64 };
            // SAFETY: the caller's pointer, used as it is.
            unsafe { to.write(time) };
            0
        }
        None => syscall(SYS_CLOCK_GETTIME, [clock as usize, to as usize, 0, 0, 0]) as i32,
    }
}

/// gettimeofday(2). The time zone is that of a kernel that nobody told one: all zeros.
#[unsafe(no_mangle)]
unsafe extern "C" fn __vdso_gettimeofday(to: *mut Time, zone: *mut [i32; 2]) -> i32 {
    let Some(ns) = data().read(counter).and_then(|now| now.clock(0)) else {
        return syscall(SYS_GETTIMEOFDAY, [to as usize, zone as usize, 0, 0, 0]) as i32;
    };
    if !to.is_null() {
        let time = Time { seconds: (ns / 1_000_000_000) as i64, fraction: (ns % 1_000_000_000 / 1_000) as i64 };
        // SAFETY: the caller's pointer, used as it is.
        unsafe { to.write(time) };
    }
    if !zone.is_null() {
        // SAFETY: the caller's pointer, used as it is.
        unsafe { zone.write([0; 2]) };
    }
    0
}

/// time(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn __vdso_time(to: *mut i64) -> i64 {
    let Some(ns) = data().read(counter).and_then(|now| now.clock(0)) else {
        return syscall(SYS_TIME, [to as usize, 0, 0, 0, 0]) as i64;
    };
    let seconds = (ns / 1_000_000_000) as i64;
    if !to.is_null() {
        // SAFETY: the caller's pointer, used as it is.
        unsafe { to.write(seconds) };
    }
    seconds
}

/// clock_getres(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn __vdso_clock_getres(clock: i32, to: *mut Time) -> i32 {
    syscall(SYS_CLOCK_GETRES, [clock as usize, to as usize, 0, 0, 0]) as i32
}

/// getcpu(2).
#[unsafe(no_mangle)]
unsafe extern "C" fn __vdso_getcpu(cpu: *mut u32, node: *mut u32, _unused: *mut u8) -> i32 {
    let limit: u32;
    // SAFETY: LSL of a selector that the kernel has in every CPU's table; it changes a register and the flags.
    unsafe {
        asm!("lsl {:e}, {:e}", out(reg) limit, in(reg) u32::from(CPU_SELECTOR), options(nomem, nostack));
    }
    if !cpu.is_null() {
        // SAFETY: the caller's pointer, used as it is.
        unsafe { cpu.write(limit & 0xfff) };
    }
    if !node.is_null() {
        // SAFETY: the caller's pointer, used as it is.
        unsafe { node.write(limit >> 12) };
    }
    0
}

/// getrandom(2) on a state of the caller's; see [`random`].
#[unsafe(no_mangle)]
unsafe extern "C" fn __vdso_getrandom(
    buffer: *mut u8,
    length: usize,
    flags: u32,
    state: *mut random::State,
    state_length: usize,
) -> isize {
    if state_length == usize::MAX && buffer.is_null() && length == 0 && flags == 0 {
        // SAFETY: `state` is where the caller wants the parameters.
        unsafe { state.cast::<random::Parameters>().write(random::Parameters::THIS) };
        return 0;
    }
    if state_length != size_of::<random::State>() {
        return -(EINVAL as isize);
    }
    // SAFETY: the caller's buffer and state, used as they are.
    unsafe { random::fill(data(), buffer, length, flags, state) }
}
