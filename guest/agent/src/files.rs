//! Files between host and guest.

use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

use agent::json::{self, Value};

use crate::protocol::{self, Channel, HEAD, Kind, LONGEST_PART, Refusal};
use crate::sys::{self, Errno, Fd, Result, nr, open};

const REGULAR: u32 = 0o100000;
const DIRECTORY: u32 = 0o040000;

fn path(request: &Value) -> core::result::Result<&str, Refusal> {
    request.get("path").and_then(Value::as_text).ok_or_else(|| Refusal::new("`path` is missing"))
}

/// Sends a file to the host.
pub fn read(channel: &Channel, request: &Value) -> Result {
    let file = path(request).and_then(|path| {
        let refuse = |error| Refusal::by(error, &format!("read {path}"));
        let file = Fd::open(path, open::READ | open::NO_TERMINAL, 0).map_err(refuse)?;
        let stat = file.stat().map_err(refuse)?;
        if stat.kind() == DIRECTORY { Err(refuse(Errno(21))) } else { Ok((file, stat)) }
    });
    let (file, stat) = match file {
        Ok(file) => file,
        Err(refusal) => return channel.answer(Err(refusal)),
    };
    channel.answer(Ok(json::object([
        ("size", Value::Number(stat.size.into())),
        ("mode", Value::Number((stat.mode & 0o7777).into())),
    ])))?;
    let mut frame = vec![0; HEAD + LONGEST_PART];
    let result = loop {
        match sys::read(file.0, &mut frame[HEAD..]) {
            Ok(0) => break Ok(protocol::done()),
            Ok(got) => channel.send_frame(Kind::Data, &mut frame[..HEAD + got])?,
            Err(error) => break Err(Refusal::by(error, "read on")),
        }
    };
    channel.send_frame(Kind::Data, &mut frame[..HEAD])?;
    channel.answer(result)
}

/// Takes a file from the host. It appears whole or not at all, and keeps the owner of the one that it replaces.
pub fn write(channel: &Channel, request: &Value) -> Result {
    let target = path(request).and_then(|path| {
        let mode = request.get("mode").map_or(Some(0o644), Value::as_number).filter(|mode| *mode <= 0o7777);
        let mode: u32 = mode.ok_or_else(|| Refusal::new("`mode` is a number up to 0o7777"))?;
        Target::open(path, mode).map_err(|error| Refusal::by(error, &format!("write {path}")))
    });
    let target = match target {
        Ok(target) => target,
        Err(refusal) => return channel.answer(Err(refusal)),
    };
    channel.answer(Ok(protocol::done()))?;
    let mut payload = Vec::new();
    let mut result = Ok(());
    loop {
        match channel.receive(&mut payload)? {
            Some(Kind::Data) if payload.is_empty() => break,
            // All is taken, also when there is no use for it, so that the host gets to the answer.
            Some(Kind::Data) if result.is_ok() => result = target.file.write_all(&payload),
            Some(Kind::Data) => {}
            _ => return Err(Errno::INVAL),
        }
    }
    let result = result.and_then(|()| target.finish());
    channel.answer(match result {
        Ok(()) => Ok(protocol::done()),
        Err(error) => Err(Refusal::by(error, "write on")),
    })
}

/// A file that is being written: beside the one it replaces, or itself if that is no regular file.
struct Target {
    file: Fd,
    /// Name now, and at the end.
    names: Option<(alloc::string::String, alloc::string::String)>,
}

impl Target {
    fn open(path: &str, mode: u32) -> Result<Self> {
        let (old, place) = match Fd::open(path, open::READ | open::NONBLOCK | open::NO_TERMINAL, 0) {
            // Of a link, it is the file that is replaced.
            Ok(old) => (Some(old.stat()?), old.path().unwrap_or_else(|_| path.into())),
            Err(Errno::NOENT) => (None, path.into()),
            Err(error) => return Err(error),
        };
        if let Some(old) = &old
            && old.kind() != REGULAR
        {
            return Ok(Target { file: Fd::open(path, open::WRITE | open::NO_TERMINAL, 0)?, names: None });
        }
        let pid = sys::plain(nr::GETPID, [0; 3])?;
        let beside = format!("{place}.rvmm-{pid}");
        let file = Fd::open(&beside, open::WRITE | open::CREATE | open::EXCLUSIVE, 0o600)?;
        let target = Target { file, names: Some((beside, place)) };
        if let Some(old) = old {
            sys::plain(nr::FCHOWN, [target.file.0 as usize, old.uid as usize, old.gid as usize])?;
        }
        sys::plain(nr::FCHMOD, [target.file.0 as usize, mode as usize, 0])?;
        Ok(target)
    }

    fn finish(mut self) -> Result {
        if let Some((beside, path)) = &self.names {
            sys::plain(nr::FSYNC, [self.file.0 as usize, 0, 0])?;
            sys::rename(beside, path)?;
            self.names = None;
        }
        Ok(())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Some((beside, _)) = &self.names {
            let _ = sys::on_path(nr::UNLINK, beside);
        }
    }
}
