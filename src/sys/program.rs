//! The memory of the program itself.

use super::frozen::PAGE;

unsafe extern "C" {
    /// Where the linker begins the program.
    static __executable_start: u8;
    /// Where its code ends. Everything between the two is only ever read.
    static etext: u8;
}

/// Gives back what only the start of the program has used: free pages of its heap, and code, which is in the page cache when it is wanted.
pub fn give_back_start() {
    // SAFETY: the allocator looks at nothing but what is free.
    unsafe { libc::malloc_trim(0) };
    let start = (&raw const __executable_start).cast_mut();
    let end = (&raw const etext).addr() & !(PAGE - 1);
    // SAFETY: these pages are the file's own, since nothing writes there, and are read from it again.
    unsafe { libc::madvise(start.cast(), end - start.addr(), libc::MADV_DONTNEED) };
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::sync::Mutex;

    use super::*;
    use crate::sys::lock;

    /// What is given back is the whole program's: one test at a time.
    static ALONE: Mutex<()> = Mutex::new(());

    /// How many of these pages are in memory.
    fn present(pages: &[usize]) -> usize {
        let map = File::open("/proc/self/pagemap").expect("Linux");
        let is_present = |page: &&usize| {
            let mut entry = [0; 8];
            map.read_exact_at(&mut entry, **page as u64 * 8).expect("an entry for each page");
            entry[7] & 0x80 != 0
        };
        pages.iter().filter(is_present).count()
    }

    #[test]
    fn code_is_given_back() {
        let _alone = lock(&ALONE);
        let start = (&raw const __executable_start).addr() / PAGE;
        let pages: Vec<usize> = (start..(&raw const etext).addr() / PAGE).collect();
        // SAFETY: these pages are the program's, and readable.
        pages.iter().for_each(|page| unsafe {
            ((page * PAGE) as *const u8).read_volatile();
        });
        let before = present(&pages);
        give_back_start();
        // Other tests run at the same time, and none uses all of it.
        assert!(before > 100 && present(&pages) < before, "{before} pages before");
    }

    #[test]
    fn free_pieces_of_the_heap_are_given_back() {
        let _alone = lock(&ALONE);
        let mut pieces: Vec<Box<[u8]>> = (0..16 << 10).map(|_| vec![1; 1 << 10].into()).collect();
        let mut pages: Vec<usize> = pieces.iter().map(|piece| piece.as_ptr().addr() / PAGE).collect();
        pages.dedup();
        // The last one keeps the allocator from giving back all before it by itself.
        let last = pieces.pop();
        drop(pieces);
        let before = present(&pages);
        give_back_start();
        let after = present(&pages);
        assert!(before > 3000 && after < before / 2, "{before} pages before, {after} after");
        assert_eq!(last.map(|piece| piece[0]), Some(1));
    }
}
