/* Hostile system calls. `sweep pointers`: every call with a bad pointer at every argument, in turn. `sweep random SECONDS
 * [SEED [FIRST LAST]]`: random calls, of those numbered FIRST to LAST, with random arguments on all CPUs. Start as root: the
 * calls are made by user 65534 (nobody), in an empty directory of its own, so that they cannot harm the test. What may happen
 * is an error or a signal to the caller; what may not is a caller that SIGKILL does not end, memory that does not come back,
 * or the end of the system. */
#include "hostile.h"
#include <fcntl.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <sys/epoll.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>

enum { LAST_CALL = 470 };

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
static long first_call = 0, end_call = LAST_CALL;
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
            long nr = first_call + draw() % (end_call - first_call);
            /* Not the parent and not each other: what signals do has its own tests. */
            if (skipped(nr) || nr == SYS_kill || nr == SYS_tgkill || nr == SYS_tkill || nr == SYS_rt_sigqueueinfo ||
                nr == SYS_timer_delete || nr == SYS_setrlimit || nr == SYS_prlimit64)
                continue;
            uint64_t a[6];
            for (int at = 0; at < 6; at++)
                a[at] = argument();
            /* Seldom, because each signal to the caller then stops it till the parent looks. */
            if (nr == SYS_ptrace && a[0] == PTRACE_TRACEME && draw() % 64)
                continue;
            syscall(nr, a[0], a[1], a[2], a[3], a[4], a[5]);
        }
        timer_delete(timer);
    }
}

/* System V objects live on without processes: those that nobody made are removed, so that they do not count as lost. */
static void remove_ipc(const char *path, int (*creator)(int), int (*removal)(int))
{
    char line[256];
    int ids[8192], count = 0;
    FILE *f = fopen(path, "r");
    while (f && fgets(line, sizeof line, f))
        if (count < 8192 && sscanf(line, "%*d %d", &ids[count]) == 1)
            count++;
    if (f)
        fclose(f);
    for (int at = 0; at < count; at++)
        if (creator(ids[at]) == NOBODY)
            CHECK(removal(ids[at]) == 0);
}

static int shm_creator(int id)
{
    struct shmid_ds ds;
    return shmctl(id, IPC_STAT, &ds) ? -1 : (int)ds.shm_perm.cuid;
}
static int shm_removal(int id)
{
    return shmctl(id, IPC_RMID, NULL);
}
static int sem_creator(int id)
{
    struct semid_ds ds;
    return semctl(id, 0, IPC_STAT, &ds) ? -1 : (int)ds.sem_perm.cuid;
}
static int sem_removal(int id)
{
    return semctl(id, 0, IPC_RMID);
}
static int msg_creator(int id)
{
    struct msqid_ds ds;
    return msgctl(id, IPC_STAT, &ds) ? -1 : (int)ds.msg_perm.cuid;
}
static int msg_removal(int id)
{
    return msgctl(id, IPC_RMID, NULL);
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
    struct memory before = memory_now();

    if (strcmp(argv[1], "pointers") == 0) {
        pointers();
    } else {
        double end = seconds() + atof(argv[2]);
        if (argc > 5)
            first_call = atol(argv[4]), end_call = atol(argv[5]) + 1;
        uint64_t first = argc > 3 ? strtoull(argv[3], NULL, 0) : 1, seed = first;
        long workers = sysconf(_SC_NPROCESSORS_ONLN) * 2;
        pid_t pids[64] = {0};
        double since[64];
        int status;
        while (seconds() < end) {
            for (long w = 0; w < workers && w < 64; w++) {
                if (pids[w] && !has_ended(pids[w], &status)) {
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
    CHECK(chdir("/") == 0);
    CHECK(end_what_is_left() == 0);
    remove_ipc("/proc/sysvipc/shm", shm_creator, shm_removal);
    remove_ipc("/proc/sysvipc/sem", sem_creator, sem_removal);
    remove_ipc("/proc/sysvipc/msg", msg_creator, msg_removal);
    CHECK(system("rm -rf /tmp/hostile*") == 0);
    CHECK(memory_is_back(&before));
    return check_done();
}
