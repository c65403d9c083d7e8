//! Says hello, and what the VMM passed: boot protocol, memory map, ACPI root pointer, command line.

use crate::boot::{self, Protocol};
use crate::memory::RegionKind;
use crate::{Result, cmdline, print, serial::Hex};

pub fn run() -> Result {
    print!("hello from bare metal\n");
    print!("protocol: ", if boot::protocol() == Protocol::Pvh { "pvh" } else { "linux" }, "\n");
    let (mut entries, mut ram) = (0u64, 0u64);
    for region in boot::memory_map() {
        let kind = if region.kind == RegionKind::Ram { " ram" } else { " reserved" };
        print!("memory: ", Hex(region.start), " ", Hex(region.size), kind, "\n");
        entries += 1;
        if region.kind == RegionKind::Ram {
            ram += region.size;
        }
    }
    print!("memory entries: ", entries, "\n", "memory bytes: ", ram, "\n");
    print!("rsdp: ", Hex(boot::rsdp()), "\n", "cmdline: ", cmdline::line(), "\n");
    Ok(())
}
