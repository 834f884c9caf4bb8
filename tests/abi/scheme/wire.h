/* The wire of device servers as a C program sees it: FUSE's structures, Ursa's ioctls, and helpers to serve by hand. */
#ifndef WIRE_H
#define WIRE_H
#include "../check.h"
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct in_header { uint32_t len, opcode; uint64_t unique, nodeid; uint32_t uid, gid, pid; uint16_t extlen, pad; };
struct out_header { uint32_t len; int32_t error; uint64_t unique; };
struct open_in { uint32_t flags, open_flags; };
struct open_out { uint64_t fh; uint32_t open_flags, ready; };
struct read_in { uint64_t fh, offset; uint32_t size, read_flags; uint64_t lock_owner; uint32_t flags, pad; };
struct write_in { uint64_t fh, offset; uint32_t size, write_flags; uint64_t lock_owner; uint32_t flags, pad; };
struct write_out { uint32_t size, pad; };
struct release_in { uint64_t fh; uint32_t flags, release_flags; uint64_t lock_owner; };
struct ioctl_in { uint64_t fh; uint32_t flags, cmd; uint64_t arg; uint32_t in_size, out_size; };
struct ioctl_iovec { uint64_t base, len; };
struct ioctl_out { int32_t result; uint32_t flags, in_iovs, out_iovs; };
struct cuse_init_in { uint32_t major, minor, unused, flags; };
struct cuse_init_out { uint32_t major, minor, unused, flags, max_read, max_write, dev_major, dev_minor, spare[10]; };
enum { OPEN = 14, READ = 15, WRITE = 16, RELEASE = 18, FSYNC = 20, FLUSH = 25, INTERRUPT = 36, IOCTL = 39, POLL = 40,
       CUSE_INIT = 4096, MMAP = 6000, FAULT = 6001 };
#define FOPEN_NOFLUSH (1u << 5)
#define FOPEN_READY (1u << 31)
#define IOCTL_RETRY 4u

struct create { char name[32]; uint32_t ext_mask, flags; uint64_t ranges; uint32_t nranges, pad; };
struct range { uint32_t major, first, count, pad; };
struct reply_wait { uint64_t reply, reply_len, recv, recv_len; uint32_t flags, pad; };
struct publish { uint64_t desc, len; };
struct ready { uint64_t fh; uint32_t mask, pad; };
struct copy { uint64_t unique, addr, buf, len; uint32_t dir, pad; };
struct install_fd { uint64_t unique; int32_t fd; uint32_t flags; };
struct install_file { uint64_t unique, cookie, fh; uint32_t open_flags, ready, o_flags, pad; };
struct grab_fd { uint64_t unique; int32_t fd; uint32_t pad; uint64_t fh; };
struct revoke { uint64_t fh, offset, len; };
struct keep { uint64_t key; int32_t fd; uint32_t pad; };
struct keep_list { uint64_t keys, count; };
struct mmap_in { uint64_t fh, offset, len; uint32_t prot, flags; };
struct mmap_out { int32_t fd; uint32_t cache; uint64_t offset; uint32_t flags, pad; };
#define IOC_CREATE _IOW(0xf5, 0, struct create)
#define IOC_REPLY_WAIT _IOW(0xf5, 1, struct reply_wait)
#define IOC_PUBLISH _IOW(0xf5, 2, struct publish)
#define IOC_UNPUBLISH _IOW(0xf5, 3, uint64_t)
#define IOC_READY _IOW(0xf5, 6, struct ready)
#define IOC_COPY _IOW(0xf5, 7, struct copy)
#define IOC_INSTALL_FD _IOW(0xf5, 8, struct install_fd)
#define IOC_INSTALL_FILE _IOW(0xf5, 9, struct install_file)
#define IOC_GRAB_FD _IOWR(0xf5, 0xa, struct grab_fd)
#define IOC_REVOKE _IOW(0xf5, 0xb, struct revoke)
#define IOC_KEEP _IOW(0xf5, 0xc, struct keep)
#define IOC_KEEP_GET _IOW(0xf5, 0xd, struct keep)
#define IOC_KEEP_LIST _IOW(0xf5, 0xe, struct keep_list)
#define IOC_KEEP_DROP _IOW(0xf5, 0xf, struct keep)
#define IOC_RESUME _IO(0xf5, 0x10)
enum { EXT_COPY = 1, EXT_FILES = 2, EXT_MMAP = 4, EXT_REVOKE = 8, EXT_READY = 16, EXT_KEEP = 32, EXT_ALL = 63 };
#define MAJOR_NR 240

/* One request as it came. */
struct request { struct in_header h; char body[200000]; };
static struct request request;

static int create(const char *name, uint32_t ext, uint32_t flags)
{
    static struct range range = {MAJOR_NR, 0, 16, 0};
    struct create c = {.ext_mask = ext, .flags = flags, .ranges = (uintptr_t)&range, .nranges = 1};
    strncpy(c.name, name, sizeof c.name - 1);
    int dev = open("/dev/scheme", O_RDWR | O_CLOEXEC);
    if (dev < 0)
        return -1;
    int fd = ioctl(dev, IOC_CREATE, &c);
    int error = errno;
    close(dev);
    errno = error;
    return fd;
}

/* Takes a request; its length, or -1. */
static ssize_t take(int fd) { return read(fd, &request, sizeof request); }

static ssize_t answer(int fd, uint64_t unique, int error, const void *data, size_t len)
{
    struct out_header out = {.len = sizeof out + len, .error = error, .unique = unique};
    struct iovec iov[2] = {{&out, sizeof out}, {(void *)data, len}};
    return writev(fd, iov, 2);
}

static void handshake(int fd)
{
    CHECK(take(fd) == sizeof request.h + sizeof(struct cuse_init_in));
    CHECK(request.h.opcode == CUSE_INIT && request.h.len == 56);
    struct cuse_init_out out = {.major = 7, .minor = 41, .max_read = 65536, .max_write = 65536};
    CHECK(answer(fd, request.h.unique, 0, &out, sizeof out) > 0);
}

static int publish(int fd, int cookie, const char *name, int minor)
{
    char text[512];
    int len = sprintf(text, "cookie=%d%cparent=virtual%cname=%s%cclass=misc%cnode=c:%d:%d:0666:0:0:%s", cookie, 0, 0, name, 0, 0,
                      MAJOR_NR, minor, name) + 1;
    struct publish p = {(uintptr_t)text, len};
    return ioctl(fd, IOC_PUBLISH, &p);
}

/* A connection called `name` that serves /dev/NAME with cookie 1. */
static int serve(const char *name, uint32_t ext, uint32_t flags)
{
    int fd = create(name, ext, flags);
    if (fd < 0)
        return fd;
    handshake(fd);
    CHECK(publish(fd, 1, name, 0) == 0);
    return fd;
}

static int answer_open(int fd, uint64_t fh, uint32_t flags, uint32_t ready)
{
    struct open_out out = {fh, flags, ready};
    return answer(fd, request.h.unique, 0, &out, sizeof out) == 32 ? 0 : -1;
}

/* Takes requests until one with this opcode; opens and releases are answered on the way. */
static int until(int fd, uint32_t opcode)
{
    for (;;) {
        if (take(fd) < 0)
            return -1;
        if (request.h.opcode == opcode)
            return 0;
        if (request.h.opcode == OPEN)
            answer_open(fd, 7, FOPEN_NOFLUSH, 0);
        else if (request.h.opcode == RELEASE)
            answer(fd, request.h.unique, 0, 0, 0);
        else
            answer(fd, request.h.unique, -ENOSYS, 0, 0);
    }
}

static int answer_ioctl(int fd, int result, const void *data, size_t len)
{
    char buf[70000];
    struct ioctl_out out = {.result = result};
    memcpy(buf, &out, sizeof out);
    memcpy(buf + sizeof out, data, len);
    return answer(fd, request.h.unique, 0, buf, sizeof out + len) < 0 ? -1 : 0;
}

/* Runs `client` in a child; its exit status is the number of failed checks in it. */
static pid_t spawn(void (*client)(void), int close_fd)
{
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        close(close_fd);
        alarm(60);
        check_failures = 0;
        client();
        fflush(stdout);
        _exit(check_failures ? 1 : 0);
    }
    return pid;
}

static int outcome(pid_t pid)
{
    int status;
    return waitpid(pid, &status, 0) == pid ? status : -1;
}

static void nap(int ms) { nanosleep(&(struct timespec){ms / 1000, ms % 1000 * 1000000L}, 0); }
#endif
