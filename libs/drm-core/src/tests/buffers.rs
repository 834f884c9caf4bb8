//! Dumb buffers, handles, names, PRIME, framebuffers.

use super::*;

#[test]
pub(super) fn dumb_buffers_are_bounded_and_freed() {
    let mut world = World::new();
    let mut client = world.open(1, 1000);
    let mut make = |width, height, bpp| {
        let mut dumb = CreateDumb { width, height, bpp, ..Default::default() };
        world.ioctl(&mut client, 0xb2, &mut dumb).map(|_| dumb)
    };
    for (width, height, bpp) in
        [(0, 1, 32), (1, 0, 32), (1, 1, 0), (u32::MAX, 2, 32), (1, 1, u32::MAX), (65536, 65536, 8)]
    {
        assert_eq!(make(width, height, bpp).err(), Some(IoErrno::INVAL), "{width} {height} {bpp}");
    }
    // More than one file may hold.
    assert_eq!(make(32768, 32767, 32).err(), Some(IoErrno::NOMEM));
    let dumb = make(100, 10, 32).unwrap();
    assert_eq!((dumb.handle, dumb.pitch, dumb.size), (1, 400, 4096));
    let mut map = MapDumb { handle: dumb.handle, ..Default::default() };
    world.ioctl(&mut client, 0xb3, &mut map).unwrap();
    let backing = client.program.mmap(&mut world.card, client.fh, map.offset, 4096, 3).unwrap();
    assert!(backing.is_some());
    assert_eq!(client.program.mmap(&mut world.card, client.fh, map.offset, 8192, 3).err(), Some(IoErrno::INVAL));
    assert_eq!(client.program.mmap(&mut world.card, client.fh, map.offset + 4096, 4096, 3).err(), Some(IoErrno::INVAL));
    // Another client knows the offset, but has not got the buffer.
    let mut thief = world.open(2, 1000);
    assert_eq!(thief.program.mmap(&mut world.card, thief.fh, map.offset, 4096, 3).err(), Some(IoErrno::ACCESS));
    world.ioctl(&mut client, 0xb4, &mut DestroyDumb { handle: 1 }).unwrap();
    assert!(world.log.borrow().buffers.is_empty());
    assert_eq!(world.ioctl(&mut client, 0xb4, &mut DestroyDumb { handle: 1 }), Err(IoErrno::INVAL));
    assert_eq!(world.ioctl(&mut client, 0xb3, &mut map), Err(IoErrno::NOENT));
    assert_eq!(world.dumb(&mut client, 1, 1).handle, 1, "the lowest free handle");
    world.close(client);
    assert!(world.log.borrow().buffers.is_empty());
}

#[test]
pub(super) fn prime_knows_its_own_buffers() {
    let mut world = World::new();
    let mut client = world.open(1, 0);
    let dumb = world.dumb(&mut client, 64, 64);
    let mut export = PrimeHandle { handle: dumb.handle, flags: DRM_CLOEXEC | DRM_RDWR, fd: -1 };
    world.ioctl(&mut client, 0x2d, &mut export).unwrap();
    let mut import = PrimeHandle { fd: export.fd, ..Default::default() };
    world.ioctl(&mut client, 0x2e, &mut import).unwrap();
    assert_eq!(import.handle, dumb.handle, "the same buffer has the same handle");
    // In another process it is the same buffer with a handle of its own, also through the render node.
    let Some(scheme::fake::Installed::Fd(fd)) = client.program.take_file(export.fd) else { panic!("no descriptor") };
    let mut other = world.open_node(2, 1000, 2);
    let number = other.program.install(&fd);
    import = PrimeHandle { fd: number, ..Default::default() };
    world.ioctl(&mut other, 0x2e, &mut import).unwrap();
    assert_eq!(world.log.borrow().buffers.len(), 1);
    world.ioctl(&mut client, 0xb4, &mut DestroyDumb { handle: dumb.handle }).unwrap();
    assert_eq!(world.log.borrow().buffers.len(), 1);
    world.ioctl(&mut other, 0x09, &mut GemClose { handle: import.handle, pad: 0 }).unwrap();
    assert!(world.log.borrow().buffers.is_empty());
    // A foreign buffer is imported; what is closed, or no descriptor, is refused.
    let foreign = memfd_create("foreign", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&foreign, 8192).unwrap();
    import.fd = other.program.install(&foreign);
    world.ioctl(&mut other, 0x2e, &mut import).unwrap();
    assert_eq!(world.log.borrow().buffers.values().copied().collect::<Vec<_>>(), [8192]);
    import.fd = 12345;
    assert_eq!(world.ioctl(&mut other, 0x2e, &mut import), Err(IoErrno::BADF));
    export = PrimeHandle { handle: 77, flags: 0, fd: -1 };
    assert_eq!(world.ioctl(&mut client, 0x2d, &mut export), Err(IoErrno::NOENT));
    export.flags = 1;
    assert_eq!(world.ioctl(&mut client, 0x2d, &mut export), Err(IoErrno::INVAL));
}

#[test]
pub(super) fn names_are_for_authenticated_clients() {
    let mut world = World::new();
    let mut owner = world.open(1, 0);
    let dumb = world.dumb(&mut owner, 8, 8);
    let mut flink = GemFlink { handle: dumb.handle, name: 0 };
    world.ioctl(&mut owner, 0x0a, &mut flink).unwrap();
    let mut stranger = world.open(2, 1000);
    let mut open = GemOpen { name: flink.name, ..Default::default() };
    assert_eq!(world.ioctl(&mut stranger, 0x0b, &mut open), Err(IoErrno::ACCESS));
    let mut magic = Auth::default();
    world.ioctl(&mut stranger, 0x02, &mut magic).unwrap();
    world.ioctl(&mut owner, 0x11, &mut magic).unwrap();
    world.ioctl(&mut stranger, 0x0b, &mut open).unwrap();
    assert_eq!(open.size, 4096);
    world.close(owner);
    world.ioctl(&mut stranger, 0x09, &mut GemClose { handle: open.handle, pad: 0 }).unwrap();
    assert_eq!(world.ioctl(&mut stranger, 0x0b, &mut open), Err(IoErrno::NOENT), "the name went with the buffer");
}

#[test]
pub(super) fn framebuffers_are_checked() {
    let mut world = World::new();
    let mut client = world.open(1, 0);
    let dumb = world.dumb(&mut client, 100, 100);
    let good = FbCmd2 {
        width: 100,
        height: 100,
        pixel_format: DRM_FORMAT_XRGB8888,
        handles: [dumb.handle, 0, 0, 0],
        pitches: [400, 0, 0, 0],
        ..Default::default()
    };
    let cases: &[(&dyn Fn(&mut FbCmd2), IoErrno)] = &[
        (&|f| f.width = 0, IoErrno::INVAL),
        (&|f| f.height = 8193, IoErrno::INVAL),
        (&|f| f.pixel_format = 0, IoErrno::INVAL),
        (&|f| f.pixel_format = DRM_FORMAT_BGRX8888, IoErrno::INVAL),
        (&|f| f.pitches[0] = 399, IoErrno::INVAL),
        (&|f| f.pitches[0] = 500, IoErrno::INVAL),
        (&|f| f.pitches[0] = u32::MAX, IoErrno::RANGE),
        (&|f| f.offsets[0] = 1024, IoErrno::INVAL),
        (&|f| f.offsets[0] = u32::MAX, IoErrno::RANGE),
        (&|f| f.handles[0] = 0, IoErrno::INVAL),
        (&|f| f.handles[0] = 9, IoErrno::NOENT),
        (&|f| f.handles[1] = dumb.handle, IoErrno::INVAL),
        (&|f| f.modifier[0] = 1, IoErrno::INVAL),
        (&|f| (f.flags, f.modifier[0]) = (DRM_MODE_FB_MODIFIERS, 1 << 56), IoErrno::INVAL),
        (&|f| f.flags = 4, IoErrno::INVAL),
    ];
    for (index, (change, errno)) in cases.iter().enumerate() {
        let mut fb = good;
        change(&mut fb);
        assert_eq!(world.ioctl(&mut client, 0xb8, &mut fb), Err(*errno), "case {index}");
    }
    let mut fb = FbCmd2 { flags: DRM_MODE_FB_MODIFIERS, ..good };
    world.ioctl(&mut client, 0xb8, &mut fb).unwrap();
    let mut old = FbCmd { width: 100, height: 100, pitch: 400, bpp: 32, depth: 24, handle: dumb.handle, fb_id: 0 };
    world.ioctl(&mut client, 0xae, &mut old).unwrap();
    old.depth = 7;
    assert_eq!(world.ioctl(&mut client, 0xae, &mut old), Err(IoErrno::INVAL));
    // Others see that it is there, and only the master what is in it.
    let mut spy = world.open(2, 1000);
    let mut get = FbCmd2 { fb_id: fb.fb_id, ..Default::default() };
    world.ioctl(&mut spy, 0xce, &mut get).unwrap();
    assert_eq!((get.width, get.pitches[0], get.handles[0]), (100, 400, 0));
    world.ioctl(&mut client, 0xce, &mut get).unwrap();
    assert_ne!(get.handles[0], 0);
    let mut get = FbCmd { fb_id: fb.fb_id, ..Default::default() };
    world.ioctl(&mut client, 0xad, &mut get).unwrap();
    assert_eq!((get.depth, get.bpp, get.pitch), (24, 32, 400));
    // Another's framebuffer is not ours to remove.
    assert_eq!(world.ioctl(&mut spy, 0xaf, &mut fb.fb_id.clone()), Err(IoErrno::NOENT));
}

#[test]
pub(super) fn a_drivers_own_ioctls() {
    let mut world = World::new();
    let mut client = world.open(1, 0);
    let mut render = world.open_node(2, 1000, 2);
    let mut value = 41_u64;
    assert_eq!(world.ioctl(&mut client, 0x40, &mut value), Ok(7));
    assert_eq!(value, 42);
    assert_eq!(world.ioctl(&mut render, 0x40, &mut value), Ok(7));
    assert_eq!(world.ioctl(&mut render, 0x41, &mut value), Err(IoErrno::ACCESS));
    assert_eq!(world.ioctl(&mut render, 0x42, &mut value), Err(IoErrno::INVAL));
}
