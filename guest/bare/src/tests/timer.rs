//! The local APIC's timer: one-shot, periodic, and TSC deadline where there is one (Intel SDM volume 3,
//! 11.5.4).

use crate::interrupts::{self, TIMER};
use crate::{Result, apic, check, cmdline, cpu, print};

const TSC_DEADLINE: u32 = 0x6e0;

pub fn run() -> Result {
    let ticks = cmdline::number("ticks", 10);
    let period = cmdline::number("period", 2_000_000) as u32;
    apic::enable();
    print!("timer: ", if apic::is_x2apic() { "x2apic" } else { "xapic" }, "\n");

    let start = cpu::tsc();
    apic::start_timer(apic::TIMER_ONE_SHOT, period);
    check("the one-shot timer fired", interrupts::spin(|| interrupts::count(TIMER) > 0), true)?;
    let one_shot = cpu::tsc() - start;
    print!("timer: one shot of ", period, " took ", one_shot, " tsc\n");
    check("the count after a one-shot", apic::read(apic::TIMER_CURRENT), 0u32)?;
    check("interrupts of a one-shot timer", interrupts::count(TIMER), 1u64)?;

    apic::start_timer(apic::TIMER_PERIODIC, period);
    let (start, before) = (cpu::tsc(), interrupts::count(TIMER));
    while interrupts::count(TIMER) - before < ticks {
        cpu::sleep();
    }
    apic::stop_timer();
    let periodic = cpu::tsc() - start;
    cpu::let_interrupts_in();
    print!("timer: ", ticks, " ticks took ", periodic, " tsc\n");

    apic::write(apic::LVT_TIMER, apic::TIMER_TSC_DEADLINE | u32::from(TIMER));
    let offered = cpu::cpuid(1, 0)[2] & 1 << 24 != 0;
    if !offered || apic::read(apic::LVT_TIMER) & apic::TIMER_TSC_DEADLINE == 0 {
        print!("timer: no tsc deadline\n");
        return Ok(());
    }
    let before = interrupts::count(TIMER);
    let deadline = cpu::tsc() + one_shot;
    // SAFETY: this register only arms the timer.
    unsafe { cpu::write_msr(TSC_DEADLINE, deadline) };
    check("the deadline timer fired", interrupts::spin(|| interrupts::count(TIMER) > before), true)?;
    check("the deadline timer fired too early", cpu::tsc() < deadline, false)?;
    print!("timer: deadline met\n");
    Ok(())
}
