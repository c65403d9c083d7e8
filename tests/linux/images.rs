//! Images run as machines with Linux, from the import to a version that was committed, by the command line.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

use tempfile::TempDir;

use crate::common::host;
use crate::common::linux::{kernel, made};
use crate::common::machine::{Ended, Machine};
use crate::need;

#[test]
fn an_image_runs_is_committed_and_runs_again() {
    need!(host::linux(), host::program("busybox").map(drop));
    let directory = TempDir::new().expect("a directory");
    let root = directory.path().join("root");
    ["bin", "tmp"].iter().for_each(|name| fs::create_dir_all(root.join(name)).expect("a directory"));
    fs::copy(host::program("busybox").expect("asked for"), root.join("bin/busybox")).expect("a copy");
    ["sh", "cat"].iter().for_each(|name| symlink("busybox", root.join("bin").join(name)).expect("a link"));

    let store = directory.path().join("store").display().to_string();
    let rvmm = |arguments: &[&str]| -> Ended {
        let whole = [&["--store", &store], arguments].concat();
        Machine::command_line(&whole).limit(Duration::from_secs(300)).run()
    };
    let does = |arguments: &[&str]| {
        let ended = rvmm(arguments);
        assert_eq!(ended.status, 0, "{arguments:?}\n{ended}");
        ended
    };
    does(&["import", &root.display().to_string(), "box:1", "--size", "64M"]);
    let (kernel, modules) = (kernel().display().to_string(), made("modules").display().to_string());
    does(&["kernel", "add", &kernel, "--modules", &modules]);

    let script = "echo $WORD from $(pwd); echo kept >/kept; exit 7";
    let run = ["run", "--net", "none", "--name", "one", "-e", "WORD=hello", "-w", "/tmp", "box:1", "--"];
    let ran = rvmm(&[&run[..], &["sh", "-c", script]].concat());
    assert_eq!(ran.said("hello from /tmp").status, 7, "the status of the command:\n{ran}");

    does(&["commit", "one", "box:2", "-m", "second", "-a", "ada"]);
    does(&["history", "box:2"]).said("second").said("ada");
    does(&["run", "--net", "none", "--rm", "box:2", "--", "cat", "/kept"]).said("kept");
    let gone = rvmm(&["run", "--net", "none", "--rm", "box:1", "--", "cat", "/kept"]);
    assert_eq!(gone.status, 1, "the first version is as it was:\n{gone}");
}
