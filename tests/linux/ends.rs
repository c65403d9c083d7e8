//! The ways in which Linux ends a machine. (Restarts are in disks.rs, the power button in console.rs.)

use crate::common::host;
use crate::common::linux::guest;
use crate::need;

#[test]
fn a_panic_is_told_from_other_ends() {
    need!(host::linux());
    guest("echo c >/proc/sysrq-trigger; sleep 1000").run().ended(127, "panic");
}

#[test]
fn a_triple_fault_is_told_from_other_ends() {
    need!(host::linux());
    guest("reboot -f; sleep 1000").words("reboot=t").run().ended(128, "triple-fault");
}

#[test]
fn a_restart_ends_the_machine_if_it_is_to() {
    need!(host::linux());
    guest("reboot -f; sleep 1000").arg("--no-reboot").run().ended(0, "reboot");
}
