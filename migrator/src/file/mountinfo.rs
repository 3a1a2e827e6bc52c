//! Mount tables, as `/proc/PID/mountinfo` gives them (proc_pid_mountinfo(5)).

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::Device;

/// The mounts a process sees, in the order in which the kernel lists them:
/// of two mounts at one place, the later one lies on top.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MountTable {
    mounts: Vec<Mount>,
}

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Unique among the mounts that exist at one time, in all namespaces.
    pub id: i32,
    /// `s_dev` of the file system. It is not what stat(2) calls `st_dev` on a
    /// file system that gives each subvolume a device of its own (btrfs).
    pub device: Device,
    /// Which directory (or file) of the file system is mounted; `/` is all of it.
    pub root: PathBuf,
    /// Where it is mounted, seen from the root directory of the process.
    pub mount_point: PathBuf,
    /// Such as `ext4`.
    pub fs_type: String,
    /// Options of the file system, unescaped.
    pub options: Vec<OsString>,
}

impl MountTable {
    /// Reads the mounts that the process sees. `process` is a directory such
    /// as `/proc/self`.
    ///
    /// # Errors
    /// The process is gone, or may not be looked at.
    pub fn read(process: &Path) -> io::Result<Self> {
        Ok(Self::parse(&std::fs::read(process.join("mountinfo"))?))
    }

    /// Parses the text of a mountinfo file. A line that does not look like
    /// the documented format is left out, as the man page asks for.
    pub fn parse(text: &[u8]) -> Self {
        Self {
            mounts: text
                .split(|&byte| byte == b'\n')
                .filter_map(Mount::parse)
                .collect(),
        }
    }

    /// The same mounts, with places counted from above the root directory
    /// of the process.
    pub fn below(mut self, root: &Path) -> Self {
        for mount in &mut self.mounts {
            let place = mount.mount_point.strip_prefix("/");
            mount.mount_point = join(root, place.unwrap_or(&mount.mount_point));
        }
        self
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Mount> {
        self.mounts.iter()
    }

    /// The mount with this id.
    pub fn by_id(&self, id: i32) -> Option<&Mount> {
        self.mounts.iter().find(|mount| mount.id == id)
    }

    /// The mounts of a file system, those that show the most of it first.
    pub fn of_device(&self, device: Device) -> Vec<&Mount> {
        let mut mounts: Vec<_> = self.iter().filter(|mount| mount.device == device).collect();
        mounts.sort_by_key(|mount| mount.root.components().count());
        mounts
    }

    /// The mount that a path of this table's process leads to.
    pub fn covering(&self, path: &Path) -> Option<&Mount> {
        // max_by_key gives the last of several maxima: the topmost mount.
        self.iter()
            .filter(|mount| path.starts_with(&mount.mount_point))
            .max_by_key(|mount| mount.mount_point.components().count())
    }

    /// Where this table's process may find `path`, counted from the root of
    /// the file system `device`; most likely place first. A place may be
    /// hidden below another mount, so that the caller has to look.
    pub fn places(&self, device: Device, path: &Path) -> Vec<PathBuf> {
        self.of_device(device)
            .into_iter()
            .filter_map(|mount| {
                let below = path.strip_prefix(&mount.root).ok()?;
                Some(join(&mount.mount_point, below))
            })
            .collect()
    }
}

impl Mount {
    /// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`
    fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.split(|&byte| byte == b' ');
        let id = text(fields.next()?)?.parse().ok()?;
        let _parent = fields.next()?;
        let device = Device::parse(text(fields.next()?)?, 10)?;
        let root = path(fields.next()?);
        let mount_point = path(fields.next()?);
        let _mount_options = fields.next()?;
        // Then come optional fields up to a lone hyphen.
        fields.find(|field| *field == b"-")?;
        let fs_type = text(fields.next()?)?.to_owned();
        let _source = fields.next()?;
        let options = fields
            .next()?
            .split(|&byte| byte == b',')
            .map(|option| OsString::from_vec(unescape(option)))
            .collect();
        Some(Self {
            id,
            device,
            root,
            mount_point,
            fs_type,
            options,
        })
    }

    /// The path from the root of the file system to a file of this mount,
    /// given its path as this table's process sees it.
    pub fn path_in_fs(&self, path: &Path) -> Option<PathBuf> {
        Some(join(&self.root, path.strip_prefix(&self.mount_point).ok()?))
    }
}

/// [`Path::join`] that leaves no slash behind when `below` is empty.
fn join(path: &Path, below: &Path) -> PathBuf {
    path.components().chain(below.components()).collect()
}

fn text(field: &[u8]) -> Option<&str> {
    std::str::from_utf8(field).ok()
}

fn path(field: &[u8]) -> PathBuf {
    OsStr::from_bytes(&unescape(field)).into()
}

/// Undoes the kernel's `\ooo` for blanks, backslashes and the like.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = match (first, tail) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..]) => {
                Some((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'))
            }
            _ => None,
        };
        plain.push(octal.unwrap_or(first));
        rest = if octal.is_some() { &tail[3..] } else { tail };
    }
    plain
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
23 22 0:21 / /proc rw,nosuid shared:5 - proc proc rw
40 22 254:0 /srv/my\\040data /mnt/a\\134b rw - ext4 /dev/vda rw
41 22 0:39 /sub /mnt/sub rw master:3 propagate_from:2 - btrfs /dev/loop2 rw,subvolid=256,subvol=/sub
42 22 0:40 / /mnt rw - tmpfs tmpfs rw
not a mount
43 22 7:0
44 22 0:41 / /merged rw - overlay overlay rw,lowerdir=/a\\134:b:/c,upperdir=/u\\054v,workdir=/w
";

    #[test]
    fn fields_are_unescaped() {
        let table = MountTable::parse(TABLE);
        assert_eq!(table.iter().count(), 6);
        let bind = table.by_id(40).unwrap();
        assert_eq!(bind.root, Path::new("/srv/my data"));
        assert_eq!(bind.mount_point, Path::new("/mnt/a\\b"));
        assert_eq!(
            bind.device,
            Device {
                major: 254,
                minor: 0
            }
        );
        let sub = table.by_id(41).unwrap();
        assert_eq!(sub.fs_type, "btrfs");
        let overlay = table.by_id(44).unwrap();
        assert_eq!(overlay.options[1], "lowerdir=/a\\:b:/c");
        assert_eq!(overlay.options[2], "upperdir=/u,v");
    }

    #[test]
    fn places_of_a_file_are_below_mounts_that_show_it() {
        let table = MountTable::parse(TABLE);
        let device = Device {
            major: 254,
            minor: 0,
        };
        assert_eq!(
            table.places(device, Path::new("/srv/my data/x/y")),
            [Path::new("/srv/my data/x/y"), Path::new("/mnt/a\\b/x/y")]
        );
        assert_eq!(
            table.places(device, Path::new("/srv/my data")),
            [Path::new("/srv/my data"), Path::new("/mnt/a\\b")]
        );
        assert_eq!(
            table.places(device, Path::new("/srv/my")),
            [Path::new("/srv/my")]
        );
    }

    #[test]
    fn covering_mount_is_the_deepest_and_then_the_topmost() {
        let text = [TABLE, b"50 42 0:50 / /mnt rw - tmpfs over rw\n"].concat();
        let table = MountTable::parse(&text);
        assert_eq!(table.covering(Path::new("/mnt/sub/f")).unwrap().id, 41);
        assert_eq!(table.covering(Path::new("/mnt/f")).unwrap().id, 50);
        assert_eq!(table.covering(Path::new("/mntx")).unwrap().id, 22);
    }

    #[test]
    fn path_in_the_file_system_starts_at_its_root() {
        let table = MountTable::parse(TABLE);
        let bind = table.by_id(40).unwrap();
        assert_eq!(
            bind.path_in_fs(Path::new("/mnt/a\\b/f")).unwrap(),
            Path::new("/srv/my data/f")
        );
        assert_eq!(bind.path_in_fs(Path::new("/mnt/f")), None);
    }

    #[test]
    fn odd_escapes_stay_as_they_are() {
        assert_eq!(unescape(b"a\\04"), b"a\\04");
        assert_eq!(unescape(b"\\999\\"), b"\\999\\");
        assert_eq!(unescape(b"\\040\\011\\012\\134"), b" \t\n\\");
    }
}
