//! What the tests' registry and proxy use of the tests.

#[allow(dead_code)]
#[path = "../../tests/common/host.rs"]
pub mod host;
#[path = "../../tests/common/noise.rs"]
pub mod noise;
