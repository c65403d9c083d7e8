//! Instances: machines with a name that are made of images and can be started again.
//!
//! ```text
//! instances/NAME/instance.json   the image, and the machine that it became
//!                overlay-N       what the machine has written, the newest with the largest number (disk/overlay)
//!                console.log     what its console said in the background (console/log)
//! scratch/ID/                    overlays on their way into a layer, machines on their way to clones, instances on their way out; locked
//!                                by the command
//! locks/instance-NAME            locked by the command that makes, starts, commits or removes the instance
//! ```
//!
//! A command has an instance's lock before it reads the record. One that starts a machine keeps it until the machine is in
//! the runtime directory: from then on it counts as running.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::gc::entries_if_any;
use super::store::{Hold, MAX_DOCUMENT, Store};
use super::{Descriptor, Digest, Error};
use crate::sys::scratch::Scratch;

const RECORD: &str = "instance.json";

/// What is known of an instance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// What the machine stands on.
    pub image: Descriptor,
    /// The first overlay that is not part of the image.
    pub first: u32,
    /// The kernel of another image that it boots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<Digest>,
    /// When it was made (RFC 3339).
    pub created: String,
    /// The machine, as its monitor takes it.
    pub machine: serde_json::Value,
}

impl Record {
    /// What must stay for it.
    pub(super) fn roots(&self) -> Vec<Digest> {
        std::iter::once(self.image.digest).chain(self.kernel).collect()
    }
}

/// An instance.
#[derive(Clone, Debug, PartialEq)]
pub struct Instance {
    /// Its name.
    pub name: String,
    /// What is known of it.
    pub record: Record,
    path: PathBuf,
}

impl Instance {
    /// Where its overlays are.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// One instance is this command's, as long as this lives here or in a process that was forked from here.
pub struct InstanceLock {
    name: String,
    _file: File,
}

impl Store {
    /// Where instances are: also where overlays without a name belong, on the file system of the store.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn instances_path(&self) -> Result<PathBuf, Error> {
        let path = self.path().join("instances");
        self.files.make_directory(&path).map_err(Error::io("make", &path))?;
        Ok(path)
    }

    fn place(&self, name: &str) -> Result<PathBuf, Error> {
        if name.is_empty() || name.starts_with('.') || name.contains(['/', '\0']) {
            return Err(Error::invalid(format!("`{name}`"), "it is no name of a machine"));
        }
        Ok(self.instances_path()?.join(name))
    }

    /// Waits until no other command has this instance, which need not be there yet.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn lock_instance(&self, name: &str) -> Result<InstanceLock, Error> {
        self.place(name)?;
        Ok(InstanceLock { name: name.into(), _file: self.alone(&format!("instance-{name}"))? })
    }

    /// Makes an instance.
    ///
    /// # Errors
    /// When the name is taken, or the host refuses.
    pub fn create_instance(&self, lock: &InstanceLock, record: Record) -> Result<Instance, Error> {
        let name = &lock.name;
        let path = self.place(name)?;
        if self.instance(name)?.is_some() {
            let reason =
                format!("there is one: `rvmm start {name}` starts it again, `rvmm rm {name}` removes it");
            return Err(Error::Refused { doing: "make", what: format!("machine `{name}`"), reason });
        }
        if path.exists() {
            // What it has is not this machine's.
            self.discard(&path)?;
        }
        self.files.make_directory(&path).map_err(Error::io("make", &path))?;
        let instance = Instance { name: name.into(), record, path };
        self.write_record(&instance)?;
        Ok(instance)
    }

    /// Removes a directory: at once from its place, then with all that is in it. Should this be killed, gc goes on.
    fn discard(&self, path: &Path) -> Result<(), Error> {
        let scratch = self.scratch()?;
        let away = scratch.path().join("instance");
        self.files.rename(path, &away).map_err(Error::io("remove", path))
    }

    fn write_record(&self, instance: &Instance) -> Result<(), Error> {
        let path = instance.path.join(RECORD);
        let bytes = serde_json::to_vec_pretty(&instance.record).unwrap_or_default();
        let _lock = self.lock(Hold::Shared)?;
        self.files
            .replace(&path, &instance.path.join("instance.json.new"), &bytes)
            .map_err(Error::io("write", &path))
    }

    /// Changes what is known of an instance: durable when it returns.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn update_instance(&self, instance: &Instance) -> Result<(), Error> {
        self.write_record(instance)
    }

    /// The instance with this name, if there is one.
    ///
    /// # Errors
    /// When what is known of it is damaged.
    pub fn instance(&self, name: &str) -> Result<Option<Instance>, Error> {
        let path = self.place(name)?;
        let record = path.join(RECORD);
        match fs::metadata(&record) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Ok(found) if found.len() > MAX_DOCUMENT => {
                return Err(Error::TooLarge { what: record.display().to_string(), limit: MAX_DOCUMENT });
            }
            _ => {}
        }
        let bytes = fs::read(&record).map_err(Error::io("read", &record))?;
        let what = record.display().to_string();
        let record = serde_json::from_slice(&bytes).map_err(|source| Error::Form { what, source })?;
        Ok(Some(Instance { name: name.into(), record, path }))
    }

    /// The names of all instances, whatever their records say.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn instance_names(&self) -> Result<Vec<String>, Error> {
        let paths = entries_if_any(self.path().join("instances"))?.into_iter();
        let paths = paths.filter(|path| path.join(RECORD).exists());
        let names = paths.filter_map(|path| Some(path.file_name()?.to_str()?.to_string()));
        Ok(names.filter(|name| !name.starts_with('.')).collect())
    }

    /// All instances.
    ///
    /// # Errors
    /// When what is known of one is damaged.
    pub fn instances(&self) -> Result<Vec<Instance>, Error> {
        let names = self.instance_names()?.into_iter();
        names.filter_map(|name| self.instance(&name).transpose()).collect()
    }

    /// Removes an instance with all that it has written.
    ///
    /// # Errors
    /// When there is none, or the host refuses.
    pub fn remove_instance(&self, lock: &InstanceLock) -> Result<(), Error> {
        self.discard(&self.place(&lock.name)?)
    }

    /// Removes overlays that are part of the instance's image. Where none is left, they are counted from 1 again.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn drop_covered(&self, instance: &mut Instance) -> Result<(), Error> {
        let mut left = false;
        for (number, path) in crate::disk::kept(&instance.path)? {
            match number < instance.record.first {
                true => self.files.remove(&path).map_err(Error::io("remove", &path))?,
                false => left = true,
            }
        }
        if !left && instance.record.first > 1 {
            instance.record.first = 1;
            self.write_record(instance)?;
        }
        Ok(())
    }

    /// A directory for what is under way.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn scratch(&self) -> Result<Scratch, Error> {
        let parent = self.path().join("scratch");
        self.files.make_directory(&parent).map_err(Error::io("make", &parent))?;
        Scratch::new(&parent, "").map_err(Error::io("make a directory in", &parent))
    }
}
