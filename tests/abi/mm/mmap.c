/* mmap, munmap, mprotect, brk: errors in Linux's order, placement, what is visible afterwards. */
#include "../check.h"
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define P 4096UL
static sigjmp_buf jump;
static volatile int seen_signo, seen_code;
static void *volatile seen_addr;

static void on_fault(int signo, siginfo_t *info, void *context)
{
    (void)context;
    seen_signo = signo;
    seen_code = info->si_code;
    seen_addr = info->si_addr;
    siglongjmp(jump, 1);
}

/* The signal number of a read or write at p, 0 if it works. */
static int probe(volatile char *p, int write)
{
    seen_signo = seen_code = 0;
    if (sigsetjmp(jump, 1) == 0) {
        if (write)
            *p = 1;
        else
            (void)*p;
    }
    return seen_signo;
}

static void *anon(size_t pages, int prot)
{
    return mmap(0, pages * P, prot, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static int maps_lines(uintptr_t from, uintptr_t to)
{
    FILE *f = fopen("/proc/self/maps", "r");
    char line[512];
    int n = 0;
    if (!f)
        return -1;
    while (fgets(line, sizeof line, f)) {
        unsigned long a, b;
        if (sscanf(line, "%lx-%lx", &a, &b) == 2 && a < to && b > from)
            n++;
    }
    fclose(f);
    return n;
}

static void arguments(void)
{
    int rw = PROT_READ | PROT_WRITE, pa = MAP_PRIVATE | MAP_ANONYMOUS;
    FAILS(EINVAL, (long)mmap(0, 0, rw, pa, -1, 0));
    FAILS(EINVAL, (long)mmap(0, P, rw, MAP_ANONYMOUS, -1, 0));
    FAILS(EBADF, (long)mmap(0, P, rw, MAP_PRIVATE, -1, 0));
    FAILS(EINVAL, (long)mmap((void *)0x10000001, P, rw, pa | MAP_FIXED, -1, 0));
    FAILS(ENOMEM, (long)mmap(0, 1UL << 47, rw, pa, -1, 0));
    FAILS(ENOMEM, (long)mmap((void *)0x7fffffff0000, 0x100000, rw, pa | MAP_FIXED, -1, 0));
    FAILS(ENOMEM, (long)mmap(0, ~0UL, rw, pa, -1, 0));
    FAILS(EINVAL, syscall(SYS_mmap, 0, P, rw, MAP_PRIVATE, 0, 123));
    FAILS(EINVAL, (long)mmap(0, P, rw, MAP_SHARED | MAP_ANONYMOUS | MAP_GROWSDOWN, -1, 0));

    int fd = open("/proc/self/exe", O_RDONLY);
    CHECK(fd >= 0);
    FAILS(EACCES, (long)mmap(0, P, rw, MAP_SHARED, fd, 0));
    void *p = mmap(0, P, PROT_READ, MAP_SHARED, fd, 0);
    CHECK(p != MAP_FAILED);
    FAILS(EACCES, mprotect(p, P, rw));
    munmap(p, P);
    FAILS(EOPNOTSUPP, (long)mmap(0, P, PROT_READ, MAP_SHARED_VALIDATE | 0x400000, fd, 0));
    close(fd);
    fd = open("/dev", O_RDONLY | O_DIRECTORY);
    FAILS(ENODEV, (long)mmap(0, P, PROT_READ, MAP_PRIVATE, fd, 0));
    close(fd);
    int pipes[2];
    CHECK(pipe(pipes) == 0);
    FAILS(ENODEV, (long)mmap(0, P, PROT_READ, MAP_PRIVATE, pipes[0], 0));
    FAILS(EACCES, (long)mmap(0, P, PROT_READ, MAP_PRIVATE, pipes[1], 0));
    close(pipes[0]);
    close(pipes[1]);

    FAILS(EINVAL, munmap((void *)1, P));
    FAILS(EINVAL, munmap((void *)P, 0));
    FAILS(EINVAL, munmap((void *)P, ~0UL));
    CHECK(munmap((void *)0x10000, P) == 0);
    FAILS(EINVAL, mprotect((void *)1, P, PROT_READ));
    CHECK(mprotect((void *)P, 0, PROT_READ) == 0);
    FAILS(ENOMEM, mprotect((void *)0x10000, P, PROT_READ));
    p = anon(1, rw);
    FAILS(EINVAL, mprotect(p, P, 0x40));
    FAILS(EINVAL, mprotect(p, P, PROT_READ | PROT_GROWSDOWN));
    munmap(p, P);
}

static void placement(void)
{
    char *p = anon(4, PROT_READ);
    CHECK(p != MAP_FAILED && ((uintptr_t)p & (P - 1)) == 0);
    munmap(p, 4 * P);
    /* A hint that is free is taken, one that is not is only a hint. */
    char *q = mmap(p, P, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(q == p);
    char *r = mmap(p, P, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(r != MAP_FAILED && r != p);
    FAILS(EEXIST, (long)mmap(p, P, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0));
    CHECK(mmap(p, P, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == p);
    munmap(p, P);
    munmap(r, P);
    char *low = mmap(0, P, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    CHECK(low != MAP_FAILED && (uintptr_t)low < 0x80000000UL);
    munmap(low, P);
    /* New mappings come below one another and merge. */
    char *a = anon(1, PROT_READ | PROT_WRITE), *b = anon(1, PROT_READ | PROT_WRITE);
    CHECK(b + P == a);
    CHECK(maps_lines((uintptr_t)b, (uintptr_t)a + P) == 1);
    munmap(b, 2 * P);
}

static void protection(void)
{
    char *p = anon(8, PROT_READ | PROT_WRITE);
    memset(p, 5, 8 * P);
    CHECK(mprotect(p + 2 * P, P, PROT_READ) == 0);
    CHECK(maps_lines((uintptr_t)p, (uintptr_t)p + 8 * P) == 3);
    CHECK(probe(p + 2 * P, 1) == SIGSEGV && seen_code == SEGV_ACCERR && seen_addr == p + 2 * P);
    CHECK(probe(p + 2 * P, 0) == 0 && probe(p + 3 * P, 1) == 0);
    CHECK(mprotect(p + 2 * P, P, PROT_NONE) == 0);
    CHECK(probe(p + 2 * P + 7, 0) == SIGSEGV && seen_code == SEGV_ACCERR && seen_addr == p + 2 * P + 7);
    CHECK(mprotect(p + 2 * P, P, PROT_READ | PROT_WRITE) == 0);
    CHECK(p[2 * P] == 5 && probe(p + 2 * P, 1) == 0);
    CHECK(maps_lines((uintptr_t)p, (uintptr_t)p + 8 * P) == 1);
    /* Write alone can be read; nothing can be executed. */
    CHECK(mprotect(p, P, PROT_WRITE) == 0 && probe(p, 0) == 0);
    if (sigsetjmp(jump, 1) == 0) {
        seen_signo = 0;
        ((void (*)(void))(p + 4 * P))();
    }
    CHECK(seen_signo == SIGSEGV && seen_code == SEGV_ACCERR && seen_addr == p + 4 * P);
    CHECK(munmap(p + P, P) == 0);
    CHECK(probe(p + P, 0) == SIGSEGV && seen_code == SEGV_MAPERR && seen_addr == p + P);
    /* Up to the hole it is done, then it fails. */
    FAILS(ENOMEM, mprotect(p, 3 * P, PROT_READ));
    CHECK(probe(p, 1) == SIGSEGV);
    CHECK(munmap(p, 8 * P) == 0);
    /* Kernel copies see the same rights. */
    p = anon(2, PROT_READ);
    int fd = open("/dev/zero", O_RDONLY);
    FAILS(EFAULT, read(fd, p, 10));
    close(fd);
    munmap(p, 2 * P);
}

static void files(void)
{
    char name[] = "/tmp/abi-mmap-XXXXXX";
    int fd = mkstemp(name);
    CHECK(fd >= 0);
    unlink(name);
    CHECK(ftruncate(fd, 2 * P + 100) == 0);
    char *s = mmap(0, 4 * P, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    char *q = mmap(0, 4 * P, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    CHECK(s != MAP_FAILED && q != MAP_FAILED);
    strcpy(s, "shared");
    char buf[16] = "";
    CHECK(pread(fd, buf, 7, 0) == 7 && strcmp(buf, "shared") == 0);
    CHECK(strcmp(q, "shared") == 0);
    strcpy(q, "mine");
    CHECK(strcmp(s, "shared") == 0);
    CHECK(pwrite(fd, "again", 6, 0) == 6 && strcmp(s, "again") == 0 && strcmp(q, "mine") == 0);
    /* The last page reads as zeroes past the end; the next is SIGBUS. */
    CHECK(s[2 * P + 200] == 0);
    CHECK(probe(s + 3 * P, 0) == SIGBUS && seen_code == BUS_ADRERR && seen_addr == s + 3 * P);
    CHECK(probe(q + 3 * P, 1) == SIGBUS);
    FAILS(EFAULT, write(fd, s + 3 * P, 1));
    /* Truncation takes pages away, private copies too. */
    q[2 * P] = 'x';
    s[P + 5] = 'y';
    CHECK(ftruncate(fd, P) == 0);
    CHECK(probe(q + 2 * P, 0) == SIGBUS && probe(s + P, 0) == SIGBUS);
    CHECK(ftruncate(fd, 2 * P) == 0 && s[P + 5] == 0);
    /* What was cut from a page that stays is zero, too. */
    memset(s, 'z', P);
    CHECK(ftruncate(fd, 10) == 0 && ftruncate(fd, P) == 0 && s[9] == 'z' && s[10] == 0);
    /* A mapping outlives the descriptor. */
    close(fd);
    s[1] = 'k';
    CHECK(s[1] == 'k');
    munmap(s, 4 * P);
    munmap(q, 4 * P);
}

static void heap_and_limits(void)
{
    char *start = sbrk(0);
    CHECK(sbrk(5 * P) == start);
    memset(start, 1, 5 * P);
    CHECK(brk(start) == 0 && sbrk(0) == start);
    CHECK(sbrk(P) == start && start[0] == 0);
    CHECK((void *)syscall(SYS_brk, 0) == sbrk(0));
    CHECK((void *)syscall(SYS_brk, ~0UL) == sbrk(0));
    pid_t pid = fork();
    if (pid == 0) {
        struct rlimit limit = {64 << 20, 64 << 20};
        setrlimit(RLIMIT_AS, &limit);
        int ok = mmap(0, 128 << 20, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED && errno == ENOMEM;
        ok = ok && mmap(0, 1 << 20, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED;
        limit.rlim_cur = limit.rlim_max = 1 << 20;
        setrlimit(RLIMIT_DATA, &limit);
        ok = ok && (long)sbrk(4 << 20) == -1 && errno == ENOMEM;
        ok = ok && mmap(0, 4 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED;
        ok = ok && mmap(0, 4 << 20, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0) != MAP_FAILED;
        _exit(ok ? 0 : 1);
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
}

static int deep(int n)
{
    volatile char page[4096];
    page[0] = n;
    return n == 0 ? 0 : deep(n - 1) + page[0] * 0;
}

static void stack(void)
{
    CHECK(deep(1000) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        signal(SIGSEGV, SIG_DFL);
        struct rlimit limit = {1 << 20, 1 << 20};
        setrlimit(RLIMIT_STACK, &limit);
        deep(1 << 20);
        _exit(0);
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
    /* A stack of one's own grows, up to what is below it. */
    char *area = mmap(0, 1024 * P, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(area, 1024 * P);
    char *grow = mmap(area + 1000 * P, P, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_GROWSDOWN, -1, 0);
    CHECK(grow == area + 1000 * P);
    CHECK(probe(grow - 1, 1) == 0 && probe(grow - 100 * P, 1) == 0);
    CHECK(maps_lines((uintptr_t)grow - 100 * P, (uintptr_t)grow + P) == 1);
    munmap(area, 1001 * P);
}

int main(void)
{
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    static char altstack[65536];
    stack_t ss = {.ss_sp = altstack, .ss_size = sizeof altstack};
    sigaltstack(&ss, 0);
    sigaction(SIGSEGV, &action, 0);
    sigaction(SIGBUS, &action, 0);
    arguments();
    placement();
    protection();
    files();
    heap_and_limits();
    stack();
    return check_done();
}
