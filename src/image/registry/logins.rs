//! Who the user is to each registry: our own file in the form of Docker's, and Docker's own with its helpers (docs.docker.com, docker
//! login, Credential stores; github.com/docker/docker-credential-helpers).

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use super::auth::{Credentials, TOKEN_USER};
use crate::image::Error;

/// The largest file that is read, and the largest answer of a helper.
const MAX_FILE: u64 = 1 << 20;

/// Docker's name for Docker Hub in these files.
const HUB: &str = "https://index.docker.io/v1/";

/// A file with logins.
#[derive(Default, Serialize, Deserialize)]
struct File {
    #[serde(default)]
    auths: BTreeMap<String, Auth>,
    #[serde(rename = "credHelpers", default, skip_serializing_if = "BTreeMap::is_empty")]
    helpers: BTreeMap<String, String>,
    #[serde(rename = "credsStore", default, skip_serializing_if = "Option::is_none")]
    store: Option<String>,
    #[serde(flatten)]
    other: BTreeMap<String, serde_json::Value>,
}

#[derive(Default, Serialize, Deserialize)]
struct Auth {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    auth: String,
    #[serde(rename = "identitytoken", default, skip_serializing_if = "String::is_empty")]
    identity_token: String,
    #[serde(flatten)]
    other: BTreeMap<String, serde_json::Value>,
}

/// What a helper answers.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Helped {
    username: String,
    secret: String,
}

/// Files with logins.
#[derive(Clone, Debug)]
pub struct Logins {
    /// Ours, which is read first and is the only one that is written.
    pub own: PathBuf,
    /// Docker's.
    pub docker: Option<PathBuf>,
}

impl Logins {
    /// Who the user is to a registry, if that is known.
    ///
    /// # Errors
    /// When a file cannot be read, or a helper fails.
    pub fn find(&self, registry: &str) -> Result<Option<Credentials>, Error> {
        for path in [Some(&self.own), self.docker.as_ref()].into_iter().flatten() {
            if let Some(file) = read(path)?
                && let Some(found) = file.find(registry)?
            {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Keeps who the user is to a registry.
    ///
    /// # Errors
    /// When our file cannot be read or written.
    pub fn keep(&self, registry: &str, credentials: &Credentials) -> Result<(), Error> {
        let mut file = read(&self.own)?.unwrap_or_default();
        let auth = Auth { auth: credentials.to_base64(), ..Auth::default() };
        file.auths.insert(registry.into(), auth);
        write(&self.own, &file)
    }

    /// Forgets who the user is to a registry; returns whether our file knew it.
    ///
    /// # Errors
    /// When our file cannot be read or written.
    pub fn forget(&self, registry: &str) -> Result<bool, Error> {
        let Some(mut file) = read(&self.own)? else { return Ok(false) };
        match file.auths.remove(registry) {
            Some(_) => write(&self.own, &file).map(|()| true),
            None => Ok(false),
        }
    }
}

impl File {
    fn find(&self, registry: &str) -> Result<Option<Credentials>, Error> {
        let same = |known: &str| names(registry).any(|name| name == bare(known));
        let helper = self.helpers.iter().find(|(known, _)| same(known)).map(|(_, helper)| helper);
        if let Some(helper) = helper.or(self.store.as_ref()) {
            let hub = names(registry).any(|name| name == "docker.io");
            if let Some(found) = ask(helper, if hub { HUB } else { registry })? {
                return Ok(Some(found));
            }
        }
        let Some((_, known)) = self.auths.iter().find(|(known, _)| same(known)) else { return Ok(None) };
        if !known.identity_token.is_empty() {
            let password = known.identity_token.clone();
            return Ok(Some(Credentials { user: TOKEN_USER.into(), password }));
        }
        Ok(Credentials::from_base64(&known.auth))
    }
}

/// All names of a registry.
fn names(registry: &str) -> impl Iterator<Item = &str> {
    const HUB_NAMES: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];
    let more: &[&str] = if HUB_NAMES.contains(&registry) { &HUB_NAMES } else { &[] };
    std::iter::once(registry).chain(more.iter().copied())
}

/// The registry that an entry is for: some are addresses.
fn bare(known: &str) -> &str {
    let known = known.strip_prefix("https://").or_else(|| known.strip_prefix("http://")).unwrap_or(known);
    known.split('/').next().unwrap_or_default()
}

fn read(path: &Path) -> Result<Option<File>, Error> {
    let mut bytes = Vec::new();
    let read = fs::File::open(path).and_then(|file| file.take(MAX_FILE).read_to_end(&mut bytes));
    match read {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::io("read", path)(source)),
        Ok(_) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|source| Error::Form { what: path.display().to_string(), source }),
    }
}

/// For this user alone; whole or as before.
fn write(path: &Path, file: &File) -> Result<(), Error> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.map_err(Error::io("make", directory))?;
    let beside = path.with_extension(format!("{}.new", std::process::id()));
    let written = || -> io::Result<()> {
        let mut options = fs::OpenOptions::new();
        let mut to = options.write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        to.set_permissions(fs::Permissions::from_mode(0o600))?;
        to.write_all(&serde_json::to_vec_pretty(file)?)?;
        to.sync_all()?;
        fs::rename(&beside, path)?;
        fs::File::open(directory)?.sync_all()
    };
    written().map_err(|source| {
        let _ = fs::remove_file(&beside);
        Error::io("write", path)(source)
    })
}

/// Asks `docker-credential-HELPER`; it may know nothing of this registry.
fn ask(helper: &str, registry: &str) -> Result<Option<Credentials>, Error> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if helper.is_empty() || !helper.chars().all(plain) {
        return Err(Error::invalid(format!("Credential helper `{helper}`"), "it is no name"));
    }
    let program = PathBuf::from(format!("docker-credential-{helper}"));
    let asked = || -> io::Result<(bool, Vec<u8>)> {
        let mut child = Command::new(&program)
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        if let Some(mut to) = child.stdin.take() {
            // One that does not read its input has said why on its output.
            let _ = to.write_all(registry.as_bytes());
        }
        let mut bytes = Vec::new();
        if let Some(from) = child.stdout.take() {
            from.take(MAX_FILE).read_to_end(&mut bytes)?;
        }
        Ok((child.wait()?.success(), bytes))
    };
    let (good, bytes) = asked().map_err(Error::io("run", &program))?;
    let said = String::from_utf8_lossy(&bytes);
    if !good {
        return match said.contains("credentials not found") {
            true => Ok(None),
            false => {
                let said = super::client::plain_text(&said);
                Err(Error::invalid(format!("Credential helper `{helper}`"), format!("it says: {said}")))
            }
        };
    }
    let found: Helped = serde_json::from_slice(&bytes)
        .map_err(|source| Error::Form { what: format!("The answer of {}", program.display()), source })?;
    Ok(Some(Credentials { user: found.username, password: found.secret }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ours_comes_before_dockers() {
        let directory = tempfile::tempdir().unwrap();
        let docker = directory.path().join("config.json");
        let text = r#"{"auths": {"https://index.docker.io/v1/": {"auth": "YTpi"}, "r.example:5000": {"auth": "Yzpk"},
            "t.example": {"auth": "", "identitytoken": "tok"}, "odd.example": {"auth": "!"}}, "HttpHeaders": {}}"#;
        fs::write(&docker, text).unwrap();
        let logins = Logins { own: directory.path().join("new/registries.json"), docker: Some(docker) };
        let find = |registry: &str| logins.find(registry).unwrap().map(|known| known.to_base64());
        assert_eq!(find("docker.io").unwrap(), "YTpi");
        assert_eq!(find("r.example:5000").unwrap(), "Yzpk");
        assert_eq!(logins.find("t.example").unwrap().unwrap().user, TOKEN_USER);
        assert_eq!(find("r.example"), None);
        assert_eq!(find("odd.example"), None);

        let mine = Credentials { user: "me".into(), password: "p:w".into() };
        logins.keep("r.example:5000", &mine).unwrap();
        assert_eq!(logins.find("r.example:5000").unwrap().unwrap(), mine);
        let mode = fs::metadata(&logins.own).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(logins.forget("r.example:5000").unwrap());
        assert!(!logins.forget("r.example:5000").unwrap());
        assert_eq!(find("r.example:5000").unwrap(), "Yzpk");
    }

    #[test]
    fn damage_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let own = directory.path().join("registries.json");
        fs::write(&own, "{\"auths\": 1}").unwrap();
        let logins = Logins { own, docker: None };
        assert!(matches!(logins.find("a"), Err(Error::Form { .. })));
        let bad = File { store: Some("../../x".into()), ..File::default() };
        assert!(matches!(bad.find("a"), Err(Error::Invalid { .. })));
        let gone = File { store: Some("rvmm-test-of-nothing".into()), ..File::default() };
        assert!(matches!(gone.find("a"), Err(Error::Io { .. })));
    }
}
