//! Reads a page index list, record by record.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;

use super::frame::{self, CHECKSUM_BYTES, FRAME_HEAD_BYTES, HEADER_BYTES, MAGIC, kind};
use super::{FormatError, Optional, Totals, runs};
use crate::pagelist::{FileIdentity, HotFile, PageIndexList, Run, page_limit};

/// How many frames of unknown optional kinds are skipped before the list is
/// refused, so that an endless row of them ends.
const MAX_SKIPPED: u64 = 1 << 16;

/// What a list is made of.
#[derive(Debug, PartialEq, Eq)]
pub enum Record<'a> {
    /// A file begins.
    File(FileIdentity),
    /// Runs of the file begun last: at least one, sorted, behind those
    /// before, and at most 16,384 at a time. The first may continue the last
    /// one before.
    Runs(&'a [Run]),
}

/// Reads a list from `R` in bounded memory (64 KiB of bytes, 256 KiB of
/// runs), whatever the bytes are.
///
/// It reads nothing beyond the end of the list, so that over a connection
/// something else can follow. It reads in small pieces: give it a
/// [`BufReader`](std::io::BufReader).
///
/// After an error there is no going on: what follows is an error as well.
pub struct Reader<R> {
    input: R,
    page_shift: u8,
    page_limit: u64,
    position: u64,
    crc: u32,
    totals: Totals,
    skipped: u64,
    kept: Option<Kept>,
    state: State,
    payload: Vec<u8>,
    runs: Vec<Run>,
}

/// The bytes of optional frames of a kind.
struct Kept {
    kind: Optional,
    limit: usize,
    bytes: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// No file has begun.
    Start,
    /// The runs of a file end at this page so far.
    InFile(u64),
    /// The list has ended.
    End,
    /// There was an error.
    Failed,
}

impl<R: Read> Reader<R> {
    /// Reads the header of a list.
    ///
    /// # Errors
    /// [`FormatError::NotAList`], [`FormatError::Version`],
    /// [`FormatError::Truncated`], [`FormatError::Checksum`],
    /// [`FormatError::Malformed`], or [`FormatError::Io`] when reading fails.
    pub fn new(mut input: R) -> Result<Self, FormatError> {
        let mut header = [0; HEADER_BYTES];
        let length = read_up_to(&mut input, &mut header)?;
        let magic = length.min(MAGIC.len());
        if header[..magic] != MAGIC[..magic] {
            return Err(FormatError::NotAList);
        }
        let at = length as u64;
        if length < HEADER_BYTES {
            return Err(FormatError::Truncated { at });
        }
        let (page_shift, crc) = frame::read_header(&header)?;
        Ok(Self {
            input,
            page_shift,
            page_limit: page_limit(1 << page_shift),
            position: at,
            crc,
            totals: Totals::default(),
            skipped: 0,
            kept: None,
            state: State::Start,
            payload: Vec::new(),
            runs: Vec::new(),
        })
    }

    /// Keeps the bytes of optional frames of this kind from now on, one frame's behind
    /// the other's, for [`Self::kept`]. More than `limit` are an error.
    pub fn keep(&mut self, kind: Optional, limit: usize) {
        let bytes = Vec::new();
        self.kept = Some(Kept { kind, limit, bytes });
    }

    /// Takes what was kept so far.
    pub fn kept(&mut self) -> Vec<u8> {
        let kept = self.kept.as_mut();
        kept.map_or_else(Vec::new, |kept| std::mem::take(&mut kept.bytes))
    }

    /// Bytes a page.
    pub fn page_size(&self) -> u32 {
        1 << self.page_shift
    }

    /// The next record; `None` at the end of the list, and ever after.
    ///
    /// # Errors
    /// Any [`FormatError`] but `NotAList`, `Version` and `PageSize`.
    pub fn record(&mut self) -> Result<Option<Record<'_>>, FormatError> {
        loop {
            let at = self.position;
            let malformed = |why| FormatError::Malformed { at, why };
            // It stays failed unless the frame is good: after an error no run
            // must be taken for one of another file, nor the list for whole.
            let state = std::mem::replace(&mut self.state, State::Failed);
            match state {
                State::Start | State::InFile(_) => {}
                State::End => {
                    self.state = State::End;
                    return Ok(None);
                }
                State::Failed => return Err(malformed("what came before is not valid")),
            }
            let kind = self.read_frame()?;
            match kind {
                kind::FILE => {
                    let identity = parse_file(&self.payload)
                        .ok_or_else(|| malformed("a FILE frame is too short"))?;
                    identity.check()?;
                    self.totals.add_file(identity.path.as_os_str().len())?;
                    self.state = State::InFile(0);
                    return Ok(Some(Record::File(identity)));
                }
                kind::RUNS => {
                    let State::InFile(end) = state else {
                        return Err(malformed("a RUNS frame comes before any FILE frame"));
                    };
                    runs::decode(&self.payload, self.page_limit, &mut self.runs)
                        .map_err(malformed)?;
                    if self.runs.first().is_some_and(|run| run.index < end) {
                        return Err(malformed("a RUNS frame overlaps the one before"));
                    }
                    let pages = self.runs.iter().map(|run| u64::from(run.pages)).sum();
                    self.totals.add_runs(self.runs.len(), pages)?;
                    self.state = State::InFile(self.runs.last().map_or(end, Run::end));
                    return Ok(Some(Record::Runs(&self.runs)));
                }
                kind::END => {
                    let totals = (self.totals.files, self.totals.pages);
                    if parse_end(&self.payload) != Some(totals) {
                        return Err(malformed("the totals of the END frame are not those read"));
                    }
                    self.state = State::End;
                }
                kind::OPTIONAL.. => {
                    if let Some(kept) = self.kept.as_mut().filter(|it| it.kind as u8 == kind) {
                        if kept.bytes.len() + self.payload.len() > kept.limit {
                            return Err(malformed("its optional frames are too long"));
                        }
                        kept.bytes.extend_from_slice(&self.payload);
                    }
                    self.skipped =
                        super::within("frames of unknown kinds", self.skipped + 1, MAX_SKIPPED)?;
                    self.state = state;
                }
                _ => return Err(malformed("a frame has an unknown kind")),
            }
        }
    }

    /// Gives the input back, just behind what was read of the list.
    pub fn into_inner(self) -> R {
        self.input
    }

    /// Reads a frame whole into `payload` and verifies it; gives its kind.
    fn read_frame(&mut self) -> Result<u8, FormatError> {
        let at = self.position;
        let mut head = [0; FRAME_HEAD_BYTES];
        let read = read_up_to(&mut self.input, &mut head)?;
        self.advance(read, head.len())?;
        let [kind, low, high] = head;
        let length = usize::from(u16::from_le_bytes([low, high]));
        self.payload.resize(length + CHECKSUM_BYTES, 0);
        let read = read_up_to(&mut self.input, &mut self.payload)?;
        self.advance(read, length + CHECKSUM_BYTES)?;

        let checksum = self.payload.split_off(length);
        let crc = crc32c::crc32c_append(crc32c::crc32c_append(self.crc, &head), &self.payload);
        if checksum != crc.to_le_bytes() {
            return Err(FormatError::Checksum { at });
        }
        self.crc = crc;
        Ok(kind)
    }

    fn advance(&mut self, read: usize, wanted: usize) -> Result<(), FormatError> {
        self.position += read as u64;
        if read < wanted {
            let at = self.position;
            return Err(FormatError::Truncated { at });
        }
        Ok(())
    }
}

/// Reads a whole list, and checks that nothing follows it.
///
/// Takes at most about 1 GiB of memory, which a list at all limits needs: see
/// [`MAX_FILES`](super::MAX_FILES), [`MAX_PATH_BYTES`](super::MAX_PATH_BYTES)
/// and [`MAX_RUNS`](super::MAX_RUNS).
///
/// # Errors
/// Any [`FormatError`] but `PageSize`.
pub fn read_list(input: impl Read) -> Result<PageIndexList, FormatError> {
    let mut reader = Reader::new(input)?;
    let mut files: Vec<HotFile> = Vec::new();
    while let Some(record) = reader.record()? {
        match (record, files.last_mut()) {
            (Record::File(identity), _) => files.push(HotFile {
                identity,
                runs: Vec::new(),
            }),
            (Record::Runs(runs), Some(file)) => extend(&mut file.runs, runs),
            (Record::Runs(_), None) => unreachable!("the reader has refused runs without a file"),
        }
    }
    if read_up_to(&mut reader.input, &mut [0])? > 0 {
        let (at, why) = (reader.position, "something follows the end of the list");
        return Err(FormatError::Malformed { at, why });
    }
    Ok(PageIndexList {
        page_size: reader.page_size(),
        files,
    })
}

/// Appends runs of the same file, of which the first may continue the last.
fn extend(runs: &mut Vec<Run>, more: &[Run]) {
    let mut more = more.iter();
    if let Some(last) = runs.last_mut()
        && let Some(longer) = more.as_slice().first().and_then(|run| last.join(*run))
    {
        *last = longer;
        more.next();
    }
    runs.extend(more);
}

fn parse_file(mut payload: &[u8]) -> Option<FileIdentity> {
    let mut number = || frame::take_number(&mut payload);
    let (device, inode, size, mtime) = (number()?, number()?, number()?, number()?);
    Some(FileIdentity {
        path: OsStr::from_bytes(payload).into(),
        device,
        inode,
        size,
        mtime_ns: frame::unzigzag(mtime),
    })
}

fn parse_end(mut payload: &[u8]) -> Option<(u64, u64)> {
    let files = frame::take_number(&mut payload)?;
    let pages = frame::take_number(&mut payload)?;
    payload.is_empty().then_some((files, pages))
}

/// Fills the buffer unless the input ends; gives how much was read.
fn read_up_to(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match input.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}
