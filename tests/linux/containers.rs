//! Commands of container images as machines: our init in an initramfs that rvmm makes, on a root file system of busybox.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rvmm::image::initramfs::{self, Modules};
use rvmm::image::kernel::version;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::host;
use crate::common::linux::{guest_with, kernel, made, root_disk};
use crate::common::machine::Machine;
use crate::common::world::{self, GUEST_ON_PASST, GUEST_ON_TAP, HOST_ON_TAP, SERVER};
use crate::need;

const LIMIT: Duration = Duration::from_secs(200);

/// A root file system with busybox, two users and nothing else.
fn root(directory: &Path, more: impl FnOnce(&Path)) -> PathBuf {
    let (tree, disk) = (directory.join("tree"), directory.join("root.ext4"));
    for name in ["bin", "etc", "home/web"] {
        fs::create_dir_all(tree.join(name)).expect("a directory");
    }
    let busybox = host::program("busybox").expect("asked for");
    fs::copy(busybox, tree.join("bin/busybox")).expect("a static busybox");
    for applet in host::run("busybox", &["--list"]).lines().filter(|name| *name != "busybox") {
        symlink("busybox", tree.join("bin").join(applet)).expect("a link");
    }
    fs::write(tree.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/home/web:/bin/sh\n")
        .expect("a file");
    fs::write(tree.join("etc/group"), "root:x:0:\nweb:x:34:\nlog:x:44:web\n").expect("a file");
    more(&tree);
    File::create(&disk).and_then(|file| file.set_len(64 << 20)).expect("a disk");
    let (tree, path) = (tree.to_string_lossy(), disk.to_string_lossy());
    host::run("mke2fs", &["-q", "-t", "ext4", "-E", "root_owner=0:0", "-d", &tree, &path]);
    disk
}

/// The initramfs for a kernel.
fn initramfs(kernel: &Path) -> Vec<u8> {
    let version = File::open(kernel).and_then(|file| version(&file)).expect("a kernel").expect("a version");
    let modules = Modules::open(&made("modules").canonicalize().expect("modules"), &version);
    let made = initramfs::build(Some(&modules.expect("modules"))).expect("an initramfs");
    assert!(made.missing.is_empty(), "{:?}", made.missing);
    made.bytes
}

/// A machine that runs what `process` says.
fn equip(machine: Machine, directory: &Path, disk: &str, process: &Value) -> Machine {
    let initrd = directory.join("initrd");
    let archives = [initramfs(&kernel()), initramfs::process(process.to_string().as_bytes())].concat();
    fs::write(&initrd, archives).expect("an initramfs");
    machine.option("--initrd", initrd).option("--disk", disk).limit(LIMIT)
}

fn container(directory: &Path, disk: &str, process: &Value) -> Machine {
    equip(Machine::new(kernel()), directory, disk, process)
}

fn scratch() -> TempDir {
    TempDir::new().expect("a directory")
}

/// What a command finds, as a user who is not root, on a disk that is written to.
const LOOK_ROUND: &str =
    "echo who $(id); echo where $PWD; echo env $A:$HOME:$HOSTNAME:$PATH; echo host $(hostname -f)
[ -t 0 ] || [ -t 1 ] || [ -t 2 ] || echo no terminal; echo complaint >&2; cat; ulimit -n
(sleep 0.1 & ); (exec 2>&-; true & ); sleep 1; echo dead $(ps -o stat | grep -c Z)
echo data $(cat /data/file) $(touch /data/x 2>&1); stat -c '%a %U %n' . /tmp /dev/shm; echo disk $(cat /hello)
(echo of an orphan; sleep 1000; echo never) & exec sh -c 'exit 7'";

#[test]
fn a_command_finds_what_a_container_gives_it() {
    need!(host::linux(), host::program("mke2fs").map(drop), host::program("busybox").map(drop));
    let (directory, other) = (scratch(), scratch());
    let disk = root(directory.path(), |tree| {
        fs::write(tree.join("hello"), "of the image").expect("a file");
        // A machine has its own names, whatever image it runs.
        fs::write(tree.join("etc/hosts"), "127.0.0.9 stale\n").expect("a file");
    });
    let data = root(other.path(), |tree| fs::write(tree.join("file"), "of the volume").expect("a file"));
    let process = json!({
        "User": "web", "Env": ["A=b c", "PATH=/bin:/usr/bin"], "Entrypoint": ["sh", "-c"], "Cmd": [LOOK_ROUND],
        "WorkingDir": "/srv/new", "Hostname": "box", "Network": "none",
        "Mounts": [{ "Source": "/dev/vdb", "Target": "/data", "Type": "ext4", "ReadOnly": true }],
    });
    let machine = container(directory.path(), &disk.to_string_lossy(), &process).disk(&data, "");
    let ended = machine.run();
    ended.ended(7, "power-off");
    // Bytes come as they are, and nothing but the command says a word.
    let lines: Vec<&str> = ended.out.split('\n').collect();
    let wanted = [
        "who uid=33(web) gid=34(web) groups=44(log)",
        "where /srv/new",
        "env b c:/home/web:box:/bin:/usr/bin",
        "host box",
        "no terminal",
        "1024",
        "dead 0",
        "data of the volume touch: /data/x: Read-only file system",
        "755 root .",
        "1777 root /tmp",
        "1777 root /dev/shm",
        "disk of the image",
    ];
    let from = usize::from(lines[0].starts_with('['));
    let said: Vec<&str> = lines[from..]
        .iter()
        .copied()
        .filter(|line| !["complaint", "of an orphan", ""].contains(line))
        .collect();
    assert_eq!(said, wanted, "{ended}");
    assert!(lines.contains(&"complaint"), "{ended}");
    host::run("e2fsck", &["-fn", &disk.to_string_lossy()]);
    let names = host::run("debugfs", &["-R", "cat /etc/hosts", &disk.to_string_lossy()]);
    assert_eq!(names, "127.0.0.9 stale\n", "the image keeps its own");
}

/// On a disk that cannot be written to, with a terminal.
const ON_A_TERMINAL: &str =
    "[ -t 0 ] && [ -t 1 ] && echo terminal $(stty size) $TERM; touch /x; touch /tmp/y /run/z && echo made
echo mine >/dev/tty; grep ' / ' /proc/mounts; kill -9 $$";

#[test]
fn a_root_that_is_only_read_and_a_terminal() {
    need!(host::linux(), host::program("mke2fs").map(drop), host::program("busybox").map(drop));
    let directory = scratch();
    let disk = root(directory.path(), |tree| {
        ["dev", "proc", "sys", "tmp", "run"]
            .iter()
            .for_each(|name| fs::create_dir(tree.join(name)).expect("a directory"));
    });
    let process = json!({
        "Cmd": ["/bin/sh", "-c", ON_A_TERMINAL], "Tty": true, "Rows": 33, "Cols": 101, "ReadOnly": true, "Network": "none",
    });
    let ended = container(directory.path(), &format!("{},ro", disk.display()), &process).run();
    ended.ended(137, "power-off");
    ended
        .said("terminal 33 101 xterm")
        .said("touch: /x: Read-only file system")
        .said("made")
        .said("mine\r\n");
    assert!(ended.out.lines().any(|line| line.starts_with("/dev/vda / ext4 ro")), "{ended}");
}

#[test]
fn what_does_not_run_has_dockers_statuses() {
    need!(host::linux(), host::program("mke2fs").map(drop), host::program("busybox").map(drop));
    for (process, status, reason) in [
        (
            json!({ "Cmd": ["nowhere"], "Network": "none" }),
            127,
            "cannot run nowhere: No such file or directory",
        ),
        (
            json!({ "Cmd": ["/etc/group"], "Network": "none" }),
            126,
            "cannot run /etc/group: Permission denied",
        ),
        (json!({ "Cmd": ["id"], "User": "wbe" }), 126, "the image has no user or group as in `wbe`"),
        (json!({ "Cmd": ["id"], "Root": "/dev/vdz" }), 125, "there is no disk /dev/vdz"),
    ] {
        let directory = scratch();
        let disk = root(directory.path(), |tree| {
            let path = tree.join("etc/group");
            fs::set_permissions(path, fs::Permissions::from_mode(0o644)).expect("permissions");
        });
        let ended = container(directory.path(), &disk.to_string_lossy(), &process).run();
        ended.ended(status, "power-off").said(reason);
    }
}

#[test]
fn the_power_button_is_the_stop_signal() {
    need!(host::linux(), host::program("mke2fs").map(drop), host::program("busybox").map(drop));
    let start = |directory: &TempDir, process: Value| {
        let disk = root(directory.path(), |_| {});
        let machine =
            container(directory.path(), &disk.to_string_lossy(), &process).option("--stop-timeout", "100");
        let machine = machine.start();
        machine.says("ready");
        machine.terminate();
        machine.finish()
    };
    let directory = scratch();
    let polite = "trap 'echo goodbye; exit 5' USR1; echo ready; while :; do sleep 0.1; done";
    let process = json!({ "Cmd": ["sh", "-c", polite], "StopSignal": "SIGUSR1", "Network": "none" });
    start(&directory, process).ended(5, "power-off").said("goodbye");
    let directory = scratch();
    let deaf = "trap 'echo heard' TERM; echo ready; while :; do sleep 0.1; done";
    let process = json!({ "Cmd": ["sh", "-c", deaf], "StopTimeout": 2, "Network": "none" });
    start(&directory, process).ended(137, "power-off").said("heard");
}

#[test]
fn an_address_by_dhcp() {
    need!(host::linux(), world::offered(), host::program("passt").map(drop));
    need!(host::program("mke2fs").map(drop), host::program("busybox").map(drop));
    let directory = scratch();
    let disk = root(directory.path(), |_| {});
    let look = "ip -4 -o addr show eth0; ip route; cat /etc/resolv.conf /etc/hosts; ip link show lo";
    let process = json!({ "Cmd": ["sh", "-c", look], "Hostname": "box" });
    let machine = Machine::in_world(kernel(), "user", "");
    let ended = equip(machine, directory.path(), &disk.to_string_lossy(), &process).run();
    ended.ended(0, "power-off").said(&format!("inet {GUEST_ON_PASST}/24"));
    ended
        .said(&format!("nameserver {SERVER}\n"))
        .said("default via ")
        .said(&format!("{GUEST_ON_PASST}\tbox\n"));
    ended.said("LOOPBACK,UP");
}

#[test]
fn a_lease_is_renewed_before_it_is_over() {
    need!(host::linux(), world::offered(), host::program("mke2fs").map(drop));
    need!(host::program("busybox").map(drop), host::program("setpriv").map(drop));
    let directory = scratch();
    let disk = root(directory.path(), |_| {});
    let (settings, log) = (directory.path().join("udhcpd.conf"), directory.path().join("log"));
    let leases = directory.path().join("leases");
    fs::write(
        &settings,
        format!(
            "interface tap0\nstart {GUEST_ON_TAP}\nend {GUEST_ON_TAP}\noption subnet 255.255.255.0\noption lease 12\nmin_lease 1\nlease_file {0}\npidfile {0}.pid\n",
            leases.display()
        ),
    )
    .expect("a file");
    fs::write(&leases, "").expect("a file");
    let serve = "setpriv --pdeathsig KILL busybox udhcpd -f -I";
    let server = format!("{serve} {HOST_ON_TAP} {} >{} 2>&1 &\n", settings.display(), log.display());
    let process = json!({ "Cmd": ["sh", "-c", "sleep 20; ip -4 -o addr show eth0"], "Hostname": "box" });
    let machine = Machine::in_world(kernel(), "tap=tap0", &server);
    let ended = equip(machine, directory.path(), &disk.to_string_lossy(), &process).run();
    ended.ended(0, "power-off").said(&format!("inet {GUEST_ON_TAP}/24"));
    let log = fs::read_to_string(&log).expect("a log");
    // Questions and the first request may have been asked again; who has the address asks for no other.
    let after = log.split_once("sending ACK").map_or("", |(_, after)| after);
    let kept = after.matches("sending ACK").count() >= 2 && !after.contains("sending OFFER");
    assert!(kept, "given once, and kept:\n{log}");
}

#[test]
fn without_a_command_the_disk_has_its_own_init() {
    need!(host::linux());
    let directory = scratch();
    let initrd = directory.path().join("initrd");
    fs::write(&initrd, initramfs(&kernel())).expect("an initramfs");
    let script = "echo root $(stat -f -c %T /); cat /proc/1/comm";
    let machine = guest_with(&kernel(), &initrd, script).disk(&root_disk(directory.path()), "");
    assert_eq!(machine.run().succeeded().value("root "), "ext2/ext3");
}
