//! Captures with file systems of the guest that hold still, and what is told of them.

use std::sync::mpsc::{self, Receiver};

use super::*;
use crate::agent::Client;
use crate::agent::fake::FakeAgent;
use crate::testing::PATIENCE;
use crate::vmm::freeze::Held;
use crate::vmm::request::{Error, Freeze, Save};

/// A machine that runs, with an agent.
fn with_agent(directory: &Path) -> Option<(Vmm, FakeAgent)> {
    let vmm = machine(directory)?;
    let agent = FakeAgent::start(directory);
    Some((running(vmm, &agent), agent))
}

/// The machine with this agent, running.
fn running(mut vmm: Vmm, agent: &FakeAgent) -> Vmm {
    vmm.agent = Some(agent.socket().into());
    vmm.resume();
    vmm
}

fn save(directory: &Path, name: &str, freeze: Freeze) -> Request {
    Request::Save(Save { target: directory.join(name), base: None, stop: false, freeze })
}

/// Asks before the machine hears of anything.
fn begin(vmm: &mut Vmm, request: Request) -> Receiver<Response> {
    let (sender, answer) = mpsc::channel();
    vmm.begin(request, sender);
    answer
}

/// Has the guest's file systems frozen as for `request`, which the machine hears of when it runs.
fn begin_with(vmm: &mut Vmm, agent: &FakeAgent, request: Request, expired: bool) -> Receiver<Response> {
    let mut frozen = Client::connect(agent.socket(), PATIENCE).unwrap().freeze(&[], PATIENCE).unwrap();
    if expired {
        frozen.expire();
    }
    let (sender, answer) = mpsc::channel();
    let held = Held::new(vmm.outbox()).with(Ok(frozen));
    vmm.outbox().send(Message::Frozen(request, held, sender));
    answer
}

/// Runs the machine until there are answers.
fn answers(vmm: &mut Vmm, answers: Vec<Receiver<Response>>) -> Vec<Response> {
    let (sender, all) = mpsc::channel();
    run(vmm, move |_| {
        answers.iter().for_each(|answer| sender.send(answer.recv().unwrap_or(Err(Error::Ended))).unwrap())
    });
    all.iter().collect()
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| !["kernel", "vsock"].contains(&&**name)).collect();
    names.sort();
    names
}

/// The machine was not saved because file systems did not hold still, and nothing is kept.
#[track_caller]
fn did_not_hold_still(directory: &Path, told: Response, reason: &str) {
    assert!(matches!(&told, Err(Error::Freeze(why)) if why.contains(reason)), "{told:?}");
    assert_eq!(names(directory), [""; 0], "nothing is kept");
}

#[test]
fn file_systems_hold_still_for_the_capture_and_go_on_after_it() {
    let directory = tempfile::tempdir().unwrap();
    let Some((mut vmm, agent)) = with_agent(directory.path()) else { return };
    let one = begin(&mut vmm, save(directory.path(), "one", Freeze::Must));
    let told = answers(&mut vmm, vec![one]).remove(0).unwrap();
    assert_eq!((&told["frozen"], &told["not_frozen"]), (&json!(["/"]), &json!(null)), "{told}");
    agent.is(false);
    assert_eq!(agent.done(), ["freeze", "thaw"]);
}

#[test]
fn those_that_did_not_hold_still_for_long_enough_are_not_said_to_have() {
    let directory = tempfile::tempdir().unwrap();
    let Some((mut vmm, agent)) = with_agent(directory.path()) else { return };
    let must = begin_with(&mut vmm, &agent, save(directory.path(), "one", Freeze::Must), true);
    let told = answers(&mut vmm, vec![must]).remove(0);
    did_not_hold_still(directory.path(), told, "time was over");
    agent.is(false);

    let mut vmm = running(machine(directory.path()).unwrap(), &agent);
    let may = begin_with(&mut vmm, &agent, save(directory.path(), "two", Freeze::IfPossible), true);
    let told = answers(&mut vmm, vec![may]).remove(0).unwrap();
    assert!(told["not_frozen"].as_str().unwrap().contains("time was over"), "{told}");
    assert_eq!(told["frozen"], json!(null));
    assert_eq!(names(directory.path()), ["two"]);
    agent.is(false);
}

#[test]
fn those_of_an_agent_that_is_gone_are_not_said_to_hold_still() {
    let directory = tempfile::tempdir().unwrap();
    let Some((mut vmm, agent)) = with_agent(directory.path()) else { return };
    let must = begin_with(&mut vmm, &agent, save(directory.path(), "one", Freeze::Must), false);
    agent.hang_up();
    let told = answers(&mut vmm, vec![must]).remove(0);
    did_not_hold_still(directory.path(), told, "is lost");
}

#[test]
fn a_guest_that_can_freeze_nothing_is_not_saved_by_whoever_wants_that() {
    let directory = tempfile::tempdir().unwrap();
    let Some((mut vmm, agent)) = with_agent(directory.path()) else { return };
    // Somebody in the guest has done it.
    let _frozen = Client::connect(agent.socket(), PATIENCE).unwrap().freeze(&[], PATIENCE).unwrap();
    let must = begin(&mut vmm, save(directory.path(), "one", Freeze::Must));
    let told = answers(&mut vmm, vec![must]).remove(0);
    did_not_hold_still(directory.path(), told, "/ for one: Device");
}

#[test]
fn of_several_captures_each_has_them_to_itself() {
    let directory = tempfile::tempdir().unwrap();
    let Some((mut vmm, agent)) = with_agent(directory.path()) else { return };
    let one = begin(&mut vmm, save(directory.path(), "one", Freeze::Must));
    agent.is(true);
    // Whoever asked for the second has been killed; the last does not care for file systems.
    drop(begin(&mut vmm, save(directory.path(), "two", Freeze::Must)));
    let three = begin(&mut vmm, save(directory.path(), "three", Freeze::Must));
    let four = begin(&mut vmm, save(directory.path(), "four", Freeze::No));
    let told = answers(&mut vmm, vec![one, three, four]);
    let frozen: Vec<_> = told.iter().map(|told| &told.as_ref().unwrap()["frozen"]).collect();
    assert_eq!(frozen, [&json!(["/"]), &json!(["/"]), &json!(null)]);
    agent.is(false);
    assert_eq!(agent.done(), ["freeze", "thaw"].repeat(3));
    assert_eq!(names(directory.path()), ["four", "one", "three", "two"]);
}

#[test]
fn one_that_fails_leaves_the_turn_to_the_next() {
    let directory = tempfile::tempdir().unwrap();
    let Some((mut vmm, agent)) = with_agent(directory.path()) else { return };
    let nowhere = begin(&mut vmm, save(directory.path(), "no/where", Freeze::Must));
    let one = begin(&mut vmm, save(directory.path(), "one", Freeze::Must));
    let told = answers(&mut vmm, vec![nowhere, one]);
    assert!(matches!(&told[0], Err(Error::Save(_))), "{told:?}");
    assert_eq!(told[1].as_ref().unwrap()["frozen"], json!(["/"]));
    agent.is(false);
    assert_eq!(agent.done(), ["freeze", "thaw"].repeat(2));
}

#[test]
fn those_that_wait_for_a_machine_that_ends_hear_that() {
    let directory = tempfile::tempdir().unwrap();
    let Some((mut vmm, agent)) = with_agent(directory.path()) else { return };
    let one = begin(&mut vmm, save(directory.path(), "one", Freeze::Must));
    let two = begin(&mut vmm, save(directory.path(), "two", Freeze::Must));
    agent.is(true);
    // Before it has heard of anything else.
    assert_eq!(vmm.handle(Message::Terminate { force: true }), Some(Outcome::Stopped));
    vmm.inbox.close();
    drop(vmm);
    assert!(one.recv_timeout(PATIENCE).is_err() && two.recv_timeout(PATIENCE).is_err());
    agent.is(false);
}

#[test]
fn no_disk_moves_while_the_machine_stands_still_to_be_saved() {
    let directory = tempfile::tempdir().unwrap();
    let Some((mut vmm, agent)) = with_agent(directory.path()) else { return };
    let target = directory.path().join("one");
    let disk = begin_with(&mut vmm, &agent, Request::SaveDisk { target, freeze: true }, false);
    vmm.state = RunState::Saving;
    let told = answers(&mut vmm, vec![disk]).remove(0);
    let error = told.unwrap_err().to_string();
    assert_eq!(error, "The machine is being saved: it cannot be saved");
    agent.is(false);
}
