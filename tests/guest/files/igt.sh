#!/bin/bash
# igt.sh TEST...: runs tests of igt-gpu-tools, and prints the result of each subtest: `TEST SUBTEST RESULT`.
initctl stop console > /dev/null 2>&1
until [ -e /dev/dri/card0 ]; do sleep 0.1; done
# IGT ends a test that commits a picture when there is no debugfs, though all it then looks for is Intel's there. Where the kernel
# has none, it gets an empty directory in its place.
grep -q debugfs /proc/filesystems || { mkdir -p /debug && mount -t tmpfs debug /debug; }
# IGT chooses by the driver's name; without this, only devices that it knows are tried.
export IGT_FORCE_DRIVER=virtio_gpu
for test in "$@"; do
    timeout 300 /usr/libexec/igt-gpu-tools/"$test" > /tmp/igt.log 2>&1
    status=$?
    sed -nE "s/^Subtest ([^:]*): ([A-Z]+).*/$test \1 \2/p" /tmp/igt.log
    # A test without subtests, or one that broke off, is told by its status alone: 77 is skipped.
    grep -q '^Subtest' /tmp/igt.log && [ $status -lt 100 ] || echo "$test status $status"
    [ -z "$IGT_VERBOSE" ] || cat /tmp/igt.log >&2
done
