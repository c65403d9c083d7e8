//! Kernels small enough to be made in a test.

use linux_loader::bootparam::setup_header;
use linux_loader::elf::{EM_X86_64, ET_EXEC, Elf64_Ehdr, Elf64_Phdr, PT_LOAD, PT_NOTE};
use vm_memory::ByteValued;

/// An ELF file under construction.
pub struct FakeElf {
    pub header: Elf64_Ehdr,
    pub programs: Vec<Elf64_Phdr>,
    contents: Vec<u8>,
}

/// Address of the first segment of [`FakeElf::linux`].
pub const START: u64 = 0x100_0000;
/// PVH entry of [`FakeElf::linux`].
pub const PVH: u64 = START + 0x40;

impl FakeElf {
    /// Nothing but a header with the entry point.
    pub fn new(entry: u64) -> Self {
        let mut header = Elf64_Ehdr {
            e_type: ET_EXEC,
            e_machine: EM_X86_64,
            e_version: 1,
            e_entry: entry,
            e_phoff: size_of::<Elf64_Ehdr>() as u64,
            e_ehsize: size_of::<Elf64_Ehdr>() as u16,
            e_phentsize: size_of::<Elf64_Phdr>() as u16,
            ..Default::default()
        };
        header.e_ident[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        FakeElf { header, programs: Vec::new(), contents: Vec::new() }
    }

    /// Two segments and a PVH note.
    pub fn linux() -> Self {
        FakeElf::new(START)
            .segment(START, 0x1000, &text(700))
            .segment(START + 0x1000, 0x5000, &text(300))
            .notes(4, &note(4, b"Xen\0", 18, &(PVH as u32).to_le_bytes()))
    }

    /// Adds a segment to be loaded.
    pub fn segment(self, start: u64, size: u64, contents: &[u8]) -> Self {
        self.program(
            Elf64_Phdr { p_type: PT_LOAD, p_paddr: start, p_memsz: size, ..Default::default() },
            contents,
        )
    }

    /// Adds a list of notes.
    pub fn notes(self, align: u64, contents: &[u8]) -> Self {
        self.program(Elf64_Phdr { p_type: PT_NOTE, p_align: align, ..Default::default() }, contents)
    }

    /// Adds any program header.
    pub fn program(mut self, mut program: Elf64_Phdr, contents: &[u8]) -> Self {
        program.p_offset = self.contents.len() as u64;
        program.p_filesz = contents.len() as u64;
        self.contents.extend_from_slice(contents);
        self.programs.push(program);
        self
    }

    /// The file.
    pub fn build(&self) -> Vec<u8> {
        let mut header = self.header;
        header.e_phnum = self.programs.len() as u16;
        let before = size_of::<Elf64_Ehdr>() + self.programs.len() * size_of::<Elf64_Phdr>();
        let mut file = header.as_slice().to_vec();
        for program in &self.programs {
            let placed = Elf64_Phdr { p_offset: program.p_offset.wrapping_add(before as u64), ..*program };
            file.extend_from_slice(placed.as_slice());
        }
        file.extend_from_slice(&self.contents);
        file
    }
}

/// One note, padded to `align` bytes.
pub fn note(align: usize, name: &[u8], kind: u32, description: &[u8]) -> Vec<u8> {
    let mut note = Vec::new();
    for word in [name.len() as u32, description.len() as u32, kind] {
        note.extend_from_slice(&word.to_le_bytes());
    }
    for part in [name, description] {
        note.extend_from_slice(part);
        note.resize(note.len().next_multiple_of(align), 0);
    }
    note
}

/// Bytes that compress, yet differ.
pub fn text(len: usize) -> Vec<u8> {
    (0..len).map(|index| (index / 7 * index % 251) as u8).collect()
}

/// A boot image around `payload`, which is compressed already and has its size behind it.
pub fn bzimage(payload: &[u8]) -> Vec<u8> {
    let code = [vec![0x90; 0x400], payload.to_vec()].concat();
    let header = setup_header {
        setup_sects: 3,
        syssize: code.len().div_ceil(16) as u32,
        boot_flag: 0xaa55,
        // A short jump over the header, which thereby says how long it is.
        jump: 0x6aeb,
        header: 0x5372_6448,
        version: 0x020f,
        loadflags: 1,
        code32_start: 0x10_0000,
        initrd_addr_max: 0x7fff_ffff,
        kernel_alignment: 0x20_0000,
        relocatable_kernel: 1,
        xloadflags: 0x7f,
        cmdline_size: 2047,
        payload_offset: 0x400,
        payload_length: payload.len() as u32,
        pref_address: START,
        init_size: 0x20_0000,
        ..Default::default()
    };
    let mut file = vec![0; 0x1f1];
    file.extend_from_slice(header.as_slice());
    file.resize(4 * 512, 0);
    file.extend_from_slice(&code);
    file.resize(file.len().next_multiple_of(16), 0);
    file
}
