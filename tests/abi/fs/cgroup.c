/* cgroup2 as a tree of groups: making and removing, moving and listing, news of emptiness, freezing, killing, delegation. */
#include "cgroup.h"
#include <fcntl.h>
#include <linux/sched.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef CLONE_INTO_CGROUP
#define CLONE_INTO_CGROUP 0x200000000ULL
#endif

static int put_number(const char *path, long number)
{
    char buf[32];
    sprintf(buf, "%ld\n", number);
    return put(path, buf);
}

static int has_line(const char *path, long number)
{
    char buf[32];
    sprintf(buf, "%ld\n", number);
    size_t len = strlen(buf);
    for (const char *at = get(path); *at; at = strchr(at, '\n') + 1) {
        if (!strncmp(at, buf, len))
            return 1;
    }
    return 0;
}

static int cgroup_is(pid_t pid, const char *expected)
{
    char path[64];
    sprintf(path, "/proc/%d/cgroup", pid);
    const char *line = strstr(get(path), "0::");
    return line && !strcmp(line + 3, expected);
}

static pid_t sleeper(void)
{
    pid_t pid = fork();
    if (pid == 0) {
        for (;;)
            pause();
    }
    return pid;
}

static void await(const char *path, const char *what)
{
    for (int i = 0; i < 2000 && !strstr(get(path), what); i++)
        usleep(5000);
    CHECK(strstr(get(path), what));
}

static void tree(void)
{
    struct statfs sfs;
    struct stat st;
    CHECK(statfs(".", &sfs) == 0 && sfs.f_type == 0x63677270);
    CHECK(mkdir("a", 0755) == 0 && mkdir("a/b", 0750) == 0);
    FAILS(EEXIST, mkdir("a", 0755));
    FAILS(EEXIST, mkdir("a/cgroup.procs", 0755));
    FAILS(EINVAL, mkdir("a/x\ny", 0755));
    CHECK(stat("a/b", &st) == 0 && S_ISDIR(st.st_mode) && (st.st_mode & 0777) == 0750 && st.st_nlink == 2);
    CHECK(stat("a", &st) == 0 && st.st_nlink == 3);
    FAILS(EACCES, open("a/file", O_CREAT | O_RDWR, 0644));
    FAILS(EPERM, symlink("x", "a/link"));
    FAILS(EPERM, unlink("a/cgroup.procs"));
    CHECK(!strcmp(get("a/cgroup.type"), "domain\n"));
    CHECK(!strcmp(get("a/cgroup.events"), "populated 0\nfrozen 0\n"));
    CHECK(!strcmp(get("a/cgroup.freeze"), "0\n") && !strcmp(get("a/cgroup.max.depth"), "max\n"));
    CHECK(!strncmp(get("a/cgroup.stat"), "nr_descendants 1\n", 17));
    CHECK(!strcmp(get("a/cgroup.procs"), ""));
    FAILS(ENOENT, open("../cgroup.events", O_RDONLY));
    CHECK(put("a/cgroup.events", "1") == EINVAL);
    CHECK(put("a/cgroup.freeze", "x") == EINVAL && put("a/cgroup.freeze", "2") == ERANGE);
    CHECK(put("a/cgroup.procs", "x") == EINVAL && put("a/cgroup.procs", "-1") == EINVAL);
    CHECK(put("a/cgroup.procs", "4000000") == ESRCH);
    FAILS(EBUSY, rmdir("a"));
    /* An open file outlives its group and says so. */
    int fd = open("a/b/cgroup.procs", O_RDWR), dir = open("a/b", O_DIRECTORY);
    CHECK(rmdir("a/b") == 0);
    FAILS(ENODEV, read(fd, text, 10));
    FAILS(ENODEV, write(fd, "0", 1));
    FAILS(ENOENT, openat(dir, "cgroup.procs", O_RDONLY));
    close(fd);
    close(dir);
    CHECK(put("a/cgroup.max.descendants", "1") == 0 && !strcmp(get("a/cgroup.max.descendants"), "1\n"));
    CHECK(mkdir("a/b", 0755) == 0);
    FAILS(EAGAIN, mkdir("a/c", 0755));
    FAILS(EAGAIN, mkdir("a/b/c", 0755));
    CHECK(put("a/cgroup.max.descendants", "max") == 0 && put("a/cgroup.max.depth", "1") == 0);
    FAILS(EAGAIN, mkdir("a/b/c", 0755));
    CHECK(mkdir("a/c", 0755) == 0 && rmdir("a/c") == 0 && rmdir("a/b") == 0);
    CHECK(put("a/cgroup.max.depth", "max") == 0);
}

static void members(const char *prefix)
{
    char expected[256];
    pid_t pid = sleeper();
    int events = open("a/cgroup.events", O_RDONLY), notify = inotify_init1(IN_NONBLOCK);
    CHECK(inotify_add_watch(notify, "a/cgroup.events", IN_MODIFY) >= 0);
    CHECK(read(events, text, 100) > 0);
    struct pollfd p = {events, POLLPRI, 0};
    CHECK(poll(&p, 1, 0) == 0);
    CHECK(put_number("a/cgroup.procs", pid) == 0);
    CHECK(poll(&p, 1, 10000) == 1 && p.revents == (POLLPRI | POLLERR));
    CHECK(pread(events, text, 100, 0) > 0 && !strncmp(text, "populated 1\n", 12));
    CHECK(poll(&p, 1, 0) == 0);
    struct pollfd n = {notify, POLLIN, 0};
    CHECK(poll(&n, 1, 10000) == 1);
    struct inotify_event event;
    CHECK(read(notify, &event, sizeof event) == sizeof event && event.mask == IN_MODIFY);
    sprintf(expected, "%s/a\n", prefix);
    CHECK(cgroup_is(pid, expected));
    CHECK(has_line("a/cgroup.procs", pid) && has_line("a/cgroup.threads", pid) && !has_line("cgroup.procs", pid));
    CHECK(strstr(get("a/cgroup.events"), "populated 1"));
    FAILS(EBUSY, rmdir("a"));
    /* A thread alone leaves its domain only into a threaded group. */
    CHECK(mkdir("b", 0755) == 0);
    CHECK(put_number("b/cgroup.threads", pid) == EOPNOTSUPP && put_number("a/cgroup.threads", pid) == 0);
    kill(pid, SIGKILL);
    CHECK(poll(&p, 1, 10000) == 1);
    await("a/cgroup.events", "populated 0");
    /* Nobody has waited for it yet; it holds no group. */
    CHECK(!has_line("a/cgroup.procs", pid) && cgroup_is(pid, expected));
    CHECK(rmdir("a") == 0);
    sprintf(expected, "%s/a (deleted)\n", prefix);
    CHECK(cgroup_is(pid, expected));
    CHECK(waitpid(pid, NULL, 0) == pid);
    CHECK(rmdir("b") == 0);
    close(events);
    close(notify);

    /* Children are born where their parent is; all above hear of the first and the last. */
    CHECK(mkdir("a", 0755) == 0 && mkdir("a/b", 0755) == 0);
    pid = fork();
    if (pid == 0) {
        put("a/b/cgroup.procs", "0");
        pid_t child = sleeper();
        sprintf(expected, "%s/a/b\n", prefix);
        _exit(cgroup_is(child, expected) && cgroup_is(getpid(), expected) ? 0 : 1);
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    CHECK(!strncmp(get("a/cgroup.events"), "populated 1\n", 12) && !strcmp(get("a/cgroup.procs"), ""));
    FAILS(EBUSY, rmdir("a/b"));
    CHECK(put("a/cgroup.kill", "1") == 0);
    await("a/cgroup.events", "populated 0");
    CHECK(rmdir("a/b") == 0 && rmdir("a") == 0);
}

static pid_t clone_into(int fd)
{
    struct { unsigned long long flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size, cgroup; }
        args = {.flags = CLONE_INTO_CGROUP, .exit_signal = SIGCHLD, .cgroup = fd};
    pid_t pid = syscall(SYS_clone3, &args, sizeof args);
    if (pid == 0)
        for (;;)
            pause();
    return pid;
}

static void birth(const char *prefix)
{
    char expected[256];
    CHECK(mkdir("a", 0755) == 0);
    int fd = open("a", O_DIRECTORY | O_CLOEXEC), other = open("/", O_DIRECTORY);
    pid_t pid = clone_into(fd);
    sprintf(expected, "%s/a\n", prefix);
    CHECK(pid > 0 && cgroup_is(pid, expected));
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    int path = open("a", O_PATH | O_DIRECTORY | O_CLOEXEC);
    CHECK((pid = clone_into(path)) > 0 && cgroup_is(pid, expected));
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    close(path);
    FAILS(EBADF, clone_into(other));
    FAILS(EBADF, clone_into(999));
    CHECK(rmdir("a") == 0);
    FAILS(ENOENT, clone_into(fd));
    close(fd);
    close(other);
}

/* A file tells of its changes at once, and then of those of 10 ms together (Linux counts ticks: of 8 ms or more here). */
static void events_are_spread(void)
{
    char buf[4096];
    struct timespec begin, now;
    long told = 0, ms;
    int notify = inotify_init1(IN_NONBLOCK);
    CHECK(mkdir("a", 0755) == 0 && inotify_add_watch(notify, "a/cgroup.events", IN_MODIFY) >= 0);
    clock_gettime(CLOCK_MONOTONIC, &begin);
    struct pollfd p = {notify, POLLIN, 0};
    for (int i = 0; i < 200; i++) {
        CHECK(put("a/cgroup.freeze", i % 2 ? "0" : "1") == 0);
        told += read(notify, buf, sizeof buf) > 0;
    }
    /* The last change is told of as well. */
    CHECK(put("a/cgroup.freeze", "1") == 0);
    CHECK(poll(&p, 1, 10000) == 1);
    while (poll(&p, 1, 100) == 1)
        told += read(notify, buf, sizeof buf) > 0;
    clock_gettime(CLOCK_MONOTONIC, &now);
    ms = (now.tv_sec - begin.tv_sec) * 1000 + (now.tv_nsec - begin.tv_nsec) / 1000000;
    if (told < 1 || told > ms / 8 + 3)
        printf("%ld events in %ld ms\n", told, ms);
    CHECK(told >= 1 && told <= ms / 8 + 3);
    close(notify);
    CHECK(rmdir("a") == 0);
}

static void freezer(void)
{
    volatile long *count = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(mkdir("a", 0755) == 0 && mkdir("a/b", 0755) == 0);
    pid_t busy = fork();
    if (busy == 0)
        for (;;)
            ++*count;
    int end[2];
    CHECK(pipe(end) == 0);
    pid_t reader = fork();
    if (reader == 0) {
        char byte;
        close(end[1]);
        _exit(read(end[0], &byte, 1) == 1 ? byte : 99);
    }
    CHECK(put_number("a/b/cgroup.procs", busy) == 0 && put_number("a/cgroup.procs", reader) == 0);
    while (*count == 0)
        usleep(1000);
    CHECK(put("a/cgroup.freeze", "1") == 0);
    await("a/cgroup.events", "frozen 1");
    /* Linux may call a group frozen when its own tasks are, a moment before those below it. */
    await("a/b/cgroup.events", "frozen 1");
    CHECK(!strcmp(get("a/b/cgroup.freeze"), "0\n"));
    long seen = *count;
    usleep(50000);
    CHECK(*count == seen);
    /* A frozen process takes no signals but fatal ones, and its reads go on afterwards. */
    CHECK(write(end[1], "*", 1) == 1);
    usleep(20000);
    CHECK(waitpid(reader, NULL, WNOHANG) == 0);
    /* What comes in freezes, what is born in it is frozen, what leaves thaws. */
    pid_t late = sleeper();
    CHECK(put_number("a/cgroup.procs", late) == 0);
    await("a/cgroup.events", "frozen 1");
    kill(busy, SIGKILL);
    CHECK(waitpid(busy, NULL, 0) == busy);
    CHECK(put("a/cgroup.freeze", "0") == 0);
    await("a/cgroup.events", "frozen 0");
    int status;
    CHECK(waitpid(reader, &status, 0) == reader && WIFEXITED(status) && WEXITSTATUS(status) == '*');
    kill(late, SIGKILL);
    waitpid(late, NULL, 0);

    /* An empty frozen group is frozen; a child that is forked into it never runs before it thaws. */
    CHECK(put("a/cgroup.freeze", "1") == 0);
    await("a/cgroup.events", "frozen 1");
    int fd = open("a", O_DIRECTORY);
    pid_t born = clone_into(fd);
    CHECK(born > 0);
    /* The group does not thaw meanwhile. */
    CHECK(!strcmp(get("a/cgroup.events"), "populated 1\nfrozen 1\n"));
    CHECK(put("a/cgroup.kill", "1") == 0 && waitpid(born, &status, 0) == born && WTERMSIG(status) == SIGKILL);
    close(fd);
    /* A stopped process rests, too, and stays stopped. */
    CHECK(put("a/cgroup.freeze", "0") == 0);
    pid_t stopped = sleeper();
    CHECK(put_number("a/cgroup.procs", stopped) == 0);
    kill(stopped, SIGSTOP);
    CHECK(waitpid(stopped, &status, WUNTRACED) == stopped && WIFSTOPPED(status));
    CHECK(put("a/cgroup.freeze", "1") == 0);
    await("a/cgroup.events", "frozen 1");
    CHECK(put("a/cgroup.freeze", "0") == 0);
    kill(stopped, SIGKILL);
    waitpid(stopped, NULL, 0);
    /* Also when the stop is still pending; its parent hears of it at the latest when it thaws. */
    for (int i = 0; i < 20; i++) {
        stopped = sleeper();
        CHECK(put_number("a/cgroup.procs", stopped) == 0);
        kill(stopped, SIGSTOP);
        CHECK(put("a/cgroup.freeze", "1") == 0);
        await("a/cgroup.events", "frozen 1");
        CHECK(put("a/cgroup.freeze", "0") == 0);
        CHECK(waitpid(stopped, &status, WUNTRACED) == stopped && WIFSTOPPED(status));
        kill(stopped, SIGKILL);
        waitpid(stopped, NULL, 0);
    }
    await("a/cgroup.events", "populated 0");
    CHECK(rmdir("a/b") == 0 && rmdir("a") == 0);
}

/* Nothing escapes a kill, not even what is being forked. */
static void bomb(void)
{
    for (int round = 0; round < 10; round++) {
        CHECK(mkdir("a", 0755) == 0);
        pid_t pid = fork();
        if (pid == 0) {
            put("a/cgroup.procs", "0");
            signal(SIGCHLD, SIG_IGN);
            for (int i = 0; i < 8; i++)
                fork();
            for (;;)
                pause();
        }
        await("a/cgroup.events", "populated 1");
        usleep(20000);
        CHECK(put("a/cgroup.kill", "1") == 0);
        waitpid(pid, NULL, 0);
        await("a/cgroup.events", "populated 0");
        CHECK(rmdir("a") == 0);
    }
}

/* A part of the tree is another user's; processes outside of it are not. */
static void delegation(void)
{
    CHECK(mkdir("a", 0755) == 0 && mkdir("a/own", 0755) == 0 && mkdir("a/x", 0755) == 0);
    pid_t inside = sleeper(), outside = sleeper();
    CHECK(put_number("a/own/cgroup.procs", inside) == 0 && put_number("a/x/cgroup.procs", outside) == 0);
    CHECK(chown("a/own", 1000, 1000) == 0 && chown("a/own/cgroup.procs", 1000, 1000) == 0);
    struct stat st;
    CHECK(stat("a/own/cgroup.procs", &st) == 0 && st.st_uid == 1000);
    pid_t pid = fork();
    if (pid == 0) {
        if (setresgid(1000, 1000, 1000) || setresuid(1000, 1000, 1000))
            _exit(1);
        int good = mkdir("a/own/sub", 0755) == 0 && put_number("a/own/sub/cgroup.procs", inside) == 0;
        good = good && put_number("a/own/cgroup.procs", inside) == 0 && rmdir("a/own/sub") == 0;
        good = good && put_number("a/own/cgroup.procs", outside) == EACCES;
        good = good && put_number("a/x/cgroup.procs", inside) == EACCES;
        good = good && mkdir("a/y", 0755) == -1 && errno == EACCES && put("a/own/cgroup.kill", "1") == EACCES;
        _exit(good ? 0 : 2);
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    CHECK(put("a/cgroup.kill", "1") == 0);
    waitpid(inside, NULL, 0);
    waitpid(outside, NULL, 0);
    await("a/cgroup.events", "populated 0");
    CHECK(rmdir("a/own") == 0 && rmdir("a/x") == 0 && rmdir("a") == 0);
}

int main(void)
{
    char dir[] = "/tmp/cgroup.XXXXXX";
    CHECK(mkdtemp(dir) != NULL);
    FAILS(EINVAL, mount("cgroup2", dir, "cgroup2", 0, "nonsense"));
    CHECK(mount("cgroup2", dir, "cgroup2", 0, NULL) == 0 && chdir(dir) == 0);
    /* A part of the tree for this test alone. */
    rmdir("ursa-abi");
    CHECK(mkdir("ursa-abi", 0755) == 0 && chdir("ursa-abi") == 0);
    tree();
    members("/ursa-abi");
    birth("/ursa-abi");
    freezer();
    events_are_spread();
    bomb();
    delegation();
    CHECK(chdir("..") == 0 && rmdir("ursa-abi") == 0 && chdir("/") == 0 && umount(dir) == 0 && rmdir(dir) == 0);
    return check_done();
}
