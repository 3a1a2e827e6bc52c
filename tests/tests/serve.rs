//! The tracker of a host: others ask it for what was used before they came, and it
//! keeps that over a restart.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use migrator::format;
use migrator_tests::reader::{Reader, Step};
use migrator_tests::track::{Track, Tracked};
use migrator_tests::{Child, Scratch, binary, require_root};
use nix::sys::signal::Signal;
use serde_json::Value;

/// The pages that are used while only the tracker looks.
const PAGES: std::ops::Range<u64> = 40..60;

fn reader() -> Reader {
    Reader::start(env!("CARGO_BIN_EXE_reader"))
}

/// A tracker that serves in a scratch directory.
struct Server {
    child: Child,
    place: PathBuf,
}

impl Server {
    fn command(place: &Path) -> Command {
        let mut command = Command::new(binary());
        command
            .args(["track", "--all", "--serve", "--source", "ebpf", "--json"])
            .args(["--windows", "never", "--save-every", "200ms", "--socket"])
            .arg(place.join("socket"))
            .arg("--state")
            .arg(place.join("state.pil"))
            .stdout(Stdio::null());
        command
    }

    /// Starts one, and waits until it answers.
    fn start(place: &Path) -> Self {
        let place = place.to_owned();
        let log = fs::File::create(place.join("log")).expect("a log");
        let child = Child::spawn(Self::command(&place).stderr(log));
        let mut server = Self { child, place };
        let log = server.place.join("log");
        wait("the tracker serves", || {
            let ended = server.child.process().try_wait().expect("a status");
            assert!(ended.is_none(), "{}", text(&log));
            text(&log).contains("serving at")
        });
        server
    }

    fn socket(&self) -> PathBuf {
        self.place.join("socket")
    }

    fn state(&self) -> PathBuf {
        self.place.join("state.pil")
    }

    fn log(&self) -> String {
        text(&self.place.join("log"))
    }

    /// Ends it as systemd does.
    fn end(mut self) {
        self.child.signal(Signal::SIGTERM);
        let status = self.child.wait();
        assert_eq!(status.code(), Some(0), "{}", self.log());
        assert!(!self.socket().exists(), "the socket is left");
    }

    fn kill(mut self) {
        self.child.signal(Signal::SIGKILL);
        self.child.wait();
        assert!(self.socket().exists(), "a killed tracker leaves its socket");
    }

    /// What `check` says of it.
    fn status(&self) -> Value {
        let output = run(Command::new(binary())
            .args(["check", "--json", "--socket"])
            .arg(self.socket()));
        let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        report["tracker"].clone()
    }

    /// The pages of a file that it shows.
    fn pages(&self, path: &Path) -> BTreeSet<u64> {
        let output = run(Command::new(binary())
            .args(["show", "--json", "--socket"])
            .arg(self.socket())
            .arg("--below")
            .arg(path.parent().expect("a directory")));
        let list: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let files = list["files"].as_array().expect("files");
        let is_it = |file: &&Value| file["path"].as_str().map(Path::new) == Some(path);
        let file = files.iter().find(is_it);
        let runs = file
            .into_iter()
            .flat_map(|file| file["runs"].as_array().expect("runs"));
        runs.flat_map(|run| {
            let number = |key: &str| run[key].as_u64().expect("a number");
            number("index")..number("index") + number("pages")
        })
        .collect()
    }
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn run(command: &mut Command) -> Output {
    let output = command.output().expect("a program");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    output
}

fn wait(what: &str, mut is: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is() {
        assert!(began.elapsed() < Duration::from_secs(60), "never: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Uses the pages of a file several times, and waits until the tracker shows them.
fn use_pages(server: &Server, reader: &mut Reader, path: &Path) {
    for _ in 0..3 {
        reader.run(&Step::pages(path, PAGES));
        reader.run(&Step::pages(path, 0..1));
        thread::sleep(Duration::from_millis(150));
    }
    wait("the pages are known", || {
        server.pages(path).is_superset(&PAGES.collect())
    });
}

/// A short observation of a process that has the file open and does nothing.
fn observe_idle(server: &Server, scratch: &Scratch, reader: &Reader, more: &[&str]) -> Tracked {
    let pid = reader.pid().to_string();
    let socket = server.socket();
    let socket = socket.to_str().expect("UTF-8");
    let args = ["--pid", &pid, "--for", "300ms", "--socket", socket];
    Track::start(scratch, &[&args[..], more].concat()).wait()
}

#[test]
fn what_was_used_before_is_known_to_those_who_come_later() {
    require_root();
    let scratch = Scratch::new();
    let path = scratch.file("file", 100);
    let mut reader = reader();
    let server = Server::start(scratch.path());
    reader.run(&Step::Hold(path.clone()));
    use_pages(&server, &mut reader, &path);

    let tracked = observe_idle(&server, &scratch, &reader, &[]);
    let expected: BTreeSet<u64> = PAGES.chain(0..1).collect();
    assert_eq!(tracked.hot_pages(&path, 6), expected, "{}", tracked.log);
    assert!(
        tracked.log.contains("going on from the tracker"),
        "{}",
        tracked.log
    );
    let without = observe_idle(&server, &scratch, &reader, &["--no-history"]);
    assert_eq!(without.pages(&path), BTreeSet::new());

    let status = server.status();
    assert_eq!(status["pid"], server.child.pid());
    assert!(status["pages"].as_u64() >= Some(21), "{status}");
    server.end();
    let without = {
        let pid = reader.pid().to_string();
        Track::start(&scratch, &["--pid", &pid, "--for", "300ms"]).wait()
    };
    assert_eq!(without.pages(&path), BTreeSet::new());
}

#[test]
fn a_restart_keeps_what_was_known_and_so_does_a_kill() {
    require_root();
    let scratch = Scratch::new();
    let path = scratch.file("file", 100);
    let gone = scratch.file("gone", 100);
    let later = scratch.file("later", 100);
    let mut reader = reader();
    let expected: BTreeSet<u64> = PAGES.chain(0..1).collect();
    let server = Server::start(scratch.path());
    use_pages(&server, &mut reader, &path);
    use_pages(&server, &mut reader, &gone);
    server.end();
    // A state is a list.
    let list = format::read_file(&scratch.path().join("state.pil")).expect("a list");
    assert!(list.files.iter().any(|file| file.identity.path == path));
    // Another file in its place is not the one that was used.
    fs::rename(scratch.file("new", 100), &gone).expect("a rename");

    let server = Server::start(scratch.path());
    assert!(
        server.log().contains("going on from what was kept"),
        "{}",
        server.log()
    );
    assert_eq!(server.pages(&path), expected);
    assert_eq!(server.pages(&gone), BTreeSet::new());
    use_pages(&server, &mut reader, &later);
    wait("the state is saved", || {
        let list = format::read_file(&server.state()).expect("a list");
        list.files.iter().any(|file| file.identity.path == later)
    });
    server.kill();

    let server = Server::start(scratch.path());
    assert_eq!(server.pages(&path), expected);
    assert_eq!(server.pages(&later), expected);
    server.end();
}

#[test]
fn a_state_that_is_none_is_moved_aside() {
    require_root();
    let scratch = Scratch::new();
    let path = scratch.file("file", 100);
    let state = scratch.path().join("state.pil");
    fs::write(&state, b"\x89PIL\r\nnothing of the kind").expect("a file");
    let server = Server::start(scratch.path());
    assert!(server.log().contains("is of no use"), "{}", server.log());
    assert!(scratch.path().join("state.bad").exists());
    let mut reader = reader();
    use_pages(&server, &mut reader, &path);
    server.end();
    assert!(state.exists());
}

#[test]
fn a_full_disk_is_a_warning() {
    require_root();
    let scratch = Scratch::new();
    let path = scratch.file("file", 100);
    // A state that can't be written: its temporary file is a directory.
    fs::create_dir(scratch.path().join("state.pil.new")).expect("a directory");
    let server = Server::start(scratch.path());
    let mut reader = reader();
    use_pages(&server, &mut reader, &path);
    wait("a warning", || {
        server.log().contains("failed to keep the state")
    });
    server.end();
}

#[test]
fn there_is_one_tracker() {
    require_root();
    let scratch = Scratch::new();
    let server = Server::start(scratch.path());
    let second = Server::command(scratch.path()).output().expect("a program");
    let said = String::from_utf8_lossy(&second.stderr);
    assert_eq!(second.status.code(), Some(1), "{said}");
    let pid = format!("process {}, since 2", server.child.pid());
    assert!(said.contains(&pid), "{said}");
    assert!(server.status()["pid"].is_number());
    server.end();

    let usage = Command::new(binary())
        .args(["track", "--pid", "1", "--serve"])
        .output()
        .expect("a program");
    assert_eq!(usage.status.code(), Some(2));
}

#[test]
fn only_root_may_ask() {
    require_root();
    // Where others come to it.
    let place = tempfile::tempdir_in("/tmp").expect("a directory");
    fs::set_permissions(&place, Permissions::from_mode(0o711)).expect("a mode");
    let server = Server::start(place.path());
    let socket = server.socket();
    let mode = fs::metadata(&socket)
        .expect("the socket")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    // Even where the file's mode would let others in.
    fs::set_permissions(&socket, Permissions::from_mode(0o666)).expect("a mode");
    let answer = thread::spawn(move || {
        // Of this thread only: the system calls themselves, not the C library's.
        let nobody = 65_534_u32;
        // SAFETY: numbers only, and of a thread that does nothing else.
        let set = unsafe { nix::libc::syscall(nix::libc::SYS_setresuid, nobody, nobody, nobody) };
        assert_eq!(set, 0);
        let mut stream = UnixStream::connect(&socket).expect("a connection");
        let mut answer = Vec::new();
        _ = stream.read_to_end(&mut answer);
        answer
    });
    let answer = answer.join().expect("an answer");
    let said = String::from_utf8_lossy(&answer);
    assert!(said.contains("only root may ask"), "{said}");
    server.end();
}

#[test]
fn those_who_ask_badly_do_not_stop_others() {
    require_root();
    let scratch = Scratch::new();
    let server = Server::start(scratch.path());
    let connect = || UnixStream::connect(server.socket()).expect("a connection");
    let mut bad = Vec::new();
    let all = b"MTRK\x01\x03\x01\x00\x00\x00\x00\x00";
    for request in [
        &b""[..],
        b"GET / HTTP/1.1\r\n\r\n",
        &all[..5],
        b"MTRK\x01\x01\x01\x00\xff\xff\xff\xff",
        b"MTRK\x07\x00\x00\x00",
        // Asks, and does not take the answer.
        all,
        all,
        b"",
        b"MTRK\x01\x01\x01\x00\x00\x00\x10\x00\x00",
    ] {
        let mut stream = connect();
        _ = stream.write_all(request);
        bad.push(stream);
        assert!(server.status()["pid"].is_number(), "after {request:?}");
    }
    // Nobody waits for ever.
    for mut stream in bad {
        let mut answer = Vec::new();
        _ = stream.read_to_end(&mut answer);
    }
    server.end();
}

#[test]
fn a_dump_has_what_was_used_before() {
    require_root();
    let scratch = Scratch::new();
    let path = scratch.file("file", 100);
    let mut reader = reader();
    let server = Server::start(scratch.path());
    reader.run(&Step::Hold(path.clone()));
    use_pages(&server, &mut reader, &path);
    // Of what is not cached any more the LRU knows nothing.
    migrator_tests::evict(&path);
    let images = scratch.path().join("images");
    fs::create_dir(&images).expect("a directory");
    let link = scratch.path().join("migrator-criu-hook");
    symlink(binary(), &link).expect("a link");
    for stage in ["pre-dump", "post-dump"] {
        let output = run(Command::new(&link)
            .env("CRTOOLS_SCRIPT_ACTION", stage)
            .env("CRTOOLS_IMAGE_DIR", &images)
            .env("CRTOOLS_INIT_PID", reader.pid().to_string())
            .env("MIGRATOR_TRACKER_SOCKET", server.socket()));
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(
            said.contains("the tracker knows"),
            stage == "pre-dump",
            "{said}"
        );
    }
    let list = format::read_file(&images.join("migrator.pil")).expect("a list");
    let file = list.files.iter().find(|file| file.identity.path == path);
    let runs = file.into_iter().flat_map(|file| &file.runs);
    let pages: BTreeSet<u64> = runs.flat_map(|run| run.index..run.end()).collect();
    assert_eq!(pages, PAGES.chain(0..1).collect());
    server.end();
}
