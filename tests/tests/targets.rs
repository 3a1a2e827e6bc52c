//! Whom `migrator track` observes: a command from its first instruction, and containers
//! by their name.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use migrator::format;
use migrator::pagelist::PageIndexList;
use migrator_tests::cgroup::{Cgroup, cgroup2};
use migrator_tests::reader::{Reader, Step};
use migrator_tests::track::Track;
use migrator_tests::{Child, Scratch, binary, evict, require_root};
use nix::sys::signal::Signal;
use serde_json::Value;

/// `track` with a command to start.
struct Tracking {
    command: Command,
    output: PathBuf,
}

impl Tracking {
    fn new(scratch: &Scratch, source: &str, words: &[&str]) -> Self {
        let output = scratch.path().join("list.pil");
        let mut command = Command::new(binary());
        command.args(["track", "--json", "--interval", "100ms", "--source", source]);
        if source == "ebpf" {
            command.arg("--observed-only");
        }
        command.arg("--output").arg(&output).arg("--").args(words);
        Self { command, output }
    }

    #[track_caller]
    fn ends(mut self, code: i32) -> (Output, Value, PageIndexList) {
        let done = self.command.output().expect("migrator runs");
        let log = String::from_utf8_lossy(&done.stderr).into_owned();
        assert_eq!(done.status.code(), Some(code), "{log}");
        let line = log.lines().find(|line| line.starts_with('{'));
        let report = serde_json::from_str(line.unwrap_or_default());
        let report = report.unwrap_or_else(|error| panic!("no JSON ({error}): {log}"));
        let list = format::read_file(&self.output).unwrap_or_else(|error| panic!("{error:#}"));
        (done, report, list)
    }

    #[track_caller]
    fn fails(mut self, code: i32, why: &str) {
        let done = self.command.output().expect("migrator runs");
        let log = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.code(), Some(code), "{log}");
        assert!(log.contains(why), "{log}");
        assert!(!self.output.exists(), "a list was written");
    }
}

fn pages(list: &PageIndexList, path: &Path) -> BTreeSet<u64> {
    let files = list.files.iter().filter(|it| it.identity.path == path);
    let runs = files.flat_map(|file| &file.runs);
    runs.flat_map(|run| run.index..run.end()).collect()
}

#[test]
fn a_command_is_observed_from_its_first_instruction() {
    require_root();
    let scratch = Scratch::new();
    let file = scratch.file("file", 300);
    // Nobody but the command has its program mapped.
    let program = scratch.path().join("cat");
    fs::copy("/bin/cat", &program).expect("a copy");
    evict(&program);
    let [name, path] = [&program, &file].map(|it| it.to_str().expect("UTF-8"));
    let (done, report, list) = Tracking::new(&scratch, "ebpf", &[name, path]).ends(0);
    assert!(
        done.stdout == fs::read(&file).expect("the file"),
        "its output is its own"
    );
    assert_eq!(report["pages"], list.pages());
    assert_eq!(pages(&list, &file), (0..300).collect());
    // execve(2) reads the first page, and the program begins at its entry point.
    let bytes = fs::read(&program).expect("the program");
    let entry = bytes[24..32]
        .try_into()
        .map(u64::from_le_bytes)
        .expect("an ELF header");
    let used = pages(&list, &program);
    assert!(
        used.contains(&0) && used.contains(&(entry / 4096)),
        "{used:?}"
    );
    let ours = list.files.iter().find(|it| it.identity.path == binary());
    assert!(ours.is_none(), "our own program is not the command's");
}

#[test]
fn what_a_command_leaves_behind_is_observed_to_its_end() {
    require_root();
    let scratch = Scratch::new();
    let file = scratch.file("file", 40);
    let script = "(sleep 0.5; cat \"$0\" >/dev/null) & exit 7";
    let words = ["sh", "-c", script, file.to_str().expect("UTF-8")];
    let (_, _, list) = Tracking::new(&scratch, "ebpf", &words).ends(7);
    assert_eq!(pages(&list, &file), (0..40).collect());
}

#[test]
fn a_command_s_exit_code_is_ours() {
    require_root();
    let scratch = Scratch::new();
    Tracking::new(&scratch, "procfs", &["sh", "-c", "exit 9"]).ends(9);
    Tracking::new(&scratch, "procfs", &["sh", "-c", "kill -TERM $$"]).ends(143);
}

#[test]
fn a_command_that_cannot_be_started_leaves_no_list() {
    require_root();
    let scratch = Scratch::new();
    let why = "failed to start migrator-none: No such file or directory";
    Tracking::new(&scratch, "procfs", &["migrator-none"]).fails(127, why);
    let file = scratch.file("file", 1);
    let path = file.to_str().expect("UTF-8");
    Tracking::new(&scratch, "procfs", &[path]).fails(126, "Permission denied");
}

#[test]
fn a_command_has_its_standard_input_and_no_descriptors_of_ours() {
    require_root();
    let scratch = Scratch::new();
    let script = "cat; ls /proc/self/fd";
    let mut tracking = Tracking::new(&scratch, "procfs", &["sh", "-c", script]);
    tracking
        .command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = Child::spawn(&mut tracking.command);
    let mut stdin = child.process().stdin.take().expect("a pipe");
    stdin.write_all(b"words\n").expect("written");
    drop(stdin);
    let mut said = String::new();
    let mut stdout = child.process().stdout.take().expect("a pipe");
    stdout.read_to_string(&mut said).expect("text");
    // Whoever runs the tests may have left some open.
    let mut without = Command::new("sh");
    let without = without.args(["-c", script]).stdin(Stdio::null()).output();
    let without = String::from_utf8(without.expect("sh runs").stdout).expect("text");
    assert_eq!(said, format!("words\n{without}"));
    assert_eq!(child.wait().code(), Some(0));
}

#[test]
fn a_signal_to_us_ends_the_command_and_the_list_is_written() {
    require_root();
    let scratch = Scratch::new();
    let mut tracking = Tracking::new(&scratch, "procfs", &["sh", "-c", "echo begun; sleep 1000"]);
    tracking
        .command
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = Child::spawn(&mut tracking.command);
    let mut stdout = BufReader::new(child.process().stdout.take().expect("a pipe"));
    let mut said = String::new();
    stdout.read_line(&mut said).expect("text");
    assert_eq!(said, "begun\n");
    child.signal(Signal::SIGTERM);
    assert_eq!(child.wait().code(), Some(143));
    format::read_file(&tracking.output).unwrap_or_else(|error| panic!("{error:#}"));
}

/// A program that says this, in a directory for PATH.
fn runtime(scratch: &Scratch, name: &str, says: &str) -> PathBuf {
    let directory = scratch.path().join("bin");
    fs::create_dir_all(&directory).expect("a directory");
    let program = directory.join(name);
    fs::write(&program, format!("#!/bin/sh\n{says}\n")).expect("a program");
    fs::set_permissions(&program, Permissions::from_mode(0o755)).expect("executable");
    directory
}

/// Observes a container of a runtime that says this of it.
fn track_container(scratch: &Scratch, runtime_name: &str, says: &str) -> Command {
    let path = runtime(scratch, runtime_name, says);
    let mut command = Command::new(binary());
    command.env("PATH", format!("{}:/usr/bin:/bin", path.display()));
    command.args(["track", "--json", "--observed-only", "--source", "ebpf"]);
    command.args(["--container", "web", "--runtime", runtime_name, "--output"]);
    command.arg(scratch.path().join("list.pil"));
    command
}

#[test]
fn a_container_is_observed_by_its_cgroup() {
    require_root();
    let scratch = Scratch::new();
    let file = scratch.file("file", 100);
    let id = format!("{:064x}", std::process::id());
    let container = Cgroup::named(&cgroup2(), &format!("libpod-{id}.scope"));
    let below = Cgroup::named(container.path(), "container");
    let reader = || Reader::start(env!("CARGO_BIN_EXE_reader"));
    let [mut first, mut other, mut outside] = [(); 3].map(|()| reader());
    below.add(first.pid());
    // No child of the first process: its parent has ended, so to say.
    container.add(other.pid());
    let says = format!("[ \"$5\" = web ] && echo {id} {} running", first.pid());
    for runtime in ["podman", "docker"] {
        let command = track_container(&scratch, runtime, &says);
        let track = Track::spawn(command, scratch.path().join("list.pil"));
        first.run(&Step::pages(&file, 0..10));
        other.run(&Step::pages(&file, 20..30));
        outside.run(&Step::pages(&file, 40..50));
        let tracked = track.finish();
        assert_eq!(tracked.pages(&file), (0..10).chain(20..30).collect());
    }
}

#[test]
fn a_container_without_a_cgroup_is_observed_by_its_first_process() {
    require_root();
    let scratch = Scratch::new();
    let file = scratch.file("file", 100);
    let mut reader = Reader::start(env!("CARGO_BIN_EXE_reader"));
    let pid = reader.pid();
    let state = format!(r#"{{"status": "running", "pid": {pid}, "bundle": "/bundle"}}"#);
    let command = track_container(&scratch, "runc", &format!("echo '{state}'"));
    let track = Track::spawn(command, scratch.path().join("list.pil"));
    reader.run(&Step::pages(&file, 0..10));
    assert_eq!(track.finish().pages(&file), (0..10).collect());
}

#[test]
fn a_container_that_is_not_there_is_an_error() {
    require_root();
    let scratch = Scratch::new();
    for (runtime, says, why) in [
        (
            "podman",
            "echo no such container web >&2; exit 125",
            "no such container web",
        ),
        (
            "docker",
            "echo 4c01 0 exited",
            "docker's container web is exited, not running",
        ),
        (
            "podman",
            "echo",
            "malformed output of `podman container inspect`",
        ),
        (
            "runc",
            "echo container does not exist >&2; exit 1",
            "does not exist",
        ),
    ] {
        let done = track_container(&scratch, runtime, says)
            .output()
            .expect("migrator runs");
        let log = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.code(), Some(1), "{log}");
        assert!(log.contains(why), "{log}");
    }
}
