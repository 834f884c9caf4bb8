/* statmount(2), listmount(2), STATX_MNT_ID_UNIQUE, name by name as mountinfo has it. Run by root. */
#include "../check.h"
#include <fcntl.h>
#include <sched.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

struct req { uint32_t size, fd; uint64_t mnt_id, param, ns; };
struct sm {
    uint32_t size, mnt_opts;
    uint64_t mask;
    uint32_t sb_dev_major, sb_dev_minor;
    uint64_t sb_magic;
    uint32_t sb_flags, fs_type;
    uint64_t mnt_id, mnt_parent_id;
    uint32_t mnt_id_old, mnt_parent_id_old;
    uint64_t mnt_attr, mnt_propagation, mnt_peer_group, mnt_master, propagate_from;
    uint32_t mnt_root, mnt_point;
    uint64_t mnt_ns_id, spare[49];
    char str[];
};
enum { SB_BASIC_ = 1, MNT_BASIC_ = 2, PROPAGATE_ = 4, ROOT_ = 8, POINT_ = 16, TYPE_ = 32, OPTS_ = 128 };
#define UNIQUE 0x4000
#define ROOT_ID (~0ULL)

static union { struct sm sm; char bytes[8192]; } u;

static int statmount_(uint64_t id, uint64_t mask, void *buf, size_t size, unsigned flags)
{
    struct req req = { 24, 0, id, mask };
    return syscall(457, &req, buf, size, flags);
}

static long listmount_(uint64_t id, uint64_t after, uint64_t *list, size_t n, unsigned flags)
{
    struct req req = { 24, 0, id, after };
    return syscall(458, &req, list, n, flags);
}

static uint64_t id_of(const char *path, unsigned mask)
{
    struct { uint32_t mask; char before[140]; uint64_t mnt_id; char after[104]; } sx;
    memset(&sx, 0, sizeof sx);
    CHECK(syscall(SYS_statx, AT_FDCWD, path, 0, mask, &sx) == 0);
    CHECK(sx.mask & mask);
    CHECK((sx.mask & (0x1000 | UNIQUE)) == mask);
    return sx.mnt_id;
}

static void one(void)
{
    CHECK(mount("none", "m", "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=700") == 0);
    mkdir("m/sub dir", 0755);
    mkdir("b", 0755);
    CHECK(mount("m/sub dir", "b", NULL, MS_BIND, NULL) == 0);
    uint64_t id = id_of("m", UNIQUE), old = id_of("m", 0x1000), bound = id_of("b", UNIQUE);
    uint64_t parent = id_of(".", UNIQUE), parent_old = id_of(".", 0x1000);
    CHECK(id > 1ULL << 31 && old < 1ULL << 31 && id != bound && id != parent);

    CHECK(statmount_(id, MNT_BASIC_ | SB_BASIC_, &u, sizeof u, 0) == 0);
    CHECK(u.sm.mask == (MNT_BASIC_ | SB_BASIC_) && u.sm.size == 512);
    CHECK(u.sm.mnt_id == id && u.sm.mnt_id_old == old && u.sm.mnt_parent_id == parent && u.sm.mnt_parent_id_old == parent_old);
    CHECK(u.sm.mnt_attr == (2 | 4) && u.sm.sb_magic == 0x01021994 && u.sm.sb_flags == 0 && u.sm.sb_dev_major == 0);
    CHECK(u.sm.mnt_propagation == MS_PRIVATE || u.sm.mnt_propagation == MS_SHARED);
    CHECK(!u.sm.fs_type && !u.sm.mnt_root && !u.sm.mnt_point && !u.sm.mnt_opts);

    CHECK(statmount_(bound, ROOT_ | POINT_ | TYPE_ | OPTS_, &u, sizeof u, 0) == 0);
    CHECK((u.sm.mask & (ROOT_ | POINT_ | TYPE_ | OPTS_)) == (ROOT_ | POINT_ | TYPE_ | OPTS_));
    CHECK(!strcmp(u.sm.str + u.sm.mnt_root, "/sub dir"));
    CHECK(!strcmp(u.sm.str + u.sm.fs_type, "tmpfs"));
    char cwd[4096];
    getcwd(cwd, sizeof cwd);
    CHECK(!strncmp(u.sm.str + u.sm.mnt_point, cwd, strlen(cwd)) && !strcmp(u.sm.str + u.sm.mnt_point + strlen(cwd), "/b"));
    CHECK(strstr(u.sm.str + u.sm.mnt_opts, "size=1024k") && u.sm.str[u.sm.mnt_opts] != ',');
    size_t whole = u.sm.size;
    CHECK(whole > 512 && u.sm.str[0] == 0);
    CHECK(statmount_(bound, ROOT_ | POINT_ | TYPE_ | OPTS_, &u, whole, 0) == 0);
    FAILS(EOVERFLOW, statmount_(bound, ROOT_ | POINT_ | TYPE_ | OPTS_, &u, whole - 1, 0));
    FAILS(EOVERFLOW, statmount_(bound, TYPE_, &u, 512, 0));
    CHECK(statmount_(bound, TYPE_, &u, 512 + 7, 0) == 0 && u.sm.size == 519);

    /* The fixed part is cut to the buffer. */
    memset(&u, 0xaa, sizeof u);
    CHECK(statmount_(id, 0, &u, 16, 0) == 0 && u.sm.size == 16 && u.sm.mask == 0 && u.bytes[16] == (char)0xaa);
    CHECK(statmount_(id, 0, NULL, 0, 0) == 0);

    CHECK(mount(NULL, "m", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOATIME | MS_NOEXEC | MS_NODIRATIME, NULL) == 0);
    CHECK(statmount_(id, MNT_BASIC_, &u, sizeof u, 0) == 0 && u.sm.mnt_attr == (1 | 8 | 0x10 | 0x80));
    CHECK(mount(NULL, "m", NULL, MS_REMOUNT | MS_BIND | MS_STRICTATIME, NULL) == 0);
    CHECK(statmount_(id, MNT_BASIC_, &u, sizeof u, 0) == 0 && u.sm.mnt_attr == 0x20);
    CHECK(mount(NULL, "m", NULL, MS_PRIVATE, NULL) == 0 && mount(NULL, "m", NULL, MS_SHARED, NULL) == 0);
    CHECK(statmount_(id, MNT_BASIC_, &u, sizeof u, 0) == 0 && u.sm.mnt_propagation == MS_SHARED && u.sm.mnt_peer_group > 0);
    CHECK(mount(NULL, "m", NULL, MS_UNBINDABLE, NULL) == 0);
    CHECK(statmount_(id, MNT_BASIC_, &u, sizeof u, 0) == 0 && u.sm.mnt_propagation == MS_UNBINDABLE && u.sm.mnt_peer_group == 0);

    CHECK(umount2("b", 0) == 0);
    FAILS(ENOENT, statmount_(bound, 0, &u, sizeof u, 0));
    CHECK(umount2("m", MNT_DETACH) == 0);
    FAILS(ENOENT, statmount_(id, 0, &u, sizeof u, 0));
    rmdir("b");
}

static void several(void)
{
    uint64_t list[64], all[64], ids[4], m;
    char name[8];
    CHECK(mount("none", "m", "tmpfs", 0, NULL) == 0);
    m = id_of("m", UNIQUE);
    for (int i = 0; i < 4; i++) {
        sprintf(name, "m/%d", i);
        mkdir(name, 0755);
        CHECK(mount("none", name, "tmpfs", 0, NULL) == 0);
        ids[i] = id_of(name, UNIQUE);
        CHECK(i == 0 || ids[i] > ids[i - 1]);
    }
    mkdir("m/0/deep", 0755);
    CHECK(mount("none", "m/0/deep", "tmpfs", 0, NULL) == 0);
    uint64_t deep = id_of("m/0/deep", UNIQUE);
    /* All below, without itself, in the order of making. */
    CHECK(listmount_(m, 0, list, 64, 0) == 5);
    CHECK(list[0] == ids[0] && list[3] == ids[3] && list[4] == deep);
    CHECK(listmount_(m, 0, list, 2, 0) == 2 && listmount_(m, list[1], list, 64, 0) == 3 && list[0] == ids[2]);
    CHECK(listmount_(m, deep, list, 64, 0) == 0);
    CHECK(listmount_(m, 0, list, 64, 1) == 5 && list[0] == deep && list[4] == ids[0]);
    CHECK(listmount_(m, ids[1], list, 64, 1) == 1 && list[0] == ids[0]);
    CHECK(listmount_(ids[0], 0, list, 64, 0) == 1 && list[0] == deep);
    CHECK(listmount_(m, 0, list, 0, 0) == 0);
    CHECK(listmount_(ROOT_ID, 0, list, 64, 0) > 5);

    /* A caller's root is where its view begins; a privileged one may look beyond. */
    pid_t child = fork();
    if (child == 0) {
        uint64_t outside = id_of("/", UNIQUE);
        check_failures = 0;
        CHECK(chroot("m/0") == 0 && chdir("/") == 0);
        CHECK(listmount_(ROOT_ID, 0, list, 64, 0) == 2 && list[0] == ids[0] && list[1] == deep);
        CHECK(statmount_(deep, POINT_, &u, sizeof u, 0) == 0 && !strcmp(u.sm.str + u.sm.mnt_point, "/deep"));
        CHECK(statmount_(ids[0], POINT_, &u, sizeof u, 0) == 0 && !strcmp(u.sm.str + u.sm.mnt_point, "/"));
        CHECK(statmount_(m, POINT_, &u, sizeof u, 0) == 0 && (!(u.sm.mask & POINT_) || !u.sm.str[u.sm.mnt_point]));
        CHECK(listmount_(m, 0, list, 64, 0) == 5);
        CHECK(setresuid(1000, 1000, 1000) == 0);
        FAILS(EPERM, statmount_(m, 0, &u, sizeof u, 0));
        FAILS(EPERM, listmount_(m, 0, list, 64, 0));
        FAILS(EPERM, statmount_(ids[1], 0, &u, sizeof u, 0));
        CHECK(statmount_(deep, MNT_BASIC_, &u, sizeof u, 0) == 0);
        fflush(stdout), _exit(check_failures != 0);
    }
    int status;
    waitpid(child, &status, 0);
    CHECK(status == 0);
    CHECK(umount2("m", MNT_DETACH) == 0);
    FAILS(ENOENT, listmount_(m, 0, list, 64, 0));
    /* What was never attached is not of the tree. */
    int fs = syscall(430, "tmpfs", 0);
    CHECK(syscall(431, fs, 6, NULL, NULL, 0) == 0);
    int mnt = syscall(432, fs, 0, 0);
    char path[40];
    sprintf(path, "/proc/self/fd/%d", mnt);
    FAILS(ENOENT, statmount_(id_of(path, UNIQUE), 0, &u, sizeof u, 0));
    close(mnt), close(fs);
}

static void errors(void)
{
    uint64_t id = id_of("/", UNIQUE), list[4];
    struct req req = { 24, 0, id, 0 };
    FAILS(EINVAL, statmount_(id, 0, &u, sizeof u, 1));
    FAILS(EINVAL, statmount_(0, 0, &u, sizeof u, 0));
    FAILS(EINVAL, statmount_(id_of("/", 0x1000), 0, &u, sizeof u, 0));
    FAILS(ENOENT, statmount_(id + (1ULL << 40), 0, &u, sizeof u, 0));
    FAILS(EFAULT, syscall(457, NULL, &u, sizeof u, 0));
    FAILS(EFAULT, syscall(457, &req, (void *)-4096L, sizeof u, 0));
    FAILS(EFAULT, statmount_(id, MNT_BASIC_, (void *)64, 512, 0));
    req.size = 23;
    FAILS(EINVAL, syscall(457, &req, &u, sizeof u, 0));
    req.size = 5000;
    FAILS(E2BIG, syscall(457, &req, &u, sizeof u, 0));
    req.size = 32;
    CHECK(syscall(457, &req, &u, sizeof u, 0) == 0);
    req.ns = 0x7777777777777777;
    FAILS(ENOENT, syscall(457, &req, &u, sizeof u, 0));
    struct { struct req req; uint64_t more; } longer = { { 40, 0, id, 0 }, 0 };
    CHECK(syscall(457, &longer, &u, sizeof u, 0) == 0);
    longer.more = 1;
    FAILS(E2BIG, syscall(457, &longer, &u, sizeof u, 0));
    FAILS(EINVAL, listmount_(id, 0, list, 4, 2));
    FAILS(EINVAL, listmount_(id, 5, list, 4, 0));
    FAILS(EINVAL, listmount_(5, 0, list, 4, 0));
    FAILS(EOVERFLOW, listmount_(id, 0, list, 1000001, 0));
    FAILS(EFAULT, listmount_(id, 0, (uint64_t *)-4096L, 4096, 0));
    FAILS(EFAULT, listmount_(ROOT_ID, 0, (uint64_t *)64, 4, 0));
}

int main(void)
{
    char dir[] = "/tmp/statmountXXXXXX";
    CHECK(mkdtemp(dir) && chdir(dir) == 0 && mkdir("m", 0755) == 0);
    one();
    several();
    errors();
    rmdir("m");
    chdir("/");
    rmdir(dir);
    return check_done();
}
