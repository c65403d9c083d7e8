//! The zero page, which tells Linux what machine it is on (Linux Documentation/arch/x86/zero-page.rst and boot.rst).

use linux_loader::bootparam::{LOADED_HIGH, boot_e820_entry, boot_params, setup_header};

use super::layout;
use super::memory_map::Range;

/// `HdrS`, which marks the header.
const HEADER_MAGIC: u32 = 0x5372_6448;
/// Marks a boot sector.
const BOOT_FLAG: u16 = 0xaa55;
/// A boot loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xff;
/// Boot protocol 2.12: the newest that says something about the 64-bit entry.
const PROTOCOL: u16 = 0x020c;

/// What goes into the zero page. Sizes are in bytes.
pub struct BootParams<'a> {
    /// The header of the bzImage that is booted, if it is one.
    pub header: Option<&'a setup_header>,
    /// RAM and reserved ranges.
    pub map: &'a [Range],
    /// Length of the command line, which is at [`layout::COMMAND_LINE`], without the final zero.
    pub cmdline_len: usize,
    /// Address and size of the initial RAM disk.
    pub initrd: Option<(u64, u64)>,
    /// Address of the ACPI root pointer.
    pub rsdp: Option<u64>,
}

impl BootParams<'_> {
    /// The page as Linux reads it.
    pub fn build(&self) -> boot_params {
        let mut params = boot_params { hdr: self.header(), ..boot_params::default() };
        if let Some((start, size)) = self.initrd {
            params.hdr.ramdisk_image = start as u32;
            params.ext_ramdisk_image = (start >> 32) as u32;
            params.hdr.ramdisk_size = size as u32;
            params.ext_ramdisk_size = (size >> 32) as u32;
        }
        params.acpi_rsdp_addr = self.rsdp.unwrap_or(0);
        let mut table = params.e820_table;
        let mut entries = 0;
        for (entry, range) in table.iter_mut().zip(self.map) {
            *entry = boot_e820_entry { addr: range.start, size: range.size, r#type: range.kind as u32 };
            entries += 1;
        }
        params.e820_table = table;
        params.e820_entries = entries;
        params
    }

    fn header(&self) -> setup_header {
        let mut header = self.header.copied().unwrap_or(setup_header {
            boot_flag: BOOT_FLAG,
            header: HEADER_MAGIC,
            version: PROTOCOL,
            kernel_alignment: 0x100_0000,
            ..setup_header::default()
        });
        header.type_of_loader = LOADER_UNDEFINED;
        header.loadflags |= LOADED_HIGH;
        header.cmd_line_ptr = layout::COMMAND_LINE.0 as u32;
        if self.header.is_none() {
            header.cmdline_size = self.cmdline_len as u32;
        }
        header
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory_map::Kind;
    use super::*;

    #[test]
    fn the_page_says_what_it_was_told() {
        let map = [
            Range { start: 0, size: 0xa_0000, kind: Kind::Ram },
            Range { start: 0xa_0000, size: 0x6_0000, kind: Kind::Reserved },
        ];
        let initrd = Some((0x12_3456_7000, 0x2_0000_0010));
        let page =
            BootParams { header: None, map: &map, cmdline_len: 5, initrd, rsdp: Some(0xe_0000) }.build();
        assert_eq!({ page.hdr.header }, HEADER_MAGIC);
        assert_eq!({ page.hdr.type_of_loader }, 0xff);
        assert_eq!({ page.hdr.cmd_line_ptr }, 0x2_0000);
        assert_eq!(({ page.hdr.ramdisk_image }, { page.ext_ramdisk_image }), (0x3456_7000, 0x12));
        assert_eq!(({ page.hdr.ramdisk_size }, { page.ext_ramdisk_size }), (0x10, 2));
        assert_eq!({ page.acpi_rsdp_addr }, 0xe_0000);
        assert_eq!(page.e820_entries, 2);
        let (addr, size, kind) =
            ({ page.e820_table[1].addr }, { page.e820_table[1].size }, page.e820_table[1].r#type);
        assert_eq!((addr, size, kind), (0xa_0000, 0x6_0000, 2));
    }

    #[test]
    fn a_bzimage_keeps_its_own_header() {
        let header = setup_header { version: 0x020f, init_size: 7, cmdline_size: 2047, ..Default::default() };
        let params = BootParams { header: Some(&header), map: &[], cmdline_len: 5, initrd: None, rsdp: None };
        let page = params.build();
        assert_eq!(
            ({ page.hdr.version }, { page.hdr.init_size }, { page.hdr.cmdline_size }),
            (0x020f, 7, 2047)
        );
        assert_eq!(({ page.hdr.loadflags } & LOADED_HIGH, { page.acpi_rsdp_addr }), (LOADED_HIGH, 0));
    }

    #[test]
    fn more_ranges_than_fit_are_left_out() {
        let map = [Range { start: 0, size: 1, kind: Kind::Ram }; 300];
        let page = BootParams { header: None, map: &map, cmdline_len: 0, initrd: None, rsdp: None }.build();
        assert_eq!(page.e820_entries, 128);
    }
}
