//! Hostile clients: every ioctl with random and boundary arguments. Nothing may panic, nothing may leak, and who did
//! nothing wrong notices nothing.

use super::*;

/// Values that go wrong more often than others.
const EDGES: [u64; 18] = [
    0,
    1,
    2,
    3,
    7,
    31,
    63,
    64,
    4095,
    4096,
    0xffff,
    0x10000,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x1_0000_0000,
    0x7fff_ffff_ffff_ffff,
    u64::MAX,
];

struct Attacker {
    rng: fastrand::Rng,
    pointers: Vec<u64>,
    numbers: Vec<u32>,
    descriptors: Vec<i32>,
}

impl Attacker {
    fn word(&mut self) -> u32 {
        match self.rng.u8(0..10) {
            0..=2 => self.numbers[self.rng.usize(0..self.numbers.len())],
            3..=4 => EDGES[self.rng.usize(0..EDGES.len())] as u32,
            5..=6 => self.rng.u32(0..16),
            7 => self.descriptors[self.rng.usize(0..self.descriptors.len())] as u32,
            8 => [DRM_FORMAT_XRGB8888, DRM_FORMAT_ARGB8888, 1024, 768, 4096][self.rng.usize(0..5)],
            _ => self.rng.u32(..),
        }
    }

    /// A structure: words, with addresses here and there.
    fn structure(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < len {
            if bytes.len() % 8 == 0 && self.rng.u8(0..3) == 0 {
                let pointer = match self.rng.u8(0..6) {
                    0 => EDGES[self.rng.usize(0..EDGES.len())],
                    _ => self.pointers[self.rng.usize(0..self.pointers.len())],
                };
                bytes.extend_from_slice(&pointer.to_ne_bytes());
            } else {
                bytes.extend_from_slice(&self.word().to_ne_bytes());
            }
        }
        bytes.truncate(len);
        bytes
    }
}

/// The right size of each ioctl's structure, so that most attacks get past the first check.
fn size_of_ioctl(nr: u32) -> usize {
    match nr {
        0xa1 | 0xa2 => 104,
        0xa0 | 0x00 => 64,
        0xa7 => 80,
        0xb8 | 0xce => 104,
        0xbc => 56,
        0xb7 | 0xc3 | 0xca => 48,
        0xaa => 64,
        0xa3 | 0xad | 0xae => 28,
        0xbb => 36,
        0xa8 | 0xa9 => 72,
        _ => 24,
    }
}

fn attack(seed: u64, rounds: usize, features: Features) {
    let mut world = World::with(features);
    let mut good = world.open(1, 0);
    world.go_atomic(&mut good);
    let fb = world.fb(&mut good, 1024, 768, DRM_FORMAT_XRGB8888);
    let blob = world.blob(&mut good, mode().as_bytes());
    let props = world.lit(fb, blob);

    let mut clients: Vec<Client> = vec![world.open(2, 0), world.open(3, 1000), world.open_node(4, 1000, 2)];
    let mut attacker = Attacker {
        rng: fastrand::Rng::with_seed(seed),
        pointers: Vec::new(),
        numbers: (1..world.card.objects.len() as u32 + 12).collect(),
        descriptors: vec![-1, 0, 100, 101, 102, 103],
    };
    // Whoever attacks is master, so that everything can be reached.
    let none = Cmd::new(false, false, 0x1f, 0).0;
    good.program.ioctl_raw(&mut world.card, good.fh, none, 0).expect("master is dropped");
    let take = Cmd::new(false, false, 0x1e, 0).0;
    let root = &mut clients[0];
    root.program.ioctl_raw(&mut world.card, root.fh, take, 0).expect("root takes it");
    world.go_atomic(&mut clients[0]);
    for round in 0..rounds {
        let which = attacker.rng.usize(0..clients.len());
        if round % 400 == 0 {
            attacker.pointers = vec![0, 8];
            for client in &mut clients {
                // A new program each time: its memory and descriptors are the fake kernel's.
                let data = attacker.numbers.iter().flat_map(|n| n.to_ne_bytes()).collect::<Vec<u8>>();
                attacker.pointers.push(client.program.alloc(&data));
                attacker.pointers.push(client.program.alloc(mode().as_bytes()));
                let garbage = [0_u8; 256].map(|_| attacker.rng.u8(..));
                attacker.pointers.push(client.program.alloc(&garbage));
                client.program.install(new_fence());
                client.program.install(memfd_create("fuzz", MemfdFlags::CLOEXEC).expect("a memfd is made"));
            }
            // Arguments use up the fake memory; it is enough to begin anew from time to time.
        }
        let nr = match attacker.rng.u8(0..10) {
            0 => attacker.rng.u32(0..256),
            1 => attacker.rng.u32(0..0x40),
            2..=4 => 0xbc,
            _ => attacker.rng.u32(0xa0..0xd1),
        };
        let size = if attacker.rng.u8(0..8) == 0 { attacker.rng.usize(0..200) } else { size_of_ioctl(nr) };
        let bytes = attacker.structure(size);
        let client = &mut clients[which];
        let address = if attacker.rng.u8(0..40) == 0 { 8 } else { client.program.alloc(&bytes) };
        if attacker.rng.u8(0..10) == 0 {
            client.program.evict(address);
        }
        let cmd = Cmd::new(attacker.rng.u8(0..20) != 0, attacker.rng.u8(0..20) != 0, nr, size);
        let _ = client.program.ioctl_begin(&mut world.card, client.fh, cmd.0, address);
        match attacker.rng.u8(0..30) {
            0 => world.settle(),
            1 => world.log.borrow_mut().events.push(Event::FlipDone { crtc: attacker.rng.usize(0..40) }),
            2 => world.log.borrow_mut().pending ^= true,
            3 => {
                let client = &mut clients[which];
                let _ = client.program.read(&mut world.card, client.fh, attacker.rng.usize(0..100));
            }
            4 => {
                let offset = (1 << 32) + 4096 * attacker.rng.u64(0..64);
                let client = &mut clients[which];
                let _ = client.program.mmap(&mut world.card, client.fh, offset, attacker.rng.u64(..), 3);
            }
            5 if attacker.rng.u8(0..8) == 0 => {
                let node = if which == 2 { 2 } else { 1 };
                let uid = if which == 0 { 0 } else { 1000 };
                let old = std::mem::replace(&mut clients[which], world.open_node(10 + round as u32, uid, node));
                world.close(old);
                if which == 0 {
                    let client = &mut clients[0];
                    let _ = client.program.ioctl_raw(&mut world.card, client.fh, take, 0);
                    world.go_atomic(&mut clients[0]);
                }
            }
            _ => {}
        }
    }
    // The attackers go; the good client finds its own as it was and can light the screen.
    for client in clients {
        world.close(client);
    }
    world.log.borrow_mut().pending = false;
    for crtc in 0..2 {
        for _ in 0..64 {
            world.log.borrow_mut().events.push(Event::FlipDone { crtc });
        }
    }
    for _ in 0..8 {
        world.tick();
    }
    let lessees: Vec<u64> = world.card.files.keys().copied().filter(|fh| *fh != good.fh).collect();
    for fh in lessees {
        let mut holder = Client { program: world.channel.client(99), fh };
        holder.program.close(&mut world.card, fh);
    }
    world.pass(10_000_000_000);
    world.settle();
    assert!(world.card.flights.is_empty(), "a commit hangs");
    assert_eq!(world.log.borrow().buffers.len(), 1, "buffers of the attackers are left");
    assert_eq!(world.log.borrow().framebuffers.len(), 1, "framebuffers of the attackers are left");
    good.program.ioctl_raw(&mut world.card, good.fh, take, 0).expect("the card is free again");
    // Whatever modes were set, this sets all of it anew.
    let mut all = props.clone();
    for crtc in 1..2 {
        let id = world.crtc(crtc);
        all.extend([(id, "ACTIVE", 0), (id, "MODE_ID", 0), (world.connector(crtc), "CRTC_ID", 0)]);
    }
    assert_eq!(world.atomic(&mut good, &all, DRM_MODE_ATOMIC_ALLOW_MODESET), Ok(0));
}

#[test]
pub(super) fn random_ioctls_harm_nobody() {
    let features = || Features { cursor_hotspot: true, ..features() };
    for seed in 0..6 {
        attack(seed, 4000, features());
    }
    attack(99, 4000, Features { render: true, ..Features::default() });
}
