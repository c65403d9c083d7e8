//! Virtio devices (virtio 1.2): the trait they implement, and the list of them.
//!
//! ```text
//!   register file (mmio.rs)          what a transport looks like; the only part that names it
//!        │
//!   Function (function.rs)           status, features, queues, interrupt: what all devices share
//!        │ lends queues for one call
//!   dyn VirtioDevice (block.rs …)    the device's own personality
//! ```
//!
//! To add a device, write its file (`Config`, device, saved state, tests) and add its line to
//! `devices!` below: its flag on the command line, its key in the configuration file, its
//! place in the machine and its saved state follow.

mod function;
pub mod mmio;
#[cfg(test)]
pub(crate) mod mock;
mod queues;
mod worker;

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::os::fd::RawFd;
use std::path::PathBuf;

use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::disk;
use crate::notice::Notifier;
use crate::snapshot::Persist;

pub use function::Function;
use function::is_driven;
pub use queues::{Chain, Lent, Violation};
pub use worker::Worker;

/// One virtio device: only what makes it this device and no other.
///
/// All calls come under the lock of its [`Function`], on one thread at a time, and
/// never while the guest's vCPUs wait for a register that an interrupt needs.
pub trait VirtioDevice: Persist + Send {
    /// Device ID (virtio 1.2, section 5).
    fn id(&self) -> u32;
    /// How messages call the device, for example `disk vda`.
    fn label(&self) -> String {
        format!("virtio device {}", self.id())
    }
    /// The specification's name of a feature that not every host offers.
    fn feature(&self, _bit: u32) -> Option<&'static str> {
        None
    }
    /// The state that was loaded is not what the driver has read: its configuration space is another one now.
    fn differs(&self) -> bool {
        false
    }
    /// Largest size of each queue, a power of two up to 32768.
    fn queue_sizes(&self) -> &[u16];
    /// Feature bits of this device; those of the transport and the queues are added by [`Function`].
    fn features(&self) -> u64 {
        0
    }
    /// The configuration space as it is now.
    fn config(&self) -> &[u8] {
        &[]
    }
    /// The driver writes to the configuration space.
    fn write_config(&mut self, _offset: usize, _data: &[u8]) {}
    /// Host descriptors, the same for the life of the device; an edge on one of them leads to [`ready`](Self::ready).
    fn events(&self) -> Vec<RawFd> {
        Vec::new()
    }
    /// The driver is ready and has chosen `features`.
    fn start(&mut self, _features: u64) -> io::Result<()> {
        Ok(())
    }
    /// The driver has made buffers available in queue `index`.
    fn kick(&mut self, index: usize, lent: &mut Lent) -> Result<(), Violation>;
    /// One of the host descriptors fired.
    fn ready(&mut self, _lent: &mut Lent) -> Result<(), Violation> {
        Ok(())
    }
    /// Whatever stalled the device may be over (see [`Notice::Stalled`](crate::notice::Notice::Stalled)): try again.
    fn retry(&mut self, _lent: &mut Lent) -> Result<(), Violation> {
        Ok(())
    }
    /// Finish all that is under way on the host and give it to the driver: the machine is about to be saved.
    fn drain(&mut self, _lent: &mut Lent) -> Result<(), Violation> {
        Ok(())
    }
    /// The name of the disk that the device is.
    fn drive(&self) -> Option<&str> {
        None
    }
    /// Freezes what the device keeps on the host for the guest, at once, with its name: what changes later goes
    /// elsewhere. Everything was drained. `None` if there is nothing, or it cannot change.
    fn freeze(&mut self) -> Result<Option<(String, disk::Contents)>, Error> {
        Ok(None)
    }
    /// Puts the disk on another base (see [`disk::Disk::stand_on`]); whether that was done. Everything was drained.
    fn stand_on(&mut self, _base: disk::Base, _above: usize) -> bool {
        false
    }
    /// Back to the state before the driver came; what is under way on the host is waited for and forgotten.
    fn reset(&mut self);
}

/// What a device gets from the machine that it is made for.
#[derive(Clone)]
pub struct Context {
    /// Where to tell the monitor.
    pub notifier: Notifier,
    /// Place of the device among its kind: 0 for the first disk, 1 for the second.
    pub index: usize,
    /// The machine's own directory, where its sockets are; a machine without a name has none.
    pub directory: Option<PathBuf>,
    /// Offer the driver nothing that only some hosts have: the machine may be restored anywhere.
    pub portable: bool,
}

/// What was asked for: from it the device is made. It is written in the configuration file with serde and
/// on the command line with `FromStr`.
pub trait Config {
    /// Opens what the device needs on the host and makes the device.
    fn open(&self, context: &Context) -> Result<Box<dyn VirtioDevice>, Error>;
}

/// Why a device could not be made or saved.
#[derive(Debug, thiserror::Error)]
#[error("Cannot use {device}")]
pub struct Error {
    /// The device as the user named it, for example `disk vda (root.ext4)`.
    pub device: String,
    /// What was in the way.
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// Where the work of a device is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On the event loop of the machine: it never blocks.
    Shared,
    /// On a thread of its own: it may block.
    Own,
}

/// A list of devices, or one device without a list around it, as Firecracker has those of which there is only one.
fn one_or_many<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    struct OneOrMany<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for OneOrMany<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            f.write_str("a device or a list of devices")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Vec<T>, A::Error> {
            Vec::deserialize(SeqAccessDeserializer::new(seq))
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Vec<T>, A::Error> {
            T::deserialize(MapAccessDeserializer::new(map)).map(|one| vec![one])
        }
    }

    deserializer.deserialize_any(OneOrMany(PhantomData))
}

macro_rules! devices {
    ($($(#[$help:meta])* $module:ident: $key:literal, $flag:literal, $value:literal, $worker:ident;)*) => {
        $(pub mod $module;)*

        // The virtio devices of a machine, in the order in which the guest finds them. Clap would take a documentation for that of a command.
        #[allow(missing_docs)]
        #[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize, clap::Args)]
        #[serde(default)]
        pub struct Configs {
            $(
                $(#[$help])*
                #[serde(rename = $key, skip_serializing_if = "Vec::is_empty", deserialize_with = "one_or_many")]
                #[arg(long = $flag, value_name = $value)]
                pub $module: Vec<$module::Config>,
            )*
        }

        impl Configs {
            /// Keys in the configuration file.
            pub const KEYS: &[&str] = &[$($key),*];

            /// Takes the devices of `other` instead of those here, of every kind of which it has some.
            pub fn replace(&mut self, other: Configs) {
                $(if !other.$module.is_empty() {
                    self.$module = other.$module;
                })*
            }

            /// Makes every device, with where its work is to be done. The context's `index` is set here.
            pub fn open(&self, mut context: Context) -> Result<Vec<(Box<dyn VirtioDevice>, Place)>, Error> {
                let mut devices = Vec::new();
                $(for (index, config) in self.$module.iter().enumerate() {
                    context.index = index;
                    devices.push((config.open(&context)?, Place::$worker));
                })*
                Ok(devices)
            }
        }
    };
}

// module: key in the configuration file, flag, its value, where its work is done
devices! {
    /// Disk: a file or a block device, repeatable. Options: ro refuses writes; overlay leaves the disk as it is and
    /// forgets what is written when the machine ends, overlay=FILE keeps it in FILE; id=NAME names the disk in
    /// requests; format=raw|qcow2 [default: raw, unless a file named .qcow2 is one]; backing=FILE is what a qcow2
    /// image stands on, if it does not lie beside it; cache=writeback|writethrough|unsafe says when writes are safe;
    /// engine=uring|sync; serial=TEXT is what the guest reads
    block: "drives", "disk", "PATH[,OPTION]...", Own;
    /// Network interface: user (no privileges needed; the guest gets its address by DHCP), tap=NAME, or none.
    /// Options: publish=[ADDR:]HOST:GUEST[/udp] leads a port of the host to the guest (user; repeatable),
    /// map-gw lets the guest reach the host's loopback by its gateway's address (user), mac=ADDRESS, id=NAME
    /// [default: user, if passt is installed]
    net: "network-interfaces", "net", "user|tap=NAME|none[,OPTION]...", Shared;
    /// Source of random numbers for the guest [default: /dev/urandom]
    rng: "entropy", "rng", "FILE", Shared;
    /// Channel between programs on the host and in the guest: a client of the unix socket PATH says `CONNECT <port>`
    /// first; what the guest sends to port P of the host goes to the socket PATH_P
    /// [default: auto, vsock.sock in the machine's runtime directory]
    vsock: "vsock", "vsock", "PATH|auto|none[,cid=N]", Shared;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_device_needs_no_list() {
        let read = |text: &str| serde_json::from_str::<Configs>(text);
        let one = read(r#"{ "vsock": { "guest_cid": 3, "uds_path": "v" }, "entropy": {} }"#).unwrap();
        let list = read(r#"{ "vsock": [{ "uds_path": "v" }], "entropy": [{}], "drives": [] }"#).unwrap();
        assert_eq!(one, list);
        assert_eq!((one.vsock.len(), one.rng.len(), one.block.len()), (1, 1, 0));
        let again = read(&serde_json::to_string(&one).unwrap()).unwrap();
        assert_eq!(again, one);
        let error = read("{ \"entropy\": {},\n \"vsock\": { \"uds_pth\": \"v\" } }").unwrap_err().to_string();
        assert!(error.contains("uds_pth"), "{error}");
        let error = read(r#"{ "vsock": 1 }"#).unwrap_err().to_string();
        assert!(error.contains("a device or a list of devices"), "{error}");
    }
}
