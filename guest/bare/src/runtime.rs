//! What the compiler expects of a C library, and the panic handler.

use core::arch::asm;
use core::panic::PanicInfo;

use crate::{end, print};

#[panic_handler]
fn panic(info: &PanicInfo) -> ! {
    print!("FAIL ", crate::test_name(), ": panic");
    if let Some(location) = info.location() {
        print!(" at ", location.file(), ":", location.line());
    }
    print!("\n");
    end::end()
}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, size: usize) -> *mut u8 {
    // SAFETY: the caller's promise; the direction flag is clear.
    unsafe {
        asm!("rep movsq", "mov ecx, {rest:e}", "rep movsb", rest = in(reg) size & 7,
            inout("rdi") to => _, inout("rsi") from => _, inout("rcx") size >> 3 => _, options(nostack));
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
        asm!("std", "rep movsb", "cld", inout("rdi") to.add(size).sub(1) => _,
            inout("rsi") from.add(size).sub(1) => _, inout("rcx") size => _, options(nostack));
    }
    to
}

/// # Safety
/// As in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, size: usize) -> *mut u8 {
    let eight = u64::from(value as u8) * 0x0101_0101_0101_0101;
    // SAFETY: the caller's promise; the direction flag is clear.
    unsafe {
        asm!("rep stosq", "mov ecx, {rest:e}", "rep stosb", rest = in(reg) size & 7,
            inout("rdi") to => _, in("rax") eight, inout("rcx") size >> 3 => _, options(nostack));
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
