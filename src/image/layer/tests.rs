//! Layers there and back, under qemu-img's eyes, and damaged in every way.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use super::*;
use crate::disk::State;
use crate::image::Digest;
use crate::testing::{Random, skip};

const NO_LIMIT: u64 = u64::MAX;

/// A file with random changes: text that can be compressed, noise that cannot, zeroes, holes.
fn disk(seed: u64, size: u64) -> (File, Vec<(Range<u64>, State)>) {
    let mut random = Random(seed);
    let file = tempfile::tempfile().unwrap();
    let (mut changes, mut at) = (Vec::new(), random.below(5));
    while at < size.div_ceil(BLOCK) {
        let most = random.pick(&[1, 3, 40]);
        let end = (at + 1 + random.below(most)).min(size.div_ceil(BLOCK));
        let state = if random.once_in(4) { State::Zero } else { State::Data };
        let kind = random.below(8);
        for block in at..end {
            let mut bytes: Vec<u8> = (0..BLOCK).map(|i| (i / 32 + block) as u8).collect();
            match kind {
                0 => bytes.iter_mut().for_each(|byte| *byte = random.next() as u8),
                1 => bytes.fill(0),
                _ => {}
            }
            let len = BLOCK.min(size - block * BLOCK) as usize;
            file.write_all_at(&bytes[..len], block * BLOCK).unwrap();
        }
        changes.push((at * BLOCK..end * BLOCK, state));
        let gap = random.pick(&[0, 0, 1, 3, 6000]);
        at = end + random.below(gap + 1);
    }
    (file, changes)
}

/// The bytes that a layer alone stands for.
fn expected(file: &File, changes: &[(Range<u64>, State)], size: u64) -> Vec<u8> {
    let mut bytes = vec![0; size as usize];
    for (range, _) in changes.iter().filter(|(_, state)| *state == State::Data) {
        let end = range.end.min(size);
        file.read_exact_at(&mut bytes[range.start as usize..end as usize], range.start).unwrap();
    }
    bytes
}

fn bytes_of(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// Asks qemu-img; false, and a word about it, where there is none.
fn qemu_img(arguments: &[&str], files: &[&Path]) -> bool {
    let output = Command::new("qemu-img").args(arguments).args(files).output();
    let Ok(output) = output else {
        skip("no qemu-img, which is to read layers as well");
        return false;
    };
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "qemu-img {arguments:?}: {said}");
    true
}

#[test]
fn there_and_back() {
    let sizes = [512, BLOCK, CLUSTER + 512, 1 << 20, (20 << 20) + 512 * 9, 40 << 20];
    for (seed, size) in sizes.into_iter().enumerate() {
        let (file, changes) = disk(seed as u64 + 1, size);
        let packed = tempfile::NamedTempFile::new().unwrap();
        let written = write(&file, size, changes.clone(), packed.as_file(), &mut |_, _| {}).unwrap();
        let unpacked = tempfile::tempfile().unwrap();
        let (found, read) = read(packed.as_file(), &unpacked, NO_LIMIT).unwrap();
        assert_eq!((found, &read), (size, &written));
        let wanted = expected(&file, &changes, size);
        assert!(bytes_of(&unpacked) == wanted, "size {size}");
        // The same content packs to the same bytes, wherever it comes from.
        let again = tempfile::tempfile().unwrap();
        let runs = written.runs.iter().map(|(run, state)| (run.start * BLOCK..run.end * BLOCK, *state));
        assert_eq!(write(&unpacked, size, runs, &again, &mut |_, _| {}).unwrap(), written);
        assert!(bytes_of(&again) == bytes_of(packed.as_file()));
        // Others read it.
        let raw = tempfile::NamedTempFile::new().unwrap();
        if qemu_img(&["check", "-f", "qcow2"], &[packed.path()]) {
            qemu_img(&["convert", "-f", "qcow2", "-O", "raw"], &[packed.path(), raw.path()]);
            assert!(bytes_of(raw.as_file()) == wanted, "size {size}");
        }
    }
}

#[test]
fn absent_is_not_zero() {
    let size = 8 * BLOCK;
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&[7; BLOCK as usize], BLOCK).unwrap();
    let packed = tempfile::NamedTempFile::new().unwrap();
    let changes = [(BLOCK..2 * BLOCK, State::Data), (2 * BLOCK..3 * BLOCK, State::Zero)];
    write(&file, size, changes, packed.as_file(), &mut |_, _| {}).unwrap();
    // Over another file, blocks show what they say.
    let below = tempfile::NamedTempFile::new().unwrap();
    below.as_file().write_all_at(&[9; 8 * BLOCK as usize], 0).unwrap();
    let raw = tempfile::NamedTempFile::new().unwrap();
    let options = format!(
        "driver=qcow2,file.driver=file,file.filename={},backing.driver=raw,backing.file.driver=file,backing.file.filename={}",
        packed.path().display(),
        below.path().display()
    );
    if qemu_img(&["convert", "-O", "raw", "--image-opts", &options], &[raw.path()]) {
        let bytes = bytes_of(raw.as_file());
        let blocks: Vec<u8> = bytes.chunks(BLOCK as usize).map(|block| block[5]).collect();
        assert_eq!(blocks, [9, 7, 0, 9, 9, 9, 9, 9]);
    }
}

#[test]
fn golden() {
    let (file, changes) = disk(42, 3 << 20);
    let packed = tempfile::tempfile().unwrap();
    let written = write(&file, 3 << 20, changes, &packed, &mut |_, _| {}).unwrap();
    // Another digest here means that layers of the same content are not shared with older versions any more.
    let content = "sha256:17a3fc2c6e5377f8ee8bfef9ad5443a0f2b7dc582ad30d224c08d61052567352";
    let bytes = "sha256:29fd129e17e845eb26a5b5bdcbcc091bfefd37ead3b326786a68b6d9f09567a5";
    let packed = Digest::of(&bytes_of(&packed)).to_string();
    assert_eq!((written.diff_id.to_string().as_str(), packed.as_str()), (content, bytes));
}

#[test]
fn scattered_blocks_share_places() {
    let file = tempfile::tempfile().unwrap();
    let mut random = Random(9);
    let changes = (0..400).map(|i| {
        let block = i * 40 + random.below(BLOCKS);
        file.write_all_at(&[1; BLOCK as usize], block * BLOCK).unwrap();
        (block * BLOCK..(block + 1) * BLOCK, State::Data)
    });
    let changes: Vec<_> = changes.collect();
    let packed = tempfile::tempfile().unwrap();
    write(&file, 64 << 20, changes, &packed, &mut |_, _| {}).unwrap();
    let len = packed.metadata().unwrap().len();
    assert!(len < 400 * BLOCK * 5 / 4 + 10 * CLUSTER, "{len}");
}

#[test]
fn damage_is_an_error_or_another_layer() {
    let size = 2 << 20;
    let (file, changes) = disk(3, size);
    let packed = tempfile::tempfile().unwrap();
    let written = write(&file, size, changes, &packed, &mut |_, _| {}).unwrap();
    let good = bytes_of(&packed);
    let mut random = Random(17);
    let metadata = 4 * CLUSTER;
    for turn in 0..1500 {
        let mut bad = good.clone();
        let within = if turn % 3 == 0 { good.len() as u64 } else { metadata };
        for _ in 0..1 + random.below(3) {
            let at = random.below(if turn % 5 == 0 { 112 } else { within }) as usize;
            let any = random.next() as u8;
            bad[at] = random.pick(&[0, 1, 0x40, 0x80, 0xff, bad[at] ^ 1, any]);
        }
        if random.once_in(10) {
            bad.truncate(random.below(good.len() as u64) as usize);
        }
        let packed = tempfile::tempfile().unwrap();
        packed.write_all_at(&bad, 0).unwrap();
        // It never panics, and never passes for what it is not.
        if let Ok((_, read)) = read(&packed, &tempfile::tempfile().unwrap(), NO_LIMIT) {
            assert!(read.diff_id != written.diff_id || read.runs == written.runs, "{turn}");
        }
    }
}

#[test]
fn large_layers_are_refused() {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&[1; 1 << 20], 0).unwrap();
    let packed = tempfile::tempfile().unwrap();
    write(&file, 1 << 20, [(0..1 << 20, State::Data)], &packed, &mut |_, _| {}).unwrap();
    let error = read(&packed, &tempfile::tempfile().unwrap(), 1 << 19).unwrap_err();
    assert!(matches!(error, crate::image::Error::TooLarge { .. }), "{error}");
}

#[test]
fn clusters_that_overlap_are_refused() {
    // Two changed blocks at the same place of their clusters, which cannot share one in the file.
    let file = tempfile::tempfile().unwrap();
    let changes: Vec<_> = (0..2).map(|i| (i * CLUSTER..i * CLUSTER + BLOCK, State::Data)).collect();
    changes.iter().for_each(|(bytes, _)| file.write_all_at(&[1; BLOCK as usize], bytes.start).unwrap());
    let packed = tempfile::tempfile().unwrap();
    write(&file, 1 << 20, changes, &packed, &mut |_, _| {}).unwrap();
    let unpack = || read(&packed, &tempfile::tempfile().unwrap(), NO_LIMIT);
    unpack().unwrap();
    let mut entry = [0; 16];
    packed.read_exact_at(&mut entry, 2 * CLUSTER).unwrap();
    packed.write_all_at(&entry, 2 * CLUSTER + 16).unwrap();
    assert!(unpack().unwrap_err().to_string().contains("overlap"));
}

#[test]
fn what_has_no_room_is_refused_before() {
    let to = tempfile::tempfile().unwrap();
    let count = crate::sys::file::room(&to).unwrap() / (L2_ENTRIES * CLUSTER) + 1;
    if count > 20_000 {
        return skip("more room than a test can fill");
    }
    // Tables that say of every cluster that it is compressed: more than there is room for.
    let size = 8 << 40;
    let header = header::Header { size, refcounts: 0, refcount_clusters: 0 };
    let tables = 1 + header.l1_clusters();
    let end = (tables + count) * CLUSTER;
    let header = header::Header { refcounts: end, refcount_clusters: 1, ..header };
    let packed = tempfile::tempfile().unwrap();
    packed.set_len(end + CLUSTER).unwrap();
    packed.write_all_at(&header.bytes(), 0).unwrap();
    let table: Vec<u8> = (0..L2_ENTRIES).flat_map(|_| (u128::from(COMPRESSED) << 64).to_be_bytes()).collect();
    for index in 0..count {
        let place = (tables + index) * CLUSTER;
        packed.write_all_at(&(place | COPIED).to_be_bytes(), CLUSTER + index * 8).unwrap();
        packed.write_all_at(&table, place).unwrap();
    }
    let error = read(&packed, &to, NO_LIMIT).unwrap_err();
    let crate::image::Error::Io { source, .. } = error else { panic!("{error}") };
    assert_eq!(source.kind(), std::io::ErrorKind::StorageFull, "{source}");
}
