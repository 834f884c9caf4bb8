//! Input: from the device into the ring (`n_tty_receive_buf`), with line editing.

use super::*;

impl LineDiscipline {
    /// Takes bytes from the device. Returns how many were consumed, and what to do before the rest is handed in.
    ///
    /// Fewer than all without an [`Action`] means that the ring is full: hand the rest in after a reader made room
    /// ([`has_room`](Self::has_room)). In canonical mode without a complete line everything is accepted, the last byte
    /// being overwritten, so that a terminal can always be interrupted and its line erased.
    pub fn receive(&mut self, bytes: &[u8]) -> (usize, Option<Action>) {
        if self.echo.is_empty() {
            self.columns_before_echo = (self.column, self.canon_column);
        }
        let mut done = 0;
        while done < bytes.len() {
            let (room, overflow) = self.room();
            if room == 0 {
                break;
            }
            if overflow && self.head - self.tail == RING {
                self.head -= 1;
            }
            let chunk = &bytes[done..bytes.len().min(done + room)];
            if self.raw {
                self.put_slice(chunk);
                done += chunk.len();
                continue;
            }
            for (i, &byte) in chunk.iter().enumerate() {
                if let Some(action) = self.receive_byte(byte) {
                    return (done + i + 1, Some(action));
                }
            }
            done += chunk.len();
        }
        (done, None)
    }

    /// Returns whether [`receive`](Self::receive) would take at least a byte.
    pub fn has_room(&self) -> bool {
        self.room().0 > 0
    }

    /// Takes a break condition from a serial line.
    pub fn receive_break(&mut self) -> Option<Action> {
        if self.iflag(c::IGNBRK) {
            return None;
        }
        if self.iflag(c::BRKINT) {
            return Some(self.signal_action(Signal::Interrupt));
        }
        if self.iflag(c::PARMRK) {
            self.put_slice(&[0xff, 0]);
        }
        self.put_slice(&[0]);
        None
    }

    /// Bytes that may be handed to `receive_byte` at once, and whether that is by overwriting the last one.
    fn room(&self) -> (usize, bool) {
        let free = RING - (self.head - self.tail);
        // PARMRK doubles a 0xff; Linux reckons with three for one.
        let free = if self.iflag(c::PARMRK) { free.div_ceil(3) } else { free };
        match free.saturating_sub(1) {
            0 if self.is_canonical() && self.canon_head == self.tail => (1, true),
            0 => (0, false),
            room => (room, false),
        }
    }

    fn receive_byte(&mut self, mut byte: u8) -> Option<Action> {
        if self.literal_next {
            self.literal_next = false;
            return self.receive_plain(self.stripped(byte));
        }
        byte = self.stripped(byte);
        if self.lflag(c::EXTPROC) {
            self.put(byte);
            return None;
        }
        if self.is_special(byte) { self.receive_special(byte) } else { self.receive_plain(byte) }
    }

    fn stripped(&self, byte: u8) -> u8 {
        let byte = if self.iflag(c::ISTRIP) { byte & 0x7f } else { byte };
        if self.iflag(c::IUCLC) && self.lflag(c::IEXTEN) { to_lower(byte) } else { byte }
    }

    /// Output that `^S` stopped runs again with any byte under `IXANY`.
    fn restart_by_any(&mut self) -> Option<Action> {
        if self.stopped && !self.stopped_by_ioctl && self.iflag(c::IXON) && self.iflag(c::IXANY) {
            self.stopped = false;
            return Some(Action::Start);
        }
        None
    }

    fn receive_plain(&mut self, byte: u8) -> Option<Action> {
        let action = self.restart_by_any();
        if self.lflag(c::ECHO) {
            self.finish_erasing();
            self.note_line_start();
            self.echo_char(byte);
        }
        self.put_marked(byte);
        action
    }

    fn receive_special(&mut self, mut byte: u8) -> Option<Action> {
        if self.iflag(c::IXON) {
            if byte == self.cc(c::VSTART) {
                if self.stopped && !self.stopped_by_ioctl {
                    self.stopped = false;
                    return Some(Action::Start);
                }
                return None;
            }
            if byte == self.cc(c::VSTOP) {
                if !self.stopped {
                    self.stopped = true;
                    return Some(Action::Stop);
                }
                return None;
            }
        }
        if self.lflag(c::ISIG) {
            let signal = match byte {
                b if b == self.cc(c::VINTR) => Some(Signal::Interrupt),
                b if b == self.cc(c::VQUIT) => Some(Signal::Quit),
                b if b == self.cc(c::VSUSP) => Some(Signal::Suspend),
                _ => None,
            };
            if let Some(signal) = signal {
                let action = self.signal_action(signal);
                if self.lflag(c::ECHO) {
                    self.echo_char(byte);
                }
                return Some(action);
            }
        }
        let action = self.restart_by_any();
        if byte == b'\r' {
            if self.iflag(c::IGNCR) {
                return action;
            }
            if self.iflag(c::ICRNL) {
                byte = b'\n';
            }
        } else if byte == b'\n' && self.iflag(c::INLCR) {
            byte = b'\r';
        }
        if self.is_canonical() && self.edit(byte) {
            return action;
        }
        if self.lflag(c::ECHO) {
            self.finish_erasing();
            if byte == b'\n' {
                self.echo_raw(b'\n');
            } else {
                self.note_line_start();
                self.echo_char(byte);
            }
        }
        self.put_marked(byte);
        action
    }

    fn signal_action(&mut self, signal: Signal) -> Action {
        let flush = !self.lflag(c::NOFLSH);
        if flush {
            self.flush_echo();
            self.flush_input();
        }
        let restarted = self.iflag(c::IXON) && !self.stopped_by_ioctl && core::mem::take(&mut self.stopped);
        Action::Signal { signal, flush, restarted }
    }

    /// Handles the editing characters and line ends of canonical mode; false when `byte` is none.
    fn edit(&mut self, byte: u8) -> bool {
        let extended = self.lflag(c::IEXTEN);
        let echo = self.lflag(c::ECHO);
        if byte == self.cc(c::VERASE) || byte == self.cc(c::VKILL) || (byte == self.cc(c::VWERASE) && extended) {
            self.erase(byte);
            return true;
        }
        if byte == self.cc(c::VLNEXT) && extended {
            self.literal_next = true;
            if echo {
                self.finish_erasing();
                if self.lflag(c::ECHOCTL) {
                    self.echo_raw(b'^');
                    self.echo_raw(0x08);
                }
            }
            return true;
        }
        if byte == self.cc(c::VREPRINT) && echo && extended {
            self.finish_erasing();
            self.echo_char(byte);
            self.echo_raw(b'\n');
            for position in self.canon_head..self.head {
                self.echo_char(self.at(position));
            }
            return true;
        }
        if byte == b'\n' {
            if echo || self.lflag(c::ECHONL) {
                self.echo_raw(b'\n');
            }
            self.end_line(byte);
            return true;
        }
        if byte == self.cc(c::VEOF) {
            self.end_line(DISABLED_CHAR);
            return true;
        }
        if byte == self.cc(c::VEOL) || (byte == self.cc(c::VEOL2) && extended) {
            if echo {
                self.note_line_start();
                self.echo_char(byte);
            }
            if byte == 0xff && self.iflag(c::PARMRK) {
                self.put(byte);
            }
            self.end_line(byte);
            return true;
        }
        false
    }

    /// Puts the last byte of a line; the line becomes readable.
    fn end_line(&mut self, byte: u8) {
        if self.head - self.tail == RING {
            self.head -= 1;
        }
        self.mark_line_end(self.head);
        self.put(byte);
        self.canon_head = self.head;
    }

    /// Puts a byte, a literal 0xff twice under `PARMRK`.
    fn put_marked(&mut self, byte: u8) {
        if byte == 0xff && self.iflag(c::PARMRK) {
            self.put(byte);
        }
        self.put(byte);
    }

    fn put(&mut self, byte: u8) {
        if self.head - self.tail < RING {
            self.ring[self.head % RING] = byte;
            self.head += 1;
        }
    }

    fn put_slice(&mut self, bytes: &[u8]) {
        let n = bytes.len().min(RING - (self.head - self.tail));
        let at = self.head % RING;
        let first = n.min(RING - at);
        self.ring[at..at + first].copy_from_slice(&bytes[..first]);
        self.ring[..n - first].copy_from_slice(&bytes[first..n]);
        self.head += n;
    }

    /// `VERASE`, `VWERASE`, `VKILL` (`eraser` in Linux).
    fn erase(&mut self, byte: u8) {
        #[derive(PartialEq)]
        enum Kind {
            Char,
            Word,
            Line,
        }
        if self.head == self.canon_head {
            return;
        }
        let echo = self.lflag(c::ECHO);
        let kind = if byte == self.cc(c::VERASE) {
            Kind::Char
        } else if byte == self.cc(c::VWERASE) {
            Kind::Word
        } else {
            if !echo {
                self.head = self.canon_head;
                return;
            }
            if !(self.lflag(c::ECHOK) && self.lflag(c::ECHOKE) && self.lflag(c::ECHOE)) {
                self.head = self.canon_head;
                self.finish_erasing();
                self.echo_char(self.cc(c::VKILL));
                if self.lflag(c::ECHOK) {
                    self.echo_raw(b'\n');
                }
                return;
            }
            Kind::Line
        };
        let mut seen_word = false;
        while self.head != self.canon_head {
            // One character, however many bytes; never a part of one.
            let mut start = self.head - 1;
            while self.is_continuation(self.at(start)) && start != self.canon_head {
                start -= 1;
            }
            let first = self.at(start);
            if self.is_continuation(first) {
                break;
            }
            if kind == Kind::Word {
                if is_alnum(first) || first == b'_' {
                    seen_word = true;
                } else if seen_word {
                    break;
                }
            }
            let end = core::mem::replace(&mut self.head, start);
            if echo {
                if self.lflag(c::ECHOPRT) {
                    if !core::mem::replace(&mut self.erasing, true) {
                        self.echo_raw(b'\\');
                    }
                    self.echo_char(first);
                    for position in start + 1..end {
                        self.echo_raw(self.at(position));
                        self.column = self.column.saturating_sub(1);
                    }
                } else if kind == Kind::Char && !self.lflag(c::ECHOE) {
                    self.echo_char(self.cc(c::VERASE));
                } else if first == b'\t' {
                    self.echo_tab_erasure();
                } else {
                    if is_control(first) && self.lflag(c::ECHOCTL) {
                        self.echo_erasure();
                    }
                    if !is_control(first) || self.lflag(c::ECHOCTL) {
                        self.echo_erasure();
                    }
                }
            }
            if kind == Kind::Char {
                break;
            }
        }
        if self.head == self.canon_head && echo {
            self.finish_erasing();
        }
    }

    /// Moves the cursor back over an erased tab, to where the text before it ends.
    fn echo_tab_erasure(&mut self) {
        let mut width = 0;
        let mut after_tab = false;
        for position in (self.canon_head..self.head).rev() {
            let byte = self.at(position);
            if byte == b'\t' {
                after_tab = true;
                break;
            }
            if is_control(byte) {
                width += if self.lflag(c::ECHOCTL) { 2 } else { 0 };
            } else if !self.is_continuation(byte) {
                width += 1;
            }
        }
        self.echo_back_over_tab(width, after_tab);
    }
}
