//! `migrator snapshot`: what it says is cached, and what it leaves as it was.

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use migrator::format;
use migrator::kernel::lru_gen_enabled;
use migrator::pagelist::{ACTIVE, PageIndexList, RESIDENT};
use migrator_tests::mount::Mount;
use migrator_tests::{PAGE_SIZE, Scratch, binary, evict, require_root, resident};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::Value;

/// Of no file.
const NOBODY: u32 = 65_534;

/// What a snapshot has found.
struct Taken {
    list: PageIndexList,
    report: Value,
}

fn run(command: &mut Command) -> Output {
    command.output().expect("migrator runs")
}

/// Takes a snapshot as this user.
#[track_caller]
fn snapshot_as(user: u32, output: &Path, paths: &[&Path]) -> Taken {
    let mut command = Command::new(binary());
    command
        .args(["snapshot", "--json", "--output"])
        .arg(output)
        .args(paths);
    let done = run(command.uid(user).gid(user));
    let log = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(0), "{log}");
    let report: Value = serde_json::from_slice(&done.stdout).expect("JSON");
    assert_eq!(report["schema"], "migrator.snapshot/1");
    let list = format::read_file(output).unwrap_or_else(|error| panic!("{error:#}"));
    assert_eq!(report["pages"], list.pages());
    Taken { list, report }
}

#[track_caller]
fn snapshot(scratch: &Scratch, paths: &[&Path]) -> Taken {
    snapshot_as(0, &scratch.path().join("list.pil"), paths)
}

impl Taken {
    fn pages(&self, path: &Path, min_heat: u8) -> BTreeSet<u64> {
        let files = self.list.files.iter().filter(|it| it.identity.path == path);
        let runs = files
            .flat_map(|file| &file.runs)
            .filter(|run| run.heat >= min_heat);
        runs.flat_map(|run| run.index..run.end()).collect()
    }

    fn left_out(&self, reason: &str) -> u64 {
        let reasons = self.report["left_out"].as_array().expect("reasons");
        let of = |it: &&Value| it["reason"].as_str().is_some_and(|it| it.contains(reason));
        reasons
            .iter()
            .filter(of)
            .filter_map(|it| it["count"].as_u64())
            .sum()
    }
}

/// Reads pages and nothing besides.
fn read_pages(path: &Path, pages: &[u64]) {
    let file = File::open(path).expect("the file");
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_RANDOM).expect("advice");
    for page in pages {
        let mut bytes = [0; PAGE_SIZE];
        file.read_exact_at(&mut bytes, page * PAGE_SIZE as u64)
            .expect("a page");
    }
}

fn directory(scratch: &Scratch, name: &str) -> PathBuf {
    let path = scratch.path().join(name);
    fs::create_dir(&path).expect("a directory");
    path
}

#[test]
fn what_is_resident_is_listed_and_stays_as_it_was() {
    require_root();
    let scratch = Scratch::new();
    let sub = directory(&scratch, "sub");
    let some = scratch.file("sub/some", 300);
    let none = scratch.file("sub/none", 300);
    let whole = scratch.file("whole", 50);
    for path in [&some, &none, &whole] {
        evict(path);
    }
    read_pages(&some, &[3, 17, 18, 299]);
    read_pages(&some, &[17]);
    read_pages(&whole, &(0..50).collect::<Vec<_>>());
    fs::hard_link(&whole, sub.join("whole again")).expect("a link");
    symlink("/etc", sub.join("out")).expect("a link");
    mkfifo(&sub.join("pipe"), Mode::S_IRUSR).expect("a pipe");
    scratch.file("sub/empty", 0);
    let times = || {
        [scratch.path(), &sub, &some, &none].map(|path| {
            let meta = fs::symlink_metadata(path).expect("metadata");
            (meta.atime(), meta.atime_nsec())
        })
    };
    let before = times();

    let first = snapshot(&scratch, &[scratch.path()]);
    assert_eq!(times(), before, "access times");
    for path in [&some, &none, &whole] {
        let listed = match path == &whole {
            // Which of its names is found first is the directory's choice.
            true => first.pages(&sub.join("whole again"), 1),
            false => BTreeSet::new(),
        };
        let listed = &first.pages(path, RESIDENT) | &listed;
        assert_eq!(listed, resident(path), "{}", path.display());
    }
    assert_eq!(resident(&none), BTreeSet::new());
    assert_eq!(first.list.files.len(), 2);
    assert_eq!(first.left_out("another name"), 1);
    assert_eq!(first.left_out("symbolic link"), 1);
    assert_eq!(first.left_out("pipe"), 1);
    let meta = fs::metadata(&some).expect("metadata");
    let file = first.list.files.iter().find(|it| it.identity.path == some);
    let identity = &file.expect("the file").identity;
    assert_eq!((identity.inode, identity.size), (meta.ino(), meta.size()));
    if !lru_gen_enabled(Path::new("/sys")) {
        assert_eq!(first.pages(&some, ACTIVE), [17].into());
        assert_eq!(first.report["by"], "lru");
    }
    // The flags are what they were, too.
    fs::remove_file(scratch.path().join("list.pil")).expect("the list");
    let second = snapshot(&scratch, &[scratch.path()]);
    assert_eq!(second.list, first.list);
}

#[test]
fn a_single_file_and_a_link_to_it_can_be_named() {
    require_root();
    let scratch = Scratch::new();
    let file = scratch.file("file", 10);
    let link = scratch.path().join("link");
    symlink(&file, &link).expect("a link");
    let taken = snapshot(&scratch, &[&link, &file]);
    assert_eq!(taken.pages(&file, 1), (0..10).collect());
    assert_eq!(taken.left_out("another name"), 1);
}

#[test]
fn a_sparse_file_of_terabytes_ends() {
    require_root();
    let scratch = Scratch::new();
    let path = scratch.path().join("sparse");
    let file = File::create(&path).expect("a file");
    let (size, far) = (8_u64 << 40, 5 << 40);
    file.set_len(size).expect("a hole");
    file.write_all_at(b"x", far).expect("a page");
    file.write_all_at(b"x", size - 1).expect("a page");
    let taken = snapshot(&scratch, &[&path]);
    let page = PAGE_SIZE as u64;
    assert_eq!(taken.pages(&path, 1), [far / page, size / page - 1].into());
}

#[test]
fn pages_below_an_overlay_are_found() {
    require_root();
    let scratch = Scratch::new();
    for name in ["lower", "upper", "work"] {
        directory(&scratch, name);
    }
    let file = scratch.file("lower/file", 20);
    let options = format!(
        "lowerdir={dir}/lower,upperdir={dir}/upper,workdir={dir}/work",
        dir = scratch.path().display()
    );
    let merged = scratch.path().join("merged");
    let mount = Mount::new(&["-t", "overlay", "overlay", "-o", &options], &merged);
    let merged = mount.path().join("file");
    evict(&file);
    read_pages(&merged, &[4, 7]);
    let taken = snapshot(&scratch, &[mount.path()]);
    assert_eq!(taken.pages(&merged, 1), [4, 7].into());
}

#[test]
fn what_lies_in_memory_is_left_out() {
    require_root();
    let scratch = Scratch::new();
    let file = scratch.file("file", 2);
    let mount = Mount::new(&["-t", "tmpfs", "tmpfs"], &scratch.path().join("memory"));
    fs::write(mount.path().join("file"), "x").expect("a file");
    let taken = snapshot(&scratch, &[scratch.path(), Path::new("/proc/sys")]);
    assert_eq!(taken.left_out("not on a disk"), 2);
    assert_eq!(taken.list.files.len(), 1);
    assert_eq!(taken.pages(&file, 1), [0, 1].into());
}

#[test]
fn who_may_not_know_is_told_nothing_wrong() {
    require_root();
    let scratch = Scratch::in_place(Path::new("/var/tmp"));
    let open = |path: &Path| {
        let mode = Permissions::from_mode(0o777);
        fs::set_permissions(path, mode).expect("permissions");
    };
    open(scratch.path());
    let (foreign, own) = (scratch.file("foreign", 10), scratch.file("own", 10));
    let locked = directory(&scratch, "locked");
    fs::set_permissions(&locked, Permissions::from_mode(0o700)).expect("permissions");
    evict(&foreign);
    evict(&own);
    read_pages(&own, &[2]);
    std::os::unix::fs::chown(&own, Some(NOBODY), Some(NOBODY)).expect("chown");
    let output = scratch.path().join("list.pil");
    let taken = snapshot_as(NOBODY, &output, &[scratch.path()]);
    assert_eq!(taken.report["by"], "residency");
    assert_eq!(taken.pages(&own, 1), [2].into());
    assert_eq!(taken.pages(&own, RESIDENT + 1), BTreeSet::new());
    assert_eq!(taken.pages(&foreign, 1), BTreeSet::new());
    assert_eq!(taken.left_out("not permitted"), 1);
    assert_eq!(taken.left_out("directory that can't be read"), 1);
    assert_eq!(resident(&foreign), BTreeSet::new());
}

#[test]
fn text_and_errors() {
    require_root();
    let scratch = Scratch::new();
    let file = scratch.file("odd\x1b[31m", 3);
    let taken = run(Command::new(binary()).arg("snapshot").arg(&file));
    let text = String::from_utf8_lossy(&taken.stdout).into_owned();
    assert!(
        text.contains("odd\\u{1b}[31m\n3 pages (12.0 KiB) of 1 file are cached"),
        "{text}"
    );
    // The list through a pipe.
    let mut command = Command::new(binary());
    let taken = run(command.args(["snapshot", "--output", "-"]).arg(&file));
    let list = format::read_list(&taken.stdout[..]).expect("a list");
    assert_eq!(list.pages(), 3);
    let missing = run(Command::new(binary()).args(["snapshot", "/none"]));
    assert_eq!(missing.status.code(), Some(1));
    let log = String::from_utf8_lossy(&missing.stderr);
    assert!(log.contains("failed to find /none: No such file"), "{log}");
}
