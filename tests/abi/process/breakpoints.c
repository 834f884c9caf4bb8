/* Hardware breakpoints and watchpoints through PTRACE_POKEUSER: ptrace(2), struct user's u_debugreg. */
#include "../check.h"
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef TRAP_HWBKPT
#define TRAP_HWBKPT 4
#endif
#define DR(n) (offsetof(struct user, u_debugreg) + 8 * (n))
enum { EXECUTE = 0, WRITE = 1, READ_WRITE = 3 };
#define ENABLE(slot, kind, len) ((unsigned long)((((len) == 8 ? 2 : (len) - 1) << 2 | (kind)) << (16 + 4 * (slot))) | 1ul << (2 * (slot)))

static _Alignas(64) volatile unsigned char memory[64];
static _Alignas(64) volatile unsigned char elsewhere[64];

__attribute__((noinline)) static void function(void) { __asm__ volatile("nop"); }

static int poke(pid_t pid, int reg, unsigned long value) {
    return ptrace(PTRACE_POKEUSER, pid, (void *)DR(reg), (void *)value) == 0 ? 0 : errno;
}
static unsigned long peek(pid_t pid, int reg) {
    errno = 0;
    return (unsigned long)ptrace(PTRACE_PEEKUSER, pid, (void *)DR(reg), 0);
}

/* A child that waits for its tracer, then runs `body` and ends with what it returns. */
static pid_t start(int (*body)(void)) {
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        ptrace(PTRACE_TRACEME, 0, 0, 0);
        raise(SIGSTOP);
        _exit(body());
    }
    int status;
    waitpid(pid, &status, 0);
    return pid;
}
static int go_on(pid_t pid) {
    int status = 0;
    ptrace(PTRACE_CONT, pid, 0, 0);
    waitpid(pid, &status, __WALL);
    return status;
}
static int stopped_by_trap(int status) { return WIFSTOPPED(status) && WSTOPSIG(status) == SIGTRAP; }
static int ended_well(int status) { return WIFEXITED(status) && WEXITSTATUS(status) == 0; }
static int code(pid_t pid) {
    siginfo_t info;
    return ptrace(PTRACE_GETSIGINFO, pid, 0, &info) == 0 ? info.si_code : -1;
}

static int stores(void) {
    *(volatile uint64_t *)elsewhere = 1;
    *(volatile uint64_t *)memory = 2;
    return 0;
}
static int loads(void) { return *(volatile uint64_t *)memory != 0; }
static int calls(void) {
    function();
    function();
    return 0;
}

static void watchpoints(void) {
    static const int lengths[] = {1, 2, 4, 8};
    for (int slot = 0; slot < 4; slot++)
        for (int i = 0; i < 4; i++) {
            pid_t pid = start(stores);
            CHECK(poke(pid, slot, (unsigned long)memory) == 0);
            CHECK(poke(pid, 7, ENABLE(slot, WRITE, lengths[i])) == 0);
            int status = go_on(pid);
            CHECK(stopped_by_trap(status));
            CHECK(code(pid) == TRAP_HWBKPT);
            CHECK((peek(pid, 6) & 0xf) == 1ul << slot);
            uint64_t now = (uint64_t)ptrace(PTRACE_PEEKDATA, pid, (void *)memory, 0);
            CHECK(now == 2); /* a trap: behind the store */
            CHECK(ended_well(go_on(pid)));
        }
    pid_t pid = start(loads);
    CHECK(poke(pid, 0, (unsigned long)memory) == 0 && poke(pid, 7, ENABLE(0, READ_WRITE, 8)) == 0);
    CHECK(stopped_by_trap(go_on(pid)));
    CHECK(ended_well(go_on(pid)));
    pid = start(loads);
    CHECK(poke(pid, 0, (unsigned long)memory) == 0 && poke(pid, 7, ENABLE(0, WRITE, 8)) == 0);
    CHECK(ended_well(go_on(pid)));
    /* Four at once, of which the second and the fourth are hit. */
    pid = start(stores);
    CHECK(poke(pid, 0, (unsigned long)memory + 32) == 0 && poke(pid, 1, (unsigned long)memory) == 0);
    CHECK(poke(pid, 2, (unsigned long)memory + 40) == 0 && poke(pid, 3, (unsigned long)memory + 4) == 0);
    CHECK(poke(pid, 7, ENABLE(0, WRITE, 8) | ENABLE(1, WRITE, 4) | ENABLE(2, WRITE, 8) | ENABLE(3, WRITE, 4)) == 0);
    CHECK(stopped_by_trap(go_on(pid)));
    /* An emulator may tell of one of them only. */
    CHECK((peek(pid, 6) & 0xf & ~0xaul) == 0 && peek(pid, 6) & 0xa);
    CHECK(ended_well(go_on(pid)));
}

static void breakpoint(void) {
    pid_t pid = start(calls);
    CHECK(poke(pid, 2, (unsigned long)function) == 0 && poke(pid, 7, ENABLE(2, EXECUTE, 1)) == 0);
    for (int i = 0; i < 2; i++) {
        CHECK(stopped_by_trap(go_on(pid)));
        CHECK(code(pid) == TRAP_HWBKPT);
        CHECK((peek(pid, 6) & 0xf) == 4);
        struct user_regs_struct regs;
        ptrace(PTRACE_GETREGS, pid, 0, &regs);
        CHECK(regs.rip == (unsigned long)function); /* a fault: before the instruction */
    }
    CHECK(ended_well(go_on(pid)));
    /* A single step afterwards tells the step alone. */
    pid = start(calls);
    CHECK(poke(pid, 0, (unsigned long)function) == 0 && poke(pid, 7, ENABLE(0, EXECUTE, 1)) == 0);
    CHECK(stopped_by_trap(go_on(pid)));
    int status;
    ptrace(PTRACE_SINGLESTEP, pid, 0, 0);
    waitpid(pid, &status, 0);
    CHECK(stopped_by_trap(status));
    CHECK((peek(pid, 6) & 0x400f) == 0x4000);
    CHECK(poke(pid, 7, 0) == 0);
    CHECK(ended_well(go_on(pid)));
}

static void what_is_refused(void) {
    pid_t pid = start(stores);
    CHECK(peek(pid, 0) == 0 && peek(pid, 7) == 0);
    CHECK(poke(pid, 4, 0) == EIO && poke(pid, 5, 1) == EIO);
    CHECK(peek(pid, 4) == 0 && peek(pid, 5) == 0);
    CHECK(poke(pid, 0, 0xffffffff81000000ul) == EINVAL);
    CHECK(poke(pid, 0, 0x0100000000000000ul) == EINVAL);
    CHECK(poke(pid, 0, ~0ul) == EINVAL);
    CHECK(poke(pid, 0, (unsigned long)memory + 1) == 0);
    CHECK(peek(pid, 0) == (unsigned long)memory + 1);
    /* Not a multiple of the length; a port; a long instruction: nothing changes. */
    CHECK(poke(pid, 7, ENABLE(0, WRITE, 4)) == EINVAL);
    CHECK(poke(pid, 7, ENABLE(0, 2, 1)) == EINVAL);
    CHECK(poke(pid, 7, ENABLE(0, EXECUTE, 2)) == EINVAL);
    CHECK(peek(pid, 7) == 0);
    CHECK(poke(pid, 7, ENABLE(0, WRITE, 1)) == 0);
    /* Reserved bits are only kept, and what was there stays when the new value is refused. */
    unsigned long reserved = 0xfffffffful << 32 | 0xfc00;
    CHECK(poke(pid, 7, ENABLE(0, WRITE, 1) | reserved) == 0);
    CHECK(peek(pid, 7) == (ENABLE(0, WRITE, 1) | reserved));
    CHECK(poke(pid, 7, ENABLE(0, WRITE, 1) | ENABLE(1, 2, 1)) == EINVAL);
    CHECK(peek(pid, 7) == (ENABLE(0, WRITE, 1) | reserved));
    CHECK(poke(pid, 0, 0xffff800000000000ul) == EINVAL);
    CHECK(peek(pid, 0) == (unsigned long)memory + 1);
    /* The status is the tracer's to write. */
    CHECK(poke(pid, 6, 0x4003) == 0);
    CHECK((peek(pid, 6) & 0x400f) == 0x4003);
    CHECK(ptrace(PTRACE_POKEUSER, pid, (void *)(DR(0) + 4), 0) == -1 && errno == EIO);
    CHECK(stopped_by_trap(go_on(pid)));
    CHECK((peek(pid, 6) & 0x400f) == 1);
    CHECK(ended_well(go_on(pid)));
}

/* read(2) into the watched memory is the kernel's store: the program is not stopped by it. */
static int reads(void) {
    int ends[2];
    char bytes[8] = "1234567";
    if (pipe(ends) != 0 || write(ends[1], bytes, 8) != 8) return 1;
    if (read(ends[0], (void *)memory, 8) != 8) return 2;
    if (memory[0] != '1') return 3;
    memory[0] = 'x';
    return 0;
}

static int forks(void) {
    pid_t pid = fork();
    if (pid == 0) {
        memory[0] = 1;
        _exit(0);
    }
    int status;
    waitpid(pid, &status, 0);
    return ended_well(status) ? 0 : 1;
}

static void *stores_in_a_thread(void *unused) {
    memory[0] = 1;
    return unused;
}
static int threads(void) {
    pthread_t thread;
    pthread_create(&thread, 0, stores_in_a_thread, 0);
    pthread_join(thread, 0);
    return 0;
}

static int executes(void) {
    execl("/proc/self/exe", "breakpoints", "stores", (char *)0);
    return 1;
}

static void whose_they_are(void) {
    pid_t pid = start(reads);
    CHECK(poke(pid, 0, (unsigned long)memory) == 0 && poke(pid, 7, ENABLE(0, WRITE, 1)) == 0);
    CHECK(stopped_by_trap(go_on(pid)));
    CHECK((ptrace(PTRACE_PEEKDATA, pid, (void *)memory, 0) & 0xff) == 'x');
    CHECK(ended_well(go_on(pid)));

    pid = start(forks);
    CHECK(poke(pid, 0, (unsigned long)memory) == 0 && poke(pid, 7, ENABLE(0, WRITE, 1)) == 0);
    int status = go_on(pid);
    CHECK(WIFSTOPPED(status) && WSTOPSIG(status) == SIGCHLD); /* the child was not stopped */
    CHECK(ended_well(go_on(pid)));

    pid = start(threads);
    CHECK(poke(pid, 0, (unsigned long)memory) == 0 && poke(pid, 7, ENABLE(0, WRITE, 1)) == 0);
    CHECK(ended_well(go_on(pid)));

    pid = start(executes);
    CHECK(poke(pid, 0, (unsigned long)memory) == 0 && poke(pid, 7, ENABLE(0, WRITE, 1)) == 0);
    CHECK(stopped_by_trap(go_on(pid))); /* the stop of execve */
    CHECK(peek(pid, 0) == 0 && peek(pid, 7) == 0 && (peek(pid, 6) & 0xf) == 0);
    CHECK(ended_well(go_on(pid)));

    /* They outlive the tracer: the signal is the thread's own then. */
    pid = start(stores);
    CHECK(poke(pid, 0, (unsigned long)memory) == 0 && poke(pid, 7, ENABLE(0, WRITE, 1)) == 0);
    CHECK(ptrace(PTRACE_DETACH, pid, 0, 0) == 0);
    waitpid(pid, &status, 0);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGTRAP);
}

/* Processes with breakpoints and without take turns on one CPU: each stops for its own. */
static int turns(void) {
    for (int i = 0; i < 50; i++) {
        memory[i % 8] = (unsigned char)i;
        sched_yield();
    }
    return 0;
}
static void on_one_cpu(void) {
    cpu_set_t before, one;
    sched_getaffinity(0, sizeof before, &before);
    CPU_ZERO(&one);
    CPU_SET(sched_getcpu(), &one);
    sched_setaffinity(0, sizeof one, &one);
    pid_t watched = start(turns), other = start(turns);
    CHECK(poke(watched, 1, (unsigned long)memory) == 0 && poke(watched, 7, ENABLE(1, WRITE, 1)) == 0);
    ptrace(PTRACE_CONT, other, 0, 0);
    int hits = 0, status;
    while (stopped_by_trap(status = go_on(watched))) hits++;
    CHECK(ended_well(status));
    CHECK(hits == 7); /* 0, 8, 16 … 48 */
    waitpid(other, &status, 0);
    CHECK(ended_well(status));
    sched_setaffinity(0, sizeof before, &before);
}

/* Any values at all: an error or not, and the tracee and the system go on. */
static void any_values(void) {
    pid_t pid = start(stores);
    for (int i = 0; i < 3000; i++) {
        unsigned long value = (unsigned long)random() << 40 ^ (unsigned long)random() << 20 ^ (unsigned long)random();
        if (random() % 2) value &= 0x7fffffffffff;
        int errno_value = poke(pid, (int)(random() % 8), value);
        if (errno_value != 0 && errno_value != EINVAL && errno_value != EIO) CHECK(errno_value == 0);
    }
    CHECK(poke(pid, 7, 0) == 0);
    CHECK(ended_well(go_on(pid)));
}

int main(int argc, char **argv) {
    if (argc > 1) return stores();
    (void)argv;
    watchpoints();
    breakpoint();
    what_is_refused();
    whose_they_are();
    on_one_cpu();
    any_values();
    return check_done();
}
