//! What source and destination say to each other over one connection.
//!
//! `docs/protocol.md` describes every byte, and who says what when. Both
//! sides say [`Hello`] at once, and then send [`Message`]s. [`hello`] and
//! [`message`] are pure; [`wire`] puts them on a connection, with time-outs.

pub mod error;
pub mod hello;
pub mod message;
pub mod wire;

use std::time::Duration;

pub use error::{PeerError, printable};
pub use hello::{Hello, Role};
pub use message::Message;

/// The version that this migrator speaks, and the only one.
pub const VERSION: u16 = 1;

/// How long the other side may take for its hello. Both send theirs without
/// waiting for the other's, so that this is the time of one trip.
pub const HELLO_TIME: Duration = Duration::from_secs(10);

/// How long the other side may take from one message to the end of the next,
/// while we listen.
pub const SILENCE: Duration = Duration::from_secs(60);

/// How often the source says that it is still there, when it has nothing else
/// to say.
pub const PING_EVERY: Duration = Duration::from_secs(3);

/// The same while a process tree is under way, which is not to be frozen for
/// long because the other side is dead.
pub const LIVE_SILENCE: Duration = Duration::from_secs(10);

/// How often the source says that it is still there meanwhile.
pub const LIVE_PING_EVERY: Duration = Duration::from_secs(1);

/// How often the destination says how far it is; it is its sign of life too.
pub const PROGRESS_EVERY: Duration = Duration::from_millis(500);
