//! Hands a process tree over: it runs on exactly one of two hosts.
//!
//! While it is decided which, neither copy runs. The source's is frozen inside
//! `criu dump`, which waits for an action script of ours (stage `post-dump`,
//! all images are written) and resumes or kills the tree as that one says. The
//! destination's is restored and stopped inside `criu restore`, which waits in
//! the same way (stage `post-restore`). [`session`] is where a host notes what
//! has been decided, [`gate`] is the script, and [`settle`] finds out what the
//! other side has decided when the connection is lost in between.
//!
//! `docs/handover.md` has the steps, and what each failure leads to.

pub mod decision;
pub mod gate;
pub mod incoming;
#[cfg(test)]
mod model;
pub mod outgoing;
pub mod session;
pub mod settle;

pub use decision::Decision;
pub use session::Session;
