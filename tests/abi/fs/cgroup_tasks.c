/* cgroup2's controllers, domains and threaded groups: subtree_control, type, threads, and the pids controller. */
#include "cgroup.h"
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static int put_number(const char *path, long number)
{
    char buf[32];
    sprintf(buf, "%ld", number);
    return put(path, buf);
}

static int is(const char *path, const char *expected)
{
    int same = !strcmp(get(path), expected);
    if (!same)
        printf("%s is \"%s\", not \"%s\"\n", path, text, expected);
    return same;
}

static int has(const char *path, const char *word)
{
    return strstr(get(path), word) != NULL;
}

static int lines(const char *path)
{
    int n = 0;
    for (const char *at = get(path); *at; at++)
        n += *at == '\n';
    return n;
}

/* Waits for what another process does. */
static int becomes(const char *path, const char *expected)
{
    for (int i = 0; i < 500; i++) {
        if (!strcmp(get(path), expected))
            return 1;
        usleep(10000);
    }
    printf("%s stays \"%s\", not \"%s\"\n", path, text, expected);
    return 0;
}

static int group_is(const char *who, const char *expected)
{
    char path[64];
    sprintf(path, "/proc/%s/cgroup", who);
    const char *line = strstr(get(path), "0::");
    int same = line && !strcmp(line + 3, expected);
    if (!same)
        printf("%s has %s", path, text);
    return same;
}

static void control(void)
{
    CHECK(is("cgroup.controllers", "pids\n") || has("cgroup.controllers", "pids"));
    CHECK(mkdir("a", 0755) == 0 && mkdir("a/b", 0755) == 0);
    CHECK(is("a/cgroup.subtree_control", ""));
    CHECK(access("a/pids.max", F_OK) == 0 && access("a/b/pids.max", F_OK) < 0);
    CHECK(is("a/b/cgroup.controllers", ""));
    CHECK(put("a/b/cgroup.subtree_control", "+pids") == ENOENT);
    CHECK(put("a/cgroup.subtree_control", "+nonsense") == EINVAL);
    CHECK(put("a/cgroup.subtree_control", "pids") == EINVAL);
    CHECK(put("a/cgroup.subtree_control", "*pids") == EINVAL);
    CHECK(put("a/cgroup.subtree_control", "+pids +nonsense") == EINVAL && is("a/cgroup.subtree_control", ""));
    CHECK(put("a/cgroup.subtree_control", " +pids  ") == 0 && is("a/cgroup.subtree_control", "pids\n"));
    CHECK(put("a/cgroup.subtree_control", "+pids") == 0);
    CHECK(is("a/b/cgroup.controllers", "pids\n") && is("a/b/pids.max", "max\n"));
    CHECK(put("a/b/cgroup.subtree_control", "+pids") == 0);
    CHECK(put("a/cgroup.subtree_control", "-pids") == EBUSY);
    CHECK(put("a/b/cgroup.subtree_control", "-pids") == 0);
    CHECK(put("a/b/pids.max", "7") == 0 && is("a/b/pids.max", "7\n"));
    int fd = open("a/b/pids.max", O_RDWR);
    CHECK(put("a/cgroup.subtree_control", "+pids -pids") == 0 && is("a/cgroup.subtree_control", ""));
    CHECK(access("a/b/pids.max", F_OK) < 0 && errno == ENOENT);
    char byte;
    FAILS(ENODEV, read(fd, &byte, 1));
    close(fd);
    CHECK(put("a/cgroup.subtree_control", "+pids") == 0 && is("a/b/pids.max", "max\n"));
    CHECK(rmdir("a/b") == 0 && rmdir("a") == 0);
}

static void limits(void)
{
    CHECK(mkdir("p", 0755) == 0 && put("p/cgroup.subtree_control", "+pids") == 0 && mkdir("p/c", 0755) == 0);
    CHECK(put("p/pids.max", "-1") == EINVAL && put("p/pids.max", "x") == EINVAL && put("p/pids.max", "4194305") == EINVAL);
    CHECK(put("p/pids.max", "4194304") == 0 && is("p/pids.max", "4194304\n"));
    CHECK(put("p/pids.max", "max\n") == 0 && is("p/pids.max", "max\n") && put("p/pids.max", "3\n") == 0);
    CHECK(is("p/c/pids.current", "0\n") && is("p/c/pids.peak", "0\n") && is("p/pids.events", "max 0\n"));
    int ends[2], status;
    CHECK(pipe(ends) == 0);
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        check_failures = 0;
        CHECK(put("p/c/cgroup.procs", "0") == 0);
        CHECK(is("p/c/pids.current", "1\n") && is("p/pids.current", "1\n"));
        pid_t first = fork();
        if (first == 0) {
            char byte;
            read(ends[0], &byte, 1);
            _exit(0);
        }
        pid_t second = fork();
        if (second == 0)
            _exit(0);
        CHECK(first > 0 && second > 0);
        /* A zombie is a task until it was waited for. */
        siginfo_t info;
        CHECK(waitid(P_PID, second, &info, WEXITED | WNOWAIT) == 0);
        CHECK(is("p/pids.current", "3\n"));
        struct pollfd watch = { open("p/pids.events", O_RDONLY), POLLPRI };
        char old[32];
        read(watch.fd, old, sizeof old);
        FAILS(EAGAIN, fork());
        pthread_t thread;
        CHECK(pthread_create(&thread, NULL, (void *(*)(void *))pause, NULL) == EAGAIN);
        CHECK(poll(&watch, 1, 1000) == 1 && (watch.revents & POLLPRI));
        CHECK(is("p/pids.events", "max 2\n") && is("p/pids.events.local", "max 2\n"));
        CHECK(is("p/c/pids.events", "max 0\n") && is("p/pids.current", "3\n"));
        CHECK(waitpid(second, &status, 0) == second && is("p/pids.current", "2\n") && is("p/pids.peak", "3\n"));
        /* Threads count, and go when they end. */
        CHECK(pthread_create(&thread, NULL, (void *(*)(void *))usleep, (void *)1) == 0);
        pthread_join(thread, NULL);
        CHECK(becomes("p/pids.current", "2\n"));
        /* What is moved in may exceed the limit. */
        CHECK(put("p/c/pids.max", "1") == 0 && is("p/c/pids.current", "2\n"));
        FAILS(EAGAIN, fork());
        CHECK(is("p/c/pids.events", "max 1\n") && is("p/pids.events", "max 3\n") && is("p/pids.events.local", "max 2\n"));
        CHECK(put("cgroup.procs", "0") == EBUSY && put("../cgroup.procs", "0") == 0 && is("p/c/pids.current", "1\n"));
        CHECK(put("p/c/cgroup.procs", "0") == 0 && is("p/c/pids.current", "2\n"));
        write(ends[1], "x", 1);
        waitpid(first, &status, 0);
        fflush(stdout), _exit(check_failures != 0);
    }
    waitpid(child, &status, 0);
    CHECK(status == 0 && is("p/pids.current", "0\n") && is("p/c/pids.current", "0\n"));
    /* The end of a group with its zombie: the counts above follow. */
    child = fork();
    if (child == 0) {
        put("p/c/cgroup.procs", "0");
        _exit(0);
    }
    siginfo_t info;
    waitid(P_PID, child, &info, WEXITED | WNOWAIT);
    CHECK(is("p/pids.current", "1\n") && rmdir("p/c") == 0 && is("p/pids.current", "1\n"));
    waitpid(child, &status, 0);
    CHECK(is("p/pids.current", "0\n") && rmdir("p") == 0);
    close(ends[0]), close(ends[1]);
}

static void kinds(void)
{
    CHECK(mkdir("d", 0755) == 0 && mkdir("d/t", 0755) == 0 && mkdir("d/u", 0755) == 0 && mkdir("d/t/x", 0755) == 0);
    CHECK(is("d/cgroup.type", "domain\n") && is("d/t/cgroup.type", "domain\n"));
    CHECK(put("d/t/cgroup.type", "domain") == EINVAL && put("d/t/cgroup.type", "x") == EINVAL);
    CHECK(put("d/t/cgroup.type", "threaded") == 0 && put("d/t/cgroup.type", "threaded\n") == 0);
    CHECK(is("d/cgroup.type", "domain threaded\n") && is("d/t/cgroup.type", "threaded\n"));
    CHECK(is("d/u/cgroup.type", "domain invalid\n") && is("d/t/x/cgroup.type", "domain invalid\n"));
    CHECK(put("d/u/cgroup.procs", "0") == EOPNOTSUPP && put("d/t/x/cgroup.procs", "0") == EOPNOTSUPP);
    CHECK(put("d/u/cgroup.subtree_control", "+pids") != 0);
    get("d/t/cgroup.procs");
    CHECK(errno == EOPNOTSUPP);
    CHECK(put("d/t/cgroup.kill", "1") == EOPNOTSUPP);
    CHECK(rmdir("d/t/x") == 0 && rmdir("d/t") == 0 && is("d/cgroup.type", "domain\n") && is("d/u/cgroup.type", "domain\n"));
    /* One with processes cannot become threaded; its domain may have some. */
    fflush(stdout);
    pid_t child = fork();
    if (child == 0)
        for (;;)
            pause();
    CHECK(put_number("d/u/cgroup.procs", child) == 0 && put("d/u/cgroup.type", "threaded") == EOPNOTSUPP);
    CHECK(mkdir("d/t", 0755) == 0 && put("d/t/cgroup.type", "threaded") == EOPNOTSUPP);
    CHECK(put_number("d/cgroup.procs", child) == 0 && put("d/t/cgroup.type", "threaded") == 0);
    /* A whole process into a threaded group: its domain lists it. */
    CHECK(put_number("d/t/cgroup.procs", child) == 0 && lines("d/cgroup.procs") == 1 && lines("d/t/cgroup.threads") == 1);
    CHECK(lines("d/cgroup.threads") == 0 && has("d/cgroup.events", "populated 1") && has("d/t/cgroup.events", "populated 1"));
    CHECK(put("d/cgroup.kill", "1") == 0);
    int status;
    CHECK(waitpid(child, &status, 0) == child && WTERMSIG(status) == SIGKILL);
    CHECK(has("d/cgroup.events", "populated 0") && rmdir("d/t") == 0 && rmdir("d/u") == 0 && rmdir("d") == 0);
}

/* No processes where resources are handed on to groups below, but for threaded controllers. */
static void internal(void)
{
    CHECK(mkdir("i", 0755) == 0 && mkdir("i/j", 0755) == 0);
    fflush(stdout);
    pid_t child = fork();
    if (child == 0)
        for (;;)
            pause();
    CHECK(put_number("i/cgroup.procs", child) == 0);
    CHECK(put("i/cgroup.subtree_control", "+pids") == 0);
    CHECK(is("i/cgroup.type", "domain threaded\n") && is("i/j/cgroup.type", "domain invalid\n"));
    CHECK(put_number("i/j/cgroup.procs", child) == EOPNOTSUPP);
    CHECK(put("i/cgroup.subtree_control", "-pids") == 0 && is("i/cgroup.type", "domain\n"));
    CHECK(put_number("i/j/cgroup.procs", child) == 0);
    /* With processes below, handing on and having some oneself exclude each other. */
    CHECK(put("i/cgroup.subtree_control", "+pids") == 0 && is("i/cgroup.type", "domain\n"));
    CHECK(put_number("i/cgroup.procs", child) == EBUSY);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    CHECK(rmdir("i/j") == 0 && rmdir("i") == 0);
}

static volatile int stop;
static volatile long ticks[4];
static pid_t tids[4];
static pthread_barrier_t barrier;

static void *spin(void *arg)
{
    long me = (long)arg;
    tids[me] = syscall(SYS_gettid);
    pthread_barrier_wait(&barrier);
    while (!stop) {
        ticks[me]++;
        if (ticks[me] % 1024 == 0)
            sched_yield();
    }
    return NULL;
}

static int moves(int which)
{
    long before = ticks[which];
    usleep(300000);
    return ticks[which] != before;
}

static void threads(const char *prefix)
{
    char expected[128], who[64];
    CHECK(mkdir("w", 0755) == 0 && mkdir("w/1", 0755) == 0 && mkdir("w/2", 0755) == 0 && mkdir("other", 0755) == 0);
    CHECK(put("w/1/cgroup.type", "threaded") == 0 && put("w/2/cgroup.type", "threaded") == 0);
    int status;
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        check_failures = 0;
        pthread_t thread[2];
        pthread_barrier_init(&barrier, NULL, 3);
        CHECK(put("w/cgroup.procs", "0") == 0);
        for (long i = 0; i < 2; i++)
            CHECK(pthread_create(&thread[i], NULL, spin, (void *)i) == 0);
        pthread_barrier_wait(&barrier);
        CHECK(lines("w/cgroup.threads") == 3 && lines("w/cgroup.procs") == 1);
        CHECK(put_number("w/1/cgroup.threads", tids[0]) == 0 && put_number("w/2/cgroup.threads", tids[1]) == 0);
        CHECK(put_number("other/cgroup.threads", tids[0]) == EOPNOTSUPP);
        CHECK(lines("w/1/cgroup.threads") == 1 && lines("w/2/cgroup.threads") == 1 && lines("w/cgroup.threads") == 1);
        CHECK(lines("w/cgroup.procs") == 1);
        sprintf(expected, "%s/w/1\n", prefix), sprintf(who, "self/task/%d", tids[0]);
        CHECK(group_is(who, expected));
        sprintf(expected, "%s/w\n", prefix);
        CHECK(group_is("self", expected));
        CHECK(has("w/1/cgroup.events", "populated 1"));
        FAILS(EBUSY, rmdir("w/1"));
        CHECK(put("w/cgroup.subtree_control", "+pids") == 0);
        CHECK(is("w/1/pids.current", "1\n") && is("w/pids.current", "3\n"));
        /* A thread is born where its maker is. */
        CHECK(put("w/1/pids.max", "1") == 0);
        /* One thread rests, the others go on. */
        CHECK(put("w/1/cgroup.freeze", "1") == 0 && becomes("w/1/cgroup.events", "populated 1\nfrozen 1\n"));
        CHECK(!moves(0) && moves(1));
        CHECK(put_number("w/2/cgroup.threads", tids[0]) == 0 && moves(0));
        CHECK(becomes("w/1/cgroup.events", "populated 0\nfrozen 1\n"));
        CHECK(put_number("w/1/cgroup.threads", tids[0]) == 0 && becomes("w/1/cgroup.events", "populated 1\nfrozen 1\n"));
        CHECK(put("w/1/cgroup.freeze", "0") == 0 && moves(0));
        /* The main thread away, the process stays the domain's. */
        CHECK(put("w/2/cgroup.threads", "0") == 0 && lines("w/cgroup.threads") == 0 && lines("w/cgroup.procs") == 1);
        CHECK(has("w/cgroup.events", "populated 1"));
        sprintf(expected, "%s/w/2\n", prefix);
        CHECK(group_is("self", expected));
        pid_t born = fork();
        if (born == 0)
            _exit(!group_is("self", expected));
        waitpid(born, &status, 0);
        CHECK(status == 0);
        /* All of it elsewhere at once. */
        CHECK(put("other/cgroup.procs", "0") == 0 && lines("other/cgroup.threads") == 3);
        CHECK(has("w/cgroup.events", "populated 0") && has("w/1/cgroup.events", "populated 0"));
        CHECK(is("w/pids.current", "0\n"));
        stop = 1;
        for (int i = 0; i < 2; i++)
            pthread_join(thread[i], NULL);
        fflush(stdout), _exit(check_failures != 0);
    }
    waitpid(child, &status, 0);
    CHECK(status == 0);
    CHECK(rmdir("w/1") == 0 && rmdir("w/2") == 0 && rmdir("w") == 0 && rmdir("other") == 0);
}

static void *born_and_gone(void *arg)
{
    return arg;
}

static void *herd(void *arg)
{
    while (!stop) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, born_and_gone, NULL) == 0)
            pthread_join(thread, NULL);
        pid_t child = fork();
        if (child == 0)
            _exit(0);
        if (child > 0)
            waitpid(child, NULL, 0);
    }
    return NULL;
}

/* Births, ends, moves and freezes at once: the counts come out even. */
static void raced(void)
{
    CHECK(mkdir("r", 0755) == 0 && mkdir("r/1", 0755) == 0 && mkdir("r/2", 0755) == 0);
    CHECK(put("r/1/cgroup.type", "threaded") == 0 && put("r/2/cgroup.type", "threaded") == 0);
    CHECK(put("r/cgroup.subtree_control", "+pids") == 0);
    int status;
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        pthread_t thread[3];
        put("r/cgroup.procs", "0");
        for (int i = 0; i < 3; i++)
            pthread_create(&thread[i], NULL, herd, NULL);
        pause();
    }
    for (int i = 0; i < 200; i++) {
        char path[64];
        sprintf(path, "/proc/%d/task", child);
        char *at = strdup(get("r/cgroup.threads"));
        for (char *line = strtok(at, "\n"); line; line = strtok(NULL, "\n"))
            put(i % 2 ? "r/1/cgroup.threads" : "r/2/cgroup.threads", line);
        free(at);
        put_number(i % 3 ? "r/cgroup.procs" : "r/1/cgroup.procs", child);
        put("r/1/cgroup.freeze", i % 4 == 0 ? "1" : "0");
        put("r/pids.max", i % 5 == 0 ? "4" : "max");
    }
    put("r/1/cgroup.freeze", "1");
    CHECK(put("r/cgroup.kill", "1") == 0);
    waitpid(child, &status, 0);
    CHECK(becomes("r/cgroup.events", "populated 0\nfrozen 0\n") && becomes("r/pids.current", "0\n"));
    CHECK(is("r/1/pids.current", "0\n") && is("r/2/pids.current", "0\n"));
    CHECK(rmdir("r/1") == 0 && rmdir("r/2") == 0 && rmdir("r") == 0);
}

int main(void)
{
    char dir[] = "/tmp/cgroup.XXXXXX";
    CHECK(mkdtemp(dir) != NULL);
    CHECK(mount("cgroup2", dir, "cgroup2", 0, NULL) == 0 && chdir(dir) == 0);
    CHECK(put("cgroup.subtree_control", "+pids") == 0);
    CHECK(mkdir("ursa-tasks", 0755) == 0 && chdir("ursa-tasks") == 0);
    CHECK(put("cgroup.subtree_control", "+pids") == 0);
    control();
    limits();
    kinds();
    internal();
    threads("/ursa-tasks");
    raced();
    CHECK(chdir("..") == 0 && rmdir("ursa-tasks") == 0 && chdir("/") == 0 && umount(dir) == 0 && rmdir(dir) == 0);
    return check_done();
}
