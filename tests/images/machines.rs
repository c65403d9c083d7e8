//! Machines that run images: how they come, share, stay and go.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::common::{eventually, host};
use crate::need;
use crate::world::World;

#[test]
fn an_image_runs_and_leaves_nothing() {
    need!(host::kvm());
    let world = World::new();
    world.bare();
    let cached = || fs::read_dir(world.path("store/cache")).expect("a cache").count();
    let made = cached();
    assert_eq!(made, 4, "a layer, its digest, its map and the merged map are made when the image comes");
    let before = world.does(&["export", "bare:1", "--format", "raw", "before.raw"]);
    for _ in 0..2 {
        assert!(world.run("bare:1", "blk rounds=3 seed=5", &[]).contains("OK blk"));
    }
    assert_eq!(fs::read_dir(world.path("store/instances")).expect("instances").count(), 0);
    assert_eq!(fs::read_dir(world.path("store/leases")).expect("leases").count(), 0);
    assert_eq!(before, world.does(&["export", "bare:1", "--format", "raw", "after.raw"]));
    let read = |name: &str| fs::read(world.path(name)).expect("a disk");
    assert!(read("before.raw") == read("after.raw"), "an image never changes");
    assert_eq!(cached(), made, "nothing was left to be made");
    // The status of the guest is that of the command, also of an older version by its digest.
    let digest = world.json(&["images"])[0]["digest"].clone();
    let short = &digest.as_str().expect("a digest")["sha256:".len()..][..8];
    assert!(world.run(short, "hello", &[]).contains("OK hello"));
    assert_eq!(
        world.says(&["run", "bare:1", "--net", "none", "--cmdline", "test=exit end=panic"]).status,
        127
    );
}

#[test]
fn the_end_of_a_machine_is_waited_for_and_known() {
    need!(host::kvm());
    let world = World::new();
    world.bare();
    let start = |name: &str, test: &str, options: &[&str]| {
        let test = format!("test={test}");
        let run = ["run", "-d", "bare:1", "--name", name, "--net", "none", "--cmdline", &test];
        world.does(&[&run[..], options].concat());
    };
    start("job", "exit end=panic", &[]);
    assert_eq!(world.does(&["wait", "job"]), "127");
    // It has ended before it was asked.
    assert_eq!(world.does(&["wait", "job"]), "127");
    assert!(world.does(&["ps", "-a"]).contains("stopped (127)"));
    let told = world.json(&["ps", "-a"])[0]["ended"].clone();
    assert_eq!((&told["status"], &told["cause"]), (&127.into(), &"panic".into()));
    assert_eq!(world.json(&["inspect", "job"])[0]["ended"], told);

    // Two that run, one of which nobody keeps.
    start("web", "hello end=hlt", &[]);
    start("gone", "hello end=hlt", &["--rm"]);
    let waits = world.command(&["wait", "web", "gone", "job", "--json"]).stdout(Stdio::piped()).spawn();
    let mut waits = waits.expect("rvmm");
    // It has asked both.
    let descriptors = || fs::read_dir(format!("/proc/{}/fd", waits.id())).expect("a process").flatten();
    let is_socket =
        |path: PathBuf| fs::read_link(path).is_ok_and(|to| to.to_string_lossy().starts_with("socket:"));
    let sockets = || descriptors().filter(|entry| is_socket(entry.path())).count();
    assert!(eventually(|| sockets() == 2));
    assert!(waits.try_wait().expect("a process").is_none(), "both run");
    world.does(&["stop", "--force", "web"]);
    assert!(waits.try_wait().expect("a process").is_none(), "one runs");
    world.does(&["stop", "--force", "gone"]);
    let output = waits.wait_with_output().expect("rvmm");
    let told: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let of = |index: usize| (told[index]["name"].clone(), told[index]["status"].clone());
    assert_eq!(
        [of(0), of(1), of(2)],
        [("web".into(), 130.into()), ("gone".into(), 130.into()), ("job".into(), 127.into())]
    );
    world.refuses(&["wait", "gone"], &["no machine `gone`"]);

    // What was known is not said of the next time.
    world.does(&["start", "web"]);
    let pid = world.json(&["ps"])[0]["pid"].as_u64().expect("a process").to_string();
    assert!(Command::new("kill").args(["-9", &pid]).status().expect("kill").success());
    world.refuses(&["wait", "web"], &["Nobody knows how `web` ended"]);
    assert_eq!(world.json(&["ps", "-a"])[1]["ended"], Value::Null);
}

#[test]
fn what_is_piped_in_is_not_lost_in_silence() {
    need!(host::kvm());
    let world = World::new();
    world.bare();
    let file = fs::File::open(world.path("disk.raw")).expect("a file");
    for (input, words) in [(Stdio::from(file), "exec -i"), (Stdio::null(), "")] {
        let mut run = world.command(&["run", "-i", "bare:1", "--net", "none", "--cmdline", "test=hello"]);
        let output = run.stdin(input).output().expect("rvmm");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains(words), "{said}");
        assert_eq!(said.is_empty(), words.is_empty(), "{said}");
    }
}

#[test]
fn machines_with_names_stay() {
    need!(host::kvm());
    let world = World::new();
    world.bare();
    world.writes("bare:1", "web", 7, &[]);
    assert_eq!(world.json(&["ps"])[0]["state"], "Running");
    world.refuses(&["rm", "web"], &["web", "rvmm stop"]);
    world.refuses(&["start", "web"], &["runs already"]);
    world.refuses(&["run", "bare:1", "--name", "web"], &["web"]);
    let image = world.json(&["images"])[0]["digest"].clone();
    assert_eq!(world.json(&["ps"])[0]["image"], "bare:1");
    assert_eq!(world.json(&["inspect", "web"])[0]["image"], image);
    // What a machine uses stays.
    world.refuses(&["rmi", "bare:1"], &["Cannot remove `bare:1`", "machine `web`", "--force"]);
    world.does(&["rmi", "--force", "bare:1"]);
    world.does(&["gc"]);
    world.does(&["stop", "--force", "web"]);
    assert_eq!(world.json(&["ps", "-a"])[0]["state"], "Stopped");
    assert_eq!(world.json(&["ps", "-a"])[0]["image"], image, "it has no name any more");
    let known = world.json(&["inspect", "web"])[0].clone();
    assert_eq!((&known["state"], &known["image"]), (&"Stopped".into(), &image));
    assert_eq!(known["config"]["machine-config"]["mem_size_mib"], 256);
    world.refuses(&["run", "bare:1", "--name", "web"], &["no image `bare:1`"]);
    assert!(world.json(&["ps"]).as_array().is_some_and(Vec::is_empty));
    assert_eq!(world.does(&["ps", "-a", "-q"]), "web");
    world.does(&["gc"]);
    world.does(&["verify"]);
    // Its console went to a file, and is there.
    assert!(world.does(&["logs", "web"]).contains("OK blk"));
    // It goes on with the disk that it had.
    world.does(&["commit", "web", "seven"]);
    world.verifies("seven", 7);
    world.does(&["start", "web"]);
    world.refuses(&["start", "wbe"], &["wbe", "did you mean `web`?"]);
    assert_eq!(world.does(&["rm", "-f", "web"]), "web");
    assert_eq!(world.does(&["ps", "-a", "-q"]), "");
    // With --rm, a name is only a name.
    world.writes("seven", "other", 8, &["--rm"]);
    world.does(&["stop", "--force", "other"]);
    assert_eq!(world.does(&["ps", "-a", "-q"]), "");
}

#[test]
fn what_a_machine_said_stays_as_long_as_it_does() {
    need!(host::kvm());
    let world = World::new();
    world.bare();
    let run = |name: &str, options: &[&str]| {
        let run = ["run", "-d", "bare:1", "--name", name, "--net", "none"];
        let test = ["--cmdline", "test=hello end=hlt"];
        world.does(&[&run[..], options, &test].concat());
    };
    let logs = |name: &str| world.does(&["logs", name]);
    let said = |count: usize| assert!(eventually(|| logs("web").matches("OK hello").count() == count));
    run("web", &[]);
    said(1);
    world.does(&["stop", "--force", "web"]);
    said(1);
    assert_eq!(world.does(&["logs", "-f", "web"]), logs("web"), "there is nothing to wait for");
    let whole = logs("web");
    assert_eq!(world.does(&["logs", "--tail", "1", "web"]), whole.lines().last().unwrap_or_default());
    // The next start goes on with it, as the next one of a machine that was killed does.
    world.does(&["start", "web"]);
    said(2);
    let pid = world.json(&["ps"])[0]["pid"].to_string();
    host::run("kill", &["-KILL", &pid]);
    assert!(eventually(|| world.does(&["ps", "-q"]).is_empty()));
    said(2);
    world.does(&["rm", "web"]);
    world.refuses(&["logs", "web"], &["no machine `web`"]);
    // Another one of this name says nothing of the first one.
    run("web", &[]);
    said(1);
    world.does(&["rm", "-f", "web"]);
    // What does not stay leaves nothing; what spoke on a terminal was heard there.
    run("gone", &["--rm"]);
    world.does(&["stop", "--force", "gone"]);
    world.refuses(&["logs", "gone"], &["no machine `gone`"]);
    world.run("bare:1", "hello", &["--name", "heard"]);
    world.refuses(&["logs", "heard"], &["`heard` does not run", "nothing is kept", "rvmm start heard"]);
    world.refuses(&["logs", "haerd"], &["haerd"]);
    world.does(&["gc"]);
    world.does(&["verify"]);
}

#[test]
fn idle_machines_share_and_are_small() {
    need!(host::kvm());
    use std::os::unix::fs::MetadataExt;
    let world = World::new();
    world.bare();
    let names = ["a", "b", "c"];
    for name in names {
        let run = ["run", "-d", "bare:1", "--name", name, "--net", "none", "--cmdline", "test=hello end=hlt"];
        world.does(&run);
    }
    for name in names {
        let files = fs::read_dir(world.path(&format!("store/instances/{name}"))).expect("an instance");
        let blocks = files.map(|file| file.and_then(|file| file.metadata()).expect("a file").blocks());
        let bytes = blocks.sum::<u64>() * 512;
        assert!(bytes < 64 << 10, "{name} has {bytes} bytes of its own");
        let record = world.json(&["inspect", name])[0]["config"]["drives"].clone();
        assert_eq!(record[0]["base"], world.json(&["inspect", "a"])[0]["config"]["drives"][0]["base"]);
    }
}

#[test]
fn what_cannot_run_is_told_in_one_line() {
    let world = World::new();
    world.image("web:1");
    world.refuses(&["run", "wbe:1"], &["did you mean `web:1`?"]);
    world.refuses(&["run", "web:1"], &["no kernel", "rvmm kernel add --from-package"]);
    world.refuses(&["run", "-it", "web:1", "sh"], &["`--`: rvmm run web:1 -- sh"]);
    world.refuses(&["run", "nosuch"], &["There is no image `nosuch`: `rvmm pull`"]);
    world.refuses(&["run", "web:1", "-v", "data"], &["DISK:TARGET"]);
    world.refuses(&["run", "web:1", "-p", "x"], &["HOST_PORT"]);
    world.refuses(&["run", "web:1", "-e", "=x"], &["KEY=VALUE"]);
    let kernel = crate::common::bare::kernel();
    for option in [["-e", "A=b"], ["-w", "/tmp"], ["-u", "me"], ["-v", "disk:/data"], ["--", "sh"]] {
        let run = ["run", "web:1", "--kernel", &kernel.to_string_lossy()];
        world.refuses(&[&run[..], &option].concat(), &["initial RAM disk"]);
    }
    world.refuses(&["run", "-d", "--kernel", "x"], &["<IMAGE>"]);
    world.refuses(&["checkout", "web:1~3"], &["only 0 commits"]);
    world.refuses(&["rm", "web"], &["no machine `web`"]);
    world.refuses(&["start", "web"], &["no machine `web`"]);
    assert_eq!(world.does(&["ps", "-a", "-q"]), "", "what was refused left no machine");
}

#[test]
fn one_of_two_machines_gets_the_name() {
    need!(host::kvm());
    let world = World::new();
    world.bare();
    world.does(&["tag", "bare:1", "bare:other"]);
    let run = |image: &str| {
        let test = ["run", "-d", image, "--name", "web", "--net", "none", "--cmdline", "test=hello end=hlt"];
        let mut command = world.command(&test);
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("rvmm")
    };
    let both = [run("bare:1"), run("bare:other")].map(|run| run.wait_with_output().expect("an end"));
    let won: Vec<bool> = both.iter().map(|output| output.status.success()).collect();
    assert!(won == [true, false] || won == [false, true], "{both:?}");
    let refused = both.iter().find(|output| !output.status.success()).expect("one");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.lines().count() == 1 && said.contains("web"), "{said}");
    assert_eq!(world.json(&["ps"]).as_array().map(Vec::len), Some(1));
    world.does(&["stop", "--force", "web"]);
    world.does(&["rm", "web"]);
    assert_eq!(world.does(&["ps", "-a", "-q"]), "");
}

#[test]
fn one_damaged_machine_does_not_hide_the_others() {
    need!(host::kvm());
    let world = World::new();
    world.bare();
    for name in ["good", "bad"] {
        world.writes("bare:1", name, 3, &[]);
        world.does(&["stop", "--force", name]);
    }
    world.write("store/instances/bad/instance.json", "{}");
    let listed = world.says(&["ps", "-a"]);
    assert!(listed.out.contains("good  stopped") && listed.out.contains("bad   damaged"), "{listed:?}");
    assert!(listed.err.lines().count() == 1 && listed.err.contains("bad: "), "{listed:?}");
    assert_eq!(listed.status, 1);
    let told: Value = serde_json::from_str(&world.says(&["ps", "-a", "--json"]).out).expect("JSON");
    assert_eq!((&told[0]["name"], &told[0]["state"]), (&"bad".into(), &"Damaged".into()));
    assert!(told[0]["error"].is_string() && told[1]["error"].is_null(), "{told}");
    assert_eq!(world.says(&["ps", "-a", "-q"]).out, "bad\ngood\n");
    world.refuses(&["start", "bda"], &["did you mean `bad`?"]);
    world.refuses(&["rm", "bad"], &["instance.json", "damaged", "rvmm rm -f bad"]);
    world.does(&["rm", "-f", "bad"]);
    assert_eq!(world.does(&["ps", "-a", "-q"]), "good");
}
