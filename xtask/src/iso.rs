//! `cargo xtask iso`: one file that boots as CD and as disk, on legacy BIOS and on UEFI.
//!
//! `grub-mkrescue` makes a hybrid: an ISO 9660 file system with El Torito images for both kinds of firmware, and at the same time a
//! GPT disk whose first sectors start GRUB and whose EFI partition holds it. GRUB loads the kernel by multiboot2.

use crate::machine::{Boot, Gpu, Kernel, Options as MachineOptions};
use crate::{hosttools, paths, shell};
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// Options of `iso`.
#[derive(clap::Args, Debug)]
pub struct Options {
    /// The image whose files the boot archive holds.
    #[arg(long, default_value = "base")]
    image: String,
    /// Words for the kernel's command line.
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    append: String,
    /// Where the file goes.
    #[arg(long, short, default_value = "target/ursa.iso")]
    output: PathBuf,
}

/// `cargo xtask iso`.
pub fn run(options: &Options) -> Result<ExitCode> {
    let folder = tempfile::Builder::new().prefix("ursa-iso-").tempdir_in(paths::target())?;
    let machine = MachineOptions { init: true, ..MachineOptions::of(&options.image, Kernel::Ursa) };
    let boot = Boot::prepare(&machine, Gpu::None, folder.path())?;
    let append = format!("{} {}", boot.append(), options.append);
    make(boot.kernel(), boot.initrd(), append.trim(), &options.output)?;
    println!("{}", options.output.display());
    Ok(ExitCode::SUCCESS)
}

/// Makes `output` from a kernel and its boot archive.
pub fn make(kernel: &Path, archive: Option<&Path>, append: &str, output: &Path) -> Result<()> {
    hosttools::ensure(hosttools::ISO)?;
    shell::step(format!("making {}", output.display()));
    let tree = tempfile::Builder::new().prefix("ursa-iso-").tempdir_in(paths::target())?;
    let boot = tree.path().join("boot");
    fs::create_dir_all(boot.join("grub"))?;
    place(kernel, &boot.join("ursa-kernel"))?;
    if let Some(archive) = archive {
        place(archive, &boot.join("ursa.cpio"))?;
    }
    fs::write(boot.join("grub/grub.cfg"), grub_config(append, archive.is_some()))?;
    let mut command = Command::new("grub-mkrescue");
    command.arg("-o").arg(output).arg(tree.path());
    shell::run_quietly(&mut command)
}

/// A link where that is possible: archives are large.
fn place(from: &Path, to: &Path) -> Result<()> {
    if fs::hard_link(from, to).is_err() {
        fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    }
    Ok(())
}

/// GRUB's configuration. Quotes in the command line mean to GRUB what they mean to the kernel; what else is special to GRUB's
/// script language is escaped.
fn grub_config(append: &str, archive: bool) -> String {
    let special = |c| matches!(c, '$' | '\\' | ';' | '&' | '|' | '<' | '>' | '{' | '}' | '#');
    let words: String = append.chars().flat_map(|c| special(c).then_some('\\').into_iter().chain([c])).collect();
    let module = if archive { "  module2 /boot/ursa.cpio\n" } else { "" };
    format!(
        "set timeout=0\ninsmod all_video\nmenuentry \"Ursa\" {{\n  multiboot2 /boot/ursa-kernel {words}\n{module}}}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_quoted_for_grub() {
        let config = grub_config("a=\"b c\" $x", true);
        assert!(config.contains(r#"multiboot2 /boot/ursa-kernel a="b c" \$x"#), "{config}");
        assert!(config.contains("module2 /boot/ursa.cpio"));
        assert!(!grub_config("", false).contains("module2"));
    }
}
