//! Lists as files: written atomically, read from a path.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, BufReader, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::{FormatError, Writer, read_list};
use crate::pagelist::PageIndexList;

/// Reads the list in a file; `-` is standard input.
///
/// # Errors
/// Names the file; the cause is a [`FormatError`] or an [`io::Error`].
pub fn read_file(path: &Path) -> anyhow::Result<PageIndexList> {
    if path == Path::new("-") {
        return read_list(io::stdin().lock()).context("failed to read a list from standard input");
    }
    File::open(path)
        .map_err(FormatError::from)
        .and_then(|file| read_list(BufReader::with_capacity(1 << 16, file)))
        .with_context(|| format!("failed to read list {}", path.display()))
}

/// Writes a list to a file, atomically; `-` is standard output.
///
/// # Errors
/// As for [`write_atomically`].
pub fn write_file(path: &Path, list: &PageIndexList) -> anyhow::Result<()> {
    if path != Path::new("-") {
        return write_atomically(path, list);
    }
    let write = || -> Result<(), FormatError> {
        let output = BufWriter::with_capacity(1 << 16, io::stdout().lock());
        let mut writer = Writer::new(output, list.page_size)?;
        for file in &list.files {
            writer.file(file)?;
        }
        writer.finish().map(drop)
    };
    write().context("failed to write a list to standard output")
}

/// Writes a list to a file so that there is the old one or the new one at any
/// time, also after a crash, and never a part.
///
/// The list goes to a temporary file in the same directory, to the disk, and
/// then takes the place of `path`; of what a symbolic link points to if it is
/// one. Whatever is no regular file, such as a pipe or `/dev/null`, can't be
/// replaced, and the list is written straight into it; so is `/dev/stdout`
/// when it is a pipe or a terminal.
///
/// # Errors
/// Names the file; the cause is a [`FormatError`] or an [`io::Error`]. The
/// temporary file is gone then, and `path` as it was.
pub fn write_atomically(path: &Path, list: &PageIndexList) -> anyhow::Result<()> {
    write_atomically_with(path, list.page_size, |writer| {
        list.files.iter().try_for_each(|file| writer.file(file))
    })
}

/// The same for a list with pages of so many bytes whose files `fill` writes.
///
/// # Errors
/// As for [`write_atomically`], and those of `fill`.
pub fn write_atomically_with(
    path: &Path,
    page_size: u32,
    fill: impl FnOnce(&mut Writer<&mut dyn Write>) -> Result<(), FormatError>,
) -> anyhow::Result<()> {
    write(path, page_size, fill).with_context(|| format!("failed to write list {}", path.display()))
}

fn write(
    path: &Path,
    page_size: u32,
    fill: impl FnOnce(&mut Writer<&mut dyn Write>) -> Result<(), FormatError>,
) -> Result<(), FormatError> {
    let write_list = |output: File| -> Result<File, FormatError> {
        let mut output = BufWriter::with_capacity(1 << 16, output);
        let mut writer = Writer::new(&mut output as &mut dyn Write, page_size)?;
        fill(&mut writer)?;
        writer.finish()?;
        Ok(output
            .into_inner()
            .map_err(io::IntoInnerError::into_error)?)
    };
    // Where it points to nothing yet, metadata fails and rename tells why.
    let place = match fs::metadata(path) {
        Ok(metadata) if !metadata.is_file() => {
            let file = OpenOptions::new().write(true).open(path)?;
            return write_list(file).map(drop);
        }
        Ok(_) => fs::canonicalize(path)?,
        Err(_) => path.to_owned(),
    };
    let directory = directory_of(&place);
    let temporary = tempfile::Builder::new()
        .prefix(".migrator-")
        .suffix(".pil")
        // As any file that a program writes: what the umask leaves of this.
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(&directory)?;
    let written = write_list(temporary.as_file().try_clone()?)?;
    // A full disk may show only here, and a crash after the rename must not
    // find an empty file in the place of the old list.
    written.sync_all()?;
    temporary.persist(&place).map_err(|error| error.error)?;
    sync_directory(&directory)?;
    Ok(())
}

fn directory_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Makes the rename last. Some file systems (FUSE, NFS servers) don't offer
/// it for directories and say EINVAL, as fsync(2) documents; the list itself
/// is on the disk all the same.
fn sync_directory(directory: &Path) -> io::Result<()> {
    match File::open(directory)?.sync_all() {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        result => result,
    }
}
