/* Netlink: ports, groups, credentials, overruns, filters; uevents and the loopback interface. Run as root. */
#include "../check.h"
#include <fcntl.h>
#include <ifaddrs.h>
#include <linux/filter.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define NULL_UEVENT "/sys/devices/virtual/mem/null/uevent"

static int netlink(int protocol, unsigned groups)
{
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, protocol);
    CHECK(fd >= 0);
    struct sockaddr_nl a = {.nl_family = AF_NETLINK, .nl_groups = groups};
    CHECK(bind(fd, (void *)&a, sizeof a) == 0);
    int on = 1;
    CHECK(setsockopt(fd, SOL_SOCKET, SO_PASSCRED, &on, sizeof on) == 0);
    return fd;
}

static unsigned port(int fd)
{
    struct sockaddr_nl a = {0};
    socklen_t len = sizeof a;
    CHECK(getsockname(fd, (void *)&a, &len) == 0 && len == sizeof a && a.nl_family == AF_NETLINK);
    return a.nl_pid;
}

struct message {
    ssize_t len;
    struct sockaddr_nl from;
    struct ucred cred;
    int has_cred, flags;
    char data[8192];
};

static struct message take(int fd, int flags)
{
    static struct message m;
    memset(&m, 0, sizeof m);
    union {
        char buf[256];
        struct cmsghdr align;
    } c;
    struct iovec iov = {m.data, sizeof m.data - 1};
    struct msghdr h = {.msg_name = &m.from, .msg_namelen = sizeof m.from, .msg_iov = &iov, .msg_iovlen = 1, .msg_control = c.buf, .msg_controllen = sizeof c.buf};
    m.len = recvmsg(fd, &h, flags);
    m.flags = h.msg_flags;
    if (m.len >= 0)
        for (struct cmsghdr *x = CMSG_FIRSTHDR(&h); x; x = CMSG_NXTHDR(&h, x))
            if (x->cmsg_level == SOL_SOCKET && x->cmsg_type == SCM_CREDENTIALS)
                m.has_cred = 1, memcpy(&m.cred, CMSG_DATA(x), sizeof m.cred);
    return m;
}

static const char *variable(const struct message *m, const char *key)
{
    size_t n = strlen(key);
    for (const char *at = m->data; at < m->data + m->len; at += strlen(at) + 1)
        if (!strncmp(at, key, n) && at[n] == '=')
            return at + n + 1;
    return "";
}

static ssize_t send_to(int fd, unsigned pid, unsigned groups, const void *data, size_t len)
{
    struct sockaddr_nl a = {.nl_family = AF_NETLINK, .nl_pid = pid, .nl_groups = groups};
    return sendto(fd, data, len, 0, (void *)&a, sizeof a);
}

static void request_uevent(const char *action)
{
    int fd = open(NULL_UEVENT, O_WRONLY);
    CHECK(write(fd, action, strlen(action)) == (ssize_t)strlen(action));
    close(fd);
}

static void arguments(void)
{
    FAILS(ESOCKTNOSUPPORT, socket(AF_NETLINK, SOCK_STREAM, NETLINK_ROUTE));
    FAILS(EPROTONOSUPPORT, socket(AF_NETLINK, SOCK_RAW, 31));
    FAILS(EPROTONOSUPPORT, socket(AF_NETLINK, SOCK_RAW, -1));
    int pair[2];
    FAILS(EOPNOTSUPP, socketpair(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE, pair));
    int fd = socket(AF_NETLINK, SOCK_DGRAM, NETLINK_KOBJECT_UEVENT), value;
    socklen_t len = sizeof value;
    CHECK(getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, &value, &len) == 0 && value == NETLINK_KOBJECT_UEVENT);
    CHECK(getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &value, &len) == 0 && value == AF_NETLINK);
    CHECK(getsockopt(fd, SOL_SOCKET, SO_TYPE, &value, &len) == 0 && value == SOCK_DGRAM);
    FAILS(EOPNOTSUPP, listen(fd, 1));
    FAILS(EOPNOTSUPP, accept(fd, NULL, NULL));
    FAILS(EOPNOTSUPP, shutdown(fd, SHUT_RDWR));

    struct sockaddr_nl a = {.nl_family = AF_UNIX};
    FAILS(EINVAL, bind(fd, (void *)&a, sizeof a));
    a.nl_family = AF_NETLINK;
    FAILS(EINVAL, bind(fd, (void *)&a, 8));
    CHECK(port(fd) == 0);
    CHECK(bind(fd, (void *)&a, sizeof a) == 0 && port(fd) == (unsigned)getpid());
    a.nl_pid = 4711;
    FAILS(EINVAL, bind(fd, (void *)&a, sizeof a));
    int other = socket(AF_NETLINK, SOCK_RAW, NETLINK_KOBJECT_UEVENT);
    a.nl_pid = getpid();
    FAILS(EADDRINUSE, bind(other, (void *)&a, sizeof a));
    a.nl_pid = 0;
    CHECK(bind(other, (void *)&a, sizeof a) == 0 && port(other) != 0 && port(other) != (unsigned)getpid());
    /* Ports of another protocol are other ports. */
    int route = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
    CHECK(bind(route, (void *)&a, sizeof a) == 0 && port(route) == (unsigned)getpid());
    FAILS(EAGAIN, recv(fd, &value, sizeof value, MSG_DONTWAIT));
    FAILS(EOPNOTSUPP, recv(fd, &value, sizeof value, MSG_DONTWAIT | MSG_OOB));
    FAILS(ECONNREFUSED, send_to(fd, 4711, 0, "x", 1));
    FAILS(EINVAL, sendto(fd, "x", 1, 0, (void *)&a, 8));
    close(fd), close(other), close(route);
}

static void uevents(void)
{
    int fd = netlink(NETLINK_KOBJECT_UEVENT, 1), deaf = netlink(NETLINK_KOBJECT_UEVENT, 0);
    struct pollfd p = {.fd = fd, .events = POLLIN | POLLOUT};
    CHECK(poll(&p, 1, 0) == 1 && p.revents == POLLOUT);
    request_uevent("change");
    CHECK(poll(&p, 1, 1000) == 1 && p.revents == (POLLIN | POLLOUT));
    ssize_t len = recv(fd, NULL, 0, MSG_PEEK | MSG_TRUNC);
    struct message m = take(fd, 0);
    CHECK(m.len == len && m.flags == 0);
    CHECK(m.from.nl_family == AF_NETLINK && m.from.nl_pid == 0 && m.from.nl_groups == 1);
    CHECK(m.has_cred && m.cred.pid == 0 && m.cred.uid == 0 && m.cred.gid == 0);
    CHECK(!strcmp(m.data, "change@/devices/virtual/mem/null") && m.data[m.len - 1] == 0);
    const char *head = "change@/devices/virtual/mem/null\0ACTION=change\0DEVPATH=/devices/virtual/mem/null\0SUBSYSTEM=mem\0SYNTH_UUID=0\0MAJOR=1\0MINOR=3\0DEVNAME=null\0DEVMODE=0666\0SEQNUM=";
    CHECK(!memcmp(m.data, head, 33 + 14 + 33 + 14 + 13 + 8 + 8 + 13 + 14 + 7));
    unsigned long first = strtoul(variable(&m, "SEQNUM"), NULL, 10);
    CHECK(first > 0);
    request_uevent("remove fe4d7c9d-b8c6-4a70-9ef1-3d8a58d18eed A=1 B=abc");
    m = take(fd, 0);
    CHECK(!strcmp(m.data, "remove@/devices/virtual/mem/null"));
    CHECK(!strcmp(variable(&m, "SYNTH_UUID"), "fe4d7c9d-b8c6-4a70-9ef1-3d8a58d18eed"));
    CHECK(!strcmp(variable(&m, "SYNTH_ARG_A"), "1") && !strcmp(variable(&m, "SYNTH_ARG_B"), "abc"));
    CHECK(strtoul(variable(&m, "SEQNUM"), NULL, 10) > first);
    /* A short read cuts the message. */
    request_uevent("change");
    char few[6];
    CHECK(recv(fd, few, sizeof few, 0) == 6 && !memcmp(few, "change", 6));
    FAILS(EAGAIN, recv(fd, few, sizeof few, 0));
    FAILS(EAGAIN, recv(deaf, few, sizeof few, 0));

    /* Injected by a privileged program: with a number, to all, as if from the kernel. */
    struct {
        struct nlmsghdr h;
        char body[64];
    } inject = {{.nlmsg_type = 0x10, .nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK, .nlmsg_seq = 7}, "add@/devices/nowhere\0ACTION=add"};
    inject.h.nlmsg_len = NLMSG_HDRLEN + 32;
    CHECK(send_to(deaf, 0, 0, &inject, inject.h.nlmsg_len) == NLMSG_HDRLEN + 32);
    m = take(fd, 0);
    CHECK(m.len > 32 && !strcmp(m.data, "add@/devices/nowhere") && m.from.nl_pid == 0 && m.from.nl_groups == 1);
    CHECK(strtoul(variable(&m, "SEQNUM"), NULL, 10) > first);
    m = take(deaf, 0);
    struct nlmsghdr *h = (void *)m.data;
    struct nlmsgerr *e = NLMSG_DATA(h);
    CHECK(m.len == 36 && h->nlmsg_type == NLMSG_ERROR && h->nlmsg_seq == 7 && e->error == 0 && e->msg.nlmsg_type == 0x10);
    close(fd), close(deaf);
}

static void groups(void)
{
    int a = netlink(NETLINK_KOBJECT_UEVENT, 2), b = netlink(NETLINK_KOBJECT_UEVENT, 2), c = netlink(NETLINK_KOBJECT_UEVENT, 0);
    char data[300];
    memset(data, 'x', sizeof data);
    CHECK(send_to(a, 0, 2, data, sizeof data) == sizeof data);
    struct message m = take(b, 0);
    CHECK(m.len == sizeof data && m.from.nl_pid == port(a) && m.from.nl_groups == 2);
    CHECK(m.has_cred && m.cred.pid == getpid() && m.cred.uid == getuid());
    FAILS(EAGAIN, recv(a, data, 1, 0));
    FAILS(EAGAIN, recv(c, data, 1, 0));
    int group = 2;
    CHECK(setsockopt(c, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group, sizeof group) == 0);
    CHECK(setsockopt(b, SOL_NETLINK, NETLINK_DROP_MEMBERSHIP, &group, sizeof group) == 0);
    CHECK(send_to(a, 0, 2, data, 10) == 10);
    CHECK(recv(c, data, sizeof data, 0) == 10);
    FAILS(EAGAIN, recv(b, data, 1, 0));
    struct sockaddr_nl name;
    socklen_t len = sizeof name;
    CHECK(getsockname(c, (void *)&name, &len) == 0 && name.nl_groups == 2);
    unsigned list[2];
    len = 0;
    CHECK(getsockopt(c, SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, NULL, &len) == 0 && len >= 4);
    len = sizeof list;
    CHECK(getsockopt(c, SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, list, &len) == 0 && len >= 4 && list[0] == 2);
    group = 0;
    FAILS(EINVAL, setsockopt(c, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group, sizeof group));
    group = 33;
    FAILS(EINVAL, setsockopt(c, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group, sizeof group));
    FAILS(ENOPROTOOPT, setsockopt(c, SOL_NETLINK, 100, &group, sizeof group));
    /* To one port. */
    CHECK(send_to(a, port(b), 0, "hello", 5) == 5);
    m = take(b, 0);
    CHECK(m.len == 5 && m.from.nl_pid == port(a) && m.from.nl_groups == 0);
    /* Connected. */
    struct sockaddr_nl to = {.nl_family = AF_NETLINK, .nl_pid = port(b)};
    CHECK(connect(c, (void *)&to, sizeof to) == 0 && send(c, "again", 5, 0) == 5);
    len = sizeof name;
    CHECK(getpeername(c, (void *)&name, &len) == 0 && name.nl_pid == port(b) && name.nl_groups == 0);
    m = take(b, 0);
    CHECK(m.len == 5 && !memcmp(m.data, "again", 5));
    /* Too long for the sender's buffer. */
    int small = 1;
    CHECK(setsockopt(a, SOL_SOCKET, SO_SNDBUF, &small, sizeof small) == 0);
    static char big[100000];
    FAILS(EMSGSIZE, send_to(a, 0, 2, big, sizeof big));
    close(a), close(b), close(c);
}

/* Whatever is sent to the kernel's ends, they answer or pass it over; a program without privileges changes nothing. */
static void random_requests(int uevents)
{
    int route = netlink(NETLINK_ROUTE, 0);
    unsigned seed = 4711;
    for (int i = 0; i < 3000; i++) {
        unsigned char data[128];
        for (unsigned j = 0; j < sizeof data; j++)
            data[j] = rand_r(&seed) >> 8;
        struct nlmsghdr *h = (void *)data;
        if (i % 4) {
            h->nlmsg_len = rand_r(&seed) % 3 ? rand_r(&seed) % sizeof data : 16 + 16;
            h->nlmsg_type = 16 + rand_r(&seed) % 120;
            h->nlmsg_flags = rand_r(&seed) & (NLM_F_REQUEST | NLM_F_ACK | NLM_F_DUMP);
        }
        /* A request for a dump is followed by another only when the first was read to its end. */
        int len = 1 + rand_r(&seed) % sizeof data, fd = i & 1 ? route : uevents;
        CHECK(send_to(fd, 0, 0, data, len) == len);
        while (take(fd, 0).len > 0)
            ;
    }
    close(route);
}

/* Who may do what without privileges. */
static void unprivileged(void)
{
    int listener = netlink(NETLINK_KOBJECT_UEVENT, 2);
    unsigned to = port(listener);
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        CHECK(setgid(65534) == 0 && setuid(65534) == 0);
        int fd = netlink(NETLINK_KOBJECT_UEVENT, 3);
        FAILS(EPERM, send_to(fd, 0, 2, "x", 1));
        FAILS(EPERM, send_to(fd, to, 0, "x", 1));
        struct sockaddr_nl a = {.nl_family = AF_NETLINK, .nl_groups = 2};
        FAILS(EPERM, connect(fd, (void *)&a, sizeof a));
        struct nlmsghdr h = {.nlmsg_len = 16, .nlmsg_type = 0x10, .nlmsg_flags = NLM_F_REQUEST, .nlmsg_seq = 9};
        CHECK(send_to(fd, 0, 0, &h, sizeof h) == 16);
        struct message m = take(fd, 0);
        struct nlmsgerr *e = NLMSG_DATA((struct nlmsghdr *)m.data);
        CHECK(m.len >= 36 && e->error == -EPERM && m.from.nl_pid == 0);
        random_requests(fd);
        int size = 1 << 20;
        FAILS(EPERM, setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size));
        fflush(stdout);
        _exit(check_failures != 0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    close(listener);
}

static void overrun(void)
{
    int a = netlink(NETLINK_KOBJECT_UEVENT, 0), b = netlink(NETLINK_KOBJECT_UEVENT, 2);
    int size = 4096;
    CHECK(setsockopt(b, SOL_SOCKET, SO_RCVBUF, &size, sizeof size) == 0);
    char data[512] = "numbered";
    for (int i = 0; i < 100; i++)
        CHECK(send_to(a, 0, 2, data, sizeof data) == sizeof data);
    struct pollfd p = {.fd = b, .events = POLLIN};
    CHECK(poll(&p, 1, 0) == 1 && p.revents == (POLLIN | POLLERR));
    FAILS(ENOBUFS, recv(b, data, sizeof data, 0));
    int got = 0;
    while (recv(b, data, sizeof data, 0) == sizeof data)
        got++;
    CHECK(errno == EAGAIN && got >= 2 && got < 30);
    CHECK(send_to(a, 0, 2, data, 7) == 7 && recv(b, data, sizeof data, 0) == 7);
    /* One receiver: the sender waits, or is told. */
    ssize_t n;
    for (got = 0; got < 100 && (n = send_to(a, port(b), 0, data, sizeof data)) > 0;)
        got++;
    CHECK(n == -1 && errno == EAGAIN && got < 30);
    close(a), close(b);
}

static int attach(int fd, struct sock_filter *code, int count)
{
    struct sock_fprog program = {count, code};
    return setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program);
}

static void filters(void)
{
    int a = netlink(NETLINK_KOBJECT_UEVENT, 0), b = netlink(NETLINK_KOBJECT_UEVENT, 2);
    /* As libudev: keep what has the magic and this hash at these places, or another magic. */
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 8),     BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0xfeedcafe, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, 0xffffffff),     BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 24),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0x12345678, 0, 1), BPF_STMT(BPF_RET | BPF_K, 0xffffffff),
        BPF_STMT(BPF_RET | BPF_K, 0),
    };
    CHECK(attach(b, filter, 7) == 0);
    unsigned char data[64] = {0};
    CHECK(send_to(a, 0, 2, data, sizeof data) == sizeof data);
    CHECK(recv(b, data, sizeof data, 0) == sizeof data);
    memcpy(data + 8, "\xfe\xed\xca\xfe", 4);
    CHECK(send_to(a, 0, 2, data, sizeof data) == sizeof data);
    FAILS(EAGAIN, recv(b, data, sizeof data, 0));
    memcpy(data + 24, "\x12\x34\x56\x78", 4);
    CHECK(send_to(a, 0, 2, data, sizeof data) == sizeof data);
    CHECK(recv(b, data, sizeof data, 0) == sizeof data);
    /* A load behind the end drops; a small result cuts. */
    CHECK(send_to(a, 0, 2, data, 11) == 11);
    FAILS(EAGAIN, recv(b, data, sizeof data, 0));
    struct sock_filter cut[] = {BPF_STMT(BPF_RET | BPF_K, 5)};
    CHECK(attach(b, cut, 1) == 0);
    CHECK(send_to(a, 0, 2, data, sizeof data) == sizeof data);
    CHECK(recv(b, data, sizeof data, MSG_TRUNC) == 5);
    /* What is no program. */
    struct sock_filter bad[] = {BPF_STMT(BPF_ALU | BPF_DIV | BPF_K, 0), BPF_STMT(BPF_RET | BPF_K, 0)};
    FAILS(EINVAL, attach(b, bad, 2));
    FAILS(EINVAL, attach(b, filter, 6 - 2));
    FAILS(EINVAL, attach(b, filter, 0));
    FAILS(EFAULT, attach(b, (void *)8, 1));
    int value = 1;
    CHECK(setsockopt(b, SOL_SOCKET, SO_DETACH_FILTER, &value, sizeof value) == 0);
    FAILS(ENOENT, setsockopt(b, SOL_SOCKET, SO_DETACH_FILTER, &value, sizeof value));
    CHECK(attach(b, cut, 1) == 0 && setsockopt(b, SOL_SOCKET, SO_LOCK_FILTER, &value, sizeof value) == 0);
    FAILS(EPERM, attach(b, cut, 1));
    FAILS(EPERM, setsockopt(b, SOL_SOCKET, SO_DETACH_FILTER, &value, sizeof value));
    close(a), close(b);

    /* On local datagrams. */
    int pair[2];
    CHECK(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0, pair) == 0);
    struct sock_filter first[] = {
        BPF_STMT(BPF_LD | BPF_B | BPF_ABS, 0), BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 'k', 0, 1),
        BPF_STMT(BPF_RET | BPF_K, 3), BPF_STMT(BPF_RET | BPF_K, 0),
    };
    CHECK(attach(pair[1], first, 4) == 0);
    CHECK(send(pair[0], "drop", 4, 0) == 4 && send(pair[0], "keep", 4, 0) == 4);
    CHECK(recv(pair[1], data, sizeof data, 0) == 3 && !memcmp(data, "kee", 3));
    FAILS(EAGAIN, recv(pair[1], data, sizeof data, 0));
    close(pair[0]), close(pair[1]);
}

static void route(void)
{
    int fd = netlink(NETLINK_ROUTE, 0);
    struct {
        struct nlmsghdr h;
        struct ifinfomsg i;
    } ask = {{.nlmsg_len = sizeof ask, .nlmsg_type = RTM_GETLINK, .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP, .nlmsg_seq = 5}, {0}};
    CHECK(send_to(fd, 0, 0, &ask, sizeof ask) == sizeof ask);
    int found = 0, done = 0;
    for (int i = 0; i < 10 && !done; i++) {
        struct message m = take(fd, 0);
        int left = m.len;
        for (struct nlmsghdr *h = (void *)m.data; NLMSG_OK(h, left); h = NLMSG_NEXT(h, left)) {
            CHECK(h->nlmsg_seq == 5 && h->nlmsg_pid == port(fd) && h->nlmsg_flags & NLM_F_MULTI);
            done |= h->nlmsg_type == NLMSG_DONE;
            struct ifinfomsg *info = NLMSG_DATA(h);
            if (h->nlmsg_type == RTM_NEWLINK && info->ifi_index == 1)
                found = info->ifi_type == 772 && info->ifi_flags & IFF_LOOPBACK;
        }
    }
    CHECK(found && done);
    ask.h.nlmsg_flags = NLM_F_REQUEST, ask.i.ifi_index = 1;
    CHECK(send_to(fd, 0, 0, &ask, sizeof ask) == sizeof ask);
    struct message m = take(fd, 0);
    CHECK(((struct nlmsghdr *)m.data)->nlmsg_type == RTM_NEWLINK);
    ask.i.ifi_index = 4711;
    CHECK(send_to(fd, 0, 0, &ask, sizeof ask) == sizeof ask);
    m = take(fd, 0);
    struct nlmsgerr *e = NLMSG_DATA((struct nlmsghdr *)m.data);
    CHECK(((struct nlmsghdr *)m.data)->nlmsg_type == NLMSG_ERROR && e->error == -ENODEV && m.len == 36 + 16);
    ask.h.nlmsg_type = 124;
    CHECK(send_to(fd, 0, 0, &ask, sizeof ask) == sizeof ask);
    m = take(fd, 0);
    CHECK(e->error == -EOPNOTSUPP);
    close(fd);
    CHECK(if_nametoindex("lo") == 1);
    FAILS(ENODEV, if_nametoindex("nosuch") ? 0 : -1);
    char name[IF_NAMESIZE];
    CHECK(if_indextoname(1, name) && !strcmp(name, "lo"));
    FAILS(ENXIO, if_indextoname(4711, name) ? 0 : -1);
    struct ifaddrs *list;
    CHECK(getifaddrs(&list) == 0);
    freeifaddrs(list);
}

int main(void)
{
    arguments();
    uevents();
    groups();
    unprivileged();
    overrun();
    filters();
    route();
    return check_done();
}
