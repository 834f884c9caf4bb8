//! Tests that need the machine: a registry in a linker section, and its runner.
//!
//! A test is a function that panics when it fails; the kernel does not unwind, so the first failure ends the run. Tests are part
//! of every kernel (a few kilobytes) so that what is tested is what ships; `ktest` or `ktest=PART` on the command line runs
//! all, or those whose name contains PART.
//!
//! ```ignore
//! ktest! {
//!     /// Frames come back.
//!     fn frames_are_freed() { assert_eq!(..); }
//! }
//! ```
//!
//! Output, one line each: `ktest: PASS name`, `ktest: FAIL name: message`, `ktest: done N passed, M failed`.

use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

/// An entry of the registry.
#[derive(Debug)]
#[repr(C)]
pub struct KTest {
    /// Module path and name.
    pub name: &'static str,
    /// The test.
    pub run: fn(),
}

/// Registers tests; see [`crate::ktest!`].
#[macro_export]
macro_rules! ktest {
    ($( $(#[$meta:meta])* fn $name:ident() $body:block )+) => { $(
        $(#[$meta])*
        fn $name() $body
        const _: () = {
            #[used]
            #[cfg(target_os = "none")]
            #[allow(unsafe_code, reason = "the section holds nothing but KTest entries, as the linker script has it")]
            #[unsafe(link_section = ".ktest")]
            static ENTRY: $crate::ktest::KTest =
                $crate::ktest::KTest { name: concat!(module_path!(), "::", stringify!($name)), run: $name };
            #[cfg(not(target_os = "none"))]
            let _: fn() = $name;
        };
    )+ };
}

unsafe extern "C" {
    static __ktest_start: [usize; 0];
    static __ktest_end: [usize; 0];
}

/// All tests.
fn registry() -> &'static [KTest] {
    let (start, end) = ((&raw const __ktest_start).cast::<KTest>(), (&raw const __ktest_end).cast::<KTest>());
    // SAFETY: the linker script puts the symbols around the section, which holds only `KTest` statics, all of one size and
    // alignment and so without gaps.
    unsafe { core::slice::from_raw_parts(start, end.offset_from_unsigned(start)) }
}

static CURRENT: AtomicPtr<KTest> = AtomicPtr::new(core::ptr::null_mut());
static PASSED: AtomicUsize = AtomicUsize::new(0);

/// Whether the command line asks for tests.
pub fn wanted() -> bool {
    crate::boot::option("ktest").is_some()
}

/// What is written to QEMU's exit device after a run in which all passed: QEMU ends with status 33.
const EXIT_DONE: u8 = 0x10;

/// Runs the tests that the command line asks for, then ends QEMU if it has the exit device, else returns how many passed. Does not
/// return when one fails.
pub fn run_all() -> usize {
    let part = crate::boot::option("ktest").unwrap_or("");
    for test in registry().iter().filter(|t| t.name.contains(part)) {
        CURRENT.store(core::ptr::from_ref(test).cast_mut(), Ordering::Relaxed);
        (test.run)();
        CURRENT.store(core::ptr::null_mut(), Ordering::Relaxed);
        PASSED.fetch_add(1, Ordering::Relaxed);
        crate::info!("ktest: PASS {}", test.name);
    }
    let n = PASSED.load(Ordering::Relaxed);
    crate::info!("ktest: done {n} passed, 0 failed");
    crate::power::qemu_exit(EXIT_DONE);
    n
}

/// For the panic handler: reports the test that was running as failed.
pub(crate) fn report_panic(message: core::fmt::Arguments<'_>) {
    if let Some(test) = current() {
        crate::error!("ktest: FAIL {}: {message}", test.name);
    }
}

/// For the panic handler, behind the backtraces: ends the run.
pub(crate) fn report_end() {
    if current().is_some() {
        crate::error!("ktest: done {} passed, 1 failed", PASSED.load(Ordering::Relaxed));
    }
}

fn current() -> Option<&'static KTest> {
    // SAFETY: null or a registry entry, which is static.
    unsafe { CURRENT.load(Ordering::Relaxed).as_ref() }
}
