//! What a hostile driver does, for every device: whatever it is, the device neither panics nor hangs, writes only
//! where a descriptor allowed it, and works again after a reset (virtio 1.2, 2.7, 3.1 and 4.2.2).
//!
//! ```text
//! hostile::suite(|| open_my_device(), |driver| assert_eq!(driver.request(0, &[], 8).len, 8));
//! ```

use std::time::Duration;

use vm_memory::{Bytes, GuestAddress};

use super::{
    ACKNOWLEDGE, BUFFERS, DRIVER, DRIVER_OK, Driver, FEATURES_OK, HIGH, INDIRECT, NEXT, RAM, Ring, WRITE,
};
use crate::bus::BusDevice;
use crate::devices::virtio::VirtioDevice;
use crate::testing::{Random, within};

/// One hostile act against one queue. The driver is started; afterwards it is reset and must work.
type Attack = fn(&mut Driver, usize, &mut Random);

const ATTACKS: [(&str, Attack); 14] = [
    ("rings outside memory", rings_outside),
    ("queue sizes that are not allowed", queue_sizes),
    ("loops", loops),
    ("chains without an end", endless),
    ("empty descriptors", empty),
    ("huge descriptors", huge),
    ("parts in the wrong order", wrong_order),
    ("one-sided chains", one_sided),
    ("indirect tables", indirect),
    ("available index that jumps", index_jumps),
    ("heads out of range", heads_out_of_range),
    ("kicks before the driver is ready", early_kicks),
    ("registers in any order", registers),
    ("random rings", random_rings),
];

/// Plays every attack against a device that `make` makes; `works` asks something ordinary of it and
/// checks the answer.
pub fn suite(
    make: impl Fn() -> Box<dyn VirtioDevice> + Send + 'static,
    works: impl Fn(&mut Driver) + Send + 'static,
) {
    within(Duration::from_secs(300), move || {
        let mut driver = Driver::started(make());
        works(&mut driver);
        let queues = driver.rings.len();
        for (name, attack) in ATTACKS {
            for queue in 0..queues {
                println!("{name}, queue {queue}");
                driver.start(u64::MAX);
                attack(&mut driver, queue, &mut Random(queue as u64));
                driver.start(u64::MAX);
                works(&mut driver);
            }
        }
        println!("a fresh device, reset at once");
        drop(driver);
        let mut driver = Driver::new(make());
        driver.start(0xffff_ffff_0000_0000);
        works(&mut driver);
    });
}

/// The guest-physical addresses that no RAM is at, or that wrap.
const NOWHERE: [u64; 7] =
    [RAM[0].1, RAM[0].1 + 0x1000, HIGH + RAM[1].1, HIGH - 16, 1 << 40, u64::MAX - 15, !0xffff];

fn rings_outside(driver: &mut Driver, queue: usize, _: &mut Random) {
    let good = driver.rings[queue].clone();
    for bad in NOWHERE.into_iter().chain([RAM[0].1 - 16, 3, HIGH + RAM[1].1 - 2]) {
        for which in 0..3 {
            driver.negotiate(u64::MAX);
            let mut ring = Ring { ..good.clone() };
            *[&mut ring.descriptors, &mut ring.available, &mut ring.used][which] = bad;
            driver.set_ring(queue as u32, &ring);
            driver.write(0x70, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
            driver.kick(queue);
        }
    }
}

fn queue_sizes(driver: &mut Driver, queue: usize, _: &mut Random) {
    let good = driver.rings[queue].clone();
    for size in [0, 1, 3, 255, 257, 0x7fff, 0x8000, 0xffff, 0x1_0000, 0x1_0100, u32::MAX] {
        driver.negotiate(u64::MAX);
        driver.set_ring(queue as u32, &good);
        driver.write(0x38, size);
        driver.write(0x70, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        driver.kick(queue);
    }
}

fn loops(driver: &mut Driver, queue: usize, _: &mut Random) {
    let table = driver.rings[queue].descriptors;
    for flags in [NEXT, NEXT | WRITE] {
        driver.start(u64::MAX);
        driver.descriptor(table, 0, BUFFERS, 512, flags, 0);
        driver.offer(queue, 0);
        driver.kick(queue);
        driver.start(u64::MAX);
        driver.descriptor(table, 0, BUFFERS, 16, NEXT, 1);
        driver.descriptor(table, 1, BUFFERS + 16, 512, flags, 2);
        driver.descriptor(table, 2, BUFFERS + 528, 512, flags, 1);
        driver.offer(queue, 0);
        driver.kick(queue);
    }
}

fn endless(driver: &mut Driver, queue: usize, _: &mut Random) {
    let Ring { descriptors: table, size, .. } = driver.rings[queue];
    for next in [size, size + 1, u16::MAX] {
        driver.start(u64::MAX);
        driver.descriptor(table, 0, BUFFERS, 16, NEXT, 1);
        driver.descriptor(table, 1, BUFFERS + 16, 513, WRITE | NEXT, next);
        driver.offer(queue, 0);
        driver.kick(queue);
    }
}

fn empty(driver: &mut Driver, queue: usize, _: &mut Random) {
    let table = driver.rings[queue].descriptors;
    for (first, second) in [(0, 0), (0, WRITE), (WRITE, WRITE)] {
        for (a, b) in [(0, 0), (16, 0), (0, 513)] {
            for address in [BUFFERS, 0, u64::MAX, RAM[0].1] {
                driver.start(u64::MAX);
                let place = |len| if len == 0 { address } else { BUFFERS };
                driver.descriptor(table, 0, place(a), a, first | NEXT, 1);
                driver.descriptor(table, 1, place(b), b, second, 0);
                driver.offer(queue, 0);
                driver.kick(queue);
                driver.start(u64::MAX);
                driver.descriptor(table, 0, address, 0, first, 0);
                driver.offer(queue, 0);
                driver.kick(queue);
            }
        }
    }
}

fn huge(driver: &mut Driver, queue: usize, _: &mut Random) {
    let table = driver.rings[queue].descriptors;
    for address in NOWHERE.into_iter().chain([0, BUFFERS, RAM[0].1 - 1, HIGH]) {
        for len in [1, 17, 0x1000, 0x10_0001, 0x7fff_ffff, 0x8000_0000, u32::MAX - 15, u32::MAX] {
            for flags in [0, WRITE] {
                if flags == WRITE && address < RAM[0].1 && u64::from(len) < RAM[0].1 {
                    continue;
                }
                driver.start(u64::MAX);
                driver.descriptor(table, 0, BUFFERS, 16, NEXT, 1);
                driver.descriptor(table, 1, address, len, flags | NEXT, 2);
                driver.descriptor(table, 2, address, len, WRITE, 0);
                driver.offer(queue, 0);
                driver.kick(queue);
                driver.start(u64::MAX);
                driver.descriptor(table, 0, address, len, flags, 0);
                driver.offer(queue, 0);
                driver.kick(queue);
            }
        }
    }
}

fn wrong_order(driver: &mut Driver, queue: usize, _: &mut Random) {
    let table = driver.rings[queue].descriptors;
    driver.descriptor(table, 0, BUFFERS, 512, WRITE | NEXT, 1);
    driver.descriptor(table, 1, BUFFERS + 512, 16, NEXT, 2);
    driver.descriptor(table, 2, BUFFERS + 1024, 1, WRITE, 0);
    driver.offer(queue, 0);
    driver.kick(queue);
}

fn one_sided(driver: &mut Driver, queue: usize, _: &mut Random) {
    for len in [0, 1, 15, 16, 17, 511, 512, 528, 4096] {
        driver.start(u64::MAX);
        driver.submit(queue, &[&vec![0; len]], &[]);
        driver.start(u64::MAX);
        driver.submit(queue, &[], &[len]);
    }
}

fn indirect(driver: &mut Driver, queue: usize, _: &mut Random) {
    let table = driver.rings[queue].descriptors;
    let inner = BUFFERS + 0x1000;
    // (address, length) of the table: outside, odd, empty, too long, wrapping.
    let tables = [
        (inner, 0),
        (inner, 15),
        (inner, 16),
        (inner, 17),
        (inner, 32),
        (inner, 0x10_0000),
        (inner, u32::MAX),
    ];
    for (address, len) in NOWHERE.into_iter().map(|address| (address, 32)).chain(tables) {
        for flags in [INDIRECT, INDIRECT | NEXT, INDIRECT | WRITE, INDIRECT | NEXT | WRITE] {
            for (inner_flags, next) in
                [(0, 0), (NEXT, 1), (NEXT, 0), (NEXT, 0xffff), (INDIRECT, 0), (INDIRECT | NEXT, 1)]
            {
                driver.start(u64::MAX);
                driver.descriptor(inner, 0, BUFFERS, 16, inner_flags, next);
                driver.descriptor(
                    inner,
                    1,
                    if inner_flags & INDIRECT != 0 { inner } else { BUFFERS + 16 },
                    513,
                    WRITE,
                    0,
                );
                driver.descriptor(table, 0, address, len, flags, 1);
                driver.descriptor(table, 1, BUFFERS + 0x2000, 1, WRITE, 0);
                driver.offer(queue, 0);
                driver.kick(queue);
            }
        }
    }
}

fn index_jumps(driver: &mut Driver, queue: usize, _: &mut Random) {
    let Ring { available, size, .. } = driver.rings[queue];
    for index in [size, size + 1, 0x7fff, 0x8000, 0xffff] {
        driver.start(u64::MAX);
        driver.memory.write_obj(index, GuestAddress(available + 2)).unwrap();
        driver.kick(queue);
        driver.kick(queue);
    }
}

fn heads_out_of_range(driver: &mut Driver, queue: usize, _: &mut Random) {
    let size = driver.rings[queue].size;
    for head in [size, size + 1, 0x8000, 0xffff] {
        driver.start(u64::MAX);
        driver.offer(queue, head);
        driver.kick(queue);
    }
}

fn early_kicks(driver: &mut Driver, queue: usize, _: &mut Random) {
    let ring = driver.rings[queue].clone();
    driver.write(0x70, 0);
    driver.kick(queue);
    driver.negotiate(u64::MAX);
    driver.kick(queue);
    driver.set_ring(queue as u32, &ring);
    driver.kick(queue);
    for queue in [100, u32::MAX] {
        driver.write(0x50, queue);
        driver.work();
    }
    // DRIVER_OK without features, then the other way round.
    driver.write(0x70, 0);
    driver.write(0x70, DRIVER_OK);
    driver.set_ring(queue as u32, &ring);
    driver.kick(queue);
    driver.write(0x70, FEATURES_OK);
    driver.set_ring(queue as u32, &ring);
    driver.kick(queue);
}

fn registers(driver: &mut Driver, queue: usize, random: &mut Random) {
    const OFFSETS: [u64; 24] = [
        0x00, 0x04, 0x08, 0x0c, 0x10, 0x14, 0x20, 0x24, 0x30, 0x34, 0x38, 0x44, 0x50, 0x60, 0x64, 0x70, 0x80,
        0x84, 0x90, 0x94, 0xa0, 0xa4, 0xfc, 0xb0,
    ];
    for round in 0..20_000 {
        if round % 500 == 0 {
            driver.start(u64::MAX);
        }
        let offset = match random.below(8) {
            0 => random.below(0x1000),
            1 => 0x100 + random.below(80),
            _ => random.pick(&OFFSETS),
        };
        let mut data = [0; 8];
        let width = random.pick(&[1, 2, 4, 4, 4, 4, 8, 3]);
        driver.registers.read(offset, &mut data[..width]);
        let value = match random.below(4) {
            0 => random.next(),
            1 => random.pick(&[ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, 15, 0]).into(),
            2 => 0x1_0000 * (queue as u64 + 1) + 0x4000 * random.below(3),
            _ => random.below(300),
        };
        driver.registers.write(offset, &value.to_le_bytes()[..width]);
        if random.once_in(16) {
            driver.work();
        }
    }
}

/// Where random descriptors may lead: the rings themselves and this much of the buffers. The rest is guarded.
const PLAYGROUND: u64 = 0x8000;

/// Random bytes all over the rings and the buffers.
fn random_rings(driver: &mut Driver, queue: usize, random: &mut Random) {
    let guarded = [(BUFFERS + PLAYGROUND, RAM[0].1 - BUFFERS - PLAYGROUND), RAM[1]];
    let guards = guarded.map(|(start, len)| {
        let guard = Random(start).bytes(len as usize);
        driver.memory.write_slice(&guard, GuestAddress(start)).unwrap();
        guard
    });
    for round in 0..3000 {
        // Now and then without event indexes, indirect descriptors or what else the device offers.
        let features = if round % 3 == 0 { 1 << 32 | random.next() } else { u64::MAX };
        driver.start(features);
        let Ring { descriptors: table, available, size, .. } = driver.rings[queue];
        plausible_bytes(driver, BUFFERS, 0x2000, random);
        for index in 0..size.min(64) {
            let (address, len) = random_piece(table, random);
            let flags = match random.below(16) {
                0 => random.next() as u16,
                1 => INDIRECT,
                _ => random.pick(&[0, NEXT, NEXT, WRITE, WRITE | NEXT]),
            };
            let next = if random.once_in(32) { random.next() as u16 } else { random.below(64) as u16 };
            driver.descriptor(table, index, address, len, flags, next);
        }
        for _ in 0..random.below(8) {
            let head = if random.once_in(64) { random.next() as u16 } else { random.below(64) as u16 };
            driver.offer(queue, head);
        }
        if random.once_in(16) {
            driver.memory.write_obj(random.next() as u16, GuestAddress(available + 2)).unwrap();
        }
        driver.kick(queue);
    }
    driver.write(0x70, 0);
    for ((start, _), guard) in guarded.into_iter().zip(guards) {
        let mut after = vec![0; guard.len()];
        driver.memory.read_slice(&mut after, GuestAddress(start)).unwrap();
        assert!(after == guard, "the device wrote where no descriptor led");
    }
}

/// A piece of the rings or the playground, or one that is not all in RAM.
fn random_piece(table: u64, random: &mut Random) -> (u64, u32) {
    let (address, end) = match random.below(16) {
        0 => (random.pick(&NOWHERE), u64::MAX),
        1 => (table + random.below(0x1000), table + 0x1_0000),
        _ => (BUFFERS + random.below(0x2000), BUFFERS + PLAYGROUND),
    };
    let len = match random.below(16) {
        0 => return (address, u32::MAX - random.below(0x1000) as u32),
        1 => 0,
        2..8 => random.pick(&[1, 12, 16, 20, 32]),
        _ => random.pick(&[512, 1024, 4096, 513, 1500]),
    };
    (address, len.min((end - address).min(u32::MAX.into()) as u32))
}

/// Bytes that look like requests more often than chance would have it.
fn plausible_bytes(driver: &Driver, at: u64, len: usize, random: &mut Random) {
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        let word = match random.below(8) {
            0 => random.next(),
            1 => u64::MAX,
            2..5 => random.below(16),
            5 => random.below(4096),
            _ => 0,
        };
        bytes.extend(word.to_le_bytes());
    }
    driver.memory.write_slice(&bytes, GuestAddress(at)).unwrap();
}
