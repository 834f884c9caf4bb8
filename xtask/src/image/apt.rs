//! How this machine reaches Debian: mirror, proxy and the date checks it is set to. Nothing of it is stored in an image.

use crate::shell;
use anyhow::Result;
use std::process::Command;

/// Where Debian is without any other setting.
const DEFAULT_MIRROR: &str = "http://deb.debian.org/debian";

/// The archive keys that sign Debian's releases.
pub const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Options of apt that say how to reach a mirror, and so are taken from the host.
const TAKEN_OVER: &[&str] = &[
    "Acquire::http::Proxy",
    "Acquire::https::Proxy",
    "Acquire::Check-Valid-Until",
    "Acquire::Check-Date",
    "Acquire::Retries",
];

/// The mirror: `$URSA_MIRROR`, else what a Debian host uses itself, else Debian's own.
pub fn mirror() -> String {
    if let Ok(mirror) = std::env::var("URSA_MIRROR") {
        return mirror;
    }
    let mut targets = Command::new("apt-get");
    targets.args(["indextargets", "--format", "$(ORIGIN)|$(LABEL)|$(REPO_URI)", "Created-By: Packages"]);
    let listed = shell::output(&mut targets).unwrap_or_default();
    let own = listed.lines().find_map(|line| line.strip_prefix("Debian|Debian|"));
    own.map_or(DEFAULT_MIRROR, |uri| uri.trim_end_matches('/')).to_owned()
}

/// A line for `sources.list`.
pub fn source(suite: &str) -> String {
    format!("deb [signed-by={KEYRING}] {} {suite} main", mirror())
}

/// The same for source packages.
pub fn source_of_sources(suite: &str) -> String {
    format!("deb-src [signed-by={KEYRING}] {} {suite} main", mirror())
}

/// The host's settings in the form of `apt.conf`.
pub fn host_options() -> Result<Vec<String>> {
    let mut options = Vec::new();
    for name in TAKEN_OVER {
        let dump = shell::output(Command::new("apt-config").args(["dump", "--format", "%f %v%n", name]))?;
        if let Some(value) = dump.lines().find_map(|line| line.strip_prefix(&format!("{name} ")))
            && !value.is_empty()
        {
            options.push(format!("{name} \"{value}\""));
        }
    }
    Ok(options)
}
