//! Writes a page index list, file by file.

use std::io::Write;
use std::os::unix::ffi::OsStrExt;

use super::frame::{self, FRAME_HEAD_BYTES, kind};
use super::{FormatError, PAGE_SHIFTS, Totals, runs};
use crate::pagelist::{FileIdentity, HotFile, Invalid, Run, page_limit};

/// Writes a list to `W`, one `write` a frame: give it a
/// [`BufWriter`](std::io::BufWriter) unless that is what you want.
///
/// After a failed write the list is of no use. After any other error it goes
/// on as if the file had not been given.
pub struct Writer<W> {
    output: W,
    page_limit: u64,
    crc: u32,
    totals: Totals,
    frame: Vec<u8>,
    joined: Vec<Run>,
}

impl<W: Write> Writer<W> {
    /// Begins a list with pages of so many bytes.
    ///
    /// # Errors
    /// When the page size is none of [`PAGE_SHIFTS`], or a write fails.
    pub fn new(mut output: W, page_size: u32) -> Result<Self, FormatError> {
        let shift = PAGE_SHIFTS
            .into_iter()
            .find(|shift| page_size == 1 << shift)
            .ok_or(Invalid::PageSize(page_size))?;
        let (header, crc) = frame::header(shift);
        output.write_all(&header)?;
        Ok(Self {
            output,
            page_limit: page_limit(page_size),
            crc,
            totals: Totals::default(),
            frame: Vec::new(),
            joined: Vec::new(),
        })
    }

    /// Writes a file and its runs.
    ///
    /// # Errors
    /// [`FormatError::Invalid`] when path or runs are not as
    /// [`HotFile::check`] wants them, [`FormatError::TooLarge`] when the list
    /// would exceed a limit, [`FormatError::Io`] when a write fails.
    pub fn file(&mut self, file: &HotFile) -> Result<(), FormatError> {
        file.check(self.page_limit)?;
        let mut totals = self.totals;
        totals.add_file(file.identity.path.as_os_str().len())?;
        totals.add_runs(file.runs.len(), file.pages())?;
        self.totals = totals;

        self.identity(&file.identity)?;
        let mut runs = file.runs.iter().copied().peekable();
        let mut joined = std::mem::take(&mut self.joined);
        while let Some(mut run) = runs.next() {
            while let Some(longer) = runs.peek().and_then(|next| run.join(*next)) {
                run = longer;
                runs.next();
            }
            joined.push(run);
            if joined.len() == runs::RUNS_PER_FRAME || runs.peek().is_none() {
                self.runs(&joined)?;
                joined.clear();
            }
        }
        self.joined = joined;
        Ok(())
    }

    /// Passes on what the output buffers, so that a reader at the other end
    /// can use it.
    ///
    /// # Errors
    /// When a write fails.
    pub fn flush(&mut self) -> Result<(), FormatError> {
        Ok(self.output.flush()?)
    }

    /// Ends the list, flushes, and gives the output back.
    ///
    /// # Errors
    /// When a write fails.
    pub fn finish(mut self) -> Result<W, FormatError> {
        self.begin_frame();
        frame::put_number(&mut self.frame, self.totals.files);
        frame::put_number(&mut self.frame, self.totals.pages);
        self.end_frame(kind::END)?;
        self.flush()?;
        Ok(self.output)
    }

    fn identity(&mut self, file: &FileIdentity) -> Result<(), FormatError> {
        self.begin_frame();
        for number in [
            file.device,
            file.inode,
            file.size,
            frame::zigzag(file.mtime_ns),
        ] {
            frame::put_number(&mut self.frame, number);
        }
        self.frame
            .extend_from_slice(file.path.as_os_str().as_bytes());
        self.end_frame(kind::FILE)
    }

    /// Writes runs as one frame, or as several where one is too small for
    /// them; the runs of a single page or run always fit.
    fn runs(&mut self, runs: &[Run]) -> Result<(), FormatError> {
        self.begin_frame();
        runs::encode(runs, &mut self.frame);
        if self.payload_length().is_some() {
            return self.end_frame(kind::RUNS);
        }
        let (first, second) = runs.split_at(runs.len() / 2);
        self.runs(first)?;
        self.runs(second)
    }

    fn begin_frame(&mut self) {
        self.frame.clear();
        self.frame.extend_from_slice(&[0; FRAME_HEAD_BYTES]);
    }

    fn payload_length(&self) -> Option<u16> {
        (self.frame.len() - FRAME_HEAD_BYTES).try_into().ok()
    }

    fn end_frame(&mut self, kind: u8) -> Result<(), FormatError> {
        let length = self.payload_length().ok_or(FormatError::TooLarge {
            what: "bytes in a frame",
            limit: u16::MAX.into(),
        })?;
        frame::seal(&mut self.frame, kind, length, &mut self.crc);
        self.output.write_all(&self.frame)?;
        Ok(())
    }
}
