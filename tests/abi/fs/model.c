/* Random file operations beside a model in memory. `model DIRECTORY SECONDS [SEED [PROCESSES]]`: each process works in a directory of its
 * own below DIRECTORY; every call's result or error and all that is read, listed and told must be what the model says. Now and
 * then the caches are dropped (as root) and the whole tree is compared. */
#include "../check.h"
#include <dirent.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdint.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

enum {
    LARGEST = 192 * 1024, /* of a file */
    NAMES = 16,           /* in a directory */
    NODES = 160,
    HANDLES = 12,
    DEPTH = 5,
    ATTRIBUTES = 3,
};

enum kind { NOTHING, FILE_, DIRECTORY, SYMLINK };

/* An inode. A file's content beyond `size` is zero. */
struct node {
    enum kind kind;
    int links, handles; /* names, and open descriptors */
    mode_t mode;
    uid_t uid;
    gid_t gid;
    struct timespec modified; /* set by utimensat; tv_nsec is -1 once something else may have changed it */
    size_t size;
    unsigned char *data;
    char *target;
    struct node *parent;              /* of a directory */
    struct node *children[NAMES];     /* by name number */
    int attribute_sizes[ATTRIBUTES];  /* -1: none */
    unsigned char attribute_seeds[ATTRIBUTES];
};

struct handle {
    int fd;
    struct node *node;
    int append;
};

static struct node nodes[NODES], *root;
static struct handle handles[HANDLES];
static char names[NAMES][256];
static uint64_t state, operations;
static char history[64][256];

static uint64_t draw(uint64_t below)
{
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return (state * 0x2545f4914f6cdd1dull >> 11) % below;
}

static void __attribute__((format(printf, 1, 2))) did(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(history[operations++ % 64], sizeof history[0], format, arguments);
    va_end(arguments);
}

/* Something differs: what was done before is told, and the test ends. */
static void __attribute__((format(printf, 1, 2), noreturn)) wrong(const char *format, ...)
{
    va_list arguments;
    for (uint64_t at = operations > 40 ? operations - 40 : 0; at < operations; at++)
        printf("%llu: %s\n", (unsigned long long)at, history[at % 64]);
    printf("wrong: ");
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    printf("\n");
    fflush(stdout);
    _exit(1);
}

/* The call must give `expected`: 0, or an error. */
static int outcome(long result, int expected, const char *what)
{
    int got = result < 0 ? errno : 0;
    check_count++;
    if (got != expected)
        wrong("%s: %s instead of %s", what, got ? strerror(got) : "success", expected ? strerror(expected) : "success");
    return got == 0;
}

static struct node *make(enum kind kind, mode_t mode)
{
    for (int at = 0; at < NODES; at++) {
        struct node *node = &nodes[at];
        if (node->kind != NOTHING)
            continue;
        memset(node, 0, sizeof *node);
        node->kind = kind;
        node->mode = mode;
        node->modified.tv_nsec = -1;
        for (int i = 0; i < ATTRIBUTES; i++)
            node->attribute_sizes[i] = -1;
        if (kind == FILE_)
            node->data = calloc(1, LARGEST);
        return node;
    }
    return NULL;
}

static int room(void)
{
    for (int at = 0; at < NODES; at++)
        if (nodes[at].kind == NOTHING)
            return 1;
    return 0;
}

static void release(struct node *node)
{
    if (node->links || node->handles)
        return;
    free(node->data);
    free(node->target);
    node->kind = NOTHING;
}

static int entries(const struct node *directory)
{
    int count = 0;
    for (int at = 0; at < NAMES; at++)
        count += directory->children[at] != NULL;
    return count;
}

/* A place: a directory and a name in it, which may be taken or not. */
struct place {
    struct node *directory;
    int name;
    char path[DEPTH * 260];
};

/* The path of a directory, "" for the root, else with a slash at the end. */
static void path_of(const struct node *directory, char *path)
{
    if (directory == root) {
        *path = 0;
        return;
    }
    path_of(directory->parent, path);
    for (int at = 0; at < NAMES; at++)
        if (directory->parent->children[at] == directory) {
            strcat(strcat(path, names[at]), "/");
            return;
        }
    abort();
}

static int depth(const struct node *directory)
{
    return directory == root ? 0 : 1 + depth(directory->parent);
}

static struct place somewhere(void)
{
    struct place place = {root, 0, ""};
    for (;;) {
        place.name = draw(NAMES);
        struct node *child = place.directory->children[place.name];
        if (!child || child->kind != DIRECTORY || draw(3) == 0)
            break;
        place.directory = child;
    }
    path_of(place.directory, place.path);
    strcat(place.path, names[place.name]);
    return place;
}

static struct node **entry(struct place *place)
{
    return &place->directory->children[place->name];
}

/* A directory that gains or loses a name has another modification time. */
static void touched(struct node *node)
{
    node->modified.tv_nsec = -1;
}

static void fill(unsigned char *bytes, size_t count)
{
    unsigned char first = draw(255) + 1, step = draw(7);
    for (size_t at = 0; at < count; at++)
        bytes[at] = first + at * step + at / 251;
}

/* --- operations on descriptors --- */

static struct handle *free_handle(void)
{
    for (int at = 0; at < HANDLES; at++)
        if (!handles[at].node)
            return &handles[at];
    return NULL;
}

static struct handle *some_handle(void)
{
    for (int tries = 0; tries < 20; tries++) {
        struct handle *handle = &handles[draw(HANDLES)];
        if (handle->node)
            return handle;
    }
    return NULL;
}

static size_t some_offset(const struct node *node)
{
    switch (draw(4)) {
    case 0: return 0;
    case 1: return node->size;
    case 2: return draw(LARGEST);
    default: return node->size ? draw(node->size) : 0;
    }
}

static size_t some_length(size_t offset)
{
    size_t length = 1 + draw(draw(3) ? 5000 : 40000);
    return offset + length > LARGEST ? LARGEST - offset : length;
}

static void compare(int fd, const struct node *node, size_t offset, size_t length)
{
    static unsigned char buffer[LARGEST + 16];
    ssize_t got = pread(fd, buffer, length, offset);
    size_t expected = offset >= node->size ? 0 : length < node->size - offset ? length : node->size - offset;
    check_count++;
    if (got < 0 || (size_t)got != expected)
        wrong("pread of %zu at %zu gives %zd (%s), not %zu", length, offset, got, strerror(errno), expected);
    for (size_t at = 0; at < expected; at++)
        if (buffer[at] != node->data[offset + at])
            wrong("byte %zu is %#x instead of %#x (size %zu)", offset + at, buffer[at], node->data[offset + at], node->size);
}

static void write_some(struct handle *handle)
{
    static unsigned char buffer[LARGEST];
    struct node *node = handle->node;
    size_t offset = handle->append ? node->size : some_offset(node), length = some_length(offset);
    if (length == 0)
        return;
    fill(buffer, length);
    did("write fd %d: %zu bytes at %zu%s (size %zu)", handle->fd, length, offset, handle->append ? " appended" : "", node->size);
    ssize_t wrote = handle->append ? write(handle->fd, buffer, length) : pwrite(handle->fd, buffer, length, offset);
    if (wrote != (ssize_t)length)
        wrong("wrote %zd: %s", wrote, strerror(errno));
    memcpy(node->data + offset, buffer, length);
    if (offset + length > node->size)
        node->size = offset + length;
    touched(node);
}

static void resize(struct node *node, size_t size)
{
    if (size < node->size)
        memset(node->data + size, 0, node->size - size);
    node->size = size;
    touched(node);
}

static void allocate(struct handle *handle)
{
    static const int modes[] = {0, FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, FALLOC_FL_ZERO_RANGE,
                                FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE};
    struct node *node = handle->node;
    int mode = modes[draw(6)];
    size_t offset = some_offset(node), length = some_length(offset), end = offset + length;
    if (length == 0)
        return;
    did("fallocate fd %d mode %#x: %zu bytes at %zu (size %zu)", handle->fd, mode, length, offset, node->size);
    if (!outcome(fallocate(handle->fd, mode, offset, length), mode == FALLOC_FL_PUNCH_HOLE ? EOPNOTSUPP : 0, "fallocate"))
        return;
    if (mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE))
        if (offset < node->size)
            memset(node->data + offset, 0, (end < node->size ? end : node->size) - offset);
    if (!(mode & FALLOC_FL_KEEP_SIZE) && end > node->size)
        node->size = end;
    touched(node);
}

static void map_some(struct handle *handle)
{
    struct node *node = handle->node;
    if (node->size == 0)
        return;
    size_t offset = draw(node->size), length = some_length(offset);
    if (offset + length > node->size)
        length = node->size - offset;
    did("store fd %d through a mapping: %zu bytes at %zu (size %zu)", handle->fd, length, offset, node->size);
    unsigned char *at = mmap(NULL, node->size, PROT_READ | PROT_WRITE, MAP_SHARED, handle->fd, 0);
    if (at == MAP_FAILED)
        wrong("mmap: %s", strerror(errno));
    if (memcmp(at, node->data, node->size))
        wrong("the mapping differs from the file");
    for (size_t beyond = node->size; beyond % 4096; beyond++)
        if (at[beyond])
            wrong("byte %zu beyond the end (%zu) is %#x in the mapping", beyond, node->size, at[beyond]);
    fill(at + offset, length);
    memcpy(node->data + offset, at + offset, length);
    if (draw(3) == 0)
        outcome(msync(at, node->size, draw(2) ? MS_SYNC : MS_ASYNC), 0, "msync");
    munmap(at, node->size);
    touched(node);
}

static void copy_range(struct handle *from, struct handle *to)
{
    if (!to || from->node == to->node || to->append)
        return;
    loff_t in = some_offset(from->node), out = some_offset(to->node);
    size_t length = some_length(in > out ? in : out);
    if (length == 0)
        return;
    did("copy_file_range fd %d at %lld to fd %d at %lld: %zu", from->fd, (long long)in, to->fd, (long long)out, length);
    size_t start_in = in, start_out = out;
    size_t there = start_in >= from->node->size ? 0 : from->node->size - start_in;
    ssize_t got = copy_file_range(from->fd, &in, to->fd, &out, length, 0);
    /* A short copy is allowed, but not one of nothing. */
    if (got < 0 || (size_t)got > length || (size_t)got > there || (got == 0 && there && length))
        wrong("copied %zd: %s", got, strerror(errno));
    if ((size_t)in != start_in + got || (size_t)out != start_out + got)
        wrong("copied %zd, offsets moved by %lld and %lld", got, (long long)(in - start_in), (long long)(out - start_out));
    if (got == 0)
        return;
    memcpy(to->node->data + start_out, from->node->data + start_in, got);
    if (start_out + got > to->node->size)
        to->node->size = start_out + got;
    touched(to->node);
}

/* What lies between data must read as zeros; the end is a hole. */
static void seek_some(struct handle *handle)
{
    struct node *node = handle->node;
    off_t at = 0;
    did("look for data and holes of fd %d (size %zu)", handle->fd, node->size);
    while (at < (off_t)node->size) {
        off_t data = lseek(handle->fd, at, SEEK_DATA);
        off_t end = data < 0 && errno == ENXIO ? (off_t)node->size : data;
        if (end < at || end > (off_t)node->size)
            wrong("SEEK_DATA from %lld gives %lld (%s)", (long long)at, (long long)data, strerror(errno));
        for (off_t zero = at; zero < end; zero++)
            if (node->data[zero])
                wrong("SEEK_DATA from %lld gives %lld, but byte %lld is not zero", (long long)at, (long long)data, (long long)zero);
        if (data < 0)
            break;
        at = lseek(handle->fd, data, SEEK_HOLE);
        if (at <= data || at > (off_t)node->size)
            wrong("SEEK_HOLE from %lld gives %lld (%s)", (long long)data, (long long)at, strerror(errno));
    }
    FAILS(ENXIO, lseek(handle->fd, node->size, SEEK_DATA));
    FAILS(ENXIO, lseek(handle->fd, node->size, SEEK_HOLE));
}

static void check_stat(const struct node *node, const struct stat *st)
{
    static const mode_t types[] = {0, S_IFREG, S_IFDIR, S_IFLNK};
    check_count++;
    if ((st->st_mode & S_IFMT) != types[node->kind] || (node->kind != SYMLINK && (st->st_mode & 07777) != node->mode))
        wrong("mode %#o instead of %#o", st->st_mode, types[node->kind] | node->mode);
    if (st->st_uid != node->uid || st->st_gid != node->gid)
        wrong("owner %d:%d instead of %d:%d", st->st_uid, st->st_gid, node->uid, node->gid);
    if (node->kind == FILE_ && st->st_size != (off_t)node->size)
        wrong("size %lld instead of %zu", (long long)st->st_size, node->size);
    if (node->kind == SYMLINK && st->st_size != (off_t)strlen(node->target))
        wrong("a symbolic link's size %lld instead of %zu", (long long)st->st_size, strlen(node->target));
    nlink_t links = node->links;
    if (node->kind == DIRECTORY && node->links) {
        links = 2;
        for (int at = 0; at < NAMES; at++)
            links += node->children[at] && node->children[at]->kind == DIRECTORY;
    }
    if (st->st_nlink != links)
        wrong("%lu links instead of %lu", (unsigned long)st->st_nlink, (unsigned long)links);
    if (node->modified.tv_nsec >= 0 &&
        (st->st_mtim.tv_sec != node->modified.tv_sec || st->st_mtim.tv_nsec != node->modified.tv_nsec))
        wrong("modified at %lld.%09ld instead of %lld.%09ld", (long long)st->st_mtim.tv_sec, st->st_mtim.tv_nsec,
              (long long)node->modified.tv_sec, node->modified.tv_nsec);
}

static void on_descriptor(void)
{
    struct handle *handle = some_handle();
    struct stat st;
    if (!handle)
        return;
    struct node *node = handle->node;
    switch (draw(14)) {
    case 0: case 1: case 2:
        write_some(handle);
        break;
    case 3: case 4: {
        size_t offset = some_offset(node), length = 1 + draw(20000);
        did("pread fd %d: %zu at %zu", handle->fd, length, offset);
        compare(handle->fd, node, offset, length);
        break;
    }
    case 5: {
        size_t size = draw(3) ? some_offset(node) : draw(LARGEST);
        did("ftruncate fd %d to %zu (size %zu)", handle->fd, size, node->size);
        if (outcome(ftruncate(handle->fd, size), 0, "ftruncate"))
            resize(node, size);
        break;
    }
    case 6:
        allocate(handle);
        break;
    case 7:
        map_some(handle);
        break;
    case 8: {
        struct handle *other = some_handle();
        copy_range(handle, other);
        break;
    }
    case 9:
        seek_some(handle);
        break;
    case 10: {
        int whole = draw(2);
        const char *call = whole ? "fsync" : "fdatasync";
        did("%s fd %d", call, handle->fd);
        outcome(whole ? fsync(handle->fd) : fdatasync(handle->fd), 0, call);
        break;
    }
    case 11: {
        struct timespec times[2] = {{0, UTIME_OMIT}, {draw(4000000000), draw(1000000000)}};
        did("futimens fd %d: %lld.%09ld", handle->fd, (long long)times[1].tv_sec, times[1].tv_nsec);
        if (outcome(futimens(handle->fd, times), 0, "futimens"))
            node->modified = times[1];
        break;
    }
    case 12:
        did("fstat fd %d", handle->fd);
        outcome(fstat(handle->fd, &st), 0, "fstat");
        check_stat(node, &st);
        break;
    default:
        did("close fd %d", handle->fd);
        outcome(close(handle->fd), 0, "close");
        handle->node = NULL;
        node->handles--;
        release(node);
    }
}

/* --- operations on names --- */

static void open_name(void)
{
    struct place place = somewhere();
    struct node *node = *entry(&place);
    struct handle *handle = free_handle();
    int flags = O_RDWR | (draw(2) ? O_CREAT : 0) | (draw(3) ? 0 : O_EXCL) | (draw(4) ? 0 : O_TRUNC) | (draw(4) ? 0 : O_APPEND);
    mode_t mode = 0600 | draw(0200);
    if (!handle || ((flags & O_CREAT) && !room()))
        return;
    if (!(flags & O_CREAT))
        flags &= ~O_EXCL;
    flags |= O_NOFOLLOW;
    int expected = 0;
    if (node && (flags & O_EXCL))
        expected = EEXIST;
    else if (node && node->kind == DIRECTORY)
        expected = EISDIR;
    else if (node && node->kind == SYMLINK)
        expected = ELOOP;
    else if (!node && !(flags & O_CREAT))
        expected = ENOENT;
    did("open %s flags %#o mode %#o", place.path, flags, mode);
    int fd = open(place.path, flags, mode);
    if (!outcome(fd, expected, "open"))
        return;
    if (!node) {
        node = *entry(&place) = make(FILE_, mode);
        node->links = 1;
        touched(place.directory);
    } else if (flags & O_TRUNC) {
        resize(node, 0);
    }
    node->handles++;
    *handle = (struct handle){fd, node, !!(flags & O_APPEND)};
    did("... is fd %d", fd);
}

static void make_other(void)
{
    struct place place = somewhere();
    struct node *node = *entry(&place);
    if (!room())
        return;
    if (draw(2)) {
        mode_t mode = 0700 | draw(0100);
        if (!node && depth(place.directory) + 1 >= DEPTH)
            return;
        did("mkdir %s %#o", place.path, mode);
        if (!outcome(mkdir(place.path, mode), node ? EEXIST : 0, "mkdir"))
            return;
        node = *entry(&place) = make(DIRECTORY, mode);
        node->parent = place.directory;
    } else {
        char target[1024];
        size_t length = 1 + draw(draw(2) ? 59 : 1000); /* ext4 keeps up to 59 bytes in the inode */
        /* Capitals, which no name has: it leads nowhere. */
        memset(target, 'A' + draw(26), length);
        target[length] = 0;
        did("symlink of %zu bytes at %s", length, place.path);
        if (!outcome(symlink(target, place.path), node ? EEXIST : 0, "symlink"))
            return;
        node = *entry(&place) = make(SYMLINK, 0777);
        node->target = strdup(target);
    }
    node->links = 1;
    touched(place.directory);
}

static void remove_name(void)
{
    struct place place = somewhere();
    struct node *node = *entry(&place);
    int directory = node ? (node->kind == DIRECTORY) ^ (draw(8) == 0) : draw(2), expected = 0;
    if (!node)
        expected = ENOENT;
    else if (directory && node->kind != DIRECTORY)
        expected = ENOTDIR;
    else if (directory && entries(node))
        expected = ENOTEMPTY;
    else if (!directory && node->kind == DIRECTORY)
        expected = EISDIR;
    did("%s %s", directory ? "rmdir" : "unlink", place.path);
    if (!outcome(directory ? rmdir(place.path) : unlink(place.path), expected, "removal"))
        return;
    *entry(&place) = NULL;
    node->links--;
    release(node);
    touched(place.directory);
}

static int is_below(const struct node *node, const struct node *directory)
{
    for (; node != root; node = node->parent)
        if (node == directory)
            return 1;
    return node == directory;
}

static int height(const struct node *node)
{
    int most = 0;
    if (node->kind != DIRECTORY)
        return 0;
    for (int at = 0; at < NAMES; at++)
        if (node->children[at] && 1 + height(node->children[at]) > most)
            most = 1 + height(node->children[at]);
    return most;
}

static void rename_name(void)
{
    struct place from = somewhere(), to = somewhere();
    struct node *moved = *entry(&from), *replaced = *entry(&to);
    unsigned flags = draw(3) ? 0 : draw(2) ? RENAME_NOREPLACE : RENAME_EXCHANGE;
    if (moved && depth(to.directory) + 1 + height(moved) > DEPTH)
        return;
    if (flags == RENAME_EXCHANGE && replaced && depth(from.directory) + 1 + height(replaced) > DEPTH)
        return;
    int expected = 0, same = moved == replaced;
    if (!moved)
        expected = ENOENT;
    else if (flags == RENAME_EXCHANGE && !replaced)
        expected = ENOENT;
    else if (flags == RENAME_NOREPLACE && replaced)
        expected = EEXIST;
    else if (moved->kind == DIRECTORY && is_below(to.directory, moved))
        expected = EINVAL;
    else if (replaced && replaced->kind == DIRECTORY && is_below(from.directory, replaced))
        expected = flags == RENAME_EXCHANGE ? EINVAL : ENOTEMPTY;
    else if (replaced && flags == 0 && !same) {
        if (moved->kind == DIRECTORY && replaced->kind != DIRECTORY)
            expected = ENOTDIR;
        else if (moved->kind != DIRECTORY && replaced->kind == DIRECTORY)
            expected = EISDIR;
        else if (replaced->kind == DIRECTORY && entries(replaced))
            expected = ENOTEMPTY;
    }
    did("rename %s to %s flags %u", from.path, to.path, flags);
    if (!outcome(syscall(SYS_renameat2, AT_FDCWD, from.path, AT_FDCWD, to.path, flags), expected, "rename"))
        return;
    /* Two names of one file: nothing is done. */
    if (same)
        return;
    touched(from.directory);
    touched(to.directory);
    *entry(&to) = moved;
    if (moved->kind == DIRECTORY)
        moved->parent = to.directory;
    if (flags == RENAME_EXCHANGE) {
        *entry(&from) = replaced;
        if (replaced->kind == DIRECTORY)
            replaced->parent = from.directory;
        return;
    }
    *entry(&from) = NULL;
    if (replaced) {
        replaced->links--;
        release(replaced);
    }
}

static void link_name(void)
{
    struct place from = somewhere(), to = somewhere();
    struct node *node = *entry(&from);
    int expected = !node ? ENOENT : *entry(&to) ? EEXIST : node->kind == DIRECTORY ? EPERM : 0;
    did("link %s to %s", from.path, to.path);
    if (!outcome(link(from.path, to.path), expected, "link"))
        return;
    *entry(&to) = node;
    node->links++;
    touched(to.directory);
}

static void attribute_value(const struct node *node, int which, unsigned char *value)
{
    for (int at = 0; at < node->attribute_sizes[which]; at++)
        value[at] = node->attribute_seeds[which] + at;
}

static void change_attribute(struct place *place, struct node *node)
{
    char name[] = "user.name0";
    static unsigned char value[1024];
    int which = draw(ATTRIBUTES), had = node->attribute_sizes[which];
    name[9] += which;
    if (node->kind == SYMLINK) {
        did("setxattr %s of a symbolic link %s", name, place->path);
        outcome(lsetxattr(place->path, name, value, 4, 0), EPERM, "lsetxattr");
    } else if (draw(3)) {
        int flags = draw(3) ? 0 : draw(2) ? XATTR_CREATE : XATTR_REPLACE;
        int expected = flags == XATTR_CREATE && had >= 0 ? EEXIST : flags == XATTR_REPLACE && had < 0 ? ENODATA : 0;
        int size = draw(3) ? draw(40) : draw(1000);
        unsigned char seed = draw(256);
        for (int at = 0; at < size; at++)
            value[at] = seed + at;
        did("setxattr %s %s %d bytes flags %d", place->path, name, size, flags);
        if (outcome(lsetxattr(place->path, name, value, size, flags), expected, "setxattr")) {
            node->attribute_sizes[which] = size;
            node->attribute_seeds[which] = seed;
        }
    } else {
        did("removexattr %s %s", place->path, name);
        if (outcome(lremovexattr(place->path, name), had < 0 ? ENODATA : 0, "removexattr"))
            node->attribute_sizes[which] = -1;
    }
}

static void check_attributes(const char *path, const struct node *node)
{
    static unsigned char expected[1024], value[1024];
    if (node->kind == SYMLINK)
        return;
    for (int which = 0; which < ATTRIBUTES; which++) {
        char name[] = "user.name0";
        name[9] += which;
        int size = node->attribute_sizes[which];
        ssize_t got = lgetxattr(path, name, value, sizeof value);
        if (got != size || (size < 0 && errno != ENODATA))
            wrong("getxattr %s %s gives %zd (%s), not %d", path, name, got, strerror(errno), size);
        attribute_value(node, which, expected);
        if (size > 0 && memcmp(expected, value, size))
            wrong("getxattr %s %s has another value", path, name);
    }
}

static void change_name(void)
{
    struct place place = somewhere();
    struct node *node = *entry(&place);
    int absent = node ? 0 : ENOENT;
    struct stat st;
    switch (draw(6)) {
    case 0: {
        mode_t mode = 0600 | draw(0200) | (node && node->kind == DIRECTORY ? 0100 : 0);
        if (node && node->kind == SYMLINK)
            return;
        did("chmod %s %#o", place.path, mode);
        if (outcome(chmod(place.path, mode), absent, "chmod"))
            node->mode = mode;
        break;
    }
    case 1: {
        if (getuid())
            return;
        uid_t uid = draw(3) ? draw(70000) : 0, gid = draw(70000);
        did("chown %s %d:%d", place.path, uid, gid);
        if (outcome(lchown(place.path, uid, gid), absent, "chown"))
            node->uid = uid, node->gid = gid;
        break;
    }
    case 2: {
        struct timespec times[2] = {{0, UTIME_OMIT}, {draw(4000000000), draw(1000000000)}};
        did("utimensat %s %lld.%09ld", place.path, (long long)times[1].tv_sec, times[1].tv_nsec);
        if (outcome(utimensat(AT_FDCWD, place.path, times, AT_SYMLINK_NOFOLLOW), absent, "utimensat"))
            node->modified = times[1];
        break;
    }
    case 3:
        if (node)
            change_attribute(&place, node);
        break;
    case 4: {
        size_t size = draw(LARGEST);
        if (node && node->kind == SYMLINK)
            return;
        did("truncate %s to %zu", place.path, size);
        if (outcome(truncate(place.path, size), node && node->kind == DIRECTORY ? EISDIR : absent, "truncate"))
            resize(node, size);
        break;
    }
    default:
        did("lstat %s", place.path);
        if (outcome(lstat(place.path, &st), absent, "lstat"))
            check_stat(node, &st);
        if (node)
            check_attributes(place.path, node);
        if (node && node->kind != DIRECTORY) {
            char below[sizeof place.path + 4];
            snprintf(below, sizeof below, "%s/x", place.path);
            outcome(lstat(below, &st), node->kind == FILE_ ? ENOTDIR : strlen(node->target) > 255 ? ENAMETOOLONG : ENOENT, "lstat below");
        }
    }
}

static void check_directory(struct node *directory, int deep)
{
    char path[DEPTH * 260 + 260];
    path_of(directory, path);
    DIR *listing = opendir(*path ? path : ".");
    int seen[NAMES] = {0}, at;
    if (!listing)
        wrong("opendir %s: %s", path, strerror(errno));
    for (struct dirent *found; (errno = 0, found = readdir(listing));) {
        if (!strcmp(found->d_name, ".") || !strcmp(found->d_name, ".."))
            continue;
        for (at = 0; at < NAMES && strcmp(names[at], found->d_name); at++)
            ;
        if (at == NAMES || !directory->children[at] || seen[at]++)
            wrong("readdir of %s gives %s, which %s", path, found->d_name,
                  at == NAMES || !directory->children[at] ? "is not there" : "was given already");
    }
    if (errno)
        wrong("readdir of %s: %s", path, strerror(errno));
    closedir(listing);
    check_count++;
    for (at = 0; at < NAMES; at++) {
        struct node *node = directory->children[at];
        struct stat st;
        if (node && !seen[at])
            wrong("readdir of %s lacks %s", path, names[at]);
        if (!node || !deep)
            continue;
        char full[sizeof path];
        snprintf(full, sizeof full, "%s%s", path, names[at]);
        outcome(lstat(full, &st), 0, full);
        check_stat(node, &st);
        check_attributes(full, node);
        if (node->kind == DIRECTORY) {
            check_directory(node, 1);
        } else if (node->kind == SYMLINK) {
            char target[1100];
            ssize_t length = readlink(full, target, sizeof target);
            if (length != (ssize_t)strlen(node->target) || memcmp(target, node->target, length))
                wrong("readlink %s gives %zd bytes, not %zu", full, length, strlen(node->target));
        } else {
            int fd = open(full, O_RDONLY);
            if (fd < 0)
                wrong("open %s: %s", full, strerror(errno));
            compare(fd, node, 0, LARGEST + 10);
            close(fd);
        }
    }
}

static void check_all(void)
{
    if (getuid() == 0 && draw(2)) {
        did("drop caches");
        FILE *f = fopen("/proc/sys/vm/drop_caches", "w");
        if (f) {
            fputs("3\n", f);
            fclose(f);
        }
    }
    did("compare everything");
    check_directory(root, 1);
    for (int at = 0; at < HANDLES; at++)
        if (handles[at].node)
            compare(handles[at].fd, handles[at].node, 0, LARGEST + 10);
}

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void work(const char *directory, double end, uint64_t seed)
{
    umask(0);
    if (mkdir(directory, 0755) || chdir(directory))
        wrong("%s: %s", directory, strerror(errno));
    state = seed * 0x9e3779b97f4a7c15ull | 1;
    for (int at = 0; at < NAMES; at++) {
        size_t length = at < 8 ? 1 : at < 12 ? 20 : 255;
        memset(names[at], 'a' + at, length);
        /* Bytes that are no UTF-8 are names, too. */
        if (at % 4 == 3)
            names[at][0] = (char)(0x80 + at);
    }
    root = make(DIRECTORY, 0755);
    root->links = 1;
    while (seconds() < end) {
        for (int at = 0; at < 400; at++) {
            switch (draw(12)) {
            case 0: case 1: open_name(); break;
            case 2: make_other(); break;
            case 3: remove_name(); break;
            case 4: rename_name(); break;
            case 5: link_name(); break;
            case 6: case 7: change_name(); break;
            default: on_descriptor();
            }
            if (draw(60) == 0) {
                struct place place = somewhere();
                did("list %p", (void *)place.directory);
                check_directory(place.directory, 0);
            }
        }
        check_all();
    }
    printf("process with seed %llu: %llu operations\n", (unsigned long long)seed, (unsigned long long)operations);
}

int main(int argc, char **argv)
{
    if (argc < 3)
        return 2;
    setvbuf(stdout, NULL, _IOLBF, 0);
    double end = seconds() + atof(argv[2]);
    uint64_t seed = argc > 3 ? strtoull(argv[3], NULL, 0) : (uint64_t)time(NULL);
    int processes = argc > 4 ? atoi(argv[4]) : 3, status;
    if (chdir(argv[1]))
        return 2;
    for (int at = 0; at < processes; at++)
        if (fork() == 0) {
            char name[32];
            snprintf(name, sizeof name, "model-%d", at);
            work(name, end, seed + at);
            _exit(check_done());
        }
    while (wait(&status) > 0)
        CHECK(status == 0);
    return check_done();
}
