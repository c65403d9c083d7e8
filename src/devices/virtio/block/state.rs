//! Saved state of a block device. Nothing is under way when it is saved, but requests may wait for space on the host.

use serde::{Deserialize, Serialize};

use super::{Block, QUEUE_SIZE, Source};
use crate::devices::virtio::VirtioDevice;
use crate::snapshot::{self, Persist, Saved};

const KIND: &str = "virtio-block";
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct State {
    /// Size of the disk in bytes.
    size: u64,
    read_only: bool,
    /// What the driver wrote to `writeback`.
    wanted_writeback: Option<bool>,
    /// Chains that wait for space on the host.
    stalled: Vec<u16>,
    /// When a disk that is not part of the snapshot was last changed, in nanoseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    modified: Option<u64>,
}

impl Persist for Block {
    fn save(&self) -> Saved {
        let geometry = self.disk.geometry();
        let waiting = self.pending.iter().map(|pending| pending.head);
        let state = State {
            size: geometry.size,
            read_only: geometry.read_only,
            wanted_writeback: self.wanted_writeback,
            stalled: waiting.chain(self.restored.iter().copied()).collect(),
            modified: self.disk.modified(),
        };
        Saved::pack(KIND, VERSION, &state)
    }

    fn load(&mut self, saved: &Saved) -> Result<(), snapshot::Error> {
        let state: State = saved.unpack(KIND, VERSION)?;
        let geometry = self.disk.geometry();
        let changed = |reason| Err(snapshot::Error::Changed { device: self.label(), reason });
        if state.size != geometry.size {
            return changed(format!("it had {} bytes and has {} now", state.size, geometry.size));
        }
        if geometry.read_only && !state.read_only {
            return changed("it was writable and is read-only now".into());
        }
        let modified = self.disk.modified();
        // Who knows it has seen the disk: a snapshot of somebody else may name any.
        if self.source == Source::User && state.modified != modified {
            let name = &self.name;
            return changed(format!(
                "it has changed since the snapshot was made (`--disk {name}=PATH` takes another one, or this one as it is)"
            ));
        }
        if state.stalled.len() > usize::from(QUEUE_SIZE) {
            let reason = "more requests wait than the queue can hold".into();
            return Err(snapshot::Error::Invalid { kind: KIND, reason });
        }
        self.wanted_writeback = state.wanted_writeback;
        self.restored = state.stalled;
        Ok(())
    }
}
