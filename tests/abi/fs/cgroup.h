/* Reading and writing a group's files. */
#ifndef CGROUP_H
#define CGROUP_H
#include "../check.h"
#include <fcntl.h>

static char text[65536];

/* What a file says, until the next call; nothing, and errno, where it cannot be read. */
__attribute__((unused)) static const char *get(const char *path)
{
    int fd = open(path, O_RDONLY);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    int error = errno;
    if (fd >= 0)
        close(fd);
    text[n > 0 ? n : 0] = 0;
    errno = n < 0 ? error : 0;
    return text;
}

/* 0, or the error. */
__attribute__((unused)) static int put(const char *path, const char *what)
{
    int fd = open(path, O_WRONLY), error = 0;
    if (fd < 0)
        return errno;
    if (write(fd, what, strlen(what)) != (ssize_t)strlen(what))
        error = errno;
    close(fd);
    return error;
}

#endif
