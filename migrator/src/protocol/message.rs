//! What the sides say after their hellos: messages of a kind and a length.

use bytes::Bytes;

use super::{PeerError, Role, printable};

/// Kind and length.
pub const HEAD_BYTES: usize = 5;

/// How many bytes of a list a message may carry.
pub const MAX_LIST: u32 = 1 << 16;

/// How many bytes a report may have. It names 100 files at most, whose paths
/// and reasons stay well below this.
pub const MAX_REPORT: u32 = 8 << 20;

/// How many bytes a text may have.
pub const MAX_TEXT: u32 = 4096;

/// How many bytes of images a message may carry.
pub const MAX_IMAGES: u32 = 1 << 16;

/// How many bytes an order may have: it names each file that the tree has
/// open.
pub const MAX_ORDER: u32 = 8 << 20;

/// How many bytes a question may have: a session's name and a host's identity.
pub const MAX_QUESTION: u32 = 256;

/// How many bytes the ids may have of processes that stay stopped: 16,384 ids.
pub const MAX_STOPPED: u32 = 1 << 16;

/// How many bytes a message of an unknown optional kind may have.
pub const MAX_UNKNOWN: u32 = 1 << 16;

/// Kinds of messages. Whoever does not know a kind from [`kind::OPTIONAL`] on
/// passes over the message.
mod kind {
    pub(super) const PING: u8 = 1;
    pub(super) const LIST: u8 = 2;
    pub(super) const PROGRESS: u8 = 3;
    pub(super) const REPORT: u8 = 4;
    pub(super) const FAILED: u8 = 5;
    pub(super) const ORDER: u8 = 6;
    pub(super) const ACCEPTED: u8 = 7;
    pub(super) const IMAGES: u8 = 8;
    pub(super) const RESUME: u8 = 9;
    pub(super) const CONFIRMED: u8 = 10;
    pub(super) const ASK: u8 = 11;
    pub(super) const WARM: u8 = 12;
    pub(super) const RESTORED: u8 = 13;
    pub(super) const RUNNING: u8 = 14;
    pub(super) const NOT_RUNNING: u8 = 15;
    pub(super) const NOT_KNOWN: u8 = 16;
    pub(super) const OPTIONAL: u8 = 0x80;
}

/// Something that one side says to the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// From the source: it is still there.
    Ping,
    /// From the source: the next bytes of the page index list. Where one
    /// message ends and the next begins means nothing.
    List(Bytes),
    /// From the destination: how far it is. It is its sign of life too.
    Progress {
        /// Bytes that are prefetched.
        done: u64,
        /// Bytes that are to be, as far as is known.
        planned: u64,
    },
    /// From the destination, and its last: the report, in JSON.
    Report(Bytes),
    /// From either, and its last: it ends, and why; printable.
    Failed(String),
    /// From the source, and its first: a process tree shall be taken over. An
    /// [`Order`](crate::live::Order) as JSON.
    Order(Bytes),
    /// From the destination: its preflight check has passed. An
    /// [`Accepted`](crate::live::Accepted) as JSON.
    Accepted(Bytes),
    /// From the source: a piece of one of the tree's images, see
    /// [`images`](crate::live::images); none when they are complete.
    Images(Bytes),
    /// From the source: the restored tree may run, but for the processes with
    /// these ids, which a signal had stopped. The source has committed.
    Resume(Vec<u32>),
    /// From the source: its own copy is dealt with, and no question will
    /// follow.
    Confirmed,
    /// From a source that has lost its connection, and its first: does the
    /// tree run there? A [`Question`](crate::handover::question::Question).
    Ask(String),
    /// From the destination: so many lists are prefetched.
    Warm(u32),
    /// From the destination: the tree is restored, and stopped.
    Restored,
    /// From the destination: the tree runs.
    Running,
    /// From the destination: it does not run, and never will.
    NotRunning,
    /// From the destination, to a question: this host can't know.
    NotKnown,
}

impl Message {
    /// The head and the rest of the bytes to send.
    pub fn encode(&self) -> ([u8; HEAD_BYTES], Bytes) {
        let (kind, payload) = match self {
            Self::Ping => (kind::PING, Bytes::new()),
            Self::List(bytes) => (kind::LIST, bytes.clone()),
            Self::Progress { done, planned } => {
                let bytes = [done.to_le_bytes(), planned.to_le_bytes()].concat();
                (kind::PROGRESS, bytes.into())
            }
            Self::Report(json) => (kind::REPORT, json.clone()),
            Self::Failed(text) => {
                let end = text.len().min(MAX_TEXT as usize);
                (
                    kind::FAILED,
                    Bytes::copy_from_slice(&text.as_bytes()[..end]),
                )
            }
            Self::Order(json) => (kind::ORDER, json.clone()),
            Self::Accepted(json) => (kind::ACCEPTED, json.clone()),
            Self::Images(bytes) => (kind::IMAGES, bytes.clone()),
            Self::Resume(stopped) => {
                let end = stopped.len().min(MAX_STOPPED as usize / 4);
                let bytes = stopped[..end].iter().flat_map(|id| id.to_le_bytes());
                (kind::RESUME, bytes.collect())
            }
            Self::Confirmed => (kind::CONFIRMED, Bytes::new()),
            Self::Ask(session) => (kind::ASK, Bytes::copy_from_slice(session.as_bytes())),
            Self::Warm(lists) => (kind::WARM, Bytes::copy_from_slice(&lists.to_le_bytes())),
            Self::Restored => (kind::RESTORED, Bytes::new()),
            Self::Running => (kind::RUNNING, Bytes::new()),
            Self::NotRunning => (kind::NOT_RUNNING, Bytes::new()),
            Self::NotKnown => (kind::NOT_KNOWN, Bytes::new()),
        };
        let [a, b, c, d] = (payload.len() as u32).to_le_bytes();
        ([kind, a, b, c, d], payload)
    }

    /// Reads the bytes that follow a head; `None` for a message that is to be
    /// passed over.
    ///
    /// # Errors
    /// [`PeerError::Malformed`].
    pub fn decode(kind: u8, payload: Bytes) -> Result<Option<Self>, PeerError> {
        Ok(Some(match kind {
            kind::PING => Self::Ping,
            kind::LIST => Self::List(payload),
            kind::PROGRESS => {
                let (done, planned) = payload
                    .split_first_chunk()
                    .and_then(|(done, rest)| Some((*done, rest.try_into().ok()?)))
                    .ok_or(PeerError::Malformed("a progress that is not two numbers"))?;
                Self::Progress {
                    done: u64::from_le_bytes(done),
                    planned: u64::from_le_bytes(planned),
                }
            }
            kind::REPORT => Self::Report(payload),
            kind::FAILED => Self::Failed(printable(&payload)),
            kind::ORDER => Self::Order(payload),
            kind::ACCEPTED => Self::Accepted(payload),
            kind::IMAGES => Self::Images(payload),
            kind::RESUME => {
                let (ids, rest) = payload.as_chunks();
                if !rest.is_empty() {
                    return Err(PeerError::Malformed("process ids that are no numbers"));
                }
                Self::Resume(ids.iter().map(|id| u32::from_le_bytes(*id)).collect())
            }
            kind::CONFIRMED => Self::Confirmed,
            kind::ASK => Self::Ask(printable(&payload)),
            kind::WARM => {
                let lists = payload[..]
                    .try_into()
                    .map_err(|_| PeerError::Malformed("a count that is no number"))?;
                Self::Warm(u32::from_le_bytes(lists))
            }
            kind::RESTORED => Self::Restored,
            kind::RUNNING => Self::Running,
            kind::NOT_RUNNING => Self::NotRunning,
            kind::NOT_KNOWN => Self::NotKnown,
            _ => return Ok(None),
        }))
    }
}

/// Reads a head: the kind, and how many bytes follow, which are at most as
/// many as such a message may have.
///
/// # Errors
/// [`PeerError::Kind`] for a message that `from` may not send, or nobody;
/// [`PeerError::TooLarge`].
pub fn decode_head(head: [u8; HEAD_BYTES], from: Role) -> Result<(u8, u32), PeerError> {
    let [kind, length @ ..] = head;
    let length = u32::from_le_bytes(length);
    let limit = match (kind, from) {
        (kind::PING, Role::Source) => 0,
        (kind::LIST, Role::Source) => MAX_LIST,
        (kind::PROGRESS, Role::Destination) => 16,
        (kind::REPORT, Role::Destination) => MAX_REPORT,
        (kind::FAILED, _) => MAX_TEXT,
        (kind::ORDER, Role::Source) => MAX_ORDER,
        (kind::IMAGES, Role::Source) => MAX_IMAGES,
        (kind::RESUME, Role::Source) => MAX_STOPPED,
        (kind::CONFIRMED, Role::Source) => 0,
        (kind::ASK, Role::Source) => MAX_QUESTION,
        (kind::ACCEPTED, Role::Destination) => MAX_TEXT,
        (kind::WARM, Role::Destination) => 4,
        (
            kind::RESTORED | kind::RUNNING | kind::NOT_RUNNING | kind::NOT_KNOWN,
            Role::Destination,
        ) => 0,
        (kind::OPTIONAL.., _) => MAX_UNKNOWN,
        _ => return Err(PeerError::Kind(kind)),
    };
    if length > limit {
        return Err(PeerError::TooLarge {
            kind,
            length,
            limit,
        });
    }
    Ok((kind, length))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ROLES: [Role; 2] = [Role::Source, Role::Destination];

    fn any_message() -> impl Strategy<Value = Message> {
        let bytes = || proptest::collection::vec(any::<u8>(), 0..300).prop_map(Bytes::from);
        prop_oneof![
            Just(Message::Ping),
            bytes().prop_map(Message::List),
            any::<(u64, u64)>().prop_map(|(done, planned)| Message::Progress { done, planned }),
            bytes().prop_map(Message::Report),
            "[a-zäß ]{0,300}".prop_map(Message::Failed),
            bytes().prop_map(Message::Order),
            bytes().prop_map(Message::Accepted),
            bytes().prop_map(Message::Images),
            "[0-9a-f ]{0,200}".prop_map(Message::Ask),
            any::<u32>().prop_map(Message::Warm),
            proptest::collection::vec(any::<u32>(), 0..100).prop_map(Message::Resume),
            Just(Message::Confirmed),
            Just(Message::Restored),
            Just(Message::Running),
            Just(Message::NotRunning),
            Just(Message::NotKnown),
        ]
    }

    proptest! {
        #[test]
        fn a_message_comes_back(message in any_message()) {
            let (head, payload) = message.encode();
            let found: Vec<_> = ROLES.iter().filter_map(|&from| decode_head(head, from).ok()).collect();
            let both = matches!(message, Message::Failed(_));
            prop_assert_eq!(found.len(), if both { 2 } else { 1 });
            prop_assert_eq!(found[0].1 as usize, payload.len());
            let back = Message::decode(found[0].0, payload).expect("a message");
            prop_assert_eq!(back, Some(message));
        }

        #[test]
        fn garbage_is_an_error_at_most(head: [u8; HEAD_BYTES], payload: Vec<u8>) {
            for from in ROLES {
                if let Ok((kind, length)) = decode_head(head, from) {
                    prop_assert!(length <= MAX_REPORT);
                    _ = Message::decode(kind, payload.clone().into());
                }
            }
        }
    }

    #[test]
    fn messages_have_these_bytes() {
        let bytes = |message: Message| {
            let (head, payload) = message.encode();
            [&head[..], &payload].concat()
        };
        assert_eq!(bytes(Message::Ping), b"\x01\0\0\0\0");
        let list = Message::List(Bytes::from_static(b"abc"));
        assert_eq!(bytes(list), b"\x02\x03\0\0\0abc");
        let progress = Message::Progress {
            done: 0x102,
            planned: 0x304,
        };
        let expected = b"\x03\x10\0\0\0\x02\x01\0\0\0\0\0\0\x04\x03\0\0\0\0\0\0";
        assert_eq!(bytes(progress), expected);
        let report = Message::Report(Bytes::from_static(b"{}"));
        assert_eq!(bytes(report), b"\x04\x02\0\0\0{}");
        assert_eq!(bytes(Message::Failed("no".into())), b"\x05\x02\0\0\0no");
    }

    #[test]
    fn only_what_a_side_may_say_is_taken() {
        let head = |kind, length: u32| {
            let [a, b, c, d] = length.to_le_bytes();
            [kind, a, b, c, d]
        };
        for (kind, from, limit) in [
            (kind::PING, Role::Source, 0),
            (kind::LIST, Role::Source, MAX_LIST),
            (kind::PROGRESS, Role::Destination, 16),
            (kind::REPORT, Role::Destination, MAX_REPORT),
        ] {
            assert!(decode_head(head(kind, limit), from).is_ok());
            let large = decode_head(head(kind, limit + 1), from);
            assert!(matches!(large, Err(PeerError::TooLarge { .. })), "{kind}");
            let other = decode_head(head(kind, 0), from.other());
            assert!(matches!(other, Err(PeerError::Kind(found)) if found == kind));
        }
        assert!(matches!(
            decode_head(head(0, 0), Role::Source),
            Err(PeerError::Kind(0))
        ));
        assert!(matches!(
            decode_head(head(0x80, u32::MAX), Role::Source),
            Err(PeerError::TooLarge { .. })
        ));
        let later = Message::decode(0x80, Bytes::from_static(b"later"));
        assert_eq!(later.expect("passed over"), None);
    }

    #[test]
    fn a_text_is_cut_to_its_limit_and_made_printable() {
        let (head, payload) = Message::Failed("x".repeat(5000)).encode();
        assert!(decode_head(head, Role::Source).is_ok());
        assert_eq!(payload.len(), 4096);
        let text = Message::decode(kind::FAILED, Bytes::from_static(b"\x1b[2J"));
        let expected = Message::Failed("\\u{1b}[2J".into());
        assert_eq!(text.expect("text"), Some(expected));
    }
}
