//! Tests of the cpio writer: against a reader of its own, and against GNU cpio.

use super::*;
use crate::image::tree::Tree;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Stdio};

#[derive(Debug, PartialEq, Eq)]
struct Entry {
    mode: u32,
    ino: u32,
    uid: u32,
    gid: u32,
    links: u32,
    mtime: u32,
    device: (u32, u32),
    offset: usize,
    data: Vec<u8>,
}

/// Reads an archive as init/initramfs.c does. Entries for "." are checked and left out.
fn read(archive: &[u8]) -> BTreeMap<String, Entry> {
    let mut entries = BTreeMap::new();
    let mut at = 0;
    loop {
        assert_eq!(at % 4, 0);
        assert_eq!(&archive[at..at + 6], b"070701");
        let field = |n: usize| {
            let start = at + 6 + 8 * n;
            u32::from_str_radix(std::str::from_utf8(&archive[start..start + 8]).unwrap(), 16).unwrap()
        };
        let (size, name_space) = (field(6) as usize, field(11) as usize);
        assert!(name_space <= 4096, "Linux would skip a name of {name_space} bytes");
        let name = &archive[at + 110..at + 110 + name_space];
        let end = name.iter().position(|&byte| byte == 0).unwrap();
        assert!(name[end..].iter().all(|&byte| byte == 0));
        let name = String::from_utf8(name[..end].to_vec()).unwrap();
        if name == "TRAILER!!!" {
            assert!(archive[at + 110 + name_space..].iter().all(|&byte| byte == 0));
            return entries;
        }
        let offset = (at + 110 + name_space).next_multiple_of(4);
        let entry = Entry {
            mode: field(1),
            ino: field(0),
            uid: field(2),
            gid: field(3),
            links: field(4),
            mtime: field(5),
            device: (field(9), field(10)),
            offset,
            data: archive[offset..offset + size].to_vec(),
        };
        at = (offset + size).next_multiple_of(4);
        if name == "." {
            assert_eq!((entry.mode, size), (0o040755, 0));
        } else {
            assert_eq!(entries.insert(name, entry), None, "a name twice");
        }
    }
}

fn archive(tree: &Tree) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(tree, &mut bytes).unwrap();
    assert_eq!(bytes.len() % 4096, 0);
    bytes
}

/// Files of all lengths around a page and names of all lengths, so that every padding occurs.
fn many_files() -> Tree {
    let mut tree = Tree::default();
    for length in (0..200).chain(3800..4300) {
        let name = format!("d{}/{}", length % 7, "n".repeat(1 + (length * 31) % 250) + &length.to_string());
        tree.file(name, 0o640, (0..length).map(|byte| byte as u8).collect());
    }
    tree
}

#[test]
fn contents_start_on_page_borders_whatever_stands_before() {
    let tree = many_files();
    let entries = read(&archive(&tree));
    let mut files = 0;
    for (name, _, inode) in tree.entries() {
        let entry = &entries[name.to_str().unwrap()];
        if let Kind::File(_) = &inode.kind {
            assert_eq!(entry.data, tree.read(name).unwrap().unwrap());
            assert_eq!(entry.mode, 0o100640);
            assert!(
                entry.data.is_empty() || entry.offset.is_multiple_of(4096),
                "{} is at {}",
                name.display(),
                entry.offset
            );
            files += 1;
        }
    }
    assert_eq!(files, 700);
}

#[test]
fn kinds_owners_and_times_are_kept() {
    let mut tree = Tree::default();
    let inode = |kind, mode| Inode { kind, mode, uid: 1000, gid: 5, mtime: 1_700_000_000, links: 1 };
    tree.insert("dev/tty", inode(Kind::Character(5, 0), 0o666));
    tree.insert("dev/sda", inode(Kind::Block(8, 0), 0o660));
    tree.insert("fifo", inode(Kind::Fifo, 0o600));
    tree.insert("tmp", inode(Kind::Folder, 0o1777));
    tree.insert("link", inode(Kind::Symlink(b"tmp/x".to_vec()), 0o777));
    let entries = read(&archive(&tree));
    let summary = |name: &str| {
        let entry = &entries[name];
        (entry.mode, entry.device, entry.uid, entry.gid, entry.mtime)
    };
    assert_eq!(summary("dev/tty"), (0o020666, (5, 0), 1000, 5, 1_700_000_000));
    assert_eq!(summary("dev/sda"), (0o060660, (8, 0), 1000, 5, 1_700_000_000));
    assert_eq!(summary("fifo"), (0o010600, (0, 0), 1000, 5, 1_700_000_000));
    assert_eq!(summary("tmp"), (0o041777, (0, 0), 1000, 5, 1_700_000_000));
    assert_eq!((entries["link"].mode, entries["link"].data.as_slice()), (0o120777, b"tmp/x".as_slice()));
}

#[test]
fn hard_links_share_an_inode_and_only_the_first_has_contents() {
    let folder = tempfile::tempdir().unwrap();
    let tar = folder.path().join("t.tar");
    let mut builder = tar::Builder::new(std::fs::File::create(&tar).unwrap());
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o755);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(5);
    header.set_size(3);
    builder.append_data(&mut header.clone(), "z/first", b"abc".as_slice()).unwrap();
    header.set_size(0);
    header.set_entry_type(tar::EntryType::Link);
    builder.append_link(&mut header, "a/second", "z/first").unwrap();
    builder.into_inner().unwrap();
    let entries = read(&archive(&Tree::from_tar(&tar).unwrap()));
    let (second, first) = (&entries["a/second"], &entries["z/first"]);
    assert_eq!((second.ino, second.links, first.links), (first.ino, 2, 2));
    // "a/second" comes first in the archive.
    assert_eq!((second.data.as_slice(), first.data.as_slice()), (b"abc".as_slice(), b"".as_slice()));
    assert_eq!(second.offset % 4096, 0);
}

#[test]
fn gnu_cpio_unpacks_what_was_written() {
    let Some(cpio) = crate::shell::find_program("cpio") else {
        eprintln!("skipped: no cpio on this machine");
        return;
    };
    let mut tree = many_files();
    tree.symlink("link", "d1");
    let folder = tempfile::tempdir().unwrap();
    let mut child = Command::new(cpio)
        .args(["--extract", "--quiet", "--make-directories", "--no-preserve-owner"])
        .current_dir(folder.path())
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&archive(&tree)).unwrap();
    assert!(child.wait().unwrap().success());
    for (name, _, inode) in tree.entries() {
        let path = folder.path().join(name);
        match &inode.kind {
            Kind::File(_) => assert_eq!(std::fs::read(path).unwrap(), tree.read(name).unwrap().unwrap()),
            Kind::Symlink(target) => {
                assert_eq!(std::fs::read_link(path).unwrap(), PathBuf::from(std::ffi::OsStr::from_bytes(target)));
            }
            _ => assert!(path.is_dir()),
        }
    }
}
