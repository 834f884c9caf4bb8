/*
 * Four threads make every ioctl of a card with random and boundary arguments; meanwhile a client of the same card goes on with
 * its own work, and sees nothing of it. Twice: as ordinary clients beside a master, and with a master among them.
 *
 * Usage: storm SECONDS [SEED].
 */
#define _GNU_SOURCE
#include "../check.h"
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* include/uapi/drm/drm.h, drm_mode.h */
#define DRM_IOWR(nr, type) _IOWR('d', nr, type)
struct cap { uint64_t capability, value; };
struct create_dumb { uint32_t height, width, bpp, flags, handle, pitch; uint64_t size; };
struct map_dumb { uint32_t handle, pad; uint64_t offset; };
struct fb_cmd { uint32_t fb, width, height, pitch, bpp, depth, handle; };
struct blob { uint64_t data; uint32_t length, id; };
struct get_blob { uint32_t id, length; uint64_t data; };
#define GET_CAP DRM_IOWR(0x0c, struct cap)
#define SET_MASTER _IO('d', 0x1e)
#define DROP_MASTER _IO('d', 0x1f)
#define CREATE_DUMB DRM_IOWR(0xb2, struct create_dumb)
#define MAP_DUMB DRM_IOWR(0xb3, struct map_dumb)
#define DESTROY_DUMB DRM_IOWR(0xb4, uint32_t)
#define GETFB DRM_IOWR(0xad, struct fb_cmd)
#define ADDFB DRM_IOWR(0xae, struct fb_cmd)
#define RMFB DRM_IOWR(0xaf, uint32_t)
#define CREATE_BLOB DRM_IOWR(0xbd, struct blob)
#define GET_BLOB DRM_IOWR(0xac, struct get_blob)
#define DESTROY_BLOB DRM_IOWR(0xbe, uint32_t)

enum { THREADS = 4, SHARED = 1 << 16 };
static volatile int stop;
static char *shared;
static unsigned long calls[THREADS], accepted[THREADS];

static uint64_t random_of(uint64_t *state)
{
    *state ^= *state << 13, *state ^= *state >> 7, *state ^= *state << 17;
    return *state;
}

/* A word as a hostile program would put it: small numbers hit identifiers and counts, pointers hit memory. */
static uint64_t word(uint64_t *state)
{
    static const uint64_t edges[] = {0, 1, 2, 0x7fffffff, 0x80000000, 0xffffffff, 0x100000000, 0x7fffffffffffffff,
                                     0x8000000000000000, 0xffffffffffffffff, 0xcccccccc, 0xc0c0c0c0, 0xeeeeeeee, 0x34325258,
                                     0x34325241, 0x7ffffffff000, 0xffff800000000000};
    uint64_t r = random_of(state);
    switch (r % 8) {
    case 0: return edges[(r >> 8) % (sizeof edges / sizeof *edges)];
    case 1: return (uintptr_t)shared + (r >> 8) % SHARED;
    case 2: return (uintptr_t)shared + ((r >> 8) % 16) * 4096;
    case 3: return r >> 8;
    case 4: return ((r >> 8) % 2048) << 32 | ((r >> 24) % 2048);
    case 5: return 1ull << ((r >> 8) % 64);
    default: return (r >> 8) % 80 | ((r >> 32) % 4 ? 0 : ((r >> 16) % 80) << 32);
    }
}

/* The sizes of the arguments, by number; 0 where there is no such ioctl. */
static const uint8_t sizes[256] = {
    [0x00] = 64, [0x01] = 16, [0x02] = 4, [0x05] = 40, [0x07] = 16, [0x09] = 8, [0x0a] = 8, [0x0b] = 16, [0x0c] = 16, [0x0d] = 16,
    [0x10] = 16, [0x11] = 4, [0x2d] = 12, [0x2e] = 12, [0x3a] = 24, [0x3b] = 24, [0x3c] = 24, [0x41] = 16, [0x42] = 40, [0x43] = 16,
    [0x44] = 56, [0x45] = 16, [0x46] = 44, [0x47] = 44, [0x48] = 8, [0x49] = 32, [0x4a] = 48, [0x4b] = 16, [0xa0] = 64, [0xa1] = 104,
    [0xa2] = 104, [0xa3] = 28, [0xa4] = 32, [0xa5] = 32, [0xa6] = 20, [0xa7] = 80, [0xa8] = 72, [0xa9] = 72, [0xaa] = 64,
    [0xab] = 16, [0xac] = 16, [0xad] = 28, [0xae] = 28, [0xaf] = 4, [0xb0] = 24, [0xb1] = 24, [0xb2] = 32, [0xb3] = 16, [0xb4] = 4,
    [0xb5] = 16, [0xb6] = 32, [0xb7] = 48, [0xb8] = 104, [0xb9] = 32, [0xba] = 24, [0xbb] = 36, [0xbc] = 56, [0xbd] = 16, [0xbe] = 4,
    [0xbf] = 8, [0xc0] = 8, [0xc1] = 16, [0xc2] = 16, [0xc3] = 40, [0xc4] = 16, [0xc5] = 16, [0xc6] = 24, [0xc7] = 16, [0xc8] = 16,
    [0xc9] = 4, [0xca] = 48, [0xcb] = 24, [0xcc] = 32, [0xcd] = 24, [0xce] = 104, [0xcf] = 32, [0xd0] = 8,
};

static const char *nodes[] = {"/dev/dri/card0", "/dev/dri/renderD128"};

/* What a random call left behind: descriptors above those that threads work with. */
static void close_installed(void) { syscall(SYS_close_range, 64, ~0u, 0); }

static int reopened(int slot, uint64_t *state)
{
    int fd = open(nodes[random_of(state) % 4 == 0], O_RDWR | O_NONBLOCK * (random_of(state) % 2));
    if (fd < 0)
        fd = open(nodes[0], O_RDWR);
    if (fd >= 0 && fd != slot) {
        dup2(fd, slot);
        close(fd);
    }
    struct cap universal = {3, 1};
    if (random_of(state) % 2)
        ioctl(slot, _IOW('d', 0x0d, struct cap), &universal);
    return slot;
}

static void *storm(void *arg)
{
    long number = (long)arg;
    uint64_t state = 0x9e3779b97f4a7c15u * (uint64_t)(number + 1) ^ (uint64_t)getpid() << 32 ^ calls[number];
    uint64_t argument[64];
    int fd = reopened(10 + (int)number, &state);
    calls[number] = 0;
    /* Calls that wait are ended by a signal every now and then. */
    timer_t timer;
    struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGUSR1};
    event._sigev_un._tid = gettid();
    struct itimerspec often = {{0, 20000000}, {0, 20000000}};
    CHECK(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0 && timer_settime(timer, 0, &often, 0) == 0);
    while (!stop) {
        uint64_t r = random_of(&state);
        uint32_t nr = r % 16 == 0 ? (r >> 8) % 256 : 0;
        while (r % 16 && !sizes[nr])
            nr = random_of(&state) % 256;
        uint32_t size = r % 32 == 1 ? (r >> 16) % 256 : sizes[nr], dir = (r >> 40) % 16 ? 3 : (r >> 32) % 4;
        for (int i = 0; i < 64; i++)
            argument[i] = random_of(&state) % 3 ? word(&state) : 0;
        for (int i = 0; i < 8; i++)
            ((uint64_t *)shared)[random_of(&state) % (SHARED / 8)] = word(&state);
        void *at = r >> 44 & 0xf ? argument : (void *)(uintptr_t)word(&state);
        calls[number]++;
        if (ioctl(fd, _IOC(dir, 'd', nr, size), at) >= 0)
            accepted[number]++;
        if (random_of(&state) % 64 == 0) {
            void *m = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)(word(&state) & ~4095ull));
            if (m != MAP_FAILED)
                munmap(m, 4096);
        }
        if (random_of(&state) % 512 == 0)
            (void)!read(fd, argument, sizeof argument);
        if (random_of(&state) % 400 == 0) {
            close_installed();
            fd = reopened(fd, &state);
        }
    }
    timer_delete(timer);
    close(fd);
    return NULL;
}

static void nothing(int signal) { (void)signal; }

/* Another client: its buffers keep their bytes, its objects their meaning. */
static int victim(int card, int rounds_done)
{
    struct cap cap = {1, 0};
    CHECK(ioctl(card, GET_CAP, &cap) == 0 && cap.value == 1);
    struct create_dumb create = {.width = 64, .height = 64, .bpp = 32};
    CHECK(ioctl(card, CREATE_DUMB, &create) == 0);
    struct map_dumb map = {.handle = create.handle};
    CHECK(ioctl(card, MAP_DUMB, &map) == 0);
    unsigned char *m = mmap(NULL, create.size, PROT_READ | PROT_WRITE, MAP_SHARED, card, (off_t)map.offset);
    CHECK(m != MAP_FAILED);
    if (m == MAP_FAILED)
        return 0;
    memset(m, rounds_done, create.size);
    struct fb_cmd fb = {.width = 64, .height = 64, .pitch = create.pitch, .bpp = 32, .depth = 24, .handle = create.handle};
    CHECK(ioctl(card, ADDFB, &fb) == 0);
    unsigned char data[100], back[100] = {0};
    memset(data, rounds_done + 1, sizeof data);
    struct blob blob = {(uintptr_t)data, sizeof data, 0};
    CHECK(ioctl(card, CREATE_BLOB, &blob) == 0);
    struct timespec moment = {0, 30000000};
    nanosleep(&moment, NULL);
    struct get_blob get = {blob.id, sizeof back, (uintptr_t)back};
    CHECK(ioctl(card, GET_BLOB, &get) == 0 && memcmp(data, back, sizeof data) == 0);
    struct fb_cmd same = {.fb = fb.fb};
    CHECK(ioctl(card, GETFB, &same) == 0 && same.width == 64 && same.pitch == create.pitch);
    for (size_t i = 0; i < create.size; i++)
        if (m[i] != (unsigned char)rounds_done) {
            CHECK(!"a buffer keeps its bytes");
            break;
        }
    munmap(m, create.size);
    CHECK(ioctl(card, DESTROY_BLOB, &blob.id) == 0);
    CHECK(ioctl(card, RMFB, &fb.fb) == 0);
    CHECK(ioctl(card, DESTROY_DUMB, &create.handle) == 0);
    return 1;
}

static void round_of(int card, double seconds, uint64_t seed)
{
    pid_t child = fork();
    if (child == 0) {
        struct rlimit few = {256, 256};
        setrlimit(RLIMIT_NOFILE, &few);
        struct sigaction act = {.sa_handler = nothing};
        sigaction(SIGUSR1, &act, NULL);
        close(card);
        shared = mmap(NULL, SHARED, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        pthread_t threads[THREADS];
        for (long i = 0; i < THREADS; i++) {
            calls[i] = seed;
            CHECK(pthread_create(&threads[i], NULL, storm, (void *)i) == 0);
        }
        struct timespec time = {(time_t)seconds, (long)((seconds - (time_t)seconds) * 1e9)};
        nanosleep(&time, NULL);
        stop = 1;
        unsigned long all = 0, good = 0;
        for (int i = 0; i < THREADS; i++) {
            pthread_join(threads[i], NULL);
            all += calls[i], good += accepted[i];
        }
        fprintf(stderr, "%lu calls, %lu of them accepted\n", all, good);
        _exit(check_failures || all < 100 || good == 0);
    }
    int rounds = 0, status = 0;
    while (waitpid(child, &status, WNOHANG) == 0)
        rounds += victim(card, rounds);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    CHECK(rounds > 0 && victim(card, 7));
    fprintf(stderr, "%d rounds beside it\n", rounds);
}

int main(int argc, char **argv)
{
    double seconds = argc > 1 ? atof(argv[1]) : 5;
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 1;
    int card = open(nodes[0], O_RDWR | O_CLOEXEC);
    CHECK(card >= 0);
    CHECK(ioctl(card, SET_MASTER, 0) == 0);
    round_of(card, seconds, seed);
    CHECK(ioctl(card, DROP_MASTER, 0) == 0);
    round_of(card, seconds, seed + 1);
    return check_done();
}
