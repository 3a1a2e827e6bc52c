//! Test hosts made ready for measuring, and processes to be measured on them.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::host;
use crate::vm::{self, Host, Hosts, Link, SHARED};

/// Where the workload is on both hosts, as a program of its own is.
pub(crate) const WORKLOAD: &str = "/usr/local/bin/workload";

/// Makes commands on the source share one connection to the destination.
pub(crate) const CONTROL: &str =
    "-o ControlMaster=auto -o ControlPersist=yes -o ControlPath=/run/bench-ssh";

/// The file that is read.
const DATA: &str = "bench-data";

/// The process id of each workload. It has to be free on the destination, too,
/// where this is far above what was ever used.
const PID: u32 = 20_000;

/// How the process uses its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Workload {
    /// read(2) from the beginning to the end, again and again
    Loop,
    /// All of it once, then 4 KiB reads of a tenth in random order
    Hot,
    /// As `loop`, through a mapping
    Mmap,
}

impl Workload {
    /// What the program and the command line call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Loop => "loop",
            Self::Hot => "hot",
            Self::Mmap => "mmap",
        }
    }
}

/// How large everything is.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Scale {
    /// The guests' kernel, as for `cargo xtask vm`
    #[arg(long, default_value = "6.12")]
    pub(crate) kernel: String,
    /// Size of the file in MiB
    #[arg(long, value_name = "MIB", default_value_t = 64)]
    pub(crate) size: u64,
    /// Megabits per second that each host can send
    #[arg(long, value_name = "MBIT", default_value_t = 30)]
    pub(crate) rate: u32,
    /// Seconds from the order to move until it is asked how much has been read
    #[arg(long, value_name = "SECONDS", default_value_t = 30.0)]
    pub(crate) window: f64,
    /// What `migrator move` observes with: auto, ebpf, procfs
    #[arg(long, default_value = "auto")]
    pub(crate) source: String,
}

impl Scale {
    /// For the raw runs.
    pub(crate) fn to_json(&self) -> Value {
        json!({
            "kernel": self.kernel,
            "file_bytes": self.size << 20,
            "link_bits_per_second": u64::from(self.rate) * 1_000_000,
            "window_seconds": self.window,
            "source": self.source,
        })
    }

    fn link(&self) -> Link {
        Link {
            rate: Some(self.rate),
            delay: None,
        }
    }
}

/// Hosts that are ready.
#[derive(Debug)]
pub(crate) struct Stage {
    /// They have the workload, and the file.
    pub(crate) hosts: Hosts,
    /// How large everything is.
    pub(crate) scale: Scale,
}

impl Stage {
    /// Brings the hosts up and makes them ready.
    ///
    /// # Errors
    /// When they don't come up, or lack something.
    pub(crate) fn set(scale: Scale, workload: &Path) -> Result<Self> {
        let hosts = Hosts::start(&vm::Options {
            kernel: scale.kernel.clone(),
            ..vm::Options::default()
        })?;
        // Not zeros, for NFS 4.2 sends a hole as such (READ_PLUS).
        hosts.storage.run(&format!(
            "yes migrator | head -c {} >/srv/shared/{DATA}",
            scale.size << 20
        ))?;
        for host in [&hosts.source, &hosts.destination] {
            host.put(workload, WORKLOAD)?;
            // Under the multi-generational LRU "active" means nothing, and the
            // paper's method would have nothing to go by. Kernels without it
            // have no such file.
            host.run(
                "f=/sys/kernel/mm/lru_gen/enabled; if [ -e $f ]; then echo n >$f; \
                 grep -qx 0x0000 $f; fi",
            )
            .context("failed to turn the multi-generational LRU off")?;
        }
        hosts
            .source
            .run(&format!("ssh {CONTROL} destination true"))
            .context("failed to log in from the source to the destination")?;
        Ok(Self { hosts, scale })
    }

    /// Starts the workload on the source, with cold caches on both hosts. The
    /// link is not limited until [`Self::limit_link`], so that the source is
    /// warm soon.
    ///
    /// # Errors
    /// When it does not start.
    pub(crate) fn start(&self, workload: Workload, warm_destination: bool) -> Result<u32> {
        self.hosts.shape(Link::default())?;
        for host in [&self.hosts.source, &self.hosts.destination] {
            // The programs that move it are no part of what is measured.
            host.run(
                "sync; echo 3 >/proc/sys/vm/drop_caches; \
                 criu check >/dev/null; ssh -V 2>/dev/null; tar --version >/dev/null; \
                 vmtouch /dev/null >/dev/null; migrator --version >/dev/null",
            )?;
        }
        if warm_destination {
            let command = format!("cat {SHARED}/{DATA} {SHARED}/{DATA} >/dev/null");
            self.hosts.destination.run(&command)?;
        }
        let started = self.hosts.source.run(&format!(
            "cd /; echo {} >/proc/sys/kernel/ns_last_pid; \
             setsid {WORKLOAD} {} {SHARED}/{DATA} </dev/null >/dev/null 2>&1 & echo $!",
            PID - 1,
            workload.name(),
        ))?;
        started
            .trim()
            .parse()
            .with_context(|| format!("failed to read the workload's process id: {started}"))
    }

    /// Makes the link as slow as the scale says.
    ///
    /// # Errors
    /// When a guest can't.
    pub(crate) fn limit_link(&self) -> Result<()> {
        self.hosts.shape(self.scale.link())
    }

    /// Ends the workload wherever it is.
    ///
    /// # Errors
    /// When it does not end.
    pub(crate) fn end(&self, pid: u32) -> Result<()> {
        for host in [&self.hosts.source, &self.hosts.destination] {
            end(host, pid)?;
        }
        Ok(())
    }

    /// The machine and the guests, for the raw runs.
    ///
    /// # Errors
    /// When a guest does not answer.
    pub(crate) fn describe(&self) -> Result<Value> {
        let processor = "sed -n 's/^model name.*: //p' /proc/cpuinfo | head -n 1";
        let guest = |command: &str| -> Result<String> {
            Ok(self.hosts.source.run(command)?.trim().to_owned())
        };
        let own = host::describe();
        Ok(json!({
            "processor": own["processor"],
            "cores": own["cores"],
            "kernel": own["kernel"],
            "guest_processor": guest(processor)?,
            "guest_kernel": guest("uname -r")?,
            "guest_criu": guest("criu --version | sed -n 's/^Version: //p'")?,
            "migrator": guest("migrator --version")?,
        }))
    }
}

fn end(host: &Host, pid: u32) -> Result<()> {
    // Only ours: after a move that failed, the number may be somebody else's.
    let alive = format!("[ \"$(cat /proc/{pid}/comm 2>/dev/null)\" = workload ]");
    host.run(&format!("if {alive}; then kill -KILL {pid}; fi"))?;
    let start = Instant::now();
    while host
        .output(&alive, Duration::from_secs(60))?
        .status
        .success()
    {
        if start.elapsed() > Duration::from_secs(60) {
            bail!("process {pid} on {} does not end", host.name());
        }
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}
