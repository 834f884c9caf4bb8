"""Compares the shape of files under /proc with what Debian's kernel shows.

Programs depend on such a file's keys, their order, its columns and units, so that is what is compared; numbers are taken
away. Three ways: the shapes of all lines in their order (SHAPES), the set of keys (KEYS), and each line's form (FORMS).

Usage: shape.py record FILE      writes what this kernel shows
       shape.py compare FILE EXPLAINED   prints differences from it that EXPLAINED does not name with a reason
"""
import fnmatch
import re
import sys

SHAPES = """
self/stat self/statm self/limits self/uid_map self/gid_map self/oom_score self/oom_score_adj self/oom_adj self/loginuid self/sessionid
self/timerslack_ns self/setgroups self/personality self/coredump_filter self/schedstat self/io self/fdinfo/0 self/cgroup
self/comm self/timers loadavg uptime swaps consoles pressure/cpu pressure/io pressure/memory
sysvipc/sem sysvipc/shm sysvipc/msg
sys/kernel/osrelease sys/kernel/ostype sys/kernel/pid_max sys/kernel/cap_last_cap sys/kernel/random/boot_id
sys/kernel/random/uuid sys/kernel/random/entropy_avail sys/kernel/random/poolsize sys/kernel/ngroups_max
sys/kernel/overflowuid sys/kernel/overflowgid sys/kernel/threads-max sys/kernel/core_pattern sys/kernel/core_uses_pid
sys/kernel/printk sys/kernel/tainted sys/kernel/shmmax sys/kernel/shmall sys/kernel/shmmni sys/kernel/sem sys/kernel/msgmax
sys/kernel/msgmnb sys/kernel/msgmni sys/kernel/sysrq sys/kernel/randomize_va_space sys/kernel/dmesg_restrict
sys/kernel/kptr_restrict sys/kernel/perf_event_paranoid sys/fs/file-max sys/fs/file-nr sys/fs/nr_open sys/fs/inode-nr
sys/fs/inode-state sys/fs/pipe-max-size sys/fs/pipe-user-pages-soft sys/fs/pipe-user-pages-hard sys/fs/aio-nr sys/fs/aio-max-nr
sys/fs/lease-break-time sys/fs/leases-enable sys/fs/protected_symlinks sys/fs/protected_hardlinks sys/fs/protected_fifos
sys/fs/protected_regular sys/fs/suid_dumpable sys/fs/dentry-state sys/fs/overflowuid sys/fs/overflowgid sys/fs/mount-max
sys/fs/inotify/max_user_watches sys/fs/inotify/max_user_instances sys/fs/inotify/max_queued_events
sys/fs/epoll/max_user_watches sys/fs/mqueue/msg_max sys/fs/mqueue/queues_max sys/vm/overcommit_memory
sys/vm/overcommit_ratio sys/vm/swappiness sys/vm/max_map_count sys/vm/mmap_min_addr sys/vm/nr_hugepages sys/vm/dirty_ratio
sys/vm/dirty_background_ratio sys/vm/min_free_kbytes
""".split()

KEYS = """
self/status self/smaps_rollup self/sched self/mountstats meminfo cpuinfo stat vmstat filesystems interrupts softirqs
cgroups devices misc tty/drivers
""".split()

PATH = r"(/\S*|\[\w+\])( \(deleted\))?"
FORMS = {
    "self/maps": rf"[0-9a-f]{{8,}}-[0-9a-f]{{8,}} [r-][w-][x-][ps] [0-9a-f]{{8}} [0-9a-f]{{2}}:[0-9a-f]{{2}} \d+ *( {PATH})?",
    "self/mountinfo": r"\d+ \d+ \d+:\d+ /\S* /\S* r[wo]\S* (\w+:\d+ )*- \S+ \S+ r[wo]\S*",
    "self/mounts": r"\S+ /\S* \S+ r[wo]\S* 0 0",
    "self/smaps": rf"([0-9a-f]{{8,}}-[0-9a-f]{{8,}} .*)|(\w+: +\d+ kB)|(THPeligible: +[01])|(ProtectionKey: +\d+)|(VmFlags:( \w\w)* )",
    "mounts": r"\S+ /\S* \S+ r[wo]\S* 0 0",
    "version": r"Linux version \d+\.\d+\.\S+ \(.*\) .*",
    "partitions": r"(major minor  #blocks  name)?|( *\d+ +\d+ +\d+ \w+)",
    "diskstats": r" *\d+ +\d+ \w+( \d+){17}",
    "modules": r"\w+ \d+ \d+ \S+ \w+ 0x[0-9a-f]{16}( \(\w+\))?",
    "locks": r"\d+: (->)? ?(POSIX |FLOCK |OFDLCK|LEASE ) +(ADVISORY|ACTIVE|BREAKING|BREAKER) +(READ|WRITE) +\d+ [0-9a-f]+:[0-9a-f]+:\d+ \d+ (\d+|EOF)",
    "iomem": r" *[0-9a-f]{8,}-[0-9a-f]{8,} : \S.*",
    "ioports": r" *[0-9a-f]{4}-[0-9a-f]{4} : \S.*",
    "cmdline": r".*",
    "bus/input/devices": r"(I: Bus=[0-9a-f]{4} Vendor=[0-9a-f]{4} Product=[0-9a-f]{4} Version=[0-9a-f]{4})|(N: Name=\".*\")|([PSUHB]: \w+=.*)|",
}


def read(name):
    """The file's text, or None and the error."""
    try:
        with open(f"/proc/{name}", errors="replace") as file:
            return file.read(), None
    except OSError as error:
        return None, error.strerror


def shape(line):
    line = re.sub(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b", "U", line)
    line = re.sub(r"\b(?:0x)?[0-9a-f]*\d[0-9a-f.]*\b", "N", line)
    return re.sub(r"[ \t]+", " ", line).rstrip()


def key(line):
    """What a line is found by: its first word, or what stands before a colon; interrupt lines by their kind."""
    if re.match("[0-9a-f]{8,}-", line):
        return ""
    if line.startswith("nodev"):
        return line.split()[1]
    head = line.split(":")[0] if ":" in line else (line.split() or [""])[0]
    words = head.split()
    if len(words) > 1 and words[0].isdigit():
        return words[1]
    return re.sub(r"\d+", "N", head.strip())


def shown():
    """Each file's shape or keys, as lines `file: text`."""
    for name in SHAPES + KEYS:
        text, error = read(name)
        if text is None:
            yield f"{name}: error {error}"
            continue
        make = key if name in KEYS else shape
        seen = dict.fromkeys(make(line) for line in text.replace("\0", "|").splitlines())
        yield from (f"{name}: {line}" for line in seen if line)
        if not text:
            yield f"{name}: empty"


def malformed():
    for name, form in FORMS.items():
        text, error = read(name)
        if text is None:
            yield f"{name}: error {error}"
            continue
        for line in text.splitlines():
            if not re.fullmatch(form, line):
                yield f"{name}: malformed {line!r}"


def main():
    verb, record = sys.argv[1:3]
    if verb == "record":
        with open(record, "w") as file:
            file.writelines(f"{line}\n" for line in shown())
        return
    with open(record) as file:
        expected = file.read().splitlines()
    with open(sys.argv[3]) as file:
        explained = [line.split(" # ")[0].strip() for line in file if line.strip() and not line.startswith("#")]
    here = list(shown())
    found = [f"lacks {line}" for line in expected if line not in here]
    # Keys of one's own do no harm; a line of another shape does.
    found += [f"has {line}" for line in here if line not in expected and line.split(":")[0] in SHAPES]
    found += list(malformed())
    used = set()
    count = 0
    for line in found:
        reasons = [pattern for pattern in explained if fnmatch.fnmatchcase(line, pattern.replace("[", "[[]"))]
        used.update(reasons)
        if not reasons:
            count += 1
            print(line)
    import os
    if os.uname().version.find("Ursa") >= 0:
        for pattern in explained:
            if pattern not in used:
                count += 1
                print(f"explained, but does not differ: {pattern}")
    print(f"{len(expected)} lines, {count} unexplained")


main()
