//! Makes a decompressed kernel smaller: only what is loaded is kept, and of that no long runs of zeroes.
//!
//! The ELF in a boot image has its uninitialized data spelled out. Without it a third less is stored, and copied and
//! touched at every start.

use std::ops::Range;

use linux_loader::elf::{EM_X86_64, ET_EXEC, Elf64_Ehdr, Elf64_Nhdr, Elf64_Phdr, PT_LOAD, PT_NOTE};
use vm_memory::ByteValued;

use super::{Elf, HEADERS_MAX, PHYS32_ENTRY, Segment};

const PAGE: usize = 4096;
/// Shorter runs of zeroes are kept, unless the pieces become too many.
const RUN: usize = 64 << 10;
const NOTE_NAME: &[u8; 4] = b"Xen\0";

impl Elf {
    /// An ELF file that loads the same as `kernel`, whose headers these are.
    pub fn pack(&self, kernel: &[u8]) -> Vec<u8> {
        let mut run = RUN;
        let mut pieces = self.pieces(kernel, run);
        // One header is left for the note.
        while pieces.len() >= usize::from(HEADERS_MAX) && pieces.len() > self.segments.len() {
            run *= 2;
            pieces = self.pieces(kernel, run);
        }
        let note = self.pvh_entry.map(note).unwrap_or_default();
        let count = pieces.len() + usize::from(!note.is_empty());
        let before = size_of::<Elf64_Ehdr>() + count * size_of::<Elf64_Phdr>();
        let mut file = header(self.entry, count).as_slice().to_vec();
        let mut offset = before + note.len();
        for piece in &pieces {
            file.extend_from_slice(program(piece, offset).as_slice());
            offset += piece.file_size as usize;
        }
        if !note.is_empty() {
            let (offset, size) = (before as u64, note.len() as u64);
            let program =
                Elf64_Phdr { p_type: PT_NOTE, p_offset: offset, p_filesz: size, ..Default::default() };
            file.extend_from_slice(program.as_slice());
        }
        file.reserve_exact(offset - file.len());
        file.extend_from_slice(&note);
        pieces.iter().for_each(|piece| file.extend_from_slice(contents(kernel, piece)));
        file
    }

    /// The segments, cut where `run` or more bytes are zero.
    fn pieces(&self, kernel: &[u8], run: usize) -> Vec<Segment> {
        let cut = |segment: &Segment| {
            let mut parts = filled(contents(kernel, segment), run);
            if parts.first().is_none_or(|first| first.start > 0) {
                parts.insert(0, 0..0);
            }
            let ends =
                parts.iter().skip(1).map(|part| part.start as u64).chain([segment.size]).collect::<Vec<_>>();
            let piece = |(part, end): (Range<usize>, u64)| Segment {
                start: segment.start + part.start as u64,
                size: end - part.start as u64,
                offset: segment.offset + part.start as u64,
                file_size: part.len() as u64,
            };
            parts.into_iter().zip(ends).map(piece).collect::<Vec<_>>()
        };
        self.segments.iter().flat_map(cut).collect()
    }
}

/// The parts of `bytes` between runs of at least `run` zeroes.
fn filled(bytes: &[u8], run: usize) -> Vec<Range<usize>> {
    let mut parts: Vec<Range<usize>> = Vec::new();
    for (index, page) in bytes.chunks(PAGE).enumerate() {
        if page.iter().all(|&byte| byte == 0) {
            continue;
        }
        let (start, end) = (index * PAGE, index * PAGE + page.len());
        match parts.last_mut() {
            Some(last) if start - last.end < run => last.end = end,
            _ => parts.push(start..end),
        }
    }
    parts
}

/// What the file has of a segment, which was checked to be in it.
fn contents<'a>(kernel: &'a [u8], segment: &Segment) -> &'a [u8] {
    let start = segment.offset as usize;
    kernel.get(start..start + segment.file_size as usize).unwrap_or_default()
}

fn header(entry: u64, programs: usize) -> Elf64_Ehdr {
    let mut header = Elf64_Ehdr {
        e_type: ET_EXEC,
        e_machine: EM_X86_64,
        e_version: 1,
        e_entry: entry,
        e_phoff: size_of::<Elf64_Ehdr>() as u64,
        e_ehsize: size_of::<Elf64_Ehdr>() as u16,
        e_phentsize: size_of::<Elf64_Phdr>() as u16,
        e_phnum: programs as u16,
        ..Default::default()
    };
    header.e_ident[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    header
}

fn program(piece: &Segment, offset: usize) -> Elf64_Phdr {
    Elf64_Phdr {
        p_type: PT_LOAD,
        p_flags: 7,
        p_offset: offset as u64,
        p_vaddr: piece.start,
        p_paddr: piece.start,
        p_filesz: piece.file_size,
        p_memsz: piece.size,
        p_align: 1,
    }
}

/// The note that holds the PVH entry.
fn note(entry: u64) -> Vec<u8> {
    let description = entry.to_le_bytes();
    let head = Elf64_Nhdr {
        n_namesz: NOTE_NAME.len() as u32,
        n_descsz: description.len() as u32,
        n_type: PHYS32_ENTRY,
    };
    [head.as_slice(), NOTE_NAME, &description].concat()
}
