//! `migrator move --cache-only` and `migrator receive`, over loopback and over
//! ssh to this machine: which pages arrive, and what is said when they don't.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use migrator::protocol::{Hello, Role};
use migrator_tests::{Child, PAGE_SIZE, Scratch, binary, evict, require_root, resident};
use nix::sys::signal::Signal;
use serde_json::Value;

const PAGES: u64 = 8192;

/// Nothing here takes so long unless it hangs.
const DEADLINE: Duration = Duration::from_secs(100);

/// A file of which a process reads the same pages over and over, and a cold
/// copy of it.
struct Scene {
    scratch: Scratch,
    pages: BTreeSet<u64>,
    reader: Child,
}

impl Scene {
    fn new() -> Self {
        require_root();
        let scratch = Scratch::new();
        for side in ["here", "there"] {
            fs::create_dir(scratch.path().join(side)).expect("a directory");
        }
        let file = scratch.file("here/data", PAGES);
        let copy = scratch.path().join("there/data");
        // With a time of its own, as most copies have.
        run(Command::new("cp").arg(&file).arg(&copy));
        run(Command::new("touch").args(["-d", "@1"]).arg(&copy));
        evict(&copy);

        let pages: BTreeSet<u64> = (0..PAGES).filter(|index| chosen(*index)).collect();
        let mut reader = Child::spawn(
            Command::new("perl")
                .args(["-e", READER])
                .arg(&file)
                .args(pages.iter().map(u64::to_string))
                .stdout(Stdio::piped()),
        );
        // It says so when it has read all of them once.
        let mut byte = [0];
        let mut out = reader.process().stdout.take().expect("a pipe");
        out.read_exact(&mut byte).expect("the reader reads");
        Self {
            scratch,
            pages,
            reader,
        }
    }

    fn copy(&self) -> PathBuf {
        self.scratch.path().join("there/data")
    }

    /// `--map` from the directory of the file to that of the copy.
    fn map(&self) -> String {
        let path = self.scratch.path().display();
        format!("{path}/here={path}/there")
    }

    /// `migrator move` of the reader to somewhere.
    fn move_to(&self, destination: &str) -> Command {
        self.move_after("1500ms", destination)
    }

    fn move_after(&self, time: &str, destination: &str) -> Command {
        let mut command = Command::new(binary());
        command
            .args(["move", "--cache-only", "--observe", time])
            .args(["--pid", &self.reader.pid().to_string()])
            .args(["--to", destination]);
        command
    }
}

/// Reads pages of a file without end.
const READER: &str = r#"
    my $told; open(my $file, "<:raw", shift) or die $!;
    for ($| = 1; ; select(undef, undef, undef, 0.1)) {
        for my $page (@ARGV) {
            sysseek($file, 4096 * $page, 0) or die $!;
            sysread($file, my $bytes, 4096) == 4096 or die $!;
        }
        print "x" unless $told++;
    }
"#;

/// About a tenth of all pages, here and there, always the same.
fn chosen(index: u64) -> bool {
    migrator_tests::page(index)[0] < 26
}

/// `migrator receive --listen` on a free port, and where that is.
fn listen(args: &[&str]) -> (Child, String) {
    require_root();
    let mut child = Child::spawn(
        Command::new(binary())
            .args(["receive", "--listen", "127.0.0.1:0"])
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped()),
    );
    // Byte by byte, so that the rest stays in the pipe.
    let mut line = Vec::new();
    let errors = child.process().stderr.as_mut().expect("a pipe");
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        errors.read_exact(&mut byte).expect("where it listens");
        line.push(byte[0]);
    }
    let line = String::from_utf8(line).expect("UTF-8");
    let address = line.trim().strip_prefix("migrator: listening on ");
    let address = address.unwrap_or_else(|| panic!("no address: {line}"));
    (child, address.to_owned())
}

/// What a program that was started with pipes has written, and how it ended.
fn end(mut child: Child) -> Output {
    let began = Instant::now();
    while child.process().try_wait().expect("a process").is_none() {
        assert!(began.elapsed() < DEADLINE, "it hangs");
        thread::sleep(Duration::from_millis(20));
    }
    let status = child.wait();
    let mut output = Output {
        status,
        stdout: Vec::new(),
        stderr: Vec::new(),
    };
    let process = child.process();
    let (out, err) = (process.stdout.take(), process.stderr.take());
    out.map(|mut pipe| pipe.read_to_end(&mut output.stdout));
    err.map(|mut pipe| pipe.read_to_end(&mut output.stderr));
    output
}

fn run(command: &mut Command) -> Output {
    end(Child::spawn(
        command.stdout(Stdio::piped()).stderr(Stdio::piped()),
    ))
}

/// Its only JSON object; and that it ended with this code.
#[track_caller]
fn json(output: &Output, code: i32) -> Value {
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

#[track_caller]
fn number(value: &Value) -> u64 {
    value
        .as_u64()
        .unwrap_or_else(|| panic!("no number: {value}"))
}

/// That it ended with this code, printed no report, and said this.
#[track_caller]
fn assert_fails(output: &Output, code: i32, part: &str) {
    let words = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{words}");
    assert!(words.contains(part), "{part}: {words}");
    assert!(!words.contains("panicked"), "{words}");
    assert!(output.stdout.is_empty(), "{output:?}");
}

/// That exactly these pages of a file are resident.
#[track_caller]
fn assert_resident(path: &Path, pages: &BTreeSet<u64>) {
    let found = resident(path);
    let missing: Vec<_> = pages.difference(&found).take(20).collect();
    let surplus: Vec<_> = found.difference(pages).take(20).collect();
    assert!(
        missing.is_empty() && surplus.is_empty(),
        "of {} pages, missing: {missing:?}, too many: {surplus:?}",
        pages.len()
    );
}

#[test]
fn the_pages_that_a_process_reads_arrive_over_loopback() {
    let scene = Scene::new();
    let (receiver, address) = listen(&["--map", &scene.map(), "--json"]);
    let destination = format!("tcp://{address}");
    let moved =
        run(scene
            .move_to(&destination)
            .args(["--source", "ebpf", "--observed-only", "--json"]));
    let moved = json(&moved, 0);
    assert_resident(&scene.copy(), &scene.pages);

    // The list also names the program itself and its libraries, which are
    // resident, unless something drives them out.
    let pages = &moved["report"]["pages"];
    let sum = |names: &[&str]| names.iter().map(|name| number(&pages[name])).sum::<u64>();
    assert!(
        number(&pages["read"]) >= scene.pages.len() as u64,
        "{moved}"
    );
    assert_eq!(sum(&["asked"]), sum(&["resident", "read"]), "{moved}");
    assert_eq!(pages["asked"], moved["list"]["pages"]);
    let changed = &moved["report"]["changed"];
    assert_eq!(changed["files"], 1, "{moved}");
    assert_eq!(changed["named"][0]["after"]["mtime"], 1_000_000_000);
    assert_eq!(moved["schema"], "migrator.move/1");
    assert_eq!(moved["source"], "ebpf");
    assert_eq!(moved["destination"], destination);
    assert_eq!(json(&end(receiver), 0), moved["report"]);
}

/// The file is in the cache as a whole, and a part of it is read while it is observed.
#[test]
fn what_is_cached_of_a_file_arrives_behind_what_was_observed() {
    let scene = Scene::new();
    let file = scene.scratch.path().join("here/data");
    fs::read(&file).expect("the file");
    let cached = resident(&file);
    assert!(cached.is_superset(&scene.pages) && cached.len() > scene.pages.len());
    let (receiver, address) = listen(&["--map", &scene.map(), "--json"]);
    let destination = format!("tcp://{address}");
    let moved = run(scene
        .move_to(&destination)
        .args(["--source", "ebpf", "--json"]));
    json(&moved, 0);
    let here = resident(&scene.copy());
    let arrived = cached.intersection(&here).count();
    println!("{arrived} of {} pages", cached.len());
    assert!(arrived * 100 >= cached.len() * 95);
    json(&end(receiver), 0);
}

#[test]
fn the_pages_that_a_process_reads_arrive_over_ssh() {
    let scene = Scene::new();
    let server = Sshd::start(scene.scratch.path());
    let moved = run(server
        .reach(&mut scene.move_to(&server.destination()))
        .args(["--source", "ebpf", "--observed-only"])
        .args(["--map", &scene.map(), "--json"])
        .arg("--remote-path")
        .arg(binary()));
    let moved = json(&moved, 0);
    assert_resident(&scene.copy(), &scene.pages);
    assert_eq!(moved["report"]["pages"]["skipped"], 0);
}

#[test]
fn what_can_not_be_prefetched_is_reported_on_both_sides() {
    let scene = Scene::new();
    let other = scene.scratch.path().join("here");
    let other = other.to_str().expect("UTF-8");
    let args = ["--json", "--map", &scene.map(), "--allow", other];
    let (receiver, address) = listen(&args);
    let moved = run(scene
        .move_to(&format!("tcp://{address}"))
        .args(["--json", "--source", "ebpf"]));
    let received = end(receiver);
    let copy = scene.copy();
    let copy = copy.to_str().expect("UTF-8");
    for output in [&moved, &received] {
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(3), "{output:?}");
        let part = format!("{copy} is outside of what --allow names");
        assert!(text.contains(&part), "{text}");
    }
    assert_resident(&scene.copy(), &BTreeSet::new());
}

#[test]
fn a_destination_that_is_not_there_is_told_at_once() {
    let scene = Scene::new();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address");
    drop(taken);
    let output = run(&mut scene.move_to(&format!("tcp://{address}")));
    assert_fails(&output, 1, "nobody listens there");

    let server = Sshd::start(scene.scratch.path());
    let output = run(server
        .reach(&mut scene.move_to(&server.destination()))
        .args(["--remote-path", "/nonexistent/migrator"]));
    assert_fails(&output, 1, "has no program /nonexistent/migrator");
    let wrong = format!("ssh://root@127.0.0.1:{}", address.port());
    let output = run(server.reach(&mut scene.move_to(&wrong)));
    assert_fails(&output, 1, "failed to reach ssh://root@127.0.0.1");

    let output = run(scene.move_to("ssh://host").args(["--rsh", "nonexistent"]));
    assert_fails(&output, 1, "failed to run --rsh nonexistent");
}

#[test]
fn something_else_at_the_other_end_is_shown() {
    let scene = Scene::new();
    let rsh = "sh -c 'echo Welcome to host; exec sleep 100' --";
    let output = run(scene.move_to("ssh://host").args(["--rsh", rsh]));
    assert_fails(
        &output,
        1,
        r#"sent something that is not migrator's protocol: "Welcome to host\n""#,
    );
    let (receiver, address) = listen(&[]);
    let mut stream = TcpStream::connect(address).expect("a receiver");
    stream
        .write_all(b"GET / HTTP/1.1\r\n\r\n")
        .expect("a request");
    assert_fails(&end(receiver), 1, r#"protocol: "GET / HTTP/1.1\r\n\r\n""#);
    // An echo: what comes back is a source's hello.
    let output = run(scene.move_to("ssh://host").args(["--rsh", "sh -c cat --"]));
    assert_fails(&output, 1, "is a source as well");
}

#[test]
fn other_versions_and_page_sizes_are_refused_by_both_sides() {
    let scene = Scene::new();
    let version = |role| {
        let mut hello = Hello::ours(role, PAGE_SIZE as u32).encode();
        hello[8] = 2;
        hello
    };
    let pages = |role| Hello::ours(role, 16384).encode();
    for (hello, part) in [
        (
            &version as &dyn Fn(Role) -> Vec<u8>,
            "speaks version 2 of the protocol",
        ),
        (&pages, "has pages of 16384 bytes and this host of 4096"),
    ] {
        let (receiver, address) = listen(&[]);
        let mut source = TcpStream::connect(address).expect("a receiver");
        source.write_all(&hello(Role::Source)).expect("a hello");
        // It says who it is all the same, so that the other side knows too.
        let mut heard = [0; 8];
        source.read_exact(&mut heard).expect("a hello");
        assert_eq!(&heard, b"\x89MIG\r\n\x1a\n");
        assert_fails(&end(receiver), 1, part);

        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let hello = hello(Role::Destination);
        let destination = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a source");
            stream.write_all(&hello).expect("a hello");
            let mut heard = Vec::new();
            // It may be gone already, with our hello unread in part.
            _ = stream.read_to_end(&mut heard);
            heard
        });
        let output = run(&mut scene.move_to(&format!("tcp://{address}")));
        assert_fails(&output, 1, part);
        let heard = destination.join().expect("a destination");
        assert!(heard.starts_with(b"\x89MIG\r\n\x1a\n"), "{heard:?}");
    }
}

#[test]
fn a_source_that_goes_away_ends_the_receiver() {
    let (receiver, address) = listen(&[]);
    drop(TcpStream::connect(address).expect("a receiver"));
    assert_fails(&end(receiver), 1, "the source closed the connection");

    let (receiver, address) = listen(&[]);
    let mut source = TcpStream::connect(address).expect("a receiver");
    let hello = Hello::ours(Role::Source, PAGE_SIZE as u32);
    source.write_all(&hello.encode()).expect("a hello");
    // The head of a list, and no more of it.
    source.write_all(b"\x02\x04\0\0\0\x89PIL").expect("a list");
    drop(source);
    assert_fails(&end(receiver), 1, "the source closed the connection");
}

#[test]
fn a_destination_that_goes_away_ends_the_move() {
    let scene = Scene::new();
    let (receiver, address) = listen(&[]);
    let mut command = scene.move_after("90s", &format!("tcp://{address}"));
    let mut source = Child::spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
    wait_until_it_observes(&mut source);
    receiver.signal(Signal::SIGKILL);
    assert_fails(&end(source), 1, "closed the connection");
}

#[test]
fn why_the_destination_fails_is_shown_at_the_source() {
    let scene = Scene::new();
    let script = format!(
        "sh -c 'ulimit -n 256; exec {} receive --stdio' --",
        binary().display()
    );
    let output = run(scene.move_to("ssh://host").args(["--rsh", &script]));
    assert_fails(&output, 1, "ssh://host says: failed to prefetch the list");
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(words.contains("use fewer --jobs"), "{words}");
}

#[test]
fn an_interrupted_move_tells_the_destination() {
    let scene = Scene::new();
    let (receiver, address) = listen(&[]);
    let mut command = scene.move_after("90s", &format!("tcp://{address}"));
    let mut source = Child::spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
    wait_until_it_observes(&mut source);
    source.signal(Signal::SIGINT);
    assert_fails(&end(source), 1, "interrupted at the source");
    assert_fails(
        &end(receiver),
        1,
        "the source says: interrupted at the source",
    );

    let (receiver, _) = listen(&[]);
    receiver.signal(Signal::SIGTERM);
    assert_fails(&end(receiver), 1, "interrupted before a source came");
}

/// Reads what a source says until it has begun to observe, when it has said
/// hello already.
fn wait_until_it_observes(source: &mut Child) {
    let errors = source.process().stderr.take().expect("a pipe");
    let mut errors = BufReader::with_capacity(1, errors);
    let mut line = String::new();
    while !line.contains("observing with source") {
        line.clear();
        let read = errors.read_line(&mut line).expect("what it says");
        assert!(read > 0, "it ended before it observed");
    }
    source.process().stderr = Some(errors.into_inner());
}

#[test]
fn what_makes_no_sense_is_refused_before_anything_is_done() {
    require_root();
    let own = std::process::id().to_string();
    let to = |destination: &str, pid: &str| {
        let mut command = Command::new(binary());
        run(command.args(["move", "--cache-only", "--pid", pid, "--to", destination]))
    };
    let output = to("tcp://10.0.0.1:7000", &own);
    assert_fails(&output, 2, "neither encrypted nor authenticated");
    assert_fails(&to("ssh://-oX@host", &own), 2, "looks like an option");
    assert_fails(&to("host", &own), 2, "is no destination");
    assert_fails(&to("ssh://host", "999999999"), 1, "there is no process");
    let everywhere = ["receive", "--listen", "0.0.0.0:0"];
    let output = run(Command::new(binary()).args(everywhere));
    assert_fails(&output, 2, "neither encrypted nor authenticated");
    let stdio = ["receive", "--stdio"];
    let output = run(Command::new(binary()).args(stdio).stdin(Stdio::null()));
    // Its hello, and nothing else.
    let hello = Hello::ours(Role::Destination, PAGE_SIZE as u32).encode();
    assert_eq!(output.stdout, hello);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
}

/// An ssh server of this test's own on loopback, with its own keys.
struct Sshd {
    _server: Child,
    port: u16,
    key: PathBuf,
}

impl Sshd {
    fn start(dir: &Path) -> Self {
        let place = |name: &str| dir.join(name);
        for name in ["host", "user"] {
            let keygen = run(Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(place(name)));
            assert!(keygen.status.success(), "{keygen:?}");
        }
        // Where sshd's unprivileged half lives; its service makes it, as
        // Debian builds it.
        fs::create_dir_all("/run/sshd").expect("/run/sshd");
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions("/run/sshd", mode).expect("/run/sshd");
        // Free a moment ago; sshd can't choose one itself.
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .expect("a port")
            .port();
        let config = format!(
            "ListenAddress 127.0.0.1:{port}\nHostKey {}\nAuthorizedKeysFile {}\n\
             StrictModes no\nUsePAM no\nPidFile none\nPermitRootLogin yes\n\
             PasswordAuthentication no\n",
            place("host").display(),
            place("user.pub").display()
        );
        fs::write(place("sshd_config"), config).expect("a configuration");
        // sshd runs itself again and wants to be called by its whole path.
        let server = Child::spawn(
            Command::new("/usr/sbin/sshd")
                .args(["-D", "-e", "-f"])
                .arg(place("sshd_config"))
                .stderr(Stdio::null()),
        );
        let began = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(began.elapsed() < DEADLINE, "sshd does not listen");
            thread::sleep(Duration::from_millis(20));
        }
        Self {
            _server: server,
            port,
            key: place("user"),
        }
    }

    fn destination(&self) -> String {
        format!("ssh://root@127.0.0.1:{}", self.port)
    }

    /// Makes a move log in with the test's key, knowing no hosts.
    fn reach<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        let rsh = format!(
            "ssh -F none -i '{}' -o BatchMode=yes -o StrictHostKeyChecking=no \
             -o UserKnownHostsFile=/dev/null",
            self.key.display()
        );
        command.args(["--rsh", &rsh])
    }
}
