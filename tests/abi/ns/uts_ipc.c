/* UTS and IPC namespaces: unshare(2), setns(2), clone(2), uts_namespaces(7), ipc_namespaces(7). As root. */
#include "../check.h"
#include <fcntl.h>
#include <mqueue.h>
#include <sched.h>
#include <signal.h>
#include <sys/ipc.h>
#include <sys/mount.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#define KEY 0x75727361

static int read_text(const char *path, char *text, size_t size)
{
    int fd = open(path, O_RDONLY);
    ssize_t n = fd < 0 ? -1 : read(fd, text, size - 1);
    text[n > 0 ? n : 0] = 0;
    close(fd);
    return n > 0;
}

static int write_text(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY);
    int ok = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);
    close(fd);
    return ok;
}

static int lines(const char *path)
{
    FILE *in = fopen(path, "r");
    int n = 0;
    for (int c; in && (c = fgetc(in)) != EOF;)
        n += c == '\n';
    if (in)
        fclose(in);
    return n;
}

static void names(void)
{
    struct utsname before, now;
    char text[128];
    CHECK(uname(&before) == 0);
    int old = open("/proc/self/ns/uts", O_RDONLY);
    struct stat a, b;
    CHECK(fstat(old, &a) == 0);
    CHECK(unshare(CLONE_NEWUTS) == 0);
    CHECK(stat("/proc/self/ns/uts", &b) == 0 && a.st_ino != b.st_ino && a.st_dev == b.st_dev);
    CHECK(uname(&now) == 0 && !memcmp(&before, &now, sizeof now));
    CHECK(sethostname("inside", 6) == 0 && setdomainname("in.side", 7) == 0);
    CHECK(uname(&now) == 0 && !strcmp(now.nodename, "inside") && !strcmp(now.domainname, "in.side"));
    CHECK(read_text("/proc/sys/kernel/hostname", text, sizeof text) && !strcmp(text, "inside\n"));
    CHECK(write_text("/proc/sys/kernel/hostname", "again") && uname(&now) == 0 && !strcmp(now.nodename, "again"));
    int new = open("/proc/self/ns/uts", O_RDONLY);
    CHECK(setns(old, CLONE_NEWUTS) == 0 && uname(&now) == 0 && !strcmp(now.nodename, before.nodename));
    FAILS(EINVAL, setns(new, CLONE_NEWIPC));
    CHECK(setns(new, 0) == 0 && uname(&now) == 0 && !strcmp(now.nodename, "again"));
    FAILS(EINVAL, sethostname(text, 65));
    CHECK(setuid(65534) == 0);
    FAILS(EPERM, unshare(CLONE_NEWUTS));
    FAILS(EPERM, setns(old, 0));
    FAILS(EPERM, sethostname("x", 1));
}

static void sysv(void)
{
    char text[512];
    int shm = shmget(KEY, 4096, IPC_CREAT | 0600), sem = semget(KEY, 1, IPC_CREAT | 0600), msg = msgget(KEY, IPC_CREAT | 0600);
    CHECK(shm >= 0 && sem >= 0 && msg >= 0);
    char *kept = shmat(shm, NULL, 0);
    CHECK(kept != (char *)-1);
    strcpy(kept, "kept");
    struct sembuf up = {0, 2, SEM_UNDO};
    CHECK(semop(sem, &up, 1) == 0 && semctl(sem, 0, GETVAL) == 2);
    int listed = lines("/proc/sysvipc/shm");
    int table = open("/proc/sysvipc/shm", O_RDONLY), old = open("/proc/self/ns/ipc", O_RDONLY);
    CHECK(listed >= 2);
    FAILS(EINVAL, syscall(SYS_clone, CLONE_NEWIPC | CLONE_SYSVSEM | SIGCHLD, 0, 0, 0, 0));
    CHECK(unshare(CLONE_NEWIPC) == 0);
    FAILS(ENOENT, shmget(KEY, 4096, 0));
    FAILS(ENOENT, semget(KEY, 1, 0));
    FAILS(ENOENT, msgget(KEY, 0));
    FAILS(EINVAL, shmctl(shm, IPC_STAT, (struct shmid_ds *)text));
    CHECK(lines("/proc/sysvipc/shm") == 1 && lines("/proc/sysvipc/sem") == 1 && lines("/proc/sysvipc/msg") == 1);
    /* An attachment stays, and so does what an open table shows. */
    CHECK(!strcmp(kept, "kept"));
    ssize_t n = read(table, text, sizeof text - 1);
    text[n > 0 ? n : 0] = 0;
    CHECK(n > 0 && strchr(text, '\n') && strchr(text, '\n')[1]);
    int first = msgget(IPC_PRIVATE, 0600);
    CHECK(first == 0);
    struct {
        long type;
        char text[4];
    } message = {1, "abc"};
    CHECK(msgsnd(first, &message, 4, 0) == 0);
    CHECK(write_text("/proc/sys/kernel/shm_next_id", "99"));
    CHECK(shmget(IPC_PRIVATE, 1, 0600) == 99);
    int new = open("/proc/self/ns/ipc", O_RDONLY);
    CHECK(setns(old, CLONE_NEWIPC) == 0);
    CHECK(shmget(KEY, 4096, 0) == shm && semget(KEY, 1, 0) == sem && msgget(KEY, 0) == msg);
    /* Leaving the namespace paid what SEM_UNDO owed. */
    CHECK(semctl(sem, 0, GETVAL) == 0);
    CHECK(shmdt(kept) == 0);
    CHECK(setns(new, 0) == 0 && msgrcv(first, &message, 4, 0, IPC_NOWAIT) == 4);
    CHECK(setns(old, 0) == 0);
    CHECK(shmctl(shm, IPC_RMID, NULL) == 0 && semctl(sem, 0, IPC_RMID) == 0 && msgctl(msg, IPC_RMID, NULL) == 0);
}

static void removed_while_attached(void)
{
    int old = open("/proc/self/ns/ipc", O_RDONLY);
    CHECK(unshare(CLONE_NEWIPC) == 0);
    int shm = shmget(IPC_PRIVATE, 4096, 0600);
    char *at = shmat(shm, NULL, 0);
    CHECK(at != (char *)-1 && shmctl(shm, IPC_RMID, NULL) == 0);
    struct sembuf up = {0, 1, SEM_UNDO};
    int sem = semget(IPC_PRIVATE, 1, 0600);
    CHECK(semop(sem, &up, 1) == 0);
    /* The namespace ends; the memory does not. */
    CHECK(setns(old, 0) == 0);
    strcpy(at, "still");
    CHECK(!strcmp(at, "still") && shmdt(at) == 0);
}

static void queues(void)
{
    struct mq_attr attr = {.mq_maxmsg = 4, .mq_msgsize = 16};
    char text[64];
    struct stat st;
    mqd_t q = mq_open("/ursa_ns", O_CREAT | O_RDWR, 0600, &attr);
    CHECK(q >= 0);
    int old = open("/proc/self/ns/ipc", O_RDONLY);
    CHECK(unshare(CLONE_NEWIPC | CLONE_NEWNS) == 0);
    CHECK(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0);
    FAILS(ENOENT, mq_open("/ursa_ns", O_RDWR));
    /* An open queue goes on. */
    CHECK(mq_send(q, "hello", 6, 0) == 0);
    CHECK(mkdir("mq", 0755) == 0 && mount("none", "mq", "mqueue", 0, NULL) == 0);
    FAILS(ENOENT, stat("mq/ursa_ns", &st));
    mqd_t own = mq_open("/own", O_CREAT | O_RDWR, 0600, &attr);
    CHECK(own >= 0 && stat("mq/own", &st) == 0);
    CHECK(write_text("/proc/sys/fs/mqueue/msg_max", "77"));
    CHECK(setns(old, 0) == 0);
    CHECK(read_text("/proc/sys/fs/mqueue/msg_max", text, sizeof text) && strcmp(text, "77\n"));
    FAILS(ENOENT, mq_open("/own", O_RDWR));
    /* The mount shows the namespace that it was made in, whoever looks. */
    CHECK(stat("mq/own", &st) == 0);
    FAILS(ENOENT, stat("mq/ursa_ns", &st));
    CHECK(mq_close(own) == 0 && umount("mq") == 0 && rmdir("mq") == 0);
    CHECK(mq_receive(q, text, 16, NULL) == 6 && !strcmp(text, "hello"));
    CHECK(mq_close(q) == 0 && mq_unlink("/ursa_ns") == 0);
}

int main(void)
{
    check_in_child(names);
    check_in_child(sysv);
    check_in_child(removed_while_attached);
    check_in_child(queues);
    return check_done();
}
