/* The vDSO: its clocks agree with the system calls, getcpu names the CPU, and a fork draws other random bytes. */
#include "../check.h"
#include <dlfcn.h>
#include <sched.h>
#include <stdint.h>
#include <sys/auxv.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int64_t ns(struct timespec t)
{
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void *entry(const char *name)
{
    void *vdso = dlopen("linux-vdso.so.1", RTLD_NOLOAD | RTLD_NOW);
    CHECK(vdso != NULL);
    return vdso ? dlvsym(vdso, name, "LINUX_2.6") : NULL;
}

int main(void)
{
    CHECK(getauxval(AT_SYSINFO_EHDR) != 0);

    int (*gettime)(int, struct timespec *) = entry("__vdso_clock_gettime");
    CHECK(gettime != NULL);
    const int clocks[] = {CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_MONOTONIC_RAW, CLOCK_REALTIME_COARSE,
                          CLOCK_MONOTONIC_COARSE, CLOCK_BOOTTIME, CLOCK_TAI, CLOCK_PROCESS_CPUTIME_ID};
    for (unsigned i = 0; gettime && i < sizeof clocks / sizeof *clocks; i++) {
        struct timespec before, between, after;
        for (int round = 0; round < 1000; round++) {
            CHECK(syscall(SYS_clock_gettime, clocks[i], &before) == 0);
            CHECK(gettime(clocks[i], &between) == 0);
            CHECK(syscall(SYS_clock_gettime, clocks[i], &after) == 0);
            CHECK(ns(before) <= ns(between) && ns(between) <= ns(after));
        }
    }
    struct timespec ts;
    CHECK(gettime && gettime(99, &ts) == -EINVAL);
    int (*getres)(int, struct timespec *) = entry("__vdso_clock_getres");
    CHECK(getres && getres(CLOCK_MONOTONIC, &ts) == 0 && ns(ts) == 1);

    struct timeval tv;
    struct timezone zone = {5, 5};
    CHECK(gettimeofday(&tv, &zone) == 0 && zone.tz_minuteswest == 0 && zone.tz_dsttime == 0);
    CHECK(llabs((long long)time(NULL) - tv.tv_sec) <= 1);

    int (*cpu_of)(unsigned *, unsigned *, void *) = entry("__vdso_getcpu");
    CHECK(cpu_of != NULL);
    for (int cpu = 0; cpu_of && cpu < sysconf(_SC_NPROCESSORS_ONLN); cpu++) {
        cpu_set_t only;
        CPU_ZERO(&only);
        CPU_SET(cpu, &only);
        CHECK(sched_setaffinity(0, sizeof only, &only) == 0);
        unsigned there = 99, node = 99;
        CHECK(cpu_of(&there, &node, NULL) == 0 && there == (unsigned)cpu && node == 0);
        CHECK(cpu_of(NULL, NULL, NULL) == 0);
    }

    /* glibc 2.41 draws these through the vDSO: child and parent must not draw the same. */
    unsigned char ours[64], childs[64];
    int ends[2];
    CHECK(pipe(ends) == 0);
    arc4random_buf(ours, sizeof ours);
    pid_t child = fork();
    if (child == 0) {
        arc4random_buf(childs, sizeof childs);
        _exit(write(ends[1], childs, sizeof childs) != sizeof childs);
    }
    arc4random_buf(ours, sizeof ours);
    int status;
    CHECK(read(ends[0], childs, sizeof childs) == sizeof childs && memcmp(ours, childs, sizeof ours) != 0);
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    /* All lengths around a block; each byte value comes up about as often as it should. */
    static unsigned char many[2048];
    unsigned seen[256] = {0};
    unsigned total = 0;
    for (unsigned length = 1; length < sizeof many; length += 3) {
        arc4random_buf(many, length);
        for (unsigned i = 0; i < length; i++)
            seen[many[i]]++;
        total += length;
    }
    for (int value = 0; value < 256; value++)
        CHECK(seen[value] > total / 256 * 8 / 10 && seen[value] < total / 256 * 12 / 10);

    ssize_t (*draw)(void *, size_t, unsigned, void *, size_t) = entry("__vdso_getrandom");
    if (draw) { /* Linux has it from 6.11 on. */
        uint32_t parameters[16];
        CHECK(draw(NULL, 0, 0, parameters, ~0ul) == 0 && parameters[0] >= 64 && parameters[1] == 3);
    }
    return check_done();
}
