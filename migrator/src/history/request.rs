//! What a tracker is asked (pure).

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use crate::format::{put_number, take_number};
use crate::heat::FileId;
use crate::pagelist::{Heat, MAX_PATH};

/// What a request begins with.
const MAGIC: [u8; 4] = *b"MTRK";

/// The version of requests and answers.
pub const VERSION: u8 = 1;

/// Magic, version, kind, least heat, a zero, and the length of the body.
const HEAD_BYTES: usize = 12;

/// How many files a request may name.
pub const MAX_FILES: usize = 1 << 17;

/// How many directories a request may name.
pub const MAX_DIRECTORIES: usize = 64;

/// How many bytes the body of a request may have: those of [`MAX_FILES`].
const MAX_BODY: usize = 2 << 20;

/// A request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Pages of less heat are left out.
    pub min_heat: Heat,
    /// Of which files.
    pub wanted: Wanted,
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// The status alone.
    Status,
    /// The pages of these files.
    Files(Vec<FileId>),
    /// Those of all files below these directories.
    Below(Vec<PathBuf>),
    /// Those of all files.
    All,
}

/// Why bytes are no request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadRequest {
    /// Something else.
    #[error("this is no request to a tracker")]
    Magic,
    /// Another version.
    #[error("the request has version {0}, and this tracker knows version {VERSION}")]
    Version(u8),
    /// Too long.
    #[error("the request names more than a tracker answers for")]
    TooLong,
    /// The body is not as its kind has it.
    #[error("the request is malformed")]
    Malformed,
}

impl Request {
    /// Encodes it. Files and directories beyond the limits are left out.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        let kind = match &self.wanted {
            Wanted::Status => 0,
            Wanted::Files(files) => {
                for file in files.iter().take(MAX_FILES) {
                    put_number(&mut body, file.device.into());
                    put_number(&mut body, file.inode);
                }
                1
            }
            Wanted::Below(directories) => {
                for directory in directories.iter().take(MAX_DIRECTORIES) {
                    body.extend_from_slice(directory.as_os_str().as_bytes());
                    body.push(0);
                }
                2
            }
            Wanted::All => 3,
        };
        let mut bytes = Vec::with_capacity(HEAD_BYTES + body.len());
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&[VERSION, kind, self.min_heat, 0]);
        bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
        bytes.append(&mut body);
        bytes
    }

    /// Decodes what has come of a request; `None` if that is not all of it.
    ///
    /// # Errors
    /// It will not become one, or is too long.
    pub fn decode(bytes: &[u8]) -> Result<Option<Self>, BadRequest> {
        let magic = bytes.len().min(MAGIC.len());
        if bytes[..magic] != MAGIC[..magic] {
            return Err(BadRequest::Magic);
        }
        if let Some(version) = bytes.get(MAGIC.len())
            && *version != VERSION
        {
            return Err(BadRequest::Version(*version));
        }
        let Some((head, body)) = bytes.split_at_checked(HEAD_BYTES) else {
            return Ok(None);
        };
        let [.., kind, min_heat, zero, a, b, c, d] = *head else {
            return Err(BadRequest::Malformed);
        };
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        if length > MAX_BODY {
            return Err(BadRequest::TooLong);
        }
        if zero != 0 || body.len() > length {
            return Err(BadRequest::Malformed);
        }
        if body.len() < length {
            return Ok(None);
        }
        let wanted = match kind {
            0 => Wanted::Status,
            1 => Wanted::Files(files(body)?),
            2 => Wanted::Below(directories(body)?),
            3 => Wanted::All,
            _ => return Err(BadRequest::Malformed),
        };
        if matches!(wanted, Wanted::Status | Wanted::All) && !body.is_empty() {
            return Err(BadRequest::Malformed);
        }
        Ok(Some(Self { min_heat, wanted }))
    }
}

fn files(mut body: &[u8]) -> Result<Vec<FileId>, BadRequest> {
    let mut files = Vec::new();
    while !body.is_empty() {
        if files.len() == MAX_FILES {
            return Err(BadRequest::TooLong);
        }
        let mut number = || take_number(&mut body).ok_or(BadRequest::Malformed);
        let (device, inode) = (number()?, number()?);
        let device = device.try_into().map_err(|_| BadRequest::Malformed)?;
        files.push(FileId { device, inode });
    }
    Ok(files)
}

fn directories(body: &[u8]) -> Result<Vec<PathBuf>, BadRequest> {
    let mut directories = Vec::new();
    let mut left = body;
    while !left.is_empty() {
        let end = left.iter().position(|byte| *byte == 0);
        let end = end.ok_or(BadRequest::Malformed)?;
        if directories.len() == MAX_DIRECTORIES || end > MAX_PATH {
            return Err(BadRequest::TooLong);
        }
        directories.push(OsStr::from_bytes(&left[..end]).into());
        left = &left[end + 1..];
    }
    match directories.is_empty() {
        // Nothing is not everything.
        true => Err(BadRequest::Malformed),
        false => Ok(directories),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(device: u32, inode: u64) -> FileId {
        FileId { device, inode }
    }

    #[test]
    fn a_request_survives_the_way() {
        for wanted in [
            Wanted::Status,
            Wanted::All,
            Wanted::Files(Vec::new()),
            Wanted::Files(vec![file(0, 0), file(u32::MAX, u64::MAX)]),
            Wanted::Below(vec!["/".into(), "/a b/\u{fc}".into()]),
        ] {
            let request = Request {
                min_heat: 7,
                wanted,
            };
            let bytes = request.encode();
            assert_eq!(Request::decode(&bytes), Ok(Some(request)));
            for length in 0..bytes.len() {
                assert_eq!(Request::decode(&bytes[..length]), Ok(None), "{length}");
            }
            let more = [&bytes[..], &[0]].concat();
            assert_eq!(Request::decode(&more), Err(BadRequest::Malformed));
        }
    }

    #[test]
    fn what_is_no_request_is_refused_at_once() {
        assert_eq!(Request::decode(b"GET / HTTP/1.1"), Err(BadRequest::Magic));
        assert_eq!(Request::decode(b"MTRK\x02"), Err(BadRequest::Version(2)));
        let long = [&b"MTRK\x01\x01\x00\x00"[..], &[0xff; 4]].concat();
        assert_eq!(Request::decode(&long), Err(BadRequest::TooLong));
        let none = [&b"MTRK\x01\x02\x00\x00"[..], &[0; 4]].concat();
        assert_eq!(Request::decode(&none), Err(BadRequest::Malformed));
    }

    #[test]
    fn the_most_files_fit_and_more_are_left_out() {
        let files = vec![file(u32::MAX, u64::MAX); MAX_FILES + 1];
        let wanted = Wanted::Files(files);
        let bytes = Request {
            min_heat: 1,
            wanted,
        }
        .encode();
        let Ok(Some(Request {
            wanted: Wanted::Files(files),
            ..
        })) = Request::decode(&bytes)
        else {
            panic!("they do not fit");
        };
        assert_eq!(files.len(), MAX_FILES);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_request_or_refused(
            kind in 0..5_u8,
            body in proptest::collection::vec(any::<u8>(), 0..200),
            noise in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let mut bytes = [&MAGIC[..], &[VERSION, kind, 1, 0]].concat();
            bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
            bytes.extend_from_slice(&body);
            if let Ok(Some(request)) = Request::decode(&bytes) {
                let again = Request::decode(&request.encode());
                prop_assert_eq!(again, Ok(Some(request)));
            }
            _ = Request::decode(&noise);
            _ = Request::decode(&[&MAGIC[..], &noise].concat());
        }
    }
}
