//! Where accesses come from; which source was chosen, and why.

mod access_map;
pub mod ebpf;
pub mod hooks;
pub mod kmod;
pub mod lru;
pub mod mapped;
pub mod object;
pub mod pageflags;

use std::fmt;
use std::path::Path;

use crate::target::{Target, TargetError};

use ebpf::EbpfSource;
use lru::Sampler;

/// A source at work.
pub enum Source {
    /// Every access, from the page cache's hooks.
    Ebpf(Box<EbpfSource>),
    /// What the LRU knows, from the kernel module or /proc.
    Lru(Sampler),
}

impl fmt::Display for Source {
    /// What it sees, and how.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ebpf(source) => {
                let hooks = source.hooks().iter().map(|hook| hook.tracepoint);
                write!(f, "every access ({})", hooks.collect::<Vec<_>>().join(", "))
            }
            Self::Lru(sampler) => f.write_str(sampler.what_it_knows()),
        }
    }
}

/// Which source is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// The best that this host permits.
    Auto,
    /// eBPF and no other.
    Ebpf,
    /// The kernel module and no other.
    Kmod,
    /// /proc page flags and no other.
    Procfs,
}

/// Why a source can't be used here. "Can't", "may not" and "something went
/// wrong" are three different answers.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The kernel, or this binary, does not have it.
    #[error("not supported: {0}")]
    NotSupported(String),
    /// It is there, but we may not.
    #[error("not permitted: {0}")]
    NotPermitted(String),
    /// It should work, but did not.
    #[error("probe failed: {0}")]
    Failed(String),
    /// It is not the source's fault: there is nobody to observe.
    #[error(transparent)]
    Target(TargetError),
}

/// Which source was chosen.
#[derive(Debug)]
pub struct Chosen {
    /// `ebpf`, `kmod` or `procfs`.
    pub name: &'static str,
    /// The better ones that can't be used here, and why.
    pub refused: Vec<(&'static str, Refusal)>,
}

/// Starts the source that was asked for, or with [`Choice::Auto`] the
/// first that works, best first.
///
/// # Errors
/// Why the source, or the last of them, can't be used.
pub fn choose(choice: Choice, target: &Target) -> Result<(Source, Chosen), Refusal> {
    let order: &[(&'static str, Start)] = match choice {
        Choice::Auto => &[("ebpf", ebpf), ("kmod", kmod), ("procfs", procfs)],
        Choice::Ebpf => &[("ebpf", ebpf)],
        Choice::Kmod => &[("kmod", kmod)],
        Choice::Procfs => &[("procfs", procfs)],
    };
    let mut refused = Vec::new();
    for (name, start) in order {
        match start(target) {
            Ok(source) => return Ok((source, Chosen { name, refused })),
            Err(refusal @ Refusal::Target(_)) => return Err(refusal),
            Err(refusal) => refused.push((*name, refusal)),
        }
    }
    Err(refused.pop().map_or_else(
        || Refusal::Failed("there is no source to choose".into()),
        |(_, refusal)| refusal,
    ))
}

/// Tries every source, best first: what it sees here, or why it can't be used.
pub fn probe() -> Vec<(&'static str, Result<String, Refusal>)> {
    // Nobody is observed: we are the only ones in our own table of processes,
    // and it is gone at once.
    let nobody = Target::Process(std::process::id() as i32);
    let ebpf = EbpfSource::start(&nobody).map(|source| Source::Ebpf(Box::new(source)).to_string());
    let kmod = by_module().and_then(|sampler| sampler.probe().map(Into::into));
    let procfs = by_proc().and_then(|sampler| sampler.probe().map(Into::into));
    vec![("ebpf", ebpf), ("kmod", kmod), ("procfs", procfs)]
}

type Start = fn(&Target) -> Result<Source, Refusal>;

fn ebpf(target: &Target) -> Result<Source, Refusal> {
    EbpfSource::start(target).map(|source| Source::Ebpf(Box::new(source)))
}

fn kmod(_target: &Target) -> Result<Source, Refusal> {
    by_module().map(Source::Lru)
}

fn procfs(_target: &Target) -> Result<Source, Refusal> {
    by_proc().map(Source::Lru)
}

fn by_module() -> Result<Sampler, Refusal> {
    let device = Path::new(kmod::DEVICE);
    Ok(Sampler::kmod(
        device,
        Path::new("/proc"),
        Path::new("/sys"),
    )?)
}

fn by_proc() -> Result<Sampler, Refusal> {
    Ok(Sampler::procfs(Path::new("/proc"), Path::new("/sys"))?)
}
