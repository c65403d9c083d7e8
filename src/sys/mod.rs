//! Host facilities: what the standard library does not wrap.
