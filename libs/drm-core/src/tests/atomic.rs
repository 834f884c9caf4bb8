//! The atomic interface: what is refused, what reaches the driver, events and fences.

use super::*;

const NONBLOCK: u32 = DRM_MODE_ATOMIC_NONBLOCK;
const EVENT: u32 = DRM_MODE_PAGE_FLIP_EVENT;
const TEST: u32 = DRM_MODE_ATOMIC_TEST_ONLY;
const MODESET: u32 = DRM_MODE_ATOMIC_ALLOW_MODESET;

#[test]
pub(super) fn a_modeset_reaches_the_driver_and_is_read_back() {
    let mut world = World::new();
    let (mut client, fb) = world.lit_client();
    let log = world.log.borrow();
    let change = log.commits.last().expect("there was a commit");
    assert!(change.modeset(0) && !change.modeset(1));
    assert_eq!(change.new.crtcs[0].mode.expect("a mode").hdisplay, 1024);
    assert_eq!(change.new.connectors[0].encoder, Some(0));
    assert_eq!(change.damage(0), [Rect::new(0, 0, 1024, 768)]);
    drop(log);
    let mut crtc = ModeCrtc { crtc_id: world.crtc(0), ..Default::default() };
    world.ioctl(&mut client, 0xa1, &mut crtc).unwrap();
    assert_eq!((crtc.fb_id, crtc.mode_valid, crtc.mode.vdisplay), (fb, 1, 768));
    let mut encoder = GetEncoder { encoder_id: world.card.encoders[0], ..Default::default() };
    world.ioctl(&mut client, 0xa6, &mut encoder).unwrap();
    assert_eq!(encoder.crtc_id, world.crtc(0));
}

#[test]
pub(super) fn only_atomic_clients_commit() {
    let mut world = World::new();
    let mut client = world.open(10, 0);
    assert_eq!(world.atomic(&mut client, &[], 0), Err(IoErrno::INVAL));
    world.go_atomic(&mut client);
    assert_eq!(world.atomic(&mut client, &[], 0), Ok(0));
    assert_eq!(world.atomic(&mut client, &[], 1 << 20), Err(IoErrno::INVAL));
    assert_eq!(world.atomic(&mut client, &[], TEST | EVENT), Err(IoErrno::INVAL));
    assert_eq!(world.atomic(&mut client, &[], DRM_MODE_PAGE_FLIP_ASYNC), Err(IoErrno::INVAL));
    // An event for which nothing would ever end.
    assert_eq!(world.atomic(&mut client, &[], EVENT | NONBLOCK), Err(IoErrno::INVAL));
}

#[test]
pub(super) fn a_test_has_no_effect() {
    let mut world = World::new();
    let mut client = world.open(10, 0);
    world.go_atomic(&mut client);
    let fb = world.fb(&mut client, 1024, 768, DRM_FORMAT_XRGB8888);
    let blob = world.blob(&mut client, mode().as_bytes());
    let props = world.lit(fb, blob);
    assert_eq!(world.atomic(&mut client, &props, TEST), Err(IoErrno::INVAL), "a modeset has to be allowed");
    assert_eq!(world.atomic(&mut client, &props, TEST | MODESET), Ok(0));
    assert!(world.log.borrow().commits.is_empty());
    assert!(!world.card.state.crtcs[0].active);
    world.log.borrow_mut().refuse = true;
    assert_eq!(world.atomic(&mut client, &props, MODESET), Err(IoErrno::INVAL));
    assert!(!world.card.state.crtcs[0].active);
}

#[test]
pub(super) fn the_rules_of_a_state() {
    let mut world = World::new();
    let (mut client, fb) = world.lit_client();
    let (crtc, plane, connector) = (world.crtc(0), world.plane(0), world.connector(0));
    let small = world.fb(&mut client, 64, 64, DRM_FORMAT_ARGB8888);
    let cases: &[(&[(u32, &str, u64)], IoErrno)] = &[
        // A framebuffer without a CRTC, and the other way round.
        (&[(plane, "CRTC_ID", 0)], IoErrno::INVAL),
        (&[(plane, "FB_ID", 0)], IoErrno::INVAL),
        // The source beyond the framebuffer; a rectangle beyond what can be computed.
        (&[(plane, "SRC_X", 1 << 16)], IoErrno::NOSPC),
        (&[(plane, "CRTC_X", i32::MAX as u64)], IoErrno::RANGE),
        // Scaling; a primary plane that does not cover its CRTC.
        (&[(plane, "CRTC_W", 512)], IoErrno::RANGE),
        (&[(plane, "CRTC_X", 1)], IoErrno::INVAL),
        // A format that the plane has not.
        (&[(plane, "FB_ID", small.into())], IoErrno::INVAL),
        // A plane of the other CRTC.
        (&[(plane, "CRTC_ID", world.crtc(1).into())], IoErrno::INVAL),
        // A CRTC with a mode but no connector, a connector without a mode, active without a mode.
        (&[(connector, "CRTC_ID", 0)], IoErrno::INVAL),
        (&[(crtc, "MODE_ID", 0)], IoErrno::INVAL),
        (&[(world.crtc(1), "ACTIVE", 1)], IoErrno::INVAL),
        // The encoder reaches the first CRTC only.
        (&[(connector, "CRTC_ID", world.crtc(1).into())], IoErrno::INVAL),
        // Values outside of what the property takes.
        (&[(crtc, "ACTIVE", 2)], IoErrno::INVAL),
        (&[(crtc, "MODE_ID", u64::from(fb))], IoErrno::INVAL),
        (&[(plane, "FB_ID", crtc.into())], IoErrno::INVAL),
        (&[(plane, "type", 0)], IoErrno::INVAL),
        (&[(connector, "DPMS", 3)], IoErrno::INVAL),
        (&[(plane, "CRTC_W", 1 << 31)], IoErrno::INVAL),
        // Properties that the object has not, and no object.
        (&[(plane, "ACTIVE", 1)], IoErrno::NOENT),
        (&[(0xdead, "ACTIVE", 1)], IoErrno::NOENT),
        (&[(fb, "ACTIVE", 1)], IoErrno::NOENT),
    ];
    for (props, errno) in cases {
        assert_eq!(world.atomic(&mut client, props, MODESET), Err(*errno), "{props:?}");
    }
    let blob = world.blob(&mut client, &[0; 68]);
    assert_eq!(world.atomic(&mut client, &[(crtc, "MODE_ID", blob.into())], MODESET), Err(IoErrno::INVAL), "no mode");
    let blob = world.blob(&mut client, &[0; 67]);
    assert_eq!(world.atomic(&mut client, &[(crtc, "MODE_ID", blob.into())], MODESET), Err(IoErrno::INVAL), "too short");
}

#[test]
pub(super) fn a_flip_is_told_at_the_end_of_the_frame() {
    let mut world = World::new();
    let (mut client, _) = world.lit_client();
    let fb = world.fb(&mut client, 1024, 768, DRM_FORMAT_XRGB8888);
    let flip = [(world.plane(0), "FB_ID", u64::from(fb))];
    assert_eq!(world.atomic(&mut client, &flip, NONBLOCK | EVENT), Ok(0));
    assert!(world.events(&mut client).is_empty(), "the frame is not over");
    assert_eq!(world.atomic(&mut client, &flip, NONBLOCK | EVENT), Err(IoErrno::BUSY));
    world.tick();
    let events = world.events(&mut client);
    assert_eq!(events.len(), 1);
    let event = &events[0];
    assert_eq!((event.kind, event.user_data, event.crtc_id), (DRM_EVENT_FLIP_COMPLETE, 0x5eed, world.crtc(0)));
    assert!(event.sequence > 0);
    // The second waits a whole frame from the first.
    assert_eq!(world.atomic(&mut client, &flip, NONBLOCK | EVENT), Ok(0));
    world.tick();
    let next = world.events(&mut client);
    assert_eq!(next[0].sequence, event.sequence + 1);
}

#[test]
pub(super) fn the_driver_says_when_a_flip_is_done() {
    let mut world = World::new();
    let (mut client, _) = world.lit_client();
    world.log.borrow_mut().pending = true;
    let fb = world.fb(&mut client, 1024, 768, DRM_FORMAT_XRGB8888);
    let flip = [(world.plane(0), "FB_ID", u64::from(fb))];
    assert_eq!(world.atomic(&mut client, &flip, NONBLOCK | EVENT), Ok(0));
    world.tick();
    assert!(world.events(&mut client).is_empty(), "the device is slow");
    world.log.borrow_mut().events.push(Event::FlipDone { crtc: 0 });
    world.pass(1);
    assert_eq!(world.events(&mut client).len(), 1);
}

#[test]
pub(super) fn a_blocking_commit_waits_its_turn() {
    let mut world = World::new();
    let (mut client, _) = world.lit_client();
    let fb = world.fb(&mut client, 1024, 768, DRM_FORMAT_XRGB8888);
    let flip = [(world.plane(0), "FB_ID", u64::from(fb))];
    world.atomic(&mut client, &flip, NONBLOCK).unwrap();
    let before = world.log.borrow().commits.len();
    let mut request = world.request(&mut client, &flip, 0, 0);
    let Err(Ok((pending, _))) = world.begin(&mut client, 0xbc, &mut request) else { panic!("it did not wait") };
    assert_eq!(world.log.borrow().commits.len(), before, "nothing happened yet");
    world.tick();
    assert_eq!(world.log.borrow().commits.len(), before + 1, "now it is made");
    assert!(world.late(pending).is_none(), "and waits for its own frame");
    world.tick();
    assert!(world.late(pending).expect("answered").is_ok());

    // One that is interrupted while it waits has had no effect.
    world.atomic(&mut client, &flip, NONBLOCK).unwrap();
    let Err(Ok((pending, _))) = world.begin(&mut client, 0xbc, &mut request) else { panic!("it did not wait") };
    client.program.interrupt(&mut world.card, pending);
    assert_eq!(world.late(pending), Some(Err(IoErrno::INTR)));
    world.tick();
    assert_eq!(world.log.borrow().commits.len(), before + 2);
}

#[test]
pub(super) fn fences_hold_a_commit_back_and_tell_of_it() {
    let mut world = World::new();
    let (mut client, _) = world.lit_client();
    let fb = world.fb(&mut client, 1024, 768, DRM_FORMAT_XRGB8888);
    let fence = new_fence();
    let fd = client.program.install(&fence);
    let out = client.program.alloc(&7_i32.to_ne_bytes());
    let flip = [
        (world.plane(0), "FB_ID", u64::from(fb)),
        (world.plane(0), "IN_FENCE_FD", fd as u64),
        (world.crtc(0), "OUT_FENCE_PTR", out),
    ];
    let before = world.log.borrow().commits.len();
    assert_eq!(world.atomic(&mut client, &flip, NONBLOCK), Ok(0));
    let number = i32::from_ne_bytes(client.program.peek(out, 4).unwrap().try_into().unwrap());
    let Some(scheme::fake::Installed::Fd(done)) = client.program.take_file(number) else { panic!("no out fence") };
    world.tick();
    assert_eq!(world.log.borrow().commits.len(), before, "the picture is not drawn yet");
    assert_eq!(world.atomic(&mut client, &flip[..1], NONBLOCK), Err(IoErrno::BUSY));
    signal(&fence);
    world.pass(1);
    assert_eq!(world.log.borrow().commits.len(), before + 1);
    assert!(!is_signalled(&done));
    world.tick();
    assert!(is_signalled(&done));

    // A blocking commit waits for its fence before it has any effect.
    let late = new_fence();
    let fd = client.program.install(&late);
    let mut request = world.request(&mut client, &[(world.plane(0), "IN_FENCE_FD", fd as u64)], 0, 0);
    let Err(Ok((pending, _))) = world.begin(&mut client, 0xbc, &mut request) else { panic!("it did not wait") };
    assert_eq!(world.log.borrow().commits.len(), before + 1);
    signal(&late);
    world.pass(1);
    assert_eq!(world.log.borrow().commits.len(), before + 2);
    world.tick();
    assert!(world.late(pending).expect("answered").is_ok());
    // A test leaves -1 where the out fence would be, and no fence.
    assert_eq!(world.atomic(&mut client, &flip[2..], TEST), Ok(0));
    assert_eq!(client.program.peek(out, 4).unwrap(), (-1_i32).to_ne_bytes());
}

#[test]
pub(super) fn damage_is_of_one_commit() {
    let mut world = World::new();
    let (mut client, _) = world.lit_client();
    let fb = world.fb(&mut client, 1024, 768, DRM_FORMAT_XRGB8888);
    let clip = |x1, y1, x2, y2| ModeRect { x1, y1, x2, y2 };
    let clips = world.blob(&mut client, [clip(1, 2, 3, 4), clip(10, 20, 30, 40)].as_bytes());
    let plane = world.plane(0);
    let flip = [(plane, "FB_ID", u64::from(fb)), (plane, "FB_DAMAGE_CLIPS", u64::from(clips))];
    world.atomic(&mut client, &flip, 0).unwrap();
    let change = world.log.borrow().commits.last().unwrap().clone();
    assert_eq!(change.damage(0), [Rect { x1: 1, y1: 2, x2: 3, y2: 4 }, Rect { x1: 10, y1: 20, x2: 30, y2: 40 }]);
    assert_eq!(change.merged_damage(0), Some(Rect { x1: 1, y1: 2, x2: 30, y2: 40 }));
    assert!(change.fb_changed(0));
    world.atomic(&mut client, &flip[..1], 0).unwrap();
    assert_eq!(world.log.borrow().commits.last().unwrap().damage(0), [Rect::new(0, 0, 1024, 768)]);
    for bad in [clip(0, 0, 1025, 1), clip(-1, 0, 1, 1), clip(5, 5, 5, 6)] {
        let clips = world.blob(&mut client, bad.as_bytes());
        let damage = [(plane, "FB_DAMAGE_CLIPS", u64::from(clips))];
        assert_eq!(world.atomic(&mut client, &damage, 0), Err(IoErrno::INVAL), "{bad:?}");
    }
}

#[test]
pub(super) fn memory_that_is_not_there_is_brought_in_and_what_is_wrong_is_a_fault() {
    let mut world = World::new();
    let (mut client, fb) = world.lit_client();
    let flip = [(world.plane(0), "FB_ID", u64::from(fb))];
    let request = world.request(&mut client, &flip, NONBLOCK | EVENT, 9);
    for address in [request.objs_ptr, request.count_props_ptr, request.props_ptr, request.prop_values_ptr] {
        client.program.evict(address);
    }
    let address = client.program.alloc(request.as_bytes());
    for page in [request.objs_ptr, request.props_ptr] {
        client.program.evict(page);
    }
    let cmd = Cmd::new(true, true, 0xbc, size_of::<Atomic>());
    assert!(client.program.ioctl_begin(&mut world.card, client.fh, cmd.0, address).is_ok());
    assert!(client.program.retries() > 0);
    world.tick();
    assert_eq!(world.events(&mut client).len(), 1, "it had its effect once");
    let mut bad = Atomic { props_ptr: 8, ..request };
    assert_eq!(world.ioctl(&mut client, 0xbc, &mut bad), Err(IoErrno::FAULT));
    let mut huge = Atomic { count_objs: u32::MAX, ..request };
    assert_eq!(world.ioctl(&mut client, 0xbc, &mut huge), Err(IoErrno::INVAL));
    // Not even the argument.
    assert_eq!(client.program.ioctl_raw(&mut world.card, client.fh, cmd.0, 8), Err(IoErrno::FAULT));
}

#[test]
pub(super) fn events_that_nobody_reads_are_bounded() {
    let mut world = World::new();
    let (mut client, fb) = world.lit_client();
    let flip = [(world.plane(0), "FB_ID", u64::from(fb))];
    let mut made = 0;
    let errno = loop {
        match world.atomic(&mut client, &flip, NONBLOCK | EVENT) {
            Ok(_) => made += 1,
            Err(errno) => break errno,
        }
        world.tick();
    };
    assert_eq!((made, errno), (4096 / 32, IoErrno::NOMEM));
    assert_eq!(world.events(&mut client).len(), made);
    assert_eq!(world.atomic(&mut client, &flip, NONBLOCK | EVENT), Ok(0));
}

#[test]
pub(super) fn an_object_in_use_outlives_its_name() {
    let mut world = World::new();
    let (mut client, _) = world.lit_client();
    let blob = world.card.state.crtcs[0].mode_blob.as_ref().expect("the mode has a blob").id;
    world.ioctl(&mut client, 0xbe, &mut DestroyBlob { blob_id: blob }).unwrap();
    let mut get = GetBlob { blob_id: blob, ..Default::default() };
    assert_eq!(world.ioctl(&mut client, 0xac, &mut get), Ok(0));
    assert_eq!(get.length, 68);
    assert_eq!(world.ioctl(&mut client, 0xbe, &mut DestroyBlob { blob_id: blob }), Err(IoErrno::PERM));
    // Off, and the blob goes with the mode.
    let off = [(world.connector(0), "CRTC_ID", 0), (world.crtc(0), "ACTIVE", 0), (world.crtc(0), "MODE_ID", 0)];
    world.atomic(&mut client, &off, MODESET).unwrap();
    world.settle();
    assert_eq!(world.ioctl(&mut client, 0xac, &mut get), Err(IoErrno::NOENT));
}

#[test]
pub(super) fn a_cursor_does_not_hurry_a_picture_and_a_removal_comes_after_it() {
    let mut world = World::new();
    let (mut client, _) = world.lit_client();
    let fb = world.fb(&mut client, 1024, 768, DRM_FORMAT_XRGB8888);
    let fence = new_fence();
    let fd = client.program.install(&fence);
    let flip = [(world.plane(0), "FB_ID", u64::from(fb)), (world.plane(0), "IN_FENCE_FD", fd as u64)];
    let before = world.log.borrow().commits.len();
    world.atomic(&mut client, &flip, NONBLOCK).unwrap();
    let dumb = world.dumb(&mut client, 64, 64);
    let mut cursor = Cursor2 {
        flags: DRM_MODE_CURSOR_BO,
        crtc_id: world.crtc(0),
        width: 64,
        height: 64,
        handle: dumb.handle,
        ..Default::default()
    };
    world.ioctl(&mut client, 0xbb, &mut cursor).unwrap();
    let planes = |world: &World| world.log.borrow().commits[before..].iter().map(|c| c.planes).collect::<Vec<_>>();
    assert_eq!(planes(&world), [1 << 1], "the cursor alone");
    world.ioctl(&mut client, 0xaf, &mut { fb }).unwrap();
    assert_eq!(planes(&world), [1 << 1, 1, 1], "the picture, then nothing in its place");
    assert!(!world.log.borrow().commits.last().unwrap().new.planes[0].visible());
}
