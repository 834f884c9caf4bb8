/* Mount namespaces, their files and propagation: unshare(2), setns(2), clone(2), pivot_root(2), mount_namespaces(7), ioctl_ns(2).
 * As root, in an empty directory. */
#include "../check.h"
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#define NS_GET_USERNS 0xb701
#define NS_GET_PARENT 0xb702
#define NS_GET_NSTYPE 0xb703
#define NS_GET_OWNER_UID 0xb704
#define NS_GET_MNTNS_ID 0x8008b705UL
#define NS_MNT_GET_INFO 0x8010b70aUL
#define NS_MNT_GET_NEXT 0x8010b70bUL
#define NS_MNT_GET_PREV 0x8010b70cUL
#define NSFS_MAGIC 0x6e736673

static char base[4096];

static int exists(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0;
}

static void dir(const char *path)
{
    CHECK(mkdir(path, 0755) == 0);
}

static void touch(const char *path)
{
    CHECK(close(open(path, O_CREAT | O_WRONLY, 0644)) == 0);
}

static void tmpfs(const char *path)
{
    CHECK(mount("test", path, "tmpfs", 0, "") == 0);
}

static void bind(const char *from, const char *to)
{
    CHECK(mount(from, to, NULL, MS_BIND, NULL) == 0);
}

static void make(const char *path, unsigned long how)
{
    CHECK(mount(NULL, path, NULL, how, NULL) == 0);
}

/* The optional fields of the topmost mount at `path`: group, master, propagate_from, unbindable. 0 when it is not there. */
struct fields {
    int found, shared, master, from, unbindable, id, parent;
};

static struct fields fields_in(const char *table, const char *path)
{
    char line[8192], full[4200], point[4096];
    snprintf(full, sizeof full, path[0] == '/' ? "%s%s" : "%s/%s", path[0] == '/' ? "" : base, path);
    struct fields f = {0};
    FILE *in = fopen(table, "r");
    CHECK(in != NULL);
    while (in && fgets(line, sizeof line, in)) {
        int id, parent, at;
        if (sscanf(line, "%d %d %*s %*s %4095s %*s%n", &id, &parent, point, &at) < 3 || strcmp(point, full))
            continue;
        f = (struct fields){.found = 1, .id = id, .parent = parent};
        for (char *word = strtok(line + at, " "); word && strcmp(word, "-"); word = strtok(NULL, " ")) {
            sscanf(word, "shared:%d", &f.shared);
            sscanf(word, "master:%d", &f.master);
            sscanf(word, "propagate_from:%d", &f.from);
            f.unbindable |= !strcmp(word, "unbindable");
        }
    }
    if (in)
        fclose(in);
    return f;
}

static struct fields fields(const char *path)
{
    return fields_in("/proc/self/mountinfo", path);
}

static unsigned long namespace_of(const char *name)
{
    struct stat st = {0};
    CHECK(stat(name, &st) == 0);
    return st.st_ino;
}

static void files(void)
{
    char text[64], expected[64];
    ssize_t n = readlink("/proc/self/ns/mnt", text, sizeof text - 1);
    CHECK(n > 0);
    text[n > 0 ? n : 0] = 0;
    unsigned long before = namespace_of("/proc/self/ns/mnt");
    snprintf(expected, sizeof expected, "mnt:[%lu]", before);
    CHECK(!strcmp(text, expected));
    int fd = open("/proc/self/ns/mnt", O_RDONLY);
    struct statfs fs;
    CHECK(fd >= 0 && fstatfs(fd, &fs) == 0 && fs.f_type == NSFS_MAGIC);
    CHECK(ioctl(fd, NS_GET_NSTYPE) == CLONE_NEWNS);
    FAILS(EINVAL, ioctl(fd, NS_GET_PARENT));
    FAILS(EINVAL, ioctl(fd, NS_GET_OWNER_UID, text));
    FAILS(ENOTTY, ioctl(fd, 0xb7ff));
    uint64_t id = 0;
    CHECK(ioctl(fd, NS_GET_MNTNS_ID, &id) == 0 && id != 0);
    int user = ioctl(fd, NS_GET_USERNS);
    CHECK(user >= 0 && ioctl(user, NS_GET_NSTYPE) == CLONE_NEWUSER && fcntl(user, F_GETFD) == FD_CLOEXEC);
    FAILS(EPERM, ioctl(user, NS_GET_PARENT));
    uid_t owner = 1;
    CHECK(ioctl(user, NS_GET_OWNER_UID, &owner) == 0 && owner == 0);
    FAILS(EINVAL, ioctl(user, NS_GET_MNTNS_ID, &id));
    FAILS(EINVAL, setns(user, 0));
    struct {
        uint32_t size, mounts;
        uint64_t id;
    } info = {0};
    FAILS(EINVAL, ioctl(user, NS_MNT_GET_INFO, &info));
    close(user);
    FAILS(EINVAL, ioctl(fd, NS_MNT_GET_INFO, NULL));
    CHECK(ioctl(fd, NS_MNT_GET_INFO, &info) == 0 && info.size == 16 && info.id == id && info.mounts > 0);

    CHECK(unshare(CLONE_NEWNS) == 0);
    unsigned long after = namespace_of("/proc/self/ns/mnt");
    CHECK(after != before);
    struct stat st;
    CHECK(fstat(fd, &st) == 0 && st.st_ino == before);
    CHECK((st.st_mode & S_IFMT) == S_IFREG && (st.st_mode & 0777) == 0444);
    uint64_t newest = 0, seen = 0;
    int last = open("/proc/self/ns/mnt", O_RDONLY), at = dup(fd), found = 0;
    CHECK(ioctl(last, NS_GET_MNTNS_ID, &newest) == 0);
    for (int next; (next = ioctl(at, NS_MNT_GET_NEXT, &info)) >= 0; at = next) {
        CHECK(info.id > seen && ioctl(next, NS_GET_NSTYPE) == CLONE_NEWNS);
        seen = info.id;
        found |= seen == newest;
        close(at);
    }
    CHECK(errno == ENOENT && found);
    CHECK((at = ioctl(last, NS_MNT_GET_PREV, NULL)) >= 0);
    close(at);
    close(last);
    FAILS(EINVAL, setns(fd, CLONE_NEWUTS));
    FAILS(EINVAL, setns(0, 0));
    FAILS(EBADF, setns(-1, 0));
    CHECK(setns(fd, CLONE_NEWNS) == 0 && namespace_of("/proc/self/ns/mnt") == before);
    close(fd);
}

static void *sleeper(void *arg)
{
    int *pipe = arg;
    char c;
    return read(pipe[0], &c, 1) == 1 ? NULL : NULL;
}

static void rules(void)
{
    int fd = open("/proc/self/ns/mnt", O_RDONLY), ends[2];
    FAILS(EINVAL, unshare(CLONE_NEWNS | 0x8000));
    CHECK(pipe(ends) == 0);
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, sleeper, ends) == 0);
    /* The root directory is shared with the other thread; unshare gives this one its own. */
    FAILS(EINVAL, setns(fd, CLONE_NEWNS));
    CHECK(unshare(CLONE_NEWNS) == 0);
    CHECK(setns(fd, CLONE_NEWNS) == 0);
    CHECK(write(ends[1], "x", 1) == 1 && pthread_join(thread, NULL) == 0);
    CHECK(setgid(65534) == 0 && setuid(65534) == 0);
    FAILS(EPERM, unshare(CLONE_NEWNS));
    FAILS(EPERM, setns(fd, 0));
    FAILS(EPERM, syscall(SYS_clone, CLONE_NEWNS | SIGCHLD, 0, 0, 0, 0));
    FAILS(EPERM, syscall(SYS_pivot_root, "/", "/"));
    FAILS(EPERM, mount("none", "/tmp", "tmpfs", 0, ""));
}

static void private_trees(void)
{
    dir("p");
    tmpfs("p");
    make("p", MS_PRIVATE);
    touch("p/seen");
    CHECK(chdir("p") == 0);
    pid_t pid;
    int go[2], done[2];
    char c;
    CHECK(pipe(go) == 0 && pipe(done) == 0);
    fflush(stdout);
    if ((pid = syscall(SYS_clone, CLONE_NEWNS | SIGCHLD, 0, 0, 0, 0)) == 0) {
        check_failures = 0;
        /* The working directory went to the copy. */
        CHECK(exists("seen"));
        CHECK(chdir("..") == 0);
        CHECK(umount("p") == 0);
        CHECK(!exists("p/seen"));
        tmpfs("p");
        touch("p/theirs");
        CHECK(write(done[1], "x", 1) == 1 && read(go[0], &c, 1) == 1);
        fflush(stdout);
        _exit(check_failures ? 1 : 0);
    }
    CHECK(chdir("..") == 0 && read(done[0], &c, 1) == 1);
    CHECK(exists("p/seen") && !exists("p/theirs"));
    char path[128];
    snprintf(path, sizeof path, "/proc/%d/mountinfo", pid);
    struct fields mine = fields("p"), theirs = fields_in(path, "p");
    CHECK(mine.found && theirs.found && mine.id != theirs.id);
    snprintf(path, sizeof path, "/proc/%d/root%s/p/theirs", pid, base);
    CHECK(exists(path));
    /* What is in another namespace cannot be changed from here. */
    snprintf(path, sizeof path, "/proc/%d/root%s/p", pid, base);
    FAILS(EINVAL, umount(path));
    FAILS(EINVAL, mount("none", path, "tmpfs", 0, ""));
    FAILS(EINVAL, mount(path, "p", NULL, MS_BIND, NULL));
    FAILS(EINVAL, mount(NULL, path, NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL));
    int pidfd = syscall(SYS_pidfd_open, pid, 0);
    FAILS(EINVAL, setns(pidfd, 0));
    FAILS(EINVAL, setns(pidfd, CLONE_FS));
    fflush(stdout);
    if (fork() == 0) {
        check_failures = 0;
        CHECK(setns(pidfd, CLONE_NEWNS) == 0);
        CHECK(getcwd(path, sizeof path) && !strcmp(path, "/"));
        snprintf(path, sizeof path, "%s/p/theirs", base);
        CHECK(exists(path));
        fflush(stdout);
        _exit(check_failures ? 1 : 0);
    }
    int status;
    CHECK(wait(&status) > 0 && status == 0);
    CHECK(write(go[1], "x", 1) == 1);
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    FAILS(ESRCH, setns(pidfd, CLONE_NEWNS));
    close(pidfd);
    CHECK(umount("p") == 0 && rmdir("p") == 0);
}

/* Documentation/filesystems/sharedsubtree.rst */
static void propagation(void)
{
    dir("s");
    tmpfs("s");
    make("s", MS_PRIVATE);
    CHECK(chdir("s") == 0);
    size_t len = strlen(base);
    strcat(base, "/s");
    dir("a"), dir("b"), dir("c"), dir("d");
    tmpfs("a");
    make("a", MS_SHARED);
    dir("a/x"), dir("a/y"), dir("a/sub"), dir("a/sub/in");
    bind("a", "b");
    struct fields a = fields("a"), b = fields("b");
    CHECK(a.shared && a.shared == b.shared && !a.master);
    /* Peers see each other's mounts, which are peers. */
    tmpfs("a/x");
    touch("a/x/f");
    CHECK(exists("b/x/f") && fields("b/x").shared == fields("a/x").shared && fields("a/x").shared);
    CHECK(umount("b/x") == 0);
    CHECK(!exists("a/x/f") && !fields("a/x").found);
    /* A slave follows, and is not followed. */
    bind("a", "c");
    make("c", MS_SLAVE);
    CHECK(fields("c").master == a.shared && !fields("c").shared);
    tmpfs("b/y");
    CHECK(fields("a/y").found && fields("c/y").found && fields("c/y").master == fields("a/y").shared);
    CHECK(umount("c/y") == 0 && fields("a/y").found);
    tmpfs("c/x");
    CHECK(!fields("a/x").found && !fields("b/x").found);
    /* What the slave has is covered from below: the new one comes under it. */
    tmpfs("a/x");
    touch("a/x/below");
    CHECK(!exists("c/x/below"));
    CHECK(umount("c/x") == 0 && exists("c/x/below"));
    CHECK(umount("a/x") == 0 && !fields("c/x").found);
    CHECK(umount("a/y") == 0 && !fields("b/y").found);
    /* A shared slave passes on to its own group; the group's slaves see through. */
    make("c", MS_SHARED);
    bind("c", "d");
    struct fields c = fields("c"), d = fields("d");
    CHECK(c.shared && c.shared == d.shared && c.master == a.shared && d.master == a.shared && c.shared != a.shared);
    tmpfs("a/x");
    CHECK(fields("c/x").shared == fields("d/x").shared && fields("d/x").shared && fields("d/x").master == fields("a/x").shared);
    CHECK(umount("d/x") == 0 && !fields("c/x").found && fields("a/x").found);
    CHECK(umount("a/x") == 0);
    /* Where the place does not show there is no copy. */
    dir("e");
    bind("a/sub", "e");
    CHECK(fields("e").shared == a.shared);
    tmpfs("a/sub/in");
    tmpfs("a/x");
    CHECK(fields("e/in").found && !fields("e/x").found);
    CHECK(umount("e/in") == 0 && !fields("a/sub/in").found);
    CHECK(umount("b/x") == 0 && umount("e") == 0);
    /* What a follower has in it stays. */
    tmpfs("a/x");
    make("c/x", MS_PRIVATE);
    dir("c/x/more");
    tmpfs("c/x/more");
    CHECK(umount("a/x") == 0 && fields("c/x/more").found && fields("c/x").found);
    CHECK(umount("c/x/more") == 0 && umount("c/x") == 0 && rmdir("a/x/more") == -1);
    /* A busy copy keeps the original. */
    tmpfs("a/x");
    int fd = open("b/x", O_RDONLY | O_DIRECTORY);
    FAILS(EBUSY, umount("a/x"));
    close(fd);
    CHECK(umount("a/x") == 0);
    /* Slaves of nobody are private. */
    make("d", MS_PRIVATE);
    CHECK(umount("a") == 0);
    CHECK(fields("c").master == a.shared);
    CHECK(umount("b") == 0);
    CHECK(fields("c").master == 0 && fields("c").shared == c.shared);
    make("c", MS_SLAVE);
    CHECK(!fields("c").shared && !fields("c").master);
    /* Unbindable ones are not bound, and not moved into shared ones. */
    make("c", MS_UNBINDABLE);
    CHECK(fields("c").unbindable);
    FAILS(EINVAL, mount("c", "b", NULL, MS_BIND, NULL));
    FAILS(EINVAL, mount(NULL, "c", NULL, MS_SHARED | MS_PRIVATE, NULL));
    FAILS(EINVAL, mount(NULL, "c/y", NULL, MS_SHARED, NULL));
    tmpfs("b");
    dir("b/in");
    make("b", MS_SHARED);
    FAILS(EINVAL, mount("c", "b/in", NULL, MS_MOVE, NULL));
    make("c", MS_PRIVATE);
    CHECK(!fields("c").unbindable);
    CHECK(mount("c", "b/in", NULL, MS_MOVE, NULL) == 0 && fields("b/in").shared);
    /* Out of a shared parent nothing moves. */
    FAILS(EINVAL, mount("b/in", "c", NULL, MS_MOVE, NULL));
    FAILS(ELOOP, mount("b", "b/in", NULL, MS_MOVE, NULL));
    base[len] = 0;
    CHECK(chdir("..") == 0);
    CHECK(umount2("s", MNT_DETACH) == 0 && rmdir("s") == 0);
}

/* Who stands below a mount does not enter it. */
static void below(void)
{
    dir("w");
    touch("w/under");
    CHECK(chdir("w") == 0);
    tmpfs(".");
    touch("../w/over");
    CHECK(exists("under") && !exists("over") && exists("../w/over"));
    struct stat here, there;
    CHECK(stat(".", &here) == 0 && stat("../w", &there) == 0 && here.st_dev != there.st_dev);
    int fd = open(".", O_PATH);
    CHECK(fstat(fd, &there) == 0 && there.st_dev == here.st_dev);
    FAILS(EINVAL, mount(NULL, ".", NULL, MS_PRIVATE, NULL));
    close(fd);
    /* Unmounting looks for the topmost. */
    CHECK(umount(".") == 0 && !exists("../w/over"));
    CHECK(chdir("..") == 0 && unlink("w/under") == 0 && rmdir("w") == 0);
}

static void across(void)
{
    dir("s");
    tmpfs("s");
    make("s", MS_SHARED);
    dir("s/x"), dir("s/y");
    int up[2], down[2];
    char c;
    CHECK(pipe(up) == 0 && pipe(down) == 0);
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        check_failures = 0;
        CHECK(unshare(CLONE_NEWNS) == 0);
        CHECK(fields("s").shared);
        int table = open("/proc/self/mounts", O_RDONLY);
        struct pollfd poller = {table, POLLPRI, 0};
        CHECK(poll(&poller, 1, 0) == 0);
        CHECK(write(up[1], "x", 1) == 1 && read(down[0], &c, 1) == 1);
        CHECK(exists("s/x/f"));
        CHECK(poll(&poller, 1, 0) == 1 && poller.revents & POLLPRI && poller.revents & POLLERR);
        CHECK(poll(&poller, 1, 0) == 0);
        close(table);
        make("s", MS_SLAVE);
        tmpfs("s/y");
        touch("s/y/theirs");
        CHECK(write(up[1], "x", 1) == 1 && read(down[0], &c, 1) == 1);
        CHECK(!exists("s/x/f"));
        /* The directory under this mount goes with the name elsewhere. */
        make("s", MS_PRIVATE);
        CHECK(write(up[1], "x", 1) == 1 && read(down[0], &c, 1) == 1);
        CHECK(!fields("s/y").found);
        fflush(stdout);
        _exit(check_failures ? 1 : 0);
    }
    CHECK(read(up[0], &c, 1) == 1);
    tmpfs("s/x");
    touch("s/x/f");
    CHECK(write(down[1], "x", 1) == 1 && read(up[0], &c, 1) == 1);
    CHECK(!exists("s/y/theirs"));
    CHECK(umount("s/x") == 0);
    CHECK(write(down[1], "x", 1) == 1 && read(up[0], &c, 1) == 1);
    /* Something is mounted there in the other namespace only. */
    CHECK(rmdir("s/y") == 0);
    CHECK(write(down[1], "x", 1) == 1);
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    CHECK(umount("s") == 0 && rmdir("s") == 0);
}

static void bound(void)
{
    touch("ns");
    unsigned long before = namespace_of("/proc/self/ns/mnt");
    /* No tree holds itself. */
    FAILS(EINVAL, mount("/proc/self/ns/mnt", "ns", NULL, MS_BIND, NULL));
    int go[2], done[2];
    char c, path[64];
    CHECK(pipe(go) == 0 && pipe(done) == 0);
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        int bad = unshare(CLONE_NEWNS) != 0;
        mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL);
        bad |= mount("none", "/proc", "tmpfs", 0, "") != 0;
        bad |= write(done[1], "x", 1) != 1 || read(go[0], &c, 1) != 1;
        _exit(bad);
    }
    CHECK(read(done[0], &c, 1) == 1);
    snprintf(path, sizeof path, "/proc/%d/ns/mnt", pid);
    unsigned long theirs = namespace_of(path);
    CHECK(mount(path, "ns", NULL, MS_BIND, NULL) == 0);
    CHECK(write(go[1], "x", 1) == 1);
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    /* The file keeps the namespace. */
    CHECK(namespace_of("ns") == theirs && theirs != before);
    fflush(stdout);
    if (fork() == 0) {
        check_failures = 0;
        int fd = open("ns", O_RDONLY);
        CHECK(fd >= 0 && setns(fd, 0) == 0);
        CHECK(!exists("/proc/self"));
        fflush(stdout);
        _exit(check_failures ? 1 : 0);
    }
    CHECK(wait(&status) > 0 && status == 0);
    /* Copies of the tree leave the file out. */
    fflush(stdout);
    if (fork() == 0) {
        check_failures = 0;
        CHECK(fields("ns").found);
        CHECK(unshare(CLONE_NEWNS) == 0);
        CHECK(!fields("ns").found);
        fflush(stdout);
        _exit(check_failures ? 1 : 0);
    }
    CHECK(wait(&status) > 0 && status == 0);
    CHECK(umount("ns") == 0 && unlink("ns") == 0);
}

static void pivoting(void)
{
    CHECK(unshare(CLONE_NEWNS) == 0);
    make("/", MS_REC | MS_PRIVATE);
    /* The root that a machine boots with may have no place that another could take. */
    dir("again");
    CHECK(mount("/", "again", NULL, MS_BIND | MS_REC, NULL) == 0);
    CHECK(chdir("again") == 0 && chroot(".") == 0 && chdir(base) == 0);
    dir("r");
    FAILS(EBUSY, syscall(SYS_pivot_root, "/", "/"));
    FAILS(ENOENT, syscall(SYS_pivot_root, "nothing", "r"));
    tmpfs("r");
    dir("r/old");
    touch("r/here");
    FAILS(EINVAL, syscall(SYS_pivot_root, "r/old", "r/old"));
    make("r", MS_SHARED);
    FAILS(EINVAL, syscall(SYS_pivot_root, "r", "r/old"));
    make("r", MS_PRIVATE);
    char old[4200];
    snprintf(old, sizeof old, "/old%s/r", base);
    CHECK(syscall(SYS_pivot_root, "r", "r/old") == 0);
    /* Whoever had the old root has the new one. */
    CHECK(exists("/here") && exists("/old/proc/self") && !exists("/proc"));
    CHECK(chdir("/") == 0 && exists(old));
    struct fields root = fields_in("/old/proc/self/mountinfo", "/"), below = fields_in("/old/proc/self/mountinfo", "/old");
    CHECK(root.found && below.found && below.parent == root.id);
    FAILS(EBUSY, umount("/old"));
    /* As container managers do it: the old root comes over the new one, and goes. */
    CHECK(chdir("/old") == 0);
    tmpfs("/old/tmp");
    CHECK(chdir("/old/tmp") == 0);
    CHECK(syscall(SYS_pivot_root, ".", ".") == 0);
    CHECK(umount2(".", MNT_DETACH) == 0);
    CHECK(chdir("/") == 0 && !exists("/here") && !exists("/old"));
    /* Nobody can do without a root. */
    CHECK(mkdir("/before", 0755) == 0);
    FAILS(EINVAL, umount2("/", MNT_EXPIRE));
    CHECK(umount("/") == 0);
    FAILS(EROFS, mkdir("/after", 0755));
}

static void limit(void)
{
    CHECK(unshare(CLONE_NEWNS) == 0);
    make("/", MS_REC | MS_PRIVATE);
    char was[32] = "", text[32];
    int fd = open("/proc/sys/fs/mount-max", O_RDWR), lines = 0;
    CHECK(fd >= 0 && read(fd, was, sizeof was - 1) > 0);
    FILE *in = fopen("/proc/self/mountinfo", "r");
    for (int c; in && (c = fgetc(in)) != EOF;)
        lines += c == '\n';
    if (in)
        fclose(in);
    dir("l");
    tmpfs("l");
    dir("l/x");
    int n = snprintf(text, sizeof text, "%d\n", lines + 8);
    CHECK(pwrite(fd, text, n, 0) == n);
    int made = 0;
    while (made < 50 && mount("l", "l/x", NULL, MS_BIND, NULL) == 0)
        made++;
    CHECK(errno == ENOSPC && made >= 1 && made < 20);
    make("l", MS_SHARED);
    FAILS(ENOSPC, mount("l", "l/x", NULL, MS_BIND, NULL));
    CHECK(pwrite(fd, was, strlen(was), 0) == (ssize_t)strlen(was));
    close(fd);
    CHECK(mount("l", "l/x", NULL, MS_BIND, NULL) == 0);
    CHECK(umount2("l", MNT_DETACH) == 0 && rmdir("l") == 0);

    fd = open("/proc/sys/user/max_mnt_namespaces", O_RDWR);
    memset(was, 0, sizeof was);
    CHECK(fd >= 0 && read(fd, was, sizeof was - 1) > 0 && atoi(was) > 0);
    CHECK(pwrite(fd, "0\n", 2, 0) == 2);
    FAILS(ENOSPC, unshare(CLONE_NEWNS));
    CHECK(pwrite(fd, was, strlen(was), 0) == (ssize_t)strlen(was));
    CHECK(unshare(CLONE_NEWNS) == 0);
    close(fd);
}

/* A chain of namespaces, each bound in the next older one, ends with the first. */
static void chain(void)
{
    CHECK(unshare(CLONE_NEWNS) == 0);
    make("/", MS_REC | MS_PRIVATE);
    dir("ch");
    tmpfs("ch");
    touch("ch/ns");
    int ends[2];
    CHECK(pipe(ends) == 0);
    int here = open("/proc/self/ns/mnt", O_RDONLY);
    for (int i = 0; i < 200; i++) {
        int older = open("/proc/self/ns/mnt", O_RDONLY);
        int ok = unshare(CLONE_NEWNS) == 0;
        int newer = open("/proc/self/ns/mnt", O_RDONLY);
        char path[64];
        snprintf(path, sizeof path, "/proc/self/fd/%d", newer);
        ok = ok && setns(older, 0) == 0 && chdir(base) == 0 && mount(path, "ch/ns", NULL, MS_BIND, NULL) == 0;
        ok = ok && setns(newer, 0) == 0 && chdir(base) == 0;
        close(older);
        close(newer);
        if (!ok) {
            CHECK(ok);
            break;
        }
    }
    CHECK(setns(here, 0) == 0 && chdir(base) == 0);
    CHECK(umount("ch/ns") == 0);
    close(here);
}

static volatile int stop;

static void *maker(void *arg)
{
    (void)arg;
    while (!stop)
        if (mount("race", "q/x", "tmpfs", 0, "") == 0)
            umount2("q/x", MNT_DETACH);
    return NULL;
}

/* Changes, copies and ends at once. */
static void race(void)
{
    CHECK(unshare(CLONE_NEWNS) == 0);
    make("/", MS_REC | MS_PRIVATE);
    dir("q");
    tmpfs("q");
    make("q", MS_SHARED);
    dir("q/x");
    pthread_t threads[2];
    for (int i = 0; i < 2; i++)
        CHECK(pthread_create(&threads[i], NULL, maker, NULL) == 0);
    for (int i = 0; i < 60; i++) {
        pid_t pid = fork();
        if (pid == 0) {
            int bad = unshare(CLONE_NEWNS) != 0;
            if (i % 3 == 0)
                mount(NULL, "q", NULL, MS_SLAVE, NULL);
            for (int k = 0; k < 5; k++) {
                exists("q/x/f");
                fields("q/x");
                umount2("q/x", MNT_DETACH);
            }
            _exit(bad);
        }
        int status;
        CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    }
    stop = 1;
    for (int i = 0; i < 2; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    while (umount2("q/x", MNT_DETACH) == 0)
        ;
    CHECK(umount("q") == 0 && rmdir("q") == 0);
}

int main(void)
{
    CHECK(getcwd(base, sizeof base - 64) != NULL);
    check_in_child(files);
    check_in_child(rules);
    /* Nothing of what follows is to reach the caller's tree. */
    CHECK(unshare(CLONE_NEWNS) == 0);
    make("/", MS_REC | MS_PRIVATE);
    check_in_child(private_trees);
    check_in_child(propagation);
    check_in_child(below);
    check_in_child(across);
    check_in_child(bound);
    check_in_child(pivoting);
    check_in_child(limit);
    check_in_child(chain);
    check_in_child(race);
    return check_done();
}
