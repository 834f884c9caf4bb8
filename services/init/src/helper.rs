//! Helpers: children of the first process that do what it must not do itself.
//!
//! The first process restarts the servers of the root file system, so it never waits for one of them: whatever reads the root
//! or a disk, or unmounts, is a child, which is this same program under [`HELPER_ARG`]. What it found out comes back on its
//! standard output; what went wrong is told to people on standard error and to the first process by the exit status.

use std::{
    fs::File,
    io::{ErrorKind, PipeReader, Read},
    os::fd::{AsFd, BorrowedFd},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::{
    manager::{ExitKind, Pid},
    root, spawn, system,
};

/// First argument of this program when it is to be a helper; the [`Task`]'s word follows.
pub const HELPER_ARG: &str = "--helper";
/// More than this is no answer.
const ANSWER_MAX: usize = 4 << 20;

/// What a helper does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Finds the device of the root file system and its type ([`root::find`]).
    FindRoot,
    /// Prepares the root and reads the files of units and drivers that are on it ([`system::load`]). With an argument: there.
    LoadSystem,
    /// Writes back, and unmounts all but the root and what the kernel shows. The argument is where the root is mounted.
    Unmount,
    /// Unmounts the root, whose place is the argument.
    UnmountRoot,
}

impl Task {
    const ALL: [Task; 4] = [Task::FindRoot, Task::LoadSystem, Task::Unmount, Task::UnmountRoot];

    fn word(self) -> &'static str {
        match self {
            Task::FindRoot => "find-root",
            Task::LoadSystem => "load-system",
            Task::Unmount => "unmount",
            Task::UnmountRoot => "unmount-root",
        }
    }
}

/// A helper that runs.
#[derive(Debug)]
pub struct Helper {
    /// What it does.
    pub task: Task,
    /// Its process.
    pub pid: Pid,
    /// Until it has closed its end.
    output: Option<PipeReader>,
    answer: Vec<u8>,
}

impl Helper {
    /// Starts one.
    ///
    /// # Errors
    /// When no process can be made.
    pub fn start(program: &Path, task: Task, argument: Option<&Path>) -> Result<Helper> {
        let (output, theirs) = std::io::pipe()?;
        rustix::io::ioctl_fionbio(&output, true)?;
        let mut command = Command::new(program);
        command.args([HELPER_ARG, task.word()]).args(argument);
        command.stdin(File::open("dev/null").context("/dev/null")?).stdout(Stdio::from(theirs));
        let child = command.spawn().with_context(|| format!("{} {}", program.display(), task.word()))?;
        Ok(Helper { task, pid: child.id() as Pid, output: Some(output), answer: Vec::new() })
    }

    /// What becomes readable when it says something.
    pub fn output(&self) -> Option<BorrowedFd<'_>> {
        self.output.as_ref().map(AsFd::as_fd)
    }

    /// Takes in what it has said so far.
    pub fn listen(&mut self) {
        let mut piece = [0; 4096];
        while let Some(output) = &mut self.output {
            match output.read(&mut piece) {
                Ok(0) => self.output = None,
                Ok(count) if self.answer.len() < ANSWER_MAX => self.answer.extend_from_slice(&piece[..count]),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    /// Its answer, when it has ended.
    ///
    /// # Errors
    /// It failed, and has said why on standard error.
    pub fn finish(mut self, how: ExitKind) -> Result<String> {
        self.listen();
        match how {
            ExitKind::Status(0) => Ok(String::from_utf8_lossy(&self.answer).into_owned()),
            ExitKind::Status(_) => bail!("see above"),
            ExitKind::Signal(signal) => bail!("its helper was killed by signal {signal}"),
        }
    }
}

/// The child's half.
///
/// # Errors
/// What the task says.
pub fn run(mut arguments: impl Iterator<Item = String>) -> Result<()> {
    let word = arguments.next().unwrap_or_default();
    let Some(task) = Task::ALL.into_iter().find(|task| task.word() == word) else { bail!("no such helper: {word}") };
    spawn::unblock_signals()?;
    let place = arguments.next();
    let place = place.as_deref().map(Path::new);
    match task {
        Task::FindRoot => {
            let found = root::find()?;
            println!("{}", toml::to_string(&found)?);
        }
        Task::LoadSystem => {
            if let Some(place) = place {
                system::show_below(place)?;
                rustix::process::chroot(place).with_context(|| place.display().to_string())?;
            }
            rustix::process::chdir("/").context("/")?;
            println!("{}", toml::to_string(&system::load())?);
        }
        Task::Unmount => system::unmount_all(place),
        Task::UnmountRoot => system::unmount_root(place.context("which?")?)?,
    }
    Ok(())
}
