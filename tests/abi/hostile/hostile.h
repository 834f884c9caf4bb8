/* What the hostile programs have in common: an unprivileged user to be hostile as, the end of its processes, and whether the memory
 * that they used comes back. */
#ifndef HOSTILE_H
#define HOSTILE_H
#include "../check.h"
#include <dirent.h>
#include <grp.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { NOBODY = 65534 };

__attribute__((unused)) static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

/* Gives root up for user nobody under limits, never to outlive the parent. */
__attribute__((unused)) static void become_nobody(void)
{
    struct rlimit processes = {400, 400}, size = {1 << 20, 1 << 20}, memory = {512 << 20, 512 << 20}, none = {0, 0};
    setrlimit(RLIMIT_NPROC, &processes);
    setrlimit(RLIMIT_FSIZE, &size);
    setrlimit(RLIMIT_AS, &memory);
    setrlimit(RLIMIT_CORE, &none);
    if (setgroups(0, NULL) || setgid(NOBODY) || setuid(NOBODY))
        _exit(99);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    signal(SIGXFSZ, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
}

/* Whether a child has ended, without waiting. One that made this process its tracer and stopped is let go on. */
__attribute__((unused)) static int has_ended(pid_t pid, int *status)
{
    while (waitpid(pid, status, WNOHANG) == pid) {
        if (!WIFSTOPPED(*status))
            return 1;
        ptrace(PTRACE_CONT, pid, NULL, WSTOPSIG(*status) == SIGALRM ? SIGALRM : 0);
    }
    return 0;
}

/* Prints a file of a process, so that a failure can be understood from its output. */
static void print_file(pid_t pid, const char *name)
{
    char path[64], line[1024];
    snprintf(path, sizeof path, "/proc/%d/%s", pid, name);
    FILE *f = fopen(path, "r");
    while (f && fgets(line, sizeof line, f))
        fputs(line, stdout);
    if (f)
        fclose(f);
}

/* Waits for a child; after `patience` seconds kills it; a killed child has a minute to be gone. */
__attribute__((unused)) static int end_of(pid_t pid, double patience)
{
    int status;
    for (double end = seconds() + patience; seconds() < end; usleep(2000))
        if (has_ended(pid, &status))
            return status;
    /* It may have made itself the least of all, which beside busy others is next to no time, on Linux too: the minute is for one that
     * gets its share. */
    struct sched_param none = {0};
    sched_setscheduler(pid, SCHED_OTHER, &none);
    setpriority(PRIO_PROCESS, pid, 0);
    kill(pid, SIGKILL);
    for (double end = seconds() + 60; seconds() < end; usleep(5000))
        if (has_ended(pid, &status))
            return status;
    printf("process %d does not end\n", pid);
    print_file(pid, "status");
    print_file(pid, "stat");
    print_file(pid, "syscall");
    print_file(pid, "wchan");
    CHECK(!"SIGKILL ends every process");
    return -1;
}

__attribute__((unused)) static long meminfo_kib(const char *name)
{
    char line[128], format[32];
    long value = 0;
    snprintf(format, sizeof format, "%s: %%ld", name);
    FILE *f = fopen("/proc/meminfo", "r");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, format, &value) == 1)
            break;
    if (f)
        fclose(f);
    return value;
}

struct memory {
    long available, stacks;
};

__attribute__((unused)) static struct memory memory_now(void)
{
    return (struct memory){meminfo_kib("MemAvailable"), meminfo_kib("KernelStack")};
}

/* Whether all but 32 MiB of the memory, and all but 1 MiB of the kernel stacks, that there were before are there again within ten
 * seconds. */
__attribute__((unused)) static int memory_is_back(const struct memory *before)
{
    struct memory now;
    int back = 0;
    for (int round = 0; round < 100 && !back; round++) {
        if (round)
            usleep(100000);
        now = memory_now();
        back = now.available >= before->available - 32 * 1024 && now.stacks <= before->stacks + 1024;
    }
    printf("available before %ld KiB, after %ld KiB; kernel stacks before %ld KiB, after %ld KiB\n", before->available,
           now.available, before->stacks, now.stacks);
    return back;
}

__attribute__((unused)) static int processes_of_nobody(void)
{
    char path[64], line[128];
    unsigned uid;
    int count = 0;
    DIR *dir = opendir("/proc");
    for (struct dirent *entry; dir && (entry = readdir(dir));) {
        if (entry->d_name[0] < '1' || entry->d_name[0] > '9')
            continue;
        snprintf(path, sizeof path, "/proc/%.20s/status", entry->d_name);
        FILE *f = fopen(path, "r");
        while (f && fgets(line, sizeof line, f))
            if (sscanf(line, "Uid: %u", &uid) == 1) {
                count += uid == NOBODY;
                break;
            }
        if (f)
            fclose(f);
    }
    if (dir)
        closedir(dir);
    return count;
}

/* What the calls started runs on as nobody; it must end too, and init reap it. Returns how many processes do not. */
__attribute__((unused)) static int end_what_is_left(void)
{
    int left = 0;
    for (int round = 0; round < 200; round++, usleep(50000)) {
        pid_t killer = fork();
        if (killer == 0) {
            become_nobody();
            kill(-1, SIGKILL);
            _exit(0);
        }
        waitpid(killer, NULL, 0);
        if ((left = processes_of_nobody()) == 0)
            break;
    }
    return left;
}

#endif
