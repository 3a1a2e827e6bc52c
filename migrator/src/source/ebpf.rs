//! The eBPF source: every access, exactly, from the page cache's own hooks.

use std::error::Error;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use aya::maps::{HashMap, Map, MapData, PerCpuArray, RingBuf};
use aya::programs::BtfTracePoint;
use aya::{Ebpf, EbpfLoader, VerifierLogLevel};
use migrator_common::access::{ChunkBits, ChunkKey, PROCESS_PAGE};
use migrator_common::config::{Config, FILTER_ALL, FILTER_CGROUP, FILTER_PROCESSES};
use migrator_common::event::{Counters, Event, FileKey};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use super::Refusal;
use super::access_map::{AccessMap, ProcessTable};
use super::hooks::{self, HOOKS, Hook, Sees};
use super::object::object;
use crate::btf::Btf;
use crate::kernel;
use crate::target::{Target, TargetError, cgroup_directory};

const PROC: &str = "/proc";

/// Where the kernel tells of its types.
const BTF: &str = "/sys/kernel/btf/vmlinux";

/// The loaded programs. Nothing is pinned, so that the kernel removes all of
/// it when this is dropped or the process ends, however it ends.
pub struct EbpfSource {
    ebpf: Ebpf,
    access: AccessMap,
    /// Present where processes are observed one by one.
    processes: Option<ProcessTable>,
    target: Target,
    events: RingBuf<MapData>,
    files: HashMap<MapData, FileKey, u32>,
    counters: PerCpuArray<MapData, Counters>,
    hooks: Vec<&'static Hook>,
}

impl EbpfSource {
    /// Loads the programs that fit the running kernel and attaches them.
    ///
    /// # Errors
    /// [`Refusal`] says whether this host can't, may not, or failed.
    pub fn start(target: &Target) -> Result<Self, Refusal> {
        let object = object().ok_or_else(|| {
            Refusal::NotSupported(
                "not built into this binary: build it with `cargo xtask build`".into(),
            )
        })?;
        in_first_pid_namespace(Path::new(PROC))?;
        let btf = Btf::read(Path::new(BTF))
            .map_err(|error| failure("read the kernel's types (CONFIG_DEBUG_INFO_BTF)", &error))?;
        if hooks::seeing(&btf, Sees::Reads).is_empty() {
            return Err(Refusal::NotSupported(
                "this kernel has no hook that sees reads (mm_filemap_get_pages)".into(),
            ));
        }
        let mut config =
            hooks::config(&btf).map_err(|error| Refusal::NotSupported(error.to_string()))?;
        filter(target, &mut config)?;
        let chunks = chunks_per_side(kernel::memory(Path::new(PROC)));
        config.chunk_mask = chunks - 1;
        let process_pages = match config.filter {
            FILTER_PROCESSES => kernel::pid_max(Path::new(PROC)).div_ceil(PROCESS_PAGE as u32),
            _ => 1,
        };

        // Kernels before 5.11 count maps as locked memory. Where raising the
        // limit is not permitted, creating the maps says so.
        let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
        let mut ebpf = EbpfLoader::new()
            .override_global("CONFIG", &config, true)
            // Of a program that is refused we want to know why. The default
            // tells each step as well, which takes ten times as long.
            .verifier_log_level(VerifierLogLevel::STATS)
            .map_max_entries("CHUNK_KEYS", 2 * chunks)
            .map_max_entries("CHUNK_BITS", 2 * chunks)
            .map_max_entries("PROCESSES", process_pages)
            .load(object)
            .map_err(|error| failure("create the eBPF maps", &error))?;

        let access = AccessMap::new(
            shared_array(&ebpf, "CHUNK_KEYS")?,
            shared_array(&ebpf, "CHUNK_BITS")?,
            shared_array(&ebpf, "SIDES")?,
            chunks,
        );
        let processes = match config.filter {
            FILTER_PROCESSES => {
                let table = ProcessTable::new(shared_array(&ebpf, "PROCESSES")?, process_pages);
                Some(table.map_err(|error| failure("map the process table", &error))?)
            }
            _ => None,
        };
        let mut source = Self {
            access: access.map_err(|error| failure("map the access map", &error))?,
            processes,
            target: target.clone(),
            events: take(&mut ebpf, "EVENTS")?,
            files: take(&mut ebpf, "FILES")?,
            counters: take(&mut ebpf, "COUNTERS")?,
            hooks: Vec::new(),
            ebpf,
        };
        source.attach(&btf)?;
        Ok(source)
    }

    /// The hooks in use.
    pub fn hooks(&self) -> &[&'static Hook] {
        &self.hooks
    }

    /// Gives each chunk that was used since the last call.
    ///
    /// # Errors
    /// Those of membarrier(2).
    pub fn drain(&self, each: impl FnMut(ChunkKey, &ChunkBits)) -> io::Result<()> {
        self.access.drain(each)
    }

    /// What the programs had to tell; readable when `as_fd` is.
    pub fn next_event(&mut self) -> Option<Event> {
        let item = self.events.next()?;
        let word = |at: usize| {
            item.get(at..at + 4)?
                .first_chunk()
                .copied()
                .map(u32::from_ne_bytes)
        };
        Some(Event {
            kind: word(0)?,
            process: word(4)?,
            inode: item
                .get(8..16)?
                .first_chunk()
                .copied()
                .map(u64::from_ne_bytes)?,
            device: word(16)?,
            generation: word(20)?,
        })
    }

    /// Every file seen so far: what `next_event` told, and what it could not.
    pub fn files_seen(&self) -> impl Iterator<Item = FileKey> + '_ {
        self.files.keys().flatten()
    }

    /// What was seen and lost so far.
    pub fn counters(&self) -> Counters {
        let mut sum = Counters::default();
        for counters in self.counters.get(&0, 0).iter().flat_map(|cpus| cpus.iter()) {
            sum.chunks_lost += counters.chunks_lost;
            sum.files_lost += counters.files_lost;
            sum.events_lost += counters.events_lost;
            sum.pages_lost += counters.pages_lost;
            sum.accesses += counters.accesses;
        }
        sum
    }

    /// The processes that are observed one by one. Those whose parent has
    /// ended are among them, which /proc does not tell any more.
    pub fn processes(&self) -> Vec<i32> {
        let table = self.processes.iter();
        table
            .flat_map(|table| table.processes())
            .map(|process| process as i32)
            .collect()
    }

    /// Observes the target's processes that are not observed yet. Forks are
    /// followed in the kernel; this finds those that join a cgroup.
    ///
    /// # Errors
    /// The target does not exist (any more).
    pub fn refresh(&self) -> Result<(), TargetError> {
        let Some(table) = &self.processes else {
            return Ok(());
        };
        // A child that is forked while we look has a parent that is marked
        // already, or is found by the second look.
        loop {
            let processes = self.target.processes(Path::new(PROC))?;
            let new = processes
                .iter()
                .filter(|process| table.insert(**process as u32));
            if new.count() == 0 {
                return Ok(());
            }
        }
    }

    /// Attaches the programs whose hooks exist: first those that follow
    /// processes, so that no fork is missed.
    fn attach(&mut self, btf: &Btf) -> Result<(), Refusal> {
        let kernel_types =
            aya::Btf::from_sys_fs().map_err(|error| failure("read the kernel's types", &error))?;
        let follow = self.processes.is_some();
        let mut wanted: Vec<&'static Hook> = HOOKS.iter().filter(|hook| hook.exists(btf)).collect();
        wanted.retain(|hook| follow || hook.sees != Sees::Processes);
        wanted.sort_by_key(|hook| hook.sees != Sees::Processes);
        for hook in wanted {
            if hook.sees != Sees::Processes
                && self
                    .hooks
                    .last()
                    .is_some_and(|last| last.sees == Sees::Processes)
            {
                self.refresh().map_err(Refusal::Target)?;
            }
            let doing = format!("attach to the tracepoint {}", hook.tracepoint);
            let program = self.ebpf.program_mut(hook.program);
            let program: &mut BtfTracePoint = program
                .ok_or_else(|| Refusal::Failed(format!("failed to {doing}: no such program")))?
                .try_into()
                .map_err(|error| failure(&doing, &error))?;
            program
                .load(hook.tracepoint, &kernel_types)
                .map_err(|error| failure(&doing, &error))?;
            program.attach().map_err(|error| failure(&doing, &error))?;
            self.hooks.push(hook);
        }
        Ok(())
    }
}

impl AsFd for EbpfSource {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

/// The programs know processes by the numbers of the initial pid namespace; in
/// another one the same numbers mean other processes.
fn in_first_pid_namespace(proc_root: &Path) -> Result<(), Refusal> {
    // PID_NS_INIT_INO (linux/nsfs.h), the same since Linux 3.8.
    const INITIAL: u64 = 0xefff_fffc;
    let namespace = std::fs::metadata(proc_root.join("self/ns/pid"))
        .map_err(|error| failure("find out about the pid namespace", &error))?;
    if namespace.ino() != INITIAL {
        return Err(Refusal::NotSupported(
            "migrator runs in a pid namespace of its own: run it on the host, or in a container \
             that shares the host's pid namespace"
                .into(),
        ));
    }
    Ok(())
}

/// Chunks on one side of the access map: twice what a page cache as large as
/// memory takes when it is dense, so that the map stays half empty.
fn chunks_per_side(memory: u64) -> u32 {
    let dense = memory / (migrator_common::access::CHUNK_PAGES * u64::from(kernel::page_size()));
    (2 * dense).clamp(1 << 14, 1 << 22).next_power_of_two() as u32
}

/// Tells the programs whom to observe.
fn filter(target: &Target, config: &mut Config) -> Result<(), Refusal> {
    config.filter = match target {
        Target::All => FILTER_ALL,
        Target::Process(_) => FILTER_PROCESSES,
        Target::Cgroup(path) => {
            let directory = cgroup_directory(Path::new(PROC), path).map_err(Refusal::Target)?;
            match cgroup2_level(&directory).map_err(|error| failure("read the cgroup", &error))? {
                Some(level) => {
                    let metadata = std::fs::metadata(&directory)
                        .map_err(|error| failure("read the cgroup", &error))?;
                    // A cgroup's id is its directory's inode number
                    // (kernfs_node_id, kernel commit 67c0496e87d1).
                    config.cgroup_id = metadata.ino();
                    config.cgroup_level = level;
                    FILTER_CGROUP
                }
                // The programs can't ask for a task's cgroup of version 1, so
                // its members are observed one by one.
                None => FILTER_PROCESSES,
            }
        }
    };
    Ok(())
}

/// How deep a cgroup of version 2 is below the root; `None` for version 1.
fn cgroup2_level(directory: &Path) -> nix::Result<Option<u32>> {
    let is_cgroup2 =
        |path: &Path| Ok::<_, nix::Error>(statfs(path)?.filesystem_type() == CGROUP2_SUPER_MAGIC);
    let mut directory: PathBuf = directory.canonicalize().map_err(|_| nix::Error::ENOENT)?;
    if !is_cgroup2(&directory)? {
        return Ok(None);
    }
    let mut level = 0;
    while directory.pop() && is_cgroup2(&directory)? {
        level += 1;
    }
    Ok(Some(level))
}

/// The descriptor of a map.
fn shared_array<'a>(ebpf: &'a Ebpf, name: &str) -> Result<BorrowedFd<'a>, Refusal> {
    match ebpf.map(name) {
        Some(Map::Array(data)) => Ok(data.fd().as_fd()),
        _ => Err(Refusal::Failed(format!(
            "the eBPF object has no array {name}"
        ))),
    }
}

/// Takes a map out of the object.
fn take<M: TryFrom<Map, Error: Error + 'static>>(
    ebpf: &mut Ebpf,
    name: &str,
) -> Result<M, Refusal> {
    let map = ebpf
        .take_map(name)
        .ok_or_else(|| Refusal::Failed(format!("the eBPF object has no map {name}")))?;
    M::try_from(map).map_err(|error| failure(&format!("open the eBPF map {name}"), &error))
}

/// Tells "not permitted" and "not there" from other failures.
fn failure(doing: &str, error: &(dyn Error + 'static)) -> Refusal {
    let mut text = format!("failed to {doing}");
    let mut kind = None;
    let mut cause = Some(error);
    while let Some(error) = cause {
        text = format!("{text}: {}", first_line(&error.to_string()));
        kind = error
            .downcast_ref::<io::Error>()
            .map(io::Error::kind)
            .or(kind);
        cause = error.source();
    }
    match kind {
        Some(io::ErrorKind::PermissionDenied) => Refusal::NotPermitted(format!(
            "{text}; it takes root (CAP_BPF and CAP_PERFMON), and a kernel that permits it"
        )),
        Some(io::ErrorKind::NotFound) => Refusal::NotSupported(text),
        _ => Refusal::Failed(text),
    }
}

/// The verifier's log is many pages long; its first line will do.
fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_grows_with_memory_within_bounds() {
        assert_eq!(chunks_per_side(0), 1 << 14);
        assert_eq!(chunks_per_side(24 << 30), 1 << 15);
        assert_eq!(chunks_per_side(256 << 30), 1 << 18);
        assert_eq!(chunks_per_side(1 << 50), 1 << 22);
    }
}
