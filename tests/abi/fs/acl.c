/* POSIX access control lists of a tmpfs: the attributes' format, who may use a file, what new files inherit, chmod. Runs as root. */
#include "../check.h"
#include <fcntl.h>
#include <grp.h>
#include <stdint.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#define ACCESS "system.posix_acl_access"
#define DEFAULT "system.posix_acl_default"
enum { OWNER = 1, USER = 2, GROUP = 4, NAMED = 8, MASK = 16, OTHER = 32 };
#define NONE 0xffffffffu

struct entry { uint16_t tag, perm; uint32_t id; };
struct list { uint32_t version; struct entry e[16]; };

static size_t size_of(int n) { return 4 + 8 * n; }

static int set(const char *path, const char *name, int n, const struct entry *e)
{
    struct list l = { 2 };
    memcpy(l.e, e, n * sizeof *e);
    return setxattr(path, name, &l, size_of(n), 0);
}
#define SET(path, name, ...) set(path, name, sizeof((struct entry[]){ __VA_ARGS__ }) / 8, (struct entry[]){ __VA_ARGS__ })

static int mode(const char *path)
{
    struct stat st;
    return stat(path, &st) ? -1 : st.st_mode & 07777;
}

/* The errno with which a process of this user and group opens (or, for X_OK, looks for) the file; 0 if it may. */
static int as(int uid, int gid, const char *path, int how)
{
    int status;
    pid_t child = fork();
    if (child == 0) {
        if (setgroups(0, 0) || setresgid(gid, gid, gid) || setresuid(uid, uid, uid))
            _exit(99);
        if (how == X_OK)
            _exit(access(path, X_OK) ? errno : 0);
        _exit(open(path, how) < 0 ? errno : 0);
    }
    waitpid(child, &status, 0);
    return WEXITSTATUS(status);
}

static int perm(const char *path, const char *name, int tag, uint32_t id)
{
    struct list l;
    ssize_t n = getxattr(path, name, &l, sizeof l);
    for (int i = 0; n > 0 && i < (n - 4) / 8; i++)
        if (l.e[i].tag == tag && l.e[i].id == id)
            return l.e[i].perm;
    return -1;
}

int main(void)
{
    char dir[] = "/tmp/acl.XXXXXX", names[200];
    struct list l;
    CHECK(mkdtemp(dir) && mount("none", dir, "tmpfs", 0, "mode=755") == 0 && chdir(dir) == 0);
    umask(022);
    close(open("f", O_CREAT | O_RDWR, 0640));
    CHECK(chown("f", 100, 200) == 0);

    /* None yet; a list that says what the mode says is not kept, but sets the mode. */
    FAILS(ENODATA, getxattr("f", ACCESS, &l, sizeof l));
    CHECK(listxattr("f", names, sizeof names) == 0);
    CHECK(SET("f", ACCESS, { OWNER, 7, NONE }, { GROUP, 5, NONE }, { OTHER, 0, NONE }) == 0);
    CHECK(mode("f") == 0750);
    FAILS(ENODATA, getxattr("f", ACCESS, &l, sizeof l));

    /* A named user and a named group, within the mask, which is the mode's group bits. */
    CHECK(SET("f", ACCESS, { OWNER, 6, NONE }, { USER, 6, 1000 }, { USER, 0, 1001 }, { GROUP, 0, NONE }, { NAMED, 4, 300 },
              { MASK, 6, NONE }, { OTHER, 4, NONE }) == 0);
    CHECK(mode("f") == 0664);
    CHECK(getxattr("f", ACCESS, 0, 0) == (ssize_t)size_of(7));
    FAILS(ERANGE, getxattr("f", ACCESS, &l, 10));
    CHECK(getxattr("f", ACCESS, &l, sizeof l) == (ssize_t)size_of(7) && l.version == 2 && l.e[1].tag == USER && l.e[1].id == 1000);
    CHECK(listxattr("f", names, sizeof names) == sizeof ACCESS && strcmp(names, ACCESS) == 0);
    CHECK(as(1000, 1, "f", O_RDWR) == 0);
    CHECK(as(1001, 1, "f", O_RDONLY) == EACCES);
    CHECK(as(1002, 300, "f", O_RDONLY) == 0);
    CHECK(as(1002, 300, "f", O_WRONLY) == EACCES);
    CHECK(as(1002, 200, "f", O_RDONLY) == EACCES); /* the group has nothing, and others' bits are not asked */
    CHECK(as(1002, 1, "f", O_RDONLY) == 0);
    CHECK(as(1002, 1, "f", O_WRONLY) == EACCES);
    CHECK(as(100, 1, "f", O_RDWR) == 0);
    CHECK(as(0, 0, "f", O_RDWR) == 0);

    /* chmod changes the mask, not the group. */
    CHECK(chmod("f", 0640) == 0);
    CHECK(perm("f", ACCESS, MASK, NONE) == 4 && perm("f", ACCESS, GROUP, NONE) == 0 && perm("f", ACCESS, OTHER, NONE) == 0);
    CHECK(as(1000, 1, "f", O_RDONLY) == 0);
    CHECK(as(1000, 1, "f", O_WRONLY) == EACCES);
    CHECK(as(1002, 1, "f", O_RDONLY) == EACCES);
    CHECK(chmod("f", 0604) == 0);
    CHECK(as(1000, 1, "f", O_RDONLY) == EACCES || mode("f") == 0604);

    /* What is no list. */
    FAILS(EINVAL, setxattr("f", ACCESS, &l, 3, 0));
    FAILS(EINVAL, setxattr("f", ACCESS, &l, 13, 0));
    l.version = 1;
    FAILS(EOPNOTSUPP, setxattr("f", ACCESS, &l, size_of(7), 0));
    FAILS(EINVAL, SET("f", ACCESS, { OWNER, 7, NONE }, { OTHER, 0, NONE }));
    FAILS(EINVAL, SET("f", ACCESS, { OWNER, 7, NONE }, { USER, 7, 5 }, { GROUP, 0, NONE }, { OTHER, 0, NONE }));
    FAILS(EINVAL, SET("f", ACCESS, { GROUP, 7, NONE }, { OWNER, 7, NONE }, { OTHER, 0, NONE }));
    FAILS(EINVAL, SET("f", ACCESS, { OWNER, 8, NONE }, { GROUP, 0, NONE }, { OTHER, 0, NONE }));
    FAILS(EINVAL, SET("f", ACCESS, { OWNER, 7, NONE }, { 64, 0, NONE }, { GROUP, 0, NONE }, { OTHER, 0, NONE }));
    FAILS(EINVAL, SET("f", ACCESS, { OWNER, 7, NONE }, { USER, 7, NONE }, { GROUP, 0, NONE }, { MASK, 7, NONE }, { OTHER, 0, NONE }));
    FAILS(EACCES, SET("f", DEFAULT, { OWNER, 7, NONE }, { GROUP, 5, NONE }, { OTHER, 0, NONE }));
    CHECK(symlink("f", "s") == 0);
    FAILS(EOPNOTSUPP, lgetxattr("s", ACCESS, &l, sizeof l));

    /* Only the owner sets. */
    pid_t child = fork();
    if (child == 0) {
        setresuid(1000, 1000, 1000);
        _exit(removexattr("f", ACCESS) == -1 ? errno : 0);
    }
    int status;
    waitpid(child, &status, 0);
    CHECK(WEXITSTATUS(status) == EPERM);
    CHECK(removexattr("f", ACCESS) == 0 && mode("f") == 0604);
    FAILS(ENODATA, getxattr("f", ACCESS, &l, sizeof l));

    /* A directory: search by list, and what is inherited instead of the umask. */
    CHECK(mkdir("d", 0755) == 0);
    close(open("d/before", O_CREAT | O_RDWR, 0666));
    CHECK(SET("d", ACCESS, { OWNER, 7, NONE }, { USER, 0, 1001 }, { GROUP, 5, NONE }, { MASK, 5, NONE }, { OTHER, 5, NONE }) == 0);
    CHECK(mode("d") == 0755);
    CHECK(as(1001, 1, "d/before", O_RDONLY) == EACCES);
    CHECK(as(1001, 1, "d", X_OK) == EACCES);
    CHECK(as(1002, 1, "d/before", O_RDONLY) == 0);
    CHECK(SET("d", DEFAULT, { OWNER, 7, NONE }, { USER, 7, 1000 }, { GROUP, 5, NONE }, { MASK, 7, NONE }, { OTHER, 1, NONE }) == 0);
    CHECK(listxattr("d", names, sizeof names) == sizeof ACCESS + sizeof DEFAULT);
    CHECK(mode("d/before") == 0644 && perm("d/before", ACCESS, USER, 1000) == -1);
    close(open("d/file", O_CREAT | O_RDWR, 0666));
    CHECK(mode("d/file") == 0660); /* the list of the directory, within what was asked: no umask */
    CHECK(perm("d/file", ACCESS, USER, 1000) == 7 && perm("d/file", ACCESS, MASK, NONE) == 6);
    CHECK(as(1000, 1, "d/file", O_RDWR) == 0);
    FAILS(ENODATA, getxattr("d/file", DEFAULT, &l, sizeof l));
    CHECK(mkdir("d/sub", 0777) == 0 && mode("d/sub") == 0771);
    CHECK(perm("d/sub", DEFAULT, USER, 1000) == 7 && perm("d/sub", ACCESS, USER, 1000) == 7);
    CHECK(mknod("d/fifo", S_IFIFO | 0600, 0) == 0 && mode("d/fifo") == 0600 && perm("d/fifo", ACCESS, MASK, NONE) == 0);
    int fd = open("d", O_TMPFILE | O_RDWR, 0666);
    struct stat st;
    CHECK(fstat(fd, &st) == 0 && (st.st_mode & 0777) == 0660);
    CHECK(fgetxattr(fd, ACCESS, &l, sizeof l) == (ssize_t)size_of(5));
    CHECK(symlink("x", "d/link") == 0 && lstat("d/link", &st) == 0 && (st.st_mode & 0777) == 0777);

    /* A default list without names gives a mode only. An empty value removes a list. */
    CHECK(SET("d", DEFAULT, { OWNER, 7, NONE }, { GROUP, 7, NONE }, { OTHER, 0, NONE }) == 0);
    close(open("d/plain", O_CREAT | O_RDWR, 0666));
    CHECK(mode("d/plain") == 0660);
    FAILS(ENODATA, getxattr("d/plain", ACCESS, &l, sizeof l));
    CHECK(setxattr("d", DEFAULT, "", 0, 0) == 0);
    FAILS(ENODATA, getxattr("d", DEFAULT, &l, sizeof l));
    close(open("d/last", O_CREAT | O_RDWR, 0666));
    CHECK(mode("d/last") == 0644);
    close(fd);
    chdir("/");
    CHECK(umount(dir) == 0 && rmdir(dir) == 0);
    return check_done();
}
