//! skopeo copies what rvmm pushed, and it comes back bit for bit.

use std::path::Path;

use crate::common::host;
use crate::home::Home;
use crate::need;
use crate::server::{self, Registry};

fn copy(from: &str, to: &str) {
    let insecure = ["--src-tls-verify=false", "--dest-tls-verify=false"];
    host::run("skopeo", &[&["copy", "--quiet", "--insecure-policy"], &insecure[..], &[from, to]].concat());
}

/// Every blob of an OCI layout.
fn blobs(layout: &Path) -> Vec<(String, Vec<u8>)> {
    let files = std::fs::read_dir(layout.join("blobs/sha256")).expect("a layout").flatten();
    let mut blobs: Vec<_> = files
        .map(|file| {
            (file.file_name().to_string_lossy().into_owned(), std::fs::read(file.path()).expect("a blob"))
        })
        .collect();
    blobs.sort();
    blobs
}

#[test]
fn a_copy_is_the_same() {
    need!(server::offered(), host::program("skopeo").map(drop));
    let registry = Registry::start();
    let here = Home::new();
    let first = here.version("disk:1", None, 20, 9 << 20);
    let second = here.version("disk:2", Some(&first), 21, 1 << 20);
    let name = |repository: &str| format!("{}/{repository}", registry.address);
    here.told(&["push", "disk:2", &name("disk:2")]);

    // To another repository, from there to a layout, and from the layout to a third repository.
    copy(&format!("docker://{}", name("disk:2")), &format!("docker://{}", name("other/place:x")));
    let layout = here.path("layout");
    copy(&format!("docker://{}", name("other/place:x")), &format!("oci:{}:x", layout.display()));
    copy(&format!("oci:{}:x", layout.display()), &format!("docker://{}", name("third:x")));

    let there = Home::new();
    there.told(&["pull", &name("third:x"), "--as", "disk:2"]);
    assert_eq!(there.digest("disk:2"), Some(second.digest));
    let (copied, ours) = (blobs(&layout), blobs(&there.path("store")));
    // Here are the documents of the first version, too, which do not travel.
    assert!(copied.len() == 4 && ours.len() == 6, "{} {}", copied.len(), ours.len());
    assert!(copied.iter().all(|blob| ours.contains(blob)));
    assert_eq!(there.digest("disk:2~1"), Some(first.digest));
    assert!(ours.iter().all(|(name, bytes)| {
        std::fs::read(here.path("store/blobs/sha256").join(name)).is_ok_and(|own| own == *bytes)
    }));
}
