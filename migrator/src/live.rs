//! Live migration: a process tree, and its hot page cache ahead of it.
//!
//! [`source`] leads and [`destination`] follows. `docs/protocol.md` has the
//! messages, `docs/handover.md` why the tree runs exactly once.

mod changes;
mod commit;
mod convergence;
mod delta;
pub mod destination;
pub mod files;
mod freeze;
pub mod images;
pub mod order;
pub mod outside;
mod post_restore;
mod preflight;
pub mod report;
pub mod source;
mod space;
pub mod tree;
mod warmup;

pub use order::{Accepted, Order};
