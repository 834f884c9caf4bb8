/* TCP over the loopback interface: connections, ends, readiness, ports, options. Passes on Linux. */
#include "../check.h"
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static struct sockaddr_in any_loopback(int port)
{
    struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(port) };
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return a;
}

static int port_of(int fd)
{
    struct sockaddr_storage a;
    socklen_t len = sizeof a;
    if (getsockname(fd, (void *)&a, &len))
        return -1;
    return ntohs(a.ss_family == AF_INET ? ((struct sockaddr_in *)&a)->sin_port : ((struct sockaddr_in6 *)&a)->sin6_port);
}

static int listener(int backlog)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in a = any_loopback(0);
    CHECK(bind(fd, (void *)&a, sizeof a) == 0);
    CHECK(listen(fd, backlog) == 0);
    return fd;
}

static int connected(int port, int flags)
{
    int fd = socket(AF_INET, SOCK_STREAM | flags, 0);
    struct sockaddr_in a = any_loopback(port);
    int r = connect(fd, (void *)&a, sizeof a);
    CHECK(r == 0 || (flags & SOCK_NONBLOCK && errno == EINPROGRESS));
    return fd;
}

static void two(int ends[2])
{
    int l = listener(1);
    ends[0] = connected(port_of(l), 0);
    ends[1] = accept(l, NULL, NULL);
    CHECK(ends[1] >= 0);
    close(l);
}

static int events(int fd, int wanted)
{
    struct pollfd p = { fd, wanted, 0 };
    poll(&p, 1, 0);
    return p.revents;
}

/* As events, but what comes through the network stack may take a moment. */
static int events_soon(int fd, int wanted, int expected)
{
    int got = 0;
    for (int i = 0; i < 200; i++) {
        got = events(fd, wanted);
        if ((got & expected) == expected)
            break;
        usleep(5000);
    }
    return got;
}

#define ALL (POLLIN | POLLOUT | POLLPRI | POLLRDHUP)

static int get(int fd, int level, int name)
{
    int v = -1;
    socklen_t len = sizeof v;
    if (getsockopt(fd, level, name, &v, &len))
        return -errno;
    return v;
}

static int set(int fd, int level, int name, int v)
{
    return setsockopt(fd, level, name, &v, sizeof v);
}

static void test_unconnected(void)
{
    char b[4];
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(fd >= 0);
    CHECK(events(fd, ALL) == (POLLOUT | POLLHUP));
    FAILS(ENOTCONN, recv(fd, b, 1, 0));
    FAILS(EPIPE, send(fd, b, 1, MSG_NOSIGNAL));
    FAILS(ENOTCONN, shutdown(fd, SHUT_RDWR));
    struct sockaddr_in a;
    socklen_t len = sizeof a;
    FAILS(ENOTCONN, getpeername(fd, (void *)&a, &len));
    CHECK(getsockname(fd, (void *)&a, &len) == 0 && len == sizeof a && a.sin_port == 0);
    FAILS(EINVAL, accept(fd, NULL, NULL));
    a.sin_family = AF_INET6;
    FAILS(EAFNOSUPPORT, bind(fd, (void *)&a, sizeof a));
    FAILS(EINVAL, bind(fd, (void *)&a, 3));
    a = any_loopback(0);
    a.sin_addr.s_addr = htonl(0xc0000201);
    FAILS(EADDRNOTAVAIL, bind(fd, (void *)&a, sizeof a));
    CHECK(get(fd, SOL_SOCKET, SO_TYPE) == SOCK_STREAM);
    CHECK(get(fd, SOL_SOCKET, SO_PROTOCOL) == IPPROTO_TCP);
    CHECK(get(fd, SOL_SOCKET, SO_DOMAIN) == AF_INET);
    close(fd);
    FAILS(EPROTONOSUPPORT, socket(AF_INET, SOCK_STREAM, IPPROTO_UDP));
    FAILS(ESOCKTNOSUPPORT, socket(AF_INET, SOCK_SEQPACKET, 0));
    int pair[2];
    FAILS(EOPNOTSUPP, socketpair(AF_INET, SOCK_STREAM, 0, pair));
}

static void test_connect(void)
{
    int l = listener(4);
    CHECK(events(l, ALL) == 0);
    int c = connected(port_of(l), 0);
    CHECK(events(l, ALL) == POLLIN);
    CHECK(events(c, ALL) == POLLOUT);
    struct sockaddr_in a, b;
    socklen_t len = sizeof a;
    int s = accept4(l, (void *)&a, &len, SOCK_NONBLOCK);
    CHECK(s >= 0 && len == sizeof a);
    CHECK(getsockname(c, (void *)&b, &len) == 0);
    CHECK(a.sin_port == b.sin_port && a.sin_addr.s_addr == htonl(INADDR_LOOPBACK));
    CHECK(port_of(s) == port_of(l));
    char byte;
    FAILS(EAGAIN, recv(s, &byte, 1, 0));
    struct sockaddr_in to = any_loopback(port_of(l));
    FAILS(EISCONN, connect(c, (void *)&to, sizeof to));
    FAILS(EISCONN, connect(l, (void *)&to, sizeof to));
    FAILS(EINVAL, bind(c, (void *)&to, sizeof to));
    FAILS(EINVAL, listen(c, 1));
    close(c);
    close(s);
    /* Without waiting: the answer is collected. */
    c = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    FAILS(EINPROGRESS, connect(c, (void *)&to, sizeof to));
    CHECK(events_soon(c, ALL, POLLOUT) == POLLOUT);
    CHECK(get(c, SOL_SOCKET, SO_ERROR) == 0);
    CHECK(connect(c, (void *)&to, sizeof to) == 0);
    FAILS(EISCONN, connect(c, (void *)&to, sizeof to));
    close(c);
    int port = port_of(l);
    close(l);
    to = any_loopback(port);
    c = socket(AF_INET, SOCK_STREAM, 0);
    FAILS(ECONNREFUSED, connect(c, (void *)&to, sizeof to));
    FAILS(ECONNREFUSED, connect(c, (void *)&to, sizeof to));
    close(c);
    c = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    FAILS(EINPROGRESS, connect(c, (void *)&to, sizeof to));
    int e = POLLIN | POLLOUT | POLLERR | POLLHUP | POLLRDHUP;
    CHECK(events_soon(c, ALL, e) == e);
    CHECK(get(c, SOL_SOCKET, SO_ERROR) == ECONNREFUSED);
    CHECK(get(c, SOL_SOCKET, SO_ERROR) == 0);
    close(c);
    /* The wildcard as a destination is this host. */
    l = listener(1);
    to = any_loopback(port_of(l));
    to.sin_addr.s_addr = 0;
    c = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(connect(c, (void *)&to, sizeof to) == 0);
    close(c);
    close(l);
    c = socket(AF_INET, SOCK_STREAM, 0);
    to.sin_addr.s_addr = htonl(0xe0000001);
    FAILS(ENETUNREACH, connect(c, (void *)&to, sizeof to));
    close(c);
}

static void test_ends(void)
{
    int e[2];
    char b[64];
    /* Half close: the rest is read, then the end; the other direction goes on. */
    two(e);
    CHECK(send(e[0], "abc", 3, 0) == 3);
    CHECK(shutdown(e[0], SHUT_WR) == 0);
    CHECK(events_soon(e[1], ALL, POLLIN | POLLRDHUP) == (POLLIN | POLLOUT | POLLRDHUP));
    CHECK(recv(e[1], b, sizeof b, 0) == 3);
    CHECK(recv(e[1], b, sizeof b, 0) == 0);
    CHECK(recv(e[1], b, sizeof b, 0) == 0);
    CHECK(send(e[1], "xyz", 3, 0) == 3);
    CHECK(recv(e[0], b, sizeof b, 0) == 3);
    FAILS(EPIPE, send(e[0], "x", 1, MSG_NOSIGNAL));
    CHECK(shutdown(e[1], SHUT_WR) == 0);
    int both = POLLIN | POLLOUT | POLLHUP | POLLRDHUP;
    CHECK(events_soon(e[0], ALL, both) == both);
    CHECK(events_soon(e[1], ALL, both) == both);
    FAILS(ENOTCONN, shutdown(e[1], SHUT_WR));
    close(e[0]);
    close(e[1]);

    /* The peer closes: the first write goes, the second finds out. */
    two(e);
    close(e[1]);
    CHECK(events_soon(e[0], ALL, POLLIN) == (POLLIN | POLLOUT | POLLRDHUP));
    CHECK(recv(e[0], b, sizeof b, 0) == 0);
    CHECK(send(e[0], "x", 1, MSG_NOSIGNAL) == 1);
    int gone = POLLIN | POLLOUT | POLLERR | POLLHUP | POLLRDHUP;
    CHECK(events_soon(e[0], ALL, gone) == gone);
    FAILS(EPIPE, send(e[0], "x", 1, MSG_NOSIGNAL));
    FAILS(EPIPE, send(e[0], "x", 1, MSG_NOSIGNAL));
    CHECK(recv(e[0], b, sizeof b, 0) == 0);
    close(e[0]);

    /* Closed with unread bytes: a reset. */
    two(e);
    CHECK(send(e[0], "abc", 3, 0) == 3);
    usleep(20000);
    close(e[1]);
    CHECK(events_soon(e[0], ALL, gone) == gone);
    FAILS(ECONNRESET, recv(e[0], b, sizeof b, 0));
    CHECK(recv(e[0], b, sizeof b, 0) == 0);
    FAILS(EPIPE, send(e[0], "x", 1, MSG_NOSIGNAL));
    struct sockaddr_in a;
    socklen_t len = sizeof a;
    FAILS(ENOTCONN, getpeername(e[0], (void *)&a, &len));
    close(e[0]);

    /* No lingering: a reset as well; what had come can still be read. */
    two(e);
    CHECK(send(e[1], "abc", 3, 0) == 3);
    struct linger linger = { 1, 0 };
    CHECK(setsockopt(e[1], SOL_SOCKET, SO_LINGER, &linger, sizeof linger) == 0);
    usleep(20000);
    close(e[1]);
    CHECK(events_soon(e[0], ALL, gone) == gone);
    CHECK(recv(e[0], b, sizeof b, 0) == 3);
    FAILS(ECONNRESET, recv(e[0], b, sizeof b, 0));
    close(e[0]);

    /* The receiving half alone. */
    two(e);
    CHECK(shutdown(e[0], SHUT_RD) == 0);
    CHECK(recv(e[0], b, sizeof b, 0) == 0);
    CHECK(send(e[1], "abc", 3, 0) == 3);
    usleep(20000);
    CHECK(recv(e[0], b, sizeof b, 0) == 3);
    CHECK(recv(e[0], b, sizeof b, 0) == 0);
    close(e[0]);
    close(e[1]);

    /* SIGPIPE. */
    pid_t child = fork();
    if (child == 0) {
        two(e);
        shutdown(e[0], SHUT_WR);
        send(e[0], "x", 1, 0);
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGPIPE);

    /* A listener that goes: who waits in its queue is reset. */
    int l = listener(4);
    int c = connected(port_of(l), 0);
    close(l);
    CHECK(events_soon(c, ALL, gone) == gone);
    FAILS(ECONNRESET, recv(c, b, 1, 0));
    close(c);
    l = listener(4);
    CHECK(shutdown(l, SHUT_RD) == 0);
    FAILS(EINVAL, accept(l, NULL, NULL));
    close(l);
}

static void test_receive(void)
{
    int e[2];
    char b[64];
    two(e);
    CHECK(send(e[0], "hello", 5, 0) == 5);
    usleep(20000);
    CHECK(recv(e[1], b, sizeof b, MSG_PEEK) == 5);
    CHECK(recv(e[1], b, 2, MSG_PEEK) == 2 && !memcmp(b, "he", 2));
    int n = -1;
    CHECK(ioctl(e[1], FIONREAD, &n) == 0 && n == 5);
    CHECK(ioctl(e[1], SIOCATMARK, &n) == 0 && n == 0);
    CHECK(ioctl(e[0], TIOCOUTQ, &n) == 0 && n == 0);
    CHECK(recv(e[1], NULL, 2, MSG_TRUNC) == 2);
    CHECK(recv(e[1], b, 2, 0) == 2 && !memcmp(b, "ll", 2));
    CHECK(send(e[0], "1234", 4, 0) == 4);
    usleep(20000);
    CHECK(recv(e[1], b, 5, MSG_WAITALL) == 5 && !memcmp(b, "o1234", 5));
    FAILS(EAGAIN, recv(e[1], b, 1, MSG_DONTWAIT));
    FAILS(EINVAL, recv(e[1], b, 1, MSG_OOB));
    struct timeval tv = { 0, 50000 };
    CHECK(setsockopt(e[1], SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv) == 0);
    FAILS(EAGAIN, recv(e[1], b, 1, 0));
    CHECK(send(e[0], "ab", 2, 0) == 2);
    CHECK(recv(e[1], b, 5, MSG_WAITALL) == 2);
    /* The low water mark. */
    CHECK(set(e[1], SOL_SOCKET, SO_RCVLOWAT, 4) == 0);
    CHECK(send(e[0], "abc", 3, 0) == 3);
    usleep(20000);
    CHECK(events(e[1], POLLIN) == 0);
    CHECK(send(e[0], "d", 1, 0) == 1);
    CHECK(events_soon(e[1], POLLIN, POLLIN) == POLLIN);
    close(e[0]);
    close(e[1]);
    /* An address is ignored when it is connected. */
    two(e);
    struct sockaddr_in to = any_loopback(1);
    CHECK(sendto(e[0], "x", 1, 0, (void *)&to, sizeof to) == 1);
    struct sockaddr_in from;
    socklen_t len = sizeof from;
    memset(&from, 0xee, sizeof from);
    CHECK(recvfrom(e[1], b, 1, 0, (void *)&from, &len) == 1);
    CHECK(len == 0);
    close(e[0]);
    close(e[1]);
}

static void *drain(void *arg)
{
    static char b[70000];
    int fd = *(int *)arg;
    long total = 0, n;
    unsigned char next = 0;
    long bad = 0;
    while ((n = recv(fd, b, sizeof b, 0)) > 0) {
        for (long i = 0; i < n; i++)
            bad += (unsigned char)b[i] != (unsigned char)(next++ % 251 == 250 ? (next = 0, 250) : next - 1);
        total += n;
    }
    return (void *)(bad ? -1 : total);
}

static void test_bulk(void)
{
    int e[2];
    two(e);
    static char b[200000];
    unsigned char next = 0;
    pthread_t t;
    pthread_create(&t, NULL, drain, &e[1]);
    long total = 0;
    for (int round = 0; round < 40; round++) {
        long len = 1 + (round * 7919L * 13) % sizeof b;
        for (long i = 0; i < len; i++) {
            b[i] = next;
            next = next == 250 ? 0 : next + 1;
        }
        CHECK(send(e[0], b, len, 0) == len);
        total += len;
    }
    close(e[0]);
    void *got;
    pthread_join(t, &got);
    CHECK((long)got == total);
    close(e[1]);
    /* Full: not writable until a third is free. */
    two(e);
    fcntl(e[0], F_SETFL, O_NONBLOCK);
    long sent = 0, n;
    while ((n = send(e[0], b, sizeof b, 0)) > 0)
        sent += n;
    CHECK(n == -1 && errno == EAGAIN && sent > 50000);
    CHECK((events(e[0], POLLOUT) & POLLOUT) == 0);
    long left = sent;
    while (left > 0 && (n = recv(e[1], b, sizeof b, 0)) > 0)
        left -= n;
    CHECK(left == 0);
    CHECK(events_soon(e[0], POLLOUT, POLLOUT) == POLLOUT);
    /* sendfile. */
    char name[] = "/tmp/sendfileXXXXXX";
    int f = mkstemp(name);
    unlink(name);
    memset(b, 'q', sizeof b);
    CHECK(write(f, b, 30000) == 30000);
    lseek(f, 0, SEEK_SET);
    fcntl(e[0], F_SETFL, 0);
    CHECK(sendfile(e[0], f, NULL, 30000) == 30000);
    left = 30000;
    while (left > 0 && (n = recv(e[1], b, left, 0)) > 0)
        left -= n;
    CHECK(left == 0 && b[0] == 'q');
    close(f);
    close(e[0]);
    close(e[1]);
}

static void test_ports(void)
{
    int a = listener(1), port = port_of(a);
    struct sockaddr_in at = any_loopback(port);
    int b = socket(AF_INET, SOCK_STREAM, 0);
    FAILS(EADDRINUSE, bind(b, (void *)&at, sizeof at));
    set(b, SOL_SOCKET, SO_REUSEADDR, 1);
    FAILS(EADDRINUSE, bind(b, (void *)&at, sizeof at));
    at.sin_addr.s_addr = htonl(0x7f000002);
    CHECK(bind(b, (void *)&at, sizeof at) == 0);
    FAILS(EINVAL, bind(b, (void *)&at, sizeof at));
    close(b);
    b = socket(AF_INET, SOCK_STREAM, 0);
    at.sin_addr.s_addr = 0;
    FAILS(EADDRINUSE, bind(b, (void *)&at, sizeof at));
    close(b);
    /* IPv6's wildcard means IPv4 too, unless told otherwise. */
    struct sockaddr_in6 six = { .sin6_family = AF_INET6, .sin6_port = htons(port) };
    b = socket(AF_INET6, SOCK_STREAM, 0);
    FAILS(EADDRINUSE, bind(b, (void *)&six, sizeof six));
    CHECK(set(b, IPPROTO_IPV6, IPV6_V6ONLY, 1) == 0);
    CHECK(bind(b, (void *)&six, sizeof six) == 0);
    FAILS(EINVAL, set(b, IPPROTO_IPV6, IPV6_V6ONLY, 0));
    close(b);
    /* After a close by this end the port is kept, for those that do not reuse. */
    int c = connected(port, 0), s = accept(a, NULL, NULL);
    close(s);
    char byte;
    CHECK(recv(c, &byte, 1, 0) == 0);
    close(c);
    close(a);
    at = any_loopback(port);
    b = socket(AF_INET, SOCK_STREAM, 0);
    FAILS(EADDRINUSE, bind(b, (void *)&at, sizeof at));
    set(b, SOL_SOCKET, SO_REUSEADDR, 1);
    FAILS(EADDRINUSE, bind(b, (void *)&at, sizeof at)); /* the listener did not reuse */
    close(b);
    /* Two listeners with SO_REUSEPORT. */
    int r[2];
    for (int i = 0; i < 2; i++) {
        r[i] = socket(AF_INET, SOCK_STREAM, 0);
        set(r[i], SOL_SOCKET, SO_REUSEPORT, 1);
        at = any_loopback(i ? port_of(r[0]) : 0);
        CHECK(bind(r[i], (void *)&at, sizeof at) == 0);
        CHECK(listen(r[i], 8) == 0);
    }
    int first = 0;
    for (int i = 0; i < 32; i++) {
        c = connected(port_of(r[0]), 0);
        struct pollfd p[2] = { { r[0], POLLIN, 0 }, { r[1], POLLIN, 0 } };
        CHECK(poll(p, 2, 2000) == 1);
        first += p[0].revents & POLLIN ? 1 : 0;
        close(accept(p[0].revents ? r[0] : r[1], NULL, NULL));
        close(c);
    }
    CHECK(first > 2 && first < 30);
    close(r[0]);
    close(r[1]);
    /* Both reuse: bound together, but only one listens. */
    int x = socket(AF_INET, SOCK_STREAM, 0), y = socket(AF_INET, SOCK_STREAM, 0);
    set(x, SOL_SOCKET, SO_REUSEADDR, 1);
    set(y, SOL_SOCKET, SO_REUSEADDR, 1);
    at = any_loopback(0);
    CHECK(bind(x, (void *)&at, sizeof at) == 0);
    at = any_loopback(port_of(x));
    CHECK(bind(y, (void *)&at, sizeof at) == 0);
    CHECK(listen(x, 1) == 0);
    FAILS(EADDRINUSE, listen(y, 1));
    close(x);
    close(y);
    /* Listening without a name gives one. */
    x = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(listen(x, 1) == 0 && port_of(x) > 0);
    close(x);
    if (geteuid() == 0) {
        pid_t child = fork();
        if (child == 0) {
            CHECK(setresuid(1000, 1000, 1000) == 0);
            x = socket(AF_INET, SOCK_STREAM, 0);
            at = any_loopback(81);
            FAILS(EACCES, bind(x, (void *)&at, sizeof at));
            _exit(check_failures != 0);
        }
        int status;
        CHECK(waitpid(child, &status, 0) == child && status == 0);
    }
}

static void test_options(void)
{
    int e[2];
    two(e);
    int fd = e[0];
    CHECK(get(fd, IPPROTO_TCP, TCP_NODELAY) == 0);
    CHECK(set(fd, IPPROTO_TCP, TCP_NODELAY, 5) == 0 && get(fd, IPPROTO_TCP, TCP_NODELAY) == 1);
    CHECK(set(fd, IPPROTO_TCP, TCP_CORK, 1) == 0 && get(fd, IPPROTO_TCP, TCP_CORK) == 1);
    CHECK(set(fd, IPPROTO_TCP, TCP_CORK, 0) == 0);
    CHECK(get(fd, IPPROTO_TCP, TCP_KEEPIDLE) == 7200);
    CHECK(set(fd, IPPROTO_TCP, TCP_KEEPIDLE, 10) == 0 && get(fd, IPPROTO_TCP, TCP_KEEPIDLE) == 10);
    FAILS(EINVAL, set(fd, IPPROTO_TCP, TCP_KEEPIDLE, 0));
    FAILS(EINVAL, set(fd, IPPROTO_TCP, TCP_KEEPIDLE, 32768));
    FAILS(EINVAL, set(fd, IPPROTO_TCP, TCP_KEEPCNT, 128));
    CHECK(set(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, 3000) == 0 && get(fd, IPPROTO_TCP, TCP_USER_TIMEOUT) == 3000);
    FAILS(ENOPROTOOPT, set(fd, IPPROTO_TCP, 200, 1));
    FAILS(ENOENT, setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "nosuch", 6));
    CHECK(get(fd, IPPROTO_TCP, TCP_MAXSEG) > 30000);
    struct tcp_info info;
    socklen_t len = sizeof info;
    CHECK(getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &len) == 0 && info.tcpi_state == 1);
    shutdown(fd, SHUT_WR);
    usleep(20000);
    len = sizeof info;
    CHECK(getsockopt(e[1], IPPROTO_TCP, TCP_INFO, &info, &len) == 0 && info.tcpi_state == 8);
    CHECK(get(fd, IPPROTO_IP, IP_TTL) == 64);
    CHECK(set(fd, IPPROTO_IP, IP_TTL, 3) == 0 && get(fd, IPPROTO_IP, IP_TTL) == 3);
    FAILS(EINVAL, set(fd, IPPROTO_IP, IP_TTL, 0));
    FAILS(EINVAL, set(fd, IPPROTO_IP, IP_TTL, 256));
    unsigned char small = 9;
    CHECK(setsockopt(fd, IPPROTO_IP, IP_TOS, &small, 1) == 0);
    len = 1;
    CHECK(getsockopt(fd, IPPROTO_IP, IP_TOS, &small, &len) == 0 && len == 1 && small == 8);
    CHECK(set(fd, SOL_SOCKET, SO_SNDBUF, 10000) == 0 && get(fd, SOL_SOCKET, SO_SNDBUF) == 20000);
    CHECK(set(fd, SOL_SOCKET, SO_RCVBUF, 10000) == 0 && get(fd, SOL_SOCKET, SO_RCVBUF) == 20000);
    CHECK(set(fd, SOL_SOCKET, SO_KEEPALIVE, 1) == 0 && get(fd, SOL_SOCKET, SO_KEEPALIVE) == 1);
    FAILS(ENOPROTOOPT, set(fd, 9999, 1, 1));
    FAILS(ENOPROTOOPT, set(fd, IPPROTO_IPV6, IPV6_V6ONLY, 1));
    int l = listener(3);
    CHECK(get(l, SOL_SOCKET, SO_ACCEPTCONN) == 1 && get(fd, SOL_SOCKET, SO_ACCEPTCONN) == 0);
    close(l);
    close(e[0]);
    close(e[1]);
}

static void test_backlog(void)
{
    int l = listener(1), c[2];
    /* Two fit (backlog + 1), before anybody accepts. */
    for (int i = 0; i < 2; i++)
        c[i] = connected(port_of(l), SOCK_NONBLOCK);
    for (int i = 0; i < 2; i++)
        CHECK(events_soon(c[i], POLLOUT, POLLOUT) == POLLOUT);
    for (int i = 0; i < 2; i++) {
        int s = accept(l, NULL, NULL);
        CHECK(s >= 0);
        CHECK(send(s, "k", 1, 0) == 1);
        close(s);
    }
    for (int i = 0; i < 2; i++) {
        char b;
        CHECK(recv(c[i], &b, 1, 0) == 1 && b == 'k');
        close(c[i]);
    }
    close(l);
}

static void test_epoll(void)
{
    int e[2], ep = epoll_create1(0);
    two(e);
    struct epoll_event ev = { .events = EPOLLIN | EPOLLOUT | EPOLLET | EPOLLRDHUP }, got;
    CHECK(epoll_ctl(ep, EPOLL_CTL_ADD, e[0], &ev) == 0);
    CHECK(epoll_wait(ep, &got, 1, 1000) == 1 && got.events == EPOLLOUT);
    CHECK(epoll_wait(ep, &got, 1, 0) == 0);
    send(e[1], "a", 1, 0);
    CHECK(epoll_wait(ep, &got, 1, 1000) == 1 && got.events == (EPOLLIN | EPOLLOUT));
    CHECK(epoll_wait(ep, &got, 1, 0) == 0);
    send(e[1], "b", 1, 0);
    CHECK(epoll_wait(ep, &got, 1, 1000) == 1 && got.events == (EPOLLIN | EPOLLOUT));
    shutdown(e[1], SHUT_WR);
    CHECK(epoll_wait(ep, &got, 1, 1000) == 1 && got.events == (EPOLLIN | EPOLLOUT | EPOLLRDHUP));
    close(ep);
    close(e[0]);
    close(e[1]);
}

static void test_v6(void)
{
    int l = socket(AF_INET6, SOCK_STREAM, 0);
    struct sockaddr_in6 a = { .sin6_family = AF_INET6 };
    CHECK(bind(l, (void *)&a, sizeof a) == 0 && listen(l, 4) == 0);
    int c = connected(port_of(l), 0);
    struct sockaddr_in6 peer;
    socklen_t len = sizeof peer;
    int s = accept(l, (void *)&peer, &len);
    CHECK(s >= 0 && len == sizeof peer && IN6_IS_ADDR_V4MAPPED(&peer.sin6_addr));
    close(s);
    close(c);
    c = socket(AF_INET6, SOCK_STREAM, 0);
    a.sin6_addr = in6addr_loopback;
    a.sin6_port = htons(port_of(l));
    CHECK(connect(c, (void *)&a, sizeof a) == 0);
    s = accept(l, (void *)&peer, &len);
    CHECK(s >= 0 && IN6_IS_ADDR_LOOPBACK(&peer.sin6_addr));
    CHECK(get(c, IPPROTO_IPV6, IPV6_UNICAST_HOPS) == 64);
    close(s);
    close(c);
    c = socket(AF_INET6, SOCK_STREAM, 0);
    struct sockaddr_in6 bad = a;
    inet_pton(AF_INET6, "2001:db8::1", &bad.sin6_addr);
    FAILS(EADDRNOTAVAIL, bind(c, (void *)&bad, sizeof bad));
    close(c);
    close(l);
}

int main(void)
{
    signal(SIGALRM, SIG_DFL);
    alarm(240);
    test_unconnected();
    test_connect();
    test_ends();
    test_receive();
    test_bulk();
    test_ports();
    test_options();
    test_backlog();
    test_epoll();
    test_v6();
    return check_done();
}
