//! Writes a page index list, file by file.

use std::io::Write;
use std::os::unix::ffi::OsStrExt;

use super::frame::{self, FRAME_HEAD_BYTES, kind};
use super::{FormatError, Optional, PAGE_SHIFTS, Totals, runs};
use crate::pagelist::{self, FileIdentity, HotFile, Invalid, Run, page_limit};

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
    /// Runs of the present file that are not written yet, and its latest page so far.
    joined: Vec<Run>,
    end: u64,
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
            end: 0,
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

        self.begin(&file.identity)?;
        self.runs(&file.runs)?;
        self.end_runs()
    }

    /// Begins a file, of which [`Self::runs`] gives the runs, some at a time.
    ///
    /// # Errors
    /// As for [`Self::file`].
    pub fn begin(&mut self, file: &FileIdentity) -> Result<(), FormatError> {
        file.check()?;
        self.end_runs()?;
        self.totals.add_file(file.path.as_os_str().len())?;
        self.end = 0;
        self.identity(file)
    }

    /// Writes runs of the file that was begun, behind those before.
    ///
    /// # Errors
    /// As for [`Self::file`]; after any, the list is of no use.
    pub fn runs(&mut self, runs: &[Run]) -> Result<(), FormatError> {
        self.end = pagelist::check_runs(runs, self.end, self.page_limit)?;
        let pages = runs.iter().map(|run| u64::from(run.pages)).sum();
        self.totals.add_runs(runs.len(), pages)?;
        for run in runs {
            if let Some(last) = self.joined.last_mut()
                && let Some(longer) = last.join(*run)
            {
                *last = longer;
                continue;
            }
            if self.joined.len() == runs::RUNS_PER_FRAME {
                self.end_runs()?;
            }
            self.joined.push(*run);
        }
        Ok(())
    }

    /// Passes on what the output buffers, so that a reader at the other end
    /// can use it.
    ///
    /// # Errors
    /// When a write fails.
    pub fn flush(&mut self) -> Result<(), FormatError> {
        self.end_runs()?;
        Ok(self.output.flush()?)
    }

    /// Writes bytes that no page is told by as an optional frame: readers that do not
    /// know its kind skip it.
    ///
    /// # Errors
    /// [`FormatError::TooLarge`] for more than 65,535 bytes; or a write fails.
    pub fn optional(&mut self, kind: Optional, bytes: &[u8]) -> Result<(), FormatError> {
        self.end_runs()?;
        self.begin_frame();
        self.frame.extend_from_slice(bytes);
        self.end_frame(kind as u8)
    }

    /// Returns where the list is written to.
    pub fn output(&mut self) -> &mut W {
        &mut self.output
    }

    /// Ends the list, flushes, and gives the output back.
    ///
    /// # Errors
    /// When a write fails.
    pub fn finish(mut self) -> Result<W, FormatError> {
        self.end_runs()?;
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

    /// Writes the runs that are left.
    fn end_runs(&mut self) -> Result<(), FormatError> {
        let mut runs = std::mem::take(&mut self.joined);
        if !runs.is_empty() {
            self.frame_of(&runs)?;
            runs.clear();
        }
        self.joined = runs;
        Ok(())
    }

    /// Writes runs as one frame, or as several where one is too small for
    /// them; the runs of a single page or run always fit.
    fn frame_of(&mut self, runs: &[Run]) -> Result<(), FormatError> {
        self.begin_frame();
        runs::encode(runs, &mut self.frame);
        if self.payload_length().is_some() {
            return self.end_frame(kind::RUNS);
        }
        let (first, second) = runs.split_at(runs.len() / 2);
        self.frame_of(first)?;
        self.frame_of(second)
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
