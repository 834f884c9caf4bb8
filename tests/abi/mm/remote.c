/* process_vm_readv, process_vm_writev and /proc/PID/mem. */
#include "../check.h"
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define P 4096UL
#define RW (PROT_READ | PROT_WRITE)

/* process_mrelease(2): the memory of who is dying, and of nobody else. */
static void released(void)
{
    char *shared = mmap(NULL, P, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int status, done = 0;
    for (int round = 0; round < 20; round++) {
        int ends[2];
        CHECK(pipe(ends) == 0);
        pid_t child = fork();
        if (child == 0) {
            size_t len = 8 << 20;
            char *own = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            memset(own, 1, len);
            write(ends[1], "x", 1);
            for (;;)
                for (size_t i = 0; i < len; i += P)
                    if (own[i] == 0)
                        shared[0] = 1;
        }
        char byte;
        CHECK(read(ends[0], &byte, 1) == 1);
        int pidfd = syscall(SYS_pidfd_open, child, 0);
        FAILS(EINVAL, syscall(448, pidfd, 0));
        FAILS(EINVAL, syscall(448, pidfd, 1));
        kill(child, SIGKILL);
        errno = 0;
        int got = syscall(448, pidfd, 0);
        CHECK(got == 0 || errno == ESRCH || errno == EAGAIN);
        done += got == 0;
        CHECK(waitpid(child, &status, 0) == child && WTERMSIG(status) == SIGKILL);
        FAILS(ESRCH, syscall(448, pidfd, 0));
        close(pidfd), close(ends[0]), close(ends[1]);
    }
    FAILS(EBADF, syscall(448, -1, 0));
    FAILS(EBADF, syscall(448, 0, 0));
    /* Nobody has run on with memory that had been taken away. */
    CHECK(shared[0] == 0);
    printf("%d of 20 released in time\n", done);
}

int main(void)
{
    char *p = mmap(0, 8 * P, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(p, 'a', 4 * P);
    mprotect(p + 2 * P, P, PROT_NONE);
    mprotect(p + 3 * P, P, PROT_READ);
    munmap(p + 6 * P, P);
    pid_t pid = fork();
    if (pid == 0) {
        pause();
        _exit(p[5] == 'b' && p[3 * P] == 'm' && p[5 * P] == 'z' ? 0 : 1);
    }
    char buf[8 * P];
    memset(p, 'x', P);
    struct iovec local = {buf, sizeof buf}, remote = {p, 2 * P};
    CHECK(process_vm_readv(pid, &local, 1, &remote, 1, 0) == 2 * (long)P);
    CHECK(buf[0] == 'a' && buf[2 * P - 1] == 'a');
    FAILS(EINVAL, process_vm_readv(pid, &local, 1, &remote, 1, 1));
    FAILS(ESRCH, process_vm_readv(0x3ffffff, &local, 1, &remote, 1, 0));
    /* Up to what cannot be read. */
    remote.iov_len = 4 * P;
    CHECK(process_vm_readv(pid, &local, 1, &remote, 1, 0) == 2 * (long)P);
    remote.iov_base = p + 2 * P;
    FAILS(EFAULT, process_vm_readv(pid, &local, 1, &remote, 1, 0));
    struct iovec pieces[2] = {{buf, 3}, {buf + 100, 5}}, there[3] = {{p, 1}, {p + P - 1, 2}, {p + 4 * P, 5}};
    memset(buf, '-', 200);
    CHECK(process_vm_readv(pid, pieces, 2, there, 3, 0) == 8);
    CHECK(memcmp(buf, "aaa-", 4) == 0 && memcmp(buf + 100, "\0\0\0\0\0-", 6) == 0);
    buf[0] = 'b';
    struct iovec to = {p + 5, 1}, from = {buf, 1};
    CHECK(process_vm_writev(pid, &from, 1, &to, 1, 0) == 1);
    CHECK(p[5] == 'x');
    to.iov_base = p + 3 * P;
    FAILS(EFAULT, process_vm_writev(pid, &from, 1, &to, 1, 0));

    /* A debugger writes where the program cannot. */
    char name[64];
    snprintf(name, sizeof name, "/proc/%d/mem", pid);
    int fd = open(name, O_RDWR);
    CHECK(fd >= 0);
    CHECK(pwrite(fd, "m", 1, (off_t)(p + 3 * P)) == 1);
    CHECK(pwrite(fd, "z", 1, (off_t)(p + 5 * P)) == 1);
    CHECK(pread(fd, buf, 2, (off_t)(p + 3 * P)) == 2 && buf[0] == 'm' && buf[1] == 'a');
    CHECK(pread(fd, buf, 1, (off_t)(p + 2 * P)) == 1 && buf[0] == 'a');
    FAILS(EIO, pread(fd, buf, 1, (off_t)(p + 6 * P)));
    close(fd);
    CHECK(p[3 * P] == 'a');
    signal(SIGCHLD, SIG_DFL);
    int status;
    kill(pid, SIGCONT);
    kill(pid, SIGUSR1);
    CHECK(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status));
    released();
    return check_done();
}
