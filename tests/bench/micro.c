/*
 * Micro-measures of system calls: nanoseconds per operation, printed as `NAME VALUE`.
 *
 * Under QEMU's `-icount shift=0,sleep=off` a nanosecond of guest time is one instruction, so the figures are instructions
 * per operation and repeat exactly. `micro NAME...` runs the named ones, `micro` all. Build: cc -O2 -static -pthread.
 */
#include "bench.h"
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *self;
static char dir[] = "/tmp/ursa-micro-XXXXXX";

static double getppid_(void) { return MEASURE(20000, syscall(SYS_getppid)); }

static double read_1(void)
{
    int fd = open("/dev/zero", O_RDONLY);
    char c;
    CHECK(fd >= 0);
    double r = MEASURE(20000, CHECK(read(fd, &c, 1) == 1));
    close(fd);
    return r;
}

static double write_1(void)
{
    int fd = open("/dev/null", O_WRONLY);
    CHECK(fd >= 0);
    double r = MEASURE(20000, CHECK(write(fd, "x", 1) == 1));
    close(fd);
    return r;
}

static double open_close(void)
{
    return MEASURE(5000, { int fd = open("/etc/passwd", O_RDONLY); CHECK(fd >= 0); close(fd); });
}

static double stat_(void)
{
    struct stat st;
    return MEASURE(10000, CHECK(stat("/etc/passwd", &st) == 0));
}

static double read_4k(void)
{
    char path[64], page[4096] = { 1 };
    snprintf(path, sizeof path, "%s/4k", dir);
    int fd = open(path, O_RDWR | O_CREAT, 0600);
    CHECK(fd >= 0 && write(fd, page, sizeof page) == sizeof page);
    double r = MEASURE(10000, CHECK(pread(fd, page, sizeof page, 0) == sizeof page));
    close(fd);
    unlink(path);
    return r;
}

static double create_delete(void)
{
    char path[64];
    snprintf(path, sizeof path, "%s/new", dir);
    return MEASURE(3000, { int fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0600); CHECK(fd >= 0); close(fd); CHECK(unlink(path) == 0); });
}

static double pipe_same_thread(void)
{
    int p[2];
    char c = 'x';
    CHECK(pipe(p) == 0);
    double r = MEASURE(10000, { CHECK(write(p[1], &c, 1) == 1); CHECK(read(p[0], &c, 1) == 1); });
    close(p[0]);
    close(p[1]);
    return r;
}

/* A token goes round a ring of `n` processes through pipes; the result is the cost of one hop, with its switch. */
static double ring(int n, int rounds)
{
    int (*p)[2] = calloc(n, sizeof *p);
    pid_t *child = calloc(n, sizeof *child);
    char c = 'x';
    for (int i = 0; i < n; i++)
        CHECK(pipe(p[i]) == 0);
    for (int i = 1; i < n; i++) {
        child[i] = fork();
        CHECK(child[i] >= 0);
        if (child[i] == 0) {
            for (int j = 0; j < n; j++) {
                if (j != i) close(p[j][0]);
                if (j != (i + 1) % n) close(p[j][1]);
            }
            while (read(p[i][0], &c, 1) == 1)
                if (write(p[(i + 1) % n][1], &c, 1) != 1) break;
            _exit(0);
        }
    }
    for (int j = 1; j < n; j++) {
        close(p[j][0]);
        if (j != 1) close(p[j][1]);
    }
    close(p[0][1]);
    int out = p[1 % n][1];
    double r = MEASURE(rounds, { CHECK(write(out, &c, 1) == 1); CHECK(read(p[0][0], &c, 1) == 1); }) / n;
    close(out);
    close(p[0][0]);
    for (int i = 1; i < n; i++)
        waitpid(child[i], NULL, 0);
    free(p);
    free(child);
    return r;
}

static double switch_2(void) { return ring(2, 3000); }
static double switch_16(void) { return ring(16, 400); }

static uint32_t turn;
static int hand_off_rounds;

static long futex(uint32_t *word, int op, uint32_t value) { return syscall(SYS_futex, word, op | FUTEX_PRIVATE_FLAG, value, NULL, NULL, 0); }

static void await_turn(uint32_t mine)
{
    uint32_t seen;
    while ((seen = __atomic_load_n(&turn, __ATOMIC_ACQUIRE)) != mine)
        futex(&turn, FUTEX_WAIT, seen);
}

static void pass_turn(uint32_t next)
{
    __atomic_store_n(&turn, next, __ATOMIC_RELEASE);
    futex(&turn, FUTEX_WAKE, 1);
}

static void *futex_partner(void *arg)
{
    (void)arg;
    for (int i = 0; i < hand_off_rounds; i++) {
        await_turn(1);
        pass_turn(0);
    }
    return NULL;
}

static double futex_hand_off(void)
{
    pthread_t t;
    hand_off_rounds = 3000;
    turn = 0;
    CHECK(pthread_create(&t, NULL, futex_partner, NULL) == 0);
    uint64_t start = now();
    for (int i = 0; i < hand_off_rounds; i++) {
        pass_turn(1);
        await_turn(0);
    }
    double r = (double)(now() - start) / hand_off_rounds / 2;
    pthread_join(t, NULL);
    return r;
}

static double page_fault(void)
{
    size_t pages = 2048, len = pages * 4096;
    char *m = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(m != MAP_FAILED);
    madvise(m, len, MADV_NOHUGEPAGE);
    uint64_t start = now();
    for (size_t i = 0; i < len; i += 4096)
        m[i] = 1;
    double r = (double)(now() - start) / pages;
    munmap(m, len);
    return r;
}

static double mmap_touch_64m(void)
{
    size_t len = 64u << 20;
    return MEASURE(3, {
        char *m = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(m != MAP_FAILED);
        for (size_t i = 0; i < len; i += 4096) m[i] = 1;
        munmap(m, len);
    });
}

static double fork_exit(void)
{
    return MEASURE(200, { pid_t p = fork(); CHECK(p >= 0); if (p == 0) _exit(0); CHECK(waitpid(p, NULL, 0) == p); });
}

static double fork_exec(void)
{
    return MEASURE(100, {
        pid_t p = fork();
        CHECK(p >= 0);
        if (p == 0) { execl(self, self, "--exit", (char *)NULL); _exit(127); }
        int status;
        CHECK(waitpid(p, &status, 0) == p && status == 0);
    });
}

static void *nothing(void *arg) { return arg; }

static double thread_create(void)
{
    return MEASURE(500, { pthread_t t; CHECK(pthread_create(&t, NULL, nothing, NULL) == 0); pthread_join(t, NULL); });
}

static volatile int signals;
static void on_signal(int s) { (void)s; signals++; }

static double signal_delivery(void)
{
    struct sigaction a = { .sa_handler = on_signal };
    CHECK(sigaction(SIGUSR1, &a, NULL) == 0);
    pid_t pid = getpid(), tid = gettid();
    return MEASURE(5000, syscall(SYS_tgkill, pid, tid, SIGUSR1));
}

static double epoll_1000(void)
{
    enum { N = 1000 };
    static int fds[N];
    struct rlimit lim;
    getrlimit(RLIMIT_NOFILE, &lim);
    lim.rlim_cur = lim.rlim_max;
    setrlimit(RLIMIT_NOFILE, &lim);
    int ep = epoll_create1(0);
    CHECK(ep >= 0);
    for (int i = 0; i < N; i++) {
        struct epoll_event e = { .events = EPOLLIN, .data.u32 = i };
        CHECK((fds[i] = eventfd(0, EFD_NONBLOCK)) >= 0);
        CHECK(epoll_ctl(ep, EPOLL_CTL_ADD, fds[i], &e) == 0);
    }
    uint64_t v = 1;
    int next = 0;
    struct epoll_event e[8];
    double r = MEASURE(5000, {
        int fd = fds[next = (next + 7) % N];
        CHECK(write(fd, &v, 8) == 8);
        CHECK(epoll_wait(ep, e, 8, -1) == 1);
        CHECK(read(fd, &v, 8) == 8);
    });
    for (int i = 0; i < N; i++)
        close(fds[i]);
    close(ep);
    return r;
}

static const struct { const char *name; double (*run)(void); } measures[] = {
    { "getppid", getppid_ }, { "read-1", read_1 }, { "write-1", write_1 }, { "open-close", open_close }, { "stat", stat_ },
    { "read-4k", read_4k }, { "create-delete", create_delete }, { "pipe", pipe_same_thread }, { "switch-2", switch_2 },
    { "switch-16", switch_16 }, { "futex-hand-off", futex_hand_off }, { "page-fault", page_fault },
    { "mmap-touch-64m", mmap_touch_64m }, { "fork-exit", fork_exit }, { "fork-exec", fork_exec },
    { "thread-create", thread_create }, { "signal", signal_delivery }, { "epoll-1000", epoll_1000 },
};

int main(int argc, char **argv)
{
    self = argv[0][0] == '/' ? argv[0] : "/proc/self/exe";
    if (argc == 2 && strcmp(argv[1], "--exit") == 0)
        _exit(0);
    CHECK(mkdtemp(dir) != NULL);
    for (size_t i = 0; i < sizeof measures / sizeof *measures; i++) {
        int wanted = argc == 1;
        for (int j = 1; j < argc; j++)
            wanted |= strcmp(argv[j], measures[i].name) == 0;
        if (wanted) {
            printf("%s %.1f\n", measures[i].name, measures[i].run());
            fflush(stdout);
        }
    }
    rmdir(dir);
    return 0;
}
