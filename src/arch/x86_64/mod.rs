//! x86_64: where everything is, how a CPU starts, what firmware would have left in memory.

pub mod layout;
