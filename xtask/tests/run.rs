//! A test of `cargo xtask run` as a person uses it: a login shell on the terminal, a disk that keeps what is written to it.
//!
//! It boots machines, so it is ignored but for `cargo xtask test`, which says in `URSA_TEST_KERNELS` what to boot.

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// For a boot on a busy host without hardware help.
const LIMIT: Duration = Duration::from_secs(300);

/// What the machine has printed, and whether it has ended.
type Screen = Arc<(Mutex<(Vec<u8>, bool)>, Condvar)>;

struct Run {
    child: Child,
    keys: ChildStdin,
    screen: Screen,
}

impl Run {
    fn start(kernel: &str, disk: &Path) -> Run {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
        command.args(["run", "--kernel", kernel, "--session", "none", "--root-file"]).arg(disk);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
        let mut child = command.spawn().unwrap();
        let screen = Screen::default();
        let (theirs, mut output) = (screen.clone(), child.stdout.take().unwrap());
        std::thread::spawn(move || {
            let mut piece = [0; 4096];
            loop {
                let read = output.read(&mut piece).unwrap_or(0);
                let mut shown = theirs.0.lock().unwrap();
                shown.0.extend_from_slice(&piece[..read]);
                shown.1 = read == 0;
                theirs.1.notify_all();
                if read == 0 {
                    return;
                }
            }
        });
        Run { keys: child.stdin.take().unwrap(), child, screen }
    }

    /// Waits for a text, and returns all that came before it and after the last one that was waited for.
    fn until(&self, text: &str) -> String {
        let end = Instant::now() + LIMIT;
        let mut shown = self.screen.0.lock().unwrap();
        loop {
            let so_far = String::from_utf8_lossy(&shown.0).into_owned();
            if let Some(at) = so_far.find(text) {
                shown.0 = so_far.as_bytes()[at + text.len()..].to_vec();
                return so_far[..at].to_owned();
            }
            let left = end.saturating_duration_since(Instant::now());
            assert!(!shown.1 && !left.is_zero(), "{text:?} does not come; shown: {so_far}");
            shown = self.screen.1.wait_timeout(shown, left).unwrap().0;
        }
    }

    /// Waits until the machine is off.
    fn end(&mut self) -> ExitStatus {
        let shown = self.screen.0.lock().unwrap();
        let (shown, wait) = self.screen.1.wait_timeout_while(shown, LIMIT, |shown| !shown.1).unwrap();
        assert!(!wait.timed_out(), "does not end; shown: {}", String::from_utf8_lossy(&shown.0));
        self.child.wait().unwrap()
    }

    /// Types a line into the shell, and returns what is shown until its commands have ended: the line itself, as the shell's editor
    /// draws it, and what they print. The end is told by a word that the line itself does not have.
    fn line(&mut self, commands: &str) -> String {
        writeln!(self.keys, "{commands}; echo en''d-of-it").unwrap();
        self.until("end-of-it")
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // QEMU, too.
        let _ =
            Command::new("kill").args(["-KILL", "--", &format!("-{}", self.child.id())]).stderr(Stdio::null()).status();
        let _ = self.child.wait();
    }
}

#[test]
#[ignore = "boots machines"]
fn xtask_run_is_a_login_shell_and_keeps_its_disk() {
    for kernel in std::env::var("URSA_TEST_KERNELS").unwrap_or_else(|_| "linux".into()).split(',') {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let disk = folder.path().join("root.ext4");
        for kept in [false, true] {
            let mut run = Run::start(kernel, &disk);
            run.until("# ");
            let shown = run.line("tty");
            assert!(shown.contains("/dev/ttyS0"), "{kernel}: {shown}");
            // Job control: the shell gets the terminal back from a job that is stopped.
            let shown = run.line("sh -c 'kill -STOP $$'; kill -CONT %1; wait %1");
            assert!(shown.contains("Stopped"), "{kernel}: {shown}");
            let shown = run.line("cat /root/mine");
            assert_eq!(shown.contains("it-is-kept"), kept, "{kernel}: {shown}");
            run.line("echo it-is-ke''pt > /root/mine");
            writeln!(run.keys, "poweroff").unwrap();
            assert!(run.end().success(), "{kernel}");
        }
    }
}
