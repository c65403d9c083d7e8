//! What is asked for of a vsock device (Firecracker's `Vsock`, and `--vsock`).

use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Vsock;
use super::listener::Listener;
use crate::devices::virtio::{self, Context, Error, VirtioDevice};
use crate::options::{self, Options};

/// The smallest address of a guest: 0 is reserved, 1 is the guest itself, 2 is the host.
const FIRST_CID: u32 = 3;

/// Name of the socket in the machine's own directory.
pub const SOCKET: &str = "vsock.sock";

/// A channel between programs on the host and in the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Address of the guest; it need not differ from that of other machines.
    #[serde(default = "first_cid")]
    pub guest_cid: u32,
    /// The socket that leads to the guest: a client says `CONNECT <port>` and a new line first. What the guest sends to
    /// the host's port P goes to the socket `<uds_path>_P`.
    /// Without it, the socket is in the machine's own directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uds_path: Option<PathBuf>,
    /// Firecracker's name for the device; it means nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock_id: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        Config { guest_cid: FIRST_CID, uds_path: None, vsock_id: None }
    }
}

impl Config {
    /// Whether no device is wanted. Such a configuration cannot be opened: who makes the machine leaves it out.
    pub fn is_none(&self) -> bool {
        self.guest_cid == 0
    }
}

impl Config {
    /// Where the socket is, for a machine with this directory of its own.
    pub fn socket(&self, directory: &Path) -> PathBuf {
        self.uds_path.clone().unwrap_or_else(|| directory.join(SOCKET))
    }
}

fn first_cid() -> u32 {
    FIRST_CID
}

impl FromStr for Config {
    type Err = options::Error;

    fn from_str(text: &str) -> Result<Self, options::Error> {
        let options = Options::parse(text, &["cid"])?;
        let uds_path = match options.first {
            "" => return Err(options::Error::Missing { what: "path of a socket" }),
            "none" => return Ok(Config { guest_cid: 0, ..Config::default() }),
            "auto" => None,
            path => Some(path.into()),
        };
        let mut config = Config { uds_path, ..Config::default() };
        for (key, value) in options.pairs {
            let takes = "a number from 3 to 4294967294";
            let value = options::required(key, value, takes)?;
            let number = value.parse().ok().filter(|&number| is_address(number));
            config.guest_cid = number.ok_or_else(|| options::bad_value(key, value, takes))?;
        }
        Ok(config)
    }
}

fn is_address(cid: u32) -> bool {
    (FIRST_CID..u32::MAX).contains(&cid)
}

impl virtio::Config for Config {
    fn open(&self, context: &Context) -> Result<Box<dyn VirtioDevice>, Error> {
        let path = self.uds_path.clone().or_else(|| Some(context.directory.as_ref()?.join(SOCKET)));
        let fail = |source: Box<dyn std::error::Error + Send + Sync>| Error {
            device: match &path {
                Some(path) => format!("vsock {}", path.display()),
                None => "vsock".into(),
            },
            source,
        };
        if context.index > 0 {
            return Err(fail("A machine has one vsock device at most: guests use only the first".into()));
        }
        if !is_address(self.guest_cid) {
            return Err(fail(format!("A guest cannot have the address {}", self.guest_cid).into()));
        }
        let Some(path) = &path else {
            return Err(fail("It needs the path of a socket (uds_path), for the machine has no directory".into()));
        };
        let listener = Listener::bind(path).map_err(|error| fail(error.into()))?;
        let vsock = Vsock::new(listener, self.guest_cid).map_err(|error| fail(error.into()))?;
        Ok(Box::new(vsock))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_forms() {
        let config = Config { guest_cid: 7, uds_path: Some("/run/v.sock".into()), vsock_id: None };
        assert_eq!("/run/v.sock,cid=7".parse(), Ok(config.clone()));
        let json = r#"{ "guest_cid": 7, "uds_path": "/run/v.sock", "vsock_id": "1" }"#;
        let read: Config = serde_json::from_str(json).unwrap();
        assert_eq!(read, Config { vsock_id: Some("1".into()), ..config });
        let short: Config = serde_json::from_str(r#"{ "uds_path": "v" }"#).unwrap();
        assert_eq!("v".parse(), Ok(short));
        assert_eq!("auto".parse(), Ok(Config::default()));
        assert!("none".parse::<Config>().unwrap().is_none() && !Config::default().is_none());
        for wrong in ["", ",cid=3", "v,cid", "v,cid=2", "v,cid=4294967295", "v,id=3"] {
            assert!(wrong.parse::<Config>().is_err(), "{wrong}");
        }
    }
    #[test]
    fn listens_in_the_machines_directory() {
        let open = |config: &Config, context: &Context| virtio::Config::open(config, context).map(drop);
        let mut context = virtio::mock::context();
        let error = open(&Config::default(), &context).unwrap_err();
        assert!(error.source.to_string().contains("uds_path"), "{}", error.source);
        let directory = tempfile::tempdir().unwrap();
        context.directory = Some(directory.path().into());
        let device = virtio::Config::open(&Config::default(), &context).unwrap();
        assert!(directory.path().join(SOCKET).exists());
        assert!(open(&Config::default(), &context).is_err(), "two in one place");
        drop(device);
        open(&Config::default(), &context).unwrap();
        assert!(open(&Config { guest_cid: 2, ..Config::default() }, &context).is_err());
        context.index = 1;
        assert!(open(&Config::default(), &context).is_err(), "two devices");
    }
}
