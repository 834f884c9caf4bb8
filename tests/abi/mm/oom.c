/* Memory exhaustion: the process that takes all ends with SIGKILL, everyone else goes on, and the memory comes back. Only for
 * machines of at most 2 GiB without swap: elsewhere it is skipped. */
#include "../check.h"
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/sysinfo.h>
#include <sys/wait.h>
#include <unistd.h>

#define P 4096UL
#define RW (PROT_READ | PROT_WRITE)

static unsigned long available(void)
{
    struct sysinfo info;
    sysinfo(&info);
    return info.freeram * info.mem_unit;
}

static void hog_anonymous(void)
{
    for (;;) {
        char *p = mmap(0, 16 << 20, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED)
            _exit(3);
        for (size_t i = 0; i < 16 << 20; i += P)
            p[i] = 1;
    }
}

/* Memory that is in no process's tables, only in an object that this process made. */
static void hog_shmem(void)
{
    int fd = memfd_create("hog", 0);
    static char page[65536];
    memset(page, 1, sizeof page);
    for (;;)
        if (write(fd, page, sizeof page) != sizeof page)
            _exit(errno == ENOMEM || errno == ENOSPC ? 4 : 3);
}

/* One page for each page table. */
static void hog_tables(void)
{
    for (;;) {
        char *p = mmap(0, 1UL << 32, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED)
            _exit(3);
        for (size_t i = 0; i < 1UL << 32; i += 2 << 20)
            p[i] = 1;
    }
}

static void *toucher(void *arg)
{
    (void)arg;
    hog_anonymous();
    return 0;
}

static void hog_threads(void)
{
    pthread_t t[4];
    for (int i = 0; i < 4; i++)
        pthread_create(&t[i], 0, toucher, 0);
    for (;;)
        pause();
}

static void kernel_copy(void)
{
    int fd = open("/dev/zero", O_RDONLY);
    for (;;) {
        char *p = mmap(0, 16 << 20, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED || read(fd, p, 16 << 20) < 0)
            _exit(3);
    }
}

static void children(void)
{
    for (int i = 0; i < 8; i++)
        if (fork() == 0)
            hog_anonymous();
    int status;
    while (wait(&status) > 0)
        if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
            _exit(1);
    kill(getpid(), SIGKILL);
}

static void run(const char *name, void (*hog)(void))
{
    pid_t pid = fork();
    if (pid == 0) {
        hog();
        _exit(2);
    }
    int status = 0;
    CHECK(waitpid(pid, &status, 0) == pid);
    printf("%s: status %x, %lu MiB free\n", name, status, available() >> 20);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

/* A fork bomb stops at RLIMIT_NPROC. */
static void bomb(void)
{
    struct rlimit limit = {40, 40};
    setrlimit(RLIMIT_NPROC, &limit);
    if (geteuid() == 0 && setresuid(4242, 4242, 4242) != 0)
        _exit(3);
    int failed = 0;
    pid_t made[64];
    int n = 0;
    for (int i = 0; i < 64; i++) {
        pid_t pid = fork();
        if (pid == 0) {
            for (;;)
                pause();
        }
        if (pid > 0)
            made[n++] = pid;
        else if (errno == EAGAIN)
            failed++;
    }
    for (int i = 0; i < n; i++)
        kill(made[i], SIGKILL);
    while (wait(0) > 0)
        ;
    _exit(failed > 0 && n < 41 && n > 30 ? 0 : 1);
}

int main(void)
{
    struct sysinfo info;
    sysinfo(&info);
    if (info.totalram * info.mem_unit > 2UL << 30 || info.totalswap) {
        printf("skipped: too much memory to use up\n");
        return 0;
    }
    int fd = open("/proc/self/oom_score_adj", O_WRONLY);
    if (fd >= 0) {
        /* Children are to be chosen, not this. */
        CHECK(write(fd, "-500", 4) == 4);
        close(fd);
    }
    unsigned long before = available();
    run("anonymous", hog_anonymous);
    run("shmem", hog_shmem);
    run("tables", hog_tables);
    run("threads", hog_threads);
    run("kernel copy", kernel_copy);
    run("children", children);
    pid_t pid = fork();
    if (pid == 0)
        bomb();
    int status = 1;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    usleep(200000);
    CHECK(available() + (16 << 20) > before);
    return check_done();
}
