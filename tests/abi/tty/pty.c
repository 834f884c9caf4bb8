/* Pseudo-terminals: names, locks, modes, line editing, job control, hang-up, packet mode. */
#include "../check.h"
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

static int master, slave;

static void fresh(void)
{
    char name[64];
    int zero = 0;
    unsigned n;
    master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK);
    CHECK(master >= 0);
    CHECK(ioctl(master, TIOCGPTN, &n) == 0);
    snprintf(name, sizeof name, "/dev/pts/%u", n);
    FAILS(EIO, open(name, O_RDWR | O_NOCTTY)); /* locked */
    CHECK(ioctl(master, TIOCSPTLCK, &zero) == 0);
    slave = open(name, O_RDWR | O_NOCTTY | O_NONBLOCK);
    CHECK(slave >= 0);
    char got[64] = "";
    CHECK(ttyname_r(slave, got, sizeof got) == 0 && !strcmp(got, name));
}

static void settle(void) { usleep(20000); }

static int says(int fd, const char *want)
{
    char buf[512];
    settle();
    ssize_t n = read(fd, buf, sizeof buf);
    int same = n == (ssize_t)strlen(want) && !memcmp(buf, want, n);
    if (!same)
        printf("got %zd: %.*s\n", n, n > 0 ? (int)n : 0, buf);
    return same;
}

static void type(const char *text)
{
    CHECK(write(master, text, strlen(text)) == (ssize_t)strlen(text));
    settle();
}

static void lines(void)
{
    char buf[16];
    int n;
    fresh();
    CHECK(write(slave, "hi\n", 3) == 3 && says(master, "hi\r\n"));
    type("abc");
    CHECK(says(master, "abc"));
    FAILS(EAGAIN, read(slave, buf, 1));
    type("\177d\n");
    CHECK(says(master, "\b \bd\r\n"));
    CHECK(ioctl(slave, FIONREAD, &n) == 0 && n == 4);
    CHECK(read(slave, buf, 2) == 2 && says(slave, "d\n"));
    type("one\ntwo\n");
    CHECK(says(slave, "one\n") && says(slave, "two\n")); /* a line a read */
    type("part\004");
    CHECK(says(slave, "part"));
    type("\004");
    CHECK(read(slave, buf, 9) == 0); /* end of file */
    type("x\026\003y\n");
    CHECK(says(slave, "x\003y\n"));
    type("word another\027\n");
    CHECK(says(slave, "word \n"));
    type("gone\025kept\n");
    CHECK(says(slave, "kept\n"));
    tcflush(slave, TCIOFLUSH);
    close(slave), close(master);
}

static void raw(void)
{
    struct termios t;
    char buf[16];
    fresh();
    CHECK(tcgetattr(slave, &t) == 0 && cfgetospeed(&t) == B38400);
    CHECK(t.c_lflag & ICANON && t.c_lflag & ECHO && t.c_oflag & OPOST);
    cfmakeraw(&t);
    t.c_cc[VMIN] = 0, t.c_cc[VTIME] = 0;
    CHECK(tcsetattr(slave, TCSANOW, &t) == 0);
    CHECK(read(slave, buf, 9) == 0); /* VMIN 0: nothing is no error */
    t.c_cc[VMIN] = 1;
    CHECK(tcsetattr(slave, TCSANOW, &t) == 0);
    FAILS(EAGAIN, read(slave, buf, 9));
    type("\003\r");
    CHECK(says(slave, "\003\r"));
    CHECK(write(slave, "a\n", 2) == 2 && says(master, "a\n"));
    /* VTIME: a read gives up after a tenth of a second. */
    t.c_cc[VMIN] = 0, t.c_cc[VTIME] = 1;
    CHECK(tcsetattr(slave, TCSANOW, &t) == 0);
    fcntl(slave, F_SETFL, O_RDWR);
    CHECK(read(slave, buf, 9) == 0);
    struct winsize w = {24, 80, 1, 2}, v = {0};
    CHECK(ioctl(master, TIOCSWINSZ, &w) == 0 && ioctl(slave, TIOCGWINSZ, &v) == 0);
    CHECK(v.ws_row == 24 && v.ws_col == 80 && v.ws_ypixel == 2);
    int sid;
    FAILS(ENOTTY, ioctl(slave, TIOCGPGRP, &sid));
    FAILS(ENOTTY, ioctl(slave, TIOCGSID, &sid));
    FAILS(ENOTTY, ioctl(slave, 0x12345678, &sid));
    FAILS(EFAULT, ioctl(slave, TIOCSWINSZ, 8));
    FAILS(ESPIPE, lseek(slave, 0, SEEK_CUR));
    close(slave), close(master);
}

static void packets(void)
{
    int on = 1;
    fresh();
    CHECK(ioctl(master, TIOCPKT, &on) == 0);
    CHECK(write(slave, "x", 1) == 1);
    char buf[8];
    settle();
    CHECK(read(master, buf, 8) == 2 && buf[0] == TIOCPKT_DATA && buf[1] == 'x');
    CHECK(ioctl(slave, TCXONC, TCOOFF) == 0);
    struct pollfd p = {.fd = master, .events = POLLIN | POLLPRI};
    CHECK(poll(&p, 1, 100) == 1 && p.revents == (POLLIN | POLLPRI));
    CHECK(read(master, buf, 8) == 1 && buf[0] == TIOCPKT_STOP);
    FAILS(EAGAIN, write(slave, "y", 1));
    CHECK(ioctl(slave, TCXONC, TCOON) == 0);
    CHECK(read(master, buf, 8) == 1 && buf[0] == TIOCPKT_START);
    close(slave), close(master);
}

static void ends(void)
{
    char buf[8];
    fresh();
    CHECK(write(slave, "bye", 3) == 3);
    close(slave);
    settle();
    struct pollfd p = {.fd = master, .events = POLLIN};
    CHECK(poll(&p, 1, 0) == 1 && p.revents == (POLLIN | POLLHUP));
    CHECK(says(master, "bye"));
    FAILS(EIO, read(master, buf, 8));
    CHECK(write(master, "q", 1) == 1); /* waits for a next opener */
    close(master);
    fresh();
    close(master);
    settle();
    CHECK(read(slave, buf, 8) == 0);
    FAILS(EIO, write(slave, "x", 1));
    p.fd = slave;
    CHECK(poll(&p, 1, 0) == 1 && p.revents & POLLHUP);
    close(slave);
}

static volatile int winch;
static void note(int s) { winch = s; }

static void job_control(void)
{
    int status, peer;
    fresh();
    CHECK((peer = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY)) >= 0);
    close(peer);
    fcntl(slave, F_SETFL, O_RDWR);
    pid_t leader = fork();
    if (leader == 0) {
        int g;
        check_failures = 0;
        CHECK(setsid() == getpid());
        CHECK(open("/dev/tty", O_RDWR) == -1 && errno == ENXIO);
        CHECK(ioctl(slave, TIOCSCTTY, 0) == 0);
        CHECK(tcgetsid(slave) == getpid() && tcgetpgrp(slave) == getpid());
        int tty = open("/dev/tty", O_RDWR);
        CHECK(tty >= 0);
        /* A background child that reads is stopped, goes on in the foreground, and ^C ends it. */
        pid_t child = fork();
        if (child == 0) {
            char c;
            setpgid(0, 0);
            _exit(read(tty, &c, 1) == 1 ? c : 99);
        }
        setpgid(child, child);
        CHECK(waitpid(child, &status, WUNTRACED) == child && WIFSTOPPED(status) && WSTOPSIG(status) == SIGTTIN);
        CHECK(tcsetpgrp(tty, child) == 0 && tcgetpgrp(tty) == child);
        kill(child, SIGCONT);
        CHECK(write(master, "A\n", 2) == 2);
        CHECK(waitpid(child, &status, WUNTRACED) == child && WIFEXITED(status) && WEXITSTATUS(status) == 'A');
        signal(SIGTTOU, SIG_IGN);
        CHECK(tcsetpgrp(tty, getpid()) == 0);
        child = fork();
        if (child == 0) {
            setpgid(0, 0);
            tcsetpgrp(tty, getpid());
            pause();
        }
        setpgid(child, child);
        CHECK(tcsetpgrp(tty, child) == 0);
        CHECK(write(master, "\003", 1) == 1);
        CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGINT);
        CHECK(tcsetpgrp(tty, getpid()) == 0);
        CHECK(ioctl(tty, TIOCGPGRP, &g) == 0 && g == getpid());
        FAILS(ESRCH, tcsetpgrp(tty, 999999));
        signal(SIGWINCH, note);
        struct winsize w = {33, 44, 0, 0};
        CHECK(ioctl(master, TIOCSWINSZ, &w) == 0);
        CHECK(winch == SIGWINCH);
        /* TOSTOP: background output stops too. */
        struct termios t;
        tcgetattr(tty, &t);
        t.c_lflag |= TOSTOP;
        tcsetattr(tty, TCSANOW, &t);
        signal(SIGTTOU, SIG_DFL);
        child = fork();
        if (child == 0) {
            setpgid(0, 0);
            write(tty, "x", 1);
            _exit(0);
        }
        setpgid(child, child);
        CHECK(waitpid(child, &status, WUNTRACED) == child && WIFSTOPPED(status) && WSTOPSIG(status) == SIGTTOU);
        kill(child, SIGKILL);
        waitpid(child, &status, 0);
        /* Hang-up. */
        fflush(stdout);
        if (check_failures)
            _exit(1);
        close(master);
        signal(SIGHUP, SIG_DFL);
        kill(getppid(), SIGUSR1);
        pause();
        _exit(2);
    }
    sigset_t set;
    sigemptyset(&set), sigaddset(&set, SIGUSR1), sigaddset(&set, SIGCHLD);
    int sig;
    sigwait(&set, &sig);
    close(slave);
    usleep(50000);
    close(master); /* the last master: the session leader gets SIGHUP */
    CHECK(waitpid(leader, &status, 0) == leader);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGHUP);
}

int main(void)
{
    sigset_t set;
    sigemptyset(&set), sigaddset(&set, SIGUSR1), sigaddset(&set, SIGCHLD);
    sigprocmask(SIG_BLOCK, &set, 0);
    alarm(50);
    lines();
    raw();
    packets();
    ends();
    job_control();
    return check_done();
}
