//! A virtio network device (virtio 1.2, 5.1): sends one ARP request, then sends `frames=N` frames back to
//! where they came from.
//!
//! `ip=` and `to=` are the addresses in the ARP request (RFC 826), as numbers: `to=0x0a000001` asks for
//! 10.0.0.1.

use crate::memory::{Shared, pages};
use crate::virtio::{self, Device, Irq, Queue, readable, writable};
use crate::{Result, check, cmdline, cpu, print};

const MAC: u64 = 1 << 5;
/// Size of `struct virtio_net_hdr` with VERSION_1.
const HEADER: u64 = 12;
const BUFFER: u64 = 2048;
const RECEIVE_BUFFERS: u16 = 16;
const ARP_SIZE: u64 = 42;

pub struct Card {
    receive: Queue,
    transmit: Queue,
    irq: Irq,
    received: Shared,
    frame: Shared,
    mac: [u8; 6],
}

impl Card {
    pub fn open(device: &mut Device) -> Result<Card> {
        let features = device.begin(MAC)?;
        let mut receive = device.queue(0, RECEIVE_BUFFERS)?;
        let transmit = device.queue(1, 16)?;
        let received = pages(u64::from(RECEIVE_BUFFERS) * BUFFER / 4096);
        for index in 0..receive.size {
            receive.add(index, &[writable(received.at(u64::from(index) * BUFFER), BUFFER)]);
        }
        device.go()?;
        receive.kick();
        let mut mac = [0x02, 0, 0, 0, 0, 1];
        if features & MAC != 0 {
            for (offset, byte) in (0..).zip(&mut mac) {
                *byte = device.registers.read8(virtio::CONFIG + offset);
            }
        }
        Ok(Card { receive, transmit, irq: device.route(), received, frame: pages(1), mac })
    }

    /// Sends `size` bytes that are in memory behind a header of zeroes.
    fn send(&mut self, header: Shared, size: u64) -> Result {
        for offset in (0..HEADER).step_by(4) {
            header.write32(offset, 0);
        }
        let written = self.transmit.request(&mut self.irq, &[readable(header, HEADER + size)])?;
        check("bytes written by a transmission", written, 0u32)
    }

    /// Asks everybody who has the address `to`.
    pub fn send_arp(&mut self, ip: u32, to: u32) -> Result {
        let frame = self.frame.at(HEADER);
        for offset in 0..6 {
            let byte = self.mac[offset as usize];
            frame.write8(offset, 0xff);
            frame.write8(6 + offset, byte);
            frame.write8(22 + offset, byte);
        }
        // ARP; Ethernet, IPv4, address sizes 6 and 4, request.
        for (offset, value) in [(12, 0x0806u16), (14, 1), (16, 0x0800), (18, 0x0604), (20, 1)] {
            frame.write16(offset, value.swap_bytes());
        }
        frame.write32(28, ip.swap_bytes());
        frame.write32(38, to.swap_bytes());
        self.send(self.frame, ARP_SIZE)
    }

    /// Waits for a frame and sends it back, with its two hardware addresses swapped.
    fn echo(&mut self) -> Result<u32> {
        let used = match self.receive.take() {
            Some(used) => used,
            None => self.irq.until(|| self.receive.take())?,
        };
        check("a received frame has a header", u64::from(used.written) > HEADER + 14, true)?;
        let buffer = self.received.at(u64::from(used.head) * BUFFER);
        // 1 by the specification; QEMU 7.2 leaves it 0.
        check("a received frame has one buffer", buffer.read16(10) <= 1, true)?;
        for offset in HEADER..HEADER + 6 {
            let byte = buffer.read8(offset + 6);
            buffer.write8(offset, byte);
            buffer.write8(offset + 6, self.mac[(offset - HEADER) as usize]);
        }
        self.send(buffer, u64::from(used.written) - HEADER)?;
        self.receive.add(used.head, &[writable(buffer, BUFFER)]);
        self.receive.kick();
        Ok(used.written - HEADER as u32)
    }
}

pub fn run() -> Result {
    let mut card = Card::open(&mut Device::find(virtio::NET)?)?;
    print!("net: mac");
    for byte in card.mac {
        print!(" ", crate::Hex(byte.into()));
    }
    print!("\n");
    card.send_arp(cmdline::number("ip", 0x0a00_020f) as u32, cmdline::number("to", 0x0a00_0202) as u32)?;
    print!("net: sent\n");
    let (frames, start) = (cmdline::number("frames", 0), cpu::tsc());
    let mut bytes = 0;
    for _ in 0..frames {
        bytes += u64::from(card.echo()?);
    }
    print!("net: echoed ", frames, " frames, ", bytes, " bytes, in ", cpu::tsc() - start, " tsc\n");
    Ok(())
}
