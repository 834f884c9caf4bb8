/* Clocks, sleeps, interval and POSIX timers. */
#define _GNU_SOURCE
#include "../check.h"
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timex.h>
#include <sys/times.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int64_t now(int clock)
{
    struct timespec ts;
    CHECK(syscall(SYS_clock_gettime, clock, &ts) == 0);
    return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

static volatile sig_atomic_t ticks, last_code, last_value, last_overrun;
static void on_tick(int sig, siginfo_t *si, void *uc)
{
    (void)sig, (void)uc;
    ticks++;
    last_code = si->si_code;
    last_value = si->si_value.sival_int;
    last_overrun = si->si_overrun;
}

static void sleep_ms(int ms)
{
    struct timespec ts = {ms / 1000, ms % 1000 * 1000000L};
    while (nanosleep(&ts, &ts) < 0 && errno == EINTR)
        ;
}

static void burn(int ms)
{
    int64_t end = now(CLOCK_PROCESS_CPUTIME_ID) + ms * 1000000LL;
    while (now(CLOCK_PROCESS_CPUTIME_ID) < end)
        for (volatile int i = 0; i < 10000; i++)
            ;
}

int main(void)
{
    struct timespec ts;
    struct sigaction sa = {.sa_sigaction = on_tick, .sa_flags = SA_SIGINFO | SA_RESTART};
    int clocks[] = {CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_PROCESS_CPUTIME_ID, CLOCK_THREAD_CPUTIME_ID, CLOCK_MONOTONIC_RAW,
                    CLOCK_REALTIME_COARSE, CLOCK_MONOTONIC_COARSE, CLOCK_BOOTTIME, CLOCK_TAI};
    for (unsigned i = 0; i < sizeof clocks / sizeof *clocks; i++) {
        CHECK(clock_gettime(clocks[i], &ts) == 0);
        CHECK(ts.tv_nsec >= 0 && ts.tv_nsec < 1000000000);
        CHECK(clock_getres(clocks[i], &ts) == 0 && ts.tv_sec == 0 && ts.tv_nsec > 0);
        int64_t last = now(clocks[i]);
        for (int k = 0; k < 1000; k++) {
            int64_t next = now(clocks[i]);
            CHECK(next >= last);
            last = next;
        }
    }
    FAILS(EINVAL, syscall(SYS_clock_gettime, 77, &ts));
    FAILS(EINVAL, syscall(SYS_clock_getres, 77, &ts));
    FAILS(EFAULT, syscall(SYS_clock_gettime, 0, (void *)1));
    clockid_t id;
    CHECK(clock_getcpuclockid(getpid(), &id) == 0 && clock_gettime(id, &ts) == 0);
    CHECK(pthread_getcpuclockid(pthread_self(), &id) == 0 && clock_gettime(id, &ts) == 0);

    /* the library's (vDSO) and the kernel's clocks agree */
    for (int i = 0; i < 100; i++) {
        int64_t a = now(CLOCK_MONOTONIC);
        CHECK(clock_gettime(CLOCK_MONOTONIC, &ts) == 0);
        int64_t b = ts.tv_sec * 1000000000LL + ts.tv_nsec, c = now(CLOCK_MONOTONIC);
        CHECK(a <= b && b <= c);
        struct timeval tv;
        a = now(CLOCK_REALTIME) / 1000;
        CHECK(gettimeofday(&tv, 0) == 0);
        b = tv.tv_sec * 1000000LL + tv.tv_usec, c = now(CLOCK_REALTIME) / 1000;
        CHECK(a <= b && b <= c);
    }
    time_t t = time(0);
    CHECK(t >= now(CLOCK_REALTIME) / 1000000000 - 1 && t <= now(CLOCK_REALTIME) / 1000000000 + 1);

    /* sleeps last as long as they should and not absurdly longer */
    int64_t begin = now(CLOCK_MONOTONIC);
    sleep_ms(50);
    int64_t took = now(CLOCK_MONOTONIC) - begin;
    CHECK(took >= 50000000 && took < 2000000000);
    ts.tv_sec = 0, ts.tv_nsec = -1;
    FAILS(EINVAL, nanosleep(&ts, 0));
    ts.tv_nsec = 1000000000;
    FAILS(EINVAL, nanosleep(&ts, 0));
    FAILS(EFAULT, syscall(SYS_nanosleep, (void *)1, 0));
    clock_gettime(CLOCK_REALTIME, &ts);
    begin = now(CLOCK_MONOTONIC);
    ts.tv_nsec += 40000000;
    if (ts.tv_nsec >= 1000000000)
        ts.tv_sec++, ts.tv_nsec -= 1000000000;
    CHECK(clock_nanosleep(CLOCK_REALTIME, TIMER_ABSTIME, &ts, 0) == 0);
    took = now(CLOCK_MONOTONIC) - begin;
    CHECK(took >= 35000000 && took < 2000000000);
    ts.tv_sec = 1, ts.tv_nsec = 0;
    CHECK(clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, 0) == 0 || now(CLOCK_MONOTONIC) < 1000000000);
    CHECK(syscall(SYS_clock_nanosleep, CLOCK_THREAD_CPUTIME_ID, 0, &ts, 0) == -1 && errno == EOPNOTSUPP);

    /* ITIMER_REAL */
    sigaction(SIGALRM, &sa, 0);
    struct itimerval it = {{0, 10000}, {0, 10000}}, old;
    CHECK(setitimer(ITIMER_REAL, &it, 0) == 0);
    while (ticks < 5)
        pause();
    CHECK(last_code == SI_KERNEL);
    CHECK(getitimer(ITIMER_REAL, &old) == 0 && old.it_interval.tv_usec == 10000 && old.it_value.tv_usec <= 10000);
    memset(&it, 0, sizeof it);
    CHECK(setitimer(ITIMER_REAL, &it, &old) == 0);
    CHECK(getitimer(ITIMER_REAL, &old) == 0 && old.it_value.tv_sec == 0 && old.it_value.tv_usec == 0);
    CHECK(alarm(10) == 0);
    CHECK(alarm(0) == 10);
    FAILS(EINVAL, setitimer(9, &it, 0));
    it.it_value.tv_usec = 1000000;
    FAILS(EINVAL, setitimer(ITIMER_REAL, &it, 0));

    /* ITIMER_PROF and ITIMER_VIRTUAL count CPU time */
    sigaction(SIGPROF, &sa, 0);
    sigaction(SIGVTALRM, &sa, 0);
    int which[] = {ITIMER_PROF, ITIMER_VIRTUAL};
    for (int i = 0; i < 2; i++) {
        ticks = 0;
        struct itimerval cpu = {{0, 20000}, {0, 20000}};
        CHECK(setitimer(which[i], &cpu, 0) == 0);
        sleep_ms(60);
        CHECK(ticks <= 1);
        burn(200);
        CHECK(ticks >= 2);
        memset(&cpu, 0, sizeof cpu);
        CHECK(setitimer(which[i], &cpu, 0) == 0);
    }

    /* POSIX timers */
    sigaction(SIGRTMIN, &sa, 0);
    timer_t timer;
    struct sigevent ev = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN, .sigev_value.sival_int = 17};
    CHECK(timer_create(CLOCK_MONOTONIC, &ev, &timer) == 0);
    struct itimerspec its = {{0, 5000000}, {0, 5000000}}, was;
    ticks = 0;
    CHECK(timer_settime(timer, 0, &its, 0) == 0);
    while (ticks < 3)
        pause();
    CHECK(last_code == SI_TIMER && last_value == 17);
    CHECK(timer_gettime(timer, &was) == 0 && was.it_interval.tv_nsec == 5000000 && was.it_value.tv_nsec <= 5000000);
    /* expiries while the signal is blocked become the overrun */
    sigset_t block;
    sigemptyset(&block);
    sigaddset(&block, SIGRTMIN);
    sigprocmask(SIG_BLOCK, &block, 0);
    sleep_ms(80);
    ticks = 0;
    sigprocmask(SIG_UNBLOCK, &block, 0);
    CHECK(ticks >= 1 && ticks <= 2);
    CHECK(timer_getoverrun(timer) >= 0);
    memset(&its, 0, sizeof its);
    CHECK(timer_settime(timer, 0, &its, 0) == 0);
    ticks = 0;
    sleep_ms(20);
    CHECK(ticks == 0);
    CHECK(timer_delete(timer) == 0);
    FAILS(EINVAL, syscall(SYS_timer_delete, 12345));
    FAILS(EINVAL, syscall(SYS_timer_create, 77, 0, &timer));
    ev.sigev_signo = 99;
    FAILS(EINVAL, syscall(SYS_timer_create, CLOCK_REALTIME, &ev, &timer));
    ev.sigev_notify = SIGEV_NONE;
    ev.sigev_signo = SIGRTMIN;
    CHECK(timer_create(CLOCK_REALTIME, &ev, &timer) == 0);
    its.it_value.tv_sec = 100;
    CHECK(timer_settime(timer, 0, &its, 0) == 0 && timer_gettime(timer, &was) == 0);
    CHECK(was.it_value.tv_sec >= 98 && was.it_value.tv_sec <= 100);
    CHECK(timer_delete(timer) == 0);

    /* a timer of a nanosecond does not stop the world */
    ev.sigev_notify = SIGEV_SIGNAL;
    CHECK(timer_create(CLOCK_MONOTONIC, &ev, &timer) == 0);
    its = (struct itimerspec){{0, 1}, {0, 1}};
    sigprocmask(SIG_BLOCK, &block, 0);
    CHECK(timer_settime(timer, 0, &its, 0) == 0);
    sleep_ms(20);
    CHECK(timer_delete(timer) == 0);

    /* setting the clock needs privilege; reading the discipline does not */
    struct timex tx = {0};
    int state = adjtimex(&tx);
    CHECK(state >= 0 && state <= 5 && tx.tick == 10000);
    pid_t child = fork();
    if (child == 0) {
        if (getuid() == 0)
            CHECK(setresuid(1000, 1000, 1000) == 0);
        clock_gettime(CLOCK_REALTIME, &ts);
        FAILS(EPERM, clock_settime(CLOCK_REALTIME, &ts));
        FAILS(EINVAL, clock_settime(CLOCK_MONOTONIC, &ts));
        _exit(check_done());
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    struct tms tms;
    CHECK(times(&tms) != (clock_t)-1 && tms.tms_utime + tms.tms_stime > 0);
    return check_done();
}
