//! Abuses a virtio device in every way that the registers and rings allow, then asks it for ordinary
//! service.
//!
//! `case=NAME` is one abuse, without it all follow one another. After each, the device may have stopped
//! (DEVICE_NEEDS_RESET, virtio 1.2, 2.1.2) or not have noticed; a reset must bring it back. `needs-reset`
//! on the command line insists on the former.

use crate::memory::{self, PAGE, Shared, pages};
use crate::virtio::{
    self, ACKNOWLEDGE, Buffer, DRIVER, DRIVER_OK, Device, FEATURES_OK, INDIRECT, INDIRECT_DESC, NEEDS_RESET,
    NEXT, Queue,
};
use crate::{Hex, Result, check, cmdline, cpu, print, tests::blk, tests::net, tests::rng};

/// An address that no machine has RAM at.
const NOWHERE: u64 = 0x7fff_ffff_f000;
/// The last page of the address space: what starts here with more than a page wraps around.
const WRAPS: u64 = 0xffff_ffff_ffff_f000;
const QUEUE_SIZE: u16 = 16;

type Abuse = fn(&mut Device) -> Result<Option<Queue>>;

const CASES: [(&str, Abuse); 45] = [
    ("descriptors-outside", |device| rings(device, |[_, available, used]| [NOWHERE, available, used])),
    ("available-outside", |device| rings(device, |[descriptors, _, used]| [descriptors, NOWHERE, used])),
    ("used-outside", |device| rings(device, |[descriptors, available, _]| [descriptors, available, NOWHERE])),
    ("rings-wrap", |device| rings(device, |_| [WRAPS + 0xff0, WRAPS + 0xffe, WRAPS + 0xffc])),
    ("rings-unaligned", |device| rings(device, |[d, available, used]| [d + 1, available + 1, used + 1])),
    ("rings-in-device", |device| {
        let registers = device.registers.address();
        rings(device, |_| [registers, registers, registers])
    }),
    ("rings-overlap", |device| rings(device, |[descriptors, _, _]| [descriptors, descriptors, descriptors])),
    ("loop-of-one", |device| chain(device, |index| (16, Some(index)))),
    ("loop-of-two", |device| chain(device, |index| (16, Some(index ^ 1)))),
    ("next-outside", |device| chain(device, |_| (16, Some(0x7fff)))),
    ("next-just-outside", |device| chain(device, |_| (16, Some(QUEUE_SIZE)))),
    ("zero-length", |device| piece(device, |buffer| buffer.size = 0)),
    ("huge-length", |device| piece(device, |buffer| buffer.size = u32::MAX)),
    ("huge-total", |device| {
        chain(device, |index| (0x4000_0000, (index + 1 < QUEUE_SIZE).then_some(index + 1)))
    }),
    ("buffer-outside", |device| piece(device, |buffer| buffer.address = NOWHERE)),
    ("buffer-wraps", |device| {
        piece(device, |buffer| *buffer = Buffer { address: WRAPS + 0xff0, size: 0x1000, ..*buffer })
    }),
    ("buffer-in-device", |device| {
        let registers = device.registers.address();
        piece(device, |buffer| buffer.address = registers)
    }),
    ("buffer-is-ring", |device| {
        let queue = running(device)?;
        let first = lead(device, &queue, pages(1));
        let size = 4 * PAGE as u32;
        let buffer = Buffer { address: queue.descriptors.address(), size, writable: is_writable(device) };
        finish(device, queue, first, buffer)
    }),
    ("wrong-direction", |device| piece(device, |buffer| buffer.writable = !buffer.writable)),
    ("all-readable", |device| whole(device, false)),
    ("all-writable", |device| whole(device, true)),
    ("one-byte", |device| {
        let mut queue = running(device)?;
        let writable = is_writable(device);
        queue.describe(0, Buffer { address: pages(1).address(), size: 1, writable }, 0, 0);
        queue.offer(0);
        Ok(Some(queue))
    }),
    ("head-outside", |device| {
        let mut queue = running(device)?;
        queue.offer(0x7fff);
        Ok(Some(queue))
    }),
    ("available-jumps", |device| {
        let queue = running(device)?;
        queue.available.write16(2, 1000);
        Ok(Some(queue))
    }),
    ("available-goes-back", |device| {
        let queue = running(device)?;
        queue.available.write16(2, u16::MAX);
        Ok(Some(queue))
    }),
    ("same-head", |device| {
        let mut queue = running(device)?;
        let first = lead(device, &queue, pages(1));
        let buffer = Buffer { address: pages(1).address(), size: 512, writable: is_writable(device) };
        for _ in 1..queue.size {
            queue.offer(0);
        }
        finish(device, queue, first, buffer)
    }),
    ("indirect-unwanted", |device| indirect(device, 0, |_| {})),
    ("indirect-nested", |device| {
        indirect(device, INDIRECT_DESC, |table| {
            virtio::describe(table, 0, virtio::readable(table, 32), INDIRECT, 0)
        })
    }),
    ("indirect-loop", |device| {
        indirect(device, INDIRECT_DESC, |table| {
            virtio::describe(table, 0, virtio::readable(table, 16), NEXT, 0)
        })
    }),
    ("indirect-outside", |device| {
        indirect(device, INDIRECT_DESC, |table| {
            virtio::describe(table, 0, virtio::readable(table, 16), NEXT, 9)
        })
    }),
    ("kick-without-queue", |device| {
        device.registers.write32(virtio::QUEUE_NOTIFY, 0);
        device.go()?;
        device.registers.write32(virtio::QUEUE_NOTIFY, 0);
        Ok(None)
    }),
    ("kick-unknown-queue", |device| {
        let queue = running(device)?;
        for index in [7, 77, 0xffff, 0x1_0000, u32::MAX] {
            device.registers.write32(virtio::QUEUE_NOTIFY, index);
        }
        Ok(Some(queue))
    }),
    ("kick-storm", |device| {
        let queue = running(device)?;
        for _ in 0..500 {
            queue.notify();
        }
        Ok(Some(queue))
    }),
    ("address-storm", |device| {
        for _ in 0..2000 {
            device.registers.write32(virtio::QUEUE_DESCRIPTORS, 1);
        }
        Ok(None)
    }),
    ("size-zero", |device| size(device, 0)),
    ("size-three", |device| size(device, 3)),
    ("size-huge", |device| size(device, 0x8000)),
    ("size-beyond-16-bits", |device| size(device, 0x1_0001)),
    ("select-unknown-queue", |device| {
        let registers = device.registers;
        for index in [7, 0xffff, u32::MAX] {
            registers.write32(virtio::QUEUE_SELECT, index);
            check("the size limit of an unknown queue", registers.read32(virtio::QUEUE_SIZE_MAX), 0u32)?;
            registers.write32(virtio::QUEUE_SIZE, 16);
            registers.write32(virtio::QUEUE_READY, 1);
        }
        device.go()?;
        Ok(None)
    }),
    ("status-order", |device| {
        for status in [DRIVER_OK, FEATURES_OK, ACKNOWLEDGE, DRIVER_OK | DRIVER, 0xff, u32::MAX, DRIVER] {
            device.set_status(status);
        }
        Ok(None)
    }),
    ("features-not-offered", |device| {
        device.set_status(0);
        device.set_status(ACKNOWLEDGE);
        device.set_status(ACKNOWLEDGE | DRIVER);
        for half in [0, 1, 2, u32::MAX] {
            device.registers.write32(virtio::DRIVER_FEATURES_SELECT, half);
            device.registers.write32(virtio::DRIVER_FEATURES, u32::MAX);
        }
        device.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
        check("features that were not offered are refused", device.status() & FEATURES_OK, 0u32)?;
        Ok(None)
    }),
    ("features-late", |device| {
        let queue = running(device)?;
        device.registers.write32(virtio::DRIVER_FEATURES_SELECT, 0);
        device.registers.write32(virtio::DRIVER_FEATURES, u32::MAX);
        Ok(Some(queue))
    }),
    ("rings-move", |device| {
        let queue = running(device)?;
        for register in [virtio::QUEUE_DESCRIPTORS, virtio::QUEUE_AVAILABLE, virtio::QUEUE_USED] {
            device.registers.write32(register + 4, 0x7fff);
        }
        device.registers.write32(virtio::QUEUE_READY, 0);
        device.registers.write32(virtio::QUEUE_READY, 1);
        Ok(Some(queue))
    }),
    ("reset-while-busy", |device| {
        let queue = piece(device, |_| {})?;
        if let Some(queue) = queue {
            queue.notify();
        }
        device.set_status(0);
        Ok(None)
    }),
    ("registers-of-other-sizes", |device| {
        let registers = device.registers;
        for offset in (0..0x110).step_by(4) {
            registers.read8(offset + 1);
            registers.read16(offset + 2);
            registers.read64(offset);
            registers.read32(offset + 1);
        }
        for offset in [virtio::QUEUE_SELECT, virtio::QUEUE_NOTIFY, virtio::STATUS, virtio::CONFIG, 0xffc] {
            registers.write8(offset, 0xff);
            registers.write16(offset + 2, 0xffff);
            registers.write64(offset, u64::MAX);
            registers.read32(offset);
        }
        registers.write64(0xffc, u64::MAX);
        registers.read64(0xffc);
        Ok(None)
    }),
];

pub fn run() -> Result {
    let wanted = cmdline::value("case");
    let mut device = Device::find(0)?;
    print!("hostile: device ", device.id, "\n");
    serve(&mut device)?;
    let mut cases = 0u64;
    for (name, abuse) in &CASES {
        if wanted.is_some_and(|wanted| wanted != name.as_bytes()) {
            continue;
        }
        cases += 1;
        device.set_status(0);
        // SAFETY: the last case is over, with all its queues, and after the reset the device has no
        // memory either.
        unsafe { memory::release_pages() };
        print!("hostile: ", name, ": ");
        device.begin(0)?;
        let queue = abuse(&mut device)?;
        let status = settle(&device, queue.as_ref());
        print!("status ", Hex(status.into()));
        if cmdline::flag("needs-reset") {
            check("the device needs a reset", status & NEEDS_RESET, NEEDS_RESET)?;
        }
        serve(&mut device)?;
        print!(", served again\n");
    }
    check("no such case", cases == 0, false)
}

/// Kicks, then gives the device a while to notice; gives its status.
fn settle(device: &Device, queue: Option<&Queue>) -> u32 {
    let used = queue.map(|queue| {
        let used = queue.used.read16(2);
        cpu::fence();
        queue.notify();
        (queue, used)
    });
    let start = cpu::tsc();
    loop {
        let status = device.status();
        let answered = used.as_ref().is_some_and(|(queue, used)| queue.used.read16(2) != *used);
        if status & NEEDS_RESET != 0 || answered || cpu::tsc() - start > 20_000_000 {
            return status;
        }
    }
}

/// Resets the device and asks it for ordinary service.
fn serve(device: &mut Device) -> Result {
    match device.id {
        virtio::BLOCK => blk::Disk::open(device)?.read(0, 1),
        virtio::ENTROPY => rng::Source::open(device)?.fill(pages(1), 16).map(|_| ()),
        virtio::NET => net::Card::open(device)?.send_arp(0x0a00_020f, 0x0a00_0202),
        _ => {
            device.begin(0)?;
            device.queue(0, QUEUE_SIZE)?;
            device.go()
        }
    }
}

/// The queue to abuse: the one that the device serves without waiting for the outside.
fn target(device: &Device) -> u16 {
    if device.id == virtio::NET { 1 } else { 0 }
}

/// Whether the device writes the main piece of a request.
fn is_writable(device: &Device) -> bool {
    device.id != virtio::NET
}

fn running(device: &Device) -> Result<Queue> {
    let queue = device.queue(target(device), QUEUE_SIZE)?;
    device.go()?;
    Ok(queue)
}

/// Writes what must come first in a request of this device; gives the descriptor for the main piece.
fn lead(device: &Device, queue: &Queue, memory: Shared) -> u16 {
    if device.id != virtio::BLOCK {
        return 0;
    }
    queue.describe(0, virtio::readable(memory, 16), NEXT, 1);
    1
}

/// Ends a request with its main piece and what must come last, and offers it.
fn finish(device: &Device, mut queue: Queue, first: u16, buffer: Buffer) -> Result<Option<Queue>> {
    if device.id == virtio::BLOCK {
        queue.describe(first, buffer, NEXT, first + 1);
        queue.describe(first + 1, virtio::writable(pages(1), 1), 0, 0);
    } else {
        queue.describe(first, buffer, 0, 0);
    }
    queue.offer(0);
    Ok(Some(queue))
}

/// A proper request in rings at other addresses.
fn rings(device: &Device, addresses: impl FnOnce([u64; 3]) -> [u64; 3]) -> Result<Option<Queue>> {
    let queue = device.set_up(target(device), QUEUE_SIZE, addresses)?;
    device.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    let first = lead(device, &queue, pages(1));
    finish(
        device,
        queue,
        first,
        Buffer { address: pages(1).address(), size: 512, writable: is_writable(device) },
    )
}

/// A request whose main piece is altered.
fn piece(device: &Device, alter: impl FnOnce(&mut Buffer)) -> Result<Option<Queue>> {
    let queue = running(device)?;
    let first = lead(device, &queue, pages(1));
    let mut buffer = Buffer { address: pages(1).address(), size: 512, writable: is_writable(device) };
    alter(&mut buffer);
    finish(device, queue, first, buffer)
}

/// A request of all descriptors: `link` gives the size of each, and which is next.
fn chain(device: &Device, link: impl Fn(u16) -> (u32, Option<u16>)) -> Result<Option<Queue>> {
    let mut queue = running(device)?;
    let memory = pages(1);
    let first = lead(device, &queue, pages(1));
    for index in first..queue.size {
        let (size, next) = link(index);
        let buffer = Buffer { address: memory.address(), size, writable: is_writable(device) };
        queue.describe(index, buffer, next.map_or(0, |_| NEXT), next.unwrap_or(0));
    }
    queue.offer(0);
    Ok(Some(queue))
}

/// A request of three pieces, all in one direction.
fn whole(device: &Device, writable: bool) -> Result<Option<Queue>> {
    let mut queue = running(device)?;
    for (index, size) in [(0, 16), (1, 512), (2, 1)] {
        let buffer = Buffer { address: pages(1).address(), size, writable };
        queue.describe(index, buffer, if index == 2 { 0 } else { NEXT }, index + 1);
    }
    queue.offer(0);
    Ok(Some(queue))
}

/// A request in an indirect table of two descriptors, the first altered, after agreeing on `features`.
fn indirect(device: &mut Device, features: u64, alter: impl FnOnce(Shared)) -> Result<Option<Queue>> {
    device.begin(features)?;
    let mut queue = running(device)?;
    let (table, memory) = (pages(1), pages(1));
    let buffer = Buffer { address: memory.address(), size: 16, writable: is_writable(device) };
    virtio::describe(table, 0, buffer, NEXT, 1);
    virtio::describe(table, 1, buffer, 0, 0);
    alter(table);
    queue.describe(0, virtio::readable(table, 32), INDIRECT, 0);
    queue.offer(0);
    Ok(Some(queue))
}

/// A queue with a size that the specification forbids.
fn size(device: &Device, size: u32) -> Result<Option<Queue>> {
    let queue = device.set_up(target(device), QUEUE_SIZE, |addresses| {
        device.registers.write32(virtio::QUEUE_SIZE, size);
        addresses
    })?;
    device.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    let first = lead(device, &queue, pages(1));
    finish(
        device,
        queue,
        first,
        Buffer { address: pages(1).address(), size: 512, writable: is_writable(device) },
    )
}
