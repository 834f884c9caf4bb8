//! Time: clocks, high-resolution timers, sleeping, interval and POSIX timers, and the vDSO's data.
//!
//! Everything is in nanoseconds of [`u64`] inside the kernel; the structures of the ABI are converted where calls come in.
//! Key types: [`Deadline`] (an instant of a clock), [`Timer`] (calls back in interrupt context), [`SleepTimer`] (wakes a task).
//! References: time(7), clock_gettime(2), timer_create(2), Linux `kernel/time/`.

pub mod clock;
mod cpu_clock;
pub(crate) mod cpu_timers;
mod itimer;
pub(crate) mod posix_timer;
pub mod syscall;
pub mod timer;
mod timex;
pub mod vdso;

pub use clock::{ClockBase, monotonic_ns, realtime_ns, set_realtime};
pub use itimer::ProcessTimers;
pub use timer::{Deadline, SleepTimer, Timer};

/// Makes the clocks ready for programs.
pub fn init() {
    vdso::update();
}

/// hal's timer hook: this CPU's deadline has come. Runs in interrupt context.
pub fn on_timer() {
    timer::interrupt();
}

/// `RLIMIT_CPU` of a process was changed: the tick compares anew.
pub fn cpu_limit_changed(process: &crate::process::Process) {
    process.signals.timers.forget_cpu_warning();
}
