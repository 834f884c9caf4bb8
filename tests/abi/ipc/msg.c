/* System V message queues: types, sizes, waits, removal, permissions, what IPC_STAT says. */
#include "../check.h"
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/wait.h>
#include <unistd.h>

struct message {
    long type;
    char text[8200];
};

static int send_text(int q, long type, const char *text, int flags)
{
    struct message m = { type };
    strcpy(m.text, text);
    return msgsnd(q, &m, strlen(text), flags);
}

/* The text received, or the errno's name. */
static const char *take(int q, long type, int flags)
{
    static struct message m;
    int n = msgrcv(q, &m, sizeof m.text - 1, type, flags | IPC_NOWAIT);
    if (n < 0)
        return errno == ENOMSG ? "ENOMSG" : errno == EACCES ? "EACCES" : errno == EIDRM ? "EIDRM" : "other";
    m.text[n] = 0;
    return m.text;
}

#define IS(expected, expr) CHECK(strcmp(expr, expected) == 0)

static void order(void)
{
    int q = msgget(IPC_PRIVATE, 0600);
    CHECK(q >= 0);
    const struct { long type; const char *text; } all[] = { { 5, "a" }, { 3, "b" }, { 5, "c" }, { 9, "d" }, { 3, "e" }, { 7, "" } };
    for (int i = 0; i < 6; i++)
        CHECK(send_text(q, all[i].type, all[i].text, 0) == 0);
    IS("c", take(q, 2, MSG_COPY));
    IS("ENOMSG", take(q, 6, MSG_COPY));
    FAILS(EINVAL, msgrcv(q, 0, 0, 0, MSG_COPY));
    FAILS(EINVAL, msgrcv(q, 0, 0, 0, MSG_COPY | MSG_EXCEPT | IPC_NOWAIT));
    IS("b", take(q, -4, 0));
    IS("a", take(q, 0, 0));
    IS("d", take(q, 9, 0));
    IS("e", take(q, 5, MSG_EXCEPT));
    IS("ENOMSG", take(q, 9, 0));
    IS("ENOMSG", take(q, -2, 0));
    IS("c", take(q, -100, 0));
    IS("", take(q, 0, 0));
    IS("ENOMSG", take(q, 0, 0));
    CHECK(msgctl(q, IPC_RMID, 0) == 0);
    FAILS(EINVAL, msgctl(q, IPC_RMID, 0));
}

static void sizes(void)
{
    struct message m = { 1 };
    struct msqid_ds ds;
    int q = msgget(IPC_PRIVATE, 0600);
    FAILS(EINVAL, msgsnd(q, &m, 8193, 0));
    FAILS(EINVAL, msgsnd(q, &m, -1, 0));
    m.type = 0;
    FAILS(EINVAL, msgsnd(q, &m, 1, 0));
    m.type = 1;
    FAILS(EFAULT, msgsnd(q, (void *)8, 1, 0));
    FAILS(EINVAL, msgsnd(-1, &m, 1, 0));
    CHECK(msgsnd(q, &m, 8192, 0) == 0 && msgsnd(q, &m, 8192, 0) == 0);
    FAILS(EAGAIN, msgsnd(q, &m, 1, IPC_NOWAIT));
    FAILS(E2BIG, msgrcv(q, &m, 100, 0, 0));
    CHECK(msgrcv(q, &m, 100, 0, MSG_NOERROR) == 100);
    FAILS(EINVAL, msgrcv(q, &m, -1, 0, 0));
    CHECK(msgctl(q, IPC_STAT, &ds) == 0 && ds.msg_qnum == 1 && ds.__msg_cbytes == 8192 && ds.msg_qbytes == 16384 &&
          ds.msg_lspid == getpid() && ds.msg_lrpid == getpid() && ds.msg_stime > 0 && ds.msg_perm.mode == 0600);
    ds.msg_qbytes = 8192;
    CHECK(msgctl(q, IPC_SET, &ds) == 0);
    FAILS(EAGAIN, msgsnd(q, &m, 1, IPC_NOWAIT));
    ds.msg_qbytes = 100000;
    CHECK(msgctl(q, IPC_SET, &ds) == 0 && msgsnd(q, &m, 8192, IPC_NOWAIT) == 0);
    struct msginfo info;
    CHECK(msgctl(0, IPC_INFO, (void *)&info) >= 0 && info.msgmax == 8192 && info.msgmnb == 16384);
    CHECK(msgctl(0, MSG_INFO, (void *)&info) >= 0 && info.msgpool >= 1 && info.msgmap >= 2);
    msgctl(q, IPC_RMID, 0);
}

static void on_alarm(int s) { (void)s; }

static void waits(void)
{
    int q = msgget(IPC_PRIVATE, 0600), s;
    struct message m;
    pid_t pid = fork();
    if (pid == 0) {
        int n = msgrcv(q, &m, sizeof m.text, 4, 0);
        _exit(n == 5 && !memcmp(m.text, "hello", 5) ? 0 : 1);
    }
    usleep(50000);
    send_text(q, 3, "other", 0);
    send_text(q, 4, "hello", 0);
    CHECK(waitpid(pid, &s, 0) == pid && s == 0);
    take(q, 0, 0);
    m.type = 1;
    while (msgsnd(q, &m, 4096, IPC_NOWAIT) == 0)
        ;
    pid = fork();
    if (pid == 0)
        _exit(msgsnd(q, &m, 4096, 0) == 0 ? 0 : 1);
    usleep(50000);
    CHECK(msgrcv(q, &m, sizeof m.text, 0, 0) == 4096);
    CHECK(waitpid(pid, &s, 0) == pid && s == 0);
    pid = fork();
    if (pid == 0) {
        msgsnd(q, &m, 4096, 0);
        _exit(errno == EIDRM ? 0 : 1);
    }
    pid_t other = fork();
    if (other == 0) {
        msgrcv(q, &m, sizeof m.text, 1234, 0);
        _exit(errno == EIDRM ? 0 : 1);
    }
    usleep(100000);
    msgctl(q, IPC_RMID, 0);
    CHECK(waitpid(pid, &s, 0) == pid && s == 0);
    CHECK(waitpid(other, &s, 0) == other && s == 0);
    q = msgget(IPC_PRIVATE, 0600);
    struct sigaction sa = { .sa_handler = on_alarm, .sa_flags = SA_RESTART };
    sigaction(SIGALRM, &sa, 0);
    ualarm(50000, 0);
    FAILS(EINTR, msgrcv(q, &m, 10, 0, 0));
    msgctl(q, IPC_RMID, 0);
}

static void keys_and_rights(void)
{
    key_t key = 0x4d534721;
    FAILS(ENOENT, msgget(key, 0));
    int q = msgget(key, IPC_CREAT | IPC_EXCL | 0600);
    CHECK(q >= 0 && msgget(key, 0) == q && msgget(key, IPC_CREAT | 0600) == q);
    FAILS(EEXIST, msgget(key, IPC_CREAT | IPC_EXCL));
    int s;
    pid_t pid = fork();
    if (pid == 0) {
        struct msqid_ds ds;
        setgid(1000);
        setuid(1000);
        FAILS(EACCES, send_text(q, 1, "x", 0));
        IS("EACCES", take(q, 0, 0));
        FAILS(EACCES, msgget(key, 0600));
        FAILS(EACCES, msgctl(q, IPC_STAT, &ds));
        FAILS(EPERM, msgctl(q, IPC_RMID, 0));
        fflush(stdout);
        _exit(check_failures);
    }
    CHECK(waitpid(pid, &s, 0) == pid && s == 0);
    CHECK(msgctl(q, IPC_RMID, 0) == 0);
    FAILS(ENOENT, msgget(key, 0));
}

/* Many senders and receivers; nothing is lost or doubled. */
static void storm(void)
{
    enum { N = 4, EACH = 500 };
    int q = msgget(IPC_PRIVATE, 0600);
    pid_t pids[2 * N];
    for (int i = 0; i < N; i++) {
        if ((pids[i] = fork()) == 0) {
            for (int k = 0; k < EACH; k++) {
                struct { long type; int value; } m = { i + 1, k };
                if (msgsnd(q, &m, sizeof(int), 0) < 0)
                    _exit(1);
            }
            _exit(0);
        }
        if ((pids[N + i] = fork()) == 0) {
            for (int k = 0; k < EACH; k++) {
                struct { long type; int value; } m;
                if (msgrcv(q, &m, sizeof(int), i + 1, 0) != sizeof(int) || m.value != k)
                    _exit(1);
            }
            _exit(0);
        }
    }
    for (int i = 0; i < 2 * N; i++) {
        int s;
        CHECK(waitpid(pids[i], &s, 0) == pids[i] && s == 0);
    }
    IS("ENOMSG", take(q, 0, 0));
    msgctl(q, IPC_RMID, 0);
}

/* The number that a queue had when it was saved. */
static void restored(void)
{
    int fd = open("/proc/sys/kernel/msg_next_id", O_RDWR), q = msgget(IPC_PRIVATE, 0600);
    CHECK(fd >= 0 && q >= 0 && msgctl(q, IPC_RMID, 0) == 0);
    char text[16];
    int len = snprintf(text, sizeof text, "%d", q + 5 * 32768);
    CHECK(write(fd, text, len) == len);
    CHECK(msgget(IPC_PRIVATE, 0600) == q + 5 * 32768);
    CHECK(msgctl(q + 5 * 32768, IPC_RMID, 0) == 0);
    CHECK(pread(fd, text, sizeof text, 0) == 3 && memcmp(text, "-1\n", 3) == 0);
    CHECK(pwrite(fd, "-1", 2, 0) == -1 && errno == EINVAL);
    close(fd);
}

int main(void)
{
    order();
    sizes();
    waits();
    keys_and_rights();
    storm();
    restored();
    return check_done();
}
