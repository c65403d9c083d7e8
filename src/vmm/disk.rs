//! Saving the disk alone of a machine that stands on an image, while it runs.
//!
//! ```text
//!  run ──► stop vCPUs ─ hold the disk still ─ put an empty overlay on top ──► run on
//!                                              └─► thread: make the overlays below durable, link them ─► answer
//!          └──────────────── pause ───────────────┘
//! ```

use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use serde_json::json;

use super::machine::lock;
use super::request::{self, Response, RunState};
use super::{Vmm, chain};
use crate::agent::{self, Frozen};
use crate::disk::Contents;

impl Vmm {
    /// Freezes the disk; the answer is sent when its overlays are linked into `target`. The guest's file systems, which `frozen`
    /// holds still or says why not, go on before that.
    pub(super) fn save_disk(
        &mut self,
        target: PathBuf,
        frozen: Option<Result<Frozen, agent::Error>>,
        answer: Sender<Response>,
    ) {
        let refuse = |reason: String| Err(request::Error::Save(reason));
        let start = Instant::now();
        let contents = self.freeze_image_disk();
        let pause = start.elapsed();
        let frozen = frozen.map(|frozen| frozen.map(|frozen| frozen.paths.clone()));
        let contents = match contents {
            Ok(Some(contents)) => contents,
            Ok(None) => {
                let _ = answer.send(refuse("it does not stand on an image, or cannot write to it".into()));
                return;
            }
            Err(reason) => {
                let _ = answer.send(refuse(reason));
                return;
            }
        };
        let whoever = answer.clone();
        let work = move || {
            let linked = link(contents, &target, pause).map(|mut linked| {
                match frozen {
                    Some(Ok(paths)) => linked["frozen"] = paths.into(),
                    // Who has no agent wants none.
                    None | Some(Err(agent::Error::NoAgent)) => {}
                    Some(Err(error)) => linked["not_frozen"] = chain(&error).into(),
                }
                linked
            });
            let _ = answer.send(linked);
        };
        if let Err(error) = self.writers.start("save-disk", work) {
            let _ = whoever.send(refuse(format!("no thread can be started: {error}")));
        }
    }

    fn freeze_image_disk(&mut self) -> Result<Option<Contents>, String> {
        let mut drives = self.config.devices.block.iter().enumerate();
        let Some((index, drive)) = drives.find(|(_, drive)| !drive.base.is_empty()) else { return Ok(None) };
        let name = drive.name(index);
        let function = self.machine.functions.iter().find(|function| lock(function).drive() == Some(&name));
        let Some(function) = function else { return Ok(None) };
        self.machine.pause();
        let frozen = {
            let mut function = lock(function);
            function.freeze();
            let frozen = function.freeze_contents();
            function.thaw();
            frozen
        };
        if self.state == RunState::Running {
            self.machine.resume();
        }
        frozen.map(|found| found.map(|(_, contents)| contents)).map_err(|error| chain(&error))
    }
}

fn link(contents: Contents, target: &Path, pause: Duration) -> Response {
    let start = Instant::now();
    let layers = contents.link_above(target).map_err(|error| request::Error::Save(chain(&error)))?;
    Ok(json!({
        "layers": layers,
        "pause_us": pause.as_micros() as u64,
        "write_us": start.elapsed().as_micros() as u64,
    }))
}
