/* What the ABI tests share: CHECK reports the failed expression and goes on; the exit status says whether all held.
 * Every program first passes on Linux; there its expectations were taken from. */
#ifndef CHECK_H
#define CHECK_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static int check_failures;
static int check_count;

#define CHECK(expr)                                                                        \
    do {                                                                                   \
        check_count++;                                                                     \
        if (!(expr)) {                                                                     \
            check_failures++;                                                              \
            printf("%s:%d: failed: %s (errno %d %s)\n", __FILE__, __LINE__, #expr, errno, \
                   strerror(errno));                                                       \
        }                                                                                  \
    } while (0)

/* The call fails with exactly this error. */
#define FAILS(error, expr)                                                                            \
    do {                                                                                              \
        check_count++;                                                                                \
        errno = 0;                                                                                    \
        long long got_ = (long long)(expr);                                                           \
        if (got_ != -1 || errno != (error)) {                                                         \
            check_failures++;                                                                         \
            printf("%s:%d: %s returned %lld, errno %d %s instead of %s\n", __FILE__, __LINE__, #expr, \
                   got_, errno, strerror(errno), #error);                                             \
        }                                                                                             \
    } while (0)

static inline int check_done(void)
{
    printf("%d checks, %d failed\n", check_count, check_failures);
    return check_failures ? 1 : 0;
}

/* Runs a function in a child, whose checks count here as one. */
static inline void check_in_child(void (*run)(void))
{
    int status;
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        check_count = check_failures = 0;
        run();
        fflush(stdout);
        _exit(check_failures ? 1 : 0);
    }
    CHECK(waitpid(pid, &status, 0) == pid);
    if (status != 0)
        printf("child ended with status %#x\n", status);
    CHECK(status == 0);
}
#endif
