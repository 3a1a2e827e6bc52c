//! The LRU's flags of real files, compared with another reading of them.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::num::NonZeroUsize;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use migrator::file::{Resolver, Unresolved};
use migrator::kernel::lru_gen_enabled;
use migrator::pagelist::{ACTIVE, ACTIVE_REFERENCED, HotFile, REFERENCED, Run};
use migrator::source::lru::{Reason, Sample, Sampler};
use migrator::source::pageflags::{PageFlags, PageState, StateRun, drain_batches};
use migrator::target::Target;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::libc;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, munmap};
use nix::unistd::geteuid;
use tempfile::TempDir;

const PAGE: usize = 4096;

fn require_root() {
    assert!(
        geteuid().is_root(),
        "this test reads page flags: run it as root"
    );
    assert!(
        !lru_gen_enabled(Path::new("/sys")),
        "this test is about the classic LRU: echo 0 > /sys/kernel/mm/lru_gen/enabled"
    );
}

fn page_flags() -> PageFlags {
    PageFlags::open(Path::new("/proc")).expect("page flags")
}

/// A file of so many pages on a disk, none of them cached.
fn cold_file(pages: usize) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir_in("/var/tmp").expect("a directory");
    let path = dir.path().join("file");
    fs::write(&path, vec![7; pages * PAGE]).expect("a file");
    let file = File::open(&path).expect("the file");
    file.sync_all().expect("written back");
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).expect("evicted");
    assert_eq!(fincore(&path), 0, "{} stays in the cache", path.display());
    (dir, path)
}

/// How many pages of a file are resident, as util-linux counts them.
fn fincore(path: &Path) -> u64 {
    let output = Command::new("fincore")
        .args(["--noheadings", "--output", "PAGES"])
        .arg(path)
        .output()
        .expect("fincore");
    let text = String::from_utf8(output.stdout).expect("text");
    text.trim().parse().expect("a number")
}

/// Opens a file so that reading a page brings nothing but that page.
fn open_random(path: &Path) -> File {
    let file = File::open(path).expect("the file");
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_RANDOM).expect("advice");
    file
}

fn read_page(file: &File, index: usize) {
    let mut page = [0; PAGE];
    file.read_exact_at(&mut page, (index * PAGE) as u64)
        .expect("a page");
}

/// splitmix64: the same numbers in every run.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

fn by_page(runs: &[StateRun]) -> BTreeMap<u64, PageState> {
    runs.iter()
        .flat_map(|run| (run.index..run.index + run.pages).map(|index| (index, run.state)))
        .collect()
}

/// Another reading: the whole file in one mapping, its pages in shuffled
/// order, each touched and looked up by itself.
fn read_otherwise(path: &Path) -> BTreeMap<u64, PageState> {
    let file = File::open(path).expect("the file");
    let bytes = file.metadata().expect("its size").len() as usize;
    let length = NonZeroUsize::new(bytes).expect("a file with content");
    // SAFETY: a new mapping at an address of the kernel's choice; the file is
    // not truncated while it stands.
    let start = unsafe {
        mmap(
            None,
            length,
            ProtFlags::PROT_READ,
            MapFlags::MAP_PRIVATE,
            &file,
            0,
        )
    }
    .expect("a mapping");
    // SAFETY: advice on our own mapping.
    unsafe { madvise(start, bytes, MmapAdvise::MADV_RANDOM) }.expect("advice");
    // SAFETY: as above. Else khugepaged may read in what is not resident.
    unsafe { madvise(start, bytes, MmapAdvise::MADV_NOHUGEPAGE) }.expect("advice");
    let pages = bytes / PAGE;
    let mut resident = vec![0_u8; pages];
    // SAFETY: our own mapping, and a byte for each of its pages.
    let result = unsafe { libc::mincore(start.as_ptr(), bytes, resident.as_mut_ptr()) };
    assert_eq!(result, 0, "mincore failed");

    let mut order: Vec<usize> = (0..pages).filter(|page| resident[*page] & 1 == 1).collect();
    let mut seed = 5;
    for at in (1..order.len()).rev() {
        order.swap(at, (random(&mut seed) % (at as u64 + 1)) as usize);
    }
    let pagemap = File::open("/proc/self/pagemap").expect("pagemap");
    let kpageflags = File::open("/proc/kpageflags").expect("kpageflags");
    let word = |file: &File, index: usize| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, index as u64 * 8)
            .expect("a word");
        u64::from_ne_bytes(bytes)
    };
    let mut states = BTreeMap::new();
    for page in order {
        let address = start.as_ptr().wrapping_byte_add(page * PAGE);
        // SAFETY: a byte of the mapping, below the end of the file.
        let byte = unsafe { address.cast::<u8>().read_volatile() };
        assert_eq!(byte, 7);
        let entry = word(&pagemap, address.addr() / PAGE);
        let flags = word(&kpageflags, (entry & ((1 << 55) - 1)) as usize);
        let state = PageState {
            referenced: flags >> 2 & 1 == 1,
            active: flags >> 6 & 1 == 1,
        };
        states.insert(page as u64, state);
    }
    // SAFETY: advice on our own mapping, so that it leaves no marks.
    unsafe { madvise(start, bytes, MmapAdvise::MADV_SEQUENTIAL) }.expect("advice");
    // SAFETY: our own mapping, to which nothing refers any more.
    unsafe { munmap(start, bytes) }.expect("unmapped");
    states
}

/// khugepaged looks at all mappings again and again while this lives, instead
/// of at some of them every ten seconds: what it makes of ours shows then.
struct KhugepagedAwake {
    settings: Vec<(PathBuf, String)>,
}

impl KhugepagedAwake {
    fn new() -> Self {
        let directory = Path::new("/sys/kernel/mm/transparent_hugepage/khugepaged");
        let awake = [("scan_sleep_millisecs", "10"), ("pages_to_scan", "65536")];
        let mut settings = Vec::new();
        for (name, value) in awake {
            let path = directory.join(name);
            // A kernel without huge pages has nothing to be woken.
            if let Ok(before) = fs::read_to_string(&path) {
                fs::write(&path, value).expect("a setting of khugepaged");
                settings.push((path, before));
            }
        }
        Self { settings }
    }
}

impl Drop for KhugepagedAwake {
    fn drop(&mut self) {
        for (path, before) in &self.settings {
            if let Err(error) = fs::write(path, before) {
                eprintln!("{}: not put back: {error}", path.display());
            }
        }
    }
}

/// A process that has a file open as its standard input.
struct Holder(Child);

impl Holder {
    fn of(path: &Path) -> Self {
        let file = File::open(path).expect("the file");
        let mut child = Command::new("perl")
            .args(["-e", "$| = 1; print 'x'; sleep 1000"])
            .stdin(file)
            .stdout(Stdio::piped())
            .spawn()
            .expect("perl");
        // From now on it has mapped all its libraries.
        let ready = child.stdout.as_mut().expect("a pipe").read(&mut [0]);
        let holder = Self(child);
        assert_eq!(ready.expect("a byte"), 1, "perl failed");
        holder
    }

    fn target(&self) -> Target {
        Target::Process(self.0.id().cast_signed())
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn sampler() -> Sampler {
    Sampler::procfs(Path::new("/proc"), Path::new("/sys")).expect("a sampler")
}

fn sample(target: &Target) -> Sample {
    let sampler = sampler();
    let mut resolver = Resolver::new("/proc".into());
    sampler.sample(target, &mut resolver).expect("a sample")
}

fn file_at<'a>(sample: &'a Sample, path: &Path) -> Option<&'a HotFile> {
    sample.files.iter().find(|file| file.identity.path == path)
}

#[test]
fn flags_agree_with_another_reading_and_stay_as_they_are() {
    require_root();
    let (_dir, path) = cold_file(65_536);
    let mut seed = 1;
    let file = File::open(&path).expect("the file");
    // Pieces of all sizes, through readahead, some of them more than once.
    for _ in 0..1500 {
        let mut piece = vec![0; 1 << (12 + random(&mut seed) % 7)];
        let at = random(&mut seed) % (65_536 * PAGE - piece.len()) as u64;
        for _ in 0..1 + random(&mut seed) % 3 {
            file.read_exact_at(&mut piece, at).expect("a piece");
        }
    }
    // Read ahead, and never used.
    posix_fadvise(
        &file,
        200 << 20,
        4 << 20,
        PosixFadviseAdvice::POSIX_FADV_WILLNEED,
    )
    .expect("advice");
    // Single pages.
    let single = open_random(&path);
    for _ in 0..3000 {
        read_page(&single, (random(&mut seed) % 65_536) as usize);
    }

    let _awake = KhugepagedAwake::new();
    drain_batches();
    let before = fincore(&path);
    assert!(
        (3000..60_000).contains(&before),
        "{before} pages are resident"
    );
    let size = 65_536 * PAGE as u64;
    let first = by_page(&page_flags().scan(&file, size).expect("a scan"));
    let other = read_otherwise(&path);
    let second = by_page(&page_flags().scan(&file, size).expect("a scan"));
    assert_eq!(fincore(&path), before, "residency changed");
    assert_eq!(first.len() as u64, before);

    for (name, reading) in [("another reading", &other), ("a second scan", &second)] {
        let same = first
            .iter()
            .filter(|(page, state)| reading.get(page) == Some(state))
            .count();
        assert_eq!(reading.len(), first.len(), "{name}");
        assert!(
            same as f64 >= 0.999 * first.len() as f64,
            "{name} agrees on {same} of {} pages",
            first.len()
        );
        println!("{name} agrees on {same} of {} pages", first.len());
    }
    // The comparison says something only if all states occur.
    for (referenced, active) in [(false, false), (true, false), (false, true), (true, true)] {
        let state = PageState { referenced, active };
        let pages = first.values().filter(|it| **it == state).count();
        println!("{state:?}: {pages} pages");
        assert!(pages > 100, "{pages} pages are {state:?}");
    }
}

fn stay_on_one_processor() {
    let this = nix::unistd::Pid::from_raw(0);
    let allowed = sched_getaffinity(this).expect("the processors");
    let first = (0..CpuSet::count()).find(|cpu| allowed.is_set(*cpu) == Ok(true));
    let mut one = CpuSet::new();
    one.set(first.expect("a processor")).expect("its number");
    sched_setaffinity(this, &one).expect("to stay on one processor");
}

#[test]
fn heat_follows_the_number_of_reads() {
    require_root();
    let (_dir, path) = cold_file(1000);
    let holder = Holder::of(&path);
    assert_eq!(
        file_at(&sample(&holder.target()), &path),
        None,
        "nothing is resident"
    );

    // A page that is read again on another processor, while it waits to be put
    // on a list on the first, is not activated.
    stay_on_one_processor();
    let file = open_random(&path);
    // In passes, because reading the page again that was read last through the
    // same open file counts once.
    for pass in 1..=3 {
        for (page, reads) in [(10, 1), (11, 1), (20, 2), (30, 3), (31, 3), (999, 3)] {
            if reads >= pass {
                read_page(&file, page);
            }
        }
    }
    let run = |index, pages, heat| Run { index, pages, heat };
    let expected = [
        run(10, 2, REFERENCED),
        run(20, 1, ACTIVE),
        run(30, 2, ACTIVE_REFERENCED),
        run(999, 1, ACTIVE_REFERENCED),
    ];
    let resident = fincore(&path);
    for round in 0..3 {
        let sample = sample(&holder.target());
        let found = file_at(&sample, &path).expect("the file");
        assert_eq!(found.runs, expected, "round {round}");
        let meta = fs::metadata(&path).expect("the file");
        assert_eq!(found.identity.inode, meta.ino());
        assert_eq!(found.identity.size, 1000 * PAGE as u64);
    }
    assert_eq!(fincore(&path), resident);
}

#[test]
fn mapped_files_are_sampled_and_others_counted_by_reason() {
    require_root();
    let (_dir, path) = cold_file(10);
    fs::read(&path).expect("its content");
    let holder = Holder::of(&path);
    fs::remove_file(&path).expect("removed");
    let sample = sample(&holder.target());
    let names: Vec<_> = sample
        .files
        .iter()
        .map(|file| &file.identity.path)
        .collect();
    assert!(
        names
            .iter()
            .any(|path| path.to_string_lossy().contains("libc.so")),
        "libc is not among {names:?}"
    );
    let deleted = Reason::Unresolved(Unresolved::Deleted);
    assert_eq!(sample.left_out, BTreeMap::from([(deleted, 1)]));
}

#[test]
fn overlayfs_files_are_sampled_through_their_layer() {
    require_root();
    let (dir, path) = cold_file(100);
    for name in ["upper", "work", "merged"] {
        fs::create_dir(dir.path().join(name)).expect("a directory");
    }
    let mut child = Command::new("unshare")
        .args(["--mount", "sh", "-ec"])
        .arg(
            r#"mkdir "$1/lower"; ln "$1/file" "$1/lower/file"
            mount -t overlay -o "lowerdir=$1/lower,upperdir=$1/upper,workdir=$1/work" overlay "$1/merged"
            exec < "$1/merged/file"; head -c 409600 > /dev/null; echo; exec sleep 1000"#,
        )
        .arg("sh")
        .arg(dir.path())
        .stdout(Stdio::piped())
        .spawn()
        .expect("unshare");
    let ready = child.stdout.as_mut().expect("a pipe").read(&mut [0]);
    let holder = Holder(child);
    assert_eq!(ready.expect("a byte"), 1, "the overlay failed");
    let sample = sample(&holder.target());
    let found = file_at(&sample, &dir.path().join("lower/file")).expect("the file");
    assert_eq!(found.pages(), 100);
    drop(holder);
    assert_eq!(fincore(&path), 100);
}

#[test]
fn a_target_that_has_ended_has_no_files() {
    require_root();
    let (_dir, path) = cold_file(1);
    let holder = Holder::of(&path);
    let target = holder.target();
    drop(holder);
    assert_eq!(sample(&target), Sample::default());
}

#[test]
fn a_file_cut_short_meanwhile_does_no_harm() {
    require_root();
    let (_dir, path) = cold_file(2000);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .expect("the file");
    let flags = page_flags();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                file.set_len(0).expect("cut");
                file.write_all_at(&vec![7; 2000 * PAGE], 0)
                    .expect("written");
            }
        });
        for _ in 0..300 {
            // It may find any part of the pages; it must not be killed.
            let runs = flags.scan(&file, 2000 * PAGE as u64).expect("a scan");
            assert!(by_page(&runs).len() <= 2000);
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn the_probe_tells_root_that_it_works() {
    require_root();
    let detail = sampler().probe().expect("usable");
    assert!(detail.contains("LRU flags"), "{detail}");
}
