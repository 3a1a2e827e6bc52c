//! What a guest's kernel and its scripts say on the serial console.

use std::fs;
use std::path::{Path, PathBuf};

/// Parts of lines that tell of a fault. The kernel's are from lib/bug.c,
/// kernel/panic.c, kernel/watchdog.c, kernel/hung_task.c, kernel/rcu,
/// kernel/locking/lockdep.c (until 4.10, later they are warnings) and
/// net/sched/sch_generic.c.
const FAULTS: &[&str] = &[
    "BUG: ",
    "INFO: inconsistent ",
    "INFO: possible ",
    "INFO: rcu",
    "INFO: suspicious ",
    "INFO: task ",
    "Kernel panic",
    "NETDEV WATCHDOG",
    "Oops: ",
    "Out of memory: ",
    "WARNING: ",
    "general protection fault",
    "kernel BUG at ",
    "migrator-vm: failed ",
    "rcu_sched detected",
    "self-detected stall",
];

/// How much of a console is shown with a failure.
const SHOWN_LINES: usize = 60;

/// The file that holds a guest's console.
#[derive(Debug, Clone)]
pub(super) struct Console {
    path: PathBuf,
}

impl Console {
    /// The console in a file, which may not be there yet.
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Where it is. QEMU appends, and so does what QEMU itself has to say.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// All that was said so far.
    pub(super) fn text(&self) -> String {
        let bytes = fs::read(&self.path).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\r', "")
    }

    /// Its end, introduced by what it is.
    pub(super) fn excerpt(&self) -> String {
        let text = self.text();
        let lines: Vec<_> = text.lines().collect();
        let from = lines.len().saturating_sub(SHOWN_LINES);
        format!(
            "the console, {}, ends with\n  {}",
            self.path.display(),
            lines[from..].join("\n  "),
        )
    }
}

/// The lines that tell of a fault.
pub(super) fn faults(text: &str) -> Vec<&str> {
    text.lines()
        .filter(|line| FAULTS.iter().any(|fault| line.contains(fault)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_found_among_what_is_usual() {
        let text = "\
[    0.10] random: crng init done
[    1.20] NFSD: Using nfsdcld client tracking operations.
migrator-vm: storage is ready
[    2.63] WARNING: CPU: 0 PID: 1 at fs/nfs/inode.c:7 nfs_x+0x1/0x2
[    3.63] BUG: kernel NULL pointer dereference, address: 0000000000000008
[    3.64] Oops: Oops: 0002 [#1] PREEMPT SMP NOPTI
[    4.64] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100
migrator-vm: failed in line 12
";
        let found: Vec<_> = text.lines().skip(3).collect();
        assert_eq!(faults(text), found);
    }

    #[test]
    fn a_console_that_is_not_there_yet_is_empty() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let console = Console::new(directory.path().join("console"));
        assert_eq!(console.text(), "");
        fs::write(console.path(), "one\r\ntwo\r\n").expect("a small file");
        assert_eq!(console.text(), "one\ntwo\n");
        assert!(console.excerpt().ends_with("one\n  two"));
    }
}
