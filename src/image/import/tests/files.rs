//! Files with all that belongs to them, in and out.

use super::*;
use crate::image::ext4::{self, Attributes};
use crate::testing::skip;

/// What an archive says of each entry, by its path: kind, mode, owner, group, device, link, attributes.
type Said = BTreeMap<String, (Kind, u16, u32, u32, (u32, u32), String, BTreeMap<Vec<u8>, Vec<u8>>)>;

fn said(bytes: &[u8]) -> Said {
    let (mut archive, mut said) = (Archive::new(bytes, u64::MAX), Said::new());
    while let Some(found) = archive.next().unwrap() {
        let path = String::from_utf8(found.path).unwrap();
        let link = String::from_utf8(found.link).unwrap();
        said.insert(path, (found.kind, found.mode, found.uid, found.gid, found.device, link, found.xattrs));
    }
    said
}

#[test]
fn what_goes_in_comes_out() {
    let (_directory, store) = store();
    let mut lease = store.lease().unwrap();
    let acl = [2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 0x20, 0, 4, 0, 255, 255, 255, 255];
    let bytes = archive(&[
        entry("dev/", b'5', "", b""),
        entry("dev/null", b'3', "", b""),
        entry("dev/sda", b'4', "", b""),
        entry("dev/pipe", b'6', "", b""),
        pax("SCHILY.xattr.security.capability", &[1, 0, 0, 2, 0, 32, 0, 0]),
        entry("ping", b'0', "", b"ping"),
        pax("SCHILY.xattr.system.posix_acl_access", &acl),
        entry("shared", b'0', "", b"shared"),
        entry("link", b'2', "dev/null", b""),
    ]);
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let packed = zstd::bulk::compress(&bytes, 3).unwrap();
    file.write_all(&packed).unwrap();
    assert_eq!(Format::detect(file.path()).unwrap(), Format::Rootfs);
    let image = store.import_rootfs(&mut lease, file.path(), &options()).unwrap();
    let mut out = Vec::new();
    store.export_tar(&image, &mut out, u64::MAX).unwrap();
    let mut found = said(&out);
    found.remove("./").unwrap();
    let found: Said =
        found.into_iter().map(|(path, all)| (path.trim_start_matches("./").into(), all)).collect();
    assert_eq!(found, said(&bytes));
    assert_eq!(found["dev/sda"].4, (1, 3));
    // The same within an image for tools that know containers.
    let mut oci = tempfile::NamedTempFile::new().unwrap();
    store.export_container(&image, None, oci.as_file_mut(), u64::MAX).unwrap();
    let container = Container::from_layout_archive(&store, oci.path(), None).unwrap();
    let mut layer = Vec::new();
    std::io::Read::read_to_end(&mut container.layers[0].open().unwrap(), &mut layer).unwrap();
    assert!(layer == out);
}

#[test]
fn a_socket_with_two_names_is_no_link_to_nothing() {
    let (directory, store) = store();
    let path = directory.path().join("disk");
    let mut fs = FileSystem::new(64 << 20, File::create(&path).unwrap()).unwrap();
    fs.put(b"one", ext4::Kind::File, Attributes::default()).unwrap();
    fs.link(b"two", b"one").unwrap();
    fs.put(b"kept", ext4::Kind::File, Attributes::default()).unwrap();
    fs.end_layer().unwrap();
    let made = Command::new("debugfs").args(["-w", "-R", "sif one mode 0140644"]).arg(&path).output();
    if !made.is_ok_and(|made| made.status.success()) {
        return skip("there is no debugfs");
    }
    let image = store.import_raw(&mut store.lease().unwrap(), &path, &Commit::new(UNIX_EPOCH)).unwrap();
    let mut out = Vec::new();
    store.export_tar(&image, &mut out, u64::MAX).unwrap();
    assert_eq!(said(&out).into_keys().collect::<Vec<_>>(), ["./", "./kept"]);
}

#[test]
fn directories_with_devices() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().join("sda");
    let made = Command::new("mknod").arg(&place).args(["b", "259", "70000"]).output();
    if !made.is_ok_and(|made| made.status.success()) {
        return crate::testing::skip("devices are made by root alone");
    }
    assert!(Command::new("mkfifo").arg(directory.path().join("pipe")).status().unwrap().success());
    let (_store_directory, store) = store();
    let image = store.import_directory(&mut store.lease().unwrap(), directory.path(), &options()).unwrap();
    let file = flatten(&store.unpack(&image, u64::MAX).unwrap());
    e2fsck(&file);
    assert!(debugfs(&file, "stat /sda").contains("259:70000"));
    assert!(debugfs(&file, "stat /pipe").contains("FIFO"));
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
