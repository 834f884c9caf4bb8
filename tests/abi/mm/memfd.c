/* memfd_create, seals and vm.memfd_noexec. Run by root. */
#include "../check.h"
#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8
#endif
#ifndef MFD_EXEC
#define MFD_EXEC 0x10
#endif
#ifndef F_SEAL_EXEC
#define F_SEAL_EXEC 0x20
#endif
#define P 4096UL
#define RW (PROT_READ | PROT_WRITE)

/* vm.memfd_noexec as this process's PID namespace has it; 0, or the error. */
static int set_scope(int value)
{
    char text[8];
    int fd = open("/proc/sys/vm/memfd_noexec", O_WRONLY), error = 0;
    sprintf(text, "%d", value);
    if (fd < 0)
        return errno;
    if (write(fd, text, strlen(text)) < 0)
        error = errno;
    close(fd);
    return error;
}

static int scope(void)
{
    char text[8] = "";
    int fd = open("/proc/sys/vm/memfd_noexec", O_RDONLY);
    CHECK(read(fd, text, 7) > 0);
    close(fd);
    return atoi(text);
}

/* The mode and the seals of a memfd that is made with `flags`; -1 when it is refused. */
static int made(unsigned flags)
{
    struct stat st;
    int fd = syscall(SYS_memfd_create, "made", flags);
    if (fd < 0)
        return -1;
    CHECK(fstat(fd, &st) == 0);
    int seals = fcntl(fd, F_GET_SEALS);
    close(fd);
    return (st.st_mode & 0777) << 8 | seals;
}

/* `what` in a process that is the first of a PID namespace. */
static void nested(void (*what)(void))
{
    int status;
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        CHECK(unshare(CLONE_NEWPID) == 0);
        pid_t first = fork();
        if (first == 0) {
            CHECK(getpid() == 1);
            what();
            fflush(stdout);
            _exit(check_failures != 0);
        }
        CHECK(waitpid(first, &status, 0) == first && status == 0);
        fflush(stdout);
        _exit(check_failures != 0);
    }
    CHECK(waitpid(child, &status, 0) == child && status == 0);
}

static void begins_with_1(void)
{
    CHECK(scope() == 1 && made(0) == (0666 << 8 | F_SEAL_EXEC));
    CHECK(set_scope(0) == EINVAL && set_scope(2) == 0 && scope() == 2);
    FAILS(EACCES, made(MFD_EXEC));
}

static int turn[2], back[2];

static void outlives_a_change(void)
{
    char byte;
    CHECK(write(back[1], "x", 1) == 1 && read(turn[0], &byte, 1) == 1);
    /* It was relaxed outside. */
    CHECK(scope() == 1 && set_scope(0) == 0 && scope() == 0);
    CHECK(write(back[1], "x", 1) == 1 && read(turn[0], &byte, 1) == 1);
    /* It became strict outside. */
    CHECK(scope() == 2 && set_scope(1) == EINVAL);
    FAILS(EACCES, made(MFD_EXEC));
}

static void noexec(void)
{
    const int plain = 0777 << 8 | F_SEAL_SEAL, sealed = 0666 << 8 | F_SEAL_EXEC;
    char byte;
    CHECK(scope() == 0 && made(0) == plain && made(MFD_EXEC) == plain && made(MFD_NOEXEC_SEAL) == sealed);
    CHECK(set_scope(-1) == EINVAL && set_scope(3) == EINVAL && scope() == 0);
    CHECK(set_scope(1) == 0 && scope() == 1);
    CHECK(made(0) == sealed && made(MFD_EXEC) == plain && made(MFD_NOEXEC_SEAL) == sealed);
    FAILS(EINVAL, made(MFD_EXEC | MFD_NOEXEC_SEAL));
    nested(begins_with_1);
    CHECK(scope() == 1);
    CHECK(set_scope(2) == 0);
    CHECK(made(0) == sealed && made(MFD_NOEXEC_SEAL) == sealed);
    FAILS(EACCES, made(MFD_EXEC));
    FAILS(EINVAL, made(MFD_EXEC | 0x1000));
    CHECK(set_scope(1) == 0 && pipe(turn) == 0 && pipe(back) == 0);
    fflush(stdout);
    pid_t outside = fork();
    if (outside == 0) {
        nested(outlives_a_change);
        fflush(stdout);
        _exit(check_failures != 0);
    }
    CHECK(read(back[0], &byte, 1) == 1 && set_scope(0) == 0 && write(turn[1], "x", 1) == 1);
    CHECK(read(back[0], &byte, 1) == 1 && set_scope(2) == 0 && write(turn[1], "x", 1) == 1);
    int status;
    CHECK(waitpid(outside, &status, 0) == outside && status == 0);
    /* Who may write the file must have CAP_SYS_ADMIN, too. */
    int fd = open("/proc/sys/vm/memfd_noexec", O_WRONLY);
    pid_t child = fork();
    if (child == 0) {
        if (setresuid(1000, 1000, 1000))
            _exit(9);
        _exit(write(fd, "0", 1) == -1 && errno == EPERM ? 0 : 1);
    }
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    close(fd);
    CHECK(set_scope(0) == 0);
}

int main(void)
{
    char name[300];
    memset(name, 'n', sizeof name);
    name[299] = 0;
    FAILS(EINVAL, syscall(SYS_memfd_create, "x", 0x1000));
    FAILS(EINVAL, syscall(SYS_memfd_create, name, 0));
    FAILS(EFAULT, syscall(SYS_memfd_create, 1, 0));
    name[249] = 0;
    int fd = memfd_create(name, MFD_CLOEXEC);
    CHECK(fd >= 0 && fcntl(fd, F_GETFD) == FD_CLOEXEC);
    close(fd);

    fd = memfd_create("plain", 0);
    struct stat st;
    CHECK(fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size == 0 && st.st_nlink == 0);
    CHECK((st.st_mode & 0777) == 0777);
    char path[64], link[128];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(path, link, sizeof link - 1);
    link[n > 0 ? n : 0] = 0;
    CHECK(strcmp(link, "/memfd:plain (deleted)") == 0);
    CHECK(fcntl(fd, F_GET_SEALS) == F_SEAL_SEAL);
    FAILS(EPERM, fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK));
    CHECK(write(fd, "hello", 5) == 5 && lseek(fd, 0, SEEK_CUR) == 5);
    CHECK(lseek(fd, 1000000, SEEK_SET) == 1000000 && write(fd, "x", 1) == 1);
    char c = 'q';
    CHECK(pread(fd, &c, 1, 5000) == 1 && c == 0);
    CHECK(fstat(fd, &st) == 0 && st.st_size == 1000001 && st.st_blocks == 16);
    CHECK(lseek(fd, 0, SEEK_HOLE) == 4096 && lseek(fd, 4096, SEEK_DATA) == 999424);
    FAILS(ENXIO, lseek(fd, 2000000, SEEK_DATA));
    int again = open(path, O_RDONLY);
    CHECK(again >= 0 && read(again, link, 5) == 5 && memcmp(link, "hello", 5) == 0);
    close(again);
    CHECK(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096) == 0);
    CHECK(pread(fd, &c, 1, 0) == 1 && c == 0);
    CHECK(fallocate(fd, 0, 0, 2 << 20) == 0 && fstat(fd, &st) == 0 && st.st_size == 2 << 20);
    close(fd);

    fd = memfd_create("sealed", MFD_ALLOW_SEALING);
    CHECK(ftruncate(fd, 2 * P) == 0 && fcntl(fd, F_GET_SEALS) == 0);
    FAILS(EINVAL, fcntl(fd, F_ADD_SEALS, 0x1000));
    char *w = mmap(0, 2 * P, RW, MAP_SHARED, fd, 0);
    char *r = mmap(0, 2 * P, PROT_READ, MAP_SHARED, fd, 0);
    FAILS(EBUSY, fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE));
    munmap(r, 2 * P);
    strcpy(w, "kept");
    CHECK(fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE) == 0);
    strcpy(w + P, "still writable");
    FAILS(EPERM, pwrite(fd, "x", 1, 0));
    FAILS(EPERM, (long)mmap(0, P, RW, MAP_SHARED, fd, 0));
    munmap(w, 2 * P);
    CHECK(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW) == 0);
    FAILS(EPERM, ftruncate(fd, P));
    FAILS(EPERM, ftruncate(fd, 3 * P));
    CHECK(ftruncate(fd, 2 * P) == 0);
    FAILS(EPERM, fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, P));
    r = mmap(0, P, PROT_READ, MAP_SHARED, fd, 0);
    CHECK(r != MAP_FAILED && strcmp(r, "kept") == 0);
    FAILS(EACCES, mprotect(r, P, RW));
    char *q = mmap(0, P, RW, MAP_PRIVATE, fd, 0);
    CHECK(q != MAP_FAILED);
    q[0] = 'Q';
    CHECK(r[0] == 'k');
    CHECK(fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL) == 0);
    FAILS(EPERM, fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL));
    close(fd);

    fd = memfd_create("grow", MFD_ALLOW_SEALING);
    CHECK(ftruncate(fd, P) == 0 && fcntl(fd, F_ADD_SEALS, F_SEAL_GROW) == 0);
    /* What fits is written, unless the page cache takes all in one piece (Linux since 6.9, where it has large folios). */
    n = pwrite(fd, link, 10, P - 5);
    CHECK(n == 5 || (n == -1 && errno == EPERM));
    FAILS(EPERM, pwrite(fd, link, 10, P));

    /* F_SEAL_EXEC keeps who may execute the file; the other bits change. An executable one is sealed against writing, too. */
    fd = memfd_create("exec", MFD_ALLOW_SEALING);
    CHECK(fchmod(fd, 0644) == 0 && fcntl(fd, F_ADD_SEALS, F_SEAL_EXEC) == 0 && fcntl(fd, F_GET_SEALS) == F_SEAL_EXEC);
    FAILS(EPERM, fchmod(fd, 0744));
    FAILS(EPERM, fchmod(fd, 0777));
    CHECK(fchmod(fd, 0600) == 0 && fstat(fd, &st) == 0 && (st.st_mode & 07777) == 0600);
    CHECK(write(fd, "x", 1) == 1);
    fd = memfd_create("exec", MFD_ALLOW_SEALING);
    CHECK(fchmod(fd, 0700) == 0 && fcntl(fd, F_ADD_SEALS, F_SEAL_EXEC) == 0);
    CHECK(fcntl(fd, F_GET_SEALS) == (F_SEAL_EXEC | F_SEAL_WRITE | F_SEAL_FUTURE_WRITE | F_SEAL_SHRINK | F_SEAL_GROW));
    FAILS(EPERM, fchmod(fd, 0600));
    FAILS(EPERM, write(fd, "x", 1));
    fd = memfd_create("noexec", MFD_NOEXEC_SEAL);
    CHECK(fstat(fd, &st) == 0 && (st.st_mode & 07777) == 0666);
    FAILS(EPERM, fchmod(fd, 0777));

    noexec();

    int ro = open("/proc/self/exe", O_RDONLY);
    /* A file of a tmpfs is sealed against sealing, others know no seals. */
    int seals = fcntl(ro, F_GET_SEALS);
    CHECK(seals == F_SEAL_SEAL || (seals == -1 && errno == EINVAL));
    return check_done();
}
