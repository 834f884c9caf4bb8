//! What an image has built from Debian's sources: suites of tests that no package holds. mmdebstrap makes a root with the compilers,
//! apt fetches the sources and checks them against the archive's keys, the recipe's script builds, and `/out` comes out as a tar
//! archive. The root itself is thrown away.

use super::bootstrap::{NEWEST, Store};
use super::lock::{Lock, Package, Packages};
use super::recipe::{Build, Recipe, Variant};
use super::{apt, tree::Tree};
use crate::shell;
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;

/// Fetches and unpacks source packages, notes what they are in `sources`, and runs the recipe's script.
const SCRIPT: &str = r#"
set -e
mkdir -p /build/.sources /out
cd /build/.sources
: > list
[ $# = 0 ] || apt-get -qq source --download-only "$@"
for dsc in *.dsc; do
    [ -e "$dsc" ] || continue
    name=$(sed -n 's/^Source: //p' "$dsc")
    echo "$name $(sed -n 's/^Version: //p' "$dsc") $(sha256sum < "$dsc" | cut -d' ' -f1)" >> list
    dpkg-source --no-check -x "$dsc" "/build/$name" > /dev/null
done
cd /build
bash -e /build/.run
find /out -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
"#;

/// Builds what a recipe asks for into the archive `out`, and says what it was built of and with.
pub fn run(name: &str, recipe: &Recipe, build: &Build, out: &Path) -> Result<Packages> {
    shell::step(format!("image {name}: building from Debian's sources (minutes)"));
    let folder = out.parent().context("an archive has a folder")?;
    let work = tempfile::tempdir_in(folder)?;
    let locked = Lock::load(name)?.map(|lock| lock.build);
    let store = Store::open(&format!("{name}-build"), locked.as_ref())?;
    let at = |file: &str| -> Result<String> {
        Ok(work.path().join(file).to_str().context("the cache's path is not UTF-8")?.to_owned())
    };
    fs::write(at(".fetch")?, format!("export SOURCE_DATE_EPOCH={NEWEST}\n{SCRIPT}"))?;
    fs::write(at(".run")?, &build.run)?;
    // Without root, mmdebstrap's own user reads these.
    fs::set_permissions(work.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let mut command = store.mmdebstrap(Variant::Apt, &build.packages)?;
    command.arg("--format=null").arg("--customize-hook=mkdir -p \"$1\"/build \"$1\"/out");
    command.arg(format!("--customize-hook=copy-in \"{}\" \"{}\" /build", at(".fetch")?, at(".run")?));
    let sources = build.sources.join(" ");
    command.arg(format!("--customize-hook=chroot \"$1\" bash /build/.fetch {sources} >&2"));
    command.arg(format!("--customize-hook=tar-out /out \"{}\"", at("out.tar")?));
    let folder = at("")?;
    command.arg(format!("--customize-hook=copy-out /build/.sources/list /var/lib/dpkg/status \"{folder}\""));
    command
        .arg(&recipe.suite)
        .arg("/dev/null")
        .arg(apt::source(&recipe.suite))
        .arg(apt::source_of_sources(&recipe.suite));
    shell::run(&mut command).context("what the image needs from Debian's sources could not be built")?;
    let mut packages = store.survey(Some(fs::read(at("status")?)?))?;
    packages.extend(parse_list(&fs::read_to_string(at("list")?)?)?);
    fs::rename(at("out.tar")?, out)?;
    Ok(packages)
}

/// Lays what was built over the image's tree.
pub fn lay_over(tree: &mut Tree, archive: &Path) -> Result<()> {
    tree.take_in(Tree::from_tar(archive)?, Path::new("out"));
    Ok(())
}

/// The lines `NAME VERSION SHA256`, as packages `src:NAME`.
fn parse_list(list: &str) -> Result<Packages> {
    let line = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [name, version, sha256] = words[..] else { anyhow::bail!("{line:?} is no source package") };
        Ok((format!("src:{name}"), Package { version: version.to_owned(), sha256: sha256.to_owned() }))
    };
    list.lines().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_listed_by_their_own_names() {
        let packages = parse_list("wayland 1.23.1-3 ab\nfuse3 3.17.2-3 cd\n").unwrap();
        assert_eq!(packages.keys().collect::<Vec<_>>(), ["src:fuse3", "src:wayland"]);
        assert_eq!(packages["src:wayland"].sha256, "ab");
        assert!(parse_list("wayland 1.23.1-3\n").is_err());
    }
}
