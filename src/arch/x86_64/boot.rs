//! Puts everything in memory that a kernel needs when it starts, as firmware and boot loader would have.

use linux_loader::bootparam::setup_header;
use vm_memory::{ByteValued, Bytes, GuestAddress};

use super::boot_params::BootParams;
use super::kernel::{Kernel, Preference, Protocol};
use super::memory_map::{low_ram_end, ranges};
use super::registers::Start;
use super::{Error, Initrd, acpi, initrd, layout, page_tables, pvh};
use crate::memory::Memory;

/// What is booted and how.
pub struct Config<'a> {
    /// The kernel.
    pub kernel: &'a Kernel,
    /// Which entry is taken when the kernel has several.
    pub preference: Preference,
    /// The initial RAM disk.
    pub initrd: Option<&'a Initrd>,
    /// The kernel command line.
    pub cmdline: &'a str,
    /// What the ACPI tables describe; without it there are none.
    pub acpi: Option<&'a acpi::Config>,
    /// The CPU has 1 GiB pages (CPUID 0x80000001, EDX bit 26).
    pub gib_pages: bool,
}

/// Writes kernel, initial RAM disk, command line and all tables into `memory`, which must read as zeroes, and
/// says how the boot CPU starts.
///
/// # Errors
/// The kernel does not load, or something does not fit into `memory`.
pub fn load(memory: &Memory, config: &Config) -> Result<Start, Error> {
    check_cmdline(config.cmdline)?;
    let entry = config.kernel.load(memory, config.preference)?;
    if let Protocol::BzImage { header, .. } = &entry.protocol {
        check_length(config.cmdline, header.cmdline_size as usize)?;
    }
    let limit = match &entry.protocol {
        Protocol::BzImage { header, .. } => u64::from(header.initrd_addr_max) + 1,
        _ => layout::HOLE_START,
    };
    let initrd = match config.initrd {
        Some(initrd) => Some(load_initrd(memory, initrd, entry.end.0, limit)?),
        None => None,
    };
    write(memory, "command line", layout::COMMAND_LINE, config.cmdline.as_bytes())?;
    let rsdp = config.acpi.map(|acpi| write_acpi(memory, acpi)).transpose()?;
    write(memory, "reset vector", layout::RESET_VECTOR, &reset_code())?;
    let handover = Handover { memory, config, initrd, rsdp };
    let start = match &entry.protocol {
        Protocol::Pvh { entry } => handover.pvh(*entry)?,
        Protocol::Linux64 { entry: start } => handover.linux64(*start, entry.end.0, None)?,
        Protocol::BzImage { entry: start, header } => handover.linux64(*start, entry.end.0, Some(header))?,
    };
    write(memory, "descriptor table", layout::GDT, &start.gdt())?;
    Ok(start)
}

/// What stands at the reset vector, where a BIOS would be: real-mode code that writes the ACPI reset register. With
/// hardware-reduced ACPI, Linux restarts by EFI, which is not there, and then by the BIOS.
fn reset_code() -> [u8; 9] {
    let [low, high] = (layout::POWER.start + 2).to_le_bytes();
    // mov dx, port; mov al, value; out dx, al; hlt; jmp to the hlt
    [0xba, low, high, 0xb0, acpi::RESET_VALUE, 0xee, 0xf4, 0xeb, 0xfd]
}

/// Refuses a command line that does not fit or that a kernel would misread.
pub fn check_cmdline(cmdline: &str) -> Result<(), Error> {
    check_length(cmdline, layout::COMMAND_LINE_SIZE - 1)?;
    match cmdline.char_indices().find(|(_, character)| !matches!(character, ' '..='~' | '\t')) {
        Some((offset, character)) => Err(Error::CmdlineCharacter { character, offset }),
        None => Ok(()),
    }
}

fn check_length(cmdline: &str, limit: usize) -> Result<(), Error> {
    match cmdline.len() {
        length if length > limit => Err(Error::CmdlineLength { length, limit }),
        _ => Ok(()),
    }
}

fn load_initrd(memory: &Memory, initrd: &Initrd, kernel_end: u64, limit: u64) -> Result<(u64, u64), Error> {
    let size = initrd.size();
    let start = initrd::place(size, kernel_end, limit, low_ram_end(memory))?;
    initrd.load(memory, start)?;
    Ok((start, size))
}

fn write_acpi(memory: &Memory, config: &acpi::Config) -> Result<u64, Error> {
    let tables = acpi::build(config);
    if tables.bytes.len() > layout::ACPI_SIZE {
        return Err(Error::AcpiSize { size: tables.bytes.len(), limit: layout::ACPI_SIZE });
    }
    write(memory, "ACPI tables", tables.rsdp, &tables.bytes)?;
    Ok(tables.rsdp.0)
}

fn write(memory: &Memory, what: &'static str, at: GuestAddress, bytes: &[u8]) -> Result<(), Error> {
    memory.write_slice(bytes, at).map_err(|source| Error::Write { what, address: at.0, source })
}

/// What a boot protocol hands over to the kernel.
struct Handover<'a> {
    memory: &'a Memory,
    config: &'a Config<'a>,
    initrd: Option<(u64, u64)>,
    rsdp: Option<u64>,
}

impl Handover<'_> {
    fn pvh(&self, entry: GuestAddress) -> Result<Start, Error> {
        for (at, bytes) in pvh::start_info(&ranges(self.memory), self.initrd, self.rsdp) {
            write(self.memory, "PVH start information", at, &bytes)?;
        }
        Ok(Start::Pvh { entry })
    }

    fn linux64(&self, entry: GuestAddress, end: u64, header: Option<&setup_header>) -> Result<Start, Error> {
        let params = BootParams {
            header,
            map: &ranges(self.memory),
            cmdline_len: self.config.cmdline.len(),
            initrd: self.initrd,
            rsdp: self.rsdp,
        };
        write(self.memory, "boot parameters", layout::ZERO_PAGE, params.build().as_slice())?;
        for (at, bytes) in page_tables::identity(end, self.config.gib_pages) {
            write(self.memory, "page tables", at, &bytes)?;
        }
        Ok(Start::Linux64 { entry })
    }
}

#[cfg(test)]
mod tests;
