/* sigaction flags, masks, real-time queueing, alternate stacks, restarts, sigwait, signal frames. */
#define _GNU_SOURCE
#include "../check.h"
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

static volatile sig_atomic_t got, got_code, got_value, depth, max_depth;
static volatile pid_t got_pid;
static void *volatile got_addr;

static void on_info(int sig, siginfo_t *si, void *uc)
{
    (void)uc;
    got = sig;
    got_code = si->si_code;
    got_value = si->si_value.sival_int;
    got_pid = si->si_pid;
    got_addr = si->si_addr;
}

static void set(int sig, void (*f)(int, siginfo_t *, void *), int flags)
{
    struct sigaction sa = {.sa_sigaction = f, .sa_flags = SA_SIGINFO | flags};
    sigemptyset(&sa.sa_mask);
    CHECK(sigaction(sig, &sa, 0) == 0);
}

static volatile int order[16], norder;
static void on_order(int sig, siginfo_t *si, void *uc)
{
    (void)uc;
    if (norder < 16)
        order[norder++] = sig * 100 + si->si_value.sival_int;
}

static void on_nested(int sig, siginfo_t *si, void *uc)
{
    (void)si, (void)uc;
    if (++depth > max_depth)
        max_depth = depth;
    if (max_depth < 3)
        raise(sig);
    depth--;
}

static char *alt;
static volatile int on_alt;
static void on_altstack(int sig, siginfo_t *si, void *uc)
{
    char here;
    stack_t now;
    (void)sig, (void)si, (void)uc;
    on_alt = &here >= alt && &here < alt + 65536;
    CHECK(sigaltstack(0, &now) == 0);
    CHECK(now.ss_flags == SS_ONSTACK);
    stack_t other = {.ss_sp = alt, .ss_size = 65536};
    FAILS(EPERM, sigaltstack(&other, 0));
}

static void on_context(int sig, siginfo_t *si, void *p)
{
    ucontext_t *uc = p;
    (void)sig, (void)si;
    /* skip the two-byte ud2 and change a register that the code looks at */
    uc->uc_mcontext.gregs[REG_RIP] += 2;
    uc->uc_mcontext.gregs[REG_RBX] = 0x1234;
    sigaddset(&uc->uc_sigmask, SIGUSR2);
    CHECK(uc->uc_mcontext.fpregs != 0);
    uint32_t *sw = (uint32_t *)((char *)uc->uc_mcontext.fpregs + 464);
    CHECK(sw[0] == 0x46505853);
    uint32_t size = sw[1];
    CHECK(*(uint32_t *)((char *)uc->uc_mcontext.fpregs + size - 4) == 0x46505845);
}

static sigjmp_buf jump;
static void on_segv(int sig, siginfo_t *si, void *uc)
{
    on_info(sig, si, uc);
    siglongjmp(jump, 1);
}

static void sleep_ms(int ms)
{
    struct timespec ts = {ms / 1000, ms % 1000 * 1000000L};
    nanosleep(&ts, 0);
}

static void queueing(void)
{
    sigset_t all, old;
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, &old);
    set(SIGRTMIN, on_order, 0);
    set(SIGRTMIN + 1, on_order, 0);
    set(SIGUSR1, on_order, 0);
    union sigval v;
    for (int i = 0; i < 3; i++) {
        v.sival_int = i;
        CHECK(sigqueue(getpid(), SIGRTMIN + 1, v) == 0);
        CHECK(sigqueue(getpid(), SIGRTMIN, v) == 0);
        CHECK(sigqueue(getpid(), SIGUSR1, v) == 0); /* standard: only the first stays */
    }
    sigset_t pending;
    CHECK(sigpending(&pending) == 0 && sigismember(&pending, SIGRTMIN) && sigismember(&pending, SIGUSR1));
    sigprocmask(SIG_SETMASK, &old, 0);
    CHECK(norder == 7);
    /* Frames are built lowest first, each handler runs with its mask, so the last frame's handler runs first. */
    int seen[3] = {0};
    for (int i = 0; i < norder; i++) {
        int sig = order[i] / 100, value = order[i] % 100;
        if (sig == SIGRTMIN)
            CHECK(value == seen[0]++);
        if (sig == SIGRTMIN + 1)
            CHECK(value == seen[1]++);
        if (sig == SIGUSR1)
            CHECK(value == 0 && seen[2]++ == 0);
    }
    CHECK(seen[0] == 3 && seen[1] == 3 && seen[2] == 1);

    struct rlimit old_limit, limit;
    CHECK(getrlimit(RLIMIT_SIGPENDING, &old_limit) == 0);
    limit = old_limit;
    limit.rlim_cur = 0;
    CHECK(setrlimit(RLIMIT_SIGPENDING, &limit) == 0);
    sigprocmask(SIG_BLOCK, &all, &old);
    FAILS(EAGAIN, sigqueue(getpid(), SIGRTMIN, v));
    CHECK(kill(getpid(), SIGUSR1) == 0); /* a standard signal is never refused */
    CHECK(setrlimit(RLIMIT_SIGPENDING, &old_limit) == 0);
    norder = 0;
    sigprocmask(SIG_SETMASK, &old, 0);
    CHECK(norder == 1);
}

static void *tgkill_target(void *arg)
{
    sigset_t s;
    siginfo_t si;
    sigemptyset(&s);
    sigaddset(&s, SIGUSR2);
    *(pid_t *)arg = syscall(SYS_gettid);
    int r;
    /* not sigwaitinfo(3): glibc hides SI_TKILL */
    while ((r = syscall(SYS_rt_sigtimedwait, &s, &si, 0, 8)) < 0 && errno == EINTR)
        ;
    CHECK(r == SIGUSR2 && si.si_code == SI_TKILL && si.si_pid == getpid());
    return 0;
}

int main(void)
{
    struct sigaction sa, old;

    /* what cannot be set */
    memset(&sa, 0, sizeof sa);
    sa.sa_handler = SIG_IGN;
    FAILS(EINVAL, sigaction(SIGKILL, &sa, 0));
    FAILS(EINVAL, sigaction(SIGSTOP, &sa, 0));
    FAILS(EINVAL, syscall(SYS_rt_sigaction, 65, 0, 0, 8));
    FAILS(EINVAL, syscall(SYS_rt_sigaction, 0, 0, 0, 8));
    FAILS(EINVAL, syscall(SYS_rt_sigaction, SIGUSR1, 0, 0, 4));
    FAILS(EFAULT, syscall(SYS_rt_sigaction, SIGUSR1, 1, 0, 8));
    FAILS(EINVAL, syscall(SYS_rt_sigprocmask, 77, &sa, 0, 8));
    CHECK(syscall(SYS_rt_sigprocmask, 77, 0, 0, 8) == 0);
    FAILS(EINVAL, kill(getpid(), 65));
    FAILS(EINVAL, kill(getpid(), -1));
    FAILS(ESRCH, kill(0x3fffff, 0));
    FAILS(EINVAL, syscall(SYS_tgkill, 0, getpid(), 0));
    FAILS(ESRCH, syscall(SYS_tgkill, getpid(), 1, 0));
    CHECK(kill(getpid(), 0) == 0);

    /* unknown flags read back as zero: programs probe with this */
    sa.sa_handler = SIG_DFL;
    sa.sa_flags = SA_RESTART | 0x400;
    CHECK(sigaction(SIGUSR1, &sa, 0) == 0 && sigaction(SIGUSR1, 0, &old) == 0);
    CHECK((old.sa_flags & SA_RESTART) && !(old.sa_flags & 0x400));

    set(SIGUSR1, on_info, 0);
    CHECK(raise(SIGUSR1) == 0 && got == SIGUSR1 && got_code == SI_TKILL && got_pid == getpid());
    CHECK(kill(getpid(), SIGUSR1) == 0 && got_code == SI_USER);
    union sigval v = {.sival_int = 42};
    CHECK(sigqueue(getpid(), SIGUSR1, v) == 0 && got_code == SI_QUEUE && got_value == 42);

    /* SA_RESETHAND, SA_NODEFER */
    set(SIGUSR1, on_info, SA_RESETHAND);
    raise(SIGUSR1);
    CHECK(sigaction(SIGUSR1, 0, &old) == 0 && old.sa_handler == SIG_DFL);
    set(SIGUSR1, on_nested, SA_NODEFER);
    raise(SIGUSR1);
    CHECK(max_depth == 3);
    depth = max_depth = 0;

    queueing();

    /* alternate stack */
    alt = malloc(65536);
    stack_t ss = {.ss_sp = alt, .ss_size = 65536}, oss;
    CHECK(sigaltstack(0, &oss) == 0 && oss.ss_flags == SS_DISABLE);
    CHECK(sigaltstack(&ss, 0) == 0);
    set(SIGUSR1, on_altstack, SA_ONSTACK);
    raise(SIGUSR1);
    CHECK(on_alt == 1);
    ss.ss_size = 100;
    FAILS(ENOMEM, sigaltstack(&ss, 0));
    ss.ss_flags = 77;
    FAILS(EINVAL, sigaltstack(&ss, 0));
    ss.ss_flags = SS_DISABLE;
    CHECK(sigaltstack(&ss, 0) == 0 && sigaltstack(0, &oss) == 0 && oss.ss_flags == SS_DISABLE);

    /* the handler edits the context; vector registers survive */
    set(SIGILL, on_context, 0);
    uint64_t rbx = 0;
    double in = 1.5, out = 0;
    asm volatile("movsd %2, %%xmm7\n mov $1, %%rbx\n ud2\n mov %%rbx, %0\n movsd %%xmm7, %1"
                 : "=&r"(rbx), "=m"(out)
                 : "m"(in)
                 : "rbx", "xmm7", "memory");
    CHECK(rbx == 0x1234 && out == 1.5);
    sigset_t mask;
    sigprocmask(0, 0, &mask);
    CHECK(sigismember(&mask, SIGUSR2));
    sigdelset(&mask, SIGUSR2);
    sigprocmask(SIG_SETMASK, &mask, 0);

    /* faults */
    set(SIGSEGV, on_segv, SA_NODEFER);
    if (sigsetjmp(jump, 1) == 0)
        *(volatile int *)0x1000 = 1;
    CHECK(got == SIGSEGV && got_code == SEGV_MAPERR && got_addr == (void *)0x1000);
    void *ro = mmap(0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (sigsetjmp(jump, 1) == 0)
        *(volatile int *)ro = 1;
    CHECK(got_code == SEGV_ACCERR && got_addr == ro);
    if (sigsetjmp(jump, 1) == 0)
        *(volatile int *)0x8000000000000000ul = 1; /* not canonical: #GP, no address */
    CHECK(got == SIGSEGV && got_code == SI_KERNEL && got_addr == 0);
    set(SIGFPE, on_segv, SA_NODEFER);
    if (sigsetjmp(jump, 1) == 0) {
        int quotient = 1, high = 0, zero = 0;
        asm volatile("idivl %2" : "+a"(quotient), "+d"(high) : "r"(zero));
    }
    CHECK(got == SIGFPE && got_code == FPE_INTDIV);
    set(SIGTRAP, on_info, 0);
    asm volatile("int3");
    CHECK(got == SIGTRAP && got_code == SI_KERNEL);

    /* sigtimedwait */
    sigset_t set1;
    siginfo_t si;
    sigemptyset(&set1);
    sigaddset(&set1, SIGUSR2);
    sigprocmask(SIG_BLOCK, &set1, 0);
    struct timespec zero = {0, 0}, short_time = {0, 20000000};
    FAILS(EAGAIN, sigtimedwait(&set1, &si, &zero));
    FAILS(EAGAIN, sigtimedwait(&set1, &si, &short_time));
    kill(getpid(), SIGUSR2);
    CHECK(sigtimedwait(&set1, &si, &zero) == SIGUSR2 && si.si_pid == getpid());
    pid_t child = fork();
    if (child == 0) {
        sleep_ms(30);
        kill(getppid(), SIGUSR2);
        _exit(0);
    }
    CHECK(sigwaitinfo(&set1, &si) == SIGUSR2 && si.si_pid == child);
    CHECK(waitpid(child, 0, 0) == child);

    /* to one thread */
    pthread_t t;
    volatile pid_t tid = 0;
    pthread_create(&t, 0, tgkill_target, (void *)&tid);
    while (!tid)
        sleep_ms(1);
    sleep_ms(10);
    CHECK(syscall(SYS_tgkill, getpid(), tid, SIGUSR2) == 0);
    pthread_join(t, 0);

    /* restart and EINTR */
    int p[2];
    CHECK(pipe(p) == 0);
    for (int restart = 0; restart < 2; restart++) {
        set(SIGALRM, on_info, restart ? SA_RESTART : 0);
        child = fork();
        if (child == 0) {
            sleep_ms(40);
            kill(getppid(), SIGALRM);
            sleep_ms(40);
            CHECK(write(p[1], "x", 1) == 1);
            _exit(0);
        }
        char c;
        errno = 0;
        ssize_t n = read(p[0], &c, 1);
        if (restart)
            CHECK(n == 1);
        else {
            CHECK(n == -1 && errno == EINTR);
            while (read(p[0], &c, 1) != 1)
                ;
        }
        while (waitpid(child, 0, 0) != child)
            ;
    }

    /* sigsuspend restores the mask and runs the handler */
    set(SIGUSR2, on_info, 0);
    got = 0;
    kill(getpid(), SIGUSR2);
    CHECK(got == 0);
    sigset_t none;
    sigemptyset(&none);
    FAILS(EINTR, sigsuspend(&none));
    CHECK(got == SIGUSR2);
    sigprocmask(0, 0, &mask);
    CHECK(sigismember(&mask, SIGUSR2));

    /* nanosleep goes on after a stop and continue, and says what is left after a handler */
    struct timespec want = {0, 200000000}, left = {9, 9};
    sigprocmask(SIG_UNBLOCK, &set1, 0);
    child = fork();
    if (child == 0) {
        sleep_ms(50);
        kill(getppid(), SIGUSR2);
        _exit(0);
    }
    FAILS(EINTR, nanosleep(&want, &left));
    CHECK(left.tv_sec == 0 && left.tv_nsec > 0 && left.tv_nsec < 180000000);
    waitpid(child, 0, 0);

    /* an ignored signal is not seen */
    signal(SIGUSR1, SIG_IGN);
    sigaddset(&set1, SIGUSR1);
    raise(SIGUSR1);
    sigpending(&mask);
    CHECK(!sigismember(&mask, SIGUSR1));

    /* what a child inherits */
    set(SIGUSR1, on_info, 0);
    sigprocmask(SIG_BLOCK, &set1, 0);
    raise(SIGUSR1);
    child = fork();
    if (child == 0) {
        sigset_t s;
        sigpending(&s);
        CHECK(!sigismember(&s, SIGUSR1));
        sigprocmask(0, 0, &s);
        CHECK(sigismember(&s, SIGUSR1));
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    return check_done();
}
