//! File systems under e2fsck's and debugfs's eyes.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use super::*;

mod hostile;
mod journal;

fn attributes(mode: u16) -> Attributes {
    Attributes { mode, uid: 1000, gid: 70_000, mtime: 1_700_000_000, xattrs: BTreeMap::new() }
}

/// A file system with the file that it is in.
fn new(size: u64) -> (FileSystem, tempfile::NamedTempFile) {
    let file = tempfile::NamedTempFile::new().unwrap();
    (FileSystem::new(size, file.reopen().unwrap()).unwrap(), file)
}

fn put_file(fs: &mut FileSystem, path: &str, content: &[u8]) {
    let id = fs.put(path.as_bytes(), Kind::File, attributes(0o644)).unwrap();
    fs.fill(id, content.len() as u64, &mut &content[..]).unwrap();
}

fn run(name: &str, arguments: &[&str], path: &Path) -> std::process::Output {
    let mut command = Command::new(name);
    command.env("PATH", format!("/usr/sbin:/sbin:{}", std::env::var("PATH").unwrap_or_default()));
    command.args(arguments).arg(path).output().expect("e2fsprogs is installed")
}

fn tool(name: &str, arguments: &[&str], path: &Path) -> String {
    let output = run(name, arguments, path);
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name} {arguments:?}: {said}");
    said
}

fn check(file: &tempfile::NamedTempFile) {
    tool("e2fsck", &["-f", "-n"], file.path());
}

fn ask(file: &tempfile::NamedTempFile, question: &str) -> String {
    tool("debugfs", &["-R", question], file.path())
}

#[test]
fn everything_is_where_it_should_be() {
    let (mut fs, file) = new(64 << 20);
    let big: Vec<u8> = (0..3_000_001u32).map(|i| (i / 100) as u8).collect();
    put_file(&mut fs, "usr/bin/big", &big);
    put_file(&mut fs, "empty", b"");
    fs.put(b"lib", Kind::Symlink(b"usr/lib".into()), attributes(0o777)).unwrap();
    fs.put(b"usr/lib", Kind::Directory, attributes(0o1777)).unwrap();
    put_file(&mut fs, "lib/through", b"a link");
    fs.put(b"long", Kind::Symlink(vec![b'x'; 300]), attributes(0o777)).unwrap();
    fs.put(b"dev/null", Kind::Character(1, 3), attributes(0o666)).unwrap();
    fs.put(b"dev/sdzz", Kind::Block(259, 70_000), attributes(0o660)).unwrap();
    fs.put(b"pipe", Kind::Fifo, attributes(0o600)).unwrap();
    fs.link(b"usr/hard", b"./usr/bin/big").unwrap();
    let mut with = attributes(0o4755);
    with.xattrs.insert(b"security.capability".into(), vec![1; 20]);
    fs.put(b"ping", Kind::File, with.clone()).unwrap();
    for i in 0..20u8 {
        with.xattrs.insert(format!("user.key{i}").into_bytes(), vec![i; usize::from(i) * 3]);
    }
    fs.put(b"many", Kind::File, with).unwrap();
    for i in 0..3000 {
        fs.put(format!("var/entries/with-a-long-name-{i}").as_bytes(), Kind::File, attributes(0o600))
            .unwrap();
    }
    let changed = fs.end_layer().unwrap();
    check(&file);
    let bytes: u64 = changed.iter().map(|(range, _)| range.end - range.start).sum();
    assert!(bytes < 6 << 20, "{bytes} bytes for 3 MB of files");
    let stat = ask(&file, "stat /usr/hard");
    assert!(
        stat.contains("Links: 2") && stat.contains("Size: 3000001") && stat.contains("Group: 70000"),
        "{stat}"
    );
    assert!(ask(&file, "stat /usr/lib").contains("Mode:  01777"));
    assert!(ask(&file, "cat /usr/lib/through").starts_with("a link"));
    assert!(ask(&file, "stat /dev/sdzz").contains("259:70000"));
    assert!(ask(&file, "stat /long").contains("Size: 300"));
    assert!(ask(&file, "ea_get -x /ping security.capability").contains("01 01 01"));
    assert!(ask(&file, "ea_get -x /many user.key7").contains("07 07"));
    let copy = tempfile::NamedTempFile::new().unwrap();
    ask(&file, &format!("dump /usr/bin/big {}", copy.path().display()));
    assert!(std::fs::read(copy.path()).unwrap() == big);
}

#[test]
fn a_layer_changes_little() {
    let (mut fs, file) = new(1 << 30);
    for i in 0..500 {
        put_file(&mut fs, &format!("usr/share/{}/file{i}", i % 7), &vec![i as u8; 10_000]);
    }
    fs.end_layer().unwrap();
    check(&file);
    put_file(&mut fs, "usr/share/3/file3", &[1; 20_000]);
    put_file(&mut fs, "etc/new", b"new");
    fs.remove(b"usr/share/4/file4").unwrap();
    fs.clear(b"usr/share/5").unwrap();
    put_file(&mut fs, "usr/share/5/own", b"own");
    fs.clear(b"usr/share/5").unwrap();
    let changed: u64 = fs.end_layer().unwrap().iter().map(|(range, _)| range.end - range.start).sum();
    check(&file);
    assert!(changed < 60 * BLOCK, "{changed} bytes");
    assert_eq!(fs.end_layer().unwrap(), [], "nothing has changed");
    assert!(
        ask(&file, "ls /usr/share/5").contains("own") && !ask(&file, "ls /usr/share/5").contains("file5")
    );
    assert!(!ask(&file, "ls /usr/share/4").contains("file4 "));
    fs.remove(b"usr").unwrap();
    fs.end_layer().unwrap();
    check(&file);
    assert_eq!(fs.nodes.len(), 3);
}

#[test]
fn the_same_twice() {
    let make = || {
        let (mut fs, file) = new(32 << 20);
        for i in 0..50 {
            put_file(&mut fs, &format!("a/{i}"), &vec![i; 5000]);
        }
        fs.end_layer().unwrap();
        std::fs::read(file.path()).unwrap()
    };
    assert!(make() == make());
}

#[test]
fn pieces_make_a_tree_of_extents() {
    let (mut fs, file) = new(64 << 20);
    for i in 0..2400 {
        put_file(&mut fs, &format!("f{i}"), &[7; 4096]);
    }
    fs.end_layer().unwrap();
    (0..2400).step_by(2).for_each(|i| fs.remove(format!("f{i}").as_bytes()).unwrap());
    put_file(&mut fs, "rest", &vec![8; 54 << 20]);
    fs.end_layer().unwrap();
    check(&file);
    assert!(fs.nodes.values().any(|node| node.leaves.len() > 1));
    let copy = tempfile::NamedTempFile::new().unwrap();
    ask(&file, &format!("dump /rest {}", copy.path().display()));
    assert!(std::fs::read(copy.path()).unwrap() == vec![8; 54 << 20]);
}

#[test]
fn hostile_entries_are_refused() {
    let (mut fs, file) = new(16 << 20);
    fs.put(b"loop", Kind::Symlink(b"loop".into()), attributes(0o777)).unwrap();
    fs.put(b"out", Kind::Symlink(b"/../../../etc".into()), attributes(0o777)).unwrap();
    put_file(&mut fs, "file", b"");
    let long = vec![b'a'; 256];
    for bad in [&b"/etc/passwd"[..], b"../x", b"a/../../x", b"loop/x", b"file/x", b"a\0b", &long, b"", b"./"]
    {
        assert!(fs.put(bad, Kind::File, attributes(0o644)).is_err(), "{}", String::from_utf8_lossy(bad));
    }
    // Inside of the image, whatever the link says.
    put_file(&mut fs, "out/passwd", b"mine");
    assert!(fs.link(b"l", b"nothing").is_err() && fs.link(b"l", b"out").is_ok());
    let id = fs.put(b"huge", Kind::File, attributes(0o644)).unwrap();
    assert!(matches!(fs.fill(id, 1 << 40, &mut std::io::repeat(1)), Err(Error::Full { .. })));
    let deep = b"d/".repeat(2000);
    fs.put(&deep, Kind::Directory, attributes(0o755)).unwrap();
    fs.end_layer().unwrap();
    check(&file);
    assert!(ask(&file, "cat /etc/passwd").starts_with("mine"));
    fs.remove(b"d").unwrap();
    fs.end_layer().unwrap();
    check(&file);
    for size in [0, 1 << 20, 16 << 40, u64::MAX] {
        assert!(FileSystem::new(size, tempfile::tempfile().unwrap()).is_err());
    }
}

#[test]
fn whiteouts_hide_lower_layers_wherever_they_stand() {
    let (mut fs, file) = new(16 << 20);
    for path in ["a/sub/old", "a/sub/deep/old", "a/gone/old", "b/old", "b/kept/old", "c/old"] {
        put_file(&mut fs, path, b"old");
    }
    fs.end_layer().unwrap();
    // Named again, or only gone through, before the whiteout.
    fs.put(b"a/sub", Kind::Directory, attributes(0o700)).unwrap();
    put_file(&mut fs, "a/sub/deep/new", b"new");
    fs.clear(b"a").unwrap();
    fs.put(b"b", Kind::Directory, attributes(0o711)).unwrap();
    put_file(&mut fs, "b/kept/new", b"new");
    fs.remove(b"b").unwrap();
    // Once more hides nothing more.
    put_file(&mut fs, "a/late", b"new");
    fs.clear(b"a").unwrap();
    fs.clear(b"").unwrap();
    fs.end_layer().unwrap();
    check(&file);
    let names = |path: &str| {
        let said = ask(&file, &format!("ls -p {path}"));
        let names = said.lines().filter_map(|line| line.split('/').nth(5));
        names.filter(|name| !matches!(*name, "" | "." | "..")).map(str::to_string).collect::<Vec<_>>()
    };
    assert_eq!(names("/"), ["a", "b"]);
    assert_eq!(
        (names("/a"), names("/a/sub"), names("/a/sub/deep")),
        (vec!["sub".into(), "late".into()], vec!["deep".into()], vec!["new".to_string()])
    );
    assert_eq!((names("/b"), names("/b/kept")), (vec!["kept".into()], vec!["new".to_string()]));
}

#[test]
fn links_lead_through_names_alone() {
    let (mut fs, file) = new(16 << 20);
    let long = [&[b'x'; 256][..], b"/y"].concat();
    fs.put(b"link", Kind::Symlink(long), attributes(0o777)).unwrap();
    assert!(fs.put(b"link/z", Kind::File, attributes(0o644)).is_err());
    fs.end_layer().unwrap();
    check(&file);
}

#[test]
fn names_and_attributes_have_an_end() {
    let (mut fs, _file) = new(64 << 20);
    let with = |i: u32| {
        let mut with = attributes(0o644);
        with.xattrs.insert(b"user.a".into(), vec![i as u8; 3000]);
        // What ext4 has no place for is not kept.
        with.xattrs.insert(b"none.a".into(), vec![0; 1 << 20]);
        with
    };
    for i in 0..300 {
        fs.put(format!("{i}").as_bytes(), Kind::File, with(i)).unwrap();
    }
    assert!((900_000..1_200_000).contains(&fs.held), "{}", fs.held);
    // As many more as there may be.
    fs.held += 1 << 30;
    assert!(matches!(fs.put(b"more", Kind::File, with(1)), Err(Error::Crowded)));
    let target = Kind::Symlink(vec![b'x'; 4000]);
    assert!(matches!(fs.put(b"more", target, attributes(0o777)), Err(Error::Crowded)));
    assert!(matches!(fs.link(b"more", b"1"), Err(Error::Crowded)));
    fs.held -= 1 << 30;
    fs.layer += 1;
    fs.clear(b"").unwrap();
    assert_eq!(fs.held, 0, "what is removed is not counted any more");
}

#[test]
fn acls_are_kept() {
    let acl = |entries: &[(u16, u16, u32)]| {
        let entry = |&(tag, permissions, id): &(u16, u16, u32)| {
            [&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id.to_le_bytes()].concat()
        };
        [vec![2, 0, 0, 0], entries.iter().flat_map(entry).collect()].concat()
    };
    let all = u32::MAX;
    let own = acl(&[(1, 6, all), (2, 4, 502), (4, 5, all), (8, 2, 7), (0x10, 7, all), (0x20, 0, all)]);
    let mut with = attributes(0o640);
    with.xattrs.insert(b"system.posix_acl_access".into(), own.clone());
    let (mut fs, file) = new(16 << 20);
    fs.put(b"file", Kind::File, with.clone()).unwrap();
    with.xattrs.insert(b"system.posix_acl_default".into(), own.clone());
    with.xattrs.insert(b"user.long".into(), vec![9; 500]);
    fs.put(b"directory", Kind::Directory, with.clone()).unwrap();
    let mut bad = with.clone();
    bad.xattrs.insert(b"system.posix_acl_access".into(), vec![1; 12]);
    assert!(fs.put(b"bad", Kind::File, bad).is_err());
    fs.end_layer().unwrap();
    check(&file);
    // As e2fsprogs know it, which translate as the kernel does.
    let hex: Vec<String> = own.iter().map(|byte| format!("{byte:02x}")).collect();
    // Where there is no id, they have another one that is none.
    let hex = hex.join(" ").replace("ff ff ff ff", "00 00 00 00");
    let said = ask(&file, "ea_get -x /file system.posix_acl_access");
    assert!(said.contains(&hex), "{said}");
    let mut reader = Reader::open(file.reopen().unwrap()).unwrap().unwrap();
    let root = reader.root().unwrap();
    let number = reader.entries(&root).unwrap()[&b"directory"[..]];
    assert_eq!(reader.inode(number).unwrap().xattrs, with.xattrs);
}

#[test]
fn as_many_names_as_there_can_be() {
    let (mut fs, file) = new(64 << 20);
    put_file(&mut fs, "file", b"many");
    (1..65_000).for_each(|i| fs.link(format!("{i}").as_bytes(), b"file").unwrap());
    assert!(fs.link(b"one-more", b"file").is_err());
    fs.end_layer().unwrap();
    check(&file);
    assert!(ask(&file, "stat /file").contains("Links: 65000"));
}

#[test]
fn golden() {
    let (mut fs, file) = new(32 << 20);
    for i in 0..300u32 {
        put_file(&mut fs, &format!("usr/{}/{i}", i % 7), &vec![i as u8; i as usize * 97]);
    }
    let mut with = attributes(0o755);
    with.xattrs.insert(b"security.capability".into(), vec![1; 20]);
    fs.put(b"bin", Kind::Symlink(b"usr/bin".into()), with.clone()).unwrap();
    with.xattrs.insert(b"user.long".into(), vec![3; 300]);
    fs.put(b"dev/null", Kind::Character(1, 3), with).unwrap();
    fs.end_layer().unwrap();
    fs.remove(b"usr/3").unwrap();
    put_file(&mut fs, "usr/4/new", &[5; 70_000]);
    fs.end_layer().unwrap();
    check(&file);
    // Another digest here means that images share no layers with those that older versions have made.
    let digest = crate::image::Digest::of(&std::fs::read(file.path()).unwrap()).to_string();
    assert_eq!(digest, "sha256:ed7b92412eac9f938d6d9fdfaa925698d23df213024b67c781c74a56fd780431");
}
