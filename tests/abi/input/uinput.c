/* uinput and evdev from both sides: a device is made, its events are read, its LEDs set, and it goes. */
#include "../check.h"
#include <dirent.h>
#include <fcntl.h>
#include <linux/input.h>
#include <linux/uinput.h>
#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

static int make(const char *name)
{
    static const int keys[] = { KEY_A, KEY_B, BTN_LEFT, BTN_TOUCH };
    struct uinput_setup setup = { .id = { BUS_USB, 0x1234, 0x5678, 9 } };
    struct uinput_abs_setup slot = { .code = ABS_MT_SLOT, .absinfo = { .maximum = 3 } };
    struct uinput_abs_setup x = { .code = ABS_MT_POSITION_X, .absinfo = { .maximum = 1000, .resolution = 7 } };
    struct uinput_abs_setup bad = { .code = ABS_X, .absinfo = { .minimum = 5, .maximum = 4 } };
    struct uinput_abs_setup id = { .code = ABS_MT_TRACKING_ID, .absinfo = { .maximum = 9 } };
    char phys[] = "here/input0";
    int fd = open("/dev/uinput", O_RDWR | O_NONBLOCK);
    CHECK(fd >= 0);
    FAILS(EINVAL, ioctl(fd, UI_DEV_CREATE));
    CHECK(ioctl(fd, UI_SET_EVBIT, EV_KEY) == 0 && ioctl(fd, UI_SET_EVBIT, EV_REL) == 0);
    CHECK(ioctl(fd, UI_SET_EVBIT, EV_LED) == 0 && ioctl(fd, UI_SET_EVBIT, EV_REP) == 0);
    CHECK(ioctl(fd, UI_SET_EVBIT, EV_ABS) == 0);
    FAILS(EINVAL, ioctl(fd, UI_SET_EVBIT, EV_MAX + 1));
    for (unsigned i = 0; i < sizeof keys / sizeof *keys; i++)
        CHECK(ioctl(fd, UI_SET_KEYBIT, keys[i]) == 0);
    CHECK(ioctl(fd, UI_SET_RELBIT, REL_X) == 0 && ioctl(fd, UI_SET_LEDBIT, LED_CAPSL) == 0);
    CHECK(ioctl(fd, UI_SET_PROPBIT, INPUT_PROP_DIRECT) == 0);
    CHECK(ioctl(fd, UI_SET_PHYS, phys) == 0);
    CHECK(ioctl(fd, UI_ABS_SETUP, &slot) == 0 && ioctl(fd, UI_ABS_SETUP, &x) == 0 && ioctl(fd, UI_ABS_SETUP, &id) == 0);
    FAILS(EINVAL, ioctl(fd, UI_ABS_SETUP, &bad));
    FAILS(EINVAL, ioctl(fd, UI_DEV_SETUP, &setup));
    strcpy(setup.name, name);
    FAILS(EFAULT, ioctl(fd, UI_DEV_SETUP, (void *)1));
    CHECK(ioctl(fd, UI_DEV_SETUP, &setup) == 0);
    CHECK(ioctl(fd, UI_DEV_CREATE) == 0);
    FAILS(EINVAL, ioctl(fd, UI_SET_KEYBIT, KEY_C));
    return fd;
}

/* The event node of a uinput device, by sysfs. */
static int event_of(int uinput, char *node)
{
    char sysname[64], path[128];
    CHECK(ioctl(uinput, UI_GET_SYSNAME(sizeof sysname), sysname) == (int)strlen(sysname) + 1);
    snprintf(path, sizeof path, "/sys/devices/virtual/input/%s", sysname);
    DIR *dir = opendir(path);
    CHECK(dir != NULL);
    node[0] = 0;
    for (struct dirent *e; dir && (e = readdir(dir));)
        if (!strncmp(e->d_name, "event", 5))
            snprintf(node, 64, "/dev/input/%s", e->d_name);
    if (dir)
        closedir(dir);
    return open(node, O_RDWR | O_NONBLOCK);
}

static void put(int fd, int type, int code, int value)
{
    struct input_event e = { .type = type, .code = code, .value = value };
    CHECK(write(fd, &e, sizeof e) == sizeof e);
}

static int get(int fd, struct input_event *e, int max)
{
    ssize_t got = read(fd, e, max * sizeof *e);
    return got < 0 ? -1 : (int)(got / sizeof *e);
}

static short ready(int fd)
{
    struct pollfd p = { fd, POLLIN | POLLOUT, 0 };
    CHECK(poll(&p, 1, 0) >= 0);
    return p.revents;
}

static void *late(void *arg)
{
    usleep(100000);
    put(*(int *)arg, EV_KEY, KEY_B, 1);
    put(*(int *)arg, EV_SYN, SYN_REPORT, 0);
    return NULL;
}

int main(void)
{
    struct input_event e[256];
    unsigned char bits[96];
    char node[64], text[256];
    struct input_absinfo abs;
    struct stat st;
    int fd = make("ABI test"), ev = event_of(fd, node), version, n, clock = CLOCK_MONOTONIC;
    CHECK(ev >= 0);
    CHECK(fstat(ev, &st) == 0 && S_ISCHR(st.st_mode) && major(st.st_rdev) == 13);

    /* What it is. */
    CHECK(ioctl(ev, EVIOCGVERSION, &version) == 0 && version == EV_VERSION);
    CHECK(ioctl(ev, EVIOCGNAME(sizeof text), text) == 9 && !strcmp(text, "ABI test"));
    CHECK(ioctl(ev, EVIOCGNAME(3), text) == 3);
    CHECK(ioctl(ev, EVIOCGPHYS(sizeof text), text) == 12 && !strcmp(text, "here/input0"));
    FAILS(ENOENT, ioctl(ev, EVIOCGUNIQ(sizeof text), text));
    CHECK(ioctl(ev, EVIOCGBIT(EV_KEY, sizeof bits), bits) == 96 && bits[KEY_A / 8] >> KEY_A % 8 & 1);
    CHECK(ioctl(ev, EVIOCGBIT(0, 4), bits) == 4);
    CHECK(ioctl(ev, EVIOCGPROP(8), bits) == 8 && bits[0] == 1 << INPUT_PROP_DIRECT);
    CHECK(ioctl(ev, EVIOCGABS(ABS_MT_POSITION_X), &abs) == 0 && abs.maximum == 1000 && abs.resolution == 7);
    CHECK(ioctl(ev, EVIOCGABS(ABS_MT_TRACKING_ID), &abs) == 0 && abs.maximum == 65535);
    FAILS(EINVAL, ioctl(ev, EVIOCGBIT(EV_REP, 8), bits));
    FAILS(EINVAL, ioctl(ev, _IO('E', 0x77), 0));
    FAILS(EFAULT, ioctl(ev, EVIOCGID, (void *)8));

    /* Packets. */
    FAILS(EAGAIN, get(ev, e, 8));
    CHECK(ready(ev) == POLLOUT);
    put(fd, EV_KEY, KEY_A, 1);
    FAILS(EAGAIN, get(ev, e, 8));
    put(fd, EV_SYN, SYN_REPORT, 0);
    CHECK(ready(ev) == (POLLIN | POLLOUT));
    FAILS(EINVAL, read(ev, e, 5));
    CHECK(get(ev, e, 8) == 2 && e[0].type == EV_KEY && e[0].code == KEY_A && e[0].value == 1 && e[1].type == EV_SYN);
    CHECK(llabs((long long)e[0].input_event_sec - time(NULL)) < 100);
    put(fd, EV_KEY, KEY_A, 1);
    put(fd, EV_SYN, SYN_REPORT, 0);
    CHECK(ready(ev) == POLLOUT);
    CHECK(ioctl(ev, EVIOCGKEY(sizeof bits), bits) == 96 && bits[KEY_A / 8] >> KEY_A % 8 & 1);

    /* Another clock. */
    CHECK(ioctl(ev, EVIOCSCLOCKID, &clock) == 0);
    put(fd, EV_KEY, KEY_A, 0);
    put(fd, EV_REL, REL_X, 0);
    put(fd, EV_REL, REL_X, -4);
    put(fd, EV_SYN, SYN_REPORT, 0);
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    CHECK(get(ev, e, 8) == 3 && e[1].code == REL_X && e[1].value == -4 && llabs(now.tv_sec - (long long)e[0].input_event_sec) < 5);

    /* A reader that sleeps. */
    pthread_t thread;
    CHECK(fcntl(ev, F_SETFL, 0) == 0 && pthread_create(&thread, NULL, late, &fd) == 0);
    CHECK(get(ev, e, 8) == 2 && e[0].code == KEY_B);
    pthread_join(thread, NULL);
    CHECK(fcntl(ev, F_SETFL, O_NONBLOCK) == 0);

    /* The held key repeats. */
    usleep(400000);
    n = get(ev, e, 256);
    CHECK(n >= 2 && e[0].code == KEY_B && e[0].value == 2 && e[1].value == 1);
    put(fd, EV_KEY, KEY_B, 0);
    put(fd, EV_SYN, SYN_REPORT, 0);
    CHECK(get(ev, e, 256) >= 2);

    /* Contacts. */
    put(fd, EV_ABS, ABS_MT_SLOT, 2);
    put(fd, EV_ABS, ABS_MT_TRACKING_ID, 44);
    put(fd, EV_SYN, SYN_REPORT, 0);
    struct { unsigned code; int values[4]; } slots = { .code = ABS_MT_TRACKING_ID };
    CHECK(ioctl(ev, EVIOCGMTSLOTS(sizeof slots), &slots) == 0 && slots.values[1] == -1 && slots.values[2] == 44);
    CHECK(get(ev, e, 256) == 3 && e[0].code == ABS_MT_SLOT && e[0].value == 2);

    /* A second reader, a grab, a mask. */
    int other = open(node, O_RDONLY | O_NONBLOCK);
    CHECK(other >= 0 && ioctl(ev, EVIOCGRAB, 1) == 0);
    FAILS(EBUSY, ioctl(other, EVIOCGRAB, 1));
    put(fd, EV_REL, REL_X, 1);
    put(fd, EV_SYN, SYN_REPORT, 0);
    CHECK(ready(ev) & POLLIN && !(ready(other) & POLLIN) && get(ev, e, 256) == 2);
    CHECK(ioctl(ev, EVIOCGRAB, 0) == 0);
    unsigned char none[8] = { 0 };
    struct input_mask mask = { EV_REL, sizeof none, (unsigned long)none };
    CHECK(ioctl(other, EVIOCSMASK, &mask) == 0);
    put(fd, EV_REL, REL_X, 1);
    put(fd, EV_SYN, SYN_REPORT, 0);
    CHECK(!(ready(other) & POLLIN) && get(ev, e, 256) == 2);

    /* LEDs go to the driver and to the others. */
    put(ev, EV_LED, LED_CAPSL, 1);
    put(ev, EV_SYN, SYN_REPORT, 0);
    CHECK(ready(fd) & POLLIN && get(fd, e, 8) == 1 && e[0].type == EV_LED && e[0].code == LED_CAPSL && e[0].value == 1);
    CHECK(get(other, e, 8) == 2 && e[0].type == EV_LED);
    FAILS(EAGAIN, get(fd, e, 8));
    CHECK(get(ev, e, 8) == 2);

    /* 400 events in a row, in order, read in time; then a queue that overflows. */
    for (int i = 0, got = 0; i < 200; i++) {
        put(fd, EV_KEY, BTN_LEFT, i + 1 & 1);
        put(fd, EV_SYN, SYN_REPORT, 0);
        if (i % 10 == 9)
            for (n = get(ev, e, 256), got = 0; got < n; got += 2)
                CHECK(e[got].code == BTN_LEFT && e[got].value == (got / 2 + 1 & 1) && e[got + 1].type == EV_SYN);
    }
    for (int i = 0; i < 2000; i++) {
        put(fd, EV_REL, REL_X, 1);
        put(fd, EV_SYN, SYN_REPORT, 0);
    }
    CHECK(get(ev, e, 256) >= 2 && e[0].type == EV_SYN && e[0].code == SYN_DROPPED);
    while (get(ev, e, 256) > 0)
        ;

    /* One reader loses the device, then everybody. */
    int epoll = epoll_create1(0);
    struct epoll_event wanted = { EPOLLIN, { .fd = other } }, happened;
    CHECK(epoll_ctl(epoll, EPOLL_CTL_ADD, other, &wanted) == 0);
    CHECK(ioctl(ev, EVIOCREVOKE, 0) == 0);
    FAILS(ENODEV, get(ev, e, 8));
    FAILS(ENODEV, ioctl(ev, EVIOCGID, bits));
    CHECK(ready(ev) & POLLHUP);
    FAILS(ENODEV, write(ev, e, sizeof *e));
    while (get(other, e, 256) > 0)
        ;
    CHECK(epoll_wait(epoll, &happened, 1, 0) == 0);
    CHECK(ioctl(fd, UI_DEV_DESTROY) == 0);
    CHECK(epoll_wait(epoll, &happened, 1, 1000) == 1 && happened.events & EPOLLHUP);
    FAILS(ENODEV, get(other, e, 8));
    FAILS(ENOENT, open(node, O_RDONLY));
    close(fd), close(ev), close(other);

    /* A device goes with its driver's last descriptor: on Ursa soon after, since nobody waits for a server's release. */
    fd = make("second"), ev = event_of(fd, node);
    CHECK(ev >= 0 && close(fd) == 0);
    for (int i = 0; i < 100 && access(node, F_OK) == 0; i++)
        usleep(10000);
    FAILS(ENODEV, get(ev, e, 8));
    FAILS(ENOENT, access(node, F_OK));
    return check_done();
}
