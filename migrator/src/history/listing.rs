//! Makes a list of what a tracker knows, a slice at a time.
//!
//! Between slices the tracker goes on to observe. Nothing is copied but the names of
//! the files with their heat, so that a list of everything takes some 24 bytes a file
//! beside what is not written yet.

use std::mem;
use std::path::PathBuf;
use std::time::Instant;
use std::vec::IntoIter;

use super::request::Wanted;
use crate::file::Unresolved;
use crate::format::{FormatError, Optional, Writer};
use crate::heat::{FileId, Part, Sum};
use crate::kernel;
use crate::pagelist::{Heat, Run};
use crate::tracker::Tracker;

/// No more is encoded ahead of whoever takes it, in bytes.
const MAX_AHEAD: usize = 256 << 10;

/// A list that is being made.
pub struct Listing {
    min_heat: Heat,
    /// Only files below these, unless there are none.
    below: Vec<PathBuf>,
    /// Files whose heat is not known yet, and how far that of one was found out.
    unranked: IntoIter<FileId>,
    ranking: Option<(FileId, Part, Sum)>,
    /// The coldest first, until all are known.
    ranked: Vec<Ranked>,
    is_ranked: bool,
    /// The file that is being written.
    writing: Option<(FileId, Part, u64)>,
    runs: Vec<Run>,
    writer: Writer<Vec<u8>>,
    /// The files that were written, in their order.
    listed: Vec<Listed>,
    deleted: Vec<FileId>,
}

/// A file and its mean heat.
#[derive(Debug, Clone, Copy)]
struct Ranked {
    file: FileId,
    hotness: f32,
    newest: u32,
}

/// A file that stands in the list.
#[derive(Debug, Clone, Copy)]
pub struct Listed {
    /// The file.
    pub file: FileId,
    /// The latest epoch in which a page of it was used.
    pub newest: u32,
}

impl Listing {
    /// Begins a list of the pages that are asked for.
    ///
    /// # Errors
    /// This host has pages of a size that no list has.
    pub fn new(tracker: &Tracker, wanted: Wanted, min_heat: Heat) -> Result<Self, FormatError> {
        let (files, below) = match wanted {
            Wanted::Status => (Vec::new(), Vec::new()),
            Wanted::Files(mut files) => {
                files.sort_unstable();
                files.dedup();
                (files, Vec::new())
            }
            Wanted::Below(below) => (tracker.heat().files().collect(), below),
            Wanted::All => (tracker.heat().files().collect(), Vec::new()),
        };
        Ok(Self {
            min_heat,
            below,
            unranked: files.into_iter(),
            ranking: None,
            ranked: Vec::new(),
            is_ranked: false,
            writing: None,
            runs: Vec::new(),
            writer: Writer::new(Vec::new(), kernel::page_size())?,
            listed: Vec::new(),
            deleted: Vec::new(),
        })
    }

    /// Goes on until a moment, or until nobody takes what was made. Returns whether all
    /// files are written.
    ///
    /// # Errors
    /// The list exceeds a limit.
    pub fn step(&mut self, tracker: &mut Tracker, until: Instant) -> Result<bool, FormatError> {
        while self.writer.output().len() < MAX_AHEAD {
            let goes_on = match self.is_ranked {
                true => self.write_part(tracker)?,
                false => {
                    self.rank_part(tracker);
                    true
                }
            };
            if !goes_on {
                return Ok(true);
            }
            if Instant::now() >= until {
                break;
            }
        }
        Ok(false)
    }

    /// Takes the bytes that were made.
    pub fn take(&mut self) -> Vec<u8> {
        mem::take(self.writer.output())
    }

    /// Writes optional frames behind what there is, and ends the list. Returns the bytes
    /// that were not taken.
    ///
    /// # Errors
    /// The bytes do not fit.
    pub fn finish(mut self, optional: Option<(Optional, &[u8])>) -> Result<Vec<u8>, FormatError> {
        if let Some((kind, bytes)) = optional {
            for some in bytes.chunks(usize::from(u16::MAX)) {
                self.writer.optional(kind, some)?;
            }
        }
        self.writer.finish()
    }

    /// The files that were written so far.
    pub fn listed(&self) -> &[Listed] {
        &self.listed
    }

    /// The files that do not exist any more.
    pub fn deleted(&self) -> &[FileId] {
        &self.deleted
    }

    /// Finds out the heat of a part of a file.
    fn rank_part(&mut self, tracker: &Tracker) {
        let (file, mut part, mut sum) = match self.ranking.take() {
            Some(ranking) => ranking,
            None => match self.unranked.next() {
                Some(file) => (file, Part::default(), Sum::default()),
                None => {
                    let by_heat = |one: &Ranked, other: &Ranked| {
                        let by_heat = one.hotness.total_cmp(&other.hotness);
                        by_heat.then_with(|| other.file.cmp(&one.file))
                    };
                    self.ranked.sort_unstable_by(by_heat);
                    self.is_ranked = true;
                    return;
                }
            },
        };
        let heat = tracker.heat();
        if heat.sum_part(file, &mut part, &mut sum, self.min_heat) {
            self.ranking = Some((file, part, sum));
        } else if sum.pages > 0 {
            self.ranked.push(Ranked {
                file,
                hotness: sum.hotness() as f32,
                newest: part.newest,
            });
        }
    }

    /// Writes a part of a file. Returns whether there may be more.
    fn write_part(&mut self, tracker: &mut Tracker) -> Result<bool, FormatError> {
        let (file, mut part, end) = match self.writing.take() {
            Some(writing) => writing,
            None => match self.ranked.pop() {
                Some(ranked) => match self.begin(tracker, ranked) {
                    Ok(Some(end)) => (ranked.file, Part::default(), end),
                    Ok(None) => return Ok(true),
                    // As much as a list holds; the hottest files are there.
                    Err(FormatError::TooLarge { .. }) => return Ok(false),
                    Err(error) => return Err(error),
                },
                None => return Ok(false),
            },
        };
        self.runs.clear();
        let heat = tracker.heat();
        let goes_on = heat.runs_part(file, &mut part, self.min_heat, end, &mut self.runs);
        self.writer.runs(&self.runs)?;
        if goes_on {
            self.writing = Some((file, part, end));
        }
        Ok(true)
    }

    /// Begins a file. Returns the page that it ends before, if it is to be listed.
    fn begin(&mut self, tracker: &mut Tracker, ranked: Ranked) -> Result<Option<u64>, FormatError> {
        let identity = match tracker.identify(ranked.file) {
            Ok(identity) => identity,
            Err(reason) => {
                if reason == Unresolved::Deleted {
                    self.deleted.push(ranked.file);
                }
                return Ok(None);
            }
        };
        let is_below = |directory: &PathBuf| identity.path.starts_with(directory);
        let is_wanted = self.below.is_empty() || self.below.iter().any(is_below);
        if !is_wanted || identity.check().is_err() {
            return Ok(None);
        }
        self.writer.begin(&identity)?;
        self.listed.push(Listed {
            file: ranked.file,
            newest: ranked.newest,
        });
        let page_size = u64::from(kernel::page_size());
        Ok(Some(identity.size.div_ceil(page_size)))
    }
}
