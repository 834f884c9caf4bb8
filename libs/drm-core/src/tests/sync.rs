//! Sync objects.

use super::*;

fn create(world: &mut World, client: &mut Client, flags: u32) -> u32 {
    let mut create = SyncobjCreate { flags, handle: 0 };
    world.ioctl(client, 0xbf, &mut create).expect("a sync object is made");
    create.handle
}

fn wait(client: &mut Client, handles: &[u32], flags: u32, timeout: i64) -> SyncobjWait {
    SyncobjWait {
        handles: client.program.alloc(handles.as_bytes()),
        count_handles: handles.len() as u32,
        flags,
        timeout_nsec: timeout,
        ..Default::default()
    }
}

#[test]
pub(super) fn binary_objects_are_waited_for() {
    let mut world = World::new();
    let mut client = world.open_node(1, 1000, 2);
    let (done, empty) = (create(&mut world, &mut client, 1), create(&mut world, &mut client, 0));
    let mut request = wait(&mut client, &[empty, done], DRM_SYNCOBJ_WAIT_FLAGS_WAIT_FOR_SUBMIT, 0);
    assert_eq!(world.ioctl(&mut client, 0xc3, &mut request), Ok(0));
    assert_eq!(request.first_signaled, 1);
    request = wait(&mut client, &[empty], 0, i64::MAX);
    assert_eq!(world.ioctl(&mut client, 0xc3, &mut request), Err(IoErrno::INVAL), "nothing was submitted");
    request = wait(&mut client, &[empty], DRM_SYNCOBJ_WAIT_FLAGS_WAIT_FOR_SUBMIT, 0);
    assert_eq!(world.ioctl(&mut client, 0xc3, &mut request), Err(IoErrno::TIME));
    request = wait(&mut client, &[99], 0, 0);
    assert_eq!(world.ioctl(&mut client, 0xc3, &mut request), Err(IoErrno::NOENT));
    // One waits, another signals.
    let all = DRM_SYNCOBJ_WAIT_FLAGS_WAIT_FOR_SUBMIT | DRM_SYNCOBJ_WAIT_FLAGS_WAIT_ALL;
    request = wait(&mut client, &[done, empty], all, i64::MAX);
    let Err(Ok((pending, _))) = world.begin(&mut client, 0xc3, &mut request) else { panic!("it did not wait") };
    let handles = client.program.alloc(empty.as_bytes());
    let mut signal = SyncobjArray { handles, count_handles: 1, pad: 0 };
    world.ioctl(&mut client, 0xc5, &mut signal).unwrap();
    assert!(world.late(pending).expect("answered").is_ok());
    world.ioctl(&mut client, 0xc4, &mut signal).unwrap();
    // A wait ends in time.
    request = wait(&mut client, &[empty], all, 1_500_000_000);
    let Err(Ok((pending, _))) = world.begin(&mut client, 0xc3, &mut request) else { panic!("it did not wait") };
    assert_eq!(world.card.deadline(), Some(1_500_000_000));
    world.pass(600_000_000);
    assert_eq!(world.late(pending), Some(Err(IoErrno::TIME)));
    signal.count_handles = 0;
    assert_eq!(world.ioctl(&mut client, 0xc5, &mut signal), Err(IoErrno::INVAL));
    world.ioctl(&mut client, 0xc0, &mut SyncobjDestroy { handle: empty, pad: 0 }).unwrap();
    assert_eq!(world.ioctl(&mut client, 0xc0, &mut SyncobjDestroy { handle: empty, pad: 0 }), Err(IoErrno::INVAL));
}

#[test]
pub(super) fn fences_and_descriptors() {
    let mut world = World::new();
    let mut client = world.open(1, 0);
    let handle = create(&mut world, &mut client, 0);
    let fence = new_fence();
    let mut import = SyncobjHandle {
        handle,
        flags: DRM_SYNCOBJ_FD_TO_HANDLE_FLAGS_IMPORT_SYNC_FILE,
        fd: client.program.install(&fence),
        pad: 0,
    };
    world.ioctl(&mut client, 0xc2, &mut import).unwrap();
    let mut request = wait(&mut client, &[handle], 0, i64::MAX);
    let Err(Ok((pending, _))) = world.begin(&mut client, 0xc3, &mut request) else { panic!("it did not wait") };
    assert_eq!(world.card.watched_fences().len(), 1, "the loop polls it");
    signal(&fence);
    world.pass(1);
    assert!(world.late(pending).expect("answered").is_ok());
    // As a file of this card it goes to another process.
    let mut export = SyncobjHandle { handle, ..Default::default() };
    world.ioctl(&mut client, 0xc1, &mut export).unwrap();
    let mut shared = SyncobjHandle { fd: export.fd, ..Default::default() };
    world.ioctl(&mut client, 0xc2, &mut shared).unwrap();
    assert_ne!(shared.handle, handle);
    request = wait(&mut client, &[shared.handle], 0, 0);
    assert_eq!(world.ioctl(&mut client, 0xc3, &mut request), Ok(0));
    // Signalled ones can be exported; empty ones not.
    export.flags = DRM_SYNCOBJ_HANDLE_TO_FD_FLAGS_EXPORT_SYNC_FILE;
    world.ioctl(&mut client, 0xc1, &mut export).unwrap();
    let Some(scheme::fake::Installed::Fd(fd)) = client.program.take_file(export.fd) else { panic!("no fence") };
    assert!(is_signalled(&fd));
    export.handle = create(&mut world, &mut client, 0);
    assert_eq!(world.ioctl(&mut client, 0xc1, &mut export), Err(IoErrno::INVAL));
    // The card's own file is no sync object.
    shared.fd = 4711;
    assert_eq!(world.ioctl(&mut client, 0xc2, &mut shared), Err(IoErrno::INVAL));
}

#[test]
pub(super) fn timelines() {
    let mut world = World::new();
    let mut client = world.open(1, 0);
    let handle = create(&mut world, &mut client, 0);
    let handles = client.program.alloc(handle.as_bytes());
    let points = client.program.alloc(5_u64.as_bytes());
    let mut signal = SyncobjTimelineArray { handles, points, count_handles: 1, flags: 0 };
    let mut wait = SyncobjTimelineWait {
        handles,
        points,
        count_handles: 1,
        flags: DRM_SYNCOBJ_WAIT_FLAGS_WAIT_FOR_SUBMIT,
        timeout_nsec: i64::MAX,
        ..Default::default()
    };
    let Err(Ok((pending, _))) = world.begin(&mut client, 0xca, &mut wait) else { panic!("it did not wait") };
    // An eventfd is told of the same.
    let eventfd = new_fence();
    let fd = client.program.install(&eventfd);
    world.ioctl(&mut client, 0xcf, &mut SyncobjEventfd { handle, flags: 0, point: 5, fd, pad: 0 }).unwrap();
    assert!(!is_signalled(&eventfd));
    world.ioctl(&mut client, 0xcd, &mut signal).unwrap();
    assert!(world.late(pending).expect("answered").is_ok());
    assert!(is_signalled(&eventfd));
    let out = client.program.alloc(&[0; 8]);
    let mut query = SyncobjTimelineArray { points: out, ..signal };
    world.ioctl(&mut client, 0xcb, &mut query).unwrap();
    assert_eq!(client.program.peek(out, 8).unwrap(), 5_u64.as_bytes());
    // What is not reached yet does not count as reached; earlier points do.
    let other = create(&mut world, &mut client, 1);
    let mut transfer =
        SyncobjTransfer { src_handle: other, dst_handle: handle, src_point: 0, dst_point: 9, ..Default::default() };
    world.ioctl(&mut client, 0xcc, &mut transfer).unwrap();
    world.ioctl(&mut client, 0xcb, &mut query).unwrap();
    assert_eq!(client.program.peek(out, 8).unwrap(), 9_u64.as_bytes());
    transfer.src_point = 3;
    assert_eq!(world.ioctl(&mut client, 0xcc, &mut transfer), Err(IoErrno::INVAL), "a binary object has no points");
    signal.flags = 1;
    assert_eq!(world.ioctl(&mut client, 0xcd, &mut signal), Err(IoErrno::INVAL));
    // Cards without.
    let mut bare = World::with(Features::default());
    let mut client = bare.open(1, 0);
    assert_eq!(bare.ioctl(&mut client, 0xbf, &mut SyncobjCreate::default()), Err(IoErrno::OPNOTSUPP));
}
