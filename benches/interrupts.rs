//! What the ways to wire a machine cost: KVM's full interrupt chip or the split one, lines or messages, doorbells in the
//! kernel or exits, and the order in which they are made. ARCHITECTURE.md ("Interrupts") says what was chosen.
//!
//! ```text
//!   create ─────► first exit ── interrupt: eventfd ─► guest ─► exit ── doorbell: guest's write ─► guest goes on ── release
//! ```
//!
//! `cargo bench --bench interrupts [-- RUNS]`. All rows take turns; p50 (p90).

#[path = "common/mod.rs"]
mod common;

use std::time::Instant;

use common::{Failure, Samples};
use kvm_bindings::{
    CpuId, KVM_CAP_SPLIT_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KvmIrqRouting, kvm_enable_cap,
    kvm_irq_routing_entry, kvm_irqchip, kvm_userspace_memory_region,
};
use kvm_ioctls::{IoEventAddress, Kvm, NoDatamatch, VcpuExit, VcpuFd, VmFd};
use rvmm::memory::{Memory, Pages, allocate};
use rvmm::sys::release;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

/// As many as a machine with a disk, a link, entropy and a socket.
const DEVICES: u32 = 4;
const MEMORY: u64 = 256 << 20;
/// Where memory has a hole below 1 MiB, which a guest in real mode can write to.
const DOORBELL: u64 = 0xa_0000;
const VECTOR: u8 = 0x20;
/// The first pin that the legacy interrupt controllers have no part in.
const PIN: u32 = 16;
const INTERRUPTS: usize = 200;
const KICKS: u16 = 1000;

/// The guest, in real mode at 0x1000: an x2APIC that is switched on, then as many sleeps as are wanted, then the doorbell.
#[rustfmt::skip]
const GUEST: &[u8] = &[
    0x66, 0xb9, 0x1b, 0, 0, 0,              // mov ecx, IA32_APIC_BASE
    0x66, 0xb8, 0x00, 0x0d, 0xe0, 0xfe,     // mov eax, 0xfee00d00
    0x66, 0x31, 0xd2, 0x0f, 0x30,           // xor edx, edx; wrmsr
    0x66, 0xb9, 0x0f, 0x08, 0, 0,           // mov ecx, 0x80f (spurious interrupt vector)
    0x66, 0xb8, 0xff, 0x01, 0, 0,           // mov eax, 0x1ff
    0x0f, 0x30,                             // wrmsr
    0xfa, 0xe4, 0x10,                       // sleep: cli; in al, 0x10 (1: sleep once more)
    0x84, 0xc0, 0x74, 0x04,                 // test al, al; jz doorbell
    0xfb, 0xf4,                             // sti; hlt
    0xeb, 0xf5,                             // jmp sleep
    0xfa,                                   // doorbell: cli
    0xb8, (DOORBELL >> 4) as u8, (DOORBELL >> 12) as u8, 0x8e, 0xd8, // mov ax, DOORBELL >> 4; mov ds, ax
    0xb9, KICKS as u8, (KICKS >> 8) as u8,  // mov cx, KICKS
    0x66, 0xa3, 0, 0,                       // again: mov [0], eax
    0xe2, 0xfa,                             // loop again
    0xe6, 0x12, 0xf4,                       // out 0x12, al; hlt
];
/// The handler, at 0x1100: tells that it is there, then ends the interrupt (x2APIC's register 0x80b).
#[rustfmt::skip]
const HANDLER: &[u8] = &[
    0xe6, 0x11,                             // out 0x11, al
    0x66, 0xb9, 0x0b, 0x08, 0, 0,           // mov ecx, 0x80b
    0x66, 0x31, 0xc0, 0x66, 0x31, 0xd2,     // xor eax, eax; xor edx, edx
    0x0f, 0x30, 0xcf,                       // wrmsr; iret
];

#[derive(Clone, Copy, PartialEq)]
enum By {
    /// An eventfd to a pin of the I/O APIC: a kernel thread passes it on.
    Line,
    /// Two system calls, to raise a pin and to lower it.
    Call,
    /// An eventfd to a message for the local APIC.
    Message,
}

struct Design {
    name: &'static str,
    split: bool,
    interrupts: By,
    doorbells: bool,
    memory_last: bool,
    background: bool,
}

const CHOSEN: Design = Design {
    name: "full chip, lines, doorbells, released in the background (rvmm)",
    split: false,
    interrupts: By::Line,
    doorbells: true,
    memory_last: false,
    background: true,
};
const DESIGNS: &[Design] = &[
    CHOSEN,
    Design { name: "the same, released at once", background: false, ..CHOSEN },
    Design { name: "the same, memory after the chip", memory_last: true, ..CHOSEN },
    Design { name: "full chip, calls, doorbells", interrupts: By::Call, ..CHOSEN },
    Design { name: "full chip, messages, doorbells", interrupts: By::Message, ..CHOSEN },
    Design { name: "full chip, lines, exits", doorbells: false, ..CHOSEN },
    Design {
        name: "split chip, messages, doorbells, released at once",
        split: true,
        interrupts: By::Message,
        background: false,
        ..CHOSEN
    },
    Design {
        name: "split chip, messages, exits, released at once",
        split: true,
        interrupts: By::Message,
        doorbells: false,
        background: false,
        ..CHOSEN
    },
    Design { name: "split chip, messages, doorbells", split: true, interrupts: By::Message, ..CHOSEN },
];

#[derive(Default)]
struct Row {
    create: Samples,
    interrupt: Samples,
    doorbell: Samples,
    release: Samples,
}

fn main() -> Result<(), Failure> {
    let runs = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(20);
    let kvm = Kvm::new()?;
    let cpuid = kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)?;
    let mut rows: Vec<Row> = DESIGNS.iter().map(|_| Row::default()).collect();
    for round in 0..=runs {
        for (design, row) in DESIGNS.iter().zip(&mut rows) {
            let mut unused = Row::default();
            measure(design, &kvm, &cpuid, if round == 0 { &mut unused } else { row })?;
        }
    }
    println!("{MEMORY_MIB} MiB, {DEVICES} devices, {runs} runs, p50 (p90)", MEMORY_MIB = MEMORY >> 20);
    println!("create ms | interrupt us | doorbell us | release ms");
    for (design, row) in DESIGNS.iter().zip(&rows) {
        let cells = [&row.create, &row.interrupt, &row.doorbell, &row.release].map(Samples::cell);
        println!("{} | {}", cells.join(" | "), design.name);
    }
    Ok(())
}

fn measure(design: &Design, kvm: &Kvm, cpuid: &CpuId, row: &mut Row) -> Result<(), Failure> {
    let memory =
        allocate(&[(GuestAddress(0), DOORBELL), (GuestAddress(1 << 20), MEMORY)], Pages::Transparent)?;
    memory.write_slice(GUEST, GuestAddress(0x1000))?;
    memory.write_slice(HANDLER, GuestAddress(0x1100))?;
    memory.write_slice(&[0x00, 0x11, 0, 0], GuestAddress(u64::from(VECTOR) * 4))?;

    let start = Instant::now();
    let (vm, mut vcpu, wires) = create(design, kvm, cpuid, &memory)?;
    wait(&mut vcpu, 0x10, 1)?;
    row.create.0.push(milliseconds(start));

    let mut total = 0.0;
    for left in (0..INTERRUPTS as u8).rev() {
        let start = Instant::now();
        // The guest sleeps only after this: what is measured is the way of the interrupt, not that of the sleeper.
        match design.interrupts {
            By::Call => {
                vm.set_irq_line(PIN, true)?;
                vm.set_irq_line(PIN, false)?;
            }
            _ => wires[0].write(1)?,
        }
        wait(&mut vcpu, 0x11, 0)?;
        total += milliseconds(start);
        wait(&mut vcpu, 0x10, left.min(1))?;
    }
    row.interrupt.0.push(total * 1e3 / INTERRUPTS as f64);

    let start = Instant::now();
    wait(&mut vcpu, 0x12, 0)?;
    row.doorbell.0.push(milliseconds(start) * 1e3 / f64::from(KICKS));

    let start = Instant::now();
    if design.background {
        use std::os::fd::{AsRawFd, BorrowedFd};
        // SAFETY: `vm` lives until after the call.
        release::in_background(unsafe { BorrowedFd::borrow_raw(vm.as_raw_fd()) })?;
    }
    drop((vcpu, vm, wires));
    row.release.0.push(milliseconds(start));
    Ok(())
}

/// Makes a machine; its wires are the interrupts of its devices.
fn create(
    design: &Design,
    kvm: &Kvm,
    cpuid: &CpuId,
    memory: &Memory,
) -> Result<(VmFd, VcpuFd, Vec<EventFd>), Failure> {
    let vm = kvm.create_vm()?;
    if !design.memory_last {
        map(&vm, memory)?;
    }
    if design.split {
        let mut cap = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..Default::default() };
        cap.args[0] = 24;
        vm.enable_cap(&cap)?;
    } else {
        vm.create_irq_chip()?;
    }
    if design.memory_last {
        map(&vm, memory)?;
    }
    let vcpu = vm.create_vcpu(0)?;
    vcpu.set_cpuid2(cpuid)?;
    let mut segments = vcpu.get_sregs()?;
    (segments.cs.base, segments.cs.selector) = (0, 0);
    vcpu.set_sregs(&segments)?;
    let mut registers = vcpu.get_regs()?;
    (registers.rip, registers.rsp, registers.rflags) = (0x1000, 0x8000, 2);
    vcpu.set_regs(&registers)?;
    if design.interrupts == By::Message {
        route_messages(&vm)?
    } else {
        route_lines(&vm)?
    }
    let mut wires = Vec::new();
    for device in 0..DEVICES {
        let wire = EventFd::new(0)?;
        if design.interrupts != By::Call {
            vm.register_irqfd(&wire, PIN + device)?;
        }
        wires.push(wire);
        if design.doorbells {
            let address = IoEventAddress::Mmio(DOORBELL + 0x100 * u64::from(device));
            vm.register_ioevent(&EventFd::new(libc::EFD_NONBLOCK)?, &address, NoDatamatch)?;
        }
    }
    Ok((vm, vcpu, wires))
}

fn map(vm: &VmFd, memory: &Memory) -> Result<(), Failure> {
    for (slot, region) in memory.iter().enumerate() {
        let region = kvm_userspace_memory_region {
            slot: slot as u32,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
            flags: 0,
        };
        // SAFETY: the memory outlives the machine.
        unsafe { vm.set_user_memory_region(region)? };
    }
    Ok(())
}

/// An interrupt is a write of VECTOR to the first vCPU's local APIC.
fn route_messages(vm: &VmFd) -> Result<(), Failure> {
    let mut entries = Vec::new();
    for device in 0..DEVICES {
        let mut entry =
            kvm_irq_routing_entry { gsi: PIN + device, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
        entry.u.msi.address_lo = 0xfee0_0000;
        entry.u.msi.data = VECTOR.into();
        entries.push(entry);
    }
    let table = KvmIrqRouting::from_entries(&entries).map_err(|error| format!("{error:?}"))?;
    Ok(vm.set_gsi_routing(&table)?)
}

/// An interrupt is an edge at a pin of the I/O APIC, which has VECTOR for it.
fn route_lines(vm: &VmFd) -> Result<(), Failure> {
    let mut chip = kvm_irqchip { chip_id: KVM_IRQCHIP_IOAPIC, ..Default::default() };
    vm.get_irqchip(&mut chip)?;
    for device in 0..DEVICES {
        // SAFETY: KVM has filled in what `chip_id` says.
        unsafe { chip.chip.ioapic.redirtbl[(PIN + device) as usize].bits = VECTOR.into() };
    }
    Ok(vm.set_irqchip(&chip)?)
}

/// Runs the guest until it is at `port`, and answers `value` if it reads there.
fn wait(vcpu: &mut VcpuFd, port: u16, value: u8) -> Result<(), Failure> {
    loop {
        let exit = match vcpu.run() {
            Err(error) if error.errno() == libc::EINTR => continue,
            exit => exit?,
        };
        match exit {
            VcpuExit::IoIn(at, data) if at == port => {
                data[0] = value;
                return Ok(());
            }
            VcpuExit::IoOut(at, _) if at == port => return Ok(()),
            VcpuExit::MmioWrite(..) => {}
            exit => return Err(format!("the guest is not at port {port:#x}: {exit:?}").into()),
        }
    }
}

fn milliseconds(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}
