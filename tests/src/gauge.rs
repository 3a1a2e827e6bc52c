//! What `cargo xtask bench list`, `quality`, `overhead` and `scale` measure: the
//! way from accesses to a list, what the list is worth, what it costs to be observed,
//! and how that grows.

pub mod accesses;
pub mod chunks;
pub mod crowd;
pub mod load;
pub mod policy;
pub mod simulation;
pub mod trace;
pub mod watcher;
