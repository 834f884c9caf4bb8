//! The files of a group.

use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::{
    fmt::Write,
    sync::atomic::{AtomicU32, Ordering},
};

use linux_uapi::signal::{SIGKILL, SigInfo};

use super::{
    controller::Controllers,
    freezer,
    member::{self, group_of},
    pids,
    tree::{self, Cgroup},
};
use crate::{
    Errno, Result,
    fs::{
        file::{File, FileOps, seek_from},
        io::{Sink, Source},
        procfs::Text,
    },
    poll::{PollEvents, PollTable},
    process::{self, Credentials, Process, Thread},
    signal,
    wait::Mutex,
};

/// The longest write.
const WRITE_MAX: usize = 4096;

/// A file that groups have.
pub struct Control {
    /// Its name.
    pub name: &'static str,
    /// Permission bits.
    pub mode: u32,
    /// Whether the root has it too.
    on_root: bool,
    /// The controller that has to be switched on for it.
    controller: Controllers,
    /// Appends the text.
    pub show: Option<fn(&Arc<Cgroup>, &mut Text) -> Result>,
    /// Takes what was written in one call, on behalf of who opened the file.
    pub store: Option<fn(&Arc<Cgroup>, &str, &Credentials) -> Result>,
}

impl Control {
    /// Whether `group` has the file.
    pub fn is_in(&self, group: &Cgroup) -> bool {
        (self.on_root || group.parent().is_some()) && group.controllers().contains(self.controller)
    }

    /// Whether it is there as long as its group.
    pub(super) fn is_lasting(&self) -> bool {
        self.controller.is_empty()
    }
}

const fn control(name: &'static str, mode: u32, on_root: bool) -> Control {
    Control { name, mode, on_root, controller: Controllers::empty(), show: None, store: None }
}

const fn pids_control(name: &'static str, mode: u32) -> Control {
    Control { controller: Controllers::PIDS, ..control(name, mode, false) }
}

/// Place of `cgroup.events` in [`CONTROLS`].
pub(super) const EVENTS: usize = 1;
/// Place of `cgroup.procs` in [`CONTROLS`].
pub(super) const PROCS: usize = 6;
/// Place of `pids.events` in [`CONTROLS`].
pub(super) const PIDS_EVENTS: usize = 12;
/// Place of `pids.events.local` in [`CONTROLS`].
pub(super) const PIDS_EVENTS_LOCAL: usize = 13;
/// The files whose changes can be waited for.
const WATCHED: [usize; 3] = [EVENTS, PIDS_EVENTS, PIDS_EVENTS_LOCAL];

/// All files.
pub static CONTROLS: [Control; 16] = [
    Control { show: Some(show_controllers), ..control("cgroup.controllers", 0o444, true) },
    Control { show: Some(show_events), ..control("cgroup.events", 0o444, false) },
    Control { show: Some(show_freeze), store: Some(store_freeze), ..control("cgroup.freeze", 0o644, false) },
    Control { store: Some(store_kill), ..control("cgroup.kill", 0o200, false) },
    Control { show: Some(show_max_depth), store: Some(store_max_depth), ..control("cgroup.max.depth", 0o644, true) },
    Control {
        show: Some(show_max_descendants),
        store: Some(store_max_descendants),
        ..control("cgroup.max.descendants", 0o644, true)
    },
    Control { show: Some(show_procs), store: Some(store_procs), ..control("cgroup.procs", 0o644, true) },
    Control { show: Some(show_stat), ..control("cgroup.stat", 0o444, true) },
    Control {
        show: Some(show_subtree_control),
        store: Some(store_subtree_control),
        ..control("cgroup.subtree_control", 0o644, true)
    },
    Control { show: Some(show_threads), store: Some(store_threads), ..control("cgroup.threads", 0o644, true) },
    Control { show: Some(show_type), store: Some(store_type), ..control("cgroup.type", 0o644, false) },
    Control { show: Some(pids::show_current), ..pids_control("pids.current", 0o444) },
    Control { show: Some(pids::show_events), ..pids_control("pids.events", 0o444) },
    Control { show: Some(pids::show_events_local), ..pids_control("pids.events.local", 0o444) },
    Control { show: Some(pids::show_max), store: Some(pids::store_max), ..pids_control("pids.max", 0o644) },
    Control { show: Some(pids::show_peak), ..pids_control("pids.peak", 0o444) },
];

/// The place of the file `name` of `group` in [`CONTROLS`].
pub(super) fn find(group: &Cgroup, name: &[u8]) -> Option<usize> {
    CONTROLS.iter().position(|control| control.name.as_bytes() == name && control.is_in(group))
}

fn show_controllers(group: &Arc<Cgroup>, out: &mut Text) -> Result {
    group.controllers().show(out);
    Ok(())
}

fn show_subtree_control(group: &Arc<Cgroup>, out: &mut Text) -> Result {
    group.subtree_control().show(out);
    Ok(())
}

fn store_subtree_control(group: &Arc<Cgroup>, text: &str, _opener: &Credentials) -> Result {
    let (on, off) = Controllers::parse_change(text)?;
    group.change_control(on, off)
}

fn show_events(group: &Arc<Cgroup>, out: &mut Text) -> Result {
    let state = group.state.lock();
    let (populated, frozen) = (state.populated(), state.frozen);
    drop(state);
    writeln!(out, "populated {}\nfrozen {}", u8::from(populated), u8::from(frozen))?;
    Ok(())
}

fn show_freeze(group: &Arc<Cgroup>, out: &mut Text) -> Result {
    let freeze = group.state.lock().freeze;
    writeln!(out, "{}", u8::from(freeze))?;
    Ok(())
}

fn store_freeze(group: &Arc<Cgroup>, text: &str, _opener: &Credentials) -> Result {
    let freeze = match text.trim().parse::<i32>().map_err(|_| Errno::EINVAL)? {
        0 => false,
        1 => true,
        _ => return Err(Errno::ERANGE),
    };
    freezer::set(group, freeze);
    Ok(())
}

/// Kills every process here and below, those that are being forked included: a fork looks for signals under the lock that
/// is held from the choice of the processes to the last signal.
fn store_kill(group: &Arc<Cgroup>, text: &str, _opener: &Credentials) -> Result {
    match text.trim().parse::<i32>().map_err(|_| Errno::EINVAL)? {
        1 => {}
        _ => return Err(Errno::ERANGE),
    }
    if group.is_threaded() {
        // It would take threads of other groups along.
        return Err(Errno::EOPNOTSUPP);
    }
    let tree = process::tree_lock();
    let members = group.processes_of_subtree();
    for process in &members {
        signal::send_to_process(process, SigInfo::kernel(SIGKILL));
    }
    // The last reference to a process is not dropped under the lock.
    drop(tree);
    drop(members);
    Ok(())
}

fn show_limit(limit: Option<u32>, out: &mut Text) -> Result {
    match limit {
        Some(limit) => writeln!(out, "{limit}")?,
        None => out.push_str("max\n"),
    }
    Ok(())
}

fn parse_limit(text: &str) -> Result<Option<u32>> {
    match text.trim() {
        "max" => Ok(None),
        text => match text.parse::<i64>().map_err(|_| Errno::EINVAL)? {
            value @ 0..=0x7fff_ffff => Ok(Some(value as u32)),
            _ => Err(Errno::ERANGE),
        },
    }
}

fn show_max_depth(group: &Arc<Cgroup>, out: &mut Text) -> Result {
    let limit = group.state.lock().max_depth;
    show_limit(limit, out)
}

fn store_max_depth(group: &Arc<Cgroup>, text: &str, _opener: &Credentials) -> Result {
    group.state.lock().max_depth = parse_limit(text)?;
    Ok(())
}

fn show_max_descendants(group: &Arc<Cgroup>, out: &mut Text) -> Result {
    let limit = group.state.lock().max_descendants;
    show_limit(limit, out)
}

fn store_max_descendants(group: &Arc<Cgroup>, text: &str, _opener: &Credentials) -> Result {
    group.state.lock().max_descendants = parse_limit(text)?;
    Ok(())
}

fn show_stat(group: &Arc<Cgroup>, out: &mut Text) -> Result {
    let descendants = group.state.lock().descendants;
    writeln!(out, "nr_descendants {descendants}\nnr_dying_descendants 0")?;
    Ok(())
}

fn show_procs(group: &Arc<Cgroup>, out: &mut Text) -> Result {
    if group.is_threaded() {
        return Err(Errno::EOPNOTSUPP);
    }
    for process in member::processes_of_domain(group) {
        writeln!(out, "{}", process.seen_pid())?;
    }
    Ok(())
}

fn show_threads(group: &Arc<Cgroup>, out: &mut Text) -> Result {
    let mut tids: Vec<i32> = member::threads_in(group).iter().map(|thread| thread.seen_tid()).collect();
    tids.sort_unstable();
    for tid in tids {
        writeln!(out, "{tid}")?;
    }
    Ok(())
}

/// The thread that a number names; 0 is the writer itself.
fn parse_thread(text: &str) -> Result<Arc<Thread>> {
    match text.trim().parse::<i32>().map_err(|_| Errno::EINVAL)? {
        0 => Ok(process::current().arc()),
        tid @ 1.. => process::seen_thread(tid).ok_or(Errno::ESRCH),
        _ => Err(Errno::EINVAL),
    }
}

fn store_procs(group: &Arc<Cgroup>, text: &str, opener: &Credentials) -> Result {
    let thread = parse_thread(text)?;
    let process: &Arc<Process> = thread.process();
    tree::may_move(&process.cgroup.group(), group, opener)?;
    member::attach(process, group)
}

fn store_threads(group: &Arc<Cgroup>, text: &str, opener: &Credentials) -> Result {
    let thread = parse_thread(text)?;
    tree::may_move(&group_of(&thread), group, opener)?;
    member::attach_thread(&thread, group)
}

fn show_type(group: &Arc<Cgroup>, out: &mut Text) -> Result {
    writeln!(out, "{}", group.kind())?;
    Ok(())
}

fn store_type(group: &Arc<Cgroup>, text: &str, _opener: &Credentials) -> Result {
    if text.trim() == "threaded" { group.make_threaded() } else { Err(Errno::EINVAL) }
}

/// An open file of a group.
pub(super) struct OpenControl {
    group: Arc<Cgroup>,
    /// Its place in [`CONTROLS`].
    at: usize,
    /// Whose right it is to move processes: not the writer's, who may have got the descriptor from somebody with less.
    opener: Arc<Credentials>,
    /// The text of the last read from the start: a program that reads in pieces sees one state.
    text: Mutex<Option<Box<[u8]>>>,
    /// How many changes of the file the text tells of.
    seen: AtomicU32,
}

impl OpenControl {
    pub fn new(group: Arc<Cgroup>, at: usize, opener: Arc<Credentials>) -> OpenControl {
        let seen = AtomicU32::new(group.nodes.changes(at));
        OpenControl { group, at, opener, text: Mutex::new(None), seen }
    }

    fn control(&self) -> &'static Control {
        &CONTROLS[self.at]
    }

    fn alive(&self) -> Result {
        if self.group.is_dead() || !self.control().is_in(&self.group) { Err(Errno::ENODEV) } else { Ok(()) }
    }
}

impl FileOps for OpenControl {
    fn read(&self, _f: &File, dst: &mut Sink<'_>, pos: u64) -> Result<usize> {
        self.alive()?;
        let mut text = self.text.lock();
        if text.is_none() || pos == 0 {
            let seen = self.group.nodes.changes(self.at);
            let mut out = Text::default();
            self.control().show.ok_or(Errno::EINVAL)?(&self.group, &mut out)?;
            *text = Some(out.0.into_boxed_slice());
            self.seen.store(seen, Ordering::SeqCst);
        }
        let text = text.as_deref().unwrap_or_default();
        let from = usize::try_from(pos).unwrap_or(usize::MAX).min(text.len());
        dst.put(&text[from..])
    }

    fn write(&self, _f: &File, src: &mut Source<'_>, _pos: u64) -> Result<usize> {
        self.alive()?;
        if src.remaining() > WRITE_MAX {
            return Err(Errno::E2BIG);
        }
        let mut data: Vec<u8> = alloc::vec![0; src.remaining()];
        src.take_all(&mut data)?;
        let text = core::str::from_utf8(&data).map_err(|_| Errno::EINVAL)?;
        self.control().store.ok_or(Errno::EINVAL)?(&self.group, text, &self.opener)?;
        Ok(data.len())
    }

    fn is_stream(&self) -> bool {
        false
    }

    fn poll(&self, _f: &File, pt: Option<&mut PollTable>) -> PollEvents {
        if !WATCHED.contains(&self.at) {
            return PollEvents::DEFAULT;
        }
        if let Some(pt) = pt {
            pt.register(self.group.nodes.queue());
        }
        if self.seen.load(Ordering::SeqCst) != self.group.nodes.changes(self.at) || self.group.is_dead() {
            PollEvents::DEFAULT | PollEvents::POLLERR | PollEvents::POLLPRI
        } else {
            PollEvents::DEFAULT
        }
    }

    fn seek(&self, _f: &File, offset: i64, whence: u32, pos: u64) -> Result<u64> {
        seek_from(offset, whence, pos, None)
    }
}
