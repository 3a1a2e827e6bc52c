//! The kernel module `hotpages`: what the LRU knows of the pages of a file.
//!
//! The module looks into the page cache itself. It needs no mapping, touches
//! no page, and can have other processors finish what they put off.
//! `kmod-compat/README.md` tells how to build and load it.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::pageflags::{PageFlagsError, PageState, StateRun};
use crate::kernel;

/// Where the module is to be asked.
pub const DEVICE: &str = "/dev/hotpages";

/// How many runs are asked for at once: 64 KiB.
const ROOM: usize = 4096;

/// The module, asked through its device.
#[derive(Debug)]
pub struct Module {
    device: File,
    path: PathBuf,
    page_size: u64,
}

impl Module {
    /// Opens the device and makes sure that both sides mean the same.
    ///
    /// # Errors
    /// Says apart that the module is not loaded, that we may not use it, and
    /// that it is of another version.
    pub fn open(path: &Path) -> Result<Self, PageFlagsError> {
        let device = File::open(path).map_err(|source| match source.kind() {
            _ if is_absent(&source) => PageFlagsError::NotSupported(format!(
                "there is no {}: the kernel module hotpages is not loaded (modprobe hotpages; \
                 kmod-compat/README.md tells how to build it)",
                path.display()
            )),
            io::ErrorKind::PermissionDenied => PageFlagsError::NotPermitted(format!(
                "failed to open {}: only root may (CAP_SYS_ADMIN)",
                path.display()
            )),
            _ => PageFlagsError::Failed {
                verb: format!("open {}", path.display()),
                source,
            },
        })?;
        let module = Self {
            device,
            path: path.to_owned(),
            page_size: kernel::page_size().into(),
        };
        module.check_version()?;
        Ok(module)
    }

    /// Has the kernel finish what it put off: activations wait in batches of
    /// some 15 to 31 folios for each CPU, and a page in one shows no flag at
    /// all.
    ///
    /// # Errors
    /// The module refused.
    pub fn drain(&self) -> Result<(), PageFlagsError> {
        // SAFETY: this command takes no argument.
        let done = unsafe { abi::drain(self.device.as_raw_fd()) };
        done.map(drop)
            .map_err(|errno| self.failed("drain the batches of the LRU", errno))
    }

    /// The states of the resident pages of a part of a file, in bytes; it
    /// begins where a page does. The file may be open in any way but `O_PATH`.
    /// With the multi-generational LRU, `active` says that a page was read
    /// again.
    ///
    /// # Errors
    /// The module refused, as it does files that have no page cache.
    pub fn scan_part(
        &self,
        file: &File,
        part: Range<u64>,
    ) -> Result<Vec<StateRun>, PageFlagsError> {
        let mut found: Vec<StateRun> = Vec::new();
        let mut runs = vec![abi::Run::default(); ROOM];
        let end = part.end.div_ceil(self.page_size);
        let mut start = part.start / self.page_size;
        while start < end {
            let mut query = abi::Query {
                start,
                end,
                runs: runs.as_mut_ptr() as u64,
                room: ROOM as u32,
                count: 0,
                fd: file.as_raw_fd(),
                want: abi::REFERENCED | abi::ACTIVE | abi::LRU_GEN | abi::REUSED,
            };
            // SAFETY: the module writes to `query` and to no more than
            // `query.room` runs from `query.runs` on, which is how many there
            // are; any bytes make a `Run`. Both outlive the call.
            let answered = unsafe { abi::query(self.device.as_raw_fd(), &raw mut query) };
            answered.map_err(|errno| self.failed("ask about pages of a file", errno))?;
            if query.start <= start {
                return Err(self.failed("ask about pages of a file", Errno::EPROTO));
            }
            start = query.start;
            for run in runs.iter().take(query.count as usize) {
                join(&mut found, run);
            }
        }
        Ok(found)
    }

    fn check_version(&self) -> Result<(), PageFlagsError> {
        let mut version = abi::Version::default();
        // SAFETY: the module writes a `Version`, which any bytes make.
        let answered = unsafe { abi::version(self.device.as_raw_fd(), &raw mut version) };
        match answered {
            Ok(_) => {}
            Err(Errno::EPERM) => {
                return Err(PageFlagsError::NotPermitted(format!(
                    "{} may be asked only with CAP_SYS_ADMIN in the initial user namespace",
                    self.path.display()
                )));
            }
            Err(errno) => return Err(self.failed("ask for the version", errno)),
        }
        let ours = abi::Version {
            abi: abi::ABI,
            flags: version.flags,
            query_size: size_of::<abi::Query>() as u32,
            run_size: size_of::<abi::Run>() as u32,
            page_size: self.page_size,
        };
        if version != ours {
            return Err(PageFlagsError::Failed {
                verb: format!("come to terms with {}", self.path.display()),
                source: io::Error::other(format!(
                    "the loaded module hotpages has version {} of the interface, this migrator has \
                     {}: load the module that belongs to it",
                    version.abi,
                    abi::ABI
                )),
            });
        }
        Ok(())
    }

    fn failed(&self, what: &str, errno: Errno) -> PageFlagsError {
        PageFlagsError::Failed {
            verb: format!("{what} through {}", self.path.display()),
            source: errno.into(),
        }
    }
}

/// Whether there is no device, or, as in a container that has a node of its
/// own, nobody behind it.
fn is_absent(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::ENOENT | Errno::ENXIO | Errno::ENODEV))
}

/// Adds what the module has told.
fn join(found: &mut Vec<StateRun>, run: &abi::Run) {
    let state = PageState {
        referenced: run.flags & abi::REFERENCED != 0,
        active: match run.flags & abi::LRU_GEN {
            0 => run.flags & abi::ACTIVE != 0,
            _ => run.flags & abi::REUSED != 0,
        },
    };
    match found.last_mut() {
        Some(last) if last.index + last.pages == run.index && last.state == state => {
            last.pages += u64::from(run.pages);
        }
        _ => found.push(StateRun {
            index: run.index,
            pages: run.pages.into(),
            state,
        }),
    }
}

/// `kmod-compat/hotpages.h`.
mod abi {
    pub(super) const ABI: u32 = 1;

    pub(super) const REFERENCED: u32 = 1 << 0;
    pub(super) const ACTIVE: u32 = 1 << 1;
    pub(super) const LRU_GEN: u32 = 1 << 2;
    pub(super) const REUSED: u32 = 1 << 3;

    /// `struct hotpages_run`
    #[repr(C)]
    #[derive(Debug, Clone, Copy, Default)]
    pub(super) struct Run {
        pub(super) index: u64,
        pub(super) pages: u32,
        pub(super) flags: u32,
    }

    /// `struct hotpages_version`
    #[repr(C)]
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
    pub(super) struct Version {
        pub(super) abi: u32,
        pub(super) flags: u32,
        pub(super) query_size: u32,
        pub(super) run_size: u32,
        pub(super) page_size: u64,
    }

    /// `struct hotpages_query`
    #[repr(C)]
    #[derive(Debug, Clone, Copy, Default)]
    pub(super) struct Query {
        pub(super) start: u64,
        pub(super) end: u64,
        pub(super) runs: u64,
        pub(super) room: u32,
        pub(super) count: u32,
        pub(super) fd: i32,
        pub(super) want: u32,
    }

    nix::ioctl_read!(version, 0xB7, 0x70, Version);
    nix::ioctl_none!(drain, 0xB7, 0x71);
    nix::ioctl_readwrite!(query, 0xB7, 0x72, Query);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write as _;
    use std::mem::offset_of;
    use std::process::Command;

    /// Has the C compiler, which links Rust programs, too, print what the
    /// header says.
    #[test]
    fn both_sides_have_the_same_interface() {
        let mut ours: Vec<(&str, u64)> = vec![
            ("HOTPAGES_ABI", abi::ABI.into()),
            ("HOTPAGES_REFERENCED", abi::REFERENCED.into()),
            ("HOTPAGES_ACTIVE", abi::ACTIVE.into()),
            ("HOTPAGES_LRU_GEN", abi::LRU_GEN.into()),
            ("HOTPAGES_REUSED", abi::REUSED.into()),
            (
                "HOTPAGES_IOC_VERSION",
                nix::request_code_read!(0xB7, 0x70, size_of::<abi::Version>()),
            ),
            ("HOTPAGES_IOC_DRAIN", nix::request_code_none!(0xB7, 0x71)),
            (
                "HOTPAGES_IOC_QUERY",
                nix::request_code_readwrite!(0xB7, 0x72, size_of::<abi::Query>()),
            ),
        ];
        macro_rules! layout {
            ($name:literal, $ours:ty, $($field:ident),*) => {
                ours.push((concat!("sizeof(struct ", $name, ")"), size_of::<$ours>() as u64));
                $(ours.push((
                    concat!("offsetof(struct ", $name, ", ", stringify!($field), ")"),
                    offset_of!($ours, $field) as u64,
                ));)*
            };
        }
        layout!("hotpages_run", abi::Run, index, pages, flags);
        layout!(
            "hotpages_version",
            abi::Version,
            abi,
            flags,
            query_size,
            run_size,
            page_size
        );
        layout!(
            "hotpages_query",
            abi::Query,
            start,
            end,
            runs,
            room,
            count,
            fd,
            want
        );

        let mut program = String::from(
            "#include <stddef.h>\n#include <stdio.h>\n#include \"hotpages.h\"\nint main(void)\n{\n",
        );
        for (expression, _) in &ours {
            writeln!(program, "printf(\"%llu\\n\", 0ULL + {expression});").expect("text");
        }
        program += "return 0;\n}\n";
        let directory = tempfile::tempdir().expect("a directory");
        let (source, binary) = (directory.path().join("abi.c"), directory.path().join("abi"));
        std::fs::write(&source, program).expect("a program");
        let compiled = Command::new("cc")
            .arg("-I")
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../kmod-compat"))
            .args(["-Wall", "-Werror", "-o"])
            .args([&binary, &source])
            .status();
        assert!(compiled.expect("cc").success(), "the header is not C");
        let output = Command::new(&binary).output().expect("it runs");
        let text = String::from_utf8(output.stdout).expect("text");
        let theirs: Vec<u64> = text.lines().flat_map(str::parse).collect();
        assert_eq!(theirs.len(), ours.len(), "{text}");
        for ((expression, ours), theirs) in ours.into_iter().zip(theirs) {
            assert_eq!(ours, theirs, "{expression}");
        }
    }

    #[test]
    fn a_module_that_is_not_loaded_is_not_supported() {
        let empty = tempfile::tempdir().expect("a directory");
        let opened = Module::open(&empty.path().join("hotpages"));
        assert!(matches!(opened, Err(PageFlagsError::NotSupported(_))));
    }

    #[test]
    fn something_else_under_its_name_is_a_failure() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let opened = Module::open(file.path());
        assert!(matches!(opened, Err(PageFlagsError::Failed { .. })));
    }

    #[test]
    fn what_active_means_depends_on_the_lru() {
        let mut found = Vec::new();
        for (index, flags) in [
            (0, abi::REFERENCED),
            (2, abi::REFERENCED | abi::ACTIVE),
            (4, abi::REFERENCED | abi::LRU_GEN | abi::ACTIVE),
            (6, abi::REFERENCED | abi::LRU_GEN),
            (8, abi::REFERENCED | abi::LRU_GEN | abi::REUSED),
        ] {
            let run = abi::Run {
                index,
                pages: 2,
                flags,
            };
            join(&mut found, &run);
        }
        let run = |index, pages, active| StateRun {
            index,
            pages,
            state: PageState {
                referenced: true,
                active,
            },
        };
        assert_eq!(
            found,
            [
                run(0, 2, false),
                run(2, 2, true),
                run(4, 4, false),
                run(8, 2, true)
            ]
        );
    }
}
