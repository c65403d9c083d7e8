//! The vCPU threads: one per vCPU, running, parked or ended together.
//!
//! ```text
//!            goal = Run              goal = Pause           goal = End
//!   thread: ───────────► KVM_RUN ◄──────────────► parked ───────────────► returns
//!                          │ exit: device access, shutdown, failure
//!                          ▼
//!                     bus, or a message to the monitor (and the thread parks)
//! ```
//!
//! A thread holds the lock of its vCPU while it runs and lets go when it parks, so whoever has paused
//! the machine can look into every vCPU.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Once, PoisonError};
use std::thread::{self, JoinHandle};

use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use crate::bus::Bus;
use crate::kvm::{self, Exit, Interrupter, Vcpu};
use crate::sys::lock;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goal {
    Run,
    Pause,
    End,
}

struct Progress {
    goal: Goal,
    /// Threads that are parked or have ended.
    resting: usize,
}

/// What the threads and their owner share.
struct Shared {
    progress: Mutex<Progress>,
    changed: Condvar,
    /// Set whenever the goal is not to run: looked at after every exit without taking the lock, and by devices that keep a
    /// vCPU waiting.
    attention: Arc<AtomicBool>,
}

impl Shared {
    fn progress(&self) -> MutexGuard<'_, Progress> {
        lock(&self.progress)
    }

    /// A vCPU cannot run on: none is to, until the owner has decided what becomes of the machine.
    fn hold(&self) {
        let mut progress = self.progress();
        if progress.goal == Goal::Run {
            progress.goal = Goal::Pause;
        }
        self.attention.store(true, Ordering::SeqCst);
    }

    /// Rests until the goal is to run. False when it is to end.
    fn rest(&self) -> bool {
        let mut progress = self.progress();
        progress.resting += 1;
        self.changed.notify_all();
        let mut progress = self
            .changed
            .wait_while(progress, |progress| progress.goal == Goal::Pause)
            .unwrap_or_else(PoisonError::into_inner);
        let run = progress.goal == Goal::Run;
        if run {
            progress.resting -= 1;
        }
        run
    }
}

/// The two buses that vCPUs reach devices on.
#[derive(Default)]
pub struct Buses {
    /// Port I/O.
    pub pio: Bus,
    /// Memory-mapped I/O.
    pub mmio: Bus,
}

struct Thread {
    vcpu: Arc<Mutex<Vcpu>>,
    interrupter: Interrupter,
    handle: JoinHandle<()>,
}

/// All vCPUs of a machine with their threads.
pub struct Vcpus {
    threads: Vec<Thread>,
    shared: Arc<Shared>,
}

impl Vcpus {
    /// Starts a paused thread for each vCPU. `attention` tells devices when the threads are wanted back. `report` is called on
    /// a vCPU's thread when it cannot run on; the thread waits then to be told what to do.
    pub fn start(
        vcpus: Vec<Vcpu>,
        buses: &Arc<Buses>,
        attention: Arc<AtomicBool>,
        report: impl Fn(usize, Exit) + Send + Sync + 'static,
    ) -> Result<Self, StartError> {
        catch_kicks();
        let progress = Mutex::new(Progress { goal: Goal::Pause, resting: 0 });
        attention.store(true, Ordering::SeqCst);
        let shared = Arc::new(Shared { progress, changed: Condvar::new(), attention });
        let report = Arc::new(report);
        let mut started = Vcpus { threads: Vec::with_capacity(vcpus.len()), shared };
        for (index, vcpu) in vcpus.into_iter().enumerate() {
            let interrupter = vcpu.interrupter()?;
            let vcpu = Arc::new(Mutex::new(vcpu));
            let (shared, buses) = (Arc::clone(&started.shared), Arc::clone(buses));
            let (report, running) = (Arc::clone(&report), Arc::clone(&vcpu));
            let handle = thread::Builder::new()
                .name(format!("vcpu{index}"))
                .spawn(move || run(&running, &buses, &shared, |exit| report(index, exit)))?;
            started.threads.push(Thread { vcpu, interrupter, handle });
        }
        Ok(started)
    }

    /// Lets all vCPUs run.
    pub fn resume(&self) {
        self.shared.attention.store(false, Ordering::SeqCst);
        self.shared.progress().goal = Goal::Run;
        self.shared.changed.notify_all();
    }

    /// Stops all vCPUs and returns when every one rests.
    pub fn pause(&self) {
        self.stop(Goal::Pause);
    }

    /// The vCPUs, to look into while all are paused.
    pub fn each(&self) -> impl Iterator<Item = MutexGuard<'_, Vcpu>> {
        self.threads.iter().map(|thread| lock(&thread.vcpu))
    }

    fn stop(&self, goal: Goal) {
        self.shared.progress().goal = goal;
        self.shared.attention.store(true, Ordering::SeqCst);
        self.shared.changed.notify_all();
        for thread in &self.threads {
            thread.interrupter.raise();
            // A thread that has ended needs no signal.
            let _ = thread.handle.kill(SIGRTMIN());
        }
        let resting = |progress: &mut Progress| progress.resting < self.threads.len();
        let _rested = self.shared.changed.wait_while(self.shared.progress(), resting);
    }
}

impl Drop for Vcpus {
    fn drop(&mut self) {
        self.stop(Goal::End);
        for thread in self.threads.drain(..) {
            let _ = thread.handle.join();
        }
    }
}

/// Why the threads could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// KVM did not give access to a vCPU.
    #[error(transparent)]
    Kvm(#[from] kvm::Error),
    /// The host starts no more threads.
    #[error("Cannot start a thread for a vCPU")]
    Thread(#[from] io::Error),
}

/// The life of one vCPU thread.
fn run(vcpu: &Mutex<Vcpu>, buses: &Buses, shared: &Shared, report: impl Fn(Exit)) {
    while shared.rest() {
        let mut vcpu = lock(vcpu);
        vcpu.acknowledge();
        // The flag may have been raised for a stop that came after the rest and before this moment.
        while !shared.attention.load(Ordering::SeqCst) {
            match vcpu.run(&buses.pio, &buses.mmio) {
                Exit::Done | Exit::Interrupted => {}
                exit => {
                    shared.hold();
                    report(exit);
                }
            }
        }
        vcpu.settle(&buses.pio, &buses.mmio);
    }
}

/// Makes SIGRTMIN, with which a KVM_RUN under way is ended, interrupt system calls and do nothing else.
fn catch_kicks() {
    static ONCE: Once = Once::new();
    extern "C" fn ignore(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    ONCE.call_once(|| {
        if let Err(error) = register_signal_handler(SIGRTMIN(), ignore) {
            log::error!("cannot catch the vCPU signal: {error}");
        }
    });
}
