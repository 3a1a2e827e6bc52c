//! Hands a process tree over: it runs on exactly one of two hosts.
//!
//! [`outgoing`] and [`incoming`] are the two machines that decide it, without
//! any I/O; their executors carry out what they say. [`session`] is what a host
//! notes, [`question`] what a source asks when it does not know, [`guard`] the
//! process that takes over when a leader dies.
//!
//! `docs/handover.md` draws the machines and says what each failure leads to.

pub mod decision;
pub mod guard;
pub mod identity;
pub mod incoming;
pub mod journal;
pub mod listing;
#[cfg(test)]
mod model;
pub mod notify;
pub mod outgoing;
pub mod question;
pub mod recovery;
pub mod session;

pub use decision::Decision;
pub use identity::Identity;
pub use journal::Journal;
pub use session::{Mark, Session};
