//! Output post-processing (`OPOST`).

use super::*;

/// Where processed output goes: the device's transmit buffer.
pub trait OutputSink {
    /// Bytes that [`push`](Self::push) takes now.
    fn room(&self) -> usize;
    /// Takes bytes; never more than [`room`](Self::room).
    fn push(&mut self, bytes: &[u8]);
}

/// The few bytes that one byte becomes: at most a tab's eight blanks.
#[derive(Default)]
pub(crate) struct Small {
    bytes: [u8; 8],
    len: usize,
}

impl Small {
    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn push(&mut self, byte: u8) {
        self.bytes[self.len] = byte;
        self.len += 1;
    }
}

impl LineDiscipline {
    /// Writes a program's output to the device as far as there is room. Returns how many bytes of `bytes` were consumed.
    pub fn output(&mut self, bytes: &[u8], sink: &mut dyn OutputSink) -> usize {
        self.drain_echo(sink);
        if self.stopped {
            return 0;
        }
        if !self.oflag(c::OPOST) {
            let n = bytes.len().min(sink.room());
            sink.push(&bytes[..n]);
            return n;
        }
        let mut done = 0;
        while done < bytes.len() {
            let room = sink.room();
            if room == 0 {
                break;
            }
            let run = self.plain_run(&bytes[done..bytes.len().min(done + room)]);
            if run > 0 {
                sink.push(&bytes[done..done + run]);
                done += run;
                continue;
            }
            // What a byte becomes goes out whole or not at all.
            let saved = (self.column, self.canon_column);
            let mut out = Small::default();
            self.process_byte(bytes[done], &mut out);
            if out.len > room {
                (self.column, self.canon_column) = saved;
                break;
            }
            sink.push(out.as_slice());
            done += 1;
        }
        done
    }

    /// Length of the leading run that passes unchanged; accounts for its columns.
    fn plain_run(&mut self, bytes: &[u8]) -> usize {
        if self.oflag(c::OLCUC) {
            return 0;
        }
        let run = bytes.iter().position(|&b| is_control(b)).unwrap_or(bytes.len());
        let columns =
            if self.iflag(c::IUTF8) { bytes[..run].iter().filter(|&&b| !self.is_continuation(b)).count() } else { run };
        self.column = self.column.wrapping_add(columns as u32);
        run
    }

    /// Processes one byte (`do_output_char`).
    pub(crate) fn process_byte(&mut self, mut byte: u8, out: &mut Small) {
        match byte {
            b'\n' => {
                if self.oflag(c::ONLRET) {
                    self.column = 0;
                }
                if self.oflag(c::ONLCR) {
                    self.column = 0;
                    self.canon_column = 0;
                    out.push(b'\r');
                } else {
                    self.canon_column = self.column;
                }
            }
            b'\r' => {
                if self.oflag(c::ONOCR) && self.column == 0 {
                    return;
                }
                if self.oflag(c::OCRNL) {
                    byte = b'\n';
                    if self.oflag(c::ONLRET) {
                        self.column = 0;
                        self.canon_column = 0;
                    }
                } else {
                    self.column = 0;
                    self.canon_column = 0;
                }
            }
            b'\t' => {
                let spaces = 8 - (self.column & 7);
                self.column = self.column.wrapping_add(spaces);
                if self.termios.oflag & c::TABDLY == c::XTABS {
                    for _ in 0..spaces {
                        out.push(b' ');
                    }
                    return;
                }
            }
            0x08 => self.column = self.column.saturating_sub(1),
            _ if is_control(byte) => {}
            _ => {
                if self.oflag(c::OLCUC) {
                    byte = to_upper(byte);
                }
                if !self.is_continuation(byte) {
                    self.column = self.column.wrapping_add(1);
                }
            }
        }
        out.push(byte);
    }
}
