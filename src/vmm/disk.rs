//! Saving the disk alone of a machine that stands on an image, while it runs.
//!
//! ```text
//!  run ──► stop vCPUs ─ hold the disk still ─ put an empty overlay on top ──► run on
//!                                              └─► thread: make the overlays below durable, link them ─► answer
//!          └──────────────── pause ───────────────┘
//! ```
//!
//! When a command has made a version of the image of what was saved, the machine can stand on that instead: its layers come in
//! the place of image and overlays below the one that is written, and read the same.

use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use serde_json::json;

use super::freeze::{self, Held, Told};
use super::request::{self, Response, RunState};
use super::{Vmm, chain};
use crate::devices::virtio::Function;
use crate::disk::{self, Contents};
use crate::sys::lock;

impl Vmm {
    /// Freezes the disk; the answer is sent when its overlays are linked into `target`. The guest's file systems go on before that.
    pub(super) fn save_disk(&mut self, target: PathBuf, held: Option<Held>, answer: Sender<Response>) {
        let refuse = |reason: String| Err(request::Error::Save(reason));
        let start = Instant::now();
        let contents = self.freeze_image_disk(&held);
        let pause = start.elapsed();
        drop(held);
        let (told, contents) = match contents {
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
        self.writers.start("save-disk", answer, move || {
            link(contents, &target, pause).map(|mut linked| {
                freeze::tell(&mut linked, told);
                linked
            })
        });
    }

    /// Freezes it, and says which of the guest's file systems held still.
    fn freeze_image_disk(&mut self, held: &Option<Held>) -> Result<Option<(Told, Contents)>, String> {
        let frozen = self.with_image_disk(|function| {
            let told = freeze::told(held);
            function.freeze_contents().map(|frozen| frozen.map(|(_, contents)| (told, contents)))
        });
        Ok(frozen.transpose().map_err(|error| chain(&error))?.flatten())
    }

    /// Puts the image's disk on other layers; says whether it did.
    pub(super) fn stand_on(&mut self, files: Vec<PathBuf>, above: usize) -> Response {
        let refuse = |reason: String| request::Error::Save(reason);
        let Some((map, layers)) = files.split_first() else {
            return Err(refuse("there are no layers".into()));
        };
        let config = disk::Config { base: layers.to_vec(), ..disk::Config::new(map) };
        let base = disk::image_base(&config).map_err(|error| refuse(chain(&error)))?;
        let done = self.with_image_disk(|function| function.stand_on(base, above)).unwrap_or(false);
        let drive = self.config.devices.block.iter_mut().find(|drive| !drive.base.is_empty());
        if let (true, Some(drive)) = (done, drive) {
            (drive.path_on_host, drive.base) = (map.clone(), layers.to_vec());
            (drive.layers, drive.digests, drive.opened) = Default::default();
        }
        Ok(json!({ "done": done }))
    }

    /// Does something to the device of the disk that stands on an image, while all stands still.
    fn with_image_disk<T>(&mut self, act: impl FnOnce(&mut Function) -> T) -> Option<T> {
        let mut drives = self.config.devices.block.iter().enumerate();
        let (index, drive) = drives.find(|(_, drive)| !drive.base.is_empty())?;
        let name = drive.name(index);
        let functions = &self.machine.functions;
        let function = functions.iter().find(|function| lock(function).drive() == Some(&name))?;
        self.machine.pause();
        let done = {
            let mut function = lock(function);
            function.freeze();
            let done = act(&mut function);
            function.thaw();
            done
        };
        if self.state == RunState::Running {
            self.machine.resume();
        }
        Some(done)
    }
}

fn link(contents: Contents, target: &Path, pause: Duration) -> Response {
    let (start, next) = (Instant::now(), contents.next());
    let layers = contents.link_above(target).map_err(|error| request::Error::Save(chain(&error)))?;
    Ok(json!({
        "layers": layers,
        "next_overlay": next,
        "pause_us": pause.as_micros() as u64,
        "write_us": start.elapsed().as_micros() as u64,
    }))
}
