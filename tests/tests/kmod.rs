//! The kernel module `hotpages` on the running kernel: what it tells of pages,
//! against another reading of their flags, and that nothing it is put through
//! does harm.
//!
//! The tests need a kernel that loads modules, and `MIGRATOR_KMOD`, the module
//! for it: `cargo test -p migrator-tests --test kmod -- --ignored --test-threads=1`.
//! One process after the other, for they load and unload it.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;

use migrator::pagelist;
use migrator::source::kmod::{DEVICE, Module};
use migrator::source::pageflags::{PageFlags, PageFlagsError, PageState, StateRun};
use migrator_tests::module::{Loaded, Log, LruGen, errno, unload};
use migrator_tests::random::Random;
use migrator_tests::track::Track;
use migrator_tests::{PAGE_SIZE, Scratch, binary, evict, require_root, resident};
use nix::errno::Errno;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::libc;
use nix::mount::{MsFlags, mount, umount};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use serde_json::Value;

const PAGE: u64 = PAGE_SIZE as u64;

const NEITHER: PageState = state(false, false);
const REFERENCED: PageState = state(true, false);
const ACTIVE: PageState = state(false, true);
const BOTH: PageState = state(true, true);

const fn state(referenced: bool, active: bool) -> PageState {
    PageState { referenced, active }
}

/// Root, the module, and the classic LRU.
fn classic() -> (Loaded, LruGen) {
    require_root();
    let lru = LruGen::switch(false).expect("the classic LRU");
    (Loaded::new(), lru)
}

fn by_page(runs: &[StateRun]) -> BTreeMap<u64, PageState> {
    let mut pages = BTreeMap::new();
    for run in runs {
        for index in run.index..run.index + run.pages {
            let twice = pages.insert(index, run.state);
            assert_eq!(twice, None, "page {index} is told twice");
        }
    }
    pages
}

/// What the module says of pages, after it was told to drain.
fn look(module: &Module, file: &File, pages: u64) -> BTreeMap<u64, PageState> {
    module.drain().expect("drained");
    by_page(&module.scan_part(file, 0..pages * PAGE).expect("an answer"))
}

/// What /proc says, by a mapping, pagemap and kpageflags.
fn look_otherwise(file: &File, pages: u64) -> BTreeMap<u64, PageState> {
    let flags = PageFlags::open(Path::new("/proc")).expect("page flags in /proc");
    by_page(&flags.scan_part(file, 0..pages * PAGE).expect("a scan"))
}

/// Opens a file so that reading a page brings nothing but that page.
fn open_random(path: &Path) -> File {
    let file = File::open(path).expect("the file");
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_RANDOM).expect("advice");
    file
}

fn read_page(file: &File, index: u64) {
    let mut page = [0; PAGE_SIZE];
    file.read_exact_at(&mut page, index * PAGE).expect("a page");
}

/// The processors that this process may run on.
fn processors() -> Vec<usize> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).expect("the processors");
    let all = 0..CpuSet::count();
    all.filter(|cpu| allowed.is_set(*cpu) == Ok(true)).collect()
}

/// Keeps this thread on one of them.
fn stay_on(processor: usize) {
    let mut one = CpuSet::new();
    one.set(processor).expect("its number");
    sched_setaffinity(Pid::from_raw(0), &one).expect("to stay on one processor");
}

/// Sets it when dropped: threads that wait for it end also when a test fails.
struct SetAtEnd<'a>(&'a AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A file system that is unmounted with the guard.
struct Mounted<'a>(&'a Path);

impl<'a> Mounted<'a> {
    fn new(kind: &str, options: &str, place: &'a Path) -> nix::Result<Self> {
        fs::create_dir_all(place).expect("a mount point");
        mount(
            Some(kind),
            place,
            Some(kind),
            MsFlags::empty(),
            Some(options),
        )?;
        Ok(Self(place))
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        if let Err(error) = umount(self.0) {
            eprintln!("failed to unmount {}: {error}", self.0.display());
        }
    }
}

#[test]
#[ignore = "needs MIGRATOR_KMOD and a kernel that loads it"]
fn read_once_is_referenced_and_twice_is_active() {
    let (loaded, _lru) = classic();
    let module = loaded.open();
    let scratch = Scratch::new();
    let path = scratch.file("file", 1000);
    evict(&path);
    stay_on(processors()[0]);
    let file = open_random(&path);
    assert_eq!(look(&module, &file, 1000), BTreeMap::new(), "evicted");
    // In passes, because reading the page again that was read last through the
    // same open file counts once.
    for pass in 1..=3 {
        for (page, reads) in [(10, 1), (11, 1), (20, 2), (30, 3), (31, 3), (999, 3)] {
            if reads >= pass {
                read_page(&file, page);
            }
        }
        // A page still in a batch of new ones is not activated everywhere.
        module.drain().expect("drained");
    }
    let found = look(&module, &file, 1000);
    let expected = [
        (10, REFERENCED),
        (11, REFERENCED),
        (20, ACTIVE),
        (30, BOTH),
        (31, BOTH),
        (999, BOTH),
    ];
    assert_eq!(found, expected.into());
    assert_eq!(look_otherwise(&file, 1000), found, "/proc disagrees");
    // Looking has changed nothing.
    assert_eq!(look(&module, &file, 1000), found);
    assert_eq!(resident(&path).len(), found.len());
}

#[test]
#[ignore = "needs MIGRATOR_KMOD and a kernel that loads it"]
fn all_states_of_many_pages_agree_with_proc() {
    let (loaded, _lru) = classic();
    let module = loaded.open();
    let scratch = Scratch::new();
    let pages = 8192;
    let path = scratch.file("file", pages);
    evict(&path);
    let file = File::open(&path).expect("the file");
    let mut random = Random::new(1);
    // Pieces of all sizes, through readahead, some of them more than once.
    for _ in 0..200 {
        let mut piece = vec![0; PAGE_SIZE << random.below(6)];
        let at = random.below(pages / 2) * PAGE;
        for _ in 0..1 + random.below(3) {
            file.read_exact_at(&mut piece, at).expect("a piece");
        }
    }
    // Read ahead, and never used.
    let (from, length) = (6000 * PAGE as i64, 1 << 20);
    posix_fadvise(&file, from, length, PosixFadviseAdvice::POSIX_FADV_WILLNEED).expect("advice");
    let single = open_random(&path);
    for _ in 0..500 {
        read_page(&single, random.below(pages));
    }
    let found = look(&module, &file, pages);
    let told: Vec<u64> = found.keys().copied().collect();
    let there: Vec<u64> = resident(&path).into_iter().collect();
    assert_eq!(told, there, "residency");
    let other = look_otherwise(&file, pages);
    let differs = found
        .iter()
        .filter(|(page, state)| other.get(page) != Some(state));
    assert_eq!(differs.count(), 0, "of {} pages", found.len());
    for kind in [NEITHER, REFERENCED, ACTIVE, BOTH] {
        let pages = found.values().filter(|it| **it == kind).count();
        println!("{kind:?}: {pages} pages");
        assert!(pages > 10, "{pages} pages are {kind:?}");
    }
}

#[test]
#[ignore = "needs MIGRATOR_KMOD and a kernel that loads it"]
fn what_another_processor_puts_off_is_seen() {
    let (loaded, _lru) = classic();
    let module = loaded.open();
    let processors = processors();
    let [here, there, ..] = processors[..] else {
        panic!("this test needs two processors, there are {processors:?}");
    };
    stay_on(here);
    let scratch = Scratch::new();
    let path = scratch.file("file", 8);
    // A live reader: one that ends has its batches emptied.
    let (ask, asked) = mpsc::channel();
    let (tell, told) = mpsc::channel();
    let reader = thread::spawn({
        let path = path.clone();
        move || {
            stay_on(there);
            for () in asked {
                // Anew, for the page that was read last counts once.
                let file = open_random(&path);
                (0..8).for_each(|page| read_page(&file, page));
                tell.send(file).expect("somebody listens");
            }
        }
    });
    let read = || {
        ask.send(()).expect("a reader");
        told.recv().expect("it has read")
    };
    let file = File::open(&path).expect("the file");
    let mut put_off = 0;
    for round in 0..20 {
        evict(&path);
        drop(read());
        assert_eq!(
            look(&module, &file, 8),
            (0..8).map(|page| (page, REFERENCED)).collect()
        );
        let kept_open = read();
        let before = by_page(&module.scan_part(&file, 0..8 * PAGE).expect("an answer"));
        put_off += before.values().filter(|state| !state.active).count();
        let found = look(&module, &file, 8);
        assert_eq!(
            found,
            (0..8).map(|page| (page, ACTIVE)).collect(),
            "round {round}, before: {before:?}"
        );
        drop(kept_open);
    }
    println!("{put_off} of 160 pages were in a batch");
    assert!(
        put_off > 0,
        "no page was ever in a batch: this test shows nothing"
    );
    drop(ask);
    reader.join().expect("the reader");
}

#[test]
#[ignore = "needs MIGRATOR_KMOD and a kernel that loads it"]
fn direct_reads_leave_nothing() {
    let (loaded, _lru) = classic();
    let module = loaded.open();
    let scratch = Scratch::new();
    let path = scratch.file("file", 64);
    evict(&path);
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(&path)
        .expect("the file");
    let mut buffer = vec![0; 17 * PAGE_SIZE];
    let aligned = buffer.as_ptr().align_offset(PAGE_SIZE);
    let buffer = &mut buffer[aligned..][..16 * PAGE_SIZE];
    file.read_exact_at(buffer, 0).expect("read past the cache");
    assert_eq!(look(&module, &file, 64), BTreeMap::new());
}

#[test]
#[ignore = "needs MIGRATOR_KMOD and a kernel that loads it"]
fn nothing_is_told_beyond_the_end_or_in_holes() {
    let (loaded, _lru) = classic();
    let module = loaded.open();
    let scratch = Scratch::new();
    let path = scratch.path().join("file");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .expect("a file");
    file.set_len(8 * PAGE).expect("sparse");
    let mut all = Vec::new();
    // Some kernels bring a page behind the end of such a file.
    (&file).read_to_end(&mut all).expect("read to the end");
    assert_eq!(all.len() as u64, 8 * PAGE);
    let pages = |file: &File| -> Vec<u64> { look(&module, file, 1 << 40).into_keys().collect() };
    assert_eq!(pages(&file), (0..8).collect::<Vec<_>>());
    file.set_len(3 * PAGE + 1).expect("cut");
    assert_eq!(pages(&file), [0, 1, 2, 3]);
    file.set_len(0).expect("emptied");
    assert!(pages(&file).is_empty());
    // Far apart, and at the very end of what a file can be.
    file.set_len(1 << 43).expect("sparse");
    file.sync_all().expect("written back");
    let file = open_random(&path);
    for page in [5, 70_000, 1 << 30, (1 << 31) - 1] {
        read_page(&file, page);
    }
    assert_eq!(pages(&file), [5, 70_000, 1 << 30, (1 << 31) - 1]);
    let part = module.scan_part(&file, 6 * PAGE..(1 << 30) * PAGE);
    let part: Vec<u64> = by_page(&part.expect("an answer")).into_keys().collect();
    assert_eq!(part, [70_000]);
}

#[test]
#[ignore = "needs MIGRATOR_KMOD and a kernel that loads it"]
fn a_long_answer_comes_in_parts() {
    let (loaded, _lru) = classic();
    let module = loaded.open();
    let scratch = Scratch::new();
    let path = scratch.path().join("file");
    // Holes, so that nothing is read from the disk. More pages than one call
    // looks at, then more runs than one call tells.
    let (dense, scattered) = (70_000, 10_000);
    let file = File::create_new(&path).expect("a file");
    file.set_len((dense + 2 * scattered) * PAGE)
        .expect("sparse");
    drop(file);
    let file = File::open(&path).expect("the file");
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    while at < dense * PAGE {
        let length = (dense * PAGE - at).min(1 << 20) as usize;
        file.read_exact_at(&mut buffer[..length], at)
            .expect("zeros");
        at += length as u64;
    }
    let single = open_random(&path);
    let second: Vec<u64> = (0..scattered).map(|i| dense + 2 * i + 1).collect();
    second.iter().for_each(|page| read_page(&single, *page));
    module.drain().expect("drained");
    let runs = module
        .scan_part(&file, 0..(dense + 2 * scattered) * PAGE)
        .expect("an answer");
    let found = by_page(&runs);
    let told: Vec<u64> = found.keys().copied().collect();
    let there: Vec<u64> = resident(&path).into_iter().collect();
    assert!(
        there.len() as u64 >= dense + scattered,
        "{} pages are there",
        there.len()
    );
    assert_eq!(told, there);
    assert!(second.iter().all(|page| found[page] == REFERENCED));
}

#[test]
#[ignore = "needs MIGRATOR_KMOD and a kernel that loads it"]
fn a_file_cut_short_meanwhile_does_no_harm() {
    let (loaded, _lru) = classic();
    let module = loaded.open();
    let log = Log::now();
    let scratch = Scratch::new();
    let path = scratch.file("file", 2000);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .expect("the file");
    let done = AtomicBool::new(false);
    let mut most = 0;
    thread::scope(|scope| {
        scope.spawn(|| {
            let content = vec![7; 2000 * PAGE_SIZE];
            while !done.load(Ordering::Relaxed) {
                file.set_len(0).expect("cut");
                file.write_all_at(&content, 0).expect("written");
            }
        });
        let _end = SetAtEnd(&done);
        for _ in 0..300 {
            let found = by_page(&module.scan_part(&file, 0..1 << 40).expect("an answer"));
            most = most.max(found.len());
            assert!(found.keys().all(|page| *page < 2000));
        }
    });
    println!("up to {most} of 2000 pages were seen");
    assert!(most > 0, "the file was empty each time");
    log.assert_no_fault();
}

#[test]
#[ignore = "needs MIGRATOR_KMOD and a kernel that loads it"]
fn a_file_of_an_overlay_is_that_of_its_layer() {
    let (loaded, _lru) = classic();
    let module = loaded.open();
    let scratch = Scratch::new();
    let [lower, upper, work, merged] =
        ["lower", "upper", "work", "merged"].map(|name| scratch.path().join(name));
    for directory in [&lower, &upper, &work] {
        fs::create_dir(directory).expect("a directory");
    }
    fs::rename(scratch.file("file", 100), lower.join("file")).expect("moved");
    evict(&lower.join("file"));
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.display(),
        upper.display(),
        work.display()
    );
    let _overlay = Mounted::new("overlay", &options, &merged).expect("an overlay");
    let file = open_random(&merged.join("file"));
    for page in [3, 4, 50] {
        read_page(&file, page);
    }
    let expected: BTreeMap<_, _> = [3, 4, 50].map(|page| (page, REFERENCED)).into();
    assert_eq!(look(&module, &file, 100), expected);
    let layer = File::open(lower.join("file")).expect("the layer's file");
    assert_eq!(look(&module, &layer, 100), expected);
    drop(file);
    // Written to, it is another file, in the upper layer.
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(merged.join("file"))
        .expect("copied up");
    file.write_all(b"new").expect("written");
    file.sync_all().expect("written back");
    let layer = File::open(upper.join("file")).expect("the layer's file");
    let found = look(&module, &file, 100);
    assert!(found.contains_key(&0), "{found:?}");
    assert_eq!(look(&module, &layer, 100), found);
}

#[test]
#[ignore = "needs MIGRATOR_KMOD and a kernel that loads it"]
fn tmpfs_is_page_cache_too() {
    let (loaded, _lru) = classic();
    let module = loaded.open();
    let scratch = Scratch::new();
    let place = scratch.path().join("tmpfs");
    let _tmpfs = Mounted::new("tmpfs", "size=16m", &place).expect("a tmpfs");
    let path = place.join("file");
    fs::write(&path, vec![7; 50 * PAGE_SIZE]).expect("a file");
    let file = File::open(&path).expect("the file");
    let pages: Vec<u64> = look(&module, &file, 100).into_keys().collect();
    assert_eq!(pages, (0..50).collect::<Vec<_>>());
}

/// On the first mount of NFS on this system.
#[test]
#[ignore = "needs MIGRATOR_KMOD and a kernel that loads it"]
fn on_nfs_it_is_the_same() {
    let (loaded, _lru) = classic();
    let module = loaded.open();
    let mounts = fs::read_to_string("/proc/mounts").expect("the mounts");
    let place = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let place = fields.next()?;
        matches!(fields.next()?, "nfs" | "nfs4").then_some(place)
    });
    let place = place.expect("nothing of NFS is mounted here: cargo xtask test --kernels does");
    let directory = tempfile::tempdir_in(place).expect("a directory on NFS");
    let path = directory.path().join("file");
    fs::write(&path, vec![7; 200 * PAGE_SIZE]).expect("a file");
    evict(&path);
    stay_on(processors()[0]);
    let file = open_random(&path);
    // No page twice in a row: before Linux 5.11 that counts as one read.
    for pages in [&[30, 20, 10][..], &[30, 20], &[30]] {
        pages.iter().for_each(|page| read_page(&file, *page));
        module.drain().expect("drained");
    }
    let found = look(&module, &file, 200);
    assert_eq!(found, [(10, REFERENCED), (20, ACTIVE), (30, BOTH)].into());
    assert_eq!(look_otherwise(&file, 200), found);
}

#[test]
#[ignore = "needs MIGRATOR_KMOD and a kernel that loads it"]
fn what_has_no_pages_is_refused() {
    let (loaded, _lru) = classic();
    let module = loaded.open();
    let scratch = Scratch::new();
    let path = scratch.file("file", 1);
    let refusal = |file: &File| errno(&module.scan_part(file, 0..PAGE).expect_err("refused"));
    let by_path = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH)
        .open(&path)
        .expect("opened by path");
    assert_eq!(refusal(&by_path), Some(Errno::EBADF));
    for other in [scratch.path(), Path::new("/dev/null")] {
        let file = File::open(other).expect("there");
        assert_eq!(
            refusal(&file),
            Some(Errno::EOPNOTSUPP),
            "{}",
            other.display()
        );
    }
    let place = scratch.path().join("huge");
    match Mounted::new("hugetlbfs", "pagesize=2M", &place) {
        Ok(_huge) => {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .open(place.join("file"))
                .expect("a file");
            file.set_len(2 << 20).expect("a huge page");
            assert_eq!(refusal(&file), Some(Errno::EOPNOTSUPP));
        }
        Err(error) => assert_eq!(error, Errno::ENODEV, "hugetlbfs"),
    }
}

#[test]
#[ignore = "needs MIGRATOR_KMOD and a kernel that loads it"]
fn it_answers_only_who_may_administer_the_system() {
    let (loaded, _lru) = classic();
    let module = loaded.open();
    let scratch = Scratch::new();
    let path = scratch.file("file", 1);
    let file = File::open(&path).expect("the file");
    thread::scope(|scope| {
        scope.spawn(|| {
            // SAFETY: the call as such, not libc's wrapper, changes the
            // credentials of this thread alone, which ends here.
            let changed = unsafe { libc::syscall(libc::SYS_setresuid, 65_534, 65_534, 65_534) };
            assert_eq!(changed, 0, "failed to become nobody");
            assert!(matches!(
                Module::open(Path::new(DEVICE)),
                Err(PageFlagsError::NotPermitted(_))
            ));
            // Nor through a descriptor that somebody else has opened.
            let answer = module.scan_part(&file, 0..PAGE).expect_err("refused");
            assert_eq!(errno(&answer), Some(Errno::EPERM));
            let drained = module.drain().expect_err("refused");
            assert_eq!(errno(&drained), Some(Errno::EPERM));
        });
    });
}

#[test]
#[ignore = "needs MIGRATOR_KMOD and a kernel that loads it"]
fn under_mglru_reads_are_told_from_those_again() {
    require_root();
    let lru = match LruGen::switch(true) {
        Ok(lru) => Some(lru),
        // Before Linux 6.1 there is none, and the same is told by the lists.
        Err(error) => {
            assert!(!Path::new("/sys/kernel/mm/lru_gen").exists(), "{error}");
            None
        }
    };
    let loaded = Loaded::new();
    let module = loaded.open();
    let scratch = Scratch::new();
    let path = scratch.file("file", 1000);
    evict(&path);
    let file = open_random(&path);
    for pages in [&[30, 20, 10][..], &[30, 20], &[30]] {
        pages.iter().for_each(|page| read_page(&file, *page));
        module.drain().expect("drained");
    }
    let sequential = File::open(&path).expect("the file");
    let (from, length) = (500 * PAGE as i64, 16 * PAGE as i64);
    posix_fadvise(
        &sequential,
        from,
        length,
        PosixFadviseAdvice::POSIX_FADV_WILLNEED,
    )
    .expect("advice");
    let found = look(&module, &file, 1000);
    assert_eq!(found.get(&10), Some(&REFERENCED));
    let again = if lru.is_some() { BOTH } else { ACTIVE };
    assert_eq!(found.get(&20), Some(&again));
    assert_eq!(found.get(&30), Some(&BOTH));
    assert!(found.len() > 3, "nothing was read ahead");
    let used = |pages: &BTreeMap<u64, PageState>| -> Vec<u64> {
        let used = pages
            .iter()
            .filter(|(_, state)| state.referenced || state.active);
        used.map(|(page, _)| *page).collect()
    };
    assert_eq!(used(&found), [10, 20, 30]);
    assert_eq!(used(&look_otherwise(&file, 1000)), [10, 20, 30]);
    drop((module, loaded));
    drop(lru);
}

/// A module, in one of the ways in which it is used.
#[test]
#[ignore = "needs MIGRATOR_KMOD and a kernel that loads it"]
fn track_makes_the_same_list_with_it_as_with_proc() {
    let (_loaded, _lru) = classic();
    let scratch = Scratch::new();
    let path = scratch.file("file", 1000);
    evict(&path);
    let file = open_random(&path);
    for pages in [&[10, 20, 30, 31][..], &[20, 30, 31], &[30, 31]] {
        pages.iter().for_each(|page| read_page(&file, *page));
        // Whoever has the right to reads the file's pages in the list after it.
        Module::open(Path::new(DEVICE))
            .and_then(|module| module.drain())
            .expect("drained");
    }
    let track = |source: &str| {
        let output = scratch.path().join("list.pil");
        let mut command = Command::new(binary());
        command
            .args([
                "track", "--json", "--for", "500ms", "--source", source, "--pid",
            ])
            .arg(std::process::id().to_string())
            .arg("--output")
            .arg(&output);
        let tracked = Track::spawn(command, output).wait();
        assert_eq!(tracked.report["source"], source);
        let mut files = tracked.list.files.into_iter();
        let ours = files.find(|file| file.identity.path == path);
        ours.unwrap_or_else(|| panic!("{source} has not found the file"))
            .runs
    };
    let runs: Vec<_> = track("kmod")
        .iter()
        .map(|run| (run.index, run.pages, run.heat))
        .collect();
    assert_eq!(
        runs,
        [
            (10, 1, pagelist::REFERENCED),
            (20, 1, pagelist::ACTIVE),
            (30, 2, pagelist::ACTIVE_REFERENCED)
        ]
    );
    let other: Vec<_> = track("procfs")
        .iter()
        .map(|run| (run.index, run.pages, run.heat))
        .collect();
    assert_eq!(other, runs);
}

#[test]
#[ignore = "needs MIGRATOR_KMOD and a kernel that loads it"]
fn check_says_whether_it_is_there() {
    let status = || {
        let output = Command::new(binary()).args(["check", "--json"]).output();
        let report: Value =
            serde_json::from_slice(&output.expect("a report").stdout).expect("JSON");
        let sources = report["sources"].as_array().expect("sources");
        let kmod = sources
            .iter()
            .find(|source| source["name"] == "kmod")
            .expect("kmod");
        kmod["status"].as_str().expect("a status").to_owned()
    };
    let (loaded, _lru) = classic();
    assert_eq!(status(), "usable");
    drop(loaded);
    assert_eq!(status(), "not supported");
}

/// Load, query with eight threads while others read, truncate and drop caches,
/// unload: a hundred times, or `MIGRATOR_KMOD_ROUNDS`.
#[test]
#[ignore = "needs MIGRATOR_KMOD and a kernel that loads it"]
fn nothing_it_is_put_through_disturbs_the_kernel() {
    require_root();
    let rounds: u32 = match std::env::var("MIGRATOR_KMOD_ROUNDS") {
        Ok(rounds) => rounds.parse().expect("MIGRATOR_KMOD_ROUNDS is a number"),
        Err(_) => 100,
    };
    // Drops nothing, and has the kernel not log each time that caches are
    // dropped: what else it logs would be overwritten.
    fs::write("/proc/sys/vm/drop_caches", "4").expect("quiet");
    let log = Log::now();
    let scratch = Scratch::new();
    let files = [scratch.file("one", 3000), scratch.file("two", 500)];
    let cut = scratch.file("cut", 500);
    let mut told = 0;
    for round in 0..rounds {
        let loaded = Loaded::new();
        let done = AtomicBool::new(false);
        let until_done = &|work: &(dyn Fn() + Sync)| {
            while !done.load(Ordering::Relaxed) {
                work();
            }
        };
        told += thread::scope(|scope| {
            for path in &files {
                let read = move || drop(fs::read(path).expect("read"));
                scope.spawn(move || until_done(&read));
            }
            scope.spawn(|| {
                let file = OpenOptions::new().write(true).open(&cut).expect("the file");
                until_done(&|| {
                    file.set_len(0).expect("cut");
                    file.write_all_at(&[7; 500 * PAGE_SIZE], 0)
                        .expect("written");
                });
            });
            scope.spawn(|| {
                until_done(&|| {
                    fs::write("/proc/sys/vm/drop_caches", "1").expect("dropped");
                    thread::yield_now();
                });
            });
            let _end = SetAtEnd(&done);
            let queries: Vec<_> = (0..8)
                .map(|thread| {
                    let path = [&files[0], &files[1], &cut][thread % 3];
                    let module = loaded.open();
                    scope.spawn(move || {
                        let file = File::open(path).expect("the file");
                        let look = |_| look(&module, &file, 1 << 20).len();
                        (0..10).map(look).sum::<usize>()
                    })
                })
                .collect();
            let open = loaded.open();
            assert_eq!(unload(), Err(Errno::EWOULDBLOCK), "unloaded while in use");
            drop(open);
            let told = queries
                .into_iter()
                .map(|query| query.join().expect("answers"));
            told.sum::<usize>()
        });
        unload().unwrap_or_else(|error| panic!("round {round}: failed to unload: {error}"));
        // It is gone already.
        std::mem::forget(loaded);
    }
    println!("{told} pages told in {rounds} rounds");
    assert!(told > 0, "no page was ever told");
    log.assert_no_fault();
}
