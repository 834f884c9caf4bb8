/* sysfs: what a tree of attributes lets programs see and do; and the requests that its uevent files take. Run as root. */
#include "../check.h"
#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#define NULL_DEVICE "/sys/devices/virtual/mem/null"

static const char *slurp(const char *path)
{
    static char text[8192];
    int fd = open(path, O_RDONLY);
    CHECK(fd >= 0);
    ssize_t n = read(fd, text, sizeof text - 1);
    CHECK(n >= 0);
    text[n > 0 ? n : 0] = 0;
    close(fd);
    return text;
}

static const char *target(const char *path)
{
    static char text[512];
    ssize_t n = readlink(path, text, sizeof text - 1);
    CHECK(n > 0);
    text[n > 0 ? n : 0] = 0;
    return text;
}

static ssize_t put(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY);
    CHECK(fd >= 0);
    ssize_t n = write(fd, text, strlen(text));
    int saved = errno;
    close(fd);
    errno = saved;
    return n;
}

int main(void)
{
    struct statfs fs;
    CHECK(statfs("/sys", &fs) == 0 && fs.f_type == 0x62656572 && fs.f_bsize == 4096 && fs.f_namelen == 255);
    CHECK(statfs(NULL_DEVICE "/uevent", &fs) == 0 && fs.f_type == 0x62656572);

    /* What stat says. */
    struct stat st;
    CHECK(lstat(NULL_DEVICE, &st) == 0 && S_ISDIR(st.st_mode) && (st.st_mode & 07777) == 0755 && st.st_size == 0);
    CHECK(lstat(NULL_DEVICE "/dev", &st) == 0 && st.st_mode == (S_IFREG | 0444) && st.st_size == 4096 && st.st_uid == 0);
    CHECK(lstat(NULL_DEVICE "/uevent", &st) == 0 && st.st_mode == (S_IFREG | 0644) && st.st_size == 4096);
    CHECK(lstat(NULL_DEVICE "/subsystem", &st) == 0 && S_ISLNK(st.st_mode) && st.st_size == 0);

    /* The tree. */
    CHECK(!strcmp(slurp(NULL_DEVICE "/dev"), "1:3\n"));
    CHECK(!strcmp(slurp(NULL_DEVICE "/uevent"), "MAJOR=1\nMINOR=3\nDEVNAME=null\nDEVMODE=0666\n"));
    CHECK(!strcmp(target(NULL_DEVICE "/subsystem"), "../../../../class/mem"));
    CHECK(!strcmp(target("/sys/class/mem/null"), "../../devices/virtual/mem/null"));
    CHECK(!strcmp(target("/sys/dev/char/1:3"), "../../devices/virtual/mem/null"));
    CHECK(!strcmp(slurp("/sys/dev/char/5:0/uevent"), "MAJOR=5\nMINOR=0\nDEVNAME=tty\nDEVMODE=0666\n"));
    CHECK(!strcmp(slurp("/sys/devices/system/cpu/online"), slurp("/sys/devices/system/cpu/possible")));
    CHECK(!strcmp(target("/sys/bus/cpu/devices/cpu0"), "../../../devices/system/cpu/cpu0"));
    CHECK(!strcmp(target("/sys/devices/system/cpu/cpu0/node0"), "../../node/node0"));
    CHECK(!strcmp(slurp("/sys/devices/system/node/node0/distance"), "10\n"));

    /* The states to sleep in, by name; a kernel that cannot sleep has none. No other word is taken. */
    CHECK(lstat("/sys/power/state", &st) == 0 && st.st_mode == (S_IFREG | 0644));
    char states[128];
    snprintf(states, sizeof states, "%s", slurp("/sys/power/state"));
    for (char *word = strtok(states, " \n"); word; word = strtok(NULL, " \n"))
        CHECK(!strcmp(word, "freeze") || !strcmp(word, "standby") || !strcmp(word, "mem") || !strcmp(word, "disk"));
    FAILS(EINVAL, put("/sys/power/state", "hibernate"));
    FAILS(EINVAL, put("/sys/power/state", "\n"));

    /* A listing holds each name once, in pieces too. */
    DIR *dir = opendir("/sys/class/mem");
    int nulls = 0, total = 0;
    for (struct dirent *e; (e = readdir(dir));)
        total++, nulls += !strcmp(e->d_name, "null") && e->d_type == DT_LNK;
    CHECK(nulls == 1 && total >= 8);
    rewinddir(dir);
    int again = 0;
    for (long at; (at = telldir(dir)), readdir(dir);)
        again++, seekdir(dir, telldir(dir)), (void)at;
    CHECK(again == total);
    closedir(dir);

    /* Pieces, positions. */
    int fd = open(NULL_DEVICE "/uevent", O_RDWR);
    char buf[64];
    CHECK(read(fd, buf, 6) == 6 && !memcmp(buf, "MAJOR=", 6));
    CHECK(read(fd, buf, 2) == 2 && !memcmp(buf, "1\n", 2));
    CHECK(pread(fd, buf, 5, 8) == 5 && !memcmp(buf, "MINOR", 5));
    CHECK(pread(fd, buf, 5, 4096) == 0);
    CHECK(lseek(fd, 0, SEEK_SET) == 0);
    CHECK(read(fd, buf, 5) == 5 && !memcmp(buf, "MAJOR", 5));
    close(fd);

    /* Readiness: news until it is read, then only the ordinary. */
    fd = open(NULL_DEVICE "/dev", O_RDONLY);
    struct pollfd p = {.fd = fd, .events = POLLIN | POLLPRI};
    CHECK(poll(&p, 1, 0) == 1 && p.revents == (POLLIN | POLLPRI | POLLERR));
    CHECK(read(fd, buf, sizeof buf) == 4);
    CHECK(poll(&p, 1, 0) == 1 && p.revents == POLLIN);
    close(fd);

    /* Nothing is made, moved or removed. */
    FAILS(EACCES, open("/sys/class/mem/new", O_CREAT | O_WRONLY, 0644));
    FAILS(EPERM, mkdir("/sys/class/mem/new", 0755));
    FAILS(EPERM, unlink(NULL_DEVICE "/dev"));
    FAILS(EPERM, rmdir(NULL_DEVICE));
    FAILS(EPERM, symlink("x", "/sys/class/mem/new"));
    FAILS(EPERM, link(NULL_DEVICE "/dev", NULL_DEVICE "/new"));
    FAILS(EPERM, rename(NULL_DEVICE "/dev", NULL_DEVICE "/new"));
    FAILS(EPERM, mknod("/sys/class/mem/new", S_IFIFO | 0644, 0));
    FAILS(ENOENT, open("/sys/class/mem/none", O_RDONLY));
    /* A direction that an attribute does not have is refused to root too. */
    FAILS(EACCES, open(NULL_DEVICE "/dev", O_WRONLY));
    FAILS(EACCES, open("/sys/bus/platform/uevent", O_RDONLY));
    /* Shells truncate first. */
    fd = open(NULL_DEVICE "/uevent", O_WRONLY | O_TRUNC);
    CHECK(fd >= 0);
    close(fd);
    /* Mode and owner may be changed. */
    CHECK(chmod(NULL_DEVICE "/dev", 0400) == 0 && stat(NULL_DEVICE "/dev", &st) == 0 && (st.st_mode & 0777) == 0400);
    CHECK(chmod(NULL_DEVICE "/dev", 0444) == 0);

    /* Requests for a uevent. */
    CHECK(put(NULL_DEVICE "/uevent", "change") == 6);
    CHECK(put(NULL_DEVICE "/uevent", "change\n") == 7);
    CHECK(put(NULL_DEVICE "/uevent", "add fe4d7c9d-b8c6-4a70-9ef1-3d8a58d18eed A=1 B=abc") == 50);
    FAILS(EINVAL, put(NULL_DEVICE "/uevent", "changed"));
    FAILS(EINVAL, put(NULL_DEVICE "/uevent", "chang"));
    FAILS(EINVAL, put(NULL_DEVICE "/uevent", "add fe4d7c9d"));
    FAILS(EINVAL, put(NULL_DEVICE "/uevent", "add fe4d7c9d-b8c6-4a70-9ef1-3d8a58d18eex"));
    FAILS(EINVAL, put(NULL_DEVICE "/uevent", "add fe4d7c9d-b8c6-4a70-9ef1-3d8a58d18eed A"));
    FAILS(EINVAL, put(NULL_DEVICE "/uevent", "add fe4d7c9d-b8c6-4a70-9ef1-3d8a58d18eed A=1-2"));
    unsigned long before = strtoul(slurp("/sys/kernel/uevent_seqnum"), NULL, 10);
    CHECK(put("/sys/bus/platform/uevent", "add") == 3);
    CHECK(strtoul(slurp("/sys/kernel/uevent_seqnum"), NULL, 10) >= before + 1);
    return check_done();
}
