//! The cached pages of one file.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::Reason;
use super::parts;
use super::walk::Found;
use crate::file::identity;
use crate::kernel;
use crate::pagelist::runs::{self, Joined};
use crate::pagelist::{FileIdentity, HotFile, RESIDENT, Run};
use crate::residency::{self, Residency};
use crate::source::lru::Sampler;
use crate::source::pageflags::{PageFlagsError, drain_batches};

/// How much of a file is looked at in one go, in bytes.
const WINDOW: u64 = 256 << 20;

/// Finds out which pages of a file are cached.
pub(super) struct Scanner {
    /// Tells pages apart, where that is permitted.
    flags: Option<Sampler>,
    page_size: u32,
}

impl Scanner {
    /// Opens what the LRU's flags are read from. Where they can't be had, that is said,
    /// and pages are not told apart.
    pub(super) fn new() -> Self {
        let flags = match Sampler::procfs(Path::new("/proc"), Path::new("/sys")) {
            Ok(sampler) => {
                drain_batches();
                Some(sampler)
            }
            Err(error) => {
                without_flags(error);
                None
            }
        };
        Self {
            flags,
            page_size: kernel::page_size(),
        }
    }

    pub(super) fn has_flags(&self) -> bool {
        self.flags.is_some()
    }

    /// Returns the file with its cached pages.
    pub(super) fn scan(&mut self, found: &Found<'_>) -> Result<HotFile, Reason> {
        let file = found.open().map_err(|error| reason(&error))?;
        let meta = file.metadata().map_err(|error| reason(&error))?;
        let identity = FileIdentity {
            path: found.path.to_owned(),
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            mtime_ns: identity::mtime_ns(&meta),
        };
        identity.check().map_err(|_| Reason::LongPath)?;
        let page_size = u64::from(self.page_size);
        let end = identity.size.div_ceil(page_size);
        let mut joined = Joined::default();
        let mut look = |part: Range<u64>| -> Result<(), Reason> {
            for run in self.look(&file, part)? {
                joined.push(run.index, run.end(), run.heat);
            }
            Ok(())
        };
        let window = WINDOW / page_size;
        if residency::count(&file, 0..end).is_some() {
            let count = |part| residency::count(&file, part).ok_or(Reason::Failed);
            parts::counted(0..end, window, count, look)?;
        } else {
            let next = |page: u64| match seek(&file, SeekFrom::Data(page * page_size)) {
                Ok(offset) => Ok(Some(offset / page_size)),
                Err(Errno::NXIO) => Ok(None),
                // A file system that does not know where data is.
                Err(_) => Ok(Some(page)),
            };
            parts::with_data(0..end, window, next, &mut look)?;
        }
        let runs = runs::clip(&joined.into_runs(), end);
        Ok(HotFile { identity, runs })
    }

    /// Returns the cached pages of a part.
    fn look(&mut self, file: &File, part: Range<u64>) -> Result<Vec<Run>, Reason> {
        if let Some(sampler) = &self.flags {
            let page_size = u64::from(self.page_size);
            match sampler.hot_part(file, part.start * page_size..part.end * page_size) {
                Ok(runs) => return Ok(runs),
                Err(error @ PageFlagsError::NotPermitted(_)) => {
                    without_flags(error);
                    self.flags = None;
                }
                Err(_) => return Err(Reason::Failed),
            }
        }
        match residency::resident(file, &[part]) {
            Ok(Residency::Known(resident)) => {
                let mut runs = Joined::default();
                for pages in resident {
                    runs.push(pages.start, pages.end, RESIDENT);
                }
                Ok(runs.into_runs())
            }
            Ok(Residency::Unknown) => Err(Reason::NotPermitted),
            Err(error) => Err(reason(&error)),
        }
    }
}

fn without_flags(error: PageFlagsError) {
    let error = anyhow::Error::from(error);
    crate::say!("all cached pages have heat 1, because the LRU's flags can't be read: {error:#}");
}

fn reason(error: &io::Error) -> Reason {
    match error.kind() {
        io::ErrorKind::PermissionDenied => Reason::NotPermitted,
        _ => Reason::Failed,
    }
}
