//! What a tracker that is left on knows, asked for through a socket and kept over its
//! restarts.
//!
//! `track --all --serve` is a [`server`]. Whoever needs pages that were used before it
//! came asks it through a [`client`]: the [`request`] says for which files, the
//! [`answer`] is a status and a page index list. A [`listing`] makes that list in
//! slices, and so does a [`keeper`] that writes the [`state`] to a file now and then.
//! `docs/tracker-socket.md` describes every byte.

pub mod answer;
pub mod client;
pub mod keeper;
pub mod listing;
pub mod request;
pub mod server;
pub mod state;

use std::path::{Path, PathBuf};

/// Where the tracker of a host listens.
pub const SOCKET: &str = "/run/migrator/tracker.sock";

/// Where it keeps what it knows.
pub const STATE: &str = "/var/lib/migrator/tracker.pil";

/// The variable that names another socket: CRIU gives its action scripts no arguments.
pub const SOCKET_VARIABLE: &str = "MIGRATOR_TRACKER_SOCKET";

/// Returns the socket: as it is named, or where it always is.
pub fn socket(named: Option<&Path>) -> PathBuf {
    let named = named.map(Path::to_owned);
    named
        .or_else(|| std::env::var_os(SOCKET_VARIABLE).map(PathBuf::from))
        .unwrap_or_else(|| SOCKET.into())
}
