//! Archives made by tar, images made by hand, and archives that nobody should make.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::time::UNIX_EPOCH;

use super::*;
use crate::image::tar::{Archive, Kind};
use crate::image::{Digest, Name, Unpacked};

mod disks;
mod files;
mod history;

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
        "config": {"Env": ["A=b"], "Cmd": ["/bin/ping"], "Entrypoint": null, "WorkingDir": "/srv",
            "Volumes": {"/data": {}}, "Healthcheck": {"Test": ["NONE"]}, "OnBuild": null, "Tty": false, "Domainname": ""},
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
    let container = Container::from_archive(&store, saved.path(), None).unwrap();
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
        let container = Container::from_archive(&store, docker_archive(layers).path(), None);
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
    let container = Container::from_archive(&store, saved.path(), None).unwrap();
    let refused = store.import_container(&mut store.lease().unwrap(), &container, &options());
    let told = refused.unwrap_err().to_string();
    assert!(told.starts_with("Layer ") && told.contains("have digest"), "{told}");
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
        let saved = [entry(first, b'0', "", b""), saved.clone()].concat();
        assert_eq!(detect(&gzip(&saved)).unwrap(), Format::DockerArchive, "{first}");
        let layout = archive(&[entry(first, b'0', "", b""), entry("oci-layout", b'0', "", b"{}")]);
        assert_eq!(detect(&gzip(&layout)).unwrap(), Format::Oci, "{first}");
        // A root file system with such a name in it.
        let root = archive(&[entry("blobs/", b'5', "", b""), entry("etc/", b'5', "", b"")]);
        assert_eq!(detect(&gzip(&root)).unwrap(), Format::Rootfs, "{first}");
    }
    assert_eq!(detect(&gzip(&layers()[0])).unwrap(), Format::Rootfs);
    // What stands before the first entry is no reason to take an archive for a disk.
    let bytes = archive(&[pax("comment", &[b'x'; 5000]), entry("etc/", b'5', "", b"")]);
    assert_eq!(detect(&bytes).unwrap(), Format::Rootfs);
    assert_eq!(detect(&gzip(&bytes)).unwrap(), Format::Rootfs);
    assert!(detect(&archive(&[entry("a", b'Z', "", b"")])).is_err(), "nor is an entry that is refused");
    assert_eq!(detect(&[0; 4096]).unwrap(), Format::Raw);
}

#[test]
fn images_of_other_systems_are_refused() {
    let saved = std::fs::read(docker_archive(&layers()).path()).unwrap();
    let at = saved.windows(5).position(|window| window == b"linux").unwrap();
    let mut other = saved.clone();
    other[at..at + 5].copy_from_slice(b"plan9");
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&other).unwrap();
    let (_directory, store) = store();
    let error = Container::from_archive(&store, file.path(), None).map(drop).unwrap_err().to_string();
    assert!(error.contains("for plan9, not for linux"), "{error}");
}
