//! `cargo xtask`: builds, boots, tests and measures Ursa.
//!
//! Each command is a module: [`toolchain`] and [`build`] make the kernel and the programs, [`image`] the Debian root,
//! [`guest`] runs one command in a fresh machine, [`vm`] drives a machine that stays, [`run`] gives a person a shell,
//! [mod@test] and [`check`] are what continuous integration runs.
#![deny(unsafe_code)]

use clap::{Parser, Subcommand};
use std::process::ExitCode;

mod archive;
mod bench;
mod build;
mod campaign;
mod check;
mod coverage;
mod guest;
mod hosttools;
mod image;
mod iso;
mod ksyms;
mod machine;
mod packages;
mod paths;
mod run;
mod shell;
mod test;
mod toolchain;
mod vm;

/// Builds, boots, tests and measures Ursa.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show, and where needed make, the tool chain that builds the kernel.
    Toolchain,
    /// Build the kernel and the programs of the boot archive.
    Build(build::Options),
    /// Make an image from its recipe in `image/`.
    Image(image::Options),
    /// Make one file that boots as CD and as disk, on BIOS and UEFI.
    Iso(iso::Options),
    /// Boot into a login shell on this terminal.
    Run(run::Options),
    /// Start, drive and stop a machine that stays.
    Vm(vm::Options),
    /// Run a command in a fresh machine; its output and exit status are passed on.
    Guest(guest::Options),
    /// Run what takes too long for every day.
    Campaign(campaign::Options),
    /// Measure Ursa beside Debian's kernel.
    Bench(bench::Options),
    /// Write the page of system calls that Ursa has.
    Coverage,
    /// Check format, lints, documentation, licences and the use of `unsafe`.
    Check,
    /// Answer one connection to the mirror of a guest, on standard input and output.
    #[command(hide = true)]
    ServeMirror {
        /// The mirror.
        folder: std::path::PathBuf,
    },
    /// Run the tests.
    Test(test::Options),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match arguments.command {
        Command::Toolchain => toolchain::show(),
        Command::Build(options) => build::run(&options).map(|_| ExitCode::SUCCESS),
        Command::Image(options) => image::run(&options),
        Command::Iso(options) => iso::run(&options),
        Command::Guest(options) => guest::run(options),
        Command::Campaign(options) => campaign::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::Check => check::run(),
        Command::Coverage => coverage::run(),
        Command::Run(options) => run::run(options),
        Command::Vm(options) => vm::run(options),
        Command::ServeMirror { folder } => {
            machine::mirror::serve(&folder, std::io::stdin().lock(), std::io::stdout().lock())
                .map(|()| ExitCode::SUCCESS)
        }
        Command::Test(options) => test::run(&options),
    };
    result.unwrap_or_else(|problem| {
        eprintln!("error: {problem:#}");
        ExitCode::FAILURE
    })
}
