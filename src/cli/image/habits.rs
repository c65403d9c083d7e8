//! What users of containers are used to: variables in the environment and in files, and options that machines have not.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use log::warn;

use super::machine::Volume;
use super::signal;
use crate::cli::output::Failure;

/// The largest file with variables, in bytes.
const LARGEST: u64 = 1 << 20;

/// Options of `docker run` and `podman run` that are not there, and what there is instead.
const ABSENT: [(&[&str], &str); 9] = [
    (
        &["--privileged", "--cap-add", "--cap-drop", "--security-opt", "--userns", "--pid", "--ipc", "--uts"],
        "a machine has a kernel of its own, in which its root may do everything",
    ),
    (&["--init"], "the first process of a machine is rvmm's init anyway"),
    (
        &["--mount", "--tmpfs", "--volumes-from"],
        "a machine has no directories of the host: -v DISK:TARGET gives it a disk, and `rvmm cp` copies files",
    ),
    (&["--device", "--gpus"], "a machine has no devices of the host but disks: --disk, -v"),
    (&["--restart"], "rvmm has no service of its own: have your service manager run `rvmm start -a NAME`"),
    (&["--label", "--label-file"], "machines have names and no labels: --name, `rvmm ps --json`"),
    (
        &["--link", "--ip", "--dns", "--add-host", "--network-alias", "--expose", "-P", "--publish-all"],
        "a machine has the network that --net says: -p HOST:GUEST leads a port to it",
    ),
    (
        &["--memory-swap", "--shm-size", "--cpu-shares", "--cpuset-cpus", "--ulimit", "--pids-limit"],
        "a machine is limited by its --cpus and --memory",
    ),
    (&["--pull", "--platform"], "`rvmm pull` brings images, those of linux/amd64"),
];

/// What there is instead of an option that `run` does not know, or where a command has its own options.
pub fn instead(option: &str) -> &'static str {
    let absent = ABSENT.iter().find(|(options, _)| options.contains(&option));
    absent.map_or("a command of the guest stands behind `--`, with its own options", |(_, instead)| instead)
}

/// One variable: `KEY=VALUE`, or `KEY` for the value that this process has.
pub fn variable(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some(("", _)) => Err("a variable has a name: KEY=VALUE".into()),
        Some(_) => Ok(text.into()),
        None => std::env::var(text)
            .map(|value| format!("{text}={value}"))
            .map_err(|_| "it is not set here: say KEY=VALUE".into()),
    }
}

/// The name or number of a signal, as the guest takes it.
pub fn stop_signal(text: &str) -> Result<String, String> {
    match signal::number(text) {
        Some(_) => Ok(text.into()),
        None => Err("it is a signal's name or number, such as SIGINT or 2".into()),
    }
}

/// The variables of files, one in a line, with their values as they are; lines that are empty or begin with `#` say nothing, and
/// a name alone nothing if it is not set here.
///
/// # Errors
/// The file and the line that is wrong.
pub fn variables(files: &[PathBuf]) -> Result<Vec<String>, String> {
    let mut found = Vec::new();
    for path in files {
        let refuse = |reason: String| format!("Cannot read {}: {reason}", path.display());
        let size = fs::metadata(path).map_err(|error| refuse(error.to_string()))?.len();
        if size > LARGEST {
            return Err(refuse(format!("it has more than {LARGEST} bytes")));
        }
        let text = fs::read_to_string(path).map_err(|error| refuse(error.to_string()))?;
        for (number, line) in text.lines().enumerate() {
            let line = line.trim_start();
            let key = line.split('=').next().unwrap_or_default();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if key.is_empty() || key.contains(char::is_whitespace) {
                return Err(refuse(format!("line {} is not like KEY=VALUE", number + 1)));
            }
            found.extend(variable(line).ok());
        }
    }
    Ok(found)
}

/// Refuses directories, which a machine cannot share.
pub fn check_volume(volume: &Volume) -> Result<(), Failure> {
    let path: &Path = &volume.disk;
    match path.is_dir() {
        true => Err(Failure::usage(format!(
            "{0} is a directory, and -v takes a disk: make one of it with `mke2fs -t ext4 -d {0} FILE SIZE`, or copy files with `rvmm cp`",
            path.display()
        ))),
        false => Ok(()),
    }
}

/// Says that what stands on standard input does not reach the command: its input is a terminal, or nothing.
pub fn warn_of_piped_input() {
    let input = io::stdin().as_fd().try_clone_to_owned().map(File::from);
    let kind = input.and_then(|input| Ok(input.metadata()?.file_type()));
    if kind.is_ok_and(|kind| kind.is_fifo() || kind.is_file()) {
        warn!(
            "what is piped in does not reach the command: `rvmm run -d` starts a machine, and `rvmm exec -i NAME -- COMMAND` passes it on"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_with_variables() {
        let directory = tempfile::tempdir().unwrap();
        let (good, bad) = (directory.path().join("good"), directory.path().join("bad"));
        fs::write(&good, "# of the server\n\nA=1\n  B= x = 'y' \r\nPATH\nNOBODY_HAS_THIS\nA=2").unwrap();
        let path = std::env::var("PATH").unwrap();
        let told = variables(std::slice::from_ref(&good)).unwrap();
        assert_eq!(told, ["A=1", "B= x = 'y' ", &format!("PATH={path}"), "A=2"]);
        for (text, word) in [("A=1\nB C=2", "line 2"), ("=x", "line 1")] {
            fs::write(&bad, text).unwrap();
            let error = variables(&[good.clone(), bad.clone()]).unwrap_err();
            assert!(error.contains(word) && error.contains("bad"), "{error}");
        }
        assert!(variables(&[directory.path().join("none")]).is_err());
        fs::File::create(&bad).unwrap().set_len(LARGEST + 1).unwrap();
        assert!(variables(&[bad]).is_err());
    }

    #[test]
    fn options_of_containers() {
        assert!(instead("--restart").contains("rvmm start"));
        assert!(instead("--label").contains("names"));
        assert!(instead("-l").contains("`--`"));
    }
}
