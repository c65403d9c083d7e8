//! A machine that was restored and has not run yet has the state that was saved, to the last register.

use std::fs;

use serde_json::Value;

use super::counter::{address, counting, goes_on_from};
use super::world::World;
use crate::common::{eventually, host};
use crate::need;

/// The TSC and its deadline, which go on while a machine stands still.
const CLOCKS: [u64; 2] = [0x10, 0x6e0];
/// The local APIC's current count, which does so, too: four bytes at this offset.
const CURRENT_COUNT: usize = 0x390;

/// State of each vCPU, without what goes on by itself.
fn vcpus(world: &World, snapshot: &str) -> Vec<Value> {
    let state = fs::read(world.path(snapshot).join("state.json")).expect("a state");
    let mut state: Value = serde_json::from_slice(&state).expect("JSON");
    let vcpus = state["vcpus"].as_array_mut().expect("vCPUs");
    for vcpu in vcpus.iter_mut() {
        let msrs = vcpu["msrs"].as_array_mut().expect("registers");
        msrs.retain(|msr| !CLOCKS.iter().any(|&clock| msr[0] == clock));
        let lapic = vcpu["lapic"].as_array_mut().expect("bytes");
        lapic[CURRENT_COUNT..CURRENT_COUNT + 4].fill(Value::Null);
    }
    std::mem::take(vcpus)
}

#[test]
fn all_are_the_same_over_three_generations() {
    need!(host::kvm());
    for cpus in [1, 3] {
        let world = World::new();
        let source = counting(&world, "g0").cpus(cpus).start();
        let at = address(&source);
        world.create("g0", "s0", &[]);
        drop(source);
        let saved = vcpus(&world, "s0");
        assert_eq!(saved.len(), cpus as usize);
        for number in 1..=3 {
            let (parent, name) = (world.text(&format!("s{}", number - 1)), format!("g{number}"));
            let target = format!("s{number}");
            // A restored machine, a clone of it, and a restored machine again.
            if number == 2 {
                world.does(&["clone", &parent, "--paused", "--name", "g2"]);
                world.create("g2-1", &target, &["--base", &parent]);
            } else {
                let restore = world.command_line(&["restore", &parent, "--name", &name, "--paused"]);
                let copy = restore.option("--console", "off").start();
                assert!(eventually(|| world.command(&["ps", "-q"]).out.contains(&name)));
                world.create(&name, &target, &[]);
                drop(copy);
            }
            for (before, after) in saved.iter().zip(vcpus(&world, &target)) {
                for (part, value) in before.as_object().expect("parts") {
                    assert_eq!(*value, after[part], "{part} in generation {number}");
                }
            }
        }
        // And the last one goes on where the first one was.
        goes_on_from(&world.restore("s3", "last"), world.captured("s0", at));
    }
}
