//! `cargo xtask image`: a Debian root from a recipe, as an archive for Ursa and as a disk for Linux.
//!
//! ```text
//! image/NAME.toml ─ mmdebstrap ─→ debian.tar ─→ Tree ─┬→ root.cpio   newc, file data on page borders: Ursa's root
//! image/NAME.lock ← checksums of the .deb files       └→ root.ext4   mke2fs -d: the root disk for Debian's kernel
//! ```
//!
//! All of it lies in the cache under a key made from the recipe and this code's version; the lock file, which is committed,
//! says what went in. No step needs loop devices; without root, mmdebstrap works in a user name space and fakeroot keeps
//! the owners.

use crate::{hosttools, paths, shell};
use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use std::fs;
use std::io::BufWriter;
use std::path::PathBuf;
use std::process::ExitCode;

mod accounts;
pub mod apt;
mod bootstrap;
pub mod cpio;
pub mod disk;
pub mod linux;
mod lock;
mod recipe;
mod sources;
pub mod tree;

pub use bootstrap::{checksum, packages};
pub use lock::Lock;
pub use recipe::Recipe;

/// Raised when this code makes another image from the same recipe.
const FORMAT: u32 = 1;

/// Options of `image`.
#[derive(clap::Args, Debug)]
pub struct Options {
    /// The recipe: a file in `image/` without its ending. All recipes are listed without one.
    name: Option<String>,
    /// Build it from what the mirror has now and renew the lock file.
    #[arg(long)]
    update: bool,
    /// Fail if the mirror has other versions than the lock file.
    #[arg(long, conflicts_with = "update")]
    locked: bool,
    /// Write a boot archive for Ursa, with this checkout's programs, to `target/NAME-boot.cpio`.
    #[arg(long)]
    boot: bool,
    /// Make the root disk for Linux too.
    #[arg(long)]
    disk: bool,
}

/// A finished image.
#[derive(Debug, Clone)]
pub struct Image {
    folder: PathBuf,
}

impl Image {
    /// The archive for Ursa.
    pub fn archive(&self) -> PathBuf {
        self.folder.join("root.cpio")
    }

    /// The same tree as a tar archive.
    pub fn tar(&self) -> PathBuf {
        self.folder.join("root.tar")
    }

    /// The disk for Linux, made when it is first asked for.
    pub fn disk(&self) -> Result<PathBuf> {
        let disk = self.folder.join("root.ext4");
        let _lock = paths::lock(&self.folder)?;
        if !disk.exists() {
            disk::make(&self.tar(), &disk)?;
        }
        Ok(disk)
    }

    /// A folder for files made from this image.
    pub fn folder(&self) -> &PathBuf {
        &self.folder
    }
}

/// How the lock file is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Locking {
    /// The same version with other contents is an error; newer versions are only named.
    Check,
    /// Anything that differs is an error.
    Strict,
    /// Write it anew.
    Update,
}

/// `cargo xtask image`.
pub fn run(options: &Options) -> Result<ExitCode> {
    let Some(name) = &options.name else {
        for name in recipe::names()? {
            println!("{name:12} {}", Recipe::load(&name)?.description);
        }
        return Ok(ExitCode::SUCCESS);
    };
    let locking = match (options.update, options.locked) {
        (true, _) => Locking::Update,
        (_, true) => Locking::Strict,
        _ => Locking::Check,
    };
    let image = make(name, locking)?;
    println!("archive {}", image.archive().display());
    if options.boot {
        let boot = paths::target().join(format!("{name}-boot.cpio"));
        crate::archive::write_for_ursa(&image, &crate::build::programs(crate::build::Noise::Failures)?, &[], &boot)?;
        println!("boot    {}", boot.display());
    }
    if options.disk {
        println!("disk    {}", image.disk()?.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// The image of this name, from the cache if it is there.
pub fn get(name: &str) -> Result<Image> {
    make(name, Locking::Check)
}

fn make(name: &str, locking: Locking) -> Result<Image> {
    let recipe = Recipe::load(name)?;
    let folder = paths::cache("images")?.join(format!("{name}-{}", key(&recipe)?));
    let image = Image { folder: folder.clone() };
    let _lock = paths::lock(&folder)?;
    let finished = folder.join("finished");
    if finished.exists() && locking != Locking::Update {
        if locking == Locking::Strict {
            lock::Lock::load(name)?.context("no lock file")?.compare(&lock::Lock::read(&finished)?)?.refuse()?;
        }
        return Ok(image);
    }
    hosttools::ensure(hosttools::IMAGE)?;
    if !shell::is_root() {
        hosttools::ensure(hosttools::IMAGE_AS_USER)?;
    }
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder)?;
    shell::step(format!("image {name}: unpacking Debian {} (minutes, the first time)", recipe.suite));
    let debian = folder.join("debian.tar");
    let mut found = bootstrap::run(name, &recipe, &debian)?;
    let built = folder.join("built.tar");
    if let Some(build) = &recipe.build {
        found.build = sources::run(name, &recipe, build, &built)?;
    }
    match lock::Lock::load(name)? {
        Some(old) if locking != Locking::Update => {
            let difference = old.compare(&found)?;
            if locking == Locking::Strict {
                difference.refuse()?;
            }
            difference.report(name);
        }
        _ => found.save(name)?,
    }
    shell::step(format!("image {name}: writing the archive"));
    let mut tree = tree::Tree::from_tar(&debian).context("reading mmdebstrap's archive")?;
    for path in bootstrap::LEFT_OVERS {
        tree.remove(path);
    }
    if recipe.build.is_some() {
        sources::lay_over(&mut tree, &built)?;
    }
    accounts::set_up(&mut tree, recipe.user_password.as_deref())?;
    if recipe.busybox_links {
        add_busybox_links(&mut tree)?;
    }
    let mut archive = BufWriter::new(fs::File::create(folder.join("root.cpio"))?);
    cpio::write(&tree, &mut archive)?;
    archive.into_inner().map_err(|e| e.into_error())?;
    tree.to_tar(&folder.join("root.tar"))?;
    fs::remove_file(&debian)?;
    if recipe.build.is_some() {
        fs::remove_file(&built)?;
    }
    found.write(&finished)?;
    remove_older(name, &folder)?;
    Ok(image)
}

fn key(recipe: &Recipe) -> Result<String> {
    let hash = Sha256::digest(format!("{FORMAT} {}", recipe.text));
    Ok(hash.iter().take(6).map(|byte| format!("{byte:02x}")).collect())
}

/// Removes images of the same name that an older recipe made and nobody has used for a week.
fn remove_older(name: &str, current: &PathBuf) -> Result<()> {
    let week = std::time::Duration::from_secs(7 * 24 * 3600);
    for entry in fs::read_dir(paths::cache("images")?)? {
        let path = entry?.path();
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let ours = file.strip_prefix(name).and_then(|rest| rest.strip_prefix('-')).is_some_and(|key| key.len() == 12);
        let old = path.metadata()?.modified()?.elapsed().is_ok_and(|age| age > week);
        if ours && old && path.is_dir() && path != *current {
            fs::remove_dir_all(&path)?;
        }
    }
    Ok(())
}

/// Links every applet of the tree's busybox that no other program provides.
pub fn add_busybox_links(tree: &mut tree::Tree) -> Result<()> {
    let Some(program) = tree.read("usr/bin/busybox")? else { bail!("busybox-links needs the package busybox-static") };
    // Under another name it would take that name for an applet's.
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("busybox");
    fs::write(&path, program)?;
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let applets = shell::output(std::process::Command::new(&path).arg("--list-full"))?;
    for applet in applets.lines() {
        let name = applet.rsplit('/').next().unwrap_or(applet);
        let (bin, sbin) = (format!("usr/bin/{name}"), format!("usr/sbin/{name}"));
        if !tree.contains(&bin) && !tree.contains(&sbin) {
            tree.symlink(
                if applet.starts_with("usr/s") || applet.starts_with("s") { &sbin } else { &bin },
                "/usr/bin/busybox",
            );
        }
    }
    Ok(())
}
