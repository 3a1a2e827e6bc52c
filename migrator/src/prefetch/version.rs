//! Decides whether the file that is found is the one that a list means (pure).
//!
//! A file that was written to is still the same file, in a later state. Another
//! file in its place shows only by its inode, where inodes can be compared.

use std::fmt;
use std::time::{Duration, UNIX_EPOCH};

use nix::sys::stat::major;
use serde::{Deserialize, Serialize};

use super::report::Reason;
use crate::pagelist::FileIdentity;

/// Which of the files found at the paths of a list are read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Accepts {
    /// Those that have the size and mtime of the list.
    Unchanged,
    /// Those that were changed since as well, but no other file in their place.
    #[default]
    SameFile,
    /// All.
    AnyVersion,
}

/// What an inode number says on a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Inodes {
    /// It names a file of the device, on this host.
    OfDevice,
    /// It names a file of the server, on every client.
    OfServer,
    /// Nothing: the client may make it up, anew each time.
    Unstable,
}

/// What was found at the path of a listed file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found {
    pub(super) device: u64,
    pub(super) inode: u64,
    pub(super) size: u64,
    pub(super) mtime_ns: i64,
    pub(super) inodes: Inodes,
    /// It was found at another path than the list has.
    pub(super) is_mapped: bool,
    /// The list was made on another host.
    pub(super) is_foreign: bool,
}

/// How the file found differs from the one of the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Change {
    /// When the list was made.
    pub before: Version,
    /// Now.
    pub after: Version,
}

/// One state of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Version {
    /// `st_size` in bytes.
    pub size: u64,
    /// `st_mtime` in nanoseconds since the epoch.
    #[serde(rename = "mtime")]
    pub mtime_ns: i64,
    /// `st_ino`, only where another file was put in the place of the listed one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inode: Option<u64>,
}

impl Found {
    /// Compares with the file of the list. Returns how it changed, if it did and
    /// may be read all the same.
    ///
    /// # Errors
    /// Why it may not be read, and how it differs.
    pub(super) fn judge(
        &self,
        listed: &FileIdentity,
        accepts: Accepts,
    ) -> Result<Option<Change>, (Reason, Change)> {
        let is_exact = (listed.size, listed.mtime_ns) == (self.size, self.mtime_ns);
        let is_alike = listed.size == self.size && is_same_time(listed.mtime_ns, self.mtime_ns);
        // A copy that kept them is as good as the original, whatever its inode.
        if is_exact || is_alike && accepts != Accepts::Unchanged {
            return Ok(None);
        }
        let is_replaced = listed.inode != self.inode && self.has_comparable_inode(listed);
        let version = |size, mtime_ns, inode| Version {
            size,
            mtime_ns,
            inode: is_replaced.then_some(inode),
        };
        let change = Change {
            before: version(listed.size, listed.mtime_ns, listed.inode),
            after: version(self.size, self.mtime_ns, self.inode),
        };
        match accepts {
            Accepts::Unchanged => Err((Reason::Changed, change)),
            Accepts::SameFile if is_replaced => Err((Reason::Replaced, change)),
            Accepts::SameFile | Accepts::AnyVersion => Ok(Some(change)),
        }
    }

    /// Returns whether another inode number means another file.
    fn has_comparable_inode(&self, listed: &FileIdentity) -> bool {
        let is_known = listed.device != 0 && listed.inode != 0;
        is_known
            && !self.is_mapped
            && match self.inodes {
                // Hosts give their disks the same numbers.
                Inodes::OfDevice => !self.is_foreign && listed.device == self.device,
                // Only file systems without a block device have major number 0. One
                // with a device was local, so its inode is not the server's.
                Inodes::OfServer => major(listed.device) == 0,
                Inodes::Unstable => false,
            }
    }
}

/// Returns whether two mtimes are equal as far as both are known: archives and file
/// systems may keep whole seconds only.
fn is_same_time(one: i64, other: i64) -> bool {
    const SECOND: i64 = 1_000_000_000;
    let is_whole = |ns: i64| ns.rem_euclid(SECOND) == 0;
    one == other
        || (is_whole(one) || is_whole(other)) && one.div_euclid(SECOND) == other.div_euclid(SECOND)
}

/// What differs, such as `size 4096 → 5, mtime … → …`.
impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { before, after } = self;
        let mut separator = "";
        if before.size != after.size {
            write!(f, "size {} → {}", before.size, after.size)?;
            separator = ", ";
        }
        if before.mtime_ns != after.mtime_ns {
            let (before, after) = (time(before.mtime_ns), time(after.mtime_ns));
            write!(f, "{separator}mtime {before} → {after}")?;
            separator = ", ";
        }
        if let (Some(before), Some(after)) = (before.inode, after.inode) {
            write!(f, "{separator}inode {before} → {after}")?;
        }
        Ok(())
    }
}

fn time(ns: i64) -> String {
    match u64::try_from(ns) {
        Ok(ns) => {
            humantime::format_rfc3339_nanos(UNIX_EPOCH + Duration::from_nanos(ns)).to_string()
        }
        // humantime knows no time before 1970.
        Err(_) => format!("{ns} ns"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DISK: u64 = 0x801;
    const OTHER_DISK: u64 = 0x802;
    /// What NFS mounts have: no block device.
    const NFS: u64 = 45;
    const SECOND: i64 = 1_700_000_000_000_000_000;

    fn listed(device: u64, inode: u64) -> FileIdentity {
        FileIdentity {
            path: "/data/file".into(),
            device,
            inode,
            size: 4096,
            mtime_ns: SECOND + 7,
        }
    }

    /// A file of which a byte was appended.
    fn appended(device: u64, inode: u64, inodes: Inodes) -> Found {
        Found {
            device,
            inode,
            size: 4097,
            mtime_ns: SECOND + 8,
            inodes,
            is_mapped: false,
            is_foreign: false,
        }
    }

    /// The reason, or whether it has changed.
    fn verdict(listed: &FileIdentity, found: Found, accepts: Accepts) -> Result<bool, Reason> {
        let judged = found.judge(listed, accepts);
        judged
            .map(|change| change.is_some())
            .map_err(|(reason, _)| reason)
    }

    #[test]
    fn another_inode_counts_only_where_inodes_can_be_compared() {
        use Inodes::{OfDevice, OfServer, Unstable};
        let mapped = |found| Found {
            is_mapped: true,
            ..found
        };
        let foreign = |found| Found {
            is_foreign: true,
            ..found
        };
        let on_disk = appended(DISK, 2, OfDevice);
        let on_nfs = appended(NFS + 1, 2, OfServer);
        for (what, listed, found, is_replaced) in [
            ("the same inode", listed(DISK, 2), on_disk, false),
            ("another on the disk", listed(DISK, 1), on_disk, true),
            ("on another disk", listed(OTHER_DISK, 1), on_disk, false),
            ("mapped", listed(DISK, 1), mapped(on_disk), false),
            (
                "of another host's disk",
                listed(DISK, 1),
                foreign(on_disk),
                false,
            ),
            ("the server's same", listed(NFS, 2), on_nfs, false),
            ("the server's other", listed(NFS, 1), on_nfs, true),
            ("from another host", listed(NFS, 1), foreign(on_nfs), true),
            ("mapped on a server", listed(NFS, 1), mapped(on_nfs), false),
            ("a disk became a server", listed(DISK, 1), on_nfs, false),
            ("not known", listed(0, 0), on_disk, false),
            ("no device", listed(0, 1), appended(0, 2, OfServer), false),
            ("no inode", listed(DISK, 0), on_disk, false),
            ("made up", listed(NFS, 1), appended(NFS, 2, Unstable), false),
            ("hostile", listed(u64::MAX, u64::MAX), on_disk, false),
            ("a hostile inode", listed(DISK, u64::MAX), on_disk, true),
        ] {
            let expected = match is_replaced {
                true => Err(Reason::Replaced),
                false => Ok(true),
            };
            assert_eq!(
                verdict(&listed, found, Accepts::SameFile),
                expected,
                "{what}"
            );
            assert_eq!(
                verdict(&listed, found, Accepts::AnyVersion),
                Ok(true),
                "{what}"
            );
            let strict = verdict(&listed, found, Accepts::Unchanged);
            assert_eq!(strict, Err(Reason::Changed), "{what}");
        }
    }

    #[test]
    fn whole_seconds_are_no_change() {
        let at = |mtime_ns| FileIdentity {
            mtime_ns,
            ..listed(DISK, 1)
        };
        // A copy has another inode.
        let copy = |size, mtime_ns| Found {
            size,
            mtime_ns,
            ..appended(DISK, 2, Inodes::OfDevice)
        };
        let (replaced, changed) = (Err(Reason::Replaced), Err(Reason::Changed));
        for (before, after, size, expected, strict) in [
            (SECOND, SECOND, 4096, Ok(false), Ok(false)),
            (SECOND + 7, SECOND + 7, 4096, Ok(false), Ok(false)),
            (SECOND + 7, SECOND, 4096, Ok(false), changed),
            (SECOND, SECOND + 7, 4096, Ok(false), changed),
            (SECOND + 7, SECOND, 4097, replaced, changed),
            (SECOND + 7, SECOND + 8, 4096, replaced, changed),
            (SECOND - 1, SECOND, 4096, replaced, changed),
            // Before 1970 seconds begin at the lower end, too.
            (-1, -1_000_000_000, 4096, Ok(false), changed),
            (-1, 0, 4096, replaced, changed),
            (i64::MIN, i64::MAX, 4096, replaced, changed),
        ] {
            let case = format!("{before} → {after}, {size} bytes");
            let found = copy(size, after);
            let (file, any) = (at(before), expected.or(Ok(true)));
            assert_eq!(verdict(&file, found, Accepts::SameFile), expected, "{case}");
            assert_eq!(verdict(&file, found, Accepts::AnyVersion), any, "{case}");
            assert_eq!(verdict(&file, found, Accepts::Unchanged), strict, "{case}");
        }
    }

    #[test]
    fn a_change_says_what_differs() {
        let file = listed(DISK, 1);
        let found = appended(DISK, 2, Inodes::OfDevice);
        let (_, change) = found.judge(&file, Accepts::SameFile).expect_err("replaced");
        assert_eq!(
            change.to_string(),
            "size 4096 → 4097, mtime 2023-11-14T22:13:20.000000007Z → \
             2023-11-14T22:13:20.000000008Z, inode 1 → 2"
        );
        let rewritten = Found {
            inode: 1,
            size: 4096,
            mtime_ns: -1,
            ..found
        };
        let change = rewritten.judge(&file, Accepts::SameFile).expect("the same");
        assert_eq!(
            change.expect("a change").to_string(),
            "mtime 2023-11-14T22:13:20.000000007Z → -1 ns"
        );
    }

    proptest! {
        #[test]
        fn each_rule_reads_what_a_stricter_one_reads(
            listed in (0_u64..3, 0_u64..3, 0_u64..3, -2_i64..3),
            found in (0_u64..3, 0_u64..3, 0_u64..3, -2_i64..3),
            inodes in prop::sample::select(&[
                Inodes::OfDevice, Inodes::OfServer, Inodes::Unstable
            ][..]),
            (is_mapped, is_foreign) in any::<(bool, bool)>(),
        ) {
            let half_seconds = |number: i64| number * 500_000_000;
            let file = FileIdentity {
                path: "/f".into(),
                device: listed.0,
                inode: listed.1,
                size: listed.2,
                mtime_ns: half_seconds(listed.3),
            };
            let found = Found {
                device: found.0,
                inode: found.1,
                size: found.2,
                mtime_ns: half_seconds(found.3),
                inodes,
                is_mapped,
                is_foreign,
            };
            let strict = found.judge(&file, Accepts::Unchanged);
            let same = found.judge(&file, Accepts::SameFile);
            let any = found.judge(&file, Accepts::AnyVersion);
            prop_assert!(any.is_ok());
            if strict.is_ok() {
                prop_assert_eq!((&strict, &same), (&Ok(None), &Ok(None)));
            }
            match same {
                Ok(change) => prop_assert_eq!(any, Ok(change)),
                // Only an inode that says so tells of another file.
                Err((reason, change)) => {
                    prop_assert_eq!(reason, Reason::Replaced);
                    prop_assert!(change.before.inode.is_some());
                    prop_assert!(change.before.inode != change.after.inode);
                    prop_assert!(!is_mapped && file.inode != 0);
                }
            }
        }
    }
}
