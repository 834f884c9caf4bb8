//! The system calls of memory: typed arguments in, checks in Linux's order, one method of the address space.
//!
//! [`map`]: mappings; [`lock`]: locking, residency, synchronisation; [`vm`]: other processes' memory; [`policy`]: what a machine
//! with one memory node answers to NUMA questions.

mod lock;
mod map;
mod policy;
mod vm;

crate::syscalls! { ROWS;
    9 mmap => map::sys_mmap(0, 1, 2, 3, 4, 5);
    10 mprotect => map::sys_mprotect(0, 1, 2);
    11 munmap => map::sys_munmap(0, 1);
    12 brk => map::sys_brk(0);
    25 mremap => map::sys_mremap(0, 1, 2, 3, 4);
    26 msync => lock::sys_msync(0, 1, 2);
    27 mincore => lock::sys_mincore(0, 1, 2);
    28 madvise => map::sys_madvise(0, 1, 2);
    149 mlock => lock::sys_mlock(0, 1);
    150 munlock => lock::sys_munlock(0, 1);
    151 mlockall => lock::sys_mlockall(0);
    152 munlockall => lock::sys_munlockall;
    216 remap_file_pages => map::sys_remap_file_pages(0, 1, 2, 3, 4);
    237 mbind => policy::sys_mbind(0, 1, 2, 3, 4, 5);
    238 set_mempolicy => policy::sys_set_mempolicy(0, 1, 2);
    239 get_mempolicy => policy::sys_get_mempolicy(0, 1, 2, 3, 4);
    256 migrate_pages => policy::sys_migrate_pages(0, 1, 2, 3);
    279 move_pages => policy::sys_move_pages(0, 1, 2, 3, 4, 5);
    310 process_vm_readv => vm::sys_process_vm_readv(0, 1, 2, 3, 4, 5);
    311 process_vm_writev => vm::sys_process_vm_writev(0, 1, 2, 3, 4, 5);
    319 memfd_create => super::memfd::sys_memfd_create(0, 1);
    325 mlock2 => lock::sys_mlock2(0, 1, 2);
    329 pkey_mprotect => map::sys_pkey_mprotect(0, 1, 2, 3);
    330 pkey_alloc => map::sys_pkey_alloc(0, 1);
    331 pkey_free => map::sys_pkey_free(0);
    440 process_madvise => vm::sys_process_madvise(0, 1, 2, 3, 4);
    447 memfd_secret => map::sys_memfd_secret(0);
    448 process_mrelease => vm::sys_process_mrelease(0, 1);
}
