/* POSIX message queues: names, order, limits, time limits, polling, notification by signal and thread, the file system. */
#include "../check.h"
#include <fcntl.h>
#include <mqueue.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static mqd_t make(const char *name, long messages, long size, int flags)
{
    struct mq_attr a = { .mq_maxmsg = messages, .mq_msgsize = size };
    return mq_open(name, O_CREAT | O_RDWR | flags, 0600, &a);
}

static void names(void)
{
    struct mq_attr a;
    FAILS(ENOENT, mq_open("/none", O_RDWR));
    FAILS(EACCES, mq_open("/a/b", O_CREAT | O_RDWR, 0600, 0));
    FAILS(ENOENT, mq_unlink("/none"));
    char name[300] = "/";
    memset(name + 1, 'n', 256);
    FAILS(ENAMETOOLONG, mq_open(name, O_CREAT | O_RDWR, 0600, 0));
    mqd_t q = mq_open("/abi", O_CREAT | O_EXCL | O_RDWR, 0600, 0);
    CHECK(q >= 0 && (fcntl(q, F_GETFD) & FD_CLOEXEC));
    CHECK(mq_getattr(q, &a) == 0 && a.mq_maxmsg == 10 && a.mq_msgsize == 8192 && a.mq_curmsgs == 0 && a.mq_flags == 0);
    FAILS(EEXIST, mq_open("/abi", O_CREAT | O_EXCL | O_RDWR, 0600, 0));
    mqd_t r = mq_open("/abi", O_RDONLY | O_NONBLOCK);
    CHECK(r >= 0 && mq_getattr(r, &a) == 0 && a.mq_flags == O_NONBLOCK);
    FAILS(EBADF, mq_send(r, "x", 1, 0));
    CHECK(mq_unlink("/abi") == 0);
    FAILS(ENOENT, mq_open("/abi", O_RDWR));
    CHECK(mq_send(q, "alive", 5, 0) == 0);
    char buffer[8192];
    CHECK(mq_receive(r, buffer, sizeof buffer, 0) == 5);
    mq_close(r);
    mq_close(q);
    FAILS(EINVAL, make("/abi", 0, 10, 0));
    FAILS(EINVAL, make("/abi", 10, 0, 0));
    FAILS(EINVAL, make("/abi", 70000, 10, 0));
    FAILS(EBADF, mq_send(0, "x", 1, 0));
}

static void order_and_sizes(void)
{
    char b[64];
    unsigned prio;
    mqd_t q = make("/abi", 4, 16, O_NONBLOCK);
    FAILS(EAGAIN, mq_receive(q, b, sizeof b, &prio));
    FAILS(EMSGSIZE, mq_receive(q, b, 15, &prio));
    FAILS(EMSGSIZE, mq_send(q, b, 17, 0));
    FAILS(EINVAL, mq_send(q, b, 1, 32768));
    CHECK(mq_send(q, "low", 3, 1) == 0 && mq_send(q, "high", 4, 32767) == 0 && mq_send(q, "low2", 4, 1) == 0 &&
          mq_send(q, "", 0, 0) == 0);
    FAILS(EAGAIN, mq_send(q, "x", 1, 5));
    struct pollfd p = { q, POLLIN | POLLOUT };
    CHECK(poll(&p, 1, 0) == 1 && p.revents == POLLIN);
    CHECK(mq_receive(q, b, sizeof b, &prio) == 4 && prio == 32767 && !memcmp(b, "high", 4));
    CHECK(poll(&p, 1, 0) == 1 && p.revents == (POLLIN | POLLOUT));
    CHECK(mq_receive(q, b, sizeof b, &prio) == 3 && prio == 1 && !memcmp(b, "low", 3));
    CHECK(mq_receive(q, b, sizeof b, &prio) == 4 && prio == 1 && !memcmp(b, "low2", 4));
    CHECK(mq_receive(q, b, sizeof b, &prio) == 0 && prio == 0);
    CHECK(poll(&p, 1, 0) == 1 && p.revents == POLLOUT);
    struct mq_attr a = { 0 }, old;
    CHECK(mq_setattr(q, &a, &old) == 0 && old.mq_flags == O_NONBLOCK && old.mq_maxmsg == 4);
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    FAILS(ETIMEDOUT, mq_timedreceive(q, b, sizeof b, 0, &t));
    t.tv_nsec = 1000000000;
    FAILS(EINVAL, mq_timedreceive(q, b, sizeof b, 0, &t));
    for (int i = 0; i < 4; i++)
        mq_send(q, "x", 1, 0);
    clock_gettime(CLOCK_REALTIME, &t);
    t.tv_nsec += 50000000;
    if (t.tv_nsec >= 1000000000)
        t.tv_sec++, t.tv_nsec -= 1000000000;
    FAILS(ETIMEDOUT, mq_timedsend(q, "x", 1, 0, &t));
    int s;
    pid_t pid = fork();
    if (pid == 0)
        _exit(mq_send(q, "late", 4, 9) == 0 ? 0 : 1);
    usleep(50000);
    CHECK(mq_receive(q, b, sizeof b, 0) == 1);
    CHECK(waitpid(pid, &s, 0) == pid && s == 0);
    CHECK(mq_receive(q, b, sizeof b, &prio) == 4 && prio == 9);
    mq_close(q);
    mq_unlink("/abi");
}

static volatile int told;
static void thread_told(union sigval v) { told = v.sival_int; }

static void notification(void)
{
    char b[64];
    mqd_t q = make("/abi", 4, 16, O_NONBLOCK);
    sigset_t set;
    siginfo_t si;
    struct timespec second = { 5, 0 }, none = { 0, 0 };
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, 0);
    struct sigevent e = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1, .sigev_value.sival_int = 77 };
    CHECK(mq_notify(q, &e) == 0);
    FAILS(EBUSY, mq_notify(q, &e));
    CHECK(mq_send(q, "x", 1, 0) == 0);
    CHECK(sigtimedwait(&set, &si, &second) == SIGUSR1 && si.si_code == SI_MESGQ && si.si_value.sival_int == 77 &&
          si.si_pid == getpid());
    CHECK(mq_notify(q, &e) == 0 && mq_send(q, "y", 1, 0) == 0);
    FAILS(EAGAIN, sigtimedwait(&set, &si, &none)); /* Was not empty. */
    CHECK(mq_notify(q, 0) == 0);
    mq_receive(q, b, sizeof b, 0);
    mq_receive(q, b, sizeof b, 0);
    CHECK(mq_send(q, "z", 1, 0) == 0);
    FAILS(EAGAIN, sigtimedwait(&set, &si, &none)); /* Taken back. */
    mq_receive(q, b, sizeof b, 0);
    struct sigevent t = { .sigev_notify = SIGEV_THREAD, .sigev_value.sival_int = 5 };
    t.sigev_notify_function = thread_told;
    CHECK(mq_notify(q, &t) == 0 && mq_send(q, "z", 1, 0) == 0);
    for (int i = 0; i < 500 && !told; i++)
        usleep(10000);
    CHECK(told == 5);
    mq_close(q);
    mq_unlink("/abi");
}

static void limits(void)
{
    int s;
    pid_t pid = fork();
    if (pid == 0) {
        setgid(1000);
        setuid(1000);
        FAILS(EINVAL, make("/abi-user", 11, 16, 0));
        FAILS(EINVAL, make("/abi-user", 10, 8193, 0));
        struct rlimit l = { 20000, 20000 };
        setrlimit(RLIMIT_MSGQUEUE, &l);
        FAILS(EMFILE, make("/abi-user", 10, 8192, 0));
        mqd_t q = make("/abi-user", 2, 4096, 0);
        CHECK(q >= 0);
        FAILS(EMFILE, make("/abi-user2", 5, 4096, 0));
        mq_close(q);
        CHECK(mq_unlink("/abi-user") == 0);
        q = make("/abi-user2", 4, 4096, 0);
        CHECK(q >= 0);
        mq_unlink("/abi-user2");
        fflush(stdout);
        _exit(check_failures);
    }
    CHECK(waitpid(pid, &s, 0) == pid && s == 0);
    mqd_t q = make("/abi-root", 4, 16, 0);
    pid = fork();
    if (pid == 0) {
        setgid(1000);
        setuid(1000);
        FAILS(EACCES, mq_open("/abi-root", O_RDONLY));
        FAILS(EACCES, mq_unlink("/abi-root"));
        fflush(stdout);
        _exit(check_failures);
    }
    CHECK(waitpid(pid, &s, 0) == pid && s == 0);
    mq_close(q);
    mq_unlink("/abi-root");
}

static void file_system(void)
{
    char text[128] = "";
    struct stat st;
    mqd_t q = make("/abi-fs", 4, 16, 0);
    mkdir("/tmp/mq", 0755);
    CHECK(mount("none", "/tmp/mq", "mqueue", 0, 0) == 0);
    CHECK(stat("/tmp/mq", &st) == 0 && (st.st_mode & 07777) == 01777);
    CHECK(stat("/tmp/mq/abi-fs", &st) == 0 && S_ISREG(st.st_mode) && st.st_size == 80 && (st.st_mode & 0777) == 0600);
    CHECK(mq_send(q, "12345", 5, 0) == 0);
    int fd = open("/tmp/mq/abi-fs", O_RDONLY);
    CHECK(read(fd, text, sizeof text - 1) > 0 && strstr(text, "QSIZE:5 "));
    close(fd);
    FAILS(EINVAL, write(q, "x", 1));
    CHECK((fd = open("/tmp/mq/by-file", O_CREAT | O_RDWR, 0600)) >= 0);
    close(fd);
    mqd_t by = mq_open("/by-file", O_RDWR);
    CHECK(by >= 0 && unlink("/tmp/mq/by-file") == 0 && unlink("/tmp/mq/abi-fs") == 0);
    FAILS(EPERM, mkdir("/tmp/mq/dir", 0755));
    mq_close(by);
    mq_close(q);
    CHECK(umount("/tmp/mq") == 0);
    rmdir("/tmp/mq");
}

int main(void)
{
    umask(022);
    names();
    order_and_sizes();
    notification();
    limits();
    file_system();
    return check_done();
}
