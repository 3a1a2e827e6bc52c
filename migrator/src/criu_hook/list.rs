//! The list among the images. Images may come out of an archive from
//! anywhere, so nothing there is trusted.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, ensure};
use nix::fcntl::OFlag;

use super::LIST;
use crate::format::{FormatError, Writer, read_list};
use crate::pagelist::PageIndexList;

/// No list is longer, in bytes: 100 million scattered pages.
const MAX_BYTES: u64 = 64 << 20;

/// Writes the list into the images' directory, in place of what an earlier
/// dump left there.
///
/// Unlike [`crate::format::write_atomically`] it does not wait for the disk:
/// CRIU does not for its images either, and the tasks are frozen. A list that
/// a crash cut short is recognized by its checksums.
///
/// # Errors
/// The list can't be written; none is there then.
pub fn write(images: &Path, list: &PageIndexList) -> anyhow::Result<()> {
    let path = images.join(LIST);
    // In any case: an old list would be of other pages.
    remove(&path)?;
    let written = write_new(&path, list).with_context(|| format!("failed to write {LIST}"));
    if written.is_err() {
        remove(&path)?;
    }
    written
}

/// Removes what an earlier dump left.
///
/// # Errors
/// It is there and can't be removed.
pub fn remove(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("failed to remove the old {LIST}"))
        }
        _ => Ok(()),
    }
}

fn write_new(path: &Path, list: &PageIndexList) -> Result<(), FormatError> {
    // As CRIU's own images: it tells what root's programs read.
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    let output = BufWriter::with_capacity(1 << 16, file);
    let mut writer = Writer::new(output, list.page_size)?;
    for file in &list.files {
        writer.file(file)?;
    }
    writer.finish()?;
    Ok(())
}

/// Opens the list, if there is one: a regular file and nothing else, so that
/// opening and reading it ends.
///
/// # Errors
/// There is something else by its name.
pub fn open(images: &Path) -> anyhow::Result<Option<File>> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits())
        .open(images.join(LIST));
    let file = match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.with_context(|| format!("failed to open {LIST}"))?,
    };
    check(&file)?;
    Ok(Some(file))
}

/// Reads an open list.
///
/// # Errors
/// It is no list, damaged, or too long.
pub fn read(file: File) -> anyhow::Result<PageIndexList> {
    check(&file)?;
    read_list(BufReader::with_capacity(1 << 16, file))
        .with_context(|| format!("failed to read {LIST}"))
}

fn check(file: &File) -> anyhow::Result<()> {
    let meta = file.metadata();
    let meta = meta.with_context(|| format!("failed to stat {LIST}"))?;
    ensure!(meta.is_file(), "{LIST} is not a regular file");
    ensure!(
        meta.len() <= MAX_BYTES,
        "{LIST} has {} bytes, which is more than the {MAX_BYTES} that are read",
        meta.len()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pagelist::{FileIdentity, HotFile, Run};

    fn a_list(pages: u32) -> PageIndexList {
        PageIndexList {
            page_size: 4096,
            files: vec![HotFile {
                identity: FileIdentity {
                    path: "/data".into(),
                    device: 1,
                    inode: 2,
                    size: 1 << 30,
                    mtime_ns: 3,
                },
                runs: vec![Run {
                    index: 4,
                    pages,
                    heat: 1,
                }],
            }],
        }
    }

    #[test]
    fn a_list_comes_back_and_is_replaced() {
        let images = tempfile::tempdir().expect("a directory");
        assert!(open(images.path()).expect("no list").is_none());
        for pages in [5, 6] {
            write(images.path(), &a_list(pages)).expect("write");
            let file = open(images.path()).expect("open").expect("a list");
            assert_eq!(read(file).expect("read"), a_list(pages));
        }
    }

    #[test]
    fn a_link_is_replaced_and_never_followed() {
        let images = tempfile::tempdir().expect("a directory");
        let victim = images.path().join("victim");
        fs::write(&victim, "mine").expect("a file");
        std::os::unix::fs::symlink(&victim, images.path().join(LIST)).expect("a link");
        open(images.path()).expect_err("a link is no list");
        write(images.path(), &a_list(5)).expect("write");
        assert_eq!(fs::read(&victim).expect("read"), b"mine");
        assert!(open(images.path()).expect("open").is_some());
    }

    #[test]
    fn hostile_lists_are_refused() {
        let images = tempfile::tempdir().expect("a directory");
        let path = images.path().join(LIST);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
        open(images.path()).expect_err("a FIFO is no list");
        fs::remove_file(&path).expect("removed");
        fs::create_dir(&path).expect("a directory");
        open(images.path()).expect_err("a directory is no list");
        fs::remove_dir(&path).expect("removed");

        File::create(&path)
            .and_then(|file| file.set_len(MAX_BYTES + 1))
            .expect("a long file");
        open(images.path()).expect_err("too long");
        write(images.path(), &a_list(5)).expect("write");
        let bytes = fs::read(&path).expect("the list");
        fs::write(&path, &bytes[..bytes.len() - 1]).expect("cut");
        let file = open(images.path()).expect("open").expect("a file");
        read(file).expect_err("cut short");
    }

    #[test]
    fn what_can_not_be_written_leaves_nothing() {
        let images = tempfile::tempdir().expect("a directory");
        let mut bad = a_list(5);
        bad.files[0].identity.path = "relative".into();
        write(images.path(), &a_list(5)).expect("write");
        write(images.path(), &bad).expect_err("not a path for a list");
        assert!(open(images.path()).expect("nothing").is_none());
    }
}
