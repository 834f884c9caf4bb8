/* Pipes and FIFOs: atomicity, edges, sizes, packets, splice and tee. */
#include "../check.h"
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

static short events(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN | POLLOUT | POLLPRI | POLLRDHUP};
    CHECK(poll(&p, 1, 0) >= 0);
    return p.revents;
}

static void ends_and_edges(void)
{
    int p[2];
    char buf[16];
    CHECK(pipe2(p, O_NONBLOCK | O_CLOEXEC) == 0);
    CHECK((fcntl(p[0], F_GETFL) & (O_ACCMODE | O_NONBLOCK)) == (O_RDONLY | O_NONBLOCK));
    CHECK((fcntl(p[1], F_GETFL) & O_ACCMODE) == O_WRONLY);
    CHECK(fcntl(p[0], F_GETFD) == FD_CLOEXEC);
    FAILS(EAGAIN, read(p[0], buf, 1));
    CHECK(read(p[0], buf, 0) == 0);
    FAILS(EBADF, write(p[0], "x", 1));
    FAILS(EBADF, read(p[1], buf, 1));
    FAILS(ESPIPE, lseek(p[0], 0, SEEK_CUR));
    CHECK(events(p[0]) == 0);
    CHECK(events(p[1]) == POLLOUT);
    CHECK(write(p[1], "abc", 3) == 3);
    CHECK(events(p[0]) == POLLIN);
    int n = 0;
    CHECK(ioctl(p[0], FIONREAD, &n) == 0 && n == 3);
    CHECK(read(p[0], buf, 2) == 2 && !memcmp(buf, "ab", 2));
    close(p[1]);
    CHECK(events(p[0]) == (POLLIN | POLLHUP));
    CHECK(read(p[0], buf, 9) == 1);
    CHECK(events(p[0]) == POLLHUP);
    CHECK(read(p[0], buf, 9) == 0);
    close(p[0]);

    CHECK(pipe(p) == 0);
    close(p[0]);
    signal(SIGPIPE, SIG_IGN);
    CHECK(events(p[1]) == (POLLOUT | POLLERR));
    FAILS(EPIPE, write(p[1], "x", 1));
    CHECK(write(p[1], "x", 0) == 0);
    close(p[1]);
    FAILS(EINVAL, pipe2(p, O_APPEND));
    FAILS(EFAULT, pipe2((int *)8, 0));
}

static void sigpipe_kills(void)
{
    int status, p[2];
    CHECK(pipe(p) == 0);
    close(p[0]);
    pid_t pid = fork();
    if (pid == 0) {
        signal(SIGPIPE, SIG_DFL);
        write(p[1], "x", 1);
        _exit(0);
    }
    CHECK(waitpid(pid, &status, 0) == pid);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGPIPE);
    close(p[1]);
}

static void sizes(void)
{
    static char big[1 << 20];
    int p[2];
    CHECK(pipe2(p, O_NONBLOCK) == 0);
    CHECK(fcntl(p[0], F_GETPIPE_SZ) == 65536);
    CHECK(fcntl(p[1], F_SETPIPE_SZ, 5000) == 8192);
    CHECK(fcntl(p[1], F_GETPIPE_SZ) == 8192);
    CHECK(write(p[1], big, sizeof big) == 8192);
    FAILS(EAGAIN, write(p[1], big, 1));
    CHECK(events(p[1]) == 0);
    /* Room for a byte makes no room for a page. */
    CHECK(read(p[0], big, 1) == 1);
    FAILS(EAGAIN, write(p[1], big, 1));
    FAILS(EBUSY, fcntl(p[1], F_SETPIPE_SZ, 4096));
    CHECK(read(p[0], big, 4095) == 4095);
    CHECK(events(p[1]) == POLLOUT);
    /* Up to PIPE_BUF bytes go in whole or not at all. */
    CHECK(write(p[1], big, 4000) == 4000);
    FAILS(EAGAIN, write(p[1], big, 97));
    CHECK(write(p[1], big, 96) == 96);
    CHECK(fcntl(p[1], F_SETPIPE_SZ, 1 << 20) == 1 << 20);
    CHECK(write(p[1], big, sizeof big) == (1 << 20) - 8192);
    FAILS(EINVAL, fcntl(p[1], F_SETPIPE_SZ, -1));
    close(p[0]);
    close(p[1]);
}

static void packets(void)
{
    int p[2];
    char buf[64];
    CHECK(pipe2(p, O_DIRECT | O_NONBLOCK) == 0);
    CHECK(write(p[1], "first", 5) == 5 && write(p[1], "second", 6) == 6);
    CHECK(read(p[0], buf, 3) == 3 && !memcmp(buf, "fir", 3));
    CHECK(read(p[0], buf, sizeof buf) == 6 && !memcmp(buf, "second", 6));
    FAILS(EAGAIN, read(p[0], buf, 1));
    close(p[0]);
    close(p[1]);
}

static void atomic_writers(void)
{
    int p[2], ok = 1;
    CHECK(pipe(p) == 0);
    for (int w = 0; w < 3; w++) {
        if (fork() == 0) {
            char line[1500];
            memset(line, 'a' + w, sizeof line);
            for (int i = 0; i < 100; i++)
                if (write(p[1], line, sizeof line) != sizeof line)
                    _exit(1);
            _exit(0);
        }
    }
    close(p[1]);
    char line[1500];
    size_t have = 0, total = 0;
    ssize_t n;
    while ((n = read(p[0], line + have, sizeof line - have)) > 0) {
        have += n, total += n;
        if (have == sizeof line) {
            for (size_t i = 1; i < have; i++)
                ok &= line[i] == line[0];
            have = 0;
        }
    }
    CHECK(ok);
    CHECK(total == 3 * 100 * sizeof line);
    for (int w = 0, status; w < 3; w++)
        CHECK(wait(&status) > 0 && status == 0);
    close(p[0]);
}

static void moving(void)
{
    int a[2], b[2];
    char buf[64] = "";
    CHECK(pipe(a) == 0 && pipe(b) == 0);
    CHECK(write(a[1], "0123456789", 10) == 10);
    CHECK(tee(a[0], b[1], 4, 0) == 4);
    CHECK(read(b[0], buf, 64) == 4 && !memcmp(buf, "0123", 4));
    CHECK(splice(a[0], 0, b[1], 0, 6, 0) == 6);
    CHECK(read(b[0], buf, 64) == 6 && !memcmp(buf, "012345", 6));
    FAILS(EAGAIN, splice(b[0], 0, a[1], 0, 1, SPLICE_F_NONBLOCK));
    FAILS(EINVAL, splice(a[0], 0, a[1], 0, 1, 0));
    FAILS(EINVAL, tee(a[0], b[1], 1, 0x100));
    char name[] = "/tmp/abi-pipe-XXXXXX";
    int f = mkstemp(name);
    CHECK(f >= 0);
    off_t at = 3;
    CHECK(splice(a[0], 0, f, &at, 100, 0) == 4 && at == 7);
    CHECK(pread(f, buf, 64, 0) == 7 && !memcmp(buf, "\0\0\0006789", 7));
    at = 4;
    CHECK(splice(f, &at, a[1], 0, 2, 0) == 2 && at == 6);
    CHECK(read(a[0], buf, 64) == 2 && !memcmp(buf, "78", 2));
    struct iovec iov = {"gift", 4};
    CHECK(vmsplice(a[1], &iov, 1, 0) == 4);
    CHECK(read(a[0], buf, 64) == 4 && !memcmp(buf, "gift", 4));
    FAILS(EINVAL, splice(f, 0, f, 0, 1, 0));
    FAILS(ESPIPE, splice(a[0], &at, f, 0, 1, 0));
    unlink(name);
    close(f);
}

static void fifos(void)
{
    char name[] = "/tmp/abi-fifo-XXXXXX", buf[16];
    struct stat st;
    CHECK(mkdtemp(name) != 0);
    CHECK(chdir(name) == 0 && mkfifo("f", 0600) == 0);
    CHECK(stat("f", &st) == 0 && S_ISFIFO(st.st_mode));
    FAILS(ENXIO, open("f", O_WRONLY | O_NONBLOCK));
    int r = open("f", O_RDONLY | O_NONBLOCK);
    CHECK(r >= 0);
    CHECK(read(r, buf, 1) == 0);
    CHECK(events(r) == 0); /* no writer was there yet: no hang-up */
    int w = open("f", O_WRONLY | O_NONBLOCK);
    CHECK(w >= 0);
    FAILS(EAGAIN, read(r, buf, 1));
    CHECK(write(w, "x", 1) == 1);
    close(w);
    CHECK(events(r) == (POLLIN | POLLHUP));
    CHECK(read(r, buf, 9) == 1 && read(r, buf, 9) == 0);
    close(r);
    for (int i = 0; i < 200; i++) {
        pid_t pid = fork();
        if (pid == 0) {
            int fd = open("f", O_WRONLY);
            _exit(!(fd >= 0 && write(fd, "hi", 2) == 2));
        }
        int fd = open("f", O_RDONLY), status;
        CHECK(read(fd, buf, 9) == 2 && read(fd, buf, 9) == 0);
        close(fd);
        CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    }
    unlink("f");
    chdir("/");
    rmdir(name);
}

int main(void)
{
    ends_and_edges();
    sigpipe_kills();
    sizes();
    packets();
    atomic_writers();
    moving();
    fifos();
    return check_done();
}
