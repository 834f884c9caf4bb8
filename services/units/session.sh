#!/bin/sh
# Opens the graphical session that the kernel command line asks for: ursa.session=weston or ursa.session=sway.
# Runs as the user, in a session of its own; seatd hands out display and input devices.
until [ -S /run/seatd.sock ] && [ -e /dev/dri/card0 ]; do sleep 0.2; done
export XDG_RUNTIME_DIR="/run/user/$(id -u)" XDG_SESSION_TYPE=wayland XDG_SEAT=seat0 LIBSEAT_BACKEND=seatd
cd || exit
for word in $(cat /proc/cmdline); do
    case $word in
    ursa.session=*) session=${word#ursa.session=} ;;
    ursa.renderer=*) renderer=${word#ursa.renderer=} ;;
    esac
done
case $session in
weston)
    exec weston --backend=drm --renderer="${renderer:-pixman}" --config=/usr/lib/ursa/services/weston.ini --log="$XDG_RUNTIME_DIR/weston.log"
    ;;
sway)
    export WLR_RENDERER="${renderer:-pixman}" XDG_CURRENT_DESKTOP=sway
    exec sway --config /usr/lib/ursa/services/sway.config
    ;;
*)
    echo "session: ursa.session=$session is not known: weston or sway" >&2
    exit 1
    ;;
esac
