#!/bin/sh
# Kills one of the servers that can be killed under a session, every few seconds: `cargo xtask run --chaos`.
sleep 20
while sleep $((2 + $(od -An -N1 -tu1 /dev/urandom) % 4)); do
    server=$(printf '%s\n' drm-virtio-gpu drm-bochs evdevd virtio-inputd ps2d | shuf -n 1)
    pkill -KILL -x "$server" && echo "chaos: killed $server" > /dev/console
done
