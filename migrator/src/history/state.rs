//! What a tracker keeps over a restart: a page index list, and of each file in it the
//! generation of its inode and when it was used last.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use nix::libc;

use crate::file::InodeKey;
use crate::file::handle::Handle;
use crate::file::identity;
use crate::file::mountinfo::MountTable;
use crate::format::{self, Optional, Reader, Record, put_number, take_number};
use crate::kernel;
use crate::pagelist::runs::clip;
use crate::pagelist::{FileIdentity, Run};

/// The version of what is kept besides the list.
const VERSION: u64 = 1;

/// How large the file may be, in bytes. The coldest files are left out beyond.
pub const MAX_BYTES: u64 = 64 << 20;

/// How many bytes may be kept besides the list: those of as many files as it can have.
const MAX_BESIDES: usize = 24 << 20;

/// A file that was not used for so long is dropped, in seconds.
pub const MAX_AGE: u64 = 7 * 24 * 3600;

/// What is kept besides the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Besides {
    /// When it was saved, in seconds since the epoch.
    pub saved_at: u64,
    /// Of each file, in the order of the list.
    pub files: Vec<Kept>,
}

/// What is kept of a file besides its pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// Generation of its inode; 0 where it is not known.
    pub generation: u32,
    /// When it was used last, in seconds since the epoch.
    pub used_at: u64,
}

impl Besides {
    /// Encodes it, for frames of [`Optional::Tracked`].
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        put_number(&mut bytes, VERSION);
        put_number(&mut bytes, self.saved_at);
        for file in &self.files {
            put_number(&mut bytes, file.generation.into());
            put_number(&mut bytes, self.saved_at.saturating_sub(file.used_at));
        }
        bytes
    }

    /// Decodes it.
    ///
    /// # Errors
    /// It is none, or of another version.
    pub fn decode(mut bytes: &[u8]) -> anyhow::Result<Self> {
        let cut = "what is kept of its files is cut short";
        let version = take_number(&mut bytes).context("nothing is kept of its files")?;
        ensure!(version == VERSION, "it has version {version}");
        let saved_at = take_number(&mut bytes).context(cut)?;
        let mut files = Vec::new();
        while !bytes.is_empty() {
            let generation = take_number(&mut bytes).context(cut)?;
            let age = take_number(&mut bytes).context(cut)?;
            files.push(Kept {
                generation: generation.try_into().context("a generation is too large")?,
                used_at: saved_at.saturating_sub(age),
            });
        }
        Ok(Self { saved_at, files })
    }
}

/// A part of what was kept.
#[derive(Debug)]
pub enum Piece {
    /// A file begins.
    File {
        /// The inode, as the kernel names it now.
        key: InodeKey,
        /// Where it is.
        path: PathBuf,
        /// When it was used last, in seconds since the epoch.
        used_at: u64,
    },
    /// Pages of the file that began last.
    Runs(Vec<Run>),
}

/// A state that is as it should be, all of it.
#[derive(Debug)]
pub struct Verified {
    path: PathBuf,
    /// What is kept besides the list.
    pub besides: Besides,
}

/// Verifies the state in a file. `None` if there is none.
///
/// # Errors
/// It can't be read, or is none.
pub fn verify(path: &Path) -> anyhow::Result<Option<Verified>> {
    let file = match open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let mut reader = Reader::new(BufReader::with_capacity(1 << 16, file))?;
    format::check_page_size(reader.page_size(), kernel::page_size())?;
    reader.keep(Optional::Tracked, MAX_BESIDES);
    let mut files = 0;
    while let Some(record) = reader.record()? {
        files += usize::from(matches!(record, Record::File(_)));
    }
    let besides = Besides::decode(&reader.kept())?;
    let kept = besides.files.len();
    ensure!(kept == files, "{kept} files are kept, and it has {files}");
    let path = path.to_owned();
    Ok(Some(Verified { path, besides }))
}

impl Verified {
    /// Gives what is still true at a time, file by file, until `give` wants no more.
    ///
    /// # Errors
    /// The file is another by now.
    pub fn each(&self, now: u64, mut give: impl FnMut(Piece) -> bool) -> anyhow::Result<()> {
        let hosts = MountTable::read(Path::new("/proc/self")).unwrap_or_default();
        let mut reader = Reader::new(BufReader::with_capacity(1 << 16, open(&self.path)?))?;
        let mut kept = self.besides.files.iter();
        // The page that the present file ends before, if it is to be had.
        let mut end = None;
        while let Some(record) = reader.record()? {
            let piece = match record {
                Record::File(identity) => {
                    let kept = *kept.next().context("it has more files than before")?;
                    let is_recent = kept.used_at.saturating_add(MAX_AGE) >= now;
                    let found = is_recent
                        .then(|| find(&hosts, &identity, kept.generation))
                        .flatten();
                    let Some((key, size)) = found else {
                        end = None;
                        continue;
                    };
                    end = Some(size.div_ceil(u64::from(kernel::page_size())));
                    Piece::File {
                        key,
                        path: identity.path,
                        used_at: kept.used_at,
                    }
                }
                Record::Runs(runs) => match end {
                    Some(end) => Piece::Runs(clip(runs, end)),
                    None => continue,
                },
            };
            if !give(piece) {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// Finds a file that was at a path, if it is still the same. Device numbers may be
/// others since the host was started. Returns its size, too.
fn find(hosts: &MountTable, file: &FileIdentity, generation: u32) -> Option<(InodeKey, u64)> {
    let meta = fs::symlink_metadata(&file.path).ok()?;
    if !meta.is_file() || meta.ino() != file.inode {
        return None;
    }
    let now = Handle::of_path(&file.path).ok();
    let now = now.and_then(|(handle, _)| handle.generation()).unwrap_or(0);
    if generation != 0 && now != 0 && generation != now {
        return None;
    }
    let device = identity::device_of(hosts, &file.path, &meta)?;
    let key = InodeKey {
        major: device.major,
        minor: device.minor,
        inode: meta.ino(),
        generation: if generation == 0 { 0 } else { now },
    };
    Some((key, meta.len()))
}

fn open(path: &Path) -> anyhow::Result<File, io::Error> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)?;
    let meta = file.metadata()?;
    match meta.is_file() && meta.len() <= MAX_BYTES + MAX_BESIDES as u64 {
        true => Ok(file),
        false => Err(io::Error::other("it is no regular file, or too large")),
    }
}

/// Moves a state that is of no use aside, where it can be looked at. Returns where.
///
/// # Errors
/// Why it stays.
pub fn set_aside(path: &Path) -> anyhow::Result<PathBuf> {
    let aside = path.with_extension("bad");
    if let Err(error) = fs::rename(path, &aside) {
        bail!("{} stays: {error}", path.display());
    }
    Ok(aside)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::format::Writer;
    use crate::pagelist::HotFile;

    const NOW: u64 = 1_800_000_000;

    fn besides(ages: &[u64]) -> Besides {
        let kept = |age: &u64| Kept {
            generation: 0,
            used_at: NOW - age,
        };
        Besides {
            saved_at: NOW,
            files: ages.iter().map(kept).collect(),
        }
    }

    /// Files of ten pages, of which each list has the first twenty.
    fn files(directory: &Path, names: &[&str]) -> Vec<HotFile> {
        let file = |name: &&str| {
            let path = directory.join(name);
            let file = File::create(&path).unwrap();
            file.set_len(10 * u64::from(kernel::page_size())).unwrap();
            let meta = file.metadata().unwrap();
            HotFile {
                identity: FileIdentity {
                    path,
                    device: meta.dev(),
                    inode: meta.ino(),
                    size: meta.len(),
                    mtime_ns: 0,
                },
                runs: vec![Run {
                    index: 0,
                    pages: 20,
                    heat: 9,
                }],
            }
        };
        names.iter().map(file).collect()
    }

    fn write(path: &Path, files: &[HotFile], besides: &[u8]) {
        let mut writer = Writer::new(Vec::new(), kernel::page_size()).unwrap();
        files.iter().try_for_each(|it| writer.file(it)).unwrap();
        writer.optional(Optional::Tracked, besides).unwrap();
        fs::write(path, writer.finish().unwrap()).unwrap();
    }

    /// The names of the files that are given, and their pages.
    fn given(path: &Path, now: u64) -> Vec<(String, u64)> {
        let mut given: Vec<(String, u64)> = Vec::new();
        let verified = verify(path).unwrap().unwrap();
        let each = verified.each(now, |piece| {
            match piece {
                Piece::File { path, .. } => {
                    let name = path.file_name().unwrap().to_string_lossy();
                    given.push((name.into_owned(), 0));
                }
                Piece::Runs(runs) => {
                    given.last_mut().unwrap().1 +=
                        runs.iter().map(|run| u64::from(run.pages)).sum::<u64>();
                }
            }
            true
        });
        each.unwrap();
        given
    }

    #[test]
    fn what_is_kept_survives_the_way() {
        let besides = besides(&[0, 5, MAX_AGE]);
        assert_eq!(Besides::decode(&besides.encode()).unwrap(), besides);
        Besides::decode(&[]).unwrap_err();
        let mut bytes = besides.encode();
        bytes.pop();
        bytes.pop();
        Besides::decode(&bytes).unwrap_err();
    }

    #[test]
    fn files_that_are_old_gone_or_replaced_are_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let names = ["used", "old", "gone", "replaced"];
        let mut files = files(directory.path(), &names);
        files[3].identity.inode += 1 << 40;
        let path = directory.path().join("tracker.pil");
        write(&path, &files, &besides(&[10, 20, 10, 10]).encode());
        fs::remove_file(&files[2].identity.path).unwrap();
        let both = [("used".to_owned(), 10), ("old".to_owned(), 10)];
        assert_eq!(given(&path, NOW + MAX_AGE - 20), both);
        assert_eq!(given(&path, NOW + MAX_AGE - 10), both[..1]);
        assert_eq!(given(&path, NOW + MAX_AGE), []);
        // A clock that was set back makes nothing old.
        assert_eq!(given(&path, 0), both);
        // It is a list like any other.
        assert_eq!(format::read_file(&path).unwrap().files, files);
    }

    #[test]
    fn what_is_no_state_is_refused_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tracker.pil");
        assert!(verify(&path).unwrap().is_none());
        let files = files(directory.path(), &["a", "b"]);
        for bytes in [
            besides(&[1]).encode(),
            besides(&[1, 2, 3]).encode(),
            Vec::new(),
        ] {
            write(&path, &files, &bytes);
            verify(&path).unwrap_err();
        }
        write(&path, &files, &besides(&[1, 2]).encode());
        let good = fs::read(&path).unwrap();
        for place in 0..good.len() {
            let mut bytes = good.clone();
            bytes[place] ^= 0x20;
            fs::write(&path, &bytes).unwrap();
            verify(&path).unwrap_err();
            fs::write(&path, &good[..place]).unwrap();
            verify(&path).unwrap_err();
        }
        let aside = set_aside(&path).unwrap();
        assert!(aside.exists() && !path.exists());
        fs::create_dir(&path).unwrap();
        verify(&path).unwrap_err();
        fs::remove_dir(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        verify(&path).unwrap_err();
    }

    proptest! {
        #[test]
        fn any_bytes_are_kept_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Ok(besides) = Besides::decode(&bytes) {
                prop_assert_eq!(Besides::decode(&besides.encode()).unwrap().files.len(), besides.files.len());
            }
        }
    }
}
