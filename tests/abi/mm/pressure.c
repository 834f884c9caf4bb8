/* Memory that runs out: processes that take all there is are killed, those who hold most; who holds little goes on, files in memory
 * keep their contents, who waits for one of the dead is woken, and afterwards the memory is back. Takes all the memory of the
 * machine: for small virtual machines only. */
#include "../check.h"
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static long available(void)
{
    char line[256];
    long kib = -1;
    FILE *f = fopen("/proc/meminfo", "r");
    while (f && fgets(line, sizeof line, f))
        sscanf(line, "MemAvailable: %ld", &kib);
    fclose(f);
    return kib;
}

static void adjust(int adj)
{
    int fd = open("/proc/self/oom_score_adj", O_WRONLY);
    dprintf(fd, "%d", adj);
    close(fd);
}

/* Takes memory until it is killed; says so on `started` first. */
static void hog(int started, int adj)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    adjust(adj);
    (void)!write(started, "h", 1);
    for (;;) {
        char *p = mmap(0, 8 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED)
            continue; /* As on Linux it is the touch that kills. */
        for (int i = 0; i < 8 << 20; i += 4096)
            p[i] = 1;
    }
}

/* The signal that ended the child, within two minutes. */
static int killed_by(pid_t pid)
{
    int status;
    for (int i = 0; i < 12000; i++) {
        if (waitpid(pid, &status, WNOHANG) == pid)
            return WIFSIGNALED(status) ? WTERMSIG(status) : -WEXITSTATUS(status);
        usleep(10000);
    }
    kill(pid, SIGKILL);
    waitpid(pid, &status, 0);
    return 0;
}

static int memory_is_back(long before)
{
    for (int i = 0; i < 300; i++) {
        if (available() > before - before / 10)
            return 1;
        usleep(20000);
    }
    printf("%ld KiB of %ld are back\n", available(), before);
    return 0;
}

/* A process that holds a little and looks at it again and again. */
static pid_t bystander(int *stop)
{
    int p[2];
    pipe(p);
    pid_t pid = fork();
    if (pid == 0) {
        close(p[1]);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        enum { SIZE = 8 << 20 };
        unsigned char *m = mmap(0, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        for (int i = 0; i < SIZE; i++)
            m[i] = i % 251;
        struct pollfd until = { p[0], POLLIN, 0 };
        do
            for (int i = 0; i < SIZE; i += 509)
                if (m[i] != i % 251)
                    _exit(1);
        while (poll(&until, 1, 20) == 0);
        _exit(42);
    }
    close(p[0]);
    *stop = p[1];
    return pid;
}

static void one_by_one(void)
{
    int started[2];
    char c;
    pipe(started);
    for (int round = 0; round < 3; round++) {
        long before = available();
        pid_t pid = fork();
        if (pid == 0)
            hog(started[1], 0);
        CHECK(killed_by(pid) == SIGKILL);
        CHECK(read(started[0], &c, 1) == 1);
        CHECK(memory_is_back(before));
    }
    close(started[0]);
    close(started[1]);
}

/* Several at once, and one that asked to be spared longest. */
static void many_at_once(void)
{
    enum { HOGS = 5 };
    int started[2];
    pid_t pids[HOGS];
    long before = available();
    pipe(started);
    for (int i = 0; i < HOGS; i++) {
        pids[i] = fork();
        if (pids[i] == 0)
            hog(started[1], 100 * i);
    }
    for (int i = 0; i < HOGS; i++)
        CHECK(killed_by(pids[i]) == SIGKILL);
    CHECK(memory_is_back(before));
    close(started[0]);
    close(started[1]);
}

/* Most of the memory in files of a tmpfs, which cannot be taken from them: a hog beside them dies, they keep what they hold. */
static void files_in_memory(void)
{
    static char block[1 << 20];
    int started[2];
    pipe(started);
    CHECK(mkdir("/tmp/full", 0700) == 0 && mount("none", "/tmp/full", "tmpfs", 0, "size=60%") == 0);
    long before = available();
    int fd = open("/tmp/full/a", O_RDWR | O_CREAT, 0600);
    long blocks = before / 1024 / 2;
    for (long i = 0; i < blocks; i++) {
        memset(block, i % 253, sizeof block);
        CHECK(write(fd, block, sizeof block) == sizeof block);
    }
    for (int round = 0; round < 2; round++) {
        pid_t pid = fork();
        if (pid == 0)
            hog(started[1], 0);
        CHECK(killed_by(pid) == SIGKILL);
    }
    for (long i = 0; i < blocks; i++) {
        CHECK(pread(fd, block, sizeof block, i << 20) == sizeof block);
        for (unsigned at = 0; at < sizeof block; at += 4099)
            if (block[at] != (char)(i % 253)) {
                CHECK(!"a file has lost what it held");
                i = blocks;
                break;
            }
    }
    close(fd);
    /* Beyond its size it is full, and that kills nobody. */
    fd = open("/tmp/full/b", O_RDWR | O_CREAT, 0600);
    CHECK(ftruncate(fd, 8L << 30) == 0);
    FAILS(ENOSPC, fallocate(fd, 0, 0, 8L << 30));
    close(fd);
    CHECK(umount("/tmp/full") == 0 && rmdir("/tmp/full") == 0);
    CHECK(memory_is_back(before));
    close(started[0]);
    close(started[1]);
}

/* Shared memory of a dead hog's group goes too; readers of its pipe and waiters for it come to an end. */
static void *reader(void *arg)
{
    char c;
    return (void *)(long)read((long)arg, &c, 1);
}

static void waiters_are_woken(void)
{
    int started[2], held[2];
    char c;
    pipe(started);
    pipe(held);
    long before = available();
    pid_t pid = fork();
    if (pid == 0) {
        close(held[0]);
        pthread_t others[3];
        for (int i = 0; i < 3; i++)
            pthread_create(&others[i], 0, reader, (void *)(long)started[0]);
        hog(held[1], 0);
    }
    close(held[1]);
    CHECK(read(held[0], &c, 1) == 1);
    pthread_t waiting;
    void *result = (void *)7;
    pthread_create(&waiting, 0, reader, (void *)(long)held[0]);
    CHECK(killed_by(pid) == SIGKILL);
    CHECK(pthread_join(waiting, &result) == 0 && result == 0);
    CHECK(memory_is_back(before));
    close(held[0]);
    close(started[0]);
    close(started[1]);
}

int main(void)
{
    int stop, status;
    adjust(-900);
    pid_t quiet = bystander(&stop);
    one_by_one();
    many_at_once();
    files_in_memory();
    waiters_are_woken();
    close(stop);
    CHECK(waitpid(quiet, &status, 0) == quiet && WIFEXITED(status) && WEXITSTATUS(status) == 42);
    return check_done();
}
