//! The ways into the guest: the Linux 64-bit boot protocol (Documentation/arch/x86/boot.rst, "64-bit Boot
//! Protocol"), PVH (xen/include/public/arch-x86/hvm/start_info.h) and, for the other CPUs, the INIT-SIPI
//! sequence (Intel SDM volume 3, 10.4).
//!
//! ```text
//!  _start    64 bit, tables of the VMM, rsi = boot_params ──────────────► main(info, 0)
//!  pvh_start 32 bit, ebx = hvm_start_info ──┐
//!  ap_start  16 bit at 0x90000 ── ap32 ─────┴─ long_mode: own tables ───► main(info, 1) or ap_main(index)
//! ```
//!
//! Everything the entry needs is assembled into the image, because a guest instruction can cost a
//! microsecond: page tables that map 512 GiB to themselves (the first 4 GiB by 2 MiB pages, the rest by 1
//! GiB pages), the GDT and the IDT.

use core::arch::global_asm;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::memory::{Region, RegionKind};

/// Where the real-mode code of the other CPUs is copied: conventional memory that no VMM uses for its own
/// boot data.
pub const TRAMPOLINE: u64 = 0x9_0000;
/// CPUs beside the first that have a stack.
pub const MAX_APS: usize = 319;
const AP_STACK: usize = 1024;
const BOOT_STACK: usize = 16384;

/// GDT selectors. The first three are what the Linux boot protocol names `__BOOT_CS` and `__BOOT_DS`,
/// plus a 32-bit code segment.
pub mod selector {
    pub const CODE32: u16 = 0x08;
    pub const CODE64: u16 = 0x10;
    pub const DATA: u16 = 0x18;
    pub const USER_DATA: u16 = 0x23;
    pub const USER_CODE: u16 = 0x2b;
    pub const TASK: u16 = 0x30;
}

global_asm!(
    r#"
    .section .text.boot, "ax"
    .code64
    .global _start
_start:
    xor eax, eax
    mov edx, 0x3e9
    out dx, al
    mov esp, offset boot_stack_end - 8
    mov edi, esi
    xor esi, esi
    jmp {main}

    .code32
pvh_start:
    xor eax, eax
    mov edx, 0x3e9
    out dx, al
    mov edi, ebx
    mov esi, 1
    mov esp, offset boot_stack_end
    mov ebx, offset {main}
    jmp long_mode

    .code16
    .global ap_start
ap_start:
    cli
    mov ax, cs
    mov ds, ax
    lgdt [ap_gdt_offset]
    mov eax, cr0
    or eax, 1
    mov cr0, eax
    .byte 0x66, 0xea
    .long ap32
    .short {code32}
    .balign 4
ap_gdt_pointer:
    .short gdt_end - gdt - 1
    .long gdt
    .set ap_gdt_offset, ap_gdt_pointer - ap_start
    .global ap_end
ap_end:

    .code32
ap32:
    mov eax, {data}
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov edi, 1
    lock xadd dword ptr [ap_next], edi
    cmp edi, {max_aps}
    jae 2f
    lea eax, [edi + 1]
    imul esp, eax, {ap_stack}
    add esp, offset ap_stacks
    mov ebx, offset {ap_main}
    jmp long_mode
2:  cli
    hlt
    jmp 2b

long_mode:
    lgdt [gdt_pointer]
    mov eax, cr4
    or eax, 0x20
    mov cr4, eax
    mov eax, offset pml4
    mov cr3, eax
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x100
    wrmsr
    mov eax, cr0
    or eax, 0x80000000
    mov cr0, eax
    .byte 0xea
    .long 1f
    .short {code64}
    .code64
1:  mov eax, {data}
    mov ds, eax
    mov es, eax
    mov ss, eax
    call rbx
    ud2

    .section .note.pvh, "a"
    .balign 4
    .long 4, 4, 18
    .asciz "Xen"
    .long pvh_start

    .section .data.boot, "aw"
    .balign 8
    .global gdt
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff
    .quad 0x00af9b000000ffff
    .quad 0x00cf93000000ffff
    .quad 0x00cff3000000ffff
    .quad 0x00affb000000ffff
    .quad 0, 0
gdt_end:
    .balign 4
    .short 0
    .global gdt_pointer
gdt_pointer:
    .short gdt_end - gdt - 1
    .quad gdt
    .balign 4
ap_next:
    .long 0

    .section .data.tables, "aw"
    .balign 4096
    .global pml4
pml4:
    .quad pdpt + 0x27
    .fill 511, 8, 0
    .global pdpt
pdpt:
    .quad pds + 0x27, pds + 0x1027, pds + 0x2027, pds + 0x3027
    .set page, 4
    .rept 508
    .quad page * 0x40000000 + 0xe7
    .set page, page + 1
    .endr
pds:
    .set page, 0
    .rept 2048
    .quad page * 0x200000 + 0xe7
    .set page, page + 1
    .endr

    .section .bss.stacks, "aw", @nobits
    .balign 4096
    .skip {boot_stack}
    .global boot_stack_end
boot_stack_end:
ap_stacks:
    .skip {ap_stack} * {max_aps}
    "#,
    main = sym crate::main,
    ap_main = sym crate::tests::smp::ap_main,
    code32 = const selector::CODE32,
    code64 = const selector::CODE64,
    data = const selector::DATA,
    max_aps = const MAX_APS,
    ap_stack = const AP_STACK,
    boot_stack = const BOOT_STACK,
);

/// The boot protocol that started the guest; the values are what the entry code passes in `esi`.
#[derive(Clone, Copy, PartialEq)]
pub enum Protocol {
    Linux,
    Pvh,
}

static INFO: AtomicU64 = AtomicU64::new(0);
static PROTOCOL: AtomicU32 = AtomicU32::new(0);

/// Remembers what the VMM passed: the address of `boot_params` (`protocol` 0) or of `hvm_start_info` (1).
pub fn remember(info: u64, protocol: u32) {
    INFO.store(info, Ordering::Relaxed);
    PROTOCOL.store(protocol, Ordering::Relaxed);
}

pub fn protocol() -> Protocol {
    if PROTOCOL.load(Ordering::Relaxed) == 0 { Protocol::Linux } else { Protocol::Pvh }
}

/// Reads a field of the structure that the VMM passed.
fn field<T: Copy>(offset: u64) -> T {
    let address = INFO.load(Ordering::Relaxed) + offset;
    // SAFETY: both protocols promise that the structure is in RAM, which is mapped to itself; any bit
    // pattern is a valid integer.
    unsafe { (address as *const T).read_unaligned() }
}

/// The address of the NUL-terminated kernel command line, or 0, from what the VMM passed.
#[inline(always)]
pub fn cmdline(info: u64, protocol: u32) -> u64 {
    // SAFETY: both protocols promise that the structure is in RAM, which is mapped to itself; its fields
    // are aligned.
    unsafe {
        match protocol {
            0 => u64::from(*((info + 0x228) as *const u32)),
            _ => *((info + 0x18) as *const u64),
        }
    }
}

/// The address of the ACPI root pointer, or 0 when the VMM gave none.
pub fn rsdp() -> u64 {
    match protocol() {
        Protocol::Linux => field(0x70),
        Protocol::Pvh => field(0x20),
    }
}

/// The memory map as the VMM passed it.
pub fn memory_map() -> impl Iterator<Item = Region> {
    let (table, count, stride) = match protocol() {
        Protocol::Linux => (INFO.load(Ordering::Relaxed) + 0x2d0, u64::from(field::<u8>(0x1e8)), 20),
        Protocol::Pvh => (field(0x28), u64::from(field::<u32>(0x30)), 24),
    };
    (0..count).map(move |index| {
        let entry = (table + index * stride) as *const u64;
        // SAFETY: the VMM passed `count` entries of `stride` bytes at `table`, in RAM that is mapped to
        // itself.
        let (start, size, kind) = unsafe {
            (
                entry.read_unaligned(),
                entry.add(1).read_unaligned(),
                entry.add(2).cast::<u32>().read_unaligned(),
            )
        };
        Region { start, size, kind: if kind == 1 { RegionKind::Ram } else { RegionKind::Reserved } }
    })
}
