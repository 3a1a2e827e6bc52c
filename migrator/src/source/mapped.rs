//! Pages that a process has mapped without an event.
//!
//! Touching a page that stands in the page table causes no event, so the hooks
//! never see a database that lives in a mapping and was warm before. Neither
//! do they see that a folio as large as a page table (2 MiB) is mapped at once
//! (`filemap_map_pmd`), nor that since 6.18 a smaller one is mapped as a whole,
//! too: the hooks name the page, or the 16 around it. The page table itself
//! tells, through `/proc/PID/pagemap`
//! (Documentation/admin-guide/mm/pagemap.rst). It holds what fault-around
//! mapped beside what was touched, as the fault hooks do.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::file::maps::{self, Mapping};

/// The page is in memory, and the process can use it without a fault.
const PRESENT: u64 = 1 << 63;
/// It is a page of a file (or of shared memory), not a private copy.
const OF_FILE: u64 = 1 << 61;

/// Entries that are read at once: 512 KiB.
const ENTRIES: usize = 1 << 16;

/// Gives the page indexes that a process has mapped, mapping by mapping.
/// `process` is a directory such as `/proc/7`.
///
/// # Errors
/// The process is gone, or its page table may not be seen.
pub fn each(
    process: &Path,
    page_size: u32,
    mut each: impl FnMut(&Mapping, Range<u64>),
) -> io::Result<()> {
    let maps = fs::read(process.join("maps"))?;
    let pagemap = File::open(process.join("pagemap"))?;
    let page_size = u64::from(page_size);
    let mut buffer = vec![0; 8 * ENTRIES];
    for mapping in maps::parse(&maps) {
        let mut at = mapping.addresses.start;
        while at < mapping.addresses.end {
            let left = (mapping.addresses.end - at) / page_size;
            let entries = &mut buffer[..8 * ENTRIES.min(left as usize)];
            // A mapping that is gone by now reads as empty, or not at all.
            let read = pagemap.read_at(entries, at / page_size * 8)?;
            if read < 8 {
                break;
            }
            let first = (mapping.offset + (at - mapping.addresses.start)) / page_size;
            for pages in present(&entries[..read], first) {
                each(&mapping, pages);
            }
            at += read as u64 / 8 * page_size;
        }
    }
    Ok(())
}

/// Whether a process maps folios that are as large as a page table.
///
/// # Errors
/// The process is gone, or its page table may not be seen. Kernels before 4.14
/// have no `smaps_rollup`.
pub fn has_huge_folios(process: &Path) -> io::Result<bool> {
    let rollup = fs::read_to_string(process.join("smaps_rollup"))?;
    // FilePmdMapped:     24576 kB
    let size = rollup
        .lines()
        .find_map(|line| line.strip_prefix("FilePmdMapped:"));
    Ok(size.is_some_and(|size| size.trim() != "0 kB"))
}

/// How many pages of files, and of shared memory, a process has mapped; the
/// kernel keeps count (`shared` of proc_pid_statm(5)). Where the count has not
/// changed, nothing was mapped. Before 6.16 it is not exact.
///
/// # Errors
/// The process is gone.
pub fn count(process: &Path) -> io::Result<u64> {
    let statm = fs::read_to_string(process.join("statm"))?;
    // size resident shared text lib data dt
    let shared = statm.split_whitespace().nth(2);
    shared
        .and_then(|pages| pages.parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "statm has no third number"))
}

/// The runs of pages that are present, where the first entry is for `first`.
fn present(entries: &[u8], first: u64) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    let (entries, _) = entries.as_chunks();
    for (index, entry) in (first..).zip(entries) {
        if u64::from_ne_bytes(*entry) & (PRESENT | OF_FILE) == PRESENT | OF_FILE {
            match runs.last_mut() {
                Some(run) if run.end == index => run.end += 1,
                _ => runs.push(index..index + 1),
            }
        }
    }
    runs
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn huge_folios_are_those_mapped_by_a_pmd() {
        let process = tempfile::tempdir().unwrap();
        for (size, huge) in [("       0 kB", false), ("   24576 kB", true)] {
            let rollup = format!("0-1 ---p 0 00:00 0 [rollup]\nRss: 9 kB\nFilePmdMapped: {size}\n");
            fs::write(process.path().join("smaps_rollup"), rollup).unwrap();
            assert_eq!(has_huge_folios(process.path()).unwrap(), huge);
        }
    }

    #[test]
    fn the_pages_of_files_are_counted() {
        let process = tempfile::tempdir().unwrap();
        for (statm, pages) in [("1408 392 311 13 0 115 0\n", Some(311)), ("1 2", None)] {
            fs::write(process.path().join("statm"), statm).unwrap();
            assert_eq!(count(process.path()).ok(), pages);
        }
    }

    #[test]
    fn private_copies_and_absent_pages_are_no_pages_of_the_file() {
        let entries = [
            PRESENT | OF_FILE,
            PRESENT | OF_FILE,
            PRESENT,
            0,
            OF_FILE,
            PRESENT | OF_FILE,
        ];
        let bytes: Vec<u8> = entries
            .iter()
            .flat_map(|entry| entry.to_ne_bytes())
            .collect();
        assert_eq!(present(&bytes, 10), [10..12, 15..16]);
    }
}
