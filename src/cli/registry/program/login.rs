//! `rvmm login` and `rvmm logout`: who the user is to a registry, and whom the user trusts.

use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::super::{Connection, Login, Logout};
use crate::cli::output::{Failure, print, print_json};
use crate::cli::{Common, variable};
use crate::image::Name;
use crate::image::registry::{Access, Client, Credentials, Logins};
use crate::sys::terminal;

/// Where distributions keep the certificates of authorities.
const AUTHORITIES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
    "/etc/ssl/ca-bundle.pem",
];

/// The longest password.
const LONGEST: u64 = 64 << 10;

impl Connection {
    /// With what is known of `registry`.
    pub fn access(&self, registry: &str) -> Result<Access, Failure> {
        Ok(Access {
            credentials: logins()?.find(registry).map_err(Failure::refused)?,
            plain_http: self.plain_http,
            authorities: authorities(registry),
        })
    }
}

impl Login {
    /// Does what is asked.
    pub fn run(&self, common: &Common) -> Result<u8, Failure> {
        let registry = checked(&self.registry)?;
        let credentials = self.credentials()?;
        let user = credentials.user.clone();
        let access = Access { credentials: Some(credentials.clone()), ..self.connection.access(registry)? };
        let client = Client::new(registry, "", &access).map_err(Failure::refused)?;
        client.check().map_err(Failure::refused)?;
        let logins = logins()?;
        logins.keep(registry, &credentials).map_err(Failure::refused)?;
        match common.json {
            true => print_json(&json!({ "registry": registry, "user": user }))?,
            false => print(format!("{registry} knows you as {user}; kept in {}", logins.own.display()))?,
        }
        Ok(0)
    }

    fn credentials(&self) -> Result<Credentials, Failure> {
        let reading = |error: io::Error| Failure::refused(format!("Cannot read the password: {error}"));
        let mut stdin = io::stdin();
        if self.password_stdin {
            let user = self.user.clone();
            let user = user.ok_or_else(|| Failure::usage("--password-stdin needs the user: -u USER"))?;
            let mut password = String::new();
            stdin.take(LONGEST).read_to_string(&mut password).map_err(reading)?;
            let password = password.trim_end_matches(['\r', '\n']).to_string();
            return Ok(Credentials { user, password });
        }
        if !stdin.is_terminal() {
            return Err(Failure::usage("Without a terminal the password comes from --password-stdin"));
        }
        let user = match &self.user {
            Some(user) => user.clone(),
            None => {
                ask("User: ");
                let mut user = String::new();
                stdin.lock().read_line(&mut user).map_err(reading)?;
                user.trim().to_string()
            }
        };
        ask("Password: ");
        let password = terminal::read_secret(&mut stdin).map_err(reading)?;
        let password = password.ok_or_else(|| Failure::refused("Not logged in"))?;
        Ok(Credentials { user, password })
    }
}

fn ask(question: &str) {
    let _ = write!(io::stderr(), "{question}");
}

impl Logout {
    /// Does what is asked.
    pub fn run(&self) -> Result<u8, Failure> {
        let registry = checked(&self.registry)?;
        if !logins()?.forget(registry).map_err(Failure::refused)? {
            return Err(Failure::refused(format!("No login at {registry} is kept here")));
        }
        print(format!("The login at {registry} is forgotten")).map(|()| 0)
    }
}

/// A registry, with what people write before or after it taken away.
fn checked(text: &str) -> Result<&str, Failure> {
    let registry = text.strip_prefix("https://").unwrap_or(text).trim_end_matches('/');
    let name = format!("{registry}/x").parse::<Name>().ok();
    match name.as_ref().and_then(Name::registry) {
        Some((found, "x")) if found == registry => Ok(registry),
        _ => Err(Failure::usage(format!("`{text}` is not a registry: write HOST or HOST:PORT"))),
    }
}

/// Where logins are kept.
fn logins() -> Result<Logins, Failure> {
    let home = variable("HOME");
    let config = variable("XDG_CONFIG_HOME").filter(|path| path.is_absolute());
    let config = config.or_else(|| Some(home.as_ref()?.join(".config")));
    let own = config.map(|path| path.join("rvmm/registries.json"));
    let own = own.ok_or_else(|| Failure::usage("There is no place for logins: set HOME"))?;
    let docker = variable("DOCKER_CONFIG").or_else(|| Some(home?.join(".docker")));
    Ok(Logins { own, docker: docker.map(|path| path.join("config.json")) })
}

/// The certificates of the authorities that this host trusts, and of those that Docker trusts for `registry`, in PEM.
fn authorities(registry: &str) -> Vec<u8> {
    let places = AUTHORITIES.into_iter().map(PathBuf::from);
    let mut places = variable("SSL_CERT_FILE").into_iter().chain(places);
    let mut found = places.find_map(|path| std::fs::read(path).ok()).unwrap_or_default();
    let own = std::fs::read_dir(Path::new("/etc/docker/certs.d").join(registry));
    for entry in own.into_iter().flatten().flatten() {
        if entry.path().extension().is_some_and(|kind| kind == "crt") {
            found.push(b'\n');
            found.extend(std::fs::read(entry.path()).unwrap_or_default());
        }
    }
    found
}
