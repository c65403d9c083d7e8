//! Counts for ever and checks, at each count, that nothing was lost: what a snapshot must keep.
//!
//! The loop holds a known value in every general register and, unless `fpu=off`, in the registers of FPU
//! and SSE; timer interrupts fall into it. `at every=N` counts a line tells the count, `rounds=R` lines
//! end it.

use core::arch::global_asm;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::interrupts::{self, TIMER};
use crate::memory::{Shared, pages};
use crate::{Failure, Hex, Result, apic, cmdline, print};

global_asm!(
    r#"
    .section .text.counter, "ax"
    # Counts rdi times, with interrupts on; gives 0, or the number of the register that changed.
    .global count_and_check
count_and_check:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    mov [{left}], rdi
    mov rax, [known + 0]
    mov rbx, [known + 8]
    mov rcx, [known + 16]
    mov rdx, [known + 24]
    mov rsi, [known + 32]
    mov rdi, [known + 40]
    mov rbp, [known + 48]
    mov r8, [known + 56]
    mov r9, [known + 64]
    mov r10, [known + 72]
    mov r11, [known + 80]
    mov r12, [known + 88]
    mov r13, [known + 96]
    mov r14, [known + 104]
    mov r15, [known + 112]
    mov [stack], rsp
    sti
2:  inc qword ptr [{counter}]
    cmp rax, [known + 0]
    jne 3f
    cmp rbx, [known + 8]
    jne 3f
    cmp rcx, [known + 16]
    jne 3f
    cmp rdx, [known + 24]
    jne 3f
    cmp rsi, [known + 32]
    jne 3f
    cmp rdi, [known + 40]
    jne 3f
    cmp rbp, [known + 48]
    jne 3f
    cmp r8, [known + 56]
    jne 3f
    cmp r9, [known + 64]
    jne 3f
    cmp r10, [known + 72]
    jne 3f
    cmp r11, [known + 80]
    jne 3f
    cmp r12, [known + 88]
    jne 3f
    cmp r13, [known + 96]
    jne 3f
    cmp r14, [known + 104]
    jne 3f
    cmp r15, [known + 112]
    jne 3f
    cmp rsp, [stack]
    jne 3f
    dec qword ptr [{left}]
    jnz 2b
    cli
    xor eax, eax
    jmp 4f
3:  cli
    mov eax, 1
4:  mov rsp, [stack]
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret

    .section .data.counter, "aw"
    .balign 8
known:
    .quad 0x0101010101010101, 0x0202020202020202, 0x0303030303030303, 0x0404040404040404
    .quad 0x0505050505050505, 0x0606060606060606, 0x0707070707070707, 0x0808080808080808
    .quad 0x0909090909090909, 0x0a0a0a0a0a0a0a0a, 0x0b0b0b0b0b0b0b0b, 0x0c0c0c0c0c0c0c0c
    .quad 0x0d0d0d0d0d0d0d0d, 0x0e0e0e0e0e0e0e0e, 0x0f0f0f0f0f0f0f0f
stack:
    .quad 0
    "#,
    counter = sym COUNTER,
    left = sym LEFT,
);

unsafe extern "C" {
    fn count_and_check(times: u64) -> u64;
}

static COUNTER: AtomicU64 = AtomicU64::new(0);
static LEFT: AtomicU64 = AtomicU64::new(0);

/// The image of FPU and SSE registers in memory (Intel SDM volume 1, 10.5.1).
const STATE_SIZE: u64 = 512;

pub fn run() -> Result {
    let every = cmdline::number("every", 1000).max(1);
    let rounds = cmdline::number("rounds", u64::MAX);
    let state = pages(1);
    let fpu = cmdline::value("fpu") != Some(b"off");
    if fpu {
        fill(state);
        load(state);
    }
    apic::enable();
    apic::start_timer(apic::TIMER_PERIODIC, cmdline::number("period", 10_000_000) as u32);
    print!("counter at ", Hex(COUNTER.as_ptr() as u64), "\n");
    for _ in 0..rounds {
        // SAFETY: the function keeps the calling convention; interrupts find a whole IDT.
        let changed = unsafe { count_and_check(every) };
        if changed != 0 {
            print!("CORRUPT general register\n");
            return Err(Failure { reason: "a general register changed", got: 1, wanted: 0 });
        }
        if fpu {
            check_state(state)?;
        }
        print!("counter ", COUNTER.load(Ordering::Relaxed), " timer ", interrupts::count(TIMER), "\n");
    }
    apic::stop_timer();
    Ok(())
}

/// Prepares a state with a value of its own in each of the eight FPU and sixteen SSE registers.
fn fill(state: Shared) {
    state.write16(0, 0x037f);
    state.write8(4, 0xff);
    state.write32(24, 0x1f80);
    for register in 0..8 {
        state.write64(32 + 16 * register, 0x8000_0000_0000_0000 | register);
        state.write16(40 + 16 * register, 0x3fff);
    }
    for register in 0..16 {
        state.write64(160 + 16 * register, 0x1111_1111_1111_1111 * (register + 1));
        state.write64(168 + 16 * register, !register);
    }
}

/// Switches the FPU and SSE on and loads their registers.
fn load(state: Shared) {
    // SAFETY: the state is 512 bytes, aligned to 4096; nothing else in the guest uses these registers.
    unsafe {
        core::arch::asm!(
            "mov {scratch}, cr0", "and {scratch}, ~0xc", "or {scratch}, 2", "mov cr0, {scratch}",
            "mov {scratch}, cr4", "or {scratch}, 0x200", "mov cr4, {scratch}",
            "fxrstor64 [{state}]",
            scratch = out(reg) _, state = in(reg) state.address(), options(nostack),
        )
    }
}

/// Compares the registers with the state that was loaded.
fn check_state(state: Shared) -> Result {
    let now = state.at(STATE_SIZE);
    // SAFETY: there are 512 bytes more in the page.
    unsafe { core::arch::asm!("fxsave64 [{}]", in(reg) now.address(), options(nostack)) }
    for offset in (32..416).step_by(8) {
        // The upper six bytes of an FPU register's sixteen are reserved.
        let mask = if offset < 160 && offset % 16 == 8 { 0xffff } else { u64::MAX };
        let (got, wanted) = (now.read64(offset) & mask, state.read64(offset) & mask);
        if got != wanted {
            print!("CORRUPT fpu or sse register, offset ", offset, "\n");
            return Err(Failure { reason: "an FPU or SSE register changed", got, wanted });
        }
    }
    Ok(())
}
