/*
 * Start of an application processor: real mode to the kernel's page tables.
 *
 * Copied to a page below 1 MiB; SIPI enters at its first byte with cs = page / 16, ip = 0. Position-independent: addresses
 * are formed from cs, and the far jump's target is patched in by the code itself. The boot tables (4 GiB identity, image at
 * -2 GiB) serve from here until ap_start64, which runs in the kernel image, has loaded the kernel's own.
 * AT&T syntax: the Intel one does not take label differences as displacements. The boot CPU fills in the fields at the end before each SIPI.
 */
.section .rodata.ap_trampoline, "a"
.balign 16
.global ap_trampoline
ap_trampoline:
.code16
    cli
    cld
    movw %cs, %ax
    movw %ax, %ds
    movzwl %ax, %ebx
    shll $4, %ebx                        /* ebx = physical address of this page */
    leal (ap_long - ap_trampoline)(%ebx), %eax
    movl %eax, (ap_far - ap_trampoline)
    leal (ap_gdt - ap_trampoline)(%ebx), %eax
    movl %eax, (ap_gdt_ptr - ap_trampoline + 2)
    lgdtl (ap_gdt_ptr - ap_trampoline)
    movl $0x20, %eax                     /* CR4: PAE */
    movl %eax, %cr4
    movl (ap_boot_cr3 - ap_trampoline), %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x901, %eax                     /* EFER: LME | NXE | SCE */
    wrmsr
    movl $0x80050033, %eax               /* straight from real mode to long mode */
    movl %eax, %cr0
    ljmpl *(ap_far - ap_trampoline)
.code64
ap_long:
    movw $16, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    xorl %eax, %eax
    movw %ax, %fs
    movw %ax, %gs
    movl %ebx, %ebx
    movq (ap_cr3 - ap_trampoline)(%rbx), %rsi
    movq (ap_stack - ap_trampoline)(%rbx), %rdx
    movl (ap_cpu - ap_trampoline)(%rbx), %edi
    jmpq *(ap_entry - ap_trampoline)(%rbx)
.balign 8
ap_gdt:
    .quad 0
    .quad 0x00af9b000000ffff
    .quad 0x00cf93000000ffff
ap_gdt_ptr:
    .word 23
    .long 0
ap_far:
    .long 0
    .word 8
.balign 8
.global ap_boot_cr3, ap_cr3, ap_stack, ap_cpu, ap_entry, ap_trampoline_end
ap_boot_cr3: .quad 0
ap_cr3:      .quad 0
ap_stack:    .quad 0
ap_cpu:      .quad 0
ap_entry:    .quad 0
ap_trampoline_end:

.section .text
.code64
/* edi = CPU number, rsi = the kernel's CR3, rdx = stack */
.global ap_start64
ap_start64:
    movq %rsi, %cr3
    movq %rdx, %rsp
    xorl %ebp, %ebp
    movabsq ${ap_main}, %rax
    callq *%rax
    ud2
