//! Remembers which files were seen, and finds those that were not.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::by_number::{self, Subvolumes};
use super::handle::Handle;
use super::maps::Mapping;
use super::mountinfo::{Mount, MountTable};
use super::open_files::{self, OpenFile};
use super::search::Search;
use super::{Device, InodeKey, Unresolved, identity, left_out, overlay};
use crate::pagelist::FileIdentity;

/// How many files are remembered at most; more are only found by handle.
const MAX_KNOWN: usize = 1 << 20;

/// Finds the paths of inodes. Reads of `/proc` are cached no longer than from
/// one [`observe`](Self::observe) to the next.
#[derive(Debug)]
pub struct Resolver {
    proc_root: PathBuf,
    /// Which inode a file is, by what it looks like from outside: device,
    /// number and path, as a link or maps show them.
    seen: HashMap<(Device, u64, PathBuf), InodeKey>,
    /// Where the inodes are, or why nowhere.
    sighted: HashMap<(Device, u64), Result<PathBuf, Unresolved>>,
    /// Types of all file systems met in any mount table.
    fs_types: HashMap<Device, String>,
    subvolumes: HashMap<Device, Subvolumes>,
    searches: HashMap<Device, Search>,
    /// Our own mounts.
    host: Option<MountTable>,
    /// Mounts of processes, by mount namespace and root directory.
    tables: HashMap<(PathBuf, PathBuf), MountTable>,
    /// The kernel's own tmpfs, mounted nowhere: memfd and shared memory.
    memory: Option<Device>,
}

/// What the processes have open.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Observation {
    /// The inodes that hold the pages of the regular files and block devices
    /// that are open or mapped. Each once; generation 0.
    pub inodes: BTreeSet<InodeKey>,
    /// The processes whose files may not be looked at.
    pub denied: Vec<i32>,
}

impl Resolver {
    /// Knows nothing yet. `proc_root` is `/proc`.
    pub fn new(proc_root: PathBuf) -> Self {
        // A file of the kernel's own tmpfs tells its device number.
        let memory = memfd_create(c"migrator", MFdFlags::MFD_CLOEXEC)
            .ok()
            .and_then(|file| File::from(file).metadata().ok())
            .map(|meta| Device::from_stat(meta.dev()));
        Self {
            proc_root,
            seen: HashMap::new(),
            sighted: HashMap::new(),
            fs_types: HashMap::new(),
            subvolumes: HashMap::new(),
            searches: HashMap::new(),
            host: None,
            tables: HashMap::new(),
            memory,
        }
    }

    /// Looks at what the processes have open and mapped now, and remembers
    /// it. A file that was seen before costs one or two system calls, a new
    /// one some ten. Processes that vanish meanwhile are skipped.
    pub fn observe(&mut self, pids: impl IntoIterator<Item = i32>) -> Observation {
        self.host = None;
        self.tables.clear();
        let mut observation = Observation::default();
        for pid in pids {
            let process = self.proc_root.join(pid.to_string());
            let files = match open_files::list(&process) {
                Ok(files) => files,
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    observation.denied.push(pid);
                    continue;
                }
                Err(_) => continue,
            };
            let inodes = files.iter().filter_map(|file| self.sight(&process, file));
            observation.inodes.extend(inodes);
            self.note_directory(&process);
        }
        observation
    }

    /// Returns the inode that holds the pages of an open file, if it is a regular file or a
    /// block device. `process` is a directory such as `/proc/7`.
    pub fn inode_of(&mut self, process: &Path, file: &OpenFile) -> Option<InodeKey> {
        self.sight(process, file)
    }

    /// The inode of a mapping of a process that was observed.
    pub fn mapped(&self, mapping: &Mapping) -> Option<InodeKey> {
        let looks = (mapping.device, mapping.inode, mapping.path.clone());
        self.seen.get(&looks).copied()
    }

    /// Takes over where an inode was found by somebody else.
    pub fn recall(&mut self, key: InodeKey, path: PathBuf) {
        self.remember(key, Ok(path));
    }

    /// Where the file is on this host, with size and mtime as they are now.
    ///
    /// # Errors
    /// Why there is no such place.
    pub fn resolve(&mut self, key: InodeKey) -> Result<FileIdentity, Unresolved> {
        self.load_host();
        let sighted = self.sighted.get(&(key.device(), key.inode)).cloned();
        match &sighted {
            Some(Ok(path)) => {
                let host = self.host.as_ref();
                if let Some(identity) = host.and_then(|host| identity::of(host, path, key)) {
                    return Ok(identity);
                }
            }
            Some(Err(reason @ (Unresolved::Anonymous | Unresolved::Special))) => {
                return Err(*reason);
            }
            Some(Err(_)) => {}
            None => {
                if let Some(reason) = self.left_out(key) {
                    return Err(reason);
                }
            }
        }
        let reason = match self.find(key) {
            Ok(identity) => {
                self.remember(key, Ok(identity.path.clone()));
                return Ok(identity);
            }
            Err(reason) => reason,
        };
        // What was seen of it says more than that it was not found.
        Err(match (reason, sighted) {
            (Unresolved::Deleted, _) | (_, Some(Err(Unresolved::Deleted))) => Unresolved::Deleted,
            (Unresolved::NotPermitted, _) => Unresolved::NotPermitted,
            (_, Some(Err(seen))) => seen,
            _ if self.is_elsewhere(key.device()) => Unresolved::NotVisible,
            (reason, _) => reason,
        })
    }

    /// Finds an inode by its number, or by a search for it.
    fn find(&mut self, key: InodeKey) -> Result<FileIdentity, Unresolved> {
        let host = self.host.as_ref().ok_or(Unresolved::Unknown)?;
        let subvolumes = self.subvolumes.entry(key.device()).or_default();
        let reason = match by_number::find(host, key, subvolumes) {
            Ok(Some(identity)) => return Ok(identity),
            Ok(None) => Unresolved::Unknown,
            Err(Unresolved::Deleted) => return Err(Unresolved::Deleted),
            Err(reason) => reason,
        };
        self.searches
            .get_mut(&key.device())
            .and_then(|search| search.find(key.inode, |path| identity::of(host, path, key)))
            .ok_or(reason)
    }

    /// Returns the identity on this host of a file that a process has open:
    /// for a merged file of overlayfs, that of its layer's file. Nothing if it
    /// has no path here.
    pub fn locate_open(&mut self, process: &Path, file: &OpenFile) -> Option<FileIdentity> {
        let key = self.sight(process, file)?;
        self.resolve(key).ok()
    }

    /// Finds out which inode an open file is, and where that is on the host.
    fn sight(&mut self, process: &Path, file: &OpenFile) -> Option<InodeKey> {
        // What maps says of a mapping is enough to know it again.
        if let Some(looks) = &file.mapping
            && let Some(key) = self.seen.get(looks)
        {
            return Some(*key);
        }
        let meta = fs::metadata(&file.link).ok()?;
        let kind = meta.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return None;
        }
        let text = fs::read_link(&file.link).ok()?;
        let looks = match &file.mapping {
            Some(looks) => looks.clone(),
            None => (Device::from_stat(meta.dev()), meta.ino(), text.clone()),
        };
        if let Some(key) = self.seen.get(&looks) {
            return Some(*key);
        }
        let (key, place) = self.locate(process, file, &meta, &text);
        self.note_seen(looks, key);
        self.remember(key, place);
        Some(key)
    }

    fn locate(
        &mut self,
        process: &Path,
        file: &OpenFile,
        meta: &Metadata,
        text: &Path,
    ) -> (InodeKey, Result<PathBuf, Unresolved>) {
        let stat_device = Device::from_stat(meta.dev());
        let mount = self.mount_of(process, file, text);
        if let Some(mount) = mount.as_ref().filter(|mount| mount.fs_type == "overlay")
            && meta.nlink() > 0
            && let Some((key, path)) = self.layer_file(mount, text)
        {
            return (key, Ok(path));
        }
        // Mappings show s_dev themselves, descriptors by their mount.
        let (device, inode) = match (&file.mapping, &mount) {
            (Some((device, inode, _)), _) => (*device, *inode),
            (None, Some(mount)) => (mount.device, meta.ino()),
            (None, None) => (stat_device, meta.ino()),
        };
        let mount = mount.filter(|mount| mount.device == device);
        let place = if meta.file_type().is_block_device() {
            Err(Unresolved::Special)
        } else if self.memory == Some(stat_device) {
            Err(Unresolved::Anonymous)
        } else if let Some(reason) = self.fs_types.get(&device).and_then(|it| left_out(it)) {
            Err(reason)
        } else if meta.nlink() == 0 {
            // On a file system that is mounted nowhere, nothing ever had a
            // name (huge memfd, for one).
            let named = device.major != 0 || self.fs_types.contains_key(&device);
            Err(if named {
                Unresolved::Deleted
            } else {
                Unresolved::Anonymous
            })
        } else {
            if device != stat_device {
                self.note_subvolume(device, &file.link);
            }
            self.host_path(&file.link, device, mount.as_ref(), meta, text)
                .ok_or_else(|| {
                    // The name it was opened by is gone, others are left.
                    if text.as_os_str().as_bytes().ends_with(b" (deleted)") {
                        Unresolved::Unknown
                    } else {
                        Unresolved::NotVisible
                    }
                })
        };
        (key(device, inode), place)
    }

    /// Where an open file or directory shows on the host.
    fn host_path(
        &self,
        link: &Path,
        device: Device,
        mount: Option<&Mount>,
        meta: &Metadata,
        text: &Path,
    ) -> Option<PathBuf> {
        let host = self.host.as_ref()?;
        let is_it = |path: &PathBuf| {
            fs::symlink_metadata(path)
                .is_ok_and(|there| there.dev() == meta.dev() && there.ino() == meta.ino())
        };
        // Most processes are in our own namespace.
        let same = text.to_path_buf();
        if text.is_absolute() && is_it(&same) {
            return Some(same);
        }
        let by_mount = mount
            .and_then(|mount| mount.path_in_fs(text))
            .map(|path| host.places(device, &path))
            .unwrap_or_default();
        by_mount.into_iter().find(is_it).or_else(|| {
            // Mounts that the process itself does not see (it was handed the
            // file, or has changed its root since): ask for the inode.
            let (handle, _) = Handle::of_path(link).ok()?;
            by_number::places(host, device, &handle).find(is_it)
        })
    }

    /// The layer's file that a merged file stands for.
    fn layer_file(&self, mount: &Mount, text: &Path) -> Option<(InodeKey, PathBuf)> {
        let below = mount.path_in_fs(text)?;
        let below = below.strip_prefix("/").ok()?;
        let files: Vec<_> = overlay::layers(&mount.options)
            .into_iter()
            // podman names them by links that other hosts don't have.
            .map(|layer| fs::canonicalize(&layer).unwrap_or(layer).join(below))
            .filter_map(|path| Some((fs::symlink_metadata(&path).ok()?, path)))
            .filter(|(meta, _)| meta.is_file())
            .collect();
        // With metacopy=on the topmost file may hold no data, only size and
        // owner; the pages then belong to a file further down.
        let (meta, path) = files
            .iter()
            .find(|(meta, _)| meta.blocks() > 0)
            .or(files.first())?;
        let device = identity::device_of(self.host.as_ref()?, path, meta)?;
        Some((key(device, meta.ino()), path.clone()))
    }

    /// The mount that a process opened a file through.
    fn mount_of(&mut self, process: &Path, file: &OpenFile, text: &Path) -> Option<Mount> {
        self.load_host();
        let id = file
            .fd
            .and_then(|fd| open_files::mount_id(process, fd).ok());
        let table = self.table_of(process)?;
        // Anything can be on top of the mount by now, so its id, which only
        // descriptors have, is better than its place.
        let mount = id
            .map(|id| table.by_id(id).cloned())
            .unwrap_or_else(|| table.covering(text).cloned());
        let host = self.host.as_ref();
        mount.or_else(|| host?.by_id(id?).cloned())
    }

    /// The mounts that a process sees, places as in the links of its files.
    fn table_of(&mut self, process: &Path) -> Option<&MountTable> {
        let namespace = fs::read_link(process.join("ns/mnt")).ok()?;
        let root = fs::read_link(process.join("root")).ok()?;
        let place = (namespace, root);
        if !self.tables.contains_key(&place) {
            // mountinfo counts from the root directory of the process, links
            // count from that of its namespace.
            let table = MountTable::read(process).ok()?.below(&place.1);
            self.note_fs_types(&table);
            self.tables.insert(place.clone(), table);
        }
        self.tables.get(&place)
    }

    fn load_host(&mut self) {
        if self.host.is_none() {
            let table = MountTable::read(&self.proc_root.join("self")).unwrap_or_default();
            self.note_fs_types(&table);
            self.host = Some(table);
        }
    }

    fn note_fs_types(&mut self, table: &MountTable) {
        for mount in table.iter() {
            let fs_type = self.fs_types.entry(mount.device).or_default();
            fs_type.clone_from(&mount.fs_type);
        }
    }

    fn note_subvolume(&mut self, device: Device, link: &Path) {
        if let Ok((handle, _)) = Handle::of_path(link)
            && let Some(subvolume) = handle.subvolume()
        {
            let known = self.subvolumes.entry(device).or_default();
            known.insert(subvolume, handle);
        }
    }

    fn note_seen(&mut self, looks: (Device, u64, PathBuf), key: InodeKey) {
        if self.seen.len() < MAX_KNOWN {
            self.seen.insert(looks, key);
        }
    }

    /// A directory that a process works in is a good place to search.
    fn note_directory(&mut self, process: &Path) {
        let link = process.join("cwd");
        let Ok(text) = fs::read_link(&link) else {
            return;
        };
        let Ok(meta) = fs::metadata(&link) else {
            return;
        };
        let looks = (Device::from_stat(meta.dev()), meta.ino(), text.clone());
        if self.seen.contains_key(&looks) {
            return;
        }
        let file = OpenFile {
            link,
            fd: None,
            mapping: None,
        };
        let mount = self.mount_of(process, &file, &text);
        let device = mount.as_ref().map_or(looks.0, |mount| mount.device);
        if let Some(path) = self.host_path(&file.link, device, mount.as_ref(), &meta, &text) {
            self.searches.entry(device).or_default().add(&path);
        }
        self.note_seen(looks, key(device, meta.ino()));
    }

    fn remember(&mut self, key: InodeKey, place: Result<PathBuf, Unresolved>) {
        let device = key.device();
        if let Ok(path) = &place
            && let Some(directory) = path.parent()
        {
            self.searches.entry(device).or_default().add(directory);
        }
        let inode = (device, key.inode);
        // That one process can't say where it is does not unsay what another
        // has shown.
        if place == Err(Unresolved::NotVisible) && matches!(self.sighted.get(&inode), Some(Ok(_))) {
            return;
        }
        if self.sighted.len() < MAX_KNOWN || self.sighted.contains_key(&inode) {
            self.sighted.insert(inode, place);
        }
    }

    /// Whether the file system alone says that the file is left out.
    fn left_out(&self, key: InodeKey) -> Option<Unresolved> {
        let device = key.device();
        if self.memory == Some(device) {
            return Some(Unresolved::Anonymous);
        }
        match self.fs_types.get(&device) {
            Some(fs_type) => left_out(fs_type),
            // The pages of a block device belong to an inode of a file system
            // that is mounted nowhere, whose number is the device's: dev_t
            // with a minor number of 20 bits.
            None if device.major == 0 => {
                let (major, minor) = (key.inode >> 20, key.inode & 0xf_ffff);
                Path::new(&format!("/sys/dev/block/{major}:{minor}"))
                    .exists()
                    .then_some(Unresolved::Special)
            }
            None => None,
        }
    }

    /// Whether the file system is mounted only in other namespaces.
    fn is_elsewhere(&self, device: Device) -> bool {
        let host = self.host.as_ref();
        self.fs_types.contains_key(&device)
            && host.is_some_and(|host| host.of_device(device).is_empty())
    }
}

fn key(device: Device, inode: u64) -> InodeKey {
    InodeKey {
        major: device.major,
        minor: device.minor,
        inode,
        generation: 0,
    }
}
