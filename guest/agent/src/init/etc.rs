//! What belongs to this machine and not to its image: `/etc/hostname`, `/etc/hosts`, `/etc/resolv.conf`.
//!
//! As in a container, they are files in memory over those of the image, so that no image that is made from this machine carries
//! its names and name servers elsewhere. Where the file system is not written to and lacks them, they are not there.

use alloc::format;
use alloc::string::String;

use super::network::Names;
use super::root;
use crate::sys::{self, Fd, Result, nr, open};
use crate::tree;

/// Where the files are made, before they get to their places.
const WORKSHOP: &str = "/dev/shm";

/// Sets the hostname and writes the files.
pub fn write(hostname: &str, names: &Names) {
    // SAFETY: the kernel reads the name.
    let _ = unsafe { sys::call(nr::SETHOSTNAME, [hostname.as_ptr() as usize, hostname.len(), 0, 0, 0, 0]) };
    let mut hosts = String::from("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    let own = names.address.as_deref().unwrap_or("127.0.1.1");
    hosts.push_str(&format!("{own}\t{hostname}\n"));
    let mut resolv = String::new();
    names.domain.iter().for_each(|domain| resolv.push_str(&format!("search {domain}\n")));
    names.servers.iter().for_each(|server| resolv.push_str(&format!("nameserver {server}\n")));

    let _ = tree::make_directory("/etc", 0o755);
    // A file system of its own, which nobody sees when the files are in their places.
    if root::mount("tmpfs", WORKSHOP, "tmpfs", 0, "mode=755,size=64k").is_err() {
        return;
    }
    let _ = place("hostname", &format!("{hostname}\n"));
    let _ = place("hosts", &hosts);
    if !resolv.is_empty() {
        let _ = place("resolv.conf", &resolv);
    }
    let _ = root::unmount(WORKSHOP, true);
}

fn place(name: &str, content: &str) -> Result {
    let (made, wanted) = (format!("{WORKSHOP}/{name}"), format!("/etc/{name}"));
    Fd::open(&made, open::WRITE | open::CREATE, 0o644)?.write_all(content.as_bytes())?;
    if !tree::exists(&wanted) {
        // A link that leads nowhere, such as one to what systemd would make, gives way.
        let _ = sys::on_path(nr::UNLINK, &wanted);
        Fd::open(&wanted, open::WRITE | open::CREATE, 0o644)?;
    }
    root::bind(&made, &wanted)
}
