//! Nothing of a tracker stays behind, however it ends.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use migrator::format;
use migrator_tests::random::Random;
use migrator_tests::reader::{Reader, Step};
use migrator_tests::track::Track;
use migrator_tests::{Child, Scratch, binary, require_root, scaled};
use nix::sys::signal::Signal;

/// As bpftool and fdinfo name the kinds of objects.
const KINDS: [&str; 4] = ["prog", "map", "link", "btf"];

/// The kernel's eBPF objects: kind and id, with the name.
fn objects() -> BTreeMap<(&'static str, u64), String> {
    let mut objects = BTreeMap::new();
    for kind in KINDS {
        let mut attempts = 0;
        // One that goes away while bpftool looks is an error to it.
        let found = loop {
            let output = Command::new("bpftool")
                .args(["-j", kind, "show"])
                .output()
                .expect("bpftool");
            match serde_json::from_slice(&output.stdout) {
                Ok(serde_json::Value::Array(found)) if output.status.success() => break found,
                _ => attempts += 1,
            }
            assert!(attempts < 100, "bpftool fails again and again: {output:?}");
        };
        for object in found {
            let id = object["id"].as_u64().expect("an id");
            let name = object["name"].as_str().unwrap_or_default();
            objects.insert((kind, id), name.to_owned());
        }
    }
    objects
}

/// The objects that a process holds descriptors of.
fn held_by(process: &Path) -> BTreeSet<(&'static str, u64)> {
    let mut held = BTreeSet::new();
    // It may end while we look.
    for info in fs::read_dir(process.join("fdinfo")).into_iter().flatten() {
        let path = info.map(|info| info.path()).unwrap_or_default();
        for line in fs::read_to_string(path).unwrap_or_default().lines() {
            for kind in KINDS {
                let id = line
                    .strip_prefix(kind)
                    .and_then(|it| it.strip_prefix("_id:"));
                held.extend(id.and_then(|id| Some((kind, id.trim().parse().ok()?))));
            }
        }
    }
    held
}

/// Those of all processes, which others may have started meanwhile.
fn held() -> BTreeSet<(&'static str, u64)> {
    let processes = fs::read_dir("/proc").expect("the processes").flatten();
    processes.flat_map(|it| held_by(&it.path())).collect()
}

/// Waits until the kernel has no objects but these and what somebody holds: it
/// frees them when the last reader of an RCU grace period is gone.
#[track_caller]
fn assert_only(before: &BTreeMap<(&'static str, u64), String>) {
    let mut left = BTreeMap::new();
    for _ in 0..100 {
        left = objects();
        let held = held();
        left.retain(|key, _| !before.contains_key(key) && !held.contains(key));
        if left.is_empty() {
            return;
        }
        thread::sleep(Duration::from_millis(100));
    }
    panic!("{} objects stay in the kernel: {left:?}", left.len());
}

fn reader() -> Reader {
    Reader::start(env!("CARGO_BIN_EXE_reader"))
}

#[test]
fn a_tracker_has_objects_and_they_go_with_it() {
    require_root();
    let scratch = Scratch::new();
    let reader = reader();
    let before = objects();
    let track = Track::process(&scratch, reader.pid());
    let ours = held_by(&Path::new("/proc").join(track.pid().to_string()));
    let there = objects();
    // Otherwise the other tests would find nothing whatever happened.
    for kind in ["prog", "map", "link"] {
        let count = ours
            .iter()
            .filter(|key| key.0 == kind && there.contains_key(key))
            .count();
        assert!(count >= 3, "{count} of kind {kind} are in {there:?}");
    }
    track.finish();
    assert_only(&before);
}

#[test]
fn killed_trackers_leave_nothing() {
    require_root();
    let scratch = Scratch::new();
    let path = scratch.file("file", 20_000);
    let rounds = scaled(100);
    let mut reader = reader();
    let before = objects();
    let began = Instant::now();
    let track = Track::process(&scratch, reader.pid());
    let startup = began.elapsed();
    let output = track.finish().output;

    let mut random = Random::new(6);
    let mut lists = 0;
    for round in 0..rounds {
        fs::remove_file(&output).unwrap_or_else(|_| assert!(!output.exists()));
        let mut tracker = Child::spawn(
            Command::new(binary())
                .args(["track", "--source", "ebpf", "--pid"])
                .arg(reader.pid().to_string())
                .args(["--interval", "20ms", "--save-every", "20ms", "--output"])
                .arg(&output)
                .stdout(Stdio::null())
                .stderr(Stdio::null()),
        );
        let pages = random.set(2000, 20_000);
        // Most on their way to observe; every fifth while it writes lists.
        let moment = match round % 5 {
            0 => Duration::from_millis(random.below(100)),
            _ => startup.mul_f64(round as f64 / rounds as f64),
        };
        while round % 5 == 0 && !output.exists() {
            reader.run(&Step::pages(&path, pages.iter().copied()));
            assert!(
                tracker.process().try_wait().is_ok_and(|it| it.is_none()),
                "it ended"
            );
        }
        let until = Instant::now() + moment;
        while Instant::now() < until {
            reader.run(&Step::pages(&path, pages.iter().copied()));
        }
        tracker.signal(Signal::SIGKILL);
        assert_eq!(tracker.wait().code(), None, "it ended before it was killed");
        // Under its name there is a whole list or none.
        if output.exists() {
            let list = format::read_file(&output).unwrap_or_else(|error| panic!("{error:#}"));
            assert!(list.pages() > 0);
            lists += 1;
        }
    }
    println!("startup took {startup:?}; of {rounds} trackers {lists} had written a list");
    assert_only(&before);
}

#[test]
fn signals_end_a_tracker_with_its_list_written() {
    require_root();
    let scratch = Scratch::new();
    let path = scratch.file("file", 100);
    let before = objects();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let mut reader = reader();
        let track = Track::process(&scratch, reader.pid());
        reader.run(&Step::pages(&path, 10..20));
        let tracked = track.finish_with(signal);
        assert_eq!(tracked.pages(&path), (10..20).collect(), "{signal}");
        assert_only(&before);
        fs::remove_file(tracked.output).expect("the list is there");
    }
}

#[test]
fn a_target_that_ends_or_a_time_that_is_up_ends_a_tracker() {
    require_root();
    let scratch = Scratch::new();
    let path = scratch.file("file", 100);
    let before = objects();
    let mut reader = reader();
    let track = Track::process(&scratch, reader.pid());
    reader.run(&Step::pages(&path, 10..20));
    drop(reader);
    let tracked = track.wait();
    assert!(tracked.log.contains("has ended"), "{}", tracked.log);
    assert_eq!(tracked.pages(&path), (10..20).collect());

    let mut reader = self::reader();
    let pid = reader.pid().to_string();
    let track = Track::start(&scratch, &["--pid", &pid, "--for", "1500ms"]);
    reader.run(&Step::pages(&path, 20..30));
    assert_eq!(track.wait().pages(&path), (20..30).collect());
    assert_only(&before);
}
