//! The kernel's symbol table: appended to its ELF file after the link, for backtraces with names.
//!
//! The kernel's last segment holds the section `.ksyms` with an empty table (`kernel/hal/src/panic/symbols.rs` has the layout).
//! Here the real table is written behind the file's end and that segment and section are pointed at it. A second link, or space
//! reserved for a table of unknown size, is so not needed, and a kernel from plain `cargo build` still boots.

use anyhow::{Context, Result, ensure};
use object::elf::{FileHeader64, ProgramHeader64, SectionHeader64};
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader};
use object::{LittleEndian, Object, ObjectSymbol, SymbolKind};
use std::fs;
use std::mem::offset_of;
use std::path::Path;

/// Virtual minus physical address of the kernel image.
const KERNEL_OFFSET: u64 = 0xffff_ffff_8000_0000;
const MAGIC: &[u8; 8] = b"URSAKSYM";
const HEADER: usize = 16;
const PAGE: usize = 4096;

type Header = FileHeader64<LittleEndian>;
type Segment = ProgramHeader64<LittleEndian>;
type Section = SectionHeader64<LittleEndian>;

/// Writes the symbol table into the kernel at `path`. A kernel that has one gets a new one.
pub fn embed(path: &Path) -> Result<()> {
    let mut file = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    append(&mut file).with_context(|| format!("cannot add the symbol table to {}", path.display()))?;
    fs::write(path, &file).with_context(|| format!("cannot write {}", path.display()))
}

fn append(file: &mut Vec<u8>) -> Result<()> {
    let (table, address) = {
        let elf = object::File::parse(&**file)?;
        let section = elf.section_by_name(".ksyms").context("no section .ksyms")?;
        (build(&elf)?, object::ObjectSection::address(&section))
    };
    // The loader wants file offset and address alike modulo the page size.
    file.resize(file.len().next_multiple_of(PAGE), 0);
    let offset = file.len() as u64;
    let len = table.len() as u64;

    let header = Header::parse(&**file)?;
    let endian = header.endian()?;
    let (segments, sections) = (header.e_phoff(endian) as usize, header.e_shoff(endian) as usize);
    let segment = header
        .program_headers(endian, &**file)?
        .iter()
        .position(|s| s.p_type(endian) == object::elf::PT_LOAD && s.p_vaddr(endian) == address)
        .context("no segment for .ksyms")?;
    let section = header.section_headers(endian, &**file)?.iter().position(|s| s.sh_addr(endian) == address);
    let section = section.context("no section header for .ksyms")?;

    let mut put = |at: usize, v: u64| file[at..at + 8].copy_from_slice(&v.to_le_bytes());
    let at = segments + segment * size_of::<Segment>();
    put(at + offset_of!(Segment, p_offset), offset);
    put(at + offset_of!(Segment, p_filesz), len);
    put(at + offset_of!(Segment, p_memsz), len);
    let at = sections + section * size_of::<Section>();
    put(at + offset_of!(Section, sh_offset), offset);
    put(at + offset_of!(Section, sh_size), len);
    file.extend(table);
    Ok(())
}

/// The table of all functions.
fn build(elf: &object::File<'_>) -> Result<Vec<u8>> {
    // (start, end, name); aliases of one address are kept once.
    let mut functions: Vec<(u32, u32, String)> = elf
        .symbols()
        .filter(|s| s.kind() == SymbolKind::Text || (s.kind() == SymbolKind::Unknown && is_label(s)))
        .filter_map(|s| {
            let start = u32::try_from(s.address().checked_sub(KERNEL_OFFSET)?).ok()?;
            let name = format!("{:#}", rustc_demangle::demangle(s.name().ok()?));
            Some((start, start.checked_add(u32::try_from(s.size()).ok()?)?, name))
        })
        .collect();
    ensure!(!functions.is_empty(), "the kernel has no symbols: it was stripped");
    functions.sort();
    functions.dedup_by_key(|f| f.0);
    // Where the last byte of a function is not followed by another, an empty name ends it.
    let mut entries: Vec<(u32, &str)> = Vec::new();
    for (i, (start, end, name)) in functions.iter().enumerate() {
        entries.push((*start, name));
        let next = functions.get(i + 1).map_or(u32::MAX, |f| f.0);
        // Padding to the next function's alignment is no gap worth an entry.
        if end > start && next.saturating_sub(*end) > 64 {
            entries.push((*end, ""));
        }
    }
    let mut table = MAGIC.to_vec();
    table.extend([0; 4]);
    table.extend(u32::try_from(entries.len())?.to_le_bytes());
    let mut name_at = HEADER + entries.len() * 8;
    let mut names = Vec::new();
    for (address, name) in entries {
        table.extend(address.to_le_bytes());
        table.extend(u32::try_from(name_at)?.to_le_bytes());
        names.extend(name.as_bytes());
        names.push(0);
        name_at += name.len() + 1;
    }
    table.extend(names);
    let len = u32::try_from(table.len())?.to_le_bytes();
    table[8..12].copy_from_slice(&len);
    Ok(table)
}

/// A label of an assembly file in the text: the entry code's functions have no type.
fn is_label(symbol: &object::Symbol<'_, '_>) -> bool {
    symbol.is_global() && !symbol.name().unwrap_or("__").starts_with("__")
}
