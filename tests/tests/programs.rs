//! Record, evict, prefetch, run again: with programs that nobody here wrote.
//!
//! What the second run uses is established by strace(1) and by its page table
//! at its end (`migrator_tests::strace`), not by the tracker.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use migrator_tests::random::Random;
use migrator_tests::score::Score;
use migrator_tests::strace::{Pages, Used, trace};
use migrator_tests::track::{Track, Tracked};
use migrator_tests::{Child, Scratch, binary, evict, require_root, resident};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

/// Observes a program from its first instruction to its end: a shell waits for
/// a line, and then becomes it.
fn record(scratch: &Scratch, command: &[&str]) -> Tracked {
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "read go; exec \"$@\" < /dev/null", "sh"])
        .args(command);
    let mut child = Child::spawn(shell.stdin(Stdio::piped()).stdout(Stdio::null()));
    let track = Track::process(scratch, child.pid());
    let gate = child.process().stdin.as_mut().expect("a pipe");
    gate.write_all(b"go\n").expect("it waits");
    assert!(child.wait().success(), "{command:?} failed");
    let tracked = track.wait();
    tracked.assert_nothing_lost();
    tracked
}

/// Every regular file in a directory, or the file itself.
fn files_of(place: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut ahead = vec![place.to_owned()];
    while let Some(path) = ahead.pop() {
        let meta = fs::symlink_metadata(&path).expect("a file");
        if meta.is_dir() {
            let entries = fs::read_dir(&path).expect("a directory");
            ahead.extend(entries.map(|entry| entry.expect("an entry").path()));
        } else if meta.is_file() {
            files.push(path);
        }
    }
    files
}

/// Evicts the data, and of the other files what nobody maps.
fn evict_all(data: &[PathBuf], tracked: &Tracked) {
    for path in data {
        evict(path);
    }
    for file in &tracked.list.files {
        let file = fs::File::open(&file.identity.path).expect("a file of the list");
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).expect("advice");
    }
}

fn prefetch(tracked: &Tracked) {
    let output = Command::new(binary())
        .arg("prefetch")
        .arg(&tracked.output)
        .output()
        .expect("migrator");
    let report = String::from_utf8_lossy(&output.stdout);
    println!("{report}");
    assert!(output.status.success(), "prefetch: {output:?}");
}

fn count(pages: &Pages) -> usize {
    pages.values().map(BTreeSet::len).sum()
}

/// Records the command, evicts, prefetches and runs it again. `place` is its
/// data: a file, or a directory of files.
fn check(scratch: &Scratch, name: &str, command: &[&str], place: &Path) {
    let data = files_of(place);
    for path in &data {
        evict(path);
    }
    let tracked = record(scratch, command);
    evict_all(&data, &tracked);
    prefetch(&tracked);

    let listed: Vec<_> = tracked
        .list
        .files
        .iter()
        .map(|it| it.identity.path.clone())
        .collect();
    let before: Pages = data
        .iter()
        .chain(&listed)
        .map(|path| (path.clone(), resident(path)))
        .collect();
    let Used { read, mapped } = trace(command, &scratch.path().join("strace"));

    let mut used = mapped.clone();
    for (path, pages) in &read {
        used.entry(path.clone()).or_default().extend(pages);
    }
    let (mut warm, mut missing) = (0, Vec::new());
    for (path, pages) in &used {
        let there = before.get(path).cloned().unwrap_or_default();
        warm += pages.intersection(&there).count();
        if !pages.is_subset(&there) {
            missing.push((path, Score::new(&there, pages).missing));
        }
    }
    let of_data = |pages: &Pages| -> Pages {
        let inside = pages.iter().filter(|(path, _)| path.starts_with(place));
        inside
            .map(|(path, pages)| (path.clone(), pages.clone()))
            .collect()
    };
    let data_used = of_data(&used);
    let in_data: usize = data_used.keys().map(|path| tracked.pages(path).len()).sum();
    let listed_data: usize = data.iter().map(|path| tracked.pages(path).len()).sum();
    let (all, listed) = (count(&used), tracked.list.pages());
    println!(
        "{name}: the second run used {all} pages ({} of data in {} files, {} mapped); \
         {warm} were resident before; the list has {listed} pages, {listed_data} of data \
         ({in_data} in files that were used)",
        count(&data_used),
        data_used.len(),
        count(&mapped),
    );
    missing.truncate(5);
    println!("{name}: not resident: {missing:?}");
    assert!(warm as f64 >= 0.99 * all as f64);
    assert!(listed as f64 <= 1.1 * all as f64);
    assert!(listed_data as f64 <= 1.1 * count(&data_used) as f64);
}

/// A database of 570 MB, made once and kept for later runs.
fn database() -> PathBuf {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/test-data");
    fs::create_dir_all(&directory).expect("a directory");
    let path = directory
        .canonicalize()
        .expect("its name")
        .join("items-1.sqlite");
    if !path.exists() {
        let unfinished = path.with_extension("unfinished");
        let _ = fs::remove_file(&unfinished);
        let script = "
            pragma page_size = 4096; pragma journal_mode = off; pragma synchronous = off;
            create table item (id integer primary key, owner integer, name text, body text);
            with recursive n(i) as (select 1 union all select i + 1 from n where i < 140000)
            insert into item select i, i * 7919 % 5003,
                printf('name-%07d', i * 104729 % 1000003), printf('%.*c', 3600, char(97 + i % 26))
                from n;
            create index item_owner on item (owner);
            create index item_name on item (name);
            analyze;";
        let status = Command::new("sqlite3")
            .arg(&unfinished)
            .arg(script)
            .stdout(Stdio::null())
            .status();
        assert!(
            status.expect("sqlite3").success(),
            "the database was not made"
        );
        fs::rename(&unfinished, &path).expect("the database");
    }
    let bytes = fs::metadata(&path).expect("the database").len();
    assert!(bytes >= 500_000_000, "the database has {bytes} bytes only");
    path
}

/// Single rows by an index, all rows of some owners, and ranges of rows.
fn queries() -> String {
    let mut random = Random::new(7);
    let mut script = String::new();
    for _ in 0..3000 {
        let name = (random.below(140_000) + 1) * 104_729 % 1_000_003;
        let _ = writeln!(
            script,
            "select sum(length(body)) from item where name = 'name-{name:07}';"
        );
    }
    for _ in 0..60 {
        let owner = random.below(5003);
        let _ = writeln!(
            script,
            "select sum(length(body)) from item where owner = {owner};"
        );
    }
    for _ in 0..20 {
        let from = random.below(139_000);
        let to = from + 200;
        let _ = writeln!(
            script,
            "select sum(length(body)) from item where id between {from} and {to};"
        );
    }
    script
}

#[test]
fn sqlite_finds_its_pages_resident() {
    require_root();
    let scratch = Scratch::new();
    let database = database();
    let script = scratch.path().join("queries.sql");
    fs::write(&script, queries()).expect("a script");
    let read = format!(".read {}", script.display());
    let path = database.to_str().expect("text");
    check(
        &scratch,
        "sqlite3",
        &["sqlite3", "-readonly", path, &read],
        &database,
    );
}

#[test]
fn ripgrep_finds_its_pages_resident() {
    require_root();
    let scratch = Scratch::new();
    let tree = scratch.path().join("tree");
    fs::create_dir(&tree).expect("a directory");
    for from in ["/usr/include", "/usr/lib/python3", "/usr/share/perl"] {
        if Path::new(from).exists() {
            let copy = Command::new("cp")
                .args(["-r", "-P", from])
                .arg(&tree)
                .status();
            assert!(copy.expect("cp").success(), "{from} was not copied");
        }
    }
    let bytes: u64 = files_of(&tree)
        .iter()
        .map(|it| fs::metadata(it).expect("a file").len())
        .sum();
    assert!(
        bytes >= 20 << 20,
        "a source tree of {bytes} bytes is too small"
    );
    let path = tree.to_str().expect("text");
    // Part of the files, so that the list has something to leave out.
    let command = [
        "rg",
        "--threads",
        "2",
        "--glob",
        "*.{h,pm,py}",
        "--count",
        r"(struct|class)\s+\w+",
        path,
    ];
    check(&scratch, "ripgrep", &command, &tree);
}
