"""Types at an interactive bash on a pseudo-terminal and prints a word for each thing that worked."""
import os
import pty
import re
import select
import struct
import sys
import termios
import fcntl
import time

PROMPT = "prompt> "
pid, terminal = pty.fork()
if pid == 0:
    os.environ.update(PS1=PROMPT, TERM="dumb", HISTFILE="")
    os.execvp("bash", ["bash", "--norc", "--noprofile", "--noediting", "-i"])

seen = ""


def expect(pattern, seconds=30):
    """Waits for a text; what comes up to its end is used up."""
    global seen
    deadline = time.monotonic() + seconds
    while True:
        match = re.search(pattern, seen)
        if match:
            seen = seen[match.end():]
            return match
        rest = deadline - time.monotonic()
        if rest <= 0 or not select.select([terminal], [], [], rest)[0]:
            sys.exit(f"no {pattern!r} in {seen!r}")
        try:
            seen += os.read(terminal, 4096).decode()
        except OSError:
            sys.exit(f"the terminal closed; no {pattern!r} in {seen!r}")


def type_text(text):
    os.write(terminal, text.encode())


def worked(what):
    print(what, flush=True)


expect(PROMPT)
type_text("sleep 1000\n")
expect("sleep 1000\r\n")
time.sleep(0.5)
type_text("\x1a")
expect(r"\[1\]\+\s+Stopped\s+sleep 1000")
expect(PROMPT)
worked("stopped")
type_text("jobs\n")
expect(r"\[1\]\+\s+Stopped\s+sleep 1000")
expect(PROMPT)
worked("listed")
type_text("bg\n")
expect(r"\[1\]\+ sleep 1000 &")
expect(PROMPT)
type_text("jobs\n")
expect(r"\[1\]\+\s+Running\s+sleep 1000 &")
expect(PROMPT)
worked("continued")
type_text("fg\n")
expect(r"fg\r\nsleep 1000")
time.sleep(0.5)
worked("foreground")
type_text("\x03")
expect(PROMPT)
type_text("echo status=$?\n")
expect("status=130")
expect(PROMPT)
worked("interrupted")
fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 77, 0, 0))
type_text("stty size\n")
expect("33 77")
expect(PROMPT)
worked("terminal size")
type_text("\x04")
expect("exit")
_, status = os.waitpid(pid, 0)
if not os.WIFEXITED(status):
    sys.exit(f"bash ended with {status}")
worked("end of file")
