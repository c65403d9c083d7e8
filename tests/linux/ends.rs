//! The ways in which Linux ends a machine. (Restarts are in disks.rs, the power button in console.rs.)

use crate::common::host;
use crate::common::linux::{alone, guest};
use crate::need;

#[test]
fn a_panic_is_told_from_other_ends() {
    need!(host::linux());
    guest("echo c >/proc/sysrq-trigger; sleep 1000").run().ended(127, "panic");
}

/// The panic device's driver is a module, which such a kernel never loads.
#[test]
fn a_kernel_that_finds_no_root_disk_ends() {
    need!(host::linux());
    for words in ["root=/dev/vdz", "root=/dev/vdz panic=1"] {
        let ended = alone().arg("--no-reboot").words(words).run();
        ended.ended(127, "panic").said("Kernel panic - not syncing: VFS: Unable to mount root fs");
    }
    alone().run().ended(127, "panic");
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
