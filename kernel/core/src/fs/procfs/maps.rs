//! `/proc/PID/maps`, `smaps`, `smaps_rollup`, `clear_refs`, `mem`.
//!
//! The list is put together under the address space's shared lock. Reference: proc_pid_maps(5), proc_pid_smaps(5).

use alloc::{sync::Arc, vec::Vec};
use core::fmt::Write;

use linux_uapi::raw::general as uapi;
use ursa_hal::{VirtAddr, mm::BLOCK_SIZE};

use super::{Text, pid::Target};
use crate::{
    Errno, Result,
    fs::{
        dev::{major, minor},
        file::{File, FileOps},
        inode::{Inode, InodeOps},
        io::{Sink, Source},
    },
    mm::{AddressSpace, VmFlags, Vma, Vmas, huge},
    process::current,
};

/// Column at which the name starts.
const NAME_COLUMN: usize = 73;

/// The line of a mapping as `maps` and `smaps` have it.
fn line(vmas: &Vmas<'_>, vma: &Vma, out: &mut Text) -> Result {
    let start = out.0.len();
    let flag = |f: VmFlags, c: char| if vma.flags.contains(f) { c } else { '-' };
    let shared = if vma.flags.contains(VmFlags::MAYSHARE) { 's' } else { 'p' };
    let file = vma.file();
    let inode = file.and_then(|f| f.inode());
    let (dev, ino) = inode.map_or((0, 0), |i| (i.sb.dev, i.ino));
    let offset = if vma.backing.is_some() || file.is_some() { vma.pgoff * 4096 } else { 0 };
    write!(
        out,
        "{:08x}-{:08x} {}{}{}{} {:08x} {:02x}:{:02x} {} ",
        vma.start,
        vma.end,
        flag(VmFlags::READ, 'r'),
        flag(VmFlags::WRITE, 'w'),
        flag(VmFlags::EXEC, 'x'),
        shared,
        offset,
        major(dev),
        minor(dev),
        ino
    )?;
    let pad = |out: &mut Text| {
        while out.0.len() - start < NAME_COLUMN {
            out.push(' ');
        }
    };
    let mut name = Text::default();
    name_of(vmas, vma, &mut name)?;
    if !name.0.is_empty() {
        pad(out);
    }
    // A newline in a name would look like the next line.
    for byte in name.0 {
        if byte == b'\n' { out.push_str("\\012") } else { out.push_bytes(&[byte]) }
    }
    out.push('\n');
    Ok(())
}

/// The name of a mapping: of its file, or what it is for; nothing for a nameless one.
pub(super) fn name_of(vmas: &Vmas<'_>, vma: &Vma, out: &mut Text) -> Result {
    match (vmas.label(vma), vma.file()) {
        (Some(("", name)), _) => out.push_str(name),
        (Some((kind, name)), _) => write!(out, "[{kind}:{name}]")?,
        (None, Some(file)) => {
            let path = crate::fs::anon::path_of(file)?;
            out.push_bytes(&path.display_link(&current().fs().root()));
        }
        (None, None) => {}
    }
    Ok(())
}

fn with_vm(target: &Target, f: impl FnOnce(&Arc<AddressSpace>) -> Result) -> Result {
    match target.process()?.try_vm() {
        Some(vm) => f(&vm),
        None => Ok(()),
    }
}

/// `/proc/PID/maps`
pub fn maps(target: &Target, out: &mut Text) -> Result {
    with_vm(target, |vm| {
        let vmas = vm.vmas();
        for vma in vmas.iter() {
            line(&vmas, vma, out)?;
        }
        Ok(())
    })
}

/// Pages of a mapping by kind, in bytes.
#[derive(Clone, Copy, Default)]
struct Pages {
    size: u64,
    rss: u64,
    pss: u64,
    pss_dirty: u64,
    shared_clean: u64,
    shared_dirty: u64,
    private_clean: u64,
    private_dirty: u64,
    referenced: u64,
    anonymous: u64,
    huge: u64,
    locked: u64,
}

impl Pages {
    fn add(&mut self, o: &Pages) {
        self.size += o.size;
        self.rss += o.rss;
        self.pss += o.pss;
        self.pss_dirty += o.pss_dirty;
        self.shared_clean += o.shared_clean;
        self.shared_dirty += o.shared_dirty;
        self.private_clean += o.private_clean;
        self.private_dirty += o.private_dirty;
        self.referenced += o.referenced;
        self.anonymous += o.anonymous;
        self.huge += o.huge;
        self.locked += o.locked;
    }

    fn count(vm: &AddressSpace, vma: &Vma) -> Pages {
        let mut p = Pages { size: vma.len(), ..Pages::default() };
        let mut va = vma.start;
        while va < vma.end {
            if let Some(m) = vm.user_space().query(VirtAddr::new(va)) {
                // References besides the page table's (and the object's) are other mappings.
                let object = vma.backing.is_some();
                let sharers = u64::from(m.frame.as_ref().map_or(1, |f| f.ref_count()))
                    .saturating_sub(1 + u64::from(object))
                    .max(1);
                p.rss += 4096;
                p.pss += 4096 / sharers;
                let slot = match (sharers > 1, m.dirty) {
                    (true, true) => &mut p.shared_dirty,
                    (true, false) => &mut p.shared_clean,
                    (false, true) => &mut p.private_dirty,
                    (false, false) => &mut p.private_clean,
                };
                *slot += 4096;
                if m.dirty {
                    p.pss_dirty += 4096 / sharers;
                }
                if m.accessed {
                    p.referenced += 4096;
                }
                if vma.is_anonymous() {
                    p.anonymous += 4096;
                }
                if va.is_multiple_of(BLOCK_SIZE) && vm.user_space().is_block(VirtAddr::new(va)) {
                    p.huge += BLOCK_SIZE;
                }
            }
            va += 4096;
        }
        if vma.flags.contains(VmFlags::LOCKED) {
            p.locked = p.pss;
        }
        p
    }

    fn show(&self, out: &mut Text, rollup: bool) -> Result {
        let mut kb = |name: &str, value: u64| writeln!(out, "{:<16}{:>8} kB", name, value / 1024);
        if !rollup {
            kb("Size:", self.size)?;
            kb("KernelPageSize:", 4096)?;
            kb("MMUPageSize:", 4096)?;
        }
        kb("Rss:", self.rss)?;
        kb("Pss:", self.pss)?;
        kb("Pss_Dirty:", self.pss_dirty)?;
        if rollup {
            kb("Pss_Anon:", self.anonymous.min(self.pss))?;
            kb("Pss_File:", self.pss - self.anonymous.min(self.pss))?;
            kb("Pss_Shmem:", 0)?;
        }
        for (name, value) in [
            ("Shared_Clean:", self.shared_clean),
            ("Shared_Dirty:", self.shared_dirty),
            ("Private_Clean:", self.private_clean),
            ("Private_Dirty:", self.private_dirty),
            ("Referenced:", self.referenced),
            ("Anonymous:", self.anonymous),
            ("KSM:", 0),
            ("LazyFree:", 0),
            ("AnonHugePages:", self.huge),
            ("ShmemPmdMapped:", 0),
            ("FilePmdMapped:", 0),
            ("Shared_Hugetlb:", 0),
            ("Private_Hugetlb:", 0),
            ("Swap:", 0),
            ("SwapPss:", 0),
            ("Locked:", self.locked),
        ] {
            kb(name, value)?;
        }
        Ok(())
    }
}

/// `/proc/PID/smaps`
pub fn smaps(target: &Target, out: &mut Text) -> Result {
    with_vm(target, |vm| {
        let vmas = vm.vmas();
        for vma in vmas.iter() {
            line(&vmas, vma, out)?;
            Pages::count(vm, vma).show(out, false)?;
            writeln!(out, "THPeligible:    {:>8}", u32::from(huge::is_eligible(vma)))?;
            out.push_str("VmFlags: ");
            for code in vma.flags.codes() {
                write!(out, "{code} ")?;
            }
            out.push('\n');
        }
        Ok(())
    })
}

/// `/proc/PID/smaps_rollup`
pub fn smaps_rollup(target: &Target, out: &mut Text) -> Result {
    with_vm(target, |vm| {
        let vmas = vm.vmas();
        let mut total = Pages::default();
        let (mut start, mut end) = (0, 0);
        for (i, vma) in vmas.iter().enumerate() {
            if i == 0 {
                start = vma.start;
            }
            end = vma.end;
            total.add(&Pages::count(vm, vma));
        }
        let at = out.0.len();
        write!(out, "{start:08x}-{end:08x} ---p 00000000 00:00 0 ")?;
        while out.0.len() - at < NAME_COLUMN {
            out.push(' ');
        }
        out.push_str("[rollup]\n");
        total.show(out, true)
    })
}

/// `/proc/PID/clear_refs`: 5 resets the peak; the others clear bits that nobody here reads.
pub fn clear_refs(target: &Target, text: &str) -> Result {
    let vm = target.process()?.try_vm();
    match text.trim().parse::<u32>() {
        Ok(1..=4) => Ok(()),
        Ok(5) => {
            if let Some(vm) = vm {
                vm.reset_peak_rss();
            }
            Ok(())
        }
        _ => Err(Errno::EINVAL),
    }
}

/// `/proc/PID/mem`
pub struct MemFile {
    /// Whose memory.
    pub target: Target,
}

impl InodeOps for MemFile {
    fn open(&self, _inode: &Arc<Inode>, _flags: u32) -> Result<Arc<dyn FileOps>> {
        self.target.may_inspect()?;
        // The file stays with the memory that was open, also over an exec.
        let vm = self.target.process()?.try_vm();
        Ok(Arc::new(OpenMem { vm }))
    }
}

struct OpenMem {
    vm: Option<Arc<AddressSpace>>,
}

const CHUNK: usize = 4096;

impl FileOps for OpenMem {
    fn read(&self, _f: &File, dst: &mut Sink<'_>, pos: u64) -> Result<usize> {
        let Some(vm) = &self.vm else { return Ok(0) };
        let mut buf: Vec<u8> = alloc::vec![0; CHUNK.min(dst.remaining())];
        let start = dst.done();
        while dst.remaining() > 0 {
            let want = dst.remaining().min(buf.len());
            let at = VirtAddr::new(pos.wrapping_add((dst.done() - start) as u64));
            let n = match vm.read_remote(at, &mut buf[..want]) {
                Ok(0) | Err(_) if dst.done() == start => return Err(Errno::EIO),
                Ok(0) | Err(_) => break,
                Ok(n) => n,
            };
            match dst.put(&buf[..n]) {
                Ok(k) if k == n && n == want => {}
                Ok(_) => break,
                Err(_) if dst.done() > start => break,
                Err(e) => return Err(e),
            }
        }
        Ok(dst.done() - start)
    }

    fn write(&self, _f: &File, src: &mut Source<'_>, pos: u64) -> Result<usize> {
        let Some(vm) = &self.vm else { return Ok(0) };
        let mut buf: Vec<u8> = alloc::vec![0; CHUNK.min(src.remaining())];
        let mut done = 0;
        while src.remaining() > 0 {
            let want = src.remaining().min(buf.len());
            let n = match src.take(&mut buf[..want]) {
                Ok(n) => n,
                Err(_) if done > 0 => break,
                Err(e) => return Err(e),
            };
            let at = VirtAddr::new(pos.wrapping_add(done as u64));
            match vm.write_remote(at, &buf[..n]) {
                Ok(0) | Err(_) if done == 0 => return Err(Errno::EIO),
                Ok(0) | Err(_) => break,
                Ok(k) => {
                    done += k;
                    if k < n {
                        break;
                    }
                }
            }
        }
        Ok(done)
    }

    fn is_stream(&self) -> bool {
        false
    }

    fn seek(&self, _f: &File, offset: i64, whence: u32, pos: u64) -> Result<u64> {
        // Addresses use all 64 bits: a "negative" offset is a high address.
        match whence {
            uapi::SEEK_SET => Ok(offset as u64),
            uapi::SEEK_CUR => Ok(pos.wrapping_add(offset as u64)),
            _ => Err(Errno::EINVAL),
        }
    }
}
