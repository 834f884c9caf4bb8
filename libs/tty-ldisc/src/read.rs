//! Reading: from the ring to the program.

use super::*;

/// What [`LineDiscipline::read`] did in canonical mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// A line (or its rest) was read to its end; with no bytes copied that is an end of file.
    Complete,
    /// The buffer filled before the line ended, or input is not read by lines.
    Partial,
}

impl LineDiscipline {
    /// Returns how many bytes `FIONREAD` reports: all that could be read now.
    pub fn readable(&self) -> usize {
        if !self.reads_lines() {
            return self.head - self.tail;
        }
        // An end-of-file mark is not a byte that a program will see.
        let marks =
            (self.tail..self.canon_head).filter(|&p| self.is_line_end(p) && self.at(p) == DISABLED_CHAR).count();
        self.canon_head - self.tail - marks
    }

    /// Returns whether a read would find something. For `poll`, `VMIN` without `VTIME` asks for that many bytes.
    pub fn input_available(&self, for_poll: bool) -> bool {
        if self.reads_lines() {
            return self.canon_head != self.tail;
        }
        let (min, time) = self.min_time();
        let wanted = if for_poll && time == 0 && min > 0 { min as usize } else { 1 };
        self.head - self.tail >= wanted
    }

    /// Copies what is buffered: all of it, or in canonical mode at most to the end of one line.
    pub fn read(&mut self, buf: &mut [u8]) -> (usize, Line) {
        if !self.reads_lines() {
            let n = buf.len().min(self.head - self.tail);
            self.copy_out(self.tail, &mut buf[..n]);
            self.tail += n;
            // A lone end-of-file character from a remote editor (EXTPROC) is an end of file.
            if self.is_canonical() && n == 1 && buf[0] == self.cc(c::VEOF) {
                return (0, Line::Complete);
            }
            return (n, Line::Partial);
        }
        let available = self.canon_head - self.tail;
        let limit = buf.len().min(available);
        let end = (self.tail..self.tail + limit).find(|&p| self.is_line_end(p));
        let Some(end) = end else {
            self.copy_out(self.tail, &mut buf[..limit]);
            self.tail += limit;
            // An end-of-file mark right behind a full buffer belongs to this read.
            if limit > 0 && self.tail != self.canon_head && self.is_eof_mark(self.tail) {
                self.clear_line_end(self.tail);
                self.tail += 1;
                return (limit, Line::Complete);
            }
            return (limit, Line::Partial);
        };
        let text = end - self.tail + if self.at(end) == DISABLED_CHAR { 0 } else { 1 };
        self.copy_out(self.tail, &mut buf[..text]);
        self.clear_line_end(end);
        self.tail = end + 1;
        self.pushed = false;
        (text, Line::Complete)
    }

    fn is_eof_mark(&self, position: usize) -> bool {
        self.is_line_end(position) && self.at(position) == DISABLED_CHAR
    }

    fn copy_out(&self, from: usize, buf: &mut [u8]) {
        let at = from % RING;
        let first = buf.len().min(RING - at);
        buf[..first].copy_from_slice(&self.ring[at..at + first]);
        let rest = buf.len() - first;
        buf[first..].copy_from_slice(&self.ring[..rest]);
    }
}
