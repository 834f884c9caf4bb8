/* Leases: F_SETLEASE, F_GETLEASE, and what breaks them. */
#include "../check.h"
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

static volatile int told, told_fd, told_code;

static void on_signal(int sig, siginfo_t *info, void *context)
{
    told++;
    told_fd = info->si_fd, told_code = info->si_code;
}

static int file(const char *name, int flags)
{
    int fd = open(name, flags | O_CREAT, 0644);
    CHECK(fd >= 0);
    return fd;
}

static void taken(void)
{
    int fd = file("l", O_RDWR);
    CHECK(fcntl(fd, F_GETLEASE) == F_UNLCK);
    FAILS(EAGAIN, fcntl(fd, F_SETLEASE, F_UNLCK));
    FAILS(EINVAL, fcntl(fd, F_SETLEASE, 77));
    /* Open for writing: no lease for reading. */
    FAILS(EAGAIN, fcntl(fd, F_SETLEASE, F_RDLCK));
    CHECK(fcntl(fd, F_SETLEASE, F_WRLCK) == 0 && fcntl(fd, F_GETLEASE) == F_WRLCK);
    CHECK(fcntl(fd, F_SETLEASE, F_WRLCK) == 0 && fcntl(fd, F_SETLEASE, F_UNLCK) == 0 && fcntl(fd, F_GETLEASE) == F_UNLCK);
    close(fd);
    int reader = file("l", O_RDONLY), other = file("l", O_RDONLY);
    CHECK(fcntl(reader, F_SETLEASE, F_RDLCK) == 0 && fcntl(other, F_SETLEASE, F_RDLCK) == 0);
    CHECK(fcntl(reader, F_GETLEASE) == F_RDLCK);
    FAILS(EAGAIN, fcntl(reader, F_SETLEASE, F_WRLCK));
    close(other);
    CHECK(fcntl(reader, F_SETLEASE, F_WRLCK) == 0);
    /* A copy of the descriptor has the same; the last close ends it. */
    int copy = dup(reader);
    CHECK(fcntl(copy, F_GETLEASE) == F_WRLCK);
    close(reader);
    CHECK(fcntl(copy, F_GETLEASE) == F_WRLCK);
    close(copy);
    reader = file("l", O_RDONLY);
    CHECK(fcntl(reader, F_GETLEASE) == F_UNLCK);
    other = file("l", O_RDWR);
    FAILS(EAGAIN, fcntl(reader, F_SETLEASE, F_RDLCK));
    FAILS(EAGAIN, fcntl(reader, F_SETLEASE, F_WRLCK));
    FAILS(EAGAIN, fcntl(other, F_SETLEASE, F_WRLCK));
    close(other), close(reader);
    int dir = open(".", O_RDONLY), ends[2];
    FAILS(EINVAL, fcntl(dir, F_SETLEASE, F_RDLCK));
    CHECK(pipe(ends) == 0);
    FAILS(EINVAL, fcntl(ends[0], F_SETLEASE, F_RDLCK));
    close(dir), close(ends[0]), close(ends[1]);
    if (geteuid() == 0) {
        chmod(".", 0755);
        fd = file("l", O_RDONLY);
        pid_t child = fork();
        if (child == 0) {
            check_failures = 0;
            CHECK(setresuid(1000, 1000, 1000) == 0);
            FAILS(EACCES, fcntl(fd, F_SETLEASE, F_RDLCK));
            FAILS(EACCES, fcntl(fd, F_SETLEASE, F_UNLCK));
            FAILS(EINVAL, fcntl(fd, F_SETLEASE, 77));
            fflush(stdout), _exit(check_failures != 0);
        }
        int status;
        waitpid(child, &status, 0);
        CHECK(status == 0);
        close(fd);
    }
}

static double seconds(void)
{
    struct timeval now;
    gettimeofday(&now, NULL);
    return now.tv_sec + now.tv_usec / 1e6;
}

/* Opens in a child and returns its exit status: 0, or the error. */
static pid_t opens(int flags, int cut)
{
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        if (cut)
            _exit(truncate("l", 0) ? errno : 0);
        int fd = open("l", flags);
        _exit(fd < 0 ? errno : 0);
    }
    return child;
}

static int status_of(pid_t child)
{
    int status;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status));
    return WEXITSTATUS(status);
}

static int still_waits(pid_t child)
{
    int status;
    usleep(200000);
    return waitpid(child, &status, WNOHANG) == 0;
}

static void await_signal(int n)
{
    for (int i = 0; i < 500 && told < n; i++)
        usleep(10000);
    CHECK(told == n);
}

static void broken(void)
{
    struct sigaction act = { .sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_RESTART };
    sigaction(SIGIO, &act, NULL), sigaction(SIGRTMIN + 1, &act, NULL);
    int fd = file("l", O_RDONLY);
    CHECK(fcntl(fd, F_SETSIG, SIGRTMIN + 1) == 0);

    /* A reader does not disturb a lease for reading. */
    CHECK(fcntl(fd, F_SETLEASE, F_RDLCK) == 0);
    CHECK(status_of(opens(O_RDONLY, 0)) == 0 && told == 0);
    CHECK(status_of(opens(O_WRONLY | O_NONBLOCK, 0)) == EWOULDBLOCK);
    await_signal(1);
    CHECK(told_fd == fd && told_code == POLL_MSG && fcntl(fd, F_GETLEASE) == F_UNLCK);
    /* Told once. */
    CHECK(status_of(opens(O_WRONLY | O_NONBLOCK, 0)) == EWOULDBLOCK && told == 1);
    pid_t child = opens(O_WRONLY, 0);
    CHECK(still_waits(child) && told == 1);
    CHECK(fcntl(fd, F_SETLEASE, F_UNLCK) == 0 && status_of(child) == 0);

    /* A lease for writing goes down to one for reading for a reader. */
    CHECK(fcntl(fd, F_SETLEASE, F_WRLCK) == 0);
    child = opens(O_RDONLY, 0);
    await_signal(2);
    CHECK(still_waits(child) && fcntl(fd, F_GETLEASE) == F_RDLCK);
    CHECK(fcntl(fd, F_SETLEASE, F_RDLCK) == 0 && status_of(child) == 0 && fcntl(fd, F_GETLEASE) == F_RDLCK);
    child = opens(O_RDWR, 0);
    await_signal(3);
    CHECK(still_waits(child));
    close(fd);
    CHECK(status_of(child) == 0);

    /* truncate(2) writes; a plain SIGIO without F_SETSIG. */
    fd = file("l", O_RDONLY);
    CHECK(fcntl(fd, F_SETLEASE, F_RDLCK) == 0);
    child = opens(0, 1);
    await_signal(4);
    CHECK(still_waits(child) && fcntl(fd, F_SETLEASE, F_UNLCK) == 0 && status_of(child) == 0);

    /* Waiting can be killed. */
    CHECK(fcntl(fd, F_SETLEASE, F_WRLCK) == 0);
    child = opens(O_WRONLY, 0);
    await_signal(5);
    kill(child, SIGTERM);
    int status;
    CHECK(waitpid(child, &status, 0) == child && WTERMSIG(status) == SIGTERM);
    close(fd);
}

/* Who does not give it back loses it. */
static void timed(void)
{
    int knob = open("/proc/sys/fs/lease-break-time", O_RDWR);
    char old[16] = "";
    if (knob < 0 || read(knob, old, sizeof old) <= 0 || pwrite(knob, "1\n", 2, 0) != 2)
        return;
    int fd = file("l", O_RDONLY);
    CHECK(fcntl(fd, F_SETLEASE, F_WRLCK) == 0);
    double before = seconds();
    pid_t child = opens(O_RDONLY, 0);
    CHECK(status_of(child) == 0 && seconds() - before > 0.8 && fcntl(fd, F_GETLEASE) == F_RDLCK);
    child = opens(O_WRONLY, 0);
    CHECK(status_of(child) == 0 && fcntl(fd, F_GETLEASE) == F_UNLCK);
    FAILS(EAGAIN, fcntl(fd, F_SETLEASE, F_UNLCK));
    close(fd);
    pwrite(knob, old, strlen(old), 0);
    close(knob);
}

int main(void)
{
    char dir[] = "/tmp/leaseXXXXXX";
    CHECK(mkdtemp(dir) && chdir(dir) == 0);
    taken();
    broken();
    timed();
    unlink("l");
    chdir("/");
    rmdir(dir);
    return check_done();
}
