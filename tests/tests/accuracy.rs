//! The list of `track --source ebpf` beside what a program really used.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use migrator::pagelist::AGAIN;
use migrator_tests::cgroup::{Cgroup, cgroup2};
use migrator_tests::mapped::mapped;
use migrator_tests::mount::Mount;
use migrator_tests::random::Random;
use migrator_tests::reader::{Place, Reader, Step};
use migrator_tests::score::Score;
use migrator_tests::strace::Pages;
use migrator_tests::track::{Track, Tracked};
use migrator_tests::{PAGE_SIZE, Scratch, evict, require_root, resident, scaled};

const PAGE: u64 = PAGE_SIZE as u64;
const MIB: u64 = 1 << 20;

fn reader() -> Reader {
    Reader::start(env!("CARGO_BIN_EXE_reader"))
}

/// Observes a new reader while it does the steps.
fn track(scratch: &Scratch, steps: &[Step]) -> Tracked {
    let mut reader = reader();
    let track = Track::process(scratch, reader.pid());
    for step in steps {
        reader.run(step);
    }
    let tracked = track.finish();
    tracked.assert_nothing_lost();
    tracked
}

/// Observes again, at most so often, where the kernel has left programs out: what
/// threads do while one of them is preempted in a program is not seen, of which the
/// report tells (docs/tracking.md, "What a preempted task hides").
fn undisturbed(observe: impl Fn() -> Tracked) -> Tracked {
    let mut tracked = observe();
    for _ in 1..5 {
        let skipped = tracked.report["skipped"].as_u64().expect("a number");
        if skipped == 0 {
            break;
        }
        println!("the kernel left out programs {skipped} times: once more");
        tracked = observe();
    }
    tracked
}

/// Whether this kernel tells of every read: the tracepoint, on which hosts that
/// permit no other hook depend, does not (docs/accuracy.md).
fn every_read_is_seen() -> bool {
    let output = Command::new(migrator_tests::binary())
        .args(["check", "--json"])
        .output()
        .expect("migrator");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let sources = report["sources"].as_array().expect("sources");
    let ebpf = sources.iter().find(|it| it["name"] == "ebpf");
    let sees = ebpf.expect("the source ebpf")["sees"].as_array();
    let reads = sees
        .expect("what it sees")
        .iter()
        .find(|it| it["what"] == "reads");
    let hooks = reads.expect("reads")["hooks"].to_string();
    println!("reads are seen by {hooks}");
    !hooks.contains("tracepoint")
}

fn all(pages: u64) -> BTreeSet<u64> {
    (0..pages).collect()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cache {
    Warm,
    Cold,
}

impl Cache {
    const BOTH: [Self; 2] = [Self::Warm, Self::Cold];

    fn prepare(self, path: &Path) {
        evict(path);
        if self == Self::Warm {
            fs::read(path).expect("the file's content");
        }
    }
}

/// What a reader does to three files of which it uses known pages, and what a
/// bystander does to the same files at the same time.
#[test]
fn the_list_has_what_the_target_used_and_not_what_others_did() {
    require_root();
    let scratch = Scratch::new();
    let [large, medium, small] = [1024, 256, 64].map(|it| scaled(it * MIB) / PAGE);
    let tenth = scratch.file("tenth", large);
    let whole = scratch.file("whole", small);
    let touched = scratch.file("touched", medium);
    let mut random = Random::new(1);
    let used = random.set((large / 10) as usize, large);
    let known = random.set(1000, medium);
    let others = random.set((large / 10) as usize, large);
    for cache in Cache::BOTH {
        for path in [&tenth, &whole, &touched] {
            cache.prepare(path);
        }
        let mut reader = reader();
        let mut bystander = self::reader();
        let track = Track::process(&scratch, reader.pid());
        let mut by = Step::pages(&tenth, random.shuffled(others.iter().copied()));
        bystander.begin(&by);
        reader.run(&Step::pages(&tenth, random.shuffled(used.iter().copied())));
        reader.run(&Step::sequential(&whole, PAGE_SIZE));
        bystander.end();
        by = Step::touch(&touched, random.set(1000, medium));
        bystander.begin(&by);
        reader.run(&Step::touch(
            &touched,
            random.shuffled(known.iter().copied()),
        ));
        bystander.end();
        let tracked = track.finish();
        tracked.assert_nothing_lost();

        let score = Score::new(&tracked.pages(&tenth), &used);
        score.assert_complete(&format!("{cache:?}: a random tenth"));
        assert!(score.precision() >= 0.99);
        let score = Score::new(&tracked.pages(&whole), &all(small));
        score.assert_exact(&format!("{cache:?}: all of a file"));
        let score = Score::new(&tracked.pages(&touched), &known);
        score.assert_complete(&format!("{cache:?}: 1000 pages touched"));
        // Fault-around maps 64 KiB (fault_around_bytes) around the page, and a
        // folio of 2 MiB at once.
        println!("{cache:?}: {} pages mapped around those", score.extra.len());
    }
}

/// The tracepoint does not tell of the cached beginning of a read when the last
/// folio of its batch is still on its way from the disk (docs/accuracy.md).
#[test]
fn what_a_partly_cached_file_loses_is_found_when_it_is_read_again() {
    require_root();
    let scratch = Scratch::new();
    let pages = scaled(256 * MIB) / PAGE;
    let path = scratch.file("partly", pages);
    evict(&path);
    let mut random = Random::new(2);
    let half = random.set(pages as usize / 2, pages);
    let offsets: Vec<u64> = random
        .set(pages as usize / 160, pages / 16)
        .into_iter()
        .collect();
    let used = offsets
        .iter()
        .flat_map(|at| at * 16..at * 16 + 16)
        .collect();
    let step = Step::Pread {
        path: path.clone(),
        length: 64 << 10,
        offsets: random.shuffled(offsets.iter().map(|at| at * (64 << 10))),
    };
    let exact = every_read_is_seen();
    for (name, again) in [("one pass", false), ("two passes", true)] {
        evict(&path);
        let warm = File::open(&path).expect("the file");
        let advice = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_RANDOM;
        nix::fcntl::posix_fadvise(&warm, 0, 0, advice).expect("advice");
        for index in &half {
            let mut page = [0; PAGE_SIZE];
            std::os::unix::fs::FileExt::read_exact_at(&warm, &mut page, index * PAGE)
                .expect("a page");
        }
        let odd = resident(&path).symmetric_difference(&half).count();
        println!("{odd} pages are not as they were to be");
        let steps = if again {
            vec![step.clone(), step.clone()]
        } else {
            vec![step.clone()]
        };
        let score = Score::new(&track(&scratch, &steps).pages(&path), &used);
        println!("partly cached, {name}: {score}");
        assert!(score.extra.is_empty());
        assert!(!(again || exact) || score.missing.is_empty());
        // How much is lost depends on the disk: 3 to 14 % on a fast one, 28 % on
        // one that is emulated.
        assert!(score.recall() > 0.5);
    }
}

#[test]
fn every_way_to_read_is_seen() {
    // A longer read of a cold file may find the end of what was read ahead,
    // while the rest is on its way: see
    // what_a_partly_cached_file_loses_is_found_when_it_is_read_again.
    const AT_MOST_ONE_NEW_PAGE: [&str; 3] = ["100-byte reads", "4 KiB reads", "the end"];
    require_root();
    let scratch = Scratch::new();
    let bytes = scaled(40 * MIB) + 1234;
    let path = scratch.path().join("odd");
    let mut content = fs::read(scratch.file("even", bytes.div_ceil(PAGE))).expect("content");
    content.truncate(bytes as usize);
    File::create(&path)
        .and_then(|mut file| file.write_all(&content).and_then(|()| file.sync_all()))
        .expect("a file");
    let whole = all(bytes.div_ceil(PAGE));
    let last = whole.last().copied().expect("a page");
    let length = bytes as usize;
    let (offset, part) = (MIB + 5, scaled(9_999_999) as usize);
    let partly: BTreeSet<u64> = (offset / PAGE..=(offset + part as u64 - 1) / PAGE).collect();
    let ways = [
        ("100-byte reads", Step::sequential(&path, 100), &whole),
        ("4 KiB reads", Step::sequential(&path, 4096), &whole),
        ("10,000-byte reads", Step::sequential(&path, 10_000), &whole),
        ("1 MiB reads", Step::sequential(&path, 1 << 20), &whole),
        (
            "one read beyond the end",
            Step::sequential(&path, 64 << 20),
            &whole,
        ),
        ("the end", Step::pages(&path, [last]), &[last].into()),
        (
            "readv",
            Step::Preadv {
                path: path.clone(),
                offset,
                buffers: vec![1, 4095, 100_000, 7, part - 104_103],
            },
            &partly,
        ),
        (
            "splice",
            Step::Splice {
                path: path.clone(),
                offset,
                length: part,
            },
            &partly,
        ),
        (
            "splice of all",
            Step::Splice {
                path: path.clone(),
                offset: 0,
                length,
            },
            &whole,
        ),
        (
            "sendfile",
            Step::Sendfile {
                path: path.clone(),
                offset,
                length: part,
            },
            &partly,
        ),
        (
            "sendfile of all",
            Step::Sendfile {
                path: path.clone(),
                offset: 0,
                length,
            },
            &whole,
        ),
    ];
    let exact = every_read_is_seen();
    for cache in Cache::BOTH {
        for (name, step, used) in &ways {
            cache.prepare(&path);
            let what = format!("{cache:?}: {name}");
            let tracked = track(&scratch, std::slice::from_ref(step));
            let score = Score::new(&tracked.pages(&path), used);
            assert!(score.extra.is_empty(), "{what}: {score}");
            if cache == Cache::Cold && !exact && !AT_MOST_ONE_NEW_PAGE.contains(name) {
                println!("{what}: {score}");
                assert!(score.missing.len() <= 32.max(used.len() / 100));
            } else {
                score.assert_complete(&what);
            }
        }
    }
}

#[test]
fn one_huge_request_is_seen_whole() {
    require_root();
    let scratch = Scratch::new();
    let bytes = scaled(1024 * MIB);
    let path = scratch.file("huge", bytes / PAGE);
    for cache in Cache::BOTH {
        cache.prepare(&path);
        let step = Step::Pread {
            path: path.clone(),
            length: bytes as usize,
            offsets: vec![0],
        };
        let tracked = track(&scratch, &[step]);
        let score = Score::new(&tracked.pages(&path), &all(bytes / PAGE));
        score.assert_exact(&format!("{cache:?}: one huge pread"));
        // However many batches the kernel made of it, it is one use.
        let again = tracked.hot_pages(&path, AGAIN).len();
        println!("{cache:?}: {again} pages count as used again");
        assert!(again as u64 <= bytes / PAGE / 100);
    }
}

#[test]
fn reads_past_the_cache_leave_nothing() {
    require_root();
    let scratch = Scratch::new();
    let path = scratch.file("direct", 1000);
    for cache in Cache::BOTH {
        cache.prepare(&path);
        let offsets = (0..1000 * PAGE).step_by(64 << 10).collect();
        let step = Step::Direct {
            path: path.clone(),
            length: 64 << 10,
            offsets,
        };
        let cached = track(
            &scratch,
            &[step, Step::pages(scratch.file("other", 3), [1])],
        );
        assert_eq!(cached.pages(&path), BTreeSet::new());
        assert_eq!(cached.pages(&scratch.path().join("other")), [1].into());
    }
}

#[test]
fn buffered_writes_are_seen_on_ext4_and_xfs() {
    require_root();
    let scratch = Scratch::new();
    let xfs = scratch.path().join("xfs");
    let ext4 = scratch.path().join("ext4");
    let image = |name: &str| scratch.path().join(format!("{name}.img"));
    let disks = [
        (
            "ext4",
            Mount::disk("ext4", &image("ext4"), 320 * MIB, &ext4),
            true,
        ),
        (
            "xfs",
            Mount::disk("xfs", &image("xfs"), 320 * MIB, &xfs),
            false,
        ),
    ];
    let mut random = Random::new(3);
    let spots = random.set(500, 8000);
    for (name, disk, exact) in &disks {
        let write = |path: &Path, offsets: Vec<u64>, length| Step::Pwrite {
            path: path.into(),
            length,
            offsets,
        };
        let old = disk.path().join("old");
        let cold = disk.path().join("cold");
        for path in [&old, &cold] {
            fs::write(path, vec![1; 8000 * PAGE_SIZE]).expect("a file");
            evict(path);
        }
        fs::read(&old).expect("its content");
        let new = disk.path().join("new");
        let odd = disk.path().join("odd");
        let tracked = track(
            &scratch,
            &[
                write(
                    &old,
                    spots.iter().map(|page| page * PAGE).collect(),
                    PAGE_SIZE,
                ),
                write(
                    &cold,
                    spots.iter().map(|page| page * PAGE + 9).collect(),
                    100,
                ),
                write(&new, (0..16 * MIB).step_by(1 << 20).collect(), 1 << 20),
                write(&odd, (0..300).map(|n| n * 777).collect(), 777),
            ],
        );
        for (what, path, used) in [
            ("pages overwritten", &old, &spots),
            ("parts of cold pages overwritten", &cold, &spots),
            ("a new file", &new, &all(16 * MIB / PAGE)),
            (
                "a new file in small pieces",
                &odd,
                &all((300 * 777_u64).div_ceil(PAGE)),
            ),
        ] {
            let score = Score::new(&tracked.pages(path), used);
            score.assert_complete(&format!("{name}: {what}"));
            assert!(!exact || score.extra.is_empty(), "{name}: {what}: {score}");
        }
    }
}

#[test]
fn processes_of_every_kind_are_followed() {
    require_root();
    let scratch = Scratch::new();
    let path = scratch.file("file", 10_000);
    let read = |pages: std::ops::Range<u64>| Step::pages(&path, pages);
    let within = |place, steps: &[Step]| Step::In(place, steps.to_vec());
    let steps = [
        ("itself", read(0..10)),
        (
            "threads",
            within(
                Place::Threads,
                &[read(100..200), read(200..300), read(300..400)],
            ),
        ),
        ("a child", within(Place::Child, &[read(1000..1010)])),
        (
            "a grandchild",
            within(Place::Child, &[within(Place::Child, &[read(2000..2010)])]),
        ),
        ("a daemon", within(Place::Daemon, &[read(3000..3010)])),
        (
            "a daemon's child",
            within(Place::Daemon, &[within(Place::Child, &[read(4000..4010)])]),
        ),
        (
            "a thread of a child",
            within(Place::Child, &[within(Place::Threads, &[read(5000..5010)])]),
        ),
        (
            "children at the same time",
            within(
                Place::Threads,
                &[
                    within(Place::Child, &[read(6000..6010)]),
                    within(Place::Child, &[read(6010..6020)]),
                    within(Place::Daemon, &[read(6020..6030)]),
                ],
            ),
        ),
        (
            "a program",
            Step::Run(vec![
                "dd".into(),
                format!("if={}", path.display()),
                "of=/dev/null".into(),
                "bs=4096".into(),
                "skip=7000".into(),
                "count=10".into(),
            ]),
        ),
        (
            "a shell's pipe",
            Step::Run(vec![
                "sh".into(),
                "-c".into(),
                format!(
                    "(dd if={} bs=4096 skip=8000 count=10 | cat) > /dev/null 2>&1",
                    path.display()
                ),
            ]),
        ),
        ("a thread that executes a program", Step::ExecInThread),
        ("itself after that", read(9000..9010)),
        (
            "its child after that",
            within(Place::Child, &[read(9100..9110)]),
        ),
    ];
    let mut used = BTreeSet::new();
    for range in [
        0..10,
        100..400,
        1000..1010,
        2000..2010,
        3000..3010,
        4000..4010,
        5000..5010,
        6000..6030,
        7000..7010,
        8000..8010,
        9000..9010,
        9100..9110,
    ] {
        used.extend(range);
    }
    let steps: Vec<Step> = steps.into_iter().map(|(_, step)| step).collect();
    let tracked = undisturbed(|| track(&scratch, &steps));
    Score::new(&tracked.pages(&path), &used).assert_exact("descendants");
}

/// What ran before the tracker began, and what is no descendant.
#[test]
fn descendants_that_are_there_already_are_observed_and_relatives_are_not() {
    require_root();
    let scratch = Scratch::new();
    let path = scratch.file("file", 1000);
    // The shell is the target; the readers are its children.
    let mut shell = Command::new("sh");
    let program = env!("CARGO_BIN_EXE_reader");
    shell.args(["-c", "\"$1\"; true", "sh", program]);
    let mut child = Reader::spawn(&mut shell);
    let mut other = reader();
    let track = Track::process(&scratch, child.pid());
    child.run(&Step::pages(&path, 10..20));
    child.run(&Step::In(Place::Child, vec![Step::pages(&path, 20..30)]));
    other.run(&Step::pages(&path, 100..200));
    other.run(&Step::In(Place::Child, vec![Step::pages(&path, 200..300)]));
    let tracked = track.finish();
    Score::new(&tracked.pages(&path), &(10..30).collect()).assert_exact("a child of the target");
}

#[test]
fn files_that_come_and_go_are_named_or_counted() {
    require_root();
    let scratch = Scratch::new();
    let mut reader = reader();
    let place = |name: &str| scratch.path().join(name);
    let [brief, grown, cut, deleted, renamed] =
        ["brief", "grown", "cut", "deleted", "renamed"].map(|name| scratch.file(name, 100));
    let many: Vec<PathBuf> = (0..2000).map(|n| place(&format!("many-{n}"))).collect();
    for path in &many {
        fs::write(path, [7; 5000]).expect("a file");
    }
    let track = Track::process(&scratch, reader.pid());
    // Open for as long as one read takes, by a process as short-lived.
    reader.run(&Step::In(Place::Child, vec![Step::pages(&brief, [7, 9])]));
    for path in &many {
        reader.run(&Step::pages(path, [0]));
    }

    reader.run(&Step::pages(&grown, [99]));
    let mut end = OpenOptions::new()
        .append(true)
        .open(&grown)
        .expect("the file");
    end.write_all(&[1; 100 * PAGE_SIZE]).expect("more pages");
    reader.run(&Step::pages(&grown, [150, 199]));

    reader.run(&Step::pages(&cut, [3, 4, 60, 99]));
    let file = OpenOptions::new().write(true).open(&cut).expect("the file");
    file.set_len(4 * PAGE + 1).expect("a shorter file");

    reader.run(&Step::pages(&deleted, [5]));
    fs::remove_file(&deleted).expect("removed");
    reader.run(&Step::pages(&renamed, [6]));
    fs::rename(&renamed, place("new name")).expect("a new name");
    let tracked = track.finish();
    tracked.assert_nothing_lost();

    assert_eq!(tracked.pages(&brief), [7, 9].into());
    let named = many.iter().filter(|path| tracked.pages(path) == [0].into());
    assert_eq!(named.count(), many.len());
    assert_eq!(tracked.pages(&grown), [99, 150, 199].into());
    assert_eq!(
        tracked.file(&grown).expect("the file").identity.size,
        200 * PAGE
    );
    assert_eq!(tracked.pages(&cut), [3, 4].into());
    assert!(tracked.file(&deleted).is_none());
    assert_eq!(tracked.left_out("deleted"), 1, "{}", tracked.report);
    assert!(tracked.file(&renamed).is_none());
    assert_eq!(tracked.pages(&place("new name")), [6].into());
}

#[test]
fn a_list_says_which_file_it_means() {
    require_root();
    let scratch = Scratch::new();
    let path = scratch.file("file", 10);
    let tracked = track(&scratch, &[Step::pages(&path, [1])]);
    let identity = &tracked.file(&path).expect("the file").identity;
    let meta = fs::metadata(&path).expect("the file");
    assert_eq!((identity.device, identity.inode), (meta.dev(), meta.ino()));
    assert_eq!(identity.size, 10 * PAGE);
    assert_eq!(
        identity.mtime_ns,
        meta.mtime() * 1_000_000_000 + meta.mtime_nsec()
    );
}

#[test]
fn an_executed_program_is_on_the_list_with_all_pages_it_maps() {
    require_root();
    let scratch = Scratch::new();
    let program = scratch.path().join("program");
    fs::copy("/usr/bin/perl", &program).expect("a copy of perl");
    File::open(&program)
        .and_then(|it| it.sync_all())
        .expect("written back");
    for cache in Cache::BOTH {
        cache.prepare(&program);
        let mut reader = reader();
        let track = Track::process(&scratch, reader.pid());
        let pid_file = scratch.path().join("pid");
        let script = r#""$1" -MPOSIX -e '$_ = join ",", map { $_ * 3 } 1..100; sleep 1000' \
            > /dev/null 2>&1 < /dev/null & echo $! > "$2""#;
        let mut command: Vec<String> = ["sh", "-c", script, "sh"].map(Into::into).into();
        command.extend([&program, &pid_file].map(|it| it.display().to_string()));
        reader.run(&Step::Run(command));
        let pid = fs::read_to_string(&pid_file).expect("a process id");
        let pid: i32 = pid.trim().parse().expect("a process id");
        // It has come to its end, or nearly so, when it maps this much.
        let settled = |used: &Pages| used.get(&program).is_some_and(|it| it.len() > 600);
        let used = (0..500)
            .map(|_| {
                std::thread::sleep(std::time::Duration::from_millis(20));
                mapped(pid)
            })
            .find(settled)
            .expect("perl maps its program");
        let tracked = track.finish();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL)
            .expect("it runs still");
        let score = Score::new(&tracked.pages(&program), &used[&program]);
        score.assert_complete(&format!("{cache:?}: a program that is executed"));
        let libc = used
            .keys()
            .find(|path| path.to_string_lossy().contains("libc.so"));
        let libc = libc.expect("perl maps libc");
        let score = Score::new(&tracked.pages(libc), &used[libc]);
        score.assert_complete(&format!("{cache:?}: its libc"));
    }
}

/// Members, what they fork, what is below, who joins late; and nobody else.
fn check_cgroup(scratch: &Scratch, hierarchy: &Path) {
    let path = scratch.file("file", 1000);
    let cgroup = Cgroup::new(hierarchy);
    let below = Cgroup::new(cgroup.path());
    let [mut member, mut deep, mut late, mut other] = [(); 4].map(|()| reader());
    cgroup.add(member.pid());
    below.add(deep.pid());
    let often = ["--interval", "100ms", "--cgroup"].map(Path::new);
    let track = Track::start(scratch, &[often.as_slice(), &[cgroup.path()]].concat());
    member.run(&Step::pages(&path, 10..20));
    member.run(&Step::In(Place::Daemon, vec![Step::pages(&path, 20..30)]));
    deep.run(&Step::pages(&path, 30..40));
    other.run(&Step::pages(&path, 500..600));
    cgroup.add(late.pid());
    // Members of a cgroup of version 1 are looked up once per interval.
    std::thread::sleep(std::time::Duration::from_millis(2500));
    late.run(&Step::pages(&path, 40..50));
    let tracked = track.finish();
    drop((member, deep, late));
    Score::new(&tracked.pages(&path), &(10..50).collect())
        .assert_exact(&hierarchy.display().to_string());
}

#[test]
fn a_cgroup_of_version_2_is_observed() {
    require_root();
    check_cgroup(&Scratch::new(), &cgroup2());
}

#[test]
fn a_cgroup_of_version_1_is_observed() {
    require_root();
    let scratch = Scratch::new();
    // A hierarchy without controllers, for a host that has none mounted.
    let options = ["-t", "cgroup", "-o", "none,name=migrator-test", "none"];
    let place = scratch.path().join("cgroup");
    check_cgroup(&scratch, Mount::new(&options, &place).path());
    // One whose last cgroup is still being freed outlives its mount, and every process
    // of the host is a member: CRIU then mounts it for each dump, which fails for two at
    // the same time (EBUSY). It ends with a mount that ends later.
    let is_there = || {
        let memberships = fs::read_to_string("/proc/self/cgroup").expect("the cgroups");
        memberships.contains("name=migrator-test")
    };
    for _ in 0..100 {
        if !is_there() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
        if is_there() {
            drop(Mount::new(&options, &place));
        }
    }
    panic!("the hierarchy is still there");
}

/// migrator may well be a member of the cgroup that it observes.
#[test]
fn what_migrator_itself_does_is_not_listed() {
    require_root();
    let scratch = Scratch::new();
    let path = scratch.file("file", 1000);
    let output = scratch.path().join("saved.pil");
    let cgroup = Cgroup::new(&cgroup2());
    let below = cgroup.path().display().to_string();
    for target in [["--cgroup", &below].as_slice(), &["--all"]] {
        let mut command = Command::new("sh");
        command.args([
            "-c",
            "echo $$ > \"$1/cgroup.procs\"; shift; exec \"$@\"",
            "sh",
        ]);
        command.arg(cgroup.path()).arg(migrator_tests::binary());
        command.args([
            "track",
            "--source",
            "ebpf",
            "--observed-only",
            "--json",
            "--save-every",
            "100ms",
            "--windows",
            "never",
        ]);
        command
            .args(["--interval", "100ms", "--output"])
            .arg(&output)
            .args(target);
        let track = Track::spawn(command, output.clone());
        let mut reader = reader();
        cgroup.add(reader.pid());
        reader.run(&Step::pages(&path, 10..20));
        std::thread::sleep(std::time::Duration::from_millis(500));
        let tracked = track.finish();
        drop(reader);
        Score::new(&tracked.pages(&path), &(10..20).collect()).assert_exact(target[0]);
        let program = migrator_tests::binary();
        assert!(tracked.file(&program).is_none(), "{}", tracked.report);
        // Its list is a new file each time; those before are deleted, as may be
        // files of others on the host.
        assert_eq!(tracked.pages(&output), BTreeSet::new());
        if target[0] == "--cgroup" {
            assert_eq!(tracked.left_out("deleted"), 0, "{}", tracked.report);
        }
    }
}

#[test]
fn everybody_is_observed() {
    require_root();
    let scratch = Scratch::new();
    let path = scratch.file("file", 1000);
    let [mut one, mut two] = [(); 2].map(|()| reader());
    let track = Track::start(&scratch, &["--all"]);
    one.run(&Step::pages(&path, 10..20));
    two.run(&Step::pages(&path, 20..30));
    let tracked = track.finish();
    Score::new(&tracked.pages(&path), &(10..30).collect()).assert_exact("--all");
}

#[test]
fn overlayfs_files_are_named_by_their_layers() {
    require_root();
    let scratch = Scratch::new();
    let place = |name: &str| scratch.path().join(name);
    for name in ["lower", "upper", "work"] {
        fs::create_dir(place(name)).expect("a layer");
    }
    let below = scratch.file("lower/below", 100);
    let copied = scratch.file("lower/copied", 100);
    let above = scratch.file("upper/above", 100);
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        place("lower").display(),
        place("upper").display(),
        place("work").display()
    );
    let merged = Mount::new(
        &["-t", "overlay", "-o", &options, "overlay"],
        &place("merged"),
    );
    let merged = |name: &str| merged.path().join(name);
    let tracked = track(
        &scratch,
        &[
            Step::pages(merged("below"), 10..20),
            Step::touch(merged("below"), [50]),
            Step::pages(merged("above"), 20..30),
            Step::Pwrite {
                path: merged("copied"),
                length: 10,
                offsets: vec![40 * PAGE],
            },
            Step::pages(merged("copied"), [41]),
        ],
    );
    // 50 with those that the kernel maps around it: 16, or since 6.18 all of
    // their folios, which may be the whole file.
    let found = tracked.pages(&below);
    assert!(
        found.is_superset(&(10..20).chain([50]).collect()),
        "{found:?}"
    );
    assert_eq!(tracked.pages(&above), (20..30).collect());
    // Copying up reads and writes all of it on behalf of the writer.
    let upper = tracked.pages(&place("upper/copied"));
    assert!(upper.is_superset(&[40, 41].into()), "{upper:?}");
    println!(
        "copied up: {} pages above, {} below",
        upper.len(),
        tracked.pages(&copied).len()
    );
    assert!(tracked.file(&merged("below")).is_none());
}

#[test]
fn a_bind_mount_of_another_namespace_is_named_as_on_the_host() {
    require_root();
    let scratch = Scratch::new();
    for name in ["data", "container"] {
        fs::create_dir(scratch.path().join(name)).expect("a directory");
    }
    let [open, brief] = ["open", "brief"].map(|it| scratch.file(&format!("data/{it}"), 100));
    let inside = scratch.path().join("container");
    let mut command = Command::new("unshare");
    command.args([
        "--mount",
        "sh",
        "-ec",
        "mount --bind \"$1\" \"$2\"; exec \"$3\"",
        "sh",
    ]);
    command.args([&scratch.path().join("data"), &inside]);
    command.arg(env!("CARGO_BIN_EXE_reader"));
    let mut reader = Reader::spawn(&mut command);
    let track = Track::process(&scratch, reader.pid());
    reader.run(&Step::pages(inside.join("open"), 10..20));
    reader.run(&Step::In(
        Place::Child,
        vec![Step::pages(inside.join("brief"), 20..30)],
    ));
    let tracked = track.finish();
    assert_eq!(tracked.pages(&open), (10..20).collect());
    assert_eq!(tracked.pages(&brief), (20..30).collect());
    assert!(tracked.file(&inside.join("open")).is_none());
}

/// There it would observe other processes, which have these numbers outside.
#[test]
fn a_pid_namespace_is_refused() {
    require_root();
    let output = Command::new("unshare")
        .args(["--pid", "--fork", "--mount-proc"])
        .arg(migrator_tests::binary())
        .args(["track", "--source", "ebpf", "--pid", "1", "--for", "1ms"])
        .output()
        .expect("unshare");
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{error}");
    assert!(error.contains("pid namespace"), "{error}");
}
