# The console daemon's side of the virtual terminals: what it reads, what it types, whom it holds up.
import errno, fcntl, os, select, struct, termios, threading, time

OUTPUT, STATE, RESET, INPUT, SIZE, LEDS, ACTIVATE = 1, 2, 3, 16, 17, 18, 19
KDSETMODE, KDGKBLED, VT_DISALLOCATE = 0x4B3A, 0x4B64, 0x5608


def records(fd, room=65536):
    data = os.read(fd, room)
    while data:
        kind, vt, length = struct.unpack("=HHI", data[:8])
        yield kind, vt, data[8 : 8 + length]
        data = data[8 + length :]


def drain(fd):
    got = []
    try:
        while True:
            got += records(fd)
    except BlockingIOError:
        return got


def tell(fd, kind, vt=0, payload=b""):
    return os.write(fd, struct.pack("=HHI", kind, vt, len(payload)) + payload)


def fails(error, call, *args):
    try:
        call(*args)
    except OSError as e:
        assert e.errno == error, (e, error)
    else:
        raise AssertionError("no error")


def open_vt(n, flags=0):
    return os.open(f"/dev/tty{n}", os.O_RDWR | os.O_NOCTTY | flags)


tty = open_vt(20)
os.write(tty, b"before\n")
daemon = os.open("/dev/vtcon", os.O_RDWR | os.O_NONBLOCK)
fails(errno.EBUSY, os.open, "/dev/vtcon", os.O_RDWR)
first = drain(daemon)
states = [struct.unpack("=8HQ", p) for k, _, p in first if k == STATE]
assert len(states) == 1 and states[0][0] == 1 and states[0][1] == 0 and states[0][8] >> 20 & 1, states
assert (OUTPUT, 20, b"before\r\n") in first, first
poll = select.poll()
poll.register(daemon, select.POLLIN)
assert poll.poll(0) == []
os.write(tty, b"after\n")
assert poll.poll(0) == [(daemon, select.POLLIN)]
assert drain(daemon) == [(OUTPUT, 20, b"after\r\n")]

# A daemon that comes again gets what was kept.
os.close(daemon)
daemon = os.open("/dev/vtcon", os.O_RDWR | os.O_NONBLOCK)
assert (OUTPUT, 20, b"before\r\nafter\r\n") in drain(daemon)

# Typing goes through the line discipline.
assert tell(daemon, INPUT, 20, b"ab\x7fc\n") == 13
assert os.read(tty, 100) == b"ac\n"
assert drain(daemon) == [(OUTPUT, 20, b"ab\x08 \x08c\r\n")]
assert tell(daemon, INPUT, 33, b"nobody is there") == 23

# Sizes.
tell(daemon, SIZE, 0, struct.pack("=4H", 30, 100, 800, 480))
assert struct.unpack("=4H", fcntl.ioctl(tty, termios.TIOCGWINSZ, b"\0" * 8)) == (30, 100, 800, 480)
later = open_vt(21)
assert struct.unpack("=2H", fcntl.ioctl(later, termios.TIOCGWINSZ, b"\0" * 8)[:4]) == (30, 100)
os.close(later)
drain(daemon)

# Lights, nonsense.
home = open_vt(1)
tell(daemon, LEDS, 0, b"\4")
assert fcntl.ioctl(home, KDGKBLED, b"\0") == b"\4"
tell(daemon, LEDS, 0, b"\0")
for wrong in [(99, 0, b""), (LEDS, 0, b"\x08"), (LEDS, 0, b""), (SIZE, 0, b"\0" * 8), (SIZE, 0, b""), (ACTIVATE, 0, b""),
              (ACTIVATE, 64, b""), (INPUT, 64, b"x"), (INPUT, 1, b"x" * 4097)]:
    fails(errno.EINVAL, tell, daemon, *wrong)
fails(errno.EINVAL, os.write, daemon, b"short")
fails(errno.EINVAL, os.write, daemon, struct.pack("=HHI", INPUT, 1, 5) + b"four")
fails(errno.EINVAL, os.read, daemon, 63)

# Switching; a terminal given back.
tell(daemon, ACTIVATE, 20)
assert [struct.unpack("=H", p[:2])[0] for k, _, p in drain(daemon) if k == STATE] == [20]
tell(daemon, ACTIVATE, 1)
os.close(tty)
fcntl.ioctl(home, VT_DISALLOCATE, 20)
assert (RESET, 20, b"") in drain(daemon)

# A terminal that is not drawn holds its writers up, without losing a byte.
tty = open_vt(22, os.O_NONBLOCK)
written = 0
try:
    while True:
        written += os.write(tty, b"x" * 1000)
except BlockingIOError:
    pass
assert 60000 < written <= 65536, written
assert select.select([], [tty], [], 0)[1] == []
got = drain(daemon)
assert sum(len(p) for k, vt, p in got if k == OUTPUT and vt == 22) == written
assert select.select([], [tty], [], 0)[1] == [tty]

# Who takes the display over hears so after the daemon has acted: here, half a second late.
def late():
    time.sleep(0.5)
    drain(daemon)
thread = threading.Thread(target=late)
start = time.monotonic()
thread.start()
fcntl.ioctl(home, KDSETMODE, 1)
assert 0.4 < time.monotonic() - start < 0.95
thread.join()
# … and a daemon that never does is not waited for long.
start = time.monotonic()
fcntl.ioctl(home, KDSETMODE, 0)
assert 0.9 < time.monotonic() - start < 3
# Without a daemon nobody waits.
os.close(daemon)
start = time.monotonic()
fcntl.ioctl(home, KDSETMODE, 1)
fcntl.ioctl(home, KDSETMODE, 0)
for _ in range(100):
    os.write(tty, b"y" * 4096)
assert time.monotonic() - start < 0.4
print("ok")
