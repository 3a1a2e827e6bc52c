//! `migrator list from-text`: a list of lines `PATH OFFSET LENGTH`.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::{LeftOut, check_output, write};
use crate::cli::FromTextArgs;
use crate::command::show::printable;
use crate::file::identity;
use crate::format::{FormatError, MAX_FILES, MAX_PATH_BYTES, MAX_RUNS};
use crate::kernel;
use crate::pagelist::runs::Joined;
use crate::pagelist::text::{self, MAX_LINE};
use crate::pagelist::{FileIdentity, Heat, HotFile, PageIndexList};

/// How many files that are left out are named.
const NAMED_LEFT_OUT: usize = 5;

/// Runs the command.
pub(super) fn run(args: &FromTextArgs) -> anyhow::Result<()> {
    check_output(&args.output)?;
    let mut named = Named::default();
    if args.text == Path::new("-") {
        named.read(io::stdin().lock(), "standard input")?;
    } else {
        let name = args.text.display().to_string();
        let file = File::open(&args.text).with_context(|| format!("failed to read {name}"))?;
        named.read(BufReader::with_capacity(1 << 16, file), &name)?;
    }
    let (list, left_out) = named.into_list(args.heat, kernel::page_size());
    write(&args.output, &list, &[], &left_out)
}

/// The bytes that are named so far.
#[derive(Debug, Default)]
struct Named {
    /// Which file a path of the text means; none of those that are left out.
    paths: HashMap<PathBuf, Result<usize, String>>,
    /// Which file has a path of this host.
    real: HashMap<PathBuf, usize>,
    files: Vec<(FileIdentity, Vec<Range<u64>>)>,
    lines: u64,
    path_bytes: u64,
    left_out: LeftOut,
}

impl Named {
    /// Reads all lines. `name` is for errors.
    fn read(&mut self, mut text: impl BufRead, name: &str) -> anyhow::Result<()> {
        let mut line = Vec::new();
        for number in 1_u64.. {
            line.clear();
            let read = (&mut text).take(MAX_LINE as u64 + 1);
            let read = { read }.read_until(b'\n', &mut line);
            if read.with_context(|| format!("failed to read {name}"))? == 0 {
                return Ok(());
            }
            if line.len() > MAX_LINE {
                bail!("line {number} of {name} is refused: it has more than {MAX_LINE} bytes");
            }
            let refused = || format!("line {number} of {name} is refused");
            if let Some(line) = text::parse(&line).with_context(refused)? {
                self.add(line).with_context(refused)?;
            }
        }
        Ok(())
    }

    fn add(&mut self, line: text::Line) -> Result<(), FormatError> {
        let file = match self.paths.get(&line.path) {
            Some(file) => file.clone(),
            None => {
                limit("files", self.paths.len() as u64 + 1, MAX_FILES)?;
                self.path_bytes += line.path.as_os_str().len() as u64;
                limit("bytes of paths", self.path_bytes, MAX_PATH_BYTES)?;
                let file = self.find(&line.path);
                if let Err(why) = &file
                    && self.left_out.values().sum::<u64>() < NAMED_LEFT_OUT as u64
                {
                    crate::say!("warning: {} is left out: {why}", printable(&line.path));
                }
                self.paths.insert(line.path, file.clone());
                file
            }
        };
        match file {
            Ok(file) => {
                self.lines += 1;
                limit("runs", self.lines, MAX_RUNS)?;
                self.files[file].1.push(line.bytes);
            }
            Err(why) => *self.left_out.entry(why).or_default() += 1,
        }
        Ok(())
    }

    /// Returns the number of the file, or why it is in no list.
    fn find(&mut self, path: &Path) -> Result<usize, String> {
        let failed = |error: io::Error| format!("failed to find it: {error}");
        let real = fs::canonicalize(path).map_err(failed)?;
        if let Some(file) = self.real.get(&real) {
            return Ok(*file);
        }
        let meta = fs::symlink_metadata(&real).map_err(failed)?;
        if !meta.is_file() {
            return Err("no regular file".to_owned());
        }
        let identity = FileIdentity {
            path: real.clone(),
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            mtime_ns: identity::mtime_ns(&meta),
        };
        if identity.check().is_err() {
            return Err("its real path has more than 4096 bytes".to_owned());
        }
        self.files.push((identity, Vec::new()));
        let number = self.files.len() - 1;
        self.real.insert(real, number);
        Ok(number)
    }

    fn into_list(self, heat: Heat, page_size: u32) -> (PageIndexList, LeftOut) {
        let files = self.files.into_iter().filter_map(|(identity, bytes)| {
            let end = identity.size.div_ceil(page_size.into());
            let mut runs = Joined::default();
            for pages in text::pages(bytes, page_size) {
                runs.push(pages.start.min(end), pages.end.min(end), heat);
            }
            let runs = runs.into_runs();
            (!runs.is_empty()).then_some(HotFile { identity, runs })
        });
        let files = files.collect();
        let mut list = PageIndexList { page_size, files };
        list.hottest_first();
        (list, self.left_out)
    }
}

fn limit(what: &'static str, count: u64, limit: u64) -> Result<(), FormatError> {
    match count > limit {
        true => Err(FormatError::TooLarge { what, limit }),
        false => Ok(()),
    }
}
