//! Debian's docker-registry, in a directory of its own; it ends with the test.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::common::host::{self, Offer};

/// The user that registries with passwords know, and the password.
pub const USER: &str = "me";
pub const PASSWORD: &str = "secret";

/// bcrypt of [`PASSWORD`], as `htpasswd -nbB` prints it.
const HTPASSWD: &str = "me:$2y$05$7hjXJ6JmswQvRuSjcqHlIe7Hy8lBkoMt0xqhEHGidTN1IGkhyLMDW\n";

/// A registry.
pub struct Registry {
    process: Child,
    /// HOST:PORT.
    pub address: String,
    directory: TempDir,
}

/// What the registry is installed as.
pub fn offered() -> Offer {
    host::program("docker-registry").map(drop)
}

impl Registry {
    /// Without passwords.
    pub fn start() -> Self {
        Self::with("127.0.0.1", |_| String::new(), "")
    }

    /// With one user.
    pub fn with_password() -> Self {
        let auth = |directory: &TempDir| {
            let users = directory.path().join("htpasswd");
            std::fs::write(&users, HTPASSWD).expect("a file");
            format!("auth: {{htpasswd: {{realm: here, path: {}}}}}\n", users.display())
        };
        Self::with("127.0.0.1", auth, "")
    }

    /// With TLS, and a certificate for `localhost` that only itself vouches for.
    pub fn with_tls() -> Self {
        let make = |directory: &TempDir| {
            let path = |name: &str| directory.path().join(name).display().to_string();
            let request = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
            let about = [
                "-days",
                "2",
                "-subj",
                "/CN=rvmm test",
                "-addext",
                "subjectAltName=DNS:localhost",
                "-addext",
                "basicConstraints=critical,CA:FALSE",
            ];
            let (key, certificate) = (path("key.pem"), path("certificate.pem"));
            host::run("openssl", &[&request[..], &about, &["-keyout", &key, "-out", &certificate]].concat());
            String::new()
        };
        Self::with("localhost", make, ", tls: {certificate: DIR/certificate.pem, key: DIR/key.pem}")
    }

    fn with(name: &str, more: impl Fn(&TempDir) -> String, http: &str) -> Self {
        let directory = TempDir::new().expect("a scratch directory");
        let root = directory.path().display().to_string();
        // Any port that is free: one that is looked for before may be another's by then.
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\n{}storage: {{filesystem: {{rootdirectory: {root}/data}}}}\nhttp: {{addr: '127.0.0.1:0'{}}}\n",
            more(&directory),
            http.replace("DIR", &root),
        );
        let config = directory.path().join("config.yml");
        std::fs::write(&config, text).expect("a file");
        let program = host::program("docker-registry").expect("what the test has asked for");
        let log = std::fs::File::create(directory.path().join("log")).expect("a file");
        let mut command = Command::new(program);
        command.arg("serve").arg(&config).stdin(Stdio::null()).stdout(log).stderr(Stdio::null());
        // SAFETY: prctl is a plain system call. The registry goes with the test's thread, however that ends.
        unsafe {
            command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
        let process = command.spawn().expect("a registry that starts");
        let mut registry = Registry { process, address: String::new(), directory };
        let port = (0..30_000).find_map(|_| {
            assert!(
                registry.process.try_wait().expect("a child").is_none(),
                "docker-registry does not start"
            );
            std::thread::sleep(Duration::from_millis(10));
            listens(registry.process.id())
        });
        let port = port.expect("a registry that listens");
        registry.address = format!("{name}:{port}");
        registry
    }

    /// The file with the certificate.
    pub fn certificate(&self) -> PathBuf {
        self.directory.path().join("certificate.pem")
    }

    /// The lines of its log that begin a request with this method.
    pub fn requests(&self, method: &str) -> usize {
        let log = std::fs::read_to_string(self.directory.path().join("log")).expect("a log");
        log.lines().filter(|line| line.contains(&format!("\"{method} "))).count()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The TCP port on which a process listens (proc(5), net/tcp: addresses are hexadecimal, 0A is the state).
fn listens(pid: u32) -> Option<u16> {
    let files = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten();
    let files: Vec<_> = files.filter_map(|file| std::fs::read_link(file.path()).ok()).collect();
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/tcp")).ok()?;
    table.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let own = |inode: &str| files.contains(&format!("socket:[{inode}]").into());
        let listens = words.get(3) == Some(&"0A") && words.get(9).is_some_and(|inode| own(inode));
        let (_, port) = words.get(1).filter(|_| listens)?.split_once(':')?;
        u16::from_str_radix(port, 16).ok()
    })
}
