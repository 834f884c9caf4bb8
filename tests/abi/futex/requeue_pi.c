/* futex: FUTEX_WAIT_REQUEUE_PI and FUTEX_CMP_REQUEUE_PI: errors, hand-over of a free and of a taken lock, order by priority,
 * time limits and signals before and after the move, and a condition variable built of them that loses nothing. */
#include "../check.h"
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static _Atomic uint32_t word, lock, other;
static atomic_int ready, owners, result;
static atomic_int order[8];

static long futex(void *addr, int op, uint32_t val, const void *timeout, void *addr2, uint32_t val3)
{
    return syscall(SYS_futex, addr, op | FUTEX_PRIVATE_FLAG, val, timeout, addr2, val3);
}

static uint32_t me(void) { return syscall(SYS_gettid); }

static void lock_pi(void)
{
    uint32_t zero = 0;
    if (!atomic_compare_exchange_strong(&lock, &zero, me()))
        CHECK(futex(&lock, FUTEX_LOCK_PI, 0, 0, 0, 0) == 0);
}

static void unlock_pi(void)
{
    uint32_t mine = me();
    if (!atomic_compare_exchange_strong(&lock, &mine, 0))
        CHECK(futex(&lock, FUTEX_UNLOCK_PI, 0, 0, 0, 0) == 0);
}

static void settle(int n)
{
    while (ready < n)
        usleep(1000);
    usleep(100000);
}

static void start(pthread_t *t, void *(*body)(void *), long arg)
{
    CHECK(pthread_create(t, 0, body, (void *)arg) == 0);
}

/* Waits, must come back as the owner, notes its number, unlocks. */
static void *waiter(void *arg)
{
    int rt = (long)arg;
    if (rt) {
        struct sched_param p = { rt };
        CHECK(pthread_setschedparam(pthread_self(), SCHED_FIFO, &p) == 0);
    }
    ready++;
    CHECK(futex(&word, FUTEX_WAIT_REQUEUE_PI, 0, 0, &lock, ~0u) == 0);
    CHECK((lock & FUTEX_TID_MASK) == me());
    order[owners++] = rt;
    unlock_pi();
    return 0;
}

static void errors(void)
{
    struct timespec past = { 1, 0 };
    FAILS(EINVAL, futex(&word, FUTEX_WAIT_REQUEUE_PI, 0, 0, &word, ~0u));
    FAILS(EAGAIN, futex(&word, FUTEX_WAIT_REQUEUE_PI, 7, 0, &lock, ~0u));
    FAILS(ETIMEDOUT, futex(&word, FUTEX_WAIT_REQUEUE_PI, 0, &past, &lock, ~0u));
    FAILS(EINVAL, futex(&word, FUTEX_CMP_REQUEUE_PI, 1, (void *)1, &word, 0));
    FAILS(EINVAL, futex(&word, FUTEX_CMP_REQUEUE_PI, 2, (void *)1, &lock, 0));
    FAILS(EINVAL, futex(&word, FUTEX_CMP_REQUEUE_PI, 0, (void *)1, &lock, 0));
    FAILS(EAGAIN, futex(&word, FUTEX_CMP_REQUEUE_PI, 1, (void *)1, &lock, 7));
    CHECK(futex(&word, FUTEX_CMP_REQUEUE_PI, 1, (void *)INT_MAX, &lock, 0) == 0);
    CHECK(lock == 0);
}

/* A free lock goes to the first of them, which passes it on. */
static void free_lock(void)
{
    pthread_t t[3];
    ready = owners = 0;
    for (int i = 0; i < 3; i++)
        start(&t[i], waiter, 0);
    settle(3);
    FAILS(EINVAL, futex(&word, FUTEX_WAKE, 1, 0, 0, 0));
    FAILS(EINVAL, futex(&word, FUTEX_REQUEUE, 0, (void *)1, &other, 0));
    FAILS(EINVAL, futex(&word, FUTEX_CMP_REQUEUE_PI, 1, (void *)1, &other, 0));
    CHECK(futex(&word, FUTEX_CMP_REQUEUE_PI, 1, (void *)INT_MAX, &lock, 0) == 3);
    for (int i = 0; i < 3; i++)
        pthread_join(t[i], 0);
    CHECK(owners == 3 && lock == 0);
}

/* A taken lock: all of them wait for it, the most urgent gets it first. */
static void taken_lock(void)
{
    pthread_t t[3];
    static const int priorities[] = { 5, 20, 10 };
    ready = owners = 0;
    for (int i = 0; i < 3; i++) {
        start(&t[i], waiter, priorities[i]);
        settle(i + 1);
    }
    lock_pi();
    CHECK(futex(&word, FUTEX_CMP_REQUEUE_PI, 1, (void *)1, &lock, 0) == 2);
    CHECK(lock == (me() | FUTEX_WAITERS));
    CHECK(futex(&word, FUTEX_CMP_REQUEUE_PI, 1, (void *)INT_MAX, &lock, 0) == 1);
    CHECK(owners == 0);
    unlock_pi();
    for (int i = 0; i < 3; i++)
        pthread_join(t[i], 0);
    CHECK(owners == 3 && order[0] == 20 && order[1] == 10 && order[2] == 5);
    CHECK((lock & FUTEX_TID_MASK) == 0);
    lock = 0;
}

static void nothing(int s) { (void)s; }

static void *limited(void *arg)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    at.tv_sec += (long)arg;
    ready++;
    long r = futex(&word, FUTEX_WAIT_REQUEUE_PI, 0, (long)arg ? &at : 0, &lock, ~0u);
    result = r == 0 ? 0 : errno;
    return 0;
}

/* Moved, and then the time is over, or a signal comes: both leave the queue. */
static void ends_after_the_move(void)
{
    pthread_t t;
    lock_pi();
    ready = 0;
    start(&t, limited, 2);
    settle(1);
    CHECK(futex(&word, FUTEX_CMP_REQUEUE_PI, 1, (void *)1, &lock, 0) == 1);
    pthread_join(t, 0);
    CHECK(result == ETIMEDOUT);
    unlock_pi();
    lock = 0;

    struct sigaction sa = { .sa_handler = nothing, .sa_flags = SA_RESTART };
    sigaction(SIGUSR1, &sa, 0);
    lock_pi();
    ready = 0;
    start(&t, limited, 0);
    settle(1);
    CHECK(futex(&word, FUTEX_CMP_REQUEUE_PI, 1, (void *)1, &lock, 0) == 1);
    pthread_kill(t, SIGUSR1);
    pthread_join(t, 0);
    CHECK(result == EAGAIN);
    unlock_pi();
    lock = 0;

    /* Before the move a signal restarts the wait, and a changed word ends it. */
    ready = 0;
    start(&t, limited, 0);
    settle(1);
    pthread_kill(t, SIGUSR1);
    usleep(100000);
    CHECK(futex(&word, FUTEX_CMP_REQUEUE_PI, 1, (void *)1, &lock, 0) == 1);
    pthread_join(t, 0);
    CHECK(result == 0);
    lock = 0;
}

static void *owner_itself(void *arg)
{
    lock_pi();
    ready++;
    long r = futex(&word, FUTEX_WAIT_REQUEUE_PI, 0, arg, &lock, ~0u);
    result = r == 0 ? 0 : errno;
    unlock_pi();
    return 0;
}

static void deadlock(void)
{
    pthread_t t;
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    at.tv_sec += 2;
    ready = 0;
    start(&t, owner_itself, (long)&at);
    settle(1);
    FAILS(EDEADLK, futex(&word, FUTEX_CMP_REQUEUE_PI, 1, (void *)1, &lock, 0));
    pthread_join(t, 0);
    CHECK(result == ETIMEDOUT);
    lock = 0;
}

/* A condition variable as glibc once had it: consumers take what the producer puts, none is lost and none hangs. */
static int items, taken;
enum { ITEMS = 3000, CONSUMERS = 4 };

static void *consumer(void *arg)
{
    (void)arg;
    for (;;) {
        lock_pi();
        while (items == 0 && taken < ITEMS) {
            uint32_t seen = word;
            unlock_pi();
            if (futex(&word, FUTEX_WAIT_REQUEUE_PI, seen, 0, &lock, ~0u) < 0)
                lock_pi();
        }
        if (items == 0) {
            unlock_pi();
            return 0;
        }
        items--;
        taken++;
        unlock_pi();
    }
}

static void condition(void)
{
    pthread_t t[CONSUMERS];
    for (int i = 0; i < CONSUMERS; i++)
        start(&t[i], consumer, 0);
    for (int i = 0; i < ITEMS; i++) {
        lock_pi();
        items++;
        uint32_t now = ++word;
        if (i & 1)
            futex(&word, FUTEX_CMP_REQUEUE_PI, 1, (void *)(long)(i % 3 ? 0 : INT_MAX), &lock, now);
        unlock_pi();
        if (!(i & 1))
            futex(&word, FUTEX_CMP_REQUEUE_PI, 1, (void *)(long)(i % 3 ? 0 : INT_MAX), &lock, now);
    }
    for (int done = 0; !done;) {
        lock_pi();
        done = taken == ITEMS;
        uint32_t now = ++word;
        futex(&word, FUTEX_CMP_REQUEUE_PI, 1, (void *)INT_MAX, &lock, now);
        unlock_pi();
        usleep(1000);
    }
    for (int i = 0; i < CONSUMERS; i++)
        pthread_join(t[i], 0);
    CHECK(taken == ITEMS && items == 0);
}

int main(void)
{
    alarm(100);
    errors();
    free_lock();
    taken_lock();
    ends_after_the_move();
    deadlock();
    word = 0;
    condition();
    return check_done();
}
