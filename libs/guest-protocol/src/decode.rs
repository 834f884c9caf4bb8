//! Finds frames in a byte stream: [`Decoder`] takes bytes as they come and gives whole messages.

use crate::{HEADER, MAGIC, MAX_PAYLOAD, parse};
use serde::de::DeserializeOwned;
use std::marker::PhantomData;

/// What a [`Decoder`] found.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<T> {
    /// A whole message.
    Message(T),
    /// Something that began as a frame but was not one. The search goes on behind its magic number.
    Garbled,
}

/// Collects bytes and gives messages of type `T`.
#[derive(Debug)]
pub struct Decoder<T> {
    buffer: Vec<u8>,
    message: PhantomData<T>,
}

impl<T> Default for Decoder<T> {
    fn default() -> Self {
        Self { buffer: Vec::new(), message: PhantomData }
    }
}

impl<T: DeserializeOwned> Decoder<T> {
    /// Adds bytes from the line.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next event that the bytes so far hold.
    pub fn next_event(&mut self) -> Option<Event<T>> {
        self.skip_noise();
        let header = self.buffer.get(..HEADER)?;
        let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let (length, crc) = (word(4) as usize, word(8));
        if length > MAX_PAYLOAD {
            self.buffer.drain(..MAGIC.len());
            return Some(Event::Garbled);
        }
        let payload = self.buffer.get(HEADER..HEADER + length)?;
        let mut actual = crc32fast::Hasher::new();
        actual.update(&header[4..8]);
        actual.update(payload);
        match parse(payload) {
            Some(message) if actual.finalize() == crc => {
                self.buffer.drain(..HEADER + length);
                Some(Event::Message(message))
            }
            _ => {
                self.buffer.drain(..MAGIC.len());
                Some(Event::Garbled)
            }
        }
    }

    /// Drops what stands before the next (perhaps only begun) magic number.
    fn skip_noise(&mut self) {
        let start = (0..self.buffer.len())
            .find(|&at| {
                let rest = &self.buffer[at..];
                rest[..rest.len().min(MAGIC.len())] == MAGIC[..rest.len().min(MAGIC.len())]
            })
            .unwrap_or(self.buffer.len());
        self.buffer.drain(..start);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Spawn, ToGuest, ToHost, encode};

    fn all(decoder: &mut Decoder<ToHost>) -> Vec<Event<ToHost>> {
        std::iter::from_fn(|| decoder.next_event()).collect()
    }

    #[test]
    fn messages_survive_byte_by_byte_arrival_between_noise() {
        let first = ToHost::Stdout { job: 1, data: (0..=255).collect() };
        let second = ToHost::Received { total: 77 };
        let mut stream = b"\r\nbooting\xf5 \xf5u noise".to_vec();
        stream.extend(encode(&first));
        stream.extend(b"[    0.1] a kernel line\r\n");
        stream.extend(encode(&second));
        let mut decoder = Decoder::default();
        let mut found = Vec::new();
        for byte in stream {
            decoder.push(&[byte]);
            found.extend(all(&mut decoder));
        }
        assert_eq!(found, [Event::Message(first), Event::Message(second)]);
    }

    #[test]
    fn damaged_frame_is_reported_and_the_next_one_found() {
        let good = ToHost::Garbled;
        let mut bad = encode(&ToHost::Stderr { job: 3, data: b"some text".to_vec() });
        let last = bad.len() - 1;
        bad[last] ^= 1;
        let mut decoder = Decoder::default();
        decoder.push(&bad);
        decoder.push(&encode(&good));
        assert_eq!(all(&mut decoder), [Event::Garbled, Event::Message(good)]);
    }

    #[test]
    fn absurd_length_does_not_stall() {
        let mut decoder = Decoder::<ToHost>::default();
        decoder.push(&MAGIC);
        decoder.push(&u32::MAX.to_le_bytes());
        decoder.push(&[0; 4]);
        assert_eq!(decoder.next_event(), Some(Event::Garbled));
        decoder.push(&encode(&ToHost::Received { total: 1 }));
        assert_eq!(decoder.next_event(), Some(Event::Message(ToHost::Received { total: 1 })));
    }

    #[test]
    fn frame_cut_by_a_vanished_host_is_flushed_by_zeros() {
        let spawn = ToGuest::Spawn(Spawn {
            job: 1,
            argv: vec![vec![b'x'; 900]],
            env: vec![],
            cwd: None,
            user: None,
            stdin: false,
        });
        let frame = encode(&spawn);
        let mut decoder = Decoder::<ToGuest>::default();
        decoder.push(&frame[..100]);
        decoder.push(&vec![0; frame.len()]);
        decoder.push(&encode(&ToGuest::Attach { version: 1, nonce: 2 }));
        assert_eq!(decoder.next_event(), Some(Event::Garbled));
        assert_eq!(decoder.next_event(), Some(Event::Message(ToGuest::Attach { version: 1, nonce: 2 })));
    }
}
