//! What the compiler expects of a C library: the entry, moves of memory, a heap, an end for panics.

use core::alloc::{GlobalAlloc, Layout};
use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use core::panic::PanicInfo;
use core::ptr::{self, NonNull};

use crate::sys;

// At the entry the stack holds the number of arguments and then the arguments (System V ABI, 3.4.1).
global_asm!(
    ".globl _start",
    "_start:",
    "xor ebp, ebp",
    "mov rdi, rsp",
    "and rsp, -16",
    "call {start}",
    "ud2",
    start = sym start,
);

unsafe extern "C" fn start(stack: *const usize) -> ! {
    // SAFETY: the kernel has put the number of arguments and as many pointers to texts there, which stay for ever.
    let arguments = unsafe { core::slice::from_raw_parts(stack.add(1).cast::<*const u8>(), *stack) };
    crate::main(arguments)
}

#[panic_handler]
fn panic(_: &PanicInfo) -> ! {
    sys::complain("panic");
    sys::exit(101)
}

/// What the compiled standard library refers to for unwinding, which never happens: a panic ends the process.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// As above.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    sys::exit(101)
}

/// Smallest and largest piece that is kept for another use, as powers of two. What is larger goes back to the kernel.
const SMALLEST: u32 = 4;
const LARGEST: u32 = 17;
/// What is asked of the kernel at once for small pieces.
const CHUNK: usize = 64 << 10;

/// Memory in pieces whose sizes are powers of two. A process of this program has one thread.
struct Heap(UnsafeCell<Free>);

struct Free {
    lists: [*mut u8; LARGEST as usize + 1],
    chunk: *mut u8,
    left: usize,
}

// SAFETY: there is one thread.
unsafe impl Sync for Heap {}

#[global_allocator]
static HEAP: Heap = Heap(UnsafeCell::new(Free {
    lists: [ptr::null_mut(); LARGEST as usize + 1],
    chunk: ptr::null_mut(),
    left: 0,
}));

fn class(layout: Layout) -> u32 {
    layout.size().max(layout.align()).next_power_of_two().trailing_zeros().max(SMALLEST)
}

// SAFETY: every piece is as large as its class and aligned to its size, except those of whole pages, which are aligned to
// pages; no piece is in two hands, for it leaves its list or the chunk when it is given.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let class = class(layout);
        let size = 1 << class;
        if class > LARGEST || layout.align() > 4096 {
            return sys::map(layout.size()).map_or(ptr::null_mut(), NonNull::as_ptr);
        }
        // SAFETY: one thread, and nothing below calls back.
        let free = unsafe { &mut *self.0.get() };
        let list = &mut free.lists[class as usize];
        if !list.is_null() {
            let piece = *list;
            // SAFETY: a free piece begins with the pointer to the next one.
            *list = unsafe { piece.cast::<*mut u8>().read() };
            return piece;
        }
        let skip = free.chunk.align_offset(size.min(4096));
        if free.chunk.is_null() || free.left < skip + size {
            let wanted = size.max(CHUNK);
            let Some(chunk) = sys::map(wanted) else { return ptr::null_mut() };
            (free.chunk, free.left) = (chunk.as_ptr(), wanted);
        } else {
            free.chunk = free.chunk.wrapping_add(skip);
            free.left -= skip;
        }
        let piece = free.chunk;
        free.chunk = piece.wrapping_add(size);
        free.left -= size;
        piece
    }

    unsafe fn dealloc(&self, piece: *mut u8, layout: Layout) {
        let class = class(layout);
        if class > LARGEST || layout.align() > 4096 {
            return sys::unmap(piece, layout.size());
        }
        // SAFETY: one thread; the piece is the caller's to give, and at least 16 bytes long.
        unsafe {
            let free = &mut *self.0.get();
            piece.cast::<*mut u8>().write(free.lists[class as usize]);
            free.lists[class as usize] = piece;
        }
    }
}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, size: usize) -> *mut u8 {
    // SAFETY: the caller's promise; the direction flag is clear.
    unsafe {
        asm!("rep movsb", inout("rdi") to => _, inout("rsi") from => _, inout("rcx") size => _,
            options(nostack, preserves_flags));
    }
    to
}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, size: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= size {
        // SAFETY: a copy upwards never overwrites what it has still to read.
        return unsafe { memcpy(to, from, size) };
    }
    // SAFETY: the caller's promise; the direction flag is clear again at the end.
    unsafe {
        asm!("std", "rep movsb", "cld", inout("rdi") to.wrapping_add(size).wrapping_sub(1) => _,
            inout("rsi") from.wrapping_add(size).wrapping_sub(1) => _, inout("rcx") size => _, options(nostack));
    }
    to
}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, size: usize) -> *mut u8 {
    // SAFETY: the caller's promise; the direction flag is clear.
    unsafe {
        asm!("rep stosb", inout("rdi") to => _, in("al") value as u8, inout("rcx") size => _,
            options(nostack, preserves_flags));
    }
    to
}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(left: *const u8, right: *const u8, size: usize) -> i32 {
    for index in 0..size {
        // SAFETY: the caller's promise.
        let (left, right) = unsafe { (*left.add(index), *right.add(index)) };
        if left != right {
            return i32::from(left) - i32::from(right);
        }
    }
    0
}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(left: *const u8, right: *const u8, size: usize) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { memcmp(left, right, size) }
}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn strlen(text: *const u8) -> usize {
    let mut length = 0;
    // SAFETY: the caller's promise.
    while unsafe { text.add(length).read_volatile() } != 0 {
        length += 1;
    }
    length
}
