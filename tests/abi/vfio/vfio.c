/* A driver in a process: QEMU's virtio-rng through VFIO and iommufd, and everything such a process may not do.
 * Ursa only: Debian's kernel gives a device to VFIO only behind an IOMMU.
 * References: <linux/vfio.h>, <linux/iommufd.h>, <linux/dma-heap.h>; virtio 1.2, 4.1 (PCI) and 5.4 (entropy device). */
#include "../check.h"
#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define VFIO(n) _IO(';', 100 + (n))
#define GET_INFO VFIO(7)
#define GET_REGION VFIO(8)
#define GET_IRQ VFIO(9)
#define SET_IRQS VFIO(10)
#define RESET VFIO(11)
#define BIND VFIO(18)
#define ATTACH VFIO(19)
#define DETACH VFIO(20)
#define IOMMU(n) _IO(';', n)
#define DESTROY IOMMU(0x80)
#define IOAS_ALLOC IOMMU(0x81)
#define IOAS_RANGES IOMMU(0x84)
#define IOAS_MAP_FILE IOMMU(0x8f)
#define IOAS_UNMAP IOMMU(0x86)
#define BUS_ADDRESSES IOMMU(0xf0)

struct info { uint32_t argsz, flags, regions, irqs, cap, pad; };
struct region { uint32_t argsz, flags, index, cap; uint64_t size, offset; };
struct irq { uint32_t argsz, flags, index, count; };
struct set { uint32_t argsz, flags, index, start, count; int32_t fds[4]; };
struct bind { uint32_t argsz, flags; int32_t fd; uint32_t id; };
struct attach { uint32_t argsz, flags, id; };
struct alloc { uint32_t size, flags, id; };
struct destroy { uint32_t size, id; };
struct ranges { uint32_t size, ioas, count, reserved; uint64_t array, align; };
struct map_file { uint32_t size, flags, ioas; int32_t fd; uint64_t start, len, iova; };
struct unmap { uint32_t size, ioas; uint64_t iova, len; };
struct bus { uint32_t size, flags, ioas; int32_t fd; uint64_t offset, len, segs; uint32_t nsegs, id; };
struct seg { uint64_t address, len; };
struct heap { uint64_t len; uint32_t fd, flags; uint64_t heap_flags; };
#define HEAP_ALLOC _IOWR('H', 0, struct heap)

enum { NONE = 1, BOOL = 2, EVENTFD = 4, MASK = 8, UNMASK = 16, TRIGGER = 32 };
enum { INTX, MSI, MSIX };
#define CONFIG (7ull << 40)
#define MASTER 4

static unsigned long value(const char *dir, const char *name)
{
    char path[512], text[64] = "";
    snprintf(path, sizeof path, "%s/%s", dir, name);
    int fd = open(path, O_RDONLY);
    if (fd >= 0) {
        if (read(fd, text, sizeof text - 1) < 0)
            text[0] = 0;
        close(fd);
    }
    return strtoul(text, NULL, 0);
}

/* The sysfs directory of the first function with this device number, and its VFIO file. */
static int find(unsigned vendor, unsigned a, unsigned b, char *dir, char *node)
{
    const char *base = "/sys/bus/pci/devices";
    DIR *d = opendir(base);
    int found = 0;
    for (struct dirent *e; d && !found && (e = readdir(d));) {
        if (e->d_name[0] == '.')
            continue;
        sprintf(dir, "%s/%.32s", base, e->d_name);
        unsigned device = value(dir, "device");
        if (value(dir, "vendor") != vendor || (device != a && device != b))
            continue;
        char sub[600];
        sprintf(sub, "%s/vfio-dev", dir);
        DIR *v = opendir(sub);
        for (struct dirent *f; v && (f = readdir(v));)
            if (f->d_name[0] != '.') {
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

static uint32_t config(int dev, unsigned at, int n)
{
    uint32_t v = 0;
    return pread(dev, &v, n, CONFIG + at) == n ? v : 0xdeadbeef;
}

static int put(int dev, unsigned at, uint32_t v, int n)
{
    return pwrite(dev, &v, n, CONFIG + at);
}

static int irqs(int dev, uint32_t flags, uint32_t index, uint32_t start, uint32_t count, int fd0, int fd1)
{
    struct set s = { 20, flags, index, start, count, { fd0, fd1, -1, -1 } };
    if (flags & EVENTFD)
        s.argsz += 4 * count;
    return ioctl(dev, SET_IRQS, &s);
}

static int bind_to(int dev, int iommu)
{
    struct bind b = { sizeof b, 0, iommu, 0 };
    return ioctl(dev, BIND, &b);
}

static uint32_t new_ioas(int iommu)
{
    struct alloc a = { sizeof a, 0, 0 };
    return ioctl(iommu, IOAS_ALLOC, &a) ? 0 : a.id;
}

static int attach_to(int dev, uint32_t ioas)
{
    struct attach a = { sizeof a, 0, ioas };
    return ioctl(dev, ATTACH, &a);
}

/* A dma-buf that the device can reach at *address. */
static void *buffer(int iommu, uint32_t ioas, size_t len, uint64_t *address, int *fd)
{
    int heap = open("/dev/dma_heap/contiguous", O_RDWR);
    struct heap h = { len, 0, O_RDWR | O_CLOEXEC, 0 };
    if (heap < 0 || ioctl(heap, HEAP_ALLOC, &h))
        return NULL;
    close(heap);
    struct seg seg = { 0, 0 };
    struct bus b = { sizeof b, 0, ioas, h.fd, 0, len, (uintptr_t)&seg, 1, 0 };
    if (ioctl(iommu, BUS_ADDRESSES, &b) == 0) {
        *address = seg.address;
    } else {
        struct map_file m = { sizeof m, 6, ioas, h.fd, 0, len, 0 };
        if (ioctl(iommu, IOAS_MAP_FILE, &m))
            return NULL;
        *address = m.iova;
    }
    *fd = h.fd;
    void *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, h.fd, 0);
    return p == MAP_FAILED ? NULL : p;
}

struct rng {
    volatile uint8_t *common, *notify;
    volatile uint8_t *ring;
    uint64_t address;
    unsigned posted;
    uint8_t *bars[6];
    size_t len[6];
};

#define R8(p, at) (*(volatile uint8_t *)((p) + (at)))
#define R16(p, at) (*(volatile uint16_t *)((p) + (at)))
#define R32(p, at) (*(volatile uint32_t *)((p) + (at)))
#define R64(p, at) (*(volatile uint64_t *)((p) + (at)))

/* Sets the device up with one queue of 8 whose parts lie in the first three pages of the buffer. */
static int rng_start(int dev, int iommu, uint32_t ioas, struct rng *r, int vector)
{
    uint8_t **bars = r->bars;
    memset(r, 0, sizeof *r);
    uint32_t multiplier = 0, notify_at = 0, common_at = 0;
    int notify_bar = -1, common_bar = -1, fd;
    for (unsigned at = config(dev, 0x34, 1), n = 0; at >= 0x40 && n < 48; at = config(dev, at + 1, 1), n++) {
        if (config(dev, at, 1) != 9)
            continue;
        int type = config(dev, at + 3, 1), bar = config(dev, at + 4, 1);
        if (type == 1 && common_bar < 0)
            common_bar = bar, common_at = config(dev, at + 8, 4);
        if (type == 2 && notify_bar < 0)
            notify_bar = bar, notify_at = config(dev, at + 8, 4), multiplier = config(dev, at + 16, 4);
    }
    if (common_bar < 0 || notify_bar < 0)
        return -1;
    for (int i = 0; i < 6; i++)
        if (i == common_bar || i == notify_bar) {
            struct region g = { sizeof g, 0, i, 0, 0, 0 };
            if (ioctl(dev, GET_REGION, &g))
                return -1;
            r->len[i] = g.size;
            bars[i] = mmap(NULL, g.size, PROT_READ | PROT_WRITE, MAP_SHARED, dev, g.offset);
            if (bars[i] == MAP_FAILED)
                return -1;
        }
    r->common = bars[common_bar] + common_at;
    r->ring = buffer(iommu, ioas, 16384, &r->address, &fd);
    if (!r->ring)
        return -1;
    put(dev, 4, config(dev, 4, 2) | MASTER | 2, 2);
    volatile uint8_t *c = r->common;
    R8(c, 20) = 0;
    for (int i = 0; i < 1000 && R8(c, 20); i++)
        usleep(1000);
    R8(c, 20) = 1;
    R8(c, 20) = 3;
    R32(c, 8) = 1;
    R32(c, 12) = 1; /* VIRTIO_F_VERSION_1 */
    R32(c, 0) = 1;
    if (R32(c, 4) & 2) /* VIRTIO_F_ACCESS_PLATFORM, where the device has it */
        R32(c, 12) = 3;
    R8(c, 20) = 11;
    if (!(R8(c, 20) & 8))
        return -1;
    R16(c, 16) = 0xffff;
    R16(c, 22) = 0;
    R16(c, 24) = 8;
    R16(c, 26) = vector;
    if (R16(c, 26) != vector)
        return -1;
    R32(c, 32) = r->address, R32(c, 36) = r->address >> 32;
    R32(c, 40) = r->address + 4096, R32(c, 44) = r->address >> 32;
    R32(c, 48) = r->address + 8192, R32(c, 52) = r->address >> 32;
    r->notify = bars[notify_bar] + notify_at + R16(c, 30) * multiplier;
    R16(c, 28) = 1;
    R8(c, 20) = 15;
    r->posted = 0;
    return 0;
}

/* Asks for len random bytes at the buffer's fourth page. */
static void rng_ask(struct rng *r, unsigned len)
{
    volatile uint8_t *desc = r->ring, *avail = r->ring + 4096;
    R64(desc, 0) = r->address + 12288;
    R32(desc, 8) = len;
    R16(desc, 12) = 2;
    R16(desc, 14) = 0;
    R16(avail, 4 + 2 * (r->posted % 8)) = 0;
    __sync_synchronize();
    R16(avail, 2) = ++r->posted;
    __sync_synchronize();
    R16(r->notify, 0) = 0;
}

static unsigned rng_used(struct rng *r)
{
    return R16(r->ring + 8192, 2);
}

static int waits(int fd, int ms)
{
    struct pollfd p = { fd, POLLIN, 0 };
    uint64_t n = 0;
    if (poll(&p, 1, ms) != 1 || read(fd, &n, 8) != 8)
        return 0;
    return n;
}

static unsigned long free_kib(void)
{
    char line[128];
    unsigned long kib = 0;
    FILE *f = fopen("/proc/meminfo", "r");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "MemFree: %lu", &kib) == 1)
            break;
    if (f)
        fclose(f);
    return kib;
}

/* What an unbound file refuses, and what a bound one tells. */
static void rights(const char *node, int iommu)
{
    struct info i = { sizeof i, 0, 0, 0, 0, 0 };
    int dev = open(node, O_RDWR), second = open(node, O_RDWR);
    CHECK(dev >= 0 && second >= 0);
    uint32_t v;
    FAILS(EINVAL, ioctl(dev, GET_INFO, &i));
    FAILS(EINVAL, pread(dev, &v, 4, CONFIG));
    CHECK(mmap(NULL, 4096, PROT_READ, MAP_SHARED, dev, 4ull << 40) == MAP_FAILED);
    FAILS(EBADF, bind_to(dev, 999));
    FAILS(EBADFD, bind_to(dev, 0));
    CHECK(bind_to(dev, iommu) == 0);
    FAILS(EINVAL, bind_to(dev, iommu));
    FAILS(EBUSY, bind_to(second, iommu));
    FAILS(EINVAL, ioctl(second, GET_INFO, &i));
    CHECK(ioctl(dev, GET_INFO, &i) == 0 && (i.flags & 2) && i.regions == 9 && i.irqs == 5);
    i.argsz = 8;
    FAILS(EINVAL, ioctl(dev, GET_INFO, &i));
    FAILS(ENOTTY, ioctl(dev, VFIO(77), 0));
    FAILS(EFAULT, ioctl(dev, GET_INFO, 8));
    FAILS(ESPIPE, lseek(dev, 0, SEEK_SET));

    struct region g = { sizeof g, 0, 9, 0, 0, 0 };
    FAILS(EINVAL, ioctl(dev, GET_REGION, &g));
    g.index = 0xffffffff;
    FAILS(EINVAL, ioctl(dev, GET_REGION, &g));
    g.index = 7;
    CHECK(ioctl(dev, GET_REGION, &g) == 0 && g.size >= 256 && g.offset == CONFIG && (g.flags & 3) == 3 && !(g.flags & 4));

    /* The identity is real, and the same as in sysfs. */
    CHECK(config(dev, 0, 2) == 0x1af4);
    char all[5000];
    ssize_t n = pread(dev, all, sizeof all, CONFIG);
    CHECK(n == (ssize_t)g.size);
    FAILS(EINVAL, pread(dev, &v, 4, CONFIG + g.size));
    FAILS(EINVAL, pread(dev, &v, 4, 8ull << 40));
    FAILS(EINVAL, pread(dev, &v, 4, 9ull << 40));
    FAILS(EINVAL, pread(dev, &v, 4, 1ull << 62));
    FAILS(EFAULT, pread(dev, (void *)8, 4, CONFIG));
    FAILS(EFAULT, pwrite(dev, (void *)8, 4, CONFIG));

    /* A BAR can be sized and does not move. */
    for (unsigned at = 0x10; at < 0x28; at += 4) {
        uint32_t before = config(dev, at, 4);
        CHECK(put(dev, at, 0xffffffff, 4) == 4);
        put(dev, at, 0, 4);
        put(dev, at, before, 4);
        CHECK(config(dev, at, 4) == before);
    }
    g.index = 4, g.argsz = sizeof g;
    CHECK(ioctl(dev, GET_REGION, &g) == 0 && g.size >= 4096 && (g.flags & 4));
    volatile uint32_t *bar = mmap(NULL, g.size, PROT_READ | PROT_WRITE, MAP_SHARED, dev, g.offset);
    CHECK(bar != MAP_FAILED);
    uint32_t through = bar[0];
    put(dev, 0x20, 0x100000, 4);
    CHECK(bar[0] == through);
    CHECK(pread(dev, &v, 4, g.offset) == 4 && v == through);
    FAILS(EINVAL, pread(dev, &v, 4, g.offset + g.size));
    CHECK(mmap(NULL, g.size + 4096, PROT_READ, MAP_SHARED, dev, g.offset) == MAP_FAILED && errno == EINVAL);
    CHECK(mmap(NULL, 4096, PROT_READ, MAP_SHARED, dev, g.offset + g.size) == MAP_FAILED && errno == EINVAL);
    CHECK(mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, dev, g.offset) == MAP_FAILED && errno == EINVAL);
    CHECK(mmap(NULL, 4096, PROT_READ, MAP_SHARED, dev, CONFIG) == MAP_FAILED && errno == EINVAL);
    munmap((void *)bar, g.size);

    /* Not a bus master before it is attached; the kernel's capabilities are not the driver's. */
    put(dev, 4, MASTER | 2, 2);
    CHECK((config(dev, 4, 2) & (MASTER | 2)) == 2);
    unsigned msix = 0;
    for (unsigned at = config(dev, 0x34, 1), k = 0; at >= 0x40 && k < 48; at = config(dev, at + 1, 1), k++)
        if (config(dev, at, 1) == 0x11)
            msix = at;
    CHECK(msix != 0);
    put(dev, msix + 2, 0x8000, 2);
    CHECK(!(config(dev, msix + 2, 2) & 0x8000));

    /* Interrupts: indexes, ranges, data. */
    struct irq q = { sizeof q, 0, MSIX, 0 };
    CHECK(ioctl(dev, GET_IRQ, &q) == 0 && q.count >= 2 && (q.flags & 1));
    uint32_t vectors = q.count;
    q.index = 5;
    FAILS(EINVAL, ioctl(dev, GET_IRQ, &q));
    int e = eventfd(0, EFD_NONBLOCK), pipefd[2];
    CHECK(pipe(pipefd) == 0);
    FAILS(EINVAL, irqs(dev, EVENTFD | TRIGGER, MSIX, vectors, 1, e, -1));
    FAILS(EINVAL, irqs(dev, EVENTFD | TRIGGER, MSIX, vectors - 1, 2, e, e));
    FAILS(EINVAL, irqs(dev, NONE | TRIGGER, MSIX, 0xffffffff, 0xffffffff, 0, 0));
    FAILS(EINVAL, irqs(dev, NONE | TRIGGER, MSIX, 0, 0, 0, 0));
    FAILS(EINVAL, irqs(dev, EVENTFD | NONE | TRIGGER, MSIX, 0, 1, e, -1));
    FAILS(EINVAL, irqs(dev, EVENTFD | TRIGGER | MASK, MSIX, 0, 1, e, -1));
    FAILS(EINVAL, irqs(dev, 0x80 | EVENTFD | TRIGGER, MSIX, 0, 1, e, -1));
    FAILS(EINVAL, irqs(dev, EVENTFD | TRIGGER, 5, 0, 1, e, -1));
    FAILS(EINVAL, irqs(dev, EVENTFD | TRIGGER, MSIX, 0, 1, pipefd[0], -1));
    FAILS(EBADF, irqs(dev, EVENTFD | TRIGGER, MSIX, 0, 1, 999, -1));
    struct set s = { 20, EVENTFD | TRIGGER, MSIX, 0, 2, { e, e, 0, 0 } };
    FAILS(EINVAL, ioctl(dev, SET_IRQS, &s));
    s.argsz = 0;
    FAILS(EINVAL, ioctl(dev, SET_IRQS, &s));
    CHECK(irqs(dev, EVENTFD | TRIGGER, MSIX, 0, 2, e, -1) == 0);
    FAILS(EINVAL, irqs(dev, EVENTFD | TRIGGER, INTX, 0, 1, e, -1));
    CHECK(irqs(dev, NONE | TRIGGER, MSIX, 0, 1, 0, 0) == 0 && waits(e, 1000) == 1);
    CHECK(irqs(dev, NONE | TRIGGER, MSIX, 1, 1, 0, 0) == 0 && waits(e, 0) == 0);
    CHECK(irqs(dev, NONE | TRIGGER, MSIX, 0, 0, 0, 0) == 0);
    CHECK(irqs(dev, EVENTFD | TRIGGER, INTX, 0, 1, e, -1) == 0);
    CHECK(irqs(dev, NONE | MASK, INTX, 0, 1, 0, 0) == 0 && irqs(dev, NONE | UNMASK, INTX, 0, 1, 0, 0) == 0);
    CHECK(irqs(dev, NONE | TRIGGER, INTX, 0, 0, 0, 0) == 0);
    close(e), close(pipefd[0]), close(pipefd[1]);

    /* iommufd: sizes, unknown objects, busy objects. */
    struct attach a = { sizeof a, 0, 4711 };
    FAILS(ENOENT, ioctl(dev, ATTACH, &a));
    uint32_t ioas = new_ioas(iommu);
    CHECK(ioas != 0 && attach_to(dev, ioas) == 0);
    put(dev, 4, MASTER | 2, 2);
    CHECK(config(dev, 4, 2) & MASTER);
    struct destroy x = { sizeof x, ioas };
    FAILS(EBUSY, ioctl(iommu, DESTROY, &x));
    a.id = 0;
    CHECK(ioctl(dev, DETACH, &a) == 0 && !(config(dev, 4, 2) & MASTER));
    CHECK(ioctl(iommu, DESTROY, &x) == 0);
    FAILS(ENOENT, ioctl(iommu, DESTROY, &x));
    x.size = 4;
    FAILS(EINVAL, ioctl(iommu, DESTROY, &x));
    FAILS(ENOTTY, ioctl(iommu, IOMMU(0xee), &x));
    close(dev), close(second);
}

static void driver(const char *node, int iommu)
{
    struct rng r;
    int dev = open(node, O_RDWR), e[2] = { eventfd(0, EFD_NONBLOCK), eventfd(0, EFD_NONBLOCK) };
    CHECK(bind_to(dev, iommu) == 0);
    uint32_t ioas = new_ioas(iommu);
    CHECK(attach_to(dev, ioas) == 0);
    CHECK(irqs(dev, EVENTFD | TRIGGER, MSIX, 0, 2, e[0], e[1]) == 0);
    CHECK(rng_start(dev, iommu, ioas, &r, 1) == 0);
    memset((void *)(r.ring + 12288), 0, 64);
    rng_ask(&r, 64);
    CHECK(waits(e[1], 10000) >= 1);
    CHECK(waits(e[0], 0) == 0);
    CHECK(rng_used(&r) == 1);
    unsigned sum = 0;
    for (int i = 0; i < 64; i++)
        sum += r.ring[12288 + i] != 0;
    CHECK(sum > 32);
    /* Another vector while the device runs. */
    CHECK(irqs(dev, EVENTFD | TRIGGER, MSIX, 1, 1, e[0], -1) == 0);
    rng_ask(&r, 16);
    CHECK(waits(e[0], 10000) >= 1 && waits(e[1], 0) == 0 && rng_used(&r) == 2);
    /* The line: masked by its interrupt until the driver unmasks it. */
    CHECK(irqs(dev, NONE | TRIGGER, MSIX, 0, 0, 0, 0) == 0);
    CHECK(irqs(dev, EVENTFD | TRIGGER, INTX, 0, 1, e[1], -1) == 0);
    rng_ask(&r, 16);
    CHECK(waits(e[1], 10000) == 1);
    CHECK(rng_used(&r) == 3);
    /* A reset stops the queue and leaves the BARs where they are. */
    uint32_t bar = config(dev, 0x20, 4);
    if (ioctl(dev, RESET) == 0) {
        CHECK(config(dev, 0x20, 4) == bar);
        CHECK(R8(r.common, 20) == 0);
    } else {
        CHECK(errno == ENOTTY);
    }
    close(dev), close(e[0]), close(e[1]);
    munmap((void *)r.ring, 16384);
    /* A mapped BAR keeps the device. */
    int second = open(node, O_RDWR);
    FAILS(EBUSY, bind_to(second, iommu));
    for (int i = 0; i < 6; i++)
        if (r.len[i])
            munmap(r.bars[i], r.len[i]);
    CHECK(bind_to(second, iommu) == 0);
    close(second);
}

/* The driver is killed in the middle of its work. */
static void death(const char *node)
{
    int report[2];
    CHECK(pipe(report) == 0);
    unsigned long before = 0;
    for (int round = 0; round < 4; round++) {
        pid_t pid = fork();
        if (pid == 0) {
            struct rng r;
            int iommu = open("/dev/iommu", O_RDWR), dev = open(node, O_RDWR), e = eventfd(0, EFD_NONBLOCK), fd;
            uint64_t at;
            uint32_t ioas = new_ioas(iommu);
            char ok = bind_to(dev, iommu) == 0 && attach_to(dev, ioas) == 0 &&
                      irqs(dev, EVENTFD | TRIGGER, MSIX, 0, 1, e, -1) == 0 && rng_start(dev, iommu, ioas, &r, 0) == 0 &&
                      buffer(iommu, ioas, 16 << 20, &at, &fd) != NULL;
            for (int i = 0; ok; i++) {
                rng_ask(&r, 4096);
                while (rng_used(&r) != (uint16_t)r.posted)
                    ;
                if (i == 3 && write(report[1], &ok, 1) != 1)
                    _exit(1);
            }
            (void)!write(report[1], &ok, 1);
            _exit(1);
        }
        char ok = 0;
        CHECK(read(report[0], &ok, 1) == 1 && ok);
        int iommu = open("/dev/iommu", O_RDWR), dev = open(node, O_RDWR);
        FAILS(EBUSY, bind_to(dev, iommu));
        kill(pid, SIGKILL);
        CHECK(waitpid(pid, NULL, 0) == pid);
        CHECK(bind_to(dev, iommu) == 0);
        CHECK(!(config(dev, 4, 2) & MASTER));
        for (unsigned at = config(dev, 0x34, 1), k = 0; at >= 0x40 && k < 48; at = config(dev, at + 1, 1), k++)
            if (config(dev, at, 1) == 0x11)
                CHECK(!(config(dev, at + 2, 2) & 0x8000));
        close(dev), close(iommu);
        if (round == 0)
            before = free_kib();
    }
    /* Three more rounds of 16 MiB leave no trace. */
    unsigned long after = free_kib();
    CHECK(after + 8192 > before);
    if (after + 8192 <= before)
        printf("free before %lu KiB, after %lu KiB\n", before, after);
    close(report[0]), close(report[1]);
}

static void heaps(int iommu)
{
    int heap = open("/dev/dma_heap/system", O_RDWR);
    CHECK(heap >= 0);
    struct heap h = { 0, 0, O_RDWR, 0 };
    FAILS(EINVAL, ioctl(heap, HEAP_ALLOC, &h));
    h.len = -1ull;
    FAILS(EINVAL, ioctl(heap, HEAP_ALLOC, &h));
    h.len = 1ull << 50;
    FAILS(ENOMEM, ioctl(heap, HEAP_ALLOC, &h));
    h.len = 4096, h.fd = 1;
    FAILS(EINVAL, ioctl(heap, HEAP_ALLOC, &h));
    h.fd = 0, h.heap_flags = 1;
    FAILS(EINVAL, ioctl(heap, HEAP_ALLOC, &h));
    h.heap_flags = 0, h.flags = O_RDWR | O_APPEND;
    FAILS(EINVAL, ioctl(heap, HEAP_ALLOC, &h));
    h.flags = O_RDWR | O_CLOEXEC, h.len = 100000;
    CHECK(ioctl(heap, HEAP_ALLOC, &h) == 0);
    CHECK(lseek(h.fd, 0, SEEK_END) == 102400);
    char *p = mmap(NULL, 102400, PROT_READ | PROT_WRITE, MAP_SHARED, h.fd, 0);
    CHECK(p != MAP_FAILED && p[0] == 0 && p[102399] == 0);

    uint32_t ioas = new_ioas(iommu);
    struct seg segs[25];
    struct ranges g = { sizeof g, ioas, 0, 0, 0, 0 };
    int translated = !(ioctl(iommu, IOAS_RANGES, &g) && errno == EOPNOTSUPP);
    struct bus b = { sizeof b, 0, ioas, h.fd, 0, 102400, (uintptr_t)segs, 25, 0 };
    if (translated) {
        FAILS(EOPNOTSUPP, ioctl(iommu, BUS_ADDRESSES, &b));
    } else {
        struct map_file m = { sizeof m, 6, ioas, h.fd, 0, 102400, 0 };
        FAILS(EOPNOTSUPP, ioctl(iommu, IOAS_MAP_FILE, &m));
        CHECK(ioctl(iommu, BUS_ADDRESSES, &b) == 0 && b.nsegs >= 1);
        uint64_t sum = 0;
        for (unsigned i = 0; i < b.nsegs; i++)
            sum += segs[i].len;
        CHECK(sum == 102400);
        struct destroy x = { sizeof x, ioas };
        FAILS(EBUSY, ioctl(iommu, DESTROY, &x));
        x.id = b.id;
        CHECK(ioctl(iommu, DESTROY, &x) == 0);
        b.nsegs = 0;
        FAILS(EOVERFLOW, ioctl(iommu, BUS_ADDRESSES, &b));
        CHECK(b.nsegs >= 1);
        b.nsegs = 25, b.offset = 4096;
        FAILS(EINVAL, ioctl(iommu, BUS_ADDRESSES, &b));
        b.offset = 1, b.len = 4096;
        FAILS(EINVAL, ioctl(iommu, BUS_ADDRESSES, &b));
        b.offset = 0, b.len = 0;
        FAILS(EINVAL, ioctl(iommu, BUS_ADDRESSES, &b));
        b.len = 4096, b.segs = 8;
        FAILS(EFAULT, ioctl(iommu, BUS_ADDRESSES, &b));
        b.segs = (uintptr_t)segs, b.fd = 0;
        FAILS(EINVAL, ioctl(iommu, BUS_ADDRESSES, &b));
        x.id = ioas;
        CHECK(ioctl(iommu, DESTROY, &x) == 0);
    }
    munmap(p, 102400), close(h.fd), close(heap);
}

/* The keyboard controller's status through its platform device. */
static void keyboard(int iommu)
{
    char node[600] = "";
    DIR *v = opendir("/sys/bus/platform/devices/i8042/vfio-dev");
    CHECK(v != NULL);
    for (struct dirent *f; v && (f = readdir(v));)
        if (f->d_name[0] != '.')
            sprintf(node, "/dev/vfio/devices/%.32s", f->d_name);
    if (v)
        closedir(v);
    int dev = open(node, O_RDWR), e = eventfd(0, EFD_NONBLOCK);
    if (bind_to(dev, iommu) && errno == EBUSY) {
        puts("keyboard: a driver has it");
        close(dev), close(e);
        return;
    }
    struct info i = { sizeof i, 0, 0, 0, 0, 0 };
    CHECK(ioctl(dev, GET_INFO, &i) == 0 && i.flags == 4 && i.regions == 2 && i.irqs == 2);
    uint8_t status = 0xff, byte = 0xfe;
    CHECK(pread(dev, &status, 1, 1ull << 40) == 1 && status != 0xff);
    /* It may not reset the machine. */
    FAILS(EPERM, pwrite(dev, &byte, 1, 1ull << 40));
    byte = 0xd1;
    FAILS(EPERM, pwrite(dev, &byte, 1, 1ull << 40));
    FAILS(EINVAL, pread(dev, &status, 1, (1ull << 40) + 1));
    FAILS(EINVAL, pread(dev, &status, 1, 2ull << 40));
    CHECK(irqs(dev, EVENTFD | TRIGGER, 0, 0, 1, e, -1) == 0);
    /* Self test: the controller answers 0x55, which interrupts if it is set to. */
    byte = 0xaa;
    CHECK(pwrite(dev, &byte, 1, 1ull << 40) == 1);
    for (int k = 0; k < 1000; k++) {
        CHECK(pread(dev, &status, 1, 1ull << 40) == 1);
        if (status & 1)
            break;
        usleep(1000);
    }
    CHECK(pread(dev, &status, 1, 0) == 1 && status == 0x55);
    struct attach a = { sizeof a, 0, new_ioas(iommu) };
    FAILS(ENODEV, ioctl(dev, ATTACH, &a));
    FAILS(ENOTTY, ioctl(dev, RESET));
    close(dev), close(e);
}

int main(void)
{
    char dir[512], node[600];
    int iommu = open("/dev/iommu", O_RDWR);
    CHECK(iommu >= 0);
    if (!find(0x1af4, 0x1005, 0x1044, dir, node)) {
        puts("no virtio-rng with a VFIO file");
        return 1;
    }
    rights(node, iommu);
    heaps(iommu);
    driver(node, iommu);
    death(node);
    keyboard(iommu);
    return check_done();
}
