//! A machine that stands still to be saved, and whoever wants its guest to switch itself off meanwhile.

use std::sync::mpsc::{self, Receiver, TryRecvError};

use super::*;
use crate::snapshot::Persist;
use crate::vmm::capture::Capture;
use crate::vmm::request::{Error, Freeze, Save};

/// A machine that ran, or not, and stands still to be saved; what was captured of it.
fn saving(directory: &Path, ran: bool) -> Option<(Vmm, Receiver<Result<Capture, Error>>)> {
    let mut vmm = machine(directory)?;
    if ran {
        vmm.resume();
    }
    let captured = capture(&mut vmm);
    assert_eq!(vmm.state, RunState::Saving);
    Some((vmm, captured))
}

fn capture(vmm: &mut Vmm) -> Receiver<Result<Capture, Error>> {
    let save = Save { target: "/nowhere".into(), base: None, stop: true, freeze: Freeze::No };
    let (sender, captured) = mpsc::channel();
    assert_eq!(vmm.handle(Message::Capture(save, None, sender)), None);
    captured
}

/// Asks for something; the machine does not end by that at once.
fn ask(vmm: &mut Vmm, request: Request) -> Receiver<Response> {
    let (sender, answer) = mpsc::channel();
    assert_eq!(vmm.handle(Message::Request(request, sender)), None);
    answer
}

const STOP: Request = Request::Stop { force: false };

fn is_pressed(vmm: &Vmm) -> bool {
    let ged = vmm.machine.platform.ged.as_ref().save();
    serde_json::to_value(ged).unwrap()["data"]["pending"] == 1
}

#[test]
fn the_button_is_pressed_when_the_machine_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    for asks in [0, 1, 2] {
        let Some((mut vmm, _captured)) = saving(directory.path(), true) else { return };
        let answer = match asks {
            0 => {
                assert_eq!(vmm.handle(Message::Terminate { force: false }), None);
                None
            }
            1 => Some(ask(&mut vmm, STOP)),
            _ => Some(ask(&mut vmm, Request::PowerButton)),
        };
        assert!(!is_pressed(&vmm) && !vmm.deadline.is_set(), "nobody hears it");
        assert!(answer.iter().all(|answer| answer.try_recv().unwrap_err() == TryRecvError::Empty));
        assert_eq!(vmm.handle(Message::Written { end: false }), None);
        assert_eq!((vmm.state, is_pressed(&vmm), vmm.deadline.is_set()), (RunState::Running, true, asks < 2));
        if let Some(answer) = answer {
            assert_eq!(answer.recv().unwrap().unwrap(), json!({ "state": "Running", "stopped": false }));
        }
    }
}

#[test]
fn a_second_wish_is_not_kept_until_the_machine_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let Some((mut vmm, _captured)) = saving(directory.path(), true) else { return };
    let _first = ask(&mut vmm, STOP);
    let _button = ask(&mut vmm, Request::PowerButton);
    assert_eq!(vmm.handle(Message::Terminate { force: false }), Some(Outcome::Stopped));
    // Nor one after a first that came before.
    let mut vmm = machine(directory.path()).unwrap();
    vmm.resume();
    let _first = ask(&mut vmm, STOP);
    let _captured = capture(&mut vmm);
    assert_eq!(vmm.handle(Message::Terminate { force: false }), Some(Outcome::Stopped));
}

#[test]
fn a_machine_that_was_paused_hears_no_button_when_it_is_saved() {
    let directory = tempfile::tempdir().unwrap();
    let Some((mut vmm, _captured)) = saving(directory.path(), false) else { return };
    let button = ask(&mut vmm, Request::PowerButton);
    assert_eq!(vmm.handle(Message::Written { end: false }), None);
    let error = button.recv().unwrap().unwrap_err().to_string();
    assert_eq!(error, "The machine is paused: it cannot take the power button");
    let _captured = capture(&mut vmm);
    let stop = ask(&mut vmm, STOP);
    assert_eq!(vmm.handle(Message::Written { end: false }), Some(Outcome::Stopped));
    assert_eq!(stop.recv().unwrap().unwrap()["stopped"], true);
}

#[test]
fn the_time_of_a_guest_that_stands_still_does_not_pass() {
    let directory = tempfile::tempdir().unwrap();
    for grace in [Duration::from_secs(3600), Duration::ZERO] {
        let Some(mut vmm) = machine(directory.path()) else { return };
        vmm.grace = grace;
        vmm.resume();
        let _stop = ask(&mut vmm, STOP);
        let _captured = capture(&mut vmm);
        assert!(!vmm.deadline.passes());
        assert_eq!(vmm.handle(Message::Written { end: false }), None);
        match grace {
            Duration::ZERO => assert_eq!(vmm.run(), Outcome::Stopped),
            _ => assert!(vmm.deadline.passes()),
        }
    }
}
