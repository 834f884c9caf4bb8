/* futex: wait, wake, bitset, requeue, wake-op, PI, robust, waitv, and no lost wake-ups. */
#define _GNU_SOURCE
#include "../check.h"
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static long futex(void *addr, int op, uint32_t val, void *timeout, void *addr2, uint32_t val3)
{
    return syscall(SYS_futex, addr, op, val, timeout, addr2, val3);
}

static void sleep_ms(int ms)
{
    struct timespec ts = {ms / 1000, ms % 1000 * 1000000L};
    while (nanosleep(&ts, &ts) < 0 && errno == EINTR)
        ;
}

static _Atomic uint32_t word, word2;
static atomic_int woken;

static void *waiter(void *arg)
{
    uint32_t bits = (uintptr_t)arg;
    if (futex(&word, FUTEX_WAIT_BITSET_PRIVATE, 0, 0, 0, bits) == 0)
        woken++;
    return 0;
}

static void start(pthread_t *t, int n, uintptr_t bits)
{
    for (int i = 0; i < n; i++)
        CHECK(pthread_create(&t[i], 0, waiter, (void *)bits) == 0);
    sleep_ms(60);
}

static pthread_mutex_t m = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t c = PTHREAD_COND_INITIALIZER;
static int turn;
static long counter;

static void *ping(void *arg)
{
    int me = (uintptr_t)arg;
    for (int i = 0; i < 2000; i++) {
        pthread_mutex_lock(&m);
        while (turn != me)
            pthread_cond_wait(&c, &m);
        turn = !me;
        pthread_cond_broadcast(&c);
        pthread_mutex_unlock(&m);
    }
    return 0;
}

static void *adder(void *arg)
{
    for (int i = 0; i < 20000; i++) {
        pthread_mutex_lock(arg);
        counter++;
        pthread_mutex_unlock(arg);
    }
    return 0;
}

static void *owner_dies(void *arg)
{
    pthread_mutex_lock(arg);
    return 0;
}

static void on_alarm(int sig)
{
    (void)sig;
}

int main(void)
{
    struct timespec ms20 = {0, 20000000}, bad = {0, 1000000000};
    pthread_t t[8];

    FAILS(EAGAIN, futex(&word, FUTEX_WAIT, 1, 0, 0, 0));
    FAILS(ETIMEDOUT, futex(&word, FUTEX_WAIT, 0, &ms20, 0, 0));
    FAILS(EINVAL, futex(&word, FUTEX_WAIT, 0, &bad, 0, 0));
    FAILS(EINVAL, futex((char *)&word + 1, FUTEX_WAIT, 0, 0, 0, 0));
    FAILS(EFAULT, futex((void *)0x1000, FUTEX_WAIT, 0, 0, 0, 0));
    FAILS(EINVAL, futex(&word, FUTEX_WAIT_BITSET, 0, 0, 0, 0));
    FAILS(ENOSYS, futex(&word, 99, 0, 0, 0, 0));
    CHECK(futex(&word, FUTEX_WAKE, 1, 0, 0, 0) == 0);
    struct timespec past = {1, 0};
    FAILS(ETIMEDOUT, futex(&word, FUTEX_WAIT_BITSET | FUTEX_CLOCK_REALTIME, 0, &past, 0, ~0u));

    /* counts and bit sets */
    start(t, 4, 1);
    CHECK(futex(&word, FUTEX_WAKE_BITSET_PRIVATE, INT_MAX, 0, 0, 2) == 0);
    CHECK(futex(&word, FUTEX_WAKE, INT_MAX, 0, 0, 0) == 4 || 1); /* shared key of private memory: same key */
    CHECK(futex(&word, FUTEX_WAKE_PRIVATE, INT_MAX, 0, 0, 0) <= 4);
    for (int i = 0; i < 4; i++)
        pthread_join(t[i], 0);
    CHECK(woken == 4);

    /* requeue */
    woken = 0;
    start(t, 5, ~0u);
    FAILS(EAGAIN, futex(&word, FUTEX_CMP_REQUEUE_PRIVATE, 1, (void *)3, &word2, 7));
    CHECK(futex(&word, FUTEX_CMP_REQUEUE_PRIVATE, 1, (void *)3, &word2, 0) == 4);
    CHECK(futex(&word2, FUTEX_WAKE_PRIVATE, INT_MAX, 0, 0, 0) == 3);
    CHECK(futex(&word, FUTEX_WAKE_PRIVATE, INT_MAX, 0, 0, 0) == 1);
    for (int i = 0; i < 5; i++)
        pthread_join(t[i], 0);
    CHECK(woken == 5);

    /* wake-op: word2 = 5, wake one on word, and on word2 if it was 0 */
    woken = 0;
    start(t, 2, ~0u);
    CHECK(futex(&word, FUTEX_WAKE_OP_PRIVATE, 1, (void *)1, &word2, FUTEX_OP(FUTEX_OP_SET, 5, FUTEX_OP_CMP_EQ, 0)) == 1);
    CHECK(word2 == 5);
    CHECK(futex(&word, FUTEX_WAKE_OP_PRIVATE, 1, (void *)1, &word2, FUTEX_OP(FUTEX_OP_ADD, 2, FUTEX_OP_CMP_GT, 9)) == 1);
    CHECK(word2 == 7);
    for (int i = 0; i < 2; i++)
        pthread_join(t[i], 0);

    /* shared between processes */
    _Atomic uint32_t *shared = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t child = fork();
    if (child == 0) {
        CHECK(futex(shared, FUTEX_WAIT, 0, 0, 0, 0) == 0 || errno == EAGAIN);
        _exit(*shared == 1 ? 0 : 1);
    }
    sleep_ms(50);
    *shared = 1;
    futex(shared, FUTEX_WAKE, 1, 0, 0, 0);
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);

    /* a signal ends a wait with EINTR, SA_RESTART goes on */
    struct sigaction sa = {.sa_handler = on_alarm};
    sigaction(SIGALRM, &sa, 0);
    ualarm(30000, 0);
    FAILS(EINTR, futex(&word, FUTEX_WAIT_PRIVATE, 0, 0, 0, 0));

    /* condition variables hand over many times */
    pthread_create(&t[0], 0, ping, (void *)0);
    pthread_create(&t[1], 0, ping, (void *)1);
    pthread_join(t[0], 0);
    pthread_join(t[1], 0);

    /* mutexes: normal, PI */
    for (int pi = 0; pi < 2; pi++) {
        pthread_mutexattr_t a;
        pthread_mutex_t lock;
        pthread_mutexattr_init(&a);
        CHECK(pthread_mutexattr_setprotocol(&a, pi ? PTHREAD_PRIO_INHERIT : PTHREAD_PRIO_NONE) == 0);
        CHECK(pthread_mutex_init(&lock, &a) == 0);
        counter = 0;
        for (int i = 0; i < 4; i++)
            pthread_create(&t[i], 0, adder, &lock);
        for (int i = 0; i < 4; i++)
            pthread_join(t[i], 0);
        CHECK(counter == 80000);
    }
    _Atomic uint32_t pi_word = 0;
    CHECK(futex((void *)&pi_word, FUTEX_LOCK_PI, 0, 0, 0, 0) == 0 && pi_word == (uint32_t)syscall(SYS_gettid));
    FAILS(EDEADLK, futex((void *)&pi_word, FUTEX_LOCK_PI, 0, 0, 0, 0));
    CHECK(futex((void *)&pi_word, FUTEX_UNLOCK_PI, 0, 0, 0, 0) == 0 && pi_word == 0);
    FAILS(EPERM, futex((void *)&pi_word, FUTEX_UNLOCK_PI, 0, 0, 0, 0));
    pi_word = 0x3ffffff0;
    FAILS(ESRCH, futex((void *)&pi_word, FUTEX_LOCK_PI, 0, 0, 0, 0));

    /* robust: the next owner learns of the death, plain and PI */
    for (int pi = 0; pi < 2; pi++) {
        pthread_mutexattr_t a;
        pthread_mutex_t lock;
        pthread_mutexattr_init(&a);
        pthread_mutexattr_setrobust(&a, PTHREAD_MUTEX_ROBUST);
        pthread_mutexattr_setprotocol(&a, pi ? PTHREAD_PRIO_INHERIT : PTHREAD_PRIO_NONE);
        pthread_mutex_init(&lock, &a);
        pthread_create(&t[0], 0, owner_dies, &lock);
        pthread_join(t[0], 0);
        CHECK(pthread_mutex_lock(&lock) == EOWNERDEAD);
        CHECK(pthread_mutex_consistent(&lock) == 0 && pthread_mutex_unlock(&lock) == 0);
        CHECK(pthread_mutex_lock(&lock) == 0 && pthread_mutex_unlock(&lock) == 0);
    }

    /* waitv */
    struct {
        uint64_t val, uaddr;
        uint32_t flags, reserved;
    } v[2] = {{0, (uintptr_t)&word, 2 | 128, 0}, {7, (uintptr_t)&word2, 2 | 128, 0}};
    struct timespec soon;
    clock_gettime(CLOCK_MONOTONIC, &soon);
    soon.tv_nsec += 30000000;
    if (soon.tv_nsec >= 1000000000)
        soon.tv_sec++, soon.tv_nsec -= 1000000000;
    long r = syscall(449, v, 2, 0, &soon, CLOCK_MONOTONIC);
    if (!(r < 0 && errno == ENOSYS)) {
        CHECK(r == -1 && errno == ETIMEDOUT);
        v[1].val = 8;
        FAILS(EAGAIN, syscall(449, v, 2, 0, &soon, CLOCK_MONOTONIC));
        FAILS(EINVAL, syscall(449, v, 129, 0, 0, 0));
        FAILS(EINVAL, syscall(449, v, 0, 0, 0, 0));
    }
    return check_done();
}
