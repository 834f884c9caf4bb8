//! Tasks: a kernel stack, saved registers, vector state. What makes a task a thread of a process is core's.
//!
//! [`switch_to`] is called by the scheduler with interrupts off. It saves the current task, then gives it up (`on_cpu` goes to 0),
//! then claims `next`, which may still be on its way off another CPU, then loads it. Between giving up and loading no stack is used,
//! so two CPUs that switch to each other's former task cannot wait for each other for ever.
//!
//! Each CPU owns one `Arc` of its current task. The switch passes the former task's `Arc` to the code after it, on the next task's stack,
//! where it is dropped: the last reference of a task that has exited goes there too, so that no task frees the stack it runs on.

mod stack;
#[cfg(target_os = "none")]
mod tests;

pub use stack::{STACK_SIZE, Stack, stacks_in_use};

use crate::addr::{USER_END, VirtAddr};
use crate::cpu::wrmsr;
use crate::debug;
pub use crate::fpu::FpuState;
use crate::fpu::{self, BadImage};
use crate::mm::{self, UserSpace};
use crate::panic::backtrace::{self, Frame};
use crate::percpu::{self, CpuSet, MAX_CPUS, local, off};
use crate::sync::{IrqsOff, SpinLock, irqs_enabled};
use crate::trap::Regs;
use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use core::any::{Any, TypeId};
use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::mem::offset_of;
use core::ops::Deref;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

const MSR_FS_BASE: u32 = 0xc000_0100;
const MSR_KERNEL_GS_BASE: u32 = 0xc000_0102;

/// `on_cpu`: not running.
const OFF: u32 = 0;
/// `on_cpu`: running, or being switched from.
const ON: u32 = 1;
/// `on_cpu`: has exited.
const DEAD: u32 = 2;
/// `fpu_cpu`: no CPU's registers hold the state.
const NO_CPU: u32 = u32::MAX;

/// A thread of execution in the kernel.
pub struct Task {
    /// Kernel stack pointer while it does not run. Written and read by the switch code of the CPU that holds `on_cpu`.
    rsp: UnsafeCell<u64>,
    on_cpu: AtomicU32,
    fpu_cpu: AtomicU32,
    fs_base: AtomicU64,
    gs_base: AtomicU64,
    fpu: Option<UnsafeCell<FpuState>>,
    /// The program's registers, on the task's own stack, while [`UserContext::expose`](crate::trap::UserContext::expose) is there.
    user_regs: AtomicPtr<Regs>,
    pub(crate) debug: debug::Registers,
    /// `ext`'s type and address, for a cheap downcast.
    ext_type: TypeId,
    ext_ptr: *const (),
    ext: Arc<dyn Any + Send + Sync>,
    body: SpinLock<Option<Box<dyn FnOnce() + Send>>>,
    name: SpinLock<String>,
    stack: Option<Stack>,
}

// SAFETY: `rsp` and `fpu` are used only by the CPU that holds `on_cpu`, or for the current task, or (`fpu_read`, `fpu_write`) while
// `on_cpu` is claimed; `ext_ptr` points into `ext`, which is Send and Sync; the rest is atomic or locked.
unsafe impl Sync for Task {}
// SAFETY: as above.
unsafe impl Send for Task {}

/// A task was not stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotStopped;

impl Task {
    /// A task that will run `body`, which must end in [`exit_to`]. It starts, with interrupts on, at the first switch to it.
    /// `fpu` is for tasks that run programs. `None` when memory is short.
    pub fn new(
        name: &str,
        stack: Stack,
        ext: Arc<dyn Any + Send + Sync>,
        fpu: Option<FpuState>,
        body: Box<dyn FnOnce() + Send>,
    ) -> Option<Arc<Self>> {
        let rsp = stack.prepare(ursa_task_entry as *const () as u64);
        Some(Arc::new(Self::build(name, Some(stack), rsp, OFF, ext, fpu, Some(body))))
    }

    fn build(
        name: &str,
        stack: Option<Stack>,
        rsp: u64,
        on_cpu: u32,
        ext: Arc<dyn Any + Send + Sync>,
        fpu: Option<FpuState>,
        body: Option<Box<dyn FnOnce() + Send>>,
    ) -> Self {
        Self {
            rsp: UnsafeCell::new(rsp),
            on_cpu: AtomicU32::new(on_cpu),
            fpu_cpu: AtomicU32::new(NO_CPU),
            fs_base: AtomicU64::new(0),
            gs_base: AtomicU64::new(0),
            fpu: fpu.map(UnsafeCell::new),
            user_regs: AtomicPtr::new(ptr::null_mut()),
            debug: debug::Registers::default(),
            ext_type: (*ext).type_id(),
            ext_ptr: Arc::as_ptr(&ext).cast(),
            ext,
            body: SpinLock::new(body),
            name: SpinLock::new(name.into()),
            stack,
        }
    }

    /// What core attached, if it is a `T`.
    #[inline(always)]
    pub fn ext<T: Any>(&self) -> Option<&T> {
        if self.ext_type == TypeId::of::<T>() {
            // SAFETY: the types are the same, and `ext` keeps the value alive as long as `self`.
            Some(unsafe { &*self.ext_ptr.cast::<T>() })
        } else {
            None
        }
    }
    /// What core attached.
    pub fn ext_arc(&self) -> &Arc<dyn Any + Send + Sync> {
        &self.ext
    }
    /// Its name, for logs.
    pub fn name(&self) -> String {
        self.name.lock().clone()
    }
    /// Changes the name.
    pub fn set_name(&self, name: &str) {
        let name = String::from(name);
        let old = core::mem::replace(&mut *self.name.lock(), name);
        drop(old);
    }
    /// Whether a CPU runs it, or is about to leave it.
    #[inline]
    pub fn is_on_cpu(&self) -> bool {
        self.on_cpu.load(Ordering::Acquire) == ON
    }
    /// Whether it has left its CPU for good.
    pub fn has_exited(&self) -> bool {
        self.on_cpu.load(Ordering::Acquire) == DEAD
    }
    /// Whether it can run programs.
    pub fn is_user(&self) -> bool {
        self.fpu.is_some()
    }

    #[inline(always)]
    pub(crate) fn fpu(&self) -> Option<*mut FpuState> {
        self.fpu.as_ref().map(UnsafeCell::get)
    }
    #[inline(always)]
    pub(crate) fn fpu_is_on(&self, cpu: u32) -> bool {
        self.fpu_cpu.load(Ordering::Relaxed) == cpu
    }
    #[inline(always)]
    pub(crate) fn set_fpu_cpu(&self, cpu: u32) {
        self.fpu_cpu.store(cpu, Ordering::Relaxed);
    }

    /// A task that is not current loads its bases and breakpoints, with all else, at its next switch-in.
    pub(crate) fn registers_changed(&self) {
        if !self.is_current() {
            self.set_fpu_cpu(NO_CPU);
        }
    }

    pub(crate) fn is_current(&self) -> bool {
        ptr::eq(local().current.get(), self)
    }

    /// Keeps a stopped task from being switched to while `f` looks at it.
    fn while_stopped<R>(&self, f: impl FnOnce() -> R) -> Result<R, NotStopped> {
        let _off = IrqsOff::new();
        self.on_cpu.compare_exchange(OFF, ON, Ordering::Acquire, Ordering::Relaxed).map_err(|_| NotStopped)?;
        let r = f();
        self.on_cpu.store(OFF, Ordering::Release);
        Ok(r)
    }
    /// Copies the vector state of a stopped task to `to` and returns the number of bytes. 0 for a kernel task.
    pub fn fpu_read(&self, to: &mut [u8]) -> Result<usize, NotStopped> {
        self.while_stopped(|| match self.fpu() {
            // SAFETY: `on_cpu` is claimed, so no CPU uses the area.
            Some(s) => fpu::read_stopped(unsafe { &*s }, to),
            None => 0,
        })
    }
    /// Replaces the vector state of a stopped task.
    pub fn fpu_write(&self, image: &[u8]) -> Result<Result<(), BadImage>, NotStopped> {
        self.while_stopped(|| match self.fpu() {
            Some(s) => {
                self.set_fpu_cpu(NO_CPU);
                // SAFETY: `on_cpu` is claimed, so no CPU uses the area.
                fpu::write_stopped(unsafe { &mut *s }, image)
            }
            None => Err(BadImage),
        })
    }

    pub(crate) fn set_user_regs(&self, regs: *mut Regs) {
        self.user_regs.store(regs, Ordering::Release);
    }
    /// The registers with which the program of a stopped task, or of the current one, entered the kernel last. `None` for one
    /// without a program.
    pub fn user_regs(&self) -> Result<Option<Regs>, NotStopped> {
        let read = || {
            let regs = self.user_regs.load(Ordering::Acquire);
            // SAFETY: it points into a frame of the task's own stack that is there until the pointer is taken back, which the task itself
            // does. It is this task, or `on_cpu` is claimed: nobody writes meanwhile.
            (!regs.is_null()).then(|| unsafe { regs.read_volatile() })
        };
        if self.is_current() { Ok(read()) } else { self.while_stopped(read) }
    }
    /// Fills `to` with the return addresses on the stack of a stopped task, or of the current one, innermost first. Returns how
    /// many there are.
    pub fn backtrace(&self, to: &mut [u64]) -> Result<usize, NotStopped> {
        let mut count = 0;
        let mut note = |rip| {
            if let Some(slot) = to.get_mut(count) {
                *slot = rip;
                count += 1;
            }
        };
        if self.is_current() {
            backtrace::walk(backtrace::here(), note);
        } else {
            self.while_stopped(|| {
                // SAFETY: `on_cpu` is claimed, so the stack is as the switch (or `Stack::prepare`) left it: rbx, rbp, return address.
                let from = unsafe {
                    let top = (*self.rsp.get()) as *const u64;
                    Frame { rip: top.add(2).read(), rbp: top.add(1).read() }
                };
                backtrace::walk(from, &mut note);
            })?;
        }
        Ok(count)
    }

    /// The program's FS base.
    #[inline]
    pub fn fs_base(&self) -> u64 {
        self.fs_base.load(Ordering::Relaxed)
    }
    /// The program's GS base.
    #[inline]
    pub fn gs_base(&self) -> u64 {
        self.gs_base.load(Ordering::Relaxed)
    }
    /// Sets the program's FS base: at once for the current task, at its next switch-in for a stopped one. False for a kernel
    /// address. The registers hold the bases of the last task with a program: for a kernel task only the value is kept.
    pub fn set_fs_base(&self, base: u64) -> bool {
        if base >= USER_END {
            return false;
        }
        let _off = IrqsOff::new();
        self.fs_base.store(base, Ordering::Relaxed);
        self.registers_changed();
        if self.is_user() && self.is_current() {
            // SAFETY: a user address; the kernel does not use FS.
            unsafe { wrmsr(MSR_FS_BASE, base) };
        }
        true
    }
    /// Sets the program's GS base; as [`Task::set_fs_base`].
    pub fn set_gs_base(&self, base: u64) -> bool {
        if base >= USER_END {
            return false;
        }
        let _off = IrqsOff::new();
        self.gs_base.store(base, Ordering::Relaxed);
        self.registers_changed();
        if self.is_user() && self.is_current() {
            // SAFETY: a user address, in the register that SWAPGS makes active on the way to user mode.
            unsafe { wrmsr(MSR_KERNEL_GS_BASE, base) };
        }
        true
    }
}

impl core::fmt::Debug for Task {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Task({:?})", self.name())
    }
}

/// The task that runs this code. Not `Send`: it means nothing elsewhere.
#[derive(Clone, Copy)]
pub struct Current(NonNull<Task>, PhantomData<*mut ()>);

/// The task that runs this code.
#[inline(always)]
pub fn current() -> Current {
    let p: *const Task;
    // SAFETY: reads this CPU's current pointer. `pure, nomem`: it is the same each time the same task asks, on any CPU.
    unsafe {
        asm!("mov {}, gs:[{}]", out(reg) p, const off::CURRENT, options(pure, nomem, nostack, preserves_flags));
        debug_assert!(!p.is_null());
        Current(NonNull::new_unchecked(p.cast_mut()), PhantomData)
    }
}

/// The task that runs this code; `None` before `init_idle`.
pub fn try_current() -> Option<Current> {
    NonNull::new(local().current.get().cast_mut()).map(|p| Current(p, PhantomData))
}

impl Deref for Current {
    type Target = Task;
    #[inline(always)]
    fn deref(&self) -> &Task {
        // SAFETY: the CPU owns a reference to its current task, and a task is current whenever its code runs.
        unsafe { self.0.as_ref() }
    }
}

impl Current {
    /// A counted reference.
    #[inline]
    pub fn arc(&self) -> Arc<Task> {
        // SAFETY: the pointer came from `Arc::into_raw`, and the CPU's own reference keeps the task alive.
        unsafe {
            Arc::increment_strong_count(self.0.as_ptr());
            Arc::from_raw(self.0.as_ptr())
        }
    }
    /// Whether `other` is this task.
    #[inline(always)]
    pub fn is(&self, other: &Task) -> bool {
        ptr::eq(self.0.as_ptr(), other)
    }
}

// (rdi prev task, rsi next task) -> rdi the task that was switched from. Registers are as declared in `switch`.
#[cfg(target_os = "none")]
global_asm!(
    ".pushsection .text.entry, \"ax\"",
    ".balign 64",
    ".global ursa_switch",
    "ursa_switch:",
    "    push rbp",
    "    push rbx",
    "    mov [rdi + {rsp}], rsp",
    // From here on another CPU may run `prev`: no stack until `next`'s is loaded.
    "    mov [rdi + {on_cpu}], edx",
    "2:  xor eax, eax",
    "    mov ecx, {on}",
    "    lock cmpxchg [rsi + {on_cpu}], ecx",
    "    jne 3f",
    "    mov rsp, [rsi + {rsp}]",
    "    pop rbx",
    "    pop rbp",
    "    ret",
    "3:  pause",
    "    cmp dword ptr [rsi + {on_cpu}], 0",
    "    jne 3b",
    "    jmp 2b",
    "",
    // First switch to a task. The stack holds two zeroes for rbx and rbp, and this address.
    ".balign 16",
    ".global ursa_task_entry",
    "ursa_task_entry:",
    "    xor ebp, ebp",
    "    call {start}",
    "    ud2",
    ".popsection",
    rsp = const offset_of!(Task, rsp),
    on_cpu = const offset_of!(Task, on_cpu),
    on = const ON,
    start = sym task_start,
);

unsafe extern "C" {
    fn ursa_switch();
    fn ursa_task_entry();
}

/// Switches to `next` and returns when something switches back. Interrupts must be off, and are off after.
///
/// If `next` is still on another CPU this waits for it to get off. Switching to oneself does nothing.
#[inline]
pub fn switch_to(next: Arc<Task>) {
    switch(next, OFF);
}

/// Leaves the current task for good. The CPU's reference to it is dropped after the switch.
pub fn exit_to(next: Arc<Task>) -> ! {
    assert!(!current().is(&next), "a task that exits cannot be its own successor");
    switch(next, DEAD);
    unreachable!("an exited task was switched to")
}

#[inline(always)]
fn switch(next: Arc<Task>, leave: u32) {
    assert!(!irqs_enabled(), "switch_to with interrupts on");
    crate::sync::might_sleep();
    let l = local();
    let prev = l.current.get();
    if ptr::eq(prev, &*next) {
        return;
    }
    assert!(next.on_cpu.load(Ordering::Relaxed) != DEAD, "switch to a task that has exited");
    let next = Arc::into_raw(next);
    // SAFETY: both are alive: `prev` by this CPU's reference, `next` by the one taken over just now. FPU state and bases of `next` may be read
    // only when it is off its former CPU, so they are loaded after the switch.
    unsafe {
        if let Some(f) = (*prev).fpu() {
            fpu::save(&*f);
        }
        l.current.set(next);
        let from: *const Task;
        asm!(
            "call {switch}",
            switch = sym ursa_switch,
            inout("rdi") prev => from,
            inout("rsi") next => _,
            inout("edx") leave => _,
            out("rax") _, out("rcx") _,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            out("r12") _, out("r13") _, out("r14") _, out("r15") _,
        );
        finish(from);
    }
}

/// The rest of a switch, on the stack of the task switched to: its registers, then the former task's reference.
///
/// # Safety
/// `from` is the task that this CPU switched from, whose reference passes here.
#[inline(always)]
unsafe fn finish(from: *const Task) {
    let me = current();
    // Not when the registers still hold what this task left there. Always else, even for equal values: a program can change its
    // bases behind the kernel's back by loading a selector.
    if fpu::load(&me) {
        // SAFETY: user addresses, checked when they were set; the kernel does not use FS, and this GS base becomes active with SWAPGS.
        unsafe {
            wrmsr(MSR_FS_BASE, me.fs_base());
            wrmsr(MSR_KERNEL_GS_BASE, me.gs_base());
        }
        debug::load(&me);
    }
    // SAFETY: the reference that the caller passes.
    unsafe { drop(Arc::from_raw(from)) };
}

/// First code of a new task: rdi is what `ursa_switch` left there, the task switched from.
extern "C" fn task_start(from: *const Task) -> ! {
    // SAFETY: passed through the switch.
    unsafe { finish(from) };
    let body = current().body.lock().take().expect("a new task has a body");
    crate::cpu::irq_enable();
    body();
    panic!("task {:?} returned from its body", current().name());
}

static BOOT_STACKS: SpinLock<[Option<Stack>; MAX_CPUS]> = SpinLock::new([const { None }; MAX_CPUS]);

/// Keeps the stack that CPU `cpu` will start on, till its idle task takes it over.
pub(crate) fn set_boot_stack(cpu: usize, stack: Stack) {
    BOOT_STACKS.lock()[cpu] = Some(stack);
}

/// Makes what runs now this CPU's idle task. Called once on each CPU; `ext` of idle tasks is `()`.
pub fn init_idle() {
    let l = local();
    assert!(l.current.get().is_null(), "idle task twice");
    let stack = BOOT_STACKS.lock()[l.cpu_id.get() as usize].take();
    let name = alloc::format!("idle/{}", l.cpu_id.get());
    let task = Arc::new(Task::build(&name, stack, 0, ON, Arc::new(()), None, None));
    // One reference for `current`, one for `idle`.
    l.idle.set(Arc::into_raw(task.clone()));
    l.current.set(Arc::into_raw(task));
}

/// This CPU's idle task.
#[inline]
pub fn idle() -> Arc<Task> {
    let p = local().idle.get();
    assert!(!p.is_null());
    // SAFETY: from `Arc::into_raw` in `init_idle`; that reference is never given up.
    unsafe {
        Arc::increment_strong_count(p);
        Arc::from_raw(p)
    }
}

/// Whether the current task is this CPU's idle task.
#[inline]
pub fn is_idle() -> bool {
    let l = local();
    l.current.get() == l.idle.get()
}

/// In `need_resched`: the running task has something to look at before it next enters user mode; the scheduler has not.
const LOOK: u32 = 1;
/// In `need_resched`: the scheduler is to look.
const RESCHEDULE: u32 = 2;

/// Asks `cpu` to look at its scheduler before it next enters user mode. A CPU other than this one is interrupted.
#[inline]
pub fn set_need_resched(cpu: usize) {
    if cpu == percpu::cpu_id() {
        local().need_resched.store(RESCHEDULE, Ordering::Relaxed);
    } else if let Some(l) = percpu::local_of(cpu)
        && l.need_resched.swap(RESCHEDULE, Ordering::SeqCst) == 0
    {
        crate::smp::send_ipi(CpuSet::single(cpu), crate::smp::Ipi::Reschedule);
    }
}

/// As [`set_need_resched`], where the running task alone has something to look at: no other is chosen because of it.
#[inline]
pub fn set_need_look(cpu: usize) {
    if let Some(l) = percpu::local_of(cpu)
        && l.need_resched.compare_exchange(0, LOOK, Ordering::SeqCst, Ordering::Relaxed).is_ok()
        && cpu != percpu::cpu_id()
    {
        crate::smp::send_ipi(CpuSet::single(cpu), crate::smp::Ipi::Reschedule);
    }
}

/// Takes the request of [`set_need_look`] back, if it is all that this CPU was asked for. What there is to look at was there before
/// the request, so who calls this looks afterwards.
#[inline]
pub fn take_need_look() -> bool {
    local().need_resched.compare_exchange(LOOK, 0, Ordering::SeqCst, Ordering::Relaxed).is_ok()
}

/// Whether this CPU was asked to look at its scheduler or at what its task has to do.
#[inline(always)]
pub fn need_resched() -> bool {
    local().need_resched.load(Ordering::Relaxed) != 0
}

/// Takes the request back: the scheduler has looked.
#[inline(always)]
pub fn clear_need_resched() {
    local().need_resched.store(0, Ordering::SeqCst);
}

/// Makes `space` the user half of this CPU's address space. The CPU keeps a reference until the next switch of spaces. A kernel task runs
/// with whatever space is active.
pub fn switch_space(space: &Arc<UserSpace>) {
    let l = local();
    if ptr::eq(l.space.get(), &**space) {
        return;
    }
    let _off = IrqsOff::new();
    let me = 1 << l.cpu_id.get();
    space.cpus.fetch_or(me, Ordering::SeqCst);
    // SAFETY: the new root maps the kernel half.
    let old = l.space.replace(Arc::into_raw(space.clone()));
    mm::load_root(space.root());
    drop_space(old, me);
}

/// Leaves the active user space: the CPU runs on the kernel's own tables and gives its reference up.
pub fn leave_space() {
    let l = local();
    let _off = IrqsOff::new();
    let old = l.space.replace(ptr::null());
    if !old.is_null() {
        mm::activate_kernel();
        drop_space(old, 1 << l.cpu_id.get());
    }
}

/// Whether `space` is active on this CPU.
pub fn is_active_space(space: &UserSpace) -> bool {
    ptr::eq(local().space.get(), space)
}

fn drop_space(old: *const UserSpace, me: u64) {
    if old.is_null() {
        return;
    }
    // SAFETY: from `Arc::into_raw` when it became active.
    let old = unsafe { Arc::from_raw(old) };
    old.cpus.fetch_and(!me, Ordering::SeqCst);
}

/// Bounds of the current kernel stack, for backtraces.
pub fn stack_bounds() -> Option<(VirtAddr, VirtAddr)> {
    let t = try_current()?;
    let s = t.stack.as_ref()?;
    Some((s.bottom(), s.top()))
}
