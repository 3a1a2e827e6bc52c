//! `migrator show` as a user runs it.

use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use migrator::format::write_atomically;
use migrator::pagelist::{FileIdentity, HotFile, PageIndexList, Run};

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/v1.pil");

fn show(list: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_migrator"));
    command.args(["show", list]);
    command
}

fn output(command: &mut Command) -> Output {
    command.output().expect("migrator was built for this test")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn json_has_the_documented_shape() {
    let directory = tempfile::tempdir().expect("/tmp is writable");
    let path = directory.path().join("hot.pil");
    let run = |index, pages, heat| Run { index, pages, heat };
    let file = |path: &[u8], runs| HotFile {
        identity: FileIdentity {
            path: Path::new(OsStr::from_bytes(path)).into(),
            device: u64::MAX,
            inode: 12,
            size: 20_000,
            mtime_ns: -1,
        },
        runs,
    };
    let list = PageIndexList {
        page_size: 16_384,
        files: vec![
            file(b"/a \"quoted\"\xff", vec![run(0, 2, 1), run(7, 1, 255)]),
            file(b"/b", Vec::new()),
        ],
    };
    write_atomically(&path, &list).expect("/tmp has room");
    let output = output(show(&path.to_string_lossy()).arg("--json"));
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        concat!(
            r#"{"schema":"migrator.page-index-list/1","page_size":16384,"files":["#,
            r#"{"path":"/a \"quoted\"�","device":18446744073709551615,"inode":12,"#,
            r#""size":20000,"mtime":-1,"runs":["#,
            r#"{"index":0,"pages":2,"heat":1},{"index":7,"pages":1,"heat":255}]},"#,
            r#"{"path":"/b","device":18446744073709551615,"inode":12,"#,
            r#""size":20000,"mtime":-1,"runs":[]}]}"#,
            "\n"
        )
    );
}

#[test]
fn standard_input_shows_the_same() {
    let from_file = output(&mut show(FIXTURE));
    assert!(from_file.status.success(), "{}", stderr(&from_file));
    let file = std::fs::File::open(FIXTURE).expect("the fixture is there");
    let from_stdin = output(show("-").stdin(file));
    assert_eq!(from_file, from_stdin);
    assert!(String::from_utf8_lossy(&from_file.stdout).contains("/data/every heat\n"));
}

/// `migrator show LIST | head`: the reader goes away before everything is
/// written, here before anything is.
#[test]
fn a_reader_that_goes_away_is_no_error() {
    for arguments in [&["--json"][..], &[]] {
        let (reader, writer) = std::io::pipe().expect("there are file descriptors");
        drop(reader);
        let output = output(show(FIXTURE).args(arguments).stdout(writer));
        assert_eq!(stderr(&output), "");
        assert!(output.status.success());
    }
}

#[test]
fn a_full_output_is_an_error() {
    let full = std::fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .expect("Linux has /dev/full");
    let output = output(show(FIXTURE).stdout(full));
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("standard output: No space left on device"));
}

#[test]
fn what_is_no_list_is_refused_in_a_sentence() {
    for (path, cause) in [
        ("/no/such/list.pil", "No such file or directory"),
        ("/tmp", "Is a directory"),
        ("/dev/zero", "this is not a page index list"),
        ("/dev/null", "the list is cut short: it ends after 0 bytes"),
    ] {
        let output = output(&mut show(path));
        assert_eq!(output.status.code(), Some(1));
        assert!(output.stdout.is_empty());
        let text = stderr(&output);
        let sentence = format!("migrator: failed to read list {path}: {cause}");
        assert!(text.starts_with(&sentence), "{text}");
        assert_eq!(text.lines().count(), 1);
    }
}

#[test]
fn nothing_is_shown_of_a_damaged_list() {
    let mut bytes = std::fs::read(FIXTURE).expect("the fixture is there");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    let mut child = show("-")
        .arg("--json")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("migrator was built for this test");
    let mut stdin = child.stdin.take().expect("it is a pipe");
    stdin.write_all(&bytes).expect("migrator reads it all");
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    assert!(stderr(&output).contains("standard input: the list is damaged: the checksum"));
}
