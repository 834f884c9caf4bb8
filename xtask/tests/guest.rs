//! Tests of `cargo xtask guest` as a person uses it: a process with output, errors and an exit status.
//!
//! Each boots machines, so they are ignored but for `cargo xtask test`, which says in `URSA_TEST_KERNELS` what to boot.

use std::io::Write;
use std::process::{Command, Output, Stdio};

fn kernels() -> Vec<String> {
    let names = std::env::var("URSA_TEST_KERNELS").unwrap_or_else(|_| "linux".into());
    names.split(',').map(str::to_owned).collect()
}

fn command(kernel: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.args(["guest", "--image", "mini", "--kernel", kernel]).args(arguments).stdin(Stdio::null());
    command
}

fn guest(kernel: &str, arguments: &[&str]) -> Output {
    command(kernel, arguments).output().unwrap()
}

/// Standard error without the lines that say what is being built.
fn errors(output: &Output) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    text.lines().filter(|line| !line.starts_with("==> ")).map(|line| format!("{line}\n")).collect()
}

#[test]
#[ignore = "boots machines"]
fn xtask_guest_passes_exit_status_and_separate_outputs() {
    for kernel in kernels() {
        let output = guest(&kernel, &["--", "bash", "-c", "echo out; echo err >&2; exit 7"]);
        assert_eq!(output.stdout, b"out\n", "{kernel}: {}", errors(&output));
        assert_eq!(errors(&output), "err\n", "{kernel}");
        assert_eq!(output.status.code(), Some(7), "{kernel}");
    }
}

#[test]
#[ignore = "boots machines"]
fn xtask_guest_reports_death_by_signal_as_a_shell_does() {
    for kernel in kernels() {
        let output = guest(&kernel, &["--", "bash", "-c", "kill -KILL $$"]);
        assert_eq!(output.status.code(), Some(137), "{kernel}: {}", errors(&output));
    }
}

#[test]
#[ignore = "boots machines"]
fn xtask_guest_missing_program_is_127() {
    for kernel in kernels() {
        let output = guest(&kernel, &["--", "no-such-program"]);
        assert_eq!(output.status.code(), Some(127), "{kernel}: {}", errors(&output));
        assert!(errors(&output).contains("no-such-program"), "{kernel}");
    }
}

#[test]
#[ignore = "boots machines"]
fn xtask_guest_passes_every_byte_both_ways() {
    // All byte values, also those that a terminal would change or stop at, and more than any buffer on the way holds.
    let bytes: Vec<u8> = (0..200_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).chain(0..=255).collect();
    for kernel in kernels() {
        let mut child = command(&kernel, &["--stdin", "--", "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = bytes.clone();
        let writer = std::thread::spawn(move || stdin.write_all(&input).unwrap());
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        assert_eq!(output.status.code(), Some(0), "{kernel}: {}", errors(&output));
        assert!(output.stdout == bytes, "{kernel}: {} bytes came back, or others", output.stdout.len());
    }
}

#[test]
#[ignore = "boots machines"]
fn xtask_guest_passes_big_output_whole() {
    for kernel in kernels() {
        let output = guest(&kernel, &["--", "bash", "-c", "seq 1 100000"]);
        let expected: String = (1..=100_000).map(|n| format!("{n}\n")).collect();
        assert_eq!(output.status.code(), Some(0), "{kernel}: {}", errors(&output));
        assert!(output.stdout == expected.as_bytes(), "{kernel}: {} bytes", output.stdout.len());
    }
}

#[test]
#[ignore = "boots machines"]
fn xtask_guest_time_limit_is_124() {
    for kernel in kernels() {
        let output = guest(&kernel, &["--timeout", "2", "--", "bash", "-c", "echo before; sleep 1000"]);
        assert_eq!(output.status.code(), Some(124), "{kernel}: {}", errors(&output));
        assert_eq!(output.stdout, b"before\n", "{kernel}");
    }
}

#[test]
#[ignore = "boots machines"]
fn xtask_guest_kernel_panic_is_126_with_the_log() {
    // sysrq is Linux's; Ursa has no way for a program to make it panic.
    if kernels().iter().any(|kernel| kernel == "linux") {
        let script = "echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger; sleep 60";
        let output = guest("linux", &["--", "bash", "-c", script]);
        assert_eq!(output.status.code(), Some(126), "{}", errors(&output));
        assert!(errors(&output).contains("Kernel panic - not syncing"));
    }
}

#[test]
#[ignore = "boots machines"]
fn xtask_guest_failed_boot_is_125() {
    for kernel in kernels() {
        let output = guest(&kernel, &["--qemu", "-no-such-option", "--", "true"]);
        assert_eq!(output.status.code(), Some(125), "{kernel}");
        assert!(errors(&output).contains("no-such-option"), "{kernel}: {}", errors(&output));
    }
}

#[test]
#[ignore = "boots machines"]
fn xtask_guest_adds_files_and_runs_as_user() {
    let folder = tempfile::tempdir().unwrap();
    let tree = folder.path().join("tree");
    std::fs::create_dir_all(tree.join("sub")).unwrap();
    std::fs::write(tree.join("sub/file"), b"added\n").unwrap();
    std::os::unix::fs::symlink("sub/file", tree.join("link")).unwrap();
    let script = folder.path().join("script");
    std::fs::write(&script, "#!/bin/bash\ncat /opt/tree/link\nid -un\n").unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    // The second replaces a program of the image, through the link that /bin is.
    let (whole, one) = (format!("{}:/opt/", tree.display()), format!("{}:/usr/bin/arch", script.display()));
    for kernel in kernels() {
        let output = guest(&kernel, &["--user", "user", "--add", &whole, "--add", &one, "--", "/bin/arch"]);
        assert_eq!(String::from_utf8_lossy(&output.stdout), "added\nuser\n", "{kernel}: {}", errors(&output));
    }
}

#[test]
#[ignore = "boots machines"]
fn xtask_guest_unknown_user_is_said() {
    for kernel in kernels() {
        let output = guest(&kernel, &["--user", "nobody-here", "--", "true"]);
        assert_eq!(output.status.code(), Some(125), "{kernel}: {}", errors(&output));
        assert!(errors(&output).contains("no user nobody-here"), "{kernel}");
    }
}
