/* NETLINK_SOCK_DIAG: sockets are listed and found, with the numbers that fstat(2) and SO_COOKIE tell. */
#include "../check.h"
#include <arpa/inet.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sock_diag.h>
#include <linux/unix_diag.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

static int nl;
static char answer[65536];

static ino_t inode(int fd)
{
    struct stat st;
    CHECK(fstat(fd, &st) == 0);
    return st.st_ino;
}

static uint64_t cookie(int fd)
{
    uint64_t value = 0;
    socklen_t len = sizeof value;
    CHECK(getsockopt(fd, SOL_SOCKET, SO_COOKIE, &value, &len) == 0 && len == sizeof value);
    return value;
}

/* Sends a request, and calls `each` with every message of the answer; the error of a refused one. */
static int ask(int flags, const void *body, size_t len, const void *filter, size_t filter_len, void (*each)(struct nlmsghdr *))
{
    struct {
        struct nlmsghdr h;
        char body[256];
    } request = {.h = {.nlmsg_type = SOCK_DIAG_BY_FAMILY, .nlmsg_flags = NLM_F_REQUEST | flags, .nlmsg_seq = 7}};
    memcpy(request.body, body, len);
    if (filter) {
        struct rtattr *attribute = (struct rtattr *)(request.body + len);
        attribute->rta_type = INET_DIAG_REQ_BYTECODE;
        attribute->rta_len = RTA_LENGTH(filter_len);
        memcpy(RTA_DATA(attribute), filter, filter_len);
        len += RTA_SPACE(filter_len);
    }
    request.h.nlmsg_len = NLMSG_LENGTH(len);
    CHECK(send(nl, &request, request.h.nlmsg_len, 0) == (ssize_t)request.h.nlmsg_len);
    for (;;) {
        int n = recv(nl, answer, sizeof answer, 0);
        CHECK(n > 0);
        if (n <= 0)
            return -1;
        for (struct nlmsghdr *h = (void *)answer; NLMSG_OK(h, n); h = NLMSG_NEXT(h, n)) {
            if (h->nlmsg_type == NLMSG_DONE)
                return 0;
            if (h->nlmsg_type == NLMSG_ERROR)
                return -((struct nlmsgerr *)NLMSG_DATA(h))->error;
            CHECK(h->nlmsg_type == SOCK_DIAG_BY_FAMILY && h->nlmsg_seq == 7);
            each(h);
            if (!(flags & NLM_F_DUMP))
                return 0;
        }
    }
}

static const void *attribute(struct nlmsghdr *h, size_t head, int type, size_t *len)
{
    int left = h->nlmsg_len - NLMSG_LENGTH(head);
    for (struct rtattr *a = (void *)((char *)NLMSG_DATA(h) + head); RTA_OK(a, left); a = RTA_NEXT(a, left))
        if (a->rta_type == type) {
            *len = RTA_PAYLOAD(a);
            return RTA_DATA(a);
        }
    return NULL;
}

static int listener, client, server, udp, local[2], named;
static struct sockaddr_in place;
static int listeners, ends, datagrams, pairs, names, others;

static void inet(struct nlmsghdr *h)
{
    struct inet_diag_msg *m = NLMSG_DATA(h);
    CHECK(m->idiag_family == AF_INET);
    if (m->idiag_inode == inode(listener)) {
        listeners++;
        CHECK(m->idiag_state == TCP_LISTEN && m->id.idiag_sport == place.sin_port && m->id.idiag_dport == 0);
        CHECK(m->id.idiag_src[0] == htonl(INADDR_LOOPBACK) && m->idiag_rqueue == 0 && m->idiag_wqueue == 5);
        CHECK(m->id.idiag_cookie[0] == (uint32_t)cookie(listener) && m->id.idiag_cookie[1] == cookie(listener) >> 32);
    } else if (m->idiag_inode == inode(client)) {
        ends++;
        CHECK(m->idiag_state == TCP_ESTABLISHED && m->id.idiag_dport == place.sin_port && m->idiag_uid == getuid());
    } else if (m->idiag_inode == inode(server)) {
        ends++;
        CHECK(m->idiag_rqueue == 3 && m->id.idiag_sport == place.sin_port);
    } else if (m->idiag_inode == inode(udp)) {
        datagrams++;
        CHECK(m->idiag_state == TCP_CLOSE);
    } else {
        others++;
    }
}

static void unix_sockets(struct nlmsghdr *h)
{
    struct unix_diag_msg *m = NLMSG_DATA(h);
    size_t len = 0;
    CHECK(m->udiag_family == AF_UNIX);
    if (m->udiag_ino == inode(local[0])) {
        pairs++;
        CHECK(m->udiag_type == SOCK_STREAM && m->udiag_state == TCP_ESTABLISHED);
        const uint32_t *peer = attribute(h, sizeof *m, UNIX_DIAG_PEER, &len);
        CHECK(peer && *peer == inode(local[1]));
        const struct unix_diag_rqlen *queue = attribute(h, sizeof *m, UNIX_DIAG_RQLEN, &len);
        CHECK(queue && queue->udiag_rqueue == 2);
        const uint32_t *uid = attribute(h, sizeof *m, UNIX_DIAG_UID, &len);
        CHECK(uid && *uid == getuid());
    } else if (m->udiag_ino == inode(named)) {
        names++;
        const char *name = attribute(h, sizeof *m, UNIX_DIAG_NAME, &len);
        CHECK(name && len == 6 && memcmp(name, "\0diag!", 6) == 0);
        CHECK(m->udiag_state == TCP_LISTEN && !attribute(h, sizeof *m, UNIX_DIAG_PEER, &len));
    } else {
        others++;
    }
}

int main(void)
{
    nl = socket(AF_NETLINK, SOCK_RAW, NETLINK_SOCK_DIAG);
    CHECK(nl >= 0);
    place = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof place;
    listener = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(bind(listener, (void *)&place, len) == 0 && listen(listener, 5) == 0 && getsockname(listener, (void *)&place, &len) == 0);
    client = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(connect(client, (void *)&place, len) == 0);
    server = accept(listener, NULL, NULL);
    CHECK(send(client, "abc", 3, 0) == 3);
    udp = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in any = {.sin_family = AF_INET};
    CHECK(bind(udp, (void *)&any, sizeof any) == 0);
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, local) == 0 && send(local[1], "xy", 2, 0) == 2);
    named = socket(AF_UNIX, SOCK_SEQPACKET, 0);
    struct sockaddr_un name = {.sun_family = AF_UNIX, .sun_path = "\0diag!"};
    CHECK(bind(named, (void *)&name, sizeof(sa_family_t) + 6) == 0 && listen(named, 1) == 0);
    CHECK(cookie(client) != cookie(server));
    FAILS(ENOPROTOOPT, setsockopt(udp, SOL_SOCKET, SO_COOKIE, &(uint64_t){1}, 8));

    struct inet_diag_req_v2 request = {.sdiag_family = AF_INET, .sdiag_protocol = IPPROTO_TCP, .idiag_states = -1};
    CHECK(ask(NLM_F_DUMP, &request, sizeof request, NULL, 0, inet) == 0);
    CHECK(listeners == 1 && ends == 2 && datagrams == 0);
    listeners = ends = others = 0;
    request.idiag_states = 1 << TCP_LISTEN;
    request.id.idiag_sport = place.sin_port;
    CHECK(ask(NLM_F_DUMP, &request, sizeof request, NULL, 0, inet) == 0);
    CHECK(listeners == 1 && ends == 0 && others == 0);

    /* A filter, as ss makes it of `sport = :PORT`. */
    listeners = others = 0;
    request = (struct inet_diag_req_v2){.sdiag_family = AF_INET, .sdiag_protocol = IPPROTO_TCP, .idiag_states = -1};
    struct inet_diag_bc_op port[] = {{INET_DIAG_BC_S_GE, 8, 20}, {0, 0, ntohs(place.sin_port)}, {INET_DIAG_BC_S_LE, 8, 12}, {0, 0, ntohs(place.sin_port)}};
    CHECK(ask(NLM_F_DUMP, &request, sizeof request, port, sizeof port, inet) == 0);
    CHECK(listeners == 1 && ends == 1 && others == 0);
    struct {
        struct inet_diag_bc_op op;
        struct inet_diag_hostcond host;
        uint32_t address;
    } host = {{INET_DIAG_BC_D_COND, sizeof host, sizeof host + 4}, {AF_INET, 8, ntohs(place.sin_port)}, htonl(0x7f010203)};
    listeners = ends = others = 0;
    CHECK(ask(NLM_F_DUMP, &request, sizeof request, &host, sizeof host, inet) == 0);
    CHECK(listeners == 0 && ends == 1 && others == 0);
    struct inet_diag_bc_op endless = {INET_DIAG_BC_JMP, 4, 0};
    CHECK(ask(NLM_F_DUMP, &request, sizeof request, &endless, sizeof endless, inet) == EINVAL);
    struct inet_diag_bc_op far = {INET_DIAG_BC_NOP, 252, 0};
    CHECK(ask(NLM_F_DUMP, &request, sizeof request, &far, sizeof far, inet) == EINVAL);

    /* One of them. */
    listeners = ends = others = 0;
    request.id = (struct inet_diag_sockid){.idiag_sport = place.sin_port, .idiag_src = {htonl(INADDR_LOOPBACK)}, .idiag_cookie = {-1, -1}};
    CHECK(ask(0, &request, sizeof request, NULL, 0, inet) == 0 && listeners == 1);
    request.id.idiag_cookie[0] = cookie(client);
    request.id.idiag_cookie[1] = cookie(client) >> 32;
    CHECK(ask(0, &request, sizeof request, NULL, 0, inet) == ENOENT);

    request = (struct inet_diag_req_v2){.sdiag_family = AF_INET, .sdiag_protocol = IPPROTO_UDP, .idiag_states = -1};
    CHECK(ask(NLM_F_DUMP, &request, sizeof request, NULL, 0, inet) == 0 && datagrams == 1);
    request.sdiag_family = 255;
    CHECK(ask(NLM_F_DUMP, &request, sizeof request, NULL, 0, inet) == EINVAL);
    CHECK(ask(NLM_F_DUMP, &request, 1, NULL, 0, inet) == EINVAL);

    struct unix_diag_req local_request = {.sdiag_family = AF_UNIX, .udiag_states = -1, .udiag_show = UDIAG_SHOW_NAME | UDIAG_SHOW_PEER | UDIAG_SHOW_RQLEN | UDIAG_SHOW_UID};
    CHECK(ask(NLM_F_DUMP, &local_request, sizeof local_request, NULL, 0, unix_sockets) == 0);
    CHECK(pairs == 1 && names == 1);
    CHECK(ask(0, &local_request, sizeof local_request, NULL, 0, unix_sockets) == EINVAL);
    local_request.udiag_ino = inode(named);
    local_request.udiag_cookie[0] = cookie(named);
    local_request.udiag_cookie[1] = cookie(named) >> 32;
    CHECK(ask(0, &local_request, sizeof local_request, NULL, 0, unix_sockets) == 0 && names == 2);
    local_request.udiag_cookie[0]++;
    CHECK(ask(0, &local_request, sizeof local_request, NULL, 0, unix_sockets) == ESTALE);
    return check_done();
}
