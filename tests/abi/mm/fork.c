/* fork and memory: copy on write both ways, shared memory, MADV_DONTFORK, WIPEONFORK, kernel copies into shared pages. */
#include "../check.h"
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define P 4096UL
#define RW (PROT_READ | PROT_WRITE)
static sigjmp_buf jump;

static void on_fault(int signo)
{
    siglongjmp(jump, signo);
}

static int faults(volatile char *p)
{
    int signo = sigsetjmp(jump, 1);
    if (signo == 0)
        (void)*p;
    return signo;
}

static void *area(size_t pages, int flags)
{
    return mmap(0, pages * P, RW, flags | MAP_ANONYMOUS, -1, 0);
}

int main(void)
{
    signal(SIGSEGV, on_fault);
    char *private = area(4, MAP_PRIVATE), *shared = area(4, MAP_SHARED);
    char *dont = area(2, MAP_PRIVATE), *wipe = area(2, MAP_PRIVATE), *zero = area(2, MAP_PRIVATE);
    int up[2], down[2];
    CHECK(pipe(up) == 0 && pipe(down) == 0);
    memset(private, 'p', 4 * P);
    memset(shared, 's', 4 * P);
    memset(dont, 'd', 2 * P);
    memset(wipe, 'w', 2 * P);
    CHECK(zero[0] == 0);
    CHECK(madvise(dont, 2 * P, MADV_DONTFORK) == 0);
    CHECK(madvise(wipe, 2 * P, MADV_WIPEONFORK) == 0);
    FAILS(EINVAL, madvise(shared, P, MADV_WIPEONFORK));

    pid_t pid = fork();
    if (pid == 0) {
        check_failures = 0;
        CHECK(private[0] == 'p' && private[3 * P] == 'p');
        private[0] = 'c';
        shared[0] = 'c';
        CHECK(private[0] == 'c' && private[P] == 'p');
        CHECK(faults(dont) == SIGSEGV);
        CHECK(wipe[0] == 0 && wipe[2 * P - 1] == 0);
        zero[0] = 'c';
        CHECK(write(up[1], "x", 1) == 1);
        /* The parent has written by now; and a read by the kernel breaks copy on write, too. */
        CHECK(read(down[0], private + 2 * P, 1) == 1);
        CHECK(private[2 * P] == 'k' && private[P] == 'p' && shared[P] == 'P');
        _exit(check_failures ? 1 : 0);
    }
    char c;
    CHECK(read(up[0], &c, 1) == 1);
    CHECK(private[0] == 'p' && shared[0] == 'c' && zero[0] == 0);
    private[P] = 'P';
    shared[P] = 'P';
    CHECK(write(down[1], "k", 1) == 1);
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    CHECK(private[2 * P] == 'p' && dont[0] == 'd' && wipe[0] == 'w');

    /* A chain of generations, each with its own page. */
    for (int depth = 0; depth < 20; depth++) {
        int value = *(int *)(private + 3 * P + 4);
        *(int *)(private + 3 * P) = depth;
        pid = fork();
        if (pid != 0) {
            CHECK(waitpid(pid, &status, 0) == pid && status == 0);
            CHECK(*(int *)(private + 3 * P) == depth && *(int *)(private + 3 * P + 4) == value);
            if (depth > 0)
                _exit(check_failures ? 1 : 0);
            return check_done();
        }
        *(int *)(private + 3 * P + 4) = depth * 7;
    }
    _exit(check_failures ? 1 : 0);
}
