//! What the disk holds of a session when a boot has removed its notes.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};

use super::{Mark, SESSIONS, Session, remove_all};
use crate::handover::Identity;
use crate::handover::incoming::Record;

/// The file of the [`Record`]: a letter, and the boot in which it was made.
const RECORD: &str = "record";

/// The file of [`Record::Tombstone`], prepared and final. It is one of its own, for
/// a process that was slow must not write "allowed" over it.
const TOMBSTONE: &str = "tombstone";
const PREPARED_TOMBSTONE: &str = ".tombstone";

/// What stays when images and logs are removed.
pub(super) const KEPT: [&str; 3] = [RECORD, TOMBSTONE, PREPARED_TOMBSTONE];

/// How long a record is kept whose source never confirms.
const RECORD_AGE: Duration = Duration::from_secs(30 * 24 * 3600);

impl Session {
    /// Makes the record that the tree was not allowed to run here, on the disk
    /// when this returns. What follows it needs no room.
    pub(super) fn make_record(&self, identity: &Identity) -> anyhow::Result<()> {
        let path = self.storage.join(RECORD);
        let write = || -> io::Result<()> {
            let mut options = File::options();
            let options = options.write(true).create_new(true).mode(0o600);
            let mut file = options.open(&path)?;
            writeln!(file, "n {}", identity.boot)?;
            file.sync_all()?;
            options.open(self.storage.join(PREPARED_TOMBSTONE))?;
            let parent = self.storage.parent().unwrap_or(&self.storage);
            [&self.storage, parent]
                .into_iter()
                .try_for_each(|directory| File::open(directory)?.sync_all())
        };
        write().with_context(|| format!("failed to write {}", path.display()))
    }

    /// Records that the tree may run here, on the disk when this returns.
    ///
    /// # Errors
    /// The file system says why not; either record may be there.
    pub fn record_allowed(&self) -> anyhow::Result<()> {
        let path = self.storage.join(RECORD);
        let write = || -> io::Result<()> {
            let file = File::options().write(true).open(&path)?;
            file.write_all_at(b"y", 0)?;
            file.sync_data()
        };
        write().with_context(|| format!("failed to write {}", path.display()))
    }

    /// Records that the tree never ran here and never will, on the disk when
    /// this returns. It holds against every other record.
    ///
    /// # Errors
    /// The file system says why not.
    pub fn record_tombstone(&self) -> anyhow::Result<()> {
        let (prepared, path) = (
            self.storage.join(PREPARED_TOMBSTONE),
            self.storage.join(TOMBSTONE),
        );
        let write = || -> io::Result<()> {
            match fs::rename(&prepared, &path) {
                Err(error) if error.kind() == ErrorKind::NotFound && path.exists() => {}
                renamed => renamed?,
            }
            File::open(&self.storage)?.sync_all()
        };
        write().with_context(|| format!("failed to create {}", path.display()))
    }

    /// Returns the record; `None` where this host has none.
    ///
    /// # Errors
    /// It can't be read, or is none.
    pub fn record(&self) -> anyhow::Result<Option<Record>> {
        if self.storage.join(TOMBSTONE).exists() {
            return Ok(Some(Record::Tombstone));
        }
        let path = self.storage.join(RECORD);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            text => text.with_context(|| format!("failed to read {}", path.display()))?,
        };
        match text.first() {
            Some(b'n') => Ok(Some(Record::NotAllowed)),
            Some(b'y') => Ok(Some(Record::Allowed)),
            _ => bail!("{} was not written by migrator", path.display()),
        }
    }

    /// Returns whether a tombstone is all that is left of it.
    pub fn is_tombstone(&self) -> bool {
        !self.exists() && matches!(self.record(), Ok(Some(Record::Tombstone)))
    }
}

/// Removes what is kept for a question of a source that has not asked or
/// confirmed for 30 days: tombstones, and notes of trees that run here. A
/// question that comes later is answered "not known", which is safe. Removes also
/// what a process left that was killed while it removed notes.
pub fn sweep() {
    for entry in fs::read_dir(SESSIONS).into_iter().flatten().flatten() {
        // Notes that were being removed when a process was killed.
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            _ = remove_all(&entry.path());
        }
    }
    let is_old = |session: &Session| {
        let meta = fs::metadata(session.storage.join(RECORD));
        let age = meta
            .and_then(|meta| meta.modified())
            .map(|time| SystemTime::now().duration_since(time).unwrap_or_default());
        age.is_ok_and(|age| age > RECORD_AGE)
    };
    for session in Session::all().unwrap_or_default() {
        if !is_old(&session) {
            continue;
        }
        let leader = match session.exists() {
            true if !session.has(Mark::Running) => continue,
            true => match session.lead() {
                Ok(Some(leader)) => Some(leader),
                _ => continue,
            },
            false => None,
        };
        // It is tried again at the next order.
        _ = session.remove();
        drop(leader);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::path::Path;

    use super::*;

    fn session(directory: &Path) -> Session {
        let (sessions, storage) = (directory.join("run"), directory.join("lib"));
        Session::below(&sessions, &storage, "0123456789abcdef").unwrap()
    }

    fn here() -> Identity {
        Identity {
            host: "h".into(),
            boot: "b".into(),
        }
    }

    #[test]
    fn the_record_outlives_images_and_notes() {
        let directory = tempfile::tempdir().unwrap();
        let session = session(directory.path());
        let _leader = session.create(Some(&here())).unwrap();
        fs::write(session.images().join("pages-1.img"), "x").unwrap();
        let record = |session: &Session| session.record().unwrap().unwrap();
        assert_eq!(record(&session), Record::NotAllowed);
        session.record_allowed().unwrap();
        assert_eq!(record(&session), Record::Allowed);
        assert!(!session.is_tombstone());
        session.record_tombstone().unwrap();
        session.record_tombstone().unwrap();
        session.record_allowed().unwrap();
        assert_eq!(record(&session), Record::Tombstone, "it holds");
        session.bury().unwrap();
        assert!(session.is_tombstone() && !session.images().exists());
        assert!(session.create(None).is_err(), "a name is used once");
        session.remove().unwrap();
        assert_eq!(session.record().unwrap(), None);
        assert_eq!(
            fs::read_dir(directory.path().join("run")).unwrap().count(),
            0
        );
    }
}
