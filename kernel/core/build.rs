//! Compiles and links the vDSO, which the kernel holds as bytes and maps into every program.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

fn main() {
    let vdso = PathBuf::from(env::var("CARGO_MANIFEST_DIR").unwrap()).join("../vdso");
    let out = PathBuf::from(env::var("OUT_DIR").unwrap());
    println!("cargo:rerun-if-changed={}", vdso.display());
    let image = out.join("vdso.so");
    let target = env::var("TARGET").unwrap();
    if env::var("CARGO_CFG_TARGET_OS").unwrap() == "none" {
        link(&vdso, &out, &target, &image);
    } else {
        // Checked for the host: there are no programs to map it into.
        fs::write(&image, []).unwrap();
    }
}

fn link(vdso: &Path, out: &Path, target: &str, image: &Path) {
    let object = out.join("vdso.o");
    let mut rustc = Command::new(env::var("RUSTC").unwrap());
    rustc.arg(vdso.join("src/lib.rs")).args(["--crate-name", "ursa_vdso", "--edition", "2024", "--crate-type", "lib"]);
    rustc.args(["--target", target, "--cfg", "vdso_image", "--emit", "obj", "-o"]).arg(&object);
    rustc.args(["-Copt-level=2", "-Cpanic=abort", "-Crelocation-model=pic", "-Ccodegen-units=1", "-Cdebuginfo=0"]);
    // Programs' stacks are unwound through it.
    rustc.args(["-Cforce-unwind-tables=yes", "-Cforce-frame-pointers=yes", "-Coverflow-checks=no"]);
    let flags = env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    rustc.args(flags.split('\x1f').filter(|flag| flag.starts_with("--sysroot=")));
    run(&mut rustc);
    let mut lld = Command::new("ld.lld");
    lld.args(["-shared", "--no-undefined", "-Bsymbolic", "--hash-style=both", "--build-id=sha1", "--eh-frame-hdr"]);
    lld.args(["-soname", "linux-vdso.so.1", "-z", "max-page-size=4096", "-z", "noexecstack", "--gc-sections", "-T"]);
    lld.arg(vdso.join("vdso.ld")).arg(&object).arg("-o").arg(image);
    run(&mut lld);
}

fn run(command: &mut Command) {
    let status = command.status().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(status.success(), "{command:?}: {status}");
}
