//! The hooks that the programs attach to, and what the programs need to know
//! of the running kernel.

use migrator_common::config::{ABSENT, Config, Offsets};

use crate::btf::{Btf, BtfError};

/// What a hook sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sees {
    /// Reads through read(2) and its relatives, splice, exec.
    Reads,
    /// Faults on mapped files.
    Faults,
    /// Writes on ext4.
    Ext4Writes,
    /// Writes on the other file systems.
    Writes,
    /// Processes that come and go, to follow the descendants of a process.
    Processes,
}

/// A BTF tracepoint and the program for it.
#[derive(Debug)]
pub struct Hook {
    /// Name of the program in the object.
    pub program: &'static str,
    /// Name of the tracepoint.
    pub tracepoint: &'static str,
    /// Arguments that the program expects at least.
    pub arguments: usize,
    /// What it is for.
    pub sees: Sees,
}

/// Every program of the object.
pub const HOOKS: &[Hook] = &[
    hook("get_pages", "mm_filemap_get_pages", 3, Sees::Reads),
    hook("map_pages", "mm_filemap_map_pages", 3, Sees::Faults),
    hook("fault", "mm_filemap_fault", 2, Sees::Faults),
    hook(
        "ext4_da_write_begin",
        "ext4_da_write_begin",
        3,
        Sees::Ext4Writes,
    ),
    hook("ext4_write_begin", "ext4_write_begin", 3, Sees::Ext4Writes),
    hook("dirty_folio", "writeback_dirty_folio", 2, Sees::Writes),
    hook("process_fork", "sched_process_fork", 2, Sees::Processes),
    hook("process_free", "sched_process_free", 1, Sees::Processes),
];

const fn hook(
    program: &'static str,
    tracepoint: &'static str,
    arguments: usize,
    sees: Sees,
) -> Hook {
    Hook {
        program,
        tracepoint,
        arguments,
        sees,
    }
}

impl Hook {
    /// Whether the running kernel has it.
    pub fn exists(&self, btf: &Btf) -> bool {
        btf.tracepoint(self.tracepoint)
            .is_some_and(|arguments| arguments >= self.arguments)
    }
}

/// What sees an access of each kind on this kernel; empty where nothing does.
pub fn seeing(btf: &Btf, sees: Sees) -> Vec<&'static Hook> {
    HOOKS
        .iter()
        .filter(|hook| hook.sees == sees && hook.exists(btf))
        .collect()
}

/// The layout of the running kernel's structs.
///
/// # Errors
/// Names the first member that is missing: without it nothing can be told.
pub fn config(btf: &Btf) -> Result<Config, BtfError> {
    const EXT4_SUPER_MAGIC: u64 = 0xef53;
    let ext4 = !seeing(btf, Sees::Ext4Writes).is_empty();
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
            // On kernels before folios the programs that need these have no
            // hook either.
            folio_index: btf.offset("folio", "index").unwrap_or(0),
            folio_flags: btf.offset("folio", "flags").unwrap_or(0),
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
