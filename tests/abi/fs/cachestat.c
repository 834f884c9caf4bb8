/* cachestat(2), and what fallocate(2) leaves of a tmpfs file: pages that are there and are holes all the same.
 * The working directory is on a tmpfs. */
#include "../check.h"
#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096
struct range { unsigned long long off, len; };
struct stat_of { unsigned long long cache, dirty, writeback, evicted, recently; };

static int cachestat_(int fd, void *range, void *out, unsigned flags)
{
    return syscall(451, fd, range, out, flags);
}

static unsigned long long cached(int fd, unsigned long long off, unsigned long long len)
{
    struct range range = { off, len };
    struct stat_of stat;
    memset(&stat, 0xff, sizeof stat);
    return cachestat_(fd, &range, &stat, 0) ? -1ULL : stat.cache + stat.evicted;
}

static void counts(void)
{
    int fd = open("counted", O_RDWR | O_CREAT | O_TRUNC, 0600);
    static char data[5 * PAGE];
    CHECK(cached(fd, 0, 0) == 0);
    CHECK(write(fd, data, sizeof data) == sizeof data);
    CHECK(pwrite(fd, "x", 1, 9 * PAGE) == 1);
    CHECK(cached(fd, 0, 0) == 6);
    CHECK(cached(fd, 0, 5 * PAGE) == 5);
    CHECK(cached(fd, PAGE - 1, 2) == 2);
    CHECK(cached(fd, PAGE, 1) == 1);
    CHECK(cached(fd, 5 * PAGE, 4 * PAGE) == 0);
    CHECK(cached(fd, 5 * PAGE, 4 * PAGE + 1) == 1);
    CHECK(cached(fd, 1ULL << 50, 0) == 0);
    /* The end wraps: nothing is between. */
    CHECK(cached(fd, PAGE, -1ULL) == 0);
    ftruncate(fd, PAGE);
    CHECK(cached(fd, 0, 0) == 1);
    /* Sparse: far apart. */
    for (int i = 10; i < 40; i += 3)
        CHECK(pwrite(fd, "x", 1, 1LL << i) == 1);
    CHECK(cached(fd, 0, 0) == 10);
    close(fd);
    unlink("counted");

    int zero = open("/dev/zero", O_RDWR), dir = open(".", O_RDONLY), ends[2];
    CHECK(pipe(ends) == 0);
    CHECK(cached(zero, 0, 0) == 0 && cached(dir, 0, 0) == 0 && cached(ends[0], 0, 0) == 0);
    int mem = syscall(SYS_memfd_create, "m", 0);
    CHECK(ftruncate(mem, 100 * PAGE) == 0 && cached(mem, 0, 0) == 0 && pwrite(mem, "x", 1, PAGE) == 1 && cached(mem, 0, 0) == 1);
    close(mem), close(zero), close(dir), close(ends[0]), close(ends[1]);
}

static void errors(void)
{
    int fd = open("errors", O_RDWR | O_CREAT, 0644);
    struct range range = { 0, 0 };
    struct stat_of stat;
    FAILS(EBADF, cachestat_(-1, &range, &stat, 0));
    FAILS(EFAULT, cachestat_(fd, NULL, &stat, 0));
    FAILS(EFAULT, cachestat_(fd, &range, NULL, 0));
    FAILS(EINVAL, cachestat_(fd, &range, &stat, 1));
    int path = open("errors", O_PATH);
    FAILS(EBADF, cachestat_(path, &range, &stat, 0));
    close(path);
    chmod(".", 0755);
    if (geteuid() == 0) {
        int read_only = open("errors", O_RDONLY);
        pid_t child = fork();
        if (child == 0) {
            check_failures = 0;
            CHECK(setresgid(1000, 1000, 1000) == 0 && setresuid(1000, 1000, 1000) == 0);
            FAILS(EPERM, cachestat_(read_only, &range, &stat, 0));
            FAILS(EPERM, cachestat_(read_only, &range, &stat, 1));
            CHECK(cachestat_(fd, &range, &stat, 0) == 0);
            fflush(stdout), _exit(check_failures != 0);
        }
        int status;
        waitpid(child, &status, 0);
        CHECK(status == 0);
        CHECK(cachestat_(read_only, &range, &stat, 0) == 0);
        close(read_only);
    }
    close(fd);
    unlink("errors");
}

static int resident(char *at, int pages)
{
    unsigned char vec[64];
    int n = 0;
    CHECK(mincore(at, pages * PAGE, vec) == 0);
    for (int i = 0; i < pages; i++)
        n += vec[i] & 1;
    return n;
}

/* Pages of fallocate take room, and are neither resident nor data before they are used. */
static void allocated(void)
{
    int fd = open("allocated", O_RDWR | O_CREAT | O_TRUNC, 0600);
    struct stat st;
    CHECK(fallocate(fd, 0, 0, 32 * PAGE) == 0);
    CHECK(fstat(fd, &st) == 0 && st.st_blocks == 32 * 8);
    CHECK(cached(fd, 0, 0) == 32);
    CHECK(lseek(fd, 0, SEEK_HOLE) == 0);
    FAILS(ENXIO, lseek(fd, 0, SEEK_DATA));
    char *map = mmap(NULL, 32 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(resident(map, 32) == 0);
    map[16 * PAGE] = 1;
    CHECK(resident(map, 32) == 1);
    CHECK(lseek(fd, 0, SEEK_DATA) == 16 * PAGE && lseek(fd, 16 * PAGE, SEEK_HOLE) == 17 * PAGE);
    CHECK(map[20 * PAGE] == 0);
    CHECK(resident(map, 32) == 2);
    CHECK(pwrite(fd, "abc", 3, 3 * PAGE + 5) == 3);
    CHECK(resident(map, 32) == 3);
    CHECK(map[3 * PAGE] == 0 && map[3 * PAGE + 6] == 'b');
    char byte = 1;
    CHECK(pread(fd, &byte, 1, 8 * PAGE) == 1 && byte == 0);
    CHECK(lseek(fd, 4 * PAGE, SEEK_DATA) == 8 * PAGE || lseek(fd, 4 * PAGE, SEEK_DATA) == 16 * PAGE);
    /* A private mapping copies zeroes. */
    char *own = mmap(NULL, 32 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    own[24 * PAGE] = 7;
    CHECK(map[24 * PAGE] == 0);
    /* Punched and allocated again, it is a hole. */
    CHECK(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 16 * PAGE, PAGE) == 0);
    CHECK(fallocate(fd, 0, 16 * PAGE, PAGE) == 0);
    CHECK(lseek(fd, 16 * PAGE, SEEK_DATA) != 16 * PAGE);
    CHECK(map[16 * PAGE] == 0);
    munmap(own, 32 * PAGE);
    munmap(map, 32 * PAGE);
    close(fd);
    unlink("allocated");
}

static volatile int stop;
static int shared_fd;

static void *churn(void *arg)
{
    for (int i = 0; !stop; i++) {
        pwrite(shared_fd, "x", 1, (long long)(i * 7919 % 4096) * PAGE);
        if (i % 512 == 0)
            ftruncate(shared_fd, i % 1024 ? 0 : 64 * PAGE);
        if (i % 64 == 0)
            fallocate(shared_fd, 0, (i % 2048) * PAGE, 16 * PAGE);
    }
    return NULL;
}

/* Counting beside changes: never more than there can be. */
static void raced(void)
{
    pthread_t threads[2];
    shared_fd = open("raced", O_RDWR | O_CREAT | O_TRUNC, 0600);
    for (int i = 0; i < 2; i++)
        pthread_create(&threads[i], NULL, churn, NULL);
    for (int i = 0; i < 2000; i++)
        CHECK(cached(shared_fd, 0, 0) <= 4096);
    stop = 1;
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    close(shared_fd);
    unlink("raced");
}

int main(void)
{
    counts();
    errors();
    allocated();
    raced();
    return check_done();
}
