/* The setuid family, capabilities, securebits, sessions and groups, limits, prctl. Wants to start as root. */
#define _GNU_SOURCE
#include "../check.h"
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <sys/times.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

static void *volatile nowhere = (void *)8;

static unsigned long long caps(int which)
{
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2];
    CHECK(syscall(SYS_capget, &head, data) == 0);
    unsigned lo = which == 0 ? data[0].effective : which == 1 ? data[0].permitted : data[0].inheritable;
    unsigned hi = which == 0 ? data[1].effective : which == 1 ? data[1].permitted : data[1].inheritable;
    return lo | (unsigned long long)hi << 32;
}

static int ids_are(uid_t r, uid_t e, uid_t s)
{
    uid_t a, b, c;
    return getresuid(&a, &b, &c) == 0 && a == r && b == e && c == s;
}

static void setuid_drops_everything(void)
{
    CHECK(caps(0) != 0);
    CHECK(setuid(1000) == 0);
    CHECK(ids_are(1000, 1000, 1000));
    CHECK(caps(0) == 0 && caps(1) == 0);
    FAILS(EPERM, setuid(0));
    CHECK(prctl(PR_GET_DUMPABLE) == 0);
}

static void effective_id_moves_effective_caps(void)
{
    unsigned long long all = caps(1);
    CHECK(seteuid(1000) == 0);
    CHECK(ids_are(0, 1000, 0) && caps(0) == 0 && caps(1) == all);
    CHECK(seteuid(0) == 0);
    CHECK(caps(0) == all);
    CHECK(setresuid(1, 2, 3) == 0 && ids_are(1, 2, 3));
    CHECK(setresuid(3, 1, 2) == 0 && ids_are(3, 1, 2));
    FAILS(EPERM, setresuid(4, -1, -1));
    CHECK(setreuid(-1, 3) == 0 && ids_are(3, 3, 2));
    CHECK(setreuid(3, 2) == 0 && ids_are(3, 2, 2));
    CHECK(setfsuid(-1) == 2);
}

static void keepcaps_keeps_permitted(void)
{
    unsigned long long all = caps(1);
    CHECK(prctl(PR_SET_KEEPCAPS, 1) == 0);
    CHECK(setuid(1000) == 0);
    CHECK(caps(1) == all && caps(0) == 0);
}

static void groups(void)
{
    gid_t want[] = {30, 10, 20}, got[8];
    CHECK(setgroups(3, want) == 0);
    CHECK(getgroups(0, 0) == 3);
    FAILS(EINVAL, getgroups(2, got));
    CHECK(getgroups(8, got) == 3 && got[0] == 10 && got[2] == 30);
    CHECK(setgid(5) == 0 && getgid() == 5 && getegid() == 5);
    CHECK(setuid(1000) == 0);
    FAILS(EPERM, setgroups(0, 0));
    FAILS(EPERM, setgid(6));
    FAILS(EINVAL, syscall(SYS_setgid, -1));
}

static void bounding_and_ambient(void)
{
    CHECK(prctl(PR_CAPBSET_READ, CAP_CHOWN) == 1);
    FAILS(EINVAL, prctl(PR_CAPBSET_READ, 63));
    CHECK(prctl(PR_CAPBSET_DROP, CAP_CHOWN) == 0);
    CHECK(prctl(PR_CAPBSET_READ, CAP_CHOWN) == 0);
    FAILS(EPERM, prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_KILL, 0, 0));
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2];
    CHECK(syscall(SYS_capget, &head, data) == 0);
    data[0].inheritable |= 1 << CAP_KILL;
    CHECK(syscall(SYS_capset, &head, data) == 0);
    CHECK(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_KILL, 0, 0) == 0);
    CHECK(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, CAP_KILL, 0, 0) == 1);
    data[0].permitted &= ~(1 << CAP_NET_RAW);
    data[0].effective &= ~(1 << CAP_NET_RAW);
    CHECK(syscall(SYS_capset, &head, data) == 0);
    data[0].permitted |= 1 << CAP_NET_RAW;
    FAILS(EPERM, syscall(SYS_capset, &head, data));
    head.version = 1;
    FAILS(EINVAL, syscall(SYS_capget, &head, data));
    CHECK(head.version == _LINUX_CAPABILITY_VERSION_3);
    CHECK(prctl(PR_SET_SECUREBITS, SECBIT_NOROOT | SECBIT_NOROOT_LOCKED) == 0);
    FAILS(EPERM, prctl(PR_SET_SECUREBITS, 0));
    CHECK(prctl(PR_GET_SECUREBITS) == (SECBIT_NOROOT | SECBIT_NOROOT_LOCKED));
}

static void sessions(void)
{
    pid_t me = getpid();
    CHECK(setpgid(0, 0) == 0 && getpgrp() == me);
    FAILS(EPERM, setsid());
    FAILS(EPERM, setpgid(0, 1 << 21));
    FAILS(EINVAL, setpgid(0, -1));
    FAILS(ESRCH, setpgid(1 << 21, 0));
    FAILS(ESRCH, getsid(1 << 21));
    pid_t pid = fork();
    if (pid == 0) {
        CHECK(getpgrp() == me);
        CHECK(setsid() == getpid() && getsid(0) == getpid() && getpgid(0) == getpid());
        FAILS(EPERM, setpgid(0, 0));
        FAILS(ENXIO, open("/dev/tty", O_RDWR));
        _exit(check_failures ? 1 : 0);
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    /* a child that has executed a program is beyond its parent's setpgid */
    int p[2];
    char c;
    CHECK(pipe(p) == 0);
    pid = fork();
    if (pid == 0) {
        close(p[0]);
        fcntl(p[1], F_SETFD, FD_CLOEXEC);
        execl("/bin/sleep", "sleep", "10", (char *)0);
        _exit(1);
    }
    close(p[1]);
    CHECK(read(p[0], &c, 1) == 0);
    FAILS(EACCES, setpgid(pid, pid));
    kill(pid, SIGKILL);
    waitpid(pid, &status, 0);
}

static void limits(void)
{
    struct rlimit l, old;
    CHECK(getrlimit(RLIMIT_NOFILE, &old) == 0);
    l = (struct rlimit){20, old.rlim_max};
    CHECK(setrlimit(RLIMIT_NOFILE, &l) == 0);
    FAILS(EINVAL, fcntl(1, F_DUPFD, 20));
    FAILS(EBADF, dup2(1, 20));
    l = (struct rlimit){30, 20};
    FAILS(EINVAL, setrlimit(RLIMIT_NOFILE, &l));
    FAILS(EINVAL, syscall(SYS_getrlimit, 16, &l));
    FAILS(EFAULT, syscall(SYS_getrlimit, 0, 8));
    FAILS(ESRCH, prlimit(1 << 21, RLIMIT_CPU, 0, &l));
    CHECK(prlimit(0, RLIMIT_STACK, 0, &l) == 0 && l.rlim_cur > 0);
    CHECK(setuid(1000) == 0);
    CHECK(getrlimit(RLIMIT_CORE, &l) == 0);
    l = (struct rlimit){0, 0};
    CHECK(setrlimit(RLIMIT_CORE, &l) == 0);
    l = (struct rlimit){0, 1};
    FAILS(EPERM, setrlimit(RLIMIT_CORE, &l));
    /* a limit on processes */
    l = (struct rlimit){1, 1};
    CHECK(setrlimit(RLIMIT_NPROC, &l) == 0);
    FAILS(EAGAIN, fork());
}

static void prctls(void)
{
    char name[16] = "";
    int value = -1;
    CHECK(prctl(PR_SET_NAME, "a-name-that-is-too-long") == 0);
    CHECK(prctl(PR_GET_NAME, name) == 0 && strcmp(name, "a-name-that-is-") == 0);
    FAILS(EFAULT, prctl(PR_SET_NAME, 8));
    CHECK(prctl(PR_SET_PDEATHSIG, SIGUSR1) == 0);
    CHECK(prctl(PR_GET_PDEATHSIG, &value) == 0 && value == SIGUSR1);
    FAILS(EINVAL, prctl(PR_SET_PDEATHSIG, 65));
    FAILS(EINVAL, prctl(PR_SET_DUMPABLE, 2));
    CHECK(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 0);
    FAILS(EINVAL, prctl(PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0));
    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    CHECK(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1);
    CHECK(prctl(PR_GET_TIMERSLACK) == 50000);
    CHECK(prctl(PR_SET_TIMERSLACK, 1234) == 0 && prctl(PR_GET_TIMERSLACK) == 1234);
    FAILS(EINVAL, prctl(12345));
}

static volatile int died;
static void on_death(int sig)
{
    died = sig;
}

static void the_death_of_the_parent_is_told(void)
{
    int p[2];
    char c = 0;
    CHECK(pipe(p) == 0);
    pid_t middle = fork();
    if (middle == 0) {
        pid_t ready[2];
        if (pipe(ready))
            _exit(2);
        if (fork() == 0) {
            signal(SIGUSR1, on_death);
            prctl(PR_SET_PDEATHSIG, SIGUSR1);
            close(ready[0]);
            (void)!write(ready[1], "r", 1);
            for (int i = 0; i < 500 && !died; i++)
                usleep(10000);
            (void)!write(p[1], died == SIGUSR1 ? "y" : "n", 1);
            _exit(0);
        }
        (void)!read(ready[0], &c, 1);
        _exit(0);
    }
    int status;
    CHECK(waitpid(middle, &status, 0) == middle);
    close(p[1]);
    CHECK(read(p[0], &c, 1) == 1 && c == 'y');
}

static void the_system(void)
{
    struct utsname u;
    struct sysinfo s;
    struct tms t;
    unsigned char a[300] = {0}, b[300] = {0};
    CHECK(uname(&u) == 0 && !strcmp(u.sysname, "Linux") && !strcmp(u.machine, "x86_64"));
    CHECK(sethostname("abi-test", 8) == 0 && uname(&u) == 0 && !strcmp(u.nodename, "abi-test"));
    FAILS(EINVAL, sethostname(u.nodename, 65));
    CHECK(sysinfo(&s) == 0 && s.totalram > s.freeram && s.procs > 0 && s.uptime > 0);
    CHECK(times(&t) != -1);
    CHECK(getrandom(a, sizeof a, 0) == sizeof a && getrandom(b, sizeof b, 0) == sizeof b && memcmp(a, b, sizeof a));
    CHECK(getrandom(a, 16, GRND_NONBLOCK) == 16);
    FAILS(EINVAL, getrandom(a, 16, 8));
    FAILS(EFAULT, syscall(SYS_getrandom, nowhere, 16, 0));
    unsigned cpu = 999, node = 999;
    CHECK(syscall(SYS_getcpu, &cpu, &node, 0) == 0 && cpu < 64 && node == 0);
    CHECK(syscall(SYS_membarrier, 0, 0, 0) > 0);
    FAILS(EPERM, syscall(SYS_membarrier, 8, 0, 0));
    CHECK(syscall(SYS_membarrier, 16, 0, 0) == 0 && syscall(SYS_membarrier, 8, 0, 0) == 0);
    CHECK(syscall(SYS_personality, 0xffffffff) >= 0);
    FAILS(EINVAL, unshare(1));
    FAILS(EINVAL, syscall(SYS_reboot, 1, 2, 3, 4));
}

int main(void)
{
    if (getuid() != 0) {
        printf("needs root\n");
        return 77;
    }
    check_in_child(setuid_drops_everything);
    check_in_child(effective_id_moves_effective_caps);
    check_in_child(keepcaps_keeps_permitted);
    check_in_child(groups);
    check_in_child(bounding_and_ambient);
    check_in_child(sessions);
    check_in_child(limits);
    check_in_child(prctls);
    the_death_of_the_parent_is_told();
    check_in_child(the_system);
    return check_done();
}
