/* Making, removing, renaming and looking up names: results and the errors of each. */
#include "../check.h"
#include <dirent.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static long open2(int dir, const char *path, unsigned long flags, unsigned long resolve)
{
    struct open_how how = {.flags = flags, .resolve = resolve};
    return syscall(SYS_openat2, dir, path, &how, sizeof how);
}

static int exists(const char *path)
{
    struct stat st;
    return lstat(path, &st) == 0;
}

static nlink_t links(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 ? st.st_nlink : 0;
}

static void touch(const char *path)
{
    int fd = open(path, O_CREAT | O_WRONLY, 0644);
    CHECK(fd >= 0);
    close(fd);
}

static void directories(void)
{
    CHECK(mkdir("d", 0755) == 0);
    FAILS(EEXIST, mkdir("d", 0755));
    FAILS(EEXIST, mkdir("d/", 0755));
    FAILS(EEXIST, mkdir(".", 0755));
    FAILS(EEXIST, mkdir("/", 0755));
    FAILS(ENOENT, mkdir("x/y", 0755));
    FAILS(ENOENT, mkdir("", 0755));
    CHECK(mkdir("d/e/", 0700) == 0);
    CHECK(links("d") == 3);
    FAILS(ENOTEMPTY, rmdir("d"));
    FAILS(EINVAL, rmdir("d/."));
    FAILS(ENOTEMPTY, rmdir("d/.."));
    FAILS(EISDIR, unlink("d"));
    CHECK(rmdir("d/e/") == 0);
    CHECK(links("d") == 2);
    touch("f");
    FAILS(ENOTDIR, rmdir("f"));
    FAILS(ENOTDIR, mkdir("f/x", 0755));
    FAILS(ENOTDIR, open("f/", O_RDONLY));
    FAILS(ENOTDIR, unlink("f/"));
    FAILS(EISDIR, open("new/", O_CREAT | O_WRONLY, 0644));
    FAILS(EISDIR, open("d", O_WRONLY));
    FAILS(EISDIR, open("d", O_CREAT, 0644));
    FAILS(EINVAL, open("d", O_CREAT | O_DIRECTORY, 0644));
    FAILS(ENOTDIR, open("f", O_DIRECTORY));
    FAILS(EEXIST, open("f", O_CREAT | O_EXCL, 0644));
    char name[300];
    memset(name, 'n', sizeof name);
    name[256] = 0;
    FAILS(ENAMETOOLONG, mkdir(name, 0755));
    name[255] = 0;
    CHECK(mkdir(name, 0755) == 0);
    CHECK(rmdir(name) == 0);

    /* A removed working directory: nothing can be made in it, .. still leads out. */
    CHECK(mkdir("gone", 0755) == 0);
    CHECK(chdir("gone") == 0);
    CHECK(rmdir("../gone") == 0);
    FAILS(ENOENT, open("x", O_CREAT | O_WRONLY, 0644));
    FAILS(ENOENT, mkdir("x", 0755));
    char cwd[64];
    FAILS(ENOENT, syscall(SYS_getcwd, cwd, sizeof cwd));
    CHECK(chdir("..") == 0);
    CHECK(exists("f"));
}

static void links_and_symlinks(void)
{
    CHECK(link("f", "g") == 0);
    CHECK(links("f") == 2);
    FAILS(EEXIST, link("f", "g"));
    FAILS(EPERM, link("d", "dl"));
    FAILS(ENOENT, link("none", "x"));
    CHECK(unlink("g") == 0);
    CHECK(links("f") == 1);

    CHECK(symlink("f", "s") == 0);
    char buf[16];
    CHECK(readlink("s", buf, sizeof buf) == 1 && buf[0] == 'f');
    CHECK(readlink("s", buf, 0) == -1 && errno == EINVAL);
    FAILS(EINVAL, readlink("f", buf, sizeof buf));
    FAILS(ELOOP, open("s", O_RDONLY | O_NOFOLLOW));
    FAILS(ENOTDIR, open("s", O_RDONLY | O_NOFOLLOW | O_DIRECTORY));
    FAILS(EEXIST, open("s", O_CREAT | O_EXCL, 0644));
    int fd = open("s", O_PATH | O_NOFOLLOW);
    CHECK(fd >= 0);
    CHECK(readlinkat(fd, "", buf, sizeof buf) == 1);
    close(fd);
    CHECK(symlink("loop", "loop") == 0);
    FAILS(ELOOP, open("loop", O_RDONLY));
    CHECK(symlink("made-through-link", "dangling") == 0);
    FAILS(ENOENT, open("dangling", O_RDONLY));
    fd = open("dangling", O_CREAT | O_WRONLY, 0644);
    CHECK(fd >= 0);
    close(fd);
    CHECK(exists("made-through-link"));
    CHECK(symlink("d/", "ds") == 0);
    CHECK(open("ds", O_RDONLY) >= 0);
    FAILS(ENOENT, symlink("", "e"));
    /* A hard link to a symbolic link names the link itself, unless told to follow. */
    CHECK(linkat(AT_FDCWD, "s", AT_FDCWD, "s2", 0) == 0);
    CHECK(readlink("s2", buf, sizeof buf) == 1);
    CHECK(linkat(AT_FDCWD, "s", AT_FDCWD, "s3", AT_SYMLINK_FOLLOW) == 0);
    FAILS(EINVAL, readlink("s3", buf, sizeof buf));
    unlink("s3");
}

static void renames(void)
{
    CHECK(mkdir("r", 0755) == 0 && mkdir("r/a", 0755) == 0 && mkdir("r/a/b", 0755) == 0);
    touch("r/f1");
    touch("r/f2");
    FAILS(EINVAL, rename("r/a", "r/a/b/c"));
    FAILS(ENOTEMPTY, rename("r/a/b", "r"));
    FAILS(EISDIR, rename("r/f1", "r/a"));
    FAILS(ENOTDIR, rename("r/a", "r/f1"));
    FAILS(ENOTDIR, rename("r/f1", "r/new/"));
    FAILS(EBUSY, rename("r/.", "r/x"));
    FAILS(ENOENT, rename("r/none", "r/x"));
    CHECK(rename("r/f1", "r/f2") == 0);
    CHECK(!exists("r/f1") && exists("r/f2"));
    CHECK(link("r/f2", "r/same") == 0);
    CHECK(rename("r/f2", "r/same") == 0);
    CHECK(exists("r/f2") && exists("r/same"));
    CHECK(syscall(SYS_renameat2, AT_FDCWD, "r/f2", AT_FDCWD, "r/same", 1) == -1 && errno == EEXIST);
    CHECK(syscall(SYS_renameat2, AT_FDCWD, "r/f2", AT_FDCWD, "r/a", 2) == 0);
    struct stat st;
    CHECK(stat("r/f2", &st) == 0 && S_ISDIR(st.st_mode));
    CHECK(stat("r/a", &st) == 0 && S_ISREG(st.st_mode));
    FAILS(ENOENT, syscall(SYS_renameat2, AT_FDCWD, "r/f2", AT_FDCWD, "r/none", 2));
    FAILS(EINVAL, syscall(SYS_renameat2, AT_FDCWD, "r/f2", AT_FDCWD, "r/none", 3));
    CHECK(mkdir("r/full", 0755) == 0 && mkdir("r/full/x", 0755) == 0 && mkdir("r/empty", 0755) == 0);
    FAILS(ENOTEMPTY, rename("r/empty", "r/full"));
    CHECK(links("r") == 5);
    CHECK(rename("r/full", "r/empty") == 0);
    CHECK(links("r") == 4);
    CHECK(rename("r/empty/x", "r/x") == 0);
    CHECK(links("r") == 5 && links("r/empty") == 2);

    /* An open directory follows its own renaming. */
    int fd = open("r/empty", O_RDONLY | O_DIRECTORY);
    CHECK(rename("r/empty", "r/renamed") == 0);
    CHECK(fchdir(fd) == 0);
    char cwd[256];
    CHECK(getcwd(cwd, sizeof cwd) && strstr(cwd, "/r/renamed"));
    CHECK(chdir("../..") == 0);
    close(fd);
}

static void resolve(void)
{
    CHECK(mkdir("o", 0755) == 0 && mkdir("o/in", 0755) == 0);
    CHECK(symlink("../f", "o/out") == 0);
    CHECK(symlink("/f", "o/abs") == 0);
    CHECK(symlink("in", "o/ok") == 0);
    int dir = open("o", O_PATH | O_DIRECTORY);
    FAILS(EXDEV, open2(dir, "../f", O_RDONLY, RESOLVE_BENEATH));
    FAILS(EXDEV, open2(dir, "out", O_RDONLY, RESOLVE_BENEATH));
    FAILS(EXDEV, open2(dir, "/etc", O_RDONLY, RESOLVE_BENEATH));
    FAILS(EXDEV, open2(dir, "abs", O_RDONLY, RESOLVE_BENEATH));
    CHECK(open2(dir, "in/..", O_RDONLY, RESOLVE_BENEATH) >= 0);
    CHECK(open2(dir, "ok", O_RDONLY, RESOLVE_BENEATH) >= 0);
    FAILS(ENOENT, open2(dir, "out", O_RDONLY, RESOLVE_IN_ROOT));
    CHECK(open2(dir, "../../in", O_RDONLY, RESOLVE_IN_ROOT) >= 0);
    FAILS(ELOOP, open2(dir, "ok", O_RDONLY, RESOLVE_NO_SYMLINKS));
    FAILS(EXDEV, open2(AT_FDCWD, "/proc/self", O_RDONLY, RESOLVE_NO_XDEV));
    FAILS(ELOOP, open2(AT_FDCWD, "/proc/self/cwd/f", O_RDONLY, RESOLVE_NO_MAGICLINKS));
    FAILS(EINVAL, open2(dir, "in", O_RDONLY, RESOLVE_BENEATH | RESOLVE_IN_ROOT));
    FAILS(EINVAL, open2(dir, "in", 1UL << 40, 0));
    struct open_how how = {.flags = O_RDONLY, .mode = 0644};
    FAILS(EINVAL, syscall(SYS_openat2, dir, "in", &how, sizeof how));
    FAILS(EINVAL, syscall(SYS_openat2, dir, "in", &how, 8));
    struct {
        struct open_how how;
        long more;
    } longer = {.how = {.flags = O_RDONLY | O_DIRECTORY}};
    CHECK(syscall(SYS_openat2, dir, "in", &longer, sizeof longer) >= 0);
    longer.more = 1;
    FAILS(E2BIG, syscall(SYS_openat2, dir, "in", &longer, sizeof longer));
    close(dir);
}

static void tmpfiles(void)
{
    FAILS(EINVAL, open(".", O_TMPFILE | O_RDONLY, 0644));
    int fd = open(".", O_TMPFILE | O_RDWR, 0644);
    CHECK(fd >= 0);
    struct stat st;
    CHECK(fstat(fd, &st) == 0 && st.st_nlink == 0);
    CHECK(write(fd, "abc", 3) == 3);
    char proc[64];
    snprintf(proc, sizeof proc, "/proc/self/fd/%d", fd);
    CHECK(linkat(AT_FDCWD, proc, AT_FDCWD, "named", AT_SYMLINK_FOLLOW) == 0);
    CHECK(fstat(fd, &st) == 0 && st.st_nlink == 1 && st.st_size == 3);
    close(fd);
    fd = open(".", O_TMPFILE | O_RDWR | O_EXCL, 0644);
    snprintf(proc, sizeof proc, "/proc/self/fd/%d", fd);
    FAILS(ENOENT, linkat(AT_FDCWD, proc, AT_FDCWD, "named2", AT_SYMLINK_FOLLOW));
    close(fd);
}

/* Removing and adding entries during a listing neither repeats nor hides those that stay. */
static void listing(void)
{
    CHECK(mkdir("l", 0755) == 0);
    char name[32];
    for (int i = 0; i < 500; i++) {
        snprintf(name, sizeof name, "l/stay%03d", i);
        touch(name);
        snprintf(name, sizeof name, "l/go%03d", i);
        touch(name);
    }
    int seen[500] = {0}, extra = 0, n = 0;
    DIR *dir = opendir("l");
    for (struct dirent *e; (e = readdir(dir));) {
        int i;
        if (sscanf(e->d_name, "stay%d", &i) == 1) {
            seen[i]++;
            CHECK(e->d_type == DT_REG);
        }
        else if (e->d_name[0] == '.')
            extra++;
        snprintf(name, sizeof name, "l/go%03d", n);
        if (n < 500)
            unlink(name);
        if (n < 100) {
            snprintf(name, sizeof name, "l/new%03d", n);
            touch(name);
        }
        n++;
    }
    closedir(dir);
    CHECK(extra == 2);
    for (int i = 0; i < 500; i++)
        if (seen[i] != 1) {
            CHECK(seen[i] == 1);
            break;
        }
    int fd = open("l", O_RDONLY | O_DIRECTORY);
    char small[8];
    FAILS(EINVAL, syscall(SYS_getdents64, fd, small, sizeof small));
    FAILS(EISDIR, read(fd, small, 1));
    close(fd);
    fd = open("f", O_RDONLY);
    FAILS(ENOTDIR, syscall(SYS_getdents64, fd, small, sizeof small));
    close(fd);
}

int main(void)
{
    char dir[] = "/tmp/abi-names-XXXXXX";
    CHECK(mkdtemp(dir) && chdir(dir) == 0);
    umask(022);
    directories();
    links_and_symlinks();
    renames();
    resolve();
    tmpfiles();
    listing();
    char command[64];
    snprintf(command, sizeof command, "rm -rf %s", dir);
    CHECK(system(command) == 0);
    return check_done();
}
