//! Kernels of packages: apt and dpkg-deb are those of the host, the repository is a directory.

use std::fs;
use std::path::Path;

use crate::common::host::{self, STOCK_KERNEL};
use crate::common::linux::made;
use crate::need;
use crate::world::World;

/// A package with these files in `name`, and what a repository says of it.
fn package(world: &World, name: &str, depends: &str) -> String {
    let control = format!(
        "Package: {name}\nVersion: 1\nArchitecture: amd64\nMaintainer: nobody <nobody@example.org>\nDepends: {depends}\nDescription: a test\n"
    );
    world.write(&format!("{name}/DEBIAN/control"), &control);
    let (from, file) = (world.text(name), format!("{name}.deb"));
    let to = world.text(&format!("repository/{file}"));
    host::run("dpkg-deb", &["--root-owner-group", "-Znone", "-b", &from, &to]);
    let size = fs::metadata(&to).expect("a package").len();
    let sum = host::run("sha256sum", &[&to]);
    format!("{control}Filename: ./{file}\nSize: {size}\nSHA256: {}\n\n", &sum[..64])
}

#[test]
fn a_kernel_of_a_package() {
    need!(host::program("apt-get"), host::program("apt-cache"), host::program("dpkg-deb"));
    let stock = Path::new(STOCK_KERNEL);
    need!(stock.is_file().then_some(()).ok_or(format!("no {STOCK_KERNEL}: `make guest` fetches it")));
    let world = World::new();
    let modules = made("modules").canonicalize().expect("modules");
    let version = modules.file_name().expect("a name").to_string_lossy().into_owned();
    let name = format!("linux-image-{version}");
    world.write(&format!("{name}/boot/vmlinuz-{version}"), fs::read(stock).expect("a kernel"));
    fs::create_dir_all(world.path(&format!("{name}/lib/modules"))).expect("a directory");
    let there = world.text(&format!("{name}/lib/modules/{version}"));
    host::run("cp", &["-a", &modules.to_string_lossy(), &there]);
    fs::create_dir(world.path("repository")).expect("a directory");
    // As distributions have it: the usual name only leads to the kernel of the day.
    let packages =
        [package(&world, &name, "dpkg"), package(&world, "linux-image-cloud-amd64", &name)].concat();
    world.write("repository/Packages", packages);
    world.write("sources", format!("deb [trusted=yes] file:{} ./\n", world.text("repository")));
    for place in ["state/lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(world.path(place)).expect("a directory");
    }
    world.write("empty", "");
    let settings = format!(
        "Dir::State \"{0}/state\";\nDir::State::status \"{0}/empty\";\nDir::Cache \"{0}/cache\";\nDir::Etc::sourcelist \"{0}/sources\";\nDir::Etc::sourceparts \"/dev/null\";\nAPT::Sandbox::User \"root\";\n",
        world.text("").trim_end_matches('/')
    );
    let settings = world.write("apt.conf", settings);
    let apt = |program: &str, arguments: &[&str]| {
        let mut command = std::process::Command::new(program);
        command.args(arguments).env("APT_CONFIG", &settings).output().expect("apt")
    };
    let updated = apt("apt-get", &["-qq", "update"]);
    assert!(updated.status.success(), "{}", String::from_utf8_lossy(&updated.stderr));

    let add = |arguments: &[&str]| {
        let mut command = world.command(&[&["kernel", "add", "--from-package"], arguments].concat());
        let said = command.env("APT_CONFIG", &settings).output().expect("rvmm");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        (said.status.code(), text(said.stdout), text(said.stderr))
    };
    let (status, out, err) = add(&[]);
    assert_eq!((status, err.as_str()), (Some(0), ""), "{out}");
    let kernel = world.json(&["kernel", "ls"])[0].clone();
    assert_eq!(
        (&kernel["version"], &kernel["default"]),
        (&version.as_str().into(), &true.into()),
        "{kernel}"
    );
    // By its own name it is the same; what is none is told, and nothing stays on the disk.
    assert_eq!(add(&[&name, "--name", "again"]).0, Some(0));
    let (status, _, err) = add(&["linux-image-nowhere"]);
    assert!(status == Some(1) && err.lines().count() == 1 && err.contains("linux-image-nowhere"), "{err}");
    let left = fs::read_dir(world.path("store/scratch")).map_or(0, Iterator::count);
    assert_eq!(left, 0);
    world.does(&["kernel", "default", "again"]);
    world.does(&["kernel", "rm", out.trim()]);
    let left = world.json(&["kernel", "ls"]);
    assert_eq!((left.as_array().map(Vec::len), &left[0]["default"]), (Some(1), &true.into()), "{left}");
}
