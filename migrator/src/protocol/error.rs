//! What the other side did wrong.

use std::io;

use super::{Hello, Role, VERSION};

/// What the other side did wrong: the predicate of a sentence that begins
/// with its name.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// It has not said hello in time; carries the seconds.
    #[error("did not say hello within {0} s: is a migrator there?")]
    NoHello(u64),
    /// Its first bytes, made printable, are not ours.
    #[error(
        "sent something that is not migrator's protocol: \"{0}\" (if a login script prints this, \
         let it do so only on a terminal)"
    )]
    NotMigrator(String),
    /// It speaks another version of the protocol.
    #[error(
        "speaks version {0} of the protocol and this migrator speaks version {VERSION}: \
         use the same migrator on both hosts"
    )]
    Version(u16),
    /// Both sides want to be the same.
    #[error("is a {0} as well: one side has to be `migrator move`, the other `migrator receive`")]
    Role(Role),
    /// Page indexes of one host mean nothing on the other.
    #[error(
        "has pages of {theirs} bytes and this host of {ours}: \
         a hot page cache moves only between hosts with the same page size"
    )]
    PageSize {
        /// Bytes a page over there.
        theirs: u64,
        /// Bytes a page here.
        ours: u64,
    },
    /// It can't do what this side needs.
    #[error("({}) can't do what is asked for: use the same migrator on both hosts", .0.migrator)]
    Unable(Hello),
    /// It went away.
    #[error("closed the connection")]
    Closed,
    /// Not a whole message for so many seconds.
    #[error("has been silent for {0} s, so it is taken for dead")]
    Silent(u64),
    /// More bytes than such a message may have.
    #[error("sent a message of kind {kind} with {length} bytes; {limit} is the limit")]
    TooLarge {
        /// What kind of message it is.
        kind: u8,
        /// How many bytes it is said to have.
        length: u32,
        /// How many it may have.
        limit: u32,
    },
    /// A kind of message that nobody, or only the other role, may send.
    #[error("sent a message of kind {0}, which it may not send")]
    Kind(u8),
    /// Bytes that make no sense.
    #[error("sent {0}")]
    Malformed(&'static str),
    /// It told why it ends; made printable.
    #[error("says: {0}")]
    Says(String),
    /// The connection failed.
    #[error("can't be reached any more: {0}")]
    Io(#[source] io::Error),
}

impl From<io::Error> for PeerError {
    /// An end in the middle is how a peer that goes away looks, as are the
    /// errors of a connection that it has torn down.
    fn from(error: io::Error) -> Self {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
        match error.kind() {
            UnexpectedEof | BrokenPipe | ConnectionReset | ConnectionAborted => Self::Closed,
            _ => Self::Io(error),
        }
    }
}

/// The text that bytes from the other side are, so that it can't steer the
/// terminal: control characters are escaped.
pub fn printable(bytes: &[u8]) -> String {
    let mut text = String::new();
    for char in String::from_utf8_lossy(bytes).chars() {
        match char {
            // Direction marks turn around what follows them.
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => text.extend(char.escape_unicode()),
            _ if char.is_control() => text.extend(char.escape_default()),
            _ => text.push(char),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_does_not_steer_a_terminal() {
        assert_eq!(printable("häuser /a b".as_bytes()), "häuser /a b");
        assert_eq!(printable(b"\x1b[2Jx\r\n"), "\\u{1b}[2Jx\\r\\n");
        assert_eq!(
            printable("\u{9b}2J\u{202e}".as_bytes()),
            "\\u{9b}2J\\u{202e}"
        );
        assert_eq!(printable(b"\xff\"\\"), "\u{fffd}\"\\");
    }
}
