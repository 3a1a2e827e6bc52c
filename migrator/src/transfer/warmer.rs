//! Prefetches one list after the other, on a thread of its own.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::{self, JoinHandle};

use anyhow::{Context, anyhow, bail};
use bytes::{Buf, Bytes};
use crossbeam_channel::{Receiver, Sender, unbounded};
use tokio::sync::mpsc;

use super::receive::prefetch;
use crate::file::StatKey;
use crate::kernel;
use crate::pagelist::{HotFile, PageIndexList};
use crate::prefetch::{Options, Report};
use crate::protocol::Message;

/// So many bytes of lists may wait to be read. What follows them on the
/// connection decides about a process tree and must not wait for files to be
/// prefetched. 100 million pages at random need no more than this.
const MAX_WAITING: u64 = 256 << 20;

/// So many runs are kept, to look at them again after the restore.
const MAX_KEPT: usize = 8 << 20;

/// Prefetches lists as they come.
pub struct Warmer {
    bytes: Sender<Bytes>,
    waiting: Arc<AtomicU64>,
    thread: JoinHandle<Warmed>,
}

/// What came of the lists.
#[derive(Debug, Default)]
pub struct Warmed {
    /// Of all of them together; none if nothing came.
    pub report: Option<Report>,
    /// Their files, each once.
    pub files: Vec<HotFile>,
    /// Why not all of them could be prefetched.
    pub error: Option<anyhow::Error>,
}

impl Warmer {
    /// Starts. Says through `messages` how many lists are done, after each.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn start(options: Options, messages: mpsc::Sender<Message>) -> anyhow::Result<Self> {
        let (bytes, pieces) = unbounded();
        let waiting = Arc::new(AtomicU64::new(0));
        let input = Input {
            pieces,
            piece: Bytes::new(),
            waiting: Arc::clone(&waiting),
        };
        let thread = thread::Builder::new()
            .name("warmer".into())
            .spawn(move || warm(input, &options, &messages))
            .context("failed to start a thread")?;
        Ok(Self {
            bytes,
            waiting,
            thread,
        })
    }

    /// Takes the next bytes of lists.
    ///
    /// # Errors
    /// Too many wait.
    pub fn take(&self, bytes: Bytes) -> anyhow::Result<()> {
        let length = bytes.len() as u64;
        if self.waiting.fetch_add(length, Relaxed) + length > MAX_WAITING {
            bail!("the source's lists are too long: {MAX_WAITING} bytes of them wait to be read");
        }
        // If this fails, a list was bad, which `finish` tells.
        _ = self.bytes.send(bytes);
        Ok(())
    }

    /// Waits until all is prefetched.
    pub fn finish(self) -> Warmed {
        drop(self.bytes);
        self.thread.join().unwrap_or_else(|_| Warmed {
            error: Some(anyhow!("the prefetch ended unexpectedly")),
            ..Warmed::default()
        })
    }
}

fn warm(mut input: Input, options: &Options, messages: &mpsc::Sender<Message>) -> Warmed {
    let mut warmed = Warmed::default();
    let mut kept = Kept::default();
    for lists in 1.. {
        if !input.has_more() {
            break;
        }
        match prefetch(input, options.clone(), |files| kept.keep(files)) {
            Ok((report, rest)) => {
                match &mut warmed.report {
                    Some(sum) => sum.add(report),
                    none => *none = Some(report),
                }
                // The source is gone if nobody takes it.
                _ = messages.blocking_send(Message::Warm(lists));
                input = rest;
            }
            Err(aborted) => {
                warmed.error = Some(aborted.error);
                break;
            }
        }
    }
    warmed.files = kept.files();
    warmed
}

/// The files of several lists, put together.
#[derive(Default)]
struct Kept {
    files: BTreeMap<PathBuf, HotFile>,
    runs: usize,
}

impl Kept {
    /// The latest identity holds. Where another file lies at a path now, the
    /// pages of the one before are of no use.
    fn keep(&mut self, files: &[HotFile]) {
        for file in files {
            if self.runs + file.runs.len() > MAX_KEPT {
                continue;
            }
            self.runs += file.runs.len();
            let identity = &file.identity;
            match self.files.get_mut(&identity.path) {
                Some(known) if StatKey::from(&known.identity) == StatKey::from(identity) => {
                    known.identity = identity.clone();
                    known.runs.extend_from_slice(&file.runs);
                }
                Some(known) => {
                    self.runs -= known.runs.len();
                    *known = file.clone();
                }
                None => _ = self.files.insert(identity.path.clone(), file.clone()),
            }
        }
    }

    /// Returns the files, hottest first. Each round names other pages, unless a
    /// file has changed: then some of them stand in it twice.
    fn files(self) -> Vec<HotFile> {
        let mut list = PageIndexList {
            page_size: kernel::page_size(),
            files: self.files.into_values().collect(),
        };
        for file in &mut list.files {
            file.runs.sort_by_key(|run| (run.index, Reverse(run.heat)));
            let mut end = 0_u64;
            file.runs.retain_mut(|run| {
                let overlap = end.saturating_sub(run.index).min(u64::from(run.pages));
                run.index += overlap;
                run.pages -= overlap as u32;
                end = end.max(run.end());
                run.pages > 0
            });
        }
        list.hottest_first();
        list.files
    }
}

/// The bytes of the lists as they come, on a thread that may wait.
struct Input {
    pieces: Receiver<Bytes>,
    piece: Bytes,
    waiting: Arc<AtomicU64>,
}

impl Input {
    /// Waits for more; false at the end.
    fn has_more(&mut self) -> bool {
        while self.piece.is_empty() {
            match self.pieces.recv() {
                Ok(piece) => self.piece = piece,
                Err(_) => return false,
            }
            self.waiting.fetch_sub(self.piece.len() as u64, Relaxed);
        }
        true
    }
}

impl Read for Input {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if !self.has_more() {
            return Ok(0);
        }
        let length = bytes.len().min(self.piece.len());
        self.piece.copy_to_slice(&mut bytes[..length]);
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pagelist::{FileIdentity, Run};

    fn file(path: &str, runs: &[(u64, u32)]) -> HotFile {
        HotFile {
            identity: FileIdentity {
                path: path.into(),
                device: 1,
                inode: 1,
                size: 1 << 30,
                mtime_ns: 0,
            },
            runs: runs
                .iter()
                .map(|&(index, pages)| Run {
                    index,
                    pages,
                    heat: 1,
                })
                .collect(),
        }
    }

    #[test]
    fn files_of_several_lists_are_put_together() {
        let mut kept = Kept::default();
        kept.keep(&[file("/a", &[(10, 5), (30, 1)]), file("/b", &[(0, 1)])]);
        kept.keep(&[file("/a", &[(0, 2), (12, 20)])]);
        let files = kept.files();
        let pages = |file: &HotFile| -> Vec<(u64, u32)> {
            file.runs.iter().map(|run| (run.index, run.pages)).collect()
        };
        assert_eq!(files.len(), 2);
        assert_eq!(pages(&files[0]), [(0, 2), (10, 5), (15, 17)]);
        assert_eq!(pages(&files[1]), [(0, 1)]);
    }

    #[test]
    fn a_file_at_the_path_of_another_takes_its_place() {
        let mut kept = Kept::default();
        kept.keep(&[file("/a", &[(10, 5), (30, 1)])]);
        let mut other = file("/a", &[(0, 2)]);
        other.identity.inode = 2;
        kept.keep(&[other.clone()]);
        assert_eq!(kept.runs, 1);
        assert_eq!(kept.files(), [other]);
    }

    #[test]
    fn the_hottest_file_comes_first_and_the_hotter_of_two_runs_counts() {
        let mut kept = Kept::default();
        let cold = file("/a", &[(0, 4)]);
        let mut hot = file("/b", &[(0, 4)]);
        kept.keep(&[cold, hot.clone()]);
        hot.runs[0].heat = 9;
        kept.keep(&[hot.clone()]);
        assert_eq!(kept.files()[0], hot);
    }
}
