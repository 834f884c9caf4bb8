/* acct(2): who may, which files, and what the records of version 3 say. Run by root. */
#include "../check.h"
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdint.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct record {
    uint8_t flag, version;
    uint16_t tty;
    uint32_t exitcode, uid, gid, pid, ppid, btime;
    float etime;
    uint16_t utime, stime, mem, io, rw, minflt, majflt, swaps;
    char comm[16];
};

static unsigned long value(uint16_t comp)
{
    return (unsigned long)(comp & 0x1fff) << 3 * (comp >> 13);
}

static pid_t leaves(int how)
{
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        switch (how) {
        case 0: _exit(7);
        case 1: raise(SIGKILL);
        case 2: execl("/bin/sh", "sh", "-c", "exit 3", NULL);
        case 3:
            setresgid(500, 500, 500), setresuid(400, 400, 400);
            for (clock_t begin = clock(); clock() - begin < CLOCKS_PER_SEC / 2;)
                ;
            _exit(0);
        }
        _exit(99);
    }
    int status;
    waitpid(child, &status, 0);
    return child;
}

static int find(const char *path, pid_t pid, struct record *out)
{
    int fd = open(path, O_RDONLY), found = 0;
    struct stat st;
    fstat(fd, &st);
    lseek(fd, st.st_size % 64, SEEK_SET);
    while (read(fd, out, sizeof *out) == sizeof *out)
        if (out->pid == (uint32_t)pid) {
            found = 1;
            break;
        }
    close(fd);
    return found;
}

int main(void)
{
    struct record r;
    struct stat st;
    char dir[] = "/tmp/acctXXXXXX";
    CHECK(mkdtemp(dir) && chdir(dir) == 0);
    close(open("log", O_CREAT | O_RDWR, 0600));
    mkdir("d", 0700);
    FAILS(ENOENT, acct("missing"));
    FAILS(EISDIR, acct("d"));
    FAILS(EACCES, acct("/dev/null"));
    FAILS(EINVAL, acct("/proc/self/comm"));
    FAILS(EFAULT, acct((char *)1));
    CHECK(sizeof r == 64 && acct(NULL) == 0);
    pid_t child = fork();
    if (child == 0) {
        setresuid(1000, 1000, 1000);
        FAILS(EPERM, acct("log"));
        FAILS(EPERM, acct(NULL));
        fflush(stdout), _exit(check_failures != 0);
    }
    int status;
    waitpid(child, &status, 0);
    CHECK(status == 0);

    time_t before = time(NULL);
    CHECK(acct("log") == 0);
    pid_t pids[4];
    for (int i = 0; i < 4; i++)
        pids[i] = leaves(i);
    CHECK(acct(NULL) == 0);
    pid_t after = leaves(0);
    CHECK(stat("log", &st) == 0 && st.st_size >= 4 * 64 && st.st_size % 64 == 0);
    CHECK(!find("log", after, &r));

    CHECK(find("log", pids[0], &r) && r.exitcode == 7 << 8 && (r.flag & (1 | 8 | 16)) == 1 && r.version == 3);
    CHECK(r.ppid == (uint32_t)getpid() && r.uid == 0 && r.gid == 0 && !strncmp(r.comm, "t", 1) && r.swaps == 0);
    CHECK(r.btime >= before - 1 && r.btime <= time(NULL) + 1 && r.etime >= 0 && r.etime < 1000 && value(r.mem) > 500);
    CHECK(find("log", pids[1], &r) && r.exitcode == SIGKILL && (r.flag & (1 | 8 | 16)) == 17);
    CHECK(find("log", pids[2], &r) && r.exitcode == 3 << 8 && (r.flag & (1 | 8 | 16)) == 0 && !strcmp(r.comm, "sh"));
    CHECK(find("log", pids[3], &r) && r.uid == 400 && r.gid == 500 && value(r.utime) + value(r.stime) >= 40 && r.etime >= 40);

    /* Another file takes over; what is appended stays behind what was there. */
    int fd = open("second", O_CREAT | O_RDWR, 0600);
    CHECK(write(fd, "before", 6) == 6);
    CHECK(acct("log") == 0 && acct("second") == 0);
    after = leaves(0);
    CHECK(acct(NULL) == 0 && fstat(fd, &st) == 0 && st.st_size % 64 == 6);
    char head[6];
    CHECK(pread(fd, head, 6, 0) == 6 && !memcmp(head, "before", 6));
    CHECK(find("second", after, &r));
    close(fd);

    /* The file keeps no mount busy, and the end of its file system ends the accounting. */
    CHECK(mount("none", "d", "tmpfs", 0, NULL) == 0);
    close(open("d/log", O_CREAT | O_RDWR, 0600));
    CHECK(acct("d/log") == 0);
    after = leaves(0);
    CHECK(find("d/log", after, &r));
    CHECK(umount2("d", 0) == 0);
    leaves(0);
    CHECK(acct(NULL) == 0);

    /* No limit of the process's own keeps its record away. */
    unlink("log");
    close(open("log", O_CREAT | O_RDWR, 0600));
    CHECK(acct("log") == 0);
    struct rlimit none = { 0, RLIM_INFINITY }, old;
    getrlimit(RLIMIT_FSIZE, &old), setrlimit(RLIMIT_FSIZE, &none);
    after = leaves(0);
    setrlimit(RLIMIT_FSIZE, &old);
    CHECK(acct(NULL) == 0 && find("log", after, &r));
    unlink("log"), unlink("second"), rmdir("d");
    chdir("/");
    rmdir(dir);
    return check_done();
}
