/* SIGCHLD, stop and continue, fatal signals and their status, permission. */
#define _GNU_SOURCE
#include "../check.h"
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void sleep_ms(int ms)
{
    struct timespec ts = {ms / 1000, ms % 1000 * 1000000L};
    while (nanosleep(&ts, &ts) < 0 && errno == EINTR)
        ;
}

static volatile sig_atomic_t chld, chld_code, chld_status;
static volatile pid_t chld_pid;
static void on_chld(int sig, siginfo_t *si, void *uc)
{
    (void)sig, (void)uc;
    chld++;
    chld_code = si->si_code;
    chld_status = si->si_status;
    chld_pid = si->si_pid;
}

static int die_by(int sig)
{
    pid_t child = fork();
    if (child == 0) {
        struct rlimit no_core = {0, 0};
        setrlimit(RLIMIT_CORE, &no_core);
        raise(sig);
        sleep_ms(1000);
        _exit(99);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    return status;
}

int main(void)
{
    struct sigaction sa = {.sa_sigaction = on_chld, .sa_flags = SA_SIGINFO | SA_RESTART};
    int status;
    sigaction(SIGCHLD, &sa, 0);

    for (int sig = 1; sig <= 64; sig++) {
        if (sig == SIGSTOP || sig == SIGTSTP || sig == SIGTTIN || sig == SIGTTOU || sig == SIGCHLD || sig == SIGCONT ||
            sig == SIGURG || sig == SIGWINCH || sig == 32 || sig == 33)
            continue;
        status = die_by(sig);
        CHECK(WIFSIGNALED(status) && WTERMSIG(status) == sig);
    }
    chld = 0;
    pid_t child = fork();
    if (child == 0)
        _exit(7);
    while (!chld)
        sleep_ms(5);
    CHECK(chld_code == CLD_EXITED && chld_status == 7 && chld_pid == child);
    CHECK(waitpid(child, &status, 0) == child && WEXITSTATUS(status) == 7);

    /* whoever has reaped a child, however it learnt of the end, finds SIGCHLD pending */
    sigset_t chld_set, old_set;
    sigemptyset(&chld_set);
    sigaddset(&chld_set, SIGCHLD);
    sigprocmask(SIG_BLOCK, &chld_set, &old_set);
    int late = 0;
    for (int i = 0; i < 200; i++) {
        siginfo_t si;
        struct timespec none = {0, 0};
        child = fork();
        if (child == 0)
            _exit(0);
        while (waitpid(child, &status, WNOHANG) == 0)
            ;
        late += sigtimedwait(&chld_set, &si, &none) != SIGCHLD || si.si_pid != child;
    }
    CHECK(late == 0);
    sigprocmask(SIG_SETMASK, &old_set, 0);

    /* stop, continue, kill */
    chld = 0;
    child = fork();
    if (child == 0)
        for (;;)
            pause();
    sleep_ms(20);
    kill(child, SIGSTOP);
    CHECK(waitpid(child, &status, WUNTRACED) == child && WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
    CHECK(chld >= 1 && chld_code == CLD_STOPPED && chld_status == SIGSTOP);
    CHECK(waitpid(child, &status, WUNTRACED | WNOHANG) == 0); /* reported once */
    kill(child, SIGCONT);
    CHECK(waitpid(child, &status, WCONTINUED) == child && WIFCONTINUED(status));
    kill(child, SIGSTOP);
    siginfo_t si;
    CHECK(waitid(P_PID, child, &si, WSTOPPED | WNOWAIT) == 0 && si.si_code == CLD_STOPPED && si.si_status == SIGSTOP);
    CHECK(waitid(P_PID, child, &si, WSTOPPED) == 0 && si.si_pid == child);
    kill(child, SIGTERM); /* waits for the continue */
    sleep_ms(30);
    CHECK(waitpid(child, &status, WNOHANG) == 0);
    kill(child, SIGKILL); /* does not */
    CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);

    /* SA_NOCLDSTOP: no signal, but still a report */
    sa.sa_flags |= SA_NOCLDSTOP;
    sigaction(SIGCHLD, &sa, 0);
    chld = 0;
    child = fork();
    if (child == 0)
        for (;;)
            pause();
    sleep_ms(20);
    kill(child, SIGSTOP);
    CHECK(waitpid(child, &status, WUNTRACED) == child && WIFSTOPPED(status));
    CHECK(chld == 0);
    kill(child, SIGKILL);
    CHECK(waitpid(child, &status, 0) == child);

    /* SIGTSTP in an orphaned group does nothing; setsid makes one */
    child = fork();
    if (child == 0) {
        setsid();
        raise(SIGTSTP);
        _exit(3);
    }
    CHECK(waitpid(child, &status, WUNTRACED) == child && WIFEXITED(status) && WEXITSTATUS(status) == 3);

    /* children of one who does not care are reaped at once */
    signal(SIGCHLD, SIG_IGN);
    child = fork();
    if (child == 0)
        _exit(0);
    FAILS(ECHILD, waitpid(child, &status, 0));
    signal(SIGCHLD, SIG_DFL);

    /* a group */
    child = fork();
    if (child == 0) {
        setpgid(0, 0);
        for (int i = 0; i < 3; i++)
            if (fork() == 0)
                for (;;)
                    pause();
        for (;;)
            pause();
    }
    setpgid(child, child);
    sleep_ms(50);
    CHECK(kill(-child, SIGTERM) == 0);
    CHECK(waitpid(child, &status, 0) == child && WTERMSIG(status) == SIGTERM);
    sleep_ms(50);
    int gone = 0;
    for (int i = 0; i < 100 && !gone; i++) {
        gone = kill(-child, 0) < 0 && errno == ESRCH;
        sleep_ms(10);
    }
    CHECK(gone || getppid() != 1);

    /* others' processes */
    if (getuid() == 0) {
        child = fork();
        if (child == 0) {
            CHECK(setresuid(1000, 1000, 1000) == 0);
            FAILS(EPERM, kill(getppid(), 0));
            FAILS(EPERM, kill(getppid(), SIGTERM));
            CHECK(kill(getppid(), SIGCONT) == 0); /* same session */
            FAILS(EPERM, syscall(SYS_tgkill, getppid(), getppid(), SIGTERM));
            siginfo_t fake = {.si_code = SI_USER};
            FAILS(EPERM, syscall(SYS_rt_sigqueueinfo, getppid(), SIGTERM, &fake));
            _exit(check_done());
        }
        CHECK(waitpid(child, &status, 0) == child && status == 0);
    }

    /* a storm from many children does not lose count of the children */
    for (int i = 0; i < 50; i++)
        if (fork() == 0)
            _exit(1);
    int reaped = 0;
    while (wait(&status) > 0)
        reaped++;
    CHECK(reaped == 50);
    return check_done();
}
