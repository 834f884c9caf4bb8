/* Programs that take all they can get. `exhaust forks SECONDS`: user nobody forks without end under RLIMIT_NPROC. `exhaust files
 * SECONDS`: threads that share a descriptor table open, duplicate, pass, map and close the same few descriptors at once. The system
 * stays usable, the limits hold, and afterwards the memory is back. */
#include "hostile.h"
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <sys/uio.h>

enum { PROCESSES = 150 };

static int *refused; /* forks that the limit refused; shared by all */

/* Every process forks for as long as it may, and some end so that others can. */
static void bomb(unsigned seed)
{
    for (;;) {
        pid_t pid = fork();
        if (pid == 0)
            seed = getpid();
        else if (pid < 0)
            __atomic_fetch_add(refused, errno == EAGAIN, __ATOMIC_RELAXED);
        if (pid < 0 && rand_r(&seed) % 8 == 0)
            _exit(0);
        else if (pid < 0)
            usleep(20000); /* root is to get its turn even on a slow machine */
        while (waitpid(-1, NULL, WNOHANG) > 0)
            ;
    }
}

static void forks(double duration)
{
    refused = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(refused != MAP_FAILED);
    pid_t first = fork();
    if (first == 0) {
        become_nobody();
        /* The descendants of dead parents live till they are killed: they are not to end with their parent. */
        prctl(PR_SET_PDEATHSIG, 0);
        setrlimit(RLIMIT_NPROC, &(struct rlimit){PROCESSES, PROCESSES});
        bomb(1);
    }
    /* Others go on meanwhile: root starts and ends programs. */
    for (double end = seconds() + duration; seconds() < end; usleep(500000))
        CHECK(system("true") == 0);
    printf("%d forks refused\n", *refused);
    CHECK(*refused > 0);
    kill(first, SIGKILL);
    CHECK(waitpid(first, NULL, 0) == first || errno == ECHILD);
    CHECK(end_what_is_left() == 0);
}

enum { LOW = 3, HIGH = 19 };

static int some_file(unsigned *seed)
{
    int pair[2];
    switch (rand_r(seed) % 9) {
    case 0: return open("/dev/zero", O_RDWR);
    case 1: return open("file", O_RDWR | O_CREAT, 0600);
    case 2: return eventfd(0, EFD_NONBLOCK);
    case 3: return epoll_create1(0);
    case 4: return timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    case 5: return pipe2(pair, O_NONBLOCK) ? -1 : (close(pair[rand_r(seed) % 2 ? 1 : 0]), pair[0]);
    case 6: return memfd_create("m", 0);
    case 7: return open("/dev/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK);
    default: return socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair) ? -1 : pair[0];
    }
}

/* Sends one descriptor over another, which may be the same. */
static void pass(int over, int fd)
{
    char byte = 0;
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control = {0};
    struct iovec data = {&byte, 1};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET, header->cmsg_type = SCM_RIGHTS, header->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(header), &fd, sizeof fd);
    sendmsg(over, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static void receive(int from)
{
    char byte;
    union {
        char bytes[CMSG_SPACE(16 * sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec data = {&byte, 1};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    recvmsg(from, &message, MSG_DONTWAIT);
}

static void *recycle(void *arg)
{
    unsigned seed = (uintptr_t)arg;
    char bytes[4096] = {0};
    struct stat st;
    for (;;) {
        int fd = LOW + rand_r(&seed) % (HIGH - LOW), other = LOW + rand_r(&seed) % (HIGH - LOW), made;
        switch (rand_r(&seed) % 14) {
        case 0: close(fd); break;
        case 1: dup2(fd, other); break;
        case 2:
            if ((made = some_file(&seed)) >= 0) {
                dup2(made, fd);
                close(made);
            }
            break;
        case 3: (void)!pread(fd, bytes, sizeof bytes, 0); break;
        case 4: (void)!write(fd, bytes, rand_r(&seed) % sizeof bytes); break;
        case 5: {
            struct epoll_event event = {.events = EPOLLIN | (rand_r(&seed) % 2 ? EPOLLET : 0)};
            epoll_ctl(fd, EPOLL_CTL_ADD, other, &event);
            break;
        }
        case 6: {
            struct epoll_event events[8];
            epoll_wait(fd, events, 8, 1);
            break;
        }
        case 7: {
            struct pollfd polled[2] = {{fd, POLLIN, 0}, {other, POLLOUT, 0}};
            poll(polled, 2, 1);
            break;
        }
        case 8: pass(fd, other); break;
        case 9: receive(fd); break;
        case 10: {
            void *at = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
            if (at != MAP_FAILED)
                munmap(at, 8192);
            break;
        }
        case 11: fstat(fd, &st); break;
        case 12: splice(fd, NULL, other, NULL, sizeof bytes, SPLICE_F_NONBLOCK); break;
        default: fcntl(fd, F_SETFL, O_NONBLOCK | (rand_r(&seed) % 2 ? O_ASYNC : 0)); break;
        }
        /* Whatever escaped from the few. */
        if (rand_r(&seed) % 64 == 0)
            close_range(HIGH, ~0u, 0);
    }
    return NULL;
}

static void files(double duration)
{
    unsigned seed = 1;
    for (double end = seconds() + duration; seconds() < end;) {
        pid_t pid = fork();
        if (pid == 0) {
            become_nobody();
            signal(SIGBUS, SIG_IGN);
            signal(SIGIO, SIG_IGN);
            pthread_t threads[6];
            for (uintptr_t at = 0; at < 6; at++)
                pthread_create(&threads[at], NULL, recycle, (void *)(seed * 8 + at));
            pause();
        }
        seed++;
        int status = end_of(pid, 2);
        CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    }
    CHECK(end_what_is_left() == 0);
}

int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc < 3 || getuid() != 0)
        return 2;
    char folder[] = "/tmp/hostileXXXXXX";
    CHECK(mkdtemp(folder) && chown(folder, NOBODY, NOBODY) == 0 && chdir(folder) == 0);
    struct memory before = memory_now();
    if (strcmp(argv[1], "forks") == 0)
        forks(atof(argv[2]));
    else
        files(atof(argv[2]));
    CHECK(chdir("/") == 0 && system("rm -rf /tmp/hostile*") == 0);
    CHECK(memory_is_back(&before));
    return check_done();
}
