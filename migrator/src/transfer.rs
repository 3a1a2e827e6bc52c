//! Carries a page index list from a source to a destination, and the report
//! back: what [`protocol`](crate::protocol) says, done.
//!
//! The connection is tokio's, because reading, writing, time-outs, signals
//! and a child process are to be waited for at once. Coding lists and reading
//! files block, and happen on threads beside it.

mod connect;
mod receive;
mod send;

use std::time::Duration;

pub use connect::{Connection, open};
pub use receive::{Aborted, receive};
pub use send::Link;

/// How long is waited for the last words, or the end, of a side that is given
/// up anyway.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// How many messages wait to be sent, and how many pieces of a list to be
/// decoded: enough that neither side of the queue has to wait for the other's
/// every step, and little memory.
const QUEUE: usize = 4;
