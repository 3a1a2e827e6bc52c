//! The eBPF source: every access, exactly, from the page cache's own hooks.

use std::error::Error;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use aya::maps::{Array, CgroupArray, HashMap, Map, MapData, PerCpuArray, RingBuf};
use aya::programs::ProgramError;
use aya::programs::links::FdLink;
use aya::{Ebpf, EbpfLoader, VerifierLogLevel};
use migrator_common::access::{CURSORS, ChunkBits, ChunkKey, Cursor, PROCESS_PAGE};
use migrator_common::config::{Config, FILTER_ALL, FILTER_CGROUP, FILTER_PROCESSES};
use migrator_common::event::{Counters, Event, FileKey};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use super::access_map::{AccessMap, ProcessTable};
use super::atomics;
use super::hooks::{self, Sees};
use super::links;
use super::object::{Aligned, object, without_atomics};
use super::{Refusal, Seen};
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
    cursors: Array<MapData, Cursor>,
    seen: Vec<Seen>,
    /// What attaches the programs, by what they see.
    links: Vec<(Sees, FdLink)>,
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
        let mut config =
            hooks::config(&btf).map_err(|error| Refusal::NotSupported(error.to_string()))?;
        let cgroup = filter(target, &mut config)?;
        // Kernels before 5.11 count programs and maps as locked
        // memory. Where raising the limit is not permitted, creating them says so.
        let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
        let per_cpu = !atomics::supported();
        let maps = match per_cpu {
            true => aya::util::nr_cpus()
                .map_err(|(path, error)| failure(&format!("count the CPUs in {path}"), &error))?
                as u32,
            false => 1,
        };
        let Sizes { chunks, files } = Sizes::new(kernel::memory(Path::new(PROC)), maps);
        config.per_cpu = u32::from(per_cpu);
        config.chunk_mask = chunks - 1;
        let process_pages = match config.filter {
            FILTER_PROCESSES => kernel::pid_max(Path::new(PROC)).div_ceil(PROCESS_PAGE as u32),
            _ => 1,
        };

        let changed = match per_cpu {
            true => Some(
                without_atomics(object).map_err(|error| failure("read the eBPF object", &error))?,
            ),
            false => None,
        };
        let object = changed.as_ref().map_or(object, Aligned::bytes);
        let mut ebpf = EbpfLoader::new()
            .override_global("CONFIG", &config, true)
            // Of a program that is refused we want to know why. The default
            // tells each step as well, which takes ten times as long.
            .verifier_log_level(VerifierLogLevel::STATS)
            .map_max_entries("CHUNK_KEYS", 2 * chunks * maps)
            .map_max_entries("CHUNK_BITS", 2 * chunks * maps)
            .map_max_entries("SIDES", maps)
            .map_max_entries("PROCESSES", process_pages)
            .map_max_entries("FILES", files)
            .load(object)
            .map_err(|error| failure("create the eBPF maps", &error))?;
        if let Some(cgroup) = cgroup {
            name_cgroup(&mut ebpf, cgroup)?;
        }

        let access = AccessMap::new(
            shared_array(&ebpf, "CHUNK_KEYS")?,
            shared_array(&ebpf, "CHUNK_BITS")?,
            shared_array(&ebpf, "SIDES")?,
            chunks,
            maps,
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
            cursors: take(&mut ebpf, "CURSOR_TABLE")?,
            seen: Vec::new(),
            links: Vec::new(),
            ebpf,
        };
        source.attach(&btf)?;
        Ok(source)
    }

    /// What is seen, how, and why not in a better way.
    pub fn seen(&self) -> &[Seen] {
        &self.seen
    }

    /// The same, when nothing is to be seen any more.
    pub fn into_seen(self) -> Vec<Seen> {
        self.seen
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
        }
        sum
    }

    /// How often the kernel left out a program because a task had been preempted
    /// in it on the same CPU. Whoever it was left out for: it may have been
    /// nobody of the target. (Linux since 5.12, commit 9ed9e9ba2337.)
    pub fn skipped(&self) -> u64 {
        let ways = self.seen.iter().filter_map(|seen| seen.way);
        let programs = ways.flat_map(|way| way.hooks).filter_map(|hook| {
            let program = self.ebpf.program(hook.program)?.fd().ok()?;
            let fd = program.as_fd().as_raw_fd();
            std::fs::read_to_string(format!("{PROC}/self/fdinfo/{fd}")).ok()
        });
        programs.filter_map(|text| recursion_misses(&text)).sum()
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

    /// Lets nothing run at the page cache's hooks until [`Self::attach_again`].
    ///
    /// Those that follow processes stay: they cost nothing but at a fork, and
    /// /proc does not tell later whose child a process was whose parent has
    /// ended, nor that its number is another's by now.
    pub fn detach(&mut self) {
        self.links.retain(|(sees, _)| *sees == Sees::Processes);
    }

    /// The way back. The programs were not unloaded, so that nothing is verified
    /// again.
    ///
    /// # Errors
    /// What the kernel refuses; then nothing is attached.
    pub fn attach_again(&mut self) -> Result<(), Refusal> {
        // What a thread goes on with from before is not what it would have gone
        // on with then.
        for index in 0..CURSORS {
            self.cursors
                .set(index, Cursor::default(), 0)
                .map_err(|error| failure("forget where the threads stood", &error))?;
        }
        let mut attached = Vec::new();
        for seen in &self.seen {
            if let (Some(way), true) = (seen.way, seen.sees != Sees::Processes) {
                let links = links::attach_again(&mut self.ebpf, way)?;
                attached.extend(links.into_iter().map(|link| (seen.sees, link)));
            }
        }
        self.links.extend(attached);
        Ok(())
    }

    /// Attaches programs for everything that is to be seen, each in the best
    /// way that works here.
    fn attach(&mut self, btf: &Btf) -> Result<(), Refusal> {
        let types =
            aya::Btf::from_sys_fs().map_err(|error| failure("read the kernel's types", &error))?;
        for sees in hooks::ALL {
            if sees == Sees::Processes && self.processes.is_none() {
                continue;
            }
            let mut seen = Seen::new(sees);
            for way in hooks::ways(sees) {
                match way
                    .fits(btf)
                    .and_then(|()| links::attach(&mut self.ebpf, way, &types))
                {
                    Ok(links) => {
                        self.links
                            .extend(links.into_iter().map(|link| (sees, link)));
                        seen.way = Some(way);
                        break;
                    }
                    Err(refusal) => seen.refused.push((way, refusal)),
                }
            }
            if seen.way.is_none() && matches!(sees, Sees::Processes | Sees::Reads) {
                return Err(seen.into_refusal());
            }
            self.seen.push(seen);
            if sees == Sees::Processes {
                // Whoever forks from now on is noticed.
                self.refresh().map_err(Refusal::Target)?;
            }
        }
        Ok(())
    }
}

impl AsFd for EbpfSource {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

/// From what /proc tells of a program's descriptor.
fn recursion_misses(fdinfo: &str) -> Option<u64> {
    let line = |line: &str| line.strip_prefix("recursion_misses:")?.trim().parse().ok();
    fdinfo.lines().find_map(line)
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

/// How large the maps are that grow with the host's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Chunks on one side of an access map.
    pub chunks: u32,
    /// Files that are told of once each.
    pub files: u32,
}

impl Sizes {
    /// For a host with so many bytes of memory and so many access maps.
    ///
    /// One map for all has room for a page cache as large as memory where it is dense;
    /// it is emptied when half of that was used since the last time. Several share
    /// twice that, and each has room for what one CPU can use between two looks.
    pub fn new(memory: u64, maps: u32) -> Self {
        let dense =
            memory / (migrator_common::access::CHUNK_PAGES * u64::from(kernel::page_size()));
        let chunks = match maps {
            0 | 1 => dense,
            maps => 2 * dense / u64::from(maps),
        };
        // A file that finds no place is told of again and again, which costs time.
        let files = memory >> 19;
        Self {
            chunks: chunks.clamp(1 << 13, 1 << 22).next_power_of_two() as u32,
            files: files.clamp(1 << 17, 1 << 20).next_power_of_two() as u32,
        }
    }
}

/// Tells the programs whom to observe. Gives the cgroup, where it is one that
/// they can ask for.
fn filter(target: &Target, config: &mut Config) -> Result<Option<File>, Refusal> {
    config.filter = match target {
        Target::All => FILTER_ALL,
        Target::Process(_) => FILTER_PROCESSES,
        Target::Cgroup(path) => {
            let directory = cgroup_directory(Path::new(PROC), path).map_err(Refusal::Target)?;
            let reading = |error: &(dyn Error + 'static)| failure("read the cgroup", error);
            let system = statfs(&directory).map_err(|error| reading(&error))?;
            if system.filesystem_type() == CGROUP2_SUPER_MAGIC {
                config.filter = FILTER_CGROUP;
                let cgroup = File::open(&directory).map_err(|error| reading(&error))?;
                return Ok(Some(cgroup));
            }
            // The programs can't ask for a task's cgroup of version 1, so
            // its members are observed one by one.
            FILTER_PROCESSES
        }
    };
    Ok(None)
}

/// Puts the cgroup into the programs' map, which then holds it.
fn name_cgroup(ebpf: &mut Ebpf, cgroup: File) -> Result<(), Refusal> {
    let map = ebpf
        .map_mut("CGROUPS")
        .ok_or_else(|| Refusal::Failed("the eBPF object has no map CGROUPS".into()))?;
    CgroupArray::try_from(map)
        .and_then(|mut map| map.set(0, cgroup, 0))
        .map_err(|error| failure("name the cgroup to the programs", &error))
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

/// What the kernel says where it has no trampolines for programs; of its own
/// kind, and not known to user space (linux/errno.h).
const ENOTSUPP: i32 = 524;

/// Tells "not permitted" and "not there" from other failures.
pub(super) fn failure(doing: &str, error: &(dyn Error + 'static)) -> Refusal {
    let mut text = format!("failed to {doing}");
    let mut kind = None;
    let mut cause = Some(error);
    while let Some(error) = cause {
        match error.downcast_ref() {
            Some(ProgramError::LoadError { verifier_log, .. }) => {
                if let Some(reason) = reason(&verifier_log.to_string()) {
                    let text = format!("{text}: the verifier says: {reason}");
                    // Every kernel that has the hooks has these helpers too,
                    // unless kernel_lockdown(7) takes them away.
                    return match reason.contains("cannot use helper")
                        || reason.contains("unknown func")
                    {
                        true => Refusal::NotPermitted(text),
                        false => Refusal::Failed(text),
                    };
                }
            }
            _ => text = format!("{text}: {}", first_line(&error.to_string())),
        }
        kind = error
            .downcast_ref::<io::Error>()
            .map(|error| (error.raw_os_error(), error.kind()))
            .or(kind);
        cause = error.source();
    }
    match kind {
        Some((_, io::ErrorKind::PermissionDenied)) => Refusal::NotPermitted(format!(
            "{text}; it takes root (CAP_BPF and CAP_PERFMON), and a kernel that permits it"
        )),
        Some((_, io::ErrorKind::NotFound) | (Some(ENOTSUPP), _)) => Refusal::NotSupported(text),
        _ => Refusal::Failed(text),
    }
}

/// What the verifier objects to: the last thing it says before its statistics.
fn reason(log: &str) -> Option<&str> {
    let lines = log.lines().map(str::trim);
    lines
        .take_while(|line| !line.starts_with("verification time") && !line.starts_with("processed"))
        .filter(|line| !line.is_empty())
        .last()
}

/// Some errors bring long texts along.
fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misses_are_read() {
        let text = "flags:\t02000002\nrun_cnt:\t0\nrecursion_misses:\t12\nverified_insns:\t9\n";
        assert_eq!(recursion_misses(text), Some(12));
        assert_eq!(recursion_misses("run_cnt:\t0\n"), None);
    }

    #[test]
    fn the_verifier_tells_its_reason_last() {
        let log = "func 'filemap_read' arg0 has btf_id 890 type STRUCT 'kiocb'\n\
                   R1 invalid mem access 'scalar'\n\
                   verification time 152 usec\nprocessed 9 insns (limit 1000000)\n";
        assert_eq!(reason(log), Some("R1 invalid mem access 'scalar'"));
        assert_eq!(reason(""), None);
    }

    #[test]
    fn the_map_grows_with_memory_within_bounds() {
        let chunks = |memory: u64, maps| Sizes::new(memory, maps).chunks;
        assert_eq!(chunks(0, 1), 1 << 13);
        assert_eq!(chunks(24 << 30, 1), 1 << 14);
        assert_eq!(chunks(256 << 30, 1), 1 << 17);
        assert_eq!(chunks(1 << 50, 1), 1 << 22);
        assert_eq!(chunks(1 << 30, 2), 1 << 13);
        assert_eq!(chunks(256 << 30, 16), 1 << 14);
        let files = |memory: u64| Sizes::new(memory, 1).files;
        assert_eq!(files(0), 1 << 17);
        assert_eq!(files(256 << 30), 1 << 19);
        assert_eq!(files(1 << 50), 1 << 20);
    }
}
