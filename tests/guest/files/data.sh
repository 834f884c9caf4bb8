# For tests of a file server that init restarts: a new ext4 on the second disk, served on /data.

# A new file system, served. Arguments: further ones for ext4d.
serve() {
    until [ -b /dev/vda ]; do sleep 0.1; done
    mke2fs -q -t ext4 /dev/vda || exit 1
    mkdir -p /data /etc/ursa
    echo "-o resumable $* /dev/vda /data" > /etc/ursa/data
    initctl start data > /dev/null
    until mountpoint -q /data; do sleep 0.1; done
}

# Kills the server so many times, each time when a successor is at work. Arguments: how often, and the pause before each.
kills() {
    local killed last=0 now
    for killed in $(seq "$1") done; do
        until now=$(initctl status | sed -n 's/^data: running (process \([0-9]*\)).*/\1/p') && [ "${now:-$last}" != $last ]; do
            sleep 0.05
        done
        last=$now
        if [ $killed != done ]; then sleep ${2:-0.3}; kill -KILL $now; fi
    done
    echo killed $1
}

# Lives through trace.py on a server that ends at a request in a phase (none: to its end), and compares what is seen with
# the first time.
trace() {
    serve ${1:+--exit-at $1}
    python3 /opt/trace.py /data > /tmp/seen 2>&1
    (cd /data && find . -type f | sort | xargs md5sum; find . -printf '%p %M %n %s\n' | grep -v lost+found | sort) >> /tmp/seen
    [ -e /tmp/first ] || cp /tmp/seen /tmp/first
    cmp /tmp/first /tmp/seen && [ "$(finish)" = clean ] || { echo "ended at $1:"; diff /tmp/first /tmp/seen; cat /tmp/fsck; exit 1; }
}

# Unmounts, waits for the server and checks the disk.
finish() {
    umount /data || echo still in use
    while pgrep -x ext4d > /dev/null; do sleep 0.1; done
    e2fsck -fn /dev/vda > /tmp/fsck 2>&1 && echo clean || cat /tmp/fsck
}
