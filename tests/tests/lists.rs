//! `migrator list`: what its commands make of real files and lists.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use migrator::format;
use migrator::pagelist::{HotFile, ONCE, PageIndexList};
use migrator_tests::{Child, Scratch, binary};
use serde_json::{Value, json};

/// Runs `migrator list` with standard input from `input`.
fn list<S: AsRef<std::ffi::OsStr>>(args: &[S], input: &[u8]) -> Output {
    let mut command = Command::new(binary());
    command
        .arg("list")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("migrator starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    // One that refuses its arguments reads nothing.
    _ = stdin.write_all(input);
    drop(stdin);
    child.wait_with_output().expect("migrator ends")
}

#[track_caller]
fn succeeds(output: &Output) -> String {
    let (out, log) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{out}{log}");
    out
}

#[track_caller]
fn fails(output: &Output, code: i32, why: &str) {
    let log = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{log}");
    assert!(log.contains(why), "{log}");
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn read(path: &Path) -> PageIndexList {
    format::read_file(path).unwrap_or_else(|error| panic!("{error:#}"))
}

fn runs(file: &HotFile) -> Vec<(u64, u32, u8)> {
    let run = |run: &migrator::pagelist::Run| (run.index, run.pages, run.heat);
    file.runs.iter().map(run).collect()
}

/// A list made of lines of text.
fn made(scratch: &Scratch, name: &str, heat: &str, lines: &str) -> PathBuf {
    let path = scratch.path().join(name);
    let output = path.to_str().expect("UTF-8");
    let args = ["from-text", "-", "--heat", heat, "--output", output];
    succeeds(&list(&args, lines.as_bytes()));
    path
}

#[test]
fn text_becomes_a_list() {
    let scratch = Scratch::new();
    let file = scratch.file("a file 7", 300);
    let link = scratch.path().join("link");
    std::os::unix::fs::symlink(&file, &link).expect("a link");
    let odd = scratch.file("odd\nname\\", 3);
    let (dir, path) = (scratch.path().display(), file.display());
    let lines = format!(
        "# pages of a program\n\n{path}\t4095 2\n{path} 1M 4k\n{link} 1200k 1P\n\
         {dir}/odd\\nname\\\\ 8192 1\n{dir}/gone 0 1\n{dir} 0 1\n{path} 5 0\n",
        link = link.display(),
    );
    let output = scratch.path().join("list.pil");
    let args = ["from-text", "--json", "--output"].map(Path::new);
    let done = list(&[&args[..], &[&output]].concat(), lines.as_bytes());
    let report: Value = serde_json::from_str(&succeeds(&done)).expect("JSON");
    assert_eq!(report["schema"], "migrator.list/1");
    assert_eq!((&report["files"], &report["pages"]), (&json!(2), &json!(4)));
    let reasons: Vec<_> = report["left_out"]
        .as_array()
        .expect("reasons")
        .iter()
        .collect();
    assert_eq!(reasons.len(), 2, "{reasons:?}");
    assert!(text(&done.stderr).contains("gone is left out: failed to find it: No such file"));

    let list = read(&output);
    let of = |path: &Path| list.files.iter().find(|it| it.identity.path == path);
    let pages = of(&file).expect("the file");
    assert_eq!(runs(pages), [(0, 2, ONCE), (256, 1, ONCE)]);
    assert_eq!(pages.identity.size, 300 * 4096);
    assert_eq!(runs(of(&odd).expect("the odd one")), [(2, 1, ONCE)]);
}

#[test]
fn a_line_that_is_wrong_is_named() {
    let scratch = Scratch::new();
    let output = scratch.path().join("list.pil");
    let args = ["from-text", "--output"].map(Path::new);
    let run = |input: &[u8]| list(&[&args[..], &[&output]].concat(), input);
    fails(
        &run(b"/a 0 1\n/b 0 x\n"),
        1,
        "line 2 of standard input is refused: its length",
    );
    let long = "/a".repeat(20_000);
    fails(
        &run(long.as_bytes()),
        1,
        "line 1 of standard input is refused: it has more than",
    );
    assert!(!output.exists(), "no list was written");
}

#[test]
fn lists_merge_filter_and_differ() {
    let scratch = Scratch::new();
    let (a, b) = (scratch.file("a", 100), scratch.file("b", 100));
    let (path_a, path_b) = (a.display(), b.display());
    let first = made(&scratch, "1.pil", "once", &format!("{path_a} 0 40k"));
    let second = format!("{path_a} 20k 40k\n{path_b} 0 4k");
    let second = made(&scratch, "2.pil", "again", &second);

    let both = scratch.path().join("both.pil");
    let args = [
        Path::new("merge"),
        &first,
        &second,
        Path::new("--output"),
        &both,
    ];
    let said = succeeds(&list(&args, b""));
    assert!(
        said.starts_with("16 pages (64.0 KiB) of 2 files\nwritten to "),
        "{said}"
    );
    let merged = read(&both);
    let paths: Vec<_> = merged.files.iter().map(|it| &it.identity.path).collect();
    assert_eq!(paths, [&b, &a], "the hottest comes first");
    assert_eq!(runs(&merged.files[1]), [(0, 5, 3), (5, 10, 6)]);

    // Through pipes: the list on standard output, its text on standard error.
    let args = [
        "filter",
        "-",
        "--min-heat",
        "again",
        "--budget",
        "45056",
        "--output",
        "-",
    ];
    let filtered = list(&args, &fs::read(&both).expect("the list"));
    assert_eq!(filtered.status.code(), Some(0));
    assert!(text(&filtered.stderr).contains("11 pages (44.0 KiB) of 2 files"));
    let kept = format::read_list(&filtered.stdout[..]).expect("a list");
    assert_eq!(runs(&kept.files[0]), [(5, 10, 6)]);
    let only = scratch.path().join("only.pil");
    let args = [Path::new("filter"), &both, Path::new("--exclude"), &b];
    let args = [&args[..], &[Path::new("--output"), &only]].concat();
    succeeds(&list(&args, b""));
    assert_eq!(read(&only).files, merged.files[1..]);

    let args = [Path::new("diff"), &first, &second, Path::new("--json")];
    let diff: Value = serde_json::from_str(&succeeds(&list(&args, b""))).expect("JSON");
    assert_eq!(diff["schema"], "migrator.list-diff/1");
    let counts = ["only_a", "only_b", "both", "hotter", "colder"].map(|key| diff[key].clone());
    assert_eq!(counts, [5, 6, 5, 5, 0].map(|count| json!(count)));
    assert_eq!(diff["files"][0]["path"], json!(a));
    let said = succeeds(&list(&[Path::new("diff"), &both, &both], b""));
    assert!(said.ends_with("all, with 2 files alike\n"), "{said}");
}

#[test]
fn what_cannot_be_done_is_said() {
    let scratch = Scratch::new();
    let file = scratch.file("a", 10);
    let list_path = made(
        &scratch,
        "1.pil",
        "once",
        &format!("{} 0 4k", file.display()),
    );
    let before = fs::read(&list_path).expect("the list");
    let name = list_path.to_str().expect("UTF-8");
    fails(
        &list(&["merge", "-", "-", "--output", name], b""),
        2,
        "only one list",
    );
    let args = ["filter", name, "--path", "../x", "--output", name];
    fails(&list(&args, b""), 2, "has a .. in it");
    fails(
        &list(&["diff", name, "/none"], b""),
        1,
        "failed to read list /none",
    );
    fails(&list(&["merge", name], b""), 2, "--output");
    let damaged = &before[..before.len() - 1];
    fails(
        &list(&["filter", "-", "--output", name], damaged),
        1,
        "cut short",
    );
    assert_eq!(fs::read(&list_path).expect("the list"), before);
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let scratch = Scratch::new();
    let file = scratch.file("a", 10);
    let path = made(
        &scratch,
        "1.pil",
        "once",
        &format!("{} 0 4k", file.display()),
    );
    let mut command = Command::new(binary());
    command
        .args(["list", "diff", "--json"])
        .args([&path, &path])
        .stdout(Stdio::piped());
    let mut child = Child::spawn(&mut command);
    drop(child.process().stdout.take());
    assert_eq!(child.wait().code(), Some(0));
}
