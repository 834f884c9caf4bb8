//! What is in a core file: an ELF header, notes about process and threads, and the memory that `coredump_filter` chooses.
//!
//! ```text
//!  ELF header │ program headers: PT_NOTE, PT_LOAD … │ notes │ (page boundary) memory of each PT_LOAD, holes where nothing is
//! ```
//! References: core(5), elf(5), Linux `fs/binfmt_elf.c` (`elf_core_dump`), `include/uapi/linux/elfcore.h`.

use alloc::vec::Vec;
use core::sync::atomic::Ordering::*;

use linux_uapi::signal::SigInfo;
use linux_uapi::zerocopy::{Immutable, IntoBytes};
use ursa_hal::VirtAddr;

use super::output::{Output, zeroed};
use super::{ThreadState, is_cut_short};
use crate::mm::{AddressSpace, FileRef, VmFlags, Vma};
use crate::process::{Thread, pid::Identity};
use crate::ptrace::UserRegs;
use crate::sched;
use crate::{Errno, Result};

const PAGE: u64 = 4096;
const HEADER_LEN: u64 = 64;
const PROGRAM_HEADER_LEN: u64 = 56;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const NT_PRSTATUS: u32 = 1;
const NT_PRFPREG: u32 = 2;
const NT_PRPSINFO: u32 = 3;
const NT_AUXV: u32 = 6;
const NT_X86_XSTATE: u32 = 0x202;
const NT_SIGINFO: u32 = 0x5349_4749;
const NT_FILE: u32 = 0x4649_4c45;
/// Bytes of the FXSAVE image at the start of the vector state.
const FP_SIZE: usize = 512;
/// Where debuggers look for the components in it (`USER_XSTATE_XCR0_WORD`).
const XCR0_OFFSET: usize = 464;
/// Size of the largest NT_FILE note (`MAX_FILE_NOTE_SIZE`).
const FILE_NOTE_MAX: usize = 4 << 20;

/// Bits of `coredump_filter`, core(5).
mod filter {
    pub const ANON_PRIVATE: u32 = 1 << 0;
    pub const ANON_SHARED: u32 = 1 << 1;
    pub const MAPPED_PRIVATE: u32 = 1 << 2;
    pub const MAPPED_SHARED: u32 = 1 << 3;
    pub const ELF_HEADERS: u32 = 1 << 4;
}

/// `Elf64_Ehdr`.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Header {
    ident: [u8; 16],
    kind: u16,
    machine: u16,
    version: u32,
    entry: u64,
    phoff: u64,
    shoff: u64,
    flags: u32,
    ehsize: u16,
    phentsize: u16,
    phnum: u16,
    shentsize: u16,
    shnum: u16,
    shstrndx: u16,
}

/// `Elf64_Phdr`.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct ProgramHeader {
    kind: u32,
    flags: u32,
    offset: u64,
    vaddr: u64,
    paddr: u64,
    filesz: u64,
    memsz: u64,
    align: u64,
}

/// `struct elf_prstatus`.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct PrStatus {
    /// Signal, code, errno of the signal that ended the process.
    info: [i32; 3],
    current_signal: i16,
    pad: u16,
    pending: u64,
    held: u64,
    /// pid, ppid, pgrp, sid.
    ids: [i32; 4],
    /// User, system, children's user and system time: seconds and microseconds.
    times: [[i64; 2]; 4],
    regs: [u8; size_of::<UserRegs>()],
    fp_valid: i32,
    pad_end: u32,
}

/// `struct elf_prpsinfo`.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct PrPsInfo {
    state: u8,
    state_name: u8,
    zombie: u8,
    nice: i8,
    pad: u32,
    flags: u64,
    uid: u32,
    gid: u32,
    ids: [i32; 4],
    name: [u8; 16],
    args: [u8; 80],
}

const _: () = assert!(size_of::<Header>() as u64 == HEADER_LEN);
const _: () = assert!(size_of::<ProgramHeader>() as u64 == PROGRAM_HEADER_LEN);
const _: () = assert!(size_of::<PrStatus>() == 336 && size_of::<PrPsInfo>() == 136);

/// A mapping as it was when the process died.
struct Area {
    start: u64,
    end: u64,
    flags: VmFlags,
    /// How much of it the file has.
    dumped: u64,
    /// Whether pages that are not there can be found in an object; otherwise they are zero.
    backed: bool,
    file: Option<(FileRef, u64)>,
}

/// Writes the core file.
///
/// # Errors
/// `ENOMEM`, and those of [`Output`].
pub(super) fn write(out: &mut Output, thread: &Thread, states: &[ThreadState], info: &SigInfo) -> Result {
    let vm = thread.vm();
    let areas = areas(thread, &vm)?;
    let notes = notes(thread, &vm, &areas, states, info)?;
    let headers = areas.len() as u64 + 1;
    let notes_at = HEADER_LEN + headers * PROGRAM_HEADER_LEN;
    let data_at = (notes_at + notes.len() as u64).next_multiple_of(PAGE);

    let mut head = Vec::new();
    head.try_reserve_exact(notes_at as usize).map_err(|_| Errno::ENOMEM)?;
    head.extend_from_slice(file_header(headers).as_bytes());
    let note_header = ProgramHeader {
        kind: PT_NOTE,
        flags: 0,
        offset: notes_at,
        vaddr: 0,
        paddr: 0,
        filesz: notes.len() as u64,
        memsz: 0,
        align: 4,
    };
    head.extend_from_slice(note_header.as_bytes());
    let mut offset = data_at;
    for area in &areas {
        head.extend_from_slice(area.header(offset).as_bytes());
        offset += area.dumped;
    }
    let mut written =
        out.bytes(&head).and_then(|()| out.bytes(&notes)).and_then(|()| out.skip(data_at - out.position()));
    drop(head);
    drop(notes);
    for area in &areas {
        written = written.and_then(|()| write_area(out, &vm, area));
    }
    match written {
        // What the limit left is a core file too; it says itself that it is cut.
        Ok(()) | Err(Errno::EFBIG) => out.finish(),
        Err(error) => Err(error),
    }
}

fn file_header(headers: u64) -> Header {
    const ET_CORE: u16 = 4;
    const EM_X86_64: u16 = 62;
    let mut ident = [0; 16];
    // 64 bits, little endian, version 1, System V.
    ident[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    Header {
        ident,
        kind: ET_CORE,
        machine: EM_X86_64,
        version: 1,
        entry: 0,
        phoff: HEADER_LEN,
        shoff: 0,
        flags: 0,
        ehsize: HEADER_LEN as u16,
        phentsize: PROGRAM_HEADER_LEN as u16,
        // Below PN_XNUM: `max_map_count` is 65,530.
        phnum: headers as u16,
        shentsize: 0,
        shnum: 0,
        shstrndx: 0,
    }
}

impl Area {
    fn header(&self, offset: u64) -> ProgramHeader {
        let mut flags = 0;
        for (flag, bit) in [(VmFlags::READ, 4), (VmFlags::WRITE, 2), (VmFlags::EXEC, 1)] {
            flags |= if self.flags.contains(flag) { bit } else { 0 };
        }
        ProgramHeader {
            kind: PT_LOAD,
            flags,
            offset,
            vaddr: self.start,
            paddr: 0,
            filesz: self.dumped,
            memsz: self.end - self.start,
            align: PAGE,
        }
    }
}

/// The mappings, with how much of each is dumped.
fn areas(thread: &Thread, vm: &AddressSpace) -> Result<Vec<Area>> {
    let chosen = thread.process().coredump_filter.load(Relaxed);
    let mut areas: Vec<Area> = Vec::new();
    {
        let vmas = vm.vmas();
        areas.try_reserve_exact(vmas.len()).map_err(|_| Errno::ENOMEM)?;
        for vma in vmas.iter() {
            areas.push(Area {
                start: vma.start,
                end: vma.end,
                flags: vma.flags,
                dumped: chosen_len(vma, chosen),
                backed: vma.backing.is_some(),
                file: vma.file().map(|file| (file.clone(), vma.pgoff)),
            });
        }
    }
    // A file that is mapped from its start and executable shows its headers, if it has any: a build id is found there.
    for area in areas.iter_mut().filter(|area| area.dumped == PAGE && area.end - area.start > PAGE) {
        let mut magic = [0; 4];
        let is_elf = vm.read_remote(VirtAddr::new(area.start), &mut magic) == Ok(4) && magic == *b"\x7fELF";
        if !is_elf {
            area.dumped = 0;
        }
    }
    Ok(areas)
}

/// How many bytes of a mapping are dumped (`vma_dump_size`); a page for what is dumped only if it begins with ELF headers.
fn chosen_len(vma: &Vma, chosen: u32) -> u64 {
    let has = |bit: u32| chosen & bit != 0;
    let whole = vma.len();
    if vma.flags.contains(VmFlags::SPECIAL) {
        return if vma.flags.contains(VmFlags::DONTDUMP) { 0 } else { whole };
    }
    if vma.flags.intersects(VmFlags::DONTDUMP | VmFlags::IO | VmFlags::PFNMAP) {
        return 0;
    }
    let inode = vma.file().and_then(|file| file.inode());
    if vma.flags.contains(VmFlags::SHARED) {
        let bit = if inode.is_some_and(|i| i.nlink() > 0) { filter::MAPPED_SHARED } else { filter::ANON_SHARED };
        return if has(bit) { whole } else { 0 };
    }
    if vma.may_have_private_pages() && has(filter::ANON_PRIVATE) {
        return whole;
    }
    if vma.file().is_none() {
        return 0;
    }
    if has(filter::MAPPED_PRIVATE) {
        return whole;
    }
    let readable = vma.flags.contains(VmFlags::READ);
    if has(filter::ELF_HEADERS) && vma.pgoff == 0 && readable { PAGE } else { 0 }
}

fn write_area(out: &mut Output, vm: &AddressSpace, area: &Area) -> Result {
    let mut at = area.start;
    while at < area.start + area.dumped {
        if is_cut_short() {
            return Err(Errno::EINTR);
        }
        sched::cond_resched();
        let va = VirtAddr::new(at);
        let page = match vm.page_if_present(va, false) {
            // Memory that was never touched stays as it is; a page of a file is read.
            Err(Errno::EAGAIN) if area.backed => vm.page_for(va, false, true).ok(),
            // Unreadable by the program itself, not by a debugger.
            Err(Errno::EFAULT) => vm.page_for(va, false, true).ok(),
            other => other.ok(),
        };
        match page {
            Some(frame) => out.page(&frame)?,
            None => out.skip(PAGE)?,
        }
        at += PAGE;
    }
    Ok(())
}

/// Adds a note.
fn note(out: &mut Vec<u8>, owner: &[u8], kind: u32, data: &[u8]) -> Result {
    out.try_reserve(12 + owner.len() + 1 + data.len() + 8).map_err(|_| Errno::ENOMEM)?;
    for word in [owner.len() as u32 + 1, data.len() as u32, kind] {
        out.extend_from_slice(&word.to_ne_bytes());
    }
    let pad = |out: &mut Vec<u8>| out.resize(out.len().next_multiple_of(4), 0);
    out.extend_from_slice(owner);
    out.push(0);
    pad(out);
    out.extend_from_slice(data);
    pad(out);
    Ok(())
}

fn notes(
    thread: &Thread,
    vm: &AddressSpace,
    areas: &[Area],
    states: &[ThreadState],
    info: &SigInfo,
) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    for (index, state) in states.iter().enumerate() {
        note(&mut out, b"CORE", NT_PRSTATUS, status(state, info).as_bytes())?;
        if index == 0 {
            note(&mut out, b"CORE", NT_PRPSINFO, process_info(thread, vm)?.as_bytes())?;
            note(&mut out, b"CORE", NT_SIGINFO, &info.to_user())?;
            note(&mut out, b"CORE", NT_AUXV, &vm.auxv())?;
            let files = file_note(thread, areas)?;
            if !files.is_empty() {
                note(&mut out, b"CORE", NT_FILE, &files)?;
            }
        }
        if state.vector.len() > FP_SIZE {
            note(&mut out, b"CORE", NT_PRFPREG, &state.vector[..FP_SIZE])?;
            let mut vector = zeroed(state.vector.len())?;
            vector.copy_from_slice(&state.vector);
            vector[XCR0_OFFSET..XCR0_OFFSET + 8].copy_from_slice(&ursa_hal::fpu::components().to_ne_bytes());
            note(&mut out, b"LINUX", NT_X86_XSTATE, &vector)?;
        }
    }
    Ok(out)
}

/// pid, ppid, pgrp, sid.
fn ids(thread: &Thread, own: i32) -> [i32; 4] {
    let process = thread.process();
    let group = process.group();
    let namespace = process.pid_namespace();
    let seen = |identity: &Identity| identity.seen_from(namespace);
    [own, process.parent_seen_from(namespace), seen(group.identity()), seen(group.session().identity())]
}

fn status(state: &ThreadState, info: &SigInfo) -> PrStatus {
    let thread = &*state.thread;
    let process = thread.process();
    let time = |ns: u64| [(ns / 1_000_000_000) as i64, (ns / 1000 % 1_000_000) as i64];
    // The leader stands for the whole process, as on Linux.
    let (user, system) = if thread.is_leader() { process.cpu_ns() } else { thread.cpu_ns() };
    let children = process.children_usage();
    let mut regs = [0; size_of::<UserRegs>()];
    regs.copy_from_slice(state.regs.as_bytes());
    PrStatus {
        info: [info.si_signo, info.si_code, info.si_errno],
        current_signal: info.si_signo as i16,
        pad: 0,
        pending: thread.signals.pending().0,
        held: thread.signals.blocked().0,
        ids: ids(thread, thread.own_tid()),
        times: [time(user), time(system), time(children.user_ns), time(children.system_ns)],
        regs,
        fp_valid: i32::from(state.vector.len() > FP_SIZE),
        pad_end: 0,
    }
}

fn process_info(thread: &Thread, vm: &AddressSpace) -> Result<PrPsInfo> {
    let layout = vm.layout();
    let mut args = [0; 80];
    let len = (layout.arg_end.saturating_sub(layout.arg_start) as usize).min(args.len() - 1);
    let read = vm.read_remote(VirtAddr::new(layout.arg_start), &mut args[..len]).unwrap_or(0);
    args[read..].fill(0);
    for byte in args[..read].iter_mut().filter(|byte| **byte == 0) {
        *byte = b' ';
    }
    let nice = thread.task().map_or(0, |task| sched::ext_of(&task).params().nice);
    let (uid, gid) = thread.with_cred(|cred| (cred.uid, cred.gid));
    Ok(PrPsInfo {
        state: 0,
        state_name: b'R',
        zombie: 0,
        nice,
        pad: 0,
        flags: 0,
        uid,
        gid,
        ids: ids(thread, thread.process().identity().own()),
        name: thread.comm(),
        args,
    })
}

/// `NT_FILE`: which file each mapping shows; empty when it would be too long.
fn file_note(thread: &Thread, areas: &[Area]) -> Result<Vec<u8>> {
    let root = thread.fs().root();
    let mut words: Vec<u64> = Vec::new();
    let mut names: Vec<u8> = Vec::new();
    let mut count = 0u64;
    words.try_reserve_exact(areas.len() * 3).map_err(|_| Errno::ENOMEM)?;
    for area in areas {
        let Some((file, page)) = &area.file else { continue };
        let Ok(path) = crate::fs::anon::path_of(file) else { continue };
        let name = path.display_link(&root);
        if names.len() + name.len() + 1 > FILE_NOTE_MAX {
            return Ok(Vec::new());
        }
        names.try_reserve(name.len() + 1).map_err(|_| Errno::ENOMEM)?;
        names.extend_from_slice(&name);
        names.push(0);
        words.extend_from_slice(&[area.start, area.end, *page]);
        count += 1;
    }
    if count == 0 {
        return Ok(Vec::new());
    }
    let mut note = Vec::new();
    note.try_reserve_exact(16 + words.len() * 8 + names.len()).map_err(|_| Errno::ENOMEM)?;
    note.extend_from_slice(count.as_bytes());
    note.extend_from_slice(PAGE.as_bytes());
    note.extend_from_slice(words.as_bytes());
    note.extend_from_slice(&names);
    Ok(note)
}
