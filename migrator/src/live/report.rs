//! What a live migration did, in numbers and in words.

use std::fmt;
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

use crate::prefetch::Report;

/// Names the JSON form of [`Moved`].
pub const SCHEMA: &str = "migrator.move/2";

/// What the destination tells at the end.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Arrival {
    /// What was prefetched until the tree ran; none without a list.
    pub report: Option<Report>,
    /// What a second look, when it ran, found missing and read again.
    pub refill: Option<Report>,
    /// Why not everything was prefetched.
    pub prefetch_error: Option<String>,
    /// From the last byte of the images until the tree was restored.
    pub restore_seconds: f64,
}

/// A phase and how long it took.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Phase {
    /// Its name.
    pub name: &'static str,
    /// How long it took. Phases overlap.
    pub seconds: f64,
}

/// What a live migration did.
#[derive(Debug, Clone, Serialize)]
pub struct Moved {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// The session's name.
    pub session: String,
    /// What moved.
    pub subject: String,
    /// Where to.
    pub destination: String,
    /// Where the list came from, if there was one.
    pub source: Option<String>,
    /// From when the tree stood still on the source until it ran on the
    /// destination, as the source saw it.
    pub freeze_seconds: f64,
    /// From the command to the end of the refill.
    pub total_seconds: f64,
    /// In the order in which they ended.
    pub phases: Vec<Phase>,
    /// Lists before the freeze.
    pub warmup_rounds: u32,
    /// What these lists had, and what had to wait.
    pub precopy: Precopy,
    /// All lists together.
    pub list: ListSize,
    /// Bytes of images that were sent; none if they were shared.
    pub image_bytes: u64,
    /// What the destination says.
    pub arrival: Arrival,
    /// What its second look has found.
    pub refill: Option<Refill>,
}

/// What was sent before the freeze.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Precopy {
    /// Lists with at least one page.
    #[serde(skip)]
    pub rounds: u32,
    /// Their pages.
    pub pages: u64,
    /// Pages of files that were being written at the end of it; they were sent
    /// after the freeze.
    pub deferred_pages: u64,
}

/// The second look at all pages, when the tree ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Refill {
    /// Pages that were looked at.
    pub asked_pages: u64,
    /// Those that had been prefetched, and that the file system had dropped.
    pub dropped_pages: u64,
    /// Those that were missing and were read: dropped ones, and ones that could
    /// not be read before.
    pub refilled_pages: u64,
}

impl Refill {
    /// Compares the second look with what was prefetched before.
    pub(super) fn of(arrival: &Arrival) -> Option<Self> {
        let pages = arrival.refill.as_ref()?.pages;
        let skipped = arrival.report.as_ref().map_or(0, |it| it.pages.skipped);
        let missing = pages.asked.saturating_sub(pages.resident);
        Some(Self {
            asked_pages: pages.asked,
            dropped_pages: missing.saturating_sub(skipped),
            refilled_pages: pages.read,
        })
    }
}

impl fmt::Display for Refill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            asked_pages,
            dropped_pages,
            refilled_pages,
        } = self;
        write!(
            f,
            "refilled {refilled_pages} pages; the file system had dropped {dropped_pages} ({asked_pages} asked)"
        )
    }
}

/// How much was in the lists.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct ListSize {
    /// Files, each as often as it was in a list.
    pub files: u64,
    /// Pages.
    pub pages: u64,
    /// Bytes of the lists themselves.
    pub bytes: u64,
}

impl Moved {
    /// Whether all that was asked for is in the cache of the destination.
    pub fn is_complete(&self) -> bool {
        let is_complete = |report: &Option<Report>| report.as_ref().is_none_or(Report::is_complete);
        let Arrival {
            report,
            refill,
            prefetch_error,
            ..
        } = &self.arrival;
        // What the first look missed, the second may have found.
        let looked_again = refill.is_some();
        prefetch_error.is_none() && (is_complete(report) || looked_again) && is_complete(refill)
    }
}

/// Times phases as they end.
#[derive(Debug)]
pub struct Clock {
    began: Instant,
    phases: Vec<Phase>,
}

impl Clock {
    /// Starts now.
    pub fn start() -> Self {
        Self {
            began: Instant::now(),
            phases: Vec::new(),
        }
    }

    /// A phase that began then ends now.
    pub fn ended(&mut self, name: &'static str, began: Instant) {
        self.add(name, began.elapsed().as_secs_f64());
    }

    /// A phase that took so long.
    pub fn add(&mut self, name: &'static str, seconds: f64) {
        self.phases.push(Phase { name, seconds });
    }

    /// Since the start.
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// The phases.
    pub fn phases(self) -> Vec<Phase> {
        self.phases
    }
}

/// The report for people.
impl fmt::Display for Moved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "moved {} to {}", self.subject, self.destination)?;
        writeln!(f, "{:<22} {:>9.3} s", "frozen for", self.freeze_seconds)?;
        for Phase { name, seconds } in &self.phases {
            writeln!(f, "  {name:<20} {seconds:>9.3} s")?;
        }
        writeln!(f, "{:<22} {:>9.3} s", "in all", self.total_seconds)?;
        if self.image_bytes > 0 {
            let size = ByteSize(self.image_bytes).display().iec();
            writeln!(f, "{:<22} {size}", "images")?;
        }
        if let Some(source) = &self.source {
            let ListSize { pages, bytes, .. } = self.list;
            writeln!(
                f,
                "{:<22} {pages} pages in {}, seen by {source}, {} rounds ahead of the freeze",
                "page index list",
                ByteSize(bytes).display().iec(),
                self.warmup_rounds,
            )?;
        }
        if let Some(report) = &self.arrival.report {
            write!(f, "prefetched\n{report}")?;
        }
        if let Some(refill) = &self.refill {
            writeln!(f, "{refill}")?;
        }
        if let Some(error) = &self.arrival.prefetch_error {
            writeln!(f, "the prefetch did not come to its end: {error}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prefetch::{self, Pages};

    fn looked_at(pages: Pages) -> Option<Report> {
        Some(Report {
            schema: prefetch::SCHEMA.into(),
            page_size: 4096,
            pages,
            skipped: Vec::new(),
            files: Vec::new(),
            changed: Default::default(),
            residency_unknown_files: 0,
            unasked_pages: 0,
            bytes_read: 0,
            seconds: 0.0,
            mb_per_s: 0.0,
            dry_run: false,
        })
    }

    #[test]
    fn the_refill_tells_what_was_dropped_from_what_never_came() {
        // Of 100 pages 10 could not be read; then 30 were missing, and 29 read.
        let first = Pages {
            asked: 100,
            read: 90,
            skipped: 10,
            ..Pages::default()
        };
        let second = Pages {
            asked: 100,
            resident: 70,
            read: 29,
            skipped: 1,
            ..Pages::default()
        };
        let arrival = Arrival {
            report: looked_at(first),
            refill: looked_at(second),
            ..Arrival::default()
        };
        let refill = Refill::of(&arrival).expect("a refill");
        assert_eq!(
            refill.to_string(),
            "refilled 29 pages; the file system had dropped 20 (100 asked)"
        );
        assert_eq!(
            serde_json::to_value(refill).expect("JSON"),
            serde_json::json!({"asked_pages": 100, "dropped_pages": 20, "refilled_pages": 29})
        );
        assert_eq!(Refill::of(&Arrival::default()), None);
    }
}
