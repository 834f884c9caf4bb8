/* Hostile system calls. `sweep pointers`: every call with a bad pointer at every argument, in turn. `sweep random SECONDS`:
 * random calls with random arguments on all CPUs. Start as root: the calls are made by user 65534 (nobody), in an empty
 * directory of its own, so that they cannot harm the test. What may happen is an error or a signal to the caller; what may
 * not is a caller that SIGKILL does not end, memory that does not come back, or the end of the system. */
#include "../check.h"
#include <fcntl.h>
#include <grp.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { LAST_CALL = 470, NOBODY = 65534 };

/* Calls that end or replace the caller, or that only wait. */
static int skipped(long nr)
{
    switch (nr) {
    case SYS_exit: case SYS_exit_group: case SYS_rt_sigreturn: case SYS_pause: case SYS_vfork: case SYS_fork:
    case SYS_clone: case SYS_clone3: case SYS_rt_sigsuspend:
        return 1;
    default:
        return 0;
    }
}

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void become_nobody(void)
{
    struct rlimit processes = {400, 400}, size = {1 << 20, 1 << 20}, memory = {512 << 20, 512 << 20}, none = {0, 0};
    setrlimit(RLIMIT_NPROC, &processes);
    setrlimit(RLIMIT_FSIZE, &size);
    setrlimit(RLIMIT_AS, &memory);
    setrlimit(RLIMIT_CORE, &none);
    if (setgroups(0, NULL) || setgid(NOBODY) || setuid(NOBODY))
        _exit(99);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    signal(SIGXFSZ, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
}

/* Descriptors of many kinds at small numbers, where random arguments find them. */
static void open_some(void)
{
    int pair[2];
    int nothing = open("/dev/null", O_RDWR);
    for (int fd = 0; fd < 3; fd++)
        dup2(nothing, fd);
    socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair);
    if (pipe2(pair, O_NONBLOCK))
        return;
    epoll_create1(0);
    eventfd(3, EFD_NONBLOCK);
    syscall(SYS_memfd_create, "m", 2);
    open(".", O_RDONLY | O_DIRECTORY);
    open("file", O_RDWR | O_CREAT, 0600);
    open("/dev/null", O_RDWR);
    open("/dev/zero", O_RDWR);
    open("/proc/self/maps", O_RDONLY);
    open("/proc/self/mem", O_RDWR);
    open("/dev/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK);
}

static uint64_t state;
static uint64_t draw(void)
{
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return state * 0x2545f4914f6cdd1dull;
}

static unsigned char *arena; /* readable, then read-only, then no access, one page each */

static uint64_t bad_pointer(unsigned kind)
{
    switch (kind) {
    case 0: return 1;
    case 1: return 0x7ffffffff000; /* the end of user space */
    case 2: return 0x800000000000; /* not canonical */
    case 3: return 0xffff800000000000; /* the kernel's */
    case 4: return ~0ull;
    case 5: return (uintptr_t)arena + 2 * 4096 - 1; /* over the edge of what is there */
    case 6: return (uintptr_t)arena + 2 * 4096;     /* no access */
    default: return (uintptr_t)arena + 4096;        /* read-only */
    }
}

static uint64_t argument(void)
{
    switch (draw() % 12) {
    case 0: return draw();
    case 1: return draw() % 16;
    case 2: return draw() % 4096;
    case 3: return -(draw() % 4096);
    case 4: return 1ull << draw() % 64;
    case 5: return (1ull << draw() % 64) - 1;
    case 6: return bad_pointer(draw() % 8);
    case 7: return 0;
    case 8: return draw() & 0xffffffff;
    default: return (uintptr_t)arena + draw() % 4096;
    }
}

static void call_with_bad_pointers(long nr)
{
    become_nobody();
    open_some();
    for (int at = 0; at < 6; at++)
        for (unsigned kind = 0; kind < 8; kind++) {
            uint64_t a[6] = {(uintptr_t)arena, (uintptr_t)arena + 512, 64, 0, (uintptr_t)arena + 1024, 0};
            if (at)
                a[0] = 3 + kind;
            a[at] = bad_pointer(kind);
            struct timespec soon = {0, 20000000};
            timer_t timer;
            struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGALRM};
            timer_create(CLOCK_MONOTONIC, &event, &timer);
            struct itimerspec each = {soon, soon};
            timer_settime(timer, 0, &each, NULL);
            syscall(nr, a[0], a[1], a[2], a[3], a[4], a[5]);
            timer_delete(timer);
        }
    _exit(0);
}

static void on_alarm(int sig)
{
    (void)sig;
}

/* Waits for a child; after `patience` seconds kills it; a killed child has a minute to be gone. */
static int end_of(pid_t pid, double patience)
{
    int status;
    for (double end = seconds() + patience; seconds() < end; usleep(2000))
        if (waitpid(pid, &status, WNOHANG) == pid)
            return status;
    kill(pid, SIGKILL);
    for (double end = seconds() + 60; seconds() < end; usleep(5000))
        if (waitpid(pid, &status, WNOHANG) == pid)
            return status;
    printf("process %d does not end\n", pid);
    CHECK(!"SIGKILL ends every process");
    return -1;
}

static void pointers(void)
{
    for (long nr = 0; nr < LAST_CALL; nr++) {
        if (skipped(nr))
            continue;
        pid_t pid = fork();
        if (pid == 0) {
            struct sigaction action = {.sa_handler = on_alarm};
            sigaction(SIGALRM, &action, NULL);
            call_with_bad_pointers(nr);
        }
        end_of(pid, 20);
    }
}

static void random_calls(void)
{
    become_nobody();
    open_some();
    struct sigaction action = {.sa_handler = on_alarm};
    struct timespec step = {0, 5000000};
    for (;;) {
        sigset_t none;
        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        sigaction(SIGALRM, &action, NULL);
        timer_t timer;
        struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGALRM};
        if (timer_create(CLOCK_MONOTONIC, &event, &timer))
            _exit(1);
        struct itimerspec each = {step, step};
        timer_settime(timer, 0, &each, NULL);
        for (int i = 0; i < 200; i++) {
            long nr = draw() % LAST_CALL;
            /* Not the parent and not each other: what signals do has its own tests. */
            if (skipped(nr) || nr == SYS_kill || nr == SYS_tgkill || nr == SYS_tkill || nr == SYS_rt_sigqueueinfo ||
                nr == SYS_timer_delete || nr == SYS_setrlimit || nr == SYS_prlimit64)
                continue;
            syscall(nr, argument(), argument(), argument(), argument(), argument(), argument());
        }
        timer_delete(timer);
    }
}

static long available_kib(void)
{
    char line[128];
    long value = 0;
    FILE *f = fopen("/proc/meminfo", "r");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "MemAvailable: %ld", &value) == 1)
            break;
    if (f)
        fclose(f);
    return value;
}

int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc < 2 || getuid() != 0)
        return 2;
    char folder[] = "/tmp/hostileXXXXXX";
    CHECK(mkdtemp(folder) && chown(folder, NOBODY, NOBODY) == 0 && chdir(folder) == 0);
    arena = mmap(NULL, 4 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(mprotect(arena + 4096, 4096, PROT_READ) == 0 && mprotect(arena + 8192, 4096, PROT_NONE) == 0);
    long before = available_kib();

    if (strcmp(argv[1], "pointers") == 0) {
        pointers();
    } else {
        double end = seconds() + atof(argv[2]);
        uint64_t first = argc > 3 ? strtoull(argv[3], NULL, 0) : 1, seed = first;
        long workers = sysconf(_SC_NPROCESSORS_ONLN) * 2;
        pid_t pids[64] = {0};
        double since[64];
        while (seconds() < end) {
            for (long w = 0; w < workers && w < 64; w++) {
                if (pids[w] && waitpid(pids[w], NULL, WNOHANG) == 0) {
                    if (seconds() < since[w] + 2)
                        continue;
                    end_of(pids[w], 0);
                }
                state = seed++ * 0x9e3779b97f4a7c15ull | 1;
                since[w] = seconds();
                if ((pids[w] = fork()) == 0)
                    random_calls();
            }
            usleep(20000);
        }
        for (long w = 0; w < workers && w < 64; w++)
            if (pids[w])
                end_of(pids[w], 0);
        printf("%llu workers from seed %llu\n", (unsigned long long)(seed - first), (unsigned long long)first);
    }
    /* What the calls started runs on as nobody; it must end too. */
    CHECK(chdir("/") == 0);
    for (int round = 0; round < 200 && system("pkill -KILL -u 65534 2>/dev/null") == 0; round++)
        usleep(50000);
    CHECK(system("rm -rf /tmp/hostile*") == 0);
    long after = 0;
    for (int round = 0; round < 100 && (after = available_kib()) < before - 32 * 1024; round++)
        usleep(100000);
    printf("available before %ld KiB, after %ld KiB\n", before, after);
    CHECK(after >= before - 32 * 1024);
    return check_done();
}
