//! The way to a running machine from outside: HTTP/1.1 over one Unix socket per machine, with Firecracker's paths where it has one.
//!
//! ```text
//!   runtime directory                        the machine's process
//!   └─ NAME/                                 ┌─ server ── one thread: sockets, time limits
//!      ├─ lock      held while it lives      │    └─ connection ── bytes ──► http ──► service ──► Outbox::request
//!      └─ api.sock ◄──────── client ─────────┘                                (the table of routes)
//! ```

pub mod client;
mod connection;
mod http;
pub mod name;
pub mod runtime;
mod server;
mod service;

pub use server::Server;
pub use service::Service;
