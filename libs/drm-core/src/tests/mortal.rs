//! A server that is killed: the other tests once more, with a restart after every request, and what is special about it.

use super::*;

macro_rules! mortal {
    ($($module:ident: $($test:ident)*;)*) => {$($(
        #[test]
        fn $test() {
            super::mortal(super::$module::$test);
        }
    )*)*};
}

// Not those that look at what the driver has under way, which a restart ends, nor at a wait for the frame after next, which
// begins anew.
mortal! {
    atomic: a_modeset_reaches_the_driver_and_is_read_back only_atomic_clients_commit a_test_has_no_effect the_rules_of_a_state a_flip_is_told_at_the_end_of_the_frame a_blocking_commit_waits_its_turn damage_is_of_one_commit memory_that_is_not_there_is_brought_in_and_what_is_wrong_is_a_fault events_that_nobody_reads_are_bounded an_object_in_use_outlives_its_name;
    buffers: dumb_buffers_are_bounded_and_freed prime_knows_its_own_buffers names_are_for_authenticated_clients framebuffers_are_checked a_drivers_own_ioctls;
    legacy: setcrtc_lights_and_darkens page_flips_follow_the_rules the_cursor_is_a_plane_that_waits_for_nothing dpms_and_properties_one_at_a_time a_removed_framebuffer_leaves_the_screen_and_a_closed_one_stays dirty_rectangles_reach_the_driver gamma_tables;
    masters: the_first_is_master_and_hands_over a_magic_number_is_good_once_and_in_its_session the_render_node_renders_only a_lease_lends_objects;
    shown: properties_are_those_of_linux client_capabilities longer_and_shorter_structures connectors_have_modes sysfs_and_hotplug;
    sync: binary_objects_are_waited_for fences_and_descriptors timelines;
}

/// The flips of a client whose server is killed at each point of each flip: each is told once, with the right number.
#[test]
fn each_flip_is_told_once() {
    let mut world = World::new();
    let (mut client, first) = world.lit_client();
    let second = world.fb(&mut client, 1024, 768, DRM_FORMAT_XRGB8888);
    let plane = world.plane(0);
    world.settle();
    world.events(&mut client);
    let mut told = Vec::new();
    let mut sequence = 0;
    for flip in 0..60u64 {
        let fb = if flip % 2 == 0 { second } else { first };
        let flags = DRM_MODE_PAGE_FLIP_EVENT | DRM_MODE_ATOMIC_NONBLOCK;
        let mut request = world.request(&mut client, &[(plane, "FB_ID", fb.into())], flags, flip);
        assert_eq!(world.ioctl(&mut client, 0xbc, &mut request), Ok(0), "flip {flip}");
        let when = flip % 5;
        if when == 1 {
            world.restart();
        }
        world.pass(8_000_000);
        if when == 2 {
            world.restart();
        }
        world.pass(9_000_000);
        if when == 3 {
            world.restart();
        }
        let events = world.events(&mut client);
        if when == 4 {
            world.restart();
        }
        assert_eq!(events.len(), 1, "flip {flip}");
        told.push(events[0].user_data);
        assert!(events[0].sequence > sequence, "frames are counted on");
        sequence = events[0].sequence;
        assert!(world.events(&mut client).is_empty());
    }
    assert_eq!(told, (0..60).collect::<Vec<_>>());
    assert_eq!(world.restarts, 48);
}

/// A blocking commit whose effect is recorded is answered once, by the successor, and not made again.
#[test]
fn a_commit_that_waits_is_answered_by_the_successor() {
    let mut world = World::new();
    let (mut client, _) = world.lit_client();
    let second = world.fb(&mut client, 1024, 768, DRM_FORMAT_XRGB8888);
    let plane = world.plane(0);
    world.settle();
    let mut request = world.request(&mut client, &[(plane, "FB_ID", second.into())], DRM_MODE_PAGE_FLIP_EVENT, 9);
    let Err(Ok((pending, _))) = world.begin(&mut client, 0xbc, &mut request) else { panic!("it waits") };
    world.restart();
    assert!(world.late(pending).is_none());
    world.restart();
    world.tick();
    world.restart();
    assert!(world.late(pending).expect("it is answered").is_ok());
    let events = world.events(&mut client);
    assert_eq!(events.iter().map(|event| event.user_data).collect::<Vec<_>>(), [9]);
}

/// Random ioctls from several clients beside a card that is killed now and then and one that is not: both answer the same.
#[test]
fn nobody_can_tell() {
    let mut random = fastrand::Rng::with_seed(11);
    let mut worlds = [World::new(), World::new()];
    let mut clients: Vec<[Client; 2]> = (0..3)
        .map(|pid| {
            let [one, two] = &mut worlds;
            [one.open(10 + pid, 0), two.open(10 + pid, 0)]
        })
        .collect();
    for pair in &mut clients {
        for (world, client) in worlds.iter_mut().zip(pair) {
            world.go_atomic(client);
        }
    }
    let (mut handles, mut fbs) = (vec![0u32], vec![0u32]);
    for step in 0..1500 {
        if random.u8(..4) == 0 {
            worlds[1].restart();
            worlds[1].card.progress(&worlds[1].channel.clone());
        }
        let who = random.usize(..clients.len());
        let (choice, a, b) = (random.u8(..9), random.usize(..), random.usize(..));
        let (handle, fb) = (handles[a % handles.len()], fbs[b % fbs.len()]);
        let mut results = Vec::new();
        for (world, client) in worlds.iter_mut().zip(&mut clients[who]) {
            let result = match choice {
                0 | 1 => {
                    let mut dumb = CreateDumb { width: 64, height: 32, bpp: 32, ..Default::default() };
                    let result = world.ioctl(client, 0xb2, &mut dumb);
                    (result, u64::from(dumb.handle), dumb.size)
                }
                2 => {
                    let mut fb =
                        FbCmd2 { width: 64, height: 32, pixel_format: DRM_FORMAT_XRGB8888, ..Default::default() };
                    fb.handles[0] = handle;
                    fb.pitches[0] = 256;
                    (world.ioctl(client, 0xb8, &mut fb), u64::from(fb.fb_id), 1)
                }
                3 => (world.ioctl(client, 0xb4, &mut DestroyDumb { handle }), 0, 0),
                4 => (world.ioctl(client, 0xaf, &mut fb.clone()), 0, 0),
                5 => {
                    let mut map = MapDumb { handle, ..Default::default() };
                    (world.ioctl(client, 0xb3, &mut map), map.offset, 0)
                }
                6 => {
                    let mut flink = GemFlink { handle, name: 0 };
                    (world.ioctl(client, 0x0a, &mut flink), flink.name.into(), 0)
                }
                7 => {
                    let blob = world.blob(client, &[step as u8; 12]);
                    if b.is_multiple_of(2) {
                        (world.ioctl(client, 0xbe, &mut DestroyBlob { blob_id: blob }), blob.into(), 0)
                    } else {
                        (Ok(0), blob.into(), 0)
                    }
                }
                _ => {
                    let mut syncobj = SyncobjCreate { handle: 0, flags: (b % 2) as u32 };
                    (world.ioctl(client, 0xbf, &mut syncobj), syncobj.handle.into(), 0)
                }
            };
            results.push(result);
        }
        assert_eq!(results[0], results[1], "step {step}: {choice}");
        match (choice, results[0]) {
            (0 | 1, (Ok(_), handle, _)) => handles.push(handle as u32),
            (2, (Ok(_), fb, _)) => fbs.push(fb as u32),
            _ => {}
        }
        if step % 100 == 99 {
            worlds.iter_mut().for_each(World::tick);
        }
    }
    assert!(worlds[1].restarts > 200);
    assert_eq!(worlds[0].log.borrow().buffers.len(), worlds[1].log.borrow().buffers.len());
}
