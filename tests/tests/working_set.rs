//! What a short observation does not see: the LRU's state stands below it in the list.

use std::collections::BTreeSet;

use migrator::kernel::lru_gen_enabled;
use migrator::pagelist::{ACTIVE, AGAIN, ONCE, REFERENCED, RESIDENT};
use migrator_tests::random::Random;
use migrator_tests::reader::{Reader, Step};
use migrator_tests::score::Score;
use migrator_tests::track::{Track, Tracked};
use migrator_tests::{Scratch, binary, evict, require_root, resident, scaled};

/// A set whose pages are used at intervals that are longer than the observation.
fn slow_set(scratch: &Scratch, reader: &mut Reader) -> (std::path::PathBuf, BTreeSet<u64>) {
    let pages = scaled(65_536);
    let path = scratch.file("file", pages);
    evict(&path);
    let mut random = Random::new(19);
    let set = random.set((pages / 8) as usize, pages);
    reader.run(&Step::pages(&path, random.shuffled(set.iter().copied())));
    (path, set)
}

fn track(scratch: &Scratch, reader: &Reader, more: &[&str]) -> Track {
    let output = scratch.path().join("list.pil");
    let mut command = std::process::Command::new(binary());
    command
        .args(["track", "--json", "--source", "ebpf", "--output"])
        .arg(&output)
        .args(["--pid", &reader.pid().to_string()])
        .args(more);
    Track::spawn(command, output)
}

#[test]
fn a_set_that_is_used_too_slowly_to_be_seen_is_listed() {
    require_root();
    let scratch = Scratch::new();
    let mut reader = Reader::start(env!("CARGO_BIN_EXE_reader"));
    let (path, set) = slow_set(&scratch, &mut reader);
    let observation = track(&scratch, &reader, &[]);
    // A tenth of it is used while it is observed, half of that twice.
    let seen: Vec<u64> = set.iter().copied().step_by(10).collect();
    reader.run(&Step::pages(&path, seen.clone()));
    let twice: BTreeSet<u64> = seen.iter().copied().step_by(2).collect();
    reader.run(&Step::pages(&path, twice.clone()));
    let cached: BTreeSet<u64> = resident(&path).intersection(&set).copied().collect();
    let tracked = observation.finish();
    let score = Score::new(&tracked.pages(&path), &cached);
    println!("all: {score}");
    assert!(score.recall() >= 0.99, "{score}");
    let used = Score::new(&tracked.hot_pages(&path, REFERENCED), &cached);
    println!("at least referenced: {used}");
    assert!(used.recall() >= 0.95, "{used}");
    let again = Score::new(&tracked.hot_pages(&path, AGAIN), &twice);
    again.assert_complete("what was seen more than once");
    assert!(observed(&tracked, &path).is_superset(&seen.into_iter().collect()));
}

/// The pages with a heat that only an observed use gives.
fn observed(tracked: &Tracked, path: &std::path::Path) -> BTreeSet<u64> {
    let runs = tracked.file(path).into_iter().flat_map(|file| &file.runs);
    runs.filter(|run| run.heat == ONCE || run.heat >= AGAIN)
        .flat_map(|run| run.index..run.end())
        .collect()
}

#[test]
fn only_what_was_observed_is_listed_when_that_is_asked_for() {
    require_root();
    let scratch = Scratch::new();
    let mut reader = Reader::start(env!("CARGO_BIN_EXE_reader"));
    let (path, set) = slow_set(&scratch, &mut reader);
    let observation = track(&scratch, &reader, &["--observed-only"]);
    let seen: BTreeSet<u64> = set.iter().copied().step_by(10).collect();
    reader.run(&Step::pages(&path, seen.clone()));
    let tracked = observation.finish();
    Score::new(&tracked.pages(&path), &seen).assert_exact("what was observed");
}

/// What is on the active list ranks above what is referenced, and that above what is
/// merely resident.
#[test]
fn the_steps_of_the_lru_are_ranked() {
    require_root();
    if lru_gen_enabled("/sys".as_ref()) {
        println!("not run: the multi-generational LRU has no active list");
        return;
    }
    let scratch = Scratch::new();
    let mut reader = Reader::start(env!("CARGO_BIN_EXE_reader"));
    let pages = 4000;
    let path = scratch.file("file", pages);
    evict(&path);
    let mut random = Random::new(7);
    let set = random.set((pages / 2) as usize, pages);
    let active: BTreeSet<u64> = set.iter().copied().step_by(2).collect();
    reader.run(&Step::pages(&path, random.shuffled(set.iter().copied())));
    for _ in 0..2 {
        reader.run(&Step::pages(&path, random.shuffled(active.iter().copied())));
    }
    let observation = track(&scratch, &reader, &[]);
    // The file is closed again when the LRU is sampled, and known by this.
    let first = active.first().copied().expect("a page");
    reader.run(&Step::pages(&path, [first]));
    let tracked = observation.finish();
    let hot = Score::new(&tracked.hot_pages(&path, ACTIVE), &active);
    println!("active: {hot}");
    // Another processor may hold a page in a batch for a moment.
    assert!(hot.recall() >= 0.98 && hot.precision() >= 0.98, "{hot}");
    let used = Score::new(&tracked.hot_pages(&path, REFERENCED), &set);
    assert!(used.recall() >= 0.98, "{used}");
    let all = Score::new(&tracked.hot_pages(&path, RESIDENT), &resident(&path));
    assert!(all.recall() >= 0.98, "{all}");
}
