//! Names, versions and differences; what is removed and what stays.

use std::fs;
use std::os::unix::fs::FileExt;

use crate::common::host;
use crate::world::{SIZE, World};

#[test]
fn names_come_move_and_go() {
    let world = World::new();
    let digest = world.image("web:1");
    let short = &digest["sha256:".len()..][..12];
    assert_eq!(world.does(&["images", "-q"]), short);
    let table = world.does(&["images"]);
    assert!(table.starts_with("REPOSITORY  TAG  IMAGE ID      CREATED"), "{table}");
    assert!(table.contains(&format!("web         1    {short}")), "{table}");
    world.does(&["tag", short, "web:2"]);
    world.does(&["tag", &short[..6], "other"]);
    assert_eq!(world.json(&["images"]).as_array().map(Vec::len), Some(3));
    assert_eq!(world.json(&["images", "web"]).as_array().map(Vec::len), Some(2));
    assert_eq!(
        world.json(&["inspect", "other"])[0]["names"],
        serde_json::json!(["other:latest", "web:1", "web:2"])
    );
    for unknown in [
        &["history", "othr"][..],
        &["tag", "othr", "x"],
        &["rmi", "othr"],
        &["export", "othr", "f", "--format", "raw"],
    ] {
        let said = world.says(unknown);
        assert!(
            said.status == 1 && said.err.contains("did you mean `other:latest`?"),
            "{unknown:?} {said:?}"
        );
    }
    world.refuses(&["tag", "web:1", "Web"], &["lowercase"]);
    let said = world.says(&["rmi", short]);
    assert!(said.err.contains("several names"), "{said:?}");
    assert_eq!(world.does(&["rmi", "web:1"]), "Untagged: web:1");
    let said = world.does(&["rmi", "-f", short]);
    assert!(said.contains("Untagged: web:2") && said.contains("Deleted: "), "{said}");
    assert_eq!(fs::read_dir(world.path("store/blobs/sha256")).expect("blobs").count(), 0);
    assert_eq!(world.does(&["images"]).lines().count(), 1);
}

#[test]
fn files_that_differ() {
    let world = World::new();
    let root = world.root("root");
    world.image("web:1");
    fs::remove_file(root.join("etc/secret")).expect("a file");
    world.write("root/etc/hosts", "127.0.0.1 localhost\n10.0.0.1 other\n");
    world.write("root/new/file", "new");
    let tool = fs::File::options().write(true).open(root.join("bin/tool")).expect("a file");
    tool.write_all_at(b"changed", 100_000).expect("a file");
    fs::remove_dir(root.join("usr/lib")).expect("a directory");
    world.image("web:2");
    assert_eq!(
        world.does(&["diff", "web:1", "web:2"]),
        "C /bin/tool\nC /etc/hosts\nC /etc/hosts2\nD /etc/secret\nA /new\nA /new/file\nD /usr/lib"
    );
    let back = world.does(&["diff", "web:2", "web:1"]);
    assert!(back.contains("A /etc/secret\nD /new\nA /usr/lib"), "{back}");
    assert_eq!(world.does(&["diff", "web:1", "web:1"]), "");
    let json = world.json(&["diff", "web:1", "web:2"]);
    assert_eq!((&json["files"][0]["change"], &json["files"][0]["size"]), (&"C".into(), &200_000.into()));
    // What is no ext4 is told by its blocks.
    for (name, byte) in [("one", 1), ("two", 2)] {
        let disk = world.write(name, vec![5; 1 << 20]);
        let disk = fs::File::options().write(true).open(disk).expect("a disk");
        disk.write_all_at(&[byte; 4096], 8192).expect("a disk");
        world.does(&["import", name, name]);
    }
    assert!(world.does(&["diff", "one", "two"]).starts_with("0x"), "ranges of bytes");
    assert_eq!(world.json(&["diff", "one", "two"])["files"], serde_json::Value::Null);
}

#[test]
fn what_an_image_says_does_nothing_to_a_terminal() {
    let world = World::new();
    world.root("root");
    let import = [
        "import",
        "root",
        "web",
        "--size",
        SIZE,
        "-m",
        "\x1b]0;title\x07 and \u{9b}31m",
        "-a",
        "\x1b[31mred",
    ];
    world.does(&import);
    for command in [&["history", "web"][..], &["history", "--no-trunc", "web"]] {
        let told = world.does(command);
        assert!(told.contains("title") && told.contains("[31mred"), "{told}");
        assert!(!told.contains(|c: char| c.is_control() && c != '\n'), "{told:?}");
    }
    let config = r#"{"architecture":"\u001b[31mred","rootfs":{"type":"layers","diff_ids":[]}}"#;
    world.write("odd/manifest.json", r#"[{"Config":"config","Layers":[]}]"#);
    world.write("odd/config", config);
    host::run("tar", &["-C", &world.text("odd"), "-cf", &world.text("odd.tar"), "manifest.json", "config"]);
    world.refuses(&["import", "odd.tar", "x"], &["it is for ?[31mred"]);
}

#[test]
fn damage_is_found_and_can_be_put_right() {
    let world = World::new();
    world.image("web:1");
    world.does(&["save", "web:1", "-o", "good.tar"]);
    assert!(world.does(&["verify"]).ends_with("blobs are whole"));
    let layer = world.json(&["inspect", "web:1"])[0]["manifest"]["layers"][0]["digest"].clone();
    let layer = layer.as_str().expect("a digest").trim_start_matches("sha256:").to_string();
    let blob = world.path("store/blobs/sha256").join(&layer);
    let file = fs::File::options().write(true).open(&blob).expect("a blob");
    let middle = file.metadata().expect("a blob").len() / 2;
    file.write_all_at(b"damage", middle).expect("a blob");
    // What was unpacked while it was whole still is.
    world.does(&["export", "web:1", "before", "--format", "raw"]);
    world.does(&["gc", "--cache"]);
    world.refuses(&["export", "web:1", "f", "--format", "raw"], &["rvmm: "]);
    assert!(!world.path("f").exists(), "what was not exported is not there");
    let said = world.says(&["verify"]);
    assert!(
        said.status == 1 && said.err.contains(&layer) && said.err.contains("rvmm verify --remove"),
        "{said:?}"
    );
    let said = world.says(&["verify", "--remove"]);
    assert!(said.out.contains("1 removed") && !blob.exists(), "{said:?}");
    let said = world.says(&["verify"]);
    assert!(said.err.contains("missing"), "{said:?}");
    world.does(&["load", "-i", "good.tar"]);
    world.does(&["verify"]);
    world.does(&["export", "web:1", "f", "--format", "raw"]);
}

#[test]
fn other_directories_are_no_stores() {
    let world = World::new();
    world.root("root");
    world.refuses(&["images", "--store", &world.text("root")], &["not an image store"]);
    let import = ["import", "root", "a", "--size", SIZE, "--store", "/proc/nowhere/store"];
    world.refuses(&import, &["/proc"]);
}
