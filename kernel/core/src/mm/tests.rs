//! Tests of memory that need frames and page tables but no program; run with `ktest=mm`.

use alloc::sync::Arc;
use alloc::vec::Vec;

use ursa_hal::mm::{Frame, Prot};
use ursa_hal::trap::Access;
use ursa_hal::{USER_END, VirtAddr, ktest};

use super::page_tree::{Mark, PageTree};
use super::remap::RemapFlags;
use super::vma::{PAGE, VmaSet};
use super::*;
use crate::Errno;

fn frame(byte: u8) -> Frame {
    let frame = Frame::alloc().expect("a frame");
    frame.fill(0, PAGE as usize, byte);
    frame
}

fn first_byte(frame: &Frame) -> u8 {
    let mut byte = [0];
    frame.read(0, &mut byte);
    byte[0]
}

fn new_space() -> Arc<AddressSpace> {
    AddressSpace::new(Layout::new(8 << 20, false, None)).expect("an address space")
}

fn anonymous(pages: u64) -> MapRequest {
    MapRequest::anonymous((pages * PAGE) as usize, VmFlags::READ | VmFlags::WRITE)
}

fn of_object(object: &Arc<MemoryObject>, pages: u64, flags: MapFlags) -> MapRequest {
    MapRequest {
        flags,
        backing: MapBacking::Object { object: object.clone(), offset: 0, file: None },
        ..anonymous(pages)
    }
}

fn peek(mm: &AddressSpace, va: VirtAddr) -> u8 {
    let mut byte = [0];
    mm.read_remote(va, &mut byte).expect("readable");
    byte[0]
}

fn poke(mm: &AddressSpace, va: VirtAddr, byte: u8) {
    assert_eq!(mm.write_remote(va, &[byte]), Ok(1));
}

fn writable(mm: &AddressSpace, va: VirtAddr) -> bool {
    mm.user_space().query(va).is_some_and(|m| m.prot.contains(Prot::W))
}

ktest! {
    fn page_tree_finds_what_was_inserted_at_any_height() {
        let mut tree = PageTree::new();
        let at = [0, 63, 64, 4095, 4096, 1 << 30, u64::MAX >> 13];
        for (i, &index) in at.iter().enumerate() {
            assert!(tree.insert(index, frame(i as u8)).is_none());
        }
        assert_eq!(tree.len(), at.len());
        for (i, &index) in at.iter().enumerate() {
            assert_eq!(tree.get(index).map(first_byte), Some(i as u8));
            assert!(tree.get(index + 1).is_none() || at.contains(&(index + 1)));
        }
        let mut seen = Vec::new();
        tree.for_each(63, 4096, |index, _| {
            seen.push(index);
            true
        });
        assert_eq!(seen, [63, 64, 4095]);
        tree.remove_range(64, u64::MAX, |_, _| {});
        assert_eq!(tree.len(), 2);
        assert!(tree.remove(0).is_some() && tree.remove(63).is_some() && tree.is_empty());
    }

    fn page_tree_keeps_marks_and_finds_holes() {
        let mut tree = PageTree::new();
        for index in [3, 4, 200] {
            tree.insert(index, frame(1));
        }
        assert!(!tree.set_mark(4, Mark::Dirty, true));
        assert!(!tree.set_mark(5, Mark::Dirty, true), "a missing page takes no mark");
        assert!(tree.set_mark(4, Mark::Dirty, true));
        assert_eq!(tree.dirty_len(), 1);
        let mut dirty = Vec::new();
        tree.for_each_marked(Mark::Dirty, 0, u64::MAX, |index, _| {
            dirty.push(index);
            true
        });
        assert_eq!(dirty, [4]);
        assert_eq!(tree.next(0, 300, true), Some(3));
        assert_eq!(tree.next(3, 300, false), Some(5));
        assert_eq!(tree.next(5, 300, true), Some(200));
        assert_eq!(tree.next(201, 300, true), None);
        tree.remove(4);
        assert_eq!(tree.dirty_len(), 0);
    }

    fn vma_set_searches_from_the_top_and_remembers() {
        let mut set = VmaSet::default();
        let flags = VmFlags::READ;
        let add = |set: &mut VmaSet, start: u64, end: u64| {
            set.insert(Vma::new(start * PAGE, end * PAGE, flags, None, start));
        };
        add(&mut set, 90, 95);
        add(&mut set, 50, 80);
        let gap = |set: &mut VmaSet, pages: u64| set.gap_top_down(pages * PAGE, 10 * PAGE, 100 * PAGE).map(|a| a / PAGE);
        assert_eq!(gap(&mut set, 5), Some(95));
        assert_eq!(gap(&mut set, 6), Some(84));
        assert_eq!(gap(&mut set, 11), Some(39));
        assert_eq!(gap(&mut set, 41), None);
        // What became free above the remembered place is found again.
        set.remove(90 * PAGE);
        assert_eq!(gap(&mut set, 20), Some(80));
        // A stack keeps its distance from what is below.
        set.insert(Vma::new(400 * PAGE, 402 * PAGE, flags | VmFlags::GROWSDOWN, None, 400));
        assert_eq!(set.gap_top_down(PAGE, 10 * PAGE, 500 * PAGE), Some(499 * PAGE));
        assert_eq!(set.gap_top_down(60 * PAGE, 10 * PAGE, 402 * PAGE), Some((400 - 256 - 60) * PAGE));
    }

    fn layout_leaves_room_for_the_stack() {
        let fixed = Layout::new(8 << 20, false, None);
        assert_eq!(fixed.stack_top, USER_END);
        assert_eq!(fixed.mmap_base, USER_END - (128 << 20));
        let mut seed = 1u64;
        let mut random = || {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            seed
        };
        for _ in 0..100 {
            let layout = Layout::new(8 << 20, false, Some(&mut random));
            assert!(layout.stack_top - layout.mmap_base > 8 << 20 && layout.mmap_base.is_multiple_of(PAGE));
            assert!(layout.stack_top <= USER_END && layout.stack_top.is_multiple_of(PAGE));
        }
        assert!(Layout::new(u64::MAX, false, None).legacy, "an unlimited stack grows wherever it likes");
    }

    fn mmap_flags_are_decoded_as_linux_does() {
        use linux_uapi::raw::general as u;
        assert_eq!(MapFlags::decode(u::MAP_ANONYMOUS, false), Err(Errno::EINVAL));
        assert_eq!(MapFlags::decode(u::MAP_PRIVATE | 0x40_0000, true), Ok(MapFlags::empty()));
        assert_eq!(MapFlags::decode(u::MAP_SHARED_VALIDATE | 0x40_0000, true), Err(Errno::EOPNOTSUPP));
        assert_eq!(MapFlags::decode(u::MAP_SHARED_VALIDATE | u::MAP_SYNC, true), Err(Errno::EOPNOTSUPP));
        let fixed = MapFlags::decode(u::MAP_SHARED | u::MAP_FIXED_NOREPLACE, true);
        assert!(fixed.is_ok_and(|f| f.contains(MapFlags::FIXED | MapFlags::SHARED)));
    }

    fn anonymous_memory_reads_zero_then_holds_what_is_stored() {
        let mm = new_space();
        let at = mm.mmap(&anonymous(4)).expect("mmap");
        mm.handle_fault(at, Access::Read).expect("read");
        assert_eq!(mm.usage().rss(), 0, "the page of zeroes is not counted");
        assert!(!writable(&mm, at));
        mm.handle_fault(at, Access::Write).expect("write");
        assert!(writable(&mm, at));
        poke(&mm, at + 5, 7);
        assert_eq!(peek(&mm, at + 5), 7);
        assert_eq!(mm.usage().rss_anon, 1);
        assert_eq!(mm.handle_fault(at, Access::Exec).unwrap_err().code, 2, "SEGV_ACCERR");
        assert_eq!(mm.handle_fault(at + 5 * PAGE, Access::Read).unwrap_err().code, 1, "SEGV_MAPERR");
        mm.munmap(at, 4 * PAGE as usize).expect("munmap");
        assert_eq!((mm.usage().rss(), mm.usage().vm_size), (0, 0));
    }

    fn stores_in_order_are_mapped_ahead() {
        let mm = new_space();
        let at = mm.mmap(&anonymous(256)).expect("mmap");
        let mut faults = 0;
        for page in 0..256 {
            let va = at + page * PAGE;
            if !writable(&mm, va) {
                faults += 1;
                mm.handle_fault(va, Access::Write).expect("write");
            }
        }
        assert!(faults < 20, "{faults} faults for 256 pages");
        assert_eq!(mm.usage().rss_anon, 256);
    }

    fn a_block_comes_whole_where_a_mapping_covers_it() {
        let free = ursa_hal::mm::stats().free;
        let mm = new_space();
        let at = mm.mmap(&anonymous(1024)).expect("mmap");
        assert!(at.as_u64().is_multiple_of(ursa_hal::mm::BLOCK_SIZE), "whole blocks begin at one");
        mm.handle_fault(at + 700 * PAGE, Access::Write).expect("write");
        assert_eq!((mm.usage().rss_anon, mm.user_space().is_block(at + 1023 * PAGE)), (512, true));
        assert!(!mm.user_space().is_block(at));
        // Where a page is already, or the advice or the rights forbid it, pages come alone.
        mm.handle_fault(at + 3 * PAGE, Access::Read).expect("read");
        mm.handle_fault(at + 5 * PAGE, Access::Write).expect("write");
        assert_eq!(mm.usage().rss_anon, 513);
        let stack = MapRequest { flags: MapFlags::STACK, ..anonymous(1024) };
        let program = MapRequest::anonymous(1024 * PAGE as usize, VmFlags::READ | VmFlags::WRITE | VmFlags::EXEC);
        for request in [stack, program] {
            let at = mm.mmap(&request).expect("mmap");
            mm.handle_fault(at, Access::Write).expect("write");
            assert!(!mm.user_space().is_block(at));
        }
        assert_eq!(mm.usage().rss_anon, 515);
        mm.madvise(at + 600 * PAGE, 100 * PAGE as usize, 4).expect("MADV_DONTNEED");
        assert_eq!((mm.usage().rss_anon, peek(&mm, at + 600 * PAGE)), (415, 0));
        mm.munmap(at, 1024 * PAGE as usize).expect("munmap");
        assert_eq!(mm.usage().rss_anon, 2);
        drop(mm);
        assert!(ursa_hal::mm::stats().free + 64 > free, "frames come back");
    }

    fn fork_copies_on_write_and_the_last_owner_keeps_the_page() {
        let free = ursa_hal::mm::stats().free;
        let parent = new_space();
        let at = parent.mmap(&anonymous(2)).expect("mmap");
        poke(&parent, at, 1);
        let child = parent.fork().expect("fork");
        assert!(!writable(&parent, at) && !writable(&child, at));
        assert_eq!(child.usage().rss_anon, 1);
        child.handle_fault(at, Access::Write).expect("copy");
        poke(&child, at, 2);
        assert_eq!((peek(&parent, at), peek(&child, at)), (1, 2));
        let before = parent.user_space().query(at).map(|m| m.phys);
        parent.handle_fault(at, Access::Write).expect("reuse");
        assert!(writable(&parent, at) && parent.user_space().query(at).map(|m| m.phys) == before);
        drop((parent, child));
        assert!(ursa_hal::mm::stats().free + 64 > free, "frames come back");
    }

    fn shared_memory_is_one_and_truncation_reaches_every_mapping() {
        let object = MemoryObject::new_shmem(4 * PAGE);
        let (a, b) = (new_space(), new_space());
        let at = a.mmap(&of_object(&object, 4, MapFlags::SHARED)).expect("mmap");
        let bt = b.mmap(&of_object(&object, 4, MapFlags::empty())).expect("mmap");
        poke(&a, at + 3 * PAGE, 9);
        assert_eq!(peek(&b, bt + 3 * PAGE), 9);
        poke(&b, bt + 2 * PAGE, 5);
        assert_eq!(peek(&a, at + 2 * PAGE), 0, "private stores stay private");
        assert_eq!((b.usage().rss_anon, b.usage().rss_shmem), (1, 1));
        object.set_size(2 * PAGE).expect("truncate");
        assert!(a.user_space().query(at + 3 * PAGE).is_none());
        assert!(b.user_space().query(bt + 2 * PAGE).is_none(), "private copies past the end go, too");
        let fault = a.handle_fault(at + 3 * PAGE, Access::Read).unwrap_err();
        assert_eq!(fault.signo, linux_uapi::raw::general::SIGBUS);
        assert_eq!((a.usage().rss(), b.usage().rss()), (0, 0));
        object.set_size(4 * PAGE).expect("extend");
        assert_eq!(peek(&a, at + 3 * PAGE), 0);
    }

    fn punching_a_hole_leaves_private_copies() {
        let object = MemoryObject::new_shmem(4 * PAGE);
        let mm = new_space();
        let at = mm.mmap(&of_object(&object, 4, MapFlags::empty())).expect("mmap");
        object.insert_page(0, frame(1)).expect("insert");
        object.insert_page(1, frame(2)).expect("insert");
        assert_eq!(peek(&mm, at), 1);
        poke(&mm, at + PAGE, 7);
        object.punch_hole(0, 4 * PAGE).expect("punch");
        assert_eq!((peek(&mm, at), peek(&mm, at + PAGE)), (0, 7));
        assert_eq!(object.resident_pages(), 1, "reading brought page 0 back");
    }

    fn protection_splits_and_merges() {
        let mm = new_space();
        let at = mm.mmap(&anonymous(8)).expect("mmap");
        for page in 0..8 {
            poke(&mm, at + page * PAGE, page as u8);
        }
        mm.mprotect(at + 2 * PAGE, 2 * PAGE as usize, VmFlags::READ, false).expect("mprotect");
        assert_eq!(mm.vmas().len(), 3);
        assert!(mm.handle_fault(at + 2 * PAGE, Access::Write).is_err());
        poke(&mm, at + 2 * PAGE, 42);
        assert_eq!(peek(&mm, at + 2 * PAGE), 42, "a debugger may");
        mm.mprotect(at, 8 * PAGE as usize, VmFlags::READ | VmFlags::WRITE, false).expect("mprotect");
        assert_eq!(mm.vmas().len(), 1);
        mm.mprotect(at, PAGE as usize, VmFlags::empty(), false).expect("PROT_NONE");
        assert!(mm.handle_fault(at, Access::Read).is_err());
        mm.mprotect(at, PAGE as usize, VmFlags::READ, false).expect("back");
        assert_eq!(peek(&mm, at), 0);
        assert_eq!(mm.mprotect(at + 7 * PAGE, 2 * PAGE as usize, VmFlags::READ, false), Err(Errno::ENOMEM));
        assert_eq!(mm.usage().rss_anon, 8);
    }

    fn mremap_moves_pages_and_grows() {
        let mm = new_space();
        let at = mm.mmap(&anonymous(4)).expect("mmap");
        poke(&mm, at + PAGE, 3);
        // Something right above keeps it from growing in place.
        let above = MapRequest { addr: at + 4 * PAGE, flags: MapFlags::FIXED | MapFlags::ANONYMOUS, ..anonymous(1) };
        mm.mmap(&MapRequest { prot: VmFlags::READ, ..above }).expect("mmap");
        let len = 4 * PAGE as usize;
        assert_eq!(mm.mremap(at, len, 2 * len, RemapFlags::empty(), at), Err(Errno::ENOMEM));
        let to = mm.mremap(at, len, 2 * len, RemapFlags::MAYMOVE, at).expect("mremap");
        assert!(to != at && peek(&mm, to + PAGE) == 3);
        assert!(mm.handle_fault(at, Access::Read).is_err());
        let kept = mm.mremap(to, 2 * len, 2 * len, RemapFlags::MAYMOVE | RemapFlags::DONTUNMAP, at).expect("mremap");
        assert_eq!((peek(&mm, kept + PAGE), peek(&mm, to + PAGE)), (3, 0));
        assert_eq!(mm.mremap(kept, 2 * len, len, RemapFlags::empty(), at), Ok(kept));
        assert!(mm.handle_fault(kept + 4 * PAGE, Access::Read).is_err());
    }

    fn stacks_grow_to_their_limit_and_no_further() {
        let mm = new_space();
        mm.setup_stack(false).expect("stack");
        let top = mm.layout().stack_top;
        mm.handle_fault(VirtAddr::new(top - (1 << 20)), Access::Write).expect("grows");
        let stack = mm.vmas().at_or_above(top - 1).map(|vma| (vma.start, vma.end));
        assert_eq!(stack, Some((top - (1 << 20), top)));
        // Another mapping below keeps its distance.
        let near = top - (2 << 20);
        let flags = MapFlags::FIXED | MapFlags::ANONYMOUS;
        mm.mmap(&MapRequest { addr: VirtAddr::new(near), flags, ..anonymous(1) }).expect("mmap");
        assert!(mm.handle_fault(VirtAddr::new(near + 2 * PAGE), Access::Write).is_err());
    }

    fn brk_moves_the_heap() {
        let mm = new_space();
        mm.update_layout(|l| (l.start_brk, l.brk) = (0x10_0000, 0x10_0000));
        assert_eq!(mm.brk(VirtAddr::new(0x10_0010)).as_u64(), 0x10_0010);
        poke(&mm, VirtAddr::new(0x10_0000), 1);
        assert_eq!(mm.brk(VirtAddr::new(0x10_5000)).as_u64(), 0x10_5000);
        assert_eq!(mm.vmas().len(), 1);
        assert_eq!(mm.brk(VirtAddr::new(0)).as_u64(), 0x10_5000, "nonsense changes nothing");
        assert_eq!(mm.brk(VirtAddr::new(0x10_0000)).as_u64(), 0x10_0000);
        assert_eq!((mm.vmas().len(), mm.usage().rss()), (0, 0));
    }

    fn seals_hold() {
        let object = MemoryObject::new_shmem(PAGE);
        assert_eq!(object.add_seals(Seals::SHRINK), Err(Errno::EPERM));
        object.allow_sealing();
        let mm = new_space();
        let at = mm.mmap(&of_object(&object, 1, MapFlags::SHARED)).expect("mmap");
        assert_eq!(object.add_seals(Seals::WRITE), Err(Errno::EBUSY));
        mm.munmap(at, PAGE as usize).expect("munmap");
        object.add_seals(Seals::WRITE | Seals::SHRINK | Seals::GROW).expect("seal");
        assert_eq!(object.set_size(0), Err(Errno::EPERM));
        assert_eq!(object.set_size(2 * PAGE), Err(Errno::EPERM));
        assert_eq!(mm.mmap(&of_object(&object, 1, MapFlags::SHARED)), Err(Errno::EPERM));
        let read_only = MapRequest { prot: VmFlags::READ, ..of_object(&object, 1, MapFlags::SHARED) };
        let at = mm.mmap(&read_only).expect("read-only");
        assert_eq!(mm.mprotect(at, PAGE as usize, VmFlags::READ | VmFlags::WRITE, false), Err(Errno::EACCES));
    }
}
