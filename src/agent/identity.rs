//! Who a guest is: what a clone must not share with the machine that it comes from.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::{Error, channel};

/// What a guest becomes; what is not given stays as it is.
#[derive(Clone, Debug, Default)]
pub struct Identity {
    /// Name of the machine.
    pub hostname: Option<String>,
    /// 128 bits for `/etc/machine-id` (machine-id(5)).
    pub machine_id: Option<[u8; 16]>,
    /// The time now, for a clock that is wrong by more than the tolerance. An agent that knows no tolerance sets it always.
    pub time: Option<(SystemTime, Duration)>,
    /// Random bytes for the kernel's generator, 512 at most.
    pub entropy: Vec<u8>,
    /// Interfaces that have other addresses than before.
    pub interfaces: Vec<Interface>,
}

/// A network interface that gets another address.
#[derive(Clone, Debug)]
pub struct Interface {
    /// The hardware address by which the guest knows it.
    pub was: String,
    /// The one that it gets.
    pub mac: String,
}

/// What was done and what was not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Names of what was done.
    pub done: Vec<String>,
    /// Names of what was not, with the reason.
    pub failed: Vec<(String, String)>,
}

impl Identity {
    pub(super) fn request(&self) -> Value {
        let mut request = json!({ "op": "identity" });
        if let Some(hostname) = &self.hostname {
            request["hostname"] = hostname.as_str().into();
        }
        if let Some(id) = &self.machine_id {
            request["machine_id"] = hexadecimal(id).into();
        }
        if let Some((time, tolerance)) = self.time
            && let Ok(time) = time.duration_since(SystemTime::UNIX_EPOCH)
        {
            request["time_ns"] = (time.as_nanos() as u64).into();
            request["tolerance_ns"] = (tolerance.as_nanos() as u64).into();
        }
        if !self.entropy.is_empty() {
            request["entropy"] = hexadecimal(&self.entropy).into();
        }
        let interface = |interface: &Interface| json!({ "was": interface.was, "mac": interface.mac });
        if !self.interfaces.is_empty() {
            request["interfaces"] = self.interfaces.iter().map(interface).collect();
        }
        request
    }
}

impl Outcome {
    pub(super) fn read(answer: &Value) -> Result<Self, Error> {
        let done = channel::texts(&answer["done"]).ok_or(Error::Garbled("it does not say what is done"))?;
        Ok(Outcome { done, failed: channel::reasons(&answer["failed"]) })
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
