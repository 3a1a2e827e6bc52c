//! Opens the files of a list, which is not to be trusted, without side
//! effects and without being led astray.

use std::collections::HashMap;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, PosixFadviseAdvice, ResolveFlag, openat2, posix_fadvise};
use nix::sys::statfs::{Statfs, fstatfs};

use super::lock;
use super::report::Reason;
use super::version::{Accepts, Change, Found, Inodes};
use crate::file::identity::mtime_ns;
use crate::pagelist::FileIdentity;
use crate::pathmap::{self, Mapping};

/// Where files may be, and how they are to be opened.
#[derive(Debug)]
pub(super) struct Opener {
    /// Where the source's paths are on this host.
    pub(super) maps: Vec<Mapping>,
    /// Without symlinks; empty allows everything.
    pub(super) allow: Vec<PathBuf>,
    /// The root directory that paths count from; without it, our own.
    pub(super) root: Option<Arc<OwnedFd>>,
    /// Which of the files found are read.
    pub(super) accepts: Accepts,
    /// Whether the list was made on another host.
    pub(super) is_foreign: bool,
    /// Whether pages will be read a second time, to activate them.
    pub(super) twice: bool,
    /// Of file systems that were asked about, by `st_dev`: NFS asks the server each
    /// time.
    pub(super) file_systems: Mutex<HashMap<u64, Kind>>,
}

/// What kind of file system a file is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// On a disk of this host, as far as can be seen.
    Local(Inodes),
    /// On another host.
    Remote(Inodes),
    /// On none at all: its name.
    MadeUp(&'static str),
}

/// A file that is open and is the one meant.
#[derive(Debug)]
pub(super) struct OpenFile {
    /// For reading; without readahead, so that what is asked for comes in
    /// and nothing else.
    pub(super) first: File,
    /// For reading a page again. The kernel does not mark a page as used
    /// again when the same open file reads it twice running (`prev_pos` in
    /// `filemap_read`), but for another open file it does.
    pub(super) second: Option<File>,
    /// `st_dev` and `st_ino` on this host.
    pub(super) place: (u64, u64),
    /// `st_size` when it was opened.
    pub(super) size: u64,
    /// How it has changed since the list was made.
    pub(super) change: Option<Change>,
    /// On another host, so that each page takes its time on the network.
    pub(super) is_remote: bool,
}

/// Why a file is skipped.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) reason: Reason,
    /// In words, with what was found.
    pub(super) detail: String,
}

/// File systems without pages that could be read from a disk or a server:
/// `f_type` of statfs(2), and the name. From include/uapi/linux/magic.h.
const NO_DISK: &[(u32, &str)] = &[
    (0x0102_1994, "tmpfs"),
    (0x8584_58f6, "ramfs"),
    (0x9584_58f6, "hugetlbfs"),
    (0x0000_9fa0, "proc"),
    (0x6265_6572, "sysfs"),
    (0x0027_e0eb, "cgroup"),
    (0x6367_7270, "cgroup2"),
    (0x6462_6720, "debugfs"),
    (0x7472_6163, "tracefs"),
    (0x7363_6673, "securityfs"),
    (0x6265_6570, "configfs"),
    (0xcafe_4a11, "bpf"),
    (0xf97c_ff8c, "selinuxfs"),
    (0x4341_5d53, "smackfs"),
    (0x0765_5821, "resctrl"),
    (0x6165_676c, "pstore"),
    (0xde5e_81e4, "efivarfs"),
    (0x4249_4e4d, "binfmt_misc"),
    (0x1980_0202, "mqueue"),
    (0x0000_1cd1, "devpts"),
    (0x6e73_6673, "nsfs"),
    (0x5345_434d, "secretmem"),
];

/// File systems whose files are on another host, as above, and what their inode
/// numbers say.
const REMOTE: &[(u32, Inodes)] = &[
    (0x0000_6969, Inodes::OfServer), // nfs
    (0x0000_517b, Inodes::Unstable), // smb
    (0xff53_4d42, Inodes::Unstable), // cifs: `noserverino`
    (0xfe53_4d42, Inodes::Unstable), // smb2
    (0x00c3_6400, Inodes::OfServer), // ceph
    (0x0102_1997, Inodes::Unstable), // 9p: QEMU's `multidevs=remap`
    (0x5346_414f, Inodes::OfServer), // afs
];

/// Other file systems that make up an inode number when a file is looked up.
const MADE_UP_INODES: &[u32] = &[
    0x6573_5546, // fuse
    0x0000_4d44, // msdos, vfat
    0x2011_bab0, // exfat
];

/// How often a path is tried whose directories change all the time.
const AGAIN: u32 = 8;

impl OpenFile {
    /// The same file, opened once more for one reader that reads on and on, with
    /// readahead: the kernel then makes large folios, as it does for a program
    /// that reads the file, and the cache is as fast afterwards. Without, each
    /// folio is a page (`force_page_cache_ra` in mm/readahead.c).
    pub(super) fn stream(&self) -> Option<File> {
        let door = format!("/proc/self/fd/{}", self.first.as_raw_fd());
        let file = open_quietly(&door).ok()?;
        let metadata = file.metadata().ok()?;
        (self.place == (metadata.dev(), metadata.ino())).then_some(file)
    }
}

impl Opener {
    /// Opens the file that the list means, if it is there and unchanged.
    ///
    /// An O_PATH descriptor comes first: it opens nothing, so it neither waits
    /// for a FIFO's writer nor rewinds a tape. What it refers to is looked at
    /// through it, and then the very same inode is opened through it, so that
    /// nothing can be put in its place meanwhile.
    pub(super) fn open(&self, identity: &FileIdentity) -> Result<OpenFile, Refusal> {
        let listed = &identity.path;
        let path = pathmap::map(&self.maps, listed).map_err(|error| Refusal {
            reason: Reason::BadPath,
            detail: format!("the path {error}"),
        })?;
        let found = match listed == &path {
            true => String::new(),
            false => format!(" (as {})", path.display()),
        };
        let failed = |verb: &str, error: io::Error| Refusal {
            reason: reason(&error),
            detail: format!("failed to {verb} it{found}: {error}"),
        };
        let handle = self.find(&path).map_err(|error| failed("find", error))?;
        let door = format!("/proc/self/fd/{}", handle.as_raw_fd());
        self.check_allowed(listed, Path::new(&door))?;
        let there = handle.metadata().map_err(|error| failed("stat", error))?;
        check_kind(&there)?;
        let (is_remote, inodes) = self.check_disk(&handle, there.dev())?;

        let first = open_for_reading(&door).map_err(|error| failed("open", error))?;
        let opened = first.metadata().map_err(|error| failed("stat", error))?;
        let place = (there.dev(), there.ino());
        if place != (opened.dev(), opened.ino()) {
            return Err(Refusal {
                reason: Reason::Replaced,
                detail: "replaced by another file while it was opened".into(),
            });
        }
        // What open(2) has learnt: NFS asks the server then, while what it
        // knew before may be a minute old (close-to-open, nfs(5)).
        let there = Found {
            device: opened.dev(),
            inode: opened.ino(),
            size: opened.size(),
            mtime_ns: mtime_ns(&opened),
            inodes,
            is_mapped: listed != &path,
            is_foreign: self.is_foreign,
        };
        let judged = there.judge(identity, self.accepts);
        let change = judged.map_err(|(reason, change)| Refusal {
            reason,
            detail: match reason {
                Reason::Replaced => format!("replaced by another file: {change}"),
                _ => format!("changed: {change}"),
            },
        })?;
        let second = match self.twice {
            true => Some(open_for_reading(&door).map_err(|error| failed("open", error))?),
            false => None,
        };
        Ok(OpenFile {
            first,
            second,
            place,
            size: opened.size(),
            change,
            is_remote,
        })
    }

    /// An O_PATH descriptor of what the path leads to.
    fn find(&self, path: &Path) -> io::Result<File> {
        let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
        let Some(root) = &self.root else {
            return OpenOptions::new()
                .read(true)
                .custom_flags(flags.bits())
                .open(path);
        };
        let stay = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
        let how = OpenHow::new().flags(flags).resolve(stay);
        // EAGAIN: something was renamed or mounted meanwhile, so that the
        // kernel can't be sure that a `..` stayed inside; openat2(2).
        for _ in 0..AGAIN {
            match openat2(root, path, how) {
                Err(Errno::EAGAIN) => {}
                found => return Ok(found?.into()),
            }
        }
        Err(Errno::EAGAIN.into())
    }

    /// Returns whether the file is on another host, if it is on a disk at all, and
    /// what its inode number says.
    fn check_disk(&self, handle: impl AsFd, device: u64) -> Result<(bool, Inodes), Refusal> {
        let known = lock(&self.file_systems).get(&device).copied();
        let kind = match known {
            Some(kind) => kind,
            None => {
                let stat = fstatfs(handle).map_err(|error| Refusal {
                    reason: Reason::Unreadable,
                    detail: format!("failed to find its file system: {error}"),
                })?;
                let kind = kind_of(&stat);
                *lock(&self.file_systems).entry(device).or_insert(kind)
            }
        };
        match kind {
            Kind::Local(inodes) => Ok((false, inodes)),
            Kind::Remote(inodes) => Ok((true, inodes)),
            Kind::MadeUp(name) => Err(Refusal {
                reason: Reason::NoDisk,
                detail: format!("not on a disk or network file system: on {name}"),
            }),
        }
    }

    /// Whether the file behind `door`, wherever symlinks have led to, lies
    /// below one of the directories allowed.
    fn check_allowed(&self, named: &Path, door: &Path) -> Result<(), Refusal> {
        if self.allow.is_empty() {
            return Ok(());
        }
        let real = fs::read_link(door).map_err(|error| Refusal {
            reason: Reason::Unreadable,
            detail: format!("failed to find its real path: {error}"),
        })?;
        if self.allow.iter().any(|dir| real.starts_with(dir)) {
            return Ok(());
        }
        let really = match real == named {
            true => String::new(),
            false => format!("{} is ", real.display()),
        };
        Err(Refusal {
            reason: Reason::NotAllowed,
            detail: format!("{really}outside of what --allow names"),
        })
    }
}

fn open_for_reading(door: &str) -> io::Result<File> {
    let file = open_quietly(door)?;
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_RANDOM)?;
    Ok(file)
}

fn open_quietly(door: &str) -> io::Result<File> {
    let open = |more: OFlag| {
        OpenOptions::new()
            .read(true)
            .custom_flags((OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | more).bits())
            .open(door)
    };
    // Only a file's owner may ask that its atime stay as it is.
    match open(OFlag::O_NOATIME) {
        Err(error) if error.raw_os_error() == Some(Errno::EPERM as i32) => open(OFlag::empty()),
        other => other,
    }
}

fn check_kind(there: &Metadata) -> Result<(), Refusal> {
    let kind = there.file_type();
    let name = match () {
        () if kind.is_file() => return Ok(()),
        () if kind.is_dir() => "a directory",
        () if kind.is_fifo() => "a FIFO",
        () if kind.is_char_device() => "a character device",
        () if kind.is_block_device() => "a block device",
        () if kind.is_socket() => "a socket",
        () => "something else",
    };
    Err(Refusal {
        reason: Reason::NotARegularFile,
        detail: format!("not a regular file: {name}"),
    })
}

fn kind_of(stat: &Statfs) -> Kind {
    // The type's width differs between C libraries; the numbers fit into 32.
    let magic = stat.filesystem_type().0 as u32;
    let remote = REMOTE.iter().find(|&&(number, _)| number == magic);
    match (made_up(stat), remote) {
        (Some(name), _) => Kind::MadeUp(name),
        (None, Some(&(_, inodes))) => Kind::Remote(inodes),
        (None, None) if MADE_UP_INODES.contains(&magic) => Kind::Local(Inodes::Unstable),
        (None, None) => Kind::Local(Inodes::OfDevice),
    }
}

/// The name of a file system that has no disk and no server behind it.
pub(crate) fn made_up(stat: &Statfs) -> Option<&'static str> {
    // The type's width differs between C libraries; the numbers fit into 32.
    let magic = stat.filesystem_type().0 as u32;
    let known = NO_DISK.iter().find(|&&(number, _)| number == magic);
    known.map(|&(_, name)| name)
}

/// What an error of open(2) or stat(2) means for the file.
fn reason(error: &io::Error) -> Reason {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT | Errno::ENOTDIR) => Reason::Gone,
        Some(Errno::EACCES | Errno::EPERM) => Reason::NotPermitted,
        _ => Reason::Unreadable,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::net::UnixListener;

    use super::*;

    /// A directory on a disk: /tmp may well be a tmpfs.
    fn dir() -> tempfile::TempDir {
        tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("temporary directory")
    }

    fn identity(path: &Path) -> FileIdentity {
        let there = fs::metadata(path).expect("stat");
        FileIdentity {
            path: path.into(),
            device: there.dev(),
            inode: there.ino(),
            size: there.size(),
            mtime_ns: mtime_ns(&there),
        }
    }

    fn opener() -> Opener {
        Opener {
            accepts: Accepts::default(),
            is_foreign: false,
            maps: Vec::new(),
            allow: Vec::new(),
            root: None,
            twice: false,
            file_systems: Mutex::default(),
        }
    }

    fn file(dir: &tempfile::TempDir, name: &str) -> PathBuf {
        let path = dir.path().join(name);
        let mut file = File::create_new(&path).expect("create");
        file.write_all(b"hello").expect("write");
        path
    }

    fn refusal(opener: &Opener, identity: &FileIdentity) -> (Reason, String) {
        let refusal = opener.open(identity).expect_err("must be refused");
        (refusal.reason, refusal.detail)
    }

    #[test]
    fn the_file_meant_is_opened() {
        let dir = dir();
        let identity = identity(&file(&dir, "a"));
        let opener = Opener {
            twice: true,
            ..opener()
        };
        let open = opener.open(&identity).expect("open");
        assert_eq!(open.place, (identity.device, identity.inode));
        assert!(open.second.is_some());
    }

    #[test]
    fn a_changed_file_is_opened_and_says_how_it_is_now() {
        let dir = dir();
        let path = file(&dir, "a");
        let was = FileIdentity {
            size: 4096,
            ..identity(&path)
        };
        let open = opener().open(&was).expect("the same inode");
        assert_eq!(open.size, 5);
        let change = open.change.expect("a change");
        assert_eq!(change.to_string(), "size 4096 → 5");
        let strict = Opener {
            accepts: Accepts::Unchanged,
            ..opener()
        };
        let (reason, detail) = refusal(&strict, &was);
        assert_eq!(reason, Reason::Changed);
        assert_eq!(detail, "changed: size 4096 → 5");
        let both = FileIdentity {
            mtime_ns: -1,
            ..was
        };
        let (_, detail) = refusal(&strict, &both);
        assert!(
            detail.starts_with("changed: size 4096 → 5, mtime -1 ns → 20"),
            "{detail}"
        );
    }

    #[test]
    fn a_file_put_in_the_place_of_another_is_not_opened() {
        let dir = dir();
        let was = FileIdentity {
            size: 4096,
            ..identity(&file(&dir, "a"))
        };
        let other = file(&dir, "b");
        let inode = identity(&other).inode;
        fs::rename(&other, &was.path).expect("rename");
        let (reason, detail) = refusal(&opener(), &was);
        assert_eq!(reason, Reason::Replaced);
        assert!(detail.starts_with("replaced by another file: size 4096 → 5"));
        let inodes = format!(", inode {} → {inode}", was.inode);
        assert!(detail.ends_with(&inodes), "{detail}");
        for opener in [
            Opener {
                accepts: Accepts::AnyVersion,
                ..opener()
            },
            // Another host's disk may have the same number.
            Opener {
                is_foreign: true,
                ..opener()
            },
        ] {
            let open = opener.open(&was).expect("open");
            assert_eq!((open.place.1, open.size), (inode, 5));
        }
    }

    #[test]
    fn what_is_no_regular_file_is_not_opened() {
        let dir = dir();
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
        let socket = dir.path().join("socket");
        let _listener = UnixListener::bind(&socket).expect("bind");
        for (path, kind) in [
            (fifo.as_path(), "a FIFO"),
            (&socket, "a socket"),
            (dir.path(), "a directory"),
            (Path::new("/dev/null"), "a character device"),
        ] {
            let (reason, detail) = refusal(&opener(), &identity(path));
            assert_eq!(reason, Reason::NotARegularFile);
            assert_eq!(detail, format!("not a regular file: {kind}"));
        }
    }

    #[test]
    fn made_up_files_are_not_opened() {
        let identity = identity(Path::new("/proc/version"));
        let (reason, detail) = refusal(&opener(), &identity);
        assert_eq!(reason, Reason::NoDisk);
        assert!(detail.ends_with("on proc"), "{detail}");
    }

    #[test]
    fn gone_and_bad_paths() {
        let dir = dir();
        let was = identity(&file(&dir, "a"));
        let at = |path: PathBuf| FileIdentity {
            path,
            ..was.clone()
        };
        let gone = refusal(&opener(), &at(dir.path().join("b")));
        assert_eq!(gone.0, Reason::Gone);
        let gone = refusal(&opener(), &at(dir.path().join("a/b")));
        assert_eq!(gone.0, Reason::Gone);
        let bad = refusal(&opener(), &at("../../etc/shadow".into()));
        assert_eq!(bad, (Reason::BadPath, "the path is not absolute".into()));
        let bad = refusal(&opener(), &at(dir.path().join("../a")));
        assert_eq!(bad, (Reason::BadPath, "the path has a .. in it".into()));
    }

    #[test]
    fn symlinks_do_not_lead_out_of_what_is_allowed() {
        let (dir, outside) = (dir(), dir());
        let inside = identity(&file(&dir, "a"));
        let target = file(&outside, "secret");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&target, &link).expect("symlink");
        let mut opener = opener();
        assert!(
            opener.open(&identity(&link)).is_ok(),
            "nothing is forbidden"
        );
        opener.allow = vec![dir.path().canonicalize().expect("canonicalize")];
        assert!(opener.open(&inside).is_ok());
        let (reason, detail) = refusal(&opener, &identity(&link));
        assert_eq!(reason, Reason::NotAllowed);
        assert!(detail.contains("secret is outside"), "{detail}");
        // A sibling whose name merely begins alike is outside too.
        opener.allow = vec![dir.path().join("i")];
        fs::rename(&inside.path, dir.path().join("inside")).expect("rename");
        let alike = identity(&dir.path().join("inside"));
        assert_eq!(refusal(&opener, &alike).0, Reason::NotAllowed);
    }

    #[test]
    fn a_mapped_file_is_named_as_found() {
        let dir = dir();
        let mut was = identity(&file(&dir, "a"));
        was.path = "/source/a".into();
        let mut opener = opener();
        let to = dir.path();
        opener.maps = vec![Mapping {
            from: "/source".into(),
            to: to.into(),
        }];
        assert!(opener.open(&was).is_ok());
        was.path = "/source/b".into();
        let (_, detail) = refusal(&opener, &was);
        assert!(
            detail.contains(&format!("(as {}/b)", to.display())),
            "{detail}"
        );
    }

    #[test]
    fn nothing_leads_out_of_the_root() {
        let dir = dir();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("data")).expect("directories");
        let inside = file(&dir, "root/data/inside");
        let outside = file(&dir, "outside");
        std::os::unix::fs::symlink("/data/inside", root.join("link")).expect("symlink");
        std::os::unix::fs::symlink("../outside", root.join("up")).expect("symlink");
        std::os::unix::fs::symlink(&outside, root.join("away")).expect("symlink");
        let opener = Opener {
            root: Some(Arc::new(File::open(&root).expect("root").into())),
            ..opener()
        };
        let seen = |path: &str, really: &Path| FileIdentity {
            path: path.into(),
            ..identity(really)
        };
        assert!(opener.open(&seen("/data/inside", &inside)).is_ok());
        assert!(opener.open(&seen("/link", &inside)).is_ok());
        for (path, really) in [("/up", &outside), ("/away", &outside)] {
            assert_eq!(refusal(&opener, &seen(path, really)).0, Reason::Gone);
        }
        let proc = seen("/proc/self/exe", Path::new("/proc/self/exe"));
        assert_eq!(refusal(&opener, &proc).0, Reason::Gone);
    }
}
