//! Every source that `migrator check` calls usable, and none that it does not.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use migrator_tests::random::Random;
use migrator_tests::reader::{Reader, Step};
use migrator_tests::score::Score;
use migrator_tests::track::Track;
use migrator_tests::{PAGE_SIZE, Scratch, binary, evict, require_root, resident, scaled};
use serde_json::Value;

fn check() -> Value {
    let output = Command::new(binary())
        .args(["check", "--json"])
        .output()
        .expect("migrator");
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// The names of those that it calls usable.
fn usable(check: &Value) -> Vec<String> {
    let sources = check["sources"].as_array().expect("sources");
    let usable = sources.iter().filter(|it| it["usable"] == true);
    usable
        .map(|it| it["name"].as_str().expect("a name").to_owned())
        .collect()
}

/// Observes ourselves for a moment: the exit code, and what was said.
fn observe(source: &str) -> (Option<i32>, String) {
    let output = Command::new(binary())
        .args(["track", "--json", "--for", "10ms", "--source", source])
        .args(["--pid", &std::process::id().to_string()])
        .output()
        .expect("migrator");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), said)
}

#[test]
fn check_and_track_say_the_same_of_each_source() {
    require_root();
    let check = check();
    let sources = check["sources"].as_array().expect("sources");
    let names: Vec<_> = sources.iter().map(|it| &it["name"]).collect();
    assert_eq!(names, ["ebpf", "kmod", "procfs"]);
    for source in sources {
        let text = |key: &str| source[key].as_str().expect("text");
        let (code, said) = observe(text("name"));
        let expected = match text("status") {
            "usable" => 0,
            "not supported" | "not permitted" => 4,
            _ => 1,
        };
        assert_eq!(code, Some(expected), "{source}: {said}");
        assert!(said.contains(text("detail")), "{source}: {said}");
        if expected != 0 {
            assert!(said.contains(text("status")), "{source}: {said}");
        }
    }
}

#[test]
fn the_best_that_is_usable_is_chosen() {
    require_root();
    let check = check();
    let usable = usable(&check);
    let best = usable.first().expect("a source that can be used here");
    assert_eq!(check["chosen"], *best.as_str());
    let (code, said) = observe("auto");
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains(&format!("observing with source {best}:")),
        "{said}"
    );
}

/// Which pages were used is what all sources know, whether they see accesses or
/// look at the LRU. Each is read once: read again on another processor, while it
/// waits for its place on a list of the LRU, a page loses its mark.
fn check_tenth(scratch: &Scratch, place: &str) {
    let pages = scaled(65_536);
    let path = scratch.file("tenth", pages);
    let mut random = Random::new(8);
    let check = check();
    for source in usable(&check) {
        evict(&path);
        let used = random.set(pages as usize / 10, pages);
        let mut reader = Reader::start(env!("CARGO_BIN_EXE_reader"));
        let pid = reader.pid().to_string();
        let track = Track::with_source(scratch, &source, &["--pid", &pid]);
        // The LRU is looked at through the files that the target has open.
        reader.run(&Step::Hold(path.clone()));
        let order = random.shuffled(used.iter().copied());
        reader.run(&Step::pages(&path, order));
        let tracked = track.finish();
        tracked.assert_nothing_lost();
        let read = used.len();
        let used = match source.as_str() {
            "ebpf" => used,
            // The LRU knows nothing of what was evicted meanwhile (by DAMON, here).
            _ => &used & &resident(&path),
        };
        assert!(used.len() * 10 >= read * 9, "{} of {read} stay", used.len());
        let score = Score::new(&tracked.pages(&path), &used);
        let what = format!("{source}, {place}: a random tenth");
        assert_listed(&score, &what, source != "ebpf" && check["mglru"] == true);
        // The first read of a file is at its beginning, as far as the kernel
        // can tell, and brings a few pages more, perhaps in one folio.
        assert!(score.precision() >= 0.99, "{source}, {place}: {score}");
        let bytes = std::fs::metadata(&path).expect("the file").len();
        assert_eq!(bytes, pages * PAGE_SIZE as u64);
    }
}

/// All that was used is listed, or nearly all where marks are those of a LRU with
/// generations: its ageing takes some, on NFS 1 to 6 % so far.
#[track_caller]
fn assert_listed(score: &Score, what: &str, by_generations: bool) {
    if by_generations {
        println!("{what}: {score}");
        assert!(score.recall() >= 0.85, "{what}: {score}");
    } else {
        score.assert_complete(what);
    }
}

#[test]
fn a_random_tenth_is_listed() {
    require_root();
    check_tenth(&Scratch::new(), "on a disk");
}

/// Whatever the target did before the tracker was told to end is on the list, also
/// where an epoch has just ended: with epochs this short, one always has.
#[test]
fn the_last_accesses_are_listed() {
    require_root();
    let scratch = Scratch::new();
    let path = scratch.file("last", 4000);
    let check = check();
    for source in usable(&check) {
        for part in 0..8 {
            evict(&path);
            let mut reader = Reader::start(env!("CARGO_BIN_EXE_reader"));
            let pid = reader.pid().to_string();
            let args = ["--pid", &pid, "--interval", "50ms"];
            let track = Track::with_source(&scratch, &source, &args);
            reader.run(&Step::Hold(path.clone()));
            std::thread::sleep(std::time::Duration::from_millis(12 * part));
            let used: BTreeSet<u64> = (0..200).map(|page| page * 19).collect();
            reader.run(&Step::pages(&path, used.iter().copied()));
            let tracked = track.finish();
            let score = Score::new(&tracked.pages(&path), &used);
            let by_generations = source != "ebpf" && check["mglru"] == true;
            assert_listed(&score, &source, by_generations);
        }
    }
}

#[test]
#[ignore = "needs an NFS mount in MIGRATOR_TEST_NFS; the guests of the matrix have one"]
fn a_random_tenth_is_listed_on_nfs() {
    require_root();
    let mount = std::env::var_os("MIGRATOR_TEST_NFS").expect("MIGRATOR_TEST_NFS must name a mount");
    check_tenth(&Scratch::in_place(Path::new(&mount)), "on NFS");
}

/// A file that nobody of the target reads is on no list.
#[test]
fn what_is_only_cached_is_not_listed() {
    require_root();
    let scratch = Scratch::new();
    let path = scratch.file("cached", 1000);
    for source in usable(&check()) {
        evict(&path);
        let mut reader = Reader::start(env!("CARGO_BIN_EXE_reader"));
        let pid = reader.pid().to_string();
        let track = Track::with_source(&scratch, &source, &["--pid", &pid]);
        reader.run(&Step::Hold(path.clone()));
        let file = std::fs::File::open(&path).expect("the file");
        let advice = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_WILLNEED;
        nix::fcntl::posix_fadvise(&file, 0, 400 * PAGE_SIZE as i64, advice).expect("advice");
        // They are resident when they have come from the disk.
        let come = |_| {
            std::thread::sleep(std::time::Duration::from_millis(20));
            !resident(&path).is_empty()
        };
        assert!((0..500).any(come), "nothing was read ahead");
        let tracked = track.finish();
        assert_eq!(tracked.pages(&path), BTreeSet::new(), "{source}");
    }
}
