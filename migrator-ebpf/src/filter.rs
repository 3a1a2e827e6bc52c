//! Whose accesses count.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use migrator_common::access::PROCESS_PAGE;
use migrator_common::config::{FILTER_CGROUP, FILTER_PROCESSES};

use crate::config::config;
use crate::maps::{CGROUPS, PROCESSES};

/// A task, as `bpf_get_current_pid_tgid` names it: its process id in the upper
/// half, its thread id in the lower.
#[derive(Clone, Copy)]
pub(crate) struct Task(pub(crate) u64);

impl Task {
    /// Process id, in the initial pid namespace.
    #[inline(always)]
    pub(crate) fn process(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// The current task, if it is observed. migrator itself never is: it may well
/// be a member of the cgroup, and writes its list into the page cache.
#[inline(always)]
pub(crate) fn observed() -> Option<Task> {
    let filter = config(|c| &c.filter);
    // First, for this is all that those outside of the cgroup pay: a call of the
    // kernel's is a good part of what a program costs.
    if filter == FILTER_CGROUP && CGROUPS.current_task_under_cgroup(0) != Ok(true) {
        return None;
    }
    let task = Task(bpf_get_current_pid_tgid());
    let wanted = match filter {
        FILTER_PROCESSES => is_observed(task.process()),
        _ => task.process() != config(|c| &c.own_process),
    };
    wanted.then_some(task)
}

/// Whether a process is marked in the process table.
#[inline(always)]
pub(crate) fn is_observed(process: u32) -> bool {
    match entry(process) {
        // SAFETY: the pointer is into a map value and bounded by its size.
        Some(byte) => unsafe { byte.read_volatile() != 0 },
        None => false,
    }
}

/// Marks a process in the process table, or removes its mark.
#[inline(always)]
pub(crate) fn observe(process: u32, wanted: bool) {
    if let Some(byte) = entry(process) {
        // SAFETY: as in `is_observed`. A byte each, so that neighbours that
        // change at the same time on another CPU are left alone.
        unsafe { byte.write_volatile(u8::from(wanted)) }
    }
}

#[inline(always)]
fn entry(process: u32) -> Option<*mut u8> {
    let page = PROCESSES.get_ptr_mut(process / PROCESS_PAGE as u32)?;
    // SAFETY: the offset is below the size of the page.
    Some(unsafe {
        page.cast::<u8>()
            .add((process & (PROCESS_PAGE as u32 - 1)) as usize)
    })
}
