/* A terminal's interrupt reaches each process of the foreground group, also those that are being born. */
#include "../check.h"
#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

/* A chain of processes, each of which forks the next and ends. The bare call: the C library's blocks signals some time before. */
static void chain(void)
{
    for (;;) {
        pid_t pid = syscall(SYS_fork);
        if (pid > 0)
            _exit(0);
    }
}

int main(void)
{
    int missed = 0;
    for (int round = 0; round < 60 && !missed; round++) {
        int master, slave, alive[2];
        CHECK(openpty(&master, &slave, 0, 0, 0) == 0 && pipe(alive) == 0);
        pid_t leader = fork();
        if (leader == 0) {
            /* Its member of the group waits for them with the signal ignored; they do not ignore it. */
            setsid();
            ioctl(slave, TIOCSCTTY, 0);
            signal(SIGINT, SIG_IGN);
            signal(SIGHUP, SIG_IGN);
            close(alive[0]);
            for (int i = 0; i < 3; i++)
                if (fork() == 0) {
                    signal(SIGINT, SIG_DFL);
                    write(alive[1], "r", 1);
                    chain();
                }
            close(alive[1]);
            pause();
            _exit(0);
        }
        close(alive[1]);
        char c;
        for (int i = 0; i < 3; i++)
            CHECK(read(alive[0], &c, 1) == 1);
        usleep(1000 + round * 137 % 3000);
        CHECK(write(master, "\003", 1) == 1);
        /* The pipe ends when the last of them has died. */
        struct pollfd p = { alive[0], POLLIN, 0 };
        missed = poll(&p, 1, 20000) != 1 || read(alive[0], &c, 1) != 0;
        CHECK(!missed);
        write(master, "\003", 1);
        kill(leader, SIGKILL);
        waitpid(leader, 0, 0);
        close(master);
        close(slave);
        close(alive[0]);
    }
    return check_done();
}
