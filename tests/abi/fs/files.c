/* Reading, writing, positions, descriptors, locks, attributes, extended attributes. */
#include "../check.h"
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/statfs.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

static void bytes(void)
{
    char buf[64];
    int fd = open("a", O_CREAT | O_RDWR | O_TRUNC, 0644);
    CHECK(write(fd, "hello world", 11) == 11);
    CHECK(lseek(fd, 0, SEEK_CUR) == 11);
    CHECK(pread(fd, buf, 5, 6) == 5 && !memcmp(buf, "world", 5));
    CHECK(pwrite(fd, "W", 1, 6) == 1);
    CHECK(lseek(fd, 0, SEEK_CUR) == 11);
    CHECK(lseek(fd, -5, SEEK_END) == 6);
    CHECK(read(fd, buf, 64) == 5 && buf[0] == 'W');
    CHECK(read(fd, buf, 64) == 0);
    FAILS(EINVAL, lseek(fd, -1, SEEK_SET));
    FAILS(EINVAL, lseek(fd, 0, 77));
    FAILS(EINVAL, pread(fd, buf, 1, -1));
    FAILS(EFAULT, read(fd, (void *)-1UL, 1));
    CHECK(lseek(fd, 0, SEEK_SET) == 0);
    FAILS(EFAULT, read(fd, (void *)8, 4));
    CHECK(lseek(fd, 0, SEEK_CUR) == 0);
    FAILS(EFAULT, write(fd, (void *)8, 4));
    struct iovec iov[3] = {{buf, 3}, {NULL, 0}, {buf + 10, 4}};
    CHECK(readv(fd, iov, 3) == 7 && !memcmp(buf, "hel", 3) && !memcmp(buf + 10, "lo W", 4));
    FAILS(EINVAL, readv(fd, iov, -1));
    FAILS(EINVAL, readv(fd, iov, 1025));
    iov[0].iov_len = -1;
    FAILS(EINVAL, readv(fd, iov, 1));

    /* A hole, and where data is. */
    CHECK(pwrite(fd, "end", 3, 100000) == 3);
    struct stat st;
    CHECK(fstat(fd, &st) == 0 && st.st_size == 100003 && st.st_blocks == 16);
    CHECK(pread(fd, buf, 4, 50000) == 4 && !memcmp(buf, "\0\0\0\0", 4));
    CHECK(lseek(fd, 0, SEEK_HOLE) == 4096);
    CHECK(lseek(fd, 4096, SEEK_DATA) == 98304);
    CHECK(lseek(fd, 98304, SEEK_HOLE) == 100003);
    FAILS(ENXIO, lseek(fd, 100003, SEEK_DATA));
    CHECK(ftruncate(fd, 3) == 0);
    CHECK(ftruncate(fd, 10) == 0);
    CHECK(pread(fd, buf, 64, 0) == 10 && !memcmp(buf, "hel\0\0\0\0\0\0\0", 10));
    FAILS(EINVAL, ftruncate(fd, -1));
    CHECK(fallocate(fd, 0, 0, 8192) == 0 && fstat(fd, &st) == 0 && st.st_size == 8192);
    CHECK(fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, 65536) == 0 && fstat(fd, &st) == 0 && st.st_size == 8192);
    CHECK(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096) == 0);
    CHECK(pread(fd, buf, 3, 0) == 3 && !memcmp(buf, "\0\0\0", 3));
    FAILS(EOPNOTSUPP, fallocate(fd, FALLOC_FL_PUNCH_HOLE, 0, 4096));
    FAILS(EINVAL, fallocate(fd, 0, 0, 0));
    close(fd);
    FAILS(EBADF, read(fd, buf, 1));

    fd = open("a", O_WRONLY | O_APPEND | O_TRUNC);
    CHECK(write(fd, "ab", 2) == 2 && lseek(fd, 0, SEEK_SET) == 0 && write(fd, "cd", 2) == 2);
    CHECK(lseek(fd, 0, SEEK_CUR) == 4);
    CHECK(pwrite(fd, "ef", 2, 0) == 2 && fstat(fd, &st) == 0 && st.st_size == 6);
    FAILS(EBADF, read(fd, buf, 1));
    close(fd);
    fd = open("a", O_RDONLY);
    FAILS(EBADF, write(fd, buf, 1));
    FAILS(EINVAL, ftruncate(fd, 0));
    close(fd);

    struct rlimit limit = {10, RLIM_INFINITY};
    pid_t child = fork();
    if (child == 0) {
        signal(SIGXFSZ, SIG_IGN);
        setrlimit(RLIMIT_FSIZE, &limit);
        int f = open("limited", O_CREAT | O_WRONLY, 0644);
        int ok = write(f, "0123456789abcdef", 16) == 10 && write(f, "x", 1) == -1 && errno == EFBIG;
        _exit(!ok);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);

    int in = open("a", O_RDONLY), out = open("b", O_CREAT | O_RDWR | O_TRUNC, 0644);
    CHECK(sendfile(out, in, NULL, 100) == 6);
    off_t off = 2;
    CHECK(sendfile(out, in, &off, 2) == 2 && off == 4);
    loff_t from = 0, to = 20;
    CHECK(copy_file_range(in, &from, out, &to, 4, 0) == 4 && from == 4 && to == 24);
    CHECK(pread(out, buf, 64, 0) == 24 && !memcmp(buf, "abcdefcd", 8) && !memcmp(buf + 20, "abcd", 4));
    close(in);
    close(out);
}

static void descriptors(void)
{
    int fd = open("a", O_RDONLY | O_CLOEXEC);
    CHECK(fcntl(fd, F_GETFD) == FD_CLOEXEC);
    int copy = dup(fd);
    CHECK(copy > fd && fcntl(copy, F_GETFD) == 0);
    CHECK(fcntl(fd, F_DUPFD, 50) == 50 && fcntl(fd, F_DUPFD_CLOEXEC, 50) == 51);
    CHECK(fcntl(51, F_GETFD) == FD_CLOEXEC);
    CHECK(dup2(fd, 60) == 60 && dup2(60, 60) == 60);
    FAILS(EINVAL, dup3(fd, fd, 0));
    FAILS(EBADF, dup2(999, 5));
    FAILS(EBADF, dup2(fd, 1 << 24));
    FAILS(EINVAL, fcntl(fd, F_DUPFD, 1 << 24));
    char c;
    CHECK(read(fd, &c, 1) == 1 && lseek(copy, 0, SEEK_CUR) == 1);
    CHECK(syscall(SYS_close_range, 50, 60, 0) == 0);
    FAILS(EBADF, fcntl(50, F_GETFD));
    FAILS(EBADF, fcntl(60, F_GETFD));
    FAILS(EINVAL, syscall(SYS_close_range, 60, 50, 0));
    CHECK((fcntl(fd, F_GETFL) & O_ACCMODE) == O_RDONLY);
    CHECK(fcntl(fd, F_SETFL, O_NONBLOCK | O_APPEND) == 0 && (fcntl(copy, F_GETFL) & O_NONBLOCK));
    int path = open("a", O_PATH);
    FAILS(EBADF, read(path, &c, 1));
    FAILS(EBADF, fchmod(path, 0600));
    FAILS(EBADF, fcntl(path, F_SETFL, 0));
    struct stat st;
    CHECK(fstat(path, &st) == 0 && fcntl(path, F_GETFL) == O_PATH);
    close(path);
    struct rlimit limit = {8, 4096}, old;
    getrlimit(RLIMIT_NOFILE, &old);
    limit.rlim_max = old.rlim_max;
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    int i;
    for (i = 0; i < 20 && dup(0) >= 0; i++)
        ;
    CHECK(errno == EMFILE && i < 8);
    CHECK(setrlimit(RLIMIT_NOFILE, &old) == 0);
    syscall(SYS_close_range, 3, ~0U, 0);
}

static int lock(int fd, int cmd, short type, off_t start, off_t len)
{
    struct flock l = {.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = len};
    return fcntl(fd, cmd, &l);
}

static void locks(void)
{
    int fd = open("a", O_RDWR), other = open("a", O_RDWR);
    CHECK(lock(fd, F_SETLK, F_WRLCK, 0, 10) == 0);
    CHECK(lock(other, F_SETLK, F_WRLCK, 5, 10) == 0); /* the same process */
    pid_t child = fork();
    if (child == 0) {
        struct flock l = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = 3, .l_len = 1};
        int bad = lock(fd, F_SETLK, F_RDLCK, 0, 1) != -1 || errno != EAGAIN;
        bad |= fcntl(fd, F_GETLK, &l) || l.l_type != F_WRLCK || l.l_pid != getppid() || l.l_start || l.l_len != 15;
        bad |= lock(fd, F_SETLK, F_WRLCK, 15, 5) != 0;
        _exit(bad);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    close(other); /* takes all of the process's locks on the file */
    child = fork();
    if (child == 0)
        _exit(lock(fd, F_SETLK, F_WRLCK, 0, 0) != 0);
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    other = open("a", O_RDWR);
    CHECK(lock(fd, F_OFD_SETLK, F_WRLCK, 0, 10) == 0);
    FAILS(EAGAIN, lock(other, F_OFD_SETLK, F_RDLCK, 9, 1));
    CHECK(lock(fd, F_OFD_SETLK, F_UNLCK, 4, 2) == 0 && lock(other, F_OFD_SETLK, F_WRLCK, 4, 2) == 0);
    CHECK(flock(fd, LOCK_EX) == 0);
    FAILS(EAGAIN, flock(other, LOCK_SH | LOCK_NB));
    CHECK(flock(fd, LOCK_SH) == 0 && flock(other, LOCK_SH | LOCK_NB) == 0);
    FAILS(EINVAL, flock(fd, 16));
    CHECK(flock(fd, 32 | LOCK_SH) == 0); /* LOCK_MAND, which nothing does any more */
    close(other);
    /* Two processes that would wait for each other. */
    CHECK(lock(fd, F_OFD_SETLK, F_UNLCK, 0, 0) == 0);
    int ready[2];
    CHECK(pipe(ready) == 0);
    CHECK(lock(fd, F_SETLK, F_WRLCK, 0, 1) == 0);
    child = fork();
    if (child == 0) {
        lock(fd, F_SETLK, F_WRLCK, 1, 1);
        write(ready[1], "x", 1);
        _exit(lock(fd, F_SETLKW, F_WRLCK, 0, 1) != 0);
    }
    char c;
    CHECK(read(ready[0], &c, 1) == 1);
    usleep(200000);
    FAILS(EDEADLK, lock(fd, F_SETLKW, F_WRLCK, 1, 1));
    CHECK(lock(fd, F_SETLK, F_UNLCK, 0, 1) == 0);
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    close(fd);
}

static void attributes(void)
{
    struct stat st;
    CHECK(chmod("a", 04755) == 0 && stat("a", &st) == 0 && st.st_mode == (S_IFREG | 04755));
    struct timespec times[2] = {{1000, 5}, {2000, 7}};
    CHECK(utimensat(AT_FDCWD, "a", times, 0) == 0 && stat("a", &st) == 0);
    CHECK(st.st_atim.tv_sec == 1000 && st.st_atim.tv_nsec == 5 && st.st_mtim.tv_sec == 2000 && st.st_mtim.tv_nsec == 7);
    times[0].tv_nsec = UTIME_OMIT;
    times[1].tv_nsec = UTIME_NOW;
    CHECK(utimensat(AT_FDCWD, "a", times, 0) == 0 && stat("a", &st) == 0);
    CHECK(st.st_atim.tv_sec == 1000 && st.st_mtim.tv_sec > 2000);
    times[0].tv_nsec = 1000000000;
    FAILS(EINVAL, utimensat(AT_FDCWD, "a", times, 0));
    CHECK(access("a", X_OK) == 0 && access("none", F_OK) == -1 && errno == ENOENT);
    FAILS(EINVAL, access("a", 8));
    struct statx sx;
    CHECK(statx(AT_FDCWD, "a", 0, STATX_BASIC_STATS | STATX_BTIME, &sx) == 0 && (sx.stx_mask & STATX_MNT_ID));
    CHECK(sx.stx_ino == st.st_ino && sx.stx_mode == st.st_mode);
    struct statfs fs;
    CHECK(statfs("/proc", &fs) == 0 && fs.f_type == 0x9fa0);

    CHECK(setxattr("a", "user.x", "value", 5, 0) == 0);
    FAILS(EEXIST, setxattr("a", "user.x", "v", 1, XATTR_CREATE));
    FAILS(ENODATA, setxattr("a", "user.y", "v", 1, XATTR_REPLACE));
    char buf[64];
    CHECK(getxattr("a", "user.x", buf, sizeof buf) == 5 && !memcmp(buf, "value", 5));
    CHECK(getxattr("a", "user.x", NULL, 0) == 5);
    FAILS(ERANGE, getxattr("a", "user.x", buf, 2));
    FAILS(ENODATA, getxattr("a", "user.none", buf, 2));
    FAILS(EOPNOTSUPP, setxattr("a", "nonsense", "v", 1, 0));
    CHECK(listxattr("a", buf, sizeof buf) >= 7);
    CHECK(removexattr("a", "user.x") == 0);
    FAILS(ENODATA, removexattr("a", "user.x"));
}

/* Each open table of mounts tells of a change once, whether it is read or not. */
static void mount_news(void)
{
    if (geteuid() != 0)
        return;
    CHECK(mkdir("on", 0755) == 0);
    int fd = open("/proc/self/mountinfo", O_RDONLY), other = open("/proc/self/mounts", O_RDONLY);
    struct pollfd p[] = {{.fd = fd, .events = 0}, {.fd = other, .events = POLLIN | POLLPRI}};
    CHECK(poll(p, 1, 0) == 0);
    CHECK(mount("none", "on", "tmpfs", 0, NULL) == 0);
    CHECK(poll(p, 2, 1000) == 2 && p[0].revents == POLLERR && p[1].revents == (POLLIN | POLLPRI | POLLERR));
    CHECK(poll(p, 1, 0) == 0);
    CHECK(poll(p + 1, 1, 0) == 1 && p[1].revents == POLLIN);
    CHECK(umount("on") == 0);
    char buf[64];
    CHECK(read(fd, buf, sizeof buf) > 0);
    CHECK(poll(p, 1, 1000) == 1 && p[0].revents == POLLERR);
    CHECK(poll(p, 1, 0) == 0);
    close(fd);
    close(other);
    CHECK(rmdir("on") == 0);
}

static void unprivileged(void)
{
    if (geteuid() != 0)
        return;
    CHECK(chmod(".", 0755) == 0);
    pid_t child = fork();
    if (child == 0) {
        check_failures = 0;
        CHECK(mkdir("sticky", 01777) == 0 && chmod("sticky", 01777) == 0);
        close(open("sticky/theirs", O_CREAT, 0644));
        close(open("secret", O_CREAT, 0600));
        CHECK(mkdir("closed", 0700) == 0);
        CHECK(setgid(1000) == 0 && setuid(1000) == 0);
        FAILS(EACCES, open("secret", O_RDONLY));
        FAILS(EACCES, open("closed/x", O_RDONLY));
        FAILS(EACCES, open("new", O_CREAT | O_WRONLY, 0644));
        FAILS(EACCES, unlink("secret"));
        FAILS(EPERM, unlink("sticky/theirs"));
        FAILS(EPERM, rename("sticky/theirs", "sticky/mine"));
        FAILS(EPERM, chmod("secret", 0644));
        FAILS(EPERM, chown("secret", 1000, 1000));
        FAILS(EPERM, link("secret", "sticky/link"));
        FAILS(EPERM, chroot("."));
        FAILS(EPERM, mknod("sticky/dev", S_IFCHR | 0666, 0x103));
        int fd = open("sticky/own", O_CREAT | O_WRONLY, 0666);
        CHECK(fd >= 0 && fchmod(fd, 06755) == 0);
        CHECK(write(fd, "x", 1) == 1);
        struct stat st;
        CHECK(fstat(fd, &st) == 0 && (st.st_mode & 07777) == 0755);
        FAILS(EACCES, open("/proc/1/environ", O_RDONLY));
        _exit(check_failures ? 1 : 0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
}

int main(void)
{
    char dir[] = "/tmp/abi-files-XXXXXX";
    CHECK(mkdtemp(dir) && chdir(dir) == 0);
    umask(022);
    bytes();
    descriptors();
    locks();
    attributes();
    mount_news();
    unprivileged();
    char command[64];
    snprintf(command, sizeof command, "rm -rf %s", dir);
    CHECK(system(command) == 0);
    return check_done();
}
