//! The privileged and the special instructions, one function each (Intel SDM volume 2).

use core::arch::asm;
use core::arch::x86_64::__cpuid_count;

use crate::boot::selector;

pub fn out8(port: u16, value: u8) {
    // SAFETY: a port write reaches a device; no device of this machine changes memory because of one.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags)) }
}

pub fn out16(port: u16, value: u16) {
    // SAFETY: as in `out8`.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nomem, nostack, preserves_flags)) }
}

pub fn out32(port: u16, value: u32) {
    // SAFETY: as in `out8`.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack, preserves_flags)) }
}

pub fn in8(port: u16) -> u8 {
    let value: u8;
    // SAFETY: as in `out8`.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags)) }
    value
}

pub fn in16(port: u16) -> u16 {
    let value: u16;
    // SAFETY: as in `out8`.
    unsafe { asm!("in ax, dx", in("dx") port, out("ax") value, options(nomem, nostack, preserves_flags)) }
    value
}

pub fn in32(port: u16) -> u32 {
    let value: u32;
    // SAFETY: as in `out8`.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack, preserves_flags)) }
    value
}

/// Writes all of `bytes` to one port by one string instruction.
pub fn out_string(port: u16, bytes: &[u8]) {
    // SAFETY: the instruction reads `bytes.len()` bytes from `bytes`.
    unsafe {
        asm!("rep outsb", in("dx") port, inout("rsi") bytes.as_ptr() => _, inout("rcx") bytes.len() => _,
            options(readonly, nostack, preserves_flags))
    }
}

/// Fills `bytes` from one port by one string instruction.
pub fn in_string(port: u16, bytes: &mut [u8]) {
    // SAFETY: the instruction writes `bytes.len()` bytes to `bytes`.
    unsafe {
        asm!("rep insb", in("dx") port, inout("rdi") bytes.as_mut_ptr() => _, inout("rcx") bytes.len() => _,
            options(nostack, preserves_flags))
    }
}

pub fn read_msr(msr: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reading a model-specific register changes nothing.
    unsafe {
        asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags))
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Writes a model-specific register.
///
/// # Safety
/// The write must leave this code mapped, in 64-bit mode and in ring 0.
pub unsafe fn write_msr(msr: u32, value: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("wrmsr", in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack))
    }
}

/// EAX, EBX, ECX and EDX of a CPUID leaf.
pub fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let result = __cpuid_count(leaf, subleaf);
    [result.eax, result.ebx, result.ecx, result.edx]
}

pub fn tsc() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reading the counter changes nothing; CR4.TSD is clear, so ring 3 may as well.
    unsafe { asm!("rdtsc", out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags)) }
    u64::from(high) << 32 | u64::from(low)
}

/// A full barrier. A locked instruction, because an instruction emulator may lack `mfence`.
pub fn fence() {
    // SAFETY: it rewrites the top of the stack with what is there.
    unsafe { asm!("lock or dword ptr [rsp], 0") }
}

/// Sleeps until an interrupt has been handled. Interrupts are off outside of this (but for
/// `let_interrupts_in`), and `sti` takes effect when the `hlt` has begun: none is lost between a look at
/// what is awaited and the sleep.
pub fn sleep() {
    // SAFETY: every vector of the IDT has a gate, and the stubs preserve all registers.
    unsafe { asm!("sti", "hlt", "cli") }
}

/// Lets pending interrupts in without sleeping.
pub fn let_interrupts_in() {
    // SAFETY: as in `sleep`.
    unsafe { asm!("sti", "nop", "nop", "cli") }
}

/// The privilege level that this runs at.
pub fn ring() -> u16 {
    let code: u16;
    // SAFETY: reading the selector changes nothing.
    unsafe { asm!("mov {:x}, cs", out(reg) code, options(nomem, nostack, preserves_flags)) }
    code & 3
}

/// Stops this CPU; only INIT, NMI or the VMM can change that.
pub fn halt() -> ! {
    loop {
        // SAFETY: nothing runs on this CPU after this.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) }
    }
}

/// Takes the guest's own GDT, page tables and IDT in place of what the VMM set up.
pub fn take_tables() {
    // SAFETY: the tables are assembled in boot.rs and interrupts.rs: they map all memory to itself, their
    // code and data segments are flat, so execution goes on at the next instruction with the same stack.
    unsafe {
        asm!(
            "mov {scratch}, offset pml4",
            "mov cr3, {scratch}",
            "lgdt [gdt_pointer]",
            "push {code}",
            "lea {scratch}, [rip + 2f]",
            "push {scratch}",
            "retfq",
            "2:",
            "mov {scratch:e}, {data}",
            "mov ds, {scratch:e}",
            "mov es, {scratch:e}",
            "mov ss, {scratch:e}",
            "lidt [idt_pointer]",
            scratch = out(reg) _,
            code = const selector::CODE64,
            data = const selector::DATA,
        )
    }
}

/// Loads an IDT without gates and faults: the CPU shuts down.
pub fn triple_fault() -> ! {
    let empty = [0u16; 5];
    // SAFETY: the instructions do not return; that is their purpose.
    unsafe { asm!("lidt [{}]", "ud2", in(reg) &empty, options(noreturn)) }
}
