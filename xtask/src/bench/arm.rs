//! The ways to move a process that are compared.

use serde_json::Value;

use super::stage::{CONTROL, WORKLOAD};

/// Where the images of CRIU alone are on both hosts: in memory, so that no
/// disk is measured.
const IMAGES: &str = "/run/bench-images";

/// The other build in the guests.
const BASELINE: &str = "/vm/baseline";

/// A way to move a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, clap::ValueEnum)]
pub(crate) enum Arm {
    /// `criu dump`, the images by tar over ssh, `criu restore`
    Criu,
    /// The same, and the paper's prefetch: active LRU pages, page by page, one thread
    Paper,
    /// The same, and `vmtouch -t` of the open files from the stop on
    Vmtouch,
    /// `migrator move --no-warmup`
    NoWarmup,
    /// `migrator move`
    Move,
    /// `migrator move` of another build: the program that MIGRATOR_BASELINE names
    Baseline,
    /// As `criu`, to a host whose cache is warm already
    Limit,
}

impl Arm {
    /// All of them, in the order of the tables.
    pub(crate) const ALL: [Self; 6] = [
        Self::Criu,
        Self::Paper,
        Self::Vmtouch,
        Self::NoWarmup,
        Self::Move,
        Self::Limit,
    ];

    /// The key of the raw runs.
    pub(crate) fn key(self) -> &'static str {
        match self {
            Self::Criu => "criu",
            Self::Paper => "paper",
            Self::Vmtouch => "vmtouch",
            Self::NoWarmup => "no-warmup",
            Self::Move => "move",
            Self::Baseline => "baseline",
            Self::Limit => "limit",
        }
    }

    /// What people read.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Criu => "CRIU alone",
            Self::Paper => "the paper's method",
            Self::Vmtouch => "CRIU + vmtouch",
            Self::NoWarmup => "migrator move --no-warmup",
            Self::Move => "migrator move",
            Self::Baseline => "migrator move, another build",
            Self::Limit => "limit: warm destination",
        }
    }

    /// Whether the destination has read the file before.
    pub(crate) fn is_warm(self) -> bool {
        self == Self::Limit
    }

    /// The shell command that moves the process, on the source; migrator
    /// observes with `source`.
    pub(crate) fn command(self, pid: u32, source: &str) -> String {
        match self {
            Self::Criu | Self::Limit => criu(pid),
            // Both prefetchers begin with the stop, as well as one can without
            // being asked by CRIU: at the time when criu is started.
            Self::Paper => format!(
                "{WORKLOAD} active {pid} | ssh {CONTROL} destination {WORKLOAD} pages & {}; wait $!",
                criu(pid),
            ),
            Self::Vmtouch => format!(
                "files=$(find /proc/{pid}/fd -type l -printf '%l\\n' | grep ^/mnt/); \
                 ssh {CONTROL} destination vmtouch -tq $files & {}; wait $!",
                criu(pid),
            ),
            Self::NoWarmup => format!("{} --no-warmup", migrator("migrator", pid, source)),
            Self::Move => migrator("migrator", pid, source),
            Self::Baseline => migrator(BASELINE, pid, source),
        }
    }

    /// What the command printed, if it is a report.
    pub(crate) fn report(self, output: &str) -> Value {
        match self {
            Self::NoWarmup | Self::Move | Self::Baseline => {
                serde_json::from_str(output.trim()).unwrap_or(Value::Null)
            }
            _ => Value::Null,
        }
    }
}

/// What people do without any tool: dump, send, restore, one after the other.
/// The connection is open already, for a login takes a guest without KVM a
/// second, which is no part of the comparison.
fn criu(pid: u32) -> String {
    let restore = format!(
        "rm -rf {IMAGES} && mkdir {IMAGES} && tar -C {IMAGES} -x && cd / && \
         criu restore --images-dir {IMAGES} --restore-detached --log-file restore.log \
         </dev/null >/dev/null 2>&1 || {{ tail -n 20 {IMAGES}/restore.log >&2; false; }}"
    );
    format!(
        "{{ set -o pipefail; rm -rf {IMAGES} && mkdir {IMAGES} && \
         {{ criu dump --tree {pid} --images-dir {IMAGES} --log-file dump.log \
         || {{ tail -n 20 {IMAGES}/dump.log >&2; exit 1; }}; }} && \
         tar -C {IMAGES} -c . | ssh {CONTROL} destination '{restore}' || exit 1; }}"
    )
}

fn migrator(program: &str, pid: u32, source: &str) -> String {
    format!(
        "{program} move --pid {pid} --to ssh://destination --remote-path {program} \
         --source {source} --json"
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::ValueEnum;

    use super::*;

    #[test]
    fn keys_are_what_the_command_line_calls_them() {
        for arm in Arm::ALL {
            let value = arm.to_possible_value().expect("no arm is hidden");
            assert_eq!(value.get_name(), arm.key());
        }
    }

    #[test]
    fn each_arm_is_its_own_command_but_for_the_limit() {
        let commands: BTreeSet<_> = Arm::ALL.map(|arm| arm.command(7, "auto")).into();
        assert_eq!(commands.len(), Arm::ALL.len() - 1);
        assert_eq!(Arm::Criu.command(7, "auto"), Arm::Limit.command(7, "auto"));
    }
}
