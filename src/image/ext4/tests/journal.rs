//! Journals that e2fsprogs and a kernel write, replayed here and by e2fsck.

use super::*;
use crate::image::view::ReadAt;

/// A file system with a file in it, whose journal then writes blocks over free ones.
fn dirty(options: &[&str], open: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(32 << 20).unwrap();
    tool("mkfs.ext4", &[&["-q", "-F", "-J", "size=4"][..], options].concat(), file.path());
    let directory = tempfile::tempdir().unwrap();
    let content = |name: &str, first: &[u8], blocks: usize| {
        let path = directory.path().join(name);
        let mut bytes = vec![name.as_bytes()[0]; blocks * 4096];
        bytes[..first.len()].copy_from_slice(first);
        std::fs::write(&path, bytes).unwrap();
        path.display().to_string()
    };
    let magic = [0xc0, 0x3b, 0x39, 0x98];
    let (a, b, c, d) =
        (content("a", b"", 40), content("b", &magic, 1), content("c", b"", 1), content("d", b"", 2));
    let script = directory.path().join("script");
    let lines = [
        open.to_string(),
        format!("jw -b 6000-6039 {a}"),
        format!("jw -b 6001 {b}"),
        // What is revoked stays as it was, and what comes after that does not.
        format!("jw -b 6100-6101 {d}"),
        "jw -r 6100,6002".into(),
        format!("jw -b 6002 {c}"),
        // Never committed.
        format!("jw -b 6003 -c {c}"),
        "jc".into(),
    ];
    std::fs::write(&script, lines.join("\n")).unwrap();
    let said = tool("debugfs", &["-w", "-f", &script.display().to_string()], file.path());
    assert!(!said.contains("rror"), "{said}");
    file
}

/// Compares a file system as it is read here with what e2fsck makes of it; returns how many blocks the journal has changed.
fn check_replay(file: &tempfile::NamedTempFile, what: &str) -> usize {
    let mut reader = Reader::open(file.reopen().unwrap()).unwrap().unwrap();
    let journal = reader.inode(8).unwrap();
    let replayed = tempfile::NamedTempFile::new().unwrap();
    std::fs::copy(file.path(), replayed.path()).unwrap();
    // It says that it has changed something.
    let status = run("e2fsck", &["-y", "-E", "journal_only"], replayed.path()).status.code();
    assert!(matches!(status, Some(0 | 1)), "{what}: {status:?}");
    let mut ours = vec![0; file.as_file().metadata().unwrap().len() as usize];
    reader.disk.read_at(0, &mut ours).unwrap();
    let (theirs, before) = (std::fs::read(replayed.path()).unwrap(), std::fs::read(file.path()).unwrap());
    let len = reader.block() as usize;
    let is_journal = |number: u64| {
        let mut starts = journal.extents.iter().filter_map(|extent| Some((extent.start?, extent.count)));
        starts.any(|(start, count)| (start..start + count).contains(&number))
    };
    let mut different = 0;
    // Whether it is clean stands in the superblock, and e2fsck writes that.
    for number in (2..ours.len() / len).filter(|&number| !is_journal(number as u64)) {
        let bytes = number * len..(number + 1) * len;
        assert!(ours[bytes.clone()] == theirs[bytes.clone()], "{what}: block {number}");
        different += usize::from(ours[bytes.clone()] != before[bytes]);
    }
    different
}

#[test]
fn journals_are_replayed_as_by_e2fsck() {
    for block in ["4096", "1024"] {
        for (features, open) in [
            ("^metadata_csum,^64bit", "jo"),
            ("^metadata_csum,64bit", "jo"),
            ("metadata_csum,^64bit", "jo -c -v 2"),
            ("metadata_csum,^64bit", "jo -c -v 3"),
            ("metadata_csum,64bit", "jo -c -v 3"),
        ] {
            let what = format!("{block} {features} {open}");
            let file = dirty(&["-b", block, "-O", features], open);
            let changed = check_replay(&file, &what);
            assert!(changed >= 40, "{what}: only {changed} blocks were in the journal");
        }
    }
}

/// A file system that the host's kernel has mounted.
struct Mounted(tempfile::TempDir);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn journals_of_a_kernel() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(64 << 20).unwrap();
    tool("mkfs.ext4", &["-q", "-F"], file.path());
    let place = tempfile::tempdir().unwrap();
    let mounted = Command::new("mount").args(["-o", "loop"]).arg(file.path()).arg(place.path()).output();
    if !mounted.is_ok_and(|mounted| mounted.status.success()) {
        return crate::testing::skip("only root can mount a file system, where there are loop devices");
    }
    let mounted = Mounted(place);
    let root = mounted.0.path();
    for i in 0..200 {
        let directory = root.join(format!("d{}", i % 9));
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join(format!("f{i}")), vec![i as u8; i * 50]).unwrap();
    }
    std::fs::File::open(root.join("d0/f0")).unwrap().sync_all().unwrap();
    // Blocks of directories that are gone are revoked.
    std::fs::remove_dir_all(root.join("d3")).unwrap();
    std::fs::rename(root.join("d4"), root.join("moved")).unwrap();
    std::fs::File::create(root.join("last")).unwrap().sync_all().unwrap();
    // As after a loss of power.
    let dirty = tempfile::NamedTempFile::new().unwrap();
    std::fs::copy(file.path(), dirty.path()).unwrap();
    drop(mounted);
    assert!(check_replay(&dirty, "a kernel's") > 10);
    let mut reader = Reader::open(dirty.reopen().unwrap()).unwrap().unwrap();
    let root = reader.root().unwrap();
    let names = reader.entries(&root).unwrap();
    assert!(names.contains_key(&b"moved"[..]) && names.contains_key(&b"last"[..]), "{names:?}");
    assert!(!names.contains_key(&b"d3"[..]) && !names.contains_key(&b"d4"[..]), "{names:?}");
}

#[test]
fn damaged_journals_do_no_harm() {
    let file = dirty(&["-b", "1024", "-O", "metadata_csum,64bit"], "jo -c");
    let mut reader = Reader::open(file.reopen().unwrap()).unwrap().unwrap();
    let start = reader.inode(8).unwrap().extents[0].start.unwrap() * 1024;
    let mut random = crate::testing::Random(3);
    for turn in 0..600 {
        let mut good = Vec::new();
        for _ in 0..1 + random.below(3) {
            let within = if turn % 3 == 0 { 100 << 10 } else { 1200 };
            let (at, any) = (start + random.below(within), random.next() as u8);
            let mut byte = [0];
            file.as_file().read_exact_at(&mut byte, at).unwrap();
            good.push((at, byte));
            file.as_file().write_all_at(&[random.pick(&[0, 1, 0xff, any])], at).unwrap();
        }
        // It never panics, and it comes to an end.
        let _ = Reader::open(file.reopen().unwrap());
        good.iter().rev().for_each(|(at, byte)| file.as_file().write_all_at(byte, *at).unwrap());
    }
    // A kind that is not read says what to do.
    let mut features = [0];
    file.as_file().read_exact_at(&mut features, start + 0x2b).unwrap();
    file.as_file().write_all_at(&[features[0] | 0x20], start + 0x2b).unwrap();
    let error = Reader::open(file.reopen().unwrap()).map(drop).unwrap_err().to_string();
    assert!(error.contains("run the image once"), "{error}");
}
