//! Masters, authentication, leases, and what the render node may do.

use super::*;

/// Which ioctls take no argument: size 0.
fn bare(world: &mut World, client: &mut Client, nr: u32) -> std::result::Result<i32, IoErrno> {
    let cmd = Cmd::new(false, false, nr, 0);
    client.program.ioctl_raw(&mut world.card, client.fh, cmd.0, 0).map(|(result, _)| result)
}

#[test]
pub(super) fn the_first_is_master_and_hands_over() {
    let mut world = World::new();
    let mut first = world.open(1, 1000);
    let mut second = world.open(2, 1000);
    let mut root = world.open(3, 0);
    let mut atomic = Atomic::default();
    assert_eq!(world.ioctl(&mut second, 0xbc, &mut atomic), Err(IoErrno::ACCESS));
    assert_eq!(bare(&mut world, &mut second, 0x1e), Err(IoErrno::ACCESS), "never was master, and is not root");
    assert_eq!(bare(&mut world, &mut root, 0x1e), Err(IoErrno::BUSY));
    assert_eq!(bare(&mut world, &mut root, 0x1f), Err(IoErrno::INVAL));
    assert_eq!(bare(&mut world, &mut first, 0x1e), Ok(0), "it is already");
    assert_eq!(bare(&mut world, &mut first, 0x1f), Ok(0));
    assert_eq!(world.ioctl(&mut first, 0xb0, &mut CrtcPageFlip::default()), Err(IoErrno::ACCESS));
    assert_eq!(bare(&mut world, &mut root, 0x1e), Ok(0));
    assert_eq!(bare(&mut world, &mut first, 0x1e), Err(IoErrno::BUSY));
    assert_eq!(bare(&mut world, &mut root, 0x1f), Ok(0));
    // Who was master before may be again without root's rights, in the process that opened the file only.
    let mut elsewhere = Client { program: world.channel.client(9), fh: first.fh };
    elsewhere.program.uid = 1000;
    assert_eq!(bare(&mut world, &mut elsewhere, 0x1e), Err(IoErrno::ACCESS));
    assert_eq!(bare(&mut world, &mut first, 0x1e), Ok(0));
    // The card is free when its master goes; who opens it then is the next.
    world.close(first);
    let mut third = world.open(4, 1000);
    assert_ne!(world.ioctl(&mut third, 0xb0, &mut CrtcPageFlip::default()), Err(IoErrno::ACCESS));
}

#[test]
pub(super) fn a_magic_number_is_good_once_and_in_its_session() {
    let mut world = World::new();
    let mut master = world.open(1, 1000);
    let mut client = world.open(2, 1000);
    let mut magic = Auth::default();
    world.ioctl(&mut client, 0x02, &mut magic).unwrap();
    let mut again = Auth::default();
    world.ioctl(&mut client, 0x02, &mut again).unwrap();
    assert_eq!(magic.magic, again.magic);
    assert_eq!(world.ioctl(&mut client, 0x11, &mut magic), Err(IoErrno::ACCESS));
    assert_eq!(world.ioctl(&mut master, 0x11, &mut Auth { magic: 999 }), Err(IoErrno::INVAL));
    world.ioctl(&mut master, 0x11, &mut magic).unwrap();
    assert_eq!(world.ioctl(&mut master, 0x11, &mut magic), Err(IoErrno::INVAL));
    let mut who = Client2::default();
    world.ioctl(&mut client, 0x05, &mut who).unwrap();
    assert_eq!((who.auth, who.pid), (1, 2));
}
type Client2 = crate::uapi::Client;

#[test]
pub(super) fn the_render_node_renders_only() {
    let mut world = World::new();
    let mut render = world.open_node(1, 1000, 2);
    let mut cap = GetCap { capability: DRM_CAP_PRIME, value: 0 };
    assert_eq!(world.ioctl(&mut render, 0x0c, &mut cap), Ok(0));
    assert_eq!(cap.value, 3);
    let mut version = Version::default();
    assert_eq!(world.ioctl(&mut render, 0x00, &mut version), Ok(0));
    assert_eq!((version.version_major, version.name_len), (1, 4));
    assert_eq!(world.ioctl(&mut render, 0xa0, &mut CardRes::default()), Err(IoErrno::ACCESS));
    assert_eq!(world.ioctl(&mut render, 0xb2, &mut CreateDumb::default()), Err(IoErrno::ACCESS));
    assert_eq!(world.ioctl(&mut render, 0x02, &mut Auth::default()), Err(IoErrno::ACCESS));
    assert_eq!(bare(&mut world, &mut render, 0x1e), Err(IoErrno::ACCESS));
    assert!(world.card.master.is_none(), "opening it makes no master");
}

#[test]
pub(super) fn a_lease_lends_objects() {
    let mut world = World::new();
    let (mut lessor, _) = world.lit_client();
    let ids = [world.crtc(1), world.plane(2), world.connector(1)];
    let objects = lessor.program.alloc(ids.as_bytes());
    let request = CreateLease { object_ids: objects, object_count: 3, ..Default::default() };
    let mut none = CreateLease { object_count: 0, ..request };
    assert_eq!(world.ioctl(&mut lessor, 0xc6, &mut none), Err(IoErrno::INVAL), "no CRTC and no connector");
    none = CreateLease { flags: 1, ..request };
    assert_eq!(world.ioctl(&mut lessor, 0xc6, &mut none), Err(IoErrno::INVAL));
    let mut lease = request;
    world.ioctl(&mut lessor, 0xc6, &mut lease).unwrap();
    let mut again = request;
    assert_eq!(world.ioctl(&mut lessor, 0xc6, &mut again), Err(IoErrno::BUSY), "lent already");
    let Some(scheme::fake::Installed::File(file)) = lessor.program.take_file(lease.fd as i32) else {
        panic!("no file")
    };
    let mut lessee = Client { program: world.channel.client(20), fh: file.opened.fh };
    lessee.program.uid = 1000;
    let mut res = CardRes::default();
    world.ioctl(&mut lessee, 0xa0, &mut res).unwrap();
    assert_eq!((res.count_crtcs, res.count_connectors), (1, 1));
    let mut crtc = ModeCrtc { crtc_id: world.crtc(0), ..Default::default() };
    assert_eq!(world.ioctl(&mut lessee, 0xa1, &mut crtc), Err(IoErrno::NOENT));
    crtc.crtc_id = world.crtc(1);
    assert_eq!(world.ioctl(&mut lessee, 0xa1, &mut crtc), Ok(0));
    let mut plane = GetPlane { plane_id: world.plane(2), ..Default::default() };
    world.ioctl(&mut lessee, 0xb6, &mut plane).unwrap();
    assert_eq!(plane.possible_crtcs, 1, "the only CRTC it sees is its first");
    // It sets modes, on what it has.
    world.go_atomic(&mut lessee);
    let value = u64::from(world.crtc(0));
    let foreign = [(world.plane(2), "CRTC_ID", value)];
    assert_eq!(world.atomic(&mut lessee, &foreign, 0), Err(IoErrno::ACCESS));
    assert_eq!(world.atomic(&mut lessee, &[(world.crtc(1), "ACTIVE", 0)], 0), Ok(0));
    assert_eq!(bare(&mut world, &mut lessee, 0x1f), Err(IoErrno::ACCESS), "not the owner's rights");

    let out = lessor.program.alloc(&[0; 16]);
    let mut list = ListLessees { count_lessees: 4, pad: 0, lessees_ptr: out };
    world.ioctl(&mut lessor, 0xc7, &mut list).unwrap();
    assert_eq!(list.count_lessees, 1);
    let mut get = GetLease { count_objects: 0, ..Default::default() };
    world.ioctl(&mut lessee, 0xc8, &mut get).unwrap();
    assert_eq!(get.count_objects, 3);
    world.ioctl(&mut lessor, 0xc9, &mut RevokeLease { lessee_id: lease.lessee_id }).unwrap();
    assert_eq!(world.ioctl(&mut lessee, 0xa1, &mut crtc), Err(IoErrno::NOENT));
    assert_eq!(world.ioctl(&mut lessor, 0xc9, &mut RevokeLease { lessee_id: 77 }), Err(IoErrno::NOENT));
    world.close(lessee);
    assert!(world.channel.uevents().iter().any(|(_, _, env)| env.contains(&"LEASE=1".to_owned())));
    let mut renewed = request;
    world.ioctl(&mut lessor, 0xc6, &mut renewed).unwrap();
    world.close(lessor);
}
