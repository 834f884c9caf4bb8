/* Device servers: every operation of a client, the extensions, and what a server may not do. Ursa only. */
#include "wire.h"
#include <pthread.h>

#define CMD_ADD _IOWR('U', 1, uint32_t)
#define CMD_COPY _IOW('U', 2, struct area)
#define CMD_NONE _IO('U', 3)
#define CMD_FD _IOR('U', 4, int)
#define CMD_GRAB _IOW('U', 5, int)
#define CMD_BIG _IOWR('U', 6, char[16000])
struct area { uint64_t from, to, len; };

static int opened(const char *name, int flags)
{
    char path[64];
    sprintf(path, "/dev/%s", name);
    return open(path, flags);
}

/* Reading, writing, ioctls with inline data. */
static void client_basic(void)
{
    int fd = opened("t0", O_RDWR);
    CHECK(fd >= 0);
    struct stat st;
    CHECK(fstat(fd, &st) == 0 && S_ISCHR(st.st_mode) && st.st_rdev == makedev(MAJOR_NR, 0));
    CHECK(stat("/scheme/t0/t0", &st) == 0 && S_ISCHR(st.st_mode) && st.st_rdev == makedev(MAJOR_NR, 0));
    char buf[64] = "";
    CHECK(read(fd, buf, sizeof buf) == 5 && !memcmp(buf, "hello", 5));
    CHECK(write(fd, "abcd", 4) == 4);
    uint32_t n = 41;
    CHECK(ioctl(fd, CMD_ADD, &n) == 9 && n == 42);
    FAILS(EBUSY, ioctl(fd, CMD_NONE, 77));
    FAILS(ENOSYS, ioctl(fd, CMD_GRAB, &n));
    FAILS(EFAULT, ioctl(fd, CMD_FD, (void *)8));
    static char big[16000], want[16000];
    memset(big, 3, sizeof big), memset(want, 4, sizeof want);
    CHECK(ioctl(fd, CMD_BIG, big) == 0 && !memcmp(big, want, sizeof big));
    FAILS(EFAULT, read(fd, (void *)8, 5));
    FAILS(ENXIO, mknod("/dev/t0-other", S_IFCHR | 0600, makedev(MAJOR_NR, 9)) ? -1 : opened("t0-other", O_RDWR));
    unlink("/dev/t0-other");
    close(fd);
}

static void test_basic(void)
{
    int fd = create("t0", EXT_ALL, 0);
    CHECK(fd >= 0);
    FAILS(ENOTCONN, publish(fd, 1, "t0", 0));
    FAILS(EEXIST, create("t0", 0, 0));
    FAILS(EINVAL, create("a/b", 0, 0));
    FAILS(EINVAL, create("", 0, 0));
    FAILS(EINVAL, create("ok", 1u << 20, 0));
    handshake(fd);
    CHECK(publish(fd, 1, "t0", 0) == 0);
    FAILS(EEXIST, publish(fd, 1, "t0b", 1));
    FAILS(EEXIST, publish(fd, 2, "t0b", 0));
    FAILS(EEXIST, publish(fd, 2, "t0", 1));
    FAILS(EPERM, publish(fd, 2, "t0b", 16));
    struct publish bad = {(uintptr_t) "nonsense", 9};
    FAILS(EINVAL, ioctl(fd, IOC_PUBLISH, &bad));
    bad = (struct publish){8, 9};
    FAILS(EFAULT, ioctl(fd, IOC_PUBLISH, &bad));
    bad = (struct publish){8, 1ull << 40};
    FAILS(E2BIG, ioctl(fd, IOC_PUBLISH, &bad));
    FAILS(EINVAL, read(fd, &request, 4096));
    pid_t pid = spawn(client_basic, fd);

    CHECK(take(fd) == sizeof request.h + sizeof(struct open_in) && request.h.opcode == OPEN);
    CHECK(request.h.nodeid == 1 && (pid_t)request.h.pid == pid && request.h.uid == 0);
    CHECK((((struct open_in *)request.body)->flags & O_ACCMODE) == O_RDWR);
    CHECK(answer_open(fd, 7, FOPEN_NOFLUSH, 0) == 0);

    CHECK(until(fd, READ) == 0);
    struct read_in *r = (void *)request.body;
    CHECK(r->fh == 7 && r->size == 64);
    CHECK(answer(fd, request.h.unique, 0, "hello", 5) == 21);

    CHECK(until(fd, WRITE) == 0);
    struct write_in *w = (void *)request.body;
    CHECK(w->size == 4 && !memcmp(w + 1, "abcd", 4) && request.h.len == sizeof request.h + sizeof *w + 4);
    struct write_out wrote = {4, 0};
    CHECK(answer(fd, request.h.unique, 0, &wrote, sizeof wrote) > 0);

    CHECK(until(fd, IOCTL) == 0);
    struct ioctl_in *i = (void *)request.body;
    uint32_t n = *(uint32_t *)(i + 1);
    CHECK(i->fh == 7 && i->cmd == CMD_ADD && i->in_size == 4 && i->out_size == 4 && n == 41);
    n++;
    CHECK(answer_ioctl(fd, 9, &n, 4) == 0);

    CHECK(until(fd, IOCTL) == 0);
    CHECK(i->cmd == CMD_NONE && i->arg == 77 && i->in_size == 0);
    CHECK(answer(fd, request.h.unique, -EBUSY, 0, 0) > 0);
    CHECK(until(fd, IOCTL) == 0);
    CHECK(answer(fd, request.h.unique, -ENOSYS, 0, 0) > 0);
    CHECK(until(fd, IOCTL) == 0);
    CHECK(answer_ioctl(fd, 0, &n, 4) == 0);

    CHECK(until(fd, IOCTL) == 0);
    CHECK(i->cmd == CMD_BIG && i->in_size == 16000);
    static char data[16000];
    for (int k = 0; k < 16000; k++)
        data[k] = ((char *)(i + 1))[k] + 1;
    CHECK(answer_ioctl(fd, 0, data, sizeof data) == 0);

    CHECK(until(fd, READ) == 0);
    CHECK(answer(fd, request.h.unique, 0, "hello", 5) > 0);
    CHECK(until(fd, RELEASE) == 0);
    CHECK(((struct release_in *)request.body)->fh == 7);
    CHECK(answer(fd, request.h.unique, 0, 0, 0) > 0);
    CHECK(outcome(pid) == 0);

    uint64_t cookie = 5;
    FAILS(ENOENT, ioctl(fd, IOC_UNPUBLISH, &cookie));
    cookie = 1;
    CHECK(ioctl(fd, IOC_UNPUBLISH, &cookie) == 0);
    FAILS(ENOENT, opened("t0", O_RDWR));
    CHECK(publish(fd, 1, "t0", 0) == 0);
    close(fd);
    FAILS(ENOENT, opened("t0", O_RDWR));
    FAILS(ENOENT, access("/scheme/t0", F_OK) ? -1 : 0);
    FAILS(ENOENT, access("/proc/scheme/t0", F_OK) ? -1 : 0);
}

/* COPY: memory that is there, that is not there yet, that is not mapped, read-only. */
static int retries;

static char *area(size_t len) { return mmap(0, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); }

static void client_copy(void)
{
    int fd = opened("t1", O_RDWR);
    char *from = area(20000), *to = area(20000), *fresh = area(20000), *gone = area(20000);
    memset(from, 'x', 20000);
    memset(to, 0, 20000);
    struct area a = {(uintptr_t)from + 5, (uintptr_t)to + 3, 19000};
    CHECK(ioctl(fd, CMD_COPY, &a) == 1);
    CHECK(to[2] == 0 && to[3] == 'y' && to[19002] == 'y' && to[19003] == 0);
    /* Untouched memory: has to be brought in by this thread, in several rounds at most. */
    a.to = (uintptr_t)fresh + 4000;
    a.len = 5000;
    CHECK(ioctl(fd, CMD_COPY, &a) > 1 && fresh[4000] == 'y' && fresh[8999] == 'y');
    munmap(gone, 20000);
    a.to = (uintptr_t)gone;
    FAILS(EFAULT, ioctl(fd, CMD_COPY, &a));
    mprotect(to, 20000, PROT_READ);
    a.to = (uintptr_t)to;
    FAILS(EFAULT, ioctl(fd, CMD_COPY, &a));
    /* Copy on write: a child's page must not show what is written for the parent. */
    char *shared = area(4096);
    shared[0] = 'p';
    int sync[2];
    CHECK(pipe(sync) == 0);
    pid_t child = fork();
    if (child == 0) {
        char c;
        (void)!read(sync[0], &c, 1);
        _exit(shared[0] == 'p' ? 0 : 1);
    }
    a.to = (uintptr_t)shared, a.len = 10;
    CHECK(ioctl(fd, CMD_COPY, &a) >= 1 && shared[0] == 'y');
    CHECK(write(sync[1], "x", 1) == 1);
    CHECK(outcome(child) == 0);
    close(fd);
}

/* One COPY as a server makes it: on EAGAIN it asks for the ranges and the request comes again. 0: answered. */
static int serve_copy(int fd)
{
    static char buf[20000];
    struct ioctl_in *i = (void *)request.body;
    struct area *a = (void *)(i + 1);
    struct copy in = {request.h.unique, a->from, (uintptr_t)buf, a->len, 0, 0}, out = in;
    out.dir = 1, out.addr = a->to;
    int error = ioctl(fd, IOC_COPY, &in) < 0 ? errno : 0;
    if (!error) {
        for (size_t k = 0; k < a->len; k++)
            buf[k]++;
        error = ioctl(fd, IOC_COPY, &out) < 0 ? errno : 0;
    }
    if (error == EAGAIN) {
        retries++;
        struct { struct ioctl_out out; struct ioctl_iovec iov[2]; } retry = {
            {0, IOCTL_RETRY, 1, 1}, {{a->from, a->len}, {a->to, a->len}}};
        CHECK(answer(fd, request.h.unique, 0, &retry, sizeof retry) > 0);
    } else if (error)
        CHECK(answer(fd, request.h.unique, -error, 0, 0) > 0);
    else
        CHECK(answer_ioctl(fd, 1 + retries, 0, 0) == 0);
    return error == EAGAIN;
}

static void test_copy(void)
{
    int fd = serve("t1", EXT_COPY, 0);
    pid_t pid = spawn(client_copy, fd);
    int answered = 0;
    while (answered < 5) {
        CHECK(until(fd, IOCTL) == 0);
        if (serve_copy(fd))
            continue;
        answered++;
        retries = 0;
    }
    CHECK(outcome(pid) == 0);
    struct copy stale = {request.h.unique, 0, 0, 1, 0, 0};
    FAILS(ENOENT, ioctl(fd, IOC_COPY, &stale));
    close(fd);
}

/* Descriptors in both directions. */
static void client_files(void)
{
    int fd = opened("t2", O_RDWR), got = -1;
    CHECK(ioctl(fd, CMD_FD, &got) == 0 && got > fd);
    char *map = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, got, 0);
    CHECK(map != MAP_FAILED && !strcmp(map, "from the server"));
    CHECK(fcntl(got, F_GETFD) == FD_CLOEXEC);
    /* An error takes the number back. */
    int lowest = dup(0);
    close(lowest);
    FAILS(EBUSY, ioctl(fd, CMD_FD, &got));
    int again = dup(0);
    CHECK(again == lowest);
    close(again);
    /* A file of the server's own, as a lease is. */
    int own = -1;
    CHECK(ioctl(fd, CMD_FD, &own) == 0);
    struct stat st;
    CHECK(fstat(own, &st) == 0 && st.st_rdev == makedev(MAJOR_NR, 0));
    CHECK(read(own, &st, 4) == 2);
    close(own);
    int event = eventfd(0, EFD_NONBLOCK);
    uint64_t count = 0;
    CHECK(ioctl(fd, CMD_GRAB, &event) == 0);
    CHECK(read(event, &count, 8) == 8 && count == 5);
    FAILS(EXDEV, ioctl(fd, CMD_GRAB, &fd));
    int p[2];
    CHECK(pipe(p) == 0);
    FAILS(EINVAL, ioctl(fd, CMD_GRAB, &p[0]));
    int none = 999;
    FAILS(EBADF, ioctl(fd, CMD_GRAB, &none));
    close(fd);
}

static void test_files(void)
{
    int fd = serve("t2", EXT_FILES, 0);
    pid_t pid = spawn(client_files, fd);
    int memory = memfd_create("m", MFD_CLOEXEC), regular = open("/tmp/t2", O_CREAT | O_RDWR, 0600);
    CHECK(ftruncate(memory, 4096) == 0 && pwrite(memory, "from the server", 16, 0) == 16);
    struct ioctl_in *i = (void *)request.body;

    CHECK(until(fd, IOCTL) == 0);
    struct install_fd in = {request.h.unique, regular, O_CLOEXEC};
    FAILS(EINVAL, ioctl(fd, IOC_INSTALL_FD, &in));
    in.fd = fd;
    FAILS(EINVAL, ioctl(fd, IOC_INSTALL_FD, &in));
    in.fd = 999;
    FAILS(EBADF, ioctl(fd, IOC_INSTALL_FD, &in));
    in.fd = memory, in.flags = O_APPEND;
    FAILS(EINVAL, ioctl(fd, IOC_INSTALL_FD, &in));
    in.flags = O_CLOEXEC, in.unique++;
    FAILS(ENOENT, ioctl(fd, IOC_INSTALL_FD, &in));
    in.unique--;
    int number = ioctl(fd, IOC_INSTALL_FD, &in);
    CHECK(number > 0);
    CHECK(answer_ioctl(fd, 0, &number, 4) == 0);

    CHECK(until(fd, IOCTL) == 0);
    in.unique = request.h.unique;
    CHECK(ioctl(fd, IOC_INSTALL_FD, &in) > 0);
    CHECK(answer(fd, request.h.unique, -EBUSY, 0, 0) > 0);

    CHECK(until(fd, IOCTL) == 0);
    struct install_file file = {request.h.unique, 1, 55, FOPEN_NOFLUSH, 0, O_RDWR | O_CLOEXEC, 0};
    number = ioctl(fd, IOC_INSTALL_FILE, &file);
    CHECK(number > 0 && answer_ioctl(fd, 0, &number, 4) == 0);
    CHECK(until(fd, READ) == 0 && ((struct read_in *)request.body)->fh == 55);
    CHECK(answer(fd, request.h.unique, 0, "ok", 2) > 0);
    CHECK(until(fd, RELEASE) == 0 && ((struct release_in *)request.body)->fh == 55);
    CHECK(answer(fd, request.h.unique, 0, 0, 0) > 0);

    int expected[4] = {0, EXDEV, EINVAL, EBADF};
    for (int k = 0; k < 4; k++) {
        CHECK(until(fd, IOCTL) == 0);
        struct grab_fd grab = {request.h.unique, *(int *)(i + 1), 0, 0};
        int got = ioctl(fd, IOC_GRAB_FD, &grab), error = got < 0 ? errno : 0;
        CHECK(error == expected[k]);
        if (!error) {
            uint64_t five = 5;
            CHECK(write(got, &five, 8) == 8 && fcntl(got, F_GETFD) == FD_CLOEXEC);
            close(got);
        }
        if (error == EXDEV)
            CHECK(grab.fh == 7);
        if (error)
            CHECK(answer(fd, request.h.unique, -error, 0, 0) > 0);
        else
            CHECK(answer_ioctl(fd, 0, 0, 0) == 0);
    }
    CHECK(outcome(pid) == 0);
    close(fd);
    close(memory);
    close(regular);
}

/* A mapping shows what the server names, and outlives the server. */
static int gate[2];

static void client_mmap(void)
{
    int fd = opened("t3", O_RDWR);
    char *map = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0x10000);
    CHECK(map != MAP_FAILED && !strcmp(map, "page 1"));
    strcpy(map + 4096, "from the client");
    FAILS(EACCES, (long)mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0x20000));
    char *view = mmap(0, 4096, PROT_READ, MAP_SHARED, fd, 0x20000);
    CHECK(view != MAP_FAILED && !strcmp(view + 0, "page 0"));
    FAILS(EACCES, mprotect(view, 4096, PROT_READ | PROT_WRITE));
    FAILS(EIO, (long)mmap(0, 4096, PROT_READ, MAP_SHARED, fd, 0x30000));
    FAILS(EIO, (long)mmap(0, 4096, PROT_READ, MAP_SHARED, fd, 0x40000));
    FAILS(EPERM, (long)mmap(0, 4096, PROT_READ, MAP_SHARED, fd, 0x50000));
    char c;
    CHECK(read(gate[0], &c, 1) == 0);
    FAILS(ENODEV, (long)mmap(0, 4096, PROT_READ, MAP_SHARED, fd, 0));
    CHECK(!strcmp(map, "page 1") && !strcmp(map + 4096, "from the client"));
    close(fd);
}

static void test_mmap(void)
{
    CHECK(pipe(gate) == 0);
    int fd = serve("t3", EXT_MMAP, 0);
    pid_t pid = fork();
    if (pid == 0) {
        close(fd), close(gate[1]);
        alarm(60);
        check_failures = 0;
        client_mmap();
        _exit(check_failures ? 1 : 0);
    }
    close(gate[0]);
    int memory = memfd_create("m", 0);
    CHECK(ftruncate(memory, 12288) == 0 && pwrite(memory, "page 0", 7, 0) == 7 && pwrite(memory, "page 1", 7, 4096) == 7);
    char path[64];
    sprintf(path, "/proc/self/fd/%d", memory);
    int readonly = open(path, O_RDONLY);
    CHECK(readonly >= 0);
    int pipes[2];
    CHECK(pipe(pipes) == 0);
    for (int k = 0; k < 6; k++) {
        CHECK(until(fd, MMAP) == 0);
        struct mmap_in *in = (void *)request.body;
        struct mmap_out out = {memory, 0, 4096, 0, 0};
        switch (in->offset) {
        case 0x10000: CHECK(in->len == 8192 && in->prot == 3 && in->flags == MAP_SHARED && in->fh == 7); break;
        case 0x20000: out = (struct mmap_out){readonly, 0, 0, 0, 0}; break;
        case 0x30000: out.fd = 999; break;
        case 0x40000: out.fd = fd; break;
        }
        if (in->offset == 0x50000)
            CHECK(answer(fd, request.h.unique, -EPERM, 0, 0) > 0);
        else
            CHECK(answer(fd, request.h.unique, 0, &out, sizeof out) > 0);
    }
    nap(50);
    close(fd);
    char *map = mmap(0, 4096, PROT_READ, MAP_SHARED, memory, 8192);
    CHECK(!strcmp(map, "from the client"));
    close(gate[1]);
    CHECK(outcome(pid) == 0);
}

/* FAULT: pages come when they are touched, go when they are revoked, and may hold an ioctl's own argument. */
static void client_fault(void)
{
    int fd = opened("t8", O_RDWR);
    uint32_t *map = mmap(0, 16384, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0x100000);
    CHECK(map != MAP_FAILED);
    CHECK(map[0] == 'A');         /* page 0x100 of the file: the server names memory page 0 */
    map[1] = 77;
    CHECK(map[1024] == 'B' && map[2048] == 'C'); /* one answer for two pages */
    CHECK(ioctl(fd, CMD_NONE, 0) == 0);          /* revokes page 0x100 */
    CHECK(map[0] == 'C' && map[1024] == 'B');    /* now it is memory page 2 */
    map[3072] = 41;                              /* the fourth page: not asked for yet but by this store */
    CHECK(ioctl(fd, CMD_ADD, &map[3072]) == 0 && map[3072] == 42);
    CHECK(ioctl(fd, CMD_NONE, 1) == 0);          /* revokes everything */
    CHECK(ioctl(fd, CMD_ADD, &map[3072]) == 0 && map[3072] == 43); /* the argument has to be faulted in first */
    struct area a = {(uintptr_t)&map[3072], (uintptr_t)&map[0], 4};
    CHECK(ioctl(fd, CMD_NONE, 2) == 0);
    CHECK(ioctl(fd, CMD_COPY, &a) > 0);          /* and what COPY asks for as well */
    CHECK(munmap(map, 16384) == 0);
    map = mmap(0, 4096, PROT_READ, MAP_SHARED, fd, 0x200000);
    CHECK(map != MAP_FAILED);
    pid_t child = fork();
    if (child == 0) {
        volatile uint32_t x = *(volatile uint32_t *)map; /* the server says no: a bus error */
        _exit(x & 1);
    }
    int status = outcome(child);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
    close(fd);
}

static void test_fault(void)
{
    int fd = serve("t8", EXT_MMAP | EXT_REVOKE | EXT_COPY, 0), moved = 0, done = 0;
    int memory = memfd_create("m", 0);
    CHECK(ftruncate(memory, 16384) == 0);
    for (int k = 0; k < 4; k++)
        CHECK(pwrite(memory, &(uint32_t){'A' + k}, 4, k * 4096) == 4);
    pid_t pid = spawn(client_fault, fd);
    while (!done && take(fd) > 0) {
        struct fault_in { uint64_t fh, offset, len; uint32_t write, pad; } *f = (void *)request.body;
        struct fault_out { int32_t fd; uint32_t cache; uint64_t offset, len; } out = {memory, 0, 0, 4096};
        struct ioctl_in *i = (void *)request.body;
        switch (request.h.opcode) {
        case OPEN: answer_open(fd, 7, FOPEN_NOFLUSH, 0); break;
        case MMAP: {
            struct mmap_out o = {-1, 0, 0, 1, 0};
            CHECK(answer(fd, request.h.unique, 0, &o, sizeof o) > 0);
            break;
        }
        case FAULT:
            CHECK(f->fh == 7 && f->len == 4096 && f->offset % 4096 == 0);
            if (f->offset >= 0x200000) {
                CHECK(answer(fd, request.h.unique, -ENOMEM, 0, 0) > 0);
                break;
            }
            out.offset = f->offset - 0x100000;
            if (out.offset == 0 && moved)
                out.offset = 8192;
            if (out.offset == 4096)
                out.len = 8192;
            CHECK(answer(fd, request.h.unique, 0, &out, sizeof out) > 0);
            break;
        case IOCTL:
            if (i->cmd == CMD_NONE) {
                struct revoke r = {i->arg ? ~0ull : 7, i->arg ? 0 : 0x100000, i->arg ? ~0ull : 4096};
                moved = 1;
                CHECK(ioctl(fd, IOC_REVOKE, &r) == 0);
                CHECK(answer_ioctl(fd, 0, 0, 0) == 0);
            } else if (i->cmd == CMD_COPY)
                serve_copy(fd);
            else {
                uint32_t n = *(uint32_t *)(i + 1) + 1;
                CHECK(i->in_size == 4 && answer_ioctl(fd, 0, &n, 4) == 0);
            }
            break;
        case RELEASE: done = 1; /* fall through */
        default: answer(fd, request.h.unique, 0, 0, 0);
        }
    }
    CHECK(outcome(pid) == 0);
    FAILS(ENOENT, ioctl(fd, IOC_REVOKE, &(struct revoke){99, 0, 1}));
    close(fd);
}

/* READY: poll, epoll and a sleeping read without a request. */
static void client_ready(void)
{
    int fd = opened("t4", O_RDWR), other = opened("t4", O_RDWR | O_NONBLOCK);
    struct pollfd p = {fd, POLLIN | POLLOUT, 0};
    CHECK(poll(&p, 1, 0) == 1 && p.revents == POLLOUT);
    char buf[16];
    FAILS(EAGAIN, read(other, buf, sizeof buf));
    p.events = POLLIN;
    CHECK(poll(&p, 1, 0) == 0);
    int ep = epoll_create1(0);
    struct epoll_event e = {EPOLLIN | EPOLLET, {.fd = 5}};
    CHECK(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e) == 0 && epoll_wait(ep, &e, 1, 0) == 0);
    CHECK(ioctl(fd, CMD_NONE, 1) == 0); /* the server pushes POLLIN in 50 ms */
    CHECK(poll(&p, 1, 5000) == 1 && p.revents == POLLIN);
    CHECK(epoll_wait(ep, &e, 1, 5000) == 1 && e.data.fd == 5);
    CHECK(read(fd, buf, sizeof buf) == 3 && !memcmp(buf, "one", 3));
    CHECK(poll(&p, 1, 0) == 0);
    CHECK(ioctl(fd, CMD_NONE, 2) == 0);
    CHECK(read(fd, buf, sizeof buf) == 3 && !memcmp(buf, "two", 3)); /* sleeps in the kernel, and through one EAGAIN */
    CHECK(ioctl(fd, CMD_NONE, 3) == 0); /* the server goes */
    FAILS(ENODEV, read(fd, buf, sizeof buf));
    CHECK(poll(&p, 1, 0) == 1 && (p.revents & POLLHUP));
    FAILS(ENODEV, ioctl(fd, CMD_NONE, 4));
}

static void push(int fd, uint64_t fh, uint32_t mask)
{
    struct ready r = {fh, mask, 0};
    CHECK(ioctl(fd, IOC_READY, &r) == 0);
}

static void test_ready(void)
{
    int fd = serve("t4", EXT_READY, 0);
    struct ready none = {12345, POLLIN, 0};
    FAILS(ENOENT, ioctl(fd, IOC_READY, &none));
    pid_t pid = spawn(client_ready, fd);
    CHECK(until(fd, OPEN) == 0 && answer_open(fd, 1, FOPEN_NOFLUSH | FOPEN_READY, POLLOUT) == 0);
    push(fd, 1, POLLOUT); /* right after the answer: the client may not have returned yet */
    CHECK(until(fd, OPEN) == 0 && answer_open(fd, 2, FOPEN_NOFLUSH | FOPEN_READY, 0) == 0);
    CHECK(until(fd, IOCTL) == 0 && answer_ioctl(fd, 0, 0, 0) == 0);
    nap(50);
    push(fd, 1, POLLIN | POLLOUT);
    CHECK(until(fd, READ) == 0);
    push(fd, 1, POLLOUT);
    CHECK(answer(fd, request.h.unique, 0, "one", 3) > 0);
    CHECK(until(fd, IOCTL) == 0 && answer_ioctl(fd, 0, 0, 0) == 0);
    nap(50);
    push(fd, 1, POLLIN);
    CHECK(until(fd, READ) == 0 && answer(fd, request.h.unique, -EAGAIN, 0, 0) > 0);
    nap(50);
    struct pollfd p = {fd, POLLIN, 0};
    CHECK(poll(&p, 1, 100) == 0); /* no further request before the next push */
    push(fd, 1, POLLIN);
    CHECK(until(fd, READ) == 0);
    push(fd, 1, 0);
    CHECK(answer(fd, request.h.unique, 0, "two", 3) > 0);
    CHECK(until(fd, IOCTL) == 0 && answer_ioctl(fd, 0, 0, 0) == 0);
    nap(50);
    close(fd);
    CHECK(outcome(pid) == 0);
}

/* Without the grant every extension is refused. */
static void client_bare(void)
{
    int fd = opened("t5", O_RDWR);
    int n = 0;
    CHECK(ioctl(fd, CMD_GRAB, &n) == 0);
    FAILS(ENODEV, (long)mmap(0, 4096, PROT_READ, MAP_SHARED, fd, 0));
    close(fd);
}

static void test_ungranted(void)
{
    int fd = serve("t5", 0, 0);
    pid_t pid = spawn(client_bare, fd);
    CHECK(until(fd, IOCTL) == 0);
    uint64_t u = request.h.unique;
    char buf[8];
    FAILS(EPERM, ioctl(fd, IOC_COPY, &(struct copy){u, 0x1000, (uintptr_t)buf, 1, 0, 0}));
    FAILS(EPERM, ioctl(fd, IOC_INSTALL_FD, &(struct install_fd){u, 0, 0}));
    FAILS(EPERM, ioctl(fd, IOC_INSTALL_FILE, &(struct install_file){.unique = u}));
    FAILS(EPERM, ioctl(fd, IOC_GRAB_FD, &(struct grab_fd){u, 0, 0, 0}));
    FAILS(EPERM, ioctl(fd, IOC_REVOKE, &(struct revoke){~0ull, 0, 0}));
    FAILS(EPERM, ioctl(fd, IOC_READY, &(struct ready){7, 0, 0}));
    FAILS(EPERM, ioctl(fd, IOC_KEEP, &(struct keep){1, 0, 0}));
    FAILS(EPERM, ioctl(fd, IOC_KEEP_LIST, &(struct keep_list){0, 0}));
    FAILS(ENOTTY, ioctl(fd, _IO(0xf5, 99), 0));
    CHECK(answer_ioctl(fd, 0, 0, 0) == 0);
    CHECK(outcome(pid) == 0);
    close(fd);
}

static void test_keep(void)
{
    int fd = serve("t6", EXT_KEEP, 0);
    int memory = memfd_create("m", 0);
    CHECK(ftruncate(memory, 100) == 0);
    CHECK(ioctl(fd, IOC_KEEP, &(struct keep){8, memory, 0}) == 0);
    CHECK(ioctl(fd, IOC_KEEP, &(struct keep){3, memory, 0}) == 0);
    FAILS(EEXIST, ioctl(fd, IOC_KEEP, &(struct keep){3, memory, 0}));
    FAILS(EINVAL, ioctl(fd, IOC_KEEP, &(struct keep){4, fd, 0}));
    close(memory);
    uint64_t keys[4] = {0};
    CHECK(ioctl(fd, IOC_KEEP_LIST, &(struct keep_list){(uintptr_t)keys, 4}) == 2 && keys[0] == 3 && keys[1] == 8);
    int got = ioctl(fd, IOC_KEEP_GET, &(struct keep){3, 0, 0});
    struct stat st;
    CHECK(got >= 0 && fstat(got, &st) == 0 && st.st_size == 100);
    CHECK(ioctl(fd, IOC_KEEP_DROP, &(struct keep){3, 0, 0}) == 0);
    FAILS(ENOENT, ioctl(fd, IOC_KEEP_GET, &(struct keep){3, 0, 0}));
    close(got);
    close(fd);
}

/* REPLY_WAIT: one call answers and takes. */
static void client_many(void)
{
    int fd = opened("t7", O_RDWR);
    uint32_t n = 0;
    for (int k = 0; k < 1000; k++)
        CHECK(ioctl(fd, CMD_ADD, &n) == 0);
    CHECK(n == 1000);
    close(fd);
}

static void client_refused(void) { FAILS(EIO, opened("t7", O_RDWR)); }

/* With a descriptor of its own a server waits for either, and hears of it before it takes a request. */
static void wait_beside(int fd, struct reply_wait call)
{
    int event = eventfd(0, EFD_NONBLOCK);
    uint64_t one = 1;
    call.pad = event;
    CHECK(write(event, &one, 8) == 8);
    FAILS(EAGAIN, ioctl(fd, IOC_REPLY_WAIT, &call));
    CHECK(read(event, &one, 8) == 8);
    pid_t pid = fork();
    if (pid == 0) {
        nap(200);
        _exit(write(event, &one, 8) != 8);
    }
    FAILS(EAGAIN, ioctl(fd, IOC_REPLY_WAIT, &call)); /* waits for the child */
    CHECK(outcome(pid) == 0);
    CHECK(read(event, &one, 8) == 8);
    pid = spawn(client_refused, fd);
    CHECK(ioctl(fd, IOC_REPLY_WAIT, &call) == sizeof request.h + sizeof(struct open_in));
    CHECK(answer(fd, request.h.unique, -EIO, 0, 0) > 0);
    CHECK(outcome(pid) == 0);
    /* One that is readable goes first. */
    pid = spawn(client_refused, fd);
    struct pollfd waits = {fd, POLLIN, 0};
    CHECK(poll(&waits, 1, 10000) == 1 && write(event, &one, 8) == 8);
    FAILS(EAGAIN, ioctl(fd, IOC_REPLY_WAIT, &call));
    CHECK(read(event, &one, 8) == 8);
    CHECK(ioctl(fd, IOC_REPLY_WAIT, &call) > 0);
    CHECK(answer(fd, request.h.unique, -EIO, 0, 0) > 0);
    CHECK(outcome(pid) == 0);
    close(event);
}

static void test_reply_wait(void)
{
    int fd = serve("t7", 0, 0);
    struct reply_wait call = {.recv = (uintptr_t)&request, .recv_len = sizeof request, .flags = 1};
    FAILS(EAGAIN, ioctl(fd, IOC_REPLY_WAIT, &call));
    call.flags = 4;
    FAILS(EINVAL, ioctl(fd, IOC_REPLY_WAIT, &call));
    call.flags = 2, call.pad = -1;
    FAILS(EBADF, ioctl(fd, IOC_REPLY_WAIT, &call));
    wait_beside(fd, call);
    call.flags = 0, call.recv = 8;
    pid_t pid = spawn(client_refused, fd);
    FAILS(EFAULT, ioctl(fd, IOC_REPLY_WAIT, &call)); /* the open that it took fails with EIO */
    CHECK(outcome(pid) == 0);
    pid = spawn(client_many, fd);
    CHECK(until(fd, IOCTL) == 0);
    struct { struct out_header h; struct ioctl_out o; uint32_t n; } out;
    for (int k = 0; k < 999; k++) {
        struct ioctl_in *i = (void *)request.body;
        memset(&out, 0, sizeof out);
        out.h.len = 36, out.h.unique = request.h.unique, out.n = *(uint32_t *)(i + 1) + 1;
        call = (struct reply_wait){(uintptr_t)&out, 36, (uintptr_t)&request, sizeof request, 0, 0};
        CHECK(ioctl(fd, IOC_REPLY_WAIT, &call) == 76);
    }
    uint32_t last = 1000;
    CHECK(answer_ioctl(fd, 0, &last, 4) == 0);
    CHECK(outcome(pid) == 0);
    close(fd);
}

int main(void)
{
    signal(SIGPIPE, SIG_IGN);
    setvbuf(stdout, 0, _IOLBF, 0);
    alarm(120);
    test_basic();
    test_copy();
    test_files();
    test_mmap();
    test_fault();
    test_ready();
    test_ungranted();
    test_keep();
    test_reply_wait();
    return check_done();
}
