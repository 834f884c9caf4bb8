//! What a card shows of itself: resources, properties, connectors, sysfs, hot-plug.

use super::*;

/// Names of an object's properties, in order.
fn names(world: &mut World, client: &mut Client, object: u32) -> Vec<&'static str> {
    let ids = client.program.alloc(&[0; 256]);
    let values = client.program.alloc(&[0; 512]);
    let mut get = ObjGetProperties {
        props_ptr: ids,
        prop_values_ptr: values,
        count_props: 64,
        obj_id: object,
        ..Default::default()
    };
    world.ioctl(client, 0xb9, &mut get).expect("it has properties");
    let bytes = client.program.peek(ids, get.count_props as usize * 4).unwrap();
    let ids = bytes.chunks_exact(4).map(|id| u32::from_ne_bytes(id.try_into().unwrap()));
    ids.map(|id| world.card.properties.iter().find(|p| p.id == id).expect("it exists").name).collect()
}

#[test]
pub(super) fn properties_are_those_of_linux() {
    let mut world = World::with(Features { cursor_hotspot: true, ..Features::default() });
    let mut client = world.open(1, 0);
    let (crtc, plane, cursor, connector) = (world.crtc(0), world.plane(0), world.plane(1), world.connector(0));
    assert_eq!(names(&mut world, &mut client, crtc), ["VRR_ENABLED"]);
    assert_eq!(names(&mut world, &mut client, plane), ["type"]);
    assert_eq!(
        names(&mut world, &mut client, connector),
        ["DPMS", "link-status", "non-desktop", "TILE", "EDID"],
        "CRTC_ID is for atomic clients"
    );
    world.go_atomic(&mut client);
    assert_eq!(names(&mut world, &mut client, crtc), ["ACTIVE", "MODE_ID", "OUT_FENCE_PTR", "VRR_ENABLED"]);
    let rect = ["CRTC_X", "CRTC_Y", "CRTC_W", "CRTC_H", "SRC_X", "SRC_Y", "SRC_W", "SRC_H"];
    let mut expected = vec!["type", "FB_ID", "IN_FENCE_FD", "CRTC_ID"];
    expected.extend(rect);
    expected.push("FB_DAMAGE_CLIPS");
    assert_eq!(names(&mut world, &mut client, plane), expected);
    assert!(names(&mut world, &mut client, cursor).contains(&"HOTSPOT_X"));
    // A plane that the host draws is for clients that know what that means.
    let mut planes = GetPlaneRes::default();
    world.ioctl(&mut client, 0xb5, &mut planes).unwrap();
    assert_eq!(planes.count_planes, 2);
    let mut cap = SetClientCap { capability: DRM_CLIENT_CAP_CURSOR_PLANE_HOTSPOT, value: 1 };
    world.ioctl(&mut client, 0x0d, &mut cap).unwrap();
    planes = GetPlaneRes::default();
    world.ioctl(&mut client, 0xb5, &mut planes).unwrap();
    assert_eq!(planes.count_planes, 4);
    let mut encoder = ObjGetProperties { obj_id: world.card.encoders[0], ..Default::default() };
    assert_eq!(world.ioctl(&mut client, 0xb9, &mut encoder), Err(IoErrno::INVAL));
    let mut property = GetProperty { prop_id: world.property("DPMS"), ..Default::default() };
    world.ioctl(&mut client, 0xaa, &mut property).unwrap();
    assert_eq!((property.flags, property.count_values, property.count_enum_blobs), (DRM_MODE_PROP_ENUM, 4, 4));
    assert_eq!(&property.name[..5], b"DPMS\0");
}

#[test]
pub(super) fn client_capabilities() {
    let mut world = World::new();
    let mut client = world.open(1, 0);
    let mut set = |capability, value| {
        let mut cap = SetClientCap { capability, value };
        world.ioctl(&mut client, 0x0d, &mut cap)
    };
    assert_eq!(set(DRM_CLIENT_CAP_WRITEBACK_CONNECTORS, 1), Err(IoErrno::INVAL), "for atomic clients");
    assert_eq!(set(DRM_CLIENT_CAP_CURSOR_PLANE_HOTSPOT, 1), Err(IoErrno::OPNOTSUPP));
    assert_eq!(set(DRM_CLIENT_CAP_ATOMIC, 3), Err(IoErrno::INVAL));
    assert_eq!(set(DRM_CLIENT_CAP_ATOMIC, 2), Ok(0));
    assert_eq!(set(DRM_CLIENT_CAP_WRITEBACK_CONNECTORS, 1), Ok(0));
    assert_eq!(set(DRM_CLIENT_CAP_ASPECT_RATIO, 2), Err(IoErrno::INVAL));
    assert_eq!(set(99, 1), Err(IoErrno::INVAL));
    let mut cap = GetCap { capability: 99, value: 0 };
    assert_eq!(world.ioctl(&mut client, 0x0c, &mut cap), Err(IoErrno::INVAL));
    // The bus name is asked for first.
    let name = client.program.alloc(&[0; 32]);
    let mut unique = Unique { unique_len: 32, unique: name };
    world.ioctl(&mut client, 0x01, &mut unique).unwrap();
    assert_eq!(unique.unique_len, 0);
    let mut version = SetVersion { drm_di_major: 1, drm_di_minor: 4, drm_dd_major: -1, drm_dd_minor: -1 };
    world.ioctl(&mut client, 0x07, &mut version).unwrap();
    assert_eq!((version.drm_dd_major, version.drm_dd_minor), (1, 2));
    unique.unique_len = 32;
    world.ioctl(&mut client, 0x01, &mut unique).unwrap();
    assert_eq!(client.program.peek(name, 16).unwrap(), b"pci:0000:00:02.0");
    // Not every ioctl is DRM's, and not every number is one.
    let tcgets = client.program.ioctl_raw(&mut world.card, client.fh, 0x5401, 0);
    assert_eq!(tcgets, Err(IoErrno::NOTTY));
    assert_eq!(world.ioctl(&mut client, 0xff, &mut 0_u32), Err(IoErrno::INVAL));
}

#[test]
pub(super) fn longer_and_shorter_structures() {
    let mut world = World::new();
    let mut client = world.open(1, 0);
    // A client with newer headers passes more than we know; with older ones, less.
    let mut longer = [0_u64; 4];
    longer[0] = DRM_CAP_PRIME;
    world.ioctl(&mut client, 0x0c, &mut longer).unwrap();
    assert_eq!(longer, [DRM_CAP_PRIME, 3, 0, 0]);
    let mut shorter = DRM_CAP_PRIME;
    assert_eq!(world.ioctl(&mut client, 0x0c, &mut shorter), Ok(0));
}

#[test]
pub(super) fn connectors_have_modes() {
    let mut world = World::new();
    let mut client = world.open(1, 0);
    let mut get = GetConnector { connector_id: world.connector(0), ..Default::default() };
    world.ioctl(&mut client, 0xa7, &mut get).unwrap();
    assert_eq!((get.connection, get.count_encoders, get.connector_type, get.connector_type_id), (1, 1, 15, 1));
    let modes = client.program.alloc(&vec![0; get.count_modes as usize * 68]);
    let count = get.count_modes;
    let mut get = GetConnector { modes_ptr: modes, count_modes: count, ..get };
    (get.count_props, get.count_encoders) = (0, 0);
    world.ioctl(&mut client, 0xa7, &mut get).unwrap();
    let first = Mode::read_from_bytes(&client.program.peek(modes, 68).unwrap()).unwrap();
    assert_eq!((first.name(), first.vrefresh), ("1024x768", 60));
    assert_ne!(first.kind & DRM_MODE_TYPE_PREFERRED, 0);
    let mut dark = GetConnector { connector_id: world.connector(1), ..Default::default() };
    world.ioctl(&mut client, 0xa7, &mut dark).unwrap();
    assert_eq!((dark.connection, dark.count_modes), (2, 0));
}

#[test]
pub(super) fn sysfs_and_hotplug() {
    let mut world = World::new();
    assert_eq!(world.channel.published(), [1, 2, 16, 17]);
    let card = world.channel.description(1).unwrap();
    for record in ["name=card0", "class=drm", "devtype=drm_minor", "node=c:226:0:0660:0:0:dri/card0"] {
        assert!(card.contains(&record.to_owned()), "{record}");
    }
    assert!(card.contains(&"parent=/devices/pci0000:00/0000:00:02.0".to_owned()));
    assert!(world.channel.description(2).unwrap().contains(&"node=c:226:128:0660:0:0:dri/renderD128".to_owned()));
    let connector = world.channel.description(16).unwrap();
    for record in ["name=card0-Virtual-1", "parent=cookie:1", "devtype=drm_connector"] {
        assert!(connector.contains(&record.to_owned()), "{record}");
    }
    let mut client = world.open(1, 0);
    let mut show = |world: &mut World, attr| {
        String::from_utf8(client.program.attr_show(&mut world.card, 16, attr).unwrap()).unwrap()
    };
    assert_eq!((show(&mut world, 1).as_str(), show(&mut world, 2).as_str()), ("connected\n", "disabled\n"));
    assert!(show(&mut world, 4).starts_with("1024x768\n"));
    world.log.borrow_mut().disconnected = true;
    world.log.borrow_mut().events.push(Event::Hotplug);
    world.pass(1);
    assert_eq!(show(&mut world, 1), "disconnected\n");
    let id = format!("CONNECTOR={}", world.connector(0));
    assert_eq!(world.channel.uevents(), [(1, "change".to_owned(), vec!["HOTPLUG=1".to_owned(), id])]);
    // Nothing new, nothing told.
    world.log.borrow_mut().events.push(Event::Hotplug);
    world.pass(1);
    assert_eq!(world.channel.uevents().len(), 1);
    world.log.borrow_mut().disconnected = false;
    assert!(client.program.attr_store(&mut world.card, 16, 1, b"detect\n").is_ok());
    world.come_around();
    assert_eq!(world.channel.uevents().len(), 2);
    assert!(client.program.attr_show(&mut world.card, 1, 1).is_err());
    assert!(client.program.attr_show(&mut world.card, u64::MAX, 1).is_err());
}
