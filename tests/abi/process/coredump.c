/* Core dumps: who gets one, what it is called, its limits, its notes, pipes, and that threads are all in it. */
#include "../check.h"
#include <elf.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/procfs.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define PATTERN "/proc/sys/kernel/core_pattern"

static char saved[256];

static int put(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY);
    if (fd < 0)
        return -1;
    int n = write(fd, text, strlen(text));
    int error = errno;
    close(fd);
    errno = error;
    return n == (int)strlen(text) ? 0 : -1;
}

static void limit(rlim_t to)
{
    struct rlimit l = { to, RLIM_INFINITY };
    setrlimit(RLIMIT_CORE, &l);
}

/* Runs `f` in a child; its wait status. */
static int in_child(void (*f)(void))
{
    int status = -1;
    pid_t pid = fork();
    if (pid == 0) {
        f();
        _exit(0);
    }
    waitpid(pid, &status, 0);
    return status;
}

static void dies(void) { abort(); }
static void dies_undumpable(void)
{
    prctl(PR_SET_DUMPABLE, 0);
    abort();
}
static void dies_of_a_plain_signal(void) { raise(SIGTERM); }
static void dies_with_little(void)
{
    limit(64 << 10);
    abort();
}
static void dies_without_limit(void)
{
    limit(0);
    abort();
}
static void dies_as_somebody_else(void)
{
    setuid(1000);
    abort();
}
static void faults(void) { *(volatile int *)16 = 1; }

static char *volatile mark;
static volatile int running;

static void *spins(void *arg)
{
    (void)arg;
    running++;
    for (;;)
        pause();
}

static void threads_die(void)
{
    mark = mmap(0, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    strcpy(mark, "found in the core");
    char *hidden = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    madvise(hidden, 4096, MADV_DONTDUMP);
    /* Not in the program's own data: put together here. */
    for (int i = 0; i < 18; i++)
        hidden[i] = "never in the core!"[i] ^ 0;
    mprotect(mark, 4096, PROT_NONE);
    for (int i = 0; i < 5; i++) {
        pthread_t t;
        pthread_create(&t, 0, spins, 0);
    }
    while (running < 5)
        usleep(1000);
    faults();
}

static long size_of(const char *path)
{
    struct stat st;
    return stat(path, &st) < 0 ? -1 : st.st_size;
}

static long blocks_of(const char *path)
{
    struct stat st;
    return stat(path, &st) < 0 ? -1 : st.st_blocks;
}

static void who_gets_one(void)
{
    put(PATTERN, "core");
    unlink("core");
    int s = in_child(dies);
    CHECK(WIFSIGNALED(s) && WTERMSIG(s) == SIGABRT && WCOREDUMP(s));
    struct stat st;
    CHECK(stat("core", &st) == 0 && (st.st_mode & 07777) == 0600);
    unlink("core");
    s = in_child(dies_undumpable);
    CHECK(WTERMSIG(s) == SIGABRT && !WCOREDUMP(s) && size_of("core") == -1);
    s = in_child(dies_of_a_plain_signal);
    CHECK(WTERMSIG(s) == SIGTERM && !WCOREDUMP(s) && size_of("core") == -1);
    s = in_child(dies_without_limit);
    CHECK(!WCOREDUMP(s) && size_of("core") == -1);
    s = in_child(dies_as_somebody_else);
    CHECK(WTERMSIG(s) == SIGABRT && !WCOREDUMP(s) && size_of("core") == -1);
    s = in_child(dies_with_little);
    CHECK(WCOREDUMP(s) && blocks_of("core") > 0 && blocks_of("core") <= 128);
    unlink("core");
    /* A link is not followed but taken away, a directory is not. */
    symlink("/tmp/elsewhere", "core");
    s = in_child(dies);
    CHECK(WCOREDUMP(s) && size_of("/tmp/elsewhere") == -1 && lstat("core", &st) == 0 && S_ISREG(st.st_mode));
    unlink("core");
    mkdir("core", 0755);
    s = in_child(dies);
    CHECK(!WCOREDUMP(s) && rmdir("core") == 0);
    unlink("core");
    siginfo_t si;
    pid_t pid = fork();
    if (pid == 0)
        faults();
    CHECK(waitid(P_PID, pid, &si, WEXITED) == 0 && si.si_code == CLD_DUMPED && si.si_status == SIGSEGV);
    unlink("core");
}

static void names(void)
{
    char name[256], pattern[] = "c.%e.%p.%s.%u.%g.%%.%i.%d.%z";
    put(PATTERN, pattern);
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_NAME, "a/b");
        abort();
    }
    int s;
    waitpid(pid, &s, 0);
    snprintf(name, sizeof name, "c.a!b.%d.6.0.0.%%.%d.1.", pid, pid);
    CHECK(WCOREDUMP(s) && size_of(name) > 0);
    unlink(name);
    put(PATTERN, "core");
    put("/proc/sys/kernel/core_uses_pid", "1");
    pid = fork();
    if (pid == 0)
        abort();
    waitpid(pid, &s, 0);
    snprintf(name, sizeof name, "core.%d", pid);
    CHECK(WCOREDUMP(s) && size_of(name) > 0);
    unlink(name);
    put("/proc/sys/kernel/core_uses_pid", "0");
}

static void notes(void)
{
    put(PATTERN, "core");
    int s = in_child(threads_die);
    CHECK(WTERMSIG(s) == SIGSEGV && WCOREDUMP(s));
    int fd = open("core", O_RDONLY);
    long len = size_of("core");
    /* Holes stay holes: 1 MiB was mapped, one page of it touched, thread stacks of 8 MiB. */
    CHECK(blocks_of("core") * 512 < len / 2);
    char *core = mmap(0, len, PROT_READ, MAP_PRIVATE, fd, 0);
    CHECK(core != MAP_FAILED);
    if (core == MAP_FAILED)
        return;
    Elf64_Ehdr *e = (Elf64_Ehdr *)core;
    CHECK(!memcmp(e->e_ident, ELFMAG, 4) && e->e_type == ET_CORE && e->e_machine == EM_X86_64);
    int seen[8] = { 0 }, loads = 0;
    for (int i = 0; i < e->e_phnum; i++) {
        Elf64_Phdr *p = (Elf64_Phdr *)(core + e->e_phoff) + i;
        if (p->p_type == PT_LOAD) {
            loads++;
            CHECK(p->p_offset + p->p_filesz <= (unsigned long)len && p->p_offset % 4096 == 0);
            continue;
        }
        for (char *n = core + p->p_offset, *end = n + p->p_filesz; n < end;) {
            Elf64_Nhdr *h = (Elf64_Nhdr *)n;
            char *data = n + sizeof *h + ((h->n_namesz + 3) & ~3);
            if (h->n_type == NT_PRSTATUS) {
                struct elf_prstatus *ps = (void *)data;
                if (!seen[0]++)
                    CHECK(ps->pr_cursig == SIGSEGV && h->n_descsz == sizeof *ps);
                CHECK(ps->pr_reg[16] != 0 && ps->pr_pid > 0);
            } else if (h->n_type == NT_PRPSINFO) {
                struct elf_prpsinfo *pi = (void *)data;
                seen[1]++;
                CHECK(pi->pr_pid > 0 && pi->pr_ppid == getpid() && h->n_descsz == sizeof *pi);
            } else if (h->n_type == NT_SIGINFO) {
                siginfo_t *si = (void *)data;
                seen[2]++;
                CHECK(si->si_signo == SIGSEGV && si->si_code == SEGV_MAPERR && si->si_addr == (void *)16);
            } else if (h->n_type == NT_AUXV)
                seen[3]++;
            else if (h->n_type == NT_FILE)
                seen[4]++;
            else if (h->n_type == NT_FPREGSET)
                seen[5]++;
            else if (h->n_type == NT_X86_XSTATE)
                seen[6]++;
            n = data + ((h->n_descsz + 3) & ~3);
        }
    }
    CHECK(seen[0] == 6 && seen[5] == 6 && (seen[6] == 6 || seen[6] == 0));
    CHECK(seen[1] == 1 && seen[2] == 1 && seen[3] == 1 && seen[4] == 1 && loads > 5);
    CHECK(memmem(core, len, "found in the core\0", 18) != 0);
    char secret[19];
    for (int i = 0; i < 18; i++)
        secret[i] = "NEVER IN THE CORE!"[i] ^ ((i == 17 || i == 5 || i == 8 || i == 12) ? 0 : 32);
    char *at = core;
    int found = 0;
    while ((at = memmem(at, core + len - at, secret, 18))) {
        found += ((at - core) % 4096) == 0;
        at++;
    }
    CHECK(found == 0);
    munmap(core, len);
    close(fd);
    unlink("core");
}

static int in_dump(const char *text)
{
    int fd = open("core", O_RDONLY);
    long len = size_of("core");
    char *core = mmap(0, len, PROT_READ, MAP_PRIVATE, fd, 0);
    int found = core != MAP_FAILED && memmem(core, len, text, strlen(text) + 1);
    munmap(core, len);
    close(fd);
    return found;
}

static void shares_memory_and_dies(void)
{
    char *m = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    snprintf(m, 64, "shared %s memory", "and anonymous");
    abort();
}

static void filters_it(void)
{
    put("/proc/self/coredump_filter", "0x31");
    shares_memory_and_dies();
}

static void filter(void)
{
    in_child(shares_memory_and_dies);
    CHECK(in_dump("shared and anonymous memory"));
    unlink("core");
    in_child(filters_it);
    CHECK(!in_dump("shared and anonymous memory"));
    unlink("core");
}

static void pipes(void)
{
    char line[256] = "";
    unlink("/tmp/taken");
    FILE *f = fopen("/tmp/taker", "w");
    fprintf(f, "#!/bin/bash\n/usr/bin/head -c 4 >/tmp/taken; /usr/bin/wc -c >>/tmp/taken; "
               "echo \"$1|$2|$(/usr/bin/cat /proc/$2/comm)|$(ulimit -c)\" >> /tmp/taken\n");
    fclose(f);
    chmod("/tmp/taker", 0755);
    /* A pattern is cut to 127 bytes. */
    char long_pattern[201], shown[256] = "";
    memset(long_pattern, 'x', 200);
    long_pattern[200] = 0;
    CHECK(put(PATTERN, long_pattern) == 0);
    int fd = open(PATTERN, O_RDONLY);
    CHECK(read(fd, shown, sizeof shown) == 128 && shown[126] == 'x' && shown[127] == '\n');
    close(fd);
    put("/proc/sys/kernel/core_pipe_limit", "4");
    put(PATTERN, "|/tmp/taker %s %p");
    pid_t pid = fork();
    if (pid == 0) {
        limit(0); /* A pipe has no limit. */
        prctl(PR_SET_NAME, "one two");
        abort();
    }
    int s;
    waitpid(pid, &s, 0);
    CHECK(WTERMSIG(s) == SIGABRT && WCOREDUMP(s));
    for (int i = 0; i < 100 && size_of("/tmp/taken") < 20; i++)
        usleep(100000);
    f = fopen("/tmp/taken", "r");
    if (f) {
        fread(line, 1, sizeof line - 1, f);
        fclose(f);
    }
    CHECK(!memcmp(line, "\177ELF", 4) && atol(line + 4) > 100000);
    char want[64];
    snprintf(want, sizeof want, "6|%d|one two|", pid);
    CHECK(strstr(line, want) != 0);
    put("/proc/sys/kernel/core_pipe_limit", "0");
    put(PATTERN, "|/no/such/program");
    s = in_child(dies);
    CHECK(WTERMSIG(s) == SIGABRT && !WCOREDUMP(s));
    unlink("/tmp/taken");
    unlink("/tmp/taker");
}

/* Many threads of several processes die at once, some killed while they dump. */
static void storm(void)
{
    put(PATTERN, "core.%p");
    pid_t pids[8];
    for (int i = 0; i < 8; i++) {
        pids[i] = fork();
        if (pids[i] == 0) {
            for (int t = 0; t < 4; t++) {
                pthread_t thread;
                pthread_create(&thread, 0, spins, 0);
            }
            abort();
        }
    }
    for (int i = 0; i < 8; i += 2)
        kill(pids[i], SIGKILL);
    for (int i = 0; i < 8; i++) {
        int s;
        char name[32];
        CHECK(waitpid(pids[i], &s, 0) == pids[i]);
        CHECK(WIFSIGNALED(s) && (WTERMSIG(s) == SIGABRT || WTERMSIG(s) == SIGKILL));
        CHECK(WTERMSIG(s) != SIGABRT || i % 2 == 0 || WCOREDUMP(s));
        snprintf(name, sizeof name, "core.%d", pids[i]);
        unlink(name);
    }
}

int main(void)
{
    char dir[] = "/tmp/cores.XXXXXX";
    CHECK(mkdtemp(dir) && chdir(dir) == 0);
    int fd = open(PATTERN, O_RDONLY);
    read(fd, saved, sizeof saved - 1);
    close(fd);
    signal(SIGCHLD, SIG_DFL);
    limit(RLIM_INFINITY);
    who_gets_one();
    names();
    notes();
    filter();
    pipes();
    storm();
    put(PATTERN, saved);
    chdir("/");
    CHECK(rmdir(dir) == 0);
    return check_done();
}
