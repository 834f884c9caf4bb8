//! The leaf on a fake device: what is on the screen, what it costs, and what a bad device can do.

use std::{cell::RefCell, rc::Rc};

use drm_core::{driver::*, state::FramebufferPlane};
use virtio::mock::{MockDevice, MockTransport};

use super::*;
use crate::{
    abi::{F_EDID, kind},
    mock::{FakeGpu, TestDma, device},
};

type Leaf = VirtioGpu<MockTransport<FakeGpu>, TestDma>;

struct Rig {
    mock: MockDevice<FakeGpu>,
    leaf: Leaf,
    state: State,
    failures: Rc<RefCell<Vec<String>>>,
    ids: u64,
}

fn rig_with(sizes: &[(u32, u32)], features: virtio::Features, queue: u16) -> Rig {
    let (mock, bus) = device(sizes, features, queue);
    let failures: Rc<RefCell<Vec<String>>> = Rc::default();
    let log = failures.clone();
    let on_failure = Box::new(move |error: &virtio::Error| log.borrow_mut().push(error.to_string()));
    let leaf = Leaf::new(mock.transport(), TestDma(bus), "/devices/x".into(), "pci:x".into(), on_failure).unwrap();
    let topology = leaf.topology();
    let state = State {
        crtcs: vec![CrtcState::default(); topology.crtcs],
        planes: vec![PlaneState::default(); topology.planes.len()],
        connectors: vec![ConnectorState::default(); topology.connectors.len()],
    };
    Rig { mock, leaf, state, failures, ids: 0 }
}

fn rig(sizes: &[(u32, u32)]) -> Rig {
    rig_with(sizes, F_EDID | virtio::Features::EVENT_IDX, 64)
}

impl Rig {
    fn id(&mut self) -> u64 {
        self.ids += 1;
        self.ids
    }

    fn buffer(&mut self, width: u32, height: u32) -> BufferId {
        let id = BufferId(self.id());
        let made = self.leaf.create_dumb(id, &DumbRequest { width, height, bpp: 32 }).unwrap();
        assert_eq!((made.pitch, made.size % 4096), (width * 4, 0));
        id
    }

    fn framebuffer(&mut self, buffer: BufferId, size: (u32, u32), pitch: u32, offset: u32) -> Rc<Framebuffer> {
        let planes = vec![FramebufferPlane { buffer, pitch, offset }];
        let fb = Framebuffer::new(FramebufferId(self.id()), size.0, size.1, XRGB8888, 0, planes);
        self.leaf.create_framebuffer(&fb).unwrap();
        Rc::new(fb)
    }

    /// A buffer with a framebuffer over all of it.
    fn picture(&mut self, width: u32, height: u32) -> (BufferId, Rc<Framebuffer>) {
        let buffer = self.buffer(width, height);
        let fb = self.framebuffer(buffer, (width, height), width * 4, 0);
        (buffer, fb)
    }

    /// Fills a rectangle of a buffer with a colour, as its client does.
    fn draw(&mut self, fb: &Framebuffer, rect: Rect, colour: u32) {
        let resource = self.leaf.framebuffers[&fb.id].resource.0;
        let lines = fb.planes[0];
        for y in rect.y1..rect.y2 {
            let at = u64::from(lines.offset + y as u32 * lines.pitch + rect.x1 as u32 * 4);
            self.mock.model(|gpu| gpu.draw(resource, at, &vec![colour; rect.width() as usize]));
        }
    }

    /// A pixel as the client has it.
    fn drawn(&self, fb: &Framebuffer, at: u32) -> u32 {
        let resource = self.leaf.framebuffers[&fb.id].resource.0;
        self.mock.model(|gpu| gpu.drawn(resource, u64::from(at) * 4))
    }

    fn commit(&mut self, planes: u64, modesets: u32, change: impl FnOnce(&mut State)) -> Completion {
        let mut new = self.state.clone();
        new.planes.iter_mut().for_each(|plane| plane.damage = None);
        change(&mut new);
        let crtcs = (0..new.planes.len())
            .filter(|plane| planes & 1 << plane != 0)
            .fold(modesets, |crtcs, plane| crtcs | 1 << (plane / 2));
        let change = Change { old: self.state.clone(), new, crtcs, modesets, planes, unpaced: false };
        let completion = self.leaf.atomic_commit(&change);
        self.state = change.new;
        completion
    }

    fn show(&mut self, crtc: usize, fb: &Rc<Framebuffer>, modeset: bool, damage: Option<&[Rect]>) -> Completion {
        let (fb, damage) = (fb.clone(), damage.map(Rc::from));
        self.commit(1 << (2 * crtc), u32::from(modeset) << crtc, |state| {
            state.crtcs[crtc].active = true;
            let (width, height) = (fb.width, fb.height);
            state.planes[2 * crtc] = PlaneState {
                crtc: Some(crtc),
                crtc_w: width,
                crtc_h: height,
                src_w: width << 16,
                src_h: height << 16,
                fb: Some(fb),
                damage,
                ..PlaneState::default()
            };
        })
    }

    fn events(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        self.leaf.service(&mut events);
        events
    }

    fn screen(&self, scanout: u32) -> Option<Vec<u32>> {
        self.mock.model(|gpu| gpu.screens.get(&scanout).cloned())
    }

    fn transferred(&self) -> u64 {
        self.mock.model(|gpu| std::mem::take(&mut gpu.transferred))
    }

    /// No command may have been wrong.
    fn fine(&self) {
        self.mock.model(|gpu| assert_eq!(gpu.errors, 0));
    }
}

const FLIP: Event = Event::FlipDone { crtc: 0 };

#[test]
fn a_picture_reaches_the_screen_pixel_by_pixel() {
    for (width, height) in [(640, 480), (1024, 768), (1366, 768)] {
        let mut rig = rig(&[(width, height)]);
        let (_, fb) = rig.picture(width, height);
        for y in 0..height as i32 {
            rig.draw(&fb, Rect::new(0, y, width, 1), 0x0010_0203 + y as u32);
        }
        assert_eq!(rig.show(0, &fb, true, None), Completion::Pending);
        assert_eq!(rig.events(), [FLIP]);
        let expected: Vec<u32> = (0..height).flat_map(|y| vec![0x0010_0203 + y; width as usize]).collect();
        assert_eq!(rig.screen(0), Some(expected));
        rig.fine();
    }
}

#[test]
fn only_damage_is_brought_over_and_no_pixel_is_missed() {
    let mut rig = rig(&[(256, 256)]);
    let pictures = [rig.picture(256, 256).1, rig.picture(256, 256).1];
    let whole = Rect::new(0, 0, 256, 256);
    let mut expected = vec![7; 256 * 256];
    for fb in &pictures {
        rig.draw(fb, whole, 7);
        rig.show(0, fb, false, None);
        assert_eq!(rig.events(), [FLIP]);
    }
    rig.transferred();
    // Two buffers take turns; each is brought up to date by its client where it differs.
    let frames: Vec<Rect> = (0..40).map(|n| Rect::new(n * 37 % 200, n * 53 % 200, 20, 30)).collect();
    let mut pixels = 0;
    for (n, rect) in frames.iter().enumerate() {
        let fb = pictures[n % 2].clone();
        if n > 0 {
            rig.draw(&fb, frames[n - 1], 100 + n as u32 - 1);
        }
        rig.draw(&fb, *rect, 100 + n as u32);
        for y in rect.y1..rect.y2 {
            let at = y as usize * 256;
            expected[at + rect.x1 as usize..at + rect.x2 as usize].fill(100 + n as u32);
        }
        rig.show(0, &fb, false, Some(&[*rect]));
        assert_eq!(rig.events(), [FLIP]);
        assert!(rig.screen(0).unwrap() == expected, "frame {n}");
        pixels += rig.transferred();
    }
    // The first buffer came back after a frame without clips; then each frame costs its own damage and the last one's.
    assert_eq!(pixels, 256 * 256 + 39 * 2 * 600);
    // Many clips far apart are not one big rectangle.
    let clips = [Rect::new(0, 0, 8, 8), Rect::new(240, 240, 8, 8)];
    let fb = pictures[1].clone();
    rig.show(0, &fb, false, Some(&clips));
    assert_eq!((rig.events(), rig.transferred()), (vec![FLIP], 128));
    rig.fine();
}

#[test]
fn a_buffer_shown_elsewhere_or_otherwise_comes_over_whole() {
    let mut rig = rig(&[(64, 64), (64, 64)]);
    let buffer = rig.buffer(64, 128);
    let upper = rig.framebuffer(buffer, (64, 64), 256, 0);
    let lower = rig.framebuffer(buffer, (64, 64), 256, 64 * 256);
    rig.draw(&upper, Rect::new(0, 0, 64, 64), 1);
    rig.draw(&lower, Rect::new(0, 0, 64, 64), 2);
    let clip = [Rect::new(0, 0, 4, 4)];
    for (crtc, fb, colour) in [(0, &upper, 1), (0, &lower, 2), (1, &lower, 2), (1, &upper, 1), (0, &upper, 1)] {
        rig.show(crtc, fb, false, Some(&clip));
        assert_eq!(rig.events(), [Event::FlipDone { crtc }]);
        assert_eq!(rig.screen(crtc as u32).unwrap(), [colour; 64 * 64]);
    }
    rig.fine();
}

#[test]
fn framebuffers_with_other_lines_have_a_resource_of_their_own() {
    let mut rig = rig(&[(64, 32)]);
    let buffer = rig.buffer(128, 64);
    let fb = rig.framebuffer(buffer, (64, 32), 400, 16);
    rig.draw(&fb, Rect::new(0, 0, 64, 32), 5);
    rig.draw(&fb, Rect::new(0, 31, 64, 1), 6);
    rig.show(0, &fb, true, None);
    let mut expected = vec![5; 64 * 31];
    expected.extend([6; 64]);
    assert_eq!(rig.screen(0).unwrap(), expected);
    assert_eq!(rig.mock.model(|gpu| gpu.resources.len()), 2);
    let odd =
        Framebuffer::new(FramebufferId(99), 8, 8, XRGB8888, 0, vec![FramebufferPlane { buffer, pitch: 41, offset: 0 }]);
    assert_eq!(rig.leaf.create_framebuffer(&odd), Err(Errno::EINVAL));
    rig.commit(1, 1, |state| {
        state.planes[0] = PlaneState::default();
        state.crtcs[0].active = false;
    });
    rig.leaf.destroy_framebuffer(fb.id);
    rig.leaf.destroy_buffer(buffer);
    rig.events();
    assert_eq!(rig.mock.model(|gpu| gpu.resources.len()), 0);
    rig.fine();
}

#[test]
fn switching_off_clears_the_screen_and_completes() {
    let mut rig = rig(&[(64, 64)]);
    let (_, fb) = rig.picture(64, 64);
    rig.show(0, &fb, true, None);
    assert_eq!(rig.events(), [FLIP]);
    // DPMS off: the plane keeps its picture.
    assert_eq!(rig.commit(1, 1, |state| state.crtcs[0].active = false), Completion::Pending);
    assert_eq!((rig.events(), rig.screen(0)), (vec![], None), "a sleeping CRTC has no flips");
    assert_eq!(rig.commit(1, 1, |state| state.crtcs[0].active = true), Completion::Pending);
    assert_eq!((rig.events(), rig.screen(0).is_some()), (vec![FLIP], true));
    // The plane goes, the CRTC stays.
    assert_eq!(rig.commit(1, 0, |state| state.planes[0] = PlaneState::default()), Completion::Pending);
    assert_eq!((rig.events(), rig.screen(0)), (vec![FLIP], None));
    rig.fine();
}

#[test]
fn flips_complete_when_the_device_has_flushed() {
    let mut rig = rig(&[(64, 64)]);
    let (_, fb) = rig.picture(64, 64);
    rig.mock.model(|gpu| gpu.hold_fences = true);
    assert_eq!(rig.show(0, &fb, true, None), Completion::Pending);
    assert_eq!(rig.events(), []);
    assert!(rig.mock.complete(abi::CONTROL_QUEUE, &[0; 24]), "an error is an end as well");
    assert_eq!(rig.events(), [FLIP]);
    assert_eq!(rig.events(), []);
}

#[test]
fn more_commands_than_the_queue_holds_keep_their_order() {
    let mut rig = rig_with(&[(64, 64)], F_EDID, 4);
    let pictures: Vec<_> = (0..5).map(|_| rig.picture(64, 64).1).collect();
    (0..10).for_each(|_| drop(rig.events()));
    rig.mock.model(|gpu| gpu.hold_fences = true);
    for (colour, fb) in pictures.iter().enumerate() {
        rig.draw(fb, Rect::new(0, 0, 64, 64), colour as u32);
        assert_eq!(rig.show(0, fb, false, None), Completion::Pending);
    }
    rig.mock.model(|gpu| gpu.hold_fences = false);
    let mut flips = 0;
    for _ in 0..40 {
        rig.mock.complete(abi::CONTROL_QUEUE, &[0; 24]);
        flips += rig.events().len();
    }
    assert_eq!((flips, rig.screen(0).unwrap()), (5, vec![4; 64 * 64]));
    rig.fine();
}

#[test]
fn memory_is_kept_until_the_device_has_let_go() {
    let mut rig = rig(&[(64, 64)]);
    let (buffer, fb) = rig.picture(64, 64);
    rig.show(0, &fb, true, None);
    rig.events();
    let address = rig.leaf.buffers[&buffer].backing.segments()[0].address;
    // The mock takes the command when the doorbell rings; the driver learns of it in `service`.
    rig.leaf.destroy_framebuffer(fb.id);
    rig.leaf.destroy_buffer(buffer);
    rig.mock.model(|gpu| gpu.bus.device_read(address, 4));
    rig.events();
    let gone = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        rig.mock.model(|gpu| gpu.bus.device_read(address, 4))
    }));
    assert!(gone.is_err());
}

#[test]
fn a_cursor_waits_for_its_picture_and_moves_are_merged() {
    let mut rig = rig(&[(640, 480)]);
    let (_, screen) = rig.picture(640, 480);
    rig.show(0, &screen, true, None);
    rig.events();
    let (_, arrow) = rig.picture(64, 64);
    rig.mock.model(|gpu| gpu.hold_fences = true);
    let place = |x, y| {
        move |state: &mut State, fb: Option<Rc<Framebuffer>>| {
            state.planes[1] = PlaneState {
                crtc: fb.as_ref().map(|_| 0),
                fb,
                crtc_x: x,
                crtc_y: y,
                crtc_w: 64,
                crtc_h: 64,
                src_w: 64 << 16,
                src_h: 64 << 16,
                hotspot_x: 3,
                hotspot_y: 4,
                ..PlaneState::default()
            };
        }
    };
    let fb = arrow.clone();
    assert_eq!(rig.commit(2, 0, |state| place(10, -5)(state, Some(fb))), Completion::Done);
    assert_eq!(rig.mock.model(|gpu| gpu.cursors.len()), 0, "not before its picture is there");
    rig.mock.complete(abi::CONTROL_QUEUE, &[0; 24]);
    rig.events();
    let resource = rig.leaf.framebuffers[&arrow.id].resource.0;
    let shown = rig.mock.model(|gpu| gpu.cursors[0]);
    assert_eq!(shown.header.kind, kind::UPDATE_CURSOR);
    assert_eq!((shown.x, shown.y as i32, shown.hot_x, shown.hot_y, shown.resource_id), (10, -5, 3, 4, resource));
    // 100 moves while the device sleeps: as many as fit, and the last one in the end.
    for x in 0..100 {
        let fb = arrow.clone();
        rig.commit(2, 0, |state| place(x, 7)(state, Some(fb)));
    }
    assert!(rig.mock.model(|gpu| gpu.cursors.len()) <= 8);
    for _ in 0..20 {
        rig.mock.complete(abi::CURSOR_QUEUE, &[]);
        rig.events();
    }
    let moved = *rig.mock.model(|gpu| gpu.cursors.clone()).last().unwrap();
    assert_eq!((moved.header.kind, moved.x, moved.y, moved.resource_id), (kind::MOVE_CURSOR, 99, 7, resource));
    rig.commit(2, 0, |state| place(99, 7)(state, None));
    let hidden = *rig.mock.model(|gpu| gpu.cursors.clone()).last().unwrap();
    assert_eq!((hidden.header.kind, hidden.resource_id), (kind::UPDATE_CURSOR, 0));
    rig.fine();
}

#[test]
fn dirty_rectangles_are_merged_while_the_device_is_busy() {
    let mut rig = rig(&[(64, 64)]);
    let (_, fb) = rig.picture(64, 64);
    rig.draw(&fb, Rect::new(0, 0, 64, 64), 1);
    rig.show(0, &fb, true, None);
    rig.events();
    rig.mock.model(|gpu| gpu.hold_fences = true);
    let commands = rig.mock.model(|gpu| gpu.log.len());
    for n in 0..1000 {
        let rect = Rect::new(n % 60, n % 50, 4, 4);
        rig.draw(&fb, rect, 2);
        let mut new = rig.state.clone();
        new.planes[0].damage = Some(Rc::from([rect]));
        let change = Change { old: rig.state.clone(), new, crtcs: 1, modesets: 0, planes: 1, unpaced: true };
        assert_eq!(rig.leaf.atomic_commit(&change), Completion::Done);
    }
    assert_eq!(
        rig.mock.model(|gpu| gpu.log.len()) - commands,
        2,
        "a transfer and a flush, and then the device is busy"
    );
    rig.mock.model(|gpu| gpu.hold_fences = false);
    rig.mock.complete(abi::CONTROL_QUEUE, &[0; 24]);
    assert_eq!(rig.events(), []);
    assert_eq!(rig.events(), []);
    let expected: Vec<u32> = (0..64 * 64).map(|at| rig.drawn(&fb, at)).collect();
    assert_eq!(rig.screen(0).unwrap(), expected);
    assert!(rig.leaf.scanouts[0].dirty.is_none());
    rig.fine();
}

#[test]
fn displays_come_and_go() {
    let mut rig = rig(&[(800, 600), (0, 0)]);
    let probe = rig.leaf.probe(0);
    assert!(probe.connected && probe.edid.as_deref() == Some(&[0xed; 256]));
    assert_eq!((rig.leaf.probe(1).connected, rig.leaf.probe(1).preferred), (false, Some(DEFAULT_SIZE)));
    rig.mock.model(|gpu| {
        gpu.displays[1] = abi::Display { r: abi::Rect { x: 0, y: 0, width: 1280, height: 720 }, enabled: 1, flags: 0 };
        gpu.edid = vec![1; 128];
    });
    rig.mock.change_config(|config| config[0] |= 1);
    let events: Vec<Event> = (0..4).flat_map(|_| rig.events()).collect();
    assert_eq!(events, [Event::Hotplug], "told once, when all is known");
    assert_eq!((rig.leaf.probe(1).connected, rig.leaf.probe(1).preferred), (true, Some((1280, 720))));
    assert_eq!(rig.leaf.probe(0).edid.unwrap().len(), 128);
    assert_eq!(rig.leaf.gpu.wait(Duration::ZERO, |_| true).unwrap(), []);
}

#[test]
fn without_edid_there_is_none() {
    let mut rig = rig_with(&[(800, 600)], virtio::Features::empty(), 64);
    assert!(!rig.leaf.topology().connectors[0].edid);
    assert_eq!(rig.leaf.probe(0).edid, None);
    let mode = |width: u16, height: u16, kind| Mode { hdisplay: width, vdisplay: height, kind, ..Mode::default() };
    for (mode, valid) in [
        (mode(800, 600, TYPE_PREFERRED), true),
        (mode(784, 600, TYPE_PREFERRED), true),
        (mode(1024, 768, TYPE_PREFERRED), true),
        (mode(1920, 1080, TYPE_PREFERRED), false),
        (mode(1920, 1080, 0), true),
    ] {
        assert_eq!(rig.leaf.mode_valid(0, &mode), valid, "{mode:?}");
    }
}

#[test]
fn a_device_that_answers_garbage_harms_nobody() {
    let mut rig = rig(&[(64, 64)]);
    for garbage in [vec![], vec![0xff; 4], vec![0xff; 24], vec![0xff; 2048]] {
        rig.mock.model(|gpu| gpu.garbage = Some(garbage));
        let (buffer, fb) = rig.picture(64, 64);
        assert_eq!(rig.show(0, &fb, true, None), Completion::Pending);
        assert_eq!(rig.events(), [FLIP]);
        rig.mock.change_config(|config| config[0] |= 1);
        (0..3).for_each(|_| drop(rig.events()));
        rig.leaf.probe(0);
        rig.leaf.destroy_framebuffer(fb.id);
        rig.leaf.destroy_buffer(buffer);
    }
    assert!(rig.failures.borrow().is_empty());
    rig.mock.model(|gpu| (gpu.garbage, gpu.hold_fences) = (None, true));
    let (_, fb) = rig.picture(64, 64);
    rig.show(0, &fb, true, None);
    rig.mock.forge_used(abi::CONTROL_QUEUE, 0xffff, 24, 1);
    assert_eq!(rig.events(), [FLIP], "whoever waits is let go");
    assert_eq!(rig.failures.borrow().len(), 1);
}

#[test]
fn dumb_buffers_have_32_bits_and_an_end() {
    let mut rig = rig(&[(64, 64)]);
    let id = BufferId(1);
    for (width, height, bpp, errno) in
        [(64, 64, 16, Errno::EINVAL), (u32::MAX, 1, 32, Errno::EINVAL), (30000, 30000, 32, Errno::ENOMEM)]
    {
        assert_eq!(rig.leaf.create_dumb(id, &DumbRequest { width, height, bpp }).unwrap_err(), errno);
    }
    assert!(rig.leaf.buffers.is_empty());
}

struct Caller(Vec<(u64, Vec<u8>)>);

impl UserMemory for Caller {
    fn read(&mut self, _: u64, _: &mut [u8]) -> std::result::Result<(), MemoryError> {
        Err(MemoryError::Fault)
    }
    fn write(&mut self, address: u64, data: &[u8]) -> std::result::Result<(), MemoryError> {
        self.0.push((address, data.to_vec()));
        if address == 0 { Err(MemoryError::Fault) } else { Ok(()) }
    }
}

#[test]
fn own_ioctls_answer_as_a_device_without_3d() {
    let mut rig = rig(&[(64, 64)]);
    let mut call = |nr, param: u64, at: u64| {
        let mut data: Vec<u8> = [param, at].iter().flat_map(|word| word.to_ne_bytes()).collect();
        let mut memory = Caller(Vec::new());
        let result = rig.leaf.ioctl(&mut DriverIoctl {
            file: FileId(1),
            nr,
            cmd: 0,
            data: &mut data,
            render: true,
            memory: &mut memory,
        });
        (result, memory.0)
    };
    assert_eq!(call(3, 1, 0x1000), (Ok(0), vec![(0x1000, vec![0; 4])]));
    assert_eq!(call(3, 2, 0x1000), (Ok(0), vec![(0x1000, vec![1, 0, 0, 0])]));
    assert_eq!(call(3, 9, 0x1000).0, Err(Errno::EINVAL.into()));
    assert_eq!(call(3, 1, 0).0, Err(MemoryError::Fault.into()));
    assert_eq!(call(9, 0, 0).0, Err(Errno::ENOSYS.into()));
    assert_eq!(call(10, 0, 0).0, Err(Errno::EINVAL.into()));
    assert_eq!(
        (rig.leaf.ioctl_render(0), rig.leaf.ioctl_render(3), rig.leaf.ioctl_render(12)),
        (None, Some(true), None)
    );
}
