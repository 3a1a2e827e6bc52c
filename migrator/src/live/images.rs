//! Images on their way: pieces of files, each with the file's name.
//!
//! The memory of the tree, `pages-*.img`, is by far the most of them and only
//! grows: it is sent while CRIU still writes it. The rest follows when the dump
//! is complete.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;

use crate::protocol::Message;
use crate::protocol::message::MAX_IMAGES;

/// How often the files that grow are looked at.
const LOOK: Duration = Duration::from_millis(5);

/// A file's name (NAME_MAX of Linux) and its length.
const MAX_HEAD: usize = 256;

/// Sends the files of a directory, from now on until `is_complete` says that
/// none of them grows any more, and that this was all. Gives how many bytes
/// that took.
///
/// # Errors
/// They can't be read; the dump failed; or the connection is lost, which
/// others explain.
pub fn send(
    directory: &Path,
    messages: &mpsc::Sender<Message>,
    is_complete: impl Fn() -> anyhow::Result<bool>,
) -> anyhow::Result<u64> {
    let mut sent = BTreeMap::new();
    loop {
        // Asked first: what is written before the answer is there to be read.
        let all = is_complete()?;
        let entries = fs::read_dir(directory)
            .and_then(Iterator::collect::<io::Result<Vec<_>>>)
            .with_context(|| format!("failed to list {}", directory.display()))?;
        for entry in entries {
            let name = entry.file_name();
            let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
            if is_file && (all || name.as_bytes().starts_with(b"pages-")) {
                send_news(&entry.path(), &name, &mut sent, messages)
                    .with_context(|| format!("failed to send {}", entry.path().display()))?;
            }
        }
        if all {
            say(messages, Bytes::new())?;
            return Ok(sent.values().sum());
        }
        thread::sleep(LOOK);
    }
}

/// Sends what has come to a file since the last time.
fn send_news(
    path: &Path,
    name: &OsStr,
    sent: &mut BTreeMap<OsString, u64>,
    messages: &mpsc::Sender<Message>,
) -> anyhow::Result<()> {
    let mut file = File::open(path)?;
    // An empty file is one, too.
    let mut is_new = !sent.contains_key(name);
    let offset = sent.entry(name.to_owned()).or_default();
    file.seek(SeekFrom::Start(*offset))?;
    let head = name.as_bytes();
    let room = MAX_IMAGES as usize - MAX_HEAD;
    loop {
        let mut piece = BytesMut::zeroed(1 + head.len() + room);
        // A name has at most 255 bytes.
        piece[0] = head.len() as u8;
        piece[1..=head.len()].copy_from_slice(head);
        let length = read_full(&mut file, &mut piece[1 + head.len()..])?;
        if length == 0 && !is_new {
            return Ok(());
        }
        is_new = false;
        piece.truncate(1 + head.len() + length);
        *offset += length as u64;
        say(messages, piece.freeze())?;
    }
}

fn read_full(file: &mut File, bytes: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < bytes.len() {
        match file.read(&mut bytes[length..]) {
            Ok(0) => break,
            Ok(more) => length += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

fn say(messages: &mpsc::Sender<Message>, piece: Bytes) -> anyhow::Result<()> {
    messages
        .blocking_send(Message::Images(piece))
        .context("the connection is lost")
}

/// Writes what comes into the files of a directory, until an empty piece comes.
/// `make_room` is called with the number of bytes before they are written.
///
/// # Errors
/// A piece is none, or is of a file whose name is not a plain one; the disk is
/// full; or the other side is gone before the end.
pub fn receive(
    directory: &Path,
    mut pieces: mpsc::Receiver<Bytes>,
    mut make_room: impl FnMut(u64) -> io::Result<()>,
) -> anyhow::Result<()> {
    let mut open: Option<(Bytes, File)> = None;
    loop {
        let Some(mut piece) = pieces.blocking_recv() else {
            bail!("the images end too early");
        };
        if piece.is_empty() {
            return Ok(());
        }
        let length = usize::from(piece.split_to(1)[0]);
        if piece.len() < length {
            bail!("the source sent a piece of an image without a name");
        }
        let name = piece.split_to(length);
        let is_plain = !matches!(&name[..], b"" | b"." | b"..") && !name.contains(&b'/');
        if !is_plain || name.contains(&0) {
            bail!("the source sent an image whose name is {name:?}");
        }
        let path = directory.join(OsStr::from_bytes(&name));
        let write = || {
            make_room(piece.len() as u64)?;
            let file = match &mut open {
                Some((current, file)) if *current == name => file,
                other => {
                    let mut options = File::options();
                    let file = options.append(true).create(true).mode(0o600).open(&path)?;
                    &mut other.insert((name, file)).1
                }
            };
            file.write_all(&piece)
        };
        write().with_context(|| format!("failed to write {}", path.display()))?;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// What comes out of these pieces.
    fn received(pieces: Vec<Bytes>) -> (tempfile::TempDir, anyhow::Result<()>) {
        let directory = tempfile::tempdir().unwrap();
        let (send, queue) = mpsc::channel(pieces.len().max(1));
        for piece in pieces {
            send.try_send(piece).unwrap();
        }
        drop(send);
        let result = receive(directory.path(), queue, |_| Ok(()));
        (directory, result)
    }

    fn sent(directory: &Path, is_complete: impl Fn() -> anyhow::Result<bool>) -> (Vec<Bytes>, u64) {
        let (messages, mut queue) = mpsc::channel(1000);
        let bytes = send(directory, &messages, is_complete).unwrap();
        let mut pieces = Vec::new();
        while let Ok(Message::Images(piece)) = queue.try_recv() {
            assert!(piece.len() <= MAX_IMAGES as usize);
            pieces.push(piece);
        }
        (pieces, bytes)
    }

    fn image(name: &str, content: &[u8]) -> Bytes {
        [&[name.len() as u8], name.as_bytes(), content]
            .concat()
            .into()
    }

    #[test]
    fn images_come_as_they_went_although_they_grew() {
        let source = tempfile::tempdir().unwrap();
        let pages = source.path().join("pages-1.img");
        fs::write(&pages, vec![7; 150_000]).unwrap();
        fs::write(source.path().join("half.img"), "ha").unwrap();
        let looks = Cell::new(0);
        let (pieces, bytes) = sent(source.path(), || {
            // Between the looks CRIU writes on.
            looks.set(looks.get() + 1);
            let mut file = File::options().append(true).open(&pages)?;
            file.write_all(&[looks.get(); 1000])?;
            fs::write(source.path().join("half.img"), "half")?;
            fs::write(source.path().join("empty.img"), "")?;
            Ok(looks.get() == 3)
        });
        let (directory, result) = received(pieces);
        result.unwrap();
        let here = |name: &str| fs::read(directory.path().join(name)).unwrap();
        assert_eq!(here("pages-1.img"), fs::read(&pages).unwrap());
        assert_eq!(here("half.img"), b"half");
        assert_eq!(here("empty.img"), b"");
        assert_eq!(bytes, 153_004);
    }

    #[test]
    fn images_that_end_too_early_are_an_error() {
        let source = tempfile::tempdir().unwrap();
        fs::write(source.path().join("a.img"), vec![1; 200_000]).unwrap();
        let (pieces, _) = sent(source.path(), || Ok(true));
        for length in 0..pieces.len() {
            let (_directory, result) = received(pieces[..length].to_vec());
            assert!(result.is_err(), "{length} of {} pieces", pieces.len());
        }
    }

    #[test]
    fn nothing_but_files_with_plain_names_is_written() {
        for name in ["../a", "/tmp/a", "a/b", "..", ".", "", "a\0b"] {
            let (directory, result) = received(vec![image(name, b"x"), Bytes::new()]);
            assert!(result.is_err(), "{name:?}");
            assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        }
        let cut = Bytes::from_static(b"\x09short");
        assert!(received(vec![cut, Bytes::new()]).1.is_err());
        assert!(received(vec![image("a", b""), Bytes::new()]).1.is_ok());
    }
}
