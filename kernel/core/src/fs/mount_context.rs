//! Contexts of file systems: what `fsopen` and `fspick` make, `fsconfig` fills and `fsmount` takes a mount from.
//!
//! ```text
//! fsopen ─▶ Configuring ─CMD_CREATE─▶ Made ─fsmount─▶ Mounted ─┐
//! fspick ─────────────────────────────────────────────────────▶ Reconfiguring (CMD_RECONFIGURE, as often as wanted)
//! ```
//! Options are collected and handed to the file system as one string, as Linux does for types with the older interface; so an
//! unknown one is refused by `FSCONFIG_CMD_CREATE`, not by the call that names it. References: `fs/fsopen.c`, fsopen(2).

use alloc::{
    sync::{Arc, Weak},
    vec::Vec,
};
use core::sync::atomic::Ordering;

use super::{
    file::{File, FileOps},
    inode::{FileSystem, SbFlags, SuperBlock},
    io::Sink,
    mount::{Mount, MountFlags},
};
use crate::{Errno, Result, wait::Mutex};

/// The collected options fit a page, with commas and the last NUL.
const OPTIONS_MAX: usize = 4096 - 2;

/// What a context can do next.
enum Phase {
    /// Options for a new file system.
    Configuring,
    /// The file system is there, and nobody has its mount yet.
    Made(Arc<Mount>),
    /// Options of a file system that is in use.
    Reconfiguring(Weak<SuperBlock>),
    /// Making it failed.
    Failed,
}

struct State {
    phase: Phase,
    source: Option<Vec<u8>>,
    options: Vec<u8>,
    /// Read-only, where that was said.
    readonly: Option<bool>,
}

/// A context behind a descriptor.
pub struct MountContext {
    fs: Option<(Arc<dyn FileSystem>, Vec<u8>)>,
    state: Mutex<State>,
}

impl MountContext {
    /// For a new file system of type `fs`, with what followed a dot in the type's name.
    pub fn create(fs: Arc<dyn FileSystem>, subtype: &[u8]) -> Arc<MountContext> {
        Self::new(Some((fs, Vec::from(subtype))), Phase::Configuring)
    }

    /// For a file system that is mounted.
    pub fn reconfigure(sb: &Arc<SuperBlock>) -> Arc<MountContext> {
        Self::new(None, Phase::Reconfiguring(Arc::downgrade(sb)))
    }

    fn new(fs: Option<(Arc<dyn FileSystem>, Vec<u8>)>, phase: Phase) -> Arc<MountContext> {
        let state = State { phase, source: None, options: Vec::new(), readonly: None };
        Arc::new(MountContext { fs, state: Mutex::new(state) })
    }

    /// Takes an option, with a value if it has one.
    ///
    /// # Errors
    /// `EBUSY` when the file system is made, `EINVAL` for a second source, a comma, or more than a page of options.
    pub fn option(&self, key: &[u8], value: Option<&[u8]>) -> Result {
        let mut state = self.state.lock();
        if !matches!(state.phase, Phase::Configuring | Phase::Reconfiguring(_)) {
            return Err(Errno::EBUSY);
        }
        match (key, value) {
            (b"ro", _) => state.readonly = Some(true),
            (b"rw", _) => state.readonly = Some(false),
            // Flags of file systems that change nothing here.
            (b"sync" | b"async" | b"dirsync" | b"lazytime" | b"nolazytime" | b"mand" | b"nomand", _) => {}
            (b"source", Some(source)) if state.source.is_none() => state.source = Some(Vec::from(source)),
            (b"source", _) => return Err(Errno::EINVAL),
            _ => {
                let len = state.options.len() + 1 + key.len() + value.map_or(0, |value| value.len() + 1);
                if len > OPTIONS_MAX || key.contains(&b',') || value.is_some_and(|value| value.contains(&b',')) {
                    return Err(Errno::EINVAL);
                }
                if !state.options.is_empty() {
                    state.options.push(b',');
                }
                state.options.extend_from_slice(key);
                if let Some(value) = value {
                    state.options.push(b'=');
                    state.options.extend_from_slice(value);
                }
            }
        }
        Ok(())
    }

    /// `FSCONFIG_CMD_CREATE`
    ///
    /// # Errors
    /// `EBUSY` in another phase, and those of mount(2).
    pub fn make(&self) -> Result {
        let mut state = self.state.lock();
        let (Some((fs, subtype)), Phase::Configuring) = (&self.fs, &state.phase) else { return Err(Errno::EBUSY) };
        // Whatever goes wrong, the context is of no more use.
        state.phase = Phase::Failed;
        let source = state.source.take().unwrap_or_default();
        let flags = if state.readonly == Some(true) { SbFlags::RDONLY } else { SbFlags::empty() };
        let sb = fs.mount_subtype(subtype, &source, flags, &state.options)?;
        state.phase = Phase::Made(Mount::of(sb, &source, MountFlags::empty())?);
        Ok(())
    }

    /// `FSCONFIG_CMD_RECONFIGURE`
    ///
    /// # Errors
    /// `EBUSY` in another phase and for read-only while files are open for writing, `EINVAL` for bad options.
    pub fn change(&self) -> Result {
        let mut state = self.state.lock();
        let Phase::Reconfiguring(sb) = &state.phase else { return Err(Errno::EBUSY) };
        let sb = sb.upgrade().ok_or(Errno::EINVAL)?;
        let readonly = state.readonly.unwrap_or(sb.flags().contains(SbFlags::RDONLY));
        let result = reconfigure(&sb, readonly, &state.options);
        (state.options, state.readonly) = (Vec::new(), None);
        result
    }

    /// Takes the mount out, with these options (`fsmount`).
    ///
    /// # Errors
    /// `EINVAL` before the file system is made, `EBUSY` afterwards.
    pub fn take_mount(&self, flags: MountFlags) -> Result<Arc<Mount>> {
        let mut state = self.state.lock();
        match &state.phase {
            Phase::Configuring | Phase::Failed => Err(Errno::EINVAL),
            Phase::Reconfiguring(_) => Err(Errno::EBUSY),
            Phase::Made(mount) => {
                let mount = mount.clone();
                mount.set_flags(flags);
                (state.options, state.readonly) = (Vec::new(), None);
                state.phase = Phase::Reconfiguring(Arc::downgrade(&mount.sb));
                Ok(mount)
            }
        }
    }
}

/// Changes options of a file system, and whether it can be written.
///
/// # Errors
/// `EBUSY` for read-only while files are open for writing, `EINVAL` for bad options.
pub fn reconfigure(sb: &SuperBlock, readonly: bool, options: &[u8]) -> Result {
    sb.ops().remount(sb, options)?;
    let old = sb.flags.load(Ordering::SeqCst);
    let new = if readonly { old | SbFlags::RDONLY.bits() } else { old & !SbFlags::RDONLY.bits() };
    sb.flags.store(new, Ordering::SeqCst);
    if readonly && sb.writers.load(Ordering::SeqCst) > 0 {
        sb.flags.store(old, Ordering::SeqCst);
        return Err(Errno::EBUSY);
    }
    Ok(())
}

impl FileOps for MountContext {
    /// Messages about what went wrong: there are none.
    fn read(&self, _f: &File, _dst: &mut Sink<'_>, _pos: u64) -> Result<usize> {
        Err(Errno::ENODATA)
    }

    fn can_poll(&self) -> bool {
        false
    }
}
