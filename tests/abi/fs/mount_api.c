/* Mounting by descriptors: fsopen(2), fsconfig(2), fsmount(2), fspick(2), open_tree(2), move_mount(2), mount_setattr(2). As root, in a
 * directory of its own. */
#include "../check.h"
#include <fcntl.h>
#include <linux/mount.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef MOVE_MOUNT_BENEATH
#define MOVE_MOUNT_BENEATH 0x200
#endif
#ifndef AT_RECURSIVE
#define AT_RECURSIVE 0x8000
#endif
#define fsopen_(name, flags) syscall(SYS_fsopen, name, flags)
#define fsconfig_(fd, cmd, key, value, aux) syscall(SYS_fsconfig, fd, cmd, key, value, aux)
#define fsmount_(fd, flags, attr) syscall(SYS_fsmount, fd, flags, attr)
#define fspick_(fd, path, flags) syscall(SYS_fspick, fd, path, flags)
#define open_tree_(fd, path, flags) syscall(SYS_open_tree, fd, path, flags)
#define move_mount_(ffd, from, tfd, to, flags) syscall(SYS_move_mount, ffd, from, tfd, to, flags)
#define mount_setattr_(fd, path, flags, attr, size) syscall(SYS_mount_setattr, fd, path, flags, attr, size)

struct attr {
    unsigned long long set, clr, propagation, userns;
};

static int exists(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0;
}

static void touch(const char *path)
{
    CHECK(close(open(path, O_CREAT | O_WRONLY, 0644)) == 0);
}

static int new_tmpfs(unsigned attributes)
{
    int fs = fsopen_("tmpfs", FSOPEN_CLOEXEC);
    CHECK(fs >= 0);
    CHECK(fsconfig_(fs, FSCONFIG_SET_STRING, "source", "test", 0) == 0);
    CHECK(fsconfig_(fs, FSCONFIG_SET_STRING, "size", "1M", 0) == 0);
    CHECK(fsconfig_(fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0) == 0);
    int mnt = fsmount_(fs, FSMOUNT_CLOEXEC, attributes);
    CHECK(mnt >= 0);
    close(fs);
    return mnt;
}

static void contexts(void)
{
    char text[64];
    FAILS(ENODEV, fsopen_("nosuchfs", 0));
    FAILS(EINVAL, fsopen_("tmpfs", 2));
    FAILS(EFAULT, fsopen_((char *)1, 0));
    int fs = fsopen_("tmpfs", 0);
    CHECK(fs >= 0 && (fcntl(fs, F_GETFD) & FD_CLOEXEC) == 0);
    FAILS(EINVAL, fsconfig_(fs, FSCONFIG_SET_FLAG, "ro", "x", 0));
    FAILS(EINVAL, fsconfig_(fs, FSCONFIG_SET_STRING, "size", NULL, 0));
    FAILS(EINVAL, fsconfig_(fs, FSCONFIG_CMD_CREATE, "x", NULL, 0));
    FAILS(EOPNOTSUPP, fsconfig_(fs, 77, NULL, NULL, 0));
    FAILS(EINVAL, fsconfig_(-1, FSCONFIG_SET_FLAG, "ro", NULL, 0));
    FAILS(EBADF, fsconfig_(999, FSCONFIG_SET_FLAG, "ro", NULL, 0));
    FAILS(EINVAL, fsconfig_(0, FSCONFIG_SET_FLAG, "ro", NULL, 0));
    FAILS(EINVAL, fsmount_(fs, 0, 0));
    FAILS(EINVAL, fsmount_(fs, 2, 0));
    FAILS(EINVAL, fsmount_(fs, 0, 0x40000000));
    FAILS(EBUSY, fsconfig_(fs, FSCONFIG_CMD_RECONFIGURE, NULL, NULL, 0));
    FAILS(ENODATA, read(fs, text, sizeof text));
    CHECK(fsconfig_(fs, FSCONFIG_SET_STRING, "source", "a", 0) == 0);
    FAILS(EINVAL, fsconfig_(fs, FSCONFIG_SET_STRING, "source", "b", 0));
    CHECK(fsconfig_(fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0) == 0);
    FAILS(EBUSY, fsconfig_(fs, FSCONFIG_SET_STRING, "size", "1M", 0));
    FAILS(EBUSY, fsconfig_(fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0));
    FAILS(EINVAL, fsmount_(fs, 0, MOUNT_ATTR_NOATIME | MOUNT_ATTR_STRICTATIME));
    int mnt = fsmount_(fs, 0, 0);
    CHECK(mnt >= 0);
    FAILS(EBUSY, fsmount_(fs, 0, 0));
    close(mnt);
    close(fs);
    fs = fsopen_("tmpfs", 0);
    /* An option that the file system does not know is refused when it is named, or at the latest here. */
    int named = fsconfig_(fs, FSCONFIG_SET_STRING, "nosuchoption", "1", 0);
    int made = named ? -1 : fsconfig_(fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0);
    CHECK((named == -1 || made == -1) && errno == EINVAL);
    close(fs);
}

static void trees(void)
{
    struct statfs st;
    CHECK(mkdir("a", 0755) == 0 && mkdir("b", 0755) == 0 && mkdir("c", 0755) == 0);
    int mnt = new_tmpfs(MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV);
    /* It can be used before it is anywhere. */
    CHECK(close(openat(mnt, "inside", O_CREAT | O_WRONLY, 0600)) == 0);
    CHECK(mkdirat(mnt, "sub", 0755) == 0);
    FAILS(EBADF, write(mnt, "x", 1));
    FAILS(EINVAL, move_mount_(mnt, "", AT_FDCWD, "a", 0x8000));
    FAILS(EINVAL, move_mount_(mnt, "sub", AT_FDCWD, "a", 0));
    FAILS(ENOENT, move_mount_(mnt, "", AT_FDCWD, "a", 0));
    touch("plain");
    FAILS(EINVAL, move_mount_(mnt, "", AT_FDCWD, "plain", MOVE_MOUNT_F_EMPTY_PATH));
    CHECK(move_mount_(mnt, "", AT_FDCWD, "a", MOVE_MOUNT_F_EMPTY_PATH) == 0);
    CHECK(exists("a/inside") && statfs("a", &st) == 0 && (st.f_flags & (ST_NOSUID | ST_NODEV)) == (ST_NOSUID | ST_NODEV));
    /* Closing the descriptor changes nothing now. */
    close(mnt);
    CHECK(exists("a/inside"));
    CHECK(mount("below", "a/sub", "tmpfs", 0, NULL) == 0);
    touch("a/sub/deep");

    /* A copy without what is mounted below, and with it. */
    int tree = open_tree_(AT_FDCWD, "a", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
    CHECK(tree >= 0 && faccessat(tree, "inside", F_OK, 0) == 0);
    FAILS(ENOENT, faccessat(tree, "sub/deep", F_OK, 0));
    close(tree);
    tree = open_tree_(AT_FDCWD, "a", OPEN_TREE_CLONE | AT_RECURSIVE);
    CHECK(tree >= 0 && faccessat(tree, "sub/deep", F_OK, 0) == 0);
    CHECK(move_mount_(tree, "", AT_FDCWD, "b", MOVE_MOUNT_F_EMPTY_PATH) == 0);
    close(tree);
    CHECK(exists("b/sub/deep"));
    CHECK(umount("b/sub") == 0 && exists("a/sub/deep") && !exists("b/sub/deep"));
    FAILS(EINVAL, open_tree_(AT_FDCWD, "a", AT_RECURSIVE));
    FAILS(EINVAL, open_tree_(AT_FDCWD, "a", 2));

    /* A tree that was never attached ends with its descriptor, what is mounted in it too. */
    tree = open_tree_(AT_FDCWD, "a", OPEN_TREE_CLONE | AT_RECURSIVE);
    CHECK(tree >= 0);
    close(tree);
    CHECK(umount("a/sub") == 0);

    /* Without a copy it is a name, and moving it moves the mount itself; not into itself. */
    tree = open_tree_(AT_FDCWD, "b", 0);
    CHECK(tree >= 0 && (fcntl(tree, F_GETFL) & O_PATH));
    FAILS(ELOOP, move_mount_(tree, "", AT_FDCWD, "b/sub", MOVE_MOUNT_F_EMPTY_PATH));
    CHECK(move_mount_(tree, "", AT_FDCWD, "c", MOVE_MOUNT_F_EMPTY_PATH) == 0);
    close(tree);
    CHECK(!exists("b/inside") && exists("c/inside"));
    CHECK(umount("c") == 0);

    /* Beneath: what was on top stays there. */
    mnt = new_tmpfs(0);
    CHECK(close(openat(mnt, "lower", O_CREAT | O_WRONLY, 0600)) == 0);
    CHECK(move_mount_(mnt, "", AT_FDCWD, "a", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_BENEATH) == 0);
    CHECK(exists("a/inside") && !exists("a/lower"));
    close(mnt);
    CHECK(umount("a") == 0 && exists("a/lower"));
    CHECK(umount("a") == 0);
    mnt = new_tmpfs(0);
    FAILS(EINVAL, move_mount_(mnt, "", AT_FDCWD, "a", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_BENEATH));
    close(mnt);
}

static void attributes(void)
{
    struct statfs st;
    struct attr attr = { .set = MOUNT_ATTR_RDONLY };
    CHECK(mount("top", "a", "tmpfs", 0, NULL) == 0 && mkdir("a/sub", 0755) == 0);
    CHECK(mount("below", "a/sub", "tmpfs", 0, NULL) == 0);
    FAILS(EINVAL, mount_setattr_(AT_FDCWD, "a", 0x40000, &attr, sizeof attr));
    FAILS(EINVAL, mount_setattr_(AT_FDCWD, "a", 0, &attr, 31));
    FAILS(E2BIG, mount_setattr_(AT_FDCWD, "a", 0, &attr, 8192));
    FAILS(EFAULT, mount_setattr_(AT_FDCWD, "a", 0, NULL, sizeof attr));
    struct attr wrong[] = {
        { .set = 1ull << 40 },
        { .set = MOUNT_ATTR_NOATIME },
        { .clr = MOUNT_ATTR_NOATIME },
        { .propagation = MS_SHARED | MS_PRIVATE },
        { .propagation = 1 },
        { .clr = MOUNT_ATTR_IDMAP },
    };
    for (unsigned i = 0; i < sizeof wrong / sizeof *wrong; i++)
        FAILS(EINVAL, mount_setattr_(AT_FDCWD, "a", 0, &wrong[i], sizeof attr));
    struct {
        struct attr known;
        unsigned long long more;
    } longer = { .known = attr, .more = 1 };
    FAILS(E2BIG, mount_setattr_(AT_FDCWD, "a", 0, &longer, sizeof longer));
    longer.more = 0;
    CHECK(mount_setattr_(AT_FDCWD, "a", 0, &longer, sizeof longer) == 0);
    FAILS(EROFS, open("a/x", O_CREAT | O_WRONLY, 0600));
    touch("a/sub/x");
    attr = (struct attr){ .clr = MOUNT_ATTR_RDONLY };
    CHECK(mount_setattr_(AT_FDCWD, "a", 0, &attr, sizeof attr) == 0);
    touch("a/x");

    /* All of a tree or nothing: one file open for writing below holds it off. */
    int held = open("a/sub/x", O_WRONLY);
    attr = (struct attr){ .set = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOEXEC };
    FAILS(EBUSY, mount_setattr_(AT_FDCWD, "a", AT_RECURSIVE, &attr, sizeof attr));
    CHECK(statfs("a", &st) == 0 && (st.f_flags & (ST_RDONLY | ST_NOEXEC)) == 0);
    close(held);
    CHECK(mount_setattr_(AT_FDCWD, "a", AT_RECURSIVE, &attr, sizeof attr) == 0);
    CHECK(statfs("a/sub", &st) == 0 && (st.f_flags & (ST_RDONLY | ST_NOEXEC)) == (ST_RDONLY | ST_NOEXEC));
    attr = (struct attr){ .set = MOUNT_ATTR_NOATIME, .clr = MOUNT_ATTR__ATIME | MOUNT_ATTR_RDONLY };
    CHECK(mount_setattr_(AT_FDCWD, "a", AT_RECURSIVE, &attr, sizeof attr) == 0);
    CHECK(statfs("a/sub", &st) == 0 && (st.f_flags & ST_NOATIME) && !(st.f_flags & (ST_RELATIME | ST_RDONLY)));
    FAILS(EINVAL, mount_setattr_(AT_FDCWD, "a/sub/x", 0, &attr, sizeof attr));

    /* The file system itself, by a context. */
    int fs = fspick_(AT_FDCWD, "a", FSPICK_CLOEXEC);
    CHECK(fs >= 0);
    FAILS(EINVAL, fspick_(AT_FDCWD, "a/x", 0));
    FAILS(EINVAL, fspick_(AT_FDCWD, "a", 0x100));
    CHECK(fsconfig_(fs, FSCONFIG_SET_FLAG, "ro", NULL, 0) == 0);
    FAILS(EBUSY, fsconfig_(fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0));
    CHECK(fsconfig_(fs, FSCONFIG_CMD_RECONFIGURE, NULL, NULL, 0) == 0);
    FAILS(EROFS, open("a/y", O_CREAT | O_WRONLY, 0600));
    CHECK(fsconfig_(fs, FSCONFIG_SET_FLAG, "rw", NULL, 0) == 0);
    CHECK(fsconfig_(fs, FSCONFIG_CMD_RECONFIGURE, NULL, NULL, 0) == 0);
    touch("a/y");
    close(fs);
    CHECK(umount("a/sub") == 0 && umount("a") == 0);
}

static void nobody_may(void)
{
    struct attr attr = { 0 };
    int fs = fsopen_("tmpfs", 0);
    CHECK(setresuid(65534, 65534, 65534) == 0);
    FAILS(EPERM, fsopen_("tmpfs", 0));
    FAILS(EPERM, fspick_(AT_FDCWD, "/", 0));
    FAILS(EPERM, fsconfig_(fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0));
    FAILS(EPERM, fsmount_(fs, 0, 0));
    FAILS(EPERM, open_tree_(AT_FDCWD, "/", OPEN_TREE_CLONE));
    FAILS(EPERM, move_mount_(AT_FDCWD, "/", AT_FDCWD, "/tmp", 0));
    FAILS(EPERM, mount_setattr_(AT_FDCWD, "/", 0, &attr, sizeof attr));
    CHECK(close(open_tree_(AT_FDCWD, "/", 0)) == 0);
}

int main(void)
{
    contexts();
    trees();
    attributes();
    nobody_may();
    return check_done();
}
