/*
 * The 32-bit entry of the kernel: from PVH or multiboot2 to 64-bit code at -2 GiB.
 *
 * Both loaders enter here in 32-bit protected mode, paging off, flat segments, interrupts off:
 *   multiboot2  eax = 0x36d76289, ebx = physical address of the boot information
 *   PVH         ebx = physical address of hvm_start_info (eax is set to 0 at the PVH entry)
 * Tables: the first 4 GiB identity-mapped, the first 2 GiB again at -2 GiB, 2 MiB pages, all rights. They serve until
 * mm::init loads the real ones, and again for the few instructions an AP takes from real mode to the kernel's tables.
 * References: multiboot2 specification 2.0, 3.2 and 3.3; QEMU/Xen docs/misc/pvh.pandoc.
 */
.set KOFF, 0xffffffff80000000

.section .boot.header, "a"
.balign 8
mb2_start:
    .long 0xe85250d6
    .long 0                              /* i386: GRUB leaves EFI and enters at ENTRY in 32-bit mode */
    .long mb2_end - mb2_start
    .long -(0xe85250d6 + 0 + (mb2_end - mb2_start))
    .balign 8
    .word 5, 1                           /* framebuffer, optional: this one if there is */
    .long 20
    .long 1024, 768, 32
    .balign 8
    .word 6, 1                           /* modules page-aligned: their pages are adopted in place */
    .long 8
    .balign 8
    .word 0, 0
    .long 8
mb2_end:

.section .note.pvh, "a", @note
.balign 4
    .long 4
    .long 4
    .long 18                             /* XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .long _start_pvh

.section .boot, "ax"
.code32
.global _start_pvh
_start_pvh:
    xor eax, eax
.global _start32
_start32:
    cli
    cld
    mov esp, offset boot_stack32_top
    mov edi, eax
    mov esi, ebx

    /* Long mode and NX are needed: say so on COM1 rather than triple-fault. */
    mov eax, 0x80000000
    cpuid
    cmp eax, 0x80000001
    jb no_cpu
    mov eax, 0x80000001
    cpuid
    and edx, 0x20100000
    cmp edx, 0x20100000
    jne no_cpu

    mov eax, offset boot_pdpt_lo + 3
    mov dword ptr [boot_pml4], eax
    mov eax, offset boot_pdpt_hi + 3
    mov dword ptr [boot_pml4 + 511*8], eax
    xor ecx, ecx
1:  mov eax, ecx
    shl eax, 21
    or eax, 0x83
    mov dword ptr [boot_pds + ecx*8], eax
    mov dword ptr [boot_pds + ecx*8 + 4], 0
    inc ecx
    cmp ecx, 2048
    jne 1b
    mov eax, offset boot_pds + 3
    mov dword ptr [boot_pdpt_lo], eax
    mov dword ptr [boot_pdpt_hi + 510*8], eax
    add eax, 4096
    mov dword ptr [boot_pdpt_lo + 8], eax
    mov dword ptr [boot_pdpt_hi + 511*8], eax
    add eax, 4096
    mov dword ptr [boot_pdpt_lo + 16], eax
    add eax, 4096
    mov dword ptr [boot_pdpt_lo + 24], eax

    mov eax, cr4
    or eax, 0x20                         /* PAE */
    mov cr4, eax
    mov eax, offset boot_pml4
    mov cr3, eax
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x901                        /* EFER: LME | NXE | SCE */
    wrmsr
    mov eax, 0x80050033                  /* CR0: PG | AM | WP | NE | ET | MP | PE */
    mov cr0, eax
    lgdt [boot_gdt_ptr]
    push 8
    mov eax, offset boot_start64
    push eax
    retf

no_cpu:
    mov esi, offset no_cpu_text
2:  lodsb
    test al, al
    jz 4f
    mov ah, al
    mov dx, 0x3fd
3:  in al, dx
    test al, 0x20
    jz 3b
    mov dx, 0x3f8
    mov al, ah
    out dx, al
    jmp 2b
4:  hlt
    jmp 4b
no_cpu_text:
    .asciz "Ursa needs a 64-bit processor with NX (x86-64).\r\n"

.code64
boot_start64:
    mov ax, 16
    mov ds, ax
    mov es, ax
    mov ss, ax
    xor eax, eax
    mov fs, ax
    mov gs, ax
    mov edi, edi
    mov esi, esi
    movabs rsp, offset __boot_stack_top
    movabs rax, offset {start}
    xor ebp, ebp                         /* ends the chain of frame pointers */
    call rax
5:  hlt
    jmp 5b

.balign 8
.global boot_gdt_ptr
boot_gdt:
    .quad 0
    .quad 0x00af9b000000ffff             /* 8: 64-bit code */
    .quad 0x00cf93000000ffff             /* 16: data */
    .quad 0x00cf9b000000ffff             /* 24: 32-bit code, for APs on their way up */
boot_gdt_end:
boot_gdt_ptr:
    .word boot_gdt_end - boot_gdt - 1
    .long boot_gdt
    .long 0

.section .bootbss, "aw", @nobits
.balign 4096
.global boot_pml4
boot_pml4: .skip 4096
boot_pdpt_lo: .skip 4096
boot_pdpt_hi: .skip 4096
boot_pds: .skip 16384
boot_stack32: .skip 64
boot_stack32_top:

.section .bss.boot_stack, "aw", @nobits
.balign 4096
    .skip 4096                           /* guard page */
    .skip 32768
.section .text
