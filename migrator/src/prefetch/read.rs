//! Brings batches in: what each of the reading threads does.

use std::cell::OnceCell;
use std::fs::File;
use std::io;
use std::mem;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::thread;
use std::time::Duration;

use crossbeam_channel::Receiver;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::drain::Drain;
use super::open::{OpenFile, Opener, Refusal};
use super::pin::Cpus;
use super::report::Reason;
use super::tally::{Blame, Tally};
use super::version::Accepts;
use super::{ACTIVATE, Progress, lock};
use crate::kernel;
use crate::pagelist::{FileIdentity, Heat};
use crate::plan::{BATCH, Batch};

/// A file of the list that was found good, open or not.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) identity: FileIdentity,
    /// `st_dev` and `st_ino` of the file that was found good.
    pub(super) place: (u64, u64),
    /// `st_size` when it was found good.
    pub(super) size: u64,
    /// Where it ends as far as is known: a file may be cut short while it is read.
    end: AtomicU64,
    pub(super) is_remote: bool,
    pub(super) blame: Blame,
    /// What went wrong; nothing more is read of the file then.
    failed: OnceLock<(Reason, String)>,
    /// Open as long as somebody reads it. So no more files are open than
    /// there are readers, however long the list is.
    open: Mutex<Weak<OpenFile>>,
}

/// What to read, and how.
#[derive(Debug)]
pub(super) struct Job {
    /// Several where they are small: the kernel is told of all of them before the
    /// first is read.
    pub(super) parts: Vec<Part>,
    pub(super) heat: Heat,
    /// See [`Extent::resident`](crate::plan::Extent::resident).
    pub(super) resident: bool,
    /// It is to be read on and on, and the kernel may read ahead. Such a batch
    /// may be larger than [`BATCH`], and heat does not matter.
    pub(super) streams: bool,
    /// The kernel has been told of it.
    pub(super) is_advised: bool,
}

/// A batch of a file.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) target: Arc<Target>,
    /// Where the file need not be opened again.
    pub(super) open: Option<Arc<OpenFile>>,
    pub(super) batch: Batch,
}

/// What the readers share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) opener: Opener,
    pub(super) tally: Tally,
    pub(super) stop: Arc<AtomicBool>,
    pub(super) progress: Arc<Progress>,
    /// How many readers may read at once at the moment, and how many do.
    pub(super) at_once: Arc<AtomicU16>,
    pub(super) reading: AtomicU16,
}

impl Target {
    pub(super) fn new(identity: FileIdentity, open: &Arc<OpenFile>) -> Self {
        Self {
            identity,
            place: open.place,
            size: open.size,
            end: AtomicU64::new(open.size),
            is_remote: open.is_remote,
            blame: Blame::default(),
            failed: OnceLock::new(),
            open: Mutex::new(Arc::downgrade(open)),
        }
    }

    /// How many bytes are asked for at once where a file is read on and on. No more than
    /// the kernel's own reading ahead does at once, or the kernel would take it for one
    /// large request without a successor. Over a network it reads ahead little, but
    /// follows larger requests.
    fn stride(&self) -> u32 {
        match self.is_remote {
            true => BATCH,
            false => PIECE as u32,
        }
    }

    /// The open file, opened again if nobody has it open. Waits for others
    /// that are opening it.
    fn open(&self, opener: &Opener) -> Result<Arc<OpenFile>, Refusal> {
        let mut slot = lock(&self.open);
        if let Some(open) = slot.upgrade() {
            return Ok(open);
        }
        let open = Arc::new(opener.open(&self.identity)?);
        if open.place != self.place {
            return Err(Refusal {
                reason: Reason::Replaced,
                detail: "replaced by another file meanwhile".into(),
            });
        }
        *slot = Arc::downgrade(&open);
        Ok(open)
    }
}

impl Shared {
    /// Waits until one more may read, and lets it; all come to their turn.
    fn in_turn<T>(&self, read: impl FnOnce() -> T) -> T {
        while self.reading.fetch_add(1, Relaxed) >= self.at_once.load(Relaxed).max(1) {
            self.reading.fetch_sub(1, Relaxed);
            thread::sleep(REST);
        }
        let result = read();
        self.reading.fetch_sub(1, Relaxed);
        result
    }

    /// Tells the kernel what will be read, so that much of it is in flight at once.
    /// Gives whether it was told.
    ///
    /// Not where few may read: that is for the sake of somebody who needs the disk.
    pub(super) fn advise(&self, open: &OpenFile, batch: Batch) -> bool {
        if self.stop.load(Relaxed) || self.at_once.load(Relaxed) < GENTLE {
            return false;
        }
        // What goes wrong will go wrong again when it is read.
        i64::try_from(batch.offset).is_ok_and(|offset| {
            let advice = PosixFadviseAdvice::POSIX_FADV_WILLNEED;
            let len = batch.len.into();
            self.in_turn(|| posix_fadvise(&open.first, offset, len, advice).is_ok())
        })
    }

    /// How many bytes a reader may ask for at once: where few read, they read
    /// beside somebody who waits for what stands behind them in the queue.
    fn piece(&self) -> usize {
        match self.at_once.load(Relaxed) < GENTLE {
            true => PIECE,
            false => BATCH as usize,
        }
    }

    /// Why nothing more is to be read, if that is so.
    pub(super) fn stopped(&self) -> Option<Reason> {
        let stop = self.stop.load(Relaxed);
        stop.then_some(Reason::Interrupted)
    }

    /// Counts what will not be read any more.
    pub(super) fn give_up(&self, target: &Target, reason: Reason, pages: u64, bytes: u64) {
        self.progress.add_done(bytes);
        if pages > 0 {
            self.skip(target, reason, pages, &reason.to_string());
        }
    }

    /// Counts pages of a target as skipped.
    pub(super) fn skip(&self, target: &Target, reason: Reason, pages: u64, detail: &str) {
        let path: &PathBuf = &target.identity.path;
        self.tally
            .skip(path, &target.blame, reason, pages, || detail.into());
    }
}

/// Where fewer readers than this may work, they ask for pieces of [`PIECE`]
/// bytes: a link of 100 Mbit/s is busy for 10 ms with one, and with a whole
/// batch for 90 ms.
const GENTLE: u16 = 8;
const PIECE: usize = 128 << 10;

/// How often a reader that is to rest looks whether it still is.
const REST: Duration = Duration::from_millis(5);

/// How many parts a job has at most, so many that few readers have to wake up. Their
/// bytes are those of one large batch at most.
pub(super) const TOGETHER: usize = 64;

/// The same where each part is of another file on another host, which takes a round
/// trip to close.
const CLOSED: usize = 32;

/// What is as small as this is copied, where it is more than a page: that is one system
/// call and not two.
const COPIED: usize = 16 << 10;

/// Reads what comes out of the channel until it is closed.
pub(super) fn work(jobs: &Receiver<Job>, shared: &Shared, page_size: u32) {
    let mut reader = Reader {
        shared,
        page_size,
        buffer: vec![0; BATCH.max(page_size) as usize],
        drain: OnceCell::new(),
        cpus: Cpus::of_this_thread(),
        current: None,
        stream: None,
    };
    for mut job in jobs {
        reader.advise(&job);
        for part in mem::take(&mut job.parts) {
            let piece = job.streams.then(|| part.target.stride().max(page_size));
            for batch in reads(part.batch, piece, page_size) {
                reader.run(&job, &part, batch);
                shared.progress.add_done(u64::from(batch.len));
            }
            // Its file is closed with it, if nobody else has it open.
        }
    }
}

impl Job {
    /// Puts a part into the job that waits for more, or into the next one, which is empty.
    /// Gives the job that waited if it waits no longer.
    pub(super) fn gather(waiting: &mut Option<Self>, part: Part, mut next: Self) -> Option<Self> {
        match waiting {
            Some(job) if !next.streams && job.takes(&part) => {
                job.parts.push(part);
                None
            }
            _ => {
                next.parts.push(part);
                waiting.replace(next)
            }
        }
    }

    /// Whether a small part can come into this job, which is about as hot: of the same
    /// file, or of one that is open.
    fn takes(&self, part: &Part) -> bool {
        let is_near = part.open.is_some()
            || self
                .parts
                .last()
                .is_some_and(|last| Arc::ptr_eq(&last.target, &part.target));
        let most = match part.target.is_remote && part.open.is_some() {
            true => CLOSED,
            false => TOGETHER,
        };
        is_near
            && !self.streams
            && self.parts.len() < most
            && self.bytes() + u64::from(part.batch.len) <= u64::from(BATCH)
    }

    /// How many bytes are to be read.
    fn bytes(&self) -> u64 {
        let bytes = |part: &Part| u64::from(part.batch.len);
        self.parts.iter().map(bytes).sum()
    }
}

/// What is read of a batch with one system call: all of it, or so many bytes.
fn reads(whole: Batch, piece: Option<u32>, page_size: u32) -> impl Iterator<Item = Batch> {
    let most = piece.unwrap_or(whole.len.max(1));
    (0..whole.len.div_ceil(most)).map(move |number| {
        let from = number * most;
        let len = most.min(whole.len - from);
        match piece {
            Some(_) => Batch {
                offset: whole.offset + u64::from(from),
                len,
                pages: len.div_ceil(page_size),
            },
            None => whole,
        }
    })
}

/// What a reading thread has of its own.
struct Reader<'a> {
    shared: &'a Shared,
    page_size: u32,
    /// Page cache is copied into it and never looked at. It is as large as a
    /// batch, so that a batch is one system call and the kernel has all of
    /// its I/O in flight at once.
    buffer: Vec<u8>,
    /// For what is larger; none if that does not work.
    drain: OnceCell<Option<Drain>>,
    cpus: Option<Cpus>,
    /// The file of the last job, which is likely to be that of the next, and
    /// how it is read with readahead, where that was tried.
    current: Option<(Arc<Target>, Arc<OpenFile>)>,
    stream: Option<Option<File>>,
}

impl Reader<'_> {
    /// Tells the kernel of parts that are small, so that this thread waits for the
    /// first only.
    fn advise(&mut self, job: &Job) {
        if job.is_advised || job.parts.len() < 2 {
            return;
        }
        for part in &job.parts {
            if part.target.failed.get().is_none()
                && let Ok(open) = self.open(part)
            {
                self.shared.advise(&open, part.batch);
            }
        }
    }

    /// Does one read, and counts what became of its pages.
    fn run(&mut self, job: &Job, part: &Part, batch: Batch) {
        let (target, shared) = (&part.target, self.shared);
        // Pages that were resident to begin with are not missing.
        let asked = if job.resident { 0 } else { batch.pages };
        let skip = |reason, read: u32, detail: &str| {
            let pages = u64::from(asked.saturating_sub(read));
            shared.skip(target, reason, pages, detail);
        };
        // The rest of the file is given up. Another reader may have been first; one
        // reason is enough.
        let fail = |reason, read, detail: String| {
            skip(reason, read, &detail);
            _ = target.failed.set((reason, detail));
        };
        if let Some((reason, detail)) = target.failed.get() {
            return skip(*reason, 0, detail);
        }
        if self.shared.stop.load(Relaxed) {
            return skip(Reason::Interrupted, 0, "interrupted");
        }
        let cut_short =
            |end: u64| format!("cut short while it was read: size {} → {end}", target.size);
        let end = target.end.load(Relaxed);
        if batch.offset >= end {
            if asked > 0 {
                skip(Reason::BeyondEnd, 0, &cut_short(end));
            }
            return;
        }
        let open = match self.open(part) {
            Ok(open) => open,
            Err(Refusal { reason, detail }) => return fail(reason, 0, detail),
        };
        let (done, result) = match (&self.cpus, &open.second) {
            (Some(cpus), Some(second)) if job.heat >= ACTIVATE => {
                cpus.stay_on_one(|| read_twice(&open.first, second, batch, &mut self.buffer))
            }
            (None, Some(second)) if job.heat >= ACTIVATE => {
                read_twice(&open.first, second, batch, &mut self.buffer)
            }
            _ => {
                let stream = match job.streams {
                    true => self.stream.get_or_insert_with(|| open.stream()).as_ref(),
                    false => None,
                };
                let file = stream.unwrap_or(&open.first);
                let (buffer, drain) = (&mut self.buffer, &mut self.drain);
                read_in_pieces(batch, |offset, rest| {
                    let most = rest.min(shared.piece());
                    shared.in_turn(|| bring_in(file, offset, most, drain, buffer))
                })
            }
        };
        if job.resident {
            return;
        }
        let is_whole = done == batch.len;
        let pages = match (is_whole, &result) {
            (true, _) => batch.pages,
            // The last page of a file need not be full.
            (false, Ok(())) => batch.pages.min(done.div_ceil(self.page_size)),
            (false, Err(_)) => batch.pages.min(done / self.page_size),
        };
        let tally = &shared.tally;
        let besides = done.div_ceil(self.page_size).saturating_sub(batch.pages);
        tally.read.fetch_add(u64::from(pages), Relaxed);
        tally.unasked.fetch_add(u64::from(besides), Relaxed);
        tally.bytes_read.fetch_add(u64::from(done), Relaxed);
        let end = batch.offset + u64::from(done);
        if let Err(error) = result {
            let detail = format!("failed to read at byte {end}: {error}");
            fail(Reason::Unreadable, pages, detail);
        } else if !is_whole && shared.opener.accepts == Accepts::Unchanged {
            let detail = format!("changed: size {} → {end}", target.size);
            fail(Reason::Changed, pages, detail);
        } else if !is_whole {
            // What lies before the new end is read.
            target.end.fetch_min(end, Relaxed);
            if pages < asked {
                skip(Reason::BeyondEnd, pages, &cut_short(end));
            }
        }
    }

    /// The part's file. The one that was open before is closed first, so
    /// that this reader has one at a time open by itself.
    fn open(&mut self, part: &Part) -> Result<Arc<OpenFile>, Refusal> {
        let target = &part.target;
        if let Some((current, open)) = &self.current
            && Arc::ptr_eq(current, target)
        {
            return Ok(Arc::clone(open));
        }
        (self.current, self.stream) = (None, None);
        let open = match &part.open {
            Some(open) => Arc::clone(open),
            None => target.open(&self.shared.opener)?,
        };
        self.current = Some((Arc::clone(target), Arc::clone(&open)));
        Ok(open)
    }
}

/// Brings pages in and activates them: the first read marks them as
/// referenced, the second one puts them onto the active list. Whatever goes
/// wrong with the second, they are in the cache.
fn read_twice(
    first: &File,
    second: &File,
    batch: Batch,
    buffer: &mut [u8],
) -> (u32, io::Result<()>) {
    let mut read =
        |file: &File| read_in_pieces(batch, |offset, rest| copy(file, offset, rest, buffer));
    let result = read(first);
    _ = read(second);
    result
}

/// Reads all of the batch, or up to the file's end, with reads at an offset of at
/// most so many bytes. How many bytes came is given in either case.
fn read_in_pieces(
    batch: Batch,
    mut read: impl FnMut(u64, usize) -> io::Result<usize>,
) -> (u32, io::Result<()>) {
    let mut done = 0;
    while done < batch.len {
        let offset = batch.offset + u64::from(done);
        match read(offset, (batch.len - done) as usize) {
            Ok(0) => break,
            // No more than the rest, which fits.
            Ok(bytes) => done += bytes as u32,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (done, Err(error)),
        }
    }
    (done, Ok(()))
}

/// One read of at most so many bytes.
fn bring_in(
    file: &File,
    offset: u64,
    most: usize,
    drain: &mut OnceCell<Option<Drain>>,
    buffer: &mut [u8],
) -> io::Result<usize> {
    if most > COPIED
        && let Some(open) = drain.get_or_init(|| Drain::new().ok())
    {
        match open.read(file, offset, most) {
            Ok(bytes) => return Ok(bytes),
            // Not every file system can; and what else is wrong is for read(2) to say.
            Err(_) => *drain = OnceCell::from(None),
        }
    }
    copy(file, offset, most, buffer)
}

/// The same with read(2). Of a page no more than the last byte, which is there only if
/// all before it are: it brings the page as well, and to copy all of it is a sixth of
/// what a page at random costs.
fn copy(file: &File, offset: u64, most: usize, buffer: &mut [u8]) -> io::Result<usize> {
    if most <= kernel::page_size() as usize {
        let last = offset + most.saturating_sub(1) as u64;
        if file.read_at(&mut buffer[..1], last)? == 1 {
            return Ok(most);
        }
    }
    file.read_at(&mut buffer[..most], offset)
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::io::Write;

    use super::super::Report;
    use super::*;

    const PAGE: u32 = 4096;

    /// A target that is open already, with a file of two pages.
    fn target(readable: bool) -> (Arc<Target>, Arc<OpenFile>) {
        let mut named = tempfile::NamedTempFile::new().expect("temporary file");
        named.write_all(&[1; 2 * PAGE as usize]).expect("write");
        let file = OpenOptions::new()
            .read(readable)
            .write(!readable)
            .open(named.path())
            .expect("open");
        let open = Arc::new(OpenFile {
            first: file,
            second: None,
            place: (1, 2),
            size: 3 * u64::from(PAGE),
            change: None,
            is_remote: false,
        });
        let identity = FileIdentity {
            path: named.path().into(),
            device: 1,
            inode: 2,
            size: 3 * u64::from(PAGE),
            mtime_ns: 0,
        };
        (Arc::new(Target::new(identity, &open)), open)
    }

    /// A page of a file that is not open.
    fn page_of(target: &Arc<Target>, page: u64) -> Part {
        Part {
            target: Arc::clone(target),
            open: None,
            batch: Batch {
                offset: page * u64::from(PAGE),
                len: PAGE,
                pages: 1,
            },
        }
    }

    fn job(parts: Vec<Part>) -> Job {
        Job {
            parts,
            heat: 1,
            resident: false,
            streams: false,
            is_advised: false,
        }
    }

    #[test]
    fn what_streams_is_read_piece_by_piece() {
        let parts = |streams: bool, len| -> Vec<_> {
            let batch = Batch {
                offset: u64::from(PAGE),
                len,
                pages: len.div_ceil(PAGE),
            };
            reads(batch, streams.then_some(PIECE as u32), PAGE)
                .map(|it| (it.offset, it.len, it.pages))
                .collect()
        };
        let len = 2 * PIECE as u32 + 5;
        let second = u64::from(PAGE) + PIECE as u64;
        let expected = [
            (u64::from(PAGE), PIECE as u32, 32),
            (second, PIECE as u32, 32),
            (second + PIECE as u64, 5, 1),
        ];
        assert_eq!(parts(true, len), expected);
        assert_eq!(parts(false, len), [(u64::from(PAGE), len, 65)]);
    }

    #[test]
    fn few_files_that_are_slow_to_close_are_in_one_job() {
        let (near, open) = target(true);
        let part = |is_remote| {
            let mut target = Target::new(near.identity.clone(), &open);
            target.is_remote = is_remote;
            Part {
                open: Some(Arc::clone(&open)),
                ..page_of(&Arc::new(target), 0)
            }
        };
        for (is_remote, most) in [(false, TOGETHER), (true, CLOSED)] {
            let mut job = job(Vec::new());
            while job.takes(&part(is_remote)) {
                job.parts.push(part(is_remote));
            }
            assert_eq!(job.parts.len(), most, "{is_remote}");
        }
    }

    #[test]
    fn a_page_is_read_as_far_as_the_file_reaches() {
        let mut file = tempfile::tempfile().expect("temporary file");
        let page = kernel::page_size() as usize;
        file.write_all(&vec![1; page + 7]).expect("write");
        let mut buffer = vec![0; 2 * page];
        let mut read = |offset: usize, most| copy(&file, offset as u64, most, &mut buffer).ok();
        assert_eq!(read(0, page), Some(page));
        assert_eq!(read(page, 7), Some(7));
        assert_eq!(read(page, page), Some(7));
        assert_eq!(read(0, 2 * page), Some(page + 7));
        assert_eq!(read(2 * page, page), Some(0));
    }

    /// Has one reader read pages of files, one after the other.
    fn read(order: &[(&Arc<Target>, u64)], accepts: Accepts) -> Report {
        let (queue, jobs) = crossbeam_channel::unbounded();
        for (target, page) in order {
            let job = job(vec![page_of(target, *page)]);
            queue.send(job).expect("queue");
        }
        drop(queue);
        let shared = Shared {
            opener: Opener {
                accepts,
                is_foreign: false,
                maps: Vec::new(),
                allow: Vec::new(),
                root: None,
                twice: false,
                file_systems: Mutex::default(),
            },
            tally: Tally::default(),
            stop: Arc::default(),
            progress: Arc::default(),
            at_once: Arc::new(AtomicU16::new(1)),
            reading: AtomicU16::new(0),
        };
        shared.tally.asked.store(order.len() as u64, Relaxed);
        work(&jobs, &shared, PAGE);
        shared.tally.report(PAGE, Duration::ZERO, false)
    }

    fn skipped(report: &Report) -> Vec<(Reason, u64, u64)> {
        let parts = report.skipped.iter();
        parts
            .map(|part| (part.reason, part.pages, part.files))
            .collect()
    }

    #[test]
    fn a_file_that_fails_is_given_up_and_the_rest_goes_on() {
        // A descriptor for writing only stands for a disk that fails.
        let (broken, _held) = target(false);
        let (good, _held_too) = target(true);
        let order = [(&broken, 0), (&broken, 1), (&good, 0), (&good, 1)];
        let report = read(&order, Accepts::SameFile);
        assert_eq!(report.pages.read, 2);
        assert_eq!(skipped(&report), [(Reason::Unreadable, 2, 1)]);
        let detail = "failed to read at byte 0: Bad file descriptor (os error 9)";
        assert_eq!(report.files[0].detail, detail);
    }

    #[test]
    fn a_file_that_was_cut_short_is_read_up_to_its_end() {
        for (accepts, pages, reason, detail) in [
            (
                Accepts::SameFile,
                2,
                Reason::BeyondEnd,
                "cut short while it was read: size 12288 → 8192",
            ),
            (
                Accepts::Unchanged,
                0,
                Reason::Changed,
                "changed: size 12288 → 8192",
            ),
        ] {
            // It has two pages left of three, and the last one comes first.
            let (file, _held) = target(true);
            let order = [(&file, 2), (&file, 1), (&file, 0), (&file, 2)];
            let report = read(&order, accepts);
            assert_eq!(report.pages.read, pages);
            assert_eq!(skipped(&report), [(reason, 4 - pages, 1)]);
            assert_eq!(report.files[0].detail, detail);
            assert_eq!(report.is_complete(), accepts == Accepts::SameFile);
        }
    }
}
