/* execve and execveat: arguments, environment, auxv, scripts, limits, what survives and what does not, malformed files. */
#define _GNU_SOURCE
#include "../check.h"
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;
static char self[256];
/* An address where nothing is, which the compiler does not know. */
static void *volatile nowhere = (void *)8;

static int run(char *const argv[], char *const envp[])
{
    int status;
    pid_t pid = fork();
    if (pid == 0) {
        execve(self, argv, envp);
        _exit(99);
    }
    CHECK(waitpid(pid, &status, 0) == pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

static int mode(const char *name)
{
    char *argv[] = {"exec", (char *)name, 0};
    char *envp[] = {"A=1", 0};
    return run(argv, envp);
}

static void write_file(const char *path, const void *data, size_t len, mode_t m)
{
    unlink(path);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0700);
    CHECK(fd >= 0 && write(fd, data, len) == (ssize_t)len);
    fchmod(fd, m);
    close(fd);
}

/* What the executed copies of this program do. */
static int child(int argc, char **argv)
{
    const char *what = argv[1];
    if (!strcmp(what, "args"))
        return argc == 4 && !strcmp(argv[2], "") && !strcmp(argv[3], "x y") && environ[0] && !strcmp(environ[0], "A=1") &&
                       !environ[1]
                   ? 0
                   : 1;
    if (!strcmp(what, "auxv")) {
        const unsigned char *random = (void *)getauxval(AT_RANDOM);
        int sum = 0;
        for (int i = 0; i < 16; i++)
            sum |= random[i];
        if (!sum || getauxval(AT_PAGESZ) != 4096 || getauxval(AT_CLKTCK) != 100 || getauxval(AT_SECURE) != 0)
            return 1;
        if (strcmp((char *)getauxval(AT_EXECFN), self) || strcmp((char *)getauxval(AT_PLATFORM), "x86_64"))
            return 2;
        if (getauxval(AT_UID) != getuid() || getauxval(AT_EGID) != getegid() || !getauxval(AT_HWCAP))
            return 3;
        Elf64_Phdr *ph = (void *)getauxval(AT_PHDR);
        int loads = 0;
        for (unsigned long i = 0; i < getauxval(AT_PHNUM); i++)
            loads += ph[i].p_type == PT_LOAD;
        return loads >= 2 ? 0 : 4;
    }
    if (!strcmp(what, "signals")) {
        struct sigaction sa;
        sigset_t set;
        sigaction(SIGUSR1, 0, &sa);
        if (sa.sa_handler != SIG_DFL)
            return 1;
        sigaction(SIGUSR2, 0, &sa);
        if (sa.sa_handler != SIG_IGN)
            return 2;
        sigprocmask(0, 0, &set);
        if (!sigismember(&set, SIGHUP))
            return 3;
        sigpending(&set);
        return sigismember(&set, SIGHUP) ? 0 : 4;
    }
    if (!strcmp(what, "fds"))
        return fcntl(50, F_GETFD) == 0 && fcntl(51, F_GETFD) == -1 ? 0 : 1;
    if (!strcmp(what, "tid"))
        return getpid() == (pid_t)syscall(SYS_gettid) && getpid() == atoi(argv[2]) ? 0 : 1;
    if (!strcmp(what, "count"))
        return argc == 3 ? 0 : 1;
    if (!strcmp(what, "name")) {
        return 0;
    }
    return 98;
}

static void nothing(int sig)
{
    (void)sig;
}

static void arguments_and_auxv(void)
{
    char *argv[] = {"exec", "args", "", "x y", 0};
    char *envp[] = {"A=1", 0};
    CHECK(run(argv, envp) == 0);
    CHECK(mode("auxv") == 0);
}

static void signals_are_reset(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGHUP);
    int status;
    pid_t pid = fork();
    if (pid == 0) {
        signal(SIGUSR1, nothing);
        signal(SIGUSR2, SIG_IGN);
        sigprocmask(SIG_BLOCK, &set, 0);
        raise(SIGHUP);
        execl(self, "exec", "signals", (char *)0);
        _exit(99);
    }
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
}

static void close_on_exec(void)
{
    CHECK(dup2(1, 50) == 50 && dup3(1, 51, O_CLOEXEC) == 51);
    CHECK(mode("fds") == 0);
    close(50);
    close(51);
}

static void *exec_here(void *arg)
{
    char pid[16];
    (void)arg;
    snprintf(pid, sizeof pid, "%d", getpid());
    execl(self, "exec", "tid", pid, (char *)0);
    _exit(99);
}

static void *sleep_here(void *arg)
{
    for (;;)
        pause();
    return arg;
}

static void a_thread_that_execs_becomes_the_leader(void)
{
    int status;
    pid_t pid = fork();
    if (pid == 0) {
        pthread_t t;
        for (int i = 0; i < 4; i++)
            pthread_create(&t, 0, sleep_here, 0);
        pthread_create(&t, 0, exec_here, 0);
        for (;;)
            pause();
    }
    CHECK(waitpid(pid, &status, 0) == pid);
    CHECK(status == 0);
}

static void scripts(void)
{
    char line[512];
    int status;
    snprintf(line, sizeof line, "#! %s  count \n", self);
    write_file("/tmp/abi-script", line, strlen(line), 0700);
    pid_t pid = fork();
    if (pid == 0) {
        execl("/tmp/abi-script", "ignored", (char *)0);
        _exit(99);
    }
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    write_file("/tmp/abi-loop", "#!/tmp/abi-loop\n", 16, 0700);
    FAILS(ELOOP, execl("/tmp/abi-loop", "x", (char *)0));
    write_file("/tmp/abi-loop", "#!\n", 3, 0700);
    FAILS(ENOEXEC, execve("/tmp/abi-loop", (char *[]){"x", 0}, environ));
    /* Without a line's end the empty name is looked for. */
    write_file("/tmp/abi-loop", "#!", 2, 0700);
    FAILS(ENOENT, execve("/tmp/abi-loop", (char *[]){"x", 0}, environ));
    write_file("/tmp/abi-loop", "#! \t ", 5, 0700);
    FAILS(ENOENT, execve("/tmp/abi-loop", (char *[]){"x", 0}, environ));
    write_file("/tmp/abi-loop", "#!/nonexistent/x\n", 17, 0700);
    FAILS(ENOENT, execl("/tmp/abi-loop", "x", (char *)0));
    memset(line, 'a', sizeof line);
    memcpy(line, "#!/", 3);
    write_file("/tmp/abi-loop", line, sizeof line, 0700);
    FAILS(ENOEXEC, execve("/tmp/abi-loop", (char *[]){"x", 0}, environ));
    /* 256 bytes are looked at: a name up to their end may go on, one that ends before does not. */
    memset(line + 256, ' ', sizeof line - 256);
    write_file("/tmp/abi-loop", line, sizeof line, 0700);
    FAILS(ENOEXEC, execve("/tmp/abi-loop", (char *[]){"x", 0}, environ));
    line[255] = ' ';
    write_file("/tmp/abi-loop", line, sizeof line, 0700);
    FAILS(ENOENT, execve("/tmp/abi-loop", (char *[]){"x", 0}, environ));
    memset(line + 2, ' ', 254);
    write_file("/tmp/abi-loop", line, sizeof line, 0700);
    FAILS(ENOEXEC, execve("/tmp/abi-loop", (char *[]){"x", 0}, environ));
    unlink("/tmp/abi-loop");
    unlink("/tmp/abi-script");
}

static void errors(void)
{
    char *argv[] = {"x", 0};
    FAILS(ENOENT, execve("/nonexistent", argv, environ));
    FAILS(ENOENT, execve("", argv, environ));
    FAILS(EACCES, execve("/", argv, environ));
    FAILS(EACCES, execve("/dev/null", argv, environ));
    FAILS(ENOTDIR, execve("/dev/null/x", argv, environ));
    FAILS(EFAULT, execve(nowhere, argv, environ));
    FAILS(EFAULT, execve(self, (char *[]){nowhere, 0}, environ));
    FAILS(EFAULT, execve(self, nowhere, environ));
    FAILS(EINVAL, syscall(SYS_execveat, AT_FDCWD, self, argv, environ, 1));
    write_file("/tmp/abi-empty", "", 0, 0700);
    FAILS(ENOEXEC, execve("/tmp/abi-empty", argv, environ));
    write_file("/tmp/abi-empty", "garbage", 7, 0600);
    FAILS(EACCES, execve("/tmp/abi-empty", argv, environ));
    int fd = open("/tmp/abi-empty", O_WRONLY);
    fchmod(fd, 0700);
    FAILS(ETXTBSY, execve("/tmp/abi-empty", argv, environ));
    close(fd);
    unlink("/tmp/abi-empty");
    FAILS(ETXTBSY, open(self, O_WRONLY));
}

static void argument_limits(void)
{
    static char big[(128 << 10) + 1];
    memset(big, 'b', sizeof big - 1);
    char *argv[] = {"exec", "count", big, 0};
    CHECK(run(argv, environ) == 99);
    big[sizeof big - 2] = 0;
    argv[2] = big;
    CHECK(run(argv, environ) == 0);
    /* many strings: beyond a quarter of the stack limit */
    size_t n = 40;
    char **many = calloc(n + 3, sizeof *many);
    many[0] = "exec";
    many[1] = "count";
    for (size_t i = 2; i < n + 2; i++)
        many[i] = big;
    FAILS(E2BIG, execve(self, many, environ));
    many[12] = 0;
    CHECK(run(many, environ) == 1);
    free(many);
}

/* A script's interpreter opens it as /dev/fd/N, which leads nowhere if the descriptor is closed by then. */
static void scripts_by_descriptor(void)
{
    char path[] = "/tmp/scriptXXXXXX";
    int fd = mkstemp(path), status;
    CHECK(write(fd, "#!/bin/sh\nexit 7\n", 17) == 17 && fchmod(fd, 0755) == 0 && close(fd) == 0);
    for (int keep = 0; keep < 2; keep++) {
        pid_t pid = fork();
        if (pid == 0) {
            fd = open(path, O_RDONLY | (keep ? 0 : O_CLOEXEC));
            syscall(SYS_execveat, fd, "", (char *[]){path, 0}, environ, AT_EMPTY_PATH);
            _exit(errno == ENOENT ? 8 : 9);
        }
        CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == (keep ? 7 : 8));
    }
    unlink(path);
}

static void execveat_by_descriptor(void)
{
    int status;
    int fd = open(self, O_PATH | O_CLOEXEC);
    pid_t pid = fork();
    if (pid == 0) {
        syscall(SYS_execveat, fd, "", (char *[]){"exec", "name", 0}, environ, AT_EMPTY_PATH);
        _exit(99);
    }
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    FAILS(ENOENT, syscall(SYS_execveat, fd, "", (char *[]){"x", 0}, environ, 0));
    close(fd);
    /* from a memfd */
    int from = open(self, O_RDONLY), memfd = memfd_create("program", MFD_CLOEXEC);
    static char buf[65536];
    ssize_t n;
    while ((n = read(from, buf, sizeof buf)) > 0)
        CHECK(write(memfd, buf, n) == n);
    close(from);
    pid = fork();
    if (pid == 0) {
        syscall(SYS_execveat, memfd, "", (char *[]){"exec", "name", 0}, environ, AT_EMPTY_PATH);
        _exit(99);
    }
    CHECK(waitpid(pid, &status, 0) == pid);
    CHECK(status == 0 || WEXITSTATUS(status) == 99); /* writable memfd: ETXTBSY is allowed */
    close(memfd);
}

/* Damages each field of a copy of this program's headers: an error or a signal, never anything else. */
static void malformed_files(void)
{
    int fd = open(self, O_RDONLY);
    static unsigned char image[1 << 21];
    ssize_t len = read(fd, image, sizeof image);
    close(fd);
    CHECK(len > 4096);
    static const unsigned char values[] = {0x00, 0x01, 0x7f, 0x80, 0xff};
    for (size_t at = 16; at < 64 + 56 * 4; at += 5) {
        unsigned char saved = image[at];
        image[at] = values[(at / 5) % sizeof values];
        write_file("/tmp/abi-bad", image, len, 0700);
        image[at] = saved;
        int status;
        pid_t pid = fork();
        if (pid == 0) {
            struct rlimit none = {0, 0};
            setrlimit(RLIMIT_CORE, &none);
            alarm(5);
            execl("/tmp/abi-bad", "exec", "name", (char *)0);
            _exit(99);
        }
        CHECK(waitpid(pid, &status, 0) == pid);
    }
    for (size_t cut = 1; cut < 4096; cut = cut * 3 + 1) {
        write_file("/tmp/abi-bad", image, cut, 0700);
        int status;
        pid_t pid = fork();
        if (pid == 0) {
            alarm(5);
            execl("/tmp/abi-bad", "x", "name", (char *)0);
            _exit(99);
        }
        CHECK(waitpid(pid, &status, 0) == pid && status != 0);
    }
    unlink("/tmp/abi-bad");
}

int main(int argc, char **argv)
{
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n < 0)
        snprintf(self, sizeof self, "%s", (char *)getauxval(AT_EXECFN));
    if (argc > 1)
        return child(argc, argv);
    arguments_and_auxv();
    signals_are_reset();
    close_on_exec();
    a_thread_that_execs_becomes_the_leader();
    scripts();
    errors();
    argument_limits();
    execveat_by_descriptor();
    scripts_by_descriptor();
    malformed_files();
    return check_done();
}
