use std::fs;
use std::path::Path;

use vm_memory::GuestMemoryBackend;

use super::*;
use crate::arch::x86_64::kernel::fake::{FakeElf, START, bzimage};
use crate::memory::{Pages, allocate};

const CMDLINE: &str = "console=ttyS0 quiet";

/// Puts a kernel and an initial RAM disk together in `mib` MiB of memory.
fn boot(kernel: &[u8], mib: u64, change: impl Fn(&mut Config)) -> Result<(Memory, Start), Error> {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, contents: &[u8]| {
        let path = directory.path().join(name);
        fs::write(&path, contents).unwrap();
        path
    };
    let kernel = Kernel::open(&file("kernel", kernel), None)?;
    let initrd = Initrd::open(&file("initrd", b"initial RAM disk"))?;
    let hardware = acpi::Config { cpus: 1, ..Default::default() };
    let mut config = Config {
        kernel: &kernel,
        preference: Preference::default(),
        initrd: Some(&initrd),
        cmdline: CMDLINE,
        acpi: Some(&hardware),
        gib_pages: true,
    };
    change(&mut config);
    let memory = allocate(&layout::ram_ranges(mib << 20), Pages::Transparent).unwrap();
    let start = load(&memory, &config)?;
    Ok((memory, start))
}

fn text(memory: &Memory, at: u64, len: usize) -> String {
    let mut bytes = vec![0; len];
    memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn number<T: ByteValued>(memory: &Memory, at: u64) -> T {
    memory.read_obj(GuestAddress(at)).unwrap()
}

#[test]
fn a_pvh_kernel_finds_everything() {
    let (memory, start) = boot(&FakeElf::linux().build(), 64, |_| ()).unwrap();
    let info = start.regs().rbx;
    assert_eq!((info, number::<u32>(&memory, info)), (0x6000, 0x336e_c578));
    assert_eq!(text(&memory, number(&memory, info + 24), CMDLINE.len() + 1), format!("{CMDLINE}\0"));
    assert_eq!(text(&memory, number(&memory, info + 32), 8), "RSD PTR ");
    let module: u64 = number(&memory, info + 16);
    let (at, size): (u64, u64) = (number(&memory, module), number(&memory, module + 8));
    assert_eq!((at, text(&memory, at, size as usize).as_str()), ((64 << 20) - 0x1000, "initial RAM disk"));
    assert_eq!(number::<u64>(&memory, layout::GDT.0 + 0x10), 0x00cf_9b00_0000_ffff);
    assert_eq!(number::<u64>(&memory, layout::PAGE_TABLES.0), 0, "paging is off");
}

#[test]
fn a_64_bit_kernel_finds_everything() {
    let change = |config: &mut Config| config.preference = Preference::Linux64;
    let (memory, start) = boot(&FakeElf::linux().build(), 64, change).unwrap();
    let page = start.regs().rsi;
    assert_eq!((start.regs().rip, page, text(&memory, page + 0x202, 4).as_str()), (START, 0x7000, "HdrS"));
    assert_eq!(text(&memory, number::<u32>(&memory, page + 0x228).into(), CMDLINE.len()), CMDLINE);
    assert_eq!(text(&memory, number(&memory, page + 0x70), 8), "RSD PTR ");
    let (at, size): (u32, u32) = (number(&memory, page + 0x218), number(&memory, page + 0x21c));
    assert_eq!(text(&memory, at.into(), size as usize), "initial RAM disk");
    assert_eq!(number::<u8>(&memory, page + 0x1e8), 3, "low RAM, reserved, RAM");
    assert_ne!(number::<u64>(&memory, layout::PAGE_TABLES.0), 0);
}

#[test]
fn a_boot_image_keeps_its_limit_for_the_initrd() {
    let kernel = bzimage(b"");
    let (memory, start) = boot(&kernel, 3 << 10, |_| ()).unwrap();
    let page = start.regs().rsi;
    assert_eq!(start.regs().rip, START + 0x200);
    assert_eq!(number::<u32>(&memory, page + 0x218), 0x7fff_f000);
    assert_eq!(number::<u32>(&memory, page + 0x260), 0x20_0000, "init_size");
}

#[test]
fn nothing_but_a_kernel_is_needed() {
    let bare = |config: &mut Config| (config.initrd, config.acpi, config.cmdline) = (None, None, "");
    let (memory, start) = boot(&FakeElf::linux().build(), 32, bare).unwrap();
    let info = start.regs().rbx;
    assert_eq!((number::<u32>(&memory, info + 12), number::<u64>(&memory, info + 32)), (0, 0));
    assert_eq!(text(&memory, layout::ACPI.0, 4), "\0\0\0\0");
}

#[test]
fn says_how_much_memory_it_takes() {
    let error = boot(&FakeElf::linux().build(), 16, |_| ()).unwrap_err();
    assert!(matches!(&error, Error::Kernel { source, .. } if source.to_string().contains("at least 17 MiB")));
    let exact = FakeElf::new(START).segment(START, 1 << 20, b"").build();
    let error = boot(&exact, 17, |_| ()).unwrap_err();
    assert!(matches!(error, Error::InitrdSize { size_mib: 1, needed_mib: 18 }), "{error}");
    boot(&exact, 18, |_| ()).unwrap();
}

#[test]
fn a_command_line_is_checked() {
    let long = "x".repeat(layout::COMMAND_LINE_SIZE);
    check_cmdline(&long[1..]).unwrap();
    assert!(matches!(check_cmdline(&long), Err(Error::CmdlineLength { length: 2048, limit: 2047 })));
    for (cmdline, at) in [("a\0b", 1), ("ü", 0), ("a\nb", 1), ("a b\u{7f}", 3)] {
        let error = check_cmdline(cmdline).unwrap_err();
        assert!(matches!(error, Error::CmdlineCharacter { offset, .. } if offset == at), "{error}");
    }
}

#[test]
fn what_does_not_open_is_named() {
    let error = Initrd::open(Path::new("/nonexistent")).unwrap_err();
    assert_eq!(error.to_string(), "Cannot read initial RAM disk \"/nonexistent\"");
}

#[test]
fn every_structure_is_in_reported_ram_or_reserved() {
    let (memory, _) = boot(&FakeElf::linux().build(), 64, |_| ()).unwrap();
    assert!(memory.address_in_range(layout::VMGENID));
    let ranges = ranges(&memory);
    let kind =
        |at: u64| ranges.iter().find(|range| at - range.start < range.size).map(|range| range.kind as u32);
    assert_eq!(
        (kind(layout::COMMAND_LINE.0), kind(layout::ACPI.0), kind(layout::VMGENID.0)),
        (Some(1), Some(2), Some(2))
    );
}
