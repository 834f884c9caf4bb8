/* Virtual terminals: allocation, switching by hand and by handshake, display and keyboard modes, who may. As root. */
#include "../check.h"
#include <fcntl.h>
#include <linux/kd.h>
#include <linux/vt.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

static int tty0;
static volatile sig_atomic_t released, acquired;

static void on_signal(int signo)
{
    if (signo == SIGUSR1)
        released++;
    else
        acquired++;
}

static int open_vt(int n)
{
    char name[16];
    snprintf(name, sizeof name, "/dev/tty%d", n);
    return open(name, O_RDWR | O_NOCTTY | O_CLOEXEC);
}

static int active(void)
{
    struct vt_stat state = {0, 0x5555, 0};
    CHECK(ioctl(tty0, VT_GETSTATE, &state) == 0 && state.v_signal == 0x5555 && (state.v_state & 1));
    char text[16] = "", want[16];
    int fd = open("/sys/class/tty/tty0/active", O_RDONLY);
    CHECK(fd >= 0 && read(fd, text, sizeof text - 1) > 0);
    close(fd);
    snprintf(want, sizeof want, "tty%d\n", state.v_active);
    CHECK(!strcmp(text, want));
    return state.v_active;
}

static void nodes(void)
{
    struct stat st;
    CHECK(stat("/dev/tty0", &st) == 0 && S_ISCHR(st.st_mode) && st.st_rdev == makedev(4, 0));
    CHECK(stat("/dev/tty63", &st) == 0 && st.st_rdev == makedev(4, 63));
    CHECK(access("/sys/class/tty/tty7/dev", R_OK) == 0);
}

static void modes(int fd)
{
    int mode = -1;
    CHECK(ioctl(fd, KDGETMODE, &mode) == 0 && mode == KD_TEXT);
    CHECK(ioctl(fd, KDSETMODE, KD_GRAPHICS) == 0 && ioctl(fd, KDGETMODE, &mode) == 0 && mode == KD_GRAPHICS);
    CHECK(ioctl(fd, KDSETMODE, KD_TEXT0) == 0 && ioctl(fd, KDGETMODE, &mode) == 0 && mode == KD_TEXT);
    FAILS(EINVAL, ioctl(fd, KDSETMODE, 4));
    FAILS(EINVAL, ioctl(fd, KDSETMODE, -1L));
    FAILS(EFAULT, ioctl(fd, KDGETMODE, 8));

    CHECK(ioctl(fd, KDGKBMODE, &mode) == 0 && mode == K_UNICODE);
    int all[] = {K_RAW, K_XLATE, K_MEDIUMRAW, K_OFF, K_UNICODE};
    for (unsigned i = 0; i < sizeof all / sizeof *all; i++)
        CHECK(ioctl(fd, KDSKBMODE, all[i]) == 0 && ioctl(fd, KDGKBMODE, &mode) == 0 && mode == all[i]);
    FAILS(EINVAL, ioctl(fd, KDSKBMODE, 5));
    CHECK(ioctl(fd, KDGKBMETA, &mode) == 0 && mode == K_ESCPREFIX);
    CHECK(ioctl(fd, KDSKBMETA, K_METABIT) == 0 && ioctl(fd, KDGKBMETA, &mode) == 0 && mode == K_METABIT);
    CHECK(ioctl(fd, KDSKBMETA, K_ESCPREFIX) == 0);
    FAILS(EINVAL, ioctl(fd, KDSKBMETA, 9));

    char led = 0x7f;
    CHECK(ioctl(fd, KDGKBTYPE, &led) == 0 && led == KB_101);
    CHECK(ioctl(fd, KDSKBLED, 0x24) == 0 && ioctl(fd, KDGKBLED, &led) == 0 && led == 0x24);
    CHECK(ioctl(fd, KDSKBLED, 0) == 0);
    FAILS(EINVAL, ioctl(fd, KDSKBLED, 0x80));
    CHECK(ioctl(fd, KDSETLED, 7) == 0 && ioctl(fd, KDSETLED, 0xff) == 0);
    FAILS(EINVAL, ioctl(fd, KDMAPDISP, 0));
    FAILS(ENOTTY, ioctl(fd, _IO('V', 0x7f), 0));
    FAILS(ENOTTY, ioctl(fd, _IO('K', 0x7f), 0));
    struct termios t;
    CHECK(tcgetattr(fd, &t) == 0 && (t.c_iflag & IUTF8) && cfgetospeed(&t) == B38400);
    CHECK(isatty(fd));
}

static void allocation(void)
{
    int n = -1, again = -1;
    CHECK(ioctl(tty0, VT_OPENQRY, &n) == 0 && n > 1);
    int fd = open_vt(n);
    CHECK(fd >= 0 && ioctl(tty0, VT_OPENQRY, &again) == 0 && again > n);
    struct vt_stat state;
    CHECK(ioctl(fd, VT_GETSTATE, &state) == 0 && (n > 15 || (state.v_state & 1 << n)));
    FAILS(EBUSY, ioctl(tty0, VT_DISALLOCATE, n));
    FAILS(EBUSY, ioctl(tty0, VT_DISALLOCATE, active()));
    FAILS(ENXIO, ioctl(tty0, VT_DISALLOCATE, 64));
    FAILS(ENXIO, ioctl(tty0, VT_ACTIVATE, 0));
    FAILS(ENXIO, ioctl(tty0, VT_ACTIVATE, 64));
    FAILS(ENXIO, ioctl(tty0, VT_WAITACTIVE, 64));
    modes(fd);
    close(fd);
    usleep(50000); /* Linux lets go of a closed terminal later */
    CHECK(ioctl(tty0, VT_DISALLOCATE, n) == 0);
    FAILS(EBUSY, ioctl(tty0, VT_DISALLOCATE, n)); /* there is none any more */
    CHECK(ioctl(tty0, VT_DISALLOCATE, 0) == 0);
}

static void switch_to(int n)
{
    CHECK(ioctl(tty0, VT_ACTIVATE, n) == 0 && ioctl(tty0, VT_WAITACTIVE, n) == 0);
    CHECK(active() == n);
}

static void by_hand(void)
{
    int home = active(), fd = open_vt(9), mode;
    struct pollfd changed = {.fd = open("/sys/class/tty/tty0/active", O_RDONLY), .events = POLLPRI};
    char text[16];
    CHECK(read(changed.fd, text, sizeof text) > 0 && poll(&changed, 1, 0) == 0);
    switch_to(9);
    CHECK(poll(&changed, 1, 1000) == 1 && (changed.revents & POLLPRI));
    close(changed.fd);
    CHECK(ioctl(tty0, VT_LOCKSWITCH, 0) == 0 && ioctl(tty0, VT_ACTIVATE, home) == 0);
    usleep(50000);
    CHECK(active() == 9 && ioctl(tty0, VT_UNLOCKSWITCH, 0) == 0);
    /* graphics without a handshake is not left */
    CHECK(ioctl(fd, KDSETMODE, KD_GRAPHICS) == 0 && (ioctl(tty0, VT_ACTIVATE, home), 1));
    usleep(50000);
    CHECK(active() == 9 && ioctl(fd, KDSETMODE, KD_TEXT) == 0);
    int now = open("/dev/tty0", O_RDWR | O_CLOEXEC);
    CHECK(ioctl(now, KDSKBMODE, K_XLATE) == 0 && ioctl(fd, KDGKBMODE, &mode) == 0 && mode == K_XLATE);
    CHECK(ioctl(fd, KDSKBMODE, K_UNICODE) == 0);
    char fg[1] = {12};
    CHECK(ioctl(now, TIOCLINUX, fg) == 8);
    close(now);
    switch_to(home);
    close(fd);
}

static void by_handshake(void)
{
    int home = active(), fd = open_vt(10);
    struct vt_mode mode = {.mode = VT_PROCESS, .waitv = 1, .relsig = SIGUSR1, .acqsig = SIGUSR2, .frsig = SIGHUP}, got;
    signal(SIGUSR1, on_signal);
    signal(SIGUSR2, on_signal);
    FAILS(EINVAL, ioctl(fd, VT_RELDISP, 1));
    mode.mode = 7;
    FAILS(EINVAL, ioctl(fd, VT_SETMODE, &mode));
    mode.mode = VT_PROCESS;
    CHECK(ioctl(fd, VT_SETMODE, &mode) == 0 && ioctl(fd, VT_GETMODE, &got) == 0);
    CHECK(got.mode == VT_PROCESS && got.waitv == 1 && got.relsig == SIGUSR1 && got.acqsig == SIGUSR2 && got.frsig == 0);
    CHECK(ioctl(fd, KDSETMODE, KD_GRAPHICS) == 0);
    switch_to(10);
    usleep(20000);
    CHECK(acquired == 1 && released == 0 && ioctl(fd, VT_RELDISP, VT_ACKACQ) == 0);
    FAILS(EINVAL, ioctl(fd, VT_RELDISP, 1)); /* nobody asked */

    CHECK(ioctl(tty0, VT_ACTIVATE, home) == 0);
    usleep(50000);
    CHECK(released == 1 && active() == 10 && ioctl(fd, VT_RELDISP, 0) == 0 && active() == 10); /* refused */
    CHECK(ioctl(tty0, VT_ACTIVATE, home) == 0);
    usleep(50000);
    CHECK(released == 2 && ioctl(fd, VT_RELDISP, 1) == 0 && ioctl(tty0, VT_WAITACTIVE, home) == 0 && active() == home);
    switch_to(10);
    usleep(20000);
    CHECK(acquired == 2);
    mode = (struct vt_mode){.mode = VT_AUTO};
    CHECK(ioctl(fd, KDSETMODE, KD_TEXT) == 0 && ioctl(fd, VT_SETMODE, &mode) == 0);
    switch_to(home);
    close(fd);
}

/* An owner that died does not keep the display. */
static void dead_owner(void)
{
    int home = active(), fd = open_vt(11), mode;
    switch_to(11);
    pid_t child = fork();
    if (!child) {
        struct vt_mode process = {.mode = VT_PROCESS, .relsig = SIGUSR1, .acqsig = SIGUSR2};
        _exit(ioctl(fd, VT_SETMODE, &process) || ioctl(fd, KDSETMODE, KD_GRAPHICS) || ioctl(fd, KDSKBMODE, K_OFF));
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    CHECK(ioctl(fd, KDGETMODE, &mode) == 0 && mode == KD_GRAPHICS);
    switch_to(home);
    CHECK(ioctl(fd, KDGETMODE, &mode) == 0 && mode == KD_TEXT && ioctl(fd, KDGKBMODE, &mode) == 0 && mode == K_UNICODE);
    close(fd);
}

static void who_may(void)
{
    int fd = open_vt(12), mode, status;
    pid_t child = fork();
    if (!child) {
        if (setgid(1000) || setuid(1000))
            _exit(100);
        struct vt_mode process = {.mode = VT_PROCESS};
        FAILS(EPERM, ioctl(fd, VT_ACTIVATE, 12));
        FAILS(EPERM, ioctl(fd, VT_SETMODE, &process));
        FAILS(EPERM, ioctl(fd, VT_RELDISP, 1));
        FAILS(EPERM, ioctl(fd, VT_LOCKSWITCH, 0));
        FAILS(EPERM, ioctl(fd, KDSETMODE, KD_GRAPHICS));
        FAILS(EPERM, ioctl(fd, KDSKBMODE, K_OFF));
        FAILS(EPERM, ioctl(fd, KDSKBLED, 0));
        CHECK(ioctl(fd, KDGETMODE, &mode) == 0);
        _exit(check_failures);
    }
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    /* a terminal of one's own is enough */
    child = fork();
    if (!child) {
        setsid();
        int own = open("/dev/tty12", O_RDWR);
        if (own < 0 || setgid(1000) || setuid(1000))
            _exit(100);
        CHECK(ioctl(own, KDSKBMODE, K_OFF) == 0 && ioctl(own, KDSKBMODE, K_UNICODE) == 0);
        _exit(check_failures);
    }
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    close(fd);
}

/* Modes that a program leaves behind end with the last open file; output goes out at once. */
static void fresh_modes(void)
{
    int fd = open_vt(13);
    struct termios t;
    CHECK(tcgetattr(fd, &t) == 0);
    t.c_lflag &= ~ECHO;
    CHECK(tcsetattr(fd, TCSADRAIN, &t) == 0);
    char text[3000];
    memset(text, 'x', sizeof text);
    for (int i = 0; i < 100; i++)
        CHECK(write(fd, text, sizeof text) == sizeof text);
    CHECK(tcdrain(fd) == 0);
    close(fd);
    fd = open_vt(13);
    CHECK(tcgetattr(fd, &t) == 0 && (t.c_lflag & ECHO));
    close(fd);
}

int main(void)
{
    setvbuf(stdout, 0, _IONBF, 0);
    tty0 = open("/dev/tty0", O_RDWR | O_CLOEXEC);
    CHECK(tty0 >= 0);
    int home = active();
    nodes();
    allocation();
    by_hand();
    by_handshake();
    dead_owner();
    who_may();
    fresh_modes();
    CHECK(active() == home);
    return check_done();
}
