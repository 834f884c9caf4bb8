//! Where things are: the checkout, cargo's target folder and the cache that outlives both.

use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// The checkout.
pub fn root() -> PathBuf {
    // Cargo sets the variable for `cargo run`; a binary started by hand uses the place it was built at.
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let manifest = manifest.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")));
    manifest.parent().map(Path::to_path_buf).unwrap_or(manifest)
}

/// Cargo's target folder.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |path| root().join(path))
}

/// A folder in the cache (`$URSA_CACHE`, else `ursa` in `$XDG_CACHE_HOME` or `~/.cache`), made if need be.
pub fn cache(name: &str) -> Result<PathBuf> {
    let base = if let Some(path) = std::env::var_os("URSA_CACHE") {
        PathBuf::from(path)
    } else if let Some(path) = std::env::var_os("XDG_CACHE_HOME") {
        PathBuf::from(path).join("ursa")
    } else {
        PathBuf::from(std::env::var_os("HOME").context("neither URSA_CACHE nor HOME is set")?).join(".cache/ursa")
    };
    let path = base.join(name);
    fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
    Ok(path)
}

/// Holds a lock named after a cached thing, so that two runs do not make it at once. Freed when dropped.
pub fn lock(folder: &Path) -> Result<fs::File> {
    let path = folder.with_extension("lock");
    let file = fs::File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
    if file.try_lock().is_err() {
        eprintln!("waiting for another run that holds {}", path.display());
        file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    }
    Ok(file)
}
