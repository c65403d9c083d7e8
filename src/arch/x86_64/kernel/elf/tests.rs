use vm_memory::Bytes;

use super::super::fake::{FakeElf, PVH, START, note, text};
use super::*;
use crate::memory::{Pages, allocate};

fn parse(file: &FakeElf) -> Result<Elf, Error> {
    Elf::parse(&Source::Bytes(file.build()))
}

fn memory(mib: u64) -> Memory {
    allocate(&layout::ram_ranges(mib << 20), Pages::Transparent).unwrap()
}

fn read(memory: &Memory, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
    bytes
}

#[test]
fn segments_go_where_they_belong() {
    let source = Source::Bytes(FakeElf::linux().build());
    let (elf, memory) = (Elf::parse(&source).unwrap(), memory(32));
    let entry = elf.load(&source, &memory, Preference::Pvh).unwrap();
    assert_eq!(entry.protocol, Protocol::Pvh { entry: GuestAddress(PVH) });
    assert_eq!(entry.end, GuestAddress(START + 0x6000));
    assert_eq!(read(&memory, START, 701), [text(700), vec![0]].concat());
    assert_eq!(read(&memory, START + 0x1000, 301), [text(300), vec![0]].concat());
    let entry = elf.load(&source, &memory, Preference::Linux64).unwrap();
    assert_eq!(entry.protocol, Protocol::Linux64 { entry: GuestAddress(START) });
}

#[test]
fn without_the_note_the_64_bit_entry_is_taken() {
    let source = Source::Bytes(FakeElf::new(START + 1).segment(START, 0x1000, b"code").build());
    let entry = Elf::parse(&source).unwrap().load(&source, &memory(32), Preference::Pvh).unwrap();
    assert_eq!(entry.protocol, Protocol::Linux64 { entry: GuestAddress(START + 1) });
}

#[test]
fn the_note_is_found_among_others() {
    for align in [4, 8] {
        let notes = [
            note(align, b"GNU\0", 3, &[1; 20]),
            note(align, b"Linux\0", 0x100, &[0]),
            note(align, b"Xen\0", 6, b"linux\0"),
            note(align, b"Xen\0", 18, &(PVH).to_le_bytes()),
        ];
        let elf = FakeElf::new(START).segment(START, 0x1000, b"").notes(align as u64, &notes.concat());
        assert_eq!(parse(&elf).unwrap().pvh_entry, Some(PVH), "alignment {align}");
    }
}

#[test]
fn damaged_notes_are_no_notes() {
    let whole = note(4, b"Xen\0", 18, &(PVH as u32).to_le_bytes());
    for len in 0..whole.len() {
        assert_eq!(find_pvh_entry(&whole[..len], 4), None);
    }
    assert_eq!(find_pvh_entry(&[0xff; 64], 4), None);
    assert_eq!(find_pvh_entry(&note(4, b"Xen\0", 18, &[0; 5]), 4), None);
}

#[test]
fn bad_segments_are_refused() {
    let one = |start, size, contents: &[u8]| {
        FakeElf::new(START).segment(START, 0x1000, b"").segment(start, size, contents)
    };
    for (elf, problem) in [
        (one(START + 0xfff, 0x1000, b""), "overlaps another segment"),
        (one(START, 1, b"two"), "is larger in the file than in memory"),
        (one(u64::MAX - 0xfff, 0x1001, b""), "passes the end of the address space"),
        (one(0xf_ffff, 0x1000, b""), "is below 1 MiB, where the boot structures are"),
    ] {
        let error = parse(&elf).unwrap_err();
        assert!(matches!(&error, Error::Segment { problem: found, .. } if *found == problem), "{error}");
    }
    for (start, size) in [(layout::HOLE_START - 1, 2), (1 << 40, 1), (u64::MAX - 1, 1)] {
        let source = Source::Bytes(one(start, size, b"").build());
        let error = Elf::parse(&source).unwrap().load(&source, &memory(32), Preference::Pvh).unwrap_err();
        assert!(matches!(error, Error::Segment { .. }), "{error}");
    }
}

#[test]
fn says_how_much_memory_is_needed() {
    let source = Source::Bytes(FakeElf::linux().build());
    let error = Elf::parse(&source).unwrap().load(&source, &memory(16), Preference::Pvh).unwrap_err();
    assert!(matches!(error, Error::Memory { needed_mib: 17 }), "{error}");
}

#[test]
fn entry_points_lie_in_the_kernel() {
    for entry in [0, START - 1, START + 0x1000, u64::MAX] {
        let error = parse(&FakeElf::new(entry).segment(START, 0x1000, b"")).unwrap_err();
        assert!(matches!(error, Error::EntryPoint { .. }), "{error}");
    }
    // A kernel for PVH alone may say anything as its ELF entry, until that is asked for.
    let mut elf = FakeElf::linux();
    elf.header.e_entry = 0;
    let source = Source::Bytes(elf.build());
    let elf = Elf::parse(&source).unwrap();
    elf.load(&source, &memory(32), Preference::Pvh).unwrap();
    assert!(matches!(
        elf.load(&source, &memory(32), Preference::Linux64),
        Err(Error::EntryPoint { entry: 0 })
    ));
}

#[test]
fn other_machines_are_named() {
    for (class, order, machine, name) in [
        (1, 1, EM_386, "32-bit x86"),
        (2, 1, EM_AARCH64, "AArch64"),
        (2, 1, EM_RISCV, "RISC-V"),
        (2, 2, 22u16.swap_bytes(), "s390"),
        (2, 1, 999, "ELF machine number 999"),
    ] {
        let mut elf = FakeElf::linux();
        (elf.header.e_ident[4], elf.header.e_ident[5], elf.header.e_machine) = (class, order, machine);
        let error = parse(&elf).unwrap_err();
        assert_eq!(error.to_string(), format!("It is for {name}, this machine is x86_64"));
    }
}

#[test]
fn programs_and_objects_are_not_kernels() {
    let mut elf = FakeElf::linux();
    elf.header.e_type = ET_REL;
    assert!(matches!(parse(&elf), Err(Error::NotKernel { looks: "an object file or a kernel module" })));
    let program = Elf64_Phdr { p_type: PT_INTERP, ..Default::default() };
    assert!(matches!(parse(&FakeElf::linux().program(program, b"/lib")), Err(Error::NotKernel { .. })));
}

#[test]
fn no_prefix_of_a_kernel_is_a_kernel() {
    let file = FakeElf::linux().build();
    for len in 0..file.len() {
        let error = Elf::parse(&Source::Bytes(file[..len].to_vec())).unwrap_err();
        assert!(matches!(error, Error::Truncated { .. }), "{len}: {error}");
    }
}

#[test]
fn no_flipped_byte_panics() {
    let (file, memory) = (FakeElf::linux().build(), memory(32));
    for at in 0..file.len().min(400) {
        for flip in [1, 0x80, 0xff] {
            let mut damaged = file.clone();
            damaged[at] ^= flip;
            let source = Source::Bytes(damaged);
            if let Ok(elf) = Elf::parse(&source) {
                let _ = elf.load(&source, &memory, Preference::Pvh);
                let _ = elf.load(&source, &memory, Preference::Linux64);
            }
        }
    }
}

#[test]
fn a_packed_kernel_loads_the_same() {
    let zeroes = vec![0; 300 << 10];
    let first = [&text(5000)[..], &zeroes, &text(5000), &zeroes[..40 << 10], b"end", &zeroes].concat();
    let second = [&zeroes[..], b"tail"].concat();
    let file = FakeElf::new(START + 8)
        .segment(START, 1 << 20, &first)
        .segment(START + (2 << 20), 1 << 20, &second)
        .segment(START + (4 << 20), 0x1000, &zeroes[..0x1000])
        .segment(START + (5 << 20), 0x1000, b"");
    for file in [file.notes(4, &note(4, b"Xen\0", 18, &(PVH as u32).to_le_bytes())), FakeElf::linux()] {
        let kernel = file.build();
        let whole = Source::Bytes(kernel.clone());
        let elf = Elf::parse(&whole).unwrap();
        let packed = Source::Bytes(elf.pack(&kernel));
        let again = Elf::parse(&packed).unwrap();
        for preference in [Preference::Pvh, Preference::Linux64] {
            let (one, other) = (memory(32), memory(32));
            let entry = elf.load(&whole, &one, preference).unwrap();
            assert_eq!(again.load(&packed, &other, preference).unwrap(), entry);
            assert!(read(&one, START, 8 << 20) == read(&other, START, 8 << 20));
        }
        let loaded: u64 = elf.segments.iter().map(|segment| segment.file_size).sum();
        assert!(packed.len() < 60_000 || packed.len() < loaded / 2, "{} of {loaded} bytes", packed.len());
    }
}

#[test]
fn a_kernel_with_many_holes_keeps_some() {
    let contents = [vec![1; 0x1000], vec![0; 64 << 10]].concat().repeat(200);
    let file = FakeElf::new(START).segment(START, contents.len() as u64, &contents).build();
    let elf = Elf::parse(&Source::Bytes(file.clone())).unwrap();
    let packed = Source::Bytes(elf.pack(&file));
    let (again, memory) = (Elf::parse(&packed).unwrap(), memory(64));
    again.load(&packed, &memory, Preference::Pvh).unwrap();
    assert!(read(&memory, START, contents.len()) == contents);
}
