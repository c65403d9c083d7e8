//! System calls of Linux on x86-64 (`syscall(2)`), and the descriptors and files they work on.

use alloc::string::String;
use alloc::vec::Vec;
use core::arch::asm;
use core::fmt;
use core::ptr::NonNull;

/// Numbers of system calls (`asm/unistd_64.h`).
pub mod nr {
    #![allow(missing_docs)]
    pub const READ: usize = 0;
    pub const WRITE: usize = 1;
    pub const OPEN: usize = 2;
    pub const CLOSE: usize = 3;
    pub const FSTAT: usize = 5;
    pub const POLL: usize = 7;
    pub const MMAP: usize = 9;
    pub const MUNMAP: usize = 11;
    pub const RT_SIGACTION: usize = 13;
    pub const RT_SIGPROCMASK: usize = 14;
    pub const IOCTL: usize = 16;
    pub const DUP2: usize = 33;
    pub const GETPID: usize = 39;
    pub const SOCKET: usize = 41;
    pub const SENDTO: usize = 44;
    pub const BIND: usize = 49;
    pub const LISTEN: usize = 50;
    pub const FORK: usize = 57;
    pub const EXECVE: usize = 59;
    pub const WAIT4: usize = 61;
    pub const KILL: usize = 62;
    pub const FCNTL: usize = 72;
    pub const FSYNC: usize = 74;
    pub const CHDIR: usize = 80;
    pub const RENAME: usize = 82;
    pub const MKDIR: usize = 83;
    pub const UNLINK: usize = 87;
    pub const SYMLINK: usize = 88;
    pub const READLINK: usize = 89;
    pub const CHMOD: usize = 90;
    pub const FCHMOD: usize = 91;
    pub const FCHOWN: usize = 93;
    pub const UMASK: usize = 95;
    pub const SETUID: usize = 105;
    pub const SETGID: usize = 106;
    pub const SETSID: usize = 112;
    pub const SETGROUPS: usize = 116;
    pub const CHROOT: usize = 161;
    pub const SYNC: usize = 162;
    pub const MOUNT: usize = 165;
    pub const UMOUNT2: usize = 166;
    pub const REBOOT: usize = 169;
    pub const SETHOSTNAME: usize = 170;
    pub const IOPERM: usize = 173;
    pub const GETDENTS64: usize = 217;
    pub const CLOCK_SETTIME: usize = 227;
    pub const CLOCK_GETTIME: usize = 228;
    pub const EXIT_GROUP: usize = 231;
    pub const ACCEPT4: usize = 288;
    pub const SIGNALFD4: usize = 289;
    pub const PIPE2: usize = 293;
    pub const PRLIMIT64: usize = 302;
    pub const FINIT_MODULE: usize = 313;
    pub const GETRANDOM: usize = 318;
    pub const PIDFD_OPEN: usize = 434;
}

/// Why the kernel refused.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub u16);

#[allow(missing_docs)]
impl Errno {
    pub const NOENT: Errno = Errno(2);
    pub const INTR: Errno = Errno(4);
    pub const AGAIN: Errno = Errno(11);
    pub const BUSY: Errno = Errno(16);
    pub const INVAL: Errno = Errno(22);
    pub const PIPE: Errno = Errno(32);
    pub const NAMETOOLONG: Errno = Errno(36);
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self.0 {
            1 => "Operation not permitted",
            2 => "No such file or directory",
            5 => "Input/output error",
            7 => "Argument list too long",
            8 => "Exec format error",
            12 => "Out of memory",
            13 => "Permission denied",
            16 => "Device or resource busy",
            17 => "File exists",
            19 => "No such device",
            20 => "Not a directory",
            21 => "Is a directory",
            22 => "Invalid argument",
            26 => "Text file busy",
            28 => "No space left on device",
            30 => "Read-only file system",
            36 => "File name too long",
            40 => "Too many levels of symbolic links",
            95 => "Operation not supported",
            98 => "Address already in use",
            other => return write!(f, "Error {other}"),
        })
    }
}

/// What a system call gave.
pub type Result<T = ()> = core::result::Result<T, Errno>;

/// Makes a system call.
///
/// # Safety
/// What the call reads and writes by its arguments is the caller's.
pub unsafe fn call(number: usize, arguments: [usize; 6]) -> Result<usize> {
    let [a, b, c, d, e, f] = arguments;
    let result: isize;
    // SAFETY: the caller's promise; the kernel changes no other registers.
    unsafe {
        asm!("syscall", inout("rax") number => result, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
            in("r8") e, in("r9") f, out("rcx") _, out("r11") _, options(nostack));
    }
    match result {
        -4095..0 => Err(Errno(-result as u16)),
        result => Ok(result as usize),
    }
}

/// Makes a system call whose arguments are numbers.
pub fn plain(number: usize, [a, b, c]: [usize; 3]) -> Result<usize> {
    // SAFETY: no argument leads to memory.
    unsafe { call(number, [a, b, c, 0, 0, 0]) }
}

/// Ends this process.
pub fn exit(status: u8) -> ! {
    loop {
        let _ = plain(nr::EXIT_GROUP, [status.into(), 0, 0]);
    }
}

/// Fresh zeroed memory.
pub fn map(size: usize) -> Option<NonNull<u8>> {
    const READ_WRITE: usize = 3;
    const PRIVATE_ANONYMOUS: usize = 0x22;
    // SAFETY: a new mapping touches nothing that is there.
    let address = unsafe { call(nr::MMAP, [0, size, READ_WRITE, PRIVATE_ANONYMOUS, usize::MAX, 0]) };
    NonNull::new(address.ok()? as *mut u8)
}

/// Gives memory from [`map`] back.
pub fn unmap(address: *mut u8, size: usize) {
    // SAFETY: the heap gives back only what it mapped and nobody uses any more.
    let _ = unsafe { call(nr::MUNMAP, [address as usize, size, 0, 0, 0, 0]) };
}

/// Says what is wrong on standard error.
pub fn complain(text: &str) {
    for part in ["rvmm-agent: ", text, "\n"] {
        let _ = write(2, part.as_bytes());
    }
}

/// A text with the zero at its end that the kernel wants.
pub fn c_text(text: &str) -> Result<Vec<u8>> {
    if text.as_bytes().contains(&0) {
        return Err(Errno::INVAL);
    }
    let mut bytes = Vec::with_capacity(text.len() + 1);
    bytes.extend_from_slice(text.as_bytes());
    bytes.push(0);
    Ok(bytes)
}

/// Calls again when a signal came between.
pub fn retry<T>(mut work: impl FnMut() -> Result<T>) -> Result<T> {
    loop {
        match work() {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

/// Reads once.
pub fn read(fd: i32, to: &mut [u8]) -> Result<usize> {
    // SAFETY: the kernel writes at most as many bytes as `to` has.
    retry(|| unsafe { call(nr::READ, [fd as usize, to.as_mut_ptr() as usize, to.len(), 0, 0, 0]) })
}

/// Writes once.
pub fn write(fd: i32, from: &[u8]) -> Result<usize> {
    // SAFETY: the kernel only reads `from`.
    retry(|| unsafe { call(nr::WRITE, [fd as usize, from.as_ptr() as usize, from.len(), 0, 0, 0]) })
}

/// Makes a call on a descriptor and something that the kernel reads or writes.
///
/// # Safety
/// `request` fits `argument` (`ioctl(2)`).
pub unsafe fn ioctl<T>(fd: i32, request: usize, argument: &mut T) -> Result<usize> {
    // SAFETY: the caller's promise.
    unsafe { call(nr::IOCTL, [fd as usize, request, argument as *mut T as usize, 0, 0, 0]) }
}

/// A descriptor, closed at the end.
pub struct Fd(pub i32);

impl Drop for Fd {
    fn drop(&mut self) {
        let _ = plain(nr::CLOSE, [self.0 as usize, 0, 0]);
    }
}

/// How files are opened.
#[allow(missing_docs)]
pub mod open {
    pub const READ: usize = 0;
    pub const WRITE: usize = 1;
    pub const READ_WRITE: usize = 2;
    pub const CREATE: usize = 0o100;
    pub const EXCLUSIVE: usize = 0o200;
    pub const NO_TERMINAL: usize = 0o400;
    pub const TRUNCATE: usize = 0o1000;
    pub const NONBLOCK: usize = 0o4000;
    pub const DIRECTORY: usize = 0o200000;
    pub const CLOEXEC: usize = 0o2000000;
}

/// What there is to know of a file.
pub struct Stat {
    /// The file system it is on.
    pub device: u64,
    /// Type and permissions.
    pub mode: u32,
    /// Bytes in it.
    pub size: u64,
    /// Owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

impl Stat {
    /// The type: one of `S_IFREG` (0o100000), `S_IFDIR` (0o040000) and others.
    pub fn kind(&self) -> u32 {
        self.mode & 0o170000
    }
}

impl Fd {
    /// Opens a file. It is closed when another program is started.
    pub fn open(path: &str, flags: usize, mode: u32) -> Result<Fd> {
        let path = c_text(path)?;
        let arguments = [path.as_ptr() as usize, flags | open::CLOEXEC, mode as usize, 0, 0, 0];
        // SAFETY: the kernel reads the path, which has an end.
        retry(|| unsafe { call(nr::OPEN, arguments) }).map(|fd| Fd(fd as i32))
    }

    /// What there is to know of it.
    pub fn stat(&self) -> Result<Stat> {
        // `struct stat` of x86-64: 18 words.
        let mut words = [0_u64; 18];
        // SAFETY: the kernel writes 144 bytes.
        unsafe { call(nr::FSTAT, [self.0 as usize, words.as_mut_ptr() as usize, 0, 0, 0, 0]) }?;
        let (mode, uid) = (words[3] as u32, (words[3] >> 32) as u32);
        Ok(Stat { device: words[0], mode, size: words[6], uid, gid: words[4] as u32 })
    }

    /// Where it is, whatever links led there.
    pub fn path(&self) -> Result<String> {
        let own = c_text(&alloc::format!("/proc/self/fd/{}", self.0))?;
        let mut bytes = [0; 4096];
        let arguments = [own.as_ptr() as usize, bytes.as_mut_ptr() as usize, bytes.len(), 0, 0, 0];
        // SAFETY: the kernel reads a path, which has an end, and writes at most as many bytes as there are.
        let got = unsafe { call(nr::READLINK, arguments) }?;
        core::str::from_utf8(&bytes[..got]).map(String::from).map_err(|_| Errno::INVAL)
    }

    /// Writes all of it.
    pub fn write_all(&self, mut bytes: &[u8]) -> Result {
        while !bytes.is_empty() {
            bytes = &bytes[write(self.0, bytes)?..];
        }
        Ok(())
    }

    /// Calls do not wait.
    pub fn set_nonblocking(&self) -> Result {
        const SET_FLAGS: usize = 4;
        plain(nr::FCNTL, [self.0 as usize, SET_FLAGS, open::NONBLOCK]).map(drop)
    }
}

/// A pipe: what is written to the second comes out of the first.
pub fn pipe() -> Result<(Fd, Fd)> {
    let mut fds = [0_i32; 2];
    // SAFETY: the kernel writes two numbers.
    unsafe { call(nr::PIPE2, [fds.as_mut_ptr() as usize, open::CLOEXEC, 0, 0, 0, 0]) }?;
    Ok((Fd(fds[0]), Fd(fds[1])))
}

/// All of a small file.
pub fn read_file(path: &str) -> Result<String> {
    let file = Fd::open(path, open::READ, 0)?;
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match read(file.0, &mut buffer)? {
            0 => return Ok(String::from_utf8_lossy(&bytes).into_owned()),
            got => bytes.extend_from_slice(&buffer[..got]),
        }
    }
}

/// Replaces the contents of a file that exists.
pub fn write_file(path: &str, bytes: &[u8]) -> Result {
    Fd::open(path, open::WRITE | open::TRUNCATE, 0)?.write_all(bytes)
}

/// Makes a call on a path.
pub fn on_path(number: usize, path: &str) -> Result {
    let path = c_text(path)?;
    // SAFETY: the calls used (chdir, chroot, unlink) read one path, which has an end.
    unsafe { call(number, [path.as_ptr() as usize, 0, 0, 0, 0, 0]) }.map(drop)
}

/// Gives a file another name.
pub fn rename(from: &str, to: &str) -> Result {
    let (from, to) = (c_text(from)?, c_text(to)?);
    // SAFETY: the kernel reads two paths, which have ends.
    unsafe { call(nr::RENAME, [from.as_ptr() as usize, to.as_ptr() as usize, 0, 0, 0, 0]) }.map(drop)
}

/// A clock.
#[allow(missing_docs)]
#[derive(Clone, Copy)]
pub enum Clock {
    Realtime = 0,
    Monotonic = 1,
}

/// The time of a clock in nanoseconds.
pub fn now(clock: Clock) -> u64 {
    let mut time = [0_u64; 2];
    // SAFETY: the kernel writes two numbers.
    let _ = unsafe { call(nr::CLOCK_GETTIME, [clock as usize, time.as_mut_ptr() as usize, 0, 0, 0, 0]) };
    time[0].wrapping_mul(1_000_000_000).wrapping_add(time[1])
}

/// Sets the wall clock, in nanoseconds since 1970.
pub fn set_time(nanoseconds: u64) -> Result {
    let time = [nanoseconds / 1_000_000_000, nanoseconds % 1_000_000_000];
    // SAFETY: the kernel reads two numbers.
    unsafe { call(nr::CLOCK_SETTIME, [Clock::Realtime as usize, time.as_ptr() as usize, 0, 0, 0, 0]) }
        .map(drop)
}

/// What is waited for on a descriptor (`poll(2)`).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Poll {
    fd: i32,
    wanted: i16,
    /// What happened.
    pub found: i16,
}

impl Poll {
    /// There is something to read.
    pub const IN: i16 = 1;
    /// There is room to write.
    pub const OUT: i16 = 4;
    /// Something is wrong or over.
    pub const OVER: i16 = 0x18;

    /// Waits for `wanted`; a negative descriptor is left out.
    pub fn new(fd: i32, wanted: i16) -> Self {
        Poll { fd, wanted, found: 0 }
    }
}

/// Waits until something happens to one of them, or milliseconds have passed (for ever if there are none).
pub fn poll(polls: &mut [Poll], milliseconds: Option<u64>) -> Result<usize> {
    let limit = milliseconds.map_or(-1, |limit| limit.min(1 << 30) as i64) as usize;
    // SAFETY: the kernel reads and writes as many entries as `polls` has.
    unsafe { call(nr::POLL, [polls.as_mut_ptr() as usize, polls.len(), limit, 0, 0, 0]) }
}
