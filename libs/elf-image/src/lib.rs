//! ELF64 executables as a program loader needs them: [`Header`], then [`Program`].
//!
//! The `elf` crate decodes the structures; this crate checks everything that a loader relies on, so that what it returns
//! can be mapped without further thought: every segment lies page-congruent in file and memory, no sum overflows, the
//! span is bounded, and at least one segment exists. Input is whatever a hostile program put into a file.
//! No I/O and no allocation: the loader reads [`HEADER_LEN`] bytes, then [`Header::table`]'s range, and passes slices.
//! References: System V gABI chapters 4 and 5, psABI x86-64, Linux `fs/binfmt_elf.c` (whose tolerances are kept: zero-size
//! segments are skipped, segments may overlap, alignment is a hint).
#![cfg_attr(not(test), no_std)]
#![deny(unsafe_code)]

use elf::abi;
use elf::endian::LittleEndian;
use elf::file::{Class, FileHeader, parse_ident};
use elf::segment::{ProgramHeader, SegmentTable};

#[cfg(test)]
mod tests;

/// Bytes at the start of a file that [`Header::parse`] looks at.
pub const HEADER_LEN: usize = 64;
const PHENT: usize = 56;
const PAGE: u64 = 4096;
/// The most bytes of program headers (`ELF_MIN_ALIGN`-independent limit of Linux: 64 KiB).
const TABLE_MAX: usize = 65536;
/// Segments of a program; real ones have about five.
pub const SEGMENTS_MAX: usize = TABLE_MAX / PHENT;
/// The end of user addresses.
const USER_END: u64 = 0x7fff_ffff_f000;

/// Why a file is not a program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Error {
    /// Not an ELF file for this machine at all: another loader may know it (`ENOEXEC`).
    NotElf,
    /// An ELF file whose parts contradict each other (`ENOEXEC`, or `ELIBBAD` for an interpreter).
    Malformed,
    /// Addresses beyond user space, or sizes that cannot be (`EINVAL`, `ENOMEM`).
    TooLarge,
}

/// Whether the addresses are final.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// `ET_EXEC`.
    Fixed,
    /// `ET_DYN`: a position-independent executable or an interpreter.
    Relocatable,
}

/// The checked file header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Position-independent or not.
    pub kind: Kind,
    /// Entry point, before relocation.
    pub entry: u64,
    table_offset: u64,
    table_count: u16,
}

impl Header {
    /// Parses the first [`HEADER_LEN`] bytes of a file.
    ///
    /// # Errors
    /// [`Error::NotElf`] for what is not a little-endian ELF64 executable for x86-64.
    pub fn parse(start: &[u8]) -> Result<Header, Error> {
        let start = start.get(..HEADER_LEN).ok_or(Error::NotElf)?;
        let ident = parse_ident::<LittleEndian>(start).map_err(|_| Error::NotElf)?;
        if ident.1 != Class::ELF64 {
            return Err(Error::NotElf);
        }
        let h = FileHeader::parse_tail(ident, &start[abi::EI_NIDENT..]).map_err(|_| Error::NotElf)?;
        if h.e_machine != abi::EM_X86_64 || h.e_phentsize as usize != PHENT {
            return Err(Error::NotElf);
        }
        let kind = match h.e_type {
            abi::ET_EXEC => Kind::Fixed,
            abi::ET_DYN => Kind::Relocatable,
            _ => return Err(Error::NotElf),
        };
        if h.e_phnum == 0 || h.e_phnum as usize > SEGMENTS_MAX {
            return Err(Error::NotElf);
        }
        h.e_phoff.checked_add((h.e_phnum as usize * PHENT) as u64).ok_or(Error::Malformed)?;
        Ok(Header { kind, entry: h.e_entry, table_offset: h.e_phoff, table_count: h.e_phnum })
    }

    /// Returns offset and length of the program header table in the file.
    pub fn table(&self) -> (u64, usize) {
        (self.table_offset, self.table_count as usize * PHENT)
    }

    /// Returns how many program headers there are (`AT_PHNUM`).
    pub fn table_count(&self) -> u16 {
        self.table_count
    }
}

/// What a segment allows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "read, write, execute")]
pub struct Access {
    pub read: bool,
    pub write: bool,
    pub exec: bool,
}

/// A loadable segment, cut to pages. `file_len` bytes from `file_offset` appear at `start`; what follows up to
/// `mem_end` is zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// First address, a multiple of the page size.
    pub start: u64,
    /// Offset in the file, a multiple of the page size.
    pub file_offset: u64,
    /// Bytes from `start` that come from the file; 0 when there are none.
    pub file_len: u64,
    /// End of the segment in memory, not rounded.
    pub mem_end: u64,
    /// Rights.
    pub access: Access,
}

/// Where an executable wants its parts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Program<'a> {
    table: &'a [u8],
    /// Lowest page of all segments.
    pub start: u64,
    /// End of all segments, not rounded.
    pub end: u64,
    /// Largest alignment that a segment asks for, a power of two of at least a page.
    pub align: u64,
    /// Offset and length of the interpreter's path in the file, its NUL included.
    pub interp: Option<(u64, usize)>,
    /// Address of the program headers in memory, before relocation (`AT_PHDR`).
    pub phdr: Option<u64>,
    /// What `PT_GNU_STACK` says; `None` without one.
    pub exec_stack: Option<bool>,
}

impl<'a> Program<'a> {
    /// Parses the program header table, whose bytes the caller has read from [`Header::table`].
    ///
    /// # Errors
    /// As [`Error`] says.
    pub fn parse(header: &Header, table: &'a [u8]) -> Result<Program<'a>, Error> {
        if table.len() != header.table().1 {
            return Err(Error::Malformed);
        }
        let mut program =
            Program { table, start: u64::MAX, end: 0, align: PAGE, interp: None, phdr: None, exec_stack: None };
        for ph in headers(table) {
            match ph.p_type {
                abi::PT_LOAD => {
                    let Some(segment) = check_load(&ph)? else { continue };
                    program.start = program.start.min(segment.start);
                    program.end = program.end.max(segment.mem_end);
                    if ph.p_align.is_power_of_two() && ph.p_align <= 1 << 30 {
                        program.align = program.align.max(ph.p_align);
                    }
                    // The table is in memory where a segment covers its place in the file.
                    let within = header.table_offset.checked_sub(ph.p_offset);
                    if let Some(delta) = within.filter(|d| *d < ph.p_filesz)
                        && program.phdr.is_none()
                    {
                        program.phdr = ph.p_vaddr.checked_add(delta);
                    }
                }
                abi::PT_INTERP if program.interp.is_none() => {
                    if !(2..=4096).contains(&ph.p_filesz) {
                        return Err(Error::Malformed);
                    }
                    ph.p_offset.checked_add(ph.p_filesz).ok_or(Error::Malformed)?;
                    program.interp = Some((ph.p_offset, ph.p_filesz as usize));
                }
                abi::PT_GNU_STACK => program.exec_stack = Some(ph.p_flags & abi::PF_X != 0),
                _ => {}
            }
        }
        if program.end == 0 {
            return Err(Error::Malformed);
        }
        Ok(program)
    }

    /// Returns the loadable segments in the order of the table.
    pub fn segments(&self) -> impl Iterator<Item = Segment> + use<'a> {
        // `parse` has checked each: none fails here.
        headers(self.table).filter(|ph| ph.p_type == abi::PT_LOAD).filter_map(|ph| check_load(&ph).ok().flatten())
    }

    /// Returns how many bytes the program spans in memory, in whole pages.
    pub fn span(&self) -> u64 {
        (self.end - self.start).next_multiple_of(PAGE)
    }
}

fn headers(table: &[u8]) -> impl Iterator<Item = ProgramHeader> + use<'_> {
    SegmentTable::new(LittleEndian, Class::ELF64, table).iter()
}

fn check_load(ph: &ProgramHeader) -> Result<Option<Segment>, Error> {
    if ph.p_memsz == 0 {
        return Ok(None);
    }
    if ph.p_filesz > ph.p_memsz {
        return Err(Error::Malformed);
    }
    let mem_end = ph.p_vaddr.checked_add(ph.p_memsz).filter(|end| *end <= USER_END).ok_or(Error::TooLarge)?;
    ph.p_offset.checked_add(ph.p_filesz).filter(|end| *end <= i64::MAX as u64).ok_or(Error::Malformed)?;
    let skew = ph.p_vaddr % PAGE;
    if ph.p_filesz != 0 && ph.p_offset % PAGE != skew {
        return Err(Error::Malformed);
    }
    let has_file = ph.p_filesz != 0;
    Ok(Some(Segment {
        start: ph.p_vaddr - skew,
        file_offset: if has_file { ph.p_offset - skew } else { 0 },
        file_len: if has_file { ph.p_filesz + skew } else { 0 },
        mem_end,
        access: Access {
            read: ph.p_flags & abi::PF_R != 0,
            write: ph.p_flags & abi::PF_W != 0,
            exec: ph.p_flags & abi::PF_X != 0,
        },
    }))
}
