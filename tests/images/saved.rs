//! Archives of `save`, compressed and not, and the kernels that go with them.

use std::fs::{self, File};

use crate::common::{bare, host};
use crate::need;
use crate::world::{World, listing};

#[test]
fn compressed_archives_from_files_and_from_standard_input() {
    need!(host::program("gzip"), host::program("bzip2"), host::program("xz"), host::program("zstd"));
    let world = World::new();
    world.image("web:1");
    world.does(&["save", "web:1", "-o", "web.tar"]);
    for program in ["gzip", "bzip2", "xz", "zstd"] {
        host::run(program, &["-qkf", &world.text("web.tar")]);
    }
    for (number, end) in ["", ".gz", ".bz2", ".xz", ".zst"].iter().enumerate() {
        let archive = world.text(&format!("web.tar{end}"));
        let store = world.text(&format!("store-{number}"));
        assert_eq!(world.does(&["load", "-i", &archive, "--store", &store]), "Loaded image: web:1");
        let again = world.text(&format!("again-{number}"));
        let mut load = world.command(&["load", "--store", &again]);
        let output = load.stdin(File::open(&archive).expect("an archive")).output().expect("rvmm");
        assert!(output.status.success() && output.stderr.is_empty(), "{end}: {output:?}");
        for store in [store, again] {
            world.does(&["verify", "--store", &store]);
            let digest = |store: &str| world.json(&["images", "--store", store])[0]["digest"].clone();
            assert_eq!(digest(&store), digest(&world.text("store")), "{end}");
        }
        // Cut off.
        let whole = fs::read(&archive).expect("an archive");
        world.write("cut", &whole[..whole.len() / 2]);
        let said = world.says(&["load", "-i", "cut", "--store", &world.text("cut-off")]);
        assert!(said.status == 1 && said.err.lines().count() == 1, "{end}: {said:?}");
    }
    assert_eq!(world.json(&["images", "--store", &world.text("cut-off")]).as_array().map(Vec::len), Some(0));
}

#[test]
fn archives_that_would_fill_the_disk_or_are_others_are_refused() {
    need!(host::program("zstd"), host::program("skopeo"));
    let world = World::new();
    let blob = format!("bomb/blobs/sha256/{}", "a".repeat(64));
    world.write(&blob, "");
    let file = File::options().write(true).open(world.path(&blob)).expect("a blob");
    file.set_len(300 << 20).expect("a blob");
    host::run("tar", &["-C", &world.text("bomb"), "-cf", &world.text("bomb.tar"), "blobs"]);
    host::run("zstd", &["-q", &world.text("bomb.tar")]);
    world.refuses(&["load", "-i", "bomb.tar.zst"], &["more than 200 times"]);
    assert_eq!(fs::read_dir(world.path("store/uploads")).expect("uploads").count(), 0);

    world.image("web:1");
    world.does(&["export", "web:1", "--format", "oci", "c.tar"]);
    let from = format!("oci-archive:{}", world.text("c.tar"));
    host::run("skopeo", &["copy", "-q", &from, &format!("docker-archive:{}:web:9", world.text("d.tar"))]);
    for archive in ["c.tar", "d.tar"] {
        world.refuses(&["load", "-i", archive], &["containers", "rvmm import"]);
    }
}

#[test]
fn a_kernel_goes_along() {
    need!(host::kvm());
    let world = World::new();
    world.write("disk.raw", vec![0xa5; 1 << 20]);
    world.does(&["import", "disk.raw", "web:1"]);
    world.refuses(&["save", "web:1", "--with-kernel", "-o", "web.tar"], &["no default kernel"]);
    let kernel = bare::kernel().to_string_lossy().into_owned();
    let add = |name: &str, store: &str| {
        // It may say that no modules are there.
        let said = world.says(&["kernel", "add", &kernel, "--name", name, "--store", store]);
        assert_eq!(said.status, 0, "{said:?}");
    };
    let kernels = |store: &str| world.json(&["kernel", "ls", "--store", store]);
    let runs = |store: &str| {
        let run = ["run", "web:1", "--net", "none", "--cmdline", "test=hello", "--store", store];
        let said = world.says(&run);
        assert!(said.status == 0 && said.out.contains("OK hello"), "{said:?}");
    };
    add("mine", &world.text("store"));
    // Alone, it says what it lacks.
    world.does(&["save", "web:1", "-o", "alone.tar"]);
    let alone = world.text("alone");
    world.does(&["load", "-i", "alone.tar", "--store", &alone]);
    world.refuses(&["run", "web:1", "--store", &alone], &["no kernel", "--with-kernel"]);
    // With it, it runs.
    world.does(&["save", "web:1", "--with-kernel", "-o", "web.tar"]);
    assert!(listing(&world.path("web.tar")).len() > listing(&world.path("alone.tar")).len());
    let said = world.does(&["load", "-i", "web.tar", "--store", &alone]);
    assert_eq!(said, "Loaded image: rvmm/kernel:mine\nLoaded image: web:1");
    assert_eq!(kernels(&alone), kernels(&world.text("store")), "and it is the default");
    runs(&alone);
    // Kernels that are added in one second are equal.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    // A kernel that is there stays, whether it has the same name or another one.
    for name in ["mine", "other"] {
        let store = world.text(name);
        add(name, &store);
        let before = kernels(&store)[0].clone();
        let said = world.says(&["load", "-i", "web.tar", "--store", &store]);
        assert_eq!((said.status, said.err.contains("it stays")), (0, name == "mine"), "{said:?}");
        let after = kernels(&store);
        assert!(after.as_array().is_some_and(|all| all.contains(&before)), "{after}");
        runs(&store);
    }
    // By itself, and by its second name.
    for name in ["rvmm/kernel:mine", "rvmm/kernel:default"] {
        world.does(&["save", name, "-o", "kernel.tar"]);
        let store = world.text(&name.replace(['/', ':'], "-"));
        assert_eq!(
            world.does(&["load", "-i", "kernel.tar", "--store", &store]),
            "Loaded image: rvmm/kernel:mine"
        );
        assert_eq!(kernels(&store), kernels(&world.text("store")));
    }
    world.refuses(
        &["load", "-i", "kernel.tar", "--store", &world.text("mine")],
        &["a kernel has this name", "rvmm kernel rm"],
    );
}
