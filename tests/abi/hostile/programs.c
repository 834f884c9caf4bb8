/* Hostile program files: ELF files with one thing wrong, ELF files with random bytes wrong, and scripts without end. Executed by
 * user nobody. execve may refuse one, the program may die or even run; it must end, and its memory come back. */
#include "hostile.h"
#include <elf.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/stat.h>

/* A program that exits with status 42, as small as one can be: header, two program headers, code; then spare room. */
struct image {
    Elf64_Ehdr header;
    Elf64_Phdr segments[3];
    uint8_t code[16];
    uint8_t room[4096];
};
enum { BASE = 0x400000, EXECUTED = 42 };

static struct image good(void)
{
    struct image image = {
        .header = {.e_ident = {0x7f, 'E', 'L', 'F', ELFCLASS64, ELFDATA2LSB, EV_CURRENT}, .e_type = ET_EXEC,
                   .e_machine = EM_X86_64, .e_version = EV_CURRENT, .e_entry = BASE + offsetof(struct image, code),
                   .e_phoff = offsetof(struct image, segments), .e_ehsize = sizeof(Elf64_Ehdr),
                   .e_phentsize = sizeof(Elf64_Phdr), .e_phnum = 1},
        .segments = {{.p_type = PT_LOAD, .p_flags = PF_R | PF_X, .p_vaddr = BASE, .p_paddr = BASE,
                      .p_filesz = sizeof image, .p_memsz = sizeof image, .p_align = 4096}},
        .code = {0xb8, 60, 0, 0, 0, 0xbf, EXECUTED, 0, 0, 0, 0x0f, 0x05}, /* exit(42) */
    };
    return image;
}

static void store(const char *path, const void *bytes, size_t length)
{
    unlink(path);
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0755);
    CHECK(fd >= 0 && write(fd, bytes, length) == (ssize_t)length);
    close(fd);
}

enum { ENDED_BY_SIGNAL = 1000 };

/* Executes `path`. Returns the error, negative, of execve; or the status; or a signal above ENDED_BY_SIGNAL. */
static int execute(const char *path)
{
    int report[2], error = 0;
    CHECK(pipe2(report, O_CLOEXEC) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        become_nobody();
        char *argv[] = {"program", NULL}, *envp[] = {NULL};
        execve(path, argv, envp);
        error = errno;
        (void)!write(report[1], &error, sizeof error);
        _exit(0);
    }
    close(report[1]);
    int status = end_of(pid, 20);
    int failed = read(report[0], &error, sizeof error) == sizeof error;
    close(report[0]);
    return failed ? -error : WIFSIGNALED(status) ? ENDED_BY_SIGNAL + WTERMSIG(status) : WEXITSTATUS(status);
}

static int execute_image(const struct image *image, size_t length)
{
    store("program", image, length);
    return execute("./program");
}

/* Refused, or begun and killed: which depends on how far execve has come. */
static int is_refused_or_killed(int outcome)
{
    return outcome < 0 || outcome > ENDED_BY_SIGNAL;
}

static void one_thing_wrong(void)
{
    struct image image = good();
    CHECK(execute_image(&image, sizeof image) == EXECUTED);
    CHECK(execute_image(&image, 0) == -ENOEXEC);
    CHECK(execute_image(&image, 4) == -ENOEXEC);
    CHECK(execute_image(&image, sizeof(Elf64_Ehdr) - 1) == -ENOEXEC);
    /* The headers end behind the end of the file. */
    CHECK(execute_image(&image, sizeof(Elf64_Ehdr) + 10) < 0);

    image = good(), image.header.e_machine = EM_AARCH64;
    CHECK(execute_image(&image, sizeof image) == -ENOEXEC);
    image = good(), image.header.e_type = ET_REL;
    CHECK(execute_image(&image, sizeof image) == -ENOEXEC);
    image = good(), image.header.e_phentsize = 8;
    CHECK(execute_image(&image, sizeof image) == -ENOEXEC);
    image = good(), image.header.e_phnum = 0;
    CHECK(execute_image(&image, sizeof image) == -ENOEXEC);
    image = good(), image.header.e_phnum = 65535;
    CHECK(execute_image(&image, sizeof image) == -ENOEXEC);
    image = good(), image.header.e_phoff = -1;
    CHECK(execute_image(&image, sizeof image) < 0);
    image = good(), image.header.e_phoff = INT64_MAX - 20;
    CHECK(execute_image(&image, sizeof image) < 0);
    image = good(), image.header.e_entry = 0xffffffff80000000;
    CHECK(execute_image(&image, sizeof image) == ENDED_BY_SIGNAL + SIGSEGV);
    image = good(), image.header.e_entry = 0x1000000000000000;
    CHECK(execute_image(&image, sizeof image) == ENDED_BY_SIGNAL + SIGSEGV);

    static const uint64_t addresses[] = {
        0, 1, 4095, 0x7fffffffe000, 0x7ffffffff000, 0x800000000000, 0xffff800000000000, 0xfffffffffffff000, -1ull, INT64_MAX,
    };
    for (size_t at = 0; at < sizeof addresses / sizeof *addresses; at++) {
        image = good(), image.segments[0].p_vaddr = addresses[at];
        CHECK(is_refused_or_killed(execute_image(&image, sizeof image)));
        image = good(), image.segments[0].p_offset = addresses[at] | 1 << 30;
        CHECK(is_refused_or_killed(execute_image(&image, sizeof image)));
        if (addresses[at] > sizeof image) {
            image = good(), image.segments[0].p_memsz = addresses[at];
            CHECK(is_refused_or_killed(execute_image(&image, sizeof image)));
            image = good(), image.segments[0].p_filesz = image.segments[0].p_memsz = addresses[at];
            CHECK(is_refused_or_killed(execute_image(&image, sizeof image)));
        }
        /* An alignment that is none: whatever it does, it ends. */
        image = good(), image.segments[0].p_align = addresses[at];
        execute_image(&image, sizeof image);
        image = good(), image.header.e_type = ET_DYN, image.segments[0].p_align = addresses[at];
        execute_image(&image, sizeof image);
    }
    image = good(), image.segments[0].p_filesz = image.segments[0].p_memsz + 1;
    CHECK(is_refused_or_killed(execute_image(&image, sizeof image)));

    /* A second segment upon the first, in its middle, and over half of the address space. */
    for (size_t at = 0; at < sizeof addresses / sizeof *addresses; at++) {
        image = good(), image.header.e_phnum = 2, image.segments[1] = image.segments[0];
        image.segments[1].p_vaddr = BASE + 4096, image.segments[1].p_filesz = 0, image.segments[1].p_memsz = addresses[at];
        execute_image(&image, sizeof image);
    }
}

static int with_interpreter(const char *name, uint64_t length)
{
    struct image image = good();
    image.header.e_phnum = 2;
    image.segments[1] = (Elf64_Phdr){.p_type = PT_INTERP, .p_offset = offsetof(struct image, room), .p_filesz = length};
    memcpy(image.room, name, strlen(name));
    return execute_image(&image, sizeof image);
}

static void interpreters(void)
{
    char path[256], text[600];
    CHECK(with_interpreter("/nowhere", 9) == -ENOENT);
    CHECK(with_interpreter("", 1) < 0);
    CHECK(with_interpreter("/nowhere", 0) == -ENOEXEC);
    CHECK(with_interpreter("/nowhere", 1) == -ENOEXEC);
    CHECK(with_interpreter("/nowhere", 8) == -ENOEXEC); /* without its NUL */
    CHECK(with_interpreter("/nowhere", 4097) == -ENOEXEC);
    CHECK(with_interpreter("/nowhere", -1ull) == -ENOEXEC);
    CHECK(with_interpreter("/tmp", 5) == -EACCES);
    CHECK(with_interpreter("/dev/zero", 10) < 0);
    with_interpreter("program", 8); /* itself: both want one place */

    /* Scripts that are their own interpreter, that name each other, that name nothing, and a line without end. */
    CHECK(getcwd(path, sizeof path) != NULL);
    snprintf(text, sizeof text, "#!%s/one\n", path);
    store("one", text, strlen(text));
    CHECK(execute("./one") == -ELOOP);
    snprintf(text, sizeof text, "#!%s/two\n", path);
    store("one", text, strlen(text));
    snprintf(text, sizeof text, "#!%s/one\n", path);
    store("two", text, strlen(text));
    CHECK(execute("./one") == -ELOOP);
    store("one", "#!", 2);
    CHECK(execute("./one") < 0);
    store("one", "#!   \n", 6);
    CHECK(execute("./one") == -ENOEXEC);
    memset(text, 'a', sizeof text), memcpy(text, "#!", 2);
    store("one", text, sizeof text);
    CHECK(execute("./one") == -ENOEXEC);
}

static void random_bytes(unsigned seed, int rounds)
{
    for (int round = 0; round < rounds; round++) {
        struct image image = good();
        uint8_t *bytes = (uint8_t *)&image;
        image.header.e_phnum = 1 + round % 3;
        image.segments[1] = image.segments[2] = image.segments[0];
        for (int n = 1 + rand_r(&seed) % 6; n > 0; n--) {
            size_t at = 4 + rand_r(&seed) % (offsetof(struct image, code) - 4);
            bytes[at] = rand_r(&seed) % 2 ? rand_r(&seed) : 1 << rand_r(&seed) % 8;
        }
        execute_image(&image, sizeof image - rand_r(&seed) % 2 * (rand_r(&seed) % sizeof image));
    }
}

int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (getuid() != 0)
        return 2;
    unsigned seed = argc > 1 ? strtoul(argv[1], NULL, 0) : 1;
    printf("seed %u\n", seed);
    char folder[] = "/tmp/hostileXXXXXX";
    CHECK(mkdtemp(folder) && chmod(folder, 0755) == 0 && chdir(folder) == 0);
    one_thing_wrong();
    struct memory before = memory_now();
    interpreters();
    random_bytes(seed, 300);
    CHECK(chdir("/") == 0);
    CHECK(end_what_is_left() == 0);
    CHECK(system("rm -rf /tmp/hostile*") == 0);
    CHECK(memory_is_back(&before));
    return check_done();
}
