//! Floating-point and vector state of programs.
//!
//! The kernel is built without floating point; the registers always hold the state of a program. State is saved at every switch away
//! from a task that has one (XSAVEOPT where there is, else XSAVE or FXSAVE) and restored at the switch to one, except when the
//! registers still hold it: a CPU remembers whose state it loaded last, and a task on which CPU that was.
//!
//! The image format is the standard (not compacted) XSAVE format, which is what signal frames and debuggers know. Images that come from
//! programs are validated before XRSTOR sees them; XRSTOR would raise #GP in the kernel on a bad one.
//!
//! Reference: Intel SDM vol. 1 ch. 13; Linux `arch/x86/kernel/fpu`.

use crate::cpu::cpuid;
use crate::percpu;
use crate::sync::{IrqsOff, Once};
use crate::task::Task;
use alloc::alloc::{Layout, alloc, alloc_zeroed, dealloc};
use core::arch::asm;
use core::ptr::{self, NonNull};

/// State components the kernel manages: x87, SSE, AVX, AVX-512 (three), PKRU left out.
const WANTED: u64 = 0b1110_0111;
const LEGACY: usize = 512;
const HEADER: usize = 64;
/// MXCSR after reset.
const MXCSR_DEFAULT: u32 = 0x1f80;
/// x87 control word after reset.
const FCW_DEFAULT: u16 = 0x37f;

struct Features {
    /// Bytes of an image.
    size: usize,
    /// XCR0, or 0 without XSAVE.
    mask: u64,
    xsaveopt: bool,
    mxcsr_mask: u32,
}
static FEATURES: Once<Features> = Once::new();

#[inline(always)]
fn features() -> &'static Features {
    FEATURES.get().expect("fpu::init_cpu has run")
}

/// Sets this CPU's floating-point unit up. Called once on each CPU.
pub fn init_cpu() {
    let c1 = cpuid(1, 0);
    let has_xsave = c1.ecx & 1 << 26 != 0;
    let mut mask = 0;
    if has_xsave {
        let d = cpuid(0xd, 0);
        mask = (u64::from(d.edx) << 32 | u64::from(d.eax)) & WANTED | 3;
        if mask & 0b1110_0000 != 0b1110_0000 || mask & 4 == 0 {
            mask &= !0b1110_0000;
        }
        // SAFETY: OSXSAVE and an XCR0 of supported components, x87 and SSE included.
        unsafe {
            let mut cr4: u64;
            asm!("mov {}, cr4", out(reg) cr4, options(nomem, nostack, preserves_flags));
            cr4 |= 1 << 18;
            asm!("mov cr4, {}", in(reg) cr4, options(nostack, preserves_flags));
            asm!("xsetbv", in("ecx") 0, in("eax") mask as u32, in("edx") (mask >> 32) as u32, options(nostack, preserves_flags));
        }
    }
    // SAFETY: sets the initial state.
    unsafe { asm!("fninit", "ldmxcsr [{}]", in(reg) &MXCSR_DEFAULT, options(nostack)) };
    FEATURES.call_once(|| {
        let size = if mask == 0 { LEGACY } else { cpuid(0xd, 0).ebx as usize };
        #[repr(C, align(16))]
        struct Fx([u8; 512]);
        let mut fx = Fx([0; 512]);
        // SAFETY: a 16-aligned area of 512 bytes.
        unsafe { asm!("fxsave64 [{}]", in(reg) &mut fx, options(nostack)) };
        let mxcsr_mask = u32::from_le_bytes([fx.0[28], fx.0[29], fx.0[30], fx.0[31]]);
        Features {
            size,
            mask,
            xsaveopt: mask != 0 && cpuid(0xd, 1).eax & 1 != 0,
            mxcsr_mask: if mxcsr_mask == 0 { 0xffbf } else { mxcsr_mask },
        }
    });
}

/// Bytes of a state image (512 where the CPU has no XSAVE).
pub fn size() -> usize {
    features().size
}

/// State components in use, as in XCR0 (x87 and SSE where the CPU has no XSAVE).
pub fn components() -> u64 {
    features().mask | 3
}

/// A task's saved state.
pub struct FpuState {
    area: NonNull<u8>,
}

// SAFETY: owns plain memory.
unsafe impl Send for FpuState {}
// SAFETY: `&FpuState` gives no access to the memory but to this module, which uses it only for the task at hand or a stopped one.
unsafe impl Sync for FpuState {}

/// Why an image was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadImage;

impl FpuState {
    fn layout() -> Layout {
        Layout::from_size_align(features().size, 64).expect("sane size")
    }
    /// The state after reset. `None` when memory is short.
    pub fn new() -> Option<Self> {
        // SAFETY: the size is not zero.
        let area = NonNull::new(unsafe { alloc_zeroed(Self::layout()) })?;
        let mut s = Self { area };
        s.set_defaults();
        Some(s)
    }
    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the area is ours alone, zeroed at first, of this size.
        unsafe { core::slice::from_raw_parts_mut(self.area.as_ptr(), features().size) }
    }
    fn bytes(&self) -> &[u8] {
        // SAFETY: as above; whoever calls makes sure that no CPU saves to it meanwhile.
        unsafe { core::slice::from_raw_parts(self.area.as_ptr(), features().size) }
    }
    fn reset(&mut self) {
        self.bytes_mut().fill(0);
        self.set_defaults();
    }
    /// What is not zero after reset.
    fn set_defaults(&mut self) {
        let b = self.bytes_mut();
        b[0..2].copy_from_slice(&FCW_DEFAULT.to_le_bytes());
        b[24..28].copy_from_slice(&MXCSR_DEFAULT.to_le_bytes());
    }
    /// A copy. `None` when memory is short. `self` belongs to no running task, or to the current one after it was saved.
    fn duplicate(&self) -> Option<Self> {
        // SAFETY: the size is not zero; the whole area is written before anything reads it.
        unsafe {
            let area = NonNull::new(alloc(Self::layout()))?;
            area.copy_from_nonoverlapping(self.area, features().size);
            Some(Self { area })
        }
    }
    /// Replaces the state by a checked image. The legacy part alone is accepted too; the rest is then in its initial state.
    fn load(&mut self, image: &[u8]) -> Result<(), BadImage> {
        let f = features();
        if image.len() != f.size && image.len() != LEGACY {
            return Err(BadImage);
        }
        let mxcsr = u32::from_le_bytes([image[24], image[25], image[26], image[27]]);
        if mxcsr & !f.mxcsr_mask != 0 {
            return Err(BadImage);
        }
        if f.mask != 0 && image.len() > LEGACY {
            let word = |i: usize| u64::from_le_bytes(image[i..i + 8].try_into().expect("8 bytes"));
            // XSTATE_BV within XCR0; XCOMP_BV zero (not compacted); the rest reserved.
            if word(LEGACY) & !f.mask != 0 || image[LEGACY + 8..LEGACY + HEADER].iter().any(|b| *b != 0) {
                return Err(BadImage);
            }
        }
        let b = self.bytes_mut();
        b[..image.len()].copy_from_slice(image);
        if b.len() > image.len() {
            b[LEGACY..].fill(0);
            b[LEGACY] = 3;
        }
        // Software-reserved bytes of the legacy part mean nothing to the CPU; keep them clean.
        b[464..512].fill(0);
        Ok(())
    }

    #[inline(always)]
    fn save_registers(&self) {
        let f = features();
        // SAFETY: a 64-aligned area of the right size, of the task whose state the registers hold.
        unsafe {
            if f.xsaveopt {
                asm!("xsaveopt64 [{}]", in(reg) self.area.as_ptr(), in("eax") f.mask as u32, in("edx") 0, options(nostack, preserves_flags));
            } else if f.mask != 0 {
                asm!("xsave64 [{}]", in(reg) self.area.as_ptr(), in("eax") f.mask as u32, in("edx") 0, options(nostack, preserves_flags));
            } else {
                asm!("fxsave64 [{}]", in(reg) self.area.as_ptr(), options(nostack, preserves_flags));
            }
        }
    }
    #[inline(always)]
    fn load_registers(&self) {
        let f = features();
        // SAFETY: the area holds a saved, reset or checked image, so the instruction cannot fault.
        unsafe {
            if f.mask != 0 {
                asm!("xrstor64 [{}]", in(reg) self.area.as_ptr(), in("eax") f.mask as u32, in("edx") 0, options(nostack, preserves_flags));
            } else {
                asm!("fxrstor64 [{}]", in(reg) self.area.as_ptr(), options(nostack, preserves_flags));
            }
        }
    }
}

impl Drop for FpuState {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.area.as_ptr(), Self::layout()) };
    }
}

/// First part of a task switch: saves the registers to the state of the task that is left.
#[inline(always)]
pub(crate) fn save(state: &FpuState) {
    state.save_registers();
}

/// Last part of a task switch: loads the state of `me`, the current task, unless the registers hold it. True when `me` runs programs and
/// something else may have been in the registers. Interrupts are off.
#[inline(always)]
pub(crate) fn load(me: &Task) -> bool {
    let Some(f) = me.fpu() else { return false };
    let l = percpu::local();
    if l.fpu_owner.get() == ptr::from_ref(me) && me.fpu_is_on(l.cpu_id.get()) {
        return false;
    }
    // SAFETY: `me` is current on this CPU, so nobody else touches its area.
    unsafe { &*f }.load_registers();
    l.fpu_owner.set(me);
    me.set_fpu_cpu(l.cpu_id.get());
    true
}

/// Runs `f` on the saved state of the current task, interrupts off; the registers are stored before. With `reload` they are loaded
/// after. `None` for a kernel task.
fn with_current<R>(reload: bool, f: impl FnOnce(&mut FpuState) -> R) -> Option<R> {
    let _off = IrqsOff::new();
    let me = crate::task::current();
    let area = me.fpu()?;
    // SAFETY: the current task's area: only this CPU touches it, interrupts are off, and the reference ends here.
    let state = unsafe { &mut *area };
    state.save_registers();
    let r = f(state);
    if reload {
        state.load_registers();
    }
    Some(r)
}

/// Copies the current task's state to `to`, in XSAVE standard format. Returns the number of bytes; fewer than [`size`] if `to` is shorter.
pub fn save_to(to: &mut [u8]) -> usize {
    with_current(false, |s| {
        let b = s.bytes();
        let n = b.len().min(to.len());
        to[..n].copy_from_slice(&b[..n]);
        n
    })
    .unwrap_or(0)
}

/// Replaces the current task's state by an image of [`size`] bytes, or of 512 (legacy part only).
pub fn restore_from(image: &[u8]) -> Result<(), BadImage> {
    with_current(true, |s| s.load(image)).unwrap_or(Err(BadImage))
}

/// Puts the current task's state to what it is after exec.
pub fn reset() {
    with_current(true, |s| s.reset());
}

/// A copy of the current task's state, for a child. `None` when memory is short; the initial state for a kernel task.
pub fn copy_current_for_child() -> Option<FpuState> {
    match with_current(false, |s| s.duplicate()) {
        Some(s) => s,
        None => FpuState::new(),
    }
}

/// Reads the image of a stopped task.
pub(crate) fn read_stopped(state: &FpuState, to: &mut [u8]) -> usize {
    let b = state.bytes();
    let n = b.len().min(to.len());
    to[..n].copy_from_slice(&b[..n]);
    n
}

/// Replaces the image of a stopped task.
pub(crate) fn write_stopped(state: &mut FpuState, image: &[u8]) -> Result<(), BadImage> {
    state.load(image)
}
