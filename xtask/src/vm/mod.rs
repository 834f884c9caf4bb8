//! `cargo xtask vm`: a machine that stays, to be looked at and worked with from any number of commands.
//!
//! `start` leaves QEMU running with its sockets in a folder of the user's run-time directory; the other commands find it
//! there by name.

use crate::machine::accel::Accel;
use crate::machine::link::{Outcome, Output, Request};
use crate::machine::{self, Boot, Gpu, Kernel, Options as MachineOptions};
use crate::{hosttools, paths, shell};
use anyhow::{Context, Result, bail};
use clap::Subcommand;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

mod attach;
pub mod film;
pub mod input;
mod keys;
pub mod screen;

/// Options of `vm`.
#[derive(clap::Args, Debug)]
pub struct Options {
    /// Which machine, where there are several.
    #[arg(long, default_value = "default", global = true)]
    name: String,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Boot a machine in the background and wait until it answers.
    Start(Box<Start>),
    /// Run a command in it.
    Exec {
        /// As this user of the guest.
        #[arg(long)]
        user: Option<String>,
        /// Seconds that it may take.
        #[arg(long, default_value_t = 600)]
        timeout: u64,
        /// Pass standard input on.
        #[arg(long, short = 'i')]
        stdin: bool,
        /// The command. A single word with spaces is a line for `bash -c`.
        #[arg(required = true, last = true)]
        command: Vec<OsString>,
    },
    /// Save what a screen shows.
    Screenshot {
        /// Which, where there are several.
        #[arg(long, default_value_t = 0)]
        head: u32,
        /// A PNG file.
        file: PathBuf,
    },
    /// Press keys together, for example `ctrl-alt-f2`.
    Key {
        /// Names of keys with `-` between.
        combo: String,
    },
    /// Type a text on a keyboard of the American layout.
    Type {
        /// The text; `\n` is the return key.
        text: String,
    },
    /// Move the pointer.
    Move {
        /// Pixels from the left.
        x: u32,
        /// Pixels from the top.
        y: u32,
    },
    /// Move the pointer with the left button held.
    Drag {
        /// Pixels from the left, where the button goes down.
        x: u32,
        /// Pixels from the top.
        y: u32,
        /// Pixels from the left, where it goes up.
        to_x: u32,
        /// Pixels from the top.
        to_y: u32,
    },
    /// Click where the pointer is.
    Click {
        /// `left`, `middle`, `right`, `wheel-up` or `wheel-down`.
        #[arg(default_value = "left")]
        button: String,
    },
    /// Plug a further screen in, or out if its size is `0 0`; the machine was started with `--outputs`.
    Plug {
        /// Its number, from 1.
        head: u32,
        /// Pixels.
        width: u16,
        /// Pixels.
        height: u16,
    },
    /// Show the console's log.
    Log {
        /// Go on as it grows.
        #[arg(long, short)]
        follow: bool,
    },
    /// Debug the kernel with gdb.
    Gdb {
        /// Options for gdb.
        #[arg(last = true)]
        arguments: Vec<OsString>,
    },
    /// Switch it off.
    Stop,
}

#[derive(clap::Args, Debug)]
struct Start {
    #[command(flatten)]
    machine: MachineOptions,
    /// The display device.
    #[arg(long, value_enum, default_value_t = Gpu::Virtio)]
    gpu: Gpu,
    /// Do not wait for the agent.
    #[arg(long)]
    no_wait: bool,
    /// Halt before the first instruction, for gdb.
    #[arg(long)]
    halted: bool,
}

/// A machine's folder: sockets, logs and what was started.
#[derive(Debug)]
struct Vm {
    folder: PathBuf,
}

impl Vm {
    fn named(name: &str) -> Result<Vm> {
        if name.is_empty() || name.contains('/') {
            bail!("{name:?} cannot name a machine");
        }
        // Not in target: the path of a socket may have 107 bytes.
        let base = match std::env::var_os("XDG_RUNTIME_DIR") {
            Some(folder) if Path::new(&folder).is_dir() => PathBuf::from(folder).join("ursa-vm"),
            _ => std::env::temp_dir().join(format!("ursa-vm-{}", shell::user_id())),
        };
        Ok(Vm { folder: base.join(name) })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// QEMU's process, if it still runs.
    fn pid(&self) -> Option<u32> {
        let pid = fs::read_to_string(self.file("pid")).ok()?.trim().parse().ok()?;
        let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        // Numbers are used again: it must be the QEMU that has our socket.
        let marker = self.file("qmp.sock").into_os_string().into_vec();
        command.windows(marker.len()).any(|part| part == marker).then_some(pid)
    }

    fn running(&self) -> Result<()> {
        if self.pid().is_none() {
            bail!("no such machine runs; `cargo xtask vm start` starts one");
        }
        Ok(())
    }

    fn qmp(&self) -> Result<machine::qmp::Qmp> {
        self.running()?;
        machine::qmp::Qmp::connect(&self.file("qmp.sock"))
    }

    fn kernel(&self) -> Result<Kernel> {
        let name = fs::read_to_string(self.file("kernel"))?;
        Ok(if name == Kernel::Linux.name() { Kernel::Linux } else { Kernel::Ursa })
    }
}

/// `cargo xtask vm`.
pub fn run(options: Options) -> Result<ExitCode> {
    let vm = Vm::named(&options.name)?;
    match options.verb {
        Verb::Start(start) => return vm.start(&start),
        Verb::Exec { user, timeout, stdin, command } => return vm.exec(user, timeout, stdin, command),
        Verb::Screenshot { head, file } => screen::save(&mut vm.qmp()?, &vm.folder, head, &file)?,
        Verb::Key { combo } => input::press(&mut vm.qmp()?, &combo)?,
        Verb::Type { text } => input::type_text(&mut vm.qmp()?, &text)?,
        Verb::Move { x, y } => {
            let mut qmp = vm.qmp()?;
            let size = screen::size(&mut qmp, &vm.folder)?;
            input::move_to(&mut qmp, (x, y), size)?;
        }
        Verb::Drag { x, y, to_x, to_y } => {
            let mut qmp = vm.qmp()?;
            let size = screen::size(&mut qmp, &vm.folder)?;
            input::drag(&mut qmp, (x, y), (to_x, to_y), size)?;
        }
        Verb::Click { button } => input::click(&mut vm.qmp()?, &button)?,
        Verb::Plug { head, width, height } => machine::screens::plug(&vm.folder, head, (width, height))?,
        Verb::Log { follow } => vm.log(follow)?,
        Verb::Gdb { arguments } => return vm.gdb(&arguments),
        Verb::Stop => vm.stop()?,
    }
    Ok(ExitCode::SUCCESS)
}

impl Vm {
    fn start(&self, start: &Start) -> Result<ExitCode> {
        if self.pid().is_some() {
            bail!("a machine of this name runs already; `cargo xtask vm stop` ends it");
        }
        hosttools::ensure(hosttools::QEMU)?;
        let _ = fs::remove_dir_all(&self.folder);
        fs::create_dir_all(&self.folder)?;
        let boot = Boot::prepare(&start.machine, start.gpu, &self.folder)?;
        let mut command = machine::command(&start.machine, &boot, start.gpu, Accel::choose(boot.kind())?);
        let socket = |name: &str| format!("unix:{},server=on,wait=off", self.file(name).display());
        let console = format!(
            "socket,id=console,path={},server=on,wait=off,logfile={}",
            self.file("console.sock").display(),
            self.file("console.log").display()
        );
        command.args(["-chardev", &console, "-serial", "chardev:console", "-serial", &socket("agent.sock")]);
        command.args(["-qmp", &socket("qmp.sock"), "-gdb", &socket("gdb.sock")]);
        command.args(machine::screens::arguments(&start.machine, start.gpu, &self.folder));
        if start.halted {
            command.arg("-S");
        }
        let messages = self.file("qemu.log");
        command
            .stdin(Stdio::null())
            .stdout(File::create(&messages)?)
            .stderr(File::options().append(true).open(&messages)?);
        fs::write(self.file("kernel"), boot.kind().name())?;
        let mut child = command.process_group(0).spawn().context("cannot start QEMU")?;
        fs::write(self.file("pid"), child.id().to_string())?;
        if start.no_wait || start.halted {
            std::thread::sleep(Duration::from_millis(300));
            if let Some(status) = child.try_wait()? {
                bail!("QEMU ended at once ({status}): {}", fs::read_to_string(&messages)?.trim());
            }
            return Ok(ExitCode::SUCCESS);
        }
        let begun = Instant::now();
        let patience = crate::guest::BOOT_PATIENCE;
        let attached = attach::Attached::open(&self.file("agent.sock"), patience, || {
            if let Ok(Some(status)) = child.try_wait() {
                bail!("the machine ended ({status}): {}", fs::read_to_string(&messages)?.trim());
            }
            let console = fs::read(self.file("console.log")).unwrap_or_default();
            if String::from_utf8_lossy(&console).contains(boot.kind().panic_marker()) {
                bail!("the kernel panicked");
            }
            Ok(())
        });
        if let Err(problem) = attached {
            crate::guest::show_log(&String::from_utf8_lossy(&fs::read(self.file("console.log")).unwrap_or_default()));
            let _ = child.kill();
            return Err(problem);
        }
        shell::step(format!("the machine answers after {:.1} s", begun.elapsed().as_secs_f64()));
        Ok(ExitCode::SUCCESS)
    }

    fn exec(&self, user: Option<String>, timeout: u64, stdin: bool, command: Vec<OsString>) -> Result<ExitCode> {
        self.running()?;
        let attached = attach::Attached::open(&self.file("agent.sock"), Duration::from_secs(60), || self.running())?;
        let mut link = attached.link();
        let mut pass_on = |output, data: &[u8]| {
            // A reader that has gone is no reason to stop the command.
            let _ = match output {
                Output::Stdout => std::io::stdout().write_all(data).and_then(|()| std::io::stdout().flush()),
                Output::Stderr => std::io::stderr().write_all(data),
            };
        };
        let request = Request {
            argv: crate::guest::argv(command),
            env: Vec::new(),
            user,
            cwd: None,
            stdin: stdin.then(|| Box::new(std::io::stdin()) as Box<dyn std::io::Read + Send>),
            timeout: Duration::from_secs(timeout),
            output: &mut pass_on,
        };
        let outcome = link.run(&attached, request)?;
        let code = match outcome {
            Outcome::Ended(status) => status.shell_code() as u8,
            Outcome::TimedOut { .. } => {
                eprintln!("error: the time limit is over");
                crate::guest::TIME_LIMIT
            }
            Outcome::Panicked(_) | Outcome::MachineEnded => {
                let log = String::from_utf8_lossy(&fs::read(self.file("console.log"))?).into_owned();
                crate::guest::show_log(&log);
                eprintln!("error: the machine ended");
                let panicked = log.contains(self.kernel()?.panic_marker());
                if panicked { crate::guest::PANIC } else { crate::guest::BOOT_FAILED }
            }
            Outcome::NotStarted(what) => bail!("the guest could not start the command: {what}"),
            Outcome::LineBroken => bail!("bytes were lost on the line to the guest"),
        };
        Ok(ExitCode::from(code))
    }

    fn log(&self, follow: bool) -> Result<()> {
        let mut file = File::open(self.file("console.log")).context("there is no log: was a machine started?")?;
        loop {
            std::io::copy(&mut file, &mut std::io::stdout())?;
            std::io::stdout().flush()?;
            if !follow || self.pid().is_none() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn gdb(&self, arguments: &[OsString]) -> Result<ExitCode> {
        self.running()?;
        hosttools::ensure(hosttools::GDB)?;
        let mut command = Command::new("gdb");
        command.arg("--quiet");
        if self.kernel()? == Kernel::Ursa {
            command.arg(paths::target().join("ursa-kernel"));
        }
        command.args(["-ex", &format!("target remote {}", self.file("gdb.sock").display())]).args(arguments);
        let status = command.status().context("cannot start gdb")?;
        Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn stop(&self) -> Result<()> {
        let Some(pid) = self.pid() else { return Ok(()) };
        self.qmp()?.execute("quit", serde_json::json!({}))?;
        let start = Instant::now();
        while self.pid() == Some(pid) {
            if start.elapsed() > Duration::from_secs(10) {
                bail!("QEMU (process {pid}) does not end");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}
