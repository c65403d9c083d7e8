//! One virtual CPU: running it, and what makes it stop.

use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::{
    CpuId, KVM_EXIT_IO, KVM_EXIT_IO_OUT, Msrs, kvm_cpuid_entry2, kvm_fpu, kvm_msr_entry, kvm_regs, kvm_run,
    kvm_sregs,
};
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::{Error, ioctl};
use crate::bus::Bus;

/// Why a vCPU came back and what is to be done about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// An access to a device was carried out: run on.
    Done,
    /// Somebody wants the vCPU's attention.
    Interrupted,
    /// The vCPU shut down after a triple fault.
    Shutdown,
    /// The vCPU cannot go on; what KVM says about it.
    Failed(String),
}

/// A virtual CPU. One thread runs it.
pub struct Vcpu {
    pub(super) fd: VcpuFd,
    /// 32-bit words that KVM's XSAVE has.
    pub(super) xsave_words: usize,
    /// The identity and features it was given. KVM is not asked for them: what it tells has the state of control registers in it,
    /// and where KVM cannot hide a feature it tells the host's.
    pub(super) cpuid: Vec<kvm_cpuid_entry2>,
}

impl Vcpu {
    pub(super) fn new(fd: VcpuFd, xsave_words: usize) -> Self {
        Vcpu { fd, xsave_words, cpuid: Vec::new() }
    }

    /// Gives the CPU its identity and features.
    pub fn set_cpuid(&mut self, entries: &[kvm_cpuid_entry2]) -> Result<(), Error> {
        let doing = "set the CPU features";
        let cpuid = CpuId::from_entries(entries).map_err(|_| Error::TooMany { doing })?;
        self.fd.set_cpuid2(&cpuid).map_err(ioctl(doing))?;
        self.cpuid = entries.to_vec();
        Ok(())
    }

    /// Special registers as they are now.
    pub fn sregs(&self) -> Result<kvm_sregs, Error> {
        self.fd.get_sregs().map_err(ioctl("read the special registers"))
    }

    /// Sets the special registers.
    pub fn set_sregs(&self, sregs: &kvm_sregs) -> Result<(), Error> {
        self.fd.set_sregs(sregs).map_err(ioctl("set the special registers"))
    }

    /// Sets the general registers.
    pub fn set_regs(&self, regs: &kvm_regs) -> Result<(), Error> {
        self.fd.set_regs(regs).map_err(ioctl("set the general registers"))
    }

    /// Sets the floating-point registers.
    pub fn set_fpu(&self, fpu: &kvm_fpu) -> Result<(), Error> {
        self.fd.set_fpu(fpu).map_err(ioctl("set the floating-point registers"))
    }

    /// Sets model-specific registers; KVM must take every one.
    pub fn set_msrs(&self, entries: &[kvm_msr_entry]) -> Result<(), Error> {
        let doing = "set the model-specific registers";
        let msrs = Msrs::from_entries(entries).map_err(|_| Error::TooMany { doing })?;
        let count = self.fd.set_msrs(&msrs).map_err(ioctl(doing))?;
        // KVM stops at the first that it does not take.
        match entries.get(count) {
            None => Ok(()),
            Some(entry) => Err(Error::Msr { index: entry.index, value: entry.data }),
        }
    }

    /// A handle with which another thread gets this vCPU to stop.
    pub fn interrupter(&self) -> Result<Interrupter, Error> {
        let doing = "map a vCPU's run page";
        Interrupter::new(&self.fd).map_err(|error| Error::Ioctl { doing, source: error.into() })
    }

    /// The vCPU has been stopped by its [`Interrupter`]: the next run really runs.
    pub fn acknowledge(&mut self) {
        self.fd.set_kvm_immediate_exit(0);
    }

    /// Lets KVM finish the access to a device that it left for, without running the guest: only then are the
    /// registers whole (Documentation/virt/kvm/api.rst, KVM_RUN). A string instruction or a wide access may leave
    /// for its next part, which is carried out as well.
    pub fn settle(&mut self, pio: &Bus, mmio: &Bus) {
        self.fd.set_kvm_immediate_exit(1);
        while self.run(pio, mmio) == Exit::Done {}
    }

    /// Runs until the next exit and carries out device accesses on the two buses.
    pub fn run(&mut self, pio: &Bus, mmio: &Bus) -> Exit {
        match self.fd.run() {
            Ok(VcpuExit::IoIn(port, _) | VcpuExit::IoOut(port, _)) => self.port_access(port, pio),
            Ok(VcpuExit::MmioRead(address, data)) => {
                mmio.read(address, data);
                Exit::Done
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                mmio.write(address, data);
                Exit::Done
            }
            Ok(VcpuExit::Intr | VcpuExit::Hlt | VcpuExit::IrqWindowOpen) => Exit::Interrupted,
            Ok(VcpuExit::Shutdown) => Exit::Shutdown,
            Ok(VcpuExit::InternalError) => Exit::Failed(self.internal_error()),
            Ok(VcpuExit::FailEntry(reason, cpu)) => {
                Exit::Failed(format!("the host CPU {cpu} refused to enter the guest, reason {reason:#x}"))
            }
            Ok(other) => Exit::Failed(format!("unexpected exit {other:?}")),
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => Exit::Interrupted,
            Err(error) => Exit::Failed(format!("KVM_RUN failed: {error}")),
        }
    }

    /// Carries out a port access, which may be a string instruction with many elements.
    fn port_access(&mut self, port: u16, pio: &Bus) -> Exit {
        let run = self.fd.get_kvm_run();
        debug_assert_eq!(run.exit_reason, KVM_EXIT_IO);
        // SAFETY: the exit reason says that this member of the union is the valid one.
        let io = unsafe { run.__bindgen_anon_1.io };
        let (width, len) = (usize::from(io.size), usize::from(io.size) * io.count as usize);
        // SAFETY: the kernel places `count` elements of `size` bytes at `data_offset`, inside the
        // mapping that holds `kvm_run`, and nothing else borrows it while `run` is borrowed.
        let data = unsafe {
            let start = std::ptr::from_mut(run).cast::<u8>().add(io.data_offset as usize);
            std::slice::from_raw_parts_mut(start, len)
        };
        for element in data.chunks_exact_mut(width.max(1)) {
            match u32::from(io.direction) == KVM_EXIT_IO_OUT {
                true => pio.write(port.into(), element),
                false => pio.read(port.into(), element),
            }
        }
        Exit::Done
    }

    /// What KVM says about an internal error, with the place in the guest where it happened.
    fn internal_error(&mut self) -> String {
        // SAFETY: the exit reason says that this member of the union is the valid one.
        let internal = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.internal };
        let what = match internal.suberror {
            1 => "KVM could not emulate an instruction",
            2 => "two exceptions came at once",
            3 => "an exit came while an event was delivered",
            4 => "an exit had an unexpected reason",
            _ => "KVM gives no known reason",
        };
        let count = internal.data.len().min(internal.ndata as usize);
        let place = self.fd.get_regs().map(|regs| format!(" at rip {:#x}", regs.rip)).unwrap_or_default();
        format!("{what}{place} (suberror {}, data {:x?})", internal.suberror, &internal.data[..count])
    }
}

/// Stops a vCPU from another thread: the flag makes the next KVM_RUN return at once, a signal to the
/// vCPU's thread ends the one under way.
pub struct Interrupter(NonNull<kvm_run>);

// SAFETY: the page belongs to this value alone until it is dropped, and is only written to atomically.
unsafe impl Send for Interrupter {}
// SAFETY: as above.
unsafe impl Sync for Interrupter {}

impl Interrupter {
    /// Maps the start of the vCPU's `kvm_run` a second time, so that it stays valid whatever becomes of the vCPU.
    fn new(vcpu: &VcpuFd) -> io::Result<Self> {
        let (protection, fd) = (libc::PROT_READ | libc::PROT_WRITE, vcpu.as_raw_fd());
        // SAFETY: a fresh shared mapping of a vCPU descriptor; no address is forced.
        let page = unsafe {
            libc::mmap(std::ptr::null_mut(), size_of::<kvm_run>(), protection, libc::MAP_SHARED, fd, 0)
        };
        match NonNull::new(page) {
            Some(page) if page.as_ptr() != libc::MAP_FAILED => Ok(Interrupter(page.cast())),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Raises the flag. The caller sends the signal afterwards.
    pub fn raise(&self) {
        // SAFETY: the page is mapped while `self` lives; a byte is always aligned.
        unsafe { AtomicU8::from_ptr(&raw mut (*self.0.as_ptr()).immediate_exit) }.store(1, Ordering::SeqCst);
    }
}

impl Drop for Interrupter {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `new` with this size and nothing points into it any more.
        unsafe { libc::munmap(self.0.as_ptr().cast(), size_of::<kvm_run>()) };
    }
}
