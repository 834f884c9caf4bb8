/* name_to_handle_at(2) and open_by_handle_at(2) on a tmpfs and on cgroup2. Run by root, in a directory of a tmpfs. */
#include "../check.h"
#include <fcntl.h>
#include <stdint.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static union { struct file_handle h; char room[8 + 128]; } u;

static int handle(const char *path, int flags, int *mount)
{
    u.h.handle_bytes = 128;
    return name_to_handle_at(AT_FDCWD, path, &u.h, mount, flags);
}

static uint64_t mount_id(const char *path)
{
    struct { uint32_t mask; char before[140]; uint64_t mnt_id; char after[104]; } sx;
    CHECK(syscall(SYS_statx, AT_FDCWD, path, 0, 0x1000, &sx) == 0);
    return sx.mnt_id;
}

int main(void)
{
    int mount_of, fd, status;
    struct stat a, b;
    char text[16] = "";
    CHECK(mkdir("d", 0755) == 0);
    fd = open("d/f", O_RDWR | O_CREAT, 0600);
    CHECK(write(fd, "hello", 5) == 5 && close(fd) == 0 && symlink("d/f", "s") == 0);

    CHECK(handle("d/f", 0, &mount_of) == 0 && u.h.handle_bytes == 12 && u.h.handle_type == 1);
    CHECK((uint64_t)mount_of == mount_id("d/f"));
    int top = open(".", O_RDONLY);
    CHECK(stat("d/f", &a) == 0);
    fd = open_by_handle_at(top, &u.h, O_RDONLY);
    CHECK(fd >= 0 && fstat(fd, &b) == 0 && a.st_ino == b.st_ino && read(fd, text, 15) == 5 && !strcmp(text, "hello"));
    close(fd);
    /* By any file of that mount, also under another name, and after it has lost its only one while it is open. */
    CHECK(rename("d/f", "g") == 0);
    fd = open_by_handle_at(AT_FDCWD, &u.h, O_RDWR);
    CHECK(fd >= 0 && fstat(fd, &b) == 0 && a.st_ino == b.st_ino && pwrite(fd, "j", 1, 0) == 1);
    CHECK(unlink("g") == 0);
    close(fd);
    FAILS(ESTALE, open_by_handle_at(top, &u.h, O_RDONLY));

    /* A directory; the link itself, and what it leads to. */
    CHECK(handle("d", 0, &mount_of) == 0);
    fd = open_by_handle_at(top, &u.h, O_RDONLY | O_DIRECTORY);
    CHECK(fd >= 0 && mkdirat(fd, "below", 0755) == 0 && access("d/below", F_OK) == 0 && rmdir("d/below") == 0);
    close(fd);
    FAILS(EISDIR, open_by_handle_at(top, &u.h, O_RDWR));
    close(open("d/f", O_RDWR | O_CREAT, 0600));
    CHECK(handle("s", 0, &mount_of) == 0);
    FAILS(ELOOP, open_by_handle_at(top, &u.h, O_RDONLY));
    fd = open_by_handle_at(top, &u.h, O_PATH);
    CHECK(fd >= 0 && readlinkat(fd, "", text, 15) == 3);
    close(fd);
    CHECK(handle("s", AT_SYMLINK_FOLLOW, &mount_of) == 0);
    fd = open_by_handle_at(top, &u.h, O_RDONLY);
    CHECK(fd >= 0);
    FAILS(ENOTDIR, open_by_handle_at(top, &u.h, O_RDONLY | O_DIRECTORY));
    u.h.handle_bytes = 128;
    CHECK(name_to_handle_at(fd, "", &u.h, &mount_of, AT_EMPTY_PATH) == 0);
    close(fd);

    /* Sizes, and what is no handle. */
    u.h.handle_bytes = 11;
    mount_of = 0;
    FAILS(EOVERFLOW, name_to_handle_at(AT_FDCWD, "d", &u.h, &mount_of, 0));
    CHECK(u.h.handle_bytes == 12 && (uint64_t)mount_of == mount_id("d"));
    u.h.handle_bytes = 0;
    FAILS(EOVERFLOW, name_to_handle_at(AT_FDCWD, "d", &u.h, &mount_of, 0));
    u.h.handle_bytes = 129;
    FAILS(EINVAL, name_to_handle_at(AT_FDCWD, "d", &u.h, &mount_of, 0));
    FAILS(EINVAL, open_by_handle_at(top, &u.h, O_RDONLY));
    u.h.handle_bytes = 0;
    FAILS(EINVAL, open_by_handle_at(top, &u.h, O_RDONLY));
    FAILS(EINVAL, handle("d", 0x8000, &mount_of));
    FAILS(ENOENT, handle("missing", 0, &mount_of));
    FAILS(EFAULT, name_to_handle_at(AT_FDCWD, "d", NULL, &mount_of, 0));
    FAILS(EFAULT, name_to_handle_at(AT_FDCWD, "d", &u.h, NULL, 0));
    CHECK(handle("d", 0, &mount_of) == 0);
    FAILS(EFAULT, open_by_handle_at(top, NULL, O_RDONLY));
    FAILS(EBADF, open_by_handle_at(-1, &u.h, O_RDONLY));
    int proc = open("/proc", O_RDONLY);
    FAILS(ESTALE, open_by_handle_at(proc, &u.h, O_RDONLY));
    close(proc);
    u.h.f_handle[5] ^= 0x55;
    FAILS(ESTALE, open_by_handle_at(top, &u.h, O_RDONLY));
    FAILS(EOPNOTSUPP, handle("/proc/self/status", 0, &mount_of));
    pid_t child = fork();
    if (child == 0) {
        check_failures = 0;
        CHECK(setresuid(1000, 1000, 1000) == 0 && handle(".", 0, &mount_of) == 0);
        FAILS(EPERM, open_by_handle_at(top, &u.h, O_RDONLY));
        fflush(stdout), _exit(check_failures != 0);
    }
    waitpid(child, &status, 0);
    CHECK(status == 0);

    /* A group's number. */
    mkdir("cg", 0755);
    CHECK(mount("cgroup2", "cg", "cgroup2", 0, NULL) == 0 && handle("cg", 0, &mount_of) == 0);
    CHECK(u.h.handle_bytes == 8 && u.h.handle_type == 0xfe && stat("cg", &a) == 0);
    uint64_t id;
    memcpy(&id, u.h.f_handle, 8);
    CHECK((uint32_t)id == (uint32_t)a.st_ino);
    int in = open("cg", O_RDONLY);
    fd = open_by_handle_at(in, &u.h, O_RDONLY);
    CHECK(fd >= 0 && fstat(fd, &b) == 0 && b.st_ino == a.st_ino);
    close(fd), close(in);
    CHECK(umount("cg") == 0 && rmdir("cg") == 0);

    unlink("s"), unlink("d/f"), rmdir("d");
    return check_done();
}
