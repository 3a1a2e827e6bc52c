//! Images on their way: a tar archive in messages.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path};

use anyhow::{Context, bail};
use bytes::{Buf, Bytes};
use tokio::sync::mpsc;

use crate::protocol::Message;
use crate::protocol::message::MAX_IMAGES;

/// What does not travel: what was said about the dump, and sockets or links
/// that CRIU leaves.
const LOGS: &[&str] = &["dump.log", "stats-dump"];

/// Sends the files of a directory, and that this was all. Gives how many
/// bytes that took.
///
/// # Errors
/// They can't be read; or the connection is lost, which others explain.
pub fn send(directory: &Path, messages: mpsc::Sender<Message>) -> anyhow::Result<u64> {
    let sender = Sender { messages, bytes: 0 };
    let mut archive = tar::Builder::new(BufWriter::with_capacity(MAX_IMAGES as usize, sender));
    archive.mode(tar::HeaderMode::Deterministic);
    let mut entries = fs::read_dir(directory)
        .and_then(Iterator::collect::<io::Result<Vec<_>>>)
        .with_context(|| format!("failed to list {}", directory.display()))?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let name = entry.file_name();
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        if !is_file || LOGS.iter().any(|log| name == *log) {
            continue;
        }
        let path = entry.path();
        File::open(&path)
            .and_then(|mut file| archive.append_file(&name, &mut file))
            .with_context(|| format!("failed to send {}", path.display()))?;
    }
    let sender = archive
        .into_inner()
        .and_then(|output| output.into_inner().map_err(io::Error::from))
        .context("failed to send the images")?;
    sender
        .messages
        .blocking_send(Message::Images(Bytes::new()))
        .context("failed to send the images: the connection is lost")?;
    Ok(sender.bytes)
}

/// Makes messages of bytes, on a thread that may wait.
struct Sender {
    messages: mpsc::Sender<Message>,
    bytes: u64,
}

impl Write for Sender {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = &bytes[..bytes.len().min(MAX_IMAGES as usize)];
        if !piece.is_empty() {
            self.messages
                .blocking_send(Message::Images(Bytes::copy_from_slice(piece)))
                .map_err(|_| io::ErrorKind::BrokenPipe)?;
            self.bytes += piece.len() as u64;
        }
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes what comes as files into a directory, until an empty piece comes.
///
/// # Errors
/// The archive is none, or has anything but files with plain names; the disk
/// is full; or the other side is gone before the end.
pub fn receive(directory: &Path, pieces: mpsc::Receiver<Bytes>) -> anyhow::Result<()> {
    let pieces = Pieces {
        pieces,
        piece: Bytes::new(),
        ended: false,
    };
    let mut archive = tar::Archive::new(pieces);
    for entry in archive.entries().context("failed to read the images")? {
        let mut entry = entry.context("failed to read the images")?;
        let path = entry
            .path()
            .context("failed to read the images")?
            .into_owned();
        let mut parts = path.components();
        let is_plain = matches!(
            (parts.next(), parts.next()),
            (Some(Component::Normal(_)), None)
        );
        if !is_plain || !entry.header().entry_type().is_file() {
            bail!("the source sent {path:?} among the images, which is no file with a plain name");
        }
        let path = directory.join(path);
        let mut options = File::options();
        let file = options.write(true).create_new(true).mode(0o600).open(&path);
        file.and_then(|mut file| io::copy(&mut entry, &mut file))
            .with_context(|| format!("failed to write {}", path.display()))?;
    }
    let mut pieces = archive.into_inner();
    // What tar pads with, and the empty piece.
    io::copy(&mut pieces, &mut io::sink()).context("failed to read the images")?;
    Ok(())
}

/// The bytes of the archive as they come.
struct Pieces {
    pieces: mpsc::Receiver<Bytes>,
    piece: Bytes,
    ended: bool,
}

impl Read for Pieces {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if self.piece.is_empty() && !self.ended {
            self.piece = self
                .pieces
                .blocking_recv()
                .ok_or(io::ErrorKind::UnexpectedEof)?;
            self.ended = self.piece.is_empty();
        }
        let length = bytes.len().min(self.piece.len());
        self.piece.copy_to_slice(&mut bytes[..length]);
        Ok(length)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    /// What comes out of these pieces.
    fn received(pieces: Vec<Bytes>) -> (tempfile::TempDir, anyhow::Result<()>) {
        let directory = tempfile::tempdir().unwrap();
        let (send, receive_) = mpsc::channel(pieces.len().max(1));
        for piece in pieces {
            send.try_send(piece).unwrap();
        }
        drop(send);
        let result = receive(directory.path(), receive_);
        (directory, result)
    }

    fn sent(directory: &Path) -> (Vec<Bytes>, u64) {
        let (send_, mut queue) = mpsc::channel(1000);
        let bytes = send(directory, send_).unwrap();
        let mut pieces = Vec::new();
        while let Ok(Message::Images(piece)) = queue.try_recv() {
            pieces.push(piece);
        }
        (pieces, bytes)
    }

    #[test]
    fn images_come_as_they_went_and_logs_stay() {
        let source = tempfile::tempdir().unwrap();
        let pages = vec![7; 300_000];
        fs::write(source.path().join("pages-1.img"), &pages).unwrap();
        fs::write(source.path().join("inventory.img"), "").unwrap();
        fs::write(source.path().join("dump.log"), "said").unwrap();
        let (pieces, bytes) = sent(source.path());
        assert!(bytes > 300_000);
        assert!(
            pieces
                .iter()
                .all(|piece| piece.len() <= MAX_IMAGES as usize)
        );
        let (directory, result) = received(pieces);
        result.unwrap();
        assert_eq!(
            fs::read(directory.path().join("pages-1.img")).unwrap(),
            pages
        );
        assert_eq!(
            fs::read(directory.path().join("inventory.img")).unwrap(),
            b""
        );
        assert!(!directory.path().join("dump.log").exists());
    }

    #[test]
    fn an_archive_that_ends_too_early_is_an_error() {
        let source = tempfile::tempdir().unwrap();
        fs::write(source.path().join("a.img"), vec![1; 200_000]).unwrap();
        let (pieces, _) = sent(source.path());
        for length in 0..pieces.len() {
            let (_directory, result) = received(pieces[..length].to_vec());
            assert!(result.is_err(), "{length} of {} pieces", pieces.len());
        }
    }

    #[test]
    fn nothing_but_plain_files_is_written() {
        let add = |name: &str, kind: tar::EntryType| {
            let mut header = tar::Header::new_gnu();
            // The checked methods refuse such names.
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(kind);
            header.set_size(0);
            if kind.is_symlink() {
                header.set_link_name("/etc/passwd").unwrap();
            }
            header.set_cksum();
            let mut bytes = header.as_bytes().to_vec();
            bytes.extend([0; 1024]);
            received(vec![bytes.into(), Bytes::new()]).1
        };
        assert!(add("a", tar::EntryType::Regular).is_ok());
        for (name, kind) in [
            ("../a", tar::EntryType::Regular),
            ("/tmp/a", tar::EntryType::Regular),
            ("a/b", tar::EntryType::Regular),
            ("a", tar::EntryType::Symlink),
            ("a", tar::EntryType::Directory),
            ("a", tar::EntryType::Fifo),
        ] {
            assert!(add(name, kind).is_err(), "{name} {kind:?}");
        }
    }
}
