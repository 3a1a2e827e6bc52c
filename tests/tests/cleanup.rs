//! Nothing of a tracker stays behind, however it ends.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use migrator::format;
use migrator_tests::random::Random;
use migrator_tests::reader::{Reader, Step};
use migrator_tests::track::Track;
use migrator_tests::{Child, Scratch, binary, require_root};
use nix::sys::signal::Signal;

/// The kernel's eBPF objects: kind and id, with the name.
fn objects() -> BTreeMap<(&'static str, u64), String> {
    let mut objects = BTreeMap::new();
    for kind in ["prog", "map", "link", "btf"] {
        let output = Command::new("bpftool")
            .args(["-j", kind, "show"])
            .output()
            .expect("bpftool");
        // One that goes away while bpftool looks is an error to it.
        let Ok(found) = serde_json::from_slice::<serde_json::Value>(&output.stdout) else {
            panic!("bpftool printed no JSON: {output:?}");
        };
        for object in found.as_array().into_iter().flatten() {
            if let Some(id) = object["id"].as_u64() {
                let name = object["name"].as_str().unwrap_or_default();
                objects.insert((kind, id), name.to_owned());
            }
        }
    }
    objects
}

/// Waits until the kernel has no other objects than these: it frees them when
/// the last reader of an RCU grace period is gone.
#[track_caller]
fn assert_only(before: &BTreeMap<(&'static str, u64), String>) {
    let mut left = BTreeMap::new();
    for _ in 0..100 {
        left = objects();
        left.retain(|key, _| !before.contains_key(key));
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
    let mut ours = objects();
    ours.retain(|key, _| !before.contains_key(key));
    // Otherwise the other tests would find nothing whatever happened.
    let programs = ours.keys().filter(|(kind, _)| *kind == "prog").count();
    let maps = ours.values().filter(|name| *name == "CHUNK_BITS").count();
    assert!(programs >= 3 && maps == 1, "{ours:?}");
    track.finish();
    assert_only(&before);
}

#[test]
fn a_hundred_killed_trackers_leave_nothing() {
    require_root();
    let scratch = Scratch::new();
    let path = scratch.file("file", 20_000);
    let mut reader = reader();
    let before = objects();
    let began = Instant::now();
    let track = Track::process(&scratch, reader.pid());
    let startup = began.elapsed();
    let output = track.finish().output;

    let mut random = Random::new(6);
    let mut lists = 0;
    let mut killed = 0;
    for round in 0..100 {
        // Half the way of the others it has started and writes lists.
        let moment = startup.mul_f64(1.5 * f64::from(round) / 100.0);
        fs::remove_file(&output).unwrap_or_else(|_| assert!(round > 0 && !output.exists()));
        let mut tracker = Child::spawn(
            Command::new(binary())
                .args([
                    "track",
                    "--source",
                    "ebpf",
                    "--pid",
                    &reader.pid().to_string(),
                ])
                .args(["--interval", "20ms", "--save-every", "20ms", "--output"])
                .arg(&output)
                .stdout(Stdio::null())
                .stderr(Stdio::null()),
        );
        let pages = random.set(2000, 20_000);
        let until = Instant::now() + moment;
        while Instant::now() < until {
            reader.run(&Step::pages(&path, pages.iter().copied()));
        }
        tracker.signal(Signal::SIGKILL);
        killed += u32::from(tracker.wait().code().is_none());
        // Under its name there is a whole list or none.
        if output.exists() {
            let list = format::read_file(&output).unwrap_or_else(|error| panic!("{error:#}"));
            lists += u32::from(list.pages() > 0);
        }
    }
    assert_eq!(killed, 100, "some ended by themselves");
    println!("startup took {startup:?}; of 100 trackers {lists} had written a list");
    assert!(lists >= 5, "only {lists} came so far as to write a list");
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
