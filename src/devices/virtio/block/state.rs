//! Saved state of a block device. Nothing is under way when it is saved, but requests may wait for space on the host.

use serde::{Deserialize, Serialize};

use super::{Block, QUEUE_SIZE};
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
        };
        Saved::pack(KIND, VERSION, &state)
    }

    fn load(&mut self, saved: &Saved) -> Result<(), snapshot::Error> {
        let state: State = saved.unpack(KIND, VERSION)?;
        let geometry = self.disk.geometry();
        let invalid = |reason| Err(snapshot::Error::Invalid { kind: KIND, reason });
        if state.size != geometry.size {
            return invalid(format!(
                "disk {} had {} bytes and has {} now",
                self.name, state.size, geometry.size
            ));
        }
        if geometry.read_only && !state.read_only {
            return invalid(format!("disk {} was writable and is read-only now", self.name));
        }
        if state.stalled.len() > usize::from(QUEUE_SIZE) {
            return invalid("more requests wait than the queue can hold".into());
        }
        self.wanted_writeback = state.wanted_writeback;
        self.restored = state.stalled;
        Ok(())
    }
}
