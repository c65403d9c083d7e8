use vm_memory::Bytes;

use super::super::fake::{START, bzimage, text};
use super::*;
use crate::memory::{Pages, allocate};

fn memory(mib: u64) -> Memory {
    allocate(&layout::ram_ranges(mib << 20), Pages::Transparent).unwrap()
}

/// A boot image whose header was changed.
fn changed(change: impl FnOnce(&mut setup_header)) -> Source {
    let mut file = bzimage(&text(1000));
    let mut header = setup_header::default();
    let place = HEADER as usize..HEADER as usize + size_of::<setup_header>();
    header.as_mut_slice().copy_from_slice(&file[place.clone()]);
    change(&mut header);
    file[place].copy_from_slice(header.as_slice());
    Source::Bytes(file)
}

#[test]
fn the_payload_is_found() {
    let source = changed(|_| ());
    let image = BzImage::parse(&source).unwrap();
    assert_eq!(image.payload(&source).unwrap().unwrap(), text(1000));
    for source in [changed(|header| header.payload_length = 0), changed(|header| header.version = 0x0207)] {
        assert_eq!(BzImage::parse(&source).unwrap().payload(&source).unwrap(), None);
    }
}

#[test]
fn it_is_loaded_to_decompress_itself() {
    let (source, memory) = (changed(|_| ()), memory(32));
    let entry = BzImage::parse(&source).unwrap().load(&source, &memory).unwrap();
    let Protocol::BzImage { entry: start, header } = entry.protocol else { panic!() };
    assert_eq!((start, entry.end), (GuestAddress(START + 0x200), GuestAddress(START + 0x20_0000)));
    assert_eq!(({ header.code32_start }, { header.version }), (START as u32, 0x020f));
    let mut code = vec![0; 0x400 + 1000];
    memory.read_slice(&mut code, GuestAddress(START)).unwrap();
    assert_eq!(code, [vec![0x90; 0x400], text(1000)].concat());
}

#[test]
fn an_old_header_is_shorter() {
    // A jump of 0x46 bytes: everything from 0x248 on is code.
    let source = changed(|header| header.jump = 0x46eb);
    let image = BzImage::parse(&source).unwrap();
    assert_eq!(({ image.header.payload_offset }, { image.header.init_size }), (0, 0));
    assert_ne!({ image.header.kernel_alignment }, 0);
}

#[test]
fn impossible_headers_are_refused() {
    for (source, what) in [
        (changed(|header| header.payload_offset = u32::MAX), "payload"),
        (changed(|header| header.payload_length = u32::MAX), "payload"),
        (changed(|header| header.syssize = 1), "size of its code"),
        (changed(|header| header.syssize = u32::MAX), "size of its code"),
        (changed(|header| header.syssize += 1), "cut off"),
        (changed(|header| header.setup_sects = 255), "cut off"),
    ] {
        let error = BzImage::parse(&source).unwrap_err();
        assert!(error.to_string().contains(what), "{error}");
    }
}

#[test]
fn impossible_places_are_refused() {
    let load = |change: fn(&mut setup_header)| {
        let source = changed(change);
        BzImage::parse(&source).unwrap().load(&source, &memory(32)).unwrap_err()
    };
    for change in [
        |header: &mut setup_header| header.pref_address = 0,
        |header: &mut setup_header| header.pref_address = u64::MAX,
        |header: &mut setup_header| header.pref_address = layout::HOLE_START - 0x1000,
    ] {
        assert!(matches!(load(change), Error::Segment { .. }));
    }
    assert!(matches!(load(|header| header.init_size = 64 << 20), Error::Memory { needed_mib: 80 }));
    assert!(matches!(load(|header| header.xloadflags = 0), Error::Architecture { .. }));
}

#[test]
fn no_prefix_is_whole() {
    let file = bzimage(&text(100));
    for len in 0..file.len() {
        let error = BzImage::parse(&Source::Bytes(file[..len].to_vec())).unwrap_err();
        assert!(matches!(error, Error::Truncated { .. }), "{len}: {error}");
    }
}

#[test]
fn no_flipped_byte_panics() {
    let (file, memory) = (bzimage(&text(100)), memory(32));
    for at in 0x1f0..0x280 {
        for flip in [1, 0x80, 0xff] {
            let mut damaged = file.clone();
            damaged[at] ^= flip;
            let source = Source::Bytes(damaged);
            if let Ok(image) = BzImage::parse(&source) {
                let _ = image.payload(&source);
                let _ = image.load(&source, &memory);
            }
        }
    }
}
