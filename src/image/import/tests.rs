//! Archives made by tar, images made by hand, and archives that nobody should make.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::time::UNIX_EPOCH;

use super::*;
use crate::image::tar::{Archive, Kind};
use crate::image::{Digest, Name, Unpacked};

const SIZE: u64 = 256 << 20;

/// A tar header with content.
fn entry(path: &str, kind: u8, link: &str, content: &[u8]) -> Vec<u8> {
    let mut header = [0u8; 512];
    header[..path.len()].copy_from_slice(path.as_bytes());
    header[100..108].copy_from_slice(b"0000755\0");
    header[108..116].copy_from_slice(b"0001750\0");
    header[116..124].copy_from_slice(b"0000144\0");
    header[124..136].copy_from_slice(format!("{:011o}\0", content.len()).as_bytes());
    header[136..148].copy_from_slice(b"14524770400\0");
    header[156] = kind;
    header[157..157 + link.len()].copy_from_slice(link.as_bytes());
    header[257..265].copy_from_slice(b"ustar\x0000");
    header[329..337].copy_from_slice(b"0000001\0");
    header[337..345].copy_from_slice(b"0000003\0");
    sum(&mut header);
    let mut bytes = header.to_vec();
    bytes.extend(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn sum(header: &mut [u8; 512]) {
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn archive(entries: &[Vec<u8>]) -> Vec<u8> {
    [entries.concat(), vec![0; 1024]].concat()
}

fn pax(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = [format!(" {key}=").as_bytes(), value, b"\n"].concat();
    let len = (1..).find(|digits| (rest.len() + digits).to_string().len() == *digits).unwrap();
    entry("pax", b'x', "", &[(rest.len() + len).to_string().as_bytes(), &rest].concat())
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Three layers: a base, one that hides and replaces, one that adds.
fn layers() -> [Vec<u8>; 3] {
    let base = archive(&[
        entry("./", b'5', "", b""),
        entry("etc/", b'5', "", b""),
        entry("etc/hosts", b'0', "", b"127.0.0.1 localhost\n"),
        entry("usr/lib/", b'5', "", b""),
        entry("lib", b'2', "usr/lib", b""),
        entry("usr/lib/big", b'0', "", &[7; 300_000]),
        entry("opt/a/b", b'0', "", b"hidden"),
        pax("SCHILY.xattr.security.capability", &[1, 0, 0, 2, 0, 32, 0, 0]),
        entry("bin/ping", b'0', "", b"ping"),
        entry("bin/ping6", b'1', "bin/ping", b""),
        entry("dev/null", b'3', "", b""),
    ]);
    let middle = archive(&[
        entry("etc/.wh.hosts", b'0', "", b""),
        entry("opt/.wh..wh..opq", b'0', "", b""),
        entry("opt/own", b'0', "", b"own"),
        entry("lib/new", b'0', "", b"through a link"),
    ]);
    let top = archive(&[entry("srv/page", b'0', "", &[9; 100_000])]);
    [base, middle, top]
}

/// An archive as `docker save` makes them.
fn docker_archive(layers: &[Vec<u8>]) -> tempfile::NamedTempFile {
    let ids: Vec<String> = layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "created": "2024-01-02T03:04:05Z",
        "config": {"Env": ["A=b"], "Cmd": ["/bin/ping"], "Entrypoint": null, "WorkingDir": "/srv"},
        "rootfs": {"type": "layers", "diff_ids": ids},
        "history": [{"created_by": "ADD base"}, {"created_by": "ENV A=b", "empty_layer": true}, {"created_by": "RUN"}, {}],
    });
    let names: Vec<String> = (0..layers.len()).map(|i| format!("{i}/layer.tar")).collect();
    let manifest = serde_json::json!([{"Config": "c.json", "RepoTags": ["a:b"], "Layers": names}]);
    let mut entries = vec![entry("c.json", b'0', "", config.to_string().as_bytes())];
    entries.extend(names.iter().zip(layers).map(|(name, layer)| {
        let packed = if name.starts_with('1') { gzip(layer) } else { layer.clone() };
        entry(name, b'0', "", &packed)
    }));
    entries.push(entry("manifest.json", b'0', "", manifest.to_string().as_bytes()));
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&archive(&entries)).unwrap();
    file
}

fn options() -> Options<'static> {
    Options { size: SIZE, about: Commit::new(UNIX_EPOCH) }
}

fn store() -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("store")).unwrap();
    (directory, store)
}

/// The whole disk of an image in a file.
fn flatten(unpacked: &Unpacked) -> tempfile::NamedTempFile {
    use std::os::unix::fs::FileExt;
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(unpacked.size).unwrap();
    let mut map = crate::disk::extents::Map::open(File::open(&unpacked.map).unwrap()).unwrap();
    for run in map.runs().unwrap() {
        let mut bytes = vec![0; (run.count * 4096) as usize];
        if let Some(layer) = run.layer {
            let layer = File::open(&unpacked.layers[usize::from(layer)]).unwrap();
            layer.read_exact_at(&mut bytes, run.start * 4096).unwrap();
        }
        file.as_file().write_all_at(&bytes, run.start * 4096).unwrap();
    }
    file
}

fn debugfs(file: &tempfile::NamedTempFile, question: &str) -> String {
    let output = Command::new("/usr/sbin/debugfs").args(["-R", question]).arg(file.path()).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn e2fsck(file: &tempfile::NamedTempFile) {
    let output = Command::new("/usr/sbin/e2fsck").args(["-f", "-n"]).arg(file.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn a_container_becomes_a_disk() {
    let (_directory, store) = store();
    let mut lease = store.lease().unwrap();
    let saved = docker_archive(&layers());
    let container = Container::from_archive(saved.path(), None).unwrap();
    let image = store.import_container(&mut lease, &container, &options()).unwrap();
    store.tag(&"a:b".parse::<Name>().unwrap(), &image).unwrap();
    assert!(store.verify(|_| {}).unwrap().is_empty());
    let inspected = store.inspect("a:b").unwrap();
    assert_eq!(inspected.config.config.cmd, ["/bin/ping"]);
    assert_eq!(inspected.config.config.working_dir, "/srv");
    let empty: Vec<bool> = inspected.config.history.iter().map(|version| version.empty_layer).collect();
    assert_eq!(empty, [false, true, false, false, true]);
    let file = flatten(&store.unpack(&image, u64::MAX).unwrap());
    e2fsck(&file);
    assert!(!debugfs(&file, "ls /etc").contains("hosts"));
    assert!(debugfs(&file, "ls /opt").contains("own") && !debugfs(&file, "ls /opt").contains(" a "));
    assert_eq!(debugfs(&file, "cat /usr/lib/new"), "through a link");
    let stat = debugfs(&file, "stat /bin/ping6");
    assert!(
        stat.contains("Links: 2") && stat.contains("User:  1000") && stat.contains("capability"),
        "{stat}"
    );
    assert!(debugfs(&file, "stat /dev/null").contains("01:03"));
    // Layers of small changes are small.
    let sizes: Vec<u64> =
        inspected.manifest.of_type(crate::image::DISK_LAYER).map(|layer| layer.size).collect();
    assert!(sizes.len() == 3 && sizes[1] < 200_000, "{sizes:?}");
}

#[test]
fn images_share_layers() {
    let (_directory, store) = store();
    let mut lease = store.lease().unwrap();
    let [base, middle, top] = layers();
    let blobs = |layers: &[Vec<u8>], lease: &mut Lease| {
        let container = Container::from_archive(docker_archive(layers).path(), None);
        // One history entry too many is no reason to refuse.
        let image = store.import_container(lease, &container.unwrap(), &options()).unwrap();
        let manifest = store.manifest(&image).unwrap();
        manifest.of_type(crate::image::DISK_LAYER).map(|layer| layer.digest).collect::<Vec<_>>()
    };
    let three = blobs(&[base.clone(), middle.clone(), top.clone()], &mut lease);
    let two = blobs(&[base.clone(), middle], &mut lease);
    let other = blobs(&[base, top], &mut lease);
    assert_eq!(three[..2], two[..]);
    assert!(three[0] == other[0] && three[2] != other[1]);
}

#[test]
fn what_tar_packs_is_what_debugfs_finds() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root");
    std::fs::create_dir_all(root.join("deep/er/with a space")).unwrap();
    let mut contents = BTreeMap::new();
    for i in 0..200usize {
        let name = format!("deep/er/{}-{i}", "long".repeat(i % 40));
        let content: Vec<u8> = (0..i * 777).map(|byte| (byte * i / 50) as u8).collect();
        std::fs::write(root.join(&name), &content).unwrap();
        contents.insert(name, content);
    }
    std::os::unix::fs::symlink("deep/er", root.join("link")).unwrap();
    std::fs::hard_link(root.join("deep/er/-0"), root.join("hard")).unwrap();
    for (format, packer) in [("gnu", "--gzip"), ("pax", "--format=pax")] {
        let packed: PathBuf = directory.path().join(format);
        let tar =
            Command::new("tar").arg("-C").arg(&root).args([packer, "-cf"]).arg(&packed).arg(".").status();
        assert!(tar.unwrap().success());
        let (_directory, store) = store();
        let mut lease = store.lease().unwrap();
        let image = store.import_rootfs(&mut lease, &packed, &options()).unwrap();
        let file = flatten(&store.unpack(&image, u64::MAX).unwrap());
        e2fsck(&file);
        let out = tempfile::tempdir().unwrap();
        debugfs(&file, &format!("rdump / {}", out.path().display()));
        for (name, content) in &contents {
            assert!(std::fs::read(out.path().join(name)).unwrap() == *content, "{format}: {name}");
        }
        assert_eq!(std::fs::read_link(out.path().join("link")).unwrap(), PathBuf::from("deep/er"));
        assert!(debugfs(&file, "stat /hard").contains("Links: 2"));
    }
}

#[test]
fn raw_disks_with_and_without_holes_are_the_same() {
    let (directory, store) = store();
    let mut lease = store.lease().unwrap();
    let mut import = |name: &str, sparse: bool| {
        use std::os::unix::fs::FileExt;
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
fn hostile_archives_are_refused() {
    let import = |bytes: &[u8]| {
        let (_directory, store) = store();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        let mut lease = store.lease().unwrap();
        let options = Options { size: 16 << 20, ..options() };
        store.import_rootfs(&mut lease, file.path(), &options).map(drop)
    };
    import(&archive(&[entry("a", b'0', "", b"good")])).unwrap();
    let mut negative = entry("a", b'0', "", b"");
    negative[124..136].fill(0xff);
    let mut header: [u8; 512] = negative[..512].try_into().unwrap();
    sum(&mut header);
    for (what, bytes) in [
        ("absolute", archive(&[entry("/etc/passwd", b'0', "", b"x")])),
        ("out", archive(&[entry("a/../../b", b'0', "", b"x")])),
        ("link out", archive(&[entry("a", b'1', "../../etc/shadow", b"")])),
        ("link to nothing", archive(&[entry("a", b'1', "b", b"")])),
        ("whiteout out", archive(&[entry("a/.wh...", b'0', "", b"")])),
        ("unknown kind", archive(&[entry("a", b'Z', "", b"")])),
        ("negative size", header.to_vec()),
        ("cut off", entry("a", b'0', "", &[1; 5000])[..1024].to_vec()),
        ("too large", gzip(&archive(&[entry("a", b'0', "", &vec![0; 20 << 20])]))),
        ("noise", vec![0x55; 4096]),
        ("damaged gzip", gzip(&[1; 9000])[..30].to_vec()),
        ("huge header", archive(&[entry("a", b'x', "", &vec![b'1'; 2 << 20])])),
    ] {
        assert!(import(&bytes).is_err(), "{what}");
    }
    // A layer that is not the one that the configuration names.
    let mut saved = docker_archive(&layers());
    let bytes = std::fs::read(saved.path()).unwrap();
    let at = bytes.windows(6).position(|window| window == b"hidden").unwrap();
    let mut bad = bytes.clone();
    bad[at] ^= 1;
    saved.as_file_mut().set_len(0).unwrap();
    std::fs::write(saved.path(), &bad).unwrap();
    let (_directory, store) = store();
    let container = Container::from_archive(saved.path(), None).unwrap();
    let refused = store.import_container(&mut store.lease().unwrap(), &container, &options());
    assert!(matches!(refused, Err(Error::Corrupt { .. })));
}

#[test]
fn no_damage_panics() {
    let good = layers()[0].clone();
    let mut random = crate::testing::Random(5);
    for _ in 0..3000 {
        let mut bad = good.clone();
        let header = random.pick(&[0u64, 1, 2, 5]) * 512;
        let at = (header + random.below(512)) as usize;
        bad[at] = random.next() as u8;
        if random.once_in(2) {
            let start = header as usize;
            let mut fixed: [u8; 512] = bad[start..start + 512].try_into().unwrap();
            sum(&mut fixed);
            bad[start..start + 512].copy_from_slice(&fixed);
        }
        let mut archive = Archive::new(&bad[..], 1 << 30);
        while let Ok(Some(entry)) = archive.next() {
            assert!(entry.kind == Kind::File || entry.size == 0);
        }
    }
}

#[test]
fn formats_are_known_by_what_is_in_them() {
    let detect = |bytes: &[u8]| {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        Format::detect(file.path())
    };
    let saved = std::fs::read(docker_archive(&layers()).path()).unwrap();
    assert_eq!(detect(&saved).unwrap(), Format::DockerArchive);
    // A file of that name in a root file system is something else.
    let web =
        archive(&[entry("manifest.json", b'0', "", br#"{"name": "app"}"#), entry("etc/", b'5', "", b"")]);
    assert_eq!(detect(&web).unwrap(), Format::Rootfs);
    let hex = "0123456789abcdef".repeat(4);
    for first in ["blobs/", "./oci-layout", &format!("{hex}/"), &format!("{hex}.json")] {
        let error = detect(&gzip(&archive(&[entry(first, b'0', "", b"")]))).unwrap_err().to_string();
        assert!(error.contains("decompress it first"), "{first}: {error}");
    }
    assert_eq!(detect(&gzip(&layers()[0])).unwrap(), Format::Rootfs);
}

#[test]
fn images_of_other_systems_are_refused() {
    let saved = std::fs::read(docker_archive(&layers()).path()).unwrap();
    let at = saved.windows(5).position(|window| window == b"linux").unwrap();
    let mut other = saved.clone();
    other[at..at + 5].copy_from_slice(b"plan9");
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&other).unwrap();
    let error = Container::from_archive(file.path(), None).map(drop).unwrap_err().to_string();
    assert!(error.contains("for plan9, not for linux"), "{error}");
}

#[test]
fn exported_disks_are_read_as_disks() {
    let (directory, store) = store();
    let mut lease = store.lease().unwrap();
    let raw = directory.path().join("raw");
    let file = File::create(&raw).unwrap();
    {
        use std::os::unix::fs::FileExt;
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
    use std::os::unix::fs::FileExt;

    use crate::disk::State;
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
    let runs = crate::disk::extents::Map::open(File::open(&unpacked.map).unwrap()).unwrap().runs().unwrap();
    assert!(runs.iter().all(|run| run.layer.is_none()), "all of it is zeroes");
    let zeroes: u64 = runs.iter().map(|run| run.count).sum();
    assert!((403..420).contains(&zeroes), "{zeroes} blocks over those that had data");
    // Once more changes nothing.
    let again = commit(&trimmed, vec![(0..size, State::Zero)]);
    assert_eq!(layers(&again), layers(&trimmed));
}
