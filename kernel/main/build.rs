//! Passes the linker script to the link of the kernel image.
fn main() {
    println!("cargo:rerun-if-changed=linker.ld");
    println!("cargo:rustc-link-arg-bins=-T{}/linker.ld", std::env::var("CARGO_MANIFEST_DIR").unwrap());
}
