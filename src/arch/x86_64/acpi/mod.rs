//! ACPI tables of a hardware-reduced machine (ACPI 6.5, chapter 5).
//!
//! ```text
//!  0xe0000 RSDP ─► XSDT ─┬─► FADT ─► DSDT   how to sleep and reset; the devices
//!                        └─► MADT           CPUs and the I/O APIC
//! ```

mod dsdt;

use acpi_tables::Aml;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use vm_memory::GuestAddress;

use super::layout;

const OEM: [u8; 6] = *b"RVMM  ";
const OEM_TABLE: [u8; 8] = *b"RVMM    ";
const OEM_REVISION: u32 = 1;
/// Bytes before the body of every table.
const TABLE_HEADER: u32 = 36;
/// Tables start on multiples of this.
const ALIGN: usize = 16;

/// Value that the reset register wants.
pub const RESET_VALUE: u8 = 1;
/// Sleep type that means power off.
pub const SLEEP_TYPE_OFF: u8 = 5;
/// Bit of the event port for the power button.
pub const EVENT_POWER_BUTTON: u8 = 1;
/// Bit of the event port for a new machine generation.
pub const EVENT_GENERATION: u8 = 2;

/// A virtio device on the memory bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmioDevice {
    /// Guest-physical address of its registers.
    pub base: u32,
    /// Size of its registers in bytes.
    pub size: u32,
    /// Its interrupt.
    pub gsi: u32,
}

/// What the guest is told about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Number of CPUs; their APIC ids count from 0.
    pub cpus: u32,
    /// Virtio devices.
    pub virtio: Vec<MmioDevice>,
    /// There is a serial port at [`layout::SERIAL`].
    pub com1: bool,
    /// There is a keyboard controller at [`layout::I8042`].
    pub i8042: bool,
    /// There is a panic device at [`layout::PVPANIC`].
    pub pvpanic: bool,
    /// Where the generation identifier is.
    pub vmgenid: Option<GuestAddress>,
    /// Where the page of the clock is, which takes a whole page.
    pub vmclock: Option<GuestAddress>,
}

/// The tables, to be written at `rsdp`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tables {
    /// All tables; the root pointer comes first.
    pub bytes: Vec<u8>,
    /// Address of the root pointer.
    pub rsdp: GuestAddress,
}

/// Builds the tables for their place at [`layout::ACPI`]. They may be longer than [`layout::ACPI_SIZE`] when there
/// are very many CPUs; whoever writes them checks that.
pub fn build(config: &Config) -> Tables {
    let mut tables = Placed { bytes: vec![0; Rsdp::len()] };
    let dsdt = tables.add(&dsdt::build(config));
    let fadt = tables.add(&fadt(config, dsdt));
    let madt = tables.add(&madt(config.cpus));
    let xsdt = tables.add(&table(*b"XSDT", 1, &[fadt.to_le_bytes(), madt.to_le_bytes()].concat()));
    let rsdp = bytes(&Rsdp::new(OEM, xsdt));
    tables.bytes[..rsdp.len()].copy_from_slice(&rsdp);
    Tables { bytes: tables.bytes, rsdp: layout::ACPI }
}

/// Tables one after the other.
struct Placed {
    bytes: Vec<u8>,
}

impl Placed {
    /// Appends a table and says at which guest-physical address it is.
    fn add(&mut self, table: &[u8]) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGN), 0);
        let address = layout::ACPI.0 + self.bytes.len() as u64;
        self.bytes.extend_from_slice(table);
        address
    }
}

/// A table with its header and checksum.
fn table(signature: [u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut table = Sdt::new(signature, TABLE_HEADER, revision, OEM, OEM_TABLE, OEM_REVISION);
    table.append_slice(body);
    table.as_slice().to_vec()
}

fn bytes(object: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    object.to_aml_bytes(&mut bytes);
    bytes
}

/// Fixed description (ACPI 6.5, 5.2.9): no fixed hardware but the registers for sleep and reset.
fn fadt(config: &Config, dsdt: u64) -> Vec<u8> {
    const I8042: u16 = 1 << 1;
    const VGA_NOT_PRESENT: u16 = 1 << 2;
    const RTC_NOT_PRESENT: u16 = 1 << 5;
    let port = |offset: u16| {
        let address = u64::from(layout::POWER.start + offset);
        GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, address)
    };
    let i8042 = if config.i8042 { I8042 } else { 0 };
    let mut builder = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Wbinvd)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    builder.iapc_boot_arch = (VGA_NOT_PRESENT | RTC_NOT_PRESENT | i8042).into();
    builder.sleep_control_reg = port(0);
    builder.sleep_status_reg = port(1);
    builder.reset_reg = port(2);
    builder.reset_value = RESET_VALUE;
    bytes(&builder.finalize())
}

/// CPUs and interrupt chip (ACPI 6.5, 5.2.12). There is no 8259.
fn madt(cpus: u32) -> Vec<u8> {
    const ENABLED: u32 = 1;
    let mut body = [(layout::LAPIC as u32).to_le_bytes(), 0u32.to_le_bytes()].concat();
    for id in 0..cpus {
        let flags = ENABLED.to_le_bytes();
        match u8::try_from(id) {
            // Processor local APIC. Id 255 means all of them and is not to be used.
            Ok(id @ ..=254) => body.extend([[0, 8, id, id], flags].concat()),
            // Processor local x2APIC.
            _ => body.extend([[9, 16, 0, 0], id.to_le_bytes(), flags, id.to_le_bytes()].concat()),
        }
    }
    let address = (layout::IOAPIC as u32).to_le_bytes();
    body.extend([[1, 12, 0, 0], address, 0u32.to_le_bytes()].concat());
    table(*b"APIC", 5, &body)
}

#[cfg(test)]
mod tests;
