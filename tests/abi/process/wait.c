/* wait4 and waitid: statuses, options, id types, stops and continues, reparenting, SIGCHLD ignored, pidfds. */
#define _GNU_SOURCE
#include "../check.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef P_PIDFD
#define P_PIDFD 3
#endif

static pid_t child_that_exits(int status)
{
    pid_t pid = fork();
    if (pid == 0)
        _exit(status);
    return pid;
}

static pid_t child_that_pauses(void)
{
    pid_t pid = fork();
    if (pid == 0)
        for (;;)
            pause();
    return pid;
}

static void statuses(void)
{
    int status;
    pid_t pid = child_that_exits(300);
    CHECK(waitpid(pid, &status, 0) == pid);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == (300 & 255));
    pid = child_that_pauses();
    CHECK(waitpid(pid, &status, WNOHANG) == 0);
    kill(pid, SIGTERM);
    CHECK(waitpid(pid, &status, 0) == pid);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM);
    FAILS(ECHILD, waitpid(pid, &status, 0));
    FAILS(EINVAL, waitpid(-1, &status, 0x40));
    FAILS(ESRCH, wait4(-2147483647 - 1, &status, 0, 0));
    FAILS(EINVAL, waitid(P_ALL, 0, 0, 0));
    FAILS(EINVAL, waitid(99, 0, 0, WEXITED));
}

static void waitid_reports_and_can_leave(void)
{
    siginfo_t si;
    pid_t pid = child_that_exits(5);
    memset(&si, 0, sizeof si);
    CHECK(waitid(P_PID, pid, &si, WEXITED | WNOWAIT) == 0);
    CHECK(si.si_pid == pid && si.si_code == CLD_EXITED && si.si_status == 5 && si.si_signo == SIGCHLD);
    CHECK(si.si_uid == getuid());
    CHECK(waitid(P_PID, pid, &si, WEXITED) == 0);
    FAILS(ECHILD, waitid(P_PID, pid, &si, WEXITED));
    pid = child_that_pauses();
    si.si_pid = 77;
    CHECK(waitid(P_PID, pid, &si, WEXITED | WNOHANG) == 0);
    CHECK(si.si_pid == 0);
    kill(pid, SIGKILL);
    CHECK(waitid(P_ALL, 0, &si, WEXITED) == 0);
    CHECK(si.si_code == CLD_KILLED && si.si_status == SIGKILL);
}

static void stops_and_continues(void)
{
    int status;
    siginfo_t si;
    pid_t pid = child_that_pauses();
    kill(pid, SIGSTOP);
    CHECK(waitpid(pid, &status, WUNTRACED) == pid);
    CHECK(WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
    CHECK(waitpid(pid, &status, WUNTRACED | WNOHANG) == 0);
    kill(pid, SIGCONT);
    CHECK(waitpid(pid, &status, WCONTINUED) == pid);
    CHECK(WIFCONTINUED(status));
    kill(pid, SIGSTOP);
    CHECK(waitid(P_PID, pid, &si, WSTOPPED) == 0);
    CHECK(si.si_code == CLD_STOPPED && si.si_status == SIGSTOP);
    kill(pid, SIGCONT);
    CHECK(waitid(P_PID, pid, &si, WCONTINUED) == 0);
    CHECK(si.si_code == CLD_CONTINUED && si.si_status == SIGCONT);
    kill(pid, SIGKILL);
    CHECK(waitpid(pid, &status, 0) == pid);
}

static void groups(void)
{
    int status;
    pid_t a = child_that_exits(1), b;
    b = fork();
    if (b == 0) {
        setpgid(0, 0);
        _exit(2);
    }
    setpgid(b, b);
    CHECK(waitpid(-b, &status, 0) == b && WEXITSTATUS(status) == 2);
    FAILS(ECHILD, waitpid(-b, &status, 0));
    CHECK(waitpid(0, &status, 0) == a && WEXITSTATUS(status) == 1);
}

static void clone_children_need_wclone(void)
{
    int status;
    pid_t pid = syscall(SYS_clone, 0, 0, 0, 0, 0);
    if (pid == 0)
        _exit(4);
    FAILS(ECHILD, waitpid(pid, &status, 0));
    CHECK(waitpid(pid, &status, __WCLONE) == pid && WEXITSTATUS(status) == 4);
}

static void orphans_go_to_the_subreaper(void)
{
    int status;
    CHECK(prctl(PR_SET_CHILD_SUBREAPER, 1) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        if (fork() == 0) {
            usleep(50000);
            _exit(getppid() == 1 ? 1 : 42);
        }
        _exit(0);
    }
    CHECK(waitpid(pid, &status, 0) == pid);
    pid_t orphan = wait(&status);
    CHECK(orphan > 0 && orphan != pid && WEXITSTATUS(status) == 42);
    CHECK(prctl(PR_SET_CHILD_SUBREAPER, 0) == 0);
}

static void ignored_children_vanish(void)
{
    signal(SIGCHLD, SIG_IGN);
    child_that_exits(0);
    FAILS(ECHILD, wait(0));
    signal(SIGCHLD, SIG_DFL);
}

static void pidfds(void)
{
    siginfo_t si;
    pid_t pid = child_that_pauses();
    int fd = syscall(SYS_pidfd_open, pid, 0);
    CHECK(fd >= 0 && fcntl(fd, F_GETFD) == FD_CLOEXEC);
    struct pollfd p = {.fd = fd, .events = POLLIN};
    CHECK(poll(&p, 1, 0) == 0);
    CHECK(syscall(SYS_pidfd_send_signal, fd, SIGTERM, 0, 0) == 0);
    CHECK(poll(&p, 1, 5000) == 1 && (p.revents & POLLIN));
    CHECK(waitid(P_PIDFD, fd, &si, WEXITED) == 0);
    CHECK(si.si_pid == pid && si.si_status == SIGTERM);
    FAILS(ECHILD, waitid(P_PIDFD, fd, &si, WEXITED));
    FAILS(ESRCH, syscall(SYS_pidfd_send_signal, fd, 0, 0, 0));
    close(fd);
    FAILS(ESRCH, syscall(SYS_pidfd_open, pid, 0));
    FAILS(EINVAL, syscall(SYS_pidfd_open, getpid(), 1));
    FAILS(EINVAL, syscall(SYS_pidfd_open, -1, 0));
    int null = open("/dev/null", O_RDONLY);
    FAILS(EBADF, waitid(P_PIDFD, null, &si, WEXITED));
    close(null);
    /* a directory of /proc/PID stands for the process, other files do not */
    char name[32];
    pid = child_that_pauses();
    snprintf(name, sizeof name, "/proc/%d", pid);
    fd = open(name, O_RDONLY | O_DIRECTORY);
    CHECK(fd >= 0 && syscall(SYS_pidfd_send_signal, fd, 0, 0, 0) == 0);
    CHECK(syscall(SYS_pidfd_send_signal, fd, SIGTERM, 0, 0) == 0);
    int ended;
    CHECK(waitpid(pid, &ended, 0) == pid && WIFSIGNALED(ended) && WTERMSIG(ended) == SIGTERM);
    FAILS(ESRCH, syscall(SYS_pidfd_send_signal, fd, 0, 0, 0));
    close(fd);
    fd = open("/proc/self/task", O_RDONLY | O_DIRECTORY);
    FAILS(EBADF, syscall(SYS_pidfd_send_signal, fd, 0, 0, 0));
    close(fd);
    /* a descriptor of our own, through our own pidfd */
    fd = syscall(SYS_pidfd_open, getpid(), 0);
    int copy = syscall(SYS_pidfd_getfd, fd, 1, 0);
    CHECK(copy >= 0);
    CHECK(syscall(SYS_kcmp, getpid(), getpid(), 0, 1, copy) == 0 || errno == ENOSYS);
    FAILS(EBADF, syscall(SYS_pidfd_getfd, fd, 999, 0));
    close(copy);
    close(fd);
}

static void usage_is_summed_over_children(void)
{
    struct rusage own, sum;
    int status;
    pid_t pid = fork();
    if (pid == 0) {
        for (volatile long i = 0; i < 20000000; i++)
            ;
        _exit(0);
    }
    CHECK(wait4(pid, &status, 0, &own) == pid);
    CHECK(getrusage(RUSAGE_CHILDREN, &sum) == 0);
    CHECK(own.ru_utime.tv_sec * 1000000 + own.ru_utime.tv_usec > 1000);
    CHECK(sum.ru_utime.tv_sec > own.ru_utime.tv_sec ||
          (sum.ru_utime.tv_sec == own.ru_utime.tv_sec && sum.ru_utime.tv_usec >= own.ru_utime.tv_usec));
    CHECK(own.ru_maxrss > 100);
    CHECK(sum.ru_minflt > 0);
    FAILS(EINVAL, getrusage(99, &sum));
}

int main(void)
{
    statuses();
    waitid_reports_and_can_leave();
    stops_and_continues();
    groups();
    clone_children_need_wclone();
    orphans_go_to_the_subreaper();
    ignored_children_vanish();
    pidfds();
    usage_is_summed_over_children();
    return check_done();
}
