//! The command line, as clap parses it. These structs end at
//! [`command`](crate::command), which turns them into checked options.

mod list;
mod snapshot;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::container::Runtime;
use crate::pagelist::{self, Heat};
use crate::pathmap::Mapping;
use crate::source::Choice;

pub use list::{DiffArgs, FilterArgs, FromTextArgs, ListArgs, ListCommand, MergeArgs, OutputArgs};
pub use snapshot::SnapshotArgs;

/// Moves a container to another Linux host together with its hot page cache.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Observe which file pages a process, a cgroup or the whole host uses.
    Track(TrackArgs),
    /// List what is cached of files and directories now, whoever has used it.
    Snapshot(SnapshotArgs),
    /// Show what a page index list holds.
    Show(ShowArgs),
    /// Merge, filter, compare and make page index lists.
    List(ListArgs),
    /// Read the pages of a list into the page cache of this host.
    Prefetch(PrefetchArgs),
    /// Move a process tree or a container to another host, with its hot page cache.
    Move(MoveArgs),
    /// The other end of `move`.
    Receive(ReceiveArgs),
    /// Clean up after a killed `move` or `receive` that its guard could not.
    Recover(RecoverArgs),
    /// CRIU's action script: the hot page cache goes along with the images.
    CriuHook(CriuHookArgs),
    /// Say what this host can do.
    Check(CheckArgs),
    /// Wait to be observed, then become a command.
    #[command(hide = true)]
    Hold(HoldArgs),
}

impl Cli {
    /// Parses the arguments of this process. Under the name by which CRIU
    /// knows it, which gives no arguments, it is `migrator criu-hook`.
    pub fn from_env() -> Self {
        let mut arguments: Vec<_> = std::env::args_os().collect();
        let name = arguments.first().map(Path::new);
        if name.is_some_and(|name| name.ends_with(crate::criu_hook::NAME)) {
            arguments.insert(1, "criu-hook".into());
        }
        Self::parse_from(arguments)
    }
}

/// Whom to observe.
#[derive(Debug, Args)]
#[group(id = "target", required = true, multiple = false)]
pub struct TargetArgs {
    /// This process and its descendants, also those forked later.
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(i32).range(1..))]
    pub pid: Option<i32>,
    /// The processes of this cgroup and of those below it.
    #[arg(long, value_name = "PATH")]
    pub cgroup: Option<PathBuf>,
    /// The processes of the container of this name.
    #[arg(long, value_name = "NAME")]
    pub container: Option<String>,
    /// Start this command, given behind `--`, and observe it from its first instruction.
    /// Its exit code becomes ours, and text goes to standard error.
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// Where accesses come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SourceChoice {
    /// The best that this host permits; says which and why.
    Auto,
    /// eBPF programs on the page cache's hooks: every access, exactly.
    Ebpf,
    /// The `hotpages` kernel module: active/inactive LRU of old kernels.
    Kmod,
    /// /proc page flags: what the LRU knows, without anything in the kernel.
    Procfs,
}

impl From<SourceChoice> for Choice {
    fn from(choice: SourceChoice) -> Self {
        match choice {
            SourceChoice::Auto => Self::Auto,
            SourceChoice::Ebpf => Self::Ebpf,
            SourceChoice::Kmod => Self::Kmod,
            SourceChoice::Procfs => Self::Procfs,
        }
    }
}

/// How to observe; shared by `track` and `move`.
#[derive(Debug, Args)]
pub struct ObserveArgs {
    /// Where accesses come from.
    #[arg(long, value_enum, default_value = "auto")]
    pub source: SourceChoice,
    /// How long one epoch is: after each, a use counts three quarters of what it did.
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "1s")]
    pub interval: Duration,
    /// List only pages of at least this heat: resident, referenced, once, active, again,
    /// or a number from 1 (resident) to 255.
    #[arg(long, value_name = "HEAT", default_value = "resident", value_parser = heat)]
    pub min_heat: Heat,
    /// List only pages whose use was observed: leave out what the LRU knows besides.
    #[arg(long)]
    pub observed_only: bool,
    /// Ask no tracker of this host (`track --all --serve`) for what was used before.
    #[arg(long)]
    pub no_history: bool,
    /// The socket of that tracker [default: /run/migrator/tracker.sock].
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

/// Whether `track` observes in windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum WindowsChoice {
    /// Without --for and COMMAND.
    Auto,
    /// Also with --for.
    Always,
    /// All the time, whatever that costs.
    Never,
}

/// `migrator track`
#[derive(Debug, Args)]
#[command(override_usage = "migrator track [OPTIONS] \
    (--pid PID | --cgroup PATH | --container NAME | --all | -- COMMAND...)")]
pub struct TrackArgs {
    #[command(flatten)]
    #[allow(missing_docs, reason = "flattened into the help of its parent")]
    pub target: TargetArgs,
    /// Every process of this host.
    #[arg(long, group = "target")]
    pub all: bool,
    /// Who runs the container.
    #[arg(long, value_enum, default_value = "podman", requires = "container")]
    pub runtime: RuntimeChoice,
    #[command(flatten)]
    #[allow(missing_docs, reason = "flattened into the help of its parent")]
    pub observe: ObserveArgs,
    /// Stop after this time; without it, at Ctrl-C or when the process ends. A COMMAND
    /// runs on to its end.
    #[arg(long = "for", value_name = "TIME", value_parser = duration)]
    pub duration: Option<Duration>,
    /// Observe in windows, so that it costs next to nothing: the first 10 epochs, then one in
    /// every 12 (much is new) to 60 (nothing is); only with source ebpf.
    #[arg(long, value_enum, value_name = "WHEN", default_value = "auto")]
    pub windows: WindowsChoice,
    /// Write the page index list to this file, atomically.
    #[arg(long, value_name = "LIST")]
    pub output: Option<PathBuf>,
    /// Also write it every so often while observing; with --serve, what is kept over a restart
    /// [default: 5m].
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub save_every: Option<Duration>,
    /// Be the tracker of this host: tell `move`, `track`, `criu-hook` and `show` what was used
    /// before they came, and keep it over a restart. Needs --all and source ebpf.
    #[arg(long)]
    pub serve: bool,
    /// Where that is kept [default: /var/lib/migrator/tracker.pil].
    #[arg(long, value_name = "FILE", requires = "serve")]
    pub state: Option<PathBuf>,
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}

/// `migrator show`
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// The list, a .pil file; `-` reads standard input. Without it, what the tracker of this
    /// host knows (`track --all --serve`).
    pub list: Option<PathBuf>,
    /// Show only files below DIR of what the tracker knows; may be repeated.
    #[arg(long, value_name = "DIR", conflicts_with = "list")]
    pub below: Vec<PathBuf>,
    /// The socket of the tracker [default: /run/migrator/tracker.sock].
    #[arg(long, value_name = "PATH", conflicts_with = "list")]
    pub socket: Option<PathBuf>,
    /// Print the list as one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// How to prefetch; shared by `prefetch` and `receive`.
#[derive(Debug, Args)]
pub struct WarmArgs {
    /// Files below FROM are found below TO on this host; may be repeated.
    #[arg(long = "map", value_name = "FROM=TO", value_parser = Mapping::parse)]
    pub maps: Vec<Mapping>,
    /// Prefetch only files below DIR, after --map; may be repeated.
    #[arg(long = "allow", value_name = "DIR")]
    pub allow: Vec<PathBuf>,
    /// Skip files whose size or mtime differs from the list.
    #[arg(long)]
    pub strict: bool,
    /// Also read files that were put in the place of the listed ones.
    #[arg(long, conflicts_with = "strict")]
    pub any_version: bool,
    /// Read at most this much, hottest first; without it, what memory is available.
    #[arg(long, value_name = "SIZE")]
    pub budget: Option<ByteSize>,
    /// How many reads are in flight at once.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub jobs: u16,
    /// Read at most this much per second, as in 100MiB/s.
    #[arg(long, value_name = "RATE", value_parser = bandwidth)]
    pub bandwidth: Option<ByteSize>,
    /// Read pages of heat `active` and more twice, so that they land on the active list.
    #[arg(long)]
    pub activate: bool,
}

/// `migrator prefetch`
#[derive(Debug, Args)]
pub struct PrefetchArgs {
    /// The list, a .pil file; `-` reads standard input.
    pub list: PathBuf,
    #[command(flatten)]
    #[allow(missing_docs, reason = "flattened into the help of its parent")]
    pub warm: WarmArgs,
    /// Say what would be read, and read nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Print the report as one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// `migrator move`
#[derive(Debug, Args)]
pub struct MoveArgs {
    #[command(flatten)]
    #[allow(missing_docs, reason = "flattened into the help of its parent")]
    pub subject: SubjectArgs,
    /// Who runs the container; with docker, only --cache-only works.
    #[arg(long, value_enum, default_value = "podman", requires = "container")]
    pub runtime: RuntimeChoice,
    /// Where to: ssh://[user@]host, or tcp://ADDR:PORT on this machine.
    #[arg(long, value_name = "DEST")]
    pub to: String,
    /// The command that logs in to the host, as in rsync.
    #[arg(long, value_name = "COMMAND", default_value = "ssh")]
    pub rsh: String,
    /// The migrator to run on the other host.
    #[arg(long, value_name = "PATH", default_value = "migrator")]
    pub remote_path: PathBuf,
    /// How long to observe before the first list is sent.
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "5s")]
    pub observe: Duration,
    #[command(flatten)]
    #[allow(missing_docs, reason = "flattened into the help of its parent")]
    pub source: ObserveArgs,
    /// Hand over the page cache only; the process stays where it is.
    #[arg(long)]
    pub cache_only: bool,
    /// Files below FROM are found below TO on the other host; may be repeated.
    #[arg(long = "map", value_name = "FROM=TO", value_parser = Mapping::parse, requires = "cache_only")]
    pub maps: Vec<Mapping>,
    #[command(flatten)]
    #[allow(missing_docs, reason = "flattened into the help of its parent")]
    pub live: LiveArgs,
    /// Print the report as one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// What to move.
#[derive(Debug, Args)]
#[group(id = "subject", required = true, multiple = false)]
pub struct SubjectArgs {
    /// This process and its descendants.
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(i32).range(1..))]
    pub pid: Option<i32>,
    /// The container of this name.
    #[arg(long, value_name = "NAME")]
    pub container: Option<String>,
    /// The processes of this cgroup; with --cache-only.
    #[arg(long, value_name = "PATH", requires = "cache_only")]
    pub cgroup: Option<PathBuf>,
}

/// How to move a live tree.
#[derive(Debug, Args)]
#[group(id = "live", conflicts_with = "cache_only")]
pub struct LiveArgs {
    /// Prefetch nothing before the freeze.
    #[arg(long)]
    pub no_warmup: bool,
    /// How long to prefetch at most before the freeze. It ends as soon as few new pages
    /// are used, but in files that keep changing; the container runs on meanwhile.
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "2m", conflicts_with = "no_warmup")]
    pub max_warmup: Duration,
    /// How long the container may stand still before the commit; after that it runs
    /// on here.
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "1m")]
    pub max_freeze: Duration,
    /// Leave the page cache behind: what CRIU alone does.
    #[arg(long)]
    pub no_prefetch: bool,
    /// Put the images into this directory, which both hosts share, instead of
    /// sending them.
    #[arg(long, value_name = "DIR")]
    pub images_dir: Option<PathBuf>,
    /// Take established TCP connections along; their address has to move, too.
    #[arg(long)]
    pub tcp_established: bool,
    /// The CRIU of this host.
    #[arg(long, value_name = "PATH", default_value = "criu")]
    pub criu: PathBuf,
}

/// What runs a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RuntimeChoice {
    /// podman; once moved, it knows the container on the other host.
    Podman,
    /// runc by itself; to move it, its bundle has to be on both hosts.
    Runc,
    /// docker.
    Docker,
}

impl From<RuntimeChoice> for Runtime {
    fn from(choice: RuntimeChoice) -> Self {
        match choice {
            RuntimeChoice::Podman => Self::Podman,
            RuntimeChoice::Runc => Self::Runc,
            RuntimeChoice::Docker => Self::Docker,
        }
    }
}

/// `migrator receive`
#[derive(Debug, Args)]
#[group(id = "channel", required = true, multiple = false)]
pub struct ReceiveArgs {
    /// Wait for one source on this loopback address.
    #[arg(long, value_name = "ADDR:PORT", group = "channel")]
    pub listen: Option<SocketAddr>,
    /// Talk over standard input and output (what `move --to ssh://` runs).
    #[arg(long, group = "channel")]
    pub stdio: bool,
    #[command(flatten)]
    #[allow(missing_docs, reason = "flattened into the help of its parent")]
    pub warm: WarmArgs,
    /// Prefetch only: take over no processes. --listen and --allow mean this, too.
    #[arg(long)]
    pub cache_only: bool,
    /// The CRIU of this host.
    #[arg(long, value_name = "PATH", default_value = "criu")]
    pub criu: PathBuf,
    /// Print the report as one JSON object (not with --stdio).
    #[arg(long, conflicts_with = "stdio")]
    pub json: bool,
}

/// `migrator recover`
#[derive(Debug, Args)]
pub struct RecoverArgs {
    /// Session to recover [default: all orphaned sessions].
    pub session: Option<String>,
    /// List the sessions of this host and what state they are in.
    #[arg(long, conflicts_with_all = ["wait", "destination_is_dead"])]
    pub list: bool,
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
    /// Watch the leader of the session and recover it when it dies.
    #[arg(long, hide = true, requires = "session")]
    pub wait: bool,
    /// Let the tree run here although it is not known whether it runs on HOST,
    /// the destination. Only when HOST is gone for good.
    #[arg(
        long,
        value_name = "HOST",
        requires = "session",
        conflicts_with = "wait"
    )]
    pub destination_is_dead: Option<String>,
}

/// `migrator check`
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The socket of the tracker [default: /run/migrator/tracker.sock].
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}

/// What `track -- COMMAND` starts.
#[derive(Debug, Args)]
pub struct HoldArgs {
    /// The name of the parent's socket.
    pub socket: String,
    /// What to become.
    #[arg(last = true, required = true)]
    pub command: Vec<OsString>,
}

/// `migrator criu-hook`
#[derive(Debug, Args)]
pub struct CriuHookArgs {
    /// Have every criu on this host run it: one line in /etc/criu/default.conf.
    #[arg(long)]
    pub install: bool,
    /// Take that back.
    #[arg(long, conflicts_with = "install")]
    pub remove: bool,
    /// Where CRIU's configuration is, instead of /.
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// What this process of several does.
    #[arg(long, hide = true, value_enum)]
    pub part: Option<HookPart>,
    /// The CRIU that called.
    #[arg(long, hide = true, value_name = "PID", requires = "part")]
    pub criu: Option<i32>,
}

/// The processes that `criu-hook` starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum HookPart {
    /// Looks at a tree that is dumped.
    Look,
    /// Reads for a restored one.
    Prefetch,
}

/// A time such as `30s`, `500ms` or `2m`; not zero.
fn duration(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text)
        .map_err(|error| format!("{error} (a time looks like 30s, 500ms or 2m)"))?;
    if time.is_zero() {
        return Err("the time must be more than zero".into());
    }
    Ok(time)
}

/// A heat, by its name or as a number.
fn heat(text: &str) -> Result<Heat, String> {
    if let Some((_, heat)) = pagelist::STEPS.iter().find(|(name, _)| *name == text) {
        return Ok(*heat);
    }
    match text.parse() {
        Ok(0) | Err(_) => {
            let names = pagelist::STEPS.map(|(name, _)| name).join(", ");
            Err(format!(
                "a heat is one of {names}, or a number from 1 to 255"
            ))
        }
        Ok(heat) => Ok(heat),
    }
}

/// A rate such as `100MiB/s` in bytes per second; not zero.
fn bandwidth(text: &str) -> Result<ByteSize, String> {
    let rate: ByteSize = text.strip_suffix("/s").unwrap_or(text).parse()?;
    if rate.as_u64() == 0 {
        return Err("the rate must be more than zero".into());
    }
    Ok(rate)
}
