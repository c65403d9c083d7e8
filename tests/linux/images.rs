//! Images run as machines with Linux, from the import to a version that was committed, by the command line.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::common::linux::{kernel, made};
use crate::common::machine::{Ended, Machine};
use crate::common::{eventually, host};
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
    // What the init makes to mount something there is nobody's change.
    let told = home.does(&["diff", "box:1", "box:2"]).out;
    assert_eq!(told.trim(), "A /kept");
    home.does(&["run", "--net", "none", "--rm", "box:2", "--", "cat", "/kept"]).said("kept");
    fs::write(home.path("variables"), "# words\nWORD=of a file\nOTHER=too\n").expect("a file");
    let script = "echo $WORD, $OTHER, $(hostname), $HOSTNAME; touch /kept; touch /tmp/x && cat /kept";
    let file = home.text("variables");
    let told = ["--env-file", &file, "-e", "WORD=told", "--hostname", "other", "--read-only", "-m", "200M"];
    let run = [&["run", "--net", "none"][..], &told, &["box:1", "--", "sh", "-c", script]].concat();
    let gone = home.rvmm(&run);
    gone.said("told, too, other, other").said("touch: /kept: Read-only file system");
    assert_eq!(gone.status, 1, "the first version is as it was:\n{gone}");
}

#[test]
fn a_command_ends_as_its_user_says() {
    need!(host::linux(), host::program("busybox").map(drop));
    let home = Home::new();
    // Longer than the default would let it.
    let slow = "trap 'sleep 12; echo goodbye from $(hostname); exit 5' USR1; echo ready; while :; do sleep 0.1; done";
    let how = ["--stop-signal", "usr1", "--stop-timeout", "100", "-h", "box"];
    let run = [&["run", "-d", "--net", "none", "--name", "slow", "-u", "33"][..], &how].concat();
    home.does(&[&run[..], &["box:1", "--", "sh", "-c", slow]].concat());
    // Its commands are of this user; files are copied by root.
    assert_eq!(home.exec("slow", "id -u"), "33\n");
    fs::create_dir(home.path("tree")).expect("a directory");
    fs::write(home.path("tree/file"), "in a tree").expect("a file");
    home.does(&["cp", &home.text("tree"), "slow:/etc/tree"]);
    assert_eq!(home.exec("slow", "cat /etc/tree/file; stat -c %u /etc/tree/file"), "in a tree0\n");
    home.does(&["exec", "-u", "0", "slow", "--", "chmod", "700", "/etc/tree"]);
    home.does(&["cp", "slow:/etc/tree", &home.text("back")]);
    assert_eq!(fs::read(home.path("back/file")).expect("a file"), b"in a tree");
    home.does(&["stop", "slow"]);
    home.does(&["logs", "slow"]).said("goodbye from box");
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
    // Its agent is waited for.
    home.exec("web", "until [ -e /sums ]; do sleep 0.1; done");
    assert!(home.rvmm(&["logs", "web"]).out.contains("ready"), "it runs");
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

    // What it has not flushed is in the disk of a warm version, too, for who boots that.
    home.exec("web", "echo not flushed >/late");
    let said = home.json(&["commit", "web", "box:warm", "--warm"]);
    assert_eq!(said["frozen"], serde_json::json!(["/"]), "{said}");
    home.does(&["export", "box:warm", "--format", "raw", &home.text("warm.raw")]);
    host::run("e2fsck", &["-fn", &home.text("warm.raw")]);
    assert_eq!(host::run("debugfs", &["-R", "cat /late", &home.text("warm.raw")]), "not flushed\n");
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

#[test]
fn a_warm_image_goes_on_on_another_host_without_a_network() {
    need!(host::linux(), host::program("busybox").map(drop), host::program("zstd").map(drop));
    let home = Home::new();
    let script = "echo of the disk >/disk; echo of memory >/tmp/memory; echo ready; exec sleep 1000000";
    let mount = format!("mount -t tmpfs none /tmp; {script}");
    home.does(&["run", "-d", "--net", "none", "--name", "web", "box:1", "--", "sh", "-c", &mount]);
    let identity = "hostname; echo $(cat /etc/machine-id); cat /disk /tmp/memory";
    assert!(eventually(|| home.rvmm(&["logs", "web"]).out.contains("ready")), "it runs");
    let source = home.exec("web", identity);
    home.does(&["commit", "web", "box:warm", "--warm"]);
    home.does(&["rm", "-f", "web"]);
    home.does(&["save", "box:warm", "--with-kernel", "-o", &home.text("box.tar")]);
    host::run("zstd", &["-q", "-1", &home.text("box.tar")]);

    // All that goes there is the archive.
    let there = Home(TempDir::new().expect("a directory"));
    there.does(&["load", "-i", &home.text("box.tar.zst")]);
    drop(home);
    there.does(&["run", "-d", "--name", "other", "box:warm"]);
    let other = there.exec("other", identity);
    let (source, other): (Vec<&str>, Vec<&str>) = (source.lines().collect(), other.lines().collect());
    assert_eq!((source[0], other[0]), ("web", "other"), "its own name");
    assert!(other[1].len() == 32 && other[1] != source[1], "its own machine id: {source:?} {other:?}");
    assert_eq!(other[2..], ["of the disk", "of memory"]);
    let sums = "md5sum /bin/busybox /www/page; echo written >/new; sync; cat /new";
    let sums = there.exec("other", sums);
    let busybox = host::run("md5sum", &[&host::program("busybox").expect("asked for").to_string_lossy()]);
    assert_eq!(sums.split(' ').next(), busybox.split(' ').next(), "{sums}");
    assert!(sums.ends_with("written\n"), "{sums}");
}

/// What a guest serves at a port of the host; nothing while it does not.
fn page(port: u16) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    stream.write_all(b"GET /page HTTP/1.0\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.split_once("\r\n\r\n").map(|(_, page)| page.to_string())
}

#[test]
fn a_port_and_a_disk_of_the_host_are_the_guests() {
    need!(
        host::linux(),
        host::program("busybox").map(drop),
        host::program("passt").map(drop),
        host::program("mke2fs").map(drop)
    );
    let home = Home::new();
    fs::create_dir(home.path("data")).expect("a directory");
    fs::write(home.path("data/page"), "of the volume").expect("a file");
    let (data, disk) = (home.text("data"), home.text("data.ext4"));
    host::run("mke2fs", &["-q", "-t", "ext4", "-d", &data, &disk, "8M"]);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("a port").port();
    drop(listener);

    let (publish, volume) = (format!("127.0.0.1:{port}:80"), format!("{disk}:/data"));
    let run = ["run", "-d", "--name", "web", "-p", &publish, "-v", &volume, "box:1", "--"];
    home.does(&[&run[..], &["httpd", "-f", "-p", "80", "-h", "/data"]].concat());
    let mut served = None;
    assert!(eventually(|| {
        served = page(port);
        served.is_some()
    }));
    assert_eq!(served.as_deref(), Some("of the volume"));
    home.exec("web", "echo written >/data/new && sync");
    home.does(&["rm", "-f", "web"]);
    let written = host::run("debugfs", &["-R", "cat /new", &disk]);
    assert!(written.contains("written"), "{written}");
}
