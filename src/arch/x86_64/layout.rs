//! The guest-physical address map and the port map, in one place.
//!
//! ```text
//!  0x0000_0000 ┌───────────────────────────┐
//!              │ boot structures, cmdline  │ below 640 KiB
//!  0x000a_0000 ├───────────────────────────┤
//!              │ reserved: ACPI at 0xe0000 │
//!  0x0010_0000 ├───────────────────────────┤
//!              │ RAM: kernel, initrd on top│
//!  0xc000_0000 ├───────────────────────────┤
//!              │ hole: devices             │ virtio 0xd000_0000, IOAPIC 0xfec0_0000, LAPIC 0xfee0_0000
//! 0x1_0000_0000├───────────────────────────┤
//!              │ RAM above 4 GiB           │
//!              └───────────────────────────┘
//! ```

use vm_memory::GuestAddress;

/// Where the hole for devices below 4 GiB starts.
pub const HOLE_START: u64 = 0xc000_0000;
/// Where it ends and RAM continues.
pub const HOLE_END: u64 = 0x1_0000_0000;

/// Global descriptor table of the boot CPU.
pub const GDT: GuestAddress = GuestAddress(0x500);
/// PVH start information.
pub const PVH_INFO: GuestAddress = GuestAddress(0x6000);
/// Linux boot parameters, the zero page.
pub const ZERO_PAGE: GuestAddress = GuestAddress(0x7000);
/// Stack that the boot CPU starts with; it grows down.
pub const BOOT_STACK: u64 = 0x8ff0;
/// Page tables of the boot CPU, at most seven pages.
pub const PAGE_TABLES: GuestAddress = GuestAddress(0x9000);
/// Kernel command line.
pub const COMMAND_LINE: GuestAddress = GuestAddress(0x2_0000);
/// Bytes of the command line at most, with its final zero: Linux on x86 cuts what is longer (COMMAND_LINE_SIZE).
pub const COMMAND_LINE_SIZE: usize = 2048;
/// End of the RAM that real-mode software may use.
pub const LOW_RAM_END: u64 = 0xa_0000;
/// ACPI tables; a scan for the root pointer finds it here.
pub const ACPI: GuestAddress = GuestAddress(0xe_0000);
/// Bytes for ACPI tables.
pub const ACPI_SIZE: usize = 0x1_e000;
/// The page that says when the machine went on from a saved state (VMClock).
pub const VMCLOCK: GuestAddress = GuestAddress(0xf_e000);
/// The page that holds the machine's generation (VMGenID).
pub const VMGENID: GuestAddress = GuestAddress(0xf_f000);
/// Where an x86 CPU starts in real mode, and where Linux jumps to when it restarts a machine that it takes for one
/// with a BIOS (0xf000:0xfff0).
pub const RESET_VECTOR: GuestAddress = GuestAddress(0xf_fff0);
/// Where RAM for the kernel starts.
pub const HIGH_RAM: GuestAddress = GuestAddress(0x10_0000);

/// First register page of the virtio devices.
pub const VIRTIO: u64 = 0xd000_0000;
/// Bytes from one virtio device to the next.
pub const VIRTIO_STRIDE: u64 = 0x1000;
/// Interrupt of the first virtio device; the next ones follow.
pub const VIRTIO_GSI: u32 = 6;
/// As many virtio devices as the interrupt chip has pins left.
pub const VIRTIO_MAX: usize = 18;
/// I/O APIC.
pub const IOAPIC: u64 = 0xfec0_0000;
/// Local APIC.
pub const LAPIC: u64 = 0xfee0_0000;
/// Three pages that Intel's VMX needs.
pub const TSS: u64 = 0xfffb_d000;
/// One page that Intel's VMX needs.
pub const IDENTITY_MAP: u64 = 0xfffb_c000;

/// A run of I/O ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// The first.
    pub start: u16,
    /// How many.
    pub count: u16,
}

const fn ports(start: u16, count: u16) -> Ports {
    Ports { start, count }
}

/// Keyboard controller.
pub const I8042: Ports = ports(0x60, 5);
/// Debug console.
pub const DEBUG_CONSOLE: Ports = ports(0xe9, 1);
/// Boot timer.
pub const BOOT_TIMER: Ports = ports(0x3e9, 1);
/// COM1.
pub const SERIAL: Ports = ports(0x3f8, 8);
/// Interrupt of COM1.
pub const SERIAL_GSI: u32 = 4;
/// Panic device.
pub const PVPANIC: Ports = ports(0x505, 1);
/// Exit status of the guest's command.
pub const EXIT_STATUS: Ports = ports(0x506, 1);
/// ACPI sleep control, sleep status, reset.
pub const POWER: Ports = ports(0x600, 3);
/// Generic event device.
pub const GED: Ports = ports(0x604, 1);
/// Address register of PCI's configuration space; the data ports behind it are nobody's.
pub const PCI_ADDRESS: Ports = ports(0xcf8, 4);
/// Interrupt of the generic event device.
pub const GED_GSI: u32 = 5;

/// The (address, bytes) of RAM for a guest with `size` bytes of it.
pub fn ram_ranges(size: u64) -> Vec<(GuestAddress, u64)> {
    let low = size.min(HOLE_START);
    let mut ranges = vec![(GuestAddress(0), low)];
    if size > low {
        ranges.push((GuestAddress(HOLE_END), size - low));
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_goes_around_the_hole() {
        assert_eq!(ram_ranges(0x1000), [(GuestAddress(0), 0x1000)]);
        assert_eq!(ram_ranges(HOLE_START), [(GuestAddress(0), HOLE_START)]);
        let ranges = [(GuestAddress(0), HOLE_START), (GuestAddress(HOLE_END), 0x1000)];
        assert_eq!(ram_ranges(HOLE_START + 0x1000), ranges);
    }

    #[test]
    fn nothing_overlaps() {
        let places = [
            (GDT.0, 0x100),
            (PVH_INFO.0, 0x1000),
            (ZERO_PAGE.0, 0x1000),
            (ZERO_PAGE.0 + 0x1000, BOOT_STACK - ZERO_PAGE.0 - 0x1000),
            (PAGE_TABLES.0, 7 * 0x1000),
            (COMMAND_LINE.0, COMMAND_LINE_SIZE as u64),
            (LOW_RAM_END, 0),
            (ACPI.0, ACPI_SIZE as u64),
            (VMCLOCK.0, 0x1000),
            (VMGENID.0, 0x1000),
            (HIGH_RAM.0, 0),
            (HOLE_START, 0),
            (VIRTIO, VIRTIO_STRIDE * VIRTIO_MAX as u64),
            (IOAPIC, 0x1000),
            (LAPIC, 0x1000),
            (IDENTITY_MAP, 0x1000),
            (TSS, 0x3000),
            (HOLE_END, 0),
        ];
        assert!(places.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0));
        let mut ports = [I8042, DEBUG_CONSOLE, BOOT_TIMER, SERIAL, PVPANIC, EXIT_STATUS, POWER, GED];
        ports.sort_by_key(|ports| ports.start);
        assert!(ports.windows(2).all(|pair| pair[0].start + pair[0].count <= pair[1].start));
        assert!(SERIAL_GSI < GED_GSI && GED_GSI < VIRTIO_GSI && VIRTIO_GSI as usize + VIRTIO_MAX == 24);
    }
}
