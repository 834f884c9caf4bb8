/* Tracing and death at the same time: a child asks to be traced (or is attached to) while its parent, its tracer or itself ends.
 * Whatever comes first, every process ends and is reaped: none stops for a tracer that is gone, and no zombie waits for one. */
#include "../check.h"
#include <signal.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void spin(unsigned turns)
{
    for (volatile unsigned i = 0; i < turns; i++)
        ;
}

/* Reaps all children; those that stop, since they made this process their tracer, are let go on. False when some do not end. */
static int reap_all(double patience)
{
    int status;
    for (double end = seconds() + patience; seconds() < end;) {
        pid_t pid = waitpid(-1, &status, WNOHANG);
        if (pid < 0)
            return 1;
        if (pid == 0)
            usleep(200);
        else if (WIFSTOPPED(status))
            ptrace(PTRACE_CONT, pid, NULL, 0);
    }
    return 0;
}

/* The parent ends while its child makes it its tracer and stops. */
static void parent_ends(unsigned round)
{
    if (fork() == 0) {
        int go[2];
        char byte;
        if (pipe(go))
            _exit(1);
        if (fork() == 0) {
            (void)!write(go[1], "", 1);
            spin(round * 37 % 4000);
            ptrace(PTRACE_TRACEME, 0, NULL, NULL);
            raise(SIGUSR1);
            _exit(0);
        }
        (void)!read(go[0], &byte, 1);
        spin(round * 101 % 4000);
        _exit(0);
    }
}

/* A tracer that is not the parent attaches while its tracee ends, and ends itself a little later. */
static void tracee_ends(unsigned round)
{
    int go[2];
    char byte;
    if (pipe(go))
        return;
    pid_t tracee = fork();
    if (tracee == 0) {
        (void)!read(go[0], &byte, 1);
        spin(round * 37 % 4000);
        _exit(0);
    }
    pid_t tracer = fork();
    if (tracer == 0) {
        (void)!write(go[1], "", 1);
        spin(round * 101 % 4000);
        /* Waits only for what it has attached to: its own report of the end. */
        if (ptrace(PTRACE_SEIZE, tracee, NULL, NULL) == 0)
            waitpid(tracee, NULL, __WALL);
        else
            pause();
        _exit(0);
    }
    close(go[0]);
    close(go[1]);
    /* The parent sees the end of its child although a tracer that failed to attach lives on. */
    int status = 0;
    pid_t got = 0;
    for (double end = seconds() + 10; got == 0 && seconds() < end; usleep(200))
        got = waitpid(tracee, &status, WNOHANG);
    CHECK(got == tracee && WIFEXITED(status));
    kill(tracer, SIGKILL);
    CHECK(waitpid(tracer, NULL, 0) == tracer);
}

int main(void)
{
    signal(SIGUSR1, SIG_IGN);
    CHECK(prctl(PR_SET_CHILD_SUBREAPER, 1) == 0);
    for (unsigned round = 0; round < 400; round++)
        parent_ends(round);
    CHECK(reap_all(30));
    for (unsigned round = 0; round < 200; round++)
        tracee_ends(round);
    CHECK(reap_all(10));
    return check_done();
}
