/* madvise, mlock, mincore, msync: what they do and what they refuse. */
#include "../check.h"
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif
#define P 4096UL
#define RW (PROT_READ | PROT_WRITE)

static long status_kb(const char *key)
{
    FILE *f = fopen("/proc/self/status", "r");
    char line[256];
    long value = -1;
    if (!f)
        return -1;
    while (fgets(line, sizeof line, f))
        if (strncmp(line, key, strlen(key)) == 0)
            sscanf(line + strlen(key), ": %ld", &value);
    fclose(f);
    return value;
}

int main(void)
{
    char *p = mmap(0, 16 * P, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    unsigned char vec[16];
    FAILS(EINVAL, madvise(p + 1, P, MADV_NORMAL));
    FAILS(EINVAL, madvise(p, P, 12345));
    CHECK(madvise(p, 0, MADV_DONTNEED) == 0);
    FAILS(ENOMEM, madvise((void *)0x10000, P, MADV_DONTNEED));
    FAILS(EINVAL, mincore(p + 1, P, vec));
    FAILS(ENOMEM, mincore((void *)0x10000, P, vec));
    FAILS(EFAULT, mincore(p, P, (void *)1));

    CHECK(mincore(p, 16 * P, vec) == 0 && vec[0] == 0 && vec[15] == 0);
    p[0] = 1;
    p[8 * P] = 1;
    CHECK(mincore(p, 16 * P, vec) == 0 && vec[0] == 1 && vec[8] == 1);
    CHECK(madvise(p, P, MADV_DONTNEED) == 0 && p[0] == 0);
    CHECK(madvise(p + 8 * P, P, MADV_FREE) == 0 && (p[8 * P] == 0 || p[8 * P] == 1));
    p[8 * P] = 3;
    CHECK(p[8 * P] == 3);
    for (int advice = 0; advice <= 4; advice++)
        CHECK(madvise(p, 16 * P, advice) == 0);
    int accepted[] = {MADV_DONTDUMP, MADV_DODUMP, MADV_DONTFORK, MADV_DOFORK, MADV_WIPEONFORK, MADV_KEEPONFORK,
                      MADV_HUGEPAGE, MADV_NOHUGEPAGE, 20 /* COLD */, 21 /* PAGEOUT */};
    for (unsigned i = 0; i < sizeof accepted / sizeof *accepted; i++)
        CHECK(madvise(p, P, accepted[i]) == 0);
    CHECK(madvise(p, 16 * P, MADV_POPULATE_WRITE) == 0);
    CHECK(mincore(p, 16 * P, vec) == 0);
    for (int i = 0; i < 16; i++)
        CHECK(vec[i] & 1);
    CHECK(mprotect(p, P, PROT_NONE) == 0);
    FAILS(EINVAL, madvise(p, P, MADV_POPULATE_READ));
    CHECK(mprotect(p, P, RW) == 0);
    FAILS(ENOMEM, madvise((void *)0x10000, P, MADV_POPULATE_READ));

    /* MADV_REMOVE punches a hole into shared memory. */
    char *s = mmap(0, 4 * P, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    memset(s, 's', 4 * P);
    CHECK(madvise(s, P, MADV_DONTNEED) == 0 && s[0] == 's');
    int fd = memfd_create("hole", 0);
    CHECK(fd >= 0 && ftruncate(fd, 4 * P) == 0);
    char *f = mmap(0, 4 * P, RW, MAP_SHARED, fd, 0);
    memset(f, 'f', 4 * P);
    CHECK(madvise(f + P, P, MADV_REMOVE) == 0 && f[P] == 0 && f[0] == 'f' && f[2 * P] == 'f');
    FAILS(EINVAL, madvise(p, P, MADV_REMOVE));

    FAILS(EINVAL, msync(p + 1, P, MS_SYNC));
    FAILS(EINVAL, msync(p, P, 8));
    FAILS(EINVAL, msync(p, P, MS_SYNC | MS_ASYNC));
    FAILS(ENOMEM, msync((void *)0x10000, P, MS_SYNC));
    CHECK(msync(f, 4 * P, MS_SYNC) == 0 && msync(p, 16 * P, MS_ASYNC) == 0);

    CHECK(mlock(p, 4 * P) == 0);
    CHECK(status_kb("VmLck") == 16);
    FAILS(EBUSY, msync(p, P, MS_INVALIDATE));
    FAILS(EINVAL, madvise(p, P, MADV_DONTNEED));
    CHECK(munlock(p + P, 2 * P) == 0 && status_kb("VmLck") == 8);
    CHECK(munlock(p, 4 * P) == 0 && status_kb("VmLck") == 0);
    FAILS(ENOMEM, mlock((void *)0x10000, P));
    FAILS(ENOMEM, munlock((void *)0x10000, P));
    FAILS(EINVAL, mlock2(p, P, 2));
    CHECK(mlock2(p, P, MLOCK_ONFAULT) == 0 && munlock(p, P) == 0);
    FAILS(EINVAL, mlockall(0));
    FAILS(EINVAL, mlockall(MCL_ONFAULT));
    FAILS(EINVAL, mlockall(64));
    CHECK(munlockall() == 0);

    pid_t pid = fork();
    if (pid == 0) {
        check_failures = 0;
        struct rlimit limit = {8 * P, 8 * P};
        CHECK(setrlimit(RLIMIT_MEMLOCK, &limit) == 0);
        if (geteuid() == 0)
            CHECK(setresuid(1000, 1000, 1000) == 0);
        CHECK(mlock(p, 8 * P) == 0);
        CHECK(mlock(p, 8 * P) == 0);
        FAILS(ENOMEM, mlock(p, 9 * P));
        FAILS(EAGAIN, (long)mmap(0, P, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_LOCKED, -1, 0));
        CHECK(munlock(p, 8 * P) == 0);
        limit.rlim_cur = 0;
        CHECK(setrlimit(RLIMIT_MEMLOCK, &limit) == 0);
        FAILS(EPERM, mlock(p, P));
        FAILS(EPERM, (long)mmap(0, P, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_LOCKED, -1, 0));
        _exit(check_failures ? 1 : 0);
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);

    FAILS(EINVAL, syscall(SYS_pkey_mprotect, p, P, RW, 5));
    CHECK(syscall(SYS_pkey_mprotect, p, P, RW, -1) == 0);
    return check_done();
}
