/* What the measures share: the clock, the loop, and how lines are printed: `NAME VALUE`. */
#ifndef BENCH_H
#define BENCH_H
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define CHECK(e) do { if (!(e)) { fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #e, strerror(errno)); exit(1); } } while (0)

static inline uint64_t clock_ns(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static inline uint64_t now(void) { return clock_ns(CLOCK_MONOTONIC); }

/* Runs `body` n times after a tenth of that as warm-up; the result is nanoseconds per run. */
#define MEASURE(n, body) ({ \
    for (int i_ = 0; i_ < (n) / 10 + 1; i_++) { body; } \
    uint64_t start_ = now(); \
    for (int i_ = 0; i_ < (n); i_++) { body; } \
    (double)(now() - start_) / (n); })

/*
 * For what waits for a device: time in which the CPU would be idle is given to a thread of the lowest priority and does not
 * count. Without it counted time jumps to the next timer whenever the CPU idles.
 */
static clockid_t idle_clock_;

static void *idle_(void *arg)
{
    for (;;)
        __asm__ volatile("pause");
    return arg;
}

static inline void start_idle(void)
{
    pthread_t thread;
    struct sched_param zero = {0};
    CHECK(pthread_create(&thread, NULL, idle_, NULL) == 0);
    CHECK(pthread_setschedparam(thread, SCHED_IDLE, &zero) == 0);
    CHECK(pthread_getcpuclockid(thread, &idle_clock_) == 0);
}

static inline uint64_t busy(void) { return now() - clock_ns(idle_clock_); }

/* As MEASURE, without the time in which nothing was to do. */
#define MEASURE_BUSY(n, body) ({ \
    for (int i_ = 0; i_ < (n) / 10 + 1; i_++) { body; } \
    uint64_t start_ = busy(); \
    for (int i_ = 0; i_ < (n); i_++) { body; } \
    (double)(busy() - start_) / (n); })

/* Context switches of the system since boot. */
static inline double switches(void)
{
    char line[4096];
    unsigned long long count = 0;
    FILE *f = fopen("/proc/stat", "r");
    CHECK(f != NULL);
    while (fgets(line, sizeof line, f))
        if (sscanf(line, "ctxt %llu", &count) == 1)
            break;
    fclose(f);
    return (double)count;
}

static inline void report(const char *name, double value)
{
    printf("%s %.1f\n", name, value);
    fflush(stdout);
}
#endif
