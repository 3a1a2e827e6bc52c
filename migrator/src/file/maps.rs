//! `/proc/PID/maps`: which part of which file is mapped where.

use std::ffi::OsStr;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::Device;

/// A mapping of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// Addresses.
    pub addresses: Range<u64>,
    /// Where in the file it begins, in bytes.
    pub offset: u64,
    /// `s_dev` of the file system.
    pub device: Device,
    /// Inode number.
    pub inode: u64,
    /// As the process' mount namespace has it, with ` (deleted)` behind it
    /// where that is so.
    pub path: PathBuf,
}

impl Mapping {
    /// Its name in `/proc/PID/map_files`.
    pub fn name(&self) -> String {
        format!("{:x}-{:x}", self.addresses.start, self.addresses.end)
    }
}

/// The mappings of files, memory files included.
pub fn parse(maps: &[u8]) -> impl Iterator<Item = Mapping> + '_ {
    maps.split(|&byte| byte == b'\n')
        .filter_map(mapping)
        .filter(|mapping| mapping.inode != 0)
}

/// `560a18cb4000-560a18cb6000 r--p 00000000 fe:00 247282    /usr/bin/head`
fn mapping(line: &[u8]) -> Option<Mapping> {
    let mut fields = line.splitn(6, |&byte| byte == b' ');
    let mut text = || std::str::from_utf8(fields.next()?).ok();
    let hexadecimal = |text| u64::from_str_radix(text, 16).ok();
    let (start, end) = text()?.split_once('-')?;
    let _permissions = text()?;
    Some(Mapping {
        addresses: hexadecimal(start)?..hexadecimal(end)?,
        offset: hexadecimal(text()?)?,
        device: Device::parse(text()?, 16)?,
        inode: text()?.parse().ok()?,
        path: OsStr::from_bytes(fields.next().unwrap_or_default().trim_ascii_start()).into(),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn files_are_parsed_and_memory_is_not() {
        let maps = b"\
55d0c0001000-55d0c0003000 r-xp 00001000 fe:00 247282                     /usr/bin/a b
55d0c1000000-55d0c1021000 rw-p 00000000 00:00 0                          [heap]
7f0000003000-7f0000004000 r--p 00000000 00:00 0
";
        let found: Vec<Mapping> = parse(maps).collect();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].addresses, 0x55d0_c000_1000..0x55d0_c000_3000);
        assert_eq!(found[0].offset, 0x1000);
        assert_eq!(found[0].inode, 247_282);
        assert_eq!(found[0].path, PathBuf::from("/usr/bin/a b"));
        assert_eq!(found[0].name(), "55d0c0001000-55d0c0003000");
    }
}
