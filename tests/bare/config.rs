//! Configuration files: what is wrong in them is told in one line, and what is right boots.

use std::fs;
use std::path::PathBuf;

use crate::common::bare::kernel;
use crate::common::host;
use crate::common::machine::Machine;
use crate::input::Files;
use crate::need;

#[test]
fn configuration_files() {
    need!(host::kvm());
    let files = Files::new();
    let config = |text: &str| Machine::rvmm().option("--config", files.file("vm.json", text)).run();
    Machine::command_line(&["--config", "/nonexistent"]).run().refused(&["/nonexistent", "No such file"]);
    config("").refused(&["vm.json", "not valid"]);
    config("{\n\"boot-source\": {").refused(&["line 2"]);
    config("[]").refused(&["vm.json"]);
    config("{}").refused(&["boot-source"]);
    config(r#"{"boot-source": {}}"#).refused(&["kernel_image_path"]);
    let whole = |more: &str| {
        let kernel = kernel().display();
        config(&format!("{{\"boot-source\": {{\"kernel_image_path\": \"{kernel}\"}}, {more}}}"))
    };
    whole(r#""machine-confg": {}"#).refused(&["machine-confg", "did you mean `machine-config`"]);
    whole(r#""machine-config": {"vcpu_cont": 1}"#).refused(&["vcpu_cont", "vcpu_count"]);
    whole(r#""machine-config": {"vcpu_count": "two"}"#).refused(&["two", "line 1"]);
    whole(r#""machine-config": {"vcpu_count": 0}"#).refused(&["not 0"]);
    whole(r#""machine-config": {"mem_size_mib": 0}"#).refused(&["1M to 8T of memory", "not 0M"]);
    let most = u64::MAX;
    whole(&format!(r#""machine-config": {{"mem_size_mib": {most}}}"#)).refused(&["1M to 8T of memory"]);
    whole(r#""drives": [{"path_on_host": "/nonexistent"}]"#).refused(&["/nonexistent"]);
    whole(r#""console": {"socket": ""}"#).refused(&["needs a path"]);
    whole(r#""vsock": {"uds_path": ""}"#).refused(&["needs a path"]);
    whole(r#""drives": [{"drive_id": "a"}]"#).refused(&["path_on_host"]);
    whole(r#""network-interfaces": [{"iface_id": "a", "host_dev_nam": "x"}]"#).refused(&["host_dev_nam"]);
}

#[test]
fn a_good_configuration_file_boots() {
    need!(host::kvm());
    let files = Files::new();
    let (disk, kernel) = (files.file("disk", vec![0; 1 << 20]), kernel().display());
    let text = serde_json::json!({
        "boot-source": { "kernel_image_path": kernel.to_string(), "boot_args": "test=blk" },
        "drives": [{ "drive_id": "mine", "path_on_host": disk, "is_root_device": true, "is_read_only": false }],
        "machine-config": { "vcpu_count": 2, "mem_size_mib": 64 },
    });
    let path = files.file("vm.json", text.to_string());
    let machine = Machine::rvmm().arg("--json").option("--net", "none").option("--config", path);
    machine.run().passed("blk").said("blk: id mine\n");
}

/// The configuration of a bare guest, with more keys.
fn config(files: &Files, arguments: &str, more: &str) -> PathBuf {
    let kernel = kernel().display();
    let boot =
        format!(r#"{{"kernel_image_path": "{kernel}", "boot_args": "{arguments}", "initrd_path": null}}"#);
    files.file("vm.json", format!(r#"{{"boot-source": {boot}, {more}}}"#))
}

#[test]
fn firecrackers_other_keys_have_no_effect_and_that_is_said() {
    need!(host::kvm());
    let files = Files::new();
    let disk = files.file("disk", vec![0; 1 << 20]);
    let (disk, log) = (disk.display(), files.path("log"));
    let more = format!(
        r#""drives": [{{"drive_id": "a", "path_on_host": "{disk}", "is_root_device": false, "partuuid": null,
                        "rate_limiter": {{"bandwidth": null}}}}],
           "machine-config": {{"vcpu_count": 1, "mem_size_mib": 64, "smt": false, "track_dirty_pages": true}},
           "cpu-config": null, "balloon": null, "vsock": null, "entropy": null, "metrics": null,
           "logger": {{"log_path": "/nowhere", "level": "Info"}}"#
    );
    let machine = Machine::rvmm().arg("--json").option("--net", "none").option("--log-file", &log);
    machine.option("--config", config(&files, "test=blk", &more)).run().passed("blk").said("blk: id a\n");
    let said = fs::read_to_string(log).expect("a log");
    for key in ["`logger`", "`drives.rate_limiter`", "`machine-config.track_dirty_pages`"] {
        assert!(said.contains(key), "{key}: {said}");
    }
    assert_eq!((said.lines().count(), said.contains('\r')), (3, false), "{said}");
    let more = format!(r#""drives": [{{"path_on_host": "{disk}", "partuuid": "0eaa91a0-01"}}]"#);
    Machine::rvmm().option("--config", config(&files, "", &more)).run().refused(&["partuuid"]);
}

#[test]
fn options_win_over_the_file() {
    need!(host::kvm());
    let files = Files::new();
    let disk = |name: &str| files.file(name, vec![0; 1 << 20]).display().to_string();
    let (of_file, other) = (disk("of_file"), disk("other"));
    let more = format!(
        r#""drives": [{{"drive_id": "of-file", "path_on_host": "{of_file}"}},
                      {{"drive_id": "root", "path_on_host": "{other}", "is_root_device": true, "is_read_only": true}}],
           "network-interfaces": [{{"iface_id": "eth0", "host_dev_name": "no-such-tap"}}],
           "entropy": {{"source": "/nonexistent"}}, "vsock": {{"guest_cid": 7, "uds_path": "/nonexistent/s"}}"#
    );
    let run = |arguments: &str, options: &[&str]| {
        let machine = Machine::rvmm().arg("--json").option("--config", config(&files, arguments, &more));
        let machine =
            ["--net", "none", "--rng", "/dev/zero", "--vsock", "none"].iter().fold(machine, Machine::arg);
        options.iter().fold(machine, Machine::arg).run()
    };
    // One that gives nothing but zeroes, and no second one.
    run("test=rng slot=2", &[]).said("FAIL rng");
    run("test=blk", &["--disk", &format!("{other},id=mine")]).passed("blk").said("blk: id mine\n");
    run("test=hello", &[]).passed("hello").said("cmdline: test=hello root=/dev/vdb ro\n");
    run("test=hello root=/dev/vdz", &["--cmdline", "more"]).said("cmdline: test=hello root=/dev/vdz more\n");
}
