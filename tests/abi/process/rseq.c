/* rseq(2) through the C library's registration: the CPU's number follows every move, preemption ends a critical section. */
#include "../check.h"
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/rseq.h>
#include <sys/wait.h>
#include <unistd.h>

static volatile struct rseq *area(void)
{
    return (volatile struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset);
}

static void pin(int cpu)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    CHECK(sched_setaffinity(0, sizeof set, &set) == 0);
}

static int cpus[64], count;

static void follows(void)
{
    for (int round = 0; round < 200; round++) {
        int cpu = cpus[round % count];
        pin(cpu);
        CHECK(sched_getcpu() == cpu && area()->cpu_id == (unsigned)cpu && area()->cpu_id_start == (unsigned)cpu);
    }
    /* In a child of fork, too. */
    pid_t child = fork();
    if (child == 0) {
        int wrong = 0;
        for (int round = 0; round < 50; round++) {
            pin(cpus[round % count]);
            wrong += area()->cpu_id != (unsigned)cpus[round % count];
        }
        _exit(wrong != 0);
    }
    int status;
    waitpid(child, &status, 0);
    CHECK(status == 0);
}

/* Stays in a critical section until it is ended from outside. */
static int spin(volatile struct rseq *rseq)
{
    asm volatile goto(".pushsection __rseq_cs, \"aw\"\n"
                      ".balign 32\n"
                      "3: .long 0, 0\n"
                      ".quad 1f, 2f - 1f, 4f\n"
                      ".popsection\n"
                      "leaq 3b(%%rip), %%rax\n"
                      "movq %%rax, %[cs]\n"
                      "1: pause\n"
                      "jmp 1b\n"
                      "2:\n"
                      ".pushsection __rseq_failure, \"ax\"\n"
                      ".byte 0x0f, 0xb9, 0x3d\n"
                      ".long 0x53053053\n"
                      "4: jmp %l[aborted]\n"
                      ".popsection\n"
                      :
                      : [cs] "m"(rseq->rseq_cs)
                      : "rax", "memory"
                      : aborted);
    return 0;
aborted:
    return 1;
}

static volatile int stop;

static void *disturb(void *arg)
{
    pin(cpus[0]);
    while (!stop)
        usleep(1000);
    return NULL;
}

static void preempted(void)
{
    pthread_t thread;
    pin(cpus[0]);
    pthread_create(&thread, NULL, disturb, NULL);
    for (int i = 0; i < 20; i++)
        CHECK(spin(area()) && area()->rseq_cs == 0);
    stop = 1;
    pthread_join(thread, NULL);
}

static struct { uint64_t n; char pad[56]; } counters[64];

/* Adds one on the CPU that it runs on; 0 if it has to be tried again. */
static int add(volatile struct rseq *rseq, uint32_t cpu)
{
    asm volatile goto(".pushsection __rseq_cs, \"aw\"\n"
                      ".balign 32\n"
                      "3: .long 0, 0\n"
                      ".quad 1f, 2f - 1f, 4f\n"
                      ".popsection\n"
                      "leaq 3b(%%rip), %%rax\n"
                      "movq %%rax, %[cs]\n"
                      "1: cmpl %[cpu], %[now]\n"
                      "jne 4f\n"
                      "movq %[n], %%rcx\n"
                      "movl $20, %%eax\n"
                      "5: pause\n"
                      "decl %%eax\n"
                      "jnz 5b\n"
                      "incq %%rcx\n"
                      "movq %%rcx, %[n]\n"
                      "2:\n"
                      ".pushsection __rseq_failure, \"ax\"\n"
                      ".byte 0x0f, 0xb9, 0x3d\n"
                      ".long 0x53053053\n"
                      "4: jmp %l[aborted]\n"
                      ".popsection\n"
                      :
                      : [cs] "m"(rseq->rseq_cs), [now] "m"(rseq->cpu_id), [n] "m"(counters[cpu].n), [cpu] "r"(cpu)
                      : "rax", "rcx", "memory", "cc"
                      : aborted);
    return 1;
aborted:
    return 0;
}

#define EACH 100000
static long retries;

static void *adds(void *arg)
{
    volatile struct rseq *rseq = area();
    for (int i = 0; i < EACH; i++) {
        while (!add(rseq, rseq->cpu_id_start))
            __sync_fetch_and_add(&retries, 1);
        if (i % 997 == 0)
            sched_yield();
        if (arg && i % 1999 == 0)
            pin(cpus[i / 1999 % count]);
    }
    return NULL;
}

static void adds_up(void)
{
    cpu_set_t all;
    CPU_ZERO(&all);
    for (int i = 0; i < count; i++)
        CPU_SET(cpus[i], &all);
    sched_setaffinity(0, sizeof all, &all);
    pthread_t threads[6];
    for (long i = 0; i < 6; i++)
        pthread_create(&threads[i], NULL, adds, (void *)(i % 2));
    for (int i = 0; i < 6; i++)
        pthread_join(threads[i], NULL);
    uint64_t sum = 0;
    for (int i = 0; i < 64; i++)
        sum += counters[i].n;
    CHECK(sum == 6 * EACH);
    printf("%ld retries\n", retries);
}

int main(void)
{
    cpu_set_t set;
    CHECK(__rseq_size > 0 && sched_getaffinity(0, sizeof set, &set) == 0);
    for (int i = 0; i < 64; i++)
        if (CPU_ISSET(i, &set))
            cpus[count++] = i;
    alarm(100);
    follows();
    preempted();
    adds_up();
    return check_done();
}
