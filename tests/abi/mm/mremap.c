/* mremap: growing, shrinking, moving, MREMAP_FIXED and DONTUNMAP, duplicating shared memory. */
#include "../check.h"
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif
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

static char *anon(size_t pages)
{
    return mmap(0, pages * P, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

/* Pages on both sides of a page table's end (2 MiB) all arrive, by whatever distance they are moved down or up: some tables
 * lose their last page and get others in one move. */
static void keeps_pages_across_tables(void)
{
    const size_t table = 512, near = 16;
    size_t size = 6 * table * P;
    char *space = mmap(0, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(space != MAP_FAILED);
    char *aligned = (char *)(((unsigned long)space + table * P - 1) & ~(table * P - 1));
    char *from = aligned + (2 * table - near) * P;
    long shifts[] = {-33, -(long)table + 8, -(long)table, -(long)table - 8, 33, (long)table - 8, (long)table, (long)table + 8};
    for (size_t n = 0; n < sizeof(shifts) / sizeof(*shifts); n++) {
        CHECK(mmap(from, 2 * near * P, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == from);
        for (size_t i = 0; i < 2 * near; i++)
            from[i * P] = (char)(i + 1);
        char *to = from + shifts[n] * (long)P;
        CHECK(mremap(from, 2 * near * P, 2 * near * P, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to);
        int wrong = 0;
        for (size_t i = 0; i < 2 * near; i++)
            wrong += to[i * P] != (char)(i + 1);
        CHECK(wrong == 0);
        munmap(to, 2 * near * P);
    }
    munmap(space, size);
}

int main(void)
{
    keeps_pages_across_tables();
    signal(SIGSEGV, on_fault);
    signal(SIGBUS, on_fault);
    char *space = mmap(0, 64 * P, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(space != MAP_FAILED);
    char *p = mmap(space + 8 * P, 4 * P, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    memset(p, 'a', 4 * P);
    p[3 * P] = 'e';

    FAILS(EINVAL, (long)mremap(p + 1, P, P, 0));
    FAILS(EINVAL, (long)mremap(p, P, 0, 0));
    FAILS(EINVAL, (long)mremap(p, P, P, 8));
    FAILS(EINVAL, (long)mremap(p, P, P, MREMAP_FIXED, space));
    FAILS(EINVAL, (long)mremap(p, 2 * P, P, MREMAP_MAYMOVE | MREMAP_DONTUNMAP));
    FAILS(EFAULT, (long)mremap((void *)0x10000, P, P, MREMAP_MAYMOVE));
    FAILS(ENOMEM, (long)mremap(p, 4 * P, 8 * P, 0));
    FAILS(EFAULT, (long)mremap(p, 8 * P, 16 * P, MREMAP_MAYMOVE));
    FAILS(EINVAL, (long)mremap(p, 0, P, MREMAP_MAYMOVE));
    FAILS(EINVAL, (long)mremap(p, 4 * P, 4 * P, MREMAP_MAYMOVE | MREMAP_FIXED, p + P));

    char *q = mremap(p, 4 * P, 6 * P, MREMAP_MAYMOVE);
    CHECK(q != MAP_FAILED && q != p && q[0] == 'a' && q[3 * P] == 'e' && q[5 * P] == 0);
    CHECK(faults(p) == SIGSEGV);
    CHECK(mremap(q, 6 * P, 2 * P, 0) == q && q[P] == 'a' && faults(q + 2 * P) == SIGSEGV);
    /* What was cut off is free again, so it grows where it is. */
    CHECK(mremap(q, 2 * P, 4 * P, 0) == q && q[3 * P] == 0);
    /* To a fixed place, over what is there. */
    char *r = mremap(q, 4 * P, 4 * P, MREMAP_MAYMOVE | MREMAP_FIXED, space + 32 * P);
    CHECK(r == space + 32 * P && r[0] == 'a' && faults(q) == SIGSEGV && faults(space + 36 * P) == SIGSEGV);
    /* The middle of a mapping. */
    char *m = mremap(r + P, P, P, MREMAP_MAYMOVE | MREMAP_FIXED, space + 50 * P);
    CHECK(m == space + 50 * P && m[0] == 'a' && faults(r + P) == SIGSEGV && r[0] == 'a' && r[2 * P] == 0);
    /* Pages go, the mapping stays. */
    char *d = mremap(r, P, P, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 0);
    CHECK(d != MAP_FAILED && d[0] == 'a' && r[0] == 0);
    r[0] = 'n';
    CHECK(d[0] == 'a');

    char *s = mmap(0, 4 * P, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    strcpy(s, "both");
    char *t = mremap(s, 0, 2 * P, MREMAP_MAYMOVE);
    CHECK(t != MAP_FAILED && t != s && strcmp(t, "both") == 0);
    strcpy(t, "same");
    CHECK(strcmp(s, "same") == 0);
    /* Growing past the end of the object is allowed, touching it is not. */
    char *u = mremap(s, 4 * P, 8 * P, MREMAP_MAYMOVE);
    CHECK(u != MAP_FAILED && strcmp(u, "same") == 0 && faults(u + 4 * P) == SIGBUS);

    /* A megabyte grown in steps keeps every page. */
    size_t pages = 1;
    char *g = anon(1);
    g[0] = 0;
    while (pages < 256) {
        g = mremap(g, pages * P, (pages + 5) * P, MREMAP_MAYMOVE);
        CHECK(g != MAP_FAILED);
        for (size_t i = pages; i < pages + 5; i++)
            g[i * P] = (char)i;
        pages += 5;
    }
    int wrong = 0;
    for (size_t i = 0; i < pages; i++)
        wrong += g[i * P] != (char)i;
    CHECK(wrong == 0);
    return check_done();
}
