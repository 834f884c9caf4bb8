//! `cargo xtask guest`: boots a fresh machine, runs one command in it, and passes on its output and exit status.
//!
//! Exit status: the command's own (128 + number after a signal), or 125 when the machine did not boot or broke, 124 when
//! the time was over, 126 when the kernel panicked; then the end of the console's log is on standard error.

use crate::machine::link::{Link, Outcome, Output, Request};
use crate::machine::{Boot, Event, Gpu, Machine, Options as MachineOptions};
use anyhow::{Result, anyhow, bail};
use guest_protocol::{ToHost, VERSION};
use std::ffi::OsString;
use std::io::Write;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// The machine did not boot, or ended too early.
pub const BOOT_FAILED: u8 = 125;
/// The command took too long.
pub const TIME_LIMIT: u8 = 124;
/// The kernel panicked.
pub const PANIC: u8 = 126;

/// How long a boot may take. Generous: machines are emulated, and the host may be busy.
pub const BOOT_PATIENCE: Duration = Duration::from_secs(300);

/// What our kernel says when it, or init, cannot go on.
const BOOT_STOPPED: &str = "The system cannot start:";

/// Lines of the console shown after a failure.
const LOG_LINES: usize = 80;

/// Options of `guest`.
#[derive(clap::Args, Debug)]
pub struct Options {
    #[command(flatten)]
    machine: MachineOptions,
    /// Run the command as this user of the guest.
    #[arg(long)]
    user: Option<String>,
    /// Seconds that the command may take, from its start.
    #[arg(long, default_value_t = 600)]
    timeout: u64,
    /// Pass standard input on.
    #[arg(long, short = 'i')]
    stdin: bool,
    /// Show the console on standard error as it comes.
    #[arg(long)]
    console: bool,
    /// A display device.
    #[arg(long, value_enum, default_value_t = Gpu::None)]
    gpu: Gpu,
    /// The command. A single word with spaces is a line for `bash -c`.
    #[arg(required = true, last = true)]
    command: Vec<OsString>,
}

/// `cargo xtask guest`.
pub fn run(options: Options) -> Result<ExitCode> {
    Ok(ExitCode::from(run_inner(options).unwrap_or_else(|problem| {
        eprintln!("error: {problem:#}");
        BOOT_FAILED
    })))
}

fn run_inner(options: Options) -> Result<u8> {
    let folder = tempfile::Builder::new().prefix("ursa-guest-").tempdir()?;
    let boot = Boot::prepare(&options.machine, options.gpu, folder.path())?;
    let machine = Machine::start(&options.machine, &boot, options.gpu, folder.path(), options.console)?;
    let mut link = match wait_for_agent(&machine)? {
        Ok(link) => link,
        Err(panic) => {
            show_log(&machine.console());
            eprintln!("error: the kernel panicked while it booted: {panic}");
            return Ok(PANIC);
        }
    };
    let mut broken = None;
    let mut pass_on = |output, data: &[u8]| {
        let result = match output {
            Output::Stdout => std::io::stdout().write_all(data).and_then(|()| std::io::stdout().flush()),
            Output::Stderr => std::io::stderr().write_all(data),
        };
        broken = broken.take().or(result.err());
    };
    let request = Request {
        argv: argv(options.command),
        env: Vec::new(),
        user: options.user,
        cwd: None,
        stdin: options.stdin.then(|| Box::new(std::io::stdin()) as Box<dyn std::io::Read + Send>),
        timeout: Duration::from_secs(options.timeout),
        output: &mut pass_on,
    };
    let outcome = link.run(&machine, request)?;
    if let Some(problem) = broken {
        bail!("cannot pass the output on: {problem}");
    }
    report(outcome, &machine)
}

/// The words of a command. A single one with spaces is a line for bash.
pub fn argv(command: Vec<OsString>) -> Vec<Vec<u8>> {
    let mut argv: Vec<Vec<u8>> = command.into_iter().map(OsString::into_vec).collect();
    if argv.len() == 1 && argv[0].contains(&b' ') {
        argv = vec![b"bash".to_vec(), b"-c".to_vec(), argv.remove(0)];
    }
    argv
}

/// Turns an outcome into an exit status, with the log where something broke.
fn report(outcome: Outcome, machine: &Machine) -> Result<u8> {
    match outcome {
        Outcome::Ended(status) => Ok(status.shell_code() as u8),
        Outcome::TimedOut { .. } => {
            eprintln!("error: the time limit is over");
            Ok(TIME_LIMIT)
        }
        Outcome::Panicked(text) => {
            show_log(&machine.console());
            eprintln!("error: the kernel panicked: {text}");
            Ok(PANIC)
        }
        Outcome::NotStarted(what) => bail!("the guest could not start the command: {what}"),
        Outcome::MachineEnded => {
            show_log(&machine.console());
            bail!("the machine ended before the command did\n{}", machine.qemu_messages().trim())
        }
        Outcome::LineBroken => {
            show_log(&machine.console());
            bail!("bytes were lost on the line to the guest")
        }
    }
}

/// Waits until the agent says hello, for callers to whom a panic is a failure like any other.
pub fn agent_of(machine: &Machine) -> Result<Link<&UnixStream>> {
    wait_for_agent(machine)?.map_err(|panic| {
        show_log(&machine.console());
        anyhow!("the kernel panicked while it booted: {panic}")
    })
}

/// Waits until the agent says hello. The inner error is a panic message.
fn wait_for_agent(machine: &Machine) -> Result<Result<Link<&UnixStream>, String>> {
    let deadline = Instant::now() + BOOT_PATIENCE;
    loop {
        let rest = deadline.saturating_duration_since(Instant::now());
        if rest.is_zero() {
            show_log(&machine.console());
            bail!("the guest did not boot within {} seconds", BOOT_PATIENCE.as_secs());
        }
        match machine.next_event(rest) {
            Some(Event::Agent(ToHost::Hello { version: VERSION, .. })) => return Ok(Ok(Link::new(machine.agent()))),
            Some(Event::Agent(ToHost::Hello { version, .. })) => {
                bail!("the agent in the guest speaks version {version}, this program {VERSION}")
            }
            Some(Event::Panic(text)) => return Ok(Err(text)),
            Some(Event::Console(line)) if line.contains(BOOT_STOPPED) => {
                show_log(&machine.console());
                bail!("{}", line.trim());
            }
            Some(Event::Ended) => {
                show_log(&machine.console());
                bail!("the machine ended while it booted\n{}", machine.qemu_messages().trim());
            }
            _ => {}
        }
    }
}

/// The end of the console's log on standard error.
pub fn show_log(console: &str) {
    let lines: Vec<&str> = console.lines().collect();
    let start = lines.len().saturating_sub(LOG_LINES);
    eprintln!("---- end of the console's log ----");
    for line in &lines[start..] {
        eprintln!("{}", line.trim_end());
    }
    eprintln!("----------------------------------");
}
