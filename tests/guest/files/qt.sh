#!/bin/sh
# Starts one of Qt's examples in the user's session, in place of the one before: qt.sh NAME [VARIABLE=VALUE].
export XDG_RUNTIME_DIR=/run/user/1000 WAYLAND_DISPLAY=wayland-1 QT_QPA_PLATFORM=wayland
program=$(find /usr/lib/x86_64-linux-gnu/qt6/examples -path "*/bin/$1" -type f)
shift
[ -s /tmp/qt.pid ] && kill "$(cat /tmp/qt.pid)"
cd || exit
setsid env "$@" "$program" > /tmp/qt.log 2>&1 < /dev/null &
echo $! > /tmp/qt.pid
