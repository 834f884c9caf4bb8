//! `core_pattern`: the name of a core file, or the program that takes the dump.
//!
//! References: core(5) ("Naming of core dump files"), Linux `format_corename`.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use ursa_hal::sync::SpinLock;

use crate::Result;
use crate::process::Thread;
use crate::process::rlimit::Resource;
use crate::process::syscall::system;

/// The longest pattern, its NUL included (`CORENAME_MAX_SIZE`).
const PATTERN_MAX: usize = 128;

static CORE_PATTERN: SpinLock<Option<Box<str>>> = SpinLock::new(None);
/// `/proc/sys/kernel/core_uses_pid`.
pub static CORE_USES_PID: AtomicU32 = AtomicU32::new(0);

/// Where a core dump is written: `/proc/sys/kernel/core_pattern`.
pub fn core_pattern() -> String {
    CORE_PATTERN.lock().as_deref().unwrap_or("core").into()
}

/// Sets the pattern, cut to 127 bytes as Linux does.
///
/// # Errors
/// None; the type is that of all parameters.
pub fn set_core_pattern(text: &str) -> Result {
    let text = text.split('\n').next().unwrap_or_default();
    let text = &text[..text.floor_char_boundary(PATTERN_MAX - 1)];
    let old = CORE_PATTERN.lock().replace(Box::from(text));
    drop(old);
    Ok(())
}

/// Where a dump goes.
pub(super) enum Destination {
    /// A file of this name.
    File(Vec<u8>),
    /// The standard input of a program with these arguments, the first of which is its path.
    Program(Vec<Vec<u8>>),
}

/// Works out where the dump of the running thread's process goes; `None` when the pattern says nothing usable.
pub(super) fn destination(thread: &Thread, signo: u32) -> Option<Destination> {
    let pattern = core_pattern();
    if let Some(command) = pattern.strip_prefix('|') {
        // Split before the expansion, so that a name with blanks stays one argument.
        let args: Vec<Vec<u8>> =
            command.split(' ').filter(|word| !word.is_empty()).map(|word| expand(word, thread, signo).0).collect();
        let usable = args.first().is_some_and(|path| path.first() == Some(&b'/'));
        return usable.then_some(Destination::Program(args));
    }
    let (mut name, has_pid) = expand(&pattern, thread, signo);
    if !has_pid && CORE_USES_PID.load(Relaxed) != 0 {
        name.extend_from_slice(alloc::format!(".{}", thread.process().identity().own()).as_bytes());
    }
    (!name.is_empty() && !name.contains(&0)).then_some(Destination::File(name))
}

/// A name as one component of a path: without slashes, and not `.`, `..` or nothing.
fn component(name: &[u8], out: &mut Vec<u8>) {
    let from = out.len();
    out.extend(name.iter().take_while(|&&b| b != 0).map(|&b| if b == b'/' { b'!' } else { b }));
    match &out[from..] {
        b"." | b".." => out[from] = b'!',
        b"" => out.push(b'!'),
        _ => {}
    }
}

/// Replaces the `%` specifiers; the second value says whether the process's number is among them.
fn expand(pattern: &str, thread: &Thread, signo: u32) -> (Vec<u8>, bool) {
    let process = thread.process();
    let mut out = Vec::new();
    let mut has_pid = false;
    let mut bytes = pattern.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut text = String::new();
        // Into a string nothing fails; an unknown specifier vanishes, as a `%` at the end does.
        let _ = match bytes.next() {
            Some(b'%') => text.write_char('%'),
            Some(b'p') => {
                has_pid = true;
                write!(text, "{}", process.identity().own())
            }
            Some(b'P') => write!(text, "{}", process.pid()),
            Some(b'i') => write!(text, "{}", thread.own_tid()),
            Some(b'I') => write!(text, "{}", thread.tid()),
            Some(b'u') => write!(text, "{}", thread.with_cred(|c| c.uid)),
            Some(b'g') => write!(text, "{}", thread.with_cred(|c| c.gid)),
            Some(b'd') => write!(text, "{}", process.dumpable()),
            Some(b's') => write!(text, "{signo}"),
            Some(b't') => write!(text, "{}", crate::time::realtime_ns() / 1_000_000_000),
            Some(b'c') => write!(text, "{}", process.rlimits.soft(Resource::Core)),
            Some(b'C') => write!(text, "{}", ursa_hal::smp::current_cpu()),
            Some(b'h') => {
                component(&system::utsname().nodename, &mut out);
                Ok(())
            }
            Some(b'e') => {
                component(&thread.comm(), &mut out);
                Ok(())
            }
            Some(kind @ (b'f' | b'E')) => {
                let path = executable_path(thread);
                let name = if kind == b'E' { &path[..] } else { path.rsplit(|&b| b == b'/').next().unwrap_or(&[]) };
                component(name, &mut out);
                Ok(())
            }
            _ => Ok(()),
        };
        out.extend_from_slice(text.as_bytes());
    }
    (out, has_pid)
}

/// The path of what the process executes, or its name when it has none.
fn executable_path(thread: &Thread) -> Vec<u8> {
    let root = thread.fs().root();
    let file = thread.vm().exe();
    match file.as_ref().and_then(|file| file.path()) {
        Some(path) => path.display(&root).0,
        None => thread.name().into_bytes(),
    }
}
