//! The modules of a kernel: where they are, what each needs, and their bytes (module.c of Linux: section .modinfo; ELF-64).
//!
//! A module itself says what it needs, so nothing depends on `modules.dep`, which packages do not carry.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::super::{Error, compression};

/// The largest module, decompressed.
const LARGEST: u64 = 64 << 20;
/// The most files that are looked at, and how deep they may lie.
const MOST_FILES: usize = 100_000;
const DEEPEST: usize = 16;

/// A directory of modules, as `/lib/modules/VERSION`.
#[derive(Debug)]
pub struct Modules {
    version: String,
    files: BTreeMap<String, PathBuf>,
    built_in: BTreeSet<String>,
}

/// A module.
#[derive(Debug)]
pub struct Module {
    /// Its name, with underscores.
    pub name: String,
    /// Its contents, not compressed.
    pub bytes: Vec<u8>,
}

impl Modules {
    /// Looks through a directory with modules of the kernel `version`.
    ///
    /// # Errors
    /// When it cannot be read, or has no modules.
    pub fn open(directory: &Path, version: &str) -> Result<Self, Error> {
        let mut modules =
            Modules { version: version.into(), files: BTreeMap::new(), built_in: BTreeSet::new() };
        modules.look_through(directory, 0)?;
        let list = directory.join("modules.builtin");
        match fs::read_to_string(&list) {
            Ok(list) => modules.built_in.extend(list.lines().filter_map(name)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(Error::io("read", &list)(source)),
        }
        if modules.files.is_empty() && modules.built_in.is_empty() {
            return Err(Error::invalid(directory.display().to_string(), "it has no kernel modules"));
        }
        Ok(modules)
    }

    fn look_through(&mut self, directory: &Path, depth: usize) -> Result<(), Error> {
        let reading = || Error::io("read", directory);
        for entry in fs::read_dir(directory).map_err(reading())? {
            let entry = entry.map_err(reading())?;
            let (path, kind) = (entry.path(), entry.file_type().map_err(reading())?);
            if kind.is_dir() && depth < DEEPEST {
                self.look_through(&path, depth + 1)?;
            } else if kind.is_file()
                && let Some(name) = entry.file_name().to_str().and_then(name)
            {
                if self.files.len() == MOST_FILES {
                    return Err(Error::invalid(directory.display().to_string(), "it has too many modules"));
                }
                self.files.insert(name, path);
            }
        }
        Ok(())
    }

    /// Whether the kernel has the driver, as a module or by itself.
    pub fn has(&self, name: &str) -> bool {
        self.files.contains_key(name) || self.built_in.contains(name)
    }

    /// These modules with all that they need, in an order in which they can be loaded. Those that are not there are left out.
    ///
    /// # Errors
    /// When a module is damaged, of another kernel, or needs one that is not there.
    pub fn with_dependencies(&self, names: &[&str]) -> Result<Vec<Module>, Error> {
        let (mut seen, mut modules) = (BTreeSet::new(), Vec::new());
        for name in names.iter().filter(|name| self.files.contains_key(**name)) {
            self.add(name, &mut seen, &mut modules)?;
        }
        Ok(modules)
    }

    /// A module enters `seen` before those that it needs, so that a circle ends.
    fn add(&self, name: &str, seen: &mut BTreeSet<String>, to: &mut Vec<Module>) -> Result<(), Error> {
        if self.built_in.contains(name) || !seen.insert(name.into()) {
            return Ok(());
        }
        let what = || format!("Module {name}");
        let path =
            self.files.get(name).ok_or_else(|| Error::invalid(what(), "it is needed, and not there"))?;
        let bytes = read(path)?;
        let about =
            modinfo(&bytes).ok_or_else(|| Error::invalid(path.display().to_string(), "it is no module"))?;
        let of = |key: &str| about.iter().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        let version = of("vermagic").and_then(|magic| magic.split(' ').next()).unwrap_or_default();
        if version != self.version {
            let reason = format!("it is of kernel {version}, and not of {}", self.version);
            return Err(Error::invalid(path.display().to_string(), reason));
        }
        for needed in of("depends").unwrap_or_default().split(',').filter(|needed| !needed.is_empty()) {
            self.add(&needed.replace('-', "_"), seen, to)?;
        }
        to.push(Module { name: name.into(), bytes });
        Ok(())
    }
}

/// The name of the module in a file, by the file's path: `kernel/fs/ext4/ext4.ko.xz`.
fn name(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    let (name, end) = file.split_once(".ko")?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    let known = ["", ".gz", ".xz", ".zst"].contains(&end) && !name.is_empty() && name.chars().all(plain);
    known.then(|| name.replace('-', "_"))
}

/// The contents of a module, decompressed as its first bytes say.
fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let unpack = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        compression::open(File::open(path)?)?.take(LARGEST + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = unpack().map_err(Error::io("read", path))?;
    if bytes.len() as u64 > LARGEST {
        return Err(Error::TooLarge { what: path.display().to_string(), limit: LARGEST });
    }
    Ok(bytes)
}

/// The lines `KEY=VALUE` that a module says of itself.
fn modinfo(elf: &[u8]) -> Option<Vec<String>> {
    let number = |at: usize, size: usize| -> Option<u64> {
        let bytes = elf.get(at..at.checked_add(size)?)?;
        Some(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    };
    // 64 bits, little end first.
    if !elf.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let (table, size) = (usize::try_from(number(0x28, 8)?).ok()?, number(0x3a, 2)? as usize);
    let (count, names) = (number(0x3c, 2)? as usize, number(0x3e, 2)? as usize);
    let section = |index: usize| -> Option<(usize, &[u8])> {
        let at = table.checked_add(index.checked_mul(size)?)?;
        let name = number(at, 4)? as usize;
        let start = usize::try_from(number(at.checked_add(24)?, 8)?).ok()?;
        let len = usize::try_from(number(at.checked_add(32)?, 8)?).ok()?;
        Some((name, elf.get(start..start.checked_add(len)?)?))
    };
    let (_, names) = section(names)?;
    let is_wanted = |name: usize| names.get(name..).is_some_and(|name| name.starts_with(b".modinfo\0"));
    let (_, lines) = (0..count).filter_map(section).find(|(name, _)| is_wanted(*name))?;
    Some(lines.split(|byte| *byte == 0).map(|line| String::from_utf8_lossy(line).into_owned()).collect())
}
