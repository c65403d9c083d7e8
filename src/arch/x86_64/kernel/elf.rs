//! ELF kernels (System V ABI, chapters 4 and 5; the PVH note is XEN_ELFNOTE_PHYS32_ENTRY of Xen's elfnote.h).

use linux_loader::elf::{EM_386, EM_AARCH64, EM_ARM, EM_RISCV, EM_X86_64, PT_INTERP, PT_LOAD, PT_NOTE};
mod pack;

use linux_loader::elf::{ET_CORE, ET_DYN, ET_EXEC, ET_REL, Elf64_Ehdr, Elf64_Nhdr, Elf64_Phdr};
use vm_memory::{ByteValued, GuestAddress};

use super::source::Source;
use super::{Entry, Error, Preference, Protocol};
use crate::arch::x86_64::{layout, memory_map};
use crate::memory::Memory;

const CLASS_32: u8 = 1;
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
/// Far more program headers than a kernel has.
const HEADERS_MAX: u16 = 128;
/// Far more bytes of notes than a kernel has.
const NOTES_MAX: u64 = 1 << 20;
/// Type of the note that holds the PVH entry point.
const PHYS32_ENTRY: u32 = 18;
const MIB: u64 = 1 << 20;

/// A part of the kernel and its place. Sizes are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    /// Guest-physical address.
    start: u64,
    /// Size in memory; what the file does not fill is zero.
    size: u64,
    /// Where in the file.
    offset: u64,
    /// Size in the file.
    file_size: u64,
}

/// An ELF kernel: segments sorted by address, checked to lie within the file and not to overlap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Elf {
    segments: Vec<Segment>,
    entry: u64,
    pvh_entry: Option<u64>,
}

impl Elf {
    /// Reads and checks the headers.
    ///
    /// # Errors
    /// It is not a 64-bit x86 kernel, or it is damaged.
    pub fn parse(source: &Source) -> Result<Self, Error> {
        let header = header(source)?;
        let headers = program_headers(source, &header)?;
        if headers.iter().any(|program| program.p_type == PT_INTERP) {
            return Err(Error::NotKernel { looks: "a program" });
        }
        let segments = segments(source, &headers)?;
        let elf = Elf { pvh_entry: pvh_entry(source, &headers)?, entry: header.e_entry, segments };
        for entry in elf.pvh_entry.iter().chain(elf.pvh_entry.is_none().then_some(&elf.entry)) {
            elf.check_entry(*entry)?;
        }
        Ok(elf)
    }

    /// Copies the segments into `memory`, which must read as zeroes there. What the file does not fill is not touched.
    ///
    /// # Errors
    /// The kernel does not fit or cannot be read.
    pub fn load(&self, source: &Source, memory: &Memory, preference: Preference) -> Result<Entry, Error> {
        let protocol = match (self.pvh_entry, preference) {
            (Some(entry), Preference::Pvh) => Protocol::Pvh { entry: GuestAddress(entry) },
            _ => {
                self.check_entry(self.entry)?;
                Protocol::Linux64 { entry: GuestAddress(self.entry) }
            }
        };
        let end = self.segments.last().map_or(0, |last| last.start + last.size);
        check_fit(&self.segments, end, memory_map::low_ram_end(memory))?;
        for segment in &self.segments {
            source
                .copy_to(memory, GuestAddress(segment.start), segment.offset, segment.file_size)
                .map_err(Error::Read)?;
        }
        Ok(Entry { protocol, end: GuestAddress(end) })
    }

    fn check_entry(&self, entry: u64) -> Result<(), Error> {
        let holds = |segment: &Segment| entry >= segment.start && entry - segment.start < segment.size;
        match self.segments.iter().any(holds) {
            true => Ok(()),
            false => Err(Error::EntryPoint { entry }),
        }
    }
}

fn check_fit(segments: &[Segment], end: u64, ram_end: u64) -> Result<(), Error> {
    if let Some(outside) = segments.iter().find(|segment| segment.start + segment.size > layout::HOLE_START) {
        return Err(outside.problem("reaches into the hole for devices below 4 GiB"));
    }
    match end > ram_end {
        true => Err(Error::Memory { needed_mib: end.div_ceil(MIB) }),
        false => Ok(()),
    }
}

impl Segment {
    fn problem(&self, problem: &'static str) -> Error {
        Error::Segment { start: self.start, size: self.size, problem }
    }
}

fn header(source: &Source) -> Result<Elf64_Ehdr, Error> {
    let mut start = [0; 20];
    let len = source.len();
    let whole = |end: u64| match end <= len {
        true => Ok(()),
        false => Err(Error::Truncated { what: "ELF header", end, len }),
    };
    whole(start.len() as u64)?;
    source.read_at(0, &mut start).map_err(Error::Read)?;
    check_machine(&start)?;
    whole(size_of::<Elf64_Ehdr>() as u64)?;
    let header: Elf64_Ehdr = source.object(0).map_err(Error::Read)?;
    match header.e_type {
        ET_EXEC | ET_DYN => Ok(header),
        ET_REL => Err(Error::NotKernel { looks: "an object file or a kernel module" }),
        ET_CORE => Err(Error::NotKernel { looks: "a core dump" }),
        _ => Err(Error::NotKernel { looks: "an ELF file of an unknown type" }),
    }
}

/// Checks class, byte order and machine, which have the same place in every ELF header.
fn check_machine(start: &[u8; 20]) -> Result<(), Error> {
    let (class, order) = (start[4], start[5]);
    let machine = match order {
        LITTLE_ENDIAN => u16::from_le_bytes([start[18], start[19]]),
        _ => u16::from_be_bytes([start[18], start[19]]),
    };
    let found = match (machine, class, order) {
        (EM_X86_64, CLASS_64, LITTLE_ENDIAN) => return Ok(()),
        (EM_X86_64, CLASS_32, _) => "32-bit x86_64 (x32)",
        (EM_386, ..) => "32-bit x86",
        (EM_AARCH64, ..) => "AArch64",
        (EM_ARM, ..) => "32-bit ARM",
        (EM_RISCV, ..) => "RISC-V",
        (8, ..) => "MIPS",
        (20 | 21, ..) => "POWER",
        (22, ..) => "s390",
        (258, ..) => "LoongArch",
        _ => return Err(Error::Architecture { found: format!("ELF machine number {machine}") }),
    };
    Err(Error::Architecture { found: found.into() })
}

fn program_headers(source: &Source, header: &Elf64_Ehdr) -> Result<Vec<Elf64_Phdr>, Error> {
    let size = size_of::<Elf64_Phdr>() as u64;
    if header.e_phnum == 0 {
        return Err(Error::Damaged { what: "it has no program headers" });
    }
    if u64::from(header.e_phentsize) != size || header.e_phnum > HEADERS_MAX {
        return Err(Error::Damaged { what: "the size or number of its program headers is wrong" });
    }
    let end = header.e_phoff.saturating_add(size * u64::from(header.e_phnum));
    if end > source.len() {
        return Err(Error::Truncated { what: "list of program headers", end, len: source.len() });
    }
    (0..u64::from(header.e_phnum))
        .map(|index| source.object(header.e_phoff + index * size).map_err(Error::Read))
        .collect()
}

fn segments(source: &Source, headers: &[Elf64_Phdr]) -> Result<Vec<Segment>, Error> {
    let mut segments = Vec::new();
    for program in headers.iter().filter(|program| program.p_type == PT_LOAD && program.p_memsz > 0) {
        let segment = Segment {
            start: program.p_paddr,
            size: program.p_memsz,
            offset: program.p_offset,
            file_size: program.p_filesz,
        };
        check_segment(&segment, source.len())?;
        segments.push(segment);
    }
    segments.sort_by_key(|segment| segment.start);
    match segments.windows(2).find(|pair| pair[0].start + pair[0].size > pair[1].start) {
        Some(pair) => Err(pair[1].problem("overlaps another segment")),
        None if segments.is_empty() => Err(Error::Damaged { what: "it has no segments to load" }),
        None => Ok(segments),
    }
}

fn check_segment(segment: &Segment, len: u64) -> Result<(), Error> {
    if segment.file_size > segment.size {
        return Err(segment.problem("is larger in the file than in memory"));
    }
    if segment.start.checked_add(segment.size).is_none() {
        return Err(segment.problem("passes the end of the address space"));
    }
    if segment.start < layout::HIGH_RAM.0 {
        return Err(segment.problem("is below 1 MiB, where the boot structures are"));
    }
    let end = segment.offset.saturating_add(segment.file_size);
    match end > len {
        true => Err(Error::Truncated { what: "segment", end, len }),
        false => Ok(()),
    }
}

fn pvh_entry(source: &Source, headers: &[Elf64_Phdr]) -> Result<Option<u64>, Error> {
    for program in headers.iter().filter(|program| program.p_type == PT_NOTE) {
        let end = program.p_offset.saturating_add(program.p_filesz);
        if end > source.len() {
            return Err(Error::Truncated { what: "list of notes", end, len: source.len() });
        }
        if program.p_filesz > NOTES_MAX {
            return Err(Error::Damaged { what: "its notes are too large" });
        }
        let mut notes = vec![0; program.p_filesz as usize];
        source.read_at(program.p_offset, &mut notes).map_err(Error::Read)?;
        let align = if program.p_align == 8 { 8 } else { 4 };
        if let Some(entry) = find_pvh_entry(&notes, align) {
            return Ok(Some(entry));
        }
    }
    Ok(None)
}

/// Walks notes, whose names and descriptions are padded to `align` bytes.
fn find_pvh_entry(mut notes: &[u8], align: usize) -> Option<u64> {
    loop {
        let (head, rest) = notes.split_at_checked(size_of::<Elf64_Nhdr>())?;
        let mut note = Elf64_Nhdr::default();
        note.as_mut_slice().copy_from_slice(head);
        let (name_len, len) = (note.n_namesz as usize, note.n_descsz as usize);
        let name = rest.get(..name_len)?;
        // Padding counts from the start of the note.
        let at = (head.len() + name_len).next_multiple_of(align) - head.len();
        let description = rest.get(at..at.checked_add(len)?)?;
        if name == b"Xen\0" && note.n_type == PHYS32_ENTRY {
            return number(description);
        }
        notes = rest.get((head.len() + at + len).next_multiple_of(align) - head.len()..)?;
    }
}

/// A 32-bit or 64-bit number.
fn number(bytes: &[u8]) -> Option<u64> {
    match bytes.len() {
        4 => Some(u32::from_le_bytes(bytes.try_into().ok()?).into()),
        8 => Some(u64::from_le_bytes(bytes.try_into().ok()?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
