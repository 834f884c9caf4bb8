//! The daemon's loop. See the library for what the parts do.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::{self, ErrorKind, Read, Write},
    mem::MaybeUninit,
    num::NonZeroU16,
    os::fd::{AsFd, OwnedFd},
    os::unix::fs::OpenOptionsExt,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use console::{
    display::{self, Display},
    input::{self, Keyboards},
    keys::{Action, Keyboard, Mode},
    render::{Canvas, Renderer},
    terminal::Terminal,
};
use console_abi::{Record, Size, State, records};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::inotify,
};
use zerocopy::{FromBytes, IntoBytes};

/// The least time between two pictures.
const FRAME: Duration = Duration::from_millis(16);
/// The size of a terminal without a screen.
const ROWS: NonZeroU16 = NonZeroU16::new(25).unwrap();
const COLUMNS: NonZeroU16 = NonZeroU16::new(80).unwrap();

struct Console {
    kernel: File,
    changes: OwnedFd,
    terminals: BTreeMap<u16, Terminal>,
    state: State,
    rows: NonZeroU16,
    columns: NonZeroU16,
    keyboard: Keyboard,
    keyboards: Keyboards,
    lights: u8,
    /// The screen does not show what it should.
    dirty: bool,
    buffer: Vec<u8>,
}

/// Why the loop was left.
enum Left {
    /// Cards came or went.
    CardsChanged,
}

impl Console {
    fn open() -> Result<Console> {
        let path = format!("/dev/{}", console_abi::DEVICE);
        let nonblock = rustix::fs::OFlags::NONBLOCK.bits() as i32;
        let kernel = OpenOptions::new().read(true).write(true).custom_flags(nonblock).open(&path).context(path)?;
        let changes = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        let what = inotify::WatchFlags::CREATE | inotify::WatchFlags::DELETE | inotify::WatchFlags::ATTRIB;
        for directory in ["/dev", display::CARDS, input::DEVICES] {
            // What is not there yet is seen to appear in /dev.
            let _ = inotify::add_watch(&changes, directory, what);
        }
        Ok(Console {
            kernel,
            changes,
            terminals: BTreeMap::new(),
            state: State { active: 1, keyboard: 3, ..State::default() },
            rows: ROWS,
            columns: COLUMNS,
            keyboard: Keyboard::system(),
            keyboards: Keyboards::default(),
            lights: 0,
            dirty: true,
            buffer: vec![0; console_abi::HISTORY],
        })
    }

    fn terminal(&mut self, vt: u16) -> &mut Terminal {
        let (rows, columns) = (self.rows, self.columns);
        self.terminals.entry(vt).or_insert_with(|| Terminal::new(rows, columns))
    }

    fn tell(&mut self, kind: u16, vt: u16, payload: &[u8]) -> io::Result<usize> {
        let head = Record { kind, vt, len: payload.len() as u32 };
        self.kernel.write(&[head.as_bytes(), payload].concat()).map(|n| n.saturating_sub(head.as_bytes().len()))
    }

    /// Types into a terminal. What it has no room for is lost, as with a keyboard's own buffer.
    fn type_into(&mut self, vt: u16, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match self.tell(console_abi::INPUT, vt, &bytes[..bytes.len().min(console_abi::INPUT_MAX)]) {
                Ok(n) if n > 0 => bytes = &bytes[n..],
                _ => return,
            }
        }
    }

    /// The screen's size changed.
    fn set_size(&mut self, rows: NonZeroU16, columns: NonZeroU16, width: usize, height: usize) -> io::Result<()> {
        (self.rows, self.columns) = (rows, columns);
        self.terminals.values_mut().for_each(|terminal| terminal.resize(rows, columns));
        let size = Size { rows: rows.get(), columns: columns.get(), width: width as u16, height: height as u16 };
        self.tell(console_abi::SIZE, 0, size.as_bytes()).map(|_| ())
    }

    /// Takes what the kernel has; false when there was nothing.
    fn take(&mut self) -> io::Result<bool> {
        let n = match self.kernel.read(&mut self.buffer) {
            Ok(n) => n,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        };
        let buffer = std::mem::take(&mut self.buffer);
        for (record, payload) in records(&buffer[..n]) {
            match record.kind {
                console_abi::OUTPUT => {
                    let answer = self.terminal(record.vt).write(payload);
                    self.type_into(record.vt, &answer);
                    self.dirty |= record.vt == self.state.active;
                }
                console_abi::STATE => {
                    if let Ok(state) = State::read_from_bytes(payload) {
                        self.dirty |= (state.active, state.mode) != (self.state.active, self.state.mode);
                        self.state = state;
                        self.show_lights();
                    }
                }
                console_abi::RESET => {
                    self.terminals.remove(&record.vt);
                }
                _ => {}
            }
        }
        self.buffer = buffer;
        Ok(true)
    }

    fn show_lights(&mut self) {
        let lights = self.state.leds as u8;
        // With the keyboard switched off, whoever reads it sets its lights.
        if lights != self.lights && Mode::from_number(self.state.keyboard) != Mode::Off {
            self.lights = lights;
            self.keyboards.set_lights(lights);
        }
    }

    fn keys(&mut self) {
        let (events, gone) = self.keyboards.events();
        let before = self.keyboard.lights();
        for event in events {
            let active = self.state.active;
            let application = self.terminal(active).screen().application_cursor();
            let mode = Mode::from_number(self.state.keyboard);
            match self.keyboard.event(event.key, event.value, mode, application) {
                Some(Action::Type(bytes)) => {
                    self.terminal(active).end_scroll();
                    self.type_into(0, &bytes);
                    self.dirty = true;
                }
                Some(Action::Switch(vt)) => self.switch(vt),
                Some(Action::Step(by)) => self.step(by),
                Some(Action::Scroll(by)) => {
                    let half = isize::from(self.rows.get() as i16 / 2);
                    self.terminal(active).scroll(half * isize::from(by));
                    self.dirty = true;
                }
                None => {}
            }
        }
        if gone {
            self.keyboard.release_all();
        }
        let lights = self.keyboard.lights();
        if lights != before {
            // The kernel says what is shown: a program may have chosen something else.
            let _ = self.tell(console_abi::LEDS, 0, &[lights]);
            self.state.leds = lights.into();
            self.show_lights();
        }
    }

    fn switch(&mut self, vt: u16) {
        if u32::from(vt) <= console_abi::TERMINALS {
            let _ = self.tell(console_abi::ACTIVATE, vt, &[]);
        }
    }

    /// To the nearest terminal in use in one direction, around the ends.
    fn step(&mut self, by: i8) {
        let count = console_abi::TERMINALS as i32;
        let at = |n: i32| (i32::from(self.state.active) - 1 + n * i32::from(by)).rem_euclid(count) + 1;
        let found = (1..count).map(at).find(|&vt| self.state.in_use >> vt & 1 != 0);
        if let Some(vt) = found {
            self.switch(vt as u16);
        }
    }

    /// Whether the screen is the console's to draw.
    fn may_draw(&self) -> bool {
        self.state.mode == 0
    }

    /// Works until the cards change, drawing on `screen` if there is one.
    fn run(&mut self, mut screen: Option<(&Display, &mut Renderer, &mut [u8])>) -> Result<Left> {
        let mut drawn = Instant::now().checked_sub(FRAME).unwrap_or_else(Instant::now);
        let mut had_display = false;
        self.dirty = true;
        loop {
            // All that is there, before a picture is made of it, but a picture all the same while more and more comes.
            let mut more = self.take()?;
            while more && drawn.elapsed() < FRAME {
                more = self.take()?;
            }
            let due = drawn + FRAME;
            let now = Instant::now();
            if !self.may_draw() {
                had_display = false;
            }
            if self.dirty && self.may_draw() && now >= due {
                self.dirty = false;
                drawn = now;
                if let Some((display, renderer, pixels)) = &mut screen {
                    let (width, height) = display.size();
                    let mut canvas = Canvas { pixels, pitch: display.pitch(), width, height };
                    if !had_display {
                        renderer.forget();
                        canvas.pixels.fill(0);
                    }
                    let active = self.state.active;
                    let (rows, columns) = (self.rows, self.columns);
                    let terminal = self.terminals.entry(active).or_insert_with(|| Terminal::new(rows, columns));
                    let damage = renderer.draw(terminal.screen(), &mut canvas);
                    match display.show(&damage) {
                        Ok(()) => had_display = true,
                        // A program has the display although the terminal is in text mode; the next key or output tries again.
                        Err(error) if display::is_taken(&error) => had_display = false,
                        Err(error) => {
                            eprintln!("console: the screen: {error}");
                            return Ok(Left::CardsChanged);
                        }
                    }
                }
            }
            // A read that finds nothing tells the kernel that all was acted on: sleep only after one.
            let wait = match more {
                true => Some(Duration::ZERO),
                false if self.dirty && self.may_draw() && screen.is_some() => {
                    Some(due.saturating_duration_since(Instant::now()))
                }
                false => None,
            };
            let wait = wait.map(|wait| Timespec { tv_sec: 0, tv_nsec: wait.as_nanos() as i64 });
            let mut fds = vec![PollFd::new(&self.kernel, PollFlags::IN), PollFd::new(&self.changes, PollFlags::IN)];
            fds.extend(self.keyboards.descriptors().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
            match poll(&mut fds, wait.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let changed = !fds[1].revents().is_empty();
            let typed = fds[2..].iter().any(|fd| !fd.revents().is_empty());
            drop(fds);
            if typed {
                self.keys();
            }
            if changed && self.devices_changed() {
                return Ok(Left::CardsChanged);
            }
        }
    }

    /// Looks for keyboards; whether the cards changed.
    fn devices_changed(&mut self) -> bool {
        let mut space = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(self.changes.as_fd(), &mut space);
        let mut cards = false;
        while let Ok(event) = reader.next() {
            let name = event.file_name().map(|name| name.to_bytes()).unwrap_or_default();
            cards |= name.starts_with(b"card") || name == b"dri";
        }
        let what = inotify::WatchFlags::CREATE | inotify::WatchFlags::DELETE | inotify::WatchFlags::ATTRIB;
        for directory in [display::CARDS, input::DEVICES] {
            // Watching what is watched already changes nothing.
            let _ = inotify::add_watch(&self.changes, directory, what);
        }
        if self.keyboards.scan() {
            self.keyboard.release_all();
        }
        cards
    }
}

/// The first card that can show something.
fn find_display() -> Option<Display> {
    display::cards().iter().find_map(|path| {
        Display::open(path).inspect_err(|error| eprintln!("console: {}: {error:#}", path.display())).ok()
    })
}

fn main() -> Result<()> {
    let mut console = Console::open()?;
    console.keyboards.scan();
    sd_notify::notify(&[sd_notify::NotifyState::Ready])?;
    loop {
        let display = find_display();
        let renderer = display.as_ref().and_then(|display| {
            let (width, height) = display.size();
            Renderer::new(width, height)
        });
        let left = match (&display, renderer) {
            (Some(display), Some(mut renderer)) => {
                let (rows, columns) = renderer.size();
                let (width, height) = display.size();
                if let (Some(rows), Some(columns)) = (NonZeroU16::new(rows), NonZeroU16::new(columns)) {
                    console.set_size(rows, columns, width, height)?;
                }
                match display.with_pixels(|pixels| console.run(Some((display, &mut renderer, pixels)))) {
                    Ok(left) => left?,
                    Err(error) => {
                        eprintln!("console: the screen cannot be mapped: {error}");
                        console.run(None)?
                    }
                }
            }
            _ => console.run(None)?,
        };
        match left {
            Left::CardsChanged => {}
        }
    }
}
