//! The guest's time, where KVM has hardware behind it: a software KVM gives guests the host's TSC.

use serde_json::json;

use crate::common::host;
use crate::common::vcpu::{AHEAD, TSC, fresh, register, went_on};
use crate::need;

#[test]
fn the_tsc_goes_on_later() {
    need!(host::linux());
    let (mut state, saved) = fresh();
    // Far from what the host has.
    let far = saved + 1000 * AHEAD;
    let registers = state["msrs"].as_array_mut().expect("registers");
    registers.iter_mut().filter(|register| register[0] == TSC).for_each(|register| register[1] = json!(far));
    let now = register(&went_on(&state, AHEAD), TSC).expect("a TSC");
    assert!(now >= far + AHEAD, "{now} after {far}");
}
