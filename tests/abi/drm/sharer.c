/*
 * Buffers that are shared through a card whose driver is killed: the client keeps its mapping, another process has the descriptor
 * under another number, and both see the bytes that were there; to the next driver the same dma-buf is the same GEM handle.
 *
 * Usage: sharer DRIVER, the name of the process that is killed. Ursa only.
 */
#define _GNU_SOURCE
#include "../check.h"
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

/* include/uapi/drm/drm.h, drm_mode.h */
struct create_dumb { uint32_t height, width, bpp, flags, handle, pitch; uint64_t size; };
struct prime { uint32_t handle, flags; int32_t fd; };
#define CREATE_DUMB _IOWR('d', 0xb2, struct create_dumb)
#define HANDLE_TO_FD _IOWR('d', 0x2d, struct prime)
#define FD_TO_HANDLE _IOWR('d', 0x2e, struct prime)
enum { WIDTH = 64, HEIGHT = 64, LEN = WIDTH * HEIGHT * 4, ROUNDS = 3 };

/* The process with this name. */
static pid_t process(const char *name)
{
    DIR *d = opendir("/proc");
    pid_t found = 0;
    for (struct dirent *e; d && !found && (e = readdir(d));) {
        char path[300], text[64] = "";
        snprintf(path, sizeof path, "/proc/%s/comm", e->d_name);
        int fd = open(path, O_RDONLY);
        if (fd < 0)
            continue;
        if (read(fd, text, sizeof text - 1) > 0 && !strncmp(text, name, strlen(name)) && text[strlen(name)] == '\n')
            found = atoi(e->d_name);
        close(fd);
    }
    if (d)
        closedir(d);
    return found;
}

static int all(const uint8_t *p, uint8_t byte)
{
    for (size_t i = 0; i < LEN; i++)
        if (p[i] != byte)
            return 0;
    return 1;
}

static uint32_t handle_of(int card, int fd)
{
    struct prime p = { 0, 0, fd };
    return ioctl(card, FD_TO_HANDLE, &p) ? 0 : p.handle;
}

/* A process that has the buffer under another descriptor and looks at it when it is asked: a byte that it should be full of. */
static pid_t other(int fd, int ask, int tell)
{
    pid_t pid = fork();
    if (pid)
        return pid;
    uint8_t *p = mmap(NULL, LEN, PROT_READ, MAP_SHARED, fcntl(fd, F_DUPFD, 200), 0), byte;
    close(fd);
    while (read(ask, &byte, 1) == 1 && byte) {
        char same = p != MAP_FAILED && all(p, byte);
        if (write(tell, &same, 1) != 1)
            break;
    }
    _exit(0);
}

static int other_sees(int ask, int tell, uint8_t byte)
{
    char same = 0;
    return write(ask, &byte, 1) == 1 && read(tell, &same, 1) == 1 && same;
}

int main(int argc, char **argv)
{
    const char *driver = argc > 1 ? argv[1] : "drm-virtio-gpu";
    int card = open("/dev/dri/card0", O_RDWR | O_CLOEXEC), ask[2], tell[2];
    CHECK(card >= 0 && pipe(ask) == 0 && pipe(tell) == 0);
    struct create_dumb c = { HEIGHT, WIDTH, 32, 0, 0, 0, 0 };
    CHECK(ioctl(card, CREATE_DUMB, &c) == 0 && c.size >= LEN);
    struct prime out = { c.handle, O_RDWR | O_CLOEXEC, -1 };
    CHECK(ioctl(card, HANDLE_TO_FD, &out) == 0);
    CHECK(handle_of(card, out.fd) == c.handle);
    uint8_t *p = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_SHARED, out.fd, 0);
    CHECK(p != MAP_FAILED);

    memset(p, 0x40, LEN);
    pid_t third = other(out.fd, ask[0], tell[1]);
    for (int round = 1; round <= ROUNDS; round++) {
        memset(p, 0x40 + round, LEN);
        pid_t old = process(driver);
        CHECK(old > 0 && kill(old, SIGKILL) == 0);
        /* Waits for the next one. */
        CHECK(handle_of(card, out.fd) == c.handle);
        CHECK(all(p, 0x40 + round));
        CHECK(other_sees(ask[1], tell[0], 0x40 + round));
        struct prime again = { c.handle, O_RDWR | O_CLOEXEC, -1 };
        CHECK(ioctl(card, HANDLE_TO_FD, &again) == 0);
        uint8_t *r = mmap(NULL, LEN, PROT_READ, MAP_SHARED, again.fd, 0);
        CHECK(r != MAP_FAILED && all(r, 0x40 + round));
        munmap(r, LEN);
        close(again.fd);
        pid_t next = process(driver);
        CHECK(next > 0 && next != old);
    }
    CHECK(write(ask[1], "", 1) == 1);
    CHECK(waitpid(third, NULL, 0) == third);
    return check_done();
}
