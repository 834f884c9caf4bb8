//! The interface from before the atomic one.

use super::*;

fn setcrtc(world: &World, client: &mut Client, fb: u32) -> ModeCrtc {
    let connectors = client.program.alloc(world.connector(0).as_bytes());
    ModeCrtc {
        set_connectors_ptr: connectors,
        count_connectors: 1,
        crtc_id: world.crtc(0),
        fb_id: fb,
        mode_valid: 1,
        mode: mode(),
        ..Default::default()
    }
}

fn lit(world: &mut World) -> (Client, u32) {
    let mut client = world.open(10, 0);
    let fb = world.fb(&mut client, 1024, 768, DRM_FORMAT_XRGB8888);
    let mut request = setcrtc(world, &mut client, fb);
    world.ioctl(&mut client, 0xa2, &mut request).expect("the CRTC is lit");
    (client, fb)
}

#[test]
pub(super) fn setcrtc_lights_and_darkens() {
    let mut world = World::new();
    let (mut client, fb) = lit(&mut world);
    assert!(world.card.state.crtcs[0].active);
    let bad = |change: &dyn Fn(&mut ModeCrtc), world: &mut World, client: &mut Client| {
        let mut request = setcrtc(world, client, fb);
        change(&mut request);
        world.ioctl(client, 0xa2, &mut request)
    };
    let (w, c) = (&mut world, &mut client);
    assert_eq!(bad(&|r| r.x = 0x10000, w, c), Err(IoErrno::RANGE));
    assert_eq!(bad(&|r| r.crtc_id = 1, w, c), Err(IoErrno::NOENT));
    assert_eq!(bad(&|r| r.fb_id = 9999, w, c), Err(IoErrno::NOENT));
    assert_eq!(bad(&|r| r.x = 1, w, c), Err(IoErrno::NOSPC));
    assert_eq!(bad(&|r| r.mode.clock = 0, w, c), Err(IoErrno::INVAL));
    assert_eq!(bad(&|r| r.count_connectors = 0, w, c), Err(IoErrno::INVAL));
    assert_eq!(bad(&|r| r.count_connectors = 99, w, c), Err(IoErrno::INVAL));
    assert_eq!(bad(&|r| r.set_connectors_ptr = 16, w, c), Err(IoErrno::FAULT));
    assert_eq!(bad(&|r| r.fb_id = u32::MAX, w, c), Ok(0), "the framebuffer that is there");
    let off = |r: &mut ModeCrtc| (r.mode_valid, r.count_connectors, r.fb_id) = (0, 0, 0);
    assert_eq!(bad(&off, w, c), Ok(0));
    assert!(!world.card.state.crtcs[0].enable && world.card.state.planes[0].fb.is_none());
    assert_eq!(world.card.state.connectors[0].crtc, None);
}

#[test]
pub(super) fn page_flips_follow_the_rules() {
    let mut world = World::new();
    let (mut client, fb) = lit(&mut world);
    let other = world.fb(&mut client, 1024, 768, DRM_FORMAT_RGB565);
    let small = world.fb(&mut client, 640, 480, DRM_FORMAT_XRGB8888);
    let flip = CrtcPageFlip {
        crtc_id: world.crtc(0),
        fb_id: fb,
        flags: DRM_MODE_PAGE_FLIP_EVENT,
        user_data: 42,
        ..Default::default()
    };
    let mut go = |change: &dyn Fn(&mut CrtcPageFlip)| {
        let mut flip = flip;
        change(&mut flip);
        world.ioctl(&mut client, 0xb0, &mut flip)
    };
    assert_eq!(go(&|f| f.flags |= DRM_MODE_PAGE_FLIP_ASYNC), Err(IoErrno::INVAL));
    assert_eq!(go(&|f| f.flags |= 0x10), Err(IoErrno::INVAL));
    assert_eq!(go(&|f| f.reserved_or_sequence = 1), Err(IoErrno::INVAL));
    assert_eq!(go(&|f| f.flags |= DRM_MODE_PAGE_FLIP_TARGET_RELATIVE), Err(IoErrno::INVAL));
    assert_eq!(go(&|f| f.fb_id = other), Err(IoErrno::INVAL), "another format");
    assert_eq!(go(&|f| f.fb_id = small), Err(IoErrno::NOSPC));
    assert_eq!(go(&|f| f.fb_id = 0), Err(IoErrno::NOENT));
    let second = world.crtc(1);
    let mut dark = CrtcPageFlip { crtc_id: second, ..flip };
    assert_eq!(world.ioctl(&mut client, 0xb0, &mut dark), Err(IoErrno::BUSY));
    let mut good = flip;
    assert_eq!(world.ioctl(&mut client, 0xb0, &mut good), Ok(0));
    assert_eq!(world.ioctl(&mut client, 0xb0, &mut good), Err(IoErrno::BUSY));
    assert!(world.channel.readiness(client.fh).is_some_and(|ready| ready.is_empty()));
    world.tick();
    assert!(world.channel.readiness(client.fh).is_some_and(|ready| ready.contains(scheme::Ready::IN)));
    let events = world.events(&mut client);
    assert_eq!((events.len(), events[0].user_data), (1, 42));
    assert!(world.events(&mut client).is_empty());
}

#[test]
pub(super) fn the_cursor_is_a_plane_that_waits_for_nothing() {
    let mut world = World::new();
    let (mut client, _) = lit(&mut world);
    let dumb = world.dumb(&mut client, 64, 64);
    let mut cursor = Cursor2 {
        flags: DRM_MODE_CURSOR_BO | DRM_MODE_CURSOR_MOVE,
        crtc_id: world.crtc(0),
        x: -5,
        y: 10,
        width: 64,
        height: 64,
        handle: dumb.handle,
        hot_x: 3,
        hot_y: 4,
    };
    let fh = client.fh;
    let arg = client.program.alloc(cursor.as_bytes());
    let cmd = Cmd::new(true, true, 0xbb, size_of::<Cursor2>());
    assert!(client.program.ioctl_begin(&mut world.card, fh, cmd.0, arg).is_ok(), "it is answered at once");
    let plane = world.card.state.planes[1].clone();
    assert_eq!((plane.crtc, plane.crtc_x, plane.crtc_w, plane.hotspot_x), (Some(0), -5, 64, 3));
    drop(plane);
    assert!(world.log.borrow().commits.last().unwrap().unpaced);
    assert!(world.log.borrow().commits.last().unwrap().unpaced);
    cursor.flags = DRM_MODE_CURSOR_MOVE;
    cursor.x = 77;
    world.ioctl(&mut client, 0xbb, &mut cursor).unwrap();
    assert_eq!((world.card.state.planes[1].crtc_x, world.card.state.planes[1].hotspot_y), (77, 4));
    cursor.flags = DRM_MODE_CURSOR_BO;
    cursor.handle = 0;
    world.ioctl(&mut client, 0xbb, &mut cursor).unwrap();
    assert!(!world.card.state.planes[1].visible());
    cursor.flags = 0;
    assert_eq!(world.ioctl(&mut client, 0xbb, &mut cursor), Err(IoErrno::INVAL));
    cursor.flags = DRM_MODE_CURSOR_BO;
    cursor.handle = 99;
    assert_eq!(world.ioctl(&mut client, 0xbb, &mut cursor), Err(IoErrno::NOENT));
    // The framebuffers that the cursor was made of are gone; only the screen's is left.
    world.settle();
    assert_eq!(world.log.borrow().framebuffers.len(), 1);
}

#[test]
pub(super) fn dpms_and_properties_one_at_a_time() {
    let mut world = World::new();
    let (mut client, _) = lit(&mut world);
    let (connector, dpms) = (world.connector(0), world.property("DPMS"));
    let mut set = ConnectorSetProperty { value: DRM_MODE_DPMS_OFF, prop_id: dpms, connector_id: connector };
    world.ioctl(&mut client, 0xab, &mut set).unwrap();
    assert!(!world.card.state.crtcs[0].active && world.card.state.crtcs[0].enable);
    assert_eq!(client.program.attr_show(&mut world.card, 16, 3).unwrap(), b"Off\n");
    set.value = DRM_MODE_DPMS_ON;
    world.ioctl(&mut client, 0xab, &mut set).unwrap();
    assert!(world.card.state.crtcs[0].active);
    set.value = 4;
    assert_eq!(world.ioctl(&mut client, 0xab, &mut set), Err(IoErrno::INVAL));
    set.connector_id = 77777;
    assert_eq!(world.ioctl(&mut client, 0xab, &mut set), Err(IoErrno::NOENT));
    let mut set = ObjSetProperty {
        value: 0,
        prop_id: world.property("ACTIVE"),
        obj_id: world.crtc(0),
        obj_type: DRM_MODE_OBJECT_CRTC,
        pad: 0,
    };
    world.ioctl(&mut client, 0xba, &mut set).unwrap();
    assert!(!world.card.state.crtcs[0].active);
    set.obj_type = DRM_MODE_OBJECT_PLANE;
    assert_eq!(world.ioctl(&mut client, 0xba, &mut set), Err(IoErrno::NOENT));
    set.obj_type = DRM_MODE_OBJECT_ANY;
    set.prop_id = world.property("FB_ID");
    assert_eq!(world.ioctl(&mut client, 0xba, &mut set), Err(IoErrno::INVAL));
}

#[test]
pub(super) fn a_removed_framebuffer_leaves_the_screen_and_a_closed_one_stays() {
    let mut world = World::new();
    let (mut client, fb) = lit(&mut world);
    assert_eq!(world.ioctl(&mut client, 0xd0, &mut CloseFb { fb_id: fb, pad: 1 }), Err(IoErrno::INVAL));
    world.ioctl(&mut client, 0xd0, &mut CloseFb { fb_id: fb, pad: 0 }).unwrap();
    assert!(world.card.state.planes[0].visible());
    assert_eq!(world.ioctl(&mut client, 0xaf, &mut { fb }), Err(IoErrno::NOENT), "it is nobody's");
    let other = world.fb(&mut client, 1024, 768, DRM_FORMAT_XRGB8888);
    let mut request = setcrtc(&world, &mut client, other);
    world.ioctl(&mut client, 0xa2, &mut request).unwrap();
    world.ioctl(&mut client, 0xaf, &mut { other }).unwrap();
    assert!(!world.card.state.planes[0].visible() && world.card.state.crtcs[0].active);
    world.settle();
    assert!(world.log.borrow().framebuffers.is_empty() && world.log.borrow().buffers.is_empty());
    // A client that goes takes its picture with it.
    let last = world.fb(&mut client, 1024, 768, DRM_FORMAT_XRGB8888);
    let mut request = setcrtc(&world, &mut client, last);
    world.ioctl(&mut client, 0xa2, &mut request).unwrap();
    world.close(client);
    world.settle();
    assert!(!world.card.state.planes[0].visible());
    assert!(world.log.borrow().framebuffers.is_empty() && world.log.borrow().buffers.is_empty());
}

#[test]
pub(super) fn dirty_rectangles_reach_the_driver() {
    let mut world = World::new();
    let (mut client, fb) = lit(&mut world);
    let clips = client.program.alloc([ClipRect { x1: 1, y1: 1, x2: 9, y2: 9 }; 2].as_bytes());
    let mut dirty = FbDirty { fb_id: fb, num_clips: 2, clips_ptr: clips, ..Default::default() };
    assert_eq!(world.ioctl(&mut client, 0xb1, &mut dirty), Ok(0));
    assert_eq!(world.log.borrow().commits.last().unwrap().damage(0), vec![Rect { x1: 1, y1: 1, x2: 9, y2: 9 }; 2]);
    let mut bad = FbDirty { clips_ptr: 0, ..dirty };
    assert_eq!(world.ioctl(&mut client, 0xb1, &mut bad), Err(IoErrno::INVAL));
    bad = FbDirty { num_clips: 257, ..dirty };
    assert_eq!(world.ioctl(&mut client, 0xb1, &mut bad), Err(IoErrno::INVAL));
    bad = FbDirty { fb_id: 0, ..dirty };
    assert_eq!(world.ioctl(&mut client, 0xb1, &mut bad), Err(IoErrno::NOENT));
}

#[test]
pub(super) fn gamma_tables() {
    let mut world = World::new();
    let (mut client, _) = lit(&mut world);
    let table = client.program.alloc([5_u16, 6, 7, 8].as_bytes());
    let mut lut = CrtcLut { crtc_id: world.crtc(0), gamma_size: 4, red: table, green: table, blue: table };
    world.ioctl(&mut client, 0xa5, &mut lut).unwrap();
    assert_eq!(world.card.state.crtcs[0].gamma.as_deref().unwrap()[3], [8, 8, 8]);
    let out = client.program.alloc(&[0; 8]);
    (lut.red, lut.green, lut.blue) = (out, out, out);
    world.ioctl(&mut client, 0xa4, &mut lut).unwrap();
    assert_eq!(client.program.peek(out, 8).unwrap(), [5_u16, 6, 7, 8].as_bytes());
    lut.gamma_size = 3;
    assert_eq!(world.ioctl(&mut client, 0xa5, &mut lut), Err(IoErrno::INVAL));
    let mut bare = World::with(Features::default());
    let mut client = bare.open(1, 0);
    lut = CrtcLut { crtc_id: bare.crtc(0), gamma_size: 0, ..lut };
    assert_eq!(bare.ioctl(&mut client, 0xa5, &mut lut), Err(IoErrno::NOSYS));
    assert_eq!(bare.ioctl(&mut client, 0xa4, &mut lut), Ok(0));
}

#[test]
pub(super) fn frame_counters() {
    let mut world = World::new();
    let (mut client, _) = lit(&mut world);
    let mut wait = WaitVblank { kind: DRM_VBLANK_RELATIVE, sequence: 0, ..Default::default() };
    world.ioctl(&mut client, 0x3a, &mut wait).unwrap();
    let now = wait.sequence;
    // Two frames on, made again as an absolute wait.
    wait = WaitVblank { kind: DRM_VBLANK_RELATIVE, sequence: 2, ..Default::default() };
    let Err(Ok((pending, _))) = world.begin(&mut client, 0x3a, &mut wait) else { panic!("it did not wait") };
    world.tick();
    assert!(world.late(pending).is_none());
    world.tick();
    let body = world.late(pending).expect("answered").expect("well");
    assert_eq!(WaitVblank::read_from_bytes(&body[16..]).unwrap().sequence, now + 2);
    wait = WaitVblank {
        kind: DRM_VBLANK_RELATIVE | DRM_VBLANK_EVENT,
        sequence: 1,
        signal_or_sec: 99,
        ..Default::default()
    };
    world.ioctl(&mut client, 0x3a, &mut wait).unwrap();
    assert!(world.events(&mut client).is_empty());
    world.tick();
    let events = world.events(&mut client);
    assert_eq!((events[0].kind, events[0].user_data, events[0].sequence), (DRM_EVENT_VBLANK, 99, now + 3));
    let mut sequence = CrtcGetSequence { crtc_id: world.crtc(0), ..Default::default() };
    world.ioctl(&mut client, 0x3b, &mut sequence).unwrap();
    assert_eq!((sequence.active, sequence.sequence as u32), (1, now + 3));
    let mut queue =
        CrtcQueueSequence { crtc_id: world.crtc(0), flags: DRM_CRTC_SEQUENCE_RELATIVE, sequence: 1, user_data: 5 };
    world.ioctl(&mut client, 0x3c, &mut queue).unwrap();
    assert_eq!(queue.sequence as u32, now + 4);
    world.tick();
    assert_eq!(world.events(&mut client)[0].kind, DRM_EVENT_CRTC_SEQUENCE);
    // A card that does not count, as Linux's virtio-gpu.
    let mut bare = World::with(Features::default());
    let mut client = bare.open(1, 0);
    assert_eq!(bare.ioctl(&mut client, 0x3a, &mut wait), Err(IoErrno::OPNOTSUPP));
    sequence.crtc_id = bare.crtc(0);
    assert_eq!(bare.ioctl(&mut client, 0x3b, &mut sequence), Err(IoErrno::OPNOTSUPP));
}
