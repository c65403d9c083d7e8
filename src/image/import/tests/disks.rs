//! Whole disks, in and out.

use std::os::unix::fs::FileExt;

use super::*;
use crate::disk::State;
use crate::disk::extents::Map;

#[test]
fn raw_disks_with_and_without_holes_are_the_same() {
    let (directory, store) = store();
    let mut lease = store.lease().unwrap();
    let mut import = |name: &str, sparse: bool| {
        let path = directory.path().join(name);
        let file = File::create(&path).unwrap();
        if !sparse {
            file.write_all_at(&vec![0; 24 << 20], 0).unwrap();
        }
        file.set_len(24 << 20).unwrap();
        file.write_all_at(&[1; 5000], 3 << 20).unwrap();
        file.write_all_at(&[2; 100], (20 << 20) + 77).unwrap();
        store.import_raw(&mut lease, &path, &Commit::new(UNIX_EPOCH)).unwrap()
    };
    let (a, b) = (import("sparse", true), import("full", false));
    assert_eq!(a, b);
    let file = flatten(&store.unpack(&a, u64::MAX).unwrap());
    assert!(std::fs::read(file.path()).unwrap() == std::fs::read(directory.path().join("full")).unwrap());
}

#[test]
fn exported_disks_are_read_as_disks() {
    let (directory, store) = store();
    let mut lease = store.lease().unwrap();
    let raw = directory.path().join("raw");
    let file = File::create(&raw).unwrap();
    {
        // Over two tables, and to an end within a cluster.
        file.set_len((600 << 20) + 4096 + 512).unwrap();
        for (at, len) in [(0, 5000), (70_000, 200_000), (530 << 20, 9), ((600 << 20) + 4096, 512)] {
            file.write_all_at(&vec![at as u8 | 1; len], at).unwrap();
        }
    }
    let image = store.import_raw(&mut lease, &raw, &Commit::new(UNIX_EPOCH)).unwrap();
    let path = directory.path().join("out.qcow2");
    store.export_qcow2(&image, &File::create(&path).unwrap(), u64::MAX).unwrap();
    assert!(path.metadata().unwrap().len() < 2 << 20);
    // As `--disk` opens it, clusters in the order of the disk; and back, the same image.
    let again = store.import_qcow2(&mut lease, &path, &Commit::new(UNIX_EPOCH)).unwrap();
    assert_eq!(again, image);
    let checked = Command::new("qemu-img").args(["check", "-q"]).arg(&path).status();
    match checked {
        Ok(status) => assert!(status.success()),
        Err(_) => crate::testing::skip("no qemu-img, which is to check what was exported"),
    }
}

#[test]
fn small_qcow2_files_are_no_large_disks() {
    let (directory, store) = store();
    let mut lease = store.lease().unwrap();
    // 8 TiB in 16 Ki parts with one table, all of whose clusters are the same one.
    let (cluster, parts) = (1u64 << 16, 1u64 << 14);
    let mut bytes = vec![0; 64 << 16];
    let mut put = |at: u64, field: &[u8]| bytes[at as usize..][..field.len()].copy_from_slice(field);
    put(0, &[b'Q', b'F', b'I', 0xfb, 0, 0, 0, 2]);
    put(20, &16u32.to_be_bytes());
    put(24, &(parts << 29).to_be_bytes());
    put(36, &(parts as u32).to_be_bytes());
    put(40, &(8 * cluster).to_be_bytes());
    put(48, &cluster.to_be_bytes());
    put(56, &1u32.to_be_bytes());
    put(cluster, &(2 * cluster).to_be_bytes());
    let table = |place: u64, count: u64| place.to_be_bytes().repeat(count as usize);
    put(8 * cluster, &table(3 * cluster, parts));
    put(3 * cluster, &table(4 * cluster, cluster / 8));
    let path = directory.path().join("bomb.qcow2");
    std::fs::write(&path, &bytes).unwrap();
    let import = |lease: &mut Lease| store.import_qcow2(lease, &path, &Commit::new(UNIX_EPOCH));
    let error = import(&mut lease).unwrap_err().to_string();
    assert!(error.contains("room"), "{error}");
    // The same size without data is done at once.
    bytes[8 << 16..10 << 16].fill(0);
    std::fs::write(&path, &bytes).unwrap();
    import(&mut lease).unwrap();
}

#[test]
fn zeroes_over_zeroes_are_no_layer() {
    let (directory, store) = store();
    let mut lease = store.lease().unwrap();
    let size = 8 << 30;
    let raw = directory.path().join("raw");
    let file = File::create(&raw).unwrap();
    file.set_len(size).unwrap();
    let blocks = [(1 << 30, 3), (5 << 30, 400)];
    blocks.iter().for_each(|&(at, count)| file.write_all_at(&vec![1; count * 4096], at).unwrap());
    let base = store.import_raw(&mut lease, &raw, &Commit::new(UNIX_EPOCH)).unwrap();
    let empty = tempfile::tempfile().unwrap();
    let mut commit = |parent: &Descriptor, changes| {
        let about = Commit { parent: Some(parent), ..Commit::new(UNIX_EPOCH) };
        store.commit(&mut lease, &about, Some(&Change { file: &empty, size, changes })).unwrap()
    };
    // As fstrim of all leaves it.
    let trimmed = commit(&base, vec![(0..size, State::Zero)]);
    let layers = |image: &Descriptor| {
        let manifest = store.manifest(image).unwrap();
        manifest.of_type(crate::image::DISK_LAYER).cloned().collect::<Vec<_>>()
    };
    assert!(layers(&trimmed)[1].size < 150_000, "{}", layers(&trimmed)[1].size);
    let unpacked = store.unpack(&trimmed, u64::MAX).unwrap();
    let runs = Map::open(File::open(&unpacked.map).unwrap()).unwrap().runs().unwrap();
    assert!(runs.iter().all(|run| run.layer.is_none()), "all of it is zeroes");
    let zeroes: u64 = runs.iter().map(|run| run.count).sum();
    assert!((403..420).contains(&zeroes), "{zeroes} blocks over those that had data");
    // Once more changes nothing.
    let again = commit(&trimmed, vec![(0..size, State::Zero)]);
    assert_eq!(layers(&again), layers(&trimmed));
}
