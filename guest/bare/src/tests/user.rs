//! Ring 3: a loop that a software KVM runs natively, and the end from there, by ports that IOPL 3 allows
//! (Intel SDM volume 1, 19.5.1).

use core::arch::asm;

use crate::boot::selector;
use crate::memory::{PAGE, pages};
use crate::{Result, cmdline, cpu, end, print};

/// The task state, and behind it a bit for each port that says whether it is forbidden; one byte of ones
/// ends them.
const TASK_SIZE: u64 = 104;
const PORT_BITS: u64 = 65536 / 8;
const STACK_PAGES: u64 = 4;
const IOPL_3: u64 = 3 << 12 | 2;

pub fn run() -> Result {
    unsafe extern "C" {
        static mut gdt: [u64; 8];
    }
    // A KVM that runs ring 3 natively may lose the IOPL, so the port bits allow all ports as well.
    let task = pages(3);
    task.write64(4, pages(STACK_PAGES).address() + STACK_PAGES * PAGE);
    task.write16(102, TASK_SIZE as u16);
    task.write8(TASK_SIZE + PORT_BITS, 0xff);
    let base = task.address();
    let descriptor =
        (TASK_SIZE + PORT_BITS) | (base & 0xff_ffff) << 16 | 0x89 << 40 | (base >> 24 & 0xff) << 56;
    let stack = pages(STACK_PAGES).address() + STACK_PAGES * PAGE - 8;
    // SAFETY: the descriptors 6 and 7 of the GDT are free for this; the task state and the stack stay;
    // all memory is open to ring 3, and `in_ring_3` does not return.
    unsafe {
        (&raw mut gdt).cast::<u64>().add(6).write_volatile(descriptor);
        (&raw mut gdt).cast::<u64>().add(7).write_volatile(base >> 32);
        asm!(
            "ltr {task:x}",
            "push {data}",
            "push {stack}",
            "push {flags}",
            "push {code}",
            "push {entry}",
            "iretq",
            task = in(reg) selector::TASK,
            data = const selector::USER_DATA,
            stack = in(reg) stack,
            flags = const IOPL_3,
            code = const selector::USER_CODE,
            entry = in(reg) in_ring_3 as *const (),
            options(noreturn),
        )
    }
}

extern "C" fn in_ring_3() -> ! {
    let loops = cmdline::number("loops", 100_000_000).max(1);
    let start = cpu::tsc();
    // SAFETY: a loop without effect.
    unsafe { asm!("2:", "dec {loops}", "jnz 2b", loops = inout(reg) loops => _, options(nomem, nostack)) }
    let took = cpu::tsc() - start;
    if cpu::ring() == 3 {
        print!("user: ", loops, " loops took ", took, " tsc\nOK user\n");
    } else {
        print!("FAIL user: not in ring 3\n");
    }
    end::end()
}
