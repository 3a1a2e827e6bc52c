//! `--source kmod` and `--source procfs`: the LRU's flags of the files that the
//! target has open or mapped.
//!
//! The flags come from the kernel module ([`kmod`](super::kmod)), or from /proc
//! without anything in the kernel ([`pageflags`](super::pageflags)). Either way
//! they tell less than the eBPF source:
//! - Only files that are open or mapped at the time of a sample.
//! - Use by anybody counts, not only by the target.
//! - Pages used through a mapping that still stands look unused, and are left
//!   out with those that were only read ahead ([`pageflags`](super::pageflags)).
//! - Under the multi-generational LRU the active flag means nothing. What was
//!   used lately is referenced, all else merely resident; only the module can tell
//!   what was used again.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

use super::Refusal;
use super::kmod::Module;
use super::pageflags::{PageFlags, PageFlagsError, PageState, StateRun, drain_batches};
use crate::file::{Resolver, Unresolved};
use crate::kernel::lru_gen_enabled;
use crate::pagelist::runs::Joined;
use crate::pagelist::{
    ACTIVE, ACTIVE_REFERENCED, FileIdentity, Heat, HotFile, REFERENCED, RESIDENT, Run,
};
use crate::target::{Target, TargetError};

/// Takes samples.
#[derive(Debug)]
pub struct Sampler {
    proc_root: PathBuf,
    flags: Flags,
    lru_gen: bool,
}

/// Where the flags of a file's pages come from.
#[derive(Debug)]
enum Flags {
    /// From /proc.
    Procfs(PageFlags),
    /// From the kernel module.
    Kmod(Module),
}

/// What the page cache holds of the target's files now. The caller takes one
/// every interval; the last one in which a file stands says what is hot of it,
/// also after the file was closed.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Files with at least one hot page.
    pub files: Vec<HotFile>,
    /// How many files, or processes, were left out, and why.
    pub left_out: BTreeMap<Reason, u64>,
}

/// Why something is not in a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum Reason {
    /// The file has no path on this host.
    #[error(transparent)]
    Unresolved(#[from] Unresolved),
    /// The file can't be opened for reading.
    #[error("not permitted to open it")]
    NotPermitted,
    /// The file was replaced, or failed to be opened or mapped.
    #[error("changed or failed while it was looked at")]
    Failed,
    /// A process whose open files may not be seen.
    #[error("process whose files may not be looked at")]
    ProcessDenied,
}

impl Sampler {
    /// Samples by /proc: opens what is needed below `proc_root` (`/proc`) and
    /// `sys_root` (`/sys`).
    ///
    /// # Errors
    /// Says apart what the kernel does not have and what it does not permit.
    pub fn procfs(proc_root: &Path, sys_root: &Path) -> Result<Self, PageFlagsError> {
        Ok(Self {
            proc_root: proc_root.to_owned(),
            flags: Flags::Procfs(PageFlags::open(proc_root)?),
            lru_gen: lru_gen_enabled(sys_root),
        })
    }

    /// Samples by the kernel module, whose device is `device`.
    ///
    /// # Errors
    /// As [`Module::open`].
    pub fn kmod(device: &Path, proc_root: &Path, sys_root: &Path) -> Result<Self, PageFlagsError> {
        Ok(Self {
            proc_root: proc_root.to_owned(),
            flags: Flags::Kmod(Module::open(device)?),
            lru_gen: lru_gen_enabled(sys_root),
        })
    }

    /// How well it works here, in words.
    pub fn what_it_knows(&self) -> &'static str {
        match (&self.flags, self.lru_gen) {
            (Flags::Procfs(_), false) => {
                "the LRU flags of open and mapped files; use by anybody counts"
            }
            (Flags::Procfs(_), true) => {
                "the referenced flag of open and mapped files, without ranks, because the \
                 multi-generational LRU is on (/sys/kernel/mm/lru_gen/enabled); use by anybody counts"
            }
            (Flags::Kmod(_), false) => {
                "the LRU flags of open and mapped files, from the module hotpages; use by anybody \
                 counts"
            }
            (Flags::Kmod(_), true) => {
                "the referenced flag of open and mapped files, and which were read again, from the \
                 module hotpages, because the multi-generational LRU is on \
                 (/sys/kernel/mm/lru_gen/enabled); use by anybody counts"
            }
        }
    }

    /// Tries it on our own program: whether it works here, and how well.
    ///
    /// # Errors
    /// What should work and does not.
    pub fn probe(&self) -> Result<&'static str, Refusal> {
        let program = self.proc_root.join("self/exe");
        let failed = |source: io::Error| PageFlagsError::Failed {
            verb: format!("open {}", program.display()),
            source,
        };
        let file = File::open(&program).map_err(failed)?;
        let size = file.metadata().map_err(failed)?.len();
        self.drain()?;
        if self.scan_part(&file, 0..size)?.is_empty() {
            // We are running, so that a part of our program is.
            return Err(Refusal::Failed(
                "no page of our own program seems to be resident".into(),
            ));
        }
        Ok(self.what_it_knows())
    }

    /// Looks at all files of the target once. A target that has ended has none.
    ///
    /// # Errors
    /// The target can't be listed, or page flags are suddenly refused.
    pub fn sample(&self, target: &Target, resolver: &mut Resolver) -> Result<Sample, SampleError> {
        let processes = match target.processes(&self.proc_root) {
            Err(TargetError::NoSuchProcess(_) | TargetError::NoSuchCgroup(_)) => Vec::new(),
            listed => listed?,
        };
        let observation = resolver.observe(processes);
        let files = observation.inodes.iter();
        let mut sample = self.sample_files(files.map(|key| resolver.resolve(*key)))?;
        let denied = observation.denied.len() as u64;
        if denied > 0 {
            sample.left_out.insert(Reason::ProcessDenied, denied);
        }
        Ok(sample)
    }

    /// Looks at files once, open or not.
    ///
    /// # Errors
    /// Page flags are suddenly refused.
    pub fn sample_files(
        &self,
        files: impl Iterator<Item = Result<FileIdentity, Unresolved>>,
    ) -> Result<Sample, PageFlagsError> {
        self.drain()?;
        let mut sample = Sample::default();
        for identity in files {
            let file = match identity {
                Ok(identity) => self.look_at(identity)?,
                Err(reason) => Err(reason.into()),
            };
            match file {
                Ok(file) if file.runs.is_empty() => {}
                Ok(file) => sample.files.push(file),
                Err(reason) => *sample.left_out.entry(reason).or_default() += 1,
            }
        }
        Ok(sample)
    }

    /// The hot pages of a part of an open file, given in bytes from a page's
    /// beginning on.
    ///
    /// # Errors
    /// As [`PageFlags::scan`].
    pub fn hot_part(&self, file: &File, part: Range<u64>) -> Result<Vec<Run>, PageFlagsError> {
        Ok(runs_of(&self.scan_part(file, part)?))
    }

    /// Has the kernel put pages where their use says that they belong.
    fn drain(&self) -> Result<(), PageFlagsError> {
        match &self.flags {
            Flags::Procfs(_) => {
                drain_batches();
                Ok(())
            }
            Flags::Kmod(module) => module.drain(),
        }
    }

    /// The states of the resident pages of a part of a file, in bytes.
    fn scan_part(&self, file: &File, part: Range<u64>) -> Result<Vec<StateRun>, PageFlagsError> {
        match &self.flags {
            Flags::Kmod(module) => module.scan_part(file, part),
            Flags::Procfs(flags) => {
                let mut states = flags.scan_part(file, part)?;
                if self.lru_gen {
                    for run in &mut states {
                        run.state.active = false;
                    }
                }
                Ok(states)
            }
        }
    }

    /// The hot pages of a file.
    fn look_at(&self, identity: FileIdentity) -> Result<Result<HotFile, Reason>, PageFlagsError> {
        let file = match open(&identity) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Ok(Err(Reason::NotPermitted));
            }
            Err(_) => return Ok(Err(Reason::Failed)),
        };
        match self.scan_part(&file, 0..identity.size) {
            Ok(states) => Ok(Ok(HotFile {
                identity,
                runs: runs_of(&states),
            })),
            // No page of any file would do better.
            Err(error @ PageFlagsError::NotPermitted(_)) => Err(error),
            Err(_) => Ok(Err(Reason::Failed)),
        }
    }
}

/// Why there is no sample.
#[derive(Debug, thiserror::Error)]
pub enum SampleError {
    /// The target can't be listed.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// Page flags can't be read.
    #[error(transparent)]
    PageFlags(#[from] PageFlagsError),
}

impl From<PageFlagsError> for Refusal {
    fn from(error: PageFlagsError) -> Self {
        let detail = match error.source() {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
        match error {
            PageFlagsError::NotSupported(_) => Self::NotSupported(detail),
            PageFlagsError::NotPermitted(_) => Self::NotPermitted(detail),
            PageFlagsError::Failed { .. } => Self::Failed(detail),
        }
    }
}

/// Opens a file for reading without changing its access time, and without
/// waiting for anybody (leases, FIFOs).
fn open(identity: &FileIdentity) -> io::Result<File> {
    let flags = OFlag::O_NOATIME | OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW | OFlag::O_NOCTTY;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits())
        .open(&identity.path)?;
    let meta = file.metadata()?;
    if (meta.dev(), meta.ino()) != (identity.device, identity.inode) {
        return Err(io::ErrorKind::NotFound.into());
    }
    Ok(file)
}

/// Ranks pages by the steps of the LRU.
fn runs_of(states: &[StateRun]) -> Vec<Run> {
    let heat = |state: PageState| -> Heat {
        match (state.active, state.referenced) {
            (false, false) => RESIDENT,
            (false, true) => REFERENCED,
            (true, false) => ACTIVE,
            (true, true) => ACTIVE_REFERENCED,
        }
    };
    let mut joined = Joined::default();
    for run in states {
        joined.push(run.index, run.index + run.pages, heat(run.state));
    }
    joined.into_runs()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn states(states: &[(u64, u64, bool, bool)]) -> Vec<StateRun> {
        let run = |&(index, pages, referenced, active)| StateRun {
            index,
            pages,
            state: PageState { referenced, active },
        };
        states.iter().map(run).collect()
    }

    fn runs(runs: &[(u64, u32, Heat)]) -> Vec<Run> {
        let run = |&(index, pages, heat)| Run { index, pages, heat };
        runs.iter().map(run).collect()
    }

    #[test]
    fn heat_ranks_the_steps_of_the_lru() {
        let states = states(&[
            (0, 10, false, false),
            (10, 5, true, false),
            (15, 1, false, true),
            (16, 2, true, true),
            (30, 1, false, true),
        ]);
        assert_eq!(
            runs_of(&states),
            runs(&[
                (0, 10, RESIDENT),
                (10, 5, REFERENCED),
                (15, 1, ACTIVE),
                (16, 2, ACTIVE_REFERENCED),
                (30, 1, ACTIVE)
            ])
        );
    }

    #[test]
    fn a_kernel_without_page_flags_is_not_supported() {
        let empty = tempfile::tempdir().expect("a directory");
        assert!(matches!(
            Sampler::procfs(empty.path(), empty.path()),
            Err(PageFlagsError::NotSupported(_))
        ));
    }
}
