/* Births and deaths from all sides at once: threads that exec while others fork, exit_group against clone, kills of
 * processes in every state, a fork bomb under RLIMIT_NPROC. What counts is that every child is reaped and all comes back. */
#define _GNU_SOURCE
#include "../check.h"
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <sys/wait.h>
#include <unistd.h>

static void *spin(void *arg)
{
    for (;;)
        sched_yield();
    return arg;
}

static void *nap(void *arg)
{
    for (;;)
        usleep(1000);
    return arg;
}

static void *fork_some(void *arg)
{
    for (;;) {
        pid_t pid = fork();
        if (pid == 0)
            _exit(0);
        if (pid > 0)
            waitpid(pid, 0, 0);
    }
    return arg;
}

static void *exec_true(void *arg)
{
    usleep(2000);
    execl("/bin/true", "true", (char *)0);
    return arg;
}

static void *leave(void *arg)
{
    usleep(1500);
    exit((int)(long)arg);
}

static void wait_for(pid_t pid, int want)
{
    int status;
    CHECK(waitpid(pid, &status, 0) == pid);
    if (want >= 0)
        CHECK(status == want);
}

static void threads_die_together(int how, int want)
{
    for (int round = 0; round < 30; round++) {
        pid_t pid = fork();
        if (pid == 0) {
            pthread_t t;
            void *(*bodies[])(void *) = {spin, nap, fork_some, nap};
            for (int i = 0; i < 8; i++)
                pthread_create(&t, 0, bodies[i % 4], 0);
            if (how == 0)
                pthread_create(&t, 0, leave, (void *)5);
            else if (how == 1)
                for (int i = 0; i < 3; i++)
                    pthread_create(&t, 0, exec_true, 0);
            if (how == 3) {
                usleep(1000);
                pthread_create(&t, 0, leave, (void *)6);
                syscall(SYS_exit, 0);
            }
            for (;;)
                pause();
        }
        if (how == 2) {
            usleep(round * 300);
            kill(pid, SIGKILL);
        }
        wait_for(pid, want);
    }
}

/* A process that was reaped holds nothing any more: its last descriptor of a pipe is closed, its lock is released. */
static void reaped_is_gone(void)
{
    char path[] = "/tmp/reaped-XXXXXX";
    int file = mkstemp(path);
    CHECK(file >= 0 && unlink(path) == 0);
    int held = 0, locked = 0;
    for (int round = 0; round < 200; round++) {
        int ends[2], ready[2], status;
        char byte;
        CHECK(pipe2(ends, O_NONBLOCK) == 0 && pipe(ready) == 0);
        pid_t pid = fork();
        if (pid == 0) {
            /* A description of its own, so that the lock is its own. */
            char own[32];
            snprintf(own, sizeof own, "/proc/self/fd/%d", file);
            int lock = open(own, O_RDWR);
            if (lock < 0 || flock(lock, LOCK_EX) != 0)
                _exit(1);
            pthread_t t;
            for (int i = 0; i < 4; i++)
                pthread_create(&t, 0, i % 2 ? spin : nap, 0);
            if (write(ready[1], "", 1) != 1)
                _exit(1);
            usleep(1000 * (round % 3));
            if (round % 2)
                pthread_create(&t, 0, leave, (void *)7L), pause();
            _exit(7);
        }
        close(ends[1]);
        close(ready[1]);
        CHECK(read(ready[0], &byte, 1) == 1);
        CHECK(waitpid(pid, &status, 0) == pid && status == 7 << 8);
        held += read(ends[0], &byte, 1) != 0;
        locked += flock(file, LOCK_EX | LOCK_NB) != 0;
        flock(file, LOCK_UN);
        close(ends[0]);
        close(ready[0]);
    }
    CHECK(held == 0);
    CHECK(locked == 0);
    close(file);
}

static void fork_bomb(void)
{
    pid_t pid = fork();
    if (pid == 0) {
        struct rlimit l = {60, 60};
        setpgid(0, 0);
        if (setgid(1000) || setuid(1000) || setrlimit(RLIMIT_NPROC, &l))
            _exit(1);
        int refused = 0;
        while (!refused) {
            pid_t child = fork();
            refused = child < 0 && errno == EAGAIN;
            if (child == 0)
                for (;;)
                    if (fork() < 0)
                        pause();
        }
        kill(0, SIGKILL);
        _exit(2);
    }
    wait_for(pid, SIGKILL);
}

int main(void)
{
    struct sysinfo before, after;
    sysinfo(&before);
    CHECK(prctl(PR_SET_CHILD_SUBREAPER, 1) == 0);
    setvbuf(stdout, 0, _IONBF, 0);
    printf("exit_group from a thread\n");
    threads_die_together(0, 5 << 8);
    printf("exec from threads\n");
    threads_die_together(1, 0);
    printf("SIGKILL\n");
    threads_die_together(2, SIGKILL);
    printf("exit_group after the leader's end\n");
    threads_die_together(3, 6 << 8);
    printf("nothing is held after the end\n");
    reaped_is_gone();
    printf("fork bomb\n");
    if (getuid() == 0)
        for (int round = 0; round < 10; round++)
            fork_bomb();
    /* Whatever these left behind is ours now. */
    while (wait(0) > 0)
        ;
    sysinfo(&after);
    CHECK(after.procs < before.procs + 60);
    return check_done();
}
