//! Registers of the boot CPU when the kernel gets it (Linux Documentation/arch/x86/boot.rst, 64-bit boot protocol;
//! Xen docs/misc/pvh.pandoc, initial CPU state).

use kvm_bindings::{kvm_fpu, kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::GuestAddress;

use super::layout;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// Code, read and execute, accessed.
const CODE: u8 = 11;
/// Data, read and write, accessed.
const DATA: u8 = 3;
/// Busy task state segment.
const TSS: u8 = 11;

/// How the boot CPU starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// In 64-bit mode with identity page tables and the address of the zero page in RSI.
    Linux64 {
        /// First instruction.
        entry: GuestAddress,
    },
    /// In flat 32-bit protected mode without paging and the address of the start information in EBX.
    Pvh {
        /// First instruction.
        entry: GuestAddress,
    },
}

impl Start {
    /// Special registers, given what KVM has after the vCPU's creation.
    pub fn sregs(&self, mut sregs: kvm_sregs) -> kvm_sregs {
        let [_, _, code, data, task] = self.segments();
        sregs.cs = code;
        (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
        sregs.tr = task;
        sregs.gdt.base = layout::GDT.0;
        sregs.gdt.limit = (self.gdt().len() - 1) as u16;
        sregs.idt.base = 0;
        sregs.idt.limit = 0;
        sregs.cr0 = CR0_PE | CR0_ET;
        (sregs.cr3, sregs.cr4, sregs.efer) = (0, 0, 0);
        if let Start::Linux64 { .. } = self {
            sregs.cr0 |= CR0_PG;
            sregs.cr3 = layout::PAGE_TABLES.0;
            sregs.cr4 = CR4_PAE;
            sregs.efer = EFER_LME | EFER_LMA;
        }
        sregs
    }

    /// General registers.
    pub fn regs(&self) -> kvm_regs {
        let clear =
            kvm_regs { rflags: 2, rsp: layout::BOOT_STACK, rbp: layout::BOOT_STACK, ..Default::default() };
        match self {
            Start::Linux64 { entry } => kvm_regs { rip: entry.0, rsi: layout::ZERO_PAGE.0, ..clear },
            Start::Pvh { entry } => kvm_regs { rip: entry.0, rbx: layout::PVH_INFO.0, ..clear },
        }
    }

    /// Floating-point registers: every exception masked, as after FNINIT.
    pub fn fpu(&self) -> kvm_fpu {
        kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() }
    }

    /// The global descriptor table, to be written at [`layout::GDT`].
    pub fn gdt(&self) -> Vec<u8> {
        self.segments().iter().flat_map(|segment| descriptor(segment).to_le_bytes()).collect()
    }

    /// The segments in the order of the descriptor table. Linux wants its code at 0x10 and its data at 0x18.
    fn segments(&self) -> [kvm_segment; 5] {
        let long = matches!(self, Start::Linux64 { .. });
        let flat = kvm_segment { limit: 0xffff_ffff, present: 1, s: 1, g: 1, ..Default::default() };
        let task = kvm_segment { limit: 0x67, present: 1, type_: TSS, selector: 0x20, ..Default::default() };
        [
            kvm_segment::default(),
            kvm_segment::default(),
            kvm_segment { type_: CODE, selector: 0x10, l: long.into(), db: (!long).into(), ..flat },
            kvm_segment { type_: DATA, selector: 0x18, db: 1, ..flat },
            task,
        ]
    }
}

/// A segment as the CPU reads it from the table (Intel SDM volume 3, 3.4.5).
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(if segment.g == 1 { segment.limit >> 12 } else { segment.limit });
    let bit = |value: u8, at: u32| u64::from(value) << at;
    (limit & 0xffff)
        | ((segment.base & 0xff_ffff) << 16)
        | bit(segment.type_, 40)
        | bit(segment.s, 44)
        | bit(segment.dpl, 45)
        | bit(segment.present, 47)
        | ((limit >> 16 & 0xf) << 48)
        | bit(segment.avl, 52)
        | bit(segment.l, 53)
        | bit(segment.db, 54)
        | bit(segment.g, 55)
        | ((segment.base >> 24 & 0xff) << 56)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINUX: Start = Start::Linux64 { entry: GuestAddress(0x100_0000) };
    const PVH: Start = Start::Pvh { entry: GuestAddress(0x100_0010) };

    fn entry(start: Start, selector: u16) -> u64 {
        let at = usize::from(selector);
        u64::from_le_bytes(start.gdt()[at..at + 8].try_into().unwrap())
    }

    #[test]
    fn linux_starts_in_64_bit_mode() {
        let sregs = LINUX.sregs(kvm_sregs::default());
        assert_eq!((sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer), (0x8000_0011, 0x9000, 0x20, 0x500));
        assert_eq!((sregs.cs.selector, sregs.cs.l, sregs.cs.db), (0x10, 1, 0));
        assert_eq!((sregs.ds.selector, sregs.ss.selector, sregs.gdt.limit), (0x18, 0x18, 39));
        assert_eq!((LINUX.regs().rip, LINUX.regs().rsi, LINUX.regs().rflags), (0x100_0000, 0x7000, 2));
        assert_eq!((entry(LINUX, 0x10), entry(LINUX, 0x18)), (0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff));
    }

    #[test]
    fn pvh_starts_flat_without_paging() {
        let sregs = PVH.sregs(kvm_sregs { cr3: 1, cr4: 2, efer: 3, ..Default::default() });
        assert_eq!((sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer), (0x11, 0, 0, 0));
        assert_eq!((sregs.cs.l, sregs.cs.db, sregs.cs.limit, sregs.tr.limit), (0, 1, 0xffff_ffff, 0x67));
        assert_eq!((PVH.regs().rip, PVH.regs().rbx, PVH.regs().rsi), (0x100_0010, 0x6000, 0));
        assert_eq!((entry(PVH, 0x10), entry(PVH, 0x20)), (0x00cf_9b00_0000_ffff, 0x0000_8b00_0000_0067));
    }

    #[test]
    fn the_table_ends_before_the_start_information() {
        assert!(layout::GDT.0 + (LINUX.gdt().len() as u64) < layout::PVH_INFO.0);
    }
}
