//! The monitor's own decisions, with a machine that does nothing.

use std::path::Path;
use std::thread;

mod freeze;
mod power;

use super::*;
use crate::arch::x86_64::kernel::fake::{FakeElf, START};
use crate::config::BootSource;
use crate::console::Config as Console;
use crate::kvm;

/// `cli`, then `hlt` for ever.
const NOTHING: [u8; 4] = [0xfa, 0xf4, 0xeb, 0xfd];

/// A machine that stands still.
fn machine(directory: &Path) -> Option<Vmm> {
    if kvm::open().is_err() {
        crate::testing::skip("no /dev/kvm");
        return None;
    }
    let kernel = directory.join("kernel");
    std::fs::write(&kernel, FakeElf::new(START).segment(START, 0x1000, &NOTHING).build()).unwrap();
    let source = BootSource { kernel_image_path: kernel, ..BootSource::default() };
    let config = VmConfig { console: Console::Off, ..VmConfig::new(source) };
    let environment = Environment {
        kernel_cache: None,
        termination: None,
        grace: Duration::from_secs(3600),
        directory: None,
        log: None,
        start_paused: true,
        read_ahead: false,
        on_memory_lost: None,
    };
    Some(Vmm::new(config, None, environment).unwrap())
}

/// A machine that is paused at first, while `outside` talks to its monitor on another thread and ends it.
fn paused(directory: &Path, outside: impl FnOnce(&Outbox) + Send + 'static) -> Option<Vmm> {
    let mut vmm = machine(directory)?;
    run(&mut vmm, outside);
    Some(vmm)
}

/// Runs a machine, while `outside` talks to its monitor on another thread and ends it.
fn run(vmm: &mut Vmm, outside: impl FnOnce(&Outbox) + Send + 'static) {
    let outbox = vmm.outbox();
    let outside = thread::spawn(move || {
        outside(&outbox);
        outbox.request(Request::Stop { force: true }).unwrap();
    });
    assert_eq!(vmm.run(), Outcome::Stopped);
    outside.join().unwrap();
}

fn state(outbox: &Outbox) -> serde_json::Value {
    outbox.request(Request::Describe).unwrap()["state"].clone()
}

#[test]
fn a_paused_machine_that_restarts_stays_paused() {
    let directory = tempfile::tempdir().unwrap();
    paused(directory.path(), |outbox| {
        // A restart that was under way when the pause came.
        outbox.notifier().notify(Notice::Reset);
        assert_eq!(state(outbox), "Paused");
        outbox.request(Request::Resume).unwrap();
        outbox.notifier().notify(Notice::Reset);
        assert_eq!(state(outbox), "Running");
    });
}

#[test]
fn the_first_run_is_when_it_is_let_go() {
    let directory = tempfile::tempdir().unwrap();
    let vmm = paused(directory.path(), |outbox| {
        outbox.notifier().notify(Notice::Milestone(1));
    });
    let codes = |vmm: &Vmm| vmm.milestones().iter().map(|reached| reached.code).collect::<Vec<_>>();
    let Some(vmm) = vmm else { return };
    assert_eq!(codes(&vmm), [1], "it has never run");
    let vmm = paused(directory.path(), |outbox| {
        for request in [Request::Resume, Request::Pause, Request::Resume] {
            outbox.request(request).unwrap();
        }
    });
    assert_eq!(vmm.as_ref().map(codes), Some(vec![FIRST_RUN]));
}
