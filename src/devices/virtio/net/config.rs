//! What is asked for of a network interface (Firecracker's `NetworkInterface`, and `--net`).

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Net;
use crate::devices::virtio::{self, Context, Error, VirtioDevice};
use crate::net::tap::Tap;
use crate::net::unplugged::Unplugged;
use crate::net::user::{self, User};
use crate::net::{Link, Mac};
use crate::options::{self, Options};

/// One network interface: to a tap, to the user's network, or with its link down.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// How the user calls it; `eth` and its place when empty.
    #[serde(default)]
    pub iface_id: String,
    /// Name of the tap on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_dev_name: Option<String>,
    /// The user's network, without a tap and without privileges.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<user::Config>,
    /// Address of the interface; a random one when not given, or the one that it was saved with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_mac: Option<Mac>,
}

impl Config {
    /// An interface to the user's network.
    pub fn user() -> Self {
        Config { user: Some(user::Config::default()), ..Config::default() }
    }

    /// The interface's name in messages; `index` is its place among the interfaces.
    pub fn name(&self, index: usize) -> String {
        match self.iface_id.as_str() {
            "" => format!("eth{index}"),
            name => name.into(),
        }
    }

    /// Whether it leads nowhere. A new machine needs no such interface; one that was saved with it keeps it, with its link down.
    pub fn is_none(&self) -> bool {
        self.host_dev_name.is_none() && self.user.is_none()
    }
}

const PUBLISH: &str = "publish";
const MAP_GW: &str = "map-gw";

impl FromStr for Config {
    type Err = options::Error;

    fn from_str(text: &str) -> Result<Self, options::Error> {
        let known = match text.split([',', '=']).next() {
            Some("tap") => &["mac", "id"][..],
            Some("none") => &[],
            _ => &[PUBLISH, MAP_GW, "mac", "id"],
        };
        let options = Options::parse(text, known)?;
        let mut config = match options.first.split_once('=') {
            None if options.first == "user" => Config::user(),
            None if options.first == "none" => Config::default(),
            Some(("tap", name)) if !name.is_empty() => {
                Config { host_dev_name: Some(name.into()), ..Config::default() }
            }
            _ => return Err(options::bad_value("net", options.first, "user, tap=NAME or none")),
        };
        for (key, value) in options.pairs {
            match (key, &mut config.user) {
                ("mac", _) => {
                    let takes = "the address of one interface, like 02:00:00:00:00:01";
                    let value = options::required(key, value, takes)?;
                    config.guest_mac = Some(value.parse().map_err(|_| options::bad_value(key, value, takes))?);
                }
                ("id", _) => config.iface_id = options::required(key, value, "a name")?.into(),
                (PUBLISH, Some(user)) => {
                    let takes = "[ADDRESS:]HOST_PORT:GUEST_PORT[/udp]";
                    let value = options::required(key, value, takes)?;
                    user.publish.push(value.parse().map_err(|_| options::bad_value(key, value, takes))?);
                }
                (MAP_GW, Some(user)) => user.map_gw = options::switch(key, value)?,
                _ => {}
            }
        }
        Ok(config)
    }
}

impl virtio::Config for Config {
    fn open(&self, context: &Context) -> Result<Box<dyn VirtioDevice>, Error> {
        let name = self.name(context.index);
        let fail = |source: Box<dyn std::error::Error + Send + Sync>| Error {
            device: match &self.host_dev_name {
                Some(tap) => format!("network interface {name} (tap {tap})"),
                None => format!("network interface {name}"),
            },
            source,
        };
        let mac = match self.guest_mac {
            Some(mac) => mac,
            None => Mac::random().map_err(|error| fail(error.into()))?,
        };
        let link: Box<dyn Link> = match (&self.host_dev_name, &self.user) {
            (Some(tap), None) => Box::new(Tap::open(tap).map_err(|error| fail(error.into()))?),
            (None, Some(user)) => Box::new(User::open(user).map_err(|error| fail(error.into()))?),
            (None, None) => Box::new(Unplugged::new().map_err(|error| fail(error.into()))?),
            _ => return Err(fail("It is on a tap (host_dev_name) or on the user's network (user), not on both".into())),
        };
        let mut net = Net::new(name, mac, link);
        (net.wanted, net.portable) = (self.guest_mac, context.portable);
        Ok(Box::new(net))
    }
}
