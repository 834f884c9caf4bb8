//! System call dispatch: from registers to a typed handler and back.
//!
//! Each family keeps its handlers and a `ROWS` table beside its objects (`fs::syscall::ROWS`, `process::syscall::ROWS`
//! …), written with [`syscalls!`](crate::syscalls). The tables are joined at compile time into one array indexed by
//! the x86-64 number; a number that two families claim fails the build. A handler is: typed arguments in, look up the
//! object with its rights, one method call, copy out.
//!
//! References: syscalls(2), `arch/x86/entry/syscalls/syscall_64.tbl`.

use alloc::{collections::BTreeSet, string::String};

use ursa_hal::{sync::SpinLock, trap::UserContext};

use crate::{
    Errno, Result,
    process::Thread,
    user::{UserAddr, UserPtr},
};

/// One past the highest system call number that Linux has assigned on x86-64, rounded up.
pub const TABLE_LEN: usize = 512;

/// What a handler works with besides its arguments.
pub struct Cx<'a> {
    /// The calling thread.
    pub thread: &'a Thread,
    /// Its registers at the call; a handler that replaces them (`rt_sigreturn`, `execve`) uses [`Cx::keep_rax`].
    pub regs: &'a mut UserContext,
    keep_rax: bool,
}

impl Cx<'_> {
    /// The handler has loaded all registers, `rax` among them: dispatch must not store a result.
    pub fn keep_rax(&mut self) {
        self.keep_rax = true;
    }
}

/// The value that goes into `rax`.
#[derive(Clone, Copy)]
pub struct SysRet(pub u64);

macro_rules! sysret_from {
    ($($t:ty)*) => { $(impl From<$t> for SysRet { #[inline] fn from(v: $t) -> Self { SysRet(v as i64 as u64) } })* };
}
sysret_from!(i32 i64 isize);
macro_rules! sysret_from_unsigned {
    ($($t:ty)*) => { $(impl From<$t> for SysRet { #[inline] fn from(v: $t) -> Self { SysRet(v as u64) } })* };
}
sysret_from_unsigned!(u32 u64 usize);
impl From<()> for SysRet {
    #[inline]
    fn from((): ()) -> Self {
        SysRet(0)
    }
}
impl From<UserAddr> for SysRet {
    #[inline]
    fn from(addr: UserAddr) -> Self {
        SysRet(addr.as_u64())
    }
}

/// What a handler may return: a value, for calls that cannot fail, or a [`Result`] of one.
pub trait Outcome {
    /// The result as the table's handlers give it.
    fn outcome(self) -> Result<SysRet>;
}

impl<T: Into<SysRet>> Outcome for Result<T> {
    #[inline]
    fn outcome(self) -> Result<SysRet> {
        self.map(Into::into)
    }
}

macro_rules! infallible {
    ($($t:ty)*) => { $(impl Outcome for $t { #[inline] fn outcome(self) -> Result<SysRet> { Ok(self.into()) } })* };
}
infallible!(() i32 i64 isize u32 u64 usize);

/// A type that one argument register can hold. Narrow integers take the low bits, as the C prototype would.
pub trait FromArg {
    /// Converts a register's value.
    fn from_arg(value: u64) -> Self;
}

macro_rules! from_arg_int {
    ($($t:ty)*) => { $(impl FromArg for $t { #[inline] fn from_arg(value: u64) -> Self { value as $t } })* };
}
from_arg_int!(u8 u16 i16 i32 u32 i64 u64 isize usize);
impl FromArg for UserAddr {
    #[inline]
    fn from_arg(value: u64) -> Self {
        UserAddr::new(value)
    }
}
impl<T> FromArg for UserPtr<T> {
    #[inline]
    fn from_arg(value: u64) -> Self {
        UserPtr::new(value)
    }
}

/// A handler as the table holds it.
pub type Handler = fn(&mut Cx<'_>, &[u64; 6]) -> Result<SysRet>;

/// One line of a family's table.
pub struct Row {
    /// The x86-64 number.
    pub nr: u16,
    /// Linux's name.
    pub name: &'static str,
    /// What runs.
    pub handler: Handler,
}

/// Writes a family's table: `syscalls! { ROWS; 0 read => rw::sys_read(0, 1, 2); … }`.
///
/// The numbers in parentheses say which argument registers the handler takes, in order, after its [`Cx`].
#[macro_export]
macro_rules! syscalls {
    ($table:ident; $(
        $nr:literal $name:ident => $($handler:ident)::+ $(($($arg:literal),*))?;
    )*) => {
        /// The system calls of this family.
        pub const $table: &[$crate::syscall::Row] = &[
            $($crate::syscall::Row {
                nr: $nr,
                name: stringify!($name),
                handler: |_cx, _args| {
                    let result = $($handler)::+(
                        _cx
                        $($(, $crate::syscall::FromArg::from_arg(_args[$arg]))*)?
                    );
                    $crate::syscall::Outcome::outcome(result)
                },
            },)*
        ];
    };
}

/// The families' tables.
const FAMILIES: &[&[Row]] = &[
    crate::fs::syscall::ROWS,
    crate::futex::syscall::ROWS,
    crate::ipc::syscall::ROWS,
    crate::mm::syscall::ROWS,
    crate::net::syscall::ROWS,
    crate::poll::syscall::ROWS,
    crate::process::syscall::ROWS,
    crate::ptrace::request::ROWS,
    crate::sched::syscall::ROWS,
    crate::signal::syscall::ROWS,
    crate::time::syscall::ROWS,
];

const fn build_table() -> [Option<&'static Row>; TABLE_LEN] {
    let mut table: [Option<&'static Row>; TABLE_LEN] = [None; TABLE_LEN];
    let mut family = 0;
    while family < FAMILIES.len() {
        let rows = FAMILIES[family];
        let mut i = 0;
        while i < rows.len() {
            assert!(table[rows[i].nr as usize].is_none(), "two families claim one system call number");
            table[rows[i].nr as usize] = Some(&rows[i]);
            i += 1;
        }
        family += 1;
    }
    table
}

static TABLE: [Option<&'static Row>; TABLE_LEN] = build_table();

/// Linux's name of a call that Ursa has, for logs and tests.
pub fn name(nr: usize) -> Option<&'static str> {
    TABLE.get(nr).copied().flatten().map(|row| row.name)
}

/// The numbers and names of every call that Ursa has.
pub fn implemented() -> impl Iterator<Item = (u16, &'static str)> {
    TABLE.iter().flatten().map(|row| (row.nr, row.name))
}

/// Runs the call that the registers describe and stores its result in `rax`.
///
/// The restart codes stay in `rax` as they are: signal delivery resolves them before the thread sees user mode again.
#[inline]
pub fn dispatch(thread: &Thread, regs: &mut UserContext) {
    let nr = regs.syscall_number();
    let args = regs.syscall_args();
    let mut cx = Cx { thread, regs: &mut *regs, keep_rax: false };
    let result = match TABLE.get(nr) {
        Some(Some(row)) => (row.handler)(&mut cx, &args),
        _ => {
            log_unknown(thread, nr);
            Err(Errno::ENOSYS)
        }
    };
    let keep_rax = cx.keep_rax;
    if !keep_rax {
        regs.set_return(match result {
            Ok(SysRet(value)) => value,
            Err(errno) => errno.to_return(),
        });
    }
}

/// How many (program, call) pairs are remembered as logged.
const LOGGED_MAX: usize = 1024;

/// Logs an unknown call once per program name and number, so that a missing interface shows without flooding the log.
#[cold]
fn log_unknown(thread: &Thread, nr: usize) {
    static LOGGED: SpinLock<BTreeSet<(String, usize)>> = SpinLock::new(BTreeSet::new());
    let program = thread.log_name();
    let fresh = {
        let mut logged = LOGGED.lock();
        logged.len() < LOGGED_MAX && logged.insert((program.clone(), nr))
    };
    if fresh {
        ursa_hal::info!("{program}[{}]: system call {nr} is not implemented", thread.tid());
    }
}
