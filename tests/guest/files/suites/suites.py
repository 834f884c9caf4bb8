#!/usr/bin/env python3
"""Runs a public test suite of the image `suites`, and prints a result a line: `TEST RESULT`.

    suites.py SUITE [PATTERN...]             all of it, or what matches (fnmatch): SUITE.linux is recorded with it
    suites.py --compare SUITE [PATTERN...]   only what is not as it should be: what passes on Linux by SUITE.linux and does not here, unless
                                             it is in SUITE.known, and what is there without need

SUITE.linux is Linux's result on the same image: its first line names the image's lock file. SUITE.known has a line for each failure that
is put up with on Ursa, and the interface that it wants: `PATTERN WHAT`.

A TEST is a program, `SUITE-FOLDER:PROGRAM`, or one of the cases that it reports as TAP, `PROGRAM/CASE`. A RESULT is pass, fail,
skip, timeout, `status N` or `signal N`. What a program says is kept in /tmp/suites/PROGRAM.log.
"""

import fnmatch
import hashlib
import os
import re
import shlex
import signal
import subprocess
import sys
import uuid

HERE = os.path.dirname(os.path.realpath(__file__))
LOGS = "/tmp/suites"
# Seconds for one program: machines are emulated, and the host may be busy.
PATIENCE = int(os.environ.get("PATIENCE", "240"))


def installed_tests(folder):
    """Programs of an installed-tests package: `Exec=` in their descriptions."""
    root = f"/usr/share/installed-tests/{folder}"
    for top, _, files in sorted(os.walk(root)):
        for file in sorted(files):
            if not file.endswith(".test"):
                continue
            for line in open(os.path.join(top, file)):
                if line.startswith("Exec="):
                    name = os.path.relpath(os.path.join(top, file), root).removesuffix(".test")
                    yield name, shlex.split(line[5:].strip()), "/tmp"


def kselftest():
    for line in open("/opt/kselftest/kselftest-list.txt"):
        folder, program = line.strip().split(":")
        path = f"/opt/kselftest/{folder}"
        if os.path.exists(f"{path}/{program}"):
            yield line.strip(), [f"./{program}"], path


def wayland():
    for line in open("/build/wayland/list"):
        name, command = line.split(" ", 1)
        yield name, shlex.split(command), "/build/wayland/build"


def systemd():
    folder = "/usr/lib/systemd/tests/unit-tests"
    for top, _, files in sorted(os.walk(folder)):
        for file in sorted(files):
            path = os.path.join(top, file)
            if file.startswith("test-") and os.access(path, os.X_OK):
                yield os.path.relpath(path, folder), [path], "/tmp"


SUITES = {
    "kselftest": kselftest,
    "wayland": wayland,
    "systemd": systemd,
    "dbus": lambda: installed_tests("dbus"),
    "glib": lambda: installed_tests("glib"),
}

# What is run by no means: they only measure, take minutes by design, look for what depends on the host's load, or (test_kmem) have
# children that repeat what was printed before.
LEFT_OUT = {
    "kselftest": [
        "timers:raw_skew", "timers:nsleep-lat", "timers:set-timer-lat", "timers:mqueue-lat", "timers:inconsistency-check",
        "timers:threadtest", "timers:rtcpie", "rseq:*benchmark*", "rseq:*param_test*", "prctl:disable-tsc*stress*", "mqueue:mq_perf_tests",
        "syscall_user_dispatch:sud_benchmark", "breakpoints:step_after_suspend_test", "cgroup:test_stress.sh",
        "cgroup:test_kmem", "vDSO:vdso_test_correctness",
    ],
}


def cases(text):
    """What a program reports as TAP: names, without what changes from run to run, and results."""
    seen = {}
    for line in text.splitlines():
        found = re.match(r"\s*(not ok|ok)\s+(\d+)\s*(?:-\s*)?(.*)", line)
        if not found:
            continue
        word, number, rest = found.groups()
        name, _, directive = rest.partition("#")
        result = "pass" if word == "ok" else "fail"
        if re.match(r"\s*(skip|todo)", directive, re.I):
            result = "skip"
        name = re.sub(r"0x[0-9a-f]+|\d{4,}", "N", name)
        name = re.sub(r"\s+", "_", name.strip()) or number
        seen[name] = seen.get(name, 0) + 1
        yield (name if seen[name] == 1 else f"{name}#{seen[name]}"), result


def run(name, command, folder):
    """Runs one program: its results, the program's own last."""
    log = f"{LOGS}/{name.replace('/', '_')}.log"
    with open(log, "wb") as out:
        try:
            child = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
        except OSError as problem:
            return [(name, f"does not start: {problem.strerror}")]
        try:
            status = child.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            status = None
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        child.wait()
    results = [(f"{name}/{case}", result) for case, result in cases(open(log, errors="replace").read())]
    skipped = 77 if folder == "/tmp" or folder.startswith("/build") else 4
    if status is None:
        own = "timeout"
    elif status < 0:
        own = f"signal {-status}"
    else:
        own = {0: "pass", skipped: "skip"}.get(status, f"status {status}")
    return results + [(name, own)]


def lines(file):
    if not os.path.exists(f"{HERE}/{file}"):
        return
    for line in open(f"{HERE}/{file}"):
        if line.strip() and not line.startswith("#"):
            yield line.rstrip("\n").split(" ", 1)


def key():
    """The line that says which image a result is of."""
    return f"# image/suites.lock {hashlib.sha256(open(f'{HERE}/suites.lock', 'rb').read()).hexdigest()}"


def matches(name, patterns):
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def chosen(suite, patterns):
    for name, command, folder in SUITES[suite]():
        if not matches(name, LEFT_OUT.get(suite, [])) and (not patterns or matches(name, patterns)):
            yield name, command, folder


def record(suite, patterns):
    if not patterns:
        print(f"{key()}\n# Linux {os.uname().release}, {os.uname().version}", flush=True)
    for program in chosen(suite, patterns):
        for test, result in dict(run(*program)).items():
            print(test, result, flush=True)


def compare(suite, patterns):
    if open(f"{HERE}/{suite}.linux").readline().rstrip() != key():
        sys.exit(f"{suite}.linux was recorded with another image: record it again")
    linux = dict(lines(f"{suite}.linux"))
    # Nothing is put up with on Linux itself.
    known = dict(lines(f"{suite}.known")) if "Ursa" in os.uname().version else {}
    needed = set()
    passed = total = 0
    for name, command, folder in chosen(suite, patterns):
        if name not in linux:
            print(f"{name} is not in {suite}.linux", flush=True)
            continue
        expected = {test for test, result in linux.items() if result == "pass" and (test == name or test.startswith(f"{name}/"))}
        if not expected:
            continue
        total += len(expected)
        results = dict(run(name, command, folder))
        for test in sorted(expected):
            result = results.get(test, "not run")
            if result == "pass":
                passed += 1
                continue
            excuses = [pattern for pattern in known if fnmatch.fnmatchcase(test, pattern)]
            needed.update(excuses)
            if not excuses:
                print(f"{test} {result}", flush=True)
    if not patterns:
        for pattern in known.keys() - needed:
            print(f"{pattern} is in {suite}.known without need", flush=True)
    print(f"{suite}: {passed} of {total} pass as on Linux", file=sys.stderr)


def main():
    arguments = sys.argv[1:]
    comparing = arguments[:1] == ["--compare"]
    suite, *patterns = arguments[comparing:]
    os.makedirs(LOGS, exist_ok=True)
    # What an installed system has from its first boot on; D-Bus asks for it.
    if not os.path.exists("/etc/machine-id") or not os.path.getsize("/etc/machine-id"):
        with open("/etc/machine-id", "w") as file:
            print(uuid.uuid4().hex, file=file)
    (compare if comparing else record)(suite, patterns)


main()
