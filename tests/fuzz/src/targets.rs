//! The parsers, each with sound inputs and what must hold for any.

use classic_bpf::{Environment, Instruction, Program};
use cpio::Reader;
use elf_image::{HEADER_LEN, Header};
use fuse_abi::description::records;
use fuse_abi::{Reply, Request, split_name};
use guest_protocol::{Decoder, Event, ToGuest, ToHost, encode};
use linux_uapi::tty::Termios2;
use linux_uapi::zerocopy::{FromBytes, IntoBytes};
use tty_ldisc::{LineDiscipline, default_termios};

use crate::Target;

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "elf", seeds: elf_seeds, parse: elf },
    Target { name: "cpio", seeds: cpio_seeds, parse: archive },
    Target { name: "bpf", seeds: bpf_seeds, parse: bpf },
    Target { name: "fuse-request", seeds: fuse_seeds, parse: fuse_request },
    Target { name: "fuse-reply", seeds: fuse_seeds, parse: fuse_reply },
    Target { name: "scheme-description", seeds: description_seeds, parse: description },
    Target { name: "console-records", seeds: console_seeds, parse: console },
    Target { name: "guest-protocol", seeds: guest_seeds, parse: guest },
    Target { name: "tty", seeds: tty_seeds, parse: tty },
];

/// A program with two segments, an interpreter and a stack's mark.
fn elf_seeds() -> Vec<Vec<u8>> {
    let mut file = vec![0; HEADER_LEN];
    file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    let header: [(usize, u64, usize); 9] = [
        (16, 3, 2),
        (18, 62, 2),
        (20, 1, 4),
        (24, 0x1000, 8),
        (32, 64, 8),
        (52, 64, 2),
        (54, 56, 2),
        (56, 4, 2),
        (58, 64, 2),
    ];
    for (at, value, width) in header {
        file[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
    }
    // Kind and rights, offset, address, physical address, bytes in the file and in memory, alignment.
    let table: [[u64; 7]; 4] = [
        [3 | 4 << 32, 0x100, 0x100, 0, 28, 28, 1],
        [1 | 5 << 32, 0, 0, 0, 0x1000, 0x1000, 0x1000],
        [1 | 6 << 32, 0x1000, 0x1000, 0, 0x800, 0x3000, 0x1000],
        [0x6474_e551 | 6 << 32, 0, 0, 0, 0, 0, 16],
    ];
    for row in table {
        file.extend(row.iter().flat_map(|word| word.to_le_bytes()));
    }
    vec![file]
}

fn elf(bytes: &[u8]) {
    let Some(start) = bytes.first_chunk::<HEADER_LEN>() else { return };
    let Ok(header) = Header::parse(start) else { return };
    let (offset, len) = header.table();
    let Some(table) = usize::try_from(offset).ok().and_then(|at| bytes.get(at..)?.get(..len)) else { return };
    let Ok(program) = elf_image::Program::parse(&header, table) else { return };
    assert!(program.start < program.end && program.align.is_power_of_two());
    assert!(program.span() >= program.end - program.start);
    for segment in program.segments() {
        assert!(segment.start >= program.start && segment.mem_end <= program.end);
        assert!(segment.start.checked_add(segment.file_len).is_some_and(|end| end <= segment.mem_end));
    }
}

fn cpio_seeds() -> Vec<Vec<u8>> {
    let mut archive = Vec::new();
    for (name, mode, data) in
        [("etc", 0o040_755, &b""[..]), ("etc/hostname", 0o100_644, b"ursa\n"), ("TRAILER!!!", 0, b"")]
    {
        let fields = [1, mode, 0, 0, 1, 0, data.len(), 0, 0, 0, 0, name.len() + 1, 0];
        archive.extend_from_slice(b"070701");
        archive.extend(fields.iter().flat_map(|field| format!("{field:08x}").into_bytes()));
        archive.extend_from_slice(name.as_bytes());
        archive.push(0);
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend_from_slice(data);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
    vec![archive]
}

fn archive(bytes: &[u8]) {
    let mut reader = Reader::new(bytes);
    let mut count = 0;
    while let Some(entry) = reader.next() {
        if entry.is_err() {
            // A reader ends with its first error.
            assert!(reader.next().is_none());
            break;
        }
        assert!(reader.offset() <= bytes.len() as u64);
        count += 1;
    }
    // Each entry has a header.
    assert!(count <= bytes.len() / 110);
}

fn bpf_seeds() -> Vec<Vec<u8>> {
    let program = [(0x28, 0, 0, 12), (0x15, 0, 2, 0x800), (0x30, 0, 0, 23), (0x16, 0, 0, 0xffff), (0x06, 0, 0, 0)];
    let instruction = |(code, jump_true, jump_false, k)| Instruction { code, jump_true, jump_false, k };
    vec![program.map(instruction).as_bytes().to_vec()]
}

struct Fixed;

impl Environment for Fixed {
    fn cpu(&self) -> u32 {
        1
    }

    fn random(&self) -> u32 {
        4
    }
}

fn bpf(bytes: &[u8]) {
    let chunks = bytes.chunks_exact(size_of::<Instruction>());
    let instructions: Vec<Instruction> = chunks.filter_map(|chunk| Instruction::read_from_bytes(chunk).ok()).collect();
    if let Ok(program) = Program::new(&instructions) {
        // A checked program ends on any packet.
        program.run(bytes, &Fixed);
        program.run(&[], &Fixed);
    }
}

fn fuse_seeds() -> Vec<Vec<u8>> {
    let message = |len: usize, words: &[u32], rest: &[u8]| {
        let mut bytes = (len as u32).to_le_bytes().to_vec();
        bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        bytes.extend_from_slice(rest);
        bytes
    };
    vec![
        // LOOKUP of a name.
        message(46, &[1, 7, 0, 1, 0, 0, 0, 0, 0], b"name\0\0"),
        // A reply with data, one with an error, a notification.
        message(20, &[0, 7, 0], b"data"),
        message(16, &[-2_i32 as u32, 7, 0], b""),
        message(24, &[2, 0, 0], b"\x01\0\0\0\0\0\0\0"),
    ]
}

fn fuse_request(bytes: &[u8]) {
    if let Ok(request) = Request::parse(bytes) {
        let _ = request.opcode();
        assert!(request.body.len() + request.extensions.len() < bytes.len());
        if let Some((name, rest)) = split_name(request.body) {
            assert!(!name.contains(&0) && name.len() + 1 + rest.len() == request.body.len());
        }
    }
}

fn fuse_reply(bytes: &[u8]) {
    let _ = Reply::parse(bytes);
}

fn description_seeds() -> Vec<Vec<u8>> {
    vec![
        b"NAME=card0\0CLASS=drm\0DEVTYPE=drm_minor\0NODE=dri/card0:660:226:0\0ENV=A=b\0ATTR=dev:444:226:0\0".to_vec(),
        b"name=uinput\0class=misc\0node=uinput 600 10 223\0env=MODALIAS x\0attr=x 444 y\0dyn=z 644 3\0".to_vec(),
    ]
}

fn description(bytes: &[u8]) {
    let mut failed = false;
    for record in records(bytes) {
        assert!(!failed, "records go on after an error");
        failed = record.is_err();
    }
}

fn console_seeds() -> Vec<Vec<u8>> {
    vec![vec![0; 64], (0..96).collect()]
}

fn console(bytes: &[u8]) {
    let read: usize = console_abi::records(bytes).map(|(_, data)| data.len()).sum();
    assert!(read <= bytes.len());
}

fn guest_seeds() -> Vec<Vec<u8>> {
    let stdin = encode(&ToGuest::Stdin { job: 3, data: b"typed".to_vec() });
    let hello = encode(&ToHost::Hello { version: 1, nonce: 2, kernel: "Ursa".into() });
    vec![[&b"boot noise\r\n"[..], &stdin, &hello].concat(), [hello, stdin].concat()]
}

fn guest(bytes: &[u8]) {
    let mut decoder = Decoder::<ToGuest>::default();
    let mut answers = Decoder::<ToHost>::default();
    let mut events = 0;
    // In pieces, as a serial line brings them.
    for piece in bytes.chunks(7) {
        decoder.push(piece);
        answers.push(piece);
        while let Some(event) = decoder.next_event() {
            events += usize::from(matches!(event, Event::Message(_) | Event::Garbled));
        }
        while answers.next_event().is_some() {}
    }
    // Each event uses up a byte at least.
    assert!(events <= bytes.len());
}

fn tty_seeds() -> Vec<Vec<u8>> {
    let mut seed = default_termios(38_400).as_bytes().to_vec();
    seed.extend_from_slice(b"a line\r\n\x7f\x15\x17\x03\x1a\x04\x16\x11\x13tabs\tand \xc3\xa4\n");
    vec![seed]
}

/// The first bytes are a terminal's settings, the rest is typed.
fn tty(bytes: &[u8]) {
    let Ok((termios, typed)) = Termios2::read_from_prefix(bytes) else { return };
    let mut line = LineDiscipline::new(default_termios(38_400));
    let _ = line.set_termios(termios);
    let mut buffer = [0; 97];
    for piece in typed.chunks(61) {
        let mut rest = piece;
        while !rest.is_empty() {
            let (taken, _) = line.receive(rest);
            assert!(taken <= rest.len());
            if taken == 0 {
                break;
            }
            rest = &rest[taken..];
        }
        let readable = line.readable();
        let (read, _) = line.read(&mut buffer);
        assert!(read <= buffer.len() && read <= readable.max(1));
    }
}
