/* PROCMAP_QUERY on /proc/PID/maps: uapi/linux/fs.h, Documentation/filesystems/proc.rst. */
#include "../check.h"
#include <fcntl.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

struct query {
    uint64_t size, flags, addr, start, end, vma_flags, page_size, offset, inode;
    uint32_t major, minor, name_size, build_id_size;
    uint64_t name, build_id;
};
#define QUERY _IOWR('f', 17, struct query)

enum { READABLE = 1, WRITABLE = 2, EXECUTABLE = 4, SHARED = 8, NEXT = 16, FILE_BACKED = 32 };

static int fd;

static struct query ask(const void *addr, uint64_t flags)
{
    return (struct query){.size = sizeof(struct query), .addr = (uintptr_t)addr, .flags = flags};
}

static void one_mapping(void)
{
    char name[256], *area = mmap(NULL, 5 * 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct query q = ask(area + 5000, 0);
    CHECK(mprotect(area + 4096, 4096, PROT_READ | PROT_WRITE) == 0);
    CHECK(ioctl(fd, QUERY, &q) == 0);
    CHECK(q.start == (uintptr_t)area + 4096 && q.end == q.start + 4096 && q.vma_flags == (READABLE | WRITABLE));
    CHECK(q.page_size == 4096 && q.offset == 0 && q.inode == 0 && q.major == 0 && q.minor == 0);
    q = ask(area, READABLE);
    FAILS(ENOENT, ioctl(fd, QUERY, &q));
    q = ask(area, READABLE | NEXT);
    CHECK(ioctl(fd, QUERY, &q) == 0 && q.start == (uintptr_t)area + 4096);
    q = ask(area, 0);
    CHECK(ioctl(fd, QUERY, &q) == 0 && q.end == (uintptr_t)area + 4096 && q.vma_flags == 0);
    munmap(area, 5 * 4096);
    q = ask(area + 4096, 0);
    FAILS(ENOENT, ioctl(fd, QUERY, &q));
    q = ask((void *)-4096UL, NEXT);
    /* Nothing of a program's is up there. */
    CHECK(ioctl(fd, QUERY, &q) == 0 || errno == ENOENT);
    area = mmap(NULL, 4096, PROT_READ, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    q = ask(area, SHARED);
    CHECK(ioctl(fd, QUERY, &q) == 0 && q.start == (uintptr_t)area && q.vma_flags == (READABLE | SHARED));
    /* What has no name has none. */
    area = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    q = ask(area, 0);
    q.name = (uintptr_t)name, q.name_size = sizeof name;
    CHECK(ioctl(fd, QUERY, &q) == 0 && q.name_size == 0);
    q = ask(&area, 0);
    q.name = (uintptr_t)name, q.name_size = sizeof name;
    CHECK(ioctl(fd, QUERY, &q) == 0 && !strcmp(name, "[stack]") && q.name_size == 8);
}

static void files(void)
{
    char path[256], name[256], id[20];
    struct stat st;
    ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);
    path[n] = 0;
    CHECK(stat(path, &st) == 0);
    struct query q = ask(files, FILE_BACKED | EXECUTABLE);
    q.name = (uintptr_t)name, q.name_size = sizeof name;
    q.build_id = (uintptr_t)id, q.build_id_size = sizeof id;
    CHECK(ioctl(fd, QUERY, &q) == 0 && q.inode == st.st_ino && q.offset % 4096 == 0);
    CHECK(!strcmp(name, path) && q.name_size == strlen(path) + 1);
    CHECK(q.build_id_size == sizeof id);
    /* The linker put the same into the program's own note. */
    extern const char __ehdr_start[];
    int found = 0;
    for (int i = 0; i < 4096 - 20; i++)
        found |= !memcmp(__ehdr_start + i, "GNU", 4) && !memcmp(__ehdr_start + i + 4, id, sizeof id);
    CHECK(found);
    q = ask(files, 0);
    q.name = (uintptr_t)name, q.name_size = 3;
    FAILS(ENAMETOOLONG, ioctl(fd, QUERY, &q));
    q = ask(files, 0);
    q.build_id = (uintptr_t)id, q.build_id_size = 3;
    FAILS(ENAMETOOLONG, ioctl(fd, QUERY, &q));
    q = ask(&q, FILE_BACKED);
    FAILS(ENOENT, ioctl(fd, QUERY, &q));
}

static void arguments(void)
{
    char room[8192];
    struct query *q = (struct query *)room;
    memset(room, 0, sizeof room);
    *q = ask(arguments, 64);
    FAILS(EINVAL, ioctl(fd, QUERY, q));
    *q = ask(arguments, 0);
    q->name_size = 1;
    FAILS(EINVAL, ioctl(fd, QUERY, q));
    *q = ask(arguments, 0);
    q->build_id = 1;
    FAILS(EINVAL, ioctl(fd, QUERY, q));
    *q = ask(arguments, 0);
    q->size = 16;
    FAILS(EINVAL, ioctl(fd, QUERY, q));
    q->size = 4097;
    FAILS(E2BIG, ioctl(fd, QUERY, q));
    /* What is beyond the known is zero; what is not there is not written. */
    q->size = 4096;
    CHECK(ioctl(fd, QUERY, q) == 0 && q->start);
    room[4095] = 1;
    FAILS(E2BIG, ioctl(fd, QUERY, q));
    *q = ask(arguments, 0);
    q->size = 24;
    CHECK(ioctl(fd, QUERY, q) == 0 && q->start == 0);
    *q = ask(arguments, 0);
    q->name = 1, q->name_size = 200;
    FAILS(EFAULT, ioctl(fd, QUERY, q));
    FAILS(EFAULT, ioctl(fd, QUERY, NULL));
    FAILS(ENOTTY, ioctl(fd, _IOWR('f', 18, struct query), q));
}

static void others(void)
{
    char path[64];
    pid_t pid = fork();
    if (pid == 0)
        for (;;)
            pause();
    snprintf(path, sizeof path, "/proc/%d/maps", pid);
    int theirs = open(path, O_RDONLY), status;
    struct query q = ask(others, 0);
    CHECK(ioctl(theirs, QUERY, &q) == 0 && (q.vma_flags & EXECUTABLE));
    kill(pid, 9);
    waitpid(pid, &status, 0);
    q = ask(others, 0);
    FAILS(ESRCH, ioctl(theirs, QUERY, &q));
    close(theirs);
}

int main(void)
{
    fd = open("/proc/self/maps", O_RDONLY);
    one_mapping();
    files();
    arguments();
    others();
    return check_done();
}
