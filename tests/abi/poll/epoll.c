/* poll, select, epoll, and the descriptors that wake: eventfd, timerfd, signalfd, inotify. */
#include "../check.h"
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/select.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static int add(int ep, int fd, uint32_t events)
{
    struct epoll_event e = {.events = events, .data.u64 = 0x1122334455667788u + fd};
    return epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e);
}

static int mod(int ep, int fd, uint32_t events)
{
    struct epoll_event e = {.events = events, .data.fd = fd};
    return epoll_ctl(ep, EPOLL_CTL_MOD, fd, &e);
}

static int wait0(int ep, struct epoll_event *e)
{
    return epoll_wait(ep, e, 8, 0);
}

static void levels_and_edges(void)
{
    struct epoll_event e[8];
    int p[2], ep = epoll_create1(EPOLL_CLOEXEC);
    char c;
    CHECK(ep >= 0 && pipe2(p, O_NONBLOCK) == 0);
    CHECK(add(ep, p[0], EPOLLIN) == 0);
    FAILS(EEXIST, add(ep, p[0], EPOLLIN));
    FAILS(ENOENT, mod(ep, p[1], EPOLLIN));
    FAILS(EBADF, add(ep, 999, EPOLLIN));
    FAILS(EINVAL, add(ep, ep, EPOLLIN));
    FAILS(EINVAL, epoll_wait(ep, e, 0, 0));
    FAILS(EINVAL, epoll_wait(p[0], e, 1, 0));
    /* Files that are always ready are not taken. */
    const char *always[] = {"/proc/self/exe", "/dev/null", "/dev/zero", "/dev/full"};
    for (int i = 0; i < 4; i++) {
        int f = open(always[i], O_RDONLY);
        FAILS(EPERM, add(ep, f, EPOLLIN));
        struct pollfd ready = {.fd = f, .events = POLLIN | POLLOUT};
        CHECK(poll(&ready, 1, 0) == 1 && ready.revents == (POLLIN | POLLOUT));
        close(f);
    }
    CHECK(wait0(ep, e) == 0);
    CHECK(write(p[1], "a", 1) == 1);
    CHECK(wait0(ep, e) == 1 && e[0].events == EPOLLIN && e[0].data.u64 == 0x1122334455667788u + p[0]);
    CHECK(wait0(ep, e) == 1); /* level: again */
    CHECK(mod(ep, p[0], EPOLLIN | EPOLLET) == 0);
    CHECK(wait0(ep, e) == 1);
    CHECK(wait0(ep, e) == 0); /* edge: once */
    CHECK(write(p[1], "b", 1) == 1);
    CHECK(wait0(ep, e) == 1); /* each write is an edge */
    CHECK(mod(ep, p[0], EPOLLIN | EPOLLONESHOT) == 0);
    CHECK(wait0(ep, e) == 1 && wait0(ep, e) == 0);
    CHECK(write(p[1], "c", 1) == 1 && wait0(ep, e) == 0);
    CHECK(mod(ep, p[0], EPOLLIN | EPOLLONESHOT) == 0 && wait0(ep, e) == 1);
    CHECK(epoll_ctl(ep, EPOLL_CTL_DEL, p[0], 0) == 0);
    FAILS(ENOENT, epoll_ctl(ep, EPOLL_CTL_DEL, p[0], 0));
    CHECK(wait0(ep, e) == 0);
    while (read(p[0], &c, 1) == 1)
        ;
    CHECK(add(ep, p[0], 0) == 0);
    close(p[1]);
    CHECK(wait0(ep, e) == 1 && e[0].events == EPOLLHUP); /* not asked for, told all the same */
    close(p[0]);
    CHECK(wait0(ep, e) == 0); /* gone with its last descriptor */
    FAILS(EINVAL, epoll_create1(1));
    FAILS(EINVAL, epoll_create(0));
    close(ep);
}

static void nesting(void)
{
    struct epoll_event e[8];
    int p[2], a = epoll_create1(0), b = epoll_create1(0);
    CHECK(pipe(p) == 0 && add(a, p[0], EPOLLIN) == 0 && add(b, a, EPOLLIN) == 0);
    FAILS(ELOOP, add(a, b, EPOLLIN));
    CHECK(wait0(b, e) == 0);
    CHECK(write(p[1], "x", 1) == 1);
    struct pollfd pf = {.fd = b, .events = POLLIN};
    CHECK(poll(&pf, 1, 0) == 1 && pf.revents == POLLIN);
    CHECK(wait0(b, e) == 1 && e[0].events == EPOLLIN);
    char c;
    CHECK(read(p[0], &c, 1) == 1 && wait0(b, e) == 0);
    int chain[8];
    chain[0] = epoll_create1(0);
    int failed = 0;
    for (int i = 1; i < 8; i++) {
        chain[i] = epoll_create1(0);
        if (add(chain[i], chain[i - 1], EPOLLIN) != 0) {
            failed = i;
            CHECK(errno == ELOOP);
            break;
        }
    }
    CHECK(failed == 5 || failed == 6);
    FAILS(EINVAL, add(a, b, EPOLLIN | EPOLLEXCLUSIVE));
    close(a), close(b);
}

static void many(void)
{
    struct epoll_event e[8];
    int ep = epoll_create1(0), fds[500];
    for (int i = 0; i < 500; i++) {
        fds[i] = eventfd(0, EFD_NONBLOCK);
        CHECK(fds[i] >= 0 && add(ep, fds[i], EPOLLIN) == 0);
    }
    eventfd_write(fds[77], 5);
    CHECK(wait0(ep, e) == 1 && e[0].data.u64 == 0x1122334455667788u + fds[77]);
    for (int i = 0; i < 500; i++)
        eventfd_write(fds[i], 1);
    int seen = 0;
    for (int i = 0; i < 500; i++) {
        int n = wait0(ep, e);
        for (int k = 0; k < n; k++) {
            eventfd_t v;
            CHECK(eventfd_read(e[k].data.u64 - 0x1122334455667788u, &v) == 0);
            seen++;
        }
    }
    CHECK(seen == 500);
    for (int i = 0; i < 500; i++)
        close(fds[i]);
    close(ep);
}

static void counters(void)
{
    uint64_t v;
    int e = eventfd(3, EFD_NONBLOCK | EFD_SEMAPHORE);
    CHECK(read(e, &v, 8) == 8 && v == 1 && read(e, &v, 8) == 8 && read(e, &v, 8) == 8);
    FAILS(EAGAIN, read(e, &v, 8));
    FAILS(EINVAL, read(e, &v, 7));
    v = UINT64_MAX;
    FAILS(EINVAL, write(e, &v, 8));
    v = UINT64_MAX - 1;
    CHECK(write(e, &v, 8) == 8);
    v = 1;
    FAILS(EAGAIN, write(e, &v, 8));
    struct pollfd p = {.fd = e, .events = POLLIN | POLLOUT};
    CHECK(poll(&p, 1, 0) == 1 && p.revents == POLLIN);
    FAILS(EINVAL, eventfd(0, 2));
    close(e);
}

static void timers(void)
{
    uint64_t n;
    struct itimerspec t = {{0, 20000000}, {0, 30000000}}, cur;
    int fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    FAILS(EAGAIN, read(fd, &n, 8));
    double start = now();
    CHECK(timerfd_settime(fd, 0, &t, 0) == 0);
    CHECK(timerfd_gettime(fd, &cur) == 0 && cur.it_value.tv_nsec > 0 && cur.it_interval.tv_nsec == 20000000);
    struct pollfd p = {.fd = fd, .events = POLLIN};
    CHECK(poll(&p, 1, 2000) == 1 && now() - start >= 0.0299);
    usleep(100000);
    CHECK(read(fd, &n, 8) == 8 && n >= 4);
    t.it_value.tv_nsec = 0;
    CHECK(timerfd_settime(fd, 0, &t, &cur) == 0 && cur.it_interval.tv_nsec == 20000000);
    FAILS(EAGAIN, read(fd, &n, 8));
    struct timespec abs;
    clock_gettime(CLOCK_REALTIME, &abs);
    close(fd);
    fd = timerfd_create(CLOCK_REALTIME, 0);
    t = (struct itimerspec){{0, 0}, {abs.tv_sec - 1, 0}};
    CHECK(timerfd_settime(fd, TFD_TIMER_ABSTIME, &t, 0) == 0);
    CHECK(read(fd, &n, 8) == 8 && n == 1);
    t.it_value.tv_nsec = 1000000000;
    FAILS(EINVAL, timerfd_settime(fd, 0, &t, 0));
    FAILS(EINVAL, timerfd_create(77, 0));
    FAILS(EINVAL, timerfd_create(0, 1));
    close(fd);
}

static void signals(void)
{
    sigset_t set;
    struct signalfd_siginfo i[3];
    sigemptyset(&set), sigaddset(&set, SIGUSR1), sigaddset(&set, SIGRTMIN + 1);
    sigprocmask(SIG_BLOCK, &set, 0);
    int fd = signalfd(-1, &set, SFD_NONBLOCK);
    FAILS(EAGAIN, read(fd, i, sizeof i));
    FAILS(EINVAL, read(fd, i, 100));
    kill(getpid(), SIGUSR1);
    sigqueue(getpid(), SIGRTMIN + 1, (union sigval){.sival_int = 42});
    struct pollfd p = {.fd = fd, .events = POLLIN};
    CHECK(poll(&p, 1, 0) == 1);
    CHECK(read(fd, i, sizeof i) == 2 * sizeof i[0]);
    CHECK(i[0].ssi_signo == SIGUSR1 && i[0].ssi_pid == (uint32_t)getpid() && i[0].ssi_code == SI_USER);
    CHECK(i[1].ssi_signo == (uint32_t)SIGRTMIN + 1 && i[1].ssi_int == 42 && i[1].ssi_code == SI_QUEUE);
    CHECK(poll(&p, 1, 0) == 0);
    close(fd);
}

static void watches(void)
{
    char dir[] = "/tmp/abi-in-XXXXXX", buf[4096];
    CHECK(mkdtemp(dir) != 0);
    int fd = inotify_init1(IN_NONBLOCK);
    int wd = inotify_add_watch(fd, dir, IN_CREATE | IN_DELETE | IN_MOVE | IN_CLOSE_WRITE);
    CHECK(wd == 1);
    FAILS(EAGAIN, read(fd, buf, sizeof buf));
    chdir(dir);
    close(open("one", O_CREAT | O_WRONLY, 0600));
    rename("one", "two");
    unlink("two");
    ssize_t n = read(fd, buf, sizeof buf);
    uint32_t want[] = {IN_CREATE, IN_CLOSE_WRITE, IN_MOVED_FROM, IN_MOVED_TO, IN_DELETE};
    const char *names[] = {"one", "one", "one", "two", "two"};
    int k = 0;
    uint32_t cookie = 0;
    for (char *at = buf; at < buf + n; k++) {
        struct inotify_event *e = (void *)at;
        CHECK(k < 5 && e->wd == wd && e->mask == want[k] && !strcmp(e->name, names[k]));
        if (e->mask == IN_MOVED_FROM)
            cookie = e->cookie;
        if (e->mask == IN_MOVED_TO)
            CHECK(e->cookie == cookie && cookie != 0);
        at += sizeof *e + e->len;
    }
    CHECK(k == 5);
    CHECK(inotify_rm_watch(fd, wd) == 0);
    struct inotify_event *e = (void *)buf;
    CHECK(read(fd, buf, sizeof buf) == sizeof *e && e->mask == IN_IGNORED && e->wd == wd);
    FAILS(EINVAL, inotify_rm_watch(fd, wd));
    FAILS(ENOENT, inotify_add_watch(fd, "missing", IN_CREATE));
    FAILS(EINVAL, inotify_add_watch(fd, dir, 0));
    chdir("/"), rmdir(dir), close(fd);
}

static void *late_writer(void *arg)
{
    usleep(50000);
    eventfd_write(*(int *)arg, 1);
    return 0;
}

static volatile int handled;
static void handler(int s) { handled = s; }

static void waiting(void)
{
    pthread_t t;
    int e = eventfd(0, 0), ep = epoll_create1(0);
    struct epoll_event ev[2];
    add(ep, e, EPOLLIN);
    pthread_create(&t, 0, late_writer, &e);
    double start = now();
    CHECK(epoll_wait(ep, ev, 2, 5000) == 1 && now() - start < 4);
    pthread_join(t, 0);
    eventfd_t v;
    eventfd_read(e, &v);
    start = now();
    CHECK(epoll_wait(ep, ev, 2, 30) == 0 && now() - start >= 0.029);
    fd_set r, w;
    FD_ZERO(&r);
    FD_ZERO(&w);
    FD_SET(e, &r);
    FD_SET(e, &w);
    struct timeval tv = {1, 0};
    CHECK(select(e + 1, &r, &w, 0, &tv) == 1 && !FD_ISSET(e, &r) && FD_ISSET(e, &w));
    FD_ZERO(&r);
    FD_SET(e, &r);
    tv = (struct timeval){0, 30000};
    CHECK(select(e + 1, &r, 0, 0, &tv) == 0 && tv.tv_sec == 0 && tv.tv_usec == 0 && !FD_ISSET(e, &r));
    struct pollfd p[2] = {{.fd = -1, .events = POLLIN}, {.fd = 900, .events = POLLIN}};
    CHECK(poll(p, 2, 0) == 1 && p[0].revents == 0 && p[1].revents == POLLNVAL);
    /* ppoll lets a signal in that is blocked otherwise. */
    sigset_t blocked, none;
    sigemptyset(&none), sigemptyset(&blocked), sigaddset(&blocked, SIGUSR2);
    sigprocmask(SIG_BLOCK, &blocked, 0);
    signal(SIGUSR2, handler);
    kill(getpid(), SIGUSR2);
    CHECK(handled == 0);
    FAILS(EINTR, ppoll(0, 0, 0, &none));
    CHECK(handled == SIGUSR2);
    handled = 0;
    kill(getpid(), SIGUSR2);
    FAILS(EINTR, epoll_pwait(ep, ev, 2, 1000, &none));
    CHECK(handled == SIGUSR2);
    close(e), close(ep);
}

int main(void)
{
    levels_and_edges();
    nesting();
    many();
    counters();
    timers();
    signals();
    watches();
    waiting();
    return check_done();
}
