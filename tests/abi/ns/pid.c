/* PID namespaces: clone(2), unshare(2), setns(2), pid_namespaces(7), ioctl_ns(2). As root. */
#include "../check.h"
#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define STACK 65536
#define NS_GET_PARENT_ 0xb702
#define NS_GET_PID_FROM_PIDNS_ 0x8004b706
#define NS_GET_TGID_IN_PIDNS_ 0x8004b709

/* What clone3(2) takes, without what came after set_tid. */
struct clone_args_ {
    unsigned long long flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size;
};

static pid_t fork_with(unsigned long flags)
{
    fflush(stdout);
    return syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0);
}

/* Ends a child as check_in_child does. */
static void done(void)
{
    fflush(stdout);
    _exit(check_failures ? 1 : 0);
}

static void reap(pid_t pid)
{
    int status;
    CHECK(waitpid(pid, &status, 0) == pid);
    if (status)
        printf("child ended with status %#x\n", status);
    CHECK(status == 0);
}

/* The line of /proc/PID/status with this label, without it. */
static const char *status_of(const char *pid, const char *label)
{
    static char line[256];
    char path[64];
    snprintf(path, sizeof path, "/proc/%s/status", pid);
    FILE *in = fopen(path, "r");
    size_t n = strlen(label);
    while (in && fgets(line, sizeof line, in))
        if (!strncmp(line, label, n) && line[n] == ':') {
            fclose(in);
            line[strcspn(line, "\n")] = 0;
            return line + n + 1;
        }
    if (in)
        fclose(in);
    return "";
}

static const char *number(pid_t pid)
{
    static char text[16];
    snprintf(text, sizeof text, "%d", pid);
    return text;
}

static int private_proc(void)
{
    return mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0 && mount("proc", "/proc", "proc", 0, NULL) == 0;
}

/* What the first process of a namespace is called, there and outside. */
static void numbers(void)
{
    int up[2], down[2];
    char c;
    CHECK(pipe(up) == 0 && pipe(down) == 0);
    pid_t outer = getpid(), pid = fork_with(CLONE_NEWPID | CLONE_NEWNS);
    if (pid == 0) {
        char link[64], expected[64];
        struct stat a, b;
        close(down[1]);
        CHECK(getpid() == 1 && syscall(SYS_gettid) == 1 && getppid() == 0);
        CHECK(getpgid(0) == 0 && getsid(0) == 0);
        FAILS(ESRCH, kill(outer, 0));
        FAILS(ESRCH, getpgid(outer));
        /* The file system of before shows this process by its number outside. */
        ssize_t n = readlink("/proc/self", link, sizeof link - 1);
        link[n > 0 ? n : 0] = 0;
        CHECK(atoi(link) > 1 && !strcmp(status_of("self", "Pid") + 1, link) && atoi(status_of("self", "PPid")) == outer);
        CHECK(private_proc());
        n = readlink("/proc/self", link, sizeof link);
        CHECK(n == 1 && link[0] == '1');
        n = readlink("/proc/thread-self", link, sizeof link);
        CHECK(n == 8 && !strncmp(link, "1/task/1", 8));
        CHECK(!strcmp(status_of("self", "Pid"), "\t1") && !strcmp(status_of("self", "NSpid"), "\t1"));
        CHECK(!strcmp(status_of("self", "PPid"), "\t0") && !strcmp(status_of("self", "NSsid"), "\t0"));
        DIR *dir = opendir("/proc");
        int listed = 0;
        for (struct dirent *d; (d = readdir(dir));)
            listed += d->d_name[0] >= '0' && d->d_name[0] <= '9';
        CHECK(listed == 1);
        closedir(dir);
        CHECK(setsid() == 1 && getsid(0) == 1 && getpgid(1) == 1);
        pid_t second = fork_with(0);
        if (second == 0) {
            CHECK(getpid() == 2 && getppid() == 1 && setpgid(0, 0) == 0 && getpgid(0) == 2 && getsid(2) == 1);
            CHECK(!strcmp(status_of("self", "NSpid"), "\t2") && !strcmp(status_of("1", "Pid"), "\t1"));
            done();
        }
        CHECK(second == 2);
        reap(second);
        CHECK(stat("/proc/1/ns/pid", &a) == 0 && stat("/proc/self/ns/pid_for_children", &b) == 0 && a.st_ino == b.st_ino);
        snprintf(expected, sizeof expected, "pid:[%lu]", (unsigned long)a.st_ino);
        n = readlink("/proc/self/ns/pid", link, sizeof link);
        CHECK(n == (ssize_t)strlen(expected) && !strncmp(link, expected, n));
        CHECK(write(up[1], "r", 1) == 1);
        CHECK(read(down[0], &c, 1) == 1);
        done();
    }
    CHECK(pid > 1 && read(up[0], &c, 1) == 1);
    char both[64], path[64];
    snprintf(both, sizeof both, "\t%d\t1", pid);
    CHECK(!strcmp(status_of(number(pid), "NSpid"), both) && !strcmp(status_of(number(pid), "NStgid"), both));
    CHECK(getpgid(pid) == pid && getsid(pid) == pid);
    snprintf(path, sizeof path, "/proc/%d/ns/pid", pid);
    int ns = open(path, O_RDONLY), own = open("/proc/self/ns/pid", O_RDONLY);
    CHECK(ns >= 0 && own >= 0);
    int parent = ioctl(ns, NS_GET_PARENT_);
    struct stat a, b;
    CHECK(parent >= 0 && fstat(parent, &a) == 0 && fstat(own, &b) == 0 && a.st_ino == b.st_ino);
    CHECK(ioctl(ns, NS_GET_PID_FROM_PIDNS_, 1) == pid && ioctl(ns, NS_GET_TGID_IN_PIDNS_, pid) == 1);
    FAILS(ESRCH, ioctl(ns, NS_GET_TGID_IN_PIDNS_, getpid()));
    CHECK(write(down[1], "g", 1) == 1);
    reap(pid);
    close(up[0]), close(up[1]), close(down[0]), close(down[1]), close(ns), close(own), close(parent);
}

static volatile sig_atomic_t got, got_pid, got_code;

static void on_signal(int signo, siginfo_t *info, void *context)
{
    (void)context;
    got = signo;
    got_pid = info->si_pid;
    got_code = info->si_code;
}

/* The first process gets what it handles; from outside SIGKILL and SIGSTOP as well. */
static void signals(void)
{
    int up[2], status;
    char c;
    CHECK(pipe(up) == 0);
    pid_t pid = fork_with(CLONE_NEWPID);
    if (pid == 0) {
        struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO};
        CHECK(kill(1, SIGKILL) == 0 && kill(1, SIGTERM) == 0 && kill(1, SIGSTOP) == 0);
        pid_t child = fork_with(0);
        if (child == 0) {
            CHECK(kill(1, SIGKILL) == 0 && kill(1, SIGSTOP) == 0);
            /* All but oneself and the first. */
            FAILS(ESRCH, kill(-1, SIGKILL));
            done();
        }
        reap(child);
        CHECK(sigaction(SIGUSR1, &action, NULL) == 0 && sigaction(SIGCHLD, &action, NULL) == 0);
        child = fork_with(0);
        if (child == 0) {
            kill(1, SIGUSR1);
            pause();
        }
        while (got != SIGUSR1)
            usleep(1000);
        CHECK(got_pid == child && got_code == SI_USER);
        CHECK(kill(child, SIGKILL) == 0 && waitpid(child, &status, 0) == child);
        CHECK(got == SIGCHLD && got_pid == child && got_code == CLD_KILLED);
        fflush(stdout);
        if (check_failures)
            _exit(1);
        got = 0;
        write(up[1], "r", 1);
        while (got != SIGUSR1)
            usleep(1000);
        /* Who is outside has no number. */
        write(up[1], got_pid == 0 ? "0" : "x", 1);
        for (;;)
            pause();
    }
    CHECK(read(up[0], &c, 1) == 1 && kill(pid, SIGTERM) == 0 && kill(pid, SIGUSR1) == 0);
    CHECK(read(up[0], &c, 1) == 1 && c == '0');
    CHECK(kill(pid, SIGSTOP) == 0 && waitpid(pid, &status, WUNTRACED) == pid && WIFSTOPPED(status));
    CHECK(kill(pid, SIGCONT) == 0 && kill(pid, SIGTERM) == 0 && waitpid(pid, &status, WNOHANG) == 0);
    siginfo_t info;
    CHECK(kill(pid, SIGKILL) == 0 && waitid(P_PID, pid, &info, WEXITED) == 0);
    CHECK(info.si_pid == pid && info.si_code == CLD_KILLED && info.si_status == SIGKILL);
    close(up[0]), close(up[1]);
}

/* The first process's end ends all, nested ones too; it inherits orphans before. */
static void the_end(void)
{
    int up[2], life[2];
    char c;
    CHECK(pipe(up) == 0 && pipe(life) == 0);
    pid_t pid = fork_with(CLONE_NEWPID);
    if (pid == 0) {
        close(life[0]);
        pid_t orphan = fork_with(0);
        if (orphan == 0) {
            if (fork_with(0) == 0) {
                while (getppid() == 2)
                    usleep(1000);
                CHECK(getppid() == 1);
                exit(check_failures ? 1 : 42);
            }
            _exit(0);
        }
        reap(orphan);
        int status;
        CHECK(waitpid(-1, &status, 0) == 3 && WEXITSTATUS(status) == 42);
        for (int i = 0; i < 8; i++)
            if (fork_with(i & 1 ? CLONE_NEWPID : 0) == 0) {
                signal(SIGTERM, SIG_IGN);
                /* A child that does not tell by SIGCHLD. */
                if (syscall(SYS_clone, 0, 0, 0, 0, 0) == 0 && fork_with(0) == 0)
                    write(up[1], "r", 1);
                for (;;)
                    pause();
            }
        close(up[1]);
        for (int i = 0; i < 8; i++)
            read(up[0], &c, 1);
        done();
    }
    close(life[1]);
    reap(pid);
    /* All are gone when it is reaped: nobody has the pipe open. */
    struct pollfd p = {.fd = life[0], .events = POLLIN};
    CHECK(poll(&p, 1, 0) == 1 && p.revents == POLLHUP);
    close(up[0]), close(up[1]), close(life[0]);
}

/* unshare(2) and setns(2) are about children, and go downwards only. */
static void for_children(void)
{
    struct stat before, after;
    int up[2], status;
    char c, link[64];
    CHECK(pipe(up) == 0);
    CHECK(stat("/proc/self/ns/pid", &before) == 0 && unshare(CLONE_NEWPID) == 0);
    CHECK(stat("/proc/self/ns/pid", &after) == 0 && before.st_ino == after.st_ino);
    FAILS(ENOENT, readlink("/proc/self/ns/pid_for_children", link, sizeof link));
    FAILS(EINVAL, unshare(CLONE_NEWPID));
    FAILS(EINVAL, syscall(SYS_clone, CLONE_THREAD | CLONE_SIGHAND | CLONE_VM, malloc(STACK) + STACK, 0, 0, 0));
    pid_t first = fork_with(0);
    if (first == 0) {
        CHECK(getpid() == 1);
        write(up[1], "r", 1);
        for (;;)
            pause();
    }
    CHECK(first > 1 && read(up[0], &c, 1) == 1);
    int own = open("/proc/self/ns/pid", O_RDONLY);
    CHECK(stat("/proc/self/ns/pid_for_children", &after) == 0 && before.st_ino != after.st_ino);
    pid_t second = fork_with(0);
    if (second == 0) {
        /* Its parent is outside. */
        CHECK(getpid() == 2 && getppid() == 0);
        FAILS(EINVAL, setns(own, CLONE_NEWPID));
        FAILS(EPERM, ioctl(open("/proc/self/ns/pid", O_RDONLY), NS_GET_PARENT_));
        done();
    }
    reap(second);
    int inner = open("/proc/self/ns/pid_for_children", O_RDONLY);
    CHECK(setns(own, CLONE_NEWPID) == 0);
    pid_t outside = fork_with(0);
    if (outside == 0) {
        CHECK(getppid() > 1);
        done();
    }
    reap(outside);
    CHECK(setns(inner, CLONE_NEWPID) == 0);
    CHECK(kill(first, SIGKILL) == 0 && waitpid(first, &status, 0) == first && status == SIGKILL);
    /* Nobody is born where the first has ended. */
    FAILS(ENOMEM, fork_with(0));
    CHECK(setns(own, 0) == 0);
    close(up[0]), close(up[1]);
}

static void thread_numbers(void)
{
    pid_t wanted[3] = {1, 0, 31999}, none = 0;
    struct clone_args_ args = {.flags = CLONE_NEWPID, .exit_signal = SIGCHLD, .set_tid = (unsigned long)wanted, .set_tid_size = 2};
    while (kill(wanted[2], 0) == 0)
        wanted[2]--;
    wanted[1] = wanted[2];
    fflush(stdout);
    pid_t pid = syscall(SYS_clone3, &args, sizeof args);
    if (pid == 0) {
        CHECK(getpid() == 1);
        pid_t one = 1, zero = 0, ten = 10;
        struct clone_args_ more = {.exit_signal = SIGCHLD, .set_tid = (unsigned long)&one, .set_tid_size = 1};
        FAILS(EEXIST, syscall(SYS_clone3, &more, sizeof more));
        more.set_tid = (unsigned long)&zero;
        FAILS(EINVAL, syscall(SYS_clone3, &more, sizeof more));
        more.set_tid = (unsigned long)&ten;
        pid_t child = syscall(SYS_clone3, &more, sizeof more);
        if (child == 0)
            _exit(getpid() == 10 ? 0 : 1);
        CHECK(child == 10);
        reap(child);
        done();
    }
    CHECK(pid == wanted[2]);
    reap(pid);
    /* The first is number 1, whatever is wanted; and there are not more numbers than namespaces. */
    wanted[0] = 2;
    args.set_tid_size = 1;
    FAILS(EINVAL, syscall(SYS_clone3, &args, sizeof args));
    args.set_tid_size = 33;
    FAILS(EINVAL, syscall(SYS_clone3, &args, sizeof args));
    (void)none;
}

/* The number of the sender, as the receiver sees it. */
static void credentials(void)
{
    int pair[2], one = 1;
    CHECK(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair) == 0);
    CHECK(setsockopt(pair[0], SOL_SOCKET, SO_PASSCRED, &one, sizeof one) == 0);
    CHECK(setsockopt(pair[1], SOL_SOCKET, SO_PASSCRED, &one, sizeof one) == 0);
    union {
        char room[CMSG_SPACE(sizeof(struct ucred))];
        struct cmsghdr align;
    } control;
    char c;
    struct iovec data = {&c, 1};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    pid_t pid = fork_with(CLONE_NEWPID);
    if (pid == 0) {
        struct ucred *got_from = (struct ucred *)CMSG_DATA(CMSG_FIRSTHDR(&message));
        CHECK(write(pair[1], "a", 1) == 1 && recvmsg(pair[1], &message, 0) == 1);
        CHECK(got_from->pid == 0);
        pid_t child = fork_with(0);
        if (child == 0) {
            CHECK(write(pair[0], "b", 1) == 1);
            done();
        }
        reap(child);
        /* The sender is gone, and still has its number. */
        message.msg_controllen = sizeof control;
        CHECK(recvmsg(pair[1], &message, 0) == 1 && got_from->pid == 2);
        /* Others' numbers may be told by the privileged, if they exist. */
        got_from->pid = 77;
        message.msg_controllen = sizeof control;
        FAILS(ESRCH, sendmsg(pair[1], &message, 0));
        got_from->pid = 1;
        CHECK(sendmsg(pair[1], &message, 0) == 1);
        done();
    }
    struct ucred *got_from = (struct ucred *)CMSG_DATA(CMSG_FIRSTHDR(&message));
    CHECK(recvmsg(pair[0], &message, 0) == 1 && got_from->pid == pid);
    CHECK(write(pair[0], "c", 1) == 1);
    message.msg_controllen = sizeof control;
    CHECK(recvmsg(pair[0], &message, 0) == 1 && got_from->pid == pid);
    reap(pid);
    struct ucred peer;
    socklen_t len = sizeof peer;
    CHECK(getsockopt(pair[0], SOL_SOCKET, SO_PEERCRED, &peer, &len) == 0 && peer.pid == getpid());
    close(pair[0]), close(pair[1]);
}

/* What a pidfd tells, and whom it reaches. */
static void pidfds(void)
{
    int up[2];
    char c;
    CHECK(pipe(up) == 0);
    int outer = syscall(SYS_pidfd_open, getpid(), 0);
    pid_t pid = fork_with(CLONE_NEWPID | CLONE_NEWNS);
    if (pid == 0) {
        char text[256], path[64];
        CHECK(private_proc());
        FAILS(EINVAL, syscall(SYS_pidfd_send_signal, outer, 0, NULL, 0));
        int fd = syscall(SYS_pidfd_open, 1, 0);
        snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
        int info = open(path, O_RDONLY);
        ssize_t n = read(info, text, sizeof text - 1);
        text[n > 0 ? n : 0] = 0;
        CHECK(strstr(text, "\nPid:\t1\nNSpid:\t1\n"));
        snprintf(path, sizeof path, "/proc/self/fdinfo/%d", outer);
        info = open(path, O_RDONLY);
        n = read(info, text, sizeof text - 1);
        text[n > 0 ? n : 0] = 0;
        CHECK(strstr(text, "\nPid:\t0\nNSpid:\t0\n"));
        write(up[1], "r", 1);
        for (;;)
            pause();
    }
    CHECK(read(up[0], &c, 1) == 1);
    int fd = syscall(SYS_pidfd_open, pid, 0);
    char text[256], path[64], expected[64];
    snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
    snprintf(expected, sizeof expected, "\nPid:\t%d\nNSpid:\t%d\t1\n", pid, pid);
    int info = open(path, O_RDONLY);
    ssize_t n = read(info, text, sizeof text - 1);
    text[n > 0 ? n : 0] = 0;
    CHECK(strstr(text, expected));
    /* The children of who joins by it are in there. */
    CHECK(setns(fd, CLONE_NEWPID) == 0);
    pid_t joined = fork_with(0);
    if (joined == 0) {
        CHECK(getpid() > 1 && kill(1, 0) == 0);
        done();
    }
    reap(joined);
    CHECK(syscall(SYS_pidfd_send_signal, fd, SIGKILL, NULL, 0) == 0);
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && status == SIGKILL);
    close(up[0]), close(up[1]), close(fd), close(info), close(outer);
}

/* A subreaper inherits inside its namespace only. */
static void subreaper(void)
{
    CHECK(prctl(PR_SET_CHILD_SUBREAPER, 1) == 0);
    pid_t pid = fork_with(CLONE_NEWPID);
    if (pid == 0) {
        pid_t child = fork_with(0);
        if (child == 0) {
            if (fork_with(0) == 0) {
                while (getppid() == 2)
                    usleep(1000);
                exit(getppid() == 1 ? 7 : 8);
            }
            _exit(0);
        }
        reap(child);
        int status;
        CHECK(waitpid(-1, &status, 0) == 3 && WEXITSTATUS(status) == 7);
        done();
    }
    reap(pid);
    FAILS(ECHILD, waitpid(-1, NULL, WNOHANG));
}

static void depth(void)
{
    for (int i = 0; i < 32; i++) {
        pid_t pid = fork_with(CLONE_NEWPID);
        if (pid < 0) {
            /* This process may be in one itself. */
            CHECK(errno == ENOSPC && i > 20);
            done();
        }
        if (pid) {
            CHECK(i < 32);
            reap(pid);
            if (i)
                done();
            return;
        }
    }
    FAILS(ENOSPC, fork_with(CLONE_NEWPID));
    done();
}

static void unprivileged(void)
{
    CHECK(setuid(65534) == 0);
    FAILS(EPERM, fork_with(CLONE_NEWPID));
    FAILS(EPERM, unshare(CLONE_NEWPID));
    FAILS(EPERM, setns(open("/proc/self/ns/pid", O_RDONLY), 0));
    FAILS(EINVAL, syscall(SYS_clone, CLONE_NEWPID | CLONE_THREAD | CLONE_SIGHAND | CLONE_VM, 0, 0, 0, 0));
}

static int end_of_child(pid_t pid)
{
    int status = 0;
    CHECK(waitpid(pid, &status, 0) == pid);
    return status;
}

/* the first process is protected from signals, not from its own faults */
static void faults(void)
{
    pid_t child = fork_with(CLONE_NEWPID);
    if (child == 0) {
        struct rlimit no_core = {0, 0};
        setrlimit(RLIMIT_CORE, &no_core);
        kill(getpid(), SIGTERM);
        kill(getpid(), SIGSEGV);
        *(volatile int *)8 = 1;
        _exit(1);
    }
    int status = end_of_child(child);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
    /* nor does an ignored SIGSEGV help */
    child = fork_with(CLONE_NEWPID);
    if (child == 0) {
        struct rlimit no_core = {0, 0};
        setrlimit(RLIMIT_CORE, &no_core);
        signal(SIGSEGV, SIG_IGN);
        *(volatile int *)8 = 1;
        _exit(1);
    }
    status = end_of_child(child);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
}

/* reboot(2) ends the namespace, not the machine */
static void reboots(void)
{
    static const struct {
        unsigned command;
        int signal;
    } kinds[] = {{RB_AUTOBOOT, SIGHUP}, {RB_POWER_OFF, SIGINT}, {RB_HALT_SYSTEM, SIGINT}};
    for (unsigned i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        pid_t child = fork_with(CLONE_NEWPID);
        if (child == 0) {
            if (getpid() != 1)
                _exit(1);
            FAILS(EINVAL, reboot(RB_DISABLE_CAD));
            FAILS(EINVAL, reboot(0x123));
            if (check_failures)
                done();
            /* the call of any process there counts */
            if (fork() == 0) {
                reboot(kinds[i].command);
                _exit(1);
            }
            for (;;)
                pause();
        }
        int status = end_of_child(child);
        CHECK(WIFSIGNALED(status) && WTERMSIG(status) == kinds[i].signal);
    }
}

/* a first process that traces does not wait for what waits for it */
static void tracing_init(void)
{
    pid_t child = fork_with(CLONE_NEWPID);
    if (child == 0) {
        pid_t traced = fork();
        if (traced == 0)
            for (;;)
                pause();
        CHECK(ptrace(PTRACE_SEIZE, traced, 0, PTRACE_O_TRACEEXIT) == 0);
        done();
    }
    reap(child);
}

int main(void)
{
    check_in_child(numbers);
    check_in_child(signals);
    check_in_child(the_end);
    check_in_child(for_children);
    check_in_child(thread_numbers);
    check_in_child(credentials);
    check_in_child(pidfds);
    check_in_child(subreaper);
    check_in_child(depth);
    check_in_child(faults);
    check_in_child(reboots);
    check_in_child(tracing_init);
    check_in_child(unprivileged);
    return check_done();
}
