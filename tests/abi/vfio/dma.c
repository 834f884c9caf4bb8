/* A device that writes where it likes: QEMU's `edu`, whose DMA engine takes any address.
 * With an IOMMU it reaches what its driver has mapped and nothing else; without one it reaches everything, which is the negative
 * control. Ursa only. Run as root: `dma guarded` or `dma open`, after what the machine has; with `silent` behind it where the IOMMU
 * logs nothing (QEMU 7.2's of AMD).
 * References: <linux/vfio.h>, <linux/iommufd.h>; QEMU's docs/specs/edu.txt. */
#include "../check.h"
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define VFIO(n) _IO(';', 100 + (n))
#define GET_REGION VFIO(8)
#define BIND VFIO(18)
#define ATTACH VFIO(19)
#define DETACH VFIO(20)
#define IOMMU(n) _IO(';', n)
#define DESTROY IOMMU(0x80)
#define IOAS_ALLOC IOMMU(0x81)
#define IOAS_ALLOW IOMMU(0x82)
#define IOAS_RANGES IOMMU(0x84)
#define IOAS_MAP IOMMU(0x85)
#define IOAS_UNMAP IOMMU(0x86)
#define IOAS_MAP_FILE IOMMU(0x8f)
#define BUS_ADDRESSES IOMMU(0xf0)
enum { FIXED = 1, WRITE = 2, READ = 4 };

struct region { uint32_t argsz, flags, index, cap; uint64_t size, offset; };
struct bind { uint32_t argsz, flags; int32_t fd; uint32_t id; };
struct attach { uint32_t argsz, flags, id; };
struct alloc { uint32_t size, flags, id; };
struct destroy { uint32_t size, id; };
struct range { uint64_t start, last; };
struct ranges { uint32_t size, ioas, count, reserved; uint64_t array, align; };
struct allow { uint32_t size, ioas, count, reserved; uint64_t array; };
struct map { uint32_t size, flags, ioas, reserved; uint64_t va, len, iova; };
struct map_file { uint32_t size, flags, ioas; int32_t fd; uint64_t start, len, iova; };
struct unmap { uint32_t size, ioas; uint64_t iova, len; };
struct bus { uint32_t size, flags, ioas; int32_t fd; uint64_t offset, len, segs; uint32_t nsegs, id; };
struct seg { uint64_t address, len; };
struct heap { uint64_t len; uint32_t fd, flags; uint64_t heap_flags; };
#define HEAP_ALLOC _IOWR('H', 0, struct heap)

#define CONFIG (7ull << 40)
#define PAGE 4096
/* Bytes of a transfer: less than the engine's memory, whose end some versions of QEMU misjudge. */
#define PART 2048
/* The engine's registers; its own memory is at 0x40000 of its addresses. */
enum { SOURCE = 0x80, TARGET = 0x88, COUNT = 0x90, COMMAND = 0x98, INSIDE = 0x40000 };
enum { START = 1, FROM_DEVICE = 2 };

static int guarded, silent;

/* The address and the VFIO file of the function with these ids. */
static int find(const char *id, char *address, char *node)
{
    DIR *d = opendir("/sys/bus/pci/devices");
    int found = 0;
    for (struct dirent *e; d && !found && (e = readdir(d));) {
        char path[400], text[200] = "";
        snprintf(path, sizeof path, "/sys/bus/pci/devices/%.32s/modalias", e->d_name);
        int fd = open(path, O_RDONLY);
        if (fd < 0)
            continue;
        if (read(fd, text, sizeof text - 1) < 0 || !strstr(text, id)) {
            close(fd);
            continue;
        }
        close(fd);
        snprintf(path, sizeof path, "/sys/bus/pci/devices/%.32s/vfio-dev", e->d_name);
        DIR *v = opendir(path);
        for (struct dirent *f; v && (f = readdir(v));)
            if (f->d_name[0] != '.') {
                sprintf(address, "%.32s", e->d_name);
                sprintf(node, "/dev/vfio/devices/%.32s", f->d_name);
                found = 1;
            }
        if (v)
            closedir(v);
    }
    if (d)
        closedir(d);
    return found;
}

/* A driver: its device, its iommufd and its address space. */
struct driver {
    int dev, iommu;
    uint32_t ioas;
    volatile uint8_t *regs;
};

static int start(struct driver *d, const char *node)
{
    d->iommu = open("/dev/iommu", O_RDWR | O_CLOEXEC);
    d->dev = open(node, O_RDWR | O_CLOEXEC);
    struct alloc a = { sizeof a, 0, 0 };
    struct bind b = { sizeof b, 0, d->iommu, 0 };
    if (d->iommu < 0 || d->dev < 0 || ioctl(d->iommu, IOAS_ALLOC, &a) || ioctl(d->dev, BIND, &b))
        return -1;
    d->ioas = a.id;
    struct attach at = { sizeof at, 0, a.id };
    struct region g = { sizeof g, 0, 0, 0, 0, 0 };
    if (ioctl(d->dev, ATTACH, &at) || ioctl(d->dev, GET_REGION, &g))
        return -1;
    uint16_t command = 6;
    if (pwrite(d->dev, &command, 2, CONFIG + 4) != 2)
        return -1;
    d->regs = mmap(NULL, g.size, PROT_READ | PROT_WRITE, MAP_SHARED, d->dev, g.offset);
    return d->regs == MAP_FAILED ? -1 : 0;
}

static void stop(struct driver *d)
{
    munmap((void *)d->regs, 1 << 20);
    close(d->dev);
    close(d->iommu);
}

#define R64(d, at) (*(volatile uint64_t *)((d)->regs + (at)))

/* Starts a transfer. */
static void begin(struct driver *d, uint64_t from, uint64_t to, uint64_t len, int direction)
{
    R64(d, SOURCE) = from;
    R64(d, TARGET) = to;
    R64(d, COUNT) = len;
    R64(d, COMMAND) = START | direction;
}

/* Waits for its end; the engine takes 100 ms. */
static int finish(struct driver *d)
{
    for (int i = 0; i < 2000; i++) {
        if (!(R64(d, COMMAND) & START))
            return 0;
        usleep(5000);
    }
    return -1;
}

static int from_device(struct driver *d, uint64_t to, uint64_t len)
{
    begin(d, INSIDE, to, len, FROM_DEVICE);
    return finish(d);
}

static int to_device(struct driver *d, uint64_t from, uint64_t len)
{
    begin(d, from, INSIDE, len, 0);
    return finish(d);
}

static int heap_buffer(const char *name, size_t len, uint8_t **p)
{
    char path[64];
    snprintf(path, sizeof path, "/dev/dma_heap/%s", name);
    int heap = open(path, O_RDWR | O_CLOEXEC);
    struct heap h = { len, 0, O_RDWR | O_CLOEXEC, 0 };
    if (heap < 0 || ioctl(heap, HEAP_ALLOC, &h))
        return -1;
    close(heap);
    *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, h.fd, 0);
    return *p == MAP_FAILED ? -1 : (int)h.fd;
}

/* Lets the devices of a space reach a buffer; where they see it. */
static uint64_t reach(int iommu, uint32_t ioas, int fd, size_t len, int rights)
{
    struct seg seg = { 0, 0 };
    struct bus b = { sizeof b, 0, ioas, fd, 0, len, (uintptr_t)&seg, 1, 0 };
    struct map_file m = { sizeof m, rights, ioas, fd, 0, len, 0 };
    if (guarded)
        return ioctl(iommu, IOAS_MAP_FILE, &m) ? 0 : m.iova;
    return ioctl(iommu, BUS_ADDRESSES, &b) ? 0 : seg.address;
}

static int unmap(struct driver *d, uint64_t iova, uint64_t len)
{
    struct unmap u = { sizeof u, d->ioas, iova, len };
    return ioctl(d->iommu, IOAS_UNMAP, &u);
}

static int all(const uint8_t *p, uint8_t byte, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if (p[i] != byte)
            return 0;
    return 1;
}

/* How many lines of the kernel's log have both words. */
static int logged(const char *a, const char *b)
{
    int fd = open("/dev/kmsg", O_RDONLY | O_NONBLOCK), found = 0;
    char record[8192];
    for (ssize_t n; (n = read(fd, record, sizeof record - 1)) > 0 || (n < 0 && errno == EPIPE);) {
        record[n > 0 ? n : 0] = 0;
        found += strstr(record, a) && strstr(record, b);
    }
    close(fd);
    return found;
}

/* The driver and the device that it has: data goes both ways. */
static void honest(struct driver *d, uint8_t *p, uint64_t at)
{
    memset(p, 0x5a, PAGE);
    CHECK(to_device(d, at, PART) == 0);
    CHECK(from_device(d, at + PAGE, PART) == 0);
    CHECK(all(p + PAGE, 0x5a, PART));
}

/* Memory of a driver that has nothing to do with the device: a process of its own, which pins it and tells where. */
static void foreign(struct driver *d, const char *address)
{
    int tell[2], ask[2];
    CHECK(pipe(tell) == 0 && pipe(ask) == 0);
    pid_t victim = fork();
    if (victim == 0) {
        uint8_t *p;
        int iommu = open("/dev/iommu", O_RDWR), fd = heap_buffer("contiguous", PAGE, &p);
        struct alloc a = { sizeof a, 0, 0 };
        if (iommu < 0 || fd < 0 || ioctl(iommu, IOAS_ALLOC, &a))
            _exit(2);
        memset(p, 0x11, PAGE);
        uint64_t at;
        if (guarded) {
            /* Where the other driver has nothing itself. */
            struct map_file m = { sizeof m, FIXED | READ | WRITE, a.id, fd, 0, PAGE, 0x5550000 };
            at = ioctl(iommu, IOAS_MAP_FILE, &m) ? 0 : m.iova;
        } else {
            at = reach(iommu, a.id, fd, PAGE, READ | WRITE);
        }
        if (write(tell[1], &at, 8) != 8 || read(ask[0], &at, 1) != 1)
            _exit(2);
        _exit(all(p, 0x11, PAGE) ? 0 : 1);
    }
    uint64_t at = 0;
    CHECK(read(tell[0], &at, 8) == 8 && at);
    CHECK(from_device(d, at, PART) == 0);
    if (guarded) {
        /* The kernel itself lies about here; it would not live on. */
        for (uint64_t bus = 1 << 20; bus < 8 << 20; bus += 1 << 20)
            CHECK(from_device(d, bus, PART) == 0);
    }
    CHECK(write(ask[1], "", 1) == 1);
    int status = 0;
    CHECK(waitpid(victim, &status, 0) == victim && WIFEXITED(status));
    if (guarded) {
        CHECK(WEXITSTATUS(status) == 0);
        CHECK(silent || logged(address, "\"rogue\"") > 0);
    } else {
        /* The control: the very same transfer changes another process's memory. */
        CHECK(WEXITSTATUS(status) == 1);
    }
}

/* A driver is killed while its device writes to memory that goes on to be used. */
static void death(const char *node)
{
    uint8_t *p;
    int fd = heap_buffer("contiguous", PAGE, &p);
    CHECK(fd >= 0);
    memset(p, 0x22, PAGE);
    int tell[2];
    CHECK(pipe(tell) == 0);
    pid_t child = fork();
    if (child == 0) {
        struct driver d;
        if (start(&d, node))
            _exit(2);
        uint64_t at = reach(d.iommu, d.ioas, fd, PAGE, READ | WRITE);
        begin(&d, INSIDE, at, PART, FROM_DEVICE);
        if (write(tell[1], "", 1) != 1)
            _exit(2);
        pause();
    }
    char c;
    CHECK(read(tell[0], &c, 1) == 1);
    kill(child, SIGKILL);
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status));
    /* The engine's timer runs on; its write comes now, if it comes. */
    usleep(400 * 1000);
    CHECK(all(p, 0x22, PAGE));
    struct driver d;
    CHECK(start(&d, node) == 0);
    uint64_t at = reach(d.iommu, d.ioas, fd, PAGE, READ | WRITE);
    usleep(400 * 1000);
    CHECK(all(p, 0x22, PAGE));
    CHECK(at && to_device(&d, at, PART) == 0);
    memset(p, 0, PAGE);
    CHECK(from_device(&d, at, PART) == 0);
    CHECK(all(p, 0x22, PART));
    stop(&d);
    munmap(p, PAGE);
    close(fd);
}

/* A driver is killed while its device writes without end. What was the driver's alone becomes somebody else's memory at once; what it
 * shared is held by a client with its mapping, and by a third process under another descriptor. */
static void stale(const char *node)
{
    enum { OWN = 1 << 20, NEXT = 32 << 20 };
    uint8_t *shared;
    int fd = heap_buffer("contiguous", PAGE, &shared), tell[2], ask[2];
    CHECK(fd >= 0 && pipe(tell) == 0 && pipe(ask) == 0);
    memset(shared, 0x2a, PAGE);
    pid_t third = fork();
    if (third == 0) {
        char c;
        int other = dup(fd);
        close(fd);
        uint8_t *q = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, other, 0);
        _exit(q != MAP_FAILED && read(ask[0], &c, 1) == 1 && all(q, 0x2a, PAGE) ? 0 : 1);
    }
    pid_t driver = fork();
    if (driver == 0) {
        struct driver d;
        uint8_t *p;
        int own = heap_buffer("contiguous", OWN, &p);
        if (start(&d, node) || own < 0)
            _exit(2);
        uint64_t at = reach(d.iommu, d.ioas, own, OWN, READ | WRITE);
        uint64_t there = reach(d.iommu, d.ioas, fd, PAGE, READ | WRITE);
        if (!at || !there || to_device(&d, there, PART))
            _exit(3);
        for (uint64_t i = 0;; i++) {
            begin(&d, INSIDE, at + i % (OWN / PAGE) * PAGE, PART, FROM_DEVICE);
            if (i == 1 && write(tell[1], "", 1) != 1)
                _exit(4);
            finish(&d);
        }
    }
    char c;
    CHECK(read(tell[0], &c, 1) == 1);
    kill(driver, SIGKILL);
    int status = 0;
    CHECK(waitpid(driver, &status, 0) == driver && WIFSIGNALED(status));
    uint8_t *next = mmap(NULL, NEXT, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(next, 0x11, NEXT);
    usleep(400 * 1000);
    CHECK(all(next, 0x11, NEXT));
    CHECK(all(shared, 0x2a, PAGE));
    CHECK(write(ask[1], "", 1) == 1);
    CHECK(waitpid(third, &status, 0) == third && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    /* The next driver goes on with it. */
    struct driver d;
    CHECK(start(&d, node) == 0);
    uint64_t at = reach(d.iommu, d.ioas, fd, PAGE, READ | WRITE);
    CHECK(at && to_device(&d, at, PART) == 0);
    memset(shared, 0, PAGE);
    CHECK(from_device(&d, at, PART) == 0 && all(shared, 0x2a, PART));
    CHECK(all(next, 0x11, NEXT));
    stop(&d);
    munmap(next, NEXT);
    munmap(shared, PAGE);
    close(fd);
}

/* What only translation has: rights, addresses, refusals. */
static void spaces(struct driver *d, const char *address)
{
    uint8_t *p;
    int fd = heap_buffer("system", 64 * PAGE, &p);
    CHECK(fd >= 0);
    memset(p, 0x33, 64 * PAGE);

    struct range r[8];
    struct ranges q = { sizeof q, d->ioas, 8, 0, (uintptr_t)r, 0 };
    CHECK(ioctl(d->iommu, IOAS_RANGES, &q) == 0);
    CHECK(q.count >= 2 && q.count <= 8 && q.align == PAGE);
    for (unsigned i = 0; i < q.count && i < 8; i++)
        CHECK(r[i].start < r[i].last && !(r[i].start <= 0xfee00000 && 0xfee00000 <= r[i].last));

    /* Not for writing. */
    uint64_t at = reach(d->iommu, d->ioas, fd, PAGE, READ);
    CHECK(at);
    CHECK(to_device(d, at, PART) == 0);
    memset(p, 0x44, PAGE);
    CHECK(from_device(d, at, PART) == 0);
    CHECK(all(p, 0x44, PAGE));
    CHECK(unmap(d, at, PAGE) == 0);
    /* Not any more. */
    uint64_t rw = reach(d->iommu, d->ioas, fd, 2 * PAGE, READ | WRITE);
    CHECK(from_device(d, rw, PART) == 0 && all(p, 0x33, PART));
    FAILS(ENOENT, unmap(d, rw, PAGE));
    FAILS(ENOENT, unmap(d, rw + PAGE, PAGE));
    CHECK(unmap(d, rw, 2 * PAGE) == 0);
    FAILS(ENOENT, unmap(d, rw, 2 * PAGE));
    memset(p, 0x55, 2 * PAGE);
    CHECK(from_device(d, rw, PART) == 0);
    CHECK(all(p, 0x55, 2 * PAGE));

    /* Chosen addresses. */
    struct map_file m = { sizeof m, FIXED | READ | WRITE, d->ioas, fd, 0, 4 * PAGE, 0x12340000 };
    CHECK(ioctl(d->iommu, IOAS_MAP_FILE, &m) == 0);
    m.iova = 0x12343000, m.len = PAGE;
    FAILS(EEXIST, ioctl(d->iommu, IOAS_MAP_FILE, &m));
    m.iova = 0xfee00000;
    FAILS(EINVAL, ioctl(d->iommu, IOAS_MAP_FILE, &m));
    m.iova = 0x12350800;
    FAILS(EINVAL, ioctl(d->iommu, IOAS_MAP_FILE, &m));
    m.iova = 1ull << 60;
    FAILS(EINVAL, ioctl(d->iommu, IOAS_MAP_FILE, &m));
    m.iova = -(uint64_t)PAGE;
    FAILS(EINVAL, ioctl(d->iommu, IOAS_MAP_FILE, &m));
    m.iova = 0x12360000, m.start = 63 * PAGE, m.len = 2 * PAGE;
    FAILS(EINVAL, ioctl(d->iommu, IOAS_MAP_FILE, &m));
    m.len = 0;
    FAILS(EINVAL, ioctl(d->iommu, IOAS_MAP_FILE, &m));
    CHECK(from_device(d, 0x12343000, PART) == 0);
    CHECK(all(p + 3 * PAGE, 0x33, PART));
    CHECK(unmap(d, 0, UINT64_MAX) == 0);
    FAILS(ENOENT, unmap(d, 0x12340000, 4 * PAGE));

    /* Where addresses are chosen from. */
    struct range only = { 0x7000000, 0x7003fff };
    struct allow w = { sizeof w, d->ioas, 1, 0, (uintptr_t)&only };
    CHECK(ioctl(d->iommu, IOAS_ALLOW, &w) == 0);
    CHECK(reach(d->iommu, d->ioas, fd, 4 * PAGE, READ) == 0x7000000);
    m = (struct map_file) { sizeof m, READ, d->ioas, fd, 0, PAGE, 0 };
    FAILS(ENOSPC, ioctl(d->iommu, IOAS_MAP_FILE, &m));
    only = (struct range) { 0xfee00000, 0xfeefffff };
    FAILS(EADDRINUSE, ioctl(d->iommu, IOAS_ALLOW, &w));
    w.count = 0;
    CHECK(ioctl(d->iommu, IOAS_ALLOW, &w) == 0);
    CHECK(unmap(d, 0x7000000, 4 * PAGE) == 0);

    /* The caller's own memory: a shared mapping, with the rights that it has. */
    uint8_t *own = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    struct map v = { sizeof v, READ | WRITE, d->ioas, 0, (uintptr_t)own, 2 * PAGE, 0 };
    CHECK(ioctl(d->iommu, IOAS_MAP, &v) == 0);
    memset(p, 0x66, PAGE);
    CHECK(from_device(d, v.iova, PART) == 0);
    CHECK(all(own, 0x33, PART));
    CHECK(unmap(d, v.iova, 2 * PAGE) == 0);
    mprotect(own, 2 * PAGE, PROT_READ);
    FAILS(EFAULT, ioctl(d->iommu, IOAS_MAP, &v));
    v.va = 0x1000;
    FAILS(EFAULT, ioctl(d->iommu, IOAS_MAP, &v));

    /* Bus addresses are nobody's business here. */
    struct seg seg;
    struct bus b = { sizeof b, 0, d->ioas, fd, 0, PAGE, (uintptr_t)&seg, 1, 0 };
    FAILS(EOPNOTSUPP, ioctl(d->iommu, BUS_ADDRESSES, &b));

    /* In no space it reaches nothing and is no bus master. */
    at = reach(d->iommu, d->ioas, fd, PAGE, READ | WRITE);
    struct attach none = { 8, 0, 0 };
    CHECK(ioctl(d->dev, DETACH, &none) == 0);
    memset(p, 0x77, PAGE);
    from_device(d, at, PART);
    CHECK(all(p, 0x77, PAGE));
    struct attach again = { sizeof again, 0, d->ioas };
    CHECK(ioctl(d->dev, ATTACH, &again) == 0);
    uint16_t command = 6;
    CHECK(pwrite(d->dev, &command, 2, CONFIG + 4) == 2);
    CHECK(from_device(d, at, PART) == 0);
    CHECK(!all(p, 0x77, PAGE));

    /* However often it tries, the log stays readable. */
    int before = logged(address, "IOMMU");
    for (int i = 0; i < (silent ? 2 : 20); i++)
        from_device(d, 0x3000000 + i * PAGE, PART);
    CHECK(logged(address, "IOMMU") - before <= 7);
    munmap(p, 64 * PAGE);
    close(fd);
}

/* Pinned pages are a user's locked memory. */
static void limits(void)
{
    pid_t child = fork();
    if (child == 0) {
        uint8_t *p;
        int iommu = open("/dev/iommu", O_RDWR), fd = heap_buffer("system", 1 << 20, &p);
        struct alloc a = { sizeof a, 0, 0 };
        struct rlimit limit = { 3 << 19, 3 << 19 };
        if (iommu < 0 || fd < 0 || ioctl(iommu, IOAS_ALLOC, &a) || setrlimit(RLIMIT_MEMLOCK, &limit) || setuid(65534))
            _exit(2);
        struct driver d = { -1, iommu, a.id, NULL };
        uint64_t first = reach(iommu, a.id, fd, 1 << 20, READ);
        if (!first || reach(iommu, a.id, fd, 1 << 20, READ) || errno != ENOMEM)
            _exit(3);
        if (unmap(&d, first, 1 << 20) || !reach(iommu, a.id, fd, 1 << 20, READ))
            _exit(4);
        _exit(0);
    }
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* How long mapping takes: for people. */
static void costs(struct driver *d)
{
    static const struct { const char *heap; size_t len; } kinds[] = {
        { "system", PAGE }, { "system", 4 << 20 }, { "contiguous", 4 << 20 },
    };
    for (unsigned k = 0; k < 3; k++) {
        uint8_t *p;
        int fd = heap_buffer(kinds[k].heap, kinds[k].len, &p), rounds = 20;
        struct timespec a, b;
        memset(p, 1, kinds[k].len);
        clock_gettime(CLOCK_MONOTONIC, &a);
        for (int i = 0; i < rounds; i++) {
            uint64_t at = reach(d->iommu, d->ioas, fd, kinds[k].len, READ | WRITE);
            CHECK(at && unmap(d, at, kinds[k].len) == 0);
        }
        clock_gettime(CLOCK_MONOTONIC, &b);
        double us = ((b.tv_sec - a.tv_sec) * 1e9 + (b.tv_nsec - a.tv_nsec)) / 1e3 / rounds;
        printf("map and unmap of %zu KiB, %s heap: %.1f us\n", kinds[k].len >> 10, kinds[k].heap, us);
        munmap(p, kinds[k].len);
        close(fd);
    }
}

int main(int argc, char **argv)
{
    char address[64], node[64];
    guarded = argc > 1 && !strcmp(argv[1], "guarded");
    silent = argc > 2 && !strcmp(argv[2], "silent");
    prctl(PR_SET_NAME, "rogue");
    setbuf(stdout, NULL);
    if (!find("v00001234d000011E8", address, node)) {
        printf("there is no edu device\n");
        return 2;
    }
    struct driver d;
    CHECK(start(&d, node) == 0);
    uint8_t *p;
    int fd = heap_buffer("contiguous", 2 * PAGE, &p);
    uint64_t at = reach(d.iommu, d.ioas, fd, 2 * PAGE, READ | WRITE);
    CHECK(at != 0);
    honest(&d, p, at);
    foreign(&d, address);
    if (guarded)
        spaces(&d, address);
    if (guarded && !silent) {
        limits();
        costs(&d);
    }
    stop(&d);
    death(node);
    stale(node);
    return check_done();
}
