//! Saved state of a network device. Frames under way are not kept: a network may lose them.

use serde::{Deserialize, Serialize};

use super::Net;
use crate::devices::virtio::VirtioDevice;
use crate::net::Mac;
use crate::snapshot::{self, Persist, Saved};

const KIND: &str = "virtio-net";
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct State {
    mac: Mac,
    /// Largest packet that the driver was told it may send, if it has asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mtu: Option<u16>,
    /// The link was down.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    down: bool,
}

impl Persist for Net {
    fn save(&self) -> Saved {
        let mtu = self.mtu_known.then_some(self.mtu);
        Saved::pack(KIND, VERSION, &State { mac: self.mac, mtu, down: self.down })
    }

    fn load(&mut self, saved: &Saved) -> Result<(), snapshot::Error> {
        let State { mac, mtu, down } = saved.unpack(KIND, VERSION)?;
        let here = self.link.mtu();
        if let Some(mtu) = mtu {
            if mtu > here {
                let reason = format!(
                    "it sends packets of up to {mtu} bytes, and the link takes {here} (give it what it had, or save \
                     a machine that runs with --portable)"
                );
                return Err(snapshot::Error::Changed { device: self.label(), reason });
            }
            self.mtu = mtu;
        }
        self.mac = self.wanted.unwrap_or(mac);
        self.differs = (self.mac, self.down) != (mac, down);
        self.describe();
        Ok(())
    }
}
