//! The hooks that the programs attach to, and what the programs need to know
//! of the running kernel.
//!
//! [`WAYS`] is the whole choice. A hook fits a kernel whose BTF has its function
//! or tracepoint, with these arguments, and the members that its program
//! reads; what then can't be loaded or attached gives way to the next. No
//! version decides.

use std::fmt;

use migrator_common::config::{ABSENT, Config, Offsets};

use super::Refusal;
use crate::btf::{Btf, BtfError, Prototype};

/// What is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sees {
    /// Processes that come and go, to follow the descendants of a process.
    Processes,
    /// Reads through read(2) and its relatives, splice, exec.
    Reads,
    /// Faults on mapped files.
    Faults,
    /// Writes on ext4.
    Ext4Writes,
    /// Writes on the other file systems; on all where nothing sees ext4's.
    Writes,
}

/// Everything that is worth seeing, in the order in which it is attached: first
/// those that follow processes, so that no fork is missed.
pub const ALL: [Sees; 5] = [
    Sees::Processes,
    Sees::Reads,
    Sees::Faults,
    Sees::Ext4Writes,
    Sees::Writes,
];

impl fmt::Display for Sees {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Processes => "processes",
            Self::Reads => "reads",
            Self::Faults => "faults",
            Self::Ext4Writes => "writes on ext4",
            Self::Writes => "writes",
        })
    }
}

/// How a program is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// To a tracepoint, through its BTF type.
    Tracepoint,
    /// To a function, before it runs.
    Entry,
    /// To a function, when it returns.
    Exit,
}

/// A place in the kernel, and the program for it.
#[derive(Debug)]
pub struct Hook {
    /// Name of the program in the object.
    pub program: &'static str,
    /// How it is attached.
    pub kind: Kind,
    /// Name of the tracepoint or function.
    pub name: &'static str,
    /// Its arguments, in the words of [`Prototype`]; those of an exit are all
    /// of them and the returned value. Of the others there may be more.
    arguments: &'static [&'static str],
    /// Members that the program reads beside those that all need.
    members: &'static [(&'static str, &'static str)],
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Tracepoint => "tracepoint",
            Kind::Entry => "fentry",
            Kind::Exit => "fexit",
        };
        write!(f, "{kind} {}", self.name)
    }
}

/// Hooks that together tell of each access of a kind once.
#[derive(Debug)]
pub struct Way {
    /// The kind.
    pub sees: Sees,
    /// All of them are needed.
    pub hooks: &'static [Hook],
    /// A function without which they would miss something.
    given: Option<&'static str>,
    /// What exactly they tell: a row of docs/kernels.md.
    pub how: &'static str,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hooks: Vec<String> = self.hooks.iter().map(Hook::to_string).collect();
        f.write_str(&hooks.join(", "))
    }
}

const READ: Hook = Hook {
    program: "read",
    kind: Kind::Exit,
    name: "filemap_read",
    arguments: &["kiocb *", "iov_iter *", "integer", "integer"],
    members: IOCB,
};
const IOCB: &[(&str, &str)] = &[
    ("kiocb", "ki_filp"),
    ("kiocb", "ki_pos"),
    ("file", "f_mapping"),
];
const VMF: &[(&str, &str)] = &[
    ("vm_fault", "vma"),
    ("vm_fault", "pgoff"),
    ("vm_area_struct", "vm_file"),
    ("file", "f_mapping"),
];
/// Where splice is a read into a pipe.
const SPLICE_READS: Option<&str> = Some("generic_file_splice_read");
const EXACT: &str = "the pages that were read, spliced or executed";

/// Every way; those that see the same in the order of preference.
pub const WAYS: &[Way] = &[
    Way {
        sees: Sees::Processes,
        hooks: &[
            tracepoint(
                "process_fork",
                "sched_process_fork",
                &["task_struct *", "task_struct *"],
            ),
            tracepoint("process_free", "sched_process_free", &["task_struct *"]),
        ],
        given: None,
        how: "children of observed processes",
    },
    Way {
        sees: Sees::Reads,
        hooks: &[
            READ,
            Hook {
                program: "splice_read",
                kind: Kind::Exit,
                name: "filemap_splice_read",
                arguments: &[
                    "file *",
                    "*",
                    "pipe_inode_info *",
                    "integer",
                    "integer",
                    "integer",
                ],
                members: &[("file", "f_mapping")],
            },
        ],
        given: None,
        how: EXACT,
    },
    Way {
        sees: Sees::Reads,
        hooks: &[READ],
        given: SPLICE_READS,
        how: EXACT,
    },
    Way {
        sees: Sees::Reads,
        hooks: &[Hook {
            name: "generic_file_buffered_read",
            ..READ
        }],
        given: SPLICE_READS,
        how: EXACT,
    },
    Way {
        sees: Sees::Reads,
        hooks: &[Hook {
            program: "get_pages_entry",
            kind: Kind::Entry,
            name: "filemap_get_pages",
            arguments: &["kiocb *", "integer", "folio_batch *", "integer"],
            members: IOCB,
        }],
        given: None,
        how: "the pages asked for by reads, splice and exec, also where the request then fails",
    },
    Way {
        sees: Sees::Reads,
        hooks: &[tracepoint(
            "get_pages",
            "mm_filemap_get_pages",
            &["address_space *", "integer", "integer"],
        )],
        given: None,
        how: "the pages asked for by reads, splice and exec, without the cached beginning of a \
              request that runs into a page on its way from the disk",
    },
    Way {
        sees: Sees::Reads,
        hooks: &[READ],
        given: None,
        how: "the pages that were read or executed; not those that were spliced (sendfile)",
    },
    Way {
        sees: Sees::Faults,
        hooks: &[
            tracepoint(
                "map_pages",
                "mm_filemap_map_pages",
                &["address_space *", "integer", "integer"],
            ),
            tracepoint("fault", "mm_filemap_fault", &["address_space *", "integer"]),
        ],
        given: None,
        how: "the page of a fault, and those mapped around it",
    },
    Way {
        sees: Sees::Faults,
        hooks: &[
            entry(
                "map_pages_entry",
                "filemap_map_pages",
                &["vm_fault *", "integer", "integer"],
                VMF,
            ),
            entry("fault_entry", "filemap_fault", &["vm_fault *"], VMF),
        ],
        given: None,
        how: "the page of a fault, and those to be mapped around it",
    },
    Way {
        sees: Sees::Ext4Writes,
        hooks: &[
            tracepoint(
                "ext4_da_write_begin",
                "ext4_da_write_begin",
                &["inode *", "integer", "integer"],
            ),
            tracepoint(
                "ext4_write_begin",
                "ext4_write_begin",
                &["inode *", "integer", "integer"],
            ),
        ],
        given: None,
        how: "the pages",
    },
    Way {
        sees: Sees::Writes,
        hooks: &[Hook {
            members: &[("folio", "index"), ("folio", "flags")],
            ..tracepoint(
                "dirty_folio",
                "writeback_dirty_folio",
                &["folio *", "address_space *"],
            )
        }],
        given: None,
        how: "the whole folio, when it becomes dirty",
    },
    Way {
        sees: Sees::Writes,
        hooks: &[Hook {
            members: &[("page", "index")],
            ..tracepoint(
                "dirty_page",
                "writeback_dirty_page",
                &["page *", "address_space *"],
            )
        }],
        given: None,
        how: "the page, when it becomes dirty",
    },
];

const fn tracepoint(
    program: &'static str,
    name: &'static str,
    arguments: &'static [&'static str],
) -> Hook {
    Hook {
        program,
        kind: Kind::Tracepoint,
        name,
        arguments,
        members: &[],
    }
}

const fn entry(
    program: &'static str,
    name: &'static str,
    arguments: &'static [&'static str],
    members: &'static [(&'static str, &'static str)],
) -> Hook {
    Hook {
        program,
        kind: Kind::Entry,
        name,
        arguments,
        members,
    }
}

impl Way {
    /// Whether the running kernel has what it needs.
    ///
    /// # Errors
    /// [`Refusal::NotSupported`] names the first thing that is missing.
    pub fn fits(&self, btf: &Btf) -> Result<(), Refusal> {
        let missing = |what: String| Refusal::NotSupported(format!("this kernel has no {what}"));
        if let Some(name) = self.given
            && btf.function(name).is_none()
        {
            return Err(missing(format!("function {name}")));
        }
        for hook in self.hooks {
            let (kind, prototype) = match hook.kind {
                Kind::Tracepoint => ("tracepoint", btf.tracepoint(hook.name)),
                Kind::Entry | Kind::Exit => ("function", btf.function(hook.name)),
            };
            let prototype = prototype.ok_or_else(|| missing(format!("{kind} {}", hook.name)))?;
            if !hook.takes(&prototype) {
                return Err(Refusal::NotSupported(format!(
                    "this kernel's {kind} {} is ({}) -> {}, not as the program expects it",
                    hook.name,
                    prototype.parameters.join(", "),
                    prototype.returns
                )));
            }
            for (container, member) in hook.members {
                btf.offset(container, member)
                    .map_err(|error| Refusal::NotSupported(error.to_string()))?;
            }
        }
        Ok(())
    }
}

impl Hook {
    fn takes(&self, prototype: &Prototype) -> bool {
        let mut found = prototype.parameters.clone();
        if self.kind == Kind::Exit {
            found.push(prototype.returns.clone());
            found == self.arguments
        } else {
            let first = found.get(..self.arguments.len());
            first.is_some_and(|first| first == self.arguments)
        }
    }
}

/// The ways to see something, best first.
pub fn ways(sees: Sees) -> impl Iterator<Item = &'static Way> {
    WAYS.iter().filter(move |way| way.sees == sees)
}

/// The layout of the running kernel's structs.
///
/// # Errors
/// Names the first member that is missing: without it nothing can be told.
pub fn config(btf: &Btf) -> Result<Config, BtfError> {
    const EXT4_SUPER_MAGIC: u32 = 0xef53;
    let ext4 = ways(Sees::Ext4Writes).any(|way| way.fits(btf).is_ok());
    // What only some of the programs read: those don't fit where it is missing.
    let some = |container, member| btf.offset(container, member).unwrap_or(0);
    Ok(Config {
        exact_writes_magic: if ext4 { EXT4_SUPER_MAGIC } else { 0 },
        folio_head_bit: btf.enumerator("PG_head").unwrap_or(ABSENT),
        own_process: std::process::id(),
        page_shift: crate::kernel::page_size().trailing_zeros(),
        offsets: Offsets {
            mapping_host: btf.offset("address_space", "host")?,
            inode_ino: btf.offset("inode", "i_ino")?,
            inode_sb: btf.offset("inode", "i_sb")?,
            inode_size: btf.offset("inode", "i_size")?,
            inode_generation: btf.offset("inode", "i_generation")?,
            sb_dev: btf.offset("super_block", "s_dev")?,
            sb_magic: btf.offset("super_block", "s_magic")?,
            kiocb_filp: some("kiocb", "ki_filp"),
            kiocb_pos: some("kiocb", "ki_pos"),
            file_mapping: some("file", "f_mapping"),
            fault_vma: some("vm_fault", "vma"),
            fault_pgoff: some("vm_fault", "pgoff"),
            vma_file: some("vm_area_struct", "vm_file"),
            page_index: some("page", "index"),
            folio_index: some("folio", "index"),
            folio_flags: some("folio", "flags"),
            // 32 bits; where it is absent, only the first page of a large
            // folio is marked.
            folio_pages: btf
                .offset("folio", "_nr_pages")
                .or_else(|_| btf.offset("folio", "_folio_nr_pages"))
                .unwrap_or(ABSENT),
            task_pid: btf.offset("task_struct", "pid")?,
            task_tgid: btf.offset("task_struct", "tgid")?,
        },
        ..Config::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_an_exit_every_argument_counts_and_of_an_entry_the_first() {
        let prototype = |parameters: &[&str]| Prototype {
            parameters: parameters.iter().map(|&it| it.into()).collect(),
            returns: "integer".into(),
        };
        let three = prototype(&["kiocb *", "iov_iter *", "integer"]);
        let four = prototype(&["kiocb *", "iov_iter *", "integer", "integer"]);
        assert!(READ.takes(&three));
        assert!(!READ.takes(&four), "what it returns is in another place");
        let entry = entry("", "", &["kiocb *", "iov_iter *"], &[]);
        assert!(entry.takes(&three) && entry.takes(&four));
        assert!(!entry.takes(&prototype(&["kiocb *", "integer"])));
        assert!(!entry.takes(&prototype(&["kiocb *"])));
    }

    #[test]
    fn every_kind_has_a_way_and_every_program_a_kind() {
        for sees in ALL {
            assert!(ways(sees).next().is_some(), "{sees}");
        }
        assert!(WAYS.iter().all(|way| ALL.contains(&way.sees)));
    }
}
