//! Images that QEMU makes and checks.

use std::process::Command;

use tempfile::TempDir;

use super::*;
use crate::disk::model::Model;
use crate::disk::{self, Place};
use crate::testing::Random;

const SIZE: usize = 4 << 20;

struct Fixture {
    directory: TempDir,
    content: Vec<u8>,
}

/// A directory with a raw file `base`, or nothing where there is no qemu-img.
fn fixture() -> Option<Fixture> {
    if Command::new("qemu-img").arg("--version").output().is_err() {
        crate::testing::skip("qemu-img is not installed (Debian package qemu-utils)");
        return None;
    }
    let directory = TempDir::new().unwrap();
    let mut content = Random(4).bytes(SIZE);
    content[SIZE / 2..].fill(0);
    std::fs::write(directory.path().join("base"), &content).unwrap();
    Some(Fixture { directory, content })
}

impl Fixture {
    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Runs `qemu-img` with these words in the directory.
    fn qemu_img(&self, words: &str) {
        crate::testing::qemu_img(self.directory.path(), words);
    }

    fn config(&self, name: &str) -> Config {
        Config { format: Some(Format::Qcow2), ..Config::new(self.path(name)) }
    }

    fn open(&self, name: &str) -> Result<Qcow2, Error> {
        Qcow2::open(&self.config(name))
    }

    fn refusal(&self, name: &str) -> String {
        let message = self.open(name).err().expect("should be refused").to_string();
        message.replace(&self.directory.path().display().to_string(), "DIR")
    }
}

#[test]
fn does_what_a_vector_does() {
    let Some(fixture) = fixture() else { return };
    let images = [
        ("plain.qcow2", "create -q -f qcow2 plain.qcow2 4M", vec![0; SIZE]),
        ("small.qcow2", "create -q -f qcow2 -o cluster_size=4096,compat=0.10 small.qcow2 4M", vec![0; SIZE]),
        ("full.qcow2", "convert -f raw -O qcow2 base full.qcow2", fixture.content.clone()),
        ("packed.qcow2", "convert -c -f raw -O qcow2 base packed.qcow2", fixture.content.clone()),
        ("top.qcow2", "create -q -f qcow2 -b base -F raw top.qcow2", fixture.content.clone()),
        ("topmost.qcow2", "create -q -f qcow2 -b full.qcow2 -F qcow2 topmost.qcow2", fixture.content.clone()),
    ];
    for (name, command, content) in images {
        fixture.qemu_img(command);
        let mut model = Model::new(&content, 2);
        for _ in 0..2 {
            let mut image = fixture.open(name).unwrap();
            model.play(&mut image, 150);
            model.compare(&mut image);
            drop(image);
            fixture.qemu_img(&format!("check -q {name}"));
            fixture.qemu_img(&format!("convert -O raw {name} out"));
            model.compare_bytes(&std::fs::read(fixture.path("out")).unwrap());
        }
        // What is changed is not what the next image stands on.
        if name == "full.qcow2" {
            fixture.qemu_img(command);
        }
    }
    assert_eq!(std::fs::read(fixture.path("base")).unwrap(), fixture.content);
}

#[test]
fn discards_give_space_back() {
    let Some(fixture) = fixture() else { return };
    fixture.qemu_img("convert -f raw -O qcow2 base full.qcow2");
    let blocks =
        || std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(fixture.path("full.qcow2")).unwrap());
    let before = blocks();
    let mut image = fixture.open("full.qcow2").unwrap();
    image.run(&Request::Discard { offset: 0, len: SIZE as u64 }).unwrap();
    image.run(&Request::Flush).unwrap();
    assert!(blocks() < before / 4, "{} of {before}", blocks());
    drop(image);
    fixture.qemu_img("check -q full.qcow2");
}

#[test]
fn is_durable_after_a_flush() {
    let Some(fixture) = fixture() else { return };
    fixture.qemu_img("create -q -f qcow2 top.qcow2 4M");
    let mut image = fixture.open("top.qcow2").unwrap();
    let mut model = Model::new(&[0; SIZE], 6);
    model.play(&mut image, 100);
    image.run(&Request::Flush).unwrap();
    // A copy of the file as it is on the disk now, while the image is open.
    std::fs::copy(fixture.path("top.qcow2"), fixture.path("copy.qcow2")).unwrap();
    fixture.qemu_img("convert -O raw copy.qcow2 out");
    model.compare_bytes(&std::fs::read(fixture.path("out")).unwrap());
}

#[test]
fn carries_overlays() {
    let Some(fixture) = fixture() else { return };
    fixture.qemu_img("create -q -f qcow2 -b base -F raw top.qcow2");
    let before = std::fs::read(fixture.path("top.qcow2")).unwrap();
    let overlay = Some(Place::Nameless(fixture.directory.path().into()));
    let mut disk = disk::open(&Config { overlay, ..fixture.config("top.qcow2") }).unwrap();
    Model::new(&fixture.content, 1).play(disk.as_mut(), 100);
    drop(disk);
    assert_eq!(std::fs::read(fixture.path("top.qcow2")).unwrap(), before);
}

#[test]
fn opens_only_what_it_may() {
    let Some(fixture) = fixture() else { return };
    std::fs::create_dir(fixture.path("images")).unwrap();
    for (name, command) in [
        ("images/a.qcow2", "create -q -f qcow2 -b ../base -F raw images/a.qcow2"),
        ("images/b.qcow2", "create -q -f qcow2 -u -b /etc/hostname -F raw images/b.qcow2 1M"),
        ("images/c.qcow2", "create -q -f qcow2 -u -b json:{\"driver\":\"null-co\"} -F raw images/c.qcow2 1M"),
        ("images/d.qcow2", "create -q -f qcow2 -u -b nothing -F raw images/d.qcow2 1M"),
        ("images/e.qcow2", "create -q -f qcow2 -u -b x -F vmdk images/e.qcow2 1M"),
        ("images/f.qcow2", "create -q -f qcow2 -o data_file=images/f.data images/f.qcow2 1M"),
        ("images/g.qcow2", "create -q -f qcow2 -u -b g.qcow2 -F qcow2 images/g.qcow2 1M"),
    ] {
        fixture.qemu_img(command);
        println!("{name}: {}", fixture.refusal(name));
    }
    std::os::unix::fs::symlink("/etc/hostname", fixture.path("images/link")).unwrap();
    fixture.qemu_img("create -q -f qcow2 -u -b link -F raw images/h.qcow2 1M");
    let outside = |name: &str, file: &str, place: &str| {
        assert_eq!(
            fixture.refusal(name),
            format!(
                "Disk DIR/{name} stands on backing file {file}, which lies outside of the image's directory: if \
                 that is meant, say `backing={place}`"
            )
        );
    };
    outside("images/a.qcow2", "../base", "DIR/base");
    outside("images/b.qcow2", "/etc/hostname", "/etc/hostname");
    outside("images/h.qcow2", "link", "/etc/hostname");
    for (name, expected) in [
        ("images/c.qcow2", "which is not a file: give a file with `backing=PATH`"),
        ("images/d.qcow2", "which cannot be found: No such file or directory (os error 2)"),
        ("images/e.qcow2", "whose format vmdk is not known here: raw and qcow2 are"),
        ("images/f.qcow2", "its data are in another file: convert it with `qemu-img convert -O qcow2`"),
        // Written to by the first that opened it.
        ("images/g.qcow2", "stop it, or open the disk with `ro` or `overlay` on both sides"),
    ] {
        let message = fixture.refusal(name);
        assert!(message.ends_with(expected), "{message}");
    }
    // Read-only it stands on itself for ever.
    let config = Config { read_only: true, ..fixture.config("images/g.qcow2") };
    let message = Qcow2::open(&config).err().unwrap().to_string();
    assert!(message.ends_with("more than 64 images stand on each other"), "{message}");
    // What the user names is meant.
    let config = Config { backing: Some(fixture.path("base")), ..fixture.config("images/a.qcow2") };
    Model::new(&fixture.content, 1).compare(&mut Qcow2::open(&config).unwrap());
}

#[test]
fn a_backing_file_without_a_format_is_not_guessed() {
    let Some(fixture) = fixture() else { return };
    fixture.qemu_img("create -q -f qcow2 -b base -F raw top.qcow2");
    // qemu-img does not make such images any more: take the format out of the header by hand.
    let mut bytes = std::fs::read(fixture.path("top.qcow2")).unwrap();
    let at = bytes.windows(4).position(|window| window == 0xe279_2aca_u32.to_be_bytes()).unwrap();
    bytes[at..at + 4].copy_from_slice(&0x1234_5678_u32.to_be_bytes());
    std::fs::write(fixture.path("top.qcow2"), bytes).unwrap();
    assert_eq!(
        fixture.refusal("top.qcow2"),
        "Disk DIR/top.qcow2 stands on backing file base, and does not say in which format that is: say it with \
         `qemu-img rebase -u -b base -F raw DIR/top.qcow2` (or -F qcow2)"
    );
    let config = Config { backing: Some(fixture.path("base")), ..fixture.config("top.qcow2") };
    Model::new(&fixture.content, 1).compare(&mut Qcow2::open(&config).unwrap());
}

#[test]
fn raw_stays_raw_unless_told() {
    let Some(fixture) = fixture() else { return };
    fixture.qemu_img("create -q -f qcow2 image.qcow2 4M");
    fixture.qemu_img("create -q -f qcow2 image.raw 4M");
    std::fs::write(fixture.path("only-a-name.qcow2"), [0; 512]).unwrap();
    let size = |name: &str, format| {
        let config = Config { format, ..Config::new(fixture.path(name)) };
        disk::open(&config).map(|disk| disk.geometry().size).map_err(|error| error.to_string())
    };
    assert_eq!(size("image.qcow2", None), Ok(SIZE as u64));
    assert_eq!(size("image.raw", Some(Format::Qcow2)), Ok(SIZE as u64));
    assert!(size("image.raw", None).unwrap_err().contains("say `format=qcow2` if it is one"));
    for name in ["image.raw", "image.qcow2"] {
        File::options().write(true).open(fixture.path(name)).unwrap().set_len(1 << 20).unwrap();
    }
    assert_eq!(size("image.raw", None), Ok(1 << 20));
    assert_eq!(size("image.qcow2", Some(Format::Raw)), Ok(1 << 20));
    // A guest could give it a header, and would find an image at the next start.
    assert!(size("only-a-name.qcow2", None).unwrap_err().contains("say `format=raw` if it is a raw disk"));
    assert_eq!(size("only-a-name.qcow2", Some(Format::Raw)), Ok(512));
    let message = size("base", Some(Format::Qcow2)).unwrap_err();
    assert!(
        message.ends_with("it does not begin as one; say `format=raw` if its bytes are the disk's"),
        "{message}"
    );
}

#[test]
fn damaged_images_are_errors() {
    let Some(fixture) = fixture() else { return };
    fixture.qemu_img("convert -f raw -O qcow2 base full.qcow2");
    let good = std::fs::read(fixture.path("full.qcow2")).unwrap();
    let mut random = Random(11);
    let memory =
        crate::memory::allocate(&[(vm_memory::GuestAddress(0), 1 << 20)], Default::default()).unwrap();
    let memory = std::sync::Arc::new(memory);
    for round in 0..300 {
        let mut bad = good.clone();
        for _ in 0..1 + random.below(4) {
            // The header, or the tables behind it.
            let at = random.below(if round % 2 == 0 { 112 } else { 0x5_0000 }) as usize;
            bad[at] = random.next() as u8;
        }
        std::fs::write(fixture.path("bad.qcow2"), bad).unwrap();
        // Anything but a panic, or an answer that takes for ever. (Writing to an image whose reference counts are
        // damaged is another matter: imago 0.2.6 may recurse without end.)
        let config = Config { read_only: true, ..fixture.config("bad.qcow2") };
        let Ok(image) = Qcow2::open(&config) else { continue };
        for offset in (0..image.image.size().min(SIZE as u64) / 512 * 512).step_by(1 << 19) {
            let mut buffers = Buffers::new(&memory);
            buffers.push(vm_memory::GuestAddress(0), 512).unwrap();
            let _ = image.read(offset, &buffers);
        }
    }
}
