//! What it is worth that pages which an earlier machine has used are read ahead: the time from exec until a restored guest has
//! touched pages all over its memory, with the record of such a machine and without, from the disk and from the host's cache.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::Path;

use rvmm::memory::image::{PAGES_FILE, USED_FILE};
use serde_json::{Value, json};

use super::common::{Failure, Samples, World, load, timed};

/// The machine's memory, all of which has something in it.
const MIB: u64 = 512;

/// Measures guests that touch few pages and many.
pub fn measure(world: &World, runs: usize) -> Result<Value, Failure> {
    println!(
        "\nReading ahead, {MIB} MiB, load average {}; p50 (p90) in milliseconds from exec to the last page",
        load()
    );
    println!("{:>14}{:>8}{:>20}{:>20}{:>8}", "pages touched", "", "without a record", "with one", "ratio");
    let mut rows = Vec::new();
    for pages in [512, 2048, 8192, 32768] {
        let size = MIB - 16;
        let machine =
            world.boot("source", MIB, &format!("dirty fill=1 pages={pages} mib={size} every=1"), &[])?;
        machine.says("dirty: round")?;
        world.create("source", "one")?;
        drop(machine);
        let (one, kept) = (world.path("one"), world.path("record"));
        learn(world, &one)?;
        fs::rename(one.join(USED_FILE), &kept)?;
        for cold in [true, false] {
            let (mut without, mut with) = (Samples::default(), Samples::default());
            for _ in 0..runs {
                without.0.push(touched(world, &one, cold)?);
                fs::copy(&kept, one.join(USED_FILE))?;
                with.0.push(touched(world, &one, cold)?);
                fs::remove_file(one.join(USED_FILE))?;
            }
            let place = if cold { "disk" } else { "cache" };
            let ratio = with.percentile(50) / without.percentile(50);
            println!("{pages:>14}{place:>8}{:>20}{:>20}{ratio:>8.2}", without.cell(), with.cell());
            rows.push(json!({
                "pages": pages, "from": place, "without_ms": without.json(), "with_ms": with.json(), "ratio": ratio,
            }));
        }
    }
    Ok(json!(rows))
}

/// Lets a machine that finds nothing in the cache record what it uses.
fn learn(world: &World, snapshot: &Path) -> Result<(), Failure> {
    forget(snapshot)?;
    let mut machine = world.machine("copy", &["restore", &snapshot.to_string_lossy()])?;
    machine.says_times("dirty: round", 2)?;
    // SAFETY: a call without pointers; the child has not been waited for, so the number is its own.
    unsafe { libc::kill(machine.child.id() as i32, libc::SIGTERM) };
    machine.child.wait()?;
    Ok(())
}

/// Takes a snapshot out of the host's cache.
fn forget(snapshot: &Path) -> Result<(), Failure> {
    for file in fs::read_dir(snapshot)?.flatten() {
        let file = File::open(file.path())?;
        file.sync_all()?;
        // SAFETY: a call without pointers.
        unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    }
    Ok(())
}

/// Milliseconds until a restored guest has gone through a whole round.
fn touched(world: &World, snapshot: &Path, cold: bool) -> Result<f64, Failure> {
    match cold {
        true => forget(snapshot)?,
        false => {
            fs::read(snapshot.join(PAGES_FILE))?;
        }
    }
    let (time, touched) = timed(|| -> Result<_, Failure> {
        let machine = world.machine("copy", &["restore", &snapshot.to_string_lossy()])?;
        machine.says_times("dirty: round", 2)?;
        Ok(machine)
    });
    touched.map(|_| time)
}
