# Sourced by what opens a graphical session, the user's own or the greeter's: how Debian's programs draw where there is no GPU.
# Painters in software are faster there than Mesa's; `ursa.renderer=gl` on the kernel command line takes the latter.
for word in $(cat /proc/cmdline); do
    case $word in
    ursa.renderer=*) renderer=${word#ursa.renderer=} ;;
    esac
done
case $renderer in
gl) export KWIN_COMPOSE=O2 WLR_RENDERER=gles2 ;;
*) export KWIN_COMPOSE=Q QT_QUICK_BACKEND=software WLR_RENDERER=pixman ;;
esac
export XDG_SESSION_TYPE=wayland
# KDE's programs want a locale of UTF-8, and find our defaults before Debian's.
use_kde() {
    export LANG="${LANG:-C.UTF-8}" XDG_CONFIG_DIRS=/usr/lib/ursa/services/xdg:/etc/xdg
}
