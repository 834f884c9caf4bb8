#!/usr/bin/python3
"""Compares two exports of the udev database property by property; prints the differences and their number."""
import sys


def load(path):
    devices = {}
    for block in open(path, errors="replace").read().split("\n\n"):
        lines = [line.split(": ", 1) for line in block.splitlines() if ": " in line]
        values = {}
        for kind, value in lines:
            if kind == "E":
                key, value = value.split("=", 1)
                if key == "USEC_INITIALIZED":
                    value = "present"
                elif key == "DEVLINKS":
                    value = " ".join(sorted(value.split()))
                elif key in ("TAGS", "CURRENT_TAGS"):
                    value = ":".join(sorted(value.split(":")))
                values[key] = value
            else:
                values.setdefault(kind + ":", set()).add(value)
        for path in values.get("P:", ()):
            devices[path] = values
    return devices


first, second = load(sys.argv[1]), load(sys.argv[2])
differences = 0
for path in sorted(first.keys() | second.keys()):
    one, two = first.get(path, {}), second.get(path, {})
    for key in sorted(one.keys() | two.keys()):
        if one.get(key) != two.get(key):
            differences += 1
            print(path, key, one.get(key), two.get(key))
least = int(sys.argv[3])
print("enough devices" if len(first) >= least else f"only {len(first)} devices")
print(f"{differences} differences")
