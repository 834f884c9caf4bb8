//! Recipes: `image/NAME.toml`.

use crate::paths;
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::fs;

/// What an image is made of.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Recipe {
    /// For the list of images.
    pub description: String,
    /// Debian release.
    pub suite: String,
    /// What mmdebstrap starts from, mmdebstrap(1) VARIANTS.
    pub variant: Variant,
    /// Packages, with all they depend on. A name that ends in `-` keeps a package out.
    pub packages: Vec<String>,
    /// What is built from Debian's sources for it.
    #[serde(default)]
    pub build: Option<Build>,
    /// Link busybox's applets into the tree where nothing else has the name.
    #[serde(default)]
    pub busybox_links: bool,
    /// The password of the account `user` as crypt(5) hashes it. Without one nobody is asked.
    #[serde(default)]
    pub user_password: Option<String>,
    /// The file itself: any change makes a new image.
    #[serde(skip)]
    pub text: String,
}

/// Programs that Debian has the source of and no package: test suites. They are built in a root of their own, of the same suite,
/// which is no part of the image.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Build {
    /// What that root holds beside apt and Debian's essential packages: compilers, libraries, packages of source.
    pub packages: Vec<String>,
    /// Source packages. Each is unpacked with Debian's patches in `/build/NAME`.
    #[serde(default)]
    pub sources: Vec<String>,
    /// A script for `bash -e`, in `/build`. What it puts below `/out` becomes part of the image.
    pub run: String,
}

/// Variants of mmdebstrap that make sense here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Variant {
    /// Packages are unpacked, not configured.
    Extract,
    /// All packages that Debian calls essential, configured.
    Essential,
    /// The same with apt.
    Apt,
}

impl Variant {
    /// mmdebstrap's word.
    pub fn word(self) -> &'static str {
        match self {
            Variant::Extract => "extract",
            Variant::Essential => "essential",
            Variant::Apt => "apt",
        }
    }
}

impl Recipe {
    /// Reads a recipe.
    pub fn load(name: &str) -> Result<Recipe> {
        let path = paths::root().join("image").join(format!("{name}.toml"));
        if !path.exists() {
            bail!("no recipe {}; there are: {}", path.display(), names()?.join(", "));
        }
        let text = fs::read_to_string(&path)?;
        let recipe: Recipe = toml::from_str(&text).with_context(|| path.display().to_string())?;
        Ok(Recipe { text, ..recipe })
    }
}

/// All recipes.
pub fn names() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(paths::root().join("image"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if let Some(name) = name.strip_suffix(".toml") {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_recipe_in_the_tree_parses() {
        let names = names().unwrap();
        assert!(names.contains(&"base".to_owned()) && names.contains(&"mini".to_owned()));
        for name in names {
            Recipe::load(&name).unwrap();
        }
    }

    #[test]
    fn misspelt_key_is_refused() {
        let text = "description = ''\nsuite = 'trixie'\nvariant = 'extract'\npackages = []\nbusybox_links = true\n";
        assert!(toml::from_str::<Recipe>(text).is_err());
    }
}
