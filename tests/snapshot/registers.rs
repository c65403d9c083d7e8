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

/// One register of a leaf of the first vCPU's features: an entry is `struct kvm_cpuid_entry2` in bytes.
fn features(world: &World, snapshot: &str, leaf: u32, register: usize) -> u32 {
    let vcpus = vcpus(world, snapshot);
    let entries = vcpus[0]["cpuid"].as_array().expect("a table").iter();
    let mut entries = entries.map(|entry| {
        let bytes = entry.as_array().expect("an entry").iter();
        let bytes: Vec<u8> = bytes.map(|byte| byte.as_u64().expect("a byte") as u8).collect();
        bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect::<Vec<_>>()
    });
    entries.find(|words| words[..2] == [leaf, 0]).map_or(0, |words| words[3 + register])
}

/// Whatever KVM makes of it: a host without the feature must be able to take the snapshot.
#[test]
fn features_that_are_hidden_are_not_in_it() {
    need!(host::kvm());
    const SSE2: u32 = 1 << 26;
    const AVX: u32 = 1 << 28;
    let world = World::new();
    let source = counting(&world, "source").memory("16M").option("--cpu-mask", "x86-64-v2").start();
    address(&source);
    world.create("source", "one", &[]);
    drop(source);
    assert_eq!(features(&world, "one", 1, 3) & SSE2, SSE2, "sse2: leaf 1, EDX");
    assert_eq!(features(&world, "one", 1, 2) & AVX, 0, "avx: leaf 1, ECX");
    assert_eq!(features(&world, "one", 7, 1) & 1 << 16, 0, "avx512f: leaf 7, EBX");
}
