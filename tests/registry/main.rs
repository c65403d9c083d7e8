//! Images that go to registries and come back: Debian's docker-registry on the loopback, and registries that nobody should trust.

#[path = "../common/mod.rs"]
mod common;

mod broken;
mod containers;
mod counts;
mod home;
mod hostile;
mod logins;
mod program;
mod proxy;
mod refused;
mod script;
mod server;
mod skopeo;
