//! The regular files of a process tree, which it finds on the destination
//! under the same paths.
//!
//! CRIU's images hold their paths only. So what was written has to be in
//! the file system before the destination looks, and what the destination
//! finds has to be what the tree had open.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::changes::Attributes;
use super::order::OpenedFile;
use crate::file::open_files::{self, OpenFile};
use crate::file::{Resolver, StatKey};
use crate::pagelist::FileIdentity;
use crate::process::{PROC, Process};

/// The regular files that the processes have open or mapped, each once, by
/// path. Deleted ones have no path that the destination could look at.
pub fn files(processes: &[Process]) -> Vec<OpenedFile> {
    let mut found: BTreeMap<PathBuf, OpenedFile> = BTreeMap::new();
    for process in processes {
        // A process that has ended meanwhile has nothing open.
        for (link, fd) in links(*process) {
            let (Ok(path), Ok(meta)) = (fs::read_link(&link), fs::metadata(&link)) else {
                continue;
            };
            if !meta.is_file() || meta.nlink() == 0 || !path.is_absolute() {
                continue;
            }
            let writable = is_writable(*process, &link, fd);
            found
                .entry(path.clone())
                .and_modify(|file| file.writable |= writable)
                .or_insert_with(|| OpenedFile::new(path, &meta, writable));
        }
    }
    found.into_values().collect()
}

/// Returns size and times of the files that the processes have open or mapped,
/// where they have a path on this host.
pub(super) fn attributes(processes: &[Process]) -> Vec<(StatKey, Attributes)> {
    let mut resolver = Resolver::new(PROC.into());
    let pids = processes.iter().map(|process| process.pid);
    let inodes = resolver.observe(pids).inodes;
    let identities = inodes
        .into_iter()
        .filter_map(|key| resolver.resolve(key).ok());
    identities
        .filter_map(|identity| attributes_of(&identity))
        .collect()
}

/// Returns size and times of a file of a list as they are now, unless another
/// file lies at its path.
pub(super) fn attributes_of(identity: &FileIdentity) -> Option<(StatKey, Attributes)> {
    let meta = fs::symlink_metadata(&identity.path).ok()?;
    let key = StatKey::from(identity);
    (StatKey::from(&meta) == key).then(|| (key, Attributes::from(&meta)))
}

/// Writes what the processes have written and the host has not yet to the
/// file systems, so that the other host sees it. Returns the files that they
/// could have written, as lists have them.
///
/// # Errors
/// fsync(2) failed: the file system has lost data.
pub fn sync(processes: &[Process]) -> anyhow::Result<BTreeSet<StatKey>> {
    let mut resolver = Resolver::new(PROC.into());
    let mut done = BTreeSet::new();
    let mut written = BTreeSet::new();
    for process in processes {
        for (link, fd) in links(*process) {
            let Ok(meta) = fs::metadata(&link) else {
                continue;
            };
            // A file may be open twice, and for writing only once.
            if !meta.is_file()
                || !is_writable(*process, &link, fd)
                || !done.insert(StatKey::from(&meta))
            {
                continue;
            }
            // Opening the link opens the inode anew; fsync(2) is the inode's.
            let synced = File::open(&link).and_then(|file| file.sync_all());
            synced.with_context(|| {
                let path = fs::read_link(&link).unwrap_or_else(|_| link.clone());
                format!("failed to fsync {}", path.display())
            })?;
            let open = OpenFile {
                link,
                fd,
                mapping: None,
            };
            let identity = resolver.locate_open(&process.directory(), &open);
            written.extend(identity.as_ref().map(StatKey::from));
        }
    }
    Ok(written)
}

/// Compares the open files of the source with what is here under their paths.
///
/// # Errors
/// The first that is not the same, in words.
pub fn same_files(files: &[OpenedFile]) -> Result<(), String> {
    for file in files {
        let path = file.path.display();
        // Opened, because NFS asks the server for the attributes then
        // (close-to-open consistency), and may answer stat(2) by memory.
        let meta = match fs::symlink_metadata(&file.path) {
            Ok(meta) if meta.is_file() => File::open(&file.path).and_then(|file| file.metadata()),
            Ok(_) => return Err(format!("{path} is not a regular file on the destination")),
            Err(error) => Err(error),
        };
        let here = match meta {
            Ok(meta) => OpenedFile::new(file.path.clone(), &meta, file.writable),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(format!(
                    "{path} is open and does not exist on the destination"
                ));
            }
            Err(error) => return Err(format!("{path} can't be read on the destination: {error}")),
        };
        if file.writable {
            // Size and time are compared when nobody writes any more.
            continue;
        }
        if here.size != file.size {
            return Err(format!(
                "{path} has {} bytes on the source and {} on the destination: is it the same \
                 file system?",
                file.size, here.size
            ));
        }
        if here.mtime_ns != file.mtime_ns {
            return Err(format!(
                "{path} was modified at another time on the destination than on the source: is it \
                 the same file system, or the same version of it?"
            ));
        }
    }
    Ok(())
}

/// Magic links to what a process has open or mapped, with its descriptor.
pub(super) fn links(process: Process) -> Vec<(PathBuf, Option<i32>)> {
    let directory = process.directory();
    let mut links: Vec<_> = open_files::list(&directory)
        .unwrap_or_default()
        .into_iter()
        .filter(|file| file.mapping.is_none())
        .map(|file| (file.link, file.fd))
        .collect();
    let mappings = fs::read_dir(directory.join("map_files"))
        .into_iter()
        .flatten();
    links.extend(mappings.flatten().map(|entry| (entry.path(), None)));
    links
}

/// Whether the process may write to the file through this link: the links in
/// `fd` and `map_files` have the owner's write bit then (proc_pid_fd(5)).
/// A private mapping is never written back, but a mapping's link does not
/// tell; so a mapped file that could be written counts as one that is.
fn is_writable(process: Process, link: &Path, fd: Option<i32>) -> bool {
    let has_bit = fs::symlink_metadata(link).is_ok_and(|meta| meta.mode() & 0o200 != 0);
    match fd {
        Some(_) => has_bit,
        None => has_bit && is_shared(process, link),
    }
}

/// Whether a mapping is a shared one: `rw-s` in `/proc/PID/maps`.
fn is_shared(process: Process, link: &Path) -> bool {
    let Some(name) = link.file_name().and_then(|name| name.to_str()) else {
        return false;
    };
    let maps = fs::read_to_string(process.directory().join("maps")).unwrap_or_default();
    maps.lines().any(|line| {
        let mut fields = line.split(' ');
        fields.next() == Some(name) && fields.next().is_some_and(|mode| mode.ends_with('s'))
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn me() -> Process {
        Process::of(std::process::id() as i32).unwrap()
    }

    #[test]
    fn own_open_files_are_found_with_whether_they_are_written() {
        let directory = tempfile::tempdir().unwrap();
        let (read, written) = (directory.path().join("a b"), directory.path().join("w"));
        fs::write(&read, "abc").unwrap();
        let _written = File::create(&written).unwrap();
        let _read = File::open(&read).unwrap();
        let files = files(&[me()]);
        let file = |path: &Path| files.iter().find(|file| file.path == path).unwrap();
        assert!(!file(&read).writable && file(&written).writable);
        assert_eq!(file(&read).size, 3);
    }

    #[test]
    fn files_open_for_writing_are_synced_and_named_by_their_numbers() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        for name in ["read", "both", "written"] {
            fs::write(path(name), "abc").unwrap();
        }
        let append = || File::options().append(true).clone();
        let _read = File::open(path("read")).unwrap();
        // The descriptor for reading comes first.
        let _both = File::open(path("both")).unwrap();
        let _both_written = append().open(path("both")).unwrap();
        let _written = append().open(path("written")).unwrap();
        let synced = sync(&[me()]).unwrap();
        let seen: Vec<StatKey> = attributes(&[me()]).iter().map(|(key, _)| *key).collect();
        for (name, is_written) in [("read", false), ("both", true), ("written", true)] {
            let key = StatKey::from(&fs::metadata(path(name)).unwrap());
            assert_eq!(synced.contains(&key), is_written, "{name}");
            assert!(seen.contains(&key), "{name}");
        }
    }

    #[test]
    fn files_that_differ_are_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "abc").unwrap();
        let file = OpenedFile::new(path.clone(), &fs::metadata(&path).unwrap(), false);
        let changed = |change: fn(&mut OpenedFile)| {
            let mut file = file.clone();
            change(&mut file);
            same_files(&[file])
        };
        assert_eq!(changed(|_| {}), Ok(()));
        assert!(
            changed(|file| file.size = 4)
                .unwrap_err()
                .contains("4 bytes on the source and 3")
        );
        assert!(
            changed(|file| file.mtime_ns += 1)
                .unwrap_err()
                .contains("another time")
        );
        assert_eq!(
            changed(|file| (file.size, file.writable) = (4, true)),
            Ok(())
        );
        let gone = changed(|file| file.path.push("x")).unwrap_err();
        assert!(
            gone.contains("can't be read") || gone.contains("does not exist"),
            "{gone}"
        );
    }
}
