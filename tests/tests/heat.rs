//! What is used over and over stays on the list, and what a backup reads once
//! does not: `--min-heat again`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use migrator::pagelist::{AGAIN, ONCE};
use migrator_tests::random::Random;
use migrator_tests::reader::{Place, Reader, Step};
use migrator_tests::score::Score;
use migrator_tests::track::Track;
use migrator_tests::{PAGE_SIZE, Scratch, evict, require_root, scaled};

/// Pages of the file that is scanned: 128 MiB.
fn scan_pages() -> u64 {
    scaled(32_768)
}

/// Pages of the file that the set is in.
fn data_pages() -> u64 {
    scaled(65_536)
}

/// Pages of the set.
fn set_pages() -> usize {
    scaled(3000) as usize
}

/// tar reads 10 KiB at a time, so that two requests share every fifth page. Before Linux
/// 5.12 each CPU has an access map of its own, and such a page counts as used again
/// where tar, which waits for a pipe, went to another CPU between the two: 48 of 4096
/// pages on 5.10. All that are shared would be 819.
const SHARED: u64 = 20;

/// A scan of `file`, which may write to `copy`.
fn scans(file: &Path, copy: &Path) -> Vec<(&'static str, Step)> {
    let (from, to) = (file.display(), copy.display());
    let shell = |script: String| Step::Run(vec!["sh".into(), "-c".into(), script]);
    vec![
        ("cat", shell(format!("cat {from} > /dev/null"))),
        ("cp", shell(format!("cp {from} {to}"))),
        (
            "dd bs=512",
            shell(format!("dd if={from} of=/dev/null bs=512 2> /dev/null")),
        ),
        (
            "dd bs=512 to a file",
            shell(format!("dd if={from} of={to} bs=512 2> /dev/null")),
        ),
        ("tar", shell(format!("tar -cPf - {from} | cat > {to}"))),
        (
            "tar on one CPU",
            shell(format!("taskset -c 0 tar -cPf - {from} | cat > {to}")),
        ),
        (
            "reads of 10 KiB",
            Step::In(Place::Child, vec![Step::sequential(file, 10_240)]),
        ),
        (
            "reads of 1000 bytes",
            Step::In(Place::Child, vec![Step::sequential(file, 1000)]),
        ),
        (
            "one pread",
            Step::Pread {
                path: file.into(),
                length: scan_pages() as usize * PAGE_SIZE,
                offsets: vec![0],
            },
        ),
    ]
}

#[test]
fn min_heat_keeps_the_set_and_none_of_the_scan() {
    require_root();
    let scratch = Scratch::new();
    let data = scratch.file("data", data_pages());
    let scan = scratch.file("scan", scan_pages());
    let copy = scratch.path().join("copy");
    let mut random = Random::new(4);
    let set = random.set(set_pages(), data_pages());
    for (name, step) in scans(&scan, &copy) {
        evict(&data);
        evict(&scan);
        let mut reader = Reader::start(env!("CARGO_BIN_EXE_reader"));
        let pid = reader.pid().to_string();
        let track = Track::start(&scratch, &["--pid", &pid, "--min-heat", "again"]);
        let pass = |random: &mut Random| Step::pages(&data, random.shuffled(set.iter().copied()));
        let passes = (0..5).map(|_| pass(&mut random)).collect();
        // Both at the same time, in two processes of one tree.
        let set_and_scan = vec![Step::In(Place::Child, passes), step];
        reader.run(&Step::In(Place::Threads, set_and_scan));
        let tracked = track.finish();
        tracked.assert_nothing_lost();

        let score = Score::new(&tracked.pages(&data), &set);
        println!("{name}: the set: {score}");
        assert!(score.recall() >= 0.99 && score.extra.is_empty());
        for (what, path) in [("scanned", &scan), ("written", &copy)] {
            let pages = tracked.pages(path).len();
            println!("{name}: {pages} pages {what} are on the list");
            let share = if name == "tar" { SHARED } else { 100 };
            assert!(
                pages as u64 <= scan_pages() / share,
                "{name}: {pages} pages {what}"
            );
        }
        // Absent unless the scan has written it.
        let _ = fs::remove_file(&copy);
    }
}

/// Heat tells what is used now from what was used once.
#[test]
fn a_set_inside_the_scanned_file_is_told_from_the_rest() {
    require_root();
    let scratch = Scratch::new();
    let path = scratch.file("file", data_pages());
    let mut random = Random::new(5);
    let set = random.set(set_pages(), data_pages());
    evict(&path);
    let mut reader = Reader::start(env!("CARGO_BIN_EXE_reader"));
    let track = Track::process(&scratch, reader.pid());
    for _ in 0..3 {
        reader.run(&Step::pages(&path, random.shuffled(set.iter().copied())));
    }
    // One page each: of a longer read the kernel does not always tell all,
    // where a part is cached (docs/accuracy.md).
    let dd = ["dd", "bs=4k", "of=/dev/null"].map(String::from);
    let from = format!("if={}", path.display());
    reader.run(&Step::Run(dd.into_iter().chain([from]).collect()));
    let tracked = track.finish();
    let all: BTreeSet<u64> = (0..data_pages()).collect();
    Score::new(&tracked.pages(&path), &all).assert_exact("all that was used");
    let score = Score::new(&tracked.hot_pages(&path, AGAIN), &set);
    score.assert_complete("what was used again");
    assert!(score.extra.len() as u64 <= data_pages() / 100, "{score}");
}

/// A page that is used once per epoch ranks above one used once, and one used
/// all the time above both.
#[test]
fn heat_ranks_by_how_often_and_how_lately() {
    require_root();
    let scratch = Scratch::new();
    let path: PathBuf = scratch.file("file", 100);
    let mut reader = Reader::start(env!("CARGO_BIN_EXE_reader"));
    let pid = reader.pid().to_string();
    let track = Track::start(&scratch, &["--pid", &pid, "--interval", "300ms"]);
    reader.run(&Step::pages(&path, [1]));
    for _ in 0..6 {
        reader.run(&Step::pages(&path, [20]));
        for _ in 0..3 {
            reader.run(&Step::pages(&path, [30]));
            reader.run(&Step::pages(&path, [40]));
        }
        std::thread::sleep(std::time::Duration::from_millis(300));
    }
    let tracked = track.finish();
    let heat = |page| {
        let runs = &tracked.file(&path).expect("the file").runs;
        let run = runs
            .iter()
            .find(|run| (run.index..run.end()).contains(&page));
        run.expect("the page").heat
    };
    let heats = [1, 20, 30].map(heat);
    println!("heats {heats:?}");
    assert_eq!(heats[0], ONCE);
    assert!(heats[0] < heats[1] && heats[1] < heats[2], "{heats:?}");
}
