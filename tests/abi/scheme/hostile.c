/* What happens when a server or a client dies, lies or is silent: everybody else gets an errno, nobody hangs. Ursa only. */
#include "wire.h"
#include <pthread.h>

#define CMD_CALL _IO('U', 3)
#define CMD_ADD _IOWR('U', 1, uint32_t)

static const char *node = "h0";

static int opened(int flags)
{
    char path[64];
    sprintf(path, "/dev/%s", node);
    return open(path, flags);
}

/* --- A server that dies in each phase: the client sees ENODEV at once. --- */

enum { DIE_BEFORE_OPEN, DIE_IN_OPEN, DIE_IN_READ, DIE_IN_IOCTL, DIE_IN_MMAP, DIE_UNREAD, DIE_IDLE, PHASES };

static void doomed_server(int phase, int ready)
{
    int fd = serve("h0", EXT_ALL, 0);
    CHECK(write(ready, "x", 1) == 1);
    close(ready);
    if (phase == DIE_BEFORE_OPEN)
        while (poll(&(struct pollfd){fd, POLLIN, 0}, 1, -1) != 1)
            ;
    else if (phase == DIE_IN_OPEN)
        until(fd, OPEN);
    else if (phase == DIE_IN_READ)
        until(fd, READ);
    else if (phase == DIE_IN_MMAP)
        until(fd, MMAP);
    else if (phase == DIE_IN_IOCTL)
        until(fd, IOCTL);
    else {
        CHECK(until(fd, OPEN) == 0 && answer_open(fd, 7, FOPEN_NOFLUSH, 0) == 0);
        if (phase == DIE_UNREAD)
            poll(&(struct pollfd){fd, POLLIN, 0}, 1, -1);
    }
    kill(getpid(), SIGKILL);
}

static void test_server_dies(void)
{
    for (int phase = 0; phase < PHASES; phase++) {
        int sync[2];
        char c;
        CHECK(pipe(sync) == 0);
        fflush(stdout);
        pid_t server = fork();
        if (server == 0) {
            close(sync[0]);
            doomed_server(phase, sync[1]);
        }
        close(sync[1]);
        CHECK(read(sync[0], &c, 1) == 1);
        close(sync[0]);
        int fd = opened(O_RDWR);
        if (phase <= DIE_IN_OPEN) {
            CHECK(fd < 0 && (errno == ENODEV || errno == ENOENT || errno == ENXIO));
        } else {
            CHECK(fd >= 0);
            char buf[8];
            if (phase == DIE_IN_READ)
                FAILS(ENODEV, read(fd, buf, 8));
            else if (phase == DIE_IN_MMAP)
                FAILS(ENODEV, (long)mmap(0, 4096, PROT_READ, MAP_SHARED, fd, 0));
            else if (phase == DIE_IDLE)
                nap(200);
            else
                FAILS(ENODEV, ioctl(fd, CMD_CALL, 0));
            FAILS(ENODEV, ioctl(fd, CMD_CALL, 0));
            FAILS(ENODEV, write(fd, "x", 1));
            struct pollfd p = {fd, POLLIN, 0};
            CHECK(poll(&p, 1, 0) == 1 && (p.revents & (POLLHUP | POLLERR)));
            CHECK(close(fd) == 0);
        }
        waitpid(server, 0, 0);
        FAILS(ENOENT, opened(O_RDWR));
        CHECK(access("/sys/class/misc/h0", F_OK) != 0);
    }
}

/* --- A server that lies. --- */

static void client_lied_to(void)
{
    int fd = opened(O_RDWR);
    CHECK(fd >= 0);
    char buf[16];
    uint32_t n = 1;
    FAILS(EIO, read(fd, buf, 4));           /* more than asked for */
    FAILS(EIO, ioctl(fd, CMD_ADD, &n));     /* a body too short for its kind */
    FAILS(EIO, ioctl(fd, CMD_ADD, &n));     /* too long */
    FAILS(EIO, ioctl(fd, CMD_ADD, &n));     /* an error with a body */
    FAILS(EIO, write(fd, "abc", 3));        /* more written than given */
    FAILS(EIO, ioctl(fd, CMD_ADD, &n));     /* a retry without ranges */
    FAILS(EIO, ioctl(fd, CMD_ADD, &n));     /* a retry with more ranges than it has */
    FAILS(EFAULT, ioctl(fd, CMD_ADD, &n));  /* a retry of memory that is not there */
    FAILS(EIO, ioctl(fd, CMD_ADD, &n));     /* a retry of everything */
    FAILS(EIO, ioctl(fd, CMD_ADD, &n));     /* a result below every error number */
    CHECK(ioctl(fd, CMD_ADD, &n) == 3);     /* many wrong answers before the right one */
    close(fd);
}

static ssize_t raw(int fd, uint32_t len, int error, uint64_t unique, size_t size)
{
    char buf[256] = {0};
    struct out_header h = {len, error, unique};
    memcpy(buf, &h, sizeof h);
    return write(fd, buf, size);
}

static void test_lies(void)
{
    node = "h1";
    int fd = serve("h1", EXT_ALL, 0), other = create("h1b", EXT_ALL, 0);
    handshake(other);
    static char data[70000];
    pid_t pid = spawn(client_lied_to, fd);

    CHECK(until(fd, READ) == 0);
    FAILS(EINVAL, answer(fd, request.h.unique, 0, data, 5));
    FAILS(ENOENT, answer(fd, request.h.unique, 0, data, 4));
    CHECK(until(fd, IOCTL) == 0);
    FAILS(EINVAL, answer(fd, request.h.unique, 0, data, 8));
    CHECK(until(fd, IOCTL) == 0);
    FAILS(EINVAL, answer(fd, request.h.unique, 0, data, 60000));
    CHECK(until(fd, IOCTL) == 0);
    FAILS(EINVAL, answer(fd, request.h.unique, -EBUSY, data, 16));
    CHECK(until(fd, WRITE) == 0);
    struct write_out w = {4, 0};
    CHECK(answer(fd, request.h.unique, 0, &w, sizeof w) > 0);
    struct { struct ioctl_out o; struct ioctl_iovec v[2]; } retry = {{0, IOCTL_RETRY, 0, 0}, {{0, 0}, {0, 0}}};
    CHECK(until(fd, IOCTL) == 0);
    CHECK(answer(fd, request.h.unique, 0, &retry, sizeof retry.o) > 0);
    CHECK(until(fd, IOCTL) == 0);
    retry.o.in_iovs = 0xffffffff, retry.o.out_iovs = 2;
    CHECK(answer(fd, request.h.unique, 0, &retry, sizeof retry) > 0);
    CHECK(until(fd, IOCTL) == 0);
    retry.o.in_iovs = 1, retry.o.out_iovs = 1, retry.v[0].base = 8, retry.v[0].len = 1;
    CHECK(answer(fd, request.h.unique, 0, &retry, sizeof retry) > 0);
    CHECK(until(fd, IOCTL) == 0);
    retry.v[0].base = 0, retry.v[0].len = ~0ull;
    CHECK(answer(fd, request.h.unique, 0, &retry, sizeof retry) > 0);
    CHECK(until(fd, IOCTL) == 0);
    struct ioctl_out low = {.result = -2147483647 - 1};
    CHECK(answer(fd, request.h.unique, 0, &low, sizeof low) > 0);

    CHECK(until(fd, IOCTL) == 0);
    uint64_t u = request.h.unique;
    FAILS(EINVAL, write(fd, "short", 5));
    FAILS(EINVAL, write(fd, "", 0));
    FAILS(EINVAL, raw(fd, 17, 0, u, 16));
    FAILS(EINVAL, raw(fd, 16, 1, u, 16));
    FAILS(EINVAL, raw(fd, 16, -512, u, 16));
    FAILS(EINVAL, raw(fd, 16, -2147483647 - 1, u, 16));
    FAILS(ENOENT, raw(fd, 16, 0, u + 2, 16));
    FAILS(ENOENT, raw(fd, 16, 0, u - 2, 16));
    FAILS(ENOENT, raw(fd, 16, 0, 1ull << 62, 16));
    FAILS(EINVAL, raw(fd, 16, -EBUSY, u | 1, 16));
    FAILS(EINVAL, raw(fd, 24, 0, u | 1, 24));
    FAILS(EINVAL, raw(fd, 16, 0, 0, 16));      /* notification 0 */
    FAILS(EINVAL, raw(fd, 16, 1, 0, 16));      /* a poll notification without its body */
    FAILS(ENOENT, raw(fd, 24, 1, 0, 24));      /* for a file that is not there */
    FAILS(EINVAL, raw(fd, 40, 2, 0, 40));      /* for a file system */
    FAILS(ENOENT, answer(other, u, 0, 0, 0));  /* another connection's request */
    FAILS(EFAULT, write(fd, (void *)8, 16));
    uint32_t n = 0;
    CHECK(answer_ioctl(fd, 3, &n, 4) == 0);
    FAILS(ENOENT, answer(fd, u, 0, data, 16)); /* twice */
    CHECK(outcome(pid) == 0);
    close(fd);
    close(other);
}

/* --- Silence: the client waits, signals interrupt, SIGKILL ends it. --- */

static void nothing(int sig) { (void)sig; }

static void client_signalled(void)
{
    struct sigaction restart = {.sa_handler = nothing, .sa_flags = SA_RESTART}, plain = {.sa_handler = nothing};
    sigaction(SIGUSR1, &plain, 0);
    sigaction(SIGUSR2, &restart, 0);
    int fd = opened(O_RDWR);
    FAILS(EINTR, ioctl(fd, CMD_CALL, 1)); /* the server answers the INTERRUPT with EINTR */
    CHECK(ioctl(fd, CMD_CALL, 2) == 5);   /* SA_RESTART: it comes again */
    ioctl(fd, CMD_CALL, 3);               /* killed in here */
}

static void test_silence(void)
{
    node = "h2";
    int fd = serve("h2", EXT_ALL, 0);
    pid_t pid = spawn(client_signalled, fd);
    struct pollfd p = {fd, POLLIN, 0};

    CHECK(until(fd, IOCTL) == 0);
    uint64_t u = request.h.unique;
    kill(pid, SIGUSR1);
    CHECK(poll(&p, 1, 5000) == 1 && take(fd) == 48 && request.h.opcode == INTERRUPT && *(uint64_t *)request.body == u);
    CHECK(request.h.unique == (u | 1));
    CHECK(raw(fd, 16, -EAGAIN, u | 1, 16) == 16); /* "later": it comes again */
    CHECK(poll(&p, 1, 5000) == 1 && take(fd) == 48 && request.h.opcode == INTERRUPT);
    kill(pid, SIGUSR1);
    CHECK(poll(&p, 1, 100) == 0); /* once is enough */
    CHECK(answer(fd, u, -EINTR, 0, 0) == 16);

    CHECK(until(fd, IOCTL) == 0);
    u = request.h.unique;
    kill(pid, SIGUSR2);
    CHECK(poll(&p, 1, 5000) == 1 && take(fd) == 48 && request.h.opcode == INTERRUPT);
    CHECK(answer(fd, u, -EINTR, 0, 0) == 16);
    CHECK(until(fd, IOCTL) == 0 && request.h.unique != u);
    CHECK(answer_ioctl(fd, 5, 0, 0) == 0);

    CHECK(until(fd, IOCTL) == 0);
    u = request.h.unique;
    char text[4096] = "";
    int proc = open("/proc/scheme/h2", O_RDONLY);
    CHECK(read(proc, text, sizeof text - 1) > 0 && strstr(text, "Ioctl") && strstr(text, " sent "));
    close(proc);
    kill(pid, SIGKILL);
    int status = outcome(pid);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    FAILS(ENOENT, answer(fd, u, -EIO, 0, 0)); /* nobody waits any more */
    char byte;
    struct copy c = {u, 0x1000, (uintptr_t)&byte, 1, 0, 0};
    FAILS(ENOENT, ioctl(fd, IOC_COPY, &c));

    /* Killed before the server has read anything: the request is gone, the release is not. */
    pid = spawn(client_signalled, fd);
    CHECK(until(fd, OPEN) == 0 && answer_open(fd, 9, FOPEN_NOFLUSH, 0) == 0);
    CHECK(poll(&p, 1, 5000) == 1);
    kill(pid, SIGKILL);
    outcome(pid);
    uint32_t seen = 0;
    while (poll(&p, 1, 200) == 1 && take(fd) > 0) {
        seen |= request.h.opcode == RELEASE ? 1 : request.h.opcode == IOCTL ? 2 : 4;
        answer(fd, request.h.unique, 0, 0, 0);
    }
    CHECK(seen == 1);
    close(fd);
}

/* --- A successor on the same connection. --- */

static void client_patient(void)
{
    int fd = opened(O_RDWR);
    uint32_t n = 7;
    CHECK(ioctl(fd, CMD_ADD, &n) == 1 && n == 8);
    CHECK(ioctl(fd, CMD_ADD, &n) == 1 && n == 9);
    close(fd);
}

static void test_resume(void)
{
    node = "h3";
    int fd = serve("h3", EXT_ALL, 1);
    CHECK(ioctl(fd, IOC_RESUME, 0) == 0);
    pid_t client = spawn(client_patient, fd);
    fflush(stdout);
    pid_t first = fork(); /* the first server: takes the ioctl and dies; this process is init and holds the descriptor */
    if (first == 0) {
        until(fd, IOCTL);
        kill(getpid(), SIGKILL);
    }
    outcome(first);
    nap(50);
    CHECK(waitpid(client, 0, WNOHANG) == 0);
    CHECK(ioctl(fd, IOC_RESUME, 0) == 1);
    CHECK(take(fd) > 0 && request.h.opcode == IOCTL && (request.h.unique >> 63));
    uint32_t n = 8;
    CHECK(answer_ioctl(fd, 1, &n, 4) == 0);
    CHECK(until(fd, IOCTL) == 0 && !(request.h.unique >> 63));
    n = 9;
    CHECK(answer_ioctl(fd, 1, &n, 4) == 0);
    CHECK(outcome(client) == 0);
    close(fd);
}

/* --- Attributes, and what uses them while the server is slow or gone. --- */

static void client_attribute(void)
{
    char buf[64] = "";
    int fd = open("/sys/class/misc/h4/slow", O_RDWR);
    CHECK(fd >= 0 && pread(fd, buf, sizeof buf, 0) == 5 && !strcmp(buf, "text\n"));
    CHECK(pwrite(fd, "new", 3, 0) == 3);
    FAILS(EBUSY, pwrite(fd, "bad", 3, 0));
    FAILS(ENODEV, pread(fd, buf, sizeof buf, 0));
    close(fd);
}

static int slurp(const char *path, char *buf, int len)
{
    int fd = open(path, O_RDONLY), n = fd < 0 ? -1 : (int)read(fd, buf, len - 1);
    if (n >= 0)
        buf[n] = 0;
    close(fd);
    return n;
}

static void test_attributes(void)
{
    int fd = create("h4", 0, 0);
    handshake(fd);
    static const char desc[] = "dyn=slow:0644:33\0cookie=4\0name=h4\0class=misc\0env=COLOUR=blue\0attr=fixed:0444:a=1\n\0"
                               "attr=group/inner:0444:deep\0bin=blob:0444:00ff41";
    struct publish p = {(uintptr_t)desc, sizeof desc};
    CHECK(ioctl(fd, IOC_PUBLISH, &p) == 0);
    char buf[256];
    CHECK(slurp("/sys/class/misc/h4/fixed", buf, sizeof buf) == 4 && !strcmp(buf, "a=1\n"));
    CHECK(slurp("/sys/devices/virtual/misc/h4/group/inner", buf, sizeof buf) == 4 && !strcmp(buf, "deep"));
    CHECK(slurp("/sys/class/misc/h4/blob", buf, sizeof buf) == 3 && !memcmp(buf, "\0\xff" "A", 3));
    CHECK(slurp("/sys/class/misc/h4/uevent", buf, sizeof buf) > 0 && strstr(buf, "COLOUR=blue\n"));
    static const char set[] = "fixed=two\n";
    struct { uint64_t cookie, text, len; } text = {4, (uintptr_t)set, sizeof set};
    CHECK(ioctl(fd, _IOC(1, 0xf5, 5, 24), &text) == 0);
    CHECK(slurp("/sys/class/misc/h4/fixed", buf, sizeof buf) == 4 && !strcmp(buf, "two\n"));
    static const char event[] = "change\0HOTPLUG=1";
    text.text = (uintptr_t)event, text.len = sizeof event;
    CHECK(ioctl(fd, _IOC(1, 0xf5, 4, 24), &text) == 0);
    static const char forged[] = "remove";
    text.text = (uintptr_t)forged, text.len = sizeof forged;
    FAILS(EINVAL, ioctl(fd, _IOC(1, 0xf5, 4, 24), &text));

    pid_t pid = spawn(client_attribute, fd);
    CHECK(take(fd) > 0 && request.h.opcode == 6002 && request.h.nodeid == 4 && *(uint64_t *)request.body == 33);
    CHECK(answer(fd, request.h.unique, 0, "text\n", 5) > 0);
    CHECK(take(fd) > 0 && request.h.opcode == 6003 && !memcmp(request.body + 16, "new", 3));
    CHECK(answer(fd, request.h.unique, 0, 0, 0) > 0);
    CHECK(take(fd) > 0 && answer(fd, request.h.unique, -EBUSY, 0, 0) > 0);
    CHECK(take(fd) > 0);
    close(fd);
    CHECK(outcome(pid) == 0);
    CHECK(access("/sys/class/misc/h4", F_OK) != 0);
}

/* --- Noise: random bytes as answers and as ioctl arguments, from two threads, while clients ask. --- */

static volatile int stop;
static int noisy;

static void *noise(void *seed_)
{
    unsigned seed = (uintptr_t)seed_;
    static __thread char buf[4096];
    while (!stop) {
        for (int k = 0; k < 200; k += 4)
            *(int *)(buf + k) = rand_r(&seed) ^ rand_r(&seed) << 16;
        size_t len = rand_r(&seed) % 200;
        if (rand_r(&seed) % 2) /* past the framing */
            *(uint32_t *)buf = len, *(int *)(buf + 4) = -(rand_r(&seed) % 600), *(uint64_t *)(buf + 8) = rand_r(&seed) % 4000;
        (void)!write(noisy, buf, len);
        if (rand_r(&seed) % 4 == 0)
            *(uint64_t *)buf = rand_r(&seed) % 4000, *(uint64_t *)(buf + 8) = rand_r(&seed) % 2 ? (uintptr_t)buf : 0x1000;
        static const int size[] = {56, 0, 16, 8, 24, 24, 16, 40, 16, 40, 24, 24, 16, 16, 16, 16};
        int nr = 2 + rand_r(&seed) % 14;
        ioctl(noisy, nr == 10 ? IOC_GRAB_FD : _IOC(1, 0xf5, nr, size[nr]), buf);
        if (rand_r(&seed) % 8 == 0) {
            struct pollfd p = {noisy, POLLIN, 0};
            static __thread char in[80000];
            if (poll(&p, 1, 0) == 1 && fcntl(noisy, F_GETFL) & O_NONBLOCK)
                (void)!read(noisy, in, sizeof in);
        }
    }
    return 0;
}

static void client_noise(void)
{
    for (int k = 0; k < 50; k++) {
        alarm(60);
        int fd = opened(O_RDWR | (k & 1 ? O_NONBLOCK : 0));
        char buf[64];
        uint32_t n = 0;
        if (fd < 0)
            continue;
        (void)!read(fd, buf, sizeof buf);
        ioctl(fd, CMD_ADD, &n);
        close(fd);
    }
}

static void test_noise(void)
{
    node = "h5";
    int fd = noisy = serve("h5", EXT_ALL, 0);
    fcntl(fd, F_SETFL, O_NONBLOCK);
    pthread_t threads[2];
    pid_t clients[3];
    for (int k = 0; k < 3; k++)
        clients[k] = spawn(client_noise, fd);
    for (uintptr_t k = 0; k < 2; k++)
        pthread_create(&threads[k], 0, noise, (void *)(k + 1));
    nap(4000);
    for (int k = 0; k < 3; k++)
        kill(clients[k], SIGKILL), outcome(clients[k]);
    stop = 1;
    for (int k = 0; k < 2; k++)
        pthread_join(threads[k], 0);
    close(fd);
    FAILS(ENOENT, opened(O_RDWR));
    /* The machine is as it was: a new server works. */
    node = "h6";
    fd = serve("h6", EXT_ALL, 0);
    pid_t pid = spawn(client_patient, fd);
    for (uint32_t n = 8; n < 10; n++)
        CHECK(until(fd, IOCTL) == 0 && answer_ioctl(fd, 1, &n, 4) == 0);
    CHECK(outcome(pid) == 0);
    close(fd);
}

/* --- Who may not. --- */

static void client_unprivileged(void)
{
    CHECK(chmod("/dev/scheme", 0666) == 0);
    CHECK(setuid(1000) == 0);
    FAILS(EPERM, create("h7", 0, 0));
}

static void test_rights(void)
{
    pid_t pid = spawn(client_unprivileged, -1);
    CHECK(outcome(pid) == 0);
    CHECK(chmod("/dev/scheme", 0600) == 0);
    int fd = open("/dev/fuse", O_RDWR);
    CHECK(fd >= 0);
    char buf[10000];
    FAILS(EPERM, read(fd, buf, sizeof buf));
    FAILS(EPERM, write(fd, buf, 16));
    FAILS(ENOTTY, ioctl(fd, IOC_PUBLISH, buf));
    close(fd);
}

int main(void)
{
    signal(SIGPIPE, SIG_IGN);
    setvbuf(stdout, 0, _IOLBF, 0);
    alarm(150);
    test_server_dies();
    test_lies();
    test_silence();
    test_resume();
    test_attributes();
    test_rights();
    test_noise();
    return check_done();
}
