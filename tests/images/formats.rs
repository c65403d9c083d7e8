//! Every format comes in and goes out as it should; other programs judge.

use std::fs;
use std::process::Stdio;

use crate::common::{bare, host};
use crate::need;
use crate::world::{SIZE, World, listing};

/// A whole ext4 file system as e2fsck wants it.
#[track_caller]
fn check_disk(world: &World, image: &str) {
    world.does(&["export", image, "--format", "raw", "checked.raw"]);
    host::run("e2fsck", &["-f", "-n", &world.text("checked.raw")]);
}

#[test]
fn root_file_systems() {
    need!(host::program("e2fsck"), host::program("xz"));
    let world = World::new();
    let root = world.root("root");
    let root = root.to_string_lossy().into_owned();
    world.image("dir");
    for (option, name) in [("-c", "r.tar"), ("-cz", "r.tar.gz"), ("-cJ", "r.tar.xz"), ("-cj", "r.tar.bz2")] {
        host::run("tar", &["--sort=name", "-C", &root, option, "-f", &world.text(name), "."]);
        world.does(&["import", name, "archive", "--size", SIZE]);
        check_disk(&world, "archive");
        assert_eq!(world.listing("archive"), world.listing("dir"), "{name}");
        let file = fs::File::open(world.path(name)).expect("an archive");
        let read = ["import", "-", "read", "--size", SIZE];
        let status = world.command(&read).stdin(file).stdout(Stdio::null()).status().expect("rvmm");
        assert!(status.success());
        assert_eq!(world.json(&["diff", "archive", "read"])["bytes"], 0);
        assert_eq!(world.json(&["diff", "dir", "archive"])["files"].as_array().map(Vec::len), Some(0));
    }
    let listed = world.listing("dir");
    assert!(listed.iter().any(|line| line.starts_with("./bin/tool -rwsr-xr-x 0/0 200000")), "{listed:?}");
    assert!(listed.iter().any(|line| line.contains("./lib -> usr/lib")), "{listed:?}");
    assert!(listed.iter().any(|line| line.contains("hosts2 link to ./etc/hosts")), "{listed:?}");
    // What comes out goes in again, and is the same.
    fs::create_dir(world.path("again")).expect("a directory");
    host::run("tar", &["-C", &world.text("again"), "-xpf", &world.text("listed.tar")]);
    world.does(&["import", "again", "again", "--size", SIZE]);
    assert_eq!(world.json(&["diff", "dir", "again"])["files"].as_array().map(Vec::len), Some(0));
}

#[test]
fn container_images_go_through_other_tools() {
    need!(host::program("skopeo"), host::program("e2fsck"), host::program("zstd"));
    let world = World::new();
    world.image("web:1");
    world.does(&["export", "web:1", "--format", "oci", "c.tar"]);
    let here = |name: &str| world.text(name);
    // Others see its versions.
    let config = host::run("skopeo", &["inspect", "--config", &format!("oci-archive:{}", here("c.tar"))]);
    let config: serde_json::Value = serde_json::from_str(&config).expect("JSON");
    let history = &config["history"];
    assert_eq!((&history[0]["comment"], &history[0]["author"]), (&"first".into(), &"ada".into()));
    assert_eq!(
        (&history[0]["empty_layer"], &history[1]["empty_layer"]),
        (&true.into(), &serde_json::Value::Null)
    );
    assert_eq!(history.as_array().map(Vec::len), Some(2), "{history}");
    let copy = |from: String, to: String| host::run("skopeo", &["copy", "-q", &from, &to]);
    copy(format!("oci-archive:{}", here("c.tar")), format!("docker-archive:{}:team/web:9", here("d.tar")));
    copy(format!("oci-archive:{}", here("c.tar")), format!("oci:{}:nine", here("layout")));
    for (number, source) in ["c.tar", "d.tar", "layout"].into_iter().enumerate() {
        let name = format!("from:{number}");
        world.does(&["import", source, &name, "--size", SIZE]);
        check_disk(&world, &name);
        assert_eq!(world.listing(&name), world.listing("web:1"), "{source}");
    }
    // The same layers are the same blobs, whatever they came in.
    let layers = |image: &str| world.json(&["inspect", image])[0]["config"]["disk"]["diff_ids"].clone();
    assert_eq!(layers("from:0"), layers("from:1"));
    assert_eq!(layers("from:0"), layers("from:2"));
    world.does(&["import", "layout", "named", "--image", "nine", "--size", SIZE]);
    world.refuses(&["import", "layout", "x", "--image", "ten"], &["--image", "nine"]);
    world.refuses(&["import", "d.tar", "x", "--image", "other"], &["--image", "team/web:9"]);
    // Compressed, as `docker save | gzip` has them.
    for program in ["gzip", "bzip2", "xz", "zstd"] {
        host::run(program, &["-qkf", &here("c.tar"), &here("d.tar")]);
    }
    for name in ["c.tar.gz", "d.tar.gz", "d.tar.bz2", "d.tar.xz", "c.tar.zst"] {
        world.does(&["import", name, "packed", "--size", SIZE]);
        assert_eq!(layers("from:0"), layers("packed"), "{name}");
    }
    world.refuses(&["import", "d.tar.gz", "x", "--image", "other"], &["--image", "team/web:9"]);
    world.write("cut.tar.gz", &fs::read(here("d.tar.gz")).expect("an archive")[..1500]);
    world.refuses(&["import", "cut.tar.gz", "x"], &["cut off"]);
    world.write("bomb/blobs/a", "");
    let bomb = fs::File::options().write(true).open(here("bomb/blobs/a")).expect("a file");
    bomb.set_len(300 << 20).expect("a file");
    host::run("tar", &["-C", &here("bomb"), "-cf", &here("bomb.tar"), "blobs"]);
    host::run("zstd", &["-q", &here("bomb.tar")]);
    for format in ["docker-archive", "oci"] {
        world.refuses(&["import", "bomb.tar.zst", "x", "--format", format], &["more than 200 times"]);
    }
    world.refuses(&["import", "bomb.tar.zst", "x"], &["more than 200 times"]);
    assert_eq!(fs::read_dir(world.path("store/uploads")).expect("uploads").count(), 0);
    // An image of machines is no image of containers.
    world.does(&["save", "web:1", "-o", "ours.tar"]);
    world.refuses(&["import", "ours.tar", "x"], &["rvmm load"]);
}

#[test]
fn disks() {
    need!(host::program("qemu-img"), host::program("mke2fs"));
    let world = World::new();
    let root = world.root("root");
    let raw = world.text("disk.raw");
    host::run("mke2fs", &["-q", "-t", "ext4", "-d", &root.to_string_lossy(), &raw, "32M"]);
    world.does(&["import", "disk.raw", "disk:raw"]);
    world.does(&["export", "disk:raw", "--format", "raw", "back.raw"]);
    host::run("cmp", &[&raw, &world.text("back.raw")]);
    // The reader understands what mke2fs makes, with checksums and 64 bits.
    world.image("dir");
    assert_eq!(world.listing("disk:raw").len(), world.listing("dir").len());
    world.does(&["export", "disk:raw", "--format", "qcow2", "back.qcow2"]);
    host::run("qemu-img", &["check", &world.text("back.qcow2")]);
    host::run("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", &raw, &world.text("back.qcow2")]);
    host::run("qemu-img", &["convert", "-O", "qcow2", &raw, &world.text("plain.qcow2")]);
    for source in ["back.qcow2", "plain.qcow2"] {
        world.does(&["import", source, "disk:qcow2"]);
        let ids = |image: &str| world.json(&["inspect", image])[0]["config"]["disk"].clone();
        assert_eq!(ids("disk:qcow2"), ids("disk:raw"), "the same disk has the same identity");
    }
    // A qcow2 header in a raw disk opens nothing unless the user says what it is.
    fs::copy(world.path("plain.qcow2"), world.path("guest.raw")).expect("a copy");
    world.refuses(&["import", "guest.raw", "x"], &["--format qcow2", "--format raw"]);
    let outside = world.write("elsewhere/secret.raw", vec![1; 1 << 20]);
    let options = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b", &outside.to_string_lossy()];
    fs::create_dir(world.path("images")).expect("a directory");
    host::run("qemu-img", &[&options[..], &[&world.text("images/thief.qcow2")]].concat());
    world.refuses(&["import", "images/thief.qcow2", "x"], &["secret.raw", "outside"]);
    // One named as any disk is read if it stands for itself.
    fs::copy(world.path("plain.qcow2"), world.path("cloud.img")).expect("a copy");
    world.does(&["import", "cloud.img", "disk:cloud"]);
    world.write("images/secret.raw", vec![1; 1 << 20]);
    let options = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b", "secret.raw"];
    host::run("qemu-img", &[&options[..], &[&world.text("images/guest.img")]].concat());
    world.refuses(&["import", "images/guest.img", "x"], &["--format qcow2", "--format raw"]);
    let data = format!("data_file={},data_file_raw=on", world.text("images/data.raw"));
    host::run("qemu-img", &["create", "-q", "-f", "qcow2", "-o", &data, &world.text("data.img"), "1M"]);
    world.refuses(&["import", "data.img", "x"], &["--format qcow2", "--format raw"]);
    world.refuses(&["export", "disk:raw", "--format", "raw", "-"], &["standard output"]);
    assert!(!world.path("-").exists());
    host::run("qemu-img", &["convert", "-O", "vmdk", &raw, &world.text("disk.vmdk")]);
    world.refuses(&["import", "disk.vmdk", "x"], &["VMDK", "qemu-img convert"]);
}

#[test]
fn what_cannot_be_imported_is_told_in_one_line() {
    let world = World::new();
    world.refuses(&["import", "nowhere", "x"], &["nowhere", "No such file"]);
    world.refuses(&["import", "/etc/passwd", "x"], &["512"]);
    world.refuses(&["import", "/dev/null", "x"], &["0 bytes"]);
    world.refuses(&["import", "/etc", "X"], &["lowercase"]);
    world.refuses(&["import", "a", "x", "--format", "qcow"], &["qcow2", "docker-archive"]);
    world.refuses(&["import", "a", "x", "--size", "5X"], &["8G"]);
    world.refuses(&["import", "a", "x", "--initrd", "y"], &["--kernel"]);
    let root = world.root("root");
    // A root file system that looks like something else.
    world.write("odd/oci-layout", "x");
    host::run("tar", &["-C", &world.text("odd"), "-cf", &world.text("odd.tar"), "oci-layout"]);
    for odd in ["odd", "odd.tar"] {
        world.refuses(&["import", odd, "x"], &["no OCI layout", "--format rootfs"]);
    }
    world.write("odd/oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#);
    world.refuses(&["import", "odd", "x"], &["index.json", "--format rootfs"]);
    let full = ["import", &root.to_string_lossy(), "x", "--size", "16M"];
    world.write("root/large", vec![7; 20 << 20]);
    world.refuses(&full, &["full", "larger size"]);
    // A hostile archive: out of its root by a link.
    let evil = world.path("evil");
    fs::create_dir(&evil).expect("a directory");
    std::os::unix::fs::symlink("../../..", evil.join("up")).expect("a link");
    host::run(
        "tar",
        &["-C", &world.text("evil"), "-cPf", &world.text("evil.tar"), "--transform=s,^x,../../x,", "up"],
    );
    world.does(&["import", "evil.tar", "fine", "--size", SIZE]);
    world.write("x", "x");
    host::run(
        "tar",
        &["-C", &world.text(""), "-cPf", &world.text("dots.tar"), "--transform=s,^x,../../x,", "x"],
    );
    world.refuses(&["import", "dots.tar", "x"], &[".."]);
    assert_eq!(world.json(&["images"]).as_array().map(Vec::len), Some(1), "what was refused left no image");
    world.does(&["gc"]);
    assert_eq!(fs::read_dir(world.path("store/uploads")).expect("uploads").count(), 0);
}

#[test]
fn one_file_and_back() {
    let world = World::new();
    world.image("web:1");
    world.does(&["tag", "web:1", "web:2"]);
    world.does(&["save", "web:1", "web:2", "-o", "two.tar"]);
    assert!(listing(&world.path("two.tar")).iter().any(|line| line.starts_with("oci-layout ")));
    world.refuses(&["save", "wbe"], &["wbe", "web"]);
    let other = world.text("other");
    let loaded = world.does(&["load", "-i", "two.tar", "--store", &other]);
    assert_eq!(loaded, "Loaded image: web:1\nLoaded image: web:2");
    let digest = |store: &str| world.json(&["images", "web:2", "--store", store])[0]["digest"].clone();
    assert_eq!(digest(&other), digest(&world.text("store")));
    world.does(&["verify", "--store", &other]);
    // Through a pipe, and cut off.
    let mut save = world.command(&["save", "web:1"]).stdout(Stdio::piped()).spawn().expect("rvmm");
    let third = world.text("third");
    let mut load = world.command(&["load", "--store", &third]);
    let output = load.stdin(save.stdout.take().expect("a pipe")).output().expect("rvmm");
    assert!(save.wait().expect("an end").success() && output.status.success());
    let whole = fs::read(world.path("two.tar")).expect("an archive");
    world.write("cut.tar", &whole[..whole.len() / 2]);
    world.refuses(&["load", "-i", "cut.tar", "--store", &world.text("fourth")], &["cut off"]);
    assert_eq!(world.json(&["images", "--store", &world.text("fourth")]).as_array().map(Vec::len), Some(0));
}

#[test]
fn what_does_not_boot_is_no_kernel() {
    let world = World::new();
    world.write("disk.raw", vec![0xa5; 1 << 20]);
    world.write(
        "noise",
        (0..100_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect::<Vec<_>>(),
    );
    world.write("empty", "");
    let with = |kernel: &str, words: &[&str]| {
        world.refuses(&["import", "disk.raw", "x", "--kernel", kernel], words);
        assert!(!world.path("store").exists(), "{kernel}: nothing was written");
    };
    with("noise", &["noise", "kernel"]);
    with("disk.raw", &["disk.raw", "kernel"]);
    with("empty", &["empty"]);
    with(".", &["not a regular file"]);
    with("nowhere", &["nowhere", "No such file"]);
    host::run("mkfifo", &[&world.text("pipe")]);
    with("pipe", &["not a regular file"]);
    let kernel = bare::kernel().to_string_lossy();
    let with = |initrd: &str, words: &[&str]| {
        world.refuses(&["import", "disk.raw", "x", "--kernel", &kernel, "--initrd", initrd], words);
        assert!(!world.path("store").exists(), "{initrd}: nothing was written");
    };
    with("empty", &["empty"]);
    with("pipe", &["not a regular file"]);
    with("nowhere", &["nowhere", "No such file"]);
    world.does(&["import", "disk.raw", "x", "--kernel", &kernel, "--initrd", "noise"]);
}

#[test]
fn an_image_is_its_users() {
    let world = World::new();
    world.root("root");
    let author = |variables: &[(&str, &str)], image: &str| {
        let mut command = world.command(&["import", "root", image, "--size", SIZE]);
        command.env_remove("RVMM_AUTHOR").env_remove("USER").envs(variables.iter().copied());
        assert!(command.status().expect("rvmm").success());
        world.json(&["history", image])[0]["author"].clone()
    };
    assert_eq!(author(&[("RVMM_AUTHOR", "ada"), ("USER", "bob")], "a"), "ada");
    assert_eq!(author(&[("USER", "bob")], "b"), "bob");
    let own = host::run("id", &["-un"]);
    assert_eq!(author(&[], "c"), own.trim());
    assert_eq!(author(&[("USER", "")], "d"), own.trim());
}
