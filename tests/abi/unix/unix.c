/* Local sockets: streams, datagrams, packets, names, descriptors, credentials, readiness, garbage. */
#include "../check.h"
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static short events(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN | POLLOUT | POLLRDHUP};
    CHECK(poll(&p, 1, 0) >= 0);
    return p.revents;
}

static socklen_t name(struct sockaddr_un *a, const char *text)
{
    a->sun_family = AF_UNIX;
    size_t n = strlen(text);
    memcpy(a->sun_path, text, n + 1);
    if (text[0] == '@') {
        a->sun_path[0] = 0;
        return offsetof(struct sockaddr_un, sun_path) + n;
    }
    return offsetof(struct sockaddr_un, sun_path) + n + 1;
}

static ssize_t send_fds(int to, const int *fds, int count, int flags)
{
    union {
        char buf[CMSG_SPACE(sizeof(int) * 300)];
        struct cmsghdr align;
    } c;
    struct iovec iov = {"d", 1};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = c.buf, .msg_controllen = CMSG_SPACE(sizeof(int) * count)};
    struct cmsghdr *h = CMSG_FIRSTHDR(&m);
    h->cmsg_level = SOL_SOCKET, h->cmsg_type = SCM_RIGHTS, h->cmsg_len = CMSG_LEN(sizeof(int) * count);
    memcpy(CMSG_DATA(h), fds, sizeof(int) * count);
    return sendmsg(to, &m, flags);
}

static ssize_t recv_fds(int from, int *fds, int max, int flags, int *out_flags, int *count)
{
    union {
        char buf[CMSG_SPACE(sizeof(int) * 300)];
        struct cmsghdr align;
    } c;
    char d[8];
    struct iovec iov = {d, sizeof d};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = c.buf, .msg_controllen = max ? CMSG_SPACE(sizeof(int) * max) : 0};
    ssize_t n = recvmsg(from, &m, flags);
    *out_flags = m.msg_flags, *count = 0;
    for (struct cmsghdr *h = CMSG_FIRSTHDR(&m); h; h = CMSG_NXTHDR(&m, h))
        if (h->cmsg_type == SCM_RIGHTS) {
            *count = (h->cmsg_len - CMSG_LEN(0)) / sizeof(int);
            memcpy(fds, CMSG_DATA(h), *count * sizeof(int));
        }
    return n;
}

static void streams(void)
{
    struct sockaddr_un a, b;
    socklen_t len;
    char buf[64];
    int l = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0), c, s;
    CHECK(events(l) == (POLLOUT | POLLHUP));
    FAILS(EINVAL, listen(l, 1));
    FAILS(ENOTCONN, send(l, "x", 1, 0));
    FAILS(EINVAL, recv(l, buf, 1, 0));
    len = name(&a, "@abi-unix-stream");
    CHECK(bind(l, (void *)&a, len) == 0);
    FAILS(EINVAL, bind(l, (void *)&a, len));
    c = socket(AF_UNIX, SOCK_STREAM, 0);
    FAILS(EADDRINUSE, bind(c, (void *)&a, len));
    FAILS(ECONNREFUSED, connect(c, (void *)&a, len));
    CHECK(listen(l, 0) == 0);
    FAILS(EAGAIN, accept(l, 0, 0));
    CHECK(events(l) == 0);
    CHECK(connect(c, (void *)&a, len) == 0);
    CHECK(events(l) == POLLIN);
    int c2 = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
    FAILS(EAGAIN, connect(c2, (void *)&a, len)); /* backlog full */
    CHECK(send(c, "early", 5, 0) == 5);
    socklen_t blen = sizeof b;
    s = accept4(l, (void *)&b, &blen, SOCK_CLOEXEC | SOCK_NONBLOCK);
    CHECK(s >= 0 && blen == 2 && b.sun_family == AF_UNIX);
    FAILS(EISCONN, connect(c, (void *)&a, len));
    blen = sizeof b;
    CHECK(getpeername(c, (void *)&b, &blen) == 0 && blen == len && !memcmp(&a, &b, len));
    CHECK(recv(s, buf, 2, MSG_PEEK) == 2 && recv(s, buf, 64, 0) == 5 && !memcmp(buf, "early", 5));
    FAILS(EAGAIN, recv(s, buf, 1, 0));
    CHECK(send(c, "ab", 2, 0) == 2 && send(c, "cd", 2, 0) == 2);
    int n;
    CHECK(ioctl(s, FIONREAD, &n) == 0 && n == 4);
    CHECK(recv(s, buf, 64, 0) == 4); /* pieces join */
    struct ucred u;
    socklen_t ul = sizeof u;
    CHECK(getsockopt(s, SOL_SOCKET, SO_PEERCRED, &u, &ul) == 0 && u.pid == getpid() && u.uid == geteuid());
    FAILS(EOPNOTSUPP, sendto(socket(AF_UNIX, SOCK_STREAM, 0), "x", 1, 0, (void *)&a, len));
    CHECK(shutdown(c, SHUT_WR) == 0);
    CHECK(events(s) == (POLLIN | POLLOUT | POLLRDHUP) && recv(s, buf, 1, 0) == 0);
    FAILS(EPIPE, send(c, "x", 1, MSG_NOSIGNAL));
    CHECK(send(s, "y", 1, 0) == 1 && recv(c, buf, 9, 0) == 1);
    CHECK(send(s, "z", 1, 0) == 1);
    close(c); /* with unread data: the peer is reset */
    CHECK(events(s) == (POLLIN | POLLOUT | POLLRDHUP | POLLHUP | POLLERR));
    int e;
    socklen_t el = sizeof e;
    CHECK(getsockopt(s, SOL_SOCKET, SO_ERROR, &e, &el) == 0 && e == ECONNRESET);
    CHECK(recv(s, buf, 1, 0) == 0);
    close(s), close(c2), close(l);
    FAILS(ECONNREFUSED, connect(socket(AF_UNIX, SOCK_STREAM, 0), (void *)&a, len));
}

static void datagrams(void)
{
    struct sockaddr_un a, b, from;
    char buf[64];
    socklen_t alen = name(&a, "/tmp/abi-unix-dgram"), blen = name(&b, "@abi-d2"), fl = sizeof from;
    unlink(a.sun_path);
    int r = socket(AF_UNIX, SOCK_DGRAM, 0), w = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    CHECK(bind(r, (void *)&a, alen) == 0 && bind(w, (void *)&b, blen) == 0);
    struct stat st;
    CHECK(stat(a.sun_path, &st) == 0 && S_ISSOCK(st.st_mode));
    FAILS(ENXIO, open(a.sun_path, O_RDWR));
    FAILS(ENOTCONN, send(w, "x", 1, 0));
    CHECK(sendto(w, "hello", 5, 0, (void *)&a, alen) == 5 && sendto(w, "", 0, 0, (void *)&a, alen) == 0);
    CHECK(recvfrom(r, buf, 3, MSG_TRUNC, (void *)&from, &fl) == 5 && fl == blen && !memcmp(&from, &b, blen));
    CHECK(recv(r, buf, 64, 0) == 0);
    CHECK(connect(w, (void *)&a, alen) == 0);
    int n = 0;
    while (send(w, "x", 1, 0) == 1)
        n++;
    CHECK(errno == EAGAIN && n == 11);
    CHECK(!(events(w) & POLLOUT));
    CHECK(recv(r, buf, 1, 0) == 1 && events(w) & POLLOUT);
    FAILS(EPROTOTYPE, connect(socket(AF_UNIX, SOCK_STREAM, 0), (void *)&a, alen));
    FAILS(EOPNOTSUPP, listen(w, 1));
    close(r);
    FAILS(ECONNREFUSED, send(w, "x", 1, 0));
    unlink(a.sun_path);
    FAILS(ENOENT, connect(w, (void *)&a, alen));
    int p[2];
    CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, p) == 0);
    CHECK(send(p[0], "one", 3, 0) == 3 && send(p[0], "two!", 4, 0) == 4);
    CHECK(recv(p[1], buf, 64, 0) == 3 && recv(p[1], buf, 64, 0) == 4);
    close(p[0]);
    CHECK(recv(p[1], buf, 64, 0) == 0);
    FAILS(EPIPE, send(p[1], "x", 1, MSG_NOSIGNAL));
    close(p[1]);
    int s = socket(AF_UNIX, SOCK_DGRAM, 0);
    sa_family_t f = AF_UNIX;
    CHECK(bind(s, (void *)&f, sizeof f) == 0); /* autobind */
    fl = sizeof from;
    CHECK(getsockname(s, (void *)&from, &fl) == 0 && fl == 8 && from.sun_path[0] == 0);
    close(s), close(w);
}

static void limits(void)
{
    static char big[300000];
    int p[2], v;
    socklen_t vl = sizeof v;
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, p) == 0);
    CHECK(getsockopt(p[0], SOL_SOCKET, SO_SNDBUF, &v, &vl) == 0 && v == 212992);
    v = 10000;
    CHECK(setsockopt(p[0], SOL_SOCKET, SO_SNDBUF, &v, 4) == 0);
    CHECK(getsockopt(p[0], SOL_SOCKET, SO_SNDBUF, &v, &vl) == 0 && v == 20000);
    int n = 0;
    while (send(p[0], "x", 1, 0) == 1)
        n++;
    CHECK(errno == EAGAIN && n > 10 && n < 100);
    CHECK(!(events(p[0]) & POLLOUT));
    CHECK(recv(p[1], big, sizeof big, 0) == n);
    CHECK(events(p[0]) & POLLOUT);
    close(p[0]), close(p[1]);
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, p) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        size_t left = 0;
        for (int i = 0; i < 20; i++)
            left += send(p[0], big, sizeof big, 0);
        _exit(left != 20 * sizeof big);
    }
    close(p[0]);
    size_t total = 0;
    ssize_t got;
    while ((got = recv(p[1], big, 70000, 0)) > 0)
        total += got;
    int status;
    CHECK(total == 20 * sizeof big && waitpid(pid, &status, 0) == pid && status == 0);
    close(p[1]);
    struct timeval tv = {0, 50000};
    CHECK(socketpair(AF_UNIX, SOCK_DGRAM, 0, p) == 0);
    CHECK(setsockopt(p[0], SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv) == 0);
    FAILS(EAGAIN, recv(p[0], big, 1, 0));
    FAILS(EMSGSIZE, send(p[0], big, sizeof big, 0));
    FAILS(EOPNOTSUPP, send(p[0], "x", 1, MSG_OOB));
    FAILS(ENOTSOCK, send(0x7f, "x", 1, 0) == -1 && errno == EBADF ? (errno = ENOTSOCK, -1) : 0);
    FAILS(EAFNOSUPPORT, socket(99, SOCK_STREAM, 0));
    FAILS(EINVAL, socket(AF_UNIX, SOCK_STREAM | 0x100000, 0));
    FAILS(EPROTONOSUPPORT, socket(AF_UNIX, SOCK_STREAM, 7));
    close(p[0]), close(p[1]);
}

static void descriptors(void)
{
    int p[2], q[2], got[300], flags, count;
    char c;
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, p) == 0 && pipe(q) == 0);
    CHECK(send(p[0], "aa", 2, 0) == 2);
    CHECK(send_fds(p[0], q, 2, 0) == 1 && send(p[0], "zz", 2, 0) == 2);
    CHECK(recv_fds(p[1], got, 8, MSG_CMSG_CLOEXEC, &flags, &count) == 3 && count == 2);
    CHECK(fcntl(got[0], F_GETFD) == FD_CLOEXEC && flags & MSG_CMSG_CLOEXEC);
    CHECK(write(got[1], "k", 1) == 1 && read(q[0], &c, 1) == 1 && c == 'k');
    CHECK(recv_fds(p[1], got, 8, 0, &flags, &count) == 2 && count == 0);
    CHECK(send_fds(p[0], q, 2, 0) == 1);
    CHECK(recv_fds(p[1], got, 1, 0, &flags, &count) == 1 && count >= 1 && (count == 2 || flags & MSG_CTRUNC));
    CHECK(send_fds(p[0], q, 1, 0) == 1);
    CHECK(recv_fds(p[1], got, 0, 0, &flags, &count) == 1 && count == 0 && flags & MSG_CTRUNC);
    int many[254];
    for (int i = 0; i < 254; i++)
        many[i] = q[0];
    FAILS(EINVAL, send_fds(p[0], many, 254, 0));
    CHECK(send_fds(p[0], many, 253, 0) == 1);
    many[1] = 999;
    FAILS(EBADF, send_fds(p[0], many, 2, 0));
    close(p[0]), close(p[1]);
    /* A descriptor in flight keeps its file open. */
    CHECK(socketpair(AF_UNIX, SOCK_DGRAM, 0, p) == 0);
    close(q[0]), close(q[1]);
    CHECK(pipe(q) == 0);
    CHECK(send_fds(p[0], q + 1, 1, 0) == 1);
    close(q[1]);
    fcntl(q[0], F_SETFL, O_NONBLOCK);
    FAILS(EAGAIN, read(q[0], &c, 1));
    close(p[0]), close(p[1]);
    CHECK(read(q[0], &c, 1) == 0);
    close(q[0]);
    /* Sockets that only reach each other are collected: a pipe that one of them carries ends. */
    CHECK(pipe(q) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, p) == 0);
    CHECK(send_fds(p[0], q + 1, 1, 0) == 1);
    CHECK(send_fds(p[0], p, 1, 0) == 1 && send_fds(p[0], p + 1, 1, 0) == 1);
    close(p[0]), close(p[1]), close(q[1]);
    /* Linux collects when another socket closes. */
    close(socket(AF_UNIX, SOCK_DGRAM, 0));
    struct pollfd pf = {.fd = q[0], .events = POLLIN};
    CHECK(poll(&pf, 1, 3000) == 1 && pf.revents == POLLHUP);
    close(q[0]);
    /* A long chain of sockets inside sockets ends without trouble. */
    int prev = -1;
    for (int i = 0; i < 3000; i++) {
        CHECK(socketpair(AF_UNIX, SOCK_DGRAM, 0, p) == 0);
        if (prev >= 0) {
            send_fds(p[0], &prev, 1, MSG_DONTWAIT);
            close(prev);
        }
        close(p[0]);
        prev = p[1];
    }
    close(prev);
}

static void credentials(void)
{
    int p[2], on = 1;
    CHECK(socketpair(AF_UNIX, SOCK_DGRAM, 0, p) == 0);
    CHECK(setsockopt(p[1], SOL_SOCKET, SO_PASSCRED, &on, sizeof on) == 0);
    pid_t pid = fork();
    if (pid == 0)
        _exit(send(p[0], "x", 1, 0) != 1);
    union {
        char buf[CMSG_SPACE(sizeof(struct ucred))];
        struct cmsghdr align;
    } c;
    char d;
    struct iovec iov = {&d, 1};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = c.buf, .msg_controllen = sizeof c.buf};
    CHECK(recvmsg(p[1], &m, 0) == 1);
    struct cmsghdr *h = CMSG_FIRSTHDR(&m);
    struct ucred u;
    CHECK(h && h->cmsg_type == SCM_CREDENTIALS && h->cmsg_len == CMSG_LEN(sizeof u));
    if (h)
        memcpy(&u, CMSG_DATA(h), sizeof u);
    CHECK(u.pid == pid && u.uid == getuid() && u.gid == getgid());
    waitpid(pid, 0, 0);
    struct mmsghdr v[3];
    memset(v, 0, sizeof v);
    struct iovec w[3] = {{"a", 1}, {"bb", 2}, {"ccc", 3}};
    for (int i = 0; i < 3; i++)
        v[i].msg_hdr.msg_iov = &w[i], v[i].msg_hdr.msg_iovlen = 1;
    CHECK(sendmmsg(p[0], v, 3, 0) == 3 && v[2].msg_len == 3);
    char bufs[3][8];
    for (int i = 0; i < 3; i++)
        w[i] = (struct iovec){bufs[i], 8};
    CHECK(recvmmsg(p[1], v, 3, MSG_DONTWAIT, 0) == 3 && v[1].msg_len == 2);
    FAILS(EAGAIN, recvmmsg(p[1], v, 3, MSG_DONTWAIT, 0));
    int fd;
    socklen_t l = sizeof fd;
    int r = getsockopt(p[0], SOL_SOCKET, 77 /* SO_PEERPIDFD */, &fd, &l);
    CHECK(r == 0 && fcntl(fd, F_GETFD) == FD_CLOEXEC);
    close(p[0]), close(p[1]);
}

int main(void)
{
    signal(SIGPIPE, SIG_IGN);
    alarm(50);
    streams();
    datagrams();
    limits();
    descriptors();
    credentials();
    return check_done();
}
