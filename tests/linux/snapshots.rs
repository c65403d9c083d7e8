//! Linux guests that are saved, restored and cloned while they work; the agent in them is asked by the command line.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::common::linux::{kernel, made, root_disk};
use crate::common::machine::{Machine, Running};
use crate::common::{PATIENCE, eventually, host, skip, world as networks};
use crate::need;
use crate::scene::World;

/// A guest that waits for what it is told, with its console in the background.
fn source(world: &World, kernel: &Path, initrd: &Path) -> Machine {
    let machine = Machine::new(kernel).option("--initrd", initrd).words("rvmm.net=off");
    let machine = machine.option("--name", "source").option("--console", "log").option("--stop-timeout", "0");
    world.here(machine.limit(Duration::from_secs(500)))
}

/// What a script prints in a guest.
#[track_caller]
fn exec(world: &World, name: &str, script: &str) -> String {
    world.does(&["exec", name, "sh", "-c", script]).trim().into()
}

/// Waits for the agent of a guest that starts.
#[track_caller]
fn agent_answers(world: &World, name: &str) {
    let mut asked = None;
    // Gently: in the lab there is one processor for guest and host.
    let answers = eventually(|| {
        thread::sleep(Duration::from_millis(500));
        asked.insert(world.command(&["exec", name, "true"])).status == 0
    });
    assert!(answers, "no agent answers: {asked:?}\n{}", world.command(&["logs", name]));
}

fn restore(world: &World, snapshot: &str, name: &str) -> Running {
    let restored = world.restore_with(snapshot, name, &["--console", "log"]);
    agent_answers(world, name);
    restored
}

/// Nothing in the guest's log says that it lost time or data.
#[track_caller]
fn is_well(world: &World, name: &str) {
    let log = exec(world, name, "dmesg");
    for trouble in
        ["soft lockup", "rcu_sched", "rcu: INFO", "BUG:", "I/O error", "EXT4-fs error", "hung_task"]
    {
        assert!(!log.contains(trouble), "{log}");
    }
}

/// Counts, keeps what it has counted in memory, and writes some of it to the disk.
const JOB: &str = "x=1; i=0; : >/root/trace
while [ ! -e /tmp/stop ]; do x=$(( (x * 1103515245 + 12345) % 2147483648 )); i=$((i + 1))
[ $((i % 64)) != 0 ] || echo $x >>/root/trace; done
echo $i $x >/root/result; sync; : >/tmp/done";

#[test]
fn a_job_and_its_files_over_ten_generations() {
    need!(host::linux(), host::program("e2fsck").map(drop));
    let world = World::new();
    let disk = root_disk(&world.path(""));
    let mut machine = source(&world, &kernel(), &made("initrd.img")).disk(&disk, "").cpus(2).start();
    let mut name = String::from("source");
    agent_answers(&world, &name);
    exec(&world, &name, &format!("({JOB}) </dev/null >/dev/null 2>&1 &"));
    for number in 1..=10 {
        let (target, base) = (format!("s{number}"), world.text(&format!("s{}", number - 1)));
        // A chain of differences; the first one with file systems that hold still, and go on when it is restored.
        let options =
            if number == 1 { ["--stop", "--freeze"].to_vec() } else { vec!["--stop", "--base", &base] };
        let report = world.create(&name, &target, &options);
        assert_eq!(report["frozen"].as_array().map_or(0, Vec::len), usize::from(number == 1), "{report}");
        machine.finish().ended(130, "stopped");
        name = format!("g{number}");
        machine = restore(&world, &target, &name);
    }
    let end = "touch /tmp/stop; while [ ! -e /tmp/done ]; do usleep 100000; done; cat /root/result; sha256sum </root/trace";
    let said = exec(&world, &name, end);
    let mut words = said.split_whitespace();
    let mut number = || words.next().expect("a number").parse::<u64>().expect("a number");
    let (rounds, result) = (number(), number());
    let mut trace = String::new();
    let last = (1..=rounds).fold(1_u64, |x, round| {
        let x = (x * 1_103_515_245 + 12_345) % (1 << 31);
        if round % 64 == 0 {
            trace += &format!("{x}\n");
        }
        x
    });
    assert_eq!(last, result, "after {rounds} rounds");
    assert!(rounds > 64, "the job stood still");
    // The file comes out whole, and is what was written over all of them.
    let copy = world.text("trace");
    world.does(&["cp", &format!("{name}:/root/trace"), &copy]);
    assert_eq!(std::fs::read_to_string(&copy).expect("a copy"), trace);
    assert_eq!(exec(&world, &name, "hostname"), name);
    is_well(&world, &name);
    // What was frozen is a file system that needs no repair.
    host::run("e2fsck", &["-f", "-n", &world.text("s1/disk-0-0")]);
}

/// What must differ between clones, each on a line.
const IDENTITY: &str = "hostname; cat /etc/machine-id /proc/sys/kernel/random/uuid
cat /sys/class/net/eth0/address; head -c 16 /dev/urandom | md5sum";

#[test]
fn twenty_clones_each_somebody_of_its_own() {
    need!(host::linux(), networks::offered());
    if !host::in_own_network("snapshots::twenty_clones_each_somebody_of_its_own") {
        return;
    }
    let world = World::new();
    let machine = source(&world, &kernel(), &made("initrd.img")).option("--net", "tap=tap0").start();
    agent_answers(&world, "source");
    // With an initial RAM disk for its root, it has a file for its identity if it makes one.
    let mut known: BTreeSet<String> = exec(&world, "source", IDENTITY).lines().map(String::from).collect();
    world.create("source", "one", &["--stop"]);
    machine.finish().ended(130, "stopped");
    // A clock that stood still would be late by so much.
    thread::sleep(Duration::from_secs(3));
    let text = world.text("one");
    let cloned = world.command(&["clone", &text, "-n", "20", "--name", "w", "--net", "tap=t%i"]);
    assert!(cloned.status == 0 && cloned.out.starts_with("20 machines run"), "{cloned}");
    assert!(!cloned.err.contains("keeps its") && !cloned.err.contains("could not change"), "{cloned}");
    for name in ["w-1", "w-2", "w-20"] {
        let said = exec(&world, name, IDENTITY);
        assert_eq!(said.lines().count(), 5, "{said}");
        assert_eq!(said.lines().next(), Some(name));
        assert!(said.lines().all(|line| known.insert(line.into())), "{name} shares something:\n{said}");
        let address = world.inspect(name)["config"]["network-interfaces"][0]["guest_mac"].clone();
        assert!(said.contains(address.as_str().expect("an address")), "{address}: {said}");
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).expect("a time").as_secs();
        let before = now();
        let time: u64 = exec(&world, name, "date +%s").parse().expect("a time");
        assert!((before - 1..=now() + 1).contains(&time), "{name}: {time}, here {before}");
        is_well(&world, name);
    }
    assert_eq!(world.does(&["ps", "-q"]).lines().count(), 20);
    world.does(&["stop", "--all", "--force"]);
    assert_eq!(world.does(&["ps", "-q"]), "");
}

#[test]
fn clones_without_an_agent_and_with_vmgenid() {
    need!(host::linux());
    let (kernel, initrd) = (made("vmlinuz-6.12"), made("initrd-6.12.img"));
    if !kernel.exists() {
        return skip("the distribution has no 6.12 kernel here");
    }
    let world = World::new();
    let machine = source(&world, &kernel, &initrd).start();
    agent_answers(&world, "source");
    let speak = "(while :; do echo random $(head -c 16 /dev/urandom | md5sum); usleep 200000; done >/dev/ttyS0 2>&1 </dev/null &)
killall rvmm-agent";
    // It takes its own connection along.
    world.command(&["exec", "source", "sh", "-c", speak]);
    let lines = |name: &str| {
        let log = world.does(&["logs", name]);
        let numbers = log.lines().filter_map(|line| line.strip_prefix("random ").map(String::from));
        numbers.filter(|number| number.len() > 30).collect::<BTreeSet<_>>()
    };
    assert!(eventually(|| lines("source").len() > 2));
    world.create("source", "one", &["--stop"]);
    machine.finish().ended(130, "stopped");
    let cloned = world.command(&["clone", &world.text("one"), "-n", "2", "--name", "w"]);
    assert!(cloned.status == 0 && cloned.err.lines().count() == 1, "it is said once:\n{cloned}");
    for word in ["hostname", "machine id", "random", "VMGenID", "rvmm-agent"] {
        assert!(cloned.err.contains(word), "{word} is not in {cloned}");
    }
    assert!(eventually(|| lines("w-1").len() > 2 && lines("w-2").len() > 2));
    assert!(lines("w-1").is_disjoint(&lines("w-2")), "{:?} {:?}", lines("w-1"), lines("w-2"));
    world.command(&["exec", "w-1", "true"]).failed(125, &["rvmm-agent"]);
}

#[test]
fn a_connection_lives_on_while_its_machine_stands_still_and_is_saved() {
    need!(host::linux(), networks::offered());
    if !host::in_own_network("snapshots::a_connection_lives_on_while_its_machine_stands_still_and_is_saved") {
        return;
    }
    let world = World::new();
    let _machine = source(&world, &kernel(), &made("initrd.img")).option("--net", "tap=tap0").start();
    agent_answers(&world, "source");
    let (here, there) = (networks::HOST_ON_TAP, networks::GUEST_ON_TAP);
    host::run("ip", &["addr", "add", &format!("{here}/24"), "dev", "tap0"]);
    host::run("ip", &["link", "set", "tap0", "up"]);
    let listener = TcpListener::bind((here, 7000)).expect("a port");
    let echo = format!(
        "ip addr add {there}/24 dev eth0; ip link set eth0 up; mkfifo /tmp/echo
(nc {here} 7000 </tmp/echo | cat >/tmp/echo) </dev/null >/dev/null 2>&1 &"
    );
    exec(&world, "source", &echo);
    let (mut stream, _) = listener.accept().expect("the guest");
    let mut back = stream.try_clone().expect("a descriptor");
    back.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let mut says = |text: &str| stream.write_all(text.as_bytes()).expect("a connection");
    let mut hears = |text: &str| {
        let mut heard = vec![0; text.len()];
        back.read_exact(&mut heard).expect("an echo");
        assert_eq!(String::from_utf8_lossy(&heard), text);
    };
    says("before ");
    hears("before ");
    world.does(&["pause", "source"]);
    says("while paused ");
    thread::sleep(Duration::from_secs(2));
    world.does(&["resume", "source"]);
    hears("while paused ");
    says("saved ");
    world.create("source", "one", &[]);
    hears("saved ");
    is_well(&world, "source");
}
