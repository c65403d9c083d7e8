//! The other CPUs: started by INIT and SIPI (Intel SDM volume 3, 10.4.4), they count together and answer
//! an interrupt to all and one to each alone.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::interrupts::{self, IPI};
use crate::{Result, apic, boot, check, cmdline, cpu, print};

const ADDITIONS: u64 = 100;

static ARRIVED: AtomicU64 = AtomicU64::new(0);
static SUM: AtomicU64 = AtomicU64::new(0);
/// Interrupts that each has taken.
static TAKEN: [AtomicU32; boot::MAX_APS] = [const { AtomicU32::new(0) }; boot::MAX_APS];
static IDS: [AtomicU32; boot::MAX_APS] = [const { AtomicU32::new(u32::MAX) }; boot::MAX_APS];

/// Where boot.rs enters on each further CPU, with its own stack; `index` counts them from 0 as they come.
pub extern "C" fn ap_main(index: u32) -> ! {
    cpu::take_tables();
    apic::enable();
    IDS[index as usize].store(apic::id(), Ordering::Relaxed);
    for _ in 0..ADDITIONS {
        SUM.fetch_add(1, Ordering::Relaxed);
    }
    ARRIVED.fetch_add(1, Ordering::Release);
    loop {
        cpu::sleep();
        TAKEN[index as usize].fetch_add(1, Ordering::Release);
    }
}

pub fn run() -> Result {
    let others = cmdline::number("cpus", 2) - 1;
    apic::enable();
    start_others(others as u32);
    interrupts::spin(|| ARRIVED.load(Ordering::Acquire) >= others);
    let arrived = ARRIVED.load(Ordering::Acquire);
    print!(
        "smp: ",
        if apic::is_x2apic() { "x2apic" } else { "xapic" },
        ", first cpu ",
        apic::id(),
        ", others"
    );
    for id in IDS.iter().take(arrived as usize) {
        print!(" ", id.load(Ordering::Relaxed));
    }
    print!("\n");
    check("other cpus arrived", arrived, others)?;
    check("what the other cpus counted together", SUM.load(Ordering::Relaxed), others * ADDITIONS)?;

    for (index, id) in IDS.iter().enumerate().take(arrived as usize) {
        let id = id.load(Ordering::Relaxed);
        let twice = id == apic::id() || IDS[..index].iter().any(|other| other.load(Ordering::Relaxed) == id);
        check("two cpus have the same apic id", twice, false)?;
    }
    if others > 0 {
        apic::write(apic::ICR, apic::ICR_FIXED | u32::from(IPI));
        interrupts::spin(|| interrupts::count(IPI) >= others);
        check("other cpus that took an interrupt", interrupts::count(IPI), others)?;
    }
    for (id, taken) in IDS.iter().zip(&TAKEN).take(arrived as usize) {
        // Until it has counted the first, both may come in one sleep.
        interrupts::spin(|| taken.load(Ordering::Acquire) >= 1);
        apic::command(id.load(Ordering::Relaxed), IPI.into());
        interrupts::spin(|| taken.load(Ordering::Acquire) >= 2);
        check("interrupts that one cpu took", taken.load(Ordering::Acquire), 2u32)?;
    }
    check("interrupts that all took", interrupts::count(IPI), 2 * others)
}

/// Puts the real-mode code in place and sends INIT and SIPI to all CPUs but this one; with `by-id` to each of so many alone, as
/// operating systems do.
fn start_others(others: u32) {
    unsafe extern "C" {
        static ap_start: u8;
        static ap_end: u8;
    }
    let (start, end) = (&raw const ap_start, &raw const ap_end);
    // SAFETY: the code is between the two symbols; the trampoline's page is RAM that nothing else uses.
    unsafe {
        core::ptr::copy_nonoverlapping(start, boot::TRAMPOLINE as *mut u8, end.offset_from_unsigned(start));
    }
    let by_id = cmdline::flag("by-id");
    let send = |command: u32| match by_id {
        true => (1..=others).for_each(|id| apic::command(id, command & !apic::ICR_OTHERS)),
        false => apic::write(apic::ICR, command),
    };
    send(apic::ICR_INIT);
    pause(10_000_000);
    let page = (boot::TRAMPOLINE >> 12) as u32;
    send(apic::ICR_STARTUP | page);
    pause(200_000);
    if cmdline::flag("sipi2") {
        send(apic::ICR_STARTUP | page);
    }
}

fn pause(tsc: u64) {
    let start = cpu::tsc();
    while cpu::tsc() - start < tsc {}
}
