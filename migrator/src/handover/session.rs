//! A host's notes on a migration: a directory below `/run/migrator`.
//!
//! What several processes write, action scripts and ours, is decided by the
//! file system: a decision is a file that is linked into place once.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use nix::fcntl::{Flock, FlockArg};
use serde::{Serialize, de::DeserializeOwned};

use super::Decision;

/// Where sessions are. It is empty after a boot, as are the trees that they
/// tell of.
pub const SESSIONS: &str = "/run/migrator";

/// Where images are kept: on a disk, for they are as large as the tree's
/// memory.
const STORAGE: &str = "/var/lib/migrator";

/// The variable that tells an action script of its session.
pub const VARIABLE: &str = "MIGRATOR_SESSION";

/// Held by the migrator that leads this side, as long as it lives.
const LEADER: &str = "leader";

/// On the disk: whether the tree may have run here, as one of these bytes.
const MAY_HAVE_RUN: &str = "may-have-run";
const NOT_YET: &[u8] = b"n";
const IT_MAY: &[u8] = b"y";

const DECISION: &str = "decision";

fn text(decision: Decision) -> &'static str {
    match decision {
        Decision::Run => "run",
        Decision::End => "end",
    }
}

/// A migration's notes on one host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    directory: PathBuf,
    storage: PathBuf,
}

/// As long as it exists, others see that the session is led.
#[derive(Debug)]
pub struct Leader(#[allow(dead_code, reason = "dropping it is its use")] Flock<File>);

impl Session {
    /// The session of this name; it need not exist.
    ///
    /// # Errors
    /// When the name is not one that [`fresh_name`] gives: it may come from
    /// the other side.
    pub fn named(name: &str) -> anyhow::Result<Self> {
        Self::below(Path::new(SESSIONS), Path::new(STORAGE), name)
    }

    fn below(sessions: &Path, storage: &Path, name: &str) -> anyhow::Result<Self> {
        let is_hexadecimal = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if name.len() != 16 || !name.bytes().all(is_hexadecimal) {
            bail!("{name:?} is not the name of a session");
        }
        Ok(Self {
            directory: sessions.join(name),
            storage: storage.join(name),
        })
    }

    /// The sessions of this host, in no order.
    ///
    /// # Errors
    /// They can't be listed.
    pub fn all() -> anyhow::Result<Vec<Self>> {
        let entries = match fs::read_dir(SESSIONS) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).with_context(|| format!("failed to list {SESSIONS}")),
        };
        let name = |entry: io::Result<fs::DirEntry>| entry.ok()?.file_name().into_string().ok();
        Ok(entries
            .filter_map(name)
            .filter_map(|name| Self::named(&name).ok())
            .collect())
    }

    /// Makes its directories, which only root may enter.
    ///
    /// # Errors
    /// There is one already, or the file system says why not.
    pub fn create(&self) -> anyhow::Result<Leader> {
        let create = |path: &Path| {
            let parent = path.parent().unwrap_or(path);
            let mut builder = fs::DirBuilder::new();
            builder.mode(0o700).recursive(true).create(parent)?;
            builder.recursive(false).create(path)
        };
        for path in [&self.directory, &self.storage, &self.images()] {
            create(path).with_context(|| format!("failed to create {}", path.display()))?;
        }
        self.lead()?
            .context("failed to lead a session that was just made")
    }

    /// Whether it is there.
    pub fn exists(&self) -> bool {
        self.directory.is_dir()
    }

    /// Becomes the leader of this side; `None` while another one lives.
    ///
    /// # Errors
    /// Those of open(2) and flock(2).
    pub fn lead(&self) -> anyhow::Result<Option<Leader>> {
        let path = self.directory.join(LEADER);
        let open = || {
            let mut options = File::options();
            options.create(true).truncate(false).write(true).mode(0o600);
            options.open(&path)
        };
        let file = open().with_context(|| format!("failed to open {}", path.display()))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(Leader(lock))),
            Err((_, nix::Error::EAGAIN)) => Ok(None),
            Err((_, error)) => Err(error).context("failed to lock a session"),
        }
    }

    /// Its name.
    pub fn name(&self) -> String {
        let name = self.directory.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// Where its notes are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where CRIU's logs and its action script are.
    pub fn storage(&self) -> &Path {
        &self.storage
    }

    /// Where its images are, unless they are shared.
    pub fn images(&self) -> PathBuf {
        self.storage.join("images")
    }

    /// Decides, or gives what somebody has decided before: whoever is first
    /// decides for all.
    ///
    /// # Errors
    /// The decision can't be written. Nobody has decided then.
    pub fn decide(&self, decision: Decision) -> anyhow::Result<Decision> {
        let path = self.directory.join(DECISION);
        let write = || {
            let mut file = tempfile::NamedTempFile::new_in(&self.directory)?;
            file.write_all(text(decision).as_bytes())?;
            // persist_noclobber is link(2) or renameat2(RENAME_NOREPLACE):
            // the file has its content from the first moment on.
            match file.persist_noclobber(&path) {
                Ok(_) => Ok(()),
                Err(error) => Err(error.error),
            }
        };
        match write() {
            Ok(()) => Ok(decision),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => self
                .decision()
                .with_context(|| format!("{} says neither run nor end", path.display())),
            Err(error) => Err(error).with_context(|| format!("failed to write {}", path.display())),
        }
    }

    /// Makes room on the disk for what [`Self::decide_to_run`] notes there: while
    /// the tree stands still, it takes one block then and no journal.
    ///
    /// # Errors
    /// The file system says why not.
    pub fn prepare_to_run(&self) -> anyhow::Result<()> {
        let path = self.storage.join(MAY_HAVE_RUN);
        let write = || {
            let mut file = File::create(&path)?;
            file.write_all(NOT_YET)?;
            file.sync_all()?;
            let parent = self.storage.parent().unwrap_or(&self.storage);
            [&self.storage, parent]
                .into_iter()
                .try_for_each(|directory| File::open(directory)?.sync_all())
        };
        write().with_context(|| format!("failed to write {}", path.display()))
    }

    /// Decides that a restored tree may run, as [`Self::decide`]; notes that
    /// on the disk first, so that it is not forgotten with a power cut.
    ///
    /// # Errors
    /// As [`Self::decide`]; or nobody has prepared for it.
    pub fn decide_to_run(&self) -> anyhow::Result<Decision> {
        let path = self.storage.join(MAY_HAVE_RUN);
        let write = || {
            let mut file = File::options().write(true).open(&path)?;
            file.write_all(IT_MAY)?;
            file.sync_data()
        };
        write().with_context(|| format!("failed to write {}", path.display()))?;
        self.decide(Decision::Run)
    }

    /// Whether this host was told to run the tree, be it before it was booted.
    pub fn may_have_run(&self) -> bool {
        // What is there and can't be read is no reason to say that it has not.
        match fs::read(self.storage.join(MAY_HAVE_RUN)) {
            Ok(byte) => byte != NOT_YET,
            Err(error) => error.kind() != ErrorKind::NotFound,
        }
    }

    /// What has been decided so far.
    pub fn decision(&self) -> Option<Decision> {
        let noted = fs::read_to_string(self.directory.join(DECISION)).ok()?;
        [Decision::Run, Decision::End]
            .into_iter()
            .find(|decision| text(*decision) == noted)
    }

    /// Writes a note, in place of an older one, at once as a whole.
    ///
    /// # Errors
    /// The file system says why not.
    pub fn note(&self, name: &str, value: &impl Serialize) -> anyhow::Result<()> {
        let path = self.directory.join(name);
        let write = || -> io::Result<()> {
            let mut file = tempfile::NamedTempFile::new_in(&self.directory)?;
            serde_json::to_writer(&mut file, value)?;
            file.persist(&path)?;
            Ok(())
        };
        write().with_context(|| format!("failed to write {}", path.display()))
    }

    /// Reads a note; `None` if it has not been written.
    ///
    /// # Errors
    /// It can't be read, or is not what it should be.
    pub fn read<T: DeserializeOwned>(&self, name: &str) -> anyhow::Result<Option<T>> {
        let path = self.directory.join(name);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes).with_context(|| {
                format!("{} is not what migrator writes", path.display())
            })?)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("failed to read {}", path.display())),
        }
    }

    /// Whether a note has been written.
    pub fn has(&self, name: &str) -> bool {
        self.directory.join(name).exists()
    }

    /// Removes images and what belongs to them, but not that the tree may have
    /// run.
    ///
    /// # Errors
    /// The file system says why not.
    pub fn remove_storage(&self) -> anyhow::Result<()> {
        let entries = match fs::read_dir(&self.storage) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            entries => entries.and_then(Iterator::collect::<io::Result<Vec<_>>>),
        };
        let remove = |entry: fs::DirEntry| match entry.file_type()?.is_dir() {
            true => fs::remove_dir_all(entry.path()),
            false if entry.file_name() == MAY_HAVE_RUN => Ok(()),
            false => fs::remove_file(entry.path()),
        };
        entries
            .and_then(|entries| entries.into_iter().try_for_each(remove))
            .with_context(|| format!("failed to remove what is in {}", self.storage.display()))
    }

    /// Removes images and notes, as far as they are there.
    ///
    /// # Errors
    /// The file system says why not.
    pub fn remove(&self) -> anyhow::Result<()> {
        for path in [&self.storage, &self.directory] {
            match fs::remove_dir_all(path) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(error)
                        .with_context(|| format!("failed to remove {}", path.display()));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// A name that no other session has: 64 random bits.
///
/// # Errors
/// There is no /dev/urandom.
pub fn fresh_name() -> anyhow::Result<String> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut bytes))
        .context("failed to read /dev/urandom")?;
    Ok(format!("{:016x}", u64::from_ne_bytes(bytes)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn session(directory: &tempfile::TempDir) -> Session {
        let (sessions, storage) = (directory.path().join("run"), directory.path().join("lib"));
        Session::below(&sessions, &storage, "0123456789abcdef").unwrap()
    }

    #[test]
    fn names_are_no_paths() {
        assert!(Session::named(&fresh_name().unwrap()).is_ok());
        for name in ["", "..", "../../etc/passwd1", "0123456789abcdeF", "0123"] {
            assert!(Session::named(name).is_err(), "{name}");
        }
    }

    #[test]
    fn the_first_decision_holds() {
        let directory = tempfile::tempdir().unwrap();
        let session = session(&directory);
        let _leader = session.create().unwrap();
        assert_eq!(session.decision(), None);
        assert_eq!(session.decide(Decision::End).unwrap(), Decision::End);
        assert_eq!(session.decide(Decision::Run).unwrap(), Decision::End);
        assert_eq!(session.decision(), Some(Decision::End));
        session.remove().unwrap();
        assert!(!session.exists());
        session.remove().unwrap();
    }

    #[test]
    fn the_disk_knows_that_it_may_have_run_when_it_is_decided() {
        let directory = tempfile::tempdir().unwrap();
        let session = session(&directory);
        let _leader = session.create().unwrap();
        assert!(session.decide_to_run().is_err(), "nobody prepared for it");
        assert_eq!((session.decision(), session.may_have_run()), (None, false));
        session.prepare_to_run().unwrap();
        assert!(!session.may_have_run());
        assert_eq!(session.decide_to_run().unwrap(), Decision::Run);
        session.remove_storage().unwrap();
        assert!(session.may_have_run(), "after the images are gone, too");
        session.remove().unwrap();
        assert!(!session.may_have_run());
    }

    #[test]
    fn many_who_decide_at_once_agree() {
        let directory = tempfile::tempdir().unwrap();
        let session = session(&directory);
        let _leader = session.create().unwrap();
        let decide = |number: usize| {
            let wanted = [Decision::Run, Decision::End][number % 2];
            session.decide(wanted).unwrap()
        };
        let decisions: Vec<Decision> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|n| scope.spawn(move || decide(n))).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert!(decisions.iter().all(|it| Some(*it) == session.decision()));
    }

    #[test]
    fn one_leads_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let session = session(&directory);
        let leader = session.create().unwrap();
        assert!(session.lead().unwrap().is_none());
        drop(leader);
        assert!(session.lead().unwrap().is_some());
        assert!(session.create().is_err(), "there is one of this name");
    }

    #[test]
    fn notes_are_read_as_written() {
        let directory = tempfile::tempdir().unwrap();
        let session = session(&directory);
        let _leader = session.create().unwrap();
        assert_eq!(session.read::<u32>("pid").unwrap(), None);
        session.note("pid", &7).unwrap();
        session.note("pid", &8).unwrap();
        assert_eq!(session.read("pid").unwrap(), Some(8));
        assert!(session.has("pid") && !session.has("other"));
        assert!(session.read::<Vec<u32>>("pid").is_err());
    }
}
