use std::process::{Command, Stdio};

use super::*;

fn header(name: &str, mode: u32, size: u32) -> Vec<u8> {
    let fields = [7, mode, 1, 2, 1, 1000, size, 8, 1, 4, 64, name.len() as u32 + 1, 0];
    let mut out = b"070701".to_vec();
    for field in fields {
        out.extend(format!("{field:08X}").bytes());
    }
    out.extend(name.bytes());
    out.push(0);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

fn archive(files: &[(&str, u32, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, mode, data) in files {
        out.extend(header(name, *mode, data.len() as u32));
        out.extend(*data);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    out.extend(header("TRAILER!!!", 0, 0));
    out
}

fn names(bytes: &[u8]) -> Result<Vec<String>, Error> {
    Reader::new(bytes).map(|e| e.map(|e| String::from_utf8(e.name).unwrap())).collect()
}

#[test]
fn reads_entries_and_their_contents() {
    let bytes = archive(&[("./a", 0o100_644, b"hello"), ("dir/", 0o040_755, b""), ("/dir//x", 0o100_600, b"")]);
    let entries: Vec<Entry> = Reader::new(&bytes[..]).collect::<Result<_, _>>().unwrap();
    assert_eq!(entries.len(), 3);
    assert_eq!(entries[0].name, b"a");
    assert_eq!(&bytes[entries[0].data as usize..][..5], b"hello");
    assert_eq!((entries[0].uid, entries[0].gid, entries[0].mtime), (1, 2, 1000));
    assert_eq!(entries[0].rdev, (4, 64));
    assert_eq!(entries[1].name, b"dir");
    assert_eq!(entries[2].name, b"dir/x");
}

#[test]
fn goes_on_into_the_next_archive() {
    let mut bytes = archive(&[("a", 0o100_644, b"1")]);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes.extend(archive(&[("b", 0o100_644, b"2")]));
    bytes.resize(bytes.len() + 5000, 0);
    let entries: Vec<Entry> = Reader::new(&bytes[..]).collect::<Result<_, _>>().unwrap();
    assert_eq!(entries.iter().map(|e| e.archive).collect::<Vec<_>>(), [0, 1]);
}

#[test]
fn names_the_fault_and_its_place() {
    assert_eq!(names(b"hello, world"), Err(Error::Magic { offset: 0 }));
    assert_eq!(names(b"\x1f\x8b\x08\0"), Err(Error::Compressed("gzip")));
    let good = archive(&[("a", 0o100_644, b"12345678")]);
    assert_eq!(names(&good[..118]), Err(Error::Truncated { offset: 0 }));
    assert_eq!(names(&good[..60]), Err(Error::Truncated { offset: 0 }));
    let mut bad = good.clone();
    bad[10] = b'x';
    assert_eq!(names(&bad), Err(Error::Number { offset: 0 }));
    assert_eq!(names(&archive(&[("a/../b", 0o100_644, b"")])), Err(Error::Escapes { offset: 0 }));
    let mut bad = good.clone();
    bad[110] = 0;
    assert!(matches!(names(&bad), Ok(_) | Err(Error::Name { .. })));
    // A size beyond the end.
    let mut bad = good;
    bad[6 + 6 * 8..][..8].copy_from_slice(b"FFFFFFFF");
    assert_eq!(names(&bad), Err(Error::Truncated { offset: 0 }));
}

#[test]
fn nothing_makes_it_panic() {
    // Every single-byte change and every cut of a small archive, and noise.
    let good = archive(&[("a", 0o100_644, b"12345678"), ("b/c", 0o120_777, b"a")]);
    for i in 0..good.len() {
        for value in [0, b'0', b'F', b'x', 0xff] {
            let mut bytes = good.clone();
            bytes[i] = value;
            let _ = names_lossy(&bytes);
        }
        let _ = names_lossy(&good[..i]);
    }
    let mut state = 0x1234_5678_9abc_def0u64;
    for round in 0..2000 {
        let mut bytes = good.clone();
        for _ in 0..1 + round % 8 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let at = state as usize % bytes.len();
            bytes[at] = (state >> 32) as u8;
        }
        let _ = names_lossy(&bytes);
    }
}

fn names_lossy(bytes: &[u8]) -> usize {
    Reader::new(bytes).take(1000).filter(Result::is_ok).count()
}

#[test]
fn reads_what_cpio_writes() {
    let dir = std::env::temp_dir().join(format!("ursa-cpio-{}", std::process::id()));
    std::fs::create_dir_all(dir.join("sub")).unwrap();
    std::fs::write(dir.join("sub/file"), vec![9u8; 10_000]).unwrap();
    std::os::unix::fs::symlink("sub/file", dir.join("link")).unwrap();
    let made =
        Command::new("sh").args(["-c", "find . | cpio -o -H newc"]).current_dir(&dir).stderr(Stdio::null()).output();
    std::fs::remove_dir_all(&dir).unwrap();
    let Ok(made) = made else { return };
    if !made.status.success() || made.stdout.is_empty() {
        eprintln!("no cpio(1) here: skipped");
        return;
    }
    let entries: Vec<Entry> = Reader::new(&made.stdout[..]).collect::<Result<_, _>>().unwrap();
    let file = entries.iter().find(|e| e.name == b"sub/file").unwrap();
    assert_eq!(file.size, 10_000);
    assert!(made.stdout[file.data as usize..][..10_000].iter().all(|b| *b == 9));
    assert_eq!(entries.iter().find(|e| e.name == b"link").unwrap().mode & 0o170_000, 0o120_000);
}
