#!/bin/sh
# Opens the graphical session that the kernel command line asks for: ursa.session=weston, sway, kwin or plasma.
# Runs as the user, in a session of its own. Who hands out display and input devices is seatd or elogind.
. /usr/lib/ursa/services/environment.sh
for word in $(cat /proc/cmdline); do
    case $word in
    ursa.session=*) session=${word#ursa.session=} ;;
    esac
done
until [ -e /dev/dri/card0 ]; do sleep 0.2; done
if [ -z "$XDG_SESSION_ID" ]; then
    until [ -S /run/seatd.sock ]; do sleep 0.2; done
    export XDG_RUNTIME_DIR="/run/user/$(id -u)" XDG_SEAT=seat0 LIBSEAT_BACKEND=seatd
fi
cd || exit
case $session in
weston)
    exec weston --backend=drm --renderer="${renderer:-pixman}" --config=/usr/lib/ursa/services/weston.ini --log="$XDG_RUNTIME_DIR/weston.log"
    ;;
sway)
    export XDG_CURRENT_DESKTOP=sway
    exec sway --config /usr/lib/ursa/services/sway.config
    ;;
kwin | plasma)
    use_kde
    export QT_QPA_PLATFORM=wayland
    exec > "$XDG_RUNTIME_DIR/session.log" 2>&1
    if [ "$session" = kwin ]; then
        exec dbus-run-session -- kwin_wayland --no-lockscreen --no-global-shortcuts --xwayland --socket wayland-0 konsole
    fi
    export XDG_CURRENT_DESKTOP=KDE XDG_SESSION_DESKTOP=KDE XDG_MENU_PREFIX=plasma-
    exec dbus-run-session -- startplasma-wayland
    ;;
*)
    echo "session: ursa.session=$session is not known: weston, sway, kwin or plasma" >&2
    exit 1
    ;;
esac
