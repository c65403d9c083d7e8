//! Who holds the lock on a file: open-file-description locks carry no process ID, so /proc is searched (proc(5), fdinfo).

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Names the process that holds a lock on `file`, as far as this user may see it.
pub fn of(file: &File) -> String {
    find(file).unwrap_or_else(|| "another process".into())
}

/// Whether this process holds a lock on `file`.
pub fn is_this_process(file: &File) -> bool {
    file.metadata().is_ok_and(|wanted| holds(Path::new("/proc/self"), (wanted.dev(), wanted.ino())))
}

fn find(file: &File) -> Option<String> {
    let wanted = file.metadata().ok()?;
    let own = std::process::id();
    let mut myself = None;
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if !holds(&process.path(), (wanted.dev(), wanted.ino())) {
            continue;
        }
        if pid == own {
            myself = Some("this process itself (another of its disks)".into());
            continue;
        }
        let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
        return Some(format!("process {pid} ({})", name.trim()));
    }
    myself
}

/// Whether an open file of a process is the wanted one and carries a lock.
fn holds(process: &Path, wanted: (u64, u64)) -> bool {
    let Ok(files) = fs::read_dir(process.join("fd")) else { return false };
    files.flatten().any(|file| {
        let same = fs::metadata(file.path()).is_ok_and(|found| (found.dev(), found.ino()) == wanted);
        same && fs::read_to_string(process.join("fdinfo").join(file.file_name()))
            .is_ok_and(|info| info.lines().any(|line| line.starts_with("lock:")))
    })
}
