//! Live migration: a process tree, and its hot page cache ahead of it.
//!
//! [`source`] leads and [`destination`] follows. `docs/protocol.md` has who
//! says what when, `docs/handover.md` why the tree runs exactly once.

mod able;
mod arrival;
mod commit;
pub mod destination;
pub mod files;
mod freeze;
pub mod images;
pub mod order;
pub mod outside;
pub mod report;
pub mod rounds;
pub mod source;
pub mod tree;
mod warmup;

pub use order::{Able, Order, Subject};
