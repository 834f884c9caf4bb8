/* What a system call's number is, also under a tracer; which thread a timer's signal goes to; links to mapped files. */
#include "../check.h"
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef F_CREATED_QUERY
#define F_CREATED_QUERY 1028
#endif

static long call(unsigned long number)
{
    long result;
    asm volatile("syscall" : "=a"(result) : "a"(number) : "rcx", "r11", "memory");
    return result;
}

static void numbers(void)
{
    CHECK(call(SYS_getpid) == getpid());
    /* An int: the upper half of the register means nothing. */
    CHECK(call(0xdeadbeef00000000 | SYS_getpid) == getpid());
    CHECK(call(-1) == -ENOSYS);
    CHECK(call(0xffffffff) == -ENOSYS);
    CHECK(call(0x40000000 | SYS_getpid) == -ENOSYS);
    CHECK(call(1000000) == -ENOSYS);
}

/* Goes on to the next stop of a tracee that a system call makes. */
static int to_call(pid_t child, struct user_regs_struct *regs)
{
    int status;
    if (ptrace(PTRACE_SYSCALL, child, 0, 0) || waitpid(child, &status, 0) != child || !WIFSTOPPED(status))
        return 0;
    return ptrace(PTRACE_GETREGS, child, 0, regs) == 0;
}

static void traced(void)
{
    pid_t child = fork();
    if (child == 0) {
        ptrace(PTRACE_TRACEME, 0, 0, 0);
        raise(SIGSTOP);
        /* The tracer makes -1 of the first, with a result of its own, and leaves the second alone. */
        long first = call(0x1200000000 | SYS_getpid), second = call(0x1200000000 | SYS_getpid);
        _exit(first == 77 && second == getpid() ? 0 : 1);
    }
    int status;
    struct user_regs_struct regs = {0};
    CHECK(waitpid(child, &status, 0) == child && WIFSTOPPED(status));
    while (to_call(child, &regs) && (int)regs.orig_rax != SYS_getpid)
        ;
    CHECK(regs.orig_rax == (0x1200000000 | SYS_getpid) && (long)regs.rax == -ENOSYS);
    regs.orig_rax = 0xffffffff;
    regs.rax = 77;
    CHECK(ptrace(PTRACE_SETREGS, child, 0, &regs) == 0);
    CHECK(to_call(child, &regs) && regs.rax == 77);
    CHECK(ptrace(PTRACE_CONT, child, 0, 0) == 0);
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static timer_t timer;
static volatile pid_t worker;
static volatile int alarms, strays;

static void on_alarm(int signo)
{
    (void)signo;
    strays += gettid() != worker;
    alarms++;
}

static void *work(void *nothing)
{
    (void)nothing;
    worker = gettid();
    /* The main thread is asleep by then. */
    usleep(200000);
    struct itimerspec each = {{0, 10000000}, {0, 10000000}}, never = {{0}};
    CHECK(timer_settime(timer, 0, &each, NULL) == 0);
    time_t end = time(NULL) + 20;
    while (alarms < 3 && time(NULL) < end)
        ;
    CHECK(timer_settime(timer, 0, &never, NULL) == 0);
    return NULL;
}

/* What is due while one thread runs and another sleeps goes to the one that runs. */
static void to_who_runs(void)
{
    pthread_t thread;
    signal(SIGALRM, on_alarm);
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGALRM};
    CHECK(timer_create(CLOCK_PROCESS_CPUTIME_ID, &event, &timer) == 0);
    CHECK(pthread_create(&thread, NULL, work, NULL) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(alarms >= 3 && strays == 0);
    CHECK(timer_delete(timer) == 0);
}

static void mapped_files(void)
{
    char name[64], link[64], target[64];
    snprintf(name, sizeof name, "/tmp/calls-%d", getpid());
    int fd = open(name, O_RDWR | O_CREAT, 0600);
    CHECK(fd >= 0 && ftruncate(fd, 8192) == 0);
    CHECK(fcntl(fd, F_CREATED_QUERY) == 1);
    int again = open(name, O_RDWR | O_CREAT, 0600);
    CHECK(fcntl(again, F_CREATED_QUERY) == 0);
    char *p = mmap(NULL, 8192, PROT_READ, MAP_SHARED, fd, 0);
    CHECK(p != MAP_FAILED);
    snprintf(link, sizeof link, "/proc/self/map_files/%lx-%lx", (long)p, (long)p + 8192);
    ssize_t n = readlink(link, target, sizeof target);
    CHECK(n == (ssize_t)strlen(name) && memcmp(target, name, n) == 0);
    snprintf(link, sizeof link, "/proc/self/map_files/0%lx-%lx", (long)p, (long)p + 8192);
    FAILS(ENOENT, readlink(link, target, sizeof target));
    snprintf(link, sizeof link, "/proc/self/map_files/%lx-%lx", (long)p, (long)p + 4096);
    FAILS(ENOENT, readlink(link, target, sizeof target));
    CHECK(unlink(name) == 0);
}

int main(void)
{
    numbers();
    traced();
    to_who_runs();
    mapped_files();
    return check_done();
}
