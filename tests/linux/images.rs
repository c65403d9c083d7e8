//! Images run as machines with Linux, from the import to a version that was committed, by the command line.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::common::linux::{kernel, made};
use crate::common::machine::{Ended, Machine};
use crate::common::{eventually, host, world};
use crate::need;

/// A store with the stock kernel and an image `box:1`: busybox, and a page to be served.
struct Home(TempDir);

impl Home {
    fn new() -> Self {
        let home = Home(TempDir::new().expect("a directory"));
        let root = home.path("root");
        for name in ["bin", "tmp", "etc", "www"] {
            fs::create_dir_all(root.join(name)).expect("a directory");
        }
        fs::copy(host::program("busybox").expect("asked for"), root.join("bin/busybox")).expect("a copy");
        for applet in host::run("busybox", &["--list"]).lines().filter(|name| *name != "busybox") {
            symlink("busybox", root.join("bin").join(applet)).expect("a link");
        }
        fs::write(root.join("www/page"), "of the image").expect("a file");
        fs::write(root.join("etc/machine-id"), "0".repeat(32)).expect("a file");
        home.does(&["import", &home.text("root"), "box:1", "--size", "64M"]);
        let (kernel, modules) = (kernel().display().to_string(), made("modules").display().to_string());
        home.does(&["kernel", "add", &kernel, "--modules", &modules]);
        home
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn rvmm(&self, arguments: &[&str]) -> Ended {
        let (store, run) = (self.text("store"), self.text("run"));
        let whole = [&["--store", &store, "--runtime-dir", &run], arguments].concat();
        Machine::command_line(&whole).limit(Duration::from_secs(300)).run()
    }

    #[track_caller]
    fn does(&self, arguments: &[&str]) -> Ended {
        let ended = self.rvmm(arguments);
        assert_eq!(ended.status, 0, "{arguments:?}\n{ended}");
        ended
    }

    #[track_caller]
    fn json(&self, arguments: &[&str]) -> Value {
        let ended = self.does(&[arguments, &["--json"]].concat());
        serde_json::from_str(&ended.out).unwrap_or_else(|error| panic!("{error}\n{ended}"))
    }

    /// What a script in a guest prints.
    #[track_caller]
    fn exec(&self, name: &str, script: &str) -> String {
        self.does(&["exec", name, "--", "sh", "-c", script]).out
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        self.rvmm(&["stop", "--all", "--force"]);
    }
}

#[test]
fn an_image_runs_is_committed_and_runs_again() {
    need!(host::linux(), host::program("busybox").map(drop));
    let home = Home::new();
    let script = "echo $WORD from $(pwd); echo kept >/kept; exit 7";
    let run = ["run", "--net", "none", "--name", "one", "-e", "WORD=hello", "-w", "/tmp", "box:1", "--"];
    let ran = home.rvmm(&[&run[..], &["sh", "-c", script]].concat());
    assert_eq!(ran.said("hello from /tmp").status, 7, "the status of the command:\n{ran}");

    home.does(&["commit", "one", "box:2", "-m", "second", "-a", "ada"]);
    home.does(&["history", "box:2"]).said("second").said("ada");
    home.does(&["run", "--net", "none", "--rm", "box:2", "--", "cat", "/kept"]).said("kept");
    let gone = home.rvmm(&["run", "--net", "none", "--rm", "box:1", "--", "cat", "/kept"]);
    assert_eq!(gone.status, 1, "the first version is as it was:\n{gone}");
}

/// Writes files without end; the sums of `sums` are right whenever it is there.
const BUSY: &str =
    "echo ready; i=0; while :; do i=$((i+1)); dd if=/dev/urandom of=/f$((i%4)) bs=64k count=8 2>/dev/null
rm -f /sums; md5sum /f* >/sums.new; mv /sums.new /sums; done";

#[test]
fn a_running_guest_is_committed_at_rest_and_goes_on_as_somebody_else() {
    need!(host::linux(), host::program("busybox").map(drop), host::program("e2fsck").map(drop));
    let home = Home::new();
    let run = ["run", "-d", "--net", "none", "--name", "web", "box:1", "--", "sh", "-c", BUSY];
    home.does(&run);
    assert!(eventually(|| home.rvmm(&["logs", "web"]).out.contains("ready")), "it runs");
    let said = home.json(&["commit", "web", "box:2"]);
    assert_eq!(said["frozen"], serde_json::json!(["/"]), "{said}");
    // At rest: nothing is left for the journal to put right.
    home.does(&["export", "box:2", "--format", "raw", &home.text("box.raw")]);
    host::run("e2fsck", &["-fn", &home.text("box.raw")]);
    let about = host::run("dumpe2fs", &["-h", &home.text("box.raw")]);
    assert!(!about.contains("needs_recovery"), "{about}");
    // The machine writes on, and its files go in and out.
    let before = home.exec("web", "rm -f /seen; until [ -e /sums ]; do :; done; cat /proc/uptime");
    assert!(!before.is_empty());
    fs::write(home.path("in"), "from outside").expect("a file");
    home.does(&["cp", &home.text("in"), "web:/in"]);
    home.does(&["cp", "web:/in", &home.text("out")]);
    assert_eq!(fs::read(home.path("out")).expect("a file"), b"from outside");

    home.does(&["commit", "web", "box:warm", "--warm"]);
    let identity = "hostname; echo $(cat /etc/machine-id); cat /in";
    let source = home.exec("web", identity);
    home.does(&["stop", "--force", "web"]);
    // An image without a name goes on as long as a machine has it.
    let name = home.json(&["run", "-d", "box:warm"])["name"].as_str().expect("a name").to_string();
    home.does(&["rmi", "-f", "box:warm"]);
    home.does(&["gc"]);
    let other = home.exec(&name, identity);
    let (source, other): (Vec<&str>, Vec<&str>) = (source.lines().collect(), other.lines().collect());
    assert_eq!(other[0], name, "its own name");
    assert!(other[1].len() == 32 && other[1] != source[1], "its own machine id: {source:?} {other:?}");
    assert_eq!(other[2], "from outside");
    // It goes on, and reads what it has not read yet.
    home.exec(&name, "rm -f /sums; until [ -e /sums ]; do :; done; find /bin /www -type f | xargs md5sum");
}

/// Waits for a page and prints it; the program and where things are come before.
const SERVED: &str = r#"set -e
rvmm() { "$RVMM" --store "$HERE/store" --runtime-dir "$HERE/run" "$@"; }
page() { for i in $(seq 60); do busybox wget -T 5 -q -O - "http://127.0.0.1:$1" 2>/dev/null && return; sleep 0.1; done
rvmm ps -a >&2; for name in web source; do rvmm logs $name >&2; done; false; }
trap 'rvmm stop --all --force >/dev/null' EXIT
rvmm run -d --name web -p 127.0.0.1:8080:80 -v "$HERE/data.ext4:/data" box:1 -- httpd -f -p 80 -h /data
page 8080/page; echo
rvmm run -d --name source -p 127.0.0.1:8081:80 box:1 -- httpd -f -p 80 -h /www
page 8081/page; echo
rvmm commit source box:warm --warm
rvmm run -d --name other -p 127.0.0.1:8082:80 box:warm
page 8082/page; echo
page 8081/page; echo
for name in source other; do echo "mac $(rvmm exec $name -- cat /sys/class/net/eth0/address)"; done
rvmm exec web -- sh -c 'grep " /data " /proc/mounts; echo written >/data/new; sync'
"#;

#[test]
fn ports_and_disks_of_the_host_are_the_guests() {
    need!(
        host::linux(),
        host::program("busybox").map(drop),
        host::program("passt").map(drop),
        host::program("mke2fs").map(drop),
        world::offered()
    );
    let home = Home::new();
    let data = disk(&home, "of the volume");
    let mut command = world::shell(SERVED);
    command.env("RVMM", env!("CARGO_BIN_EXE_rvmm")).env("HERE", home.path(""));
    let output = command.output().expect("a shell");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}");
    let lines: Vec<&str> = out.lines().collect();
    let pages: Vec<&str> = lines.iter().copied().filter(|line| line.starts_with("of the ")).collect();
    assert_eq!(pages, ["of the volume", "of the image", "of the image", "of the image"], "{out}\n{err}");
    let macs: Vec<&str> = lines.iter().copied().filter(|line| line.starts_with("mac ")).collect();
    assert!(macs.len() == 2 && macs[0].len() == 21 && macs[0] != macs[1], "{out}\n{err}");
    assert!(lines.iter().any(|line| line.starts_with("/dev/vdb /data ext4 rw")), "{out}");
    assert_eq!(host::run("debugfs", &["-R", "cat /new", &data.to_string_lossy()]), "written\n");
}

/// A disk of the host with a page on it.
fn disk(home: &Home, page: &str) -> PathBuf {
    let (tree, disk) = (home.path("data"), home.path("data.ext4"));
    fs::create_dir(&tree).and_then(|()| fs::write(tree.join("page"), page)).expect("a file");
    fs::File::create(&disk).and_then(|file| file.set_len(16 << 20)).expect("a disk");
    let words = ["-q", "-t", "ext4", "-E", "root_owner=0:0", "-d"];
    host::run("mke2fs", &[&words[..], &[&*tree.to_string_lossy(), &*disk.to_string_lossy()]].concat());
    disk
}
