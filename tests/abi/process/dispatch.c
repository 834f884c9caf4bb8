/* PR_SET_SYSCALL_USER_DISPATCH, its ptrace requests, and PTRACE_PEEKSIGINFO. */
#include "../check.h"
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#define SET_DISPATCH 59
#define SET_CONFIG 0x4210
#define GET_CONFIG 0x4211
struct config { uint64_t mode, selector, offset, len; };

static volatile char selector;
static volatile int calls, last_nr, last_code, last_errno;
static volatile unsigned last_arch;
static void *volatile last_addr;

static long sud(unsigned long mode, unsigned long offset, unsigned long len, void *sel)
{
    return prctl(SET_DISPATCH, mode, offset, len, sel);
}

static void on_sigsys(int sig, siginfo_t *info, void *context)
{
    ucontext_t *uc = context;
    selector = 0;
    calls++;
    last_nr = info->si_syscall, last_code = info->si_code, last_errno = info->si_errno;
    last_arch = info->si_arch, last_addr = info->si_call_addr;
    /* The number is still in rax; the program does the call by itself. */
    if (uc->uc_mcontext.gregs[REG_RAX] == SYS_getppid)
        uc->uc_mcontext.gregs[REG_RAX] = 4242;
}

static long call(long nr)
{
    long ret;
    asm volatile("syscall" : "=a"(ret) : "a"(nr), "D"(0), "S"(0), "d"(0) : "rcx", "r11", "memory");
    return ret;
}

static void basics(void)
{
    struct sigaction act = { .sa_sigaction = on_sigsys, .sa_flags = SA_SIGINFO };
    sigaction(SIGSYS, &act, NULL);
    FAILS(EINVAL, sud(2, 0, 0, NULL));
    FAILS(EINVAL, sud(0, 1, 0, NULL));
    FAILS(EINVAL, sud(0, 0, 1, NULL));
    FAILS(EINVAL, sud(0, 0, 0, (void *)&selector));
    FAILS(EINVAL, sud(1, 1, 0, NULL));
    FAILS(EINVAL, sud(1, 1, -1UL, NULL));
    FAILS(EFAULT, sud(1, 0, 1, (void *)-1L));
    CHECK(sud(1, 0, 0, (void *)&selector) == 0);
    CHECK(getpid() > 0 && calls == 0);
    selector = 1;
    long got = call(SYS_getppid);
    CHECK(got == 4242 && calls == 1);
    CHECK(last_nr == SYS_getppid && last_code == 2 && last_errno == 0 && last_arch == 0xc000003e);
    CHECK(*(unsigned short *)((char *)last_addr - 2) == 0x050f);
    selector = 1;
    CHECK(call(0x1234567) == 0x1234567 && calls == 2 && last_nr == 0x1234567);
    CHECK(sud(0, 0, 0, NULL) == 0);
    selector = 1;
    CHECK(call(SYS_getppid) == getppid() && calls == 2);
    selector = 0;
    /* All of memory is the range: the byte says nothing. */
    CHECK(sud(1, 0, -1UL, (void *)&selector) == 0);
    selector = 1;
    CHECK(call(SYS_getppid) == getppid() && calls == 2);
    selector = 0;
    CHECK(sud(0, 0, 0, NULL) == 0);
}

static int in_child(void (*f)(void))
{
    int status;
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        f();
        _exit(0);
    }
    waitpid(child, &status, 0);
    return status;
}

static void bad_byte(void)
{
    sud(1, 0, 0, (void *)&selector);
    selector = 7;
    call(SYS_getpid);
}

static void unreadable(void)
{
    void *page = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    signal(SIGSEGV, SIG_IGN);
    sud(1, 0, 0, page);
    call(SYS_getpid);
}

static void without_byte(void)
{
    signal(SIGSYS, SIG_DFL);
    sud(1, 0, 0, NULL);
    call(SYS_getpid);
}

static void blocked(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGSYS);
    sigprocmask(SIG_BLOCK, &set, NULL);
    sud(1, 0, 0, (void *)&selector);
    selector = 1;
    call(SYS_getpid);
}

static void *other_thread(void *arg)
{
    /* Each thread has its own; this one has none. */
    selector = 1;
    long pid = call(SYS_getpid);
    selector = 0;
    return (void *)pid;
}

static void not_inherited(void)
{
    calls = 0;
    sud(1, 0, 0, (void *)&selector);
    pthread_t thread;
    void *pid;
    pthread_create(&thread, NULL, other_thread, NULL);
    pthread_join(thread, &pid);
    if ((long)pid != getpid() || calls)
        _exit(1);
    pid_t child = fork();
    if (child == 0) {
        selector = 1;
        _exit(call(SYS_getpid) <= 0);
    }
    int status;
    waitpid(child, &status, 0);
    if (status)
        _exit(2);
    execl("/bin/true", "true", NULL);
    _exit(3);
}

static void traced(void)
{
    fflush(stdout);
    pid_t child = fork();
    int status;
    if (child == 0) {
        ptrace(PTRACE_TRACEME, 0, 0, 0);
        raise(SIGSTOP);
        /* The tracer has switched it on by now. */
        long got = call(SYS_getppid);
        _exit(got == 4242 && calls == 1 ? 0 : 1);
    }
    waitpid(child, &status, 0);
    struct config config;
    memset(&config, 0xff, sizeof config);
    CHECK(ptrace(GET_CONFIG, child, sizeof config, &config) == 0);
    CHECK(config.mode == 0 && config.selector == 0 && config.offset == 0 && config.len == 0);
    FAILS(EINVAL, ptrace(GET_CONFIG, child, sizeof config - 1, &config));
    FAILS(EINVAL, ptrace(SET_CONFIG, child, sizeof config + 8, &config));
    FAILS(EFAULT, ptrace(SET_CONFIG, child, sizeof config, 8));
    config.mode = 1, config.selector = -1, config.len = 1;
    FAILS(EFAULT, ptrace(SET_CONFIG, child, sizeof config, &config));
    /* What the C library has for itself goes to the kernel. */
    config.selector = (uintptr_t)&selector, config.offset = 0, config.len = 0;
    CHECK(ptrace(SET_CONFIG, child, sizeof config, &config) == 0);
    memset(&config, 0xff, sizeof config);
    CHECK(ptrace(GET_CONFIG, child, sizeof config, &config) == 0 && config.mode == 1 && config.selector == (uintptr_t)&selector);
    char on = 1;
    /* The byte is switched when the child is at its own call. */
    CHECK(ptrace(PTRACE_POKEDATA, child, (void *)((uintptr_t)&calls & ~7UL), 0) == 0);
    struct iovec local = { &on, 1 }, remote = { (void *)&selector, 1 };
    CHECK(syscall(SYS_process_vm_writev, child, &local, 1, &remote, 1, 0) == 1);
    /* The rest of raise() is taken for calls of the program's: its handler clears the byte. */
    CHECK(ptrace(PTRACE_SYSCALL, child, 0, 0) == 0);
    waitpid(child, &status, 0);
    CHECK(WIFSTOPPED(status) && (WSTOPSIG(status) == SIGSYS || WSTOPSIG(status) == SIGTRAP));
    ptrace(PTRACE_KILL, child, 0, 0);
    kill(child, SIGKILL);
    waitpid(child, &status, 0);
}

struct peek { uint64_t off; uint32_t flags; int32_t nr; };

static void peeked(void)
{
    fflush(stdout);
    pid_t child = fork();
    int status;
    if (child == 0) {
        sigset_t set;
        sigemptyset(&set);
        sigaddset(&set, SIGRTMIN);
        sigaddset(&set, SIGRTMIN + 1);
        sigprocmask(SIG_BLOCK, &set, NULL);
        ptrace(PTRACE_TRACEME, 0, 0, 0);
        raise(SIGSTOP);
        _exit(0);
    }
    waitpid(child, &status, 0);
    for (int i = 0; i < 5; i++) {
        siginfo_t info;
        memset(&info, 0, sizeof info);
        info.si_code = -60, info.si_int = i;
        CHECK(syscall(SYS_rt_sigqueueinfo, child, i % 2 ? SIGRTMIN + 1 : SIGRTMIN, &info) == 0);
        info.si_int = 100 + i;
        CHECK(i > 2 || syscall(SYS_rt_tgsigqueueinfo, child, child, SIGRTMIN, &info) == 0);
    }
    siginfo_t infos[8];
    struct peek args = { 0, 1, 8 };
    memset(infos, 0xff, sizeof infos);
    /* In the order of arrival, whatever the number. */
    CHECK(ptrace(PTRACE_PEEKSIGINFO, child, &args, infos) == 5);
    for (int i = 0; i < 5; i++)
        CHECK(infos[i].si_int == i && infos[i].si_code == -60 && infos[i].si_signo == (i % 2 ? SIGRTMIN + 1 : SIGRTMIN));
    args = (struct peek) { 3, 1, 8 };
    CHECK(ptrace(PTRACE_PEEKSIGINFO, child, &args, infos) == 2 && infos[0].si_int == 3);
    args = (struct peek) { 1, 0, 1 };
    CHECK(ptrace(PTRACE_PEEKSIGINFO, child, &args, infos) == 1 && infos[0].si_int == 101);
    args = (struct peek) { 0, 0, 8 };
    CHECK(ptrace(PTRACE_PEEKSIGINFO, child, &args, infos) == 3);
    args = (struct peek) { 5, 1, 8 };
    CHECK(ptrace(PTRACE_PEEKSIGINFO, child, &args, infos) == 0);
    args = (struct peek) { -1ULL, 1, 8 };
    CHECK(ptrace(PTRACE_PEEKSIGINFO, child, &args, infos) == 0);
    args = (struct peek) { 0, 1, 0 };
    CHECK(ptrace(PTRACE_PEEKSIGINFO, child, &args, infos) == 0);
    args = (struct peek) { 0, 2, 1 };
    FAILS(EINVAL, ptrace(PTRACE_PEEKSIGINFO, child, &args, infos));
    args = (struct peek) { 0, 1, -1 };
    FAILS(EINVAL, ptrace(PTRACE_PEEKSIGINFO, child, &args, infos));
    args = (struct peek) { 0, 1, 8 };
    FAILS(EFAULT, ptrace(PTRACE_PEEKSIGINFO, child, &args, 16));
    FAILS(EFAULT, ptrace(PTRACE_PEEKSIGINFO, child, 16, infos));
    char *pages = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mprotect(pages + 4096, 4096, PROT_READ);
    CHECK(ptrace(PTRACE_PEEKSIGINFO, child, &args, pages + 4096 - 2 * sizeof(siginfo_t)) == 2);
    kill(child, SIGKILL);
    waitpid(child, &status, 0);
}

int main(void)
{
    basics();
    CHECK(WTERMSIG(in_child(bad_byte)) == SIGSYS);
    CHECK(WTERMSIG(in_child(unreadable)) == SIGSEGV);
    CHECK(WTERMSIG(in_child(without_byte)) == SIGSYS);
    CHECK(WTERMSIG(in_child(blocked)) == SIGSYS);
    CHECK(in_child(not_inherited) == 0);
    traced();
    peeked();
    return check_done();
}
