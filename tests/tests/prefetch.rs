//! Prefetching into the real page cache.
//!
//! Which pages are resident is read here with a mincore of the test's own;
//! which are active, from /proc/kpageflags.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use migrator::cli::Cli;
use migrator::exit::Outcome;
use migrator::kernel;
use migrator::pagelist::{ACTIVE, FileIdentity, Heat, HotFile, ONCE, PageIndexList, Run};
use migrator::pathmap::Mapping;
use migrator::prefetch::{Accepts, Options, Pages, Reason, Report, Session, StartError, prefetch};
use migrator::residency::{self, Residency};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::libc;
use tempfile::TempDir;

const PAGE: u64 = 4096;

/// A directory on this machine's disk.
fn dir() -> TempDir {
    assert!(
        nix::unistd::geteuid().is_root(),
        "these tests read /proc/kpageflags and need root: cargo xtask test"
    );
    assert_eq!(kernel::page_size(), 4096);
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("temporary directory")
}

/// A file with so many pages, on the disk and not in the cache.
fn cold_file(dir: &Path, name: &str, pages: u64) -> PathBuf {
    let path = dir.join(name);
    let mut file = File::create_new(&path).expect("create");
    let mut page = vec![0; PAGE as usize];
    for number in 0..pages {
        page[..8].copy_from_slice(&number.to_ne_bytes());
        file.write_all(&page).expect("write");
    }
    file.sync_all().expect("fsync");
    evict(&path);
    path
}

/// Compares sets of pages; says how they differ, not all of both.
#[track_caller]
fn assert_same(found: &BTreeSet<u64>, expected: &BTreeSet<u64>) {
    let missing: Vec<_> = expected.difference(found).take(20).collect();
    let surplus: Vec<_> = found.difference(expected).take(20).collect();
    assert!(
        missing.is_empty() && surplus.is_empty(),
        "pages missing: {missing:?}, pages too many: {surplus:?}"
    );
}

fn evict(path: &Path) {
    let file = File::open(path).expect("open");
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).expect("fadvise");
    assert_same(&resident(path), &BTreeSet::new());
}

/// Reads single pages as a program would, without readahead.
fn warm(path: &Path, pages: impl IntoIterator<Item = u64>) {
    let file = File::open(path).expect("open");
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_RANDOM).expect("fadvise");
    let mut page = vec![0; PAGE as usize];
    for index in pages {
        file.read_exact_at(&mut page, index * PAGE).expect("read");
    }
}

/// A whole file mapped for reading.
struct Mapped {
    start: *mut libc::c_void,
    pages: usize,
}

impl Mapped {
    fn new(path: &Path) -> Self {
        let file = File::open(path).expect("open");
        let len = file.metadata().expect("stat").len() as usize;
        // SAFETY: a new mapping at an address that the kernel chooses.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        assert_ne!(start, libc::MAP_FAILED, "mmap");
        Self {
            start,
            pages: len.div_ceil(PAGE as usize),
        }
    }

    fn len(&self) -> usize {
        self.pages * PAGE as usize
    }

    fn resident(&self) -> BTreeSet<u64> {
        let mut answer = vec![0_u8; self.pages];
        // SAFETY: the mapping has as many pages as the answer has bytes.
        let done = unsafe { libc::mincore(self.start, self.len(), answer.as_mut_ptr()) };
        assert_eq!(done, 0, "mincore");
        (0..)
            .zip(answer)
            .filter_map(|(index, byte)| (byte & 1 == 1).then_some(index))
            .collect()
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: this is the mapping made in `new`; nothing refers to it.
        unsafe { libc::munmap(self.start, self.len()) };
    }
}

fn resident(path: &Path) -> BTreeSet<u64> {
    Mapped::new(path).resident()
}

/// Lets pages that wait in the per-CPU batches of the LRU show their flags.
///
/// FADV_DONTNEED drains those of all CPUs when it meets a page that it cannot
/// drop (`generic_fadvise`), such as one that is mapped. Compaction would do
/// it as well, but pages that move do not look resident to mincore meanwhile.
fn drain_lru_batches(dir: &Path) {
    let mut file = tempfile::NamedTempFile::new_in(dir).expect("temporary file");
    file.write_all(&[1; PAGE as usize]).expect("write");
    // A page under writeback may be locked, and then it is passed over.
    file.as_file().sync_all().expect("fsync");
    let mapped = Mapped::new(file.path());
    // SAFETY: the first byte of the mapping, whose file has one page.
    unsafe { std::ptr::read_volatile(mapped.start as *const u8) };
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).expect("fadvise");
}

/// Referenced and active flags of resident pages, from /proc/kpageflags (see
/// Documentation/admin-guide/mm/pagemap.rst).
fn lru_flags(path: &Path, pages: impl IntoIterator<Item = u64>) -> Vec<(bool, bool)> {
    drain_lru_batches(path.parent().expect("a directory"));
    let mapped = Mapped::new(path);
    // SAFETY: advice on a mapping of our own. With it, looking at the pages
    // does not mark them as used.
    let done = unsafe { libc::madvise(mapped.start, mapped.len(), libc::MADV_RANDOM) };
    assert_eq!(done, 0, "madvise");
    let pagemap = File::open("/proc/self/pagemap").expect("pagemap");
    let kpageflags = File::open("/proc/kpageflags").expect("kpageflags");
    let word = |file: &File, index: u64| {
        let mut word = [0; 8];
        file.read_exact_at(&mut word, index * 8)
            .expect("read a word");
        u64::from_ne_bytes(word)
    };
    let flags = |index: u64| {
        let address = mapped.start as u64 + index * PAGE;
        // SAFETY: the page lies in the mapping, which is as long as the file.
        unsafe { std::ptr::read_volatile(address as *const u8) };
        let entry = word(&pagemap, address / PAGE);
        assert_eq!(entry >> 63, 1, "page {index} is mapped");
        let flags = word(&kpageflags, entry & ((1 << 55) - 1));
        (flags & (1 << 2) != 0, flags & (1 << 6) != 0)
    };
    pages.into_iter().map(flags).collect()
}

/// A sequence of numbers that look random, the same each time.
fn random(seed: u64) -> impl Iterator<Item = u64> {
    let mut state = seed;
    std::iter::repeat_with(move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        state >> 33
    })
}

/// So many different pages out of the first `of`.
fn random_pages(count: usize, of: u64) -> BTreeSet<u64> {
    let mut pages = BTreeSet::new();
    let mut numbers = random(of);
    while pages.len() < count {
        pages.extend(numbers.next().map(|number| number % of));
    }
    pages
}

fn runs(pages: impl IntoIterator<Item = u64>, heat: Heat) -> Vec<Run> {
    let one = |index| Run {
        index,
        pages: 1,
        heat,
    };
    pages.into_iter().map(one).collect()
}

fn identity(path: &Path) -> FileIdentity {
    let there = fs::metadata(path).expect("stat");
    FileIdentity {
        path: path.into(),
        device: there.dev(),
        inode: there.ino(),
        size: there.size(),
        mtime_ns: there.mtime() * 1_000_000_000 + there.mtime_nsec(),
    }
}

fn hot(path: &Path, runs: Vec<Run>) -> HotFile {
    HotFile {
        identity: identity(path),
        runs,
    }
}

/// Prefetches, and checks that every page is accounted for.
fn run(files: Vec<HotFile>, options: Options) -> Report {
    let list = PageIndexList {
        page_size: PAGE as u32,
        files,
    };
    let dry_run = options.dry_run;
    let report = prefetch(list, options).expect("prefetch");
    let pages = report.pages;
    let done = if dry_run { pages.planned } else { pages.read };
    assert_eq!(
        pages.asked,
        pages.resident + done + pages.skipped,
        "{report}"
    );
    report
}

fn skipped(report: &Report) -> Vec<(Reason, u64, u64)> {
    let parts = report.skipped.iter();
    parts
        .map(|part| (part.reason, part.pages, part.files))
        .collect()
}

#[test]
fn exactly_the_listed_pages_become_resident() {
    let dir = dir();
    let path = cold_file(dir.path(), "data", 16384);
    // Single pages, those at the beginning, where readahead is at its most
    // eager, and a long run; heats as they come.
    let mut asked = random_pages(1600, 16384);
    asked.extend([0, 1, 16383]);
    asked.extend(3000..3700);
    let mut runs = runs(asked.iter().copied(), 1);
    for (run, number) in runs.iter_mut().zip(random(1)) {
        run.heat = 1 + (number % 3) as Heat;
    }
    let report = run(vec![hot(&path, runs)], Options::default());
    assert_same(&resident(&path), &asked);
    let count = asked.len() as u64;
    let pages = Pages {
        asked: count,
        resident: 0,
        planned: count,
        read: count,
        skipped: 0,
    };
    assert_eq!(report.pages, pages);
    assert_eq!(report.bytes_read, count * PAGE);
    assert!(report.is_complete());
}

#[test]
fn reading_ahead_brings_nothing_that_was_not_asked_for() {
    let dir = dir();
    // The tail of a file is read with readahead; all else is not.
    let path = cold_file(dir.path(), "data", 16384);
    let asked: BTreeSet<u64> = (100..2000).chain([2500]).chain(5000..16384).collect();
    let report = run(
        vec![hot(&path, runs(asked.iter().copied(), 1))],
        Options::default(),
    );
    assert_same(&resident(&path), &asked);
    assert_eq!(report.pages.read, asked.len() as u64);
    assert_eq!(report.bytes_read, asked.len() as u64 * PAGE);
    assert!(report.is_complete());
}

#[test]
fn pages_that_are_resident_are_not_read_again() {
    let dir = dir();
    let path = cold_file(dir.path(), "data", 4096);
    let asked = random_pages(1000, 4096);
    let mut before: BTreeSet<u64> = asked.iter().copied().step_by(3).collect();
    // Some that may not have been asked for, and stay.
    before.extend([17, 18, 4000]);
    warm(&path, before.iter().copied());
    let files = || vec![hot(&path, runs(asked.iter().copied(), 1))];
    let known = asked.intersection(&before).count() as u64;
    let report = run(files(), Options::default());
    assert_eq!(report.pages.resident, known);
    assert_eq!(report.pages.read, asked.len() as u64 - known);
    let expected: BTreeSet<u64> = asked.union(&before).copied().collect();
    assert_same(&resident(&path), &expected);

    let again = run(files(), Options::default());
    assert_eq!(again.pages.resident, asked.len() as u64);
    assert_eq!((again.pages.read, again.bytes_read), (0, 0));
}

#[test]
fn the_last_page_of_a_file_that_does_not_fill_it() {
    let dir = dir();
    let path = cold_file(dir.path(), "data", 8);
    let file = OpenOptions::new().write(true).open(&path).expect("open");
    file.set_len(7 * PAGE + 1).expect("shorten");
    file.sync_all().expect("fsync");
    evict(&path);
    let asked = Run {
        index: 6,
        pages: 5,
        heat: 1,
    };
    let report = run(vec![hot(&path, vec![asked])], Options::default());
    assert_same(&resident(&path), &BTreeSet::from([6, 7]));
    assert_eq!(skipped(&report), [(Reason::BeyondEnd, 3, 1)]);
    assert_eq!(report.bytes_read, PAGE + 1);
}

#[test]
fn activate_puts_used_pages_onto_the_active_list() {
    let mglru = fs::read_to_string("/sys/kernel/mm/lru_gen/enabled");
    assert!(
        !mglru.is_ok_and(|enabled| enabled.trim() != "0x0000"),
        "the active flag says nothing under MGLRU: run this test on a classic LRU"
    );
    let dir = dir();
    let path = cold_file(dir.path(), "data", 16384);
    // Some of it is warm, and not even referenced: it came by readahead.
    let file = File::open(&path).expect("open");
    posix_fadvise(&file, 0, 4 << 20, PosixFadviseAdvice::POSIX_FADV_WILLNEED).expect("fadvise");
    // The kernel reads on after the call has returned.
    let asked = random_pages(3000, 16384);
    wait_until("readahead is done", || resident(&path).len() >= 1024);
    let before = resident(&path);
    let (used, once): (BTreeSet<u64>, BTreeSet<u64>) =
        asked.iter().partition(|&&page| page % 3 > 0);
    let runs = [
        runs(used.iter().copied(), ACTIVE),
        runs(once.iter().copied(), ONCE),
    ]
    .concat();
    let options = Options {
        activate: true,
        ..Options::default()
    };
    let report = run(vec![hot(&path, runs)], options);
    let already = asked.intersection(&before).count() as u64;
    assert_eq!(report.pages.resident, already);
    let expected: BTreeSet<u64> = asked.union(&before).copied().collect();
    assert_same(&resident(&path), &expected);

    let active = |pages: &BTreeSet<u64>| {
        let flags = lru_flags(&path, pages.iter().copied());
        flags.iter().filter(|(_, active)| *active).count()
    };
    assert_eq!(active(&used), used.len(), "used again is active");
    // In 300 runs one page was seen active once: frame and flags are looked
    // up in two steps, and the kernel may move a page in between.
    assert!(active(&once) <= 2, "used once is not: {}", active(&once));
}

#[test]
fn without_activate_pages_are_referenced_only() {
    let dir = dir();
    let path = cold_file(dir.path(), "data", 1024);
    let asked = random_pages(300, 1024);
    run(
        vec![hot(&path, runs(asked.iter().copied(), 9))],
        Options::default(),
    );
    let flags = lru_flags(&path, asked.iter().copied());
    for (index, flags) in asked.iter().zip(flags) {
        assert_eq!(flags, (true, false), "page {index}: referenced, not active");
    }
}

#[test]
fn the_budget_keeps_the_hottest_of_all_files() {
    let dir = dir();
    let cool = cold_file(dir.path(), "cool", 512);
    let warm = cold_file(dir.path(), "warm", 512);
    let files = vec![
        hot(&cool, [runs(0..100, 1), runs(100..150, 3)].concat()),
        hot(&warm, [runs(0..100, 2), runs(100..150, 4)].concat()),
    ];
    let options = Options {
        budget: Some(120 * PAGE + 7),
        ..Options::default()
    };
    let report = run(files, options);
    assert_same(&resident(&cool), &(100..150).collect());
    assert_same(&resident(&warm), &(0..20).chain(100..150).collect());
    assert_eq!(skipped(&report), [(Reason::OverBudget, 180, 2)]);
    assert!(
        report.is_complete(),
        "the budget is what the user asked for"
    );
}

#[test]
fn a_dry_run_reads_nothing() {
    let dir = dir();
    let path = cold_file(dir.path(), "data", 64);
    let mut files = vec![hot(&path, runs(0..40, 2)), hot(&path, runs(0..40, 2))];
    files[1].identity.path = dir.path().join("gone");
    let options = Options {
        dry_run: true,
        activate: true,
        ..Options::default()
    };
    let report = run(files, options);
    assert_same(&resident(&path), &BTreeSet::new());
    let pages = Pages {
        asked: 80,
        resident: 0,
        planned: 40,
        read: 0,
        skipped: 40,
    };
    assert_eq!(report.pages, pages);
    assert!(report.dry_run && !report.is_complete());
    assert!(report.to_string().contains("would read"), "{report}");
}

#[test]
fn what_is_wrong_is_reported_and_the_rest_goes_on() {
    let (dir, outside) = (dir(), dir());
    let good = cold_file(dir.path(), "good", 16);
    let secret = cold_file(outside.path(), "secret", 16);
    let link = dir.path().join("link");
    symlink(&secret, &link).expect("symlink");
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
    let shm = tempfile::NamedTempFile::new_in("/dev/shm").expect("a file on tmpfs");

    let wrong = |identity: FileIdentity| HotFile {
        identity,
        runs: runs(0..4, 1),
    };
    let at = |path: &Path| FileIdentity {
        path: path.into(),
        ..identity(&good)
    };
    let files = vec![
        wrong(at(&dir.path().join("nothing"))),
        wrong(FileIdentity {
            size: 17 * PAGE,
            ..identity(&good)
        }),
        wrong(FileIdentity {
            mtime_ns: 1,
            ..identity(&good)
        }),
        wrong(identity(&fifo)),
        wrong(identity(dir.path())),
        wrong(identity(Path::new("/dev/zero"))),
        wrong(identity(&link)),
        wrong(at(Path::new("../../etc/shadow"))),
        wrong(at(&dir.path().join("../../../../../../../etc/shadow"))),
        wrong(at(Path::new(""))),
        wrong(identity(Path::new("/etc/shadow"))),
        wrong(at(&dir.path().join("x".repeat(300)))),
        wrong(identity(shm.path())),
        hot(&good, runs(8..12, 1)),
    ];
    let options = Options {
        accepts: Accepts::Unchanged,
        allow: vec![
            "/dev".into(),
            dir.path().canonicalize().expect("canonicalize"),
        ],
        ..Options::default()
    };
    let report = run(files, options);
    let expected = [
        (Reason::BadPath, 12, 3),
        (Reason::NotAllowed, 8, 2),
        (Reason::Gone, 4, 1),
        (Reason::NotARegularFile, 12, 3),
        (Reason::NoDisk, 4, 1),
        (Reason::Changed, 8, 2),
        (Reason::Unreadable, 4, 1),
    ];
    assert_eq!(skipped(&report), expected, "{report}");
    assert_same(&resident(&good), &(8..12).collect());
    assert_same(&resident(&secret), &BTreeSet::new());
    let details = |reason: Reason| {
        let of = report.files.iter().filter(|file| file.reason == reason);
        let details: Vec<_> = of.map(|file| file.detail.clone()).collect();
        details.join("\n")
    };
    let changed = details(Reason::Changed);
    assert!(changed.contains("changed: size 69632 → 65536"), "{changed}");
    assert!(
        changed.contains("changed: mtime 1970-01-01T00:00:00.000000001Z → 20"),
        "{changed}"
    );
    let kinds = details(Reason::NotARegularFile);
    for kind in ["a FIFO", "a directory", "a character device"] {
        assert!(kinds.contains(kind), "{kinds}");
    }
    let outside = report
        .files
        .iter()
        .filter(|file| file.reason == Reason::NotAllowed);
    let outside: Vec<_> = outside.map(|file| file.path.as_str()).collect();
    assert!(outside.contains(&"/etc/shadow"), "{outside:?}");
    assert!(!report.is_complete());
}

#[test]
fn files_of_proc_are_not_read() {
    // A read of kmsg would wait for the kernel's next message and take it.
    let dir = dir();
    let good = cold_file(dir.path(), "good", 4);
    let kmsg = hot(Path::new("/proc/kmsg"), runs(0..1, 1));
    let report = run(vec![kmsg, hot(&good, runs(0..4, 1))], Options::default());
    assert_eq!(skipped(&report), [(Reason::NoDisk, 1, 1)]);
    assert_eq!(report.pages.read, 4);
}

#[test]
fn a_hundred_thousand_files_that_are_gone() {
    let dir = dir();
    let good = cold_file(dir.path(), "good", 4);
    let was = identity(&good);
    let missing = |number: u32| HotFile {
        identity: FileIdentity {
            path: dir.path().join(number.to_string()),
            ..was.clone()
        },
        runs: runs(0..2, 1),
    };
    let mut files: Vec<HotFile> = (0..100_000).map(missing).collect();
    files.push(hot(&good, runs(0..4, 1)));
    let report = run(files, Options::default());
    assert_eq!(skipped(&report), [(Reason::Gone, 200_000, 100_000)]);
    assert_eq!(report.files.len(), migrator::prefetch::FILES);
    assert_eq!(resident(&good).len(), 4);
}

#[test]
fn more_files_than_may_be_open() {
    let dir = dir();
    let path = |number: u32| dir.path().join(number.to_string());
    for number in 0..5000 {
        fs::write(path(number), [1; 5000]).expect("write");
    }
    nix::unistd::sync();
    let hot_file = |number| {
        evict(&path(number));
        hot(&path(number), [runs(0..1, 1), runs(1..2, 2)].concat())
    };
    let files = (0..5000).map(hot_file).collect();
    let options = Options {
        activate: true,
        ..Options::default()
    };
    let report = run(files, options);
    assert_eq!(report.pages.read, 10_000, "{report}");
    assert!(report.is_complete());
}

#[test]
fn maps_lead_to_a_copy() {
    let dir = dir();
    let copy = cold_file(dir.path(), "copy", 16);
    let mut file = hot(&copy, runs(3..5, 1));
    file.identity.path = "/of/the/source/copy".into();
    let map = format!("/of/the/source={}", dir.path().display());
    let options = Options {
        maps: vec![Mapping::parse(&map).expect("a good mapping")],
        ..Options::default()
    };
    let report = run(vec![file], options);
    assert_same(&resident(&copy), &BTreeSet::from([3, 4]));
    assert!(report.is_complete());
}

#[test]
fn the_time_of_the_last_access_stays() {
    let dir = dir();
    let path = cold_file(dir.path(), "data", 16);
    // With relatime, a file written after it was last read is one whose next
    // read changes the time.
    let atime = || {
        let there = fs::metadata(&path).expect("stat");
        (there.atime(), there.atime_nsec())
    };
    let before = atime();
    run(vec![hot(&path, runs(0..16, 1))], Options::default());
    assert_eq!(resident(&path).len(), 16);
    assert_eq!(atime(), before);
}

#[test]
fn without_rights_residency_is_unknown_and_all_is_read() {
    drop(dir());
    // Where others may look too; the build directory may be closed to them.
    let dir = tempfile::tempdir_in("/var/tmp").expect("temporary directory");
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
    };
    mode(dir.path(), 0o755);
    let path = cold_file(dir.path(), "data", 64);
    let closed = cold_file(dir.path(), "closed", 64);
    mode(&path, 0o644);
    mode(&closed, 0o600);
    warm(&path, [9]);
    let files = vec![hot(&path, runs(5..25, 1)), hot(&closed, runs(0..3, 1))];
    let asked = [0..20, 30..64];
    let known = residency::resident(&File::open(&path).expect("open"), &asked);
    let nine: std::ops::Range<u64> = 9..10;
    assert_eq!(known.expect("ask"), Residency::Known(vec![nine]));
    // A file system user is a thread's own, and its children inherit it.
    let nobody = thread::spawn(move || {
        nix::unistd::setfsuid(nix::unistd::Uid::from_raw(65534));
        let open = File::open(&files[0].identity.path).expect("open as nobody");
        let unknown = residency::resident(&open, &asked).expect("ask");
        assert_eq!(unknown, Residency::Unknown);
        run(files, Options::default())
    });
    let report = nobody.join().expect("the thread of nobody");
    assert_eq!((report.pages.resident, report.pages.read), (0, 20));
    assert_eq!(report.residency_unknown_files, 1);
    assert_eq!(skipped(&report), [(Reason::NotPermitted, 3, 1)]);
    assert_same(&resident(&path), &(5..25).collect());
    assert!(report.to_string().contains("not ours to know"), "{report}");
}

/// Waits for something that has to come to pass.
fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        let waited = begin.elapsed();
        assert!(waited < Duration::from_secs(60), "{what}: it never was");
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_session_starts_with_the_first_file() {
    let dir = dir();
    let first = cold_file(dir.path(), "first", 512);
    let second = cold_file(dir.path(), "second", 512);
    let mut session = Session::start(PAGE as u32, Options::default()).expect("start");
    session.add(vec![hot(&first, runs(0..300, 1))]);
    wait_until("the first file is read", || resident(&first).len() == 300);
    session.add(vec![hot(&second, runs(100..200, 1))]);
    let report = session.finish();
    assert_same(&resident(&second), &(100..200).collect());
    assert_eq!(report.pages.read, 400);
    assert!(report.is_complete());
}

#[test]
fn a_stopped_prefetch_reports_what_was_done() {
    let dir = dir();
    let path = cold_file(dir.path(), "data", 8192);
    let options = Options {
        bandwidth: Some(1 << 20),
        ..Options::default()
    };
    let (stop, progress) = (options.stop.clone(), options.progress.clone());
    let files = vec![hot(&path, runs(0..8192, 1))];
    let report = thread::scope(|scope| {
        let running = scope.spawn(|| run(files, options));
        wait_until("something is read", || !resident(&path).is_empty());
        stop.store(true, Relaxed);
        running.join().expect("prefetch")
    });
    assert!(report.pages.read > 0, "{report}");
    assert_same(&resident(&path), &(0..report.pages.read).collect());
    let left = 8192 - report.pages.read;
    assert_eq!(skipped(&report), [(Reason::Interrupted, left, 1)]);
    assert!(!report.is_complete());
    let (done, planned) = progress.bytes();
    assert_eq!((done, planned), (8192 * PAGE, 8192 * PAGE));
}

#[test]
fn a_file_cut_short_meanwhile() {
    let dir = dir();
    let path = cold_file(dir.path(), "data", 4096);
    let options = Options {
        bandwidth: Some(16 << 20),
        ..Options::default()
    };
    let files = vec![hot(&path, runs(0..4096, 1))];
    let report = thread::scope(|scope| {
        let running = scope.spawn(|| run(files, options));
        wait_until("something is read", || !resident(&path).is_empty());
        let file = OpenOptions::new().write(true).open(&path).expect("open");
        file.set_len(2000 * PAGE + 1).expect("cut short");
        running.join().expect("prefetch")
    });
    // Its last page is there in part; what had come of the others is gone again.
    let here = resident(&path);
    assert!(here.is_subset(&(0..2001).collect()), "beyond the end");
    // On this kind of machine DAMON reclaims pages that are idle for a second.
    assert!(here.len() >= 2001 - 20, "{} pages", here.len());
    assert!(report.pages.read >= 2001, "{report}");
    let beyond = 4096 - report.pages.read;
    assert_eq!(skipped(&report), [(Reason::BeyondEnd, beyond, 1)]);
    let detail = &report.files[0].detail;
    let sizes = "cut short while it was read: size 16777216 → 8192001";
    assert_eq!(detail, sizes);
    assert!(report.is_complete());
}

#[test]
fn a_file_emptied_meanwhile() {
    let dir = dir();
    let path = cold_file(dir.path(), "data", 4096);
    let options = Options {
        bandwidth: Some(4 << 20),
        accepts: Accepts::Unchanged,
        ..Options::default()
    };
    let files = vec![hot(&path, runs(0..4096, 1))];
    let report = thread::scope(|scope| {
        let running = scope.spawn(|| run(files, options));
        wait_until("something is read", || !resident(&path).is_empty());
        File::create(&path).expect("cut short");
        running.join().expect("prefetch")
    });
    assert_eq!(report.skipped.len(), 1, "{report}");
    assert_eq!(report.skipped[0].reason, Reason::Changed);
    let detail = &report.files[0].detail;
    assert!(detail.starts_with("changed: size 16777216 → "), "{detail}");
    assert!(!report.is_complete());
}

/// A cold file of 64 pages, and what a list says of all of them.
fn listed(dir: &TempDir) -> (PathBuf, HotFile) {
    let path = cold_file(dir.path(), "data", 64);
    let file = hot(&path, runs(0..64, 1));
    (path, file)
}

/// Writes at an offset, and takes the file out of the cache again.
fn write_at(path: &Path, offset: u64, bytes: &[u8]) {
    let file = OpenOptions::new().write(true).open(path).expect("open");
    file.write_all_at(bytes, offset).expect("write");
    file.sync_all().expect("fsync");
    evict(path);
}

fn accepting(accepts: Accepts) -> Options {
    Options {
        accepts,
        ..Options::default()
    }
}

/// Checks that a strict prefetch takes the file for changed and reads nothing.
fn assert_strict_skips(path: &Path, file: &HotFile) {
    let report = run(vec![file.clone()], accepting(Accepts::Unchanged));
    let pages = file.pages();
    assert_eq!(skipped(&report), [(Reason::Changed, pages, 1)], "{report}");
    assert_eq!(report.changed.files, 0, "it was not read");
    assert_same(&resident(path), &BTreeSet::new());
}

#[test]
fn a_byte_appended() {
    let dir = dir();
    let (path, file) = listed(&dir);
    write_at(&path, 64 * PAGE, &[1]);
    assert_strict_skips(&path, &file);
    let report = run(vec![file], Options::default());
    assert_same(&resident(&path), &(0..64).collect());
    assert!(
        report.is_complete() && report.skipped.is_empty(),
        "{report}"
    );
    assert_eq!(report.changed.files, 1);
    let named = &report.changed.named[0];
    assert_eq!(Path::new(&named.path), path);
    let (before, after) = (named.change.before, named.change.after);
    assert_eq!((before.size, after.size), (64 * PAGE, 64 * PAGE + 1));
    assert_eq!(after.mtime_ns, identity(&path).mtime_ns);
    assert_eq!((before.inode, after.inode), (None, None));
    let text = report.to_string();
    assert!(
        text.contains("1 file changed since the list was made"),
        "{text}"
    );
    assert!(text.contains(": size 262144 → 262145, mtime "), "{text}");
}

#[test]
fn rewritten_in_place() {
    let dir = dir();
    let (path, file) = listed(&dir);
    thread::sleep(Duration::from_millis(20));
    write_at(&path, 0, &[9; 64 * PAGE as usize]);
    assert_ne!(identity(&path).mtime_ns, file.identity.mtime_ns);
    assert_strict_skips(&path, &file);
    let report = run(vec![file], Options::default());
    assert_same(&resident(&path), &(0..64).collect());
    assert!(report.is_complete());
    assert_eq!((report.pages.read, report.changed.files), (64, 1));
}

#[test]
fn cut_to_half_before() {
    let dir = dir();
    let (path, mut file) = listed(&dir);
    file.runs = runs((0..64).step_by(3), 2);
    let half = OpenOptions::new().write(true).open(&path).expect("open");
    half.set_len(32 * PAGE).expect("cut");
    half.sync_all().expect("fsync");
    evict(&path);
    assert_strict_skips(&path, &file);
    let options = Options {
        activate: true,
        ..Options::default()
    };
    let report = run(vec![file], options);
    let expected: BTreeSet<u64> = (0..32).step_by(3).collect();
    assert_same(&resident(&path), &expected);
    assert_eq!(skipped(&report), [(Reason::BeyondEnd, 11, 1)]);
    assert_eq!(
        report.files[0].detail,
        "beyond the end of the file: its size is 131072"
    );
    assert!(report.is_complete(), "those pages are in no cache");
    assert_eq!(report.changed.files, 1);
}

#[test]
fn another_file_put_in_its_place() {
    let dir = dir();
    let (path, file) = listed(&dir);
    thread::sleep(Duration::from_millis(20));
    let other = cold_file(dir.path(), "other", 70);
    fs::rename(&other, &path).expect("rename");
    assert_strict_skips(&path, &file);
    let report = run(vec![file.clone()], Options::default());
    assert_eq!(skipped(&report), [(Reason::Replaced, 64, 1)]);
    assert_same(&resident(&path), &BTreeSet::new());
    let inodes = format!("inode {} → {}", file.identity.inode, identity(&path).inode);
    let detail = &report.files[0].detail;
    assert!(detail.starts_with("replaced by another file: "), "{detail}");
    assert!(detail.ends_with(&inodes), "{detail}");
    assert!(!report.is_complete());

    // Where the inode is not known, the path is all there is to go by.
    let mut unknown = file.clone();
    (unknown.identity.device, unknown.identity.inode) = (0, 0);
    let mut elsewhere = file.clone();
    elsewhere.identity.device += 1;
    for (file, options) in [
        (file.clone(), accepting(Accepts::AnyVersion)),
        (unknown, Options::default()),
        (elsewhere, Options::default()),
    ] {
        let report = run(vec![file], options);
        assert_same(&resident(&path), &(0..64).collect());
        assert!(report.is_complete(), "{report}");
        assert_eq!(report.changed.files, 1);
        evict(&path);
    }
}

#[test]
fn a_copy_with_whole_seconds() {
    let dir = dir();
    let (path, file) = listed(&dir);
    let copy = dir.path().join("copy");
    fs::copy(&path, &copy).expect("copy");
    let seconds = format!("@{}", file.identity.mtime_ns / 1_000_000_000);
    let mut touch = std::process::Command::new("touch");
    let touched = touch.arg("-d").arg(seconds).arg(&copy).status();
    assert!(touched.expect("touch").success());
    File::open(&copy).expect("open").sync_all().expect("fsync");
    // In the place of the original, as rsync and tar put it.
    fs::rename(&copy, &path).expect("rename");
    evict(&path);
    assert_ne!(identity(&path).inode, file.identity.inode);
    assert_ne!(identity(&path).mtime_ns, file.identity.mtime_ns);
    assert_strict_skips(&path, &file);
    let report = run(vec![file], Options::default());
    assert_same(&resident(&path), &(0..64).collect());
    assert!(report.is_complete());
    assert_eq!(report.changed.files, 0, "{report}");
}

#[test]
fn a_mapped_copy_of_another_time() {
    let dir = dir();
    let (path, file) = listed(&dir);
    let there = dir.path().join("there");
    fs::create_dir(&there).expect("directory");
    let copy = cold_file(&there, "data", 64);
    // Both may have been made within one tick of the kernel's clock.
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(60);
    let opened = OpenOptions::new().write(true).open(&copy).expect("open");
    opened.set_modified(later).expect("another time");
    let map = format!("{}={}", dir.path().display(), there.display());
    let options = |accepts| Options {
        maps: vec![Mapping::parse(&map).expect("a good mapping")],
        ..accepting(accepts)
    };
    let report = run(vec![file.clone()], options(Accepts::Unchanged));
    assert_eq!(skipped(&report), [(Reason::Changed, 64, 1)]);
    let report = run(vec![file], options(Accepts::SameFile));
    assert_same(&resident(&copy), &(0..64).collect());
    assert_same(&resident(&path), &BTreeSet::new());
    assert!(report.is_complete());
    assert_eq!(report.changed.files, 1);
}

#[test]
fn hostile_identities_and_runs() {
    let dir = dir();
    let (path, file) = listed(&dir);
    let huge = |index| Run {
        index,
        pages: u32::MAX,
        heat: 255,
    };
    let hostile = |size, mtime_ns, runs| HotFile {
        identity: FileIdentity {
            device: u64::MAX,
            inode: u64::MAX,
            size,
            mtime_ns,
            ..file.identity.clone()
        },
        runs,
    };
    let last = (i64::MAX as u64) / PAGE;
    for accepts in [Accepts::SameFile, Accepts::AnyVersion] {
        for file in [
            hostile(u64::MAX, i64::MIN, vec![huge(0)]),
            hostile(0, i64::MAX, vec![huge(0)]),
            hostile(
                u64::MAX,
                -1,
                vec![huge(0), huge(1 << 40), huge(last), huge(u64::MAX)],
            ),
        ] {
            evict(&path);
            let report = run(vec![file], accepting(accepts));
            assert_same(&resident(&path), &(0..64).collect());
            assert_eq!(report.pages.read, 64, "{report}");
            assert_eq!(report.skipped.len(), 1);
            assert_eq!(report.skipped[0].reason, Reason::BeyondEnd);
            assert!(report.is_complete());
        }
    }
    // Of this very device, all that is left is another file.
    let mut file = hostile(u64::MAX, 0, vec![huge(0)]);
    file.identity.device = identity(&path).device;
    evict(&path);
    let report = run(vec![file], Options::default());
    assert_eq!(report.skipped[0].reason, Reason::Replaced, "{report}");
    assert_same(&resident(&path), &BTreeSet::new());
}

#[test]
fn a_list_of_other_pages_is_refused() {
    let list = PageIndexList {
        page_size: 65536,
        files: Vec::new(),
    };
    let error = prefetch(list, Options::default()).expect_err("another page size");
    assert!(matches!(
        error,
        StartError::PageSize {
            list: 65536,
            host: 4096
        }
    ));
}

#[test]
fn the_command_reads_a_list_and_says_whether_it_is_complete() {
    let dir = dir();
    let path = cold_file(dir.path(), "data", 64);
    let pil = dir.path().join("data.pil");
    let list = PageIndexList {
        page_size: PAGE as u32,
        files: vec![hot(&path, runs(7..20, 2))],
    };
    migrator::format::write_atomically(&pil, &list).expect("write the list");
    let command = |arguments: &[&str]| {
        let begin = ["migrator", "prefetch", "--json"].map(Path::new);
        let rest = arguments.iter().map(Path::new);
        let all = begin.into_iter().chain([pil.as_path()]).chain(rest);
        migrator::command::run(Cli::parse_from(all)).expect("run")
    };
    assert_eq!(command(&["--dry-run"]), Outcome::Done);
    assert_same(&resident(&path), &BTreeSet::new());
    assert_eq!(command(&["--budget", "16KiB"]), Outcome::Done);
    assert_same(&resident(&path), &(7..11).collect());
    assert_eq!(command(&["--allow", "/dev"]), Outcome::Incomplete);
    assert_eq!(command(&["--jobs", "1"]), Outcome::Done);
    assert_same(&resident(&path), &(7..20).collect());

    // It loses its second half, and then gives way to another.
    let file = OpenOptions::new().write(true).open(&path).expect("open");
    file.set_len(10 * PAGE).expect("cut");
    file.sync_all().expect("fsync");
    evict(&path);
    assert_eq!(command(&["--strict"]), Outcome::Incomplete);
    assert_same(&resident(&path), &BTreeSet::new());
    assert_eq!(command(&[]), Outcome::Done);
    assert_same(&resident(&path), &(7..10).collect());
    let other = cold_file(dir.path(), "other", 64);
    fs::rename(other, &path).expect("rename");
    drop(file);
    assert_eq!(command(&["--any-version"]), Outcome::Done);
    assert_same(&resident(&path), &(7..20).collect());
    let both = ["migrator", "prefetch", "x.pil", "--strict", "--any-version"];
    let error = Cli::try_parse_from(both).expect_err("a contradiction");
    assert_eq!(error.kind(), clap::error::ErrorKind::ArgumentConflict);
}
