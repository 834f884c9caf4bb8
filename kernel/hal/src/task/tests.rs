//! Switching under load: tasks that hop between CPUs with their vector state.

use super::*;
use crate::percpu::PerCpu;
use crate::smp;
use crate::sync::{IrqLock, without_irqs};
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::sync::atomic::AtomicBool;

/// Sixteen registers' worth of test pattern.
#[repr(C, align(64))]
#[derive(Clone, Copy, PartialEq, Eq)]
struct Vectors([[u64; 4]; 16]);

fn has_avx() -> bool {
    fpu::components() & 4 != 0
}

fn load_vectors(v: &Vectors) {
    // SAFETY: vector registers belong to the current task; the kernel's compiler does not use them.
    unsafe {
        if has_avx() {
            asm!(
                "vmovups ymm0, [{0}]", "vmovups ymm1, [{0}+32]", "vmovups ymm2, [{0}+64]", "vmovups ymm3, [{0}+96]",
                "vmovups ymm4, [{0}+128]", "vmovups ymm5, [{0}+160]", "vmovups ymm6, [{0}+192]", "vmovups ymm7, [{0}+224]",
                "vmovups ymm8, [{0}+256]", "vmovups ymm9, [{0}+288]", "vmovups ymm10, [{0}+320]", "vmovups ymm11, [{0}+352]",
                "vmovups ymm12, [{0}+384]", "vmovups ymm13, [{0}+416]", "vmovups ymm14, [{0}+448]", "vmovups ymm15, [{0}+480]",
                in(reg) v, options(nostack)
            );
        } else {
            asm!(
                "movups xmm0, [{0}]", "movups xmm1, [{0}+32]", "movups xmm2, [{0}+64]", "movups xmm3, [{0}+96]",
                "movups xmm4, [{0}+128]", "movups xmm5, [{0}+160]", "movups xmm6, [{0}+192]", "movups xmm7, [{0}+224]",
                "movups xmm8, [{0}+256]", "movups xmm9, [{0}+288]", "movups xmm10, [{0}+320]", "movups xmm11, [{0}+352]",
                "movups xmm12, [{0}+384]", "movups xmm13, [{0}+416]", "movups xmm14, [{0}+448]", "movups xmm15, [{0}+480]",
                in(reg) v, options(nostack)
            );
        }
    }
}

fn store_vectors(v: &mut Vectors) {
    // SAFETY: as above.
    unsafe {
        if has_avx() {
            asm!(
                "vmovups [{0}], ymm0", "vmovups [{0}+32], ymm1", "vmovups [{0}+64], ymm2", "vmovups [{0}+96], ymm3",
                "vmovups [{0}+128], ymm4", "vmovups [{0}+160], ymm5", "vmovups [{0}+192], ymm6", "vmovups [{0}+224], ymm7",
                "vmovups [{0}+256], ymm8", "vmovups [{0}+288], ymm9", "vmovups [{0}+320], ymm10", "vmovups [{0}+352], ymm11",
                "vmovups [{0}+384], ymm12", "vmovups [{0}+416], ymm13", "vmovups [{0}+448], ymm14", "vmovups [{0}+480], ymm15",
                in(reg) v, options(nostack)
            );
        } else {
            asm!(
                "movups [{0}], xmm0", "movups [{0}+32], xmm1", "movups [{0}+64], xmm2", "movups [{0}+96], xmm3",
                "movups [{0}+128], xmm4", "movups [{0}+160], xmm5", "movups [{0}+192], xmm6", "movups [{0}+224], xmm7",
                "movups [{0}+256], xmm8", "movups [{0}+288], xmm9", "movups [{0}+320], xmm10", "movups [{0}+352], xmm11",
                "movups [{0}+384], xmm12", "movups [{0}+416], xmm13", "movups [{0}+448], xmm14", "movups [{0}+480], xmm15",
                in(reg) v, options(nostack)
            );
        }
    }
}

fn pattern(id: u64, round: u64) -> Vectors {
    let mut v = Vectors([[0; 4]; 16]);
    for (i, r) in v.0.iter_mut().enumerate() {
        for (j, w) in r.iter_mut().enumerate() {
            // Without AVX only the low halves exist.
            *w = if j < 2 || has_avx() { id << 48 | round << 16 | (i * 4 + j) as u64 } else { 0 };
        }
    }
    v
}

struct Ring {
    queue: IrqLock<VecDeque<Arc<Task>>>,
    /// The task that each CPU came from.
    hosts: PerCpu<IrqLock<Option<Arc<Task>>>>,
    steps: AtomicU64,
    done: AtomicU32,
    stop: AtomicBool,
}

/// Body of a task in the ring: check and change the registers, queue up, switch to the CPU's host.
fn hop(ring: &Ring, id: u64, rounds: u64) {
    crate::cpu::irq_disable();
    let user = current().is_user();
    for round in 0..rounds {
        let want = pattern(id, round);
        if user {
            load_vectors(&want);
        }
        assert!(current().set_fs_base(id << 12 | round));
        let me = current().arc();
        let host = ring.hosts.get().lock().clone().expect("a host runs this");
        // From here on any CPU may want to run this task, which is still on this one.
        ring.queue.lock().push_back(me);
        switch_to(host);
        if user {
            let mut got = pattern(0, 0);
            store_vectors(&mut got);
            assert!(got == want, "vector state lost in task {id}, round {round}");
        }
        // SAFETY: every x86-64 CPU has this register.
        let fs = unsafe { crate::cpu::rdmsr(MSR_FS_BASE) };
        assert!(!user || fs == id << 12 | round, "FS base lost");
        ring.steps.fetch_add(1, Ordering::Relaxed);
    }
    ring.done.fetch_add(1, Ordering::Relaxed);
    let host = ring.hosts.get().lock().clone().expect("a host runs this");
    exit_to(host)
}

/// Runs tasks from the ring on this CPU until all have exited.
fn host(ring: &Ring, tasks: u32) {
    without_irqs(|| {
        *ring.hosts.get().lock() = Some(current().arc());
        while ring.done.load(Ordering::Relaxed) < tasks && !ring.stop.load(Ordering::Relaxed) {
            let next = ring.queue.lock().pop_front();
            match next {
                Some(t) => switch_to(t),
                None => core::hint::spin_loop(),
            }
        }
        *ring.hosts.get().lock() = None;
    });
}

fn storm(tasks: u32, rounds: u64, on_all: bool) {
    let ring = Arc::new(Ring {
        queue: IrqLock::new(VecDeque::new()),
        hosts: PerCpu::new(|_| IrqLock::new(None)),
        steps: AtomicU64::new(0),
        done: AtomicU32::new(0),
        stop: AtomicBool::new(false),
    });
    let mut all = Vec::new();
    for id in 0..tasks {
        let r = ring.clone();
        // Every third is a kernel task.
        let fpu = (id % 3 != 2).then(|| FpuState::new().unwrap());
        let body = Box::new(move || {
            let ring = Arc::as_ptr(&r);
            // `exit_to` never returns, so what this frame owns would leak.
            drop(r);
            // SAFETY: the test keeps the ring until all tasks are done.
            hop(unsafe { &*ring }, u64::from(id) + 1, rounds)
        });
        let t = Task::new("hop", Stack::new().unwrap(), Arc::new(id), fpu, body).unwrap();
        assert_eq!(t.ext::<u32>(), Some(&id));
        assert_eq!(t.ext::<u64>(), None);
        all.push(t.clone());
        ring.queue.lock().push_back(t);
    }
    if on_all {
        smp::call_on(smp::running(), &|| host(&ring, tasks));
    } else {
        host(&ring, tasks);
    }
    assert_eq!(ring.steps.load(Ordering::Relaxed), u64::from(tasks) * rounds);
    for t in &all {
        assert!(t.has_exited());
        assert_eq!(Arc::strong_count(t), 1, "a CPU kept a task that has exited");
    }
}

ktest! {
    /// Two and sixteen tasks on one CPU.
    fn switch_storm_on_one_cpu() {
        storm(2, 2000, false);
        storm(16, 300, false);
    }

    /// Twelve tasks on all CPUs at once; each is queued while it still runs.
    fn switch_storm_on_all_cpus() {
        storm(12, 400, true);
    }

    /// Images of the vector state: saved, checked, restored; bad ones are refused and change nothing.
    fn vector_images() {
        let out: Arc<IrqLock<Option<Vec<u8>>>> = Arc::new(IrqLock::new(None));
        let (o, host) = (out.clone(), current().arc());
        let body = Box::new(move || {
            let v = pattern(5, 5);
            load_vectors(&v);
            let mut image = alloc::vec![0; fpu::size()];
            assert_eq!(fpu::save_to(&mut image), image.len());
            assert_eq!(image[160..168], v.0[0][0].to_le_bytes());
            fpu::reset();
            let mut got = pattern(0, 0);
            store_vectors(&mut got);
            assert!(got.0 == [[0; 4]; 16]);
            fpu::restore_from(&image).unwrap();
            store_vectors(&mut got);
            assert!(got == v);
            // Reserved MXCSR bits, unknown components, reserved header bytes, wrong length.
            let mut bad = image.clone();
            bad[27] = 0x80;
            assert!(fpu::restore_from(&bad).is_err());
            assert!(fpu::restore_from(&image[..100]).is_err());
            if fpu::size() > 512 {
                for (at, v) in [(519, 0x80), (520, 1), (527, 0x80), (570, 1)] {
                    let mut bad = image.clone();
                    bad[at] |= v;
                    assert!(fpu::restore_from(&bad).is_err(), "byte {at}");
                }
            }
            store_vectors(&mut got);
            assert!(got == v);
            // The legacy part alone resets the rest.
            fpu::restore_from(&image[..512]).unwrap();
            store_vectors(&mut got);
            assert!((0..16).all(|i| got.0[i][..2] == v.0[i][..2] && got.0[i][2..] == [0; 2]));
            let child = fpu::copy_current_for_child();
            assert!(child.is_some());
            drop(child);
            *o.lock() = Some(image);
            drop((o, v));
            crate::cpu::irq_disable();
            exit_to(host)
        });
        let t = Task::new("fpu", Stack::new().unwrap(), Arc::new(()), FpuState::new(), body).unwrap();
        let mut image = alloc::vec![0; fpu::size()];
        assert_eq!(t.fpu_read(&mut image), Ok(fpu::size()));
        assert_eq!(image[24..28], 0x1f80u32.to_le_bytes());
        assert_eq!(t.fpu_write(&image), Ok(Ok(())));
        without_irqs(|| switch_to(t.clone()));
        assert!(out.lock().is_some());
        assert_eq!(t.fpu_read(&mut image), Err(NotStopped));
    }

    /// Stacks have a guard page, come from the pool and go back.
    fn stacks() {
        let s = Stack::new().unwrap();
        let (bottom, top) = (s.bottom(), s.top());
        assert_eq!(top - bottom, 32 << 10);
        drop(s);
        assert_eq!(Stack::new().unwrap().bottom(), bottom);
        let many: Vec<Stack> = (0..200).map(|_| Stack::new().unwrap()).collect();
        assert!(many.iter().all(|s| s.top().is_page_aligned()));
    }
}
