//! What a tracker says before its list: the header of an answer (pure).

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::request::VERSION;
use crate::tracker::Lost;

/// What an answer begins with.
const MAGIC: [u8; 4] = *b"MTRA";

/// Magic, version, kind, two zeros, and the length of the text.
pub const HEAD_BYTES: usize = 12;

/// How many bytes the text may have.
const MAX_TEXT: usize = 1 << 16;

/// What the text of a status is.
pub const SCHEMA: &str = "migrator.tracker/1";

/// A tracker's status.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// [`SCHEMA`]
    pub schema: String,
    /// Its process id.
    pub pid: i32,
    /// When it began, in seconds since the epoch.
    pub since: u64,
    /// The version of the program.
    pub version: String,
    /// Where its accesses come from.
    pub source: String,
    /// Whether it observes in windows.
    pub windows: bool,
    /// How long it has run, in seconds.
    pub seconds: f64,
    /// How much of that it has observed.
    pub observed_seconds: f64,
    /// How many files it knows pages of.
    pub files: u64,
    /// How many pages.
    pub pages: u64,
    /// What it saw and does not know.
    pub lost: LostPages,
}

/// What a tracker saw and does not know.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostPages {
    /// Uses of chunks that found no room in the access map.
    pub chunks: u64,
    /// Pages of requests that were too long.
    pub pages: u64,
    /// Files that found no room.
    pub files: u64,
    /// Pages that were forgotten for want of memory.
    pub forgotten_pages: u64,
    /// Uses that the kernel did not show.
    pub skipped: u64,
}

impl From<&Lost> for LostPages {
    fn from(lost: &Lost) -> Self {
        Self {
            chunks: lost.counters.chunks_lost,
            pages: lost.counters.pages_lost,
            files: lost.counters.files_lost,
            forgotten_pages: lost.forgotten,
            skipped: lost.skipped,
        }
    }
}

impl Status {
    /// Returns when it began as people write it, in UTC.
    pub fn since(&self) -> String {
        at(self.since)
    }
}

/// Returns a time in seconds since the epoch as people write it, in UTC.
pub fn at(seconds: u64) -> String {
    // Beyond the year 9999 there is no such text.
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.min(253_402_300_799));
    humantime::format_rfc3339_seconds(time).to_string()
}

/// What a tracker says first.
#[derive(Debug, Clone, PartialEq)]
pub enum Header {
    /// Its status; a list follows if one was asked for.
    Status(Status),
    /// Why there is no answer.
    Refused(String),
}

/// Why bytes are no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadAnswer {
    /// Something else, or another version.
    #[error("no answer of a tracker that this migrator understands")]
    Head,
    /// The text says nothing that makes sense.
    #[error("its status makes no sense: {0}")]
    Text(String),
}

impl Header {
    /// Encodes it.
    pub fn encode(&self) -> Vec<u8> {
        let (kind, text) = match self {
            Self::Status(status) => (0, serde_json::to_string(status).unwrap_or_default()),
            Self::Refused(why) => (1, why.chars().take(MAX_TEXT / 4).collect()),
        };
        let mut bytes = Vec::with_capacity(HEAD_BYTES + text.len());
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&[VERSION, kind, 0, 0]);
        bytes.extend_from_slice(&(text.len() as u32).to_le_bytes());
        bytes.extend_from_slice(text.as_bytes());
        bytes
    }

    /// Decodes the head. Returns the kind, and how many bytes of text follow.
    ///
    /// # Errors
    /// It is none.
    pub fn decode_head(head: [u8; HEAD_BYTES]) -> Result<(u8, usize), BadAnswer> {
        let [m, a, g, i, version, kind, zero, other, length @ ..] = head;
        let length = u32::from_le_bytes(length) as usize;
        let is_head = [m, a, g, i] == MAGIC && version == VERSION && (zero, other) == (0, 0);
        match is_head && kind <= 1 && length <= MAX_TEXT {
            true => Ok((kind, length)),
            false => Err(BadAnswer::Head),
        }
    }

    /// Decodes the text behind a head.
    ///
    /// # Errors
    /// It makes no sense.
    pub fn decode_text(kind: u8, text: &[u8]) -> Result<Self, BadAnswer> {
        if kind != 0 {
            return Ok(Self::Refused(String::from_utf8_lossy(text).into_owned()));
        }
        let status: Status =
            serde_json::from_slice(text).map_err(|error| BadAnswer::Text(error.to_string()))?;
        match status.schema == SCHEMA {
            true => Ok(Self::Status(status)),
            false => Err(BadAnswer::Text(format!("schema {:?}", status.schema))),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn status() -> Status {
        Status {
            schema: SCHEMA.into(),
            pid: 7,
            since: 1_700_000_000,
            version: "0.1.0".into(),
            source: "ebpf".into(),
            windows: true,
            seconds: 3.5,
            observed_seconds: 1.0,
            files: 1,
            pages: 2,
            lost: LostPages::default(),
        }
    }

    fn decode(bytes: &[u8]) -> Result<Header, BadAnswer> {
        let (head, text) = bytes
            .split_first_chunk::<HEAD_BYTES>()
            .ok_or(BadAnswer::Head)?;
        let (kind, length) = Header::decode_head(*head)?;
        Header::decode_text(kind, text.get(..length).ok_or(BadAnswer::Head)?)
    }

    #[test]
    fn headers_survive_the_way() {
        for header in [
            Header::Status(status()),
            Header::Refused("only root may ask".into()),
        ] {
            assert_eq!(decode(&header.encode()), Ok(header));
        }
        let long = Header::Refused("\u{1f5ff}".repeat(MAX_TEXT));
        decode(&long.encode()).expect("it is cut");
        let other = Status {
            schema: "migrator.tracker/2".into(),
            ..status()
        };
        let other = decode(&Header::Status(other).encode());
        assert!(matches!(other, Err(BadAnswer::Text(_))), "{other:?}");
    }

    #[test]
    fn times_are_written_as_people_do() {
        assert_eq!(status().since(), "2023-11-14T22:13:20Z");
        assert_eq!(at(u64::MAX), "9999-12-31T23:59:59Z");
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_header_or_refused(
            noise in proptest::collection::vec(any::<u8>(), 0..60),
        ) {
            _ = decode(&noise);
            let head = [&MAGIC[..], &[VERSION, 0, 0, 0, 20, 0, 0, 0]].concat();
            _ = decode(&[&head[..], &noise].concat());
        }
    }
}
