//! `ioctl_tty(2)`: modes, window size, flushing, and what job control adds.
//!
//! A pseudo-terminal's master acts on its slave's modes, window and foreground group: it calls [`Tty::common_ioctl`] with
//! `from_master`.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use linux_uapi::raw::{general as uapi, ioctl as io};
use linux_uapi::signal::SIGWINCH;
use linux_uapi::tty::{Termio, Termios, Termios2, Winsize};
use tty_ldisc::termios_from_user;

use super::{DeviceSink, Tty};
use crate::fs::{File, FileMode};
use crate::process::{Cap, capable, process_group};
use crate::signal::{self, SigInfo};
use crate::user::UserPtr;
use crate::{Errno, Result};

/// When a change of modes takes effect.
#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    Now,
    /// After output has drained.
    Drained,
    /// After output has drained; input is discarded.
    Flushed,
}

/// `TIOCGICOUNT`'s structure: counters that this kernel does not keep.
const ICOUNT: [i32; 20] = [0; 20];

fn ptr<T>(arg: usize) -> UserPtr<T> {
    UserPtr::new(arg as u64)
}

impl Tty {
    /// An `ioctl` on an open file of this terminal.
    pub(super) fn ioctl(self: &Arc<Self>, f: &File, cmd: u32, arg: usize) -> Result<i64> {
        match cmd {
            io::TCSBRK | io::TCSBRKP | io::TIOCSBRK | io::TIOCCBRK | io::TIOCSETD => self.check_change()?,
            _ => {}
        }
        match cmd {
            io::TIOCSCTTY => self.set_controlling(arg == 1, f.mode().contains(FileMode::READ))?,
            io::TIOCNOTTY => self.give_up()?,
            io::TIOCINQ => ptr::<i32>(arg).write(&(self.line.lock().readable() as i32))?,
            io::TIOCOUTQ => ptr::<i32>(arg).write(&(self.driver.queued() as i32))?,
            io::TCXONC => self.flow_control(arg)?,
            io::TCFLSH => {
                self.check_change()?;
                match u32::try_from(arg).map_err(|_| Errno::EINVAL)? {
                    uapi::TCIFLUSH => self.discard_input(),
                    uapi::TCOFLUSH => self.discard_output(),
                    uapi::TCIOFLUSH => {
                        self.discard_input();
                        self.discard_output();
                    }
                    _ => return Err(Errno::EINVAL),
                }
            }
            io::TCSBRK | io::TCSBRKP => {
                self.wait_until_sent()?;
                if cmd == io::TCSBRKP || arg == 0 {
                    return self.driver.ioctl(self, cmd, arg).unwrap_or(Ok(0));
                }
            }
            _ => return self.common_ioctl(f, cmd, arg, false),
        }
        Ok(0)
    }

    /// What means the same on both ends of a pseudo-terminal.
    pub(super) fn common_ioctl(self: &Arc<Self>, f: &File, cmd: u32, arg: usize, from_master: bool) -> Result<i64> {
        match cmd {
            io::TCGETS => ptr::<Termios>(arg).write(&self.modes().without_speeds())?,
            io::TCGETS2 => ptr::<Termios2>(arg).write(&self.modes())?,
            io::TCGETA => ptr::<Termio>(arg).write(&old_form(&self.modes()))?,
            io::TCSETS | io::TCSETSW | io::TCSETSF => {
                let new = ptr::<Termios>(arg).read()?;
                let when = [When::Now, When::Drained, When::Flushed][(cmd - io::TCSETS) as usize];
                self.change_modes(when, |old| {
                    termios_from_user(Termios2 {
                        iflag: new.iflag,
                        oflag: new.oflag,
                        cflag: new.cflag,
                        lflag: new.lflag,
                        line: old.line,
                        cc: new.cc,
                        ispeed: old.ispeed,
                        ospeed: old.ospeed,
                    })
                })?;
            }
            io::TCSETS2 | io::TCSETSW2 | io::TCSETSF2 => {
                let new = ptr::<Termios2>(arg).read()?;
                let when = [When::Now, When::Drained, When::Flushed][(cmd - io::TCSETS2) as usize];
                self.change_modes(when, |old| {
                    let mut modes = new;
                    modes.line = old.line;
                    termios_from_user(modes)
                })?;
            }
            io::TCSETA | io::TCSETAW | io::TCSETAF => {
                let new = ptr::<Termio>(arg).read()?;
                let when = [When::Now, When::Drained, When::Flushed][(cmd - io::TCSETA) as usize];
                self.change_modes(when, |old| termios_from_user(merge_old_form(old, &new)))?;
            }
            io::TIOCGLCKTRMIOS => {
                ptr::<Termios>(arg).write(&Termios { iflag: 0, oflag: 0, cflag: 0, lflag: 0, line: 0, cc: [0; 19] })?
            }
            io::TIOCGSOFTCAR => ptr::<i32>(arg).write(&i32::from(self.modes().cflag & uapi::CLOCAL != 0))?,
            io::TIOCSSOFTCAR => {
                let on = ptr::<i32>(arg).read()? != 0;
                self.set_modes(|old| Termios2 {
                    cflag: old.cflag & !uapi::CLOCAL | if on { uapi::CLOCAL } else { 0 },
                    ..*old
                });
            }
            io::TIOCGWINSZ => {
                let size = self.control.lock().winsize;
                ptr::<Winsize>(arg).write(&size)?;
            }
            io::TIOCSWINSZ => self.set_winsize(ptr::<Winsize>(arg).read()?),
            io::TIOCGPGRP => ptr::<i32>(arg).write(&self.foreground_id(from_master)?)?,
            io::TIOCSPGRP => self.set_foreground(ptr::<i32>(arg).read()?, from_master)?,
            io::TIOCGSID => ptr::<i32>(arg).write(&self.session_id(from_master)?)?,
            io::TIOCEXCL => self.control.lock().exclusive = true,
            io::TIOCNXCL => self.control.lock().exclusive = false,
            io::TIOCGEXCL => {
                let exclusive = i32::from(self.control.lock().exclusive);
                ptr::<i32>(arg).write(&exclusive)?;
            }
            io::TIOCGETD => ptr::<i32>(arg).write(&0)?,
            // Only N_TTY (0).
            io::TIOCSETD => {
                if ptr::<i32>(arg).read()? != 0 {
                    return Err(Errno::EINVAL);
                }
            }
            // As Linux with dev.tty.legacy_tiocsti = 0: faking input is how a program escapes from su.
            io::TIOCSTI => return Err(Errno::EIO),
            io::TIOCCONS => return Err(if capable(Cap::SysAdmin) { Errno::EINVAL } else { Errno::EPERM }),
            io::TIOCGDEV => ptr::<u32>(arg).write(&self.dev)?,
            io::TIOCVHANGUP => {
                if !capable(Cap::SysAdmin) {
                    return Err(Errno::EPERM);
                }
                self.hang_up_now();
            }
            io::TIOCGICOUNT => ptr::<[i32; 20]>(arg).write(&ICOUNT)?,
            _ => {
                let _ = f;
                return self.driver.ioctl(self, cmd, arg).unwrap_or(Err(Errno::ENOTTY));
            }
        }
        Ok(0)
    }

    fn change_modes(&self, when: When, change: impl FnOnce(&Termios2) -> Termios2) -> Result {
        self.check_change()?;
        if when != When::Now {
            self.wait_until_sent()?;
        }
        if when == When::Flushed {
            self.discard_input();
        }
        self.set_modes(change);
        Ok(())
    }

    /// Sleeps until the device has sent what it was given (`tcdrain(3)`).
    fn wait_until_sent(&self) -> Result {
        self.write_queue.wait_interruptible(None, || {
            (self.driver.queued() == 0 || self.other_closed.load(Ordering::SeqCst)).then_some(())
        })
    }

    pub(super) fn set_winsize(&self, size: Winsize) {
        let (changed, group) = {
            let mut control = self.control.lock();
            let changed = control.winsize != size;
            control.winsize = size;
            (changed, control.foreground.upgrade())
        };
        if changed && let Some(group) = group.filter(|g| process_group(g.id()).is_some()) {
            signal::send_to_group(group.id(), SigInfo::kernel(SIGWINCH));
        }
    }

    /// `TCXONC`.
    fn flow_control(&self, arg: usize) -> Result {
        self.check_change()?;
        match u32::try_from(arg).map_err(|_| Errno::EINVAL)? {
            uapi::TCOOFF => {
                let changed = self.line.lock().stop_by_ioctl();
                if changed {
                    self.flow_changed(true);
                }
            }
            uapi::TCOON => {
                let changed = self.line.lock().start_by_ioctl();
                if changed {
                    self.flow_changed(false);
                }
            }
            which @ (uapi::TCIOFF | uapi::TCION) => {
                let index = if which == uapi::TCIOFF { uapi::VSTOP } else { uapi::VSTART };
                let character = self.modes().cc[index as usize];
                if character != tty_ldisc::DISABLED_CHAR {
                    let line = self.line.lock();
                    let mut sink = DeviceSink(&*self.driver);
                    if tty_ldisc::OutputSink::room(&sink) > 0 {
                        tty_ldisc::OutputSink::push(&mut sink, &[character]);
                    }
                    drop(line);
                    self.driver.output_written();
                }
            }
            _ => return Err(Errno::EINVAL),
        }
        Ok(())
    }
}

fn old_form(t: &Termios2) -> Termio {
    let mut cc = [0; 8];
    cc.copy_from_slice(&t.cc[..8]);
    Termio {
        iflag: t.iflag as u16,
        oflag: t.oflag as u16,
        cflag: t.cflag as u16,
        lflag: t.lflag as u16,
        line: t.line,
        cc,
        pad: 0,
    }
}

fn merge_old_form(old: &Termios2, new: &Termio) -> Termios2 {
    let low = |old: u32, new: u16| old & 0xffff_0000 | new as u32;
    let mut merged = Termios2 {
        iflag: low(old.iflag, new.iflag),
        oflag: low(old.oflag, new.oflag),
        cflag: low(old.cflag, new.cflag),
        lflag: low(old.lflag, new.lflag),
        ..*old
    };
    merged.cc[..8].copy_from_slice(&new.cc);
    merged
}
