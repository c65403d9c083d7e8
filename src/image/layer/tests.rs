//! Layers there and back, under qemu-img's eyes, and damaged in every way.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use super::form::{FORMS, Form};
use super::write::write_form;
use super::*;
use crate::disk::State;
use crate::image::Digest;
use crate::testing::{Random, skip};

const CLUSTER: u64 = 16 << 10;
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

/// Blocks of changes.
fn runs(changes: &[(Range<u64>, State)]) -> Runs {
    changes.iter().map(|(bytes, state)| (bytes.start / BLOCK..bytes.end.div_ceil(BLOCK), *state)).collect()
}

/// A layer that was packed in a given form, at a given level.
fn pack_at(
    level: i32,
    form: Form,
    file: &File,
    size: u64,
    runs: &Runs,
) -> (tempfile::NamedTempFile, Written) {
    let packed = tempfile::NamedTempFile::new().unwrap();
    let written = write_form(form, level, file, size, runs, packed.as_file(), &mut |_, _| {}).unwrap();
    (packed, written)
}

fn pack(form: Form, file: &File, size: u64, runs: &Runs) -> (tempfile::NamedTempFile, Written) {
    pack_at(LEVEL, form, file, size, runs)
}

#[test]
fn there_and_back() {
    let sizes = [512, BLOCK, CLUSTER + 512, 1 << 20, (20 << 20) + 512 * 9, 40 << 20];
    for (seed, size) in sizes.into_iter().enumerate() {
        let (file, changes) = disk(seed as u64 + 1, size);
        let wanted = expected(&file, &changes, size);
        for (form, _) in FORMS {
            let (packed, written) = pack(form, &file, size, &runs(&changes));
            let unpacked = tempfile::tempfile().unwrap();
            let (found, read) = read(packed.as_file(), &unpacked, NO_LIMIT).unwrap();
            assert_eq!((found, &read), (size, &written));
            assert!(bytes_of(&unpacked) == wanted, "size {size}, {form:?}");
            // The same content packs to the same bytes, wherever it comes from.
            let (again, same) = pack(form, &unpacked, size, &written.runs);
            assert_eq!((same, Form::of(&written.runs, size)), (written, Form::of(&runs(&changes), size)));
            assert!(bytes_of(again.as_file()) == bytes_of(packed.as_file()));
            // Others read it.
            let raw = tempfile::NamedTempFile::new().unwrap();
            if qemu_img(&["check", "-f", "qcow2"], &[packed.path()]) {
                qemu_img(&["convert", "-f", "qcow2", "-O", "raw"], &[packed.path(), raw.path()]);
                assert!(bytes_of(raw.as_file()) == wanted, "size {size}, {form:?}");
            }
        }
    }
}

#[test]
fn clusters_are_as_large_as_pays() {
    let blocks = |bytes: u64| (bytes / BLOCK).max(1);
    let bits = |at: u64, bytes: u64| {
        Form::of(&vec![(blocks(at)..blocks(at) + blocks(bytes), State::Data)], 4 << 30).bits()
    };
    let found = [BLOCK, 1 << 20, 8 << 20, 192 << 20].map(|bytes| bits(64 << 20, bytes));
    assert_eq!(found, [12, 12, 14, 17]);
    // Larger clusters would not be complete.
    let scattered = (0..50_000).map(|i| (i * 8..i * 8 + 4, State::Data)).collect();
    assert_eq!(Form::of(&scattered, 4 << 30).bits(), 14);
    // QEMU would refuse the first table.
    let last = (64 << 40) / BLOCK - 1;
    assert!(Form::of(&vec![(last..last + 1, State::Data)], 64 << 40).bits() > 12);
}

#[test]
fn little_is_small() {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&[7; BLOCK as usize], 64 << 20).unwrap();
    let packed = tempfile::tempfile().unwrap();
    let change = [(64 << 20..(64 << 20) + BLOCK, State::Data)];
    write(&file, 4 << 30, change, &packed, &mut |_, _| {}).unwrap();
    // Header, L1 table of four clusters, L2 table, a cluster of data, refcount table, a sector of refcounts.
    assert_eq!(packed.metadata().unwrap().len(), 8 * BLOCK + 512);
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

/// Another digest of content means that layers of the same content are not shared with older versions any more.
const GOLDEN: &str = "sha256:17a3fc2c6e5377f8ee8bfef9ad5443a0f2b7dc582ad30d224c08d61052567352";

#[test]
fn golden() {
    let (file, changes) = disk(42, 3 << 20);
    let packed = tempfile::tempfile().unwrap();
    let written = write(&file, 3 << 20, changes, &packed, &mut |_, _| {}).unwrap();
    let bytes = "sha256:7d90976739db5cb0a313d02c036eafbaa1f0a2b9a3f76acba6eb1d456de28e30";
    let packed = Digest::of(&bytes_of(&packed)).to_string();
    assert_eq!((written.diff_id.to_string().as_str(), packed.as_str()), (GOLDEN, bytes));
}

#[test]
fn layers_of_before_are_read() {
    // They had clusters of 16 KiB, all of them at level 9, and whole ones to their end.
    let (file, changes) = disk(42, 3 << 20);
    let form = Form::new(14, 3 << 20).unwrap();
    let (packed, written) = pack_at(9, form, &file, 3 << 20, &runs(&changes));
    let len = packed.as_file().metadata().unwrap().len();
    packed.as_file().set_len(len.next_multiple_of(CLUSTER)).unwrap();
    let bytes = "sha256:29fd129e17e845eb26a5b5bdcbcc091bfefd37ead3b326786a68b6d9f09567a5";
    assert_eq!(Digest::of(&bytes_of(packed.as_file())).to_string(), bytes);
    let (_, read) = read(packed.as_file(), &tempfile::tempfile().unwrap(), NO_LIMIT).unwrap();
    assert_eq!((read.diff_id.to_string().as_str(), read), (GOLDEN, written));
}

#[test]
fn scattered_blocks_share_places() {
    let file = tempfile::tempfile().unwrap();
    for (form, _) in FORMS.into_iter().filter(|(form, _)| form.is_extended()) {
        let mut random = Random(9);
        let changes = (0..400).map(|i| {
            let block = i * 40 + random.below(form.blocks());
            file.write_all_at(&[1; BLOCK as usize], block * BLOCK).unwrap();
            (block..block + 1, State::Data)
        });
        let (packed, _) = pack(form, &file, 64 << 20, &changes.collect());
        let len = packed.as_file().metadata().unwrap().len();
        assert!(len < 400 * BLOCK * 5 / 4 + 10 * form.cluster(), "{form:?}: {len}");
    }
}

#[test]
fn damage_is_an_error_or_another_layer() {
    let size = 2 << 20;
    let (file, changes) = disk(3, size);
    let mut random = Random(17);
    for (form, _) in FORMS {
        let (packed, written) = pack(form, &file, size, &runs(&changes));
        let good = bytes_of(packed.as_file());
        let metadata = (4 * form.cluster()).min(good.len() as u64);
        for turn in 0..500 {
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
                assert!(read.diff_id != written.diff_id || read.runs == written.runs, "{form:?} {turn}");
            }
        }
    }
}

#[test]
fn clusters_of_other_sizes_are_refused() {
    let (file, changes) = disk(3, 1 << 20);
    let (packed, _) = pack(Form::new(12, 1 << 20).unwrap(), &file, 1 << 20, &runs(&changes));
    let unpack = || read(packed.as_file(), &tempfile::tempfile().unwrap(), NO_LIMIT);
    unpack().unwrap();
    for bits in [0, 9, 13, 18, 21, 255] {
        packed.as_file().write_all_at(&[bits], 23).unwrap();
        assert!(unpack().unwrap_err().to_string().contains("form of layers"), "{bits}");
    }
    // Nor is a first table that takes much memory.
    packed.as_file().write_all_at(&[12], 23).unwrap();
    packed.as_file().write_all_at(&(16u64 << 40).to_be_bytes(), 24).unwrap();
    packed.as_file().write_all_at(&(8u32 << 20).to_be_bytes(), 36).unwrap();
    assert!(unpack().unwrap_err().to_string().contains("form of layers"));
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
    for (form, _) in FORMS {
        let mut random = Random(5);
        let noise: Vec<u8> = (0..BLOCK).map(|_| random.next() as u8).collect();
        let blocks = [0, form.blocks()].map(|block| (block..block + 1, State::Data));
        blocks.iter().for_each(|(run, _)| file.write_all_at(&noise, run.start * BLOCK).unwrap());
        let (packed, _) = pack(form, &file, 1 << 20, &blocks.to_vec());
        let unpack = || read(packed.as_file(), &tempfile::tempfile().unwrap(), NO_LIMIT);
        unpack().unwrap();
        let mut entry = vec![0; if form.is_extended() { 16 } else { 8 }];
        packed.as_file().read_exact_at(&mut entry, 2 * form.cluster()).unwrap();
        packed.as_file().write_all_at(&entry, 2 * form.cluster() + entry.len() as u64).unwrap();
        assert!(unpack().unwrap_err().to_string().contains("overlap"), "{form:?}");
    }
}

#[test]
fn what_has_no_room_is_refused_before() {
    let to = tempfile::tempfile().unwrap();
    let size = 8 << 40;
    let form = Form::new(14, size).unwrap();
    let (cluster, entries) = (form.cluster(), form.l2_entries());
    // Others may remove something meanwhile.
    let room = crate::sys::file::room(&to).unwrap() + (16 << 30);
    let count = room / (entries * cluster) + 1;
    if count > 20_000 {
        return skip("more room than a test can fill");
    }
    // Tables that say of every cluster that it is compressed: more than there is room for.
    let tables = 1 + form.l1_clusters(size);
    let end = (tables + count) * cluster;
    let header = header::Header { form, size, refcounts: end, refcount_clusters: 1 };
    let packed = tempfile::tempfile().unwrap();
    packed.set_len(end + cluster).unwrap();
    packed.write_all_at(&header.bytes(), 0).unwrap();
    let table: Vec<u8> = (0..entries).flat_map(|_| (u128::from(COMPRESSED) << 64).to_be_bytes()).collect();
    for index in 0..count {
        let place = (tables + index) * cluster;
        packed.write_all_at(&(place | COPIED).to_be_bytes(), cluster + index * 8).unwrap();
        packed.write_all_at(&table, place).unwrap();
    }
    let error = read(&packed, &to, NO_LIMIT).unwrap_err();
    let crate::image::Error::Io { source, .. } = error else { panic!("{error}") };
    assert_eq!(source.kind(), std::io::ErrorKind::StorageFull, "{source}");
}
