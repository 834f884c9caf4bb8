//! Echo: what input makes appear on the terminal.
//!
//! Echo is post-processed when it is made and waits in a queue of its own till the device has room; output that a program
//! writes goes after it.

use super::*;

impl LineDiscipline {
    /// Moves waiting echo to the device as far as there is room. Does nothing while output is stopped.
    pub fn drain_echo(&mut self, sink: &mut dyn OutputSink) {
        while !self.stopped {
            let (front, _) = self.echo.as_slices();
            let n = front.len().min(sink.room());
            if n == 0 {
                return;
            }
            sink.push(&front[..n]);
            self.echo.drain(..n);
        }
    }

    /// Returns whether echo waits for room.
    pub fn has_echo(&self) -> bool {
        !self.echo.is_empty()
    }

    fn queue(&mut self, byte: u8) {
        if self.echo.len() < ECHO_LIMIT {
            self.echo.push_back(byte);
        }
    }

    /// Echoes a byte as input shows it: control characters as `^X` under `ECHOCTL`.
    pub(crate) fn echo_char(&mut self, byte: u8) {
        if self.lflag(c::ECHOCTL) && is_control(byte) && byte != b'\t' {
            self.queue(b'^');
            self.queue(byte ^ 0o100);
            self.column += 2;
        } else {
            self.echo_raw(byte);
        }
    }

    /// Echoes a byte through output processing only.
    pub(crate) fn echo_raw(&mut self, byte: u8) {
        if byte == 0xff {
            // Linux escapes this byte in its echo buffer: it passes unchanged and always counts as a column.
            self.queue(byte);
            self.column = self.column.wrapping_add(1);
        } else if self.oflag(c::OPOST) {
            let mut out = output::Small::default();
            self.process_byte(byte, &mut out);
            for &b in out.as_slice() {
                self.queue(b);
            }
        } else {
            self.queue(byte);
        }
    }

    /// Backspace, blank, backspace.
    pub(crate) fn echo_erasure(&mut self) {
        for byte in [0x08, b' ', 0x08] {
            self.echo_raw(byte);
        }
    }

    /// Steps back over a tab that followed `width` columns of text; those count from the line's start unless `after_tab`.
    pub(crate) fn echo_back_over_tab(&mut self, width: u32, after_tab: bool) {
        let columns = (width & 7) + if after_tab { 0 } else { self.canon_column };
        for _ in 0..8 - (columns & 7) {
            self.queue(0x08);
            self.column = self.column.saturating_sub(1);
        }
    }

    /// Ends an `ECHOPRT` erasure.
    pub(crate) fn finish_erasing(&mut self) {
        if core::mem::take(&mut self.erasing) {
            self.echo_raw(b'/');
        }
    }

    /// Remembers the column at which an input line begins, for erasing tabs.
    pub(crate) fn note_line_start(&mut self) {
        if self.canon_head == self.head {
            self.canon_column = self.column;
        }
    }
}
