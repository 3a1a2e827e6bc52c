//! A tracker that is left on observes in windows: between them nothing of it runs,
//! and what is used in a later one is found.

use std::collections::BTreeSet;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use aya::programs::{ProgramInfo, loaded_links, loaded_programs};
use migrator_tests::reader::{Place, Reader, Step};
use migrator_tests::score::Score;
use migrator_tests::track::Track;
use migrator_tests::{Scratch, require_root};
use serde_json::json;

fn reader() -> Reader {
    Reader::start(env!("CARGO_BIN_EXE_reader"))
}

/// Programs of others that were there before the tracker.
struct Others(BTreeSet<u32>);

impl Others {
    fn now() -> Self {
        // Others on this host may unload theirs while we look.
        let programs = loaded_programs().filter_map(Result::ok);
        Self(programs.map(|program| program.id()).collect())
    }

    /// The programs that the tracker has loaded.
    fn ours(&self) -> Vec<ProgramInfo> {
        let programs = loaded_programs().filter_map(Result::ok);
        programs.filter(|it| !self.0.contains(&it.id())).collect()
    }

    /// The names of those that are attached.
    fn attached(&self) -> BTreeSet<String> {
        let linked: BTreeSet<u32> = loaded_links()
            .filter_map(Result::ok)
            .map(|link| link.program_id())
            .collect();
        let ours = self.ours().into_iter();
        ours.filter(|program| linked.contains(&program.id()))
            .map(|program| program.name_as_str().unwrap_or("?").to_owned())
            .collect()
    }

    /// Waits until the programs that are attached are only these, or others too.
    fn wait(&self, only: &[&str], is: bool) {
        let only: BTreeSet<String> = only.iter().map(|name| (*name).to_owned()).collect();
        let began = Instant::now();
        while (self.attached() == only) != is {
            let waited = began.elapsed();
            assert!(
                waited < Duration::from_secs(60),
                "attached: {:?}",
                self.attached()
            );
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// What follows processes goes on in a pause.
const FOLLOW: &[&str] = &["process_fork", "process_free"];

#[test]
fn between_windows_nothing_is_attached_and_later_ones_see() {
    require_root();
    let scratch = Scratch::new();
    let path = scratch.file("file", 1000);
    let later = scratch.file("later", 300);
    let mut reader = reader();
    let others = Others::now();
    let pid = reader.pid().to_string();
    let track = Track::start(
        &scratch,
        &["--pid", &pid, "--interval", "200ms", "--windows", "always"],
    );
    assert!(others.attached().len() > FOLLOW.len());
    reader.run(&Step::pages(&path, 0..10));
    let loaded: Vec<u32> = others.ours().iter().map(ProgramInfo::id).collect();

    others.wait(FOLLOW, true);
    reader.run(&Step::pages(&path, 100..110));
    // Born in a pause, and its parent ends in it: /proc does not tell any more
    // that it is one of the target's.
    let cat = format!(
        "for i in $(seq 120); do cat {} > /dev/null; sleep 0.05; done",
        later.display()
    );
    let cat = Step::Run(vec!["sh".into(), "-c".into(), cat]);
    reader.begin(&Step::In(Place::Daemon, vec![cat]));
    others.wait(FOLLOW, false);
    others.wait(FOLLOW, true);
    let still: Vec<u32> = others.ours().iter().map(ProgramInfo::id).collect();
    let tracked = track.finish();
    reader.end();

    tracked.assert_nothing_lost();
    // Before Linux 5.13 some are loaded anew, in the place of others.
    assert_eq!(loaded.len(), still.len());
    Score::new(&tracked.pages(&path), &(0..10).collect()).assert_exact("the first seconds");
    Score::new(&tracked.pages(&later), &(0..300).collect()).assert_exact("a later window");
    let seconds = |key: &str| tracked.report[key].as_f64().expect("a number");
    assert_eq!(tracked.report["windows"], true);
    assert!(seconds("observed_seconds") < seconds("seconds"));
}

#[test]
fn in_a_pause_lists_are_saved_and_the_end_of_the_target_is_seen() {
    require_root();
    let scratch = Scratch::new();
    let path = scratch.file("file", 100);
    let mut reader = reader();
    let others = Others::now();
    let pid = reader.pid().to_string();
    let options = ["--interval", "100ms", "--save-every", "100ms"];
    let windows = ["--pid", &pid, "--windows", "always"];
    let track = Track::start(&scratch, &[windows.as_slice(), &options].concat());
    reader.run(&Step::pages(&path, 0..10));
    others.wait(FOLLOW, true);
    let output = scratch.path().join("list.pil");
    let saved = fs::metadata(&output).and_then(|it| it.modified());
    let saved = saved.expect("a list");
    while fs::metadata(&output)
        .and_then(|it| it.modified())
        .expect("a list")
        == saved
    {
        thread::sleep(Duration::from_millis(5));
    }
    drop(reader);
    let tracked = track.wait();
    Score::new(&tracked.pages(&path), &(0..10).collect()).assert_exact("before the pause");
}

#[test]
fn of_everybody_nothing_at_all_is_attached_in_a_pause() {
    require_root();
    let scratch = Scratch::new();
    let others = Others::now();
    let track = Track::start(
        &scratch,
        &["--all", "--interval", "100ms", "--windows", "always"],
    );
    others.wait(&[], true);
    others.wait(&[], false);
    track.finish();
}

#[test]
fn windows_are_for_a_tracker_that_is_left_on() {
    require_root();
    let scratch = Scratch::new();
    let reader = reader();
    let pid = reader.pid().to_string();
    let usual = ["--pid", &pid, "--windows", "auto"];
    let left_on = Track::start(&scratch, &usual).finish();
    assert_eq!(left_on.report["windows"], true);
    let bounded = Track::start(&scratch, &[usual.as_slice(), &["--for", "100ms"]].concat()).wait();
    assert_eq!(bounded.report["windows"], json!(false));
    assert!(left_on.log.contains("in windows of 1s, every 12s to 1m"));
}
