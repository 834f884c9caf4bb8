/* Everything at once in two processes: signals to the process, timers made and deleted, an interval timer, threads that change
 * CPU, policy and nice value, children stopped, continued and killed. Nothing may hang or get lost. */
#define _GNU_SOURCE
#include "../check.h"
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void handler(int sig)
{
    (void)sig;
}

static void *hop(void *arg)
{
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    for (int i = 0; i < 600; i++) {
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET(i % cpus, &set);
        sched_setaffinity(0, sizeof set, &set);
        if (i % 16 == 0) {
            struct sched_param param = {i / 16 % 2 ? 10 : 0};
            sched_setscheduler(0, i / 16 % 2 ? SCHED_RR : SCHED_OTHER, &param);
        }
        if (i % 7 == 0)
            setpriority(PRIO_PROCESS, syscall(SYS_gettid), i % 20);
        sched_yield();
    }
    return arg;
}

static void *timers(void *arg)
{
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 2};
    for (int i = 0; i < 60; i++) {
        timer_t timer;
        struct itimerspec spec = {{0, 100000}, {0, 100000}};
        struct timespec nap = {0, 300000};
        CHECK(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0);
        CHECK(timer_settime(timer, 0, &spec, 0) == 0);
        nanosleep(&nap, 0);
        CHECK(timer_delete(timer) == 0);
    }
    return arg;
}

static void *sender(void *arg)
{
    for (int i = 0; i < 1000; i++) {
        kill(getpid(), i & 1 ? SIGUSR2 : SIGUSR1);
        if (i % 64 == 0)
            sched_yield();
    }
    return arg;
}

static int storm(void)
{
    static void *(*const bodies[])(void *) = {hop, timers, sender};
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART};
    int signals[] = {SIGUSR1, SIGUSR2, SIGRTMIN + 2, SIGALRM};
    for (int i = 0; i < 4; i++)
        sigaction(signals[i], &action, 0);
    struct itimerval every_ms = {{0, 1000}, {0, 1000}};
    setitimer(ITIMER_REAL, &every_ms, 0);
    pthread_t threads[12];
    for (int i = 0; i < 12; i++)
        CHECK(pthread_create(&threads[i], 0, bodies[i % 3], 0) == 0);
    for (int i = 0; i < 20; i++) {
        pid_t child = fork();
        if (child == 0) {
            while (i % 3 == 0)
                pause();
            _exit(i);
        }
        if (i % 3 == 0) {
            kill(child, SIGSTOP);
            kill(child, SIGCONT);
            kill(child, SIGKILL);
        }
        int status;
        CHECK(waitpid(child, &status, 0) == child);
        CHECK(i % 3 == 0 ? WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL : WEXITSTATUS(status) == i);
    }
    for (int i = 0; i < 12; i++)
        pthread_join(threads[i], 0);
    return check_done();
}

int main(void)
{
    for (int i = 0; i < 2; i++)
        if (fork() == 0)
            _exit(storm());
    int status, ended = 0;
    while (wait(&status) > 0) {
        ended++;
        CHECK(status == 0);
    }
    CHECK(ended == 2);
    return check_done();
}
