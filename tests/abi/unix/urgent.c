/* The urgent byte of local streams (MSG_OOB), its mark and signal; where a peek begins (SO_PEEK_OFF). */
#include "../check.h"
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#ifndef SIOCATMARK
#define SIOCATMARK 0x8905
#endif

static int s[2];
static volatile int urgent_signals;

static void on_urgent(int signo)
{
    (void)signo;
    urgent_signals++;
}

static void open_pair(int kind)
{
    CHECK(socketpair(AF_UNIX, kind, 0, s) == 0);
}

static void close_pair(void)
{
    close(s[0]);
    close(s[1]);
}

static int at_mark(void)
{
    int mark = -1;
    CHECK(ioctl(s[1], SIOCATMARK, &mark) == 0);
    return mark;
}

/* Receives up to 16 bytes without waiting, and compares. */
static int gets(const char *text, int flags)
{
    char buffer[16];
    ssize_t n = recv(s[1], buffer, sizeof buffer, flags | MSG_DONTWAIT);
    return n == (ssize_t)strlen(text) && memcmp(buffer, text, n) == 0;
}

static short ready(void)
{
    struct pollfd p = {.fd = s[1], .events = POLLIN | POLLPRI};
    CHECK(poll(&p, 1, 0) >= 0);
    return p.revents;
}

static void out_of_band(void)
{
    open_pair(SOCK_STREAM);
    FAILS(EINVAL, recv(s[1], &(char){0}, 1, MSG_OOB));
    CHECK(send(s[0], "hello", 5, MSG_OOB) == 5);
    CHECK(ready() == (POLLIN | POLLPRI));
    CHECK(at_mark() == 0);
    CHECK(gets("o", MSG_OOB | MSG_PEEK));
    CHECK(gets("hell", MSG_PEEK));
    char c;
    struct iovec iov = {&c, 1};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};
    CHECK(recvmsg(s[1], &m, MSG_OOB) == 1 && c == 'o' && m.msg_flags == MSG_OOB);
    FAILS(EINVAL, recv(s[1], &c, 1, MSG_OOB));
    CHECK(ready() == POLLIN);
    int bytes = -1;
    CHECK(ioctl(s[1], FIONREAD, &bytes) == 0 && bytes == 4);
    CHECK(send(s[0], "world", 5, 0) == 5);
    /* The mark ends a read, and is gone with the next one. */
    CHECK(gets("hell", 0));
    CHECK(at_mark() == 1);
    CHECK(gets("world", 0));
    CHECK(at_mark() == 0);
    CHECK(ready() == 0);
    close_pair();
}

static void passed_over(void)
{
    /* Who reads on loses the byte. */
    open_pair(SOCK_STREAM);
    CHECK(send(s[0], "hello", 5, MSG_OOB) == 5);
    CHECK(gets("hell", 0));
    CHECK(at_mark() == 1);
    CHECK(send(s[0], "world", 5, 0) == 5);
    CHECK(gets("world", 0));
    FAILS(EINVAL, recv(s[1], &(char){0}, 1, MSG_OOB));
    close_pair();
    /* A second one makes the first an ordinary byte. */
    open_pair(SOCK_STREAM);
    CHECK(send(s[0], "a", 1, MSG_OOB) == 1);
    CHECK(at_mark() == 1);
    CHECK(send(s[0], "b", 1, MSG_OOB) == 1);
    CHECK(at_mark() == 0);
    CHECK(gets("b", MSG_OOB));
    CHECK(gets("a", 0));
    FAILS(EAGAIN, recv(s[1], &(char){0}, 1, MSG_DONTWAIT));
    close_pair();
    /* What was read out of band is not lost data at the end. */
    open_pair(SOCK_STREAM);
    CHECK(send(s[0], "x", 1, MSG_OOB) == 1);
    CHECK(gets("x", MSG_OOB));
    close(s[1]);
    FAILS(EPIPE, send(s[0], "y", 1, MSG_NOSIGNAL));
    close(s[0]);
}

static void in_line(void)
{
    open_pair(SOCK_STREAM);
    CHECK(setsockopt(s[1], SOL_SOCKET, SO_OOBINLINE, &(int){1}, sizeof(int)) == 0);
    CHECK(send(s[0], "hello", 5, MSG_OOB) == 5);
    FAILS(EINVAL, recv(s[1], &(char){0}, 1, MSG_OOB));
    CHECK(gets("hell", 0));
    CHECK(at_mark() == 1);
    CHECK(gets("o", MSG_PEEK));
    CHECK(gets("o", 0));
    CHECK(at_mark() == 0);
    close_pair();
}

static void told_by_signal(void)
{
    open_pair(SOCK_STREAM);
    signal(SIGURG, on_urgent);
    CHECK(send(s[0], "a", 1, MSG_OOB) == 1);
    CHECK(urgent_signals == 0);
    int pid = getpid(), got = 0;
    CHECK(ioctl(s[1], FIOSETOWN, &pid) == 0);
    CHECK(ioctl(s[1], SIOCGPGRP, &got) == 0 && got == pid);
    CHECK(fcntl(s[1], F_GETOWN) == pid);
    CHECK(send(s[0], "b", 1, MSG_OOB) == 1);
    CHECK(urgent_signals == 1);
    pid = -getpgrp();
    CHECK(ioctl(s[1], SIOCSPGRP, &pid) == 0 && fcntl(s[1], F_GETOWN) == pid);
    close_pair();
}

static void refused(void)
{
    open_pair(SOCK_STREAM);
    FAILS(EOPNOTSUPP, send(s[0], "", 0, MSG_OOB));
    close_pair();
    for (int kind = SOCK_DGRAM; kind <= SOCK_SEQPACKET; kind += SOCK_SEQPACKET - SOCK_DGRAM) {
        open_pair(kind);
        FAILS(EOPNOTSUPP, send(s[0], "a", 1, MSG_OOB));
        FAILS(EOPNOTSUPP, recv(s[1], &(char){0}, 1, MSG_OOB | MSG_DONTWAIT));
        close_pair();
    }
}

static int peek_offset(void)
{
    int offset = -2;
    socklen_t len = sizeof offset;
    CHECK(getsockopt(s[1], SOL_SOCKET, SO_PEEK_OFF, &offset, &len) == 0);
    return offset;
}

static int peek_from(int offset)
{
    return setsockopt(s[1], SOL_SOCKET, SO_PEEK_OFF, &offset, sizeof offset);
}

static void peeks(void)
{
    char two[2];
    open_pair(SOCK_STREAM);
    CHECK(peek_offset() == -1);
    CHECK(send(s[0], "abc", 3, 0) == 3 && send(s[0], "defg", 4, 0) == 4);
    CHECK(peek_from(2) == 0);
    CHECK(recv(s[1], two, 2, MSG_PEEK) == 2 && memcmp(two, "cd", 2) == 0);
    CHECK(peek_offset() == 4);
    CHECK(gets("efg", MSG_PEEK));
    CHECK(peek_offset() == 7);
    FAILS(EAGAIN, recv(s[1], two, 2, MSG_PEEK | MSG_DONTWAIT));
    CHECK(recv(s[1], two, 2, 0) == 2 && memcmp(two, "ab", 2) == 0);
    CHECK(peek_offset() == 5);
    CHECK(send(s[0], "h", 1, 0) == 1);
    CHECK(gets("h", MSG_PEEK));
    CHECK(peek_from(-1) == 0);
    CHECK(gets("cdefgh", MSG_PEEK));
    close_pair();
    open_pair(SOCK_DGRAM);
    CHECK(send(s[0], "abc", 3, 0) == 3 && send(s[0], "defg", 4, 0) == 4);
    CHECK(peek_from(1) == 0);
    CHECK(gets("bc", MSG_PEEK));
    CHECK(gets("defg", MSG_PEEK));
    CHECK(gets("abc", 0));
    CHECK(peek_offset() == 4);
    close_pair();
}

int main(void)
{
    out_of_band();
    passed_over();
    in_line();
    told_by_signal();
    refused();
    peeks();
    return check_done();
}
