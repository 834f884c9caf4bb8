//! `cargo xtask bench`: Ursa beside Debian's kernel: the same image, the same QEMU, the same CPU model, the same programs.
//!
//! Two kinds of measures, because the host is an emulator's and never quiet:
//! - [`micro`]: instructions per operation. With `-icount shift=0,sleep=off` a nanosecond of guest time is an instruction,
//!   so the figures are the same on any host at any load.
//! - [`whole`]: whole programs, the boot, and Plasma's sessions ([`desktop`]), in CPU seconds of the QEMU process, the median of several interleaved runs.
//!
//! Linux is measured with `mitigations=off` (the ratio is to this one, the harder to beat) and as Debian ships it. Each
//! measure also goes to `target/bench/NAME.json`.

use crate::build::Profile;
use crate::machine::link::{Link, Outcome, Request};
use crate::machine::{self, Kernel, Machine};
use crate::paths;
use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde::Serialize;
use std::fs;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::Duration;

mod desktop;
mod micro;
mod whole;

/// Options of `bench`.
#[derive(clap::Args, Debug)]
pub struct Options {
    /// Two runs of whole programs instead of five.
    #[arg(long)]
    quick: bool,
    /// How many runs of whole programs.
    #[arg(long, conflicts_with = "quick")]
    runs: Option<usize>,
    /// Only one kind.
    #[arg(long, value_enum)]
    only: Option<Kind>,
    /// How our kernel is built; anything but the default is for looking around, not for figures to quote.
    #[arg(long, value_enum, default_value_t = Profile::Dist)]
    profile: Profile,
    /// Names of measures; all without one.
    names: Vec<String>,
}

/// A kind of measures.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Instructions per operation.
    Micro,
    /// CPU seconds of whole programs.
    Whole,
}

/// One measured thing.
#[derive(Debug, Clone, Serialize)]
pub struct Measure {
    /// Its name.
    pub name: String,
    /// Ursa's figure, if it got to one.
    pub ursa: Option<f64>,
    /// Debian's kernel with `mitigations=off`.
    pub linux: Option<f64>,
    /// Ursa to Linux; below 1 is better than Linux.
    pub ratio: Option<f64>,
    /// What is counted.
    pub unit: &'static str,
    /// Debian's kernel as it is shipped.
    #[serde(rename = "linux-as-shipped")]
    pub shipped: Option<f64>,
    /// Lowest and highest of Ursa's runs, where there are several.
    #[serde(rename = "ursa-spread", skip_serializing_if = "Option::is_none")]
    pub ursa_spread: Option<(f64, f64)>,
    /// The same for Linux.
    #[serde(rename = "linux-spread", skip_serializing_if = "Option::is_none")]
    pub linux_spread: Option<(f64, f64)>,
}

impl Measure {
    /// With the ratio, where both figures are there.
    pub fn new(name: &str, unit: &'static str, ursa: Option<f64>, linux: Option<f64>, shipped: Option<f64>) -> Measure {
        let ratio = ursa.zip(linux).filter(|(_, linux)| *linux > 0.0).map(|(ursa, linux)| ursa / linux);
        Measure { name: name.into(), ursa, linux, ratio, unit, shipped, ursa_spread: None, linux_spread: None }
    }
}

/// Which kernel, and how it was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// Ours.
    Ursa,
    /// Debian's without mitigations.
    Linux,
    /// Debian's as shipped.
    Shipped,
}

impl Subject {
    /// All of them.
    pub const ALL: [Subject; 3] = [Subject::Ursa, Subject::Linux, Subject::Shipped];

    /// The machine on which it is measured.
    fn machine(self, image: &str, profile: Profile) -> machine::Options {
        let kernel = if self == Subject::Ursa { Kernel::Ursa } else { Kernel::Linux };
        machine::Options {
            profile,
            append: if self == Subject::Shipped { "mitigations=auto".into() } else { String::new() },
            ..machine::Options::of(image, kernel)
        }
    }
}

/// Has a script run in the guest, by root where no user is named: what it printed.
fn ask(
    link: &mut Link<&UnixStream>,
    machine: &Machine,
    script: &str,
    user: Option<&str>,
    limit: Duration,
) -> Result<String> {
    let mut text = Vec::new();
    let mut collect = |_, data: &[u8]| text.extend_from_slice(data);
    let request = Request { user: user.map(str::to_owned), ..Request::script(script, limit, &mut collect) };
    let outcome = link.run(machine, request)?;
    let text = String::from_utf8_lossy(&text).trim().to_owned();
    match outcome {
        Outcome::Ended(status) if status.shell_code() == 0 => Ok(text),
        other => bail!("{script}: {other:?}: {text}"),
    }
}

/// `cargo xtask bench`.
pub fn run(options: &Options) -> Result<ExitCode> {
    let mut measures = Vec::new();
    if options.only != Some(Kind::Whole) {
        measures.extend(micro::run(&options.names, options.profile)?);
    }
    if options.only != Some(Kind::Micro) {
        measures.extend(whole::run(
            &options.names,
            options.runs.unwrap_or(if options.quick { 2 } else { 5 }),
            options.profile,
        )?);
    }
    let folder = paths::target().join("bench");
    fs::create_dir_all(&folder)?;
    for measure in &measures {
        let file = folder.join(format!("{}.json", measure.name));
        fs::write(&file, serde_json::to_string(measure)? + "\n").with_context(|| file.display().to_string())?;
    }
    print!("{}", table(&measures));
    Ok(ExitCode::SUCCESS)
}

/// The figures for people, and for `docs/results.md`.
fn table(measures: &[Measure]) -> String {
    let number = |value: Option<f64>| match value {
        None => "–".to_owned(),
        Some(value) if value >= 100.0 => format!("{value:.0}"),
        Some(value) => format!("{value:.2}"),
    };
    let mut text =
        "| measure | Ursa | Linux | ratio | Linux as shipped | unit |\n|---|---:|---:|---:|---:|---|\n".to_owned();
    for measure in measures {
        text += &format!(
            "| {} | {} | {} | {} | {} | {} |\n",
            measure.name,
            number(measure.ursa),
            number(measure.linux),
            number(measure.ratio),
            number(measure.shipped),
            measure.unit
        );
    }
    let ratios: Vec<f64> = measures.iter().filter_map(|measure| measure.ratio).collect();
    match geometric_mean(&ratios) {
        Some(mean) => {
            let worse = ratios.iter().filter(|ratio| **ratio > 1.0).count();
            text += &format!("\n{} ratios, geometric mean {mean:.3}, {worse} above 1\n", ratios.len());
        }
        None => text += "\nno ratio: one of the kernels got to no figure\n",
    }
    text
}

fn geometric_mean(values: &[f64]) -> Option<f64> {
    if values.is_empty() {
        return None;
    }
    Some((values.iter().map(|value| value.ln()).sum::<f64>() / values.len() as f64).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratio_needs_both_figures() {
        assert_eq!(Measure::new("a", "s", Some(1.0), Some(2.0), None).ratio, Some(0.5));
        assert_eq!(Measure::new("a", "s", None, Some(2.0), None).ratio, None);
        assert_eq!(Measure::new("a", "s", Some(1.0), Some(0.0), None).ratio, None);
    }

    #[test]
    fn table_tells_the_mean_and_what_is_worse() {
        let measures =
            [Measure::new("a", "s", Some(1.0), Some(2.0), None), Measure::new("b", "s", Some(4.0), Some(2.0), None)];
        assert!(table(&measures).contains("2 ratios, geometric mean 1.000, 1 above 1"));
        assert!(table(&[]).contains("no ratio"));
    }
}
