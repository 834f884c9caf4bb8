/*
 * Measures of a server's death: from SIGKILL to the answer of the next request that needs the server, again and again. The request is
 * made at once, so it waits for init to notice, for the successor to start and to take over. `restart-NAME` is what was worked for it,
 * without the time in which the CPU idled (init's pause before a restart, a device at work): the mean, since what idled is known
 * to a hundredth of a second only, ten million instructions. `restart-NAME-time` has the pauses, the median and the 95th percentile.
 *
 * Build: cc -O2 -static -pthread. Under `-icount shift=0,sleep=off` the figures are instructions and nanoseconds.
 */
#include "bench.h"
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

/* Fewer than init bears in half a minute, each after more than a second of service: then the pause before the restart does not grow. */
enum { ROUNDS = 15 };

/* include/uapi/drm/drm.h and linux/input.h, which not every host has. */
struct get_cap { uint64_t capability, value; };
#define GET_CAP _IOWR('d', 0x0c, struct get_cap)
struct input_id { uint16_t bustype, vendor, product, version; };
#define EVIOCGID _IOR('E', 0x02, struct input_id)

static int fd, number;

/* The oldest process of this name, 0 if there is none. */
static pid_t server(const char *name)
{
    DIR *proc = opendir("/proc");
    pid_t found = 0;
    for (struct dirent *entry; (entry = readdir(proc));) {
        char path[300], comm[64] = "";
        int pid = atoi(entry->d_name);
        snprintf(path, sizeof path, "/proc/%s/comm", entry->d_name);
        FILE *f = pid > 0 ? fopen(path, "r") : NULL;
        if (!f)
            continue;
        if (fgets(comm, sizeof comm, f) && !strcmp(strtok(comm, "\n"), name) && (!found || pid < found))
            found = pid;
        fclose(f);
    }
    closedir(proc);
    return found;
}

/* A name that nobody has looked for yet. */
static int ask_names(void)
{
    char path[64];
    struct stat st;
    snprintf(path, sizeof path, "/var/tmp/never-made-%d", ++number);
    return stat(path, &st) < 0 && errno == ENOENT;
}

/* A write that must be on the disk. */
static int ask_disk(void)
{
    return pwrite(fd, &number, sizeof number, 0) == sizeof number && fsync(fd) == 0;
}

static int ask_card(void)
{
    struct get_cap cap = {1, 0};
    return ioctl(fd, GET_CAP, &cap) == 0;
}

static int ask_input(void)
{
    struct input_id id;
    return ioctl(fd, EVIOCGID, &id) == 0;
}

static const struct {
    const char *name;
    const char *file; /* to have open, a descriptor that stays over the deaths */
    int (*ask)(void);
} servers[] = {
    {"ext4d", NULL, ask_names},
    {"virtio-blkd", "/var/tmp/restart-bench", ask_disk},
    {"drm-virtio-gpu", "/dev/dri/card0", ask_card},
    {"evdevd", "/dev/input/event0", ask_input},
};

/* Time in which the one CPU had something to do. */
static uint64_t worked(void)
{
    double up, idle;
    FILE *f = fopen("/proc/uptime", "r");
    CHECK(f && fscanf(f, "%lf %lf", &up, &idle) == 2);
    fclose(f);
    return now() - (uint64_t)(idle * 1e9);
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void tell(const char *name, const char *what, double *values, double at)
{
    char line[80];
    qsort(values, ROUNDS, sizeof *values, compare);
    snprintf(line, sizeof line, "restart-%s%s", name, what);
    report(line, values[(int)(at * (ROUNDS - 1) + 0.5)]);
}

int main(int argc, char **argv)
{
    for (size_t at = 0; at < sizeof servers / sizeof *servers; at++) {
        const char *name = servers[at].name;
        char full[80];
        int wanted = argc < 2;
        snprintf(full, sizeof full, "restart-%s", name);
        for (int i = 1; i < argc; i++)
            wanted |= !strcmp(argv[i], full);
        if (!wanted || !server(name))
            continue;
        double work = 0, time[ROUNDS];
        if (servers[at].file)
            CHECK((fd = open(servers[at].file, O_RDWR | (servers[at].ask == ask_disk ? O_CREAT : 0), 0600)) >= 0);
        for (int round = 0; round < ROUNDS; round++) {
            pid_t old = server(name);
            CHECK(old > 0 && servers[at].ask());
            uint64_t worked_before = worked(), before = now();
            CHECK(kill(old, SIGKILL) == 0);
            CHECK(servers[at].ask());
            work += (double)(int64_t)(worked() - worked_before);
            time[round] = now() - before;
            usleep(1200000);
        }
        if (servers[at].file)
            close(fd);
        report(full, work / ROUNDS);
        tell(name, "-time", time, 0.5);
        tell(name, "-time-95th", time, 0.95);
    }
    return 0;
}
