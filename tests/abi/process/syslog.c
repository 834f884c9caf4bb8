/* syslog(2): reading, clearing, the console's level, who may. Run by root. */
#include "../check.h"
#include <fcntl.h>
#include <signal.h>
#include <sys/klog.h>
#include <unistd.h>

enum { CLOSE, OPEN, READ, READ_ALL, READ_CLEAR, CLEAR, CONSOLE_OFF, CONSOLE_ON, CONSOLE_LEVEL, UNREAD, SIZE };

static char text[4 << 20];
static int room;

static void say(const char *what)
{
    /* Linux shows a line without its end only when the next one begins. */
    char line[64];
    int n = sprintf(line, "%s\n", what), fd = open("/dev/kmsg", O_WRONLY);
    CHECK(write(fd, line, n) == n);
    close(fd);
}

/* Reads with `type` all that there is into `text`. */
static int all(int type)
{
    int n = klogctl(type, text, room);
    text[n > 0 ? n : 0] = 0;
    return n;
}

static void read_what_is_unread(void)
{
    while (klogctl(UNREAD, NULL, 0) > 0)
        CHECK(all(READ) > 0);
}

/* The line of `text` that has `what`, on its own; NULL if there is none. */
static char *line_with(const char *what)
{
    char *at = strstr(text, what);
    if (!at)
        return NULL;
    char *end = strchr(at, '\n');
    if (end)
        end[1] = 0;
    while (at > text && at[-1] != '\n')
        at--;
    return at;
}

static void put(const char *path, const char *what)
{
    int fd = open(path, O_WRONLY);
    CHECK(write(fd, what, strlen(what)) == (ssize_t)strlen(what));
    close(fd);
}

static int number_in(const char *path)
{
    char number[64] = "";
    int fd = open(path, O_RDONLY);
    CHECK(read(fd, number, sizeof number - 1) > 0);
    close(fd);
    return atoi(number);
}

static void arguments(void)
{
    room = klogctl(SIZE, NULL, 0);
    CHECK(room >= 4096 && room < (int)sizeof text);
    CHECK(klogctl(OPEN, NULL, 0) == 0 && klogctl(CLOSE, NULL, 0) == 0);
    FAILS(EINVAL, klogctl(-1, text, 10));
    FAILS(EINVAL, klogctl(11, text, 10));
    for (int type = READ; type <= READ_CLEAR; type++) {
        FAILS(EINVAL, klogctl(type, NULL, 10));
        FAILS(EINVAL, klogctl(type, text, -1));
        FAILS(EFAULT, klogctl(type, (char *)-4096L, 10));
        CHECK(klogctl(type, text, 0) == 0);
    }
    say("<5>syslog-test a");
    FAILS(EFAULT, klogctl(READ_ALL, (char *)16, 4096));
}

static void everything(void)
{
    int level;
    unsigned long seconds, micros;
    say("<5>syslog-test one");
    CHECK(all(READ_ALL) > 0 && text[0] == '<');
    char *line = line_with("syslog-test one");
    CHECK(line && sscanf(line, "<%d>[%lu.%lu] syslog", &level, &seconds, &micros) == 3 && level % 8 == 5);
    /* The end of it, in whole lines. */
    int len = line ? strlen(line) : 0;
    CHECK(klogctl(READ_ALL, text, len - 1) == 0);
    CHECK(klogctl(READ_ALL, text, len) == len && text[0] == '<' && text[len - 1] == '\n');
    text[len] = 0;
    CHECK(strstr(text, "syslog-test one"));
    CHECK(klogctl(READ_ALL, text, len + 5) == len && klogctl(READ_ALL, text, 3) == 0);
}

static void on_alarm(int signo)
{
    (void)signo;
}

static void piecemeal(void)
{
    read_what_is_unread();
    CHECK(klogctl(UNREAD, NULL, 0) == 0);
    say("<6>syslog-test two");
    say("<6>syslog-test three");
    int unread = klogctl(UNREAD, NULL, 0);
    CHECK(unread > 30);
    /* A line that does not fit comes in parts. */
    CHECK(klogctl(READ, text, 5) == 5 && text[0] == '<' && klogctl(UNREAD, NULL, 0) == unread - 5);
    int n = klogctl(READ, text, unread - 6);
    text[n > 0 ? n : 0] = 0;
    CHECK(n > 0 && text[n - 1] == '\n' && strstr(text, "test two") && !strstr(text, "three"));
    /* Others go on where one stopped. */
    fflush(stdout);
    pid_t child = fork();
    if (child == 0)
        _exit(all(READ) == unread - 5 - n && text[0] == '<' && strstr(text, "test three") ? 0 : 1);
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0 && klogctl(UNREAD, NULL, 0) == 0);
    /* When all is read one waits, until there is more or a signal comes. */
    struct sigaction action = {.sa_handler = on_alarm};
    sigaction(SIGALRM, &action, NULL);
    alarm(1);
    FAILS(EINTR, klogctl(READ, text, room));
    child = fork();
    if (child == 0)
        _exit(all(READ) > 0 && strstr(text, "test four") ? 0 : 1);
    char path[64], state = 0;
    sprintf(path, "/proc/%d/stat", child);
    while (state != 'S') {
        FILE *stat = fopen(path, "r");
        CHECK(stat && fscanf(stat, "%*d (%*[^)]) %c", &state) == 1);
        fclose(stat);
        usleep(1000);
    }
    say("<6>syslog-test four");
    CHECK(waitpid(child, &status, 0) == child && status == 0);
}

static void clearing(void)
{
    char record[8192];
    read_what_is_unread();
    say("<6>syslog-test five");
    CHECK(klogctl(CLEAR, NULL, 0) == 0);
    all(READ_ALL);
    CHECK(!strstr(text, "syslog-test"));
    /* What was cleared can be read once as before, and from /dev/kmsg. */
    CHECK(klogctl(UNREAD, NULL, 0) > 0 && all(READ) > 0 && strstr(text, "test five"));
    int fd = open("/dev/kmsg", O_RDONLY | O_NONBLOCK), found = 0;
    for (ssize_t n; (n = read(fd, record, sizeof record - 1)) > 0 || errno == EPIPE;) {
        record[n > 0 ? n : 0] = 0;
        found += strstr(record, "syslog-test five") != NULL;
    }
    CHECK(found == 1 && errno == EAGAIN);
    say("<6>syslog-test six");
    CHECK(lseek(fd, 0, SEEK_DATA) == 0);
    ssize_t n = read(fd, record, sizeof record - 1);
    record[n > 0 ? n : 0] = 0;
    CHECK(strstr(record, "syslog-test six"));
    close(fd);
    CHECK(all(READ_CLEAR) > 0 && strstr(text, "test six") && !strstr(text, "test five"));
    all(READ_ALL);
    CHECK(!strstr(text, "syslog-test"));
}

static void console(void)
{
    const char *levels = "/proc/sys/kernel/printk";
    int before = number_in(levels);
    FAILS(EINVAL, klogctl(CONSOLE_LEVEL, NULL, 0));
    FAILS(EINVAL, klogctl(CONSOLE_LEVEL, NULL, 9));
    CHECK(klogctl(CONSOLE_LEVEL, NULL, 3) == 0 && number_in(levels) == 3);
    CHECK(klogctl(CONSOLE_OFF, NULL, 0) == 0 && number_in(levels) == 1);
    CHECK(klogctl(CONSOLE_OFF, NULL, 0) == 0 && klogctl(CONSOLE_ON, NULL, 0) == 0 && number_in(levels) == 3);
    CHECK(klogctl(CONSOLE_ON, NULL, 0) == 0 && number_in(levels) == 3);
    CHECK(klogctl(CONSOLE_OFF, NULL, 0) == 0 && klogctl(CONSOLE_LEVEL, NULL, 2) == 0 && number_in(levels) == 2);
    CHECK(klogctl(CONSOLE_ON, NULL, 0) == 0 && number_in(levels) == 2);
    put(levels, "4");
    CHECK(number_in(levels) == 4);
    CHECK(klogctl(CONSOLE_LEVEL, NULL, before) == 0 && number_in(levels) == before);
}

static void as_user(int restricted)
{
    int status;
    put("/proc/sys/kernel/dmesg_restrict", restricted ? "1" : "0");
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        CHECK(setresgid(1000, 1000, 1000) == 0 && setresuid(1000, 1000, 1000) == 0);
        for (int type = CLOSE; type <= SIZE + 1; type++)
            if (restricted || (type != READ_ALL && type != SIZE))
                FAILS(EPERM, klogctl(type, text, 1));
        if (restricted) {
            FAILS(EPERM, open("/dev/kmsg", O_RDONLY));
        } else {
            CHECK(klogctl(SIZE, NULL, 0) == room && all(READ_ALL) >= 0);
            int fd = open("/dev/kmsg", O_RDONLY);
            CHECK(fd >= 0);
        }
        fflush(stdout);
        _exit(check_failures != 0);
    }
    CHECK(waitpid(child, &status, 0) == child && status == 0);
}

int main(void)
{
    CHECK(number_in("/proc/sys/kernel/dmesg_restrict") == 1);
    arguments();
    everything();
    piecemeal();
    clearing();
    console();
    as_user(0);
    as_user(1);
    return check_done();
}
