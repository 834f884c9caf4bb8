/* O_ASYNC: SIGIO and F_SETSIG for pipes, sockets and pseudo-terminals; owners of each kind, and who may be told. */
#include "../check.h"
#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static sigset_t set;

/* The signal that comes within 5 seconds, or 0 when none has come after `ms`. */
static int comes(siginfo_t *si, int ms)
{
    struct timespec t = { ms / 1000, ms % 1000 * 1000000L };
    int s = sigtimedwait(&set, si, &t);
    return s < 0 ? 0 : s;
}

static void async(int fd, int on)
{
    int flags = fcntl(fd, F_GETFL);
    CHECK(fcntl(fd, F_SETFL, on ? flags | O_ASYNC : flags & ~O_ASYNC) == 0);
}

static void pipes(void)
{
    int p[2];
    char b[16];
    siginfo_t si;
    pipe(p);
    CHECK(fcntl(p[0], F_GETOWN) == 0);
    CHECK(fcntl(p[0], F_SETOWN, getpid()) == 0 && fcntl(p[0], F_GETOWN) == getpid());
    CHECK(write(p[1], "x", 1) == 1 && comes(&si, 100) == 0);
    read(p[0], b, 1);
    async(p[0], 1);
    CHECK(fcntl(p[0], F_GETFL) & O_ASYNC);
    CHECK(write(p[1], "x", 1) == 1 && comes(&si, 5000) == SIGIO);
    read(p[0], b, 1);
    CHECK(fcntl(p[0], F_SETSIG, SIGRTMIN + 3) == 0 && fcntl(p[0], F_GETSIG) == SIGRTMIN + 3);
    CHECK(write(p[1], "x", 1) == 1 && comes(&si, 5000) == SIGRTMIN + 3);
    CHECK(si.si_code == POLL_IN && si.si_fd == p[0] && (si.si_band & POLLIN));
    read(p[0], b, 1);
    while (comes(&si, 50))
        ;
    async(p[0], 0);
    CHECK(write(p[1], "x", 1) == 1 && comes(&si, 100) == 0);
    FAILS(EINVAL, fcntl(p[0], F_SETSIG, 65));
    FAILS(ESRCH, fcntl(p[0], F_SETOWN, 4000000));
    async(p[0], 1);
    close(p[1]); /* A hang-up is told, too. */
    CHECK(comes(&si, 5000) == SIGRTMIN + 3);
    close(p[0]);
}

static void sockets_and_kinds_of_owners(void)
{
    int s[2];
    siginfo_t si;
    char b[16];
    socketpair(AF_UNIX, SOCK_STREAM, 0, s);
    struct f_owner_ex ex = { F_OWNER_TID, syscall(SYS_gettid) }, got;
    CHECK(fcntl(s[0], F_SETOWN_EX, &ex) == 0 && fcntl(s[0], F_GETOWN_EX, &got) == 0);
    CHECK(got.type == F_OWNER_TID && got.pid == ex.pid);
    fcntl(s[0], F_SETSIG, SIGRTMIN + 4);
    int on = 1;
    CHECK(ioctl(s[0], FIOASYNC, &on) == 0);
    CHECK(write(s[1], "hello", 5) == 5 && comes(&si, 5000) == SIGRTMIN + 4 && si.si_fd == s[0]);
    read(s[0], b, 5);
    while (comes(&si, 50))
        ;
    /* A process group, of which a child is a member. */
    int told[2], status;
    pipe(told);
    pid_t pid = fork();
    if (pid == 0) {
        setpgid(0, 0);
        write(told[1], "r", 1);
        _exit(comes(&si, 5000) == SIGIO ? 0 : 1);
    }
    read(told[0], b, 1);
    CHECK(fcntl(s[0], F_SETOWN, -pid) == 0 && fcntl(s[0], F_GETOWN) == -pid);
    fcntl(s[0], F_SETSIG, 0);
    CHECK(write(s[1], "x", 1) == 1);
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    CHECK(comes(&si, 50) == 0);
    close(s[0]);
    close(s[1]);
    close(told[0]);
    close(told[1]);
}

static void not_to_strangers(void)
{
    int p[2], ready[2], status;
    char b;
    siginfo_t si;
    pipe(ready);
    pid_t root = getpid();
    pid_t pid = fork();
    if (pid == 0) {
        setgid(1000);
        setuid(1000);
        pipe(p);
        fcntl(p[0], F_SETOWN, root);
        fcntl(p[0], F_SETFL, O_ASYNC);
        write(p[1], "x", 1);
        usleep(200000);
        _exit(0);
    }
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    CHECK(comes(&si, 200) == 0);
    close(ready[0]);
    close(ready[1]);
}

static void terminals(void)
{
    int master, slave;
    siginfo_t si;
    char b[16];
    CHECK(openpty(&master, &slave, 0, 0, 0) == 0);
    CHECK(fcntl(slave, F_SETOWN, getpid()) == 0);
    async(slave, 1);
    CHECK(write(master, "line\n", 5) == 5 && comes(&si, 5000) == SIGIO);
    CHECK(read(slave, b, sizeof b) == 5);
    close(master);
    close(slave);
}

int main(void)
{
    sigemptyset(&set);
    sigaddset(&set, SIGIO);
    sigaddset(&set, SIGRTMIN + 3);
    sigaddset(&set, SIGRTMIN + 4);
    sigprocmask(SIG_BLOCK, &set, 0);
    pipes();
    sockets_and_kinds_of_owners();
    not_to_strangers();
    terminals();
    return check_done();
}
