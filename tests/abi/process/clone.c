/* clone, clone3, fork, vfork: what is shared and what is not, flag checks, tids, vfork's suspension. */
#define _GNU_SOURCE
#include "../check.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <linux/sched.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static char stack[65536] __attribute__((aligned(16)));
static volatile int shared;

static int status_of(pid_t pid)
{
    int status = -1;
    CHECK(waitpid(pid, &status, __WALL) == pid);
    return status;
}

static int set_shared(void *value)
{
    shared = (int)(intptr_t)value;
    return 7;
}

static int change_dir(void *unused)
{
    (void)unused;
    umask(0123);
    return chdir("/") ? 1 : 0;
}

static int close_fd(void *fd)
{
    return close((int)(intptr_t)fd) ? 1 : 0;
}

static long raw_clone3(struct clone_args *args, size_t size)
{
    return syscall(SYS_clone3, args, size);
}

static void memory_is_shared_only_with_clone_vm(void)
{
    shared = 1;
    pid_t pid = fork();
    if (pid == 0) {
        shared = 2;
        _exit(0);
    }
    CHECK(status_of(pid) == 0);
    CHECK(shared == 1);
    pid = clone(set_shared, stack + sizeof stack, CLONE_VM | SIGCHLD, (void *)3);
    CHECK(WEXITSTATUS(status_of(pid)) == 7);
    CHECK(shared == 3);
}

static void fs_and_files_follow_their_flags(void)
{
    char cwd[256];
    CHECK(chdir("/tmp") == 0);
    mode_t mask = umask(022);
    pid_t pid = clone(change_dir, stack + sizeof stack, SIGCHLD, 0);
    CHECK(status_of(pid) == 0);
    CHECK(getcwd(cwd, sizeof cwd) && strcmp(cwd, "/tmp") == 0);
    pid = clone(change_dir, stack + sizeof stack, CLONE_FS | SIGCHLD, 0);
    CHECK(status_of(pid) == 0);
    CHECK(getcwd(cwd, sizeof cwd) && strcmp(cwd, "/") == 0);
    CHECK(umask(mask) == 0123);

    int fd = open("/dev/null", O_RDONLY);
    CHECK(fd >= 0);
    pid = clone(close_fd, stack + sizeof stack, SIGCHLD, (void *)(intptr_t)fd);
    CHECK(status_of(pid) == 0);
    CHECK(fcntl(fd, F_GETFD) == 0);
    pid = clone(close_fd, stack + sizeof stack, CLONE_FILES | SIGCHLD, (void *)(intptr_t)fd);
    CHECK(status_of(pid) == 0);
    FAILS(EBADF, fcntl(fd, F_GETFD));
}

static void flags_that_contradict_are_refused(void)
{
    FAILS(EINVAL, syscall(SYS_clone, CLONE_SIGHAND, 0, 0, 0, 0));
    FAILS(EINVAL, syscall(SYS_clone, CLONE_THREAD | CLONE_VM, 0, 0, 0, 0));
    FAILS(EINVAL, syscall(SYS_clone, CLONE_FS | CLONE_NEWNS, 0, 0, 0, 0));
    struct clone_args args = {.flags = CLONE_SIGHAND | CLONE_VM | CLONE_CLEAR_SIGHAND};
    FAILS(EINVAL, raw_clone3(&args, sizeof args));
    args = (struct clone_args){.flags = CLONE_DETACHED};
    FAILS(EINVAL, raw_clone3(&args, sizeof args));
    args = (struct clone_args){.exit_signal = 65};
    FAILS(EINVAL, raw_clone3(&args, sizeof args));
    args = (struct clone_args){.stack = 4096};
    FAILS(EINVAL, raw_clone3(&args, sizeof args));
    args = (struct clone_args){.flags = 1ull << 60};
    FAILS(EINVAL, raw_clone3(&args, sizeof args));
    FAILS(EINVAL, raw_clone3(&args, 63));
    FAILS(E2BIG, raw_clone3(&args, 8192));
    FAILS(EFAULT, raw_clone3((void *)8, sizeof args));
    struct { struct clone_args args; uint64_t more; } longer = {.more = 1};
    FAILS(E2BIG, raw_clone3(&longer.args, sizeof longer));
}

static void tids_are_written_where_asked(void)
{
    pid_t parent_tid = 0;
    pid_t *child_tid = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    struct clone_args args = {
        .flags = CLONE_PARENT_SETTID | CLONE_CHILD_SETTID,
        .parent_tid = (uint64_t)&parent_tid,
        .child_tid = (uint64_t)child_tid,
        .exit_signal = SIGCHLD,
    };
    pid_t pid = raw_clone3(&args, sizeof args);
    if (pid == 0)
        _exit(*child_tid == getpid() ? 0 : 1);
    CHECK(pid > 0 && status_of(pid) == 0);
    CHECK(parent_tid == pid && *child_tid == pid);
}

static volatile int vfork_order;

static void vfork_suspends_the_parent(void)
{
    vfork_order = 0;
    pid_t pid = vfork();
    if (pid == 0) {
        usleep(50000);
        vfork_order = 1;
        _exit(9);
    }
    CHECK(vfork_order == 1);
    CHECK(WEXITSTATUS(status_of(pid)) == 9);
    pid = vfork();
    if (pid == 0) {
        execl("/bin/true", "true", (char *)0);
        _exit(127);
    }
    CHECK(status_of(pid) == 0);
}

static void *thread_body(void *arg)
{
    *(pid_t *)arg = syscall(SYS_gettid);
    return arg;
}

static void threads_share_a_pid(void)
{
    enum { N = 16 };
    pthread_t threads[N];
    pid_t tids[N];
    for (int i = 0; i < N; i++)
        CHECK(pthread_create(&threads[i], 0, thread_body, &tids[i]) == 0);
    for (int i = 0; i < N; i++) {
        void *result;
        CHECK(pthread_join(threads[i], &result) == 0 && result == &tids[i]);
        CHECK(tids[i] != getpid());
        for (int j = 0; j < i; j++)
            CHECK(tids[i] != tids[j]);
    }
}

static void many_forks_leave_nothing(void)
{
    for (int i = 0; i < 300; i++) {
        pid_t pid = fork();
        if (pid == 0)
            _exit(i & 0xff);
        CHECK(pid > 0);
        CHECK(WEXITSTATUS(status_of(pid)) == (i & 0xff));
    }
    FAILS(ECHILD, waitpid(-1, 0, WNOHANG));
}

int main(void)
{
    memory_is_shared_only_with_clone_vm();
    fs_and_files_follow_their_flags();
    flags_that_contradict_are_refused();
    tids_are_written_where_asked();
    vfork_suspends_the_parent();
    threads_share_a_pid();
    many_forks_leave_nothing();
    return check_done();
}
