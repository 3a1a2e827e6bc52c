//! What `cargo xtask bench list`, `quality` and `overhead` measure: the way from
//! accesses to a list, what the list is worth, and what it costs to be observed.

pub mod accesses;
pub mod chunks;
pub mod load;
pub mod policy;
pub mod simulation;
pub mod trace;
pub mod watcher;
