//! The ELF loader: builds the address space of a new program ([`load`]), without touching the running one.
//!
//! Since everything is prepared in a fresh [`AddressSpace`], each failure is still an errno of execve(2); only the
//! exchange of address spaces is a point of no return. Parsing and checking is `elf_image`'s.
//! References: Linux `fs/binfmt_elf.c`; psABI x86-64 3.4 (process initialisation).

use alloc::sync::Arc;
use alloc::vec::Vec;

use elf_image::{Access, Error as ElfError, HEADER_LEN, Header, Kind, Program, Segment};
use linux_uapi::process::auxv::*;
use ursa_hal::USER_END;

use super::args::ArgBlock;
use super::rng;
use crate::fs::File;
use crate::mm::{AddressSpace, Layout, MapBacking, MapFlags, MapRequest, VmFlags};
use crate::user::UserAddr;
use crate::{Errno, Result};

const PAGE: u64 = 4096;
/// Program headers of a sane file; more than this is read onto the heap only after the check of its size.
const RANDOM_LEN: usize = 16;
const PLATFORM: &[u8] = b"x86_64\0";
/// Clock ticks a second in times(2) and `/proc`.
const USER_HZ: u64 = 100;

/// What the loader needs to know besides the file.
pub struct Request<'a> {
    /// The executable.
    pub file: &'a Arc<File>,
    /// What `AT_EXECFN` shows.
    pub exec_fn: &'a [u8],
    /// Arguments and environment.
    pub args: &'a ArgBlock,
    /// `RLIMIT_STACK`.
    pub stack_limit: u64,
    /// `ADDR_NO_RANDOMIZE` is off.
    pub randomize: bool,
    /// `ADDR_COMPAT_LAYOUT`.
    pub legacy_layout: bool,
    /// uid, euid, gid, egid.
    pub ids: [u32; 4],
    /// `AT_SECURE`.
    pub secure: bool,
    /// Opens the interpreter.
    pub open_interp: &'a dyn Fn(&[u8]) -> Result<Arc<File>>,
}

/// A program that is ready to run.
pub struct Loaded {
    /// Its memory.
    pub vm: Arc<AddressSpace>,
    /// Where it starts: in the interpreter, if there is one.
    pub entry: u64,
    /// Its stack pointer.
    pub stack_pointer: u64,
}

/// A file with its checked headers.
struct Image {
    file: Arc<File>,
    header: Header,
    table: Vec<u8>,
}

fn errno_of(error: ElfError) -> Errno {
    match error {
        ElfError::NotElf | ElfError::Malformed => Errno::ENOEXEC,
        ElfError::TooLarge => Errno::EINVAL,
    }
}

impl Image {
    fn read(file: &Arc<File>) -> Result<Image> {
        let mut start = [0; HEADER_LEN];
        file.read_exact_at(&mut start, 0).map_err(|e| if e == Errno::EIO { Errno::ENOEXEC } else { e })?;
        let header = Header::parse(&start).map_err(errno_of)?;
        let (offset, len) = header.table();
        let mut table = Vec::new();
        table.try_reserve_exact(len).map_err(|_| Errno::ENOMEM)?;
        table.resize(len, 0);
        file.read_exact_at(&mut table, offset).map_err(|e| if e == Errno::EIO { Errno::ENOEXEC } else { e })?;
        Ok(Image { file: file.clone(), header, table })
    }

    fn program(&self) -> Result<Program<'_>> {
        Program::parse(&self.header, &self.table).map_err(errno_of)
    }
}

/// Builds the memory of the program in `request.file`.
///
/// # Errors
/// `ENOEXEC` when it is no program, and what the files and memory report.
pub fn load(request: &Request<'_>) -> Result<Loaded> {
    let image = Image::read(request.file)?;
    let program = image.program()?;
    let interp = match program.interp {
        Some((offset, len)) => Some(open_interp(request, offset, len)?),
        None => None,
    };

    let mut random: fn() -> u64 = rng::u64;
    let layout = Layout::new(request.stack_limit, request.legacy_layout, source(request, &mut random));
    let vm = AddressSpace::new(layout)?;

    let bias = match image.header.kind {
        Kind::Fixed => 0,
        Kind::Relocatable if interp.is_some() => {
            let base = Layout::pie_base(source(request, &mut random));
            base.next_multiple_of(program.align).wrapping_sub(program.start)
        }
        // A program that is its own interpreter (or a bare ld.so): it lives in the mmap area.
        Kind::Relocatable => place(&vm, &program)?,
    };
    map_program(&vm, &image, &program, bias)?;
    let entry = image.header.entry.wrapping_add(bias);

    let (start, interp_base) = match &interp {
        None => (entry, 0),
        Some(interp) => {
            let parsed = interp.program().map_err(|_| Errno::ELIBBAD)?;
            let bias = match interp.header.kind {
                Kind::Fixed => 0,
                Kind::Relocatable => place(&vm, &parsed)?,
            };
            map_program(&vm, interp, &parsed, bias)?;
            (interp.header.entry.wrapping_add(bias), bias.wrapping_add(parsed.start))
        }
    };
    // Linux finds an entry point beyond user space when the old program is gone already: the new one starts and dies of
    // SIGSEGV. The page at the end is never mapped.
    let start = start.min(USER_END);

    let exec_stack = program.exec_stack.unwrap_or(false);
    let end = program.end.wrapping_add(bias);
    // Without an interpreter a position-independent program sits in the mmap area: its heap must not run into what is
    // mapped above it, so it gets the place that a loaded one would have.
    let heap_after =
        if image.header.kind == Kind::Relocatable && interp.is_none() { Layout::pie_base(None) } else { end };
    let heap = Layout::heap_start(heap_after, source(request, &mut random));
    let vdso = crate::time::vdso::map(&vm)?;
    vm.setup_stack(exec_stack)?;

    let auxv = AuxInfo {
        phdr: program.phdr.map_or(0, |p| p.wrapping_add(bias)),
        phnum: image.header.table_count() as u64,
        base: interp_base,
        entry,
        vdso,
    };
    let stack_pointer = write_stack(&vm, request, &auxv)?;
    let code = code_and_data(&program, bias);
    vm.update_layout(|l| {
        (l.start_code, l.end_code, l.start_data, l.end_data) = code;
        (l.start_brk, l.brk) = (heap, heap);
    });
    vm.set_exe(Some(request.file.clone()))?;
    Ok(Loaded { vm, entry: start, stack_pointer })
}

/// Where random placement draws from; nothing for a program that asked for fixed addresses.
fn source<'r>(request: &Request<'_>, random: &'r mut fn() -> u64) -> Option<&'r mut dyn FnMut() -> u64> {
    if request.randomize { Some(random) } else { None }
}

fn open_interp(request: &Request<'_>, offset: u64, len: usize) -> Result<Image> {
    let mut path = [0; 4096];
    let path = path.get_mut(..len).ok_or(Errno::ENOEXEC)?;
    request.file.read_exact_at(path, offset).map_err(|e| if e == Errno::EIO { Errno::ENOEXEC } else { e })?;
    let Some((0, path)) = path.split_last() else { return Err(Errno::ENOEXEC) };
    let path = path.split(|&b| b == 0).next().unwrap_or(&[]);
    let file = (request.open_interp)(path)?;
    Image::read(&file).map_err(|e| if e == Errno::ENOEXEC { Errno::ELIBBAD } else { e })
}

/// Returns the bias that puts `program` into a free place of the mmap area.
fn place(vm: &AddressSpace, program: &Program<'_>) -> Result<u64> {
    let slack = program.align - PAGE;
    let room = program.span().checked_add(slack).filter(|room| *room < USER_END).ok_or(Errno::ENOMEM)?;
    let free = vm.find_free(room)?.as_u64();
    Ok(free.next_multiple_of(program.align).wrapping_sub(program.start))
}

fn vm_flags(access: Access) -> VmFlags {
    let mut flags = VmFlags::empty();
    flags.set(VmFlags::READ, access.read);
    flags.set(VmFlags::WRITE, access.write);
    flags.set(VmFlags::EXEC, access.exec);
    flags
}

fn map_program(vm: &AddressSpace, image: &Image, program: &Program<'_>, bias: u64) -> Result {
    let start = program.start.wrapping_add(bias);
    if start < crate::mm::MMAP_MIN_ADDR || start.checked_add(program.span()).is_none_or(|end| end > USER_END) {
        return Err(Errno::EINVAL);
    }
    for segment in program.segments() {
        map_segment(vm, &image.file, &segment, bias)?;
    }
    Ok(())
}

fn map_segment(vm: &AddressSpace, file: &Arc<File>, segment: &Segment, bias: u64) -> Result {
    let prot = vm_flags(segment.access);
    let start = segment.start.wrapping_add(bias);
    let mem_end = segment.mem_end.wrapping_add(bias);
    let file_end = start + segment.file_len;
    if segment.file_len > 0 {
        let mut request = MapRequest {
            addr: UserAddr::new(start),
            len: segment.file_len as usize,
            prot,
            flags: MapFlags::FIXED,
            offset: segment.file_offset,
            backing: MapBacking::Anonymous,
            zeroes_of: None,
            extra: VmFlags::empty(),
            denied: VmFlags::empty(),
        };
        file.file_ops().mmap(file, &mut request)?;
        if let MapBacking::Object { file: shown, .. } = &mut request.backing {
            *shown = Some(file.clone());
        }
        vm.mmap(&request)?;
        // The rest of the last page from the file is zero where memory goes on after it.
        let page_end = file_end.next_multiple_of(PAGE);
        let tail = page_end.min(mem_end).saturating_sub(file_end);
        if tail > 0 && segment.access.write {
            let tail = page_end - file_end;
            write(vm, UserAddr::new(file_end), &[0; PAGE as usize][..tail as usize])?;
        }
    }
    let anonymous = file_end.next_multiple_of(PAGE);
    let len = mem_end.next_multiple_of(PAGE).saturating_sub(anonymous);
    if len > 0 {
        let mut request = MapRequest::anonymous(len as usize, prot);
        request.addr = UserAddr::new(anonymous);
        request.flags |= MapFlags::FIXED;
        vm.mmap(&request)?;
    }
    Ok(())
}

/// start_code, end_code, start_data, end_data as `/proc/PID/stat` defines them.
fn code_and_data(program: &Program<'_>, bias: u64) -> (u64, u64, u64, u64) {
    let (mut start_code, mut end_code, mut start_data, mut end_data) = (u64::MAX, 0, 0, 0);
    for s in program.segments() {
        let start = s.start.wrapping_add(bias);
        let end = start + s.file_len;
        if s.access.exec {
            start_code = start.min(start_code);
            end_code = end.max(end_code);
        }
        start_data = start.max(start_data);
        end_data = end.max(end_data);
    }
    (if start_code == u64::MAX { 0 } else { start_code }, end_code, start_data, end_data)
}

/// Writes all of `data` into the new memory.
fn write(vm: &AddressSpace, at: UserAddr, data: &[u8]) -> Result {
    if vm.write_remote(at, data)? == data.len() { Ok(()) } else { Err(Errno::ENOMEM) }
}

struct AuxInfo {
    phdr: u64,
    phnum: u64,
    base: u64,
    entry: u64,
    vdso: u64,
}

/// Writes strings and vectors onto the new stack, from its top down:
/// 8 zero bytes, the file name, environment strings, argument strings, a random gap, the platform's name, random bytes,
/// then (at the stack pointer) argc, argv, envp and the auxiliary vector.
fn write_stack(vm: &AddressSpace, request: &Request<'_>, aux: &AuxInfo) -> Result<u64> {
    let top = vm.layout().stack_top;
    let args = &request.args.args;
    let envs = &request.args.envs;
    let exec_fn = top - 8 - (request.exec_fn.len() as u64 + 1);
    let env_start = exec_fn - envs.bytes.len() as u64;
    let arg_start = env_start - args.bytes.len() as u64;
    write(vm, UserAddr::new(arg_start), &args.bytes)?;
    write(vm, UserAddr::new(env_start), &envs.bytes)?;
    write(vm, UserAddr::new(exec_fn), request.exec_fn)?;

    let jitter = if request.randomize { rng::u64() % 8192 } else { 0 };
    let aligned = (arg_start - jitter) & !15;
    let platform = aligned - PLATFORM.len() as u64;
    let random = platform - RANDOM_LEN as u64;
    let mut random_bytes = [0; RANDOM_LEN];
    rng::fill(&mut random_bytes);
    write(vm, UserAddr::new(platform), PLATFORM)?;
    write(vm, UserAddr::new(random), &random_bytes)?;

    let [uid, euid, gid, egid] = request.ids.map(u64::from);
    let pairs = [
        (AT_SYSINFO_EHDR, aux.vdso),
        (AT_MINSIGSTKSZ, crate::signal::min_stack_size() as u64),
        (AT_HWCAP, ursa_hal::cpu::hwcap() as u64),
        (AT_PAGESZ, PAGE),
        (AT_CLKTCK, USER_HZ),
        (AT_PHDR, aux.phdr),
        (AT_PHENT, 56),
        (AT_PHNUM, aux.phnum),
        (AT_BASE, aux.base),
        (AT_FLAGS, 0),
        (AT_ENTRY, aux.entry),
        (AT_UID, uid),
        (AT_EUID, euid),
        (AT_GID, gid),
        (AT_EGID, egid),
        (AT_SECURE, request.secure as u64),
        (AT_RANDOM, random),
        (AT_HWCAP2, ursa_hal::cpu::hwcap2() as u64),
        (AT_EXECFN, exec_fn),
        (AT_PLATFORM, platform),
        (AT_RSEQ_FEATURE_SIZE, super::rseq::RSEQ_FEATURE_SIZE as u64),
        (AT_RSEQ_ALIGN, super::rseq::RSEQ_ALIGN as u64),
        (AT_NULL, 0),
    ];
    // Without a vDSO its entry is left out, not zero.
    let pairs = if aux.vdso == 0 { &pairs[1..] } else { &pairs[..] };

    let words = 1 + args.count + 1 + envs.count + 1 + 2 * pairs.len();
    let mut vector = Vec::new();
    vector.try_reserve_exact(words * 8).map_err(|_| Errno::ENOMEM)?;
    let mut push = |value: u64| vector.extend_from_slice(&value.to_ne_bytes());
    push(args.count as u64);
    for (strings, start) in [(args, arg_start), (envs, env_start)] {
        let mut at = start;
        for string in strings.bytes.split_inclusive(|&b| b == 0) {
            push(at);
            at += string.len() as u64;
        }
        push(0);
    }
    let auxv_at = (words - 2 * pairs.len()) * 8;
    for (kind, value) in pairs {
        push(*kind);
        push(*value);
    }
    let stack_pointer = (random - words as u64 * 8) & !15;
    write(vm, UserAddr::new(stack_pointer), &vector)?;
    vm.set_auxv(vector.split_off(auxv_at));
    vm.update_layout(|l| {
        l.start_stack = stack_pointer;
        (l.arg_start, l.arg_end, l.env_start, l.env_end) = (arg_start, env_start, env_start, exec_fn);
    });
    Ok(stack_pointer)
}
