//! Hosts that are namespaces of the running kernel, and a network between them
//! that does as a plan says. A migration between them takes a second, so
//! hundreds of them can fail in hundreds of ways.
//!
//! `tests/handover.rs` uses them; they need root and a Debian mirror.

mod case;
mod draw;
mod fault;
mod host;
mod mover;
mod oracle;
mod relay;
mod site;
mod tree;

pub use case::{Case, Moment, Outcome, Started};
pub use fault::{Fault, Side, Who};
pub use host::{Handle, Host, Seen, Storage};
pub use mover::{Moved, Mover};
pub use oracle::{Frozen, at_work, nothing_left, rest, scene, settle};
pub use relay::{Action, Direction, Kind, Relay, Rule};
pub use site::{Pair, Site};
pub use tree::{Locks, Tree};
