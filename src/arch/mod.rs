//! What depends on the guest's architecture: pure functions from plain inputs to bytes and register values.

pub mod x86_64;
