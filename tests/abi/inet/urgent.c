/* Urgent data on TCP connections inside the machine: tcp(7), RFC 6093 as Linux has it. */
#include "../check.h"
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static int to, from;

static void two(void)
{
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in a = { .sin_family = AF_INET };
    socklen_t len = sizeof a;
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CHECK(bind(listener, (void *)&a, sizeof a) == 0 && listen(listener, 1) == 0);
    CHECK(getsockname(listener, (void *)&a, &len) == 0);
    to = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(connect(to, (void *)&a, sizeof a) == 0);
    from = accept(listener, NULL, NULL);
    CHECK(from >= 0);
    close(listener);
}

static void done(void)
{
    close(to);
    close(from);
}

static void sends(const char *bytes, int flags)
{
    CHECK(send(to, bytes, strlen(bytes), flags) == (ssize_t)strlen(bytes));
    /* Over the loopback interface what was sent is there at once, or as good as. */
    struct timespec moment = { .tv_nsec = 2000000 };
    nanosleep(&moment, NULL);
}

/* What recv returns is `bytes`. */
static int gets(const char *bytes, size_t room, int flags)
{
    char buffer[64] = "";
    ssize_t n = recv(from, buffer, room, flags | MSG_DONTWAIT);
    return n == (ssize_t)strlen(bytes) && memcmp(buffer, bytes, (size_t)n) == 0;
}

static int at_mark(void)
{
    int at = -1;
    CHECK(ioctl(from, SIOCATMARK, &at) == 0);
    return at;
}

static int waiting(void)
{
    int n = -1;
    CHECK(ioctl(from, FIONREAD, &n) == 0);
    return n;
}

static short ready(void)
{
    struct pollfd p = { from, POLLIN | POLLPRI | POLLRDBAND, 0 };
    return poll(&p, 1, 0) > 0 ? p.revents : 0;
}

static void out_of_band(void)
{
    two();
    FAILS(EINVAL, recv(from, (char[1]){ 0 }, 1, MSG_OOB | MSG_DONTWAIT));
    CHECK(!at_mark());
    sends("hello", MSG_OOB);
    CHECK((ready() & (POLLIN | POLLPRI)) == (POLLIN | POLLPRI));
    CHECK(waiting() == 4);
    CHECK(gets("o", 1, MSG_OOB | MSG_PEEK));
    CHECK(gets("o", 10, MSG_OOB));
    FAILS(EINVAL, recv(from, (char[1]){ 0 }, 1, MSG_OOB | MSG_DONTWAIT));
    CHECK((ready() & (POLLIN | POLLPRI)) == POLLIN);
    CHECK(gets("hel", 3, 0));
    CHECK(!at_mark());
    CHECK(gets("l", 10, 0));
    /* At the mark; the byte itself is not to be read any more. */
    CHECK(at_mark());
    CHECK((ready() & (POLLIN | POLLPRI)) == 0);
    CHECK(waiting() == 0);
    FAILS(EAGAIN, recv(from, (char[1]){ 0 }, 1, MSG_DONTWAIT));
    sends("more", 0);
    CHECK(gets("more", 10, 0));
    CHECK(!at_mark());
    done();
}

static void message_flags(void)
{
    two();
    sends("x", MSG_OOB);
    char byte = 0;
    struct iovec iov = { &byte, 1 };
    struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1 };
    CHECK(recvmsg(from, &message, MSG_OOB | MSG_PEEK) == 1 && byte == 'x' && message.msg_flags & MSG_OOB);
    iov.iov_len = 0;
    CHECK(recvmsg(from, &message, MSG_OOB) == 0);
    CHECK(message.msg_flags & MSG_OOB && message.msg_flags & MSG_TRUNC);
    FAILS(EINVAL, recvmsg(from, &message, MSG_OOB));
    CHECK(send(to, "", 0, MSG_OOB) == 0);
    done();
}

static void passed_over(void)
{
    two();
    sends("ab!", MSG_OOB);
    sends("cd", 0);
    CHECK(waiting() == 2);
    /* A read ends at the mark, the next one goes on behind the byte, which is lost then. */
    CHECK(gets("ab", 10, 0));
    CHECK(at_mark());
    CHECK(ready() & POLLPRI);
    CHECK(gets("cd", 10, 0));
    CHECK(!at_mark());
    FAILS(EINVAL, recv(from, (char[1]){ 0 }, 1, MSG_OOB | MSG_DONTWAIT));
    CHECK(!(ready() & POLLPRI));
    done();
}

static void peeked(void)
{
    two();
    sends("ab!", MSG_OOB);
    sends("cd", 0);
    CHECK(gets("ab", 10, MSG_PEEK));
    CHECK(gets("a", 1, MSG_PEEK));
    CHECK(gets("ab", 2, 0));
    CHECK(at_mark());
    CHECK(gets("cd", 10, MSG_PEEK));
    CHECK(at_mark());
    CHECK(gets("c", 1, MSG_PEEK));
    CHECK(gets("!", 1, MSG_OOB));
    CHECK(gets("cd", 10, MSG_PEEK));
    CHECK(gets("cd", 10, 0));
    done();
}

static void in_line(void)
{
    two();
    int on = 1;
    CHECK(setsockopt(from, SOL_SOCKET, SO_OOBINLINE, &on, sizeof on) == 0);
    sends("ab!", MSG_OOB);
    sends("cd", 0);
    CHECK(waiting() == 5);
    FAILS(EINVAL, recv(from, (char[1]){ 0 }, 1, MSG_OOB | MSG_DONTWAIT));
    CHECK(ready() & POLLPRI);
    CHECK(gets("ab", 10, 0));
    CHECK(at_mark());
    CHECK(gets("!cd", 10, 0));
    CHECK(!at_mark());
    CHECK(!(ready() & POLLPRI));
    done();
}

static void several(void)
{
    two();
    sends("a", MSG_OOB);
    sends("b", MSG_OOB);
    /* The reader stood at the former one: it is gone. */
    CHECK(waiting() == 0);
    CHECK(at_mark());
    CHECK(gets("b", 1, MSG_OOB));
    sends("cd", 0);
    sends("e", MSG_OOB);
    sends("f", MSG_OOB);
    /* Not the last one: it is data like any other. */
    CHECK(gets("cde", 10, 0));
    CHECK(gets("f", 1, MSG_OOB));
    done();

    two();
    sends("x", MSG_OOB);
    CHECK(gets("x", 1, MSG_OOB));
    sends("y", MSG_OOB);
    CHECK(gets("y", 1, MSG_OOB));
    sends("z", 0);
    CHECK(gets("z", 10, 0));
    done();
}

static void discarded(void)
{
    two();
    sends("ab!", MSG_OOB);
    sends("cd", 0);
    CHECK(recv(from, NULL, 10, MSG_TRUNC | MSG_DONTWAIT) == 2);
    CHECK(at_mark());
    CHECK(recv(from, NULL, 1, MSG_TRUNC | MSG_DONTWAIT) == 1);
    CHECK(gets("d", 10, 0));
    done();
}

static volatile sig_atomic_t signals;
static void on_urgent(int signo) { signals += signo == SIGURG; }

static void *sends_soon(void *bytes)
{
    struct timespec moment = { .tv_nsec = 100000000 };
    nanosleep(&moment, NULL);
    CHECK(send(to, bytes, strlen(bytes), MSG_OOB) == (ssize_t)strlen(bytes));
    return NULL;
}

static void tells(void)
{
    two();
    signal(SIGURG, on_urgent);
    sends("a", MSG_OOB);
    CHECK(signals == 0);
    CHECK(fcntl(from, F_SETOWN, getpid()) == 0);
    sends("b", MSG_OOB);
    CHECK(signals == 1);
    done();
    /* Waiters for urgent data wake, without an owner too. */
    two();
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, sends_soon, "x") == 0);
    struct pollfd p = { from, POLLPRI, 0 };
    CHECK(poll(&p, 1, 20000) == 1 && p.revents == POLLPRI);
    pthread_join(thread, NULL);
    CHECK(gets("x", 1, MSG_OOB));
    CHECK(pthread_create(&thread, NULL, sends_soon, "y") == 0);
    fd_set urgent;
    FD_ZERO(&urgent);
    FD_SET(from, &urgent);
    struct timeval limit = { 20, 0 };
    CHECK(select(from + 1, NULL, NULL, &urgent, &limit) == 1 && FD_ISSET(from, &urgent));
    pthread_join(thread, NULL);
    done();
    /* On local sockets as well. */
    int ends[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
    to = ends[0], from = ends[1];
    CHECK(pthread_create(&thread, NULL, sends_soon, "z") == 0);
    p = (struct pollfd){ from, POLLPRI, 0 };
    CHECK(poll(&p, 1, 20000) == 1 && p.revents == POLLPRI);
    pthread_join(thread, NULL);
    done();
}

/* A writer of urgent and other bytes and a reader at the same time: no byte comes twice or in the wrong order. */
enum { BYTES = 200000 };
static void *writes(void *unused)
{
    for (unsigned at = 0; at < BYTES;) {
        char bytes[100];
        unsigned n = 0, want = 1 + (unsigned)random() % 100;
        while (n < want && at < BYTES)
            bytes[n++] = (char)(at++ % 251);
        if (send(to, bytes, n, random() % 4 ? 0 : MSG_OOB) != (ssize_t)n)
            break;
    }
    shutdown(to, SHUT_WR);
    return unused;
}

static void storm(int inline_too)
{
    two();
    CHECK(setsockopt(from, SOL_SOCKET, SO_OOBINLINE, &inline_too, sizeof inline_too) == 0);
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, writes, NULL) == 0);
    unsigned at = 0, lost = 0, wrong = 0;
    for (;;) {
        unsigned char bytes[333], urgent;
        ssize_t n = recv(from, bytes, 1 + (size_t)random() % sizeof bytes, 0);
        if (n <= 0)
            break;
        for (ssize_t i = 0; i < n; i++, at++)
            while (bytes[i] != at % 251) {
                /* An urgent byte was passed over. */
                at++;
                lost++;
                if (inline_too || lost > BYTES / 2) {
                    wrong++;
                    break;
                }
            }
        recv(from, &urgent, 1, MSG_OOB | MSG_DONTWAIT);
    }
    pthread_join(thread, NULL);
    CHECK(wrong == 0);
    CHECK(at + 1 >= BYTES && at <= BYTES);
    CHECK(!inline_too || lost == 0);
    done();
}

int main(void)
{
    out_of_band();
    message_flags();
    passed_over();
    peeked();
    in_line();
    several();
    discarded();
    tells();
    storm(1);
    storm(0);
    return check_done();
}
