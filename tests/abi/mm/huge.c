/* Transparent huge pages: who gets them, what smaps and meminfo tell, and that memory stays the same when a part of one changes. */
#include "../check.h"
#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096, BLOCK = 2 << 20 };

static void set_mode(const char *mode)
{
    int fd = open("/sys/kernel/mm/transparent_hugepage/enabled", O_WRONLY);
    CHECK(fd >= 0 && write(fd, mode, strlen(mode)) == (ssize_t)strlen(mode));
    close(fd);
}

/* A line of a mapping in smaps, in KiB; -1: there is none. */
static long smaps(const void *at, const char *name)
{
    char line[512], format[64];
    long value = -1;
    int here = 0;
    snprintf(format, sizeof format, "%s: %%ld", name);
    FILE *f = fopen("/proc/self/smaps", "r");
    while (f && fgets(line, sizeof line, f)) {
        unsigned long start, end;
        if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
            here = (unsigned long)at >= start && (unsigned long)at < end;
        else if (here && sscanf(line, format, &value) == 1)
            break;
    }
    if (f)
        fclose(f);
    return value;
}

static char *memory(size_t size, int prot, int flags)
{
    char *at = mmap(NULL, size, prot, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
    CHECK(at != MAP_FAILED);
    return at;
}

static void fill(char *at, size_t size)
{
    for (size_t page = 0; page < size; page += PAGE)
        *(unsigned *)(at + page) = page;
}

/* The number of pages that hold something else than fill() wrote. */
static long wrong(const char *at, size_t size)
{
    long count = 0;
    for (size_t page = 0; page < size; page += PAGE)
        count += *(unsigned *)(at + page) != page;
    return count;
}

static void who_gets_them(void)
{
    char *at = memory(4 * BLOCK, PROT_READ | PROT_WRITE, 0);
    CHECK((unsigned long)at % BLOCK == 0);
    at[BLOCK + 5] = 1;
    CHECK(smaps(at, "THPeligible") == 1);
    CHECK(smaps(at, "AnonHugePages") == BLOCK / 1024 && smaps(at, "Rss") == BLOCK / 1024);
    fill(at, 4 * BLOCK);
    CHECK(smaps(at, "AnonHugePages") == 4 * BLOCK / 1024);
    munmap(at, 4 * BLOCK);

    at = memory(4 * BLOCK, PROT_READ | PROT_WRITE, MAP_STACK);
    at[0] = 1;
    CHECK(smaps(at, "AnonHugePages") == 0);
    munmap(at, 4 * BLOCK);

    at = memory(4 * BLOCK, PROT_READ | PROT_WRITE, 0);
    CHECK(madvise(at, 4 * BLOCK, MADV_NOHUGEPAGE) == 0);
    at[0] = 1;
    CHECK(smaps(at, "AnonHugePages") == 0 && smaps(at, "THPeligible") == 0);
    munmap(at, 4 * BLOCK);

    set_mode("madvise");
    at = memory(4 * BLOCK, PROT_READ | PROT_WRITE, 0);
    at[0] = 1;
    CHECK(smaps(at, "AnonHugePages") == 0);
    CHECK(madvise(at + BLOCK, BLOCK, MADV_HUGEPAGE) == 0);
    at[BLOCK] = 1;
    CHECK(smaps(at + BLOCK, "AnonHugePages") == BLOCK / 1024);
    set_mode("never");
    CHECK(madvise(at + 2 * BLOCK, BLOCK, MADV_HUGEPAGE) == 0);
    at[2 * BLOCK] = 1;
    CHECK(smaps(at + 2 * BLOCK, "AnonHugePages") == BLOCK / 1024); /* of the merged mapping: that of before */
    munmap(at, 4 * BLOCK);
    FAILS(EINVAL, write(open("/sys/kernel/mm/transparent_hugepage/enabled", O_WRONLY), "sometimes", 9));
    set_mode("always");

    if (fork() == 0) {
        CHECK(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) == 0 && prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0) == 1);
        at = memory(4 * BLOCK, PROT_READ | PROT_WRITE, 0);
        at[0] = 1;
        CHECK(smaps(at, "AnonHugePages") == 0);
        _exit(check_failures);
    }
    int status;
    CHECK(wait(&status) > 0 && status == 0);
}

static void parts_change(void)
{
    char *at = memory(4 * BLOCK, PROT_READ | PROT_WRITE, 0);
    int status;
    fill(at, 4 * BLOCK);
    /* One page is thrown away, one loses its rights, one leaves. */
    CHECK(madvise(at + 3 * PAGE, PAGE, MADV_DONTNEED) == 0 && *(unsigned *)(at + 3 * PAGE) == 0);
    *(unsigned *)(at + 3 * PAGE) = 3 * PAGE;
    CHECK(mprotect(at + BLOCK + 4 * PAGE, PAGE, PROT_READ) == 0 && mprotect(at + BLOCK + 4 * PAGE, PAGE, PROT_READ | PROT_WRITE) == 0);
    CHECK(munmap(at + 4 * BLOCK - PAGE, PAGE) == 0);
    CHECK(wrong(at, 4 * BLOCK - PAGE) == 0);
    /* Blocks that move, wholly and in part. */
    char *moved = mremap(at, 2 * BLOCK + 5 * PAGE, 6 * BLOCK, MREMAP_MAYMOVE);
    CHECK(moved != MAP_FAILED && wrong(moved, 2 * BLOCK + 5 * PAGE) == 0);
    munmap(moved, 6 * BLOCK);
    munmap(at, 4 * BLOCK);

    /* A child has a copy. */
    at = memory(2 * BLOCK, PROT_READ | PROT_WRITE, 0);
    fill(at, 2 * BLOCK);
    if (fork() == 0) {
        CHECK(wrong(at, 2 * BLOCK) == 0);
        memset(at, 7, 2 * BLOCK);
        _exit(check_failures);
    }
    CHECK(wait(&status) > 0 && status == 0 && wrong(at, 2 * BLOCK) == 0);
    fill(at, 2 * BLOCK);
    CHECK(wrong(at, 2 * BLOCK) == 0);
    munmap(at, 2 * BLOCK);
}

static char *shared;
static volatile int stop;

static void *toucher(void *argument)
{
    long number = (long)argument, rounds = 0;
    while (!stop) {
        for (long page = number; page < 2 * BLOCK / PAGE; page += 4)
            ((volatile char *)shared)[page * PAGE + number] = (char)(rounds + 1);
        rounds++;
    }
    return NULL;
}

/* Threads store while another throws parts away and changes rights: each store is to private zeroes or to what was there. */
static void at_the_same_time(void)
{
    pthread_t threads[4];
    shared = memory(2 * BLOCK, PROT_READ | PROT_WRITE, 0);
    for (long at = 0; at < 4; at++)
        pthread_create(&threads[at], NULL, toucher, (void *)at);
    for (int round = 0; round < 300; round++) {
        size_t from = (size_t)round * 37 % 900 * PAGE, size = (size_t)(1 + round % 100) * PAGE;
        if (round % 10 == 0)
            from = 0, size = 2 * BLOCK;
        CHECK(madvise(shared + from, size, MADV_DONTNEED) == 0);
        if (round % 3 == 0 && fork() == 0)
            _exit(0);
    }
    stop = 1;
    for (int at = 0; at < 4; at++)
        pthread_join(threads[at], NULL);
    while (wait(NULL) > 0)
        ;
    munmap(shared, 2 * BLOCK);
}

int main(void)
{
    set_mode("always");
    who_gets_them();
    parts_change();
    at_the_same_time();
    return check_done();
}
