//! One look at what the tree has in use, while it is frozen.
//!
//! The files are those that its processes have open or mapped. Paths are kept
//! as the tree's own root directory has them: that is what stays the same from
//! host to host, where a container's layers and volumes lie elsewhere. What is
//! hot of a file is what the LRU says ([`lru`](crate::source::lru)), and
//! what stands in the tree's page tables, which the LRU does not see.
//!
//! The time is limited, for CRIU waits, and the tasks may be frozen. So
//! everything that may take long is done by threads that nobody waits for once
//! it is over. And most of it is done by a first look before the freeze; the
//! one during it takes over what that has seen, and is about sizes and times
//! of the files and about those that were opened in between.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use nix::fcntl::OFlag;
use nix::sys::statfs::statfs;

use crate::file::maps::Mapping;
use crate::file::open_files::OpenFile;
use crate::file::{Device, Resolver, identity, open_files};
use crate::heat::FileId;
use crate::history::{self, client};
use crate::kernel;
use crate::pagelist::runs::{self, Joined};
use crate::pagelist::{ACTIVE, FileIdentity, Heat, HotFile, PageIndexList, REFERENCED, Run};
use crate::prefetch::made_up;
use crate::source::lru::Sampler;
use crate::source::mapped;
use crate::source::pageflags::drain_batches;
use crate::target::Target;
use crate::tracker::file_id;

/// So much of a file is looked at in one go, in bytes.
const PART: u64 = 64 << 20;

/// How long the tracker of this host may take to tell what it knows of the files.
const ASK_LIMIT: Duration = Duration::from_millis(500);

/// Threads that look: on a network file system each file takes round trips.
const LOOKERS: usize = 8;

/// Heat of pages of which nothing is known but that they are mapped.
const MAPPED: Heat = REFERENCED;

/// What was seen.
#[derive(Debug)]
pub struct Seen {
    /// The hot pages.
    pub list: PageIndexList,
    /// How well pages can be told apart here.
    pub how: &'static str,
    /// How many files, or processes, could not be looked at, and why.
    pub left_out: BTreeMap<String, u64>,
    /// Whether there was time for everything.
    pub complete: bool,
    /// Since when the tracker runs that was asked, as people write it.
    pub tracker: Option<String>,
}

/// Looks at the tree below `init` for so long at most. Of files that an
/// earlier look has seen, pages are not looked at again.
///
/// # Errors
/// Page flags can't be had here, or there is no such process.
pub fn look(init: i32, time: Duration, earlier: Option<PageIndexList>) -> anyhow::Result<Seen> {
    let deadline = Instant::now() + time;
    let proc_root = Path::new("/proc");
    let page_size = kernel::page_size();
    let sampler = Sampler::procfs(proc_root, Path::new("/sys"))?;
    let how = sampler.what_it_knows();
    let pids = Target::Process(init).processes(proc_root)?;
    let mut tree = Tree::default();
    let root = fs::read_link(proc_root.join(init.to_string()).join("root"))
        .with_context(|| format!("failed to find the root directory of process {init}"))?;
    for pid in &pids {
        if Instant::now() < deadline {
            tree.add(&proc_root.join(pid.to_string()), &root);
        }
    }
    let tree = Arc::new(tree);
    let (jobs, parts) = unbounded();
    if earlier.is_none() {
        for pid in pids {
            // The receiver is there.
            _ = jobs.send(Job::Mapped(pid));
        }
    }
    let (tell, told) = unbounded();
    if earlier.is_none() && history::socket(None).exists() {
        let (tree, tell) = (Arc::clone(&tree), tell.clone());
        thread::Builder::new()
            .name("history".into())
            .spawn(move || tell_history(&tree, &tell))
            .context("failed to start a thread")?;
    }
    let earlier = Earlier::new(&tree, earlier);
    // With little time, many small files are worth more than a part of one.
    let mut files: Vec<usize> = (0..tree.files.len()).collect();
    files.retain(|&file| earlier.runs[file].is_empty());
    files.sort_by_key(|&file| tree.files[file].identity.size);
    for file in files {
        let size = tree.files[file].identity.size;
        for start in (0..size).step_by(PART as usize) {
            _ = jobs.send(Job::Part(file, start..size.min(start + PART)));
        }
    }
    drop(jobs);
    if !parts.is_empty() {
        drain_batches();
    }
    let mut sampler = Some(sampler);
    for _ in 0..LOOKERS.min(parts.len()) {
        let sampler = match sampler.take() {
            Some(sampler) => sampler,
            // Each has its own: they would wait for each other's sink.
            None => Sampler::procfs(proc_root, Path::new("/sys"))?,
        };
        let (tree, parts, tell) = (Arc::clone(&tree), parts.clone(), tell.clone());
        thread::Builder::new()
            .name("look".into())
            .spawn(move || work(&tree, &sampler, page_size, &parts, &tell))
            .context("failed to start a thread")?;
    }
    drop(tell);
    Ok(collect(&tree, earlier, page_size, how, &told, deadline))
}

/// What an earlier look has seen.
#[derive(Debug, Default)]
struct Earlier {
    /// Hot pages of the files of the tree.
    runs: Vec<Vec<Run>>,
    /// Files that are not open any more, and may be again.
    closed: Vec<HotFile>,
}

impl Earlier {
    fn new(tree: &Tree, list: Option<PageIndexList>) -> Self {
        let mut earlier = Self {
            runs: vec![Vec::new(); tree.files.len()],
            closed: Vec::new(),
        };
        for file in list.into_iter().flat_map(|list| list.files) {
            let place = (file.identity.device, file.identity.inode);
            match tree.known.get(&place) {
                Some(&Some(number)) => earlier.runs[number] = file.runs,
                // Deleted meanwhile, for one.
                Some(None) => {}
                None => earlier.closed.push(file),
            }
        }
        earlier
    }
}

/// Something to look at.
enum Job {
    /// A part of a file, in bytes: what does the LRU say?
    Part(usize, Range<u64>),
    /// The page tables of a process.
    Mapped(i32),
}

/// What came out of it.
enum Told {
    Runs(usize, Vec<Run>),
    Mapped(HashMap<usize, Vec<Range<u64>>>),
    History(String, HashMap<usize, Vec<Run>>),
    LeftOut(String),
}

/// Tells what the tracker of this host knows of the files.
fn tell_history(tree: &Tree, tell: &Sender<Told>) {
    let mut resolver = Resolver::new(PathBuf::from("/proc"));
    let mut numbers: HashMap<FileId, usize> = HashMap::new();
    for (number, file) in tree.files.iter().enumerate() {
        // Of an overlay the layer's file, which has the pages.
        if let Some(key) = resolver.inode_of(&file.process, &file.open) {
            numbers.insert(file_id(key), number);
        }
    }
    let files: Vec<FileId> = numbers.keys().copied().collect();
    let asked = client::ask_for(&history::socket(None), &files, REFERENCED, ASK_LIMIT);
    let told = match asked {
        Ok(None) => return,
        Ok(Some(known)) => {
            let runs = known.list.files.into_iter().filter_map(|file| {
                let identity = &file.identity;
                let device = Device::from_stat(identity.device);
                let by_inode = FileId {
                    device: device.major << 20 | device.minor,
                    inode: identity.inode,
                };
                // Where `st_dev` is a subvolume's, it is the one that the tree's file has.
                let known = || *tree.known.get(&(identity.device, identity.inode))?;
                let number = numbers.get(&by_inode).copied().or_else(known)?;
                Some((number, file.runs))
            });
            Told::History(known.status.since(), runs.collect())
        }
        Err(error) => Told::LeftOut(format!("{error:#}")),
    };
    // It may be too late by now.
    _ = tell.send(told);
}

fn work(tree: &Tree, sampler: &Sampler, page_size: u32, jobs: &Receiver<Job>, tell: &Sender<Told>) {
    for job in jobs {
        let told = match job {
            Job::Part(number, part) => match tree.files[number].open() {
                Ok(file) => match sampler.hot_part(file, part) {
                    Ok(runs) => Told::Runs(number, runs),
                    Err(error) => Told::LeftOut(format!("{:#}", anyhow::Error::from(error))),
                },
                Err(error) => Told::LeftOut(format!("failed to open it: {error}")),
            },
            Job::Mapped(pid) => {
                let process = Path::new("/proc").join(pid.to_string());
                let mut pages: HashMap<usize, Vec<Range<u64>>> = HashMap::new();
                let walk = mapped::each(&process, page_size, |mapping, range| {
                    if let Some(&file) = tree.mapped.get(&looks(mapping)) {
                        pages.entry(file).or_default().push(range);
                    }
                });
                match walk {
                    Ok(()) => Told::Mapped(pages),
                    Err(error) => Told::LeftOut(format!("failed to read page tables: {error}")),
                }
            }
        };
        if tell.send(told).is_err() {
            return;
        }
    }
}

/// Takes what the threads tell, until they have ended or the time is over.
fn collect(
    tree: &Tree,
    earlier: Earlier,
    page_size: u32,
    how: &'static str,
    told: &Receiver<Told>,
    deadline: Instant,
) -> Seen {
    let mut runs = earlier.runs;
    let mut mapped: Vec<Vec<Range<u64>>> = vec![Vec::new(); tree.files.len()];
    let mut left_out = tree.left_out.clone();
    let (mut tracker, mut history) = (None, HashMap::new());
    let complete = loop {
        match told.recv_deadline(deadline) {
            Ok(Told::Runs(file, more)) => runs[file].extend(more),
            Ok(Told::Mapped(more)) => {
                for (file, ranges) in more {
                    mapped[file].extend(ranges);
                }
            }
            Ok(Told::History(since, more)) => {
                tracker = Some(since);
                history = more;
            }
            Ok(Told::LeftOut(why)) => *left_out.entry(why).or_default() += 1,
            Err(RecvTimeoutError::Disconnected) => break true,
            Err(RecvTimeoutError::Timeout) => break false,
        }
    };
    let files = tree.files.iter().zip(runs).zip(mapped).enumerate();
    let files = files.filter_map(|(number, ((file, runs), mapped))| {
        let end = file.identity.size.div_ceil(u64::from(page_size));
        let known = history.remove(&number).unwrap_or_default();
        let file = HotFile {
            identity: file.identity.clone(),
            runs: runs::union(&warm(runs, mapped, end), &runs::clip(&known, end)),
        };
        (!file.runs.is_empty()).then_some(file)
    });
    let mut files: Vec<HotFile> = files.chain(earlier.closed).collect();
    files.sort_by_cached_key(|file| std::cmp::Reverse((again(file), file.pages())));
    Seen {
        list: PageIndexList { page_size, files },
        how,
        left_out,
        complete,
        tracker,
    }
}

fn again(file: &HotFile) -> u64 {
    let runs = file.runs.iter().filter(|run| run.heat >= ACTIVE);
    runs.map(|run| u64::from(run.pages)).sum()
}

/// Returns the runs of both kinds: a page that is mapped is at least [`MAPPED`] hot.
/// None lies beyond `end`: the file may be shorter by now.
fn warm(mut seen: Vec<Run>, mut mapped: Vec<Range<u64>>, end: u64) -> Vec<Run> {
    seen.sort_unstable_by_key(|run| run.index);
    mapped.sort_unstable_by_key(|range| range.start);
    let mut used = Joined::default();
    let mut index = 0;
    for range in mapped {
        // Several processes may map the same.
        used.push(range.start.max(index), range.end, MAPPED);
        index = index.max(range.end);
    }
    runs::clip(&runs::union(&seen, &used.into_runs()), end)
}

/// The files of the tree.
#[derive(Debug, Default)]
struct Tree {
    files: Vec<Candidate>,
    /// Which file a line of `maps` means.
    mapped: HashMap<Looks, usize>,
    known: HashMap<(u64, u64), Option<usize>>,
    /// Whether there are pages to be had, by `st_dev`.
    disks: HashMap<u64, bool>,
    left_out: BTreeMap<String, u64>,
}

/// A mapping as `maps` shows it.
type Looks = (Device, u64, PathBuf);

fn looks(mapping: &Mapping) -> Looks {
    (mapping.device, mapping.inode, mapping.path.clone())
}

/// A file that may have hot pages.
#[derive(Debug)]
struct Candidate {
    /// Leads to it whatever its name, and in whatever mount namespace.
    open: OpenFile,
    /// The process that has it open, as in `/proc/7`.
    process: PathBuf,
    identity: FileIdentity,
    file: OnceLock<Result<File, String>>,
}

impl Tree {
    /// Adds what a process has open.
    fn add(&mut self, process: &Path, root: &Path) {
        let files = match open_files::list(process) {
            Ok(files) => files,
            Err(error) => {
                let why = format!("failed to list the files of a process: {error}");
                *self.left_out.entry(why).or_default() += 1;
                return;
            }
        };
        for file in files {
            if let Some(looks) = &file.mapping
                && self.mapped.contains_key(looks)
            {
                continue;
            }
            let number = match self.find(process, &file, root) {
                Ok(number) => number,
                Err(why) => {
                    *self.left_out.entry(why.into()).or_default() += 1;
                    continue;
                }
            };
            if let (Some(number), Some(looks)) = (number, file.mapping) {
                self.mapped.insert(looks, number);
            }
        }
    }

    /// The number of the file behind a link, if it is one that counts.
    fn find(
        &mut self,
        process: &Path,
        open: &OpenFile,
        root: &Path,
    ) -> Result<Option<usize>, &'static str> {
        // A process without an executable, or a file that was closed.
        let Ok(meta) = fs::metadata(&open.link) else {
            return Ok(None);
        };
        let place = (meta.dev(), meta.ino());
        if let Some(&number) = self.known.get(&place) {
            return Ok(number);
        }
        let number = match self.candidate(process, open, &meta, root) {
            Ok(None) => None,
            Ok(Some(candidate)) => {
                self.files.push(candidate);
                Some(self.files.len() - 1)
            }
            Err(why) => {
                self.known.insert(place, None);
                return Err(why);
            }
        };
        self.known.insert(place, number);
        Ok(number)
    }

    fn candidate(
        &mut self,
        process: &Path,
        open: &OpenFile,
        meta: &Metadata,
        root: &Path,
    ) -> Result<Option<Candidate>, &'static str> {
        let link = &open.link;
        if !meta.is_file() || !self.is_on_disk(meta.dev(), link) {
            return Ok(None);
        }
        let text = fs::read_link(link).map_err(|_| "its path is not to be found")?;
        if meta.nlink() == 0 || text.as_os_str().as_bytes().ends_with(b" (deleted)") {
            return Err("deleted");
        }
        let path = text.strip_prefix(root);
        let path = path.map_err(|_| "outside of the tree's root directory")?;
        let identity = FileIdentity {
            path: Path::new("/").join(path),
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            mtime_ns: identity::mtime_ns(meta),
        };
        if identity.check().is_err() {
            return Err("no path for a list");
        }
        Ok(Some(Candidate {
            open: open.clone(),
            process: process.to_owned(),
            identity,
            file: OnceLock::new(),
        }))
    }

    /// Whether a file system has a disk or a server behind it. Asking may
    /// take a round trip, and is done once for each.
    fn is_on_disk(&mut self, device: u64, link: &Path) -> bool {
        *self
            .disks
            .entry(device)
            .or_insert_with(|| statfs(link).is_ok_and(|stat| made_up(&stat).is_none()))
    }
}

impl Candidate {
    /// Opens it for reading, once.
    fn open(&self) -> Result<&File, &String> {
        let opened = self.file.get_or_init(|| {
            let open = |flags: OFlag| -> io::Result<File> {
                OpenOptions::new()
                    .read(true)
                    .custom_flags((flags | OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits())
                    .open(&self.open.link)
            };
            // Only a file's owner may ask that its atime stay as it is.
            open(OFlag::O_NOATIME)
                .or_else(|_| open(OFlag::empty()))
                .map_err(|error| error.to_string())
        });
        opened.as_ref()
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "ranges are what is mapped")]
mod tests {
    use super::*;
    use crate::pagelist::RESIDENT;

    fn runs(runs: &[(u64, u32, Heat)]) -> Vec<Run> {
        let run = |&(index, pages, heat)| Run { index, pages, heat };
        runs.iter().map(run).collect()
    }

    #[test]
    fn mapped_pages_fill_the_gaps() {
        let ranked = runs(&[(10, 5, ACTIVE), (30, 2, RESIDENT)]);
        let warm = |mapped: &[Range<u64>]| warm(ranked.clone(), mapped.to_vec(), 100);
        assert_eq!(warm(&[]), ranked);
        assert_eq!(
            warm(&[8..20, 25..31]),
            runs(&[
                (8, 2, MAPPED),
                (10, 5, ACTIVE),
                (15, 5, MAPPED),
                (25, 6, MAPPED),
                (31, 1, RESIDENT)
            ])
        );
        // Several processes map the same, and one of them beyond the end.
        assert_eq!(
            warm(&[40..60, 50..70, 11..13, 40..45, 90..200]),
            runs(&[
                (10, 5, ACTIVE),
                (30, 2, RESIDENT),
                (40, 30, MAPPED),
                (90, 10, MAPPED)
            ])
        );
    }

    #[test]
    fn parts_join() {
        let parts = runs(&[(16, 16, 1), (0, 16, 1)]);
        assert_eq!(warm(parts, vec![], 100), runs(&[(0, 32, 1)]));
    }

    #[test]
    fn a_file_may_have_become_shorter() {
        let seen = runs(&[(0, 5, 1), (10, 5, 1), (20, 5, 1)]);
        assert_eq!(warm(seen, vec![], 12), runs(&[(0, 5, 1), (10, 2, 1)]));
    }

    #[test]
    fn paths_count_from_the_root_of_the_tree() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a directory");
        let root = dir.path().canonicalize().expect("a path");
        let path = root.join("sub");
        fs::create_dir(&path).expect("a directory");
        let path = path.join("file");
        fs::write(&path, "x").expect("a file");
        let file = File::open(&path).expect("the file");
        let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        let open = OpenFile {
            link: link.into(),
            fd: None,
            mapping: None,
        };
        let find = |root: &Path| {
            let mut tree = Tree::default();
            let number = tree.find(Path::new("/proc/self"), &open, root)?;
            Ok(number.map(|number| tree.files[number].identity.path.clone()))
        };
        assert_eq!(find(Path::new("/")), Ok(Some(path.clone())));
        assert_eq!(find(&root), Ok(Some("/sub/file".into())));
        find(Path::new("/proc")).expect_err("outside");
        fs::remove_file(&path).expect("removed");
        assert_eq!(find(&root), Err("deleted"));
    }
}
