/* Threads that map, touch, protect, move, unmap and fork at once over shared and private memory; every value is checked. */
#include "../check.h"
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define P 4096UL
#define RW (PROT_READ | PROT_WRITE)
static volatile int stop;
static volatile long operations, wrong;
static uint64_t *shared;

static uint32_t next(uint32_t *seed)
{
    *seed = *seed * 1664525 + 1013904223;
    return *seed >> 8;
}

static void *mapper(void *arg)
{
    uint32_t seed = (uint32_t)(uintptr_t)arg * 77 + 1;
    while (!stop) {
        size_t pages = 1 + next(&seed) % 64;
        char *p = mmap(0, pages * P, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED) {
            __sync_fetch_and_add(&wrong, 1);
            continue;
        }
        for (size_t i = 0; i < pages; i++)
            *(size_t *)(p + i * P) = i ^ (size_t)p;
        char *home = p;
        switch (next(&seed) % 4) {
        case 0:
            mprotect(p + (pages / 2) * P, P, PROT_READ);
            break;
        case 1: {
            char *q = mremap(p, pages * P, (pages + 3) * P, MREMAP_MAYMOVE);
            if (q != MAP_FAILED) {
                p = q;
                if (*(size_t *)(p + pages * P) != 0)
                    __sync_fetch_and_add(&wrong, 1);
                munmap(p + pages * P, 3 * P);
            }
            break;
        }
        case 2:
            if (pages > 2) {
                madvise(p + P, P, MADV_DONTNEED);
                if (*(size_t *)(p + P) != 0)
                    __sync_fetch_and_add(&wrong, 1);
                *(size_t *)(p + P) = 1 ^ (size_t)home;
            }
            break;
        }
        for (size_t i = 0; i < pages; i++)
            if (*(size_t *)(p + i * P) != (i ^ (size_t)home))
                __sync_fetch_and_add(&wrong, 1);
        munmap(p, pages * P);
        __sync_fetch_and_add(&operations, 1);
    }
    return 0;
}

static void *counter(void *arg)
{
    uint32_t seed = (uint32_t)(uintptr_t)arg;
    long *added = calloc(1, sizeof *added);
    while (!stop) {
        __sync_fetch_and_add(&shared[next(&seed) % 16 * (P / 8)], 1);
        ++*added;
    }
    return added;
}

static void *forker(void *arg)
{
    static uint64_t secret[4 * P / 8];
    uint64_t round = 0;
    (void)arg;
    while (!stop) {
        for (int i = 0; i < 4; i++)
            secret[i * (P / 8)] = ++round;
        pid_t pid = fork();
        if (pid == 0) {
            int bad = 0;
            for (int i = 0; i < 4; i++)
                bad |= secret[i * (P / 8)] != round - 3 + i;
            for (int i = 0; i < 4; i++)
                secret[i * (P / 8)] = 0;
            _exit(bad);
        }
        for (int i = 0; i < 4; i++)
            secret[i * (P / 8)] += 1000000;
        int status = -1;
        if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 0)
            __sync_fetch_and_add(&wrong, 1);
        for (int i = 0; i < 4; i++)
            if (secret[i * (P / 8)] != 1000000 + round - 3 + i)
                __sync_fetch_and_add(&wrong, 1);
        __sync_fetch_and_add(&operations, 1);
    }
    return 0;
}

int main(int argc, char **argv)
{
    int seconds = argc > 1 ? atoi(argv[1]) : 3;
    shared = mmap(0, 16 * P, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pthread_t threads[8];
    for (long i = 0; i < 4; i++)
        pthread_create(&threads[i], 0, mapper, (void *)i);
    for (long i = 4; i < 7; i++)
        pthread_create(&threads[i], 0, counter, (void *)i);
    pthread_create(&threads[7], 0, forker, 0);
    sleep(seconds);
    stop = 1;
    long added = 0;
    for (int i = 0; i < 8; i++) {
        void *result;
        CHECK(pthread_join(threads[i], &result) == 0);
        if (i >= 4 && i < 7)
            added += *(long *)result;
    }
    long total = 0;
    for (int i = 0; i < 16; i++)
        total += (long)shared[i * (P / 8)];
    CHECK(total == added);
    CHECK(wrong == 0);
    CHECK(operations > 10);
    return check_done();
}
