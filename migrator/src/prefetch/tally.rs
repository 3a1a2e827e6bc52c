//! Counts what happens to the pages while many threads work on them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::lock;
use super::report::{
    ChangedFile, Changes, FILES, Pages, Reason, Report, SCHEMA, Skipped, SkippedFile,
};
use super::version::Change;

/// The counters of one prefetch.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) asked: AtomicU64,
    pub(super) resident: AtomicU64,
    pub(super) planned: AtomicU64,
    pub(super) read: AtomicU64,
    pub(super) unasked: AtomicU64,
    pub(super) bytes_read: AtomicU64,
    pub(super) residency_unknown_files: AtomicU64,
    // A plain lock: it is taken for pages that are skipped, and per file.
    skips: Mutex<Skips>,
    changes: Mutex<Changes>,
}

/// Under which reasons a file has been counted, a bit each.
#[derive(Debug, Default)]
pub(super) struct Blame(AtomicU16);

/// Each reason has a bit.
const _: () = assert!((Reason::Interrupted as u32) < u16::BITS);

#[derive(Debug, Default)]
struct Skips {
    by_reason: BTreeMap<Reason, (u64, u64)>,
    files: Vec<SkippedFile>,
}

impl Tally {
    /// Counts pages of a file as skipped. The first time for this reason, the
    /// file counts too, and is named with `detail` while there is room.
    pub(super) fn skip(
        &self,
        path: &Path,
        blame: &Blame,
        reason: Reason,
        pages: u64,
        detail: impl FnOnce() -> String,
    ) {
        let bit = 1 << reason as u16;
        let is_new = blame.0.fetch_or(bit, Relaxed) & bit == 0;
        let mut skips = lock(&self.skips);
        let (all_pages, files) = skips.by_reason.entry(reason).or_default();
        *all_pages = all_pages.saturating_add(pages);
        *files += u64::from(is_new);
        if is_new && skips.files.len() < FILES {
            skips.files.push(SkippedFile {
                path: path.to_string_lossy().into_owned(),
                reason,
                detail: detail(),
            });
        }
    }

    /// Counts a file that has changed since the list was made, and is read.
    pub(super) fn change(&self, path: &Path, change: Change) {
        lock(&self.changes).add(ChangedFile {
            path: path.to_string_lossy().into_owned(),
            change,
        });
    }

    /// What has been counted so far.
    pub(super) fn report(&self, page_size: u32, elapsed: Duration, dry_run: bool) -> Report {
        let skips = lock(&self.skips);
        let mut by_reason = skips.by_reason.clone();
        let mut files = skips.files.clone();
        files.sort_unstable();
        let mut changes = lock(&self.changes).clone();
        changes.named.sort_unstable();
        let mut pages = Pages {
            asked: self.asked.load(Relaxed),
            resident: self.resident.load(Relaxed),
            planned: self.planned.load(Relaxed),
            read: self.read.load(Relaxed),
            skipped: by_reason.values().map(|(pages, _)| pages).sum(),
        };
        // What is neither here nor there is in the hands of a thread that the
        // report does not wait for: stuck in a read when the user stopped it.
        let done = if dry_run { pages.planned } else { pages.read };
        let stuck = pages.asked - (pages.resident + done + pages.skipped).min(pages.asked);
        if stuck > 0 {
            by_reason.entry(Reason::Interrupted).or_default().0 += stuck;
            pages.skipped += stuck;
        }
        let bytes_read = self.bytes_read.load(Relaxed);
        let seconds = elapsed.as_secs_f64();
        Report {
            schema: SCHEMA.into(),
            page_size,
            pages,
            skipped: by_reason
                .into_iter()
                .map(|(reason, (pages, files))| Skipped {
                    reason,
                    pages,
                    files,
                })
                .collect(),
            files,
            changed: changes,
            residency_unknown_files: self.residency_unknown_files.load(Relaxed),
            unasked_pages: self.unasked.load(Relaxed),
            bytes_read,
            seconds,
            mb_per_s: if seconds > 0.0 {
                bytes_read as f64 / 1e6 / seconds
            } else {
                0.0
            },
            dry_run,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_counts_once_for_each_reason() {
        let tally = Tally::default();
        tally.asked.store(30, Relaxed);
        tally.read.store(4, Relaxed);
        let (one, two) = (Blame::default(), Blame::default());
        let skip = |path: &str, blame: &Blame, reason, pages| {
            tally.skip(Path::new(path), blame, reason, pages, || "why".into());
        };
        skip("/b", &one, Reason::Unreadable, 5);
        skip("/b", &one, Reason::Unreadable, 6);
        skip("/b", &one, Reason::Interrupted, 1);
        skip("/a", &two, Reason::Unreadable, 7);
        let report = tally.report(4096, Duration::from_secs(2), false);
        let skipped = |reason, pages, files| Skipped {
            reason,
            pages,
            files,
        };
        let expected = [
            skipped(Reason::Unreadable, 18, 2),
            // One counted, and seven that nobody accounted for.
            skipped(Reason::Interrupted, 8, 1),
        ];
        assert_eq!(report.skipped, expected);
        assert_eq!(report.pages.skipped, 26);
        let named: Vec<_> = report.files.iter().map(|file| &*file.path).collect();
        assert_eq!(named, ["/a", "/b", "/b"]);
    }

    #[test]
    fn only_the_first_files_are_named() {
        let tally = Tally::default();
        for number in 0..FILES * 2 {
            let path = format!("/{number}");
            tally.skip(
                Path::new(&path),
                &Blame::default(),
                Reason::Gone,
                1,
                String::new,
            );
        }
        let report = tally.report(4096, Duration::ZERO, false);
        assert_eq!(report.files.len(), FILES);
        assert_eq!(report.skipped[0].files, 2 * FILES as u64);
    }
}
