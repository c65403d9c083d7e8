use vm_memory::Bytes;

use super::*;

fn run(first: u64, count: u32) -> Run {
    Run { first, count, kind: Kind::Data }
}

/// More pieces than the kernel takes mappings for, apart from each other; one page of each second one has something in it.
#[test]
fn memory_in_too_many_pieces_is_copied_in_part() {
    const PIECES: u64 = 34_000;
    const STRIDE: u64 = WORTH_MAPPING + GAP + 2;
    let directory = tempfile::tempdir().unwrap();
    let pages = File::create(directory.path().join(PAGES_FILE)).unwrap();
    let mut index = Index::new(PIECES * STRIDE * PAGE as u64);
    pages.set_len(index.ram).unwrap();
    for piece in 0..PIECES {
        index.runs.push(run(piece * STRIDE, WORTH_MAPPING as u32 + u32::from(piece % 16 == 0)));
    }
    for piece in [0, 1, PIECES - 2, PIECES - 1] {
        pages.write_all_at(&[piece as u8; 8], (piece * STRIDE + 3) * PAGE as u64).unwrap();
    }
    index.digests = vec![[0; 32]; index.chunks().len()];
    let mut chain = Chain::default();
    chain.push(&Directory::open(directory.path()).unwrap(), &index.to_bytes(), true).unwrap();
    let (memory, origin) =
        chain.map(&[(GuestAddress(0), index.ram)], &Mode::Cow, Pages::Transparent, &mut |_, _| {}).unwrap();
    assert_eq!(origin.mapped.len(), MOST_MAPPED);
    assert!(
        origin.mapped.contains(&((PIECES - 16) / 16 * 16 * STRIDE, WORTH_MAPPING + 1)),
        "the longest are mapped"
    );
    for piece in [0, 1, PIECES - 2, PIECES - 1] {
        let mut bytes = [0xff; 8];
        memory.read_slice(&mut bytes, GuestAddress((piece * STRIDE + 3) * PAGE as u64)).unwrap();
        assert_eq!(bytes, [piece as u8; 8]);
    }
}

#[test]
fn whoever_waits_for_copies_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let pages = File::create(directory.path().join(PAGES_FILE)).unwrap();
    let mut index = Index::new(3 * READ_AT_ONCE * PAGE as u64);
    pages.set_len(index.ram).unwrap();
    let count = 2 * READ_AT_ONCE + 1;
    index.runs.push(run(5, count as u32));
    let last = (5 + count - 1) * PAGE as u64;
    pages.write_all_at(&[7; 8], last).unwrap();
    index.digests = vec![[0; 32]; index.chunks().len()];
    let mut chain = Chain::default();
    chain.push(&Directory::open(directory.path()).unwrap(), &index.to_bytes(), true).unwrap();
    let mut told = Vec::new();
    let mut tell = |done, total| told.push((done / PAGE as u64, total / PAGE as u64));
    let ranges = [(GuestAddress(0), index.ram)];
    let (memory, _) = chain.map(&ranges, &Mode::Copy, Pages::Transparent, &mut tell).unwrap();
    assert_eq!(told, [(READ_AT_ONCE, count), (2 * READ_AT_ONCE, count), (count, count)]);
    let mut bytes = [0; 8];
    memory.read_slice(&mut bytes, GuestAddress(last)).unwrap();
    assert_eq!(bytes, [7; 8]);
}

#[test]
fn the_upper_layer_wins() {
    let above = [(run(2, 2), 0), (run(6, 1), 0)];
    let merged = merge(&above, &[run(0, 8), run(10, 1)], 1);
    let expected =
        [(run(0, 2), 1), (run(2, 2), 0), (run(4, 2), 1), (run(6, 1), 0), (run(7, 1), 1), (run(10, 1), 1)];
    assert_eq!(merged, expected);
    assert_eq!(merge(&[(run(0, 9), 0)], &[run(3, 2)], 1), [(run(0, 9), 0)]);
    assert_eq!(merge(&[], &[run(3, 2)], 1), [(run(3, 2), 1)]);
}
