//! What userspace decided before the programs were loaded.

use migrator_common::config::{Config, Offsets};

/// Set by userspace in the object's read-only data before it is loaded.
#[unsafe(no_mangle)]
static CONFIG: Config = Config {
    exact_writes_magic: 0,
    filter: 0,
    own_process: 0,
    chunk_mask: 0,
    folio_head_bit: 0,
    page_shift: 12,
    per_cpu: 0,
    offsets: Offsets {
        mapping_host: 0,
        inode_ino: 0,
        inode_sb: 0,
        inode_size: 0,
        inode_generation: 0,
        sb_dev: 0,
        sb_magic: 0,
        kiocb_filp: 0,
        kiocb_pos: 0,
        file_mapping: 0,
        fault_vma: 0,
        fault_pgoff: 0,
        vma_file: 0,
        page_index: 0,
        folio_index: 0,
        folio_flags: 0,
        folio_pages: 0,
        task_pid: 0,
        task_tgid: 0,
    },
};

/// The configuration, one member at a time, as in `config(|c| &c.filter)`.
#[inline(always)]
pub(crate) fn config<T: Copy + 'static>(member: impl FnOnce(&'static Config) -> &'static T) -> T {
    let member: *const T = member(&CONFIG);
    // SAFETY: `member` comes from a reference. The read is volatile because
    // the value that userspace puts there is not the one the compiler sees.
    unsafe { core::ptr::read_volatile(member) }
}
