//! Which pages of files a process has in its page table.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use crate::PAGE_SIZE;

/// Bits of /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst).
const PRESENT: u64 = 1 << 63;
const OF_A_FILE: u64 = 1 << 61;

/// The page indexes of each file that are mapped into the process right now:
/// what it has touched, and what the kernel mapped around that. Pages of a
/// private mapping that it has written to are not the file's any more.
///
/// # Panics
/// When the process has ended, or may not be looked at.
pub fn mapped(pid: i32) -> BTreeMap<PathBuf, BTreeSet<u64>> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))
        .unwrap_or_else(|error| panic!("failed to read the mappings of {pid}: {error}"));
    let pagemap = File::open(format!("/proc/{pid}/pagemap"))
        .unwrap_or_else(|error| panic!("failed to open the page table of {pid}: {error}"));
    let mut files: BTreeMap<PathBuf, BTreeSet<u64>> = BTreeMap::new();
    for line in maps.lines() {
        // 7f00-7f10 r--p 00002000 fe:00 123   /a path
        let mut fields = line.splitn(6, ' ');
        let mut field = || fields.next().expect("a field of maps");
        let (range, _, offset, _, _) = (field(), field(), field(), field(), field());
        let path = fields.next().unwrap_or_default().trim_start();
        if !path.starts_with('/') {
            continue;
        }
        let hex = |text| u64::from_str_radix(text, 16).expect("a hexadecimal number");
        let (start, end) = range.split_once('-').expect("a range");
        let (start, end, offset) = (hex(start), hex(end), hex(offset));
        let page = PAGE_SIZE as u64;
        let mut entries = vec![0; ((end - start) / page * 8) as usize];
        pagemap
            .read_exact_at(&mut entries, start / page * 8)
            .expect("entries of the page table");
        let pages = files.entry(path.into()).or_default();
        for (index, entry) in (offset / page..).zip(entries.chunks_exact(8)) {
            let entry = u64::from_ne_bytes(entry.try_into().expect("8 bytes"));
            if entry & PRESENT != 0 && entry & OF_A_FILE != 0 {
                pages.insert(index);
            }
        }
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_program_is_mapped() {
        let own = std::env::current_exe().expect("our program");
        let files = mapped(std::process::id().cast_signed());
        assert!(!files[&own].is_empty());
    }
}
