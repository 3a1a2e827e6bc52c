//! What databases read, as strace(1) sees it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::accesses::{Accesses, Ranks};
use crate::PAGE_SIZE;
use crate::random::Random;

/// Rows of the table, and of each of their owners.
const ROWS: u64 = 800_000;
const OWNED: u64 = 16;

/// Runs sqlite3 with a new database in a directory, below strace, and gives what
/// it reads of it: rows and the rows of an owner, by Zipf's law, a full scan in
/// the middle. The last quarter is what follows the move.
///
/// # Errors
/// When sqlite3 or strace are not there or fail.
pub fn sqlite(directory: &Path, queries: u64, seed: u64) -> Result<Accesses> {
    let (database, log) = (directory.join("database"), directory.join("strace"));
    let setup = format!(
        "PRAGMA journal_mode=off; PRAGMA synchronous=off;
         CREATE TABLE item(id INTEGER PRIMARY KEY, owner INTEGER, body BLOB);
         WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < {ROWS})
         INSERT INTO item SELECT i, (i * 7919) % {owners}, randomblob(180) FROM n;
         CREATE INDEX of_owner ON item(owner);",
        owners = ROWS / OWNED,
    );
    feed(Command::new("sqlite3").arg(&database), |input| {
        input.write_all(setup.as_bytes())
    })?;
    let mut strace = Command::new("strace");
    // With a filter in the kernel (which needs -f) only reads stop the process.
    strace
        .args(["-f", "--seccomp-bpf", "-ttt", "-s", "0"])
        .args(["-e", "trace=pread64", "-e", "signal=none"])
        .arg("-o")
        .arg(&log)
        .arg("sqlite3")
        .arg(&database);
    feed(&mut strace, |input| {
        let mut random = Random::new(seed << 32);
        let rows = Ranks::new(ROWS as u32, 1.0);
        let owners = Ranks::new((ROWS / OWNED) as u32, 1.0);
        for query in 0..queries {
            if query == queries / 2 {
                writeln!(input, "SELECT sum(length(body)) FROM item;")?;
            }
            // Which rows are hot has nothing to do with where they are.
            let row = u64::from(rows.draw(&mut random)) * 611_953 % ROWS;
            let owner = u64::from(owners.draw(&mut random)) * 7919 % (ROWS / OWNED);
            match query % 8 {
                0 => writeln!(
                    input,
                    "SELECT sum(length(body)) FROM item WHERE owner = {owner};"
                ),
                _ => writeln!(input, "SELECT length(body) FROM item WHERE id = {row};"),
            }?;
        }
        Ok(())
    })?;
    let log = File::open(&log).context("failed to read what strace wrote")?;
    let accesses = parse(BufReader::new(log))?;
    ensure!(
        accesses.after.len() > 1000,
        "sqlite3 read almost nothing below strace"
    );
    Ok(accesses)
}

/// Runs a program to its end with what is written to its standard input.
fn feed(
    command: &mut Command,
    write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .with_context(|| format!("failed to start {name}"))?;
    if let Some(input) = child.stdin.take() {
        let mut input = std::io::BufWriter::new(input);
        write(&mut input)
            .and_then(|()| input.flush())
            .with_context(|| format!("failed to tell {name} what to do"))?;
    }
    let status = child
        .wait()
        .with_context(|| format!("failed to wait for {name}"))?;
    ensure!(status.success(), "failed to run {name}: {status}");
    Ok(())
}

/// The pages of `pread64(3, ""..., 4096, 8192) = 4096` after a time; files are
/// told apart by their descriptors, and laid one behind the other.
fn parse(log: impl BufRead) -> Result<Accesses> {
    let mut reads: Vec<(f64, u32, u32)> = Vec::new();
    for line in log.lines() {
        let line = line.context("failed to read what strace wrote")?;
        if let Some((at, file, pages)) = parse_line(&line) {
            reads.extend(pages.map(|page| (at, file, page)));
        }
    }
    let mut sizes: BTreeMap<u32, u32> = BTreeMap::new();
    for (_, file, page) in &reads {
        let size = sizes.entry(*file).or_default();
        *size = (*size).max(page + 1);
    }
    let mut pages = 0;
    for size in sizes.values_mut() {
        pages += std::mem::replace(size, pages);
    }
    let place = |(_, file, page): &(f64, u32, u32)| sizes[file] + page;
    let (before, after) = reads.split_at(reads.len() / 4 * 3);
    let began = reads.first().map_or(0.0, |(at, ..)| *at);
    let mut tenths = Vec::new();
    for (at, ..) in before {
        let tenth = ((at - began) * 10.0) as usize;
        tenths.resize(tenths.len().max(tenth + 1), 0);
        tenths[tenth] += 1;
    }
    Ok(Accesses {
        absent: 0..0,
        pages,
        before: before.iter().map(place).collect(),
        tenths,
        after: after.iter().map(place).collect(),
    })
}

fn parse_line(line: &str) -> Option<(f64, u32, std::ops::Range<u32>)> {
    let (at, rest) = line.split_once(" pread64(")?;
    let (file, rest) = rest.split_once(',')?;
    let (arguments, result) = rest.rsplit_once(") = ")?;
    let offset: u64 = arguments.rsplit_once(", ")?.1.parse().ok()?;
    let bytes: u64 = result.split_whitespace().next()?.parse().ok()?;
    let page = |at: u64| u32::try_from(at / PAGE_SIZE as u64).ok();
    let last = offset.checked_add(bytes.checked_sub(1)?)?;
    Some((
        at.rsplit_once(' ').map_or(at, |(_, at)| at).parse().ok()?,
        file.parse().ok()?,
        page(offset)?..page(last)?.checked_add(1)?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_become_pages_of_files_behind_each_other() {
        let log = "\
1700000000.000000 pread64(3, \"\"..., 4096, 8192) = 4096
1700000000.050000 pread64(3, \"\"..., 16, 24) = 16
812   1700000000.250000 pread64(7, \"\"..., 8192, 4096) = 8192
1700000000.260000 pread64(7, \"\"..., 8192, 4096) = 0
1700000000.270000 pread64(7, 0x55, 8192, 4096) = -1 EIO (Input/output error)
1700000000.300000 +++ exited with 0 +++
";
        let accesses = parse(log.as_bytes()).expect("a log");
        assert_eq!(accesses.pages, 3 + 3);
        assert_eq!(accesses.before, [2, 0, 4]);
        assert_eq!(accesses.after, [5]);
        assert_eq!(accesses.tenths, [2, 0, 1]);
    }
}
