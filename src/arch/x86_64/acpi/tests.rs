use std::process::Command;

use super::*;

fn config() -> Config {
    let virtio = (0..layout::VIRTIO_MAX as u32).map(|slot| MmioDevice {
        base: layout::VIRTIO as u32 + slot * layout::VIRTIO_STRIDE as u32,
        size: layout::VIRTIO_STRIDE as u32,
        gsi: layout::VIRTIO_GSI + slot,
    });
    Config {
        cpus: 2,
        virtio: virtio.collect(),
        com1: true,
        i8042: true,
        pvpanic: true,
        vmgenid: Some(layout::VMGENID),
        vmclock: Some(layout::VMCLOCK),
    }
}

fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
    bytes[at..at + len].iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// The table at a guest-physical address, checked.
fn at(tables: &Tables, address: u64) -> &[u8] {
    let start = (address - layout::ACPI.0) as usize;
    assert_eq!(start % ALIGN, 0);
    let len = number(&tables.bytes, start + 4, 4) as usize;
    let table = &tables.bytes[start..start + len];
    assert_eq!(sum(table), 0, "checksum of {:?}", String::from_utf8_lossy(&table[..4]));
    table
}

/// FADT, MADT and DSDT, found as a guest finds them.
fn follow(tables: &Tables) -> [&[u8]; 3] {
    let rsdp = &tables.bytes[..36];
    assert_eq!((&rsdp[..8], rsdp[15], number(rsdp, 20, 4)), (&b"RSD PTR "[..], 2, 36));
    assert_eq!((sum(&rsdp[..20]), sum(rsdp)), (0, 0));
    let xsdt = at(tables, number(rsdp, 24, 8));
    assert_eq!((&xsdt[..4], xsdt.len()), (&b"XSDT"[..], 36 + 16));
    let [fadt, madt] = [36, 44].map(|entry| at(tables, number(xsdt, entry, 8)));
    let dsdt = at(tables, number(fadt, 140, 8));
    assert_eq!([&fadt[..4], &madt[..4], &dsdt[..4]], [b"FACP", b"APIC", b"DSDT"]);
    [fadt, madt, dsdt]
}

#[test]
fn fixed_description_says_hardware_reduced() {
    let tables = build(&config());
    let [fadt, ..] = follow(&tables);
    assert_eq!((fadt.len(), fadt[8]), (276, 6));
    let flags = number(fadt, 112, 4);
    assert_ne!(flags & 1 << 20, 0, "HW_REDUCED_ACPI");
    assert_ne!(flags & 1 << 10, 0, "RESET_REG_SUP");
    let register = |at: usize| (fadt[at], fadt[at + 1], number(fadt, at + 4, 8));
    assert_eq!((register(116), fadt[128]), ((1, 8, 0x602), 1), "reset");
    assert_eq!((register(244), register(256)), ((1, 8, 0x600), (1, 8, 0x601)), "sleep");
    assert_eq!(number(fadt, 109, 2), 0b10_0110);
    let tables = build(&Config::default());
    assert_eq!(number(follow(&tables)[0], 109, 2), 0b10_0100, "no keyboard controller");
}

#[test]
fn every_cpu_is_listed() {
    for cpus in [1, 2, 254, 255, 256, 300] {
        let tables = build(&Config { cpus, ..config() });
        let [_, madt, _] = follow(&tables);
        assert_eq!((number(madt, 36, 4), number(madt, 40, 4)), (layout::LAPIC, 0));
        let (mut at, mut ids) = (44, Vec::new());
        while at < madt.len() {
            match madt[at] {
                0 => ids.push((number(madt, at + 3, 1), number(madt, at + 2, 1), number(madt, at + 4, 4))),
                9 => ids.push((number(madt, at + 4, 4), number(madt, at + 12, 4), number(madt, at + 8, 4))),
                1 => assert_eq!((number(madt, at + 4, 4), number(madt, at + 8, 4)), (layout::IOAPIC, 0)),
                other => panic!("structure {other}"),
            }
            at += usize::from(madt[at + 1]);
        }
        assert_eq!(at, madt.len());
        assert_eq!(ids, (0..u64::from(cpus)).map(|id| (id, id, 1)).collect::<Vec<_>>());
    }
}

#[test]
fn everything_fits_its_place() {
    assert!(build(&Config { cpus: 4096, ..config() }).bytes.len() <= layout::ACPI_SIZE);
    assert!(layout::ACPI.0 + layout::ACPI_SIZE as u64 <= layout::VMGENID.0);
}

#[test]
fn only_what_is_there_is_described() {
    let has = |config: &Config, what: &[u8]| {
        let tables = build(config);
        follow(&tables)[2].windows(what.len()).any(|window| window == what)
    };
    for what in [&b"LNRO0005"[..], b"V011", b"COM1", b"KBD_", b"QEMU0001", b"RVMM0001", b"ACPI0013", b"PWRB"]
    {
        assert!(has(&config(), what), "{}", String::from_utf8_lossy(what));
    }
    let bare = Config { cpus: 1, ..Config::default() };
    for what in [&b"LNRO0005"[..], b"COM1", b"KBD_", b"QEMU0001", b"VMGN"] {
        assert!(!has(&bare, what), "{}", String::from_utf8_lossy(what));
    }
}

/// Disassembles the tables with ACPICA's compiler and compiles the result again.
#[test]
fn another_implementation_reads_the_tables() {
    if Command::new("iasl").arg("-v").output().is_err() {
        return crate::testing::skip("iasl is not there (Debian package acpica-tools)");
    }
    let dir = tempfile::tempdir().unwrap();
    let iasl = |args: &[&str]| {
        let output = Command::new("iasl").current_dir(&dir).args(args).output().unwrap();
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success() && !text.contains("Error  "), "iasl {args:?}: {text}");
        text
    };
    for (config, which) in [(config(), "full"), (Config { cpus: 1, ..Config::default() }, "bare")] {
        let tables = build(&config);
        for table in follow(&tables) {
            let name = format!("{which}-{}", String::from_utf8_lossy(&table[..4]));
            std::fs::write(dir.path().join(format!("{name}.aml")), table).unwrap();
            let said = iasl(&["-d", &format!("{name}.aml")]);
            assert!(!said.to_lowercase().contains("invalid") && !said.contains("Checksum"), "{said}");
            let text = std::fs::read_to_string(dir.path().join(format!("{name}.dsl"))).unwrap();
            assert!(!text.contains("Unknown") && !text.contains("ERROR"), "{text}");
        }
        iasl(&["-p", "again", &format!("{which}-DSDT.dsl")]);
    }
}
