//! The interrupt descriptor table and what happens on a vector (Intel SDM volume 3, chapter 7).
//!
//! All 256 gates are assembled into the image: gate `v` leads to the stub at 1 MiB + 16 `v` (bare.ld puts
//! the stubs there), every stub to `interrupt`. An exception is a failure of the test; any other vector
//! is counted and acknowledged.

use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::{apic, cpu, end, print, serial::Hex};

/// The first vector for the I/O APIC's inputs: input `gsi` has the vector `GSI_BASE + gsi`.
pub const GSI_BASE: u8 = 0x20;
/// The vector of the interrupt that one CPU sends the others.
pub const IPI: u8 = 0xe0;
/// The vector of the local APIC's timer.
pub const TIMER: u8 = 0xf0;
/// The vector for an interrupt that went away before it was taken; it wants no acknowledgement.
pub const SPURIOUS: u8 = 0xff;

global_asm!(
    r#"
    .section .text.stubs, "ax"
    .global stubs
stubs:
    .set vector, 0
    .rept 256
    .balign 16
    # The exceptions with an error code: 8, 10 to 14, 17, 21, 29, 30.
    .if (0x60227d00 >> vector) & (vector < 32) & 1
    .else
    push 0
    .endif
    push vector
    jmp interrupt_common
    .set vector, vector + 1
    .endr
    .balign 16
interrupt_common:
    push rax
    push rcx
    push rdx
    push rsi
    push rdi
    push r8
    push r9
    push r10
    push r11
    mov rdi, [rsp + 72]
    lea rsi, [rsp + 80]
    cld
    call {interrupt}
    pop r11
    pop r10
    pop r9
    pop r8
    pop rdi
    pop rsi
    pop rdx
    pop rcx
    pop rax
    add rsp, 16
    iretq

    .section .data.idt, "aw"
    .balign 16
idt:
    .set vector, 0
    .rept 256
    .short vector * 16, 0x10, 0x8e00, 0x10, 0, 0, 0, 0
    .set vector, vector + 1
    .endr
    .balign 4
    .short 0
    .global idt_pointer
idt_pointer:
    .short 4095
    .quad idt
    "#,
    interrupt = sym interrupt,
);

/// What the CPU pushes, with an error code of 0 where it has none.
#[repr(C)]
struct Frame {
    error: u64,
    rip: u64,
    cs: u64,
    flags: u64,
    rsp: u64,
    ss: u64,
}

static COUNTS: [AtomicU64; 256] = [const { AtomicU64::new(0) }; 256];

/// How often a vector has been taken.
pub fn count(vector: u8) -> u64 {
    COUNTS[usize::from(vector)].load(Ordering::Relaxed)
}

extern "C" fn interrupt(vector: u64, frame: &Frame) {
    if vector < 32 {
        exception(vector, frame)
    }
    COUNTS[vector as u8 as usize].fetch_add(1, Ordering::Relaxed);
    if vector as u8 != SPURIOUS {
        apic::end_of_interrupt();
    }
}

#[cold]
fn exception(vector: u64, frame: &Frame) -> ! {
    let address: u64;
    // SAFETY: reading CR2 changes nothing.
    unsafe { core::arch::asm!("mov {}, cr2", out(reg) address, options(nomem, nostack)) }
    print!(
        "FAIL ",
        crate::test_name(),
        ": exception ",
        vector,
        " error ",
        Hex(frame.error),
        " at ",
        Hex(frame.rip)
    );
    print!(" cs ", Hex(frame.cs), " rsp ", Hex(frame.rsp), " cr2 ", Hex(address), "\n");
    end::end()
}

/// Ticks of the watchdog (about 100 ms each) that [`wait`] waits.
const PATIENCE: u64 = 1000;

/// Sleeps until `done`, as interrupts come; false when nothing has helped for about a hundred seconds: a loaded host is slow.
pub fn wait(mut done: impl FnMut() -> bool) -> bool {
    let first = count(TIMER);
    loop {
        if done() {
            return true;
        }
        if count(TIMER) - first > PATIENCE {
            return false;
        }
        cpu::sleep();
    }
}

/// Spins until `done`, with interrupts let in; false after one to two minutes. Those in which a snapshot lay about count, too.
pub fn spin(mut done: impl FnMut() -> bool) -> bool {
    let start = cpu::tsc();
    while !done() {
        if cpu::tsc() - start > 250_000_000_000 {
            return false;
        }
        cpu::let_interrupts_in();
    }
    true
}
