//! What `cargo xtask bench list` and `quality` measure: the way from accesses to
//! a list, and what the list is worth.

pub mod accesses;
pub mod chunks;
pub mod policy;
pub mod trace;
