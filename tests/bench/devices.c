/*
 * Measures of devices that processes serve: the round trip of an ioctl beside a bare hand-off between two processes, a key
 * from the program that injects it to the one that reads it. On Linux the server speaks CUSE, and input is in the kernel.
 *
 * Build: cc -O2 -static -pthread. Under `-icount shift=0,sleep=off` the figures are instructions, as those of micro.c.
 */
#include "bench.h"
#include <fcntl.h>
#include <linux/fuse.h>
#include <linux/futex.h>
#include <linux/input.h>
#include <linux/uinput.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

/* Of /dev/scheme; see libs/fuse-abi/src/scheme.rs. */
struct scheme_create { char name[32]; uint32_t ext_mask, flags; uint64_t ranges; uint32_t nranges, pad; };
struct scheme_range { uint32_t major, first, count, pad; };
struct scheme_reply_wait { uint64_t reply, reply_len, recv, recv_len; uint32_t flags, pad; };
struct scheme_publish { uint64_t desc, len; };
#define SCHEME_IOC_CREATE _IOW(0xf5, 0, struct scheme_create)
#define SCHEME_IOC_REPLY_WAIT _IOW(0xf5, 1, struct scheme_reply_wait)
#define SCHEME_IOC_PUBLISH _IOW(0xf5, 2, struct scheme_publish)

#define NAME "ursa-bench"
#define COMMAND _IOWR('U', 1, char[16])

static char buffer[200000];
static struct { struct fuse_out_header header; char body[128]; } reply;

static void prepare(uint64_t unique, const void *body, size_t len)
{
    reply.header = (struct fuse_out_header){.len = sizeof reply.header + len, .unique = unique};
    memcpy(reply.body, body, len);
}

static size_t answer(void)
{
    const struct fuse_in_header *in = (void *)buffer;
    const void *body = in + 1;
    switch (in->opcode) {
    case FUSE_OPEN: {
        struct fuse_open_out out = {.fh = 1};
        prepare(in->unique, &out, sizeof out);
        break;
    }
    case FUSE_IOCTL: {
        const struct fuse_ioctl_in *call = body;
        struct { struct fuse_ioctl_out out; char data[16]; } out = {{0}};
        memcpy(out.data, call + 1, call->in_size < 16 ? call->in_size : 16);
        out.data[0]++;
        prepare(in->unique, &out, sizeof out);
        break;
    }
    default:
        prepare(in->unique, NULL, 0);
    }
    return reply.header.len;
}

/* CUSE's handshake; the text names the device on Linux alone. */
static void handshake(int fd)
{
    struct { struct cuse_init_out out; char info[32]; } init = {
        {.major = FUSE_KERNEL_VERSION, .minor = 41, .max_read = 65536, .max_write = 65536}, "DEVNAME=" NAME};
    CHECK(read(fd, buffer, sizeof buffer) > 0);
    const struct fuse_in_header *in = (void *)buffer;
    CHECK(in->opcode == CUSE_INIT);
    int on_ursa = access("/dev/scheme", F_OK) == 0;
    prepare(in->unique, &init, on_ursa ? sizeof init.out : sizeof init.out + strlen(init.info) + 1);
    CHECK(write(fd, &reply, reply.header.len) == reply.header.len);
}

static void serve_scheme(void)
{
    static struct scheme_range range = {.major = 240, .count = 16};
    struct scheme_create create = {.name = NAME, .ranges = (uintptr_t)&range, .nranges = 1};
    int dev = open("/dev/scheme", O_RDWR);
    CHECK(dev >= 0);
    int fd = ioctl(dev, SCHEME_IOC_CREATE, &create);
    CHECK(fd >= 0);
    handshake(fd);
    static const char text[] = "cookie=1\0parent=virtual\0name=" NAME "\0class=misc\0node=c:240:0:0600:0:0:" NAME;
    struct scheme_publish publish = {(uintptr_t)text, sizeof text};
    CHECK(ioctl(fd, SCHEME_IOC_PUBLISH, &publish) == 0);
    struct scheme_reply_wait wait = {.reply = (uintptr_t)&reply, .recv = (uintptr_t)buffer, .recv_len = sizeof buffer};
    while (ioctl(fd, SCHEME_IOC_REPLY_WAIT, &wait) > 0)
        wait.reply_len = answer();
}

static void serve_cuse(void)
{
    int fd = open("/dev/cuse", O_RDWR);
    CHECK(fd >= 0);
    handshake(fd);
    while (read(fd, buffer, sizeof buffer) > 0) {
        size_t len = answer();
        CHECK(write(fd, &reply, len) == (ssize_t)len);
    }
}

static pid_t server(void)
{
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        if (access("/dev/scheme", F_OK) == 0)
            serve_scheme();
        else
            serve_cuse();
        _exit(0);
    }
    return child;
}

static int opened(const char *path, int flags)
{
    for (int i = 0; i < 1000; i++) {
        int fd = open(path, flags);
        if (fd >= 0)
            return fd;
        usleep(10000);
    }
    fprintf(stderr, "%s: %s\n", path, strerror(errno));
    exit(1);
}

static void device_ioctl(void)
{
    pid_t child = server();
    int fd = opened("/dev/" NAME, O_RDWR);
    char data[16] = {0};
    CHECK(ioctl(fd, COMMAND, data) == 0 && data[0] == 1);
    report("device-ioctl", MEASURE(2000, CHECK(ioctl(fd, COMMAND, data) == 0)));
    double before = switches();
    for (int i = 0; i < 2000; i++)
        CHECK(ioctl(fd, COMMAND, data) == 0);
    report("device-ioctl-switches", (switches() - before) / 2000);
    close(fd);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
}

static long futex(uint32_t *word, int op, uint32_t value) { return syscall(SYS_futex, word, op, value, NULL, NULL, 0); }

static void await_turn(uint32_t *turn, uint32_t mine)
{
    uint32_t seen;
    while ((seen = __atomic_load_n(turn, __ATOMIC_ACQUIRE)) != mine)
        futex(turn, FUTEX_WAIT, seen);
}

static void pass_turn(uint32_t *turn, uint32_t next)
{
    __atomic_store_n(turn, next, __ATOMIC_RELEASE);
    futex(turn, FUTEX_WAKE, 1);
}

/* There and back: what a round trip costs that does nothing. */
static void bare_hand_off(void)
{
    uint32_t *turn = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(turn != MAP_FAILED);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        for (;;) {
            await_turn(turn, 1);
            pass_turn(turn, 0);
        }
    }
    report("process-hand-off-2", MEASURE(2000, { pass_turn(turn, 1); await_turn(turn, 0); }));
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
}

static void key_to_read(void)
{
    int ui = opened("/dev/uinput", O_RDWR | O_NONBLOCK);
    struct uinput_setup setup = {.id = {.bustype = BUS_USB, .vendor = 1, .product = 1}, .name = "ursa bench"};
    CHECK(ioctl(ui, UI_SET_EVBIT, EV_KEY) == 0 && ioctl(ui, UI_SET_KEYBIT, KEY_A) == 0);
    CHECK(ioctl(ui, UI_DEV_SETUP, &setup) == 0 && ioctl(ui, UI_DEV_CREATE) == 0);
    char name[64] = "", path[128];
    CHECK(ioctl(ui, UI_GET_SYSNAME(sizeof name), name) > 0);
    int ev = -1;
    for (int i = 0; i < 1000 && ev < 0; i++, usleep(10000))
        for (int k = 0; k < 32 && ev < 0; k++) {
            snprintf(path, sizeof path, "/sys/class/input/event%d/device/name", k);
            char text[64] = "";
            int fd = open(path, O_RDONLY);
            if (fd >= 0 && read(fd, text, sizeof text - 1) > 0 && strncmp(text, "ursa bench", 10) == 0) {
                snprintf(path, sizeof path, "/dev/input/event%d", k);
                ev = open(path, O_RDONLY);
            }
            close(fd);
        }
    CHECK(ev >= 0);
    int value = 0;
    struct input_event in[4];
    struct input_event out[2] = {{.type = EV_KEY, .code = KEY_A}, {.type = EV_SYN, .code = SYN_REPORT}};
    report("key-to-read", MEASURE(1000, {
        out[0].value = value ^= 1;
        CHECK(write(ui, out, sizeof out) == sizeof out);
        CHECK(read(ev, in, sizeof in) == 2 * sizeof in[0] && in[0].code == KEY_A && in[0].value == value);
    }));
    close(ev);
    close(ui);
}

int main(void)
{
    bare_hand_off();
    device_ioctl();
    key_to_read();
    return 0;
}
