//! `cargo xtask vm gdb`: a machine that was halted at its first instruction runs to a function of the kernel, which gdb knows by
//! name and line.

use super::Tally;
use crate::hosttools;
use anyhow::{Context, Result, bail};
use std::process::{Command, Output, Stdio};

const NAME: &str = "vm_gdb_stops_at_a_function_of_the_kernel";

/// Runs it.
pub fn run(filter: Option<&str>) -> Result<Tally> {
    let mut tally = Tally::default();
    if filter.is_some_and(|filter| !NAME.contains(filter)) {
        return Ok(tally);
    }
    hosttools::ensure(hosttools::GDB)?;
    let machine = format!("test-gdb-{}", std::process::id());
    let outcome = session(&machine);
    // Whatever happened: nothing stays behind.
    let stopped = vm(&machine, &["stop"]).and_then(|output| sound(&output).map(|_| ()));
    tally.report("boot", NAME, outcome.and(stopped));
    Ok(tally)
}

fn session(machine: &str) -> Result<()> {
    sound(&vm(machine, &["start", "--image", "mini", "--gpu", "none", "--halted"])?)?;
    let commands = ["hbreak kernel_main", "continue", "backtrace 1", "info line", "delete", "detach"];
    let mut arguments = vec!["gdb", "--", "-batch"];
    arguments.extend(commands.iter().flat_map(|command| ["-ex", command]));
    let text = sound(&vm(machine, &arguments)?)?;
    for wanted in ["Hardware assisted breakpoint 1 at", "Breakpoint 1, ", "kernel_main", "kernel/main/src/main.rs"] {
        if !text.contains(wanted) {
            bail!("gdb does not say {wanted:?}:\n{text}");
        }
    }
    Ok(())
}

fn vm(machine: &str, arguments: &[&str]) -> Result<Output> {
    // Not by its name: the tests of the host may have had it built anew, and then the name is of another file.
    let mut command = Command::new("/proc/self/exe");
    command.args(["vm", "--name", machine]).args(arguments).stdin(Stdio::null());
    command.output().context("cannot start this program again")
}

/// What it said, if it went well.
fn sound(output: &Output) -> Result<String> {
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("{}: {text}", output.status);
    }
    Ok(text)
}
