//! Entries that come and go, are left behind, and are fought for.

use std::os::unix::fs::PermissionsExt;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

fn directory() -> (tempfile::TempDir, Directory) {
    let parent = tempfile::tempdir().unwrap();
    let directory = Directory::new(parent.path().join("rvmm"));
    (parent, directory)
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn names(directory: &Directory) -> Vec<String> {
    directory.machines().unwrap().into_iter().map(|machine| machine.name).collect()
}

#[test]
fn entries_come_and_go() {
    let (_parent, directory) = directory();
    assert_eq!(names(&directory), [""; 0]);
    let web = directory.claim(&name("web")).unwrap();
    let other = directory.claim_any().unwrap();
    let listener = web.listen().unwrap();
    let machines = directory.machines().unwrap();
    assert_eq!(machines.len(), 2);
    let machine = machines.iter().find(|machine| machine.name == "web").unwrap();
    assert_eq!(machine.pid, Some(std::process::id()));
    assert!(machine.socket.exists() && !machine.is_gone());
    let error = directory.claim(&name("web")).unwrap_err();
    assert!(matches!(error, Error::Taken { pid: Some(pid), .. } if pid == std::process::id()), "{error}");
    drop((web, listener));
    assert!(machine.is_gone());
    assert_eq!(names(&directory), [other.name()]);
    drop(other);
    assert_eq!(fs::read_dir(&directory.path).unwrap().count(), 0);
    assert_eq!(fs::metadata(&directory.path).unwrap().mode() & 0o777, 0o700);
}

/// What a killed machine leaves: everything but its hold on the lock.
fn leave_stale(directory: &Directory, name: &Name) {
    let entry = directory.claim(name).unwrap();
    drop(entry.listen().unwrap());
    entry._lock.unlock().unwrap();
    std::mem::forget(entry);
}

#[test]
fn stale_entries_are_removed_by_who_finds_them() {
    let (_parent, directory) = directory();
    leave_stale(&directory, &name("a"));
    leave_stale(&directory, &name("b"));
    fs::create_dir(directory.path.join("c")).unwrap();
    fs::write(directory.path.join("d"), "not an entry").unwrap();
    let a = directory.claim(&name("a")).unwrap();
    a.listen().unwrap();
    assert_eq!(names(&directory), ["a"]);
    assert!(!directory.path.join("b").exists() && !directory.path.join("c").exists());
}

#[test]
fn unsafe_directories_are_refused() {
    let (parent, directory) = directory();
    let reason = |directory: &Directory| match directory.claim(&name("a")) {
        Err(Error::Unsafe { reason, .. }) => reason,
        other => panic!("{other:?}"),
    };
    fs::create_dir(&directory.path).unwrap();
    fs::set_permissions(&directory.path, fs::Permissions::from_mode(0o777)).unwrap();
    assert_eq!(reason(&directory), "others may write to it");
    assert!(matches!(directory.machines(), Err(Error::Unsafe { .. })));
    let link = parent.path().join("link");
    std::os::unix::fs::symlink(parent.path(), &link).unwrap();
    assert_eq!(reason(&Directory::new(link)), "it is not a directory");
    let nowhere = Directory::new(parent.path().join("x/y"));
    assert!(matches!(nowhere.claim(&name("a")), Err(Error::Host { .. })));
}

#[test]
fn one_of_many_wins_a_name() {
    let (_parent, directory) = directory();
    for round in 0..50 {
        if round % 2 == 0 {
            leave_stale(&directory, &name("a"));
        }
        let (start, ready) = (Barrier::new(6), AtomicUsize::new(0));
        let winners: usize = thread::scope(|scope| {
            let claims: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        start.wait();
                        let entry = directory.claim(&name("a"));
                        ready.fetch_add(1, Ordering::SeqCst);
                        // Winners hold the name until all have tried.
                        while ready.load(Ordering::SeqCst) < 4 {
                            thread::yield_now();
                        }
                        usize::from(entry.is_ok())
                    })
                })
                .collect();
            for _ in 0..2 {
                scope.spawn(|| {
                    start.wait();
                    while ready.load(Ordering::SeqCst) < 4 {
                        let _ = directory.machines();
                    }
                });
            }
            claims.into_iter().map(|claim| claim.join().unwrap()).sum()
        });
        assert_eq!(winners, 1, "round {round}");
    }
}
