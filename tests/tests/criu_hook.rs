//! `migrator criu-hook`, called as CRIU calls its action script.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, SystemTime};

use migrator::format::{read_file, write_atomically};
use migrator::kernel::lru_gen_enabled;
use migrator::pagelist::{FileIdentity, HotFile, PageIndexList, Run};
use migrator_tests::{Child, PAGE_SIZE, Scratch, binary, evict, require_root, resident};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

const LIST: &str = "migrator.pil";

/// Runs the hook in CRIU's manner: by its other name, without arguments, and
/// with little more in the environment than this.
fn hook(scratch: &Scratch, variables: &[(&str, &str)]) -> Output {
    let link = scratch.path().join("migrator-criu-hook");
    // It is there from the call before.
    let _ = symlink(binary(), &link);
    Command::new(link)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .output()
        .expect("the hook runs")
}

/// The same, with what CRIU says at this stage; checks that CRIU would go on.
fn stage(scratch: &Scratch, stage: &str, images: &Path, init: Option<i32>) -> String {
    let images = images.to_str().expect("UTF-8");
    let init = init.map(|init| init.to_string());
    let mut variables = vec![
        ("CRTOOLS_SCRIPT_ACTION", stage),
        ("CRTOOLS_IMAGE_DIR", images),
    ];
    variables.extend(init.iter().map(|init| ("CRTOOLS_INIT_PID", init.as_str())));
    let output = hook(scratch, &variables);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{stage}: {said}");
    said
}

fn images(scratch: &Scratch) -> PathBuf {
    let images = scratch.path().join("images");
    fs::create_dir(&images).expect("a directory");
    images
}

/// A process that has this file open as its standard input.
fn holder(path: &Path) -> Child {
    let file = File::open(path).expect("the file");
    Child::spawn(Command::new("sleep").arg("1000").stdin(file))
}

/// Reads single pages, so that nothing else comes with them.
fn read_pages(path: &Path, pages: impl IntoIterator<Item = u64>) {
    let file = File::open(path).expect("the file");
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_RANDOM).expect("advice");
    for page in pages {
        let mut bytes = [0; PAGE_SIZE];
        file.read_exact_at(&mut bytes, page * PAGE_SIZE as u64)
            .expect("a page");
    }
}

fn pages_of(list: &PageIndexList, path: &Path) -> BTreeSet<u64> {
    let file = list.files.iter().find(|file| file.identity.path == path);
    let file = file.unwrap_or_else(|| panic!("{} is not in {list:?}", path.display()));
    file.runs
        .iter()
        .flat_map(|run| run.index..run.end())
        .collect()
}

/// Waits until these pages, and no others, are resident: the hook does not
/// wait for what it has started.
fn wait_for(path: &Path, pages: &BTreeSet<u64>) {
    for _ in 0..600 {
        if resident(path) == *pages {
            return;
        }
        thread::sleep(Duration::from_millis(50));
    }
    panic!(
        "{} of {} pages of {} are resident; see /run/migrator/criu-hook.log",
        resident(path).len(),
        pages.len(),
        path.display()
    );
}

#[test]
fn the_cache_goes_along_with_the_images() {
    require_root();
    let scratch = Scratch::new();
    let images = images(&scratch);
    let path = scratch.file("data", 5000);
    evict(&path);
    let hot: BTreeSet<u64> = (100..1100).chain([3000, 3002, 4999]).collect();
    read_pages(&path, hot.iter().copied());
    let tree = holder(&path);

    // An old list must not survive, whatever it is.
    fs::write(images.join(LIST), "old").expect("a file");
    let said = stage(&scratch, "post-dump", &images, Some(tree.pid()));
    let list = read_file(&images.join(LIST)).unwrap_or_else(|error| panic!("{error:#}: {said}"));
    assert_eq!(pages_of(&list, &path), hot, "{said}");
    drop(tree);

    evict(&path);
    stage(&scratch, "pre-restore", &images, None);
    wait_for(&path, &hot);

    // What was dropped meanwhile is read again before anything runs.
    evict(&path);
    let tree = holder(&path);
    stage(&scratch, "post-restore", &images, Some(tree.pid()));
    stage(&scratch, "pre-resume", &images, Some(tree.pid()));
    wait_for(&path, &hot);
}

#[test]
fn what_is_seen_before_the_freeze_is_not_looked_at_again() {
    require_root();
    let scratch = Scratch::new();
    let images = images(&scratch);
    let [first, second] = ["first", "second"].map(|name| {
        let path = scratch.file(name, 500);
        evict(&path);
        path
    });
    read_pages(&first, 0..10);
    read_pages(&second, 0..20);
    let one = holder(&first);
    stage(&scratch, "pre-dump", &images, Some(one.pid()));
    assert!(!images.join(LIST).exists(), "the images are not there yet");
    // Had the second look been at the same pages, it would have seen these.
    read_pages(&first, 100..110);
    fs::write(images.join(LIST), "old").expect("a file");
    let said = stage(&scratch, "post-dump", &images, Some(one.pid()));
    let list = read_file(&images.join(LIST)).expect("a list");
    assert_eq!(pages_of(&list, &first), (0..10).collect(), "{said}");

    // What was opened in between is seen, and a size is that of the end.
    stage(&scratch, "pre-dump", &images, Some(one.pid()));
    drop(one);
    let file = File::options().write(true).open(&first).expect("the file");
    file.set_len(300 * PAGE_SIZE as u64).expect("shorter");
    let both = Child::spawn(
        Command::new("sleep")
            .arg("1000")
            .stdin(File::open(&second).expect("the file"))
            .stdout(File::open(&first).expect("the file")),
    );
    let said = stage(&scratch, "post-dump", &images, Some(both.pid()));
    let list = read_file(&images.join(LIST)).expect("a list");
    assert_eq!(pages_of(&list, &second), (0..20).collect(), "{said}");
    let mut seen: BTreeSet<u64> = (0..10).collect();
    seen.extend(100..110);
    assert_eq!(pages_of(&list, &first), seen, "{said}");
    let file = list.files.iter().find(|file| file.identity.path == first);
    let size = file.map(|file| file.identity.size);
    assert_eq!(size, Some(300 * PAGE_SIZE as u64));
    let own = std::process::id();
    assert!(!Path::new(&format!("/run/migrator/criu-hook-{own}.pil")).exists());
}

#[test]
fn mapped_pages_are_in_the_list() {
    require_root();
    let scratch = Scratch::new();
    let images = images(&scratch);
    // sleep maps its program.
    let program = fs::canonicalize("/bin/sleep").expect("sleep");
    let tree = Child::spawn(Command::new(&program).arg("1000"));
    thread::sleep(Duration::from_millis(100));
    let said = stage(&scratch, "post-dump", &images, Some(tree.pid()));
    let list = read_file(&images.join(LIST)).expect("a list");
    assert!(!pages_of(&list, &program).is_empty(), "{said}");
    if lru_gen_enabled(Path::new("/sys")) {
        assert!(said.contains("multi-generational"), "{said}");
    }
}

/// A process in a mount namespace of its own, where `from` shows at `to`.
fn container(from: &Path, to: &Path, file: &str) -> Child {
    let script = format!(
        "mount --make-rprivate / && mount --bind {} {} && exec sleep 1000 <{}",
        from.display(),
        to.display(),
        to.join(file).display()
    );
    let mut command = Command::new("sh");
    command.args(["-c", &script]);
    // SAFETY: unshare(2) is one system call, and safe between fork and exec.
    unsafe { command.pre_exec(|| Ok(unshare(CloneFlags::CLONE_NEWNS)?)) };
    let child = Child::spawn(&mut command);
    let exe = format!("/proc/{}/comm", child.pid());
    while fs::read_to_string(&exe).is_ok_and(|name| name.trim() != "sleep") {
        thread::sleep(Duration::from_millis(5));
    }
    child
}

#[test]
fn paths_are_those_inside_the_container() {
    require_root();
    let scratch = Scratch::new();
    let images = images(&scratch);
    // The same volume has another path on each of two hosts; a file is the
    // same if its size and time are.
    let inside = scratch.path().join("inside");
    fs::create_dir(&inside).expect("a directory");
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let [source, destination] = ["source", "destination"].map(|host| {
        let volume = scratch.path().join(host);
        fs::create_dir(&volume).expect("a directory");
        let file = scratch.file(&format!("{host}/data"), 500);
        let open = File::options().write(true).open(&file).expect("the file");
        open.set_modified(time).expect("its time");
        evict(&file);
        (volume, file)
    });
    let hot: BTreeSet<u64> = (10..60).collect();
    read_pages(&source.1, hot.iter().copied());

    let tree = container(&source.0, &inside, "data");
    let said = stage(&scratch, "post-dump", &images, Some(tree.pid()));
    let list = read_file(&images.join(LIST)).expect("a list");
    assert_eq!(pages_of(&list, &inside.join("data")), hot, "{said}");
    drop(tree);

    // Where it has a mount namespace, its paths mean nothing before that is.
    fs::write(images.join("mountpoints-12.img"), "").expect("an image");
    let tree = container(&destination.0, &inside, "data");
    stage(&scratch, "pre-restore", &images, None);
    stage(&scratch, "post-setup-namespaces", &images, Some(tree.pid()));
    wait_for(&destination.1, &hot);
    assert!(!inside.join("data").exists(), "only the container sees it");
}

#[test]
fn nothing_makes_criu_give_up() {
    require_root();
    let scratch = Scratch::new();
    let images = images(&scratch);
    let own = std::process::id().to_string();
    let images_text = images.to_str().expect("UTF-8");
    let action = |stage| ("CRTOOLS_SCRIPT_ACTION", stage);
    let directory = ("CRTOOLS_IMAGE_DIR", images_text);
    let init = ("CRTOOLS_INIT_PID", own.as_str());
    let nowhere = ("CRTOOLS_IMAGE_DIR", "/proc/self/fd/1000");
    let stages = [
        "pre-stream",
        "pre-dump",
        "network-lock",
        "post-dump",
        "pre-restore",
        "setup-namespaces",
        "post-setup-namespaces",
        "post-restore",
        "pre-resume",
        "post-resume",
        "network-unlock",
        "nonsense",
        "",
    ];
    let mut calls: Vec<Vec<(&str, &str)>> = vec![vec![], vec![directory, init]];
    for stage in stages {
        calls.push(vec![action(stage)]);
        calls.push(vec![action(stage), directory]);
        calls.push(vec![action(stage), init]);
        calls.push(vec![action(stage), nowhere, init]);
        for pid in ["", "0", "-1", "x", "2000000000"] {
            calls.push(vec![action(stage), directory, ("CRTOOLS_INIT_PID", pid)]);
        }
    }
    for call in calls {
        let output = hook(&scratch, &call);
        assert_eq!(output.status.code(), Some(0), "{call:?}: {output:?}");
        // CRIU's log may be on a full disk.
        let full = File::options().write(true).open("/dev/full");
        let status = Command::new(scratch.path().join("migrator-criu-hook"))
            .env_clear()
            .envs(call.iter().copied())
            .stderr(full.expect("/dev/full"))
            .status()
            .expect("the hook runs");
        assert_eq!(status.code(), Some(0), "{call:?} and a full disk");
    }
}

#[test]
fn a_full_disk_leaves_no_list() {
    require_root();
    let scratch = Scratch::new();
    let images = images(&scratch);
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=16k", "none"])
        .arg(&images)
        .status();
    assert!(mounted.expect("mount").success());
    let path = scratch.file("data", 40_000);
    evict(&path);
    // Pages here and there: no run is longer than one.
    let mut page = 0;
    read_pages(
        &path,
        std::iter::from_fn(|| {
            page += 2 + (page / 7) % 3;
            (page < 40_000).then_some(page)
        }),
    );
    let tree = holder(&path);
    fs::write(images.join("filler"), vec![1; 12 << 10]).expect("a file");
    let said = stage(&scratch, "post-dump", &images, Some(tree.pid()));
    let there = fs::symlink_metadata(images.join(LIST)).is_ok();
    let unmounted = Command::new("umount").arg(&images).status();
    assert!(unmounted.expect("umount").success());
    assert!(!there, "{said}");
    assert!(said.contains("No space left"), "{said}");
}

#[test]
fn hostile_lists_do_no_harm() {
    require_root();
    let scratch = Scratch::new();
    let images = images(&scratch);
    let list = images.join(LIST);
    let secret = scratch.file("secret", 50);
    let good = scratch.file("good", 50);
    symlink(&secret, scratch.path().join("link")).expect("a link");
    mkfifo(&scratch.path().join("fifo"), Mode::S_IRWXU).expect("a FIFO");
    let identity = |path: &Path, like: &Path| {
        use std::os::unix::fs::MetadataExt;
        let meta = fs::metadata(like).expect("metadata");
        FileIdentity {
            path: path.into(),
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            mtime_ns: meta.mtime() * 1_000_000_000 + meta.mtime_nsec(),
        }
    };
    let hot = |identity| HotFile {
        identity,
        runs: vec![Run {
            index: 0,
            pages: 50,
            heat: 1,
        }],
    };
    // The root directory of the tree is a directory of the test: neither its
    // secret nor anything else may be reached from there.
    let root = scratch.path().join("root");
    fs::create_dir(&root).expect("a directory");
    symlink(&secret, root.join("absolute")).expect("a link");
    symlink("../secret", root.join("relative")).expect("a link");
    fs::rename(&good, root.join("good")).expect("renamed");
    let good = root.join("good");
    let files = [
        hot(identity(Path::new("/absolute"), &secret)),
        hot(identity(Path::new("/relative"), &secret)),
        hot(identity(&secret, &secret)),
        hot(identity(Path::new("/proc/kmsg"), &secret)),
        hot(identity(&scratch.path().join("fifo"), &secret)),
        hot(identity(Path::new("/good"), &good)),
    ];
    let text = PageIndexList {
        page_size: PAGE_SIZE as u32,
        files: files.into(),
    };
    write_atomically(&list, &text).expect("a list");
    evict(&secret);
    evict(&good);
    // What sleep needs is below the other root, too.
    for directory in ["/bin", "/lib", "/lib64", "/usr"] {
        fs::create_dir(root.join(&directory[1..])).expect("a directory");
    }
    let script = format!(
        "for d in bin lib lib64 usr; do mount --bind /$d {0}/$d; done; exec chroot {0} /bin/sleep 1000",
        root.display()
    );
    let mut command = Command::new("sh");
    command.args(["-c", &script]);
    // SAFETY: unshare(2) is one system call, and safe between fork and exec.
    unsafe {
        command.pre_exec(|| {
            unshare(CloneFlags::CLONE_NEWNS)?;
            nix::mount::mount(
                None::<&str>,
                "/",
                None::<&str>,
                nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_PRIVATE,
                None::<&str>,
            )?;
            Ok(())
        })
    };
    let tree = Child::spawn(&mut command);
    let name = format!("/proc/{}/comm", tree.pid());
    while fs::read_to_string(&name).is_ok_and(|name| name.trim() != "sleep") {
        thread::sleep(Duration::from_millis(5));
    }
    stage(&scratch, "pre-resume", &images, Some(tree.pid()));
    wait_for(&good, &(0..50).collect());
    assert_eq!(resident(&secret), BTreeSet::new());

    let bytes = fs::read(&list).expect("the list");
    for end in [0, 1, 8, bytes.len() / 2, bytes.len() - 1] {
        fs::write(&list, &bytes[..end]).expect("cut short");
        stage(&scratch, "pre-restore", &images, None);
    }
    fs::write(&list, vec![0xff; 100_000]).expect("nonsense");
    stage(&scratch, "pre-restore", &images, None);
    for special in ["/dev/zero", "/proc/kmsg", "/nowhere"] {
        fs::remove_file(&list).expect("removed");
        symlink(special, &list).expect("a link");
        stage(&scratch, "pre-restore", &images, None);
    }
    fs::remove_file(&list).expect("removed");
    mkfifo(&list, Mode::S_IRWXU).expect("a FIFO");
    stage(&scratch, "pre-restore", &images, None);
    stage(&scratch, "post-dump", &images, Some(tree.pid()));
}

#[test]
fn installed_and_removed() {
    require_root();
    let scratch = Scratch::new();
    let bin = scratch.path().join("bin");
    fs::create_dir(&bin).expect("a directory");
    let migrator = bin.join("migrator");
    fs::copy(binary(), &migrator).expect("a copy");
    let config = scratch.path().join("etc/criu/default.conf");
    let run = |what: &str| {
        let output = Command::new(&migrator)
            .args(["criu-hook", what, "--root"])
            .arg(scratch.path())
            .output()
            .expect("runs");
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        String::from_utf8(output.stdout).expect("text")
    };
    let link = bin.join("migrator-criu-hook");
    let line = format!("action-script {}\n", link.display());
    assert!(run("--install").contains("made the link"));
    assert_eq!(fs::read_to_string(&config).expect("a line"), line);
    assert!(run("--install").contains("already"));
    assert_eq!(fs::read_to_string(&config).expect("a line"), line);
    // It runs by that name.
    let output = Command::new(&link).env_clear().output().expect("runs");
    assert_eq!(output.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&output.stderr).contains("CRTOOLS_SCRIPT_ACTION"));
    run("--remove");
    assert!(!config.exists() && !link.exists());
    run("--remove");
}
