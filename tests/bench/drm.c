/*
 * Measures of a card: what its ioctls cost, with everything that its driver does for them. Time in which nothing is to do (the
 * device works, a frame ends) does not count. Needs a card that nobody is master of.
 *
 * Build: cc -O2 -static -pthread. Under `-icount shift=0,sleep=off` the figures are instructions, as those of micro.c.
 */
#include "bench.h"
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

/* include/uapi/drm/drm.h and drm_mode.h, which not every host has. */
#define DRM_IOWR(nr, type) _IOWR('d', nr, type)
struct get_cap { uint64_t capability, value; };
struct set_cap { uint64_t capability, value; };
struct card_res { uint64_t fbs, crtcs, connectors, encoders; uint32_t count_fbs, count_crtcs, count_connectors, count_encoders, min_w, max_w, min_h, max_h; };
struct modeinfo { uint32_t clock; uint16_t h[5], v[5]; uint32_t vrefresh, flags, type; char name[32]; };
struct crtc { uint64_t connectors; uint32_t count, crtc, fb, x, y, gamma, mode_valid; struct modeinfo mode; };
struct get_connector { uint64_t encoders, modes, props, values; uint32_t count_modes, count_props, count_encoders, encoder, connector, type, type_id, connection, mm_w, mm_h, subpixel, pad; };
struct plane_res { uint64_t planes; uint32_t count; };
struct get_plane { uint32_t plane, crtc, fb, possible, gamma, count_formats; uint64_t formats; };
struct obj_props { uint64_t props, values; uint32_t count, id, type; };
struct get_prop { uint64_t values, enums; uint32_t id, flags; char name[32]; uint32_t count_values, count_enums; };
struct create_dumb { uint32_t height, width, bpp, flags, handle, pitch; uint64_t size; };
struct map_dumb { uint32_t handle, pad; uint64_t offset; };
struct destroy_dumb { uint32_t handle; };
struct fb_cmd { uint32_t fb, width, height, pitch, bpp, depth, handle; };
struct clip { uint16_t x1, y1, x2, y2; };
struct dirty { uint32_t fb, flags, color, count; uint64_t clips; };
struct atomic { uint32_t flags, count_objs; uint64_t objs, counts, props, values, reserved, user; };
#define GET_CAP DRM_IOWR(0x0c, struct get_cap)
#define SET_CLIENT_CAP _IOW('d', 0x0d, struct set_cap)
#define GETRESOURCES DRM_IOWR(0xa0, struct card_res)
#define SETCRTC DRM_IOWR(0xa2, struct crtc)
#define GETCONNECTOR DRM_IOWR(0xa7, struct get_connector)
#define GETPROPERTY DRM_IOWR(0xaa, struct get_prop)
#define ADDFB DRM_IOWR(0xae, struct fb_cmd)
#define DIRTYFB DRM_IOWR(0xb1, struct dirty)
#define CREATE_DUMB DRM_IOWR(0xb2, struct create_dumb)
#define MAP_DUMB DRM_IOWR(0xb3, struct map_dumb)
#define DESTROY_DUMB DRM_IOWR(0xb4, struct destroy_dumb)
#define GETPLANERESOURCES DRM_IOWR(0xb5, struct plane_res)
#define GETPLANE DRM_IOWR(0xb6, struct get_plane)
#define OBJ_GETPROPERTIES DRM_IOWR(0xb9, struct obj_props)
#define ATOMIC DRM_IOWR(0xbc, struct atomic)
#define OBJECT_PLANE 0xeeeeeeee
enum { WIDTH = 1280, HEIGHT = 800, TEST_ONLY = 0x100, CAP_DUMB = 1, CLIENT_CAP_ATOMIC = 3 };

static int card;

static void call(unsigned long cmd, void *arg) { CHECK(ioctl(card, cmd, arg) == 0); }

static struct create_dumb dumb(void)
{
    struct create_dumb create = {.width = WIDTH, .height = HEIGHT, .bpp = 32};
    call(CREATE_DUMB, &create);
    return create;
}

/* Creates, maps, touches every page of and destroys a buffer. */
static void buffer_life(void)
{
    struct create_dumb create = dumb();
    struct map_dumb map = {.handle = create.handle};
    struct destroy_dumb destroy = {create.handle};
    call(MAP_DUMB, &map);
    char *m = mmap(NULL, create.size, PROT_READ | PROT_WRITE, MAP_SHARED, card, (off_t)map.offset);
    CHECK(m != MAP_FAILED);
    for (size_t i = 0; i < create.size; i += 4096)
        m[i] = 1;
    munmap(m, create.size);
    call(DESTROY_DUMB, &destroy);
}

static uint32_t property(uint32_t object, uint32_t type, const char *name)
{
    uint32_t ids[64];
    uint64_t values[64];
    struct obj_props all = {(uintptr_t)ids, (uintptr_t)values, 64, object, type};
    call(OBJ_GETPROPERTIES, &all);
    for (uint32_t i = 0; i < all.count; i++) {
        struct get_prop one = {.id = ids[i]};
        call(GETPROPERTY, &one);
        if (strcmp(one.name, name) == 0)
            return ids[i];
    }
    fprintf(stderr, "no property %s\n", name);
    exit(1);
}

/* The first connected connector, its mode of WIDTH and HEIGHT, and the first CRTC. */
static struct crtc route(uint32_t *connector)
{
    uint32_t crtcs[16], connectors[16], encoders[16];
    struct card_res res = {.crtcs = (uintptr_t)crtcs, .connectors = (uintptr_t)connectors, .encoders = (uintptr_t)encoders,
                           .count_crtcs = 16, .count_connectors = 16, .count_encoders = 16};
    call(GETRESOURCES, &res);
    static struct modeinfo modes[128];
    for (uint32_t i = 0; i < res.count_connectors; i++) {
        struct get_connector probe = {.connector = connectors[i]};
        call(GETCONNECTOR, &probe);
        struct get_connector get = {.connector = connectors[i], .modes = (uintptr_t)modes, .count_modes = 128};
        call(GETCONNECTOR, &get);
        for (uint32_t k = 0; get.connection == 1 && k < get.count_modes; k++)
            if (modes[k].h[0] == WIDTH && modes[k].v[0] == HEIGHT) {
                *connector = connectors[i];
                return (struct crtc){.crtc = crtcs[0], .mode_valid = 1, .mode = modes[k], .count = 1};
            }
    }
    fprintf(stderr, "no mode of %dx%d\n", WIDTH, HEIGHT);
    exit(1);
}

static uint32_t plane_of(uint32_t fb)
{
    uint32_t planes[32];
    struct plane_res res = {(uintptr_t)planes, 32};
    call(GETPLANERESOURCES, &res);
    for (uint32_t i = 0; i < res.count; i++) {
        struct get_plane get = {.plane = planes[i]};
        call(GETPLANE, &get);
        if (get.fb == fb)
            return planes[i];
    }
    fprintf(stderr, "no plane shows the picture\n");
    exit(1);
}

int main(void)
{
    for (int i = 0; i < 1000 && card <= 0; i++) {
        card = open("/dev/dri/card0", O_RDWR);
        if (card < 0)
            usleep(10000);
    }
    CHECK(card > 0);
    start_idle();
    struct get_cap cap = {.capability = CAP_DUMB};
    report("drm-get-cap", MEASURE_BUSY(2000, call(GET_CAP, &cap)));
    report("drm-buffer-life", MEASURE_BUSY(50, buffer_life()));

    uint32_t connector;
    struct crtc set = route(&connector);
    struct create_dumb create = dumb();
    struct fb_cmd fb = {.width = WIDTH, .height = HEIGHT, .pitch = create.pitch, .bpp = 32, .depth = 24, .handle = create.handle};
    call(ADDFB, &fb);
    set.connectors = (uintptr_t)&connector;
    set.fb = fb.fb;
    call(SETCRTC, &set);

    struct set_cap client = {CLIENT_CAP_ATOMIC, 1};
    call(SET_CLIENT_CAP, &client);
    uint32_t plane = plane_of(fb.fb), count = 3;
    uint32_t props[3] = {property(plane, OBJECT_PLANE, "FB_ID"), property(plane, OBJECT_PLANE, "CRTC_X"), property(plane, OBJECT_PLANE, "CRTC_Y")};
    uint64_t values[3] = {fb.fb, 0, 0};
    struct atomic test = {.flags = TEST_ONLY, .count_objs = 1, .objs = (uintptr_t)&plane, .counts = (uintptr_t)&count,
                          .props = (uintptr_t)props, .values = (uintptr_t)values};
    report("drm-test-commit", MEASURE_BUSY(1000, call(ATOMIC, &test)));

    struct dirty whole = {.fb = fb.fb};
    report("drm-damage-whole", MEASURE_BUSY(60, call(DIRTYFB, &whole)));
    struct clip clip = {100, 100, 164, 164};
    struct dirty part = {.fb = fb.fb, .count = 1, .clips = (uintptr_t)&clip};
    report("drm-damage-64", MEASURE_BUSY(60, call(DIRTYFB, &part)));
    return 0;
}
