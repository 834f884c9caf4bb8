//! Descriptor tables of a CPU: GDT, TSS with interrupt stacks.
//!
//! Selectors are Linux's, since programs and debuggers know them: user code 0x33, user data 0x2b. The 32-bit user code slot
//! (0x23), which SYSRET's arithmetic needs to exist as a number, stays empty: there is no compatibility mode.

use crate::addr::PAGE_SIZE;
use crate::percpu::local;
use core::arch::asm;
use core::cell::UnsafeCell;
use core::mem::offset_of;

/// Kernel code selector.
pub(crate) const KERNEL_CS: u16 = 0x10;
/// Kernel data selector.
pub(crate) const KERNEL_SS: u16 = 0x18;
/// User data selector.
pub(crate) const USER_SS: u16 = 0x2b;
/// 64-bit user code selector.
pub(crate) const USER_CS: u16 = 0x33;
const TSS_SELECTOR: u16 = 0x40;
/// A segment whose limit is the CPU's number: user mode reads it with LSL (Linux's `__CPUNODE_SEG`, the vDSO's `getcpu`).
const CPU_NUMBER_SELECTOR: u16 = 0x7b;
const GDT_LEN: usize = (CPU_NUMBER_SELECTOR as usize >> 3) + 1;

/// Interrupt stack table slots (1-based, as in gates): these handlers can arrive while the stack pointer or the GS
/// base is not the kernel's.
pub(super) mod ist {
    pub const NMI: u8 = 1;
    pub const DOUBLE_FAULT: u8 = 2;
    pub const MACHINE_CHECK: u8 = 3;
    pub const DEBUG: u8 = 4;
}
const IST_SIZE: usize = 4 * PAGE_SIZE;
const IST_COUNT: usize = 4;

/// Task state segment. Intel SDM vol. 3A, 8.7.
#[repr(C, packed(4))]
struct Tss {
    _reserved0: u32,
    rsp: [u64; 3],
    _reserved1: u64,
    ist: [u64; 7],
    _reserved2: u64,
    _reserved3: u16,
    iomap: u16,
}

/// The boot CPU's interrupt stacks; the others' come from the vmap area, with guard pages.
#[repr(C, align(16))]
struct IstStacks(UnsafeCell<[[u8; IST_SIZE]; IST_COUNT]>);
// SAFETY: only the CPU's own entry code uses the stacks.
unsafe impl Sync for IstStacks {}
static BSP_STACKS: IstStacks = IstStacks(UnsafeCell::new([[0; IST_SIZE]; IST_COUNT]));

/// One CPU's tables. RSP0 in the TSS points at the end of the register frame of the `UserContext` that runs, so that the CPU
/// itself pushes the first words of an event where they belong, and the syscall stub finds the frame.
#[repr(C, align(16))]
pub(crate) struct CpuTables {
    /// Padding so that RSP0, at offset 4 of the TSS, is aligned.
    _pad: [u32; 3],
    tss: Tss,
    gdt: [u64; GDT_LEN],
    /// Tops of the interrupt stacks; 0: the boot CPU's static ones.
    ist: [u64; IST_COUNT],
}

/// Offset of RSP0 in `CpuTables`.
pub(crate) const RSP0: usize = offset_of!(CpuTables, tss) + 4;

impl CpuTables {
    pub(crate) const fn new() -> Self {
        Self {
            _pad: [0; 3],
            tss: Tss {
                _reserved0: 0,
                rsp: [0; 3],
                _reserved1: 0,
                ist: [0; 7],
                _reserved2: 0,
                _reserved3: 0,
                iomap: size_of::<Tss>() as u16,
            },
            gdt: [
                0,
                0,
                0x00af_9b00_0000_ffff, // kernel code, 64-bit
                0x00cf_9300_0000_ffff, // kernel data
                0,                     // 32-bit user code: none
                0x00cf_f300_0000_ffff, // user data
                0x00af_fb00_0000_ffff, // user code, 64-bit
                0,
                0, // TSS, two slots
                0,
                0,
                0,
                0,
                0,
                0,
                0, // the CPU's number
            ],
            ist: [0; IST_COUNT],
        }
    }
}

impl CpuTables {
    /// Gives a CPU that is being prepared its interrupt stacks. False when there is no memory.
    pub(crate) fn add_stacks(&mut self) -> bool {
        for top in &mut self.ist {
            let Some(area) = crate::mm::map_stack(IST_SIZE / PAGE_SIZE) else { return false };
            // CPUs never go away, nor do their stacks.
            let area = core::mem::ManuallyDrop::new(area);
            *top = area.base() + area.len() as u64;
        }
        true
    }
}

#[repr(C, packed)]
pub(super) struct TablePointer {
    pub limit: u16,
    pub base: u64,
}

/// Loads this CPU's tables. GS base must be set already; it is kept.
pub(super) fn load() {
    let t = local().tables.get();
    // SAFETY: the tables are this CPU's own and never move; segment values are those of the GDT being loaded. Loading a null
    // selector into GS would clear the base, so GS is left alone.
    unsafe {
        for i in 0..IST_COUNT {
            if (*t).ist[i] == 0 {
                (*t).ist[i] = (BSP_STACKS.0.get() as u64) + ((i + 1) * IST_SIZE) as u64;
            }
            let top = (*t).ist[i];
            (&raw mut (*t).tss.ist).cast::<u64>().add(i).write_unaligned(top);
        }
        let base = &raw const (*t).tss as u64;
        let limit = size_of::<Tss>() as u64 - 1;
        (*t).gdt[8] = limit | (base & 0xff_ffff) << 16 | 0x89 << 40 | (base >> 24 & 0xff) << 56;
        (*t).gdt[9] = base >> 32;
        // Read-only data that user mode may ask about; nobody loads it.
        (*t).gdt[GDT_LEN - 1] = 0x0040_f100_0000_0000 | crate::percpu::cpu_id() as u64;
        let p = TablePointer { limit: size_of::<[u64; GDT_LEN]>() as u16 - 1, base: &raw const (*t).gdt as u64 };
        asm!(
            "lgdt [{p}]",
            "push {cs}",
            "lea {tmp}, [rip + 2f]",
            "push {tmp}",
            "retfq",
            "2:",
            "mov ss, {ss:x}",
            "mov ds, {zero:x}",
            "mov es, {zero:x}",
            "mov fs, {zero:x}",
            "ltr {tr:x}",
            p = in(reg) &p,
            cs = in(reg) u64::from(KERNEL_CS),
            ss = in(reg) u32::from(KERNEL_SS),
            zero = in(reg) 0u32,
            tr = in(reg) u32::from(TSS_SELECTOR),
            tmp = out(reg) _,
        );
    }
}
