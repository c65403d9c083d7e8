//! Maps against a vector of layers.

use std::io::{Seek, SeekFrom};

use super::*;
use crate::testing::Random;

fn saved(runs: &[Run], layers: usize, blocks: u64) -> File {
    let mut file = tempfile::tempfile().unwrap();
    write(runs, layers, blocks, &mut file).unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    file
}

#[test]
fn merged_layers_are_a_vector() {
    let mut random = Random(11);
    let blocks = 5000;
    let (mut merged, mut model) = (Vec::new(), vec![None; blocks as usize]);
    for layer in 0..20 {
        let (mut runs, mut at) = (Vec::new(), 0);
        loop {
            at += random.below(300);
            let count = 1 + random.below(40);
            if at + count > blocks {
                break;
            }
            let place = (!random.once_in(4)).then_some(layer);
            append(&mut runs, Run { start: at, count, layer: place });
            model[at as usize..(at + count) as usize].fill(place);
            at += count;
        }
        merged = merge(&merged, &runs);
        assert!(merged.is_sorted_by(|a, b| a.end() < b.start || a.end() == b.start && a.layer != b.layer));
    }
    assert!(merged.len() > PER_PAGE, "more than a page of runs");
    let mut map = Map::open(saved(&merged, 20, blocks)).unwrap();
    assert_eq!(map.runs().unwrap(), merged);
    for _ in 0..2000 {
        let block = random.below(blocks);
        let run = map.lookup(block).unwrap();
        assert_eq!(run.start, block);
        let covered = &model[block as usize..run.end() as usize];
        assert!(covered.iter().all(|place| *place == run.layer), "{run:?} {covered:?}");
    }
}

#[test]
fn long_runs_and_empty_maps() {
    let long = Run { start: 7, count: 3 << 32, layer: Some(0) };
    let mut map = Map::open(saved(&[long], 1, 1 << 40)).unwrap();
    assert_eq!(map.runs().unwrap(), [long]);
    assert_eq!(map.lookup(0).unwrap(), Run { start: 0, count: 7, layer: None });
    assert_eq!(map.lookup(6 << 32).unwrap().layer, None);
    let mut empty = Map::open(saved(&[], 0, 10)).unwrap();
    assert_eq!(empty.lookup(3).unwrap(), Run { start: 3, count: 7, layer: None });
}

#[test]
fn damaged_maps_are_refused() {
    let runs: Vec<Run> = (0..600).map(|i| Run { start: i * 3, count: 2, layer: Some(0) }).collect();
    let file = saved(&runs, 1, 2000);
    let open = || Map::open(file.try_clone().unwrap());
    assert!(open().is_ok());
    file.write_all_at(&9u16.to_le_bytes(), 4096 + 12).unwrap();
    assert!(open().unwrap().lookup(0).is_err(), "a layer that is not there");
    file.write_all_at(&9u32.to_le_bytes(), 4096 + 24).unwrap();
    assert!(open().unwrap().lookup(3).is_err(), "runs that overlap");
    file.write_all_at(&u64::MAX.to_le_bytes(), 32).unwrap();
    assert!(open().is_err(), "more runs than bytes");
    assert!(Map::open(tempfile::tempfile().unwrap()).is_err());
}

#[test]
fn a_sparse_file_takes_no_memory() {
    // Only there can files be so long on every host.
    let Ok(file) = tempfile::tempfile_in("/dev/shm") else { return };
    file.write_all_at(&saved_header(1 << 60), 0).unwrap();
    file.set_len(1 << 60).unwrap();
    assert!(Map::open(file).is_err());
}

/// The first page of a map in a file of so many bytes.
fn saved_header(len: u64) -> [u8; PAGE] {
    let mut header = [0; PAGE];
    saved(&[], 1, 1 << 40).read_exact_at(&mut header, 0).unwrap();
    header[32..40].copy_from_slice(&((len / PAGE as u64 - 1) * PER_PAGE as u64).to_le_bytes());
    header
}
