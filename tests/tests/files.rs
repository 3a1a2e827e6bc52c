//! From inodes, as the kernel knows them, to paths: on real file systems, in
//! namespaces, through overlayfs.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use migrator::file::{Device, InodeKey, Resolver, StatKey, Unresolved};
use migrator::process::Process;
use nix::unistd::geteuid;
use tempfile::TempDir;

/// Dropping caches in one test would change what another one sees.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    assert!(
        geteuid().is_root(),
        "this test mounts file systems: run it as root"
    );
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

fn run(command: &str, args: &[&Path]) -> String {
    let mut words = command.split(' ');
    let program = words.next().expect("a program");
    let output = Command::new(program)
        .args(words)
        .args(args)
        .output()
        .unwrap_or_else(|error| panic!("failed to run {command}: {error}"));
    assert!(output.status.success(), "{command} {args:?}: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}

/// A file system on a loop device, mounted at `path`.
struct Disk {
    path: PathBuf,
    dir: TempDir,
}

impl Disk {
    fn new(kind: &str) -> Self {
        let disk = Self::unmounted(kind);
        run("mount -o loop", &[&disk.image(), &disk.path]);
        fs::create_dir_all(disk.path.join("a/b")).expect("directories");
        disk
    }

    fn unmounted(kind: &str) -> Self {
        let dir = tempfile::tempdir_in("/var/tmp").expect("a directory");
        let image = dir.path().join("image");
        let file = File::create(&image).expect("an image");
        file.set_len(320 << 20).expect("a sparse file");
        run(&format!("mkfs.{kind} -q"), &[&image]);
        let path = dir.path().join("mnt");
        fs::create_dir(&path).expect("a mount point");
        Self { path, dir }
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    /// Makes a file of some pages, and reads it.
    fn file(&self, name: &str) -> PathBuf {
        let path = self.path.join(name);
        fs::write(&path, vec![7; 20_000]).expect("a file");
        run("sync -f", &[&path]);
        fs::read(&path).expect("its content");
        path
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily, because a test that failed may hold a file.
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}

/// A process that has files open until it is dropped.
struct Holder(Child);

impl Holder {
    /// Runs a shell script in a mount namespace of its own, and then a perl
    /// script that has its arguments in `@ARGV`.
    fn new(setup: &str, perl: &str, args: &[&Path]) -> Self {
        let script = format!("{perl} or die $!; $| = 1; print 'x'; sleep 1000");
        let mut child = Command::new("unshare")
            .args(["--mount", "sh", "-ec"])
            .arg(format!(
                "{setup}\nexec perl -e '{}' \"$@\"",
                script.replace('\'', "'\\''")
            ))
            .arg("sh")
            .args(args)
            // A log or the like that the tests write to is not what it has open.
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare");
        let mut ready = [0];
        let read = child.stdout.as_mut().expect("a pipe").read(&mut ready);
        assert_eq!(read.expect("a byte"), 1, "the holder of a file failed");
        Self(child)
    }

    /// One that opens a file where the host sees it.
    fn of(path: &Path) -> Self {
        Self::new("", r#"open(F, "<", $ARGV[0])"#, &[path])
    }

    fn pid(&self) -> i32 {
        self.0.id().cast_signed()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The key that the kernel has for a file: the generation by way of the
/// ioctl FS_IOC_GETVERSION, the device from the mount table.
fn key_of(disk: &Disk, path: &Path) -> InodeKey {
    let version = run("lsattr -v", &[path]);
    let generation = version.split_whitespace().next().expect("a version");
    let device = run("findmnt -n -o MAJ:MIN --mountpoint", &[&disk.path]);
    let (major, minor) = device.trim().split_once(':').expect("a device number");
    InodeKey {
        major: major.parse().expect("a number"),
        minor: minor.parse().expect("a number"),
        inode: fs::metadata(path).expect("a file").ino(),
        generation: generation.parse().expect("a number"),
    }
}

fn without_generation(key: InodeKey) -> InodeKey {
    InodeKey {
        generation: 0,
        ..key
    }
}

fn resolver() -> Resolver {
    Resolver::new("/proc".into())
}

#[track_caller]
fn assert_found(resolver: &mut Resolver, key: InodeKey, path: &Path) {
    let found = resolver
        .resolve(key)
        .unwrap_or_else(|reason| panic!("{} is unresolved: {reason}", path.display()));
    let meta = fs::metadata(path).expect("the file");
    assert_eq!(found.path, path);
    assert_eq!(found.device, meta.dev());
    assert_eq!(found.inode, meta.ino());
    assert_eq!(found.size, meta.len());
    assert_eq!(
        found.mtime_ns,
        meta.mtime() * 1_000_000_000 + meta.mtime_nsec()
    );
}

fn evict_dentries() {
    run("sync", &[]);
    fs::write("/proc/sys/vm/drop_caches", "2").expect("dropped caches");
}

#[test]
fn a_file_opened_and_closed_before_is_found_by_its_number() {
    let _alone = alone();
    for kind in ["ext4", "xfs", "btrfs"] {
        let disk = Disk::new(kind);
        let path = disk.file("a/b/f g");
        let key = key_of(&disk, &path);
        assert_ne!(key.generation, 0, "{kind}");
        assert_found(&mut resolver(), key, &path);
        // Renamed since.
        let renamed = disk.path.join("a/h");
        fs::rename(&path, &renamed).expect("a new name");
        assert_found(&mut resolver(), key, &renamed);
        // Another generation is another file.
        let other = InodeKey {
            generation: key.generation ^ 1,
            ..key
        };
        assert!(resolver().resolve(other).is_err(), "{kind}");
        fs::remove_file(&renamed).expect("removed");
        let reason = resolver().resolve(key).expect_err("it is deleted");
        match kind {
            // Its number may be that of another subvolume.
            "btrfs" => assert_eq!(reason, Unresolved::Unknown),
            _ => assert_eq!(reason, Unresolved::Deleted, "{kind}"),
        }
    }
}

#[test]
fn without_a_dentry_a_search_finds_it_and_no_wrong_path_is_given() {
    let _alone = alone();
    for kind in ["ext4", "xfs", "btrfs"] {
        let disk = Disk::new(kind);
        let path = disk.file("a/b/f");
        let key = key_of(&disk, &path);
        evict_dentries();
        let mut resolver = resolver();
        assert_eq!(resolver.resolve(key), Err(Unresolved::Unknown), "{kind}");
        let holder = Holder::new("", "chdir $ARGV[0]", &[&disk.path.join("a")]);
        resolver.observe([holder.pid()]);
        assert_found(&mut resolver, key, &path);
    }
}

#[test]
fn a_file_seen_open_is_found_when_renamed_and_grown() {
    let _alone = alone();
    let disk = Disk::new("ext4");
    let path = disk.file("a/f");
    let key = key_of(&disk, &path);
    let holder = Holder::of(&path);
    let mut resolver = resolver();
    let observation = resolver.observe([holder.pid()]);
    assert!(observation.inodes.contains(&without_generation(key)));
    assert!(observation.denied.is_empty());
    assert_found(&mut resolver, without_generation(key), &path);

    let renamed = disk.path.join("c");
    fs::rename(disk.path.join("a"), &renamed).expect("a new name");
    let path = renamed.join("f");
    let mut file = fs::OpenOptions::new()
        .append(true)
        .open(&path)
        .expect("the file");
    file.write_all(b"more").expect("written");
    assert_found(&mut resolver, key, &path);
}

#[test]
fn one_of_two_names_is_enough() {
    let _alone = alone();
    let disk = Disk::new("xfs");
    let path = disk.file("a/f");
    let key = key_of(&disk, &path);
    let holder = Holder::new(
        "",
        r#"open(F, "<", $ARGV[0]) && chdir $ARGV[1]"#,
        &[&path, &disk.path],
    );
    let other = disk.path.join("a/b/g");
    fs::hard_link(&path, &other).expect("a second name");
    fs::remove_file(&path).expect("the first removed");
    let mut resolver = resolver();
    resolver.observe([holder.pid()]);
    assert_found(&mut resolver, key, &other);
}

#[test]
fn a_deleted_file_is_not_mistaken_for_its_successor() {
    let _alone = alone();
    let disk = Disk::new("ext4");
    let path = disk.file("f");
    let key = key_of(&disk, &path);
    let mut resolver = resolver();
    assert_found(&mut resolver, key, &path);
    let holder = Holder::of(&path);
    fs::remove_file(&path).expect("removed");
    let observation = resolver.observe([holder.pid()]);
    assert!(observation.inodes.contains(&without_generation(key)));
    assert_eq!(resolver.resolve(key), Err(Unresolved::Deleted));
    drop(holder);
    // ext4 gives the number to the next file.
    let path = disk.file("f");
    assert_eq!(fs::metadata(&path).expect("the file").ino(), key.inode);
    resolver.observe([]);
    assert_eq!(resolver.resolve(key), Err(Unresolved::Deleted));
    assert_found(&mut resolver, key_of(&disk, &path), &path);
}

#[test]
fn a_file_in_another_mount_namespace_is_found_on_the_host() {
    let _alone = alone();
    let disk = Disk::new("ext4");
    let path = disk.file("a/b/f");
    let key = key_of(&disk, &path);
    let there = disk.path.join("there");
    fs::create_dir(&there).expect("a directory");
    // Its number alone leads nowhere when dentries are evicted, so that this
    // is about what was remembered.
    let holder = Holder::new(
        r#"mount --bind "$1" "$2""#,
        r#"open(F, "<", "$ARGV[1]/b/f")"#,
        &[&disk.path.join("a"), &there],
    );
    let mut resolver = resolver();
    let observation = resolver.observe([holder.pid()]);
    assert!(observation.inodes.contains(&without_generation(key)));
    drop(holder);
    evict_dentries();
    assert_found(&mut resolver, key, &path);

    // The same, seen from a root directory of its own.
    let holder = Holder::new(
        r#"mount --bind "$1" "$2""#,
        r#"chroot($ARGV[1]) && open(F, "<", "/b/f")"#,
        &[&disk.path.join("a"), &there],
    );
    let mut resolver = self::resolver();
    resolver.observe([holder.pid()]);
    drop(holder);
    evict_dentries();
    assert_found(&mut resolver, key, &path);
}

#[test]
fn a_file_system_that_only_a_container_mounts_is_not_visible() {
    let _alone = alone();
    let disk = Disk::unmounted("ext4");
    let holder = Holder::new(
        r#"mount -o loop "$1" "$2"; echo hi > "$2/f""#,
        r#"open(F, "<", "$ARGV[1]/f")"#,
        &[&disk.image(), &disk.path],
    );
    let mut resolver = resolver();
    let reasons: Vec<_> = resolver
        .observe([holder.pid()])
        .inodes
        .into_iter()
        .filter_map(|key| resolver.resolve(key).err())
        .filter(|reason| *reason == Unresolved::NotVisible)
        .collect();
    assert_eq!(reasons.len(), 1);
}

#[test]
fn overlayfs_files_are_those_of_their_layers() {
    let _alone = alone();
    let disk = Disk::new("ext4");
    for dir in ["lo:w er/d", "lower2/d", "up,per", "work", "merged"] {
        fs::create_dir_all(disk.path.join(dir)).expect("directories");
    }
    let below = disk.file("lower2/d/below");
    let shadowed = disk.file("lower2/d/both");
    let above = disk.file("lo:w er/d/both");
    let written = disk.file("lower2/d/written");
    let holder = Holder::new(
        r#"cd "$1"
        mount -t overlay -o "lowerdir=$1/lo\:w er:$1/lower2,upperdir=$1/up\,per,workdir=$1/work" overlay "$1/merged""#,
        r#"open(F, "<", "$ARGV[0]/merged/d/below") && open(G, "<", "$ARGV[0]/merged/d/both")
           && open(H, ">>", "$ARGV[0]/merged/d/written") && syswrite(H, "more")"#,
        &[&disk.path],
    );
    let copied_up = disk.path.join("up,per/d/written");
    let mut resolver = resolver();
    let inodes = resolver.observe([holder.pid()]).inodes;
    for (path, open) in [
        (&below, true),
        (&above, true),
        (&copied_up, true),
        (&shadowed, false),
        (&written, false),
    ] {
        let key = key_of(&disk, path);
        assert_eq!(
            inodes.contains(&without_generation(key)),
            open,
            "{}",
            path.display()
        );
        // As the kernel's own key the lower file is found too.
        assert_found(&mut resolver, key, path);
    }
    // Seen from the host, where the merged directory is not mounted, each of
    // the holder's files has a path.
    for key in inodes {
        if key.device() == key_of(&disk, &below).device() {
            assert!(resolver.resolve(key).is_ok(), "{key:?}");
        }
    }
}

/// As in a container: what it writes in its own layer, and in a volume.
#[test]
fn files_that_are_synced_are_named_as_in_lists() {
    let _alone = alone();
    let disk = Disk::new("ext4");
    for dir in ["lower", "upper", "work", "merged", "volume"] {
        fs::create_dir_all(disk.path.join(dir)).expect("directories");
    }
    let read = disk.file("lower/read");
    disk.file("lower/written");
    let volume = disk.file("volume/file");
    let holder = Holder::new(
        r#"mount -t overlay -o "lowerdir=$1/lower,upperdir=$1/upper,workdir=$1/work" overlay "$1/merged"
        mount --bind "$1/volume" /mnt"#,
        r#"open(F, "<", "$ARGV[0]/merged/read") && open(G, "+<", "$ARGV[0]/merged/written")
           && open(H, ">", "$ARGV[0]/merged/new") && open(I, "+<", "/mnt/file")
           && syswrite(I, "more")"#,
        &[&disk.path],
    );
    let process = Process::of(holder.pid()).expect("the holder");
    let synced = migrator::live::files::sync(&[process]).expect("it is synced");
    let upper = |name: &str| disk.path.join("upper").join(name);
    let written = [upper("written"), upper("new"), volume];
    let keys = written.map(|path| StatKey::from(&fs::metadata(path).expect("a file")));
    assert_eq!(synced, keys.into());
    let read = StatKey::from(&fs::metadata(read).expect("a file"));
    assert!(!synced.contains(&read));
    // The list's names of the same files.
    let mut resolver = resolver();
    let inodes = resolver.observe([holder.pid()]).inodes;
    let listed: Vec<StatKey> = inodes
        .into_iter()
        .filter_map(|key| resolver.resolve(key).ok())
        .map(|identity| StatKey::from(&identity))
        .collect();
    assert!(keys.iter().all(|key| listed.contains(key)), "{listed:?}");
}

#[test]
fn overlayfs_mappings_are_those_of_their_layers() {
    let _alone = alone();
    let disk = Disk::new("ext4");
    for dir in ["lower", "upper", "work", "merged"] {
        fs::create_dir_all(disk.path.join(dir)).expect("directories");
    }
    let program = disk.path.join("lower/program");
    fs::copy("/usr/bin/perl", &program).expect("a program");
    let holder = Holder::new(
        r#"mount -t overlay -o "lowerdir=$1/lower,upperdir=$1/upper,workdir=$1/work" overlay "$1/merged"
        exec "$1/merged/program" -e '$| = 1; print "x"; sleep 1000'"#,
        "1",
        &[&disk.path],
    );
    let mut resolver = resolver();
    let key = key_of(&disk, &program);
    let inodes = resolver.observe([holder.pid()]).inodes;
    assert!(inodes.contains(&without_generation(key)), "{inodes:?}");
    assert_found(&mut resolver, key, &program);
}

#[test]
fn btrfs_subvolumes_number_their_inodes_anew() {
    let _alone = alone();
    let disk = Disk::new("btrfs");
    let sub = disk.path.join("sub");
    run("btrfs subvolume create", &[&sub]);
    let plain = disk.file("a/f");
    // Until a file there has the number of the plain one.
    let number = fs::metadata(&plain).expect("a file").ino();
    let path = (0..100)
        .map(|n| disk.file(&format!("sub/{n}")))
        .find(|path| fs::metadata(path).expect("a file").ino() == number)
        .expect("a file of the same number");
    let key = key_of(&disk, &path);
    let meta = fs::metadata(&path).expect("the file");
    assert_ne!(
        Device::from_stat(meta.dev()),
        key.device(),
        "a device of its own"
    );

    let holder = Holder::of(&path);
    let mut resolver = resolver();
    let observation = resolver.observe([holder.pid()]);
    assert!(observation.inodes.contains(&without_generation(key)));
    assert_found(&mut resolver, key, &path);
    drop(holder);
    // The subvolume is known now, so that its other files are found too.
    let other = disk.file("sub/other");
    assert_found(&mut resolver, key_of(&disk, &other), &other);

    // Mounted by itself, it is known at once.
    let there = disk.dir.path().join("there");
    fs::create_dir(&there).expect("a directory");
    let device = run("findmnt -n -v -o SOURCE", &[&disk.path]);
    run("mount -o subvol=sub", &[Path::new(device.trim()), &there]);
    let found = self::resolver().resolve(key_of(&disk, &other));
    let by_mount = found.map(|found| (found.path.file_name().map(Into::into), found.inode));
    run("umount", &[&there]);
    let other_number = fs::metadata(&other).expect("the file").ino();
    assert_eq!(by_mount, Ok((Some(PathBuf::from("other")), other_number)));
}

#[test]
fn memory_and_special_files_are_left_out_by_reason() {
    let _alone = alone();
    let disk = Disk::new("ext4");
    let shm = tempfile::NamedTempFile::new_in("/dev/shm").expect("a file in memory");
    let device = run("findmnt -n -o SOURCE", &[&disk.path]);
    let holder = Holder::new(
        "",
        r#"($n = "name") && syscall(319, $n, 0) > 0 && open(F, "<", $ARGV[0]) && open(G, "<", "/proc/self/stat")
           && open(H, "<", $ARGV[1]) && open(I, "<", "/dev/null") && pipe(J, K)"#,
        &[shm.path(), Path::new(device.trim())],
    );
    let mut resolver = resolver();
    let inodes = resolver.observe([holder.pid()]).inodes;
    let count = |reason| {
        let mut resolver = self::resolver();
        resolver.observe([holder.pid()]);
        inodes
            .iter()
            .filter(|key| resolver.resolve(**key) == Err(reason))
            .count()
    };
    assert_eq!(
        count(Unresolved::Anonymous),
        2,
        "a memfd and a file on tmpfs"
    );
    assert_eq!(
        count(Unresolved::Special),
        2,
        "a file of proc and a block device"
    );
    // Its programs and libraries are all that is left, and what it inherits of
    // whoever runs the tests.
    let fds = fs::read_dir("/proc/self/fd").expect("our descriptors");
    let ours = fds.flatten().map(|fd| fs::read_link(fd.path()));
    let inherited: Vec<_> = ours.flatten().collect();
    for key in inodes {
        match resolver.resolve(key) {
            Ok(found) => assert!(
                found.path.starts_with("/usr") || inherited.contains(&found.path),
                "{found:?}"
            ),
            Err(reason) => assert!(
                matches!(reason, Unresolved::Anonymous | Unresolved::Special),
                "{reason}"
            ),
        }
    }
    // The same memory, never seen open.
    let meta = shm.as_file().metadata().expect("a file");
    let key = InodeKey {
        major: Device::from_stat(meta.dev()).major,
        minor: Device::from_stat(meta.dev()).minor,
        inode: meta.ino(),
        generation: 0,
    };
    assert_eq!(self::resolver().resolve(key), Err(Unresolved::Anonymous));
}

#[test]
fn a_process_that_is_not_there_has_no_files() {
    let _alone = alone();
    let mut child = Command::new("true").spawn().expect("a process");
    let pid = child.id().cast_signed();
    child.wait().expect("its end");
    let observation = resolver().observe([pid]);
    assert_eq!(observation, Default::default());
}
