//! A host's notes on a handover.
//!
//! `/run/migrator/NAME` holds what a boot may forget, for a boot ends the tree
//! as well. `/var/lib/migrator/NAME` holds images, logs and the [`Record`].
//!
//! A [`Mark`] is a file that is prepared when the session is made and moved to
//! its name once (renameat2(2), `RENAME_NOREPLACE`): the first process that
//! moves one decides for all, and a full disk is no obstacle.

mod mark;
mod record;

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use nix::mount::{MntFlags, umount2};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::{Serialize, de::DeserializeOwned};

use super::outgoing::Intent;
use super::{Decision, Identity};
use crate::file::mountinfo::MountTable;

pub use mark::Mark;
pub use record::sweep;

/// Where the notes of sessions are. A boot empties it.
pub const SESSIONS: &str = "/run/migrator";

/// Where images are kept: on a disk, for they are as large as the tree's
/// memory.
pub const STORAGE: &str = "/var/lib/migrator";

/// The lock of the process that leads this side.
const LEADER: &str = "leader";

/// The lock of the process that makes a decision true.
const FINISHER: &str = "finisher";

/// How often it is tried to move notes away.
const REMOVE_ATTEMPTS: u32 = 3;

/// The copy of a source's journal that outlives a boot.
const KEPT_JOURNAL: &str = "journal";

/// A handover's notes on one host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    directory: PathBuf,
    storage: PathBuf,
}

/// A lock that others see as long as it exists.
#[derive(Debug)]
pub struct Lock(#[allow(dead_code, reason = "closing it unlocks")] File);

impl Session {
    /// Returns the session of this name; it need not exist.
    ///
    /// # Errors
    /// The name is not one of [`fresh_name`]: it may come from a peer.
    pub fn named(name: &str) -> anyhow::Result<Self> {
        Self::below(Path::new(SESSIONS), Path::new(STORAGE), name)
    }

    fn below(sessions: &Path, storage: &Path, name: &str) -> anyhow::Result<Self> {
        let is_hexadecimal = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if name.len() != 16 || !name.bytes().all(is_hexadecimal) {
            bail!("invalid session name: {name:?}");
        }
        Ok(Self {
            directory: sessions.join(name),
            storage: storage.join(name),
        })
    }

    /// Returns the sessions of this host in the order of their names, those of
    /// which only the disk is left, too.
    ///
    /// # Errors
    /// They can't be listed.
    pub fn all() -> anyhow::Result<Vec<Self>> {
        let mut names = Vec::new();
        for directory in [SESSIONS, STORAGE] {
            match fs::read_dir(directory) {
                Ok(entries) => names.extend(
                    entries
                        .flatten()
                        .filter_map(|entry| entry.file_name().into_string().ok()),
                ),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("failed to list {directory}"));
                }
            }
        }
        names.sort();
        names.dedup();
        Ok(names
            .iter()
            .filter_map(|name| Self::named(name).ok())
            .collect())
    }

    /// Makes its directories, which only root may enter, its marks and, on a
    /// destination of this identity, its record.
    ///
    /// # Errors
    /// There is one already, or the file system says why not. Nothing is left.
    pub fn create(&self, record_for: Option<&Identity>) -> anyhow::Result<Lock> {
        if self.exists() || self.storage.exists() {
            bail!("there is a session {} on this host already", self.name());
        }
        let made = self.make(record_for);
        if made.is_err() {
            // What could not be made can't always be removed; the first error
            // says why.
            _ = self.remove();
        }
        made
    }

    fn make(&self, record_for: Option<&Identity>) -> anyhow::Result<Lock> {
        let create = |path: &Path| {
            let parent = path.parent().unwrap_or(path);
            let mut builder = fs::DirBuilder::new();
            builder.mode(0o700).recursive(true).create(parent)?;
            builder.recursive(false).create(path)
        };
        for path in [&self.directory, &self.storage, &self.images()] {
            create(path).with_context(|| format!("failed to create {}", path.display()))?;
        }
        for mark in Mark::ALL {
            let path = self.directory.join(mark.prepared());
            fs::write(&path, mark.text())
                .with_context(|| format!("failed to write {}", path.display()))?;
        }
        if let Some(identity) = record_for {
            self.make_record(identity)?;
        }
        self.lead()?
            .context("failed to lead a session that was just made")
    }

    /// Returns whether its notes are there.
    pub fn exists(&self) -> bool {
        self.directory.is_dir()
    }

    /// Becomes the leader of this side; `None` while another one lives.
    ///
    /// # Errors
    /// Those of open(2) and flock(2).
    pub fn lead(&self) -> anyhow::Result<Option<Lock>> {
        self.lock(LEADER)
    }

    /// Locks the right to make a decision true; `None` while another process
    /// has it.
    ///
    /// # Errors
    /// Those of open(2) and flock(2).
    pub fn finish(&self) -> anyhow::Result<Option<Lock>> {
        self.lock(FINISHER)
    }

    fn lock(&self, name: &str) -> anyhow::Result<Option<Lock>> {
        let path = self.directory.join(name);
        let open = || {
            let mut options = File::options();
            options.create(true).truncate(false).write(true).mode(0o600);
            options.open(&path)
        };
        let file = open().with_context(|| format!("failed to open {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Lock(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("failed to lock {}", path.display()))
            }
        }
    }

    /// Returns its name.
    pub fn name(&self) -> String {
        let name = self.directory.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// Returns where its notes are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Returns where logs and scripts are.
    pub fn storage(&self) -> &Path {
        &self.storage
    }

    /// Returns where its images are, unless they are shared.
    pub fn images(&self) -> PathBuf {
        self.storage.join("images")
    }

    /// Makes a mark. Returns whether this call did it; another mark of the same
    /// name may have been first.
    ///
    /// # Errors
    /// Those of renameat2(2). Whether the mark is there is not known.
    pub fn mark(&self, mark: Mark) -> anyhow::Result<bool> {
        let path = self.directory.join(mark.name());
        let prepared = self.directory.join(mark.prepared());
        match renameat_with(CWD, &prepared, CWD, &path, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::EXIST) => Ok(false),
            Err(rustix::io::Errno::NOENT) if path.exists() => Ok(false),
            Err(error) => {
                Err(error).with_context(|| format!("failed to create {}", path.display()))
            }
        }
    }

    /// Returns whether a mark of this name is there.
    pub fn has(&self, mark: Mark) -> bool {
        self.directory.join(mark.name()).exists()
    }

    /// Returns the noted intent.
    ///
    /// # Errors
    /// It can't be read, or is none.
    pub fn intent(&self) -> anyhow::Result<Option<Intent>> {
        self.one_of([Intent::Commit, Intent::RollBack].map(|intent| (Mark::Intent(intent), intent)))
    }

    /// Returns the noted decision.
    ///
    /// # Errors
    /// It can't be read, or is none.
    pub fn decision(&self) -> anyhow::Result<Option<Decision>> {
        self.one_of(
            [Decision::Run, Decision::End].map(|decision| (Mark::Decision(decision), decision)),
        )
    }

    fn one_of<T: Copy>(&self, marks: [(Mark, T); 2]) -> anyhow::Result<Option<T>> {
        let path = self.directory.join(marks[0].0.name());
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            text => text.with_context(|| format!("failed to read {}", path.display()))?,
        };
        let found = marks.iter().find(|(mark, _)| mark.text() == text);
        match found {
            Some((_, value)) => Ok(Some(*value)),
            None => bail!("{} was not written by migrator", path.display()),
        }
    }

    /// Notes an intent. Returns the one that is noted, and whether this call
    /// did it.
    ///
    /// # Errors
    /// It is not known which is noted, if any.
    pub fn set_out(&self, intent: Intent) -> anyhow::Result<(Intent, bool)> {
        let is_mine = self.mark(Mark::Intent(intent))?;
        let noted = self.intent()?.context("the noted intent is gone")?;
        Ok((noted, is_mine))
    }

    /// Notes a decision. Returns the one that is noted.
    ///
    /// # Errors
    /// It is not known which is noted, if any.
    pub fn decide(&self, decision: Decision) -> anyhow::Result<Decision> {
        self.mark(Mark::Decision(decision))?;
        self.decision()?.context("the noted decision is gone")
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
            file.flush()?;
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
                format!("{} was not written by migrator", path.display())
            })?)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("failed to read {}", path.display())),
        }
    }

    /// Keeps a source's journal on the disk, for a recovery after a boot.
    ///
    /// # Errors
    /// The file system says why not.
    pub fn keep_on_disk(&self, journal: &impl Serialize) -> anyhow::Result<()> {
        let path = self.storage.join(KEPT_JOURNAL);
        let write = || -> io::Result<()> {
            let mut options = File::options();
            options.write(true).create(true).truncate(true).mode(0o600);
            let file = options.open(&path)?;
            serde_json::to_writer(&file, journal)?;
            file.sync_all()
        };
        write().with_context(|| format!("failed to write {}", path.display()))
    }

    /// Returns the journal that was kept on the disk.
    ///
    /// # Errors
    /// It can't be read.
    pub fn kept_on_disk<T: DeserializeOwned>(&self) -> anyhow::Result<Option<T>> {
        let path = self.storage.join(KEPT_JOURNAL);
        let failed = || format!("failed to read {}", path.display());
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .with_context(failed),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(failed),
        }
    }

    /// Removes images and logs, but not the record.
    ///
    /// # Errors
    /// The file system says why not.
    pub fn remove_images(&self) -> anyhow::Result<()> {
        let entries = match fs::read_dir(&self.storage) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            entries => entries.and_then(Iterator::collect::<io::Result<Vec<_>>>),
        };
        let remove = |entry: fs::DirEntry| match entry.file_type()?.is_dir() {
            true => remove_all(&entry.path()).map_err(io::Error::other),
            false if record::KEPT.iter().any(|name| entry.file_name() == *name) => Ok(()),
            false => fs::remove_file(entry.path()),
        };
        entries
            .and_then(|entries| entries.into_iter().try_for_each(remove))
            .with_context(|| format!("failed to remove what is in {}", self.storage.display()))
    }

    /// Removes images and notes. The record stays: a tombstone.
    ///
    /// # Errors
    /// The file system says why not.
    pub fn bury(&self) -> anyhow::Result<()> {
        self.remove_images()?;
        self.remove_notes()
    }

    /// Removes the notes, all at once: half of them would say something else.
    fn remove_notes(&self) -> anyhow::Result<()> {
        let away = self.directory.with_file_name(format!(".{}", self.name()));
        remove_all(&away)?;
        let mut renamed = fs::rename(&self.directory, &away);
        for _ in 1..REMOVE_ATTEMPTS {
            match &renamed {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    renamed = fs::rename(&self.directory, &away);
                }
                _ => break,
            }
        }
        match renamed {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => {
                Err(error).with_context(|| format!("failed to remove {}", self.directory.display()))
            }
            Ok(()) => remove_all(&away),
        }
    }

    /// Removes everything, as far as it is there.
    ///
    /// # Errors
    /// The file system says why not.
    pub fn remove(&self) -> anyhow::Result<()> {
        remove_all(&self.storage)?;
        self.remove_notes()
    }
}

/// Removes a directory. A CRIU that was killed may have left a file system
/// mounted below it: its cgroup yard, whose content is no one's to remove.
fn remove_all(path: &Path) -> anyhow::Result<()> {
    let mounts = MountTable::read(Path::new("/proc/self"));
    let mut below: Vec<PathBuf> = mounts
        .iter()
        .flat_map(MountTable::iter)
        .map(|mount| mount.mount_point.clone())
        .filter(|point| point.starts_with(path) && point != path)
        .collect();
    below.sort();
    for point in below.iter().rev() {
        umount2(point, MntFlags::MNT_DETACH)
            .with_context(|| format!("failed to unmount {}", point.display()))?;
    }
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("failed to remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Returns a name that no other session has: 64 random bits.
///
/// # Errors
/// There is no /dev/urandom.
pub fn fresh_name() -> anyhow::Result<String> {
    Ok(format!("{:016x}", u64::from_ne_bytes(random()?)))
}

/// Returns random bytes.
///
/// # Errors
/// There is no /dev/urandom.
pub(super) fn random<const LENGTH: usize>() -> anyhow::Result<[u8; LENGTH]> {
    let mut bytes = [0; LENGTH];
    File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut bytes))
        .context("failed to read /dev/urandom")?;
    Ok(bytes)
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
        let _leader = session.create(None).unwrap();
        assert_eq!(session.decision().unwrap(), None);
        assert_eq!(session.decide(Decision::End).unwrap(), Decision::End);
        assert_eq!(session.decide(Decision::Run).unwrap(), Decision::End);
        assert_eq!(session.decide(Decision::End).unwrap(), Decision::End);
        assert_eq!(session.decision().unwrap(), Some(Decision::End));
        session.remove().unwrap();
        assert!(!session.exists());
        session.remove().unwrap();
    }

    #[test]
    fn only_the_first_to_commit_knows_that_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let session = session(&directory);
        let _leader = session.create(None).unwrap();
        let first = session.set_out(Intent::Commit).unwrap();
        assert_eq!(first, (Intent::Commit, true));
        let second = session.set_out(Intent::RollBack).unwrap();
        assert_eq!(second, (Intent::Commit, false));
        let third = session.set_out(Intent::Commit).unwrap();
        assert_eq!(third, (Intent::Commit, false));
    }

    #[test]
    fn a_damaged_decision_is_no_decision() {
        let directory = tempfile::tempdir().unwrap();
        let session = session(&directory);
        let _leader = session.create(None).unwrap();
        fs::write(session.directory().join("decision"), "ru").unwrap();
        assert!(session.decision().is_err());
        assert!(session.decide(Decision::Run).is_err());
    }

    #[test]
    fn many_who_decide_at_once_agree() {
        let directory = tempfile::tempdir().unwrap();
        let session = session(&directory);
        let _leader = session.create(None).unwrap();
        let decide = |number: usize| {
            let wanted = [Decision::Run, Decision::End][number % 2];
            session.decide(wanted).unwrap()
        };
        let decisions: Vec<Decision> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|n| scope.spawn(move || decide(n))).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        let noted = session.decision().unwrap();
        assert!(decisions.iter().all(|it| Some(*it) == noted));
    }

    #[test]
    fn one_leads_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let session = session(&directory);
        let leader = session.create(None).unwrap();
        assert!(session.lead().unwrap().is_none());
        drop(leader);
        assert!(session.lead().unwrap().is_some());
        assert!(session.create(None).is_err(), "there is one of this name");
    }

    #[test]
    fn notes_are_read_as_written() {
        let directory = tempfile::tempdir().unwrap();
        let session = session(&directory);
        let _leader = session.create(None).unwrap();
        assert_eq!(session.read::<u32>("pid").unwrap(), None);
        session.note("pid", &7).unwrap();
        session.note("pid", &8).unwrap();
        assert_eq!(session.read("pid").unwrap(), Some(8));
        assert!(session.read::<Vec<u32>>("pid").is_err());
    }
}
