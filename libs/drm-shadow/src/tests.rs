//! What reaches the screen, and what does not.

use std::{os::fd::AsFd, rc::Rc};

use drm_core::{
    driver::{FramebufferId, State},
    state::{ConnectorState, CrtcState, FramebufferPlane, PlaneState},
};

use super::*;

#[derive(Default)]
struct Glass {
    mode: Option<(u32, u32)>,
    pixels: HashMap<(u32, u32), u32>,
    format: u32,
    writes: usize,
}

impl Screen for Glass {
    fn info(&self) -> Info {
        let (bus_id, parent) = Default::default();
        Info { name: "glass", desc: "", date: "0", version: (1, 0, 0), bus_id, parent }
    }
    fn features(&self) -> Features {
        Features::default()
    }
    fn formats(&self) -> Vec<u32> {
        vec![XRGB8888, BGRX8888]
    }
    fn connector(&self) -> (ConnectorKind, u32, bool) {
        (ConnectorKind::Virtual, 5, false)
    }
    fn probe(&mut self) -> Probe {
        Probe { connected: true, ..Probe::default() }
    }
    fn mode_valid(&self, _: &Mode) -> bool {
        true
    }
    fn set_mode(&mut self, mode: Option<&Mode>) {
        self.mode = mode.map(|mode| (mode.hdisplay.into(), mode.vdisplay.into()));
        self.pixels.clear();
    }
    fn set_format(&mut self, format: u32) {
        self.format = format;
    }
    fn write(&mut self, x: u32, y: u32, pixels: &[u8]) {
        self.writes += pixels.len() / 4;
        for (n, pixel) in pixels.chunks_exact(4).enumerate() {
            self.pixels.insert((x + n as u32, y), u32::from_le_bytes(pixel.try_into().unwrap()));
        }
    }
}

fn memory(len: usize) -> io::Result<(OwnedFd, Shared)> {
    let fd = rustix::fs::memfd_create("buffer", rustix::fs::MemfdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&fd, len as u64)?;
    let shared = Shared::map(fd.as_fd(), 0, len)?;
    Ok((fd, shared))
}

struct Rig {
    leaf: Shadow<Glass>,
    state: State,
}

impl Rig {
    fn new() -> Self {
        let state = State {
            crtcs: vec![CrtcState::default()],
            planes: vec![PlaneState::default()],
            connectors: vec![ConnectorState::default()],
        };
        Rig { leaf: Shadow::new(Glass::default(), Box::new(memory)), state }
    }

    fn picture(&mut self, id: u64, width: u32, height: u32, format: u32) -> Rc<Framebuffer> {
        let made = self.leaf.create_dumb(BufferId(id), &DumbRequest { width, height, bpp: 32 }).unwrap();
        let planes = vec![FramebufferPlane { buffer: BufferId(id), pitch: made.pitch, offset: 0 }];
        Rc::new(Framebuffer::new(FramebufferId(id), width, height, format, 0, planes))
    }

    fn fill(&self, fb: &Framebuffer, value: impl Fn(u32, u32) -> u32) {
        let memory = &self.leaf.buffers[&fb.planes[0].buffer];
        for y in 0..fb.height {
            for x in 0..fb.width {
                memory.write_u32((y * fb.planes[0].pitch + x * 4) as usize, value(x, y));
            }
        }
    }

    fn commit(&mut self, modeset: bool, change: impl FnOnce(&mut State)) {
        let mut new = self.state.clone();
        new.planes[0].damage = None;
        change(&mut new);
        let change =
            Change { old: self.state.clone(), new, crtcs: 1, modesets: modeset.into(), planes: 1, unpaced: false };
        assert_eq!(self.leaf.atomic_commit(&change), Completion::Done);
        self.state = change.new;
    }

    /// Shows `size` of a framebuffer from `at` on.
    fn show(&mut self, fb: &Rc<Framebuffer>, at: (u32, u32), size: (u16, u16), modeset: bool, damage: Option<&[Rect]>) {
        let (fb, damage) = (fb.clone(), damage.map(Rc::from));
        self.commit(modeset, |state| {
            state.crtcs[0].active = true;
            state.crtcs[0].mode = Some(Mode { hdisplay: size.0, vdisplay: size.1, ..Mode::default() });
            let (width, height) = (u32::from(size.0), u32::from(size.1));
            state.planes[0] = PlaneState {
                crtc: Some(0),
                fb: Some(fb),
                crtc_w: width,
                crtc_h: height,
                src_x: at.0 << 16,
                src_y: at.1 << 16,
                src_w: width << 16,
                src_h: height << 16,
                damage,
                ..PlaneState::default()
            };
        });
    }
}

#[test]
fn pixels_arrive_and_damage_alone_is_copied() {
    let mut rig = Rig::new();
    let fb = rig.picture(1, 40, 20, XRGB8888);
    rig.fill(&fb, |x, y| y << 8 | x);
    rig.show(&fb, (0, 0), (40, 20), true, None);
    assert_eq!((rig.leaf.screen.mode, rig.leaf.screen.pixels.len()), (Some((40, 20)), 800));
    assert!(rig.leaf.screen.pixels.iter().all(|(&(x, y), &pixel)| pixel == y << 8 | x));
    rig.leaf.screen.writes = 0;
    rig.fill(&fb, |_, _| 7);
    rig.show(&fb, (0, 0), (40, 20), false, Some(&[Rect::new(38, 18, 10, 10), Rect::new(1, 1, 2, 2)]));
    assert_eq!(rig.leaf.screen.writes, 4 + 4, "the clip is cut at the framebuffer's edge");
    assert_eq!((rig.leaf.screen.pixels[&(39, 19)], rig.leaf.screen.pixels[&(2, 2)]), (7, 7));
    assert_eq!(rig.leaf.screen.pixels[&(3, 3)], 3 << 8 | 3);
}

#[test]
fn a_part_of_a_larger_framebuffer_lies_at_the_screens_corner() {
    let mut rig = Rig::new();
    let fb = rig.picture(1, 100, 100, XRGB8888);
    rig.fill(&fb, |x, y| y << 8 | x);
    rig.show(&fb, (30, 40), (16, 16), true, None);
    assert_eq!(rig.leaf.screen.pixels.len(), 256);
    assert!(rig.leaf.screen.pixels.iter().all(|(&(x, y), &pixel)| pixel == (y + 40) << 8 | (x + 30)));
    rig.fill(&fb, |_, _| 9);
    rig.show(&fb, (30, 40), (16, 16), false, Some(&[Rect::new(0, 0, 31, 41)]));
    assert_eq!((rig.leaf.screen.pixels[&(0, 0)], rig.leaf.screen.pixels[&(1, 0)]), (9, 40 << 8 | 31));
}

#[test]
fn another_format_is_told_and_copied_whole() {
    let mut rig = Rig::new();
    let (one, other) = (rig.picture(1, 8, 8, XRGB8888), rig.picture(2, 8, 8, BGRX8888));
    rig.show(&one, (0, 0), (8, 8), true, None);
    rig.leaf.screen.writes = 0;
    rig.show(&other, (0, 0), (8, 8), false, Some(&[Rect::new(0, 0, 1, 1)]));
    assert_eq!((rig.leaf.screen.format, rig.leaf.screen.writes), (BGRX8888, 64));
}

#[test]
fn off_is_dark_and_on_again_is_whole() {
    let mut rig = Rig::new();
    let fb = rig.picture(1, 8, 8, XRGB8888);
    rig.fill(&fb, |_, _| 5);
    rig.show(&fb, (0, 0), (8, 8), true, None);
    rig.commit(true, |state| state.crtcs[0].active = false);
    assert_eq!((rig.leaf.screen.mode, rig.leaf.screen.pixels.len()), (None, 0));
    rig.commit(true, |state| state.crtcs[0].active = true);
    assert_eq!((rig.leaf.screen.mode, rig.leaf.screen.pixels.len()), (Some((8, 8)), 64));
    // The plane goes and comes back, the CRTC stays on.
    rig.commit(false, |state| state.planes[0] = PlaneState::default());
    assert_eq!(rig.leaf.screen.mode, None);
    rig.show(&fb, (0, 0), (8, 8), false, Some(&[Rect::new(0, 0, 1, 1)]));
    assert_eq!((rig.leaf.screen.mode, rig.leaf.screen.pixels.len()), (Some((8, 8)), 64));
}

#[test]
fn buffers_of_any_depth_exist() {
    let mut rig = Rig::new();
    for (bpp, pitch) in [(8, 100), (15, 200), (16, 200), (24, 300), (32, 400)] {
        let made = rig.leaf.create_dumb(BufferId(bpp.into()), &DumbRequest { width: 100, height: 3, bpp }).unwrap();
        assert_eq!((made.pitch, made.size), (pitch, 4096));
    }
    assert_eq!(rig.leaf.buffers.len(), 5);
    rig.leaf.destroy_buffer(BufferId(8));
    assert_eq!(rig.leaf.buffers.len(), 4);
}
