//! Tests of frames, page tables, shoot-down and the heap, on the machine.

use super::{
    BLOCK_FRAMES, CacheMode, Frame, FrameRun, MapError, Prot, UserSpace, WriteFault, mapped_blocks, stats, vmap,
};
use crate::addr::{PAGE_SIZE, PhysAddr, USER_END, VirtAddr};
use crate::percpu::CpuSet;
use crate::sync::{IrqLock, SpinLock};
use crate::{smp, task, user};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};

const BASE: u64 = 0x4000_0000;

fn va(page: u64) -> VirtAddr {
    VirtAddr(BASE + page * PAGE_SIZE as u64)
}

fn space() -> Arc<UserSpace> {
    Arc::new(UserSpace::new().expect("memory"))
}

fn page(word: u64) -> Frame {
    let f = Frame::alloc_zeroed().expect("memory");
    f.write(0, &word.to_le_bytes());
    f
}

fn word(f: &Frame) -> u64 {
    let mut b = [0; 8];
    f.read(0, &mut b);
    u64::from_le_bytes(b)
}

/// Free memory must be back after `f`, apart from what the heap keeps in slabs: magazines pin some, more with more CPUs.
#[track_caller]
fn no_leak(f: impl Fn()) {
    f();
    let before = stats().free;
    f();
    let after = stats().free;
    let slack = 4 + 32 * (smp::running().count() - 1);
    assert!(after + slack >= before, "{} frames lost", before - after);
}

unsafe extern "C" {
    fn memcpy(dst: *mut u8, src: *const u8, n: usize) -> *mut u8;
    fn memmove(dst: *mut u8, src: *const u8, n: usize) -> *mut u8;
    fn memset(dst: *mut u8, byte: i32, n: usize) -> *mut u8;
    fn memcmp(a: *const u8, b: *const u8, n: usize) -> i32;
}

/// A byte loop that the compiler cannot turn into one of the functions under test.
fn by_byte(n: usize, mut f: impl FnMut(usize)) {
    for i in 0..n {
        f(core::hint::black_box(i));
    }
}

ktest! {
    /// Every length up to 300 at several offsets, with overlap in both directions, against byte loops.
    fn memory_functions() {
        let mut a = [0u8; 800];
        let mut b = [0u8; 800];
        let mut want = [0u8; 800];
        for n in (0..300).chain([511, 512, 513]) {
            for (from, to) in [(0, 0), (3, 100), (0, 1), (1, 0), (0, 7), (9, 0), (40, 3), (3, 41), (5, 13), (77, 200)] {
                by_byte(800, |i| a[i] = (i * 7 + n) as u8);
                by_byte(800, |i| want[i] = a[i]);
                by_byte(n, |i| want[to + i] = a[from + i]);
                let p = a.as_mut_ptr();
                // SAFETY: inside the array.
                let r = unsafe { memmove(p.add(to), p.add(from), n) };
                assert_eq!(r as usize - p as usize, to);
                by_byte(800, |i| assert!(a[i] == want[i], "memmove {n} {from} {to} at {i}"));
                by_byte(800, |i| b[i] = 0xee);
                // SAFETY: inside two arrays.
                unsafe { memcpy(b.as_mut_ptr().add(to), a.as_ptr().add(from), n) };
                by_byte(800, |i| {
                    let w = if (to..to + n).contains(&i) { a[from + i - to] } else { 0xee };
                    assert!(b[i] == w, "memcpy {n} {from} {to} at {i}");
                });
                // SAFETY: inside the arrays.
                unsafe {
                    assert_eq!(memcmp(b.as_ptr().add(to), a.as_ptr().add(from), n), 0);
                    if n > 0 {
                        let at = (n * 5 + to) % n;
                        let old = b[to + at];
                        b[to + at] = old.wrapping_add(1);
                        let r = memcmp(b.as_ptr().add(to), a.as_ptr().add(from), n);
                        assert_eq!(r > 0, b[to + at] > old, "memcmp {n} {at}");
                        assert!(r != 0 && memcmp(b.as_ptr().add(to), a.as_ptr().add(from), at) == 0);
                    }
                    memset(b.as_mut_ptr().add(to), 0x1a5, n);
                }
                by_byte(800, |i| {
                    let inside = (to..to + n).contains(&i);
                    assert!((b[i] == 0xa5) == inside, "memset {n} {to} at {i}");
                });
            }
        }
    }

    /// Counts go up and down, and frames come back when the last reference goes.
    fn frames_are_counted() {
        no_leak(|| {
            let f = Frame::alloc_zeroed().unwrap();
            assert!(f.is_unique());
            let g = f.clone();
            assert_eq!((f.ref_count(), g.phys()), (2, f.phys()));
            f.write(4000, &[9; 96]);
            drop(f);
            assert!(g.is_unique());
            let mut b = [0; 100];
            g.read(3996, &mut b);
            assert_eq!((&b[..4], &b[4..]), (&[0; 4][..], &[9; 96][..]));
            let h = Frame::alloc().unwrap();
            h.copy_from(&g);
            h.fill(4000, 48, 1);
            let mut c = [0; 96];
            h.read(4000, &mut c);
            assert_eq!((&c[..48], &c[48..]), (&[1; 48][..], &[9; 48][..]));
            h.copy_range_from(10, &g, 4000, 7);
            h.read(9, &mut c[..9]);
            assert_eq!(c[..9], [0, 9, 9, 9, 9, 9, 9, 9, 0]);
            h.atomic_u32(128).store(77, Ordering::Relaxed);
            h.read(128, &mut c[..4]);
            assert_eq!(c[..4], [77, 0, 0, 0]);
        });
    }

    /// Runs are contiguous, aligned, below their limit; all sizes come back and merge.
    fn runs_are_contiguous_and_merge() {
        no_leak(|| {
            for n in [1usize, 2, 3, 5, 8, 31, 64, 100, 1000] {
                for align in [1usize, 4, 64] {
                    let r = FrameRun::alloc(n, align, None).unwrap();
                    assert_eq!((r.len(), r.phys().0 % (align * PAGE_SIZE) as u64), (n, 0));
                }
            }
            let low = FrameRun::alloc_zeroed(4, 1, Some(PhysAddr(64 << 20))).unwrap();
            assert!(low.phys().0 + 4 * PAGE_SIZE as u64 <= 64 << 20);
            let kept = low.frame(2);
            assert_eq!((kept.phys(), kept.ref_count()), (low.phys() + 2 * PAGE_SIZE as u64, 2));
            drop(low);
            assert!(kept.is_unique());
            assert_eq!(word(&kept), 0);
        });
        // What is broken into single frames can be had as a large block again.
        let big = FrameRun::alloc(1 << 12, 1, None).unwrap();
        let first = big.phys();
        let frames: Vec<Frame> = big.into_frames().collect();
        assert_eq!(frames[100].phys(), first + 100 * PAGE_SIZE as u64);
        drop(frames);
        assert!(FrameRun::alloc(1 << 12, 1 << 12, None).is_some());
    }

    /// All memory can be taken, allocation fails cleanly, and everything comes back.
    fn memory_can_run_out() {
        let before = stats().free;
        let reserve = 64;
        super::set_reserve(reserve);
        // A list through the frames themselves, so that no heap is needed.
        let mut head: Option<Frame> = None;
        let mut n = 0;
        while let Some(f) = Frame::alloc() {
            let next = head.take().map_or(0, |h| h.into_raw().0);
            f.write(0, &next.to_le_bytes());
            head = Some(f);
            n += 1;
        }
        assert!(super::low());
        assert!(Frame::alloc().is_none() && FrameRun::alloc(1, 1, None).is_none());
        // Page tables stop, too, when the CPU's spare ones are used up.
        let spaces: [Option<UserSpace>; 64] = core::array::from_fn(|_| UserSpace::new());
        assert!(spaces[63].is_none());
        drop(spaces);
        // The kernel's heap goes on, from the reserve.
        let v: Vec<u8> = alloc::vec![3; 2000];
        assert!(v.iter().all(|b| *b == 3));
        while let Some(f) = head.take() {
            let next = word(&f);
            if next != 0 {
                // SAFETY: `into_raw` above gave this reference to the list.
                head = Some(unsafe { Frame::from_raw(PhysAddr(next)) });
            }
        }
        super::set_reserve(0);
        assert!(n + 200 > before - reserve);
        assert!(stats().free + 32 >= before);
    }

    /// Mapping, looking up, changing rights, unmapping.
    fn user_mappings() {
        no_leak(|| {
            let s = space();
            for i in [0, 1, 511, 512, 5000, 262_144] {
                s.map(va(i), page(i), Prot::RW, CacheMode::WriteBack).unwrap();
            }
            assert_eq!(s.map(va(1), page(9), Prot::R, CacheMode::WriteBack), Err(MapError::AlreadyMapped));
            let m = s.query(va(511)).unwrap();
            assert_eq!((word(&m.frame.unwrap()), m.prot, m.dirty), (511, Prot::RW, false));
            assert!(s.query(va(2)).is_none() && s.query(VirtAddr(USER_END)).is_none());
            assert_eq!(s.count(va(0)..va(512)), 3);
            assert_eq!(s.count(va(0)..va(1 << 20)), 6);
            s.protect(va(0)..va(513), |_, _, p| p - Prot::W);
            assert_eq!(s.query(va(512)).unwrap().prot, Prot::R);
            assert_eq!(s.query(va(5000)).unwrap().prot, Prot::RW);
            s.protect(va(1)..va(2), |_, _, _| Prot::empty());
            assert_eq!(s.query(va(1)).unwrap().prot, Prot::empty());
            s.protect_all(va(1)..va(2), |_| Prot::RX);
            assert_eq!(s.query(va(1)).unwrap().prot, Prot::RX);
            s.replace(va(0), page(100), Prot::RW).unwrap();
            assert_eq!(word(&s.query(va(0)).unwrap().frame.unwrap()), 100);
            let f = s.query(va(512)).unwrap().frame.unwrap();
            assert!(s.widen(va(512), &f, Prot::RW) && !s.widen(va(511), &f, Prot::RW));
            drop(f);
            let mut seen = Vec::new();
            s.unmap(va(1)..va(1 << 20), |v, f, _| {
                assert!(f.is_unique());
                seen.push((v, word(&f)));
            });
            let want: Vec<_> = [1, 511, 512, 5000, 262_144].iter().map(|i| (va(*i), *i)).collect();
            assert_eq!(seen, want);
            assert_eq!(s.count(VirtAddr(0)..VirtAddr(USER_END)), 1);
            // The tables of the far pages are gone: root, three levels.
            assert_eq!(s.table_frames(), 4);
        });
    }

    /// More pages than a gather list holds, and neighbours mapped with one walk.
    fn large_ranges_map_and_unmap() {
        no_leak(|| {
            let s = space();
            let n = 3000;
            let mapped = s.map_many(Prot::RW, CacheMode::WriteBack, (0..n).map(|i| (va(i), page(i))));
            assert_eq!(mapped as u64, n);
            assert_eq!(s.map_many(Prot::RW, CacheMode::WriteBack, (0..4).map(|i| (va(i), page(i)))), 0);
            let mut next = 7;
            s.unmap(va(7)..va(n - 3), |v, f, _| {
                assert_eq!((v, word(&f)), (va(next), next));
                next += 1;
            });
            assert_eq!(next, n - 3);
            assert_eq!(s.count(va(0)..va(n)), 10);
        });
    }

    /// After a fork both sides have the page read-only; a write on one side is not seen on the other.
    fn copy_on_write() {
        no_leak(|| {
            let (a, b, c) = (space(), space(), space());
            for i in 0..600 {
                a.map(va(i), page(i), Prot::RW, CacheMode::WriteBack).unwrap();
            }
            a.fork_cow(&b, va(0)..va(600), false, |_| {}).unwrap();
            let (x, y) = (a.query(va(599)).unwrap(), b.query(va(599)).unwrap());
            assert_eq!((x.prot, y.prot, x.phys), (Prot::R, Prot::R, y.phys));
            assert_eq!(x.frame.unwrap().ref_count(), 4);
            b.replace(va(599), page(1), Prot::RW).unwrap();
            drop(y);
            let f = a.query(va(599)).unwrap().frame.unwrap();
            assert_eq!((word(&f), f.ref_count()), (599, 2));
            assert!(a.widen(va(599), &f, Prot::RW));
            a.fork_cow(&c, va(590)..va(600), true, |_| {}).unwrap();
            assert_eq!(c.query(va(599)).unwrap().prot, Prot::RW);
            assert_eq!(a.query(va(599)).unwrap().prot, Prot::RW);
            assert_eq!(a.fork_cow(&c, va(599)..va(600), true, |_| {}), Err(MapError::AlreadyMapped));
            assert_eq!(c.count(va(0)..va(600)), 10);
        });
    }

    /// A block is one mapping until a part of it changes; then it is 512 pages with the same contents. Nothing of it is lost.
    fn blocks_are_mapped_whole_and_split() {
        let n = BLOCK_FRAMES as u64;
        let block = || FrameRun::alloc_zeroed(BLOCK_FRAMES, BLOCK_FRAMES, None).expect("memory");
        let before = mapped_blocks();
        no_leak(|| {
            let s = space();
            assert!(s.is_bare(va(5)));
            s.map_block(va(0), block(), Prot::RW).unwrap();
            s.map_block(va(2 * n), block(), Prot::RW).unwrap();
            assert!(s.is_block(va(0)) && s.is_block(va(n - 1)) && !s.is_block(va(n)) && s.is_block(va(2 * n)));
            assert_eq!((mapped_blocks() - before, s.table_frames()), (2, 5));
            assert_eq!(s.map_block(va(0), block(), Prot::RW), Err(MapError::AlreadyMapped));

            // The CPU goes through the large entry; looking at it leaves it.
            task::switch_space(&s);
            for i in 0..n {
                s.query(va(i)).unwrap().frame.unwrap().write(0, &i.to_le_bytes());
                assert_eq!(user::load_u64(va(i)), Ok(i));
            }
            let m = s.query(va(7)).unwrap();
            assert!(m.accessed && m.dirty && m.prot == Prot::RW && s.is_block(va(0)));
            drop(m);
            assert!(matches!(s.write_fault(va(9), 0, Prot::RW), WriteFault::Done));
            assert!(s.is_block(va(0)));

            // One page leaves, another loses rights.
            let mut gone = 0;
            s.unmap(va(3)..va(4), |v, f, _| {
                assert_eq!((v, word(&f)), (va(3), 3));
                gone += 1;
            });
            assert_eq!((gone, s.is_block(va(0)), mapped_blocks() - before), (1, false, 1));
            assert!(user::load_u64(va(3)).is_err());
            s.protect(va(4)..va(5), |_, _, _| Prot::R);
            assert_eq!((s.query(va(4)).unwrap().prot, s.query(va(5)).unwrap().prot), (Prot::R, Prot::RW));
            for i in (0..n).filter(|i| *i != 3) {
                assert_eq!(user::load_u64(va(i)), Ok(i));
            }
            task::switch_space(&space());

            // A copy shares page by page, a whole block leaves at once, and what stays goes with the space.
            let child = space();
            s.fork_cow(&child, va(0)..va(3 * n), false, |_| {}).unwrap();
            assert_eq!((child.count(va(0)..va(3 * n)) as u64, mapped_blocks()), (2 * n - 1, before));
            assert_eq!(child.query(va(2 * n)).unwrap().prot, Prot::R);
            child.map_block(va(4 * n), block(), Prot::RW).unwrap();
            child.map_block(va(5 * n), block(), Prot::RW).unwrap();
            let mut pages = 0;
            child.unmap(va(4 * n)..va(5 * n), |_, _, _| pages += 1);
            assert_eq!((pages, child.is_bare(va(4 * n)), child.is_block(va(5 * n))), (n, true, true));
        });
        assert_eq!(mapped_blocks(), before);
    }

    /// mremap's move keeps frames and rights, and frees the old tables.
    fn ranges_move() {
        no_leak(|| {
            let s = space();
            for i in 0..1100 {
                s.map(va(i), page(i), if i % 2 == 0 { Prot::RW } else { Prot::R }, CacheMode::WriteBack).unwrap();
            }
            let to = |i: u64| VirtAddr(0x12_3456_7000 + i * PAGE_SIZE as u64);
            s.move_range(va(0), to(0), 1100 * PAGE_SIZE as u64).unwrap();
            assert_eq!(s.count(va(0)..va(1100)), 0);
            for i in 0..1100 {
                let m = s.query(to(i)).unwrap();
                assert_eq!((word(&m.frame.unwrap()), m.prot.contains(Prot::W)), (i, i % 2 == 0));
            }
            s.map(va(3), page(0), Prot::R, CacheMode::WriteBack).unwrap();
            assert_eq!(s.move_range(to(0), va(0), 10 * PAGE_SIZE as u64), Err(MapError::AlreadyMapped));
            assert_eq!(s.count(to(0)..to(1100)), 1100);
        });
    }

    /// A table that loses its last page to the one below and gets those of the one above, in one move, stays.
    fn ranges_move_by_a_table() {
        no_leak(|| {
            let s = space();
            let at = |i: u64| VirtAddr(0x12_4000_0000 + i * PAGE_SIZE as u64);
            for i in 1000..1048 {
                s.map(at(i), page(i), Prot::RW, CacheMode::WriteBack).unwrap();
            }
            s.move_range(at(1000), at(488), 48 * PAGE_SIZE as u64).unwrap();
            assert_eq!(s.count(at(0)..at(2048)), 48);
            for i in 1000..1048 {
                assert_eq!(word(&s.query(at(i - 512)).unwrap().frame.unwrap()), i);
            }
        });
    }

    /// The CPU's accessed and dirty bits are reported and cleared, through the TLB.
    fn dirty_pages_are_harvested() {
        no_leak(|| {
            let s = space();
            for i in 0..3 {
                s.map(va(i), page(i), Prot::RW, CacheMode::WriteBack).unwrap();
            }
            task::switch_space(&s);
            assert_eq!(user::load_u64(va(1)), Ok(1));
            user::store_u32(va(2), 5).unwrap();
            let look = |clear| {
                let mut bits = Vec::new();
                s.harvest(va(0)..va(3), clear, clear, |_, _, a, d| bits.push((a, d)));
                bits
            };
            assert_eq!(look(true), [(false, false), (true, false), (true, true)]);
            assert!(!look(false)[2].1);
            user::store_u32(va(2), 6).unwrap();
            assert_eq!(look(true)[2], (true, true));
            task::leave_space();
        });
    }

    /// A page that another CPU has in its TLB is gone there too when `unmap` hands the frame back.
    fn shoot_down_reaches_other_cpus() {
        let others = CpuSet::from_bits(smp::running().bits()).without(smp::current_cpu());
        let s = space();
        for round in 0..50u64 {
            for i in 0..40 {
                s.map(va(i), page(round * 100 + i), Prot::RW, CacheMode::WriteBack).unwrap();
            }
            let good = AtomicUsize::new(0);
            smp::call_on(others, &|| {
                task::switch_space(&s);
                for i in 0..40 {
                    if user::load_u64(va(i)) == Ok(round * 100 + i) {
                        good.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
            assert_eq!(good.load(Ordering::Relaxed), 40 * others.count());
            s.unmap(va(0)..va(if round % 2 == 0 { 3 } else { 40 }), |_, f, _| assert!(f.is_unique()));
            s.protect(va(3)..va(40), |_, _, _| Prot::R);
            let (gone, read_only) = (AtomicUsize::new(0), AtomicUsize::new(0));
            smp::call_on(others, &|| {
                gone.fetch_add(usize::from(user::load_u64(va(1)).is_err()), Ordering::Relaxed);
                read_only.fetch_add(usize::from(user::store_u8(va(9), 1).is_err()), Ordering::Relaxed);
            });
            assert_eq!(gone.load(Ordering::Relaxed), others.count());
            assert_eq!(read_only.load(Ordering::Relaxed), others.count());
            s.unmap(va(0)..va(40), |_, _, _| {});
        }
        smp::call_on(others, &task::leave_space);
        assert_eq!(Arc::strong_count(&s), 1);
    }

    /// All CPUs allocate and free at once, also what others allocated; contents survive.
    fn heap_stress() {
        no_leak(|| {
            let shared: IrqLock<Vec<(u8, Vec<u8>)>> = IrqLock::new(Vec::with_capacity(512));
            let all = CpuSet::from_bits(smp::running().bits());
            smp::call_on(all, &|| {
                let mut seed = 0x9e37_79b9_7f4a_7c15u64.wrapping_mul(smp::current_cpu() as u64 + 1);
                let mut mine: Vec<(u8, Vec<u8>)> = Vec::new();
                for _ in 0..4000 {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let r = seed >> 33;
                    let size = if r.is_multiple_of(50) { r as usize % 40_000 } else { r as usize % 700 };
                    let tag = r as u8;
                    mine.push((tag, alloc::vec![tag; size]));
                    if r.is_multiple_of(3) && mine.len() > 20 {
                        let at = r as usize % mine.len();
                        let (tag, v) = mine.swap_remove(at);
                        assert!(v.iter().all(|b| *b == tag));
                        let old = {
                            let mut s = shared.lock();
                            if s.len() < 400 {
                                s.push((tag, v));
                                None
                            } else {
                                Some(core::mem::replace(&mut s[r as usize % 400], (tag, v)))
                            }
                        };
                        if let Some((tag, v)) = old {
                            assert!(v.iter().all(|b| *b == tag));
                        }
                    }
                    if mine.len() > 100 {
                        mine.truncate(50);
                    }
                }
                assert!(mine.iter().all(|(t, v)| v.iter().all(|b| b == t)));
            });
        });
    }

    /// Sizes and alignments the heap hands out are what was asked for.
    fn heap_alignment() {
        use alloc::alloc::{Layout, alloc, dealloc};
        no_leak(|| {
            for shift in 0..15 {
                for size in [1usize, 15, 16, 17, 100, 640, 641, 1025, 3000, 4096, 4097, 9000, 70_000] {
                    let layout = Layout::from_size_align(size, 1 << shift).unwrap();
                    // SAFETY: the size is not zero; freed with the same layout.
                    unsafe {
                        let p = alloc(layout);
                        assert!(!p.is_null() && (p as usize).is_multiple_of(1 << shift), "{layout:?}");
                        p.write_bytes(0xa5, size);
                        dealloc(p, layout);
                    }
                }
            }
        });
    }

    /// Frames shown in the vmap area are the frames.
    fn vmap_shows_frames() {
        no_leak(|| {
            let frames: Vec<Frame> = (0..5).map(page).collect();
            let m = vmap(&frames).unwrap();
            m.write(2 * PAGE_SIZE - 3, b"abcdef");
            let mut b = [0; 3];
            frames[2].read(0, &mut b);
            assert_eq!(&b, b"def");
            let mut b = [0; 8];
            m.read(4 * PAGE_SIZE, &mut b);
            assert_eq!(b, 4u64.to_le_bytes());
        });
    }

    /// Writing to the kernel's text or rodata, in the image or in the direct map, is stopped by the page tables.
    fn kernel_text_is_read_only() {
        let text = super::kernel::flags_of(super::kernel::kernel_root as *const () as u64).unwrap();
        let rodata = super::kernel::flags_of("text".as_ptr() as u64).unwrap();
        static DATA: SpinLock<u64> = SpinLock::new(1);
        let data = super::kernel::flags_of(&raw const DATA as u64).unwrap();
        // (writable, executable)
        assert_eq!((text, rodata, data), ((false, true), (false, false), (true, false)));
        let alias = super::kernel::kernel_root as *const () as u64 - crate::addr::KERNEL_BASE + crate::addr::DIRECT_MAP;
        assert_eq!(super::kernel::flags_of(alias), Some((false, false)));
        assert_eq!(super::kernel::flags_of(0x1000), None);
        let stack = 0u64;
        assert_eq!(super::kernel::flags_of(&raw const stack as u64), Some((true, false)));
    }
}
