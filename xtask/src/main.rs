//! `cargo xtask`: builds, boots, tests and measures Ursa.
//!
//! Each command is a module: [`toolchain`] and [`build`] make the kernel and the programs, [`image`] the Debian root,
//! [`guest`] runs one command in a fresh machine, [`vm`] drives a machine that stays, [`run`] gives a person a shell,
//! [`test`] and [`check`] are what continuous integration runs.
#![deny(unsafe_code)]

use clap::{Parser, Subcommand};
use std::process::ExitCode;

mod archive;
mod build;
mod guest;
mod hosttools;
mod image;
mod machine;
mod paths;
mod shell;
mod test;
mod toolchain;

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
    /// Run a command in a fresh machine; its output and exit status are passed on.
    Guest(guest::Options),
    /// Run the tests.
    Test(test::Options),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match arguments.command {
        Command::Toolchain => toolchain::show(),
        Command::Build(options) => build::run(&options).map(|_| ExitCode::SUCCESS),
        Command::Image(options) => image::run(&options),
        Command::Guest(options) => guest::run(options),
        Command::Test(options) => test::run(&options),
    };
    result.unwrap_or_else(|problem| {
        eprintln!("error: {problem:#}");
        ExitCode::FAILURE
    })
}
