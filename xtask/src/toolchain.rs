//! Which compiler builds the kernel.
//!
//! The target is `x86_64-unknown-none`, on stable Rust. Where rustup has it (or can fetch it), plain cargo does the
//! work. Elsewhere Debian's `rustc-web` does: it comes with the library's source, from which `core` and `alloc` are built
//! once into a sysroot of their own in the cache, named after the compiler's version.

use crate::{hosttools, paths, shell};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// The kernel's target.
pub const KERNEL_TARGET: &str = "x86_64-unknown-none";

/// The target of programs in the boot archive.
pub const PROGRAM_TARGET: &str = "x86_64-unknown-linux-gnu";

/// Flags for every kernel crate: linked at a fixed address in the top 2 GiB, frame pointers for backtraces, and segments
/// that keep code, read-only data and data on pages of their own.
const KERNEL_FLAGS: &[&str] = &[
    "-C relocation-model=static",
    "-C code-model=kernel",
    "-C force-frame-pointers=yes",
    "-C link-arg=--no-rosegment",
    "-C link-arg=-zmax-page-size=0x1000",
];

/// The oldest compiler that the workspace builds with (`rust-version` in its manifest).
const NEEDED: (u32, u32) = (1, 95);

/// Raised when the sysroot is built in another way.
const SYSROOT_FORMAT: u32 = 2;

/// A compiler for the kernel.
#[derive(Debug)]
pub struct Toolchain {
    cargo: PathBuf,
    rustc: PathBuf,
    sysroot: Option<PathBuf>,
}

impl Toolchain {
    /// Finds or makes one.
    pub fn find() -> Result<Toolchain> {
        let (cargo, rustc) = host();
        if has_target(&rustc)? || fetch_target(&rustc)? {
            return Ok(Toolchain { cargo, rustc, sysroot: None });
        }
        // Another run may be in the middle of replacing the compiler, or its source, by a newer one.
        let _lock = paths::lock(&paths::cache("sysroot")?.join("compiler"))?;
        hosttools::ensure(hosttools::DEBIAN_RUST)?;
        let (cargo, rustc) = (PathBuf::from("/usr/bin/cargo"), PathBuf::from("/usr/bin/rustc"));
        // Old package lists, as of a freshly installed system, name old compilers.
        if release(&rustc)? < NEEDED {
            hosttools::upgrade(hosttools::DEBIAN_RUST)?;
        }
        if release(&rustc)? < NEEDED {
            let version = shell::output(Command::new(&rustc).arg("--version"))?;
            bail!("{} is {version}; Ursa needs {}.{} or newer", rustc.display(), NEEDED.0, NEEDED.1);
        }
        let sysroot = debian_sysroot(&cargo, &rustc)?;
        Ok(Toolchain { cargo, rustc, sysroot: Some(sysroot) })
    }

    /// `cargo SUBCOMMAND --target x86_64-unknown-none` in the checkout.
    pub fn cargo(&self, subcommand: &str) -> Command {
        let mut flags = KERNEL_FLAGS.join(" ");
        let mut command = Command::new(&self.cargo);
        if let Some(sysroot) = &self.sysroot {
            flags = format!("--sysroot={} {flags} -C linker=ld.lld", sysroot.display());
            // Debian's subcommands must be found before rustup's, which would ignore RUSTC.
            let path = std::env::var_os("PATH").unwrap_or_default();
            let folders = std::iter::once(PathBuf::from("/usr/bin")).chain(std::env::split_paths(&path));
            if let Ok(path) = std::env::join_paths(folders) {
                command.env("PATH", path);
            }
        }
        clean_environment(&mut command);
        command.env("RUSTC", &self.rustc).env("CARGO_TARGET_X86_64_UNKNOWN_NONE_RUSTFLAGS", flags);
        command.current_dir(paths::root()).arg(subcommand).args(["--target", KERNEL_TARGET]);
        command
    }

    /// What `RUSTDOCFLAGS` must have for rustdoc to find the library that [`Toolchain::cargo`] compiles against.
    pub fn rustdoc_flags(&self) -> String {
        self.sysroot.as_ref().map_or_else(String::new, |sysroot| format!("--sysroot={}", sysroot.display()))
    }
}

/// The cargo and the rustc for everything that is not the kernel.
fn host() -> (PathBuf, PathBuf) {
    let cargo = shell::find_program("cargo").or_else(|| std::env::var_os("CARGO").map(PathBuf::from));
    let rustc = std::env::var_os("RUSTC").map(PathBuf::from).or_else(|| shell::find_program("rustc"));
    (cargo.unwrap_or_else(|| "cargo".into()), rustc.unwrap_or_else(|| "rustc".into()))
}

/// `cargo SUBCOMMAND` for the host, in the checkout.
pub fn host_cargo(subcommand: &str) -> Command {
    let mut command = Command::new(host().0);
    clean_environment(&mut command);
    command.current_dir(paths::root()).arg(subcommand);
    command
}

/// `cargo build` for a static program of the boot archive.
pub fn program_cargo() -> Command {
    let mut command = host_cargo("build");
    command.args(["--target", PROGRAM_TARGET]);
    // Static and at a fixed address: PID 1 needs no loader, and the kernel that starts it no support for one.
    let flags = "-C target-feature=+crt-static -C relocation-model=static -C strip=debuginfo";
    command.env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS", flags);
    command
}

/// Removes what `cargo run` sets for this program and what would change a nested cargo's work.
fn clean_environment(command: &mut Command) {
    for name in ["CARGO", "CARGO_MANIFEST_DIR", "CARGO_MANIFEST_PATH", "CARGO_ENCODED_RUSTFLAGS", "RUSTFLAGS"] {
        command.env_remove(name);
    }
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CARGO_PKG_") || name == "RUSTUP_TOOLCHAIN" {
            command.env_remove(name);
        }
    }
}

/// A compiler's version, major and minor.
fn release(rustc: &Path) -> Result<(u32, u32)> {
    let version = shell::output(Command::new(rustc).arg("--version"))?;
    parse_release(&version).with_context(|| format!("`rustc --version` names no version: {version}"))
}

fn parse_release(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split_whitespace().nth(1)?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn has_target(rustc: &Path) -> Result<bool> {
    let mut command = Command::new(rustc);
    let folder = shell::output(command.args(["--print", "target-libdir", "--target", KERNEL_TARGET]))?;
    let Ok(files) = fs::read_dir(folder) else { return Ok(false) };
    Ok(files.flatten().any(|file| file.file_name().to_string_lossy().starts_with("libcore-")))
}

/// Lets rustup fetch the target, unless it is told not to fetch by itself.
fn fetch_target(rustc: &Path) -> Result<bool> {
    if std::env::var_os("RUSTUP_AUTO_INSTALL").is_some_and(|value| value == "0") {
        return Ok(false);
    }
    let Some(rustup) = shell::find_program("rustup") else { return Ok(false) };
    shell::step(format!("rustup target add {KERNEL_TARGET}"));
    let added = shell::run_quietly(Command::new(rustup).args(["target", "add", KERNEL_TARGET]));
    Ok(added.is_ok() && has_target(rustc)?)
}

/// The sysroot for Debian's compiler, built if need be.
fn debian_sysroot(cargo: &Path, rustc: &Path) -> Result<PathBuf> {
    let version = shell::output(Command::new(rustc).arg("--version"))?;
    let release = version.split_whitespace().nth(1).context("`rustc --version` names no version")?.to_owned();
    let key: String = version.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect();
    let sysroot = paths::cache("sysroot")?.join(format!("{key}-{SYSROOT_FORMAT}"));
    let libraries = sysroot.join("lib/rustlib").join(KERNEL_TARGET).join("lib");
    let _lock = paths::lock(&sysroot)?;
    if libraries.is_dir() {
        return Ok(sysroot);
    }
    shell::step(format!("building core and alloc for {KERNEL_TARGET} with {version}"));
    let source = library_source(rustc, &release)?;
    let work = tempfile::tempdir_in(paths::cache("sysroot")?)?;
    fs::create_dir(work.path().join("src"))?;
    fs::write(work.path().join("src/lib.rs"), "#![no_std]\n")?;
    fs::write(
        work.path().join("Cargo.toml"),
        "[package]\nname = \"sysroot-stub\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\
         [profile.release]\npanic = \"abort\"\ndebug = 1\ncodegen-units = 16\n[workspace]\n",
    )?;
    let mut command = Command::new(cargo);
    clean_environment(&mut command);
    // The variables and -Z options open what stable keeps closed, for this one build of the compiler's own library. The
    // kernel itself is built without them.
    command
        .env("RUSTC", rustc)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("__CARGO_TESTS_ONLY_SRC_ROOT", &source)
        .env("CARGO_TARGET_DIR", work.path().join("target"))
        // The kernel's dist profile optimises across crates, these among them.
        .env("CARGO_TARGET_X86_64_UNKNOWN_NONE_RUSTFLAGS", "-C embed-bitcode=yes")
        .current_dir(work.path())
        .args(["build", "--quiet", "--release", "--target", KERNEL_TARGET])
        .args(["-Zbuild-std=core,alloc,compiler_builtins", "-Zbuild-std-features=compiler-builtins-mem"]);
    shell::run_quietly(&mut command).context("building the kernel's sysroot")?;
    let built = work.path().join("target").join(KERNEL_TARGET).join("release/deps");
    let staging = work.path().join("lib");
    fs::create_dir(&staging)?;
    for entry in fs::read_dir(&built)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let wanted = ["libcore-", "liballoc-", "libcompiler_builtins-"].iter().any(|start| name.starts_with(start));
        if wanted && name.ends_with(".rlib") {
            fs::copy(entry.path(), staging.join(&name))?;
        }
    }
    fs::create_dir_all(libraries.parent().context("the sysroot has no parent")?)?;
    fs::rename(&staging, &libraries)?;
    Ok(sysroot)
}

/// The library's source that belongs to this compiler.
fn library_source(rustc: &Path, release: &str) -> Result<PathBuf> {
    let own = PathBuf::from(shell::output(Command::new(rustc).args(["--print", "sysroot"]))?);
    let candidates =
        [own.join("lib/rustlib/src/rust/library"), PathBuf::from(format!("/usr/src/rustc-{release}/library"))];
    match candidates.iter().find(|path| path.join("core/src/lib.rs").exists()) {
        Some(path) => Ok(path.canonicalize()?),
        None => bail!(
            "no library source of Rust {release}: install rust-web-src of the same version as rustc-web, or run \
             `rustup target add {KERNEL_TARGET}`"
        ),
    }
}

/// `cargo xtask toolchain`.
pub fn show() -> Result<ExitCode> {
    let toolchain = Toolchain::find()?;
    println!("rustc   {}", shell::output(Command::new(&toolchain.rustc).arg("--version"))?);
    println!("cargo   {}", toolchain.cargo.display());
    match &toolchain.sysroot {
        Some(path) => println!("sysroot {}", path.display()),
        None => println!("sysroot the compiler's own"),
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_rustc_prints() {
        assert_eq!(parse_release("rustc 1.85.0 (4d91de4e4 2025-02-17) (built from a source tarball)"), Some((1, 85)));
        assert_eq!(parse_release("rustc 1.97.0-nightly (abc 2026-05-01)"), Some((1, 97)));
        assert_eq!(parse_release("rustc"), None);
    }

    #[test]
    fn the_workspace_asks_for_the_same_compiler() {
        let manifest = fs::read_to_string(paths::root().join("Cargo.toml")).unwrap();
        assert!(manifest.contains(&format!("rust-version = \"{}.{}\"", NEEDED.0, NEEDED.1)));
    }
}
