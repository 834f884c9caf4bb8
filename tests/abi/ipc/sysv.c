/* System V shared memory and semaphores. */
#include "../check.h"
#include <fcntl.h>
#include <signal.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

union semun {
    int val;
    struct semid_ds *buf;
    unsigned short *array;
};

static int nattch(int id)
{
    struct shmid_ds ds;
    return shmctl(id, IPC_STAT, &ds) ? -1 : (int)ds.shm_nattch;
}

static void segments(void)
{
    key_t key = 0x55525341 ^ getpid();
    FAILS(ENOENT, shmget(key, 4096, 0));
    FAILS(EINVAL, shmget(IPC_PRIVATE, 0, 0600));
    int id = shmget(key, 5000, IPC_CREAT | IPC_EXCL | 0600);
    CHECK(id >= 0 && shmget(key, 5000, 0) == id && shmget(key, 0, IPC_CREAT) == id);
    FAILS(EEXIST, shmget(key, 1, IPC_CREAT | IPC_EXCL));
    FAILS(EINVAL, shmget(key, 5001, 0));

    struct shmid_ds ds;
    CHECK(shmctl(id, IPC_STAT, &ds) == 0 && ds.shm_segsz == 5000 && ds.shm_nattch == 0 && ds.shm_cpid == getpid());
    CHECK(ds.shm_perm.__key == key && ds.shm_perm.mode == 0600 && ds.shm_atime == 0 && ds.shm_ctime >= time(0) - 5);

    char *a = shmat(id, 0, 0), *b = shmat(id, 0, SHM_RDONLY);
    CHECK(a != (char *)-1 && b != (char *)-1 && a != b && nattch(id) == 2);
    a[0] = 'x';
    a[8191] = 'y';
    CHECK(b[0] == 'x' && b[8191] == 'y' && b[1] == 0);
    CHECK(mprotect(b, 4096, PROT_READ | PROT_WRITE) == -1 && errno == EACCES);
    CHECK(shmctl(id, IPC_STAT, &ds) == 0 && ds.shm_lpid == getpid() && ds.shm_atime >= time(0) - 5);

    /* addresses */
    FAILS(EINVAL, (long)shmat(id, a + 1, 0));
    FAILS(EINVAL, (long)shmat(id, a, 0)); /* something is there */
    FAILS(EINVAL, (long)shmat(id, 0, SHM_REMAP));
    FAILS(EINVAL, (long)shmat(id + 1000, 0, 0));
    char *hole = mmap(0, 16384, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(shmat(id, hole + 100, SHM_RND | SHM_REMAP) == hole && hole[0] == 'x');
    CHECK(shmdt(hole) == 0 && munmap(hole, 16384) == 0);
    FAILS(EINVAL, shmdt(hole));
    FAILS(EINVAL, shmdt(a + 4096 * 1));

    /* a fork attaches once more; exec and exit detach */
    int go[2], status;
    CHECK(pipe(go) == 0);
    pid_t child = fork();
    if (!child) {
        char c;
        a[1] = 'c';
        read(go[0], &c, 1);
        _exit(0);
    }
    while (b[1] != 'c')
        usleep(1000);
    CHECK(nattch(id) == 4);
    /* cutting an attachment in two counts twice, and shmdt takes both halves */
    CHECK(mprotect(a, 4096, PROT_READ) == 0 && nattch(id) == 5);
    CHECK(shmdt(a) == 0 && nattch(id) == 3);

    /* removed: the key is free, the memory stays until the last detach */
    CHECK(shmctl(id, IPC_RMID, 0) == 0 && shmctl(id, IPC_STAT, &ds) == 0 && (ds.shm_perm.mode & 01000));
    CHECK(ds.shm_perm.__key == IPC_PRIVATE);
    FAILS(ENOENT, shmget(key, 0, 0));
    CHECK(shmdt(b) == 0 && nattch(id) == 2);
    write(go[1], "g", 1);
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    FAILS(EINVAL, shmctl(id, IPC_STAT, &ds));

    /* as X and Qt use it: removed at once, used by both */
    id = shmget(IPC_PRIVATE, 1 << 20, IPC_CREAT | 0777);
    a = shmat(id, 0, 0);
    b = shmat(id, 0, 0);
    CHECK(shmctl(id, IPC_RMID, 0) == 0);
    a[12345] = 7;
    CHECK(b[12345] == 7 && shmdt(a) == 0 && b[12345] == 7 && shmdt(b) == 0);
    FAILS(EINVAL, shmctl(id, IPC_RMID, 0));
    FAILS(EINVAL, shmctl(-1, IPC_STAT, &ds));
    FAILS(EINVAL, shmctl(0x7fff, 99, &ds));
}

static void rights(void)
{
    int id = shmget(IPC_PRIVATE, 4096, 0640), status;
    pid_t child = fork();
    if (!child) {
        struct shmid_ds ds;
        if (setgid(1000) || setuid(1000))
            _exit(100);
        FAILS(EACCES, (long)shmat(id, 0, 0));
        FAILS(EACCES, (long)shmat(id, 0, SHM_RDONLY));
        FAILS(EACCES, shmctl(id, IPC_STAT, &ds));
        FAILS(EPERM, shmctl(id, IPC_RMID, 0));
        _exit(check_failures);
    }
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    struct shmid_ds ds;
    CHECK(shmctl(id, IPC_STAT, &ds) == 0);
    ds.shm_perm.uid = 1000;
    ds.shm_perm.mode = 0600;
    CHECK(shmctl(id, IPC_SET, &ds) == 0);
    child = fork();
    if (!child) {
        if (setgid(1000) || setuid(1000))
            _exit(100);
        CHECK(shmat(id, 0, 0) != (void *)-1 && shmctl(id, IPC_RMID, 0) == 0);
        _exit(check_failures);
    }
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    FAILS(EINVAL, shmctl(id, IPC_STAT, &ds));
}

static int op(int id, int num, int value, int flags)
{
    struct sembuf b = {num, value, flags};
    return semop(id, &b, 1);
}

static void nothing(int signo) { (void)signo; }

static void semaphores(void)
{
    FAILS(EINVAL, semget(IPC_PRIVATE, 0, 0600));
    FAILS(EINVAL, semget(IPC_PRIVATE, -1, 0600));
    int id = semget(IPC_PRIVATE, 3, IPC_CREAT | 0600), status;
    unsigned short all[3] = {1, 0, 5}, got[3];
    CHECK(semctl(id, 0, SETALL, (union semun){.array = all}) == 0);
    CHECK(semctl(id, 0, GETALL, (union semun){.array = got}) == 0 && !memcmp(all, got, sizeof all));
    CHECK(semctl(id, 1, SETVAL, (union semun){.val = 2}) == 0 && semctl(id, 1, GETVAL) == 2);
    CHECK(semctl(id, 1, GETPID) == getpid());
    FAILS(ERANGE, semctl(id, 1, SETVAL, (union semun){.val = 32768}));
    FAILS(EINVAL, semctl(id, 3, GETVAL));
    struct semid_ds ds;
    CHECK(semctl(id, 0, IPC_STAT, (union semun){.buf = &ds}) == 0 && ds.sem_nsems == 3 && ds.sem_otime == 0);

    FAILS(EFBIG, op(id, 3, 1, 0));
    FAILS(EAGAIN, op(id, 0, -2, IPC_NOWAIT));
    FAILS(EAGAIN, op(id, 2, 0, IPC_NOWAIT));
    FAILS(ERANGE, op(id, 0, 32767, 0));
    struct sembuf both[2] = {{0, -1, 0}, {1, -3, IPC_NOWAIT}};
    FAILS(EAGAIN, semop(id, both, 2)); /* all or nothing */
    CHECK(semctl(id, 0, GETVAL) == 1 && semctl(id, 1, GETVAL) == 2);
    both[1].sem_op = -2;
    CHECK(semop(id, both, 2) == 0 && semctl(id, 0, GETVAL) == 0 && semctl(id, 1, GETVAL) == 0);
    struct sembuf many[501] = {{0}};
    FAILS(E2BIG, semop(id, many, 501));
    FAILS(EINVAL, semop(id, many, 0));
    FAILS(EFAULT, semop(id, (void *)8, 1));
    CHECK(semctl(id, 0, IPC_STAT, (union semun){.buf = &ds}) == 0 && ds.sem_otime >= time(0) - 5);

    struct timespec soon = {0, 20000000};
    struct sembuf wait = {0, -1, 0};
    FAILS(EAGAIN, semtimedop(id, &wait, 1, &soon));

    /* waiting, waking, counting the waiters */
    pid_t child = fork();
    if (!child)
        _exit(op(id, 0, -2, 0) != 0);
    while (semctl(id, 0, GETNCNT) != 1)
        usleep(1000);
    CHECK(op(id, 0, 1, 0) == 0);
    usleep(20000);
    CHECK(semctl(id, 0, GETNCNT) == 1 && op(id, 0, 1, 0) == 0);
    CHECK(waitpid(child, &status, 0) == child && status == 0 && semctl(id, 0, GETNCNT) == 0);
    child = fork();
    if (!child)
        _exit(op(id, 2, 0, 0) != 0);
    while (semctl(id, 2, GETZCNT) != 1)
        usleep(1000);
    CHECK(op(id, 2, -5, 0) == 0 && waitpid(child, &status, 0) == child && status == 0);

    /* a signal ends the wait, and is not restarted */
    struct sigaction sa = {.sa_handler = nothing, .sa_flags = SA_RESTART};
    sigaction(SIGALRM, &sa, 0);
    ualarm(20000, 0);
    FAILS(EINTR, op(id, 0, -1, 0));
    CHECK(semctl(id, 0, GETNCNT) == 0);

    /* what a process leaves undone */
    child = fork();
    if (!child)
        _exit(op(id, 0, 3, SEM_UNDO) || op(id, 1, 1, 0) || op(id, 1, -1, SEM_UNDO) || op(id, 0, -1, SEM_UNDO));
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    CHECK(semctl(id, 0, GETVAL) == 0 && semctl(id, 1, GETVAL) == 1);

    /* removal wakes with EIDRM */
    child = fork();
    if (!child)
        _exit(!(op(id, 0, -1, 0) == -1 && errno == EIDRM));
    while (semctl(id, 0, GETNCNT) != 1)
        usleep(1000);
    CHECK(semctl(id, 0, IPC_RMID) == 0);
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    FAILS(EINVAL, op(id, 0, 1, 0));
    FAILS(EINVAL, semctl(id, 0, IPC_RMID));
}

static int lists(const char *path, int id)
{
    char line[512];
    int found = 0, got;
    FILE *f = fopen(path, "r");
    CHECK(f && fgets(line, sizeof line, f) && strstr(line, "key"));
    while (f && fgets(line, sizeof line, f))
        found |= sscanf(line, "%*d %d", &got) == 1 && got == id;
    if (f)
        fclose(f);
    return found;
}

static void listings(void)
{
    int shm = shmget(IPC_PRIVATE, 4096, 0600), sem = semget(IPC_PRIVATE, 1, 0600);
    CHECK(lists("/proc/sysvipc/shm", shm) && lists("/proc/sysvipc/sem", sem));
    char *mem = shmat(shm, 0, 0), line[512];
    int found = 0;
    FILE *maps = fopen("/proc/self/maps", "r");
    while (fgets(line, sizeof line, maps))
        found |= strstr(line, "/SYSV00000000 (deleted)") && strtoul(line, 0, 16) == (unsigned long)mem;
    CHECK(found);
    fclose(maps);
    struct shm_info info;
    CHECK(shmctl(0, SHM_INFO, (void *)&info) >= 0 && info.used_ids >= 1 && info.shm_tot >= 1);
    CHECK(shmdt(mem) == 0 && shmctl(shm, IPC_RMID, 0) == 0 && semctl(sem, 0, IPC_RMID) == 0);
    CHECK(!lists("/proc/sysvipc/shm", shm));
}

int main(void)
{
    setvbuf(stdout, 0, _IONBF, 0);
    segments();
    rights();
    semaphores();
    listings();
    return check_done();
}
