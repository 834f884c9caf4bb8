/* dma-bufs of memfds, sync_files, software timelines. Linux has timelines in debugfs where CONFIG_SW_SYNC is set; Debian's
 * kernel does not, there the parts that need one are left out (the names in tests/guest say so). */
#include "../check.h"
#include <fcntl.h>
#include <linux/dma-buf.h>
#include <linux/sync_file.h>
#include <linux/udmabuf.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#ifndef SYNC_IOC_SET_DEADLINE
struct sync_set_deadline {
    uint64_t deadline_ns, pad;
};
#define SYNC_IOC_SET_DEADLINE _IOW(SYNC_IOC_MAGIC, 5, struct sync_set_deadline)
#endif
struct sw_create {
    uint32_t value;
    char name[32];
    int32_t fence;
};
struct sw_deadline {
    uint64_t deadline_ns;
    uint32_t pad;
    int32_t fence_fd;
};
#define SW_CREATE _IOWR('W', 0, struct sw_create)
#define SW_INC _IOW('W', 1, uint32_t)
#define SW_DEADLINE _IOWR('W', 2, struct sw_deadline)

#define PAGES 5
#define SIZE (PAGES * 4096L)

static int udmabuf;

static int memfd(int seals)
{
    int fd = memfd_create("buffer", MFD_ALLOW_SEALING | MFD_CLOEXEC);
    CHECK(fd >= 0 && ftruncate(fd, SIZE) == 0);
    if (seals)
        CHECK(fcntl(fd, F_ADD_SEALS, seals) == 0);
    return fd;
}

static int make(int fd, uint64_t offset, uint64_t size)
{
    struct udmabuf_create create = {.memfd = fd, .flags = UDMABUF_FLAGS_CLOEXEC, .offset = offset, .size = size};
    return ioctl(udmabuf, UDMABUF_CREATE, &create);
}

static int readable(int fd, int events)
{
    struct pollfd p = {.fd = fd, .events = events};
    return poll(&p, 1, 0) < 0 ? -1 : p.revents;
}

static void buffers(void)
{
    int sealed = memfd(F_SEAL_SHRINK), open_ = memfd(0), read_only = memfd(F_SEAL_SHRINK | F_SEAL_WRITE);
    FAILS(EINVAL, make(open_, 0, SIZE));
    FAILS(EINVAL, make(read_only, 0, SIZE));
    FAILS(EINVAL, make(sealed, 1, 4096));
    FAILS(EINVAL, make(sealed, 0, 4095));
    FAILS(EINVAL, make(sealed, 0, 0));
    FAILS(EINVAL, make(sealed, 4096, SIZE));
    FAILS(EINVAL, make(sealed, 0, 1L << 40));
    FAILS(EBADFD, make(udmabuf, 0, 4096));
    FAILS(EBADFD, make(-1, 0, 4096));

    unsigned char *mem = mmap(0, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, sealed, 0);
    CHECK(mem != MAP_FAILED);
    memset(mem, 7, SIZE);
    int fd = make(sealed, 4096, 3 * 4096);
    CHECK(fd >= 0 && fcntl(fd, F_GETFD) == FD_CLOEXEC && (fcntl(fd, F_GETFL) & O_ACCMODE) == O_RDWR);
    CHECK(lseek(fd, 0, SEEK_END) == 3 * 4096 && lseek(fd, 0, SEEK_SET) == 0);
    FAILS(EINVAL, lseek(fd, 1, SEEK_SET));
    FAILS(EINVAL, lseek(fd, 0, SEEK_CUR));
    struct stat st;
    CHECK(fstat(fd, &st) == 0 && st.st_blocks == 24);
    char byte;
    FAILS(EINVAL, read(fd, &byte, 1));
    FAILS(EINVAL, write(fd, &byte, 1));

    unsigned char *map = mmap(0, 3 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(map != MAP_FAILED && map[0] == 7);
    map[0] = 9;
    mem[2 * 4096 + 5] = 11;
    CHECK(mem[4096] == 9 && map[4096 + 5] == 11 && mem[0] == 7);
    CHECK(mmap(0, 4 * 4096, PROT_READ, MAP_SHARED, fd, 0) == MAP_FAILED && errno == EINVAL);
    CHECK(mmap(0, 4096, PROT_READ, MAP_SHARED, fd, 3 * 4096) == MAP_FAILED && errno == EINVAL);
    CHECK(mmap(0, 4096, PROT_READ, MAP_PRIVATE, fd, 0) == MAP_FAILED && errno == EINVAL);
    close(sealed);
    munmap(mem, SIZE);
    close(fd);
    CHECK(map[0] == 9 && map[4096 + 5] == 11);
    munmap(map, 3 * 4096);
}

static void lists(void)
{
    struct {
        struct udmabuf_create_list head;
        struct udmabuf_create_item items[2];
    } list = {{.flags = 0, .count = 2}, {{0}}};
    int a = memfd(F_SEAL_SHRINK), b = memfd(F_SEAL_SHRINK);
    CHECK(pwrite(a, "A", 1, 4096) == 1 && pwrite(b, "B", 1, 0) == 1);
    list.items[0] = (struct udmabuf_create_item){.memfd = a, .offset = 4096, .size = 4096};
    list.items[1] = (struct udmabuf_create_item){.memfd = b, .offset = 0, .size = 8192};
    int fd = ioctl(udmabuf, UDMABUF_CREATE_LIST, &list);
    CHECK(fd >= 0 && fcntl(fd, F_GETFD) == 0 && lseek(fd, 0, SEEK_END) == 3 * 4096);
    char *map = mmap(0, 3 * 4096, PROT_READ, MAP_SHARED, fd, 0);
    CHECK(map != MAP_FAILED && map[0] == 'A' && map[4096] == 'B' && map[8192] == 0);
    list.head.count = 1025;
    FAILS(EINVAL, ioctl(udmabuf, UDMABUF_CREATE_LIST, &list));
    FAILS(EFAULT, ioctl(udmabuf, UDMABUF_CREATE_LIST, (void *)8));
    FAILS(ENOTTY, ioctl(udmabuf, _IO('u', 0x41), 0));
    close(fd);
    close(a);
    close(b);
}

static void names(void)
{
    char path[64], text[256] = "";
    int mem = memfd(F_SEAL_SHRINK), fd = make(mem, 0, SIZE);
    CHECK(ioctl(fd, DMA_BUF_SET_NAME_B, "picture") == 0);
    FAILS(EINVAL, ioctl(fd, DMA_BUF_SET_NAME_B, "a name of more than thirty-one letters"));
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    CHECK(readlink(path, text, sizeof text - 1) > 0 && !strcmp(text, "/dmabuf:picture"));
    snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
    FILE *info = fopen(path, "r");
    int size = 0, exporter = 0, name = 0;
    while (info && fgets(text, sizeof text, info)) {
        size |= !strcmp(text, "size:\t20480\n");
        exporter |= !strcmp(text, "exp_name:\tudmabuf\n");
        name |= !strcmp(text, "name:\tpicture\n");
    }
    CHECK(size && exporter && name);
    fclose(info);
    close(fd);
    close(mem);
}

static int export_(int fd, unsigned flags)
{
    struct dma_buf_export_sync_file data = {.flags = flags, .fd = -1};
    return ioctl(fd, DMA_BUF_IOCTL_EXPORT_SYNC_FILE, &data) ? -1 : data.fd;
}

static int import(int fd, unsigned flags, int fence)
{
    struct dma_buf_import_sync_file data = {.flags = flags, .fd = fence};
    return ioctl(fd, DMA_BUF_IOCTL_IMPORT_SYNC_FILE, &data);
}

static int sync_(int fd, uint64_t flags)
{
    struct dma_buf_sync data = {.flags = flags};
    return ioctl(fd, DMA_BUF_IOCTL_SYNC, &data);
}

static void idle_buffer(void)
{
    int mem = memfd(F_SEAL_SHRINK), fd = make(mem, 0, SIZE);
    CHECK(sync_(fd, DMA_BUF_SYNC_START | DMA_BUF_SYNC_RW) == 0 && sync_(fd, DMA_BUF_SYNC_END | DMA_BUF_SYNC_RW) == 0);
    FAILS(EINVAL, sync_(fd, 0));
    FAILS(EINVAL, sync_(fd, 8 | DMA_BUF_SYNC_READ));
    FAILS(EFAULT, ioctl(fd, DMA_BUF_IOCTL_SYNC, (void *)8));
    FAILS(ENOTTY, ioctl(fd, _IO('b', 9), 0));
    CHECK(readable(fd, POLLIN | POLLOUT) == (POLLIN | POLLOUT));
    FAILS(EINVAL, export_(fd, 0));
    FAILS(EINVAL, export_(fd, 4));
    FAILS(EINVAL, import(fd, DMA_BUF_SYNC_READ, mem));
    int fence = export_(fd, DMA_BUF_SYNC_RW);
    CHECK(fence >= 0 && fcntl(fence, F_GETFD) == FD_CLOEXEC && readable(fence, POLLIN) == POLLIN);
    struct sync_file_info info = {0};
    CHECK(ioctl(fence, SYNC_IOC_FILE_INFO, &info) == 0 && info.status == 1 && info.num_fences == 1);
    CHECK(import(fd, DMA_BUF_SYNC_WRITE, fence) == 0);
    info = (struct sync_file_info){.flags = 1};
    FAILS(EINVAL, ioctl(fence, SYNC_IOC_FILE_INFO, &info));
    struct sync_merge_data merge = {.name = "joined", .fd2 = fence};
    CHECK(ioctl(fence, SYNC_IOC_MERGE, &merge) == 0);
    info = (struct sync_file_info){0};
    CHECK(ioctl(merge.fence, SYNC_IOC_FILE_INFO, &info) == 0 && !strcmp(info.name, "joined") && info.num_fences == 1);
    close(merge.fence);
    merge = (struct sync_merge_data){.fd2 = mem};
    FAILS(ENOENT, ioctl(fence, SYNC_IOC_MERGE, &merge));
    merge = (struct sync_merge_data){.fd2 = fence, .flags = 1};
    FAILS(EINVAL, ioctl(fence, SYNC_IOC_MERGE, &merge));
    FAILS(ENOTTY, ioctl(fence, _IO('>', 9), 0));
    close(fence);
    close(fd);
    close(mem);
}

static int timeline(void)
{
    int fd = open("/dev/sw_sync", O_RDWR | O_CLOEXEC);
    return fd >= 0 ? fd : open("/sys/kernel/debug/sync/sw_sync", O_RDWR | O_CLOEXEC);
}

static int point(int line, uint32_t value)
{
    struct sw_create data = {.value = value, .name = "point", .fence = -1};
    return ioctl(line, SW_CREATE, &data) ? -1 : data.fence;
}

static void inc(int line, uint32_t by) { CHECK(ioctl(line, SW_INC, &by) == 0); }

static int status(int fence)
{
    struct sync_file_info info = {0};
    CHECK(ioctl(fence, SYNC_IOC_FILE_INFO, &info) == 0);
    return info.status;
}

static void timelines(void)
{
    int line = timeline(), other = timeline();
    int now = point(line, 0), one = point(line, 1), three = point(line, 3), apart = point(other, 1);
    CHECK(readable(now, POLLIN) == POLLIN && status(now) == 1);
    CHECK(readable(one, POLLIN) == 0 && status(one) == 0);

    struct sync_merge_data merge = {.name = "both", .fd2 = three};
    CHECK(ioctl(one, SYNC_IOC_MERGE, &merge) == 0);
    int later = merge.fence;
    merge = (struct sync_merge_data){.name = "all", .fd2 = apart};
    CHECK(ioctl(later, SYNC_IOC_MERGE, &merge) == 0);
    int all = merge.fence;
    struct sync_fence_info fences[2] = {{{0}}};
    struct sync_file_info info = {.num_fences = 1, .sync_fence_info = (uintptr_t)fences};
    FAILS(EINVAL, ioctl(all, SYNC_IOC_FILE_INFO, &info));
    info.num_fences = 2;
    /* one and three lie on one timeline: only the later is kept */
    CHECK(ioctl(all, SYNC_IOC_FILE_INFO, &info) == 0 && info.num_fences == 2 && info.status == 0);
    CHECK(!strcmp(fences[0].driver_name, "sw_sync") && fences[0].status == 0 && fences[0].timestamp_ns == 0);
    info = (struct sync_file_info){0};
    CHECK(ioctl(later, SYNC_IOC_FILE_INFO, &info) == 0 && info.num_fences == 1);

    struct sync_set_deadline wish = {.deadline_ns = 500};
    struct sw_deadline got = {.fence_fd = three};
    FAILS(ENOENT, ioctl(line, SW_DEADLINE, &got));
    CHECK(ioctl(three, SYNC_IOC_SET_DEADLINE, &wish) == 0);
    wish.deadline_ns = 900;
    CHECK(ioctl(three, SYNC_IOC_SET_DEADLINE, &wish) == 0);
    CHECK(ioctl(line, SW_DEADLINE, &got) == 0 && got.deadline_ns == 500);

    inc(line, 1);
    CHECK(readable(one, POLLIN) == POLLIN && readable(three, POLLIN) == 0 && readable(all, POLLIN) == 0);
    inc(other, 1);
    CHECK(readable(all, POLLIN) == 0);
    inc(line, 2);
    CHECK(readable(three, POLLIN) == POLLIN && readable(all, POLLIN) == POLLIN && status(all) == 1);

    /* values compare as Linux's do, around the end of 32 bits */
    CHECK(status(point(line, 0xfffffff0u)) == 1);
    inc(line, 0x7fffffff);
    inc(line, 0x7fffffff); /* 3 + 2^32 - 2 = 1 */
    int wrapped = point(line, 2);
    CHECK(status(wrapped) == 0);
    inc(line, 1);
    CHECK(status(wrapped) == 1);

    int orphan = point(line, 100);
    close(line);
    CHECK(readable(orphan, POLLIN) == POLLIN && status(orphan) == -ENOENT);
    FAILS(EFAULT, ioctl(other, SW_INC, (void *)8));
    FAILS(ENOTTY, ioctl(other, _IO('W', 9), 0));
    /* many fences that nobody keeps */
    for (int i = 0; i < 3000; i++)
        close(point(other, 1000 + i));
    close(other);
}

static int slow_line;

static void *advance(void *unused)
{
    usleep(30000);
    inc(slow_line, 1);
    return unused;
}

static void implicit_sync(void)
{
    int mem = memfd(F_SEAL_SHRINK), fd = make(mem, 0, SIZE);
    slow_line = timeline();
    int fence = point(slow_line, 1);
    CHECK(import(fd, DMA_BUF_SYNC_READ, fence) == 0);
    /* a reader does not wait for readers, a writer does */
    CHECK(readable(fd, POLLIN) == POLLIN && readable(fd, POLLOUT) == 0);
    int for_read = export_(fd, DMA_BUF_SYNC_READ), for_write = export_(fd, DMA_BUF_SYNC_WRITE);
    CHECK(readable(for_read, POLLIN) == POLLIN && readable(for_write, POLLIN) == 0);
    CHECK(sync_(fd, DMA_BUF_SYNC_START | DMA_BUF_SYNC_READ) == 0);
    pthread_t thread;
    CHECK(pthread_create(&thread, 0, advance, 0) == 0);
    struct pollfd p = {.fd = fd, .events = POLLOUT};
    CHECK(poll(&p, 1, 5000) == 1 && p.revents == POLLOUT);
    CHECK(readable(for_write, POLLIN) == POLLIN);
    pthread_join(thread, 0);

    int writer = point(slow_line, 2);
    CHECK(import(fd, DMA_BUF_SYNC_WRITE, writer) == 0 && readable(fd, POLLIN | POLLOUT) == 0);
    CHECK(pthread_create(&thread, 0, advance, 0) == 0);
    CHECK(sync_(fd, DMA_BUF_SYNC_START | DMA_BUF_SYNC_READ) == 0 && status(writer) == 1);
    pthread_join(thread, 0);
    /* epoll hears of fences that came after it */
    int ep = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLOUT | EPOLLET};
    CHECK(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &event) == 0 && epoll_wait(ep, &event, 1, 0) == 1);
    CHECK(import(fd, DMA_BUF_SYNC_WRITE, point(slow_line, 3)) == 0 && epoll_wait(ep, &event, 1, 0) == 0);
    inc(slow_line, 1);
    CHECK(epoll_wait(ep, &event, 1, 0) == 1);
    close(ep);
    close(slow_line);
    close(fd);
    close(mem);
}

int main(void)
{
    udmabuf = open("/dev/udmabuf", O_RDWR | O_CLOEXEC);
    CHECK(udmabuf >= 0);
    buffers();
    lists();
    names();
    idle_buffer();
    int line = timeline();
    if (line >= 0) {
        close(line);
        timelines();
        implicit_sync();
    } else {
        puts("no software timelines here");
    }
    return check_done();
}
