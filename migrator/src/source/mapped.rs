//! Pages that a process has mapped already when it begins to be observed.
//!
//! Touching a page that stands in the page table causes no event, so the hooks
//! never see a database that lives in a mapping and was warm before. The page
//! table itself tells, through `/proc/PID/pagemap`
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
mod tests {
    use super::*;

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
