//! What a prefetch did, in numbers and in words.

use std::borrow::Cow;
use std::fmt;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

use super::version::Change;

/// What a prefetch did. It travels back to the source as well.
///
/// Of a run that read, `asked = resident + read + skipped`; of a dry one,
/// `asked = resident + planned + skipped`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: Cow<'static, str>,
    /// Bytes a page.
    pub page_size: u32,
    /// The pages the list names.
    pub pages: Pages,
    /// Those of them that were skipped, by reason.
    pub skipped: Vec<Skipped>,
    /// The first [`FILES`] files with skipped pages, by path.
    pub files: Vec<SkippedFile>,
    /// The files that have changed since the list was made and were read all the same.
    #[serde(default)]
    pub changed: Changes,
    /// Of how many files could not be known which pages are resident; their
    /// pages were read without asking.
    pub residency_unknown_files: u64,
    /// Pages that came in without having been asked for: they lie in small holes
    /// that were read over. Those of them that were resident before are counted too.
    #[serde(default)]
    pub unasked_pages: u64,
    /// Bytes that were read to bring pages in. What --activate reads again is
    /// not counted.
    pub bytes_read: u64,
    /// From the beginning to the end.
    pub seconds: f64,
    /// Millions of bytes per second.
    pub mb_per_s: f64,
    /// Nothing was read; the rest is what would be.
    pub dry_run: bool,
}

/// Names the JSON form of a [`Report`].
pub const SCHEMA: &str = "migrator.prefetch/1";

/// How many skipped files a report names at most.
pub const FILES: usize = 100;

/// Numbers of pages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pages {
    /// Named by the list.
    pub asked: u64,
    /// In the cache already.
    pub resident: u64,
    /// Set out to be read: asked for, not resident, and in the budget.
    pub planned: u64,
    /// Read.
    pub read: u64,
    /// Neither resident nor read.
    pub skipped: u64,
}

/// How much was skipped for a reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// The reason.
    pub reason: Reason,
    /// How many pages.
    pub pages: u64,
    /// Of how many files. A file may count under several reasons.
    pub files: u64,
}

/// A file of which pages were skipped.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SkippedFile {
    /// As the list has it.
    pub path: String,
    /// The reason.
    pub reason: Reason,
    /// The reason in this case, in words.
    pub detail: String,
}

/// Files that have changed since the list was made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    /// How many.
    pub files: u64,
    /// The first [`FILES`] of them, by path.
    pub named: Vec<ChangedFile>,
}

/// A file that has changed since the list was made.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ChangedFile {
    /// As the list has it.
    pub path: String,
    /// How it differs.
    #[serde(flatten)]
    pub change: Change,
}

impl Changes {
    /// Counts a file, and names it while there is room. A file that is named already
    /// came in several pieces or lists, and counts once.
    pub(super) fn add(&mut self, file: ChangedFile) {
        if let Some(known) = self.named.iter_mut().find(|known| known.path == file.path) {
            known.change.after = file.change.after;
            return;
        }
        self.files = self.files.saturating_add(1);
        if self.named.len() < FILES {
            self.named.push(file);
        }
    }

    /// Takes in those of another report.
    fn merge(&mut self, other: Self) {
        let unnamed = other.files.saturating_sub(other.named.len() as u64);
        for file in other.named {
            self.add(file);
        }
        self.files = self.files.saturating_add(unnamed);
        self.named.sort_unstable();
    }
}

/// Why pages were skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The list's path is relative or has a `..` in it.
    BadPath,
    /// It leads out of the directories that --allow names.
    NotAllowed,
    /// There is no such file.
    Gone,
    /// This process may not read it.
    NotPermitted,
    /// It is a directory, a FIFO, a device or a socket.
    NotARegularFile,
    /// It lives in memory (tmpfs) or is made up by the kernel (proc, sysfs).
    NoDisk,
    /// Its size or mtime is not that of the list, and --strict asks for both.
    Changed,
    /// Another file was put in its place.
    Replaced,
    /// The file ends before these pages.
    BeyondEnd,
    /// Opening or reading it failed.
    Unreadable,
    /// --budget was used up by hotter pages.
    OverBudget,
    /// Reading on would have driven out hotter pages, or others' memory.
    MemoryPressure,
    /// The user stopped it.
    Interrupted,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BadPath => "not a path to follow",
            Self::NotAllowed => "outside of what --allow names",
            Self::Gone => "gone",
            Self::NotPermitted => "not permitted",
            Self::NotARegularFile => "not a regular file",
            Self::NoDisk => "not on a disk or network file system",
            Self::Changed => "changed",
            Self::Replaced => "replaced by another file; --any-version reads it",
            Self::BeyondEnd => "beyond the end of the file",
            Self::Unreadable => "unreadable",
            Self::OverBudget => "over budget",
            Self::MemoryPressure => "memory pressure",
            Self::Interrupted => "interrupted",
        })
    }
}

impl Report {
    /// Whether all that was asked for is in the cache now (or would be).
    ///
    /// What fell out of an explicit --budget was not asked for: that is what
    /// the budget says. What lies beyond the end of a file can be in no cache.
    pub fn is_complete(&self) -> bool {
        self.skipped.iter().all(|skipped| {
            let is_meant = matches!(skipped.reason, Reason::OverBudget | Reason::BeyondEnd);
            is_meant || skipped.pages == 0
        })
    }

    /// Takes in what a prefetch of other pages did after this one.
    pub fn add(&mut self, other: Self) {
        let pages = &mut self.pages;
        pages.asked += other.pages.asked;
        pages.resident += other.pages.resident;
        pages.planned += other.pages.planned;
        pages.read += other.pages.read;
        pages.skipped += other.pages.skipped;
        for skipped in other.skipped {
            match self
                .skipped
                .iter_mut()
                .find(|it| it.reason == skipped.reason)
            {
                Some(mine) => {
                    mine.pages += skipped.pages;
                    mine.files += skipped.files;
                }
                None => self.skipped.push(skipped),
            }
        }
        self.files.extend(other.files);
        self.files.truncate(FILES);
        self.changed.merge(other.changed);
        self.residency_unknown_files += other.residency_unknown_files;
        self.unasked_pages += other.unasked_pages;
        self.bytes_read += other.bytes_read;
        self.seconds += other.seconds;
        self.mb_per_s = match self.seconds > 0.0 {
            true => self.bytes_read as f64 / 1e6 / self.seconds,
            false => 0.0,
        };
    }
}

/// So many files that were skipped are named to people; JSON names more.
const NAMED: usize = 10;

/// The report for people: a few aligned lines.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Pages {
            asked,
            resident,
            planned,
            read,
            skipped,
        } = self.pages;
        let size = |pages: u64| {
            let bytes = pages.saturating_mul(u64::from(self.page_size));
            ByteSize(bytes).display().iec().to_string()
        };
        let line = |f: &mut fmt::Formatter<'_>, name: &str, pages: u64| {
            write!(f, "{name:<10} {pages:>12} pages {:>11}", size(pages))
        };
        line(f, "asked", asked)?;
        writeln!(f)?;
        line(f, "resident", resident)?;
        writeln!(f)?;
        if self.dry_run {
            line(f, "would read", planned)?;
            writeln!(f)?;
        } else {
            line(f, "read", read)?;
            writeln!(f, "  in {:.2} s, {:.1} MB/s", self.seconds, self.mb_per_s)?;
        }
        if self.unasked_pages > 0 {
            line(f, "besides", self.unasked_pages)?;
            writeln!(f, "  in small holes that were read over")?;
        }
        line(f, "skipped", skipped)?;
        writeln!(f)?;
        for Skipped {
            reason,
            pages,
            files,
        } in &self.skipped
        {
            writeln!(
                f,
                "{:<10} {pages:>12} pages of {}: {reason}",
                "",
                files_of(*files)
            )?;
        }
        if self.residency_unknown_files > 0 {
            writeln!(
                f,
                "Which pages of {} are resident is not ours to know; they {} all read.",
                files_of(self.residency_unknown_files),
                if self.dry_run { "would be" } else { "were" },
            )?;
        }
        for SkippedFile { path, detail, .. } in self.files.iter().take(NAMED) {
            // A hostile list's path must not steer the terminal.
            writeln!(f, "{}: {}", printable(path), printable(detail))?;
        }
        let named = self.files.len().min(NAMED) as u64;
        // Another host's numbers may be anything.
        let files = self.skipped.iter().map(|skipped| skipped.files);
        let all = files.fold(0, u64::saturating_add);
        if all > named {
            writeln!(f, "and {} more", all - named)?;
        }
        self.fmt_changes(f)
    }
}

impl Report {
    fn fmt_changes(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Changes { files, named } = &self.changed;
        if *files == 0 {
            return Ok(());
        }
        writeln!(
            f,
            "{} changed since the list was made; what lies within {} {} read:",
            files_of(*files),
            if *files == 1 { "it" } else { "them" },
            if self.dry_run { "would be" } else { "was" },
        )?;
        for ChangedFile { path, change } in named.iter().take(NAMED) {
            writeln!(f, "{}: {change}", printable(path))?;
        }
        let more = files.saturating_sub(named.len().min(NAMED) as u64);
        if more > 0 {
            writeln!(f, "and {more} more")?;
        }
        Ok(())
    }
}

fn files_of(files: u64) -> String {
    match files {
        1 => "1 file".into(),
        _ => format!("{files} files"),
    }
}

fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|char| {
            let escaped = char.is_control().then(|| char.escape_default());
            let plain = escaped.is_none().then_some(char);
            escaped.into_iter().flatten().chain(plain)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::version::Version;
    use super::*;

    fn changed(path: &str) -> ChangedFile {
        let version = |size| Version {
            size,
            mtime_ns: 0,
            inode: None,
        };
        ChangedFile {
            path: path.into(),
            change: Change {
                before: version(4096),
                after: version(4097),
            },
        }
    }

    fn report() -> Report {
        Report {
            schema: SCHEMA.into(),
            page_size: 4096,
            pages: Pages {
                asked: 1000,
                resident: 100,
                planned: 880,
                read: 880,
                skipped: 20,
            },
            skipped: vec![Skipped {
                reason: Reason::Gone,
                pages: 20,
                files: 1,
            }],
            files: vec![SkippedFile {
                path: "/data/\u{1b}[2J".into(),
                reason: Reason::Gone,
                detail: "gone".into(),
            }],
            changed: Changes::default(),
            residency_unknown_files: 0,
            unasked_pages: 8,
            bytes_read: 3_604_480,
            seconds: 0.5,
            mb_per_s: 7.2,
            dry_run: false,
        }
    }

    #[test]
    fn only_what_cannot_be_meant_leaves_it_complete() {
        let mut report = report();
        assert!(!report.is_complete());
        report.skipped[0].reason = Reason::Replaced;
        assert!(!report.is_complete());
        report.skipped[0].reason = Reason::BeyondEnd;
        assert!(report.is_complete());
        report.skipped[0].reason = Reason::OverBudget;
        assert!(report.is_complete());
        report.skipped[0].reason = Reason::MemoryPressure;
        assert!(!report.is_complete());
        report.skipped.clear();
        assert!(report.is_complete());
    }

    #[test]
    fn text_is_aligned_and_harmless() {
        let text = report().to_string();
        let expected = "\
asked              1000 pages     3.9 MiB
resident            100 pages   400.0 KiB
read                880 pages     3.4 MiB  in 0.50 s, 7.2 MB/s
besides               8 pages    32.0 KiB  in small holes that were read over
skipped              20 pages    80.0 KiB
                     20 pages of 1 file: gone
/data/\\u{1b}[2J: gone
";
        assert_eq!(text, expected);

        let mut report = report();
        for number in 10..22 {
            report.changed.add(changed(&format!("/{number}\u{1b}")));
        }
        let text = report.to_string();
        let changes: Vec<_> = text.lines().skip(expected.lines().count()).collect();
        assert_eq!(
            changes[0],
            "12 files changed since the list was made; what lies within them was read:"
        );
        assert_eq!(changes[1], "/10\\u{1b}: size 4096 → 4097");
        assert_eq!(changes[10], "/19\\u{1b}: size 4096 → 4097");
        assert_eq!(changes[11..], ["and 2 more"]);
    }

    #[test]
    fn a_changed_file_counts_once_and_only_the_first_are_named() {
        let mut mine = Changes::default();
        let mut later = changed("/a");
        later.change.after.size = 5000;
        for file in [changed("/a"), changed("/b"), later] {
            mine.add(file);
        }
        assert_eq!((mine.files, mine.named.len()), (2, 2));
        let change = mine.named[0].change;
        assert_eq!((change.before.size, change.after.size), (4096, 5000));

        let mut other = Changes::default();
        for number in 0..FILES as u64 + 5 {
            other.add(changed(&format!("/other/{number}")));
        }
        assert_eq!((other.files, other.named.len()), (105, FILES));
        other.named[7].path = "/b".into();
        mine.merge(other);
        assert_eq!((mine.files, mine.named.len()), (106, FILES));
        assert!(mine.named.is_sorted());

        // The numbers of another host may be anything.
        let hostile = Changes {
            files: u64::MAX,
            named: Vec::new(),
        };
        mine.merge(hostile.clone());
        mine.merge(hostile);
        assert_eq!(mine.files, u64::MAX);
    }

    #[test]
    fn json_keeps_its_form_and_comes_back() {
        let mut report = report();
        let mut other = changed("/data/b");
        other.change.before.inode = Some(1);
        other.change.after.inode = Some(2);
        report.changed.add(changed("/data/a"));
        report.changed.add(other);
        let json = serde_json::to_value(&report).expect("serialize");
        let expected = serde_json::json!({
            "schema": "migrator.prefetch/1",
            "page_size": 4096,
            "pages": {"asked": 1000, "resident": 100, "planned": 880, "read": 880, "skipped": 20},
            "skipped": [{"reason": "gone", "pages": 20, "files": 1}],
            "files": [{"path": "/data/\u{1b}[2J", "reason": "gone", "detail": "gone"}],
            "changed": {"files": 2, "named": [
                {"path": "/data/a", "before": {"size": 4096, "mtime": 0},
                    "after": {"size": 4097, "mtime": 0}},
                {"path": "/data/b", "before": {"size": 4096, "mtime": 0, "inode": 1},
                    "after": {"size": 4097, "mtime": 0, "inode": 2}},
            ]},
            "residency_unknown_files": 0,
            "unasked_pages": 8,
            "bytes_read": 3604480,
            "seconds": 0.5,
            "mb_per_s": 7.2,
            "dry_run": false,
        });
        assert_eq!(json, expected);
        let back: Report = serde_json::from_value(json).expect("deserialize");
        assert_eq!(back, report);
    }
}
