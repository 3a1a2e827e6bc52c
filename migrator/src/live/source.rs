//! The source's side: leads a migration from the first list to the report.
//!
//! It leads because the tree is here, and with it the choice to stay: what
//! goes wrong before the commit costs the tree a pause and nothing else. The
//! steps are `warmup`, `freeze` and `commit`.

use std::cell::Cell;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use nix::sys::utsname::uname;

use super::commit::Done;
use super::files;
use super::order::{Accepted, ORDER_SCHEMA, OpenedFile, Order};
use super::outside;
use super::report::{Clock, Moved, Refill, SCHEMA};
use super::space;
use super::tree;
use super::warmup::Lists;
use crate::cgroup;
use crate::child;
use crate::container::{self, Subject};
use crate::criu::{Criu, Passed};
use crate::destination::Destination;
use crate::exit::Unsupported;
use crate::handover::journal::{Origin, Side};
use crate::handover::outgoing::Action;
use crate::handover::outgoing::executor::Executor;
use crate::handover::session::{STORAGE, fresh_name, sweep};
use crate::handover::{Journal, Session};
use crate::pagelist::Heat;
use crate::prefetch::Progress;
use crate::process::{self, Process};
use crate::protocol::{Message, hello::ability};
use crate::say;
use crate::signals::{self, Signals};
use crate::tracker::Tracker;
use crate::transfer::{self, Peer};

/// How long the preflight check of the destination may take: its CRIU examines
/// its kernel.
const PREFLIGHT_LIMIT: Duration = Duration::from_secs(120);

/// How long the file systems of open files may take to answer.
const FILES_LIMIT: Duration = Duration::from_secs(60);

/// Poll interval for signals while only the destination has something to say.
pub(super) const SIGNAL_POLL_INTERVAL: Duration = Duration::from_millis(100);

/// How to move.
#[derive(Debug)]
pub struct Options {
    /// What.
    pub subject: Subject,
    /// The root of its process tree.
    pub root: i32,
    /// `--to`
    pub to: String,
    /// `--rsh`
    pub rsh: Vec<String>,
    /// `--remote-path`
    pub remote_path: PathBuf,
    /// Images go to this directory, which both hosts share.
    pub images: Option<PathBuf>,
    /// The CRIU of this host.
    pub criu: Criu,
    /// What to pass through to it.
    pub passed: Passed,
    /// How long the tree may stand still before the commit.
    pub max_freeze: Duration,
    /// What to do for the page cache; nothing without.
    pub cache: Option<Cache>,
}

/// What to do for the page cache.
#[derive(Debug)]
pub struct Cache {
    /// How long to observe before the first list.
    pub observe: Duration,
    /// How long an epoch is.
    pub interval: Duration,
    /// Leave out less hot pages.
    pub min_heat: Heat,
    /// List also what the LRU knows.
    pub lru: bool,
    /// How long lists may go ahead of the freeze; not at all without.
    pub warmup: Option<Duration>,
}

/// Moves the tree. `tracker` is started when the destination has accepted the
/// order; it returns also the access source's name.
///
/// # Errors
/// [`RolledBack`](crate::exit::RolledBack) when the tree was frozen and runs on
/// here; [`Undecided`](crate::handover::recovery::Undecided) when it is not
/// known whether it runs there; anything else when it was never touched.
pub fn run(
    options: &Options,
    signals: &Signals,
    progress: Arc<Progress>,
    tracker: impl FnOnce() -> anyhow::Result<(Tracker, &'static str)>,
) -> anyhow::Result<Moved> {
    let is_interrupted = || signals.wait(None, Duration::ZERO).unwrap_or(false);
    signals::ignore_file_limit()?;
    let processes = process::tree(options.root)?;
    let files = {
        let (processes, passed) = (processes.clone(), options.passed);
        let is_plain = matches!(options.subject, Subject::Process { .. });
        let examine = move || -> anyhow::Result<_> {
            if is_plain {
                // Runtimes bring terminals and pipes of a container along.
                outside::check_outside(&processes)?;
            }
            outside::check(&processes, passed.tcp_established)?;
            Ok(match is_plain {
                true => files::files(&processes),
                // Their paths are those of another mount namespace; the runtime
                // and CRIU look at them.
                false => Vec::new(),
            })
        };
        // A dead NFS server answers no stat(2).
        child::attend(
            "open files",
            FILES_LIMIT,
            examine,
            || match is_interrupted() {
                true => bail!("interrupted at the source"),
                false => Ok(()),
            },
        )??
    };
    let memory_bytes = tree::memory_bytes(&processes);
    check_here(options, memory_bytes, &is_interrupted)?;
    let clock = Clock::start();
    let to = Destination::parse(&options.to).map_err(crate::exit::Usage)?;
    let destination = to.to_string();
    let runtime = transfer::runtime()?;
    let (peer, theirs) = Peer::connect(
        to,
        &options.rsh,
        &options.remote_path,
        runtime.handle(),
        None,
        progress,
        &is_interrupted,
    )?;
    if theirs.abilities & ability::LIVE == 0 {
        let migrator = theirs.migrator;
        peer.close(None);
        bail!(
            "{} ({migrator}) can't take over processes: use the same migrator on both hosts",
            options.to
        );
    }

    sweep();
    let session = Session::named(&fresh_name()?)?;
    let order = order(options, &session, &processes, files, memory_bytes)?;
    let journal = Journal {
        subject: options.subject.clone(),
        images: options.images.clone(),
        tcp_established: options.passed.tcp_established,
        criu: options.criu.program().to_owned(),
        group: None,
        side: Side::Source(Origin {
            root: Process::of(options.root),
            processes,
            stopped: Vec::new(),
            to: options.to.clone(),
            rsh: options.rsh.clone(),
            remote_path: options.remote_path.clone(),
            destination: None,
            destination_name: String::new(),
            freeze: None,
        }),
    };
    let runs_since = Cell::new(None);
    let observe = |action| match action {
        Action::SendResume => step("resume"),
        Action::EndTree => {
            runs_since.set(Some(Instant::now()));
            step("running");
        }
        _ => {}
    };
    let executor = Executor::start(
        session.clone(),
        journal,
        peer,
        runtime.handle().clone(),
        &is_interrupted,
        observe,
    );
    let mut outgoing = Outgoing {
        options,
        signals,
        executor,
        session,
        lists: Lists::default(),
        clock,
        runs_since: &runs_since,
        last_words: None,
    };
    let moved = outgoing.lead(&order, tracker);
    say::set_urgent(false);
    let Outgoing {
        mut executor,
        lists,
        clock,
        last_words,
        ..
    } = outgoing;
    if let Some(peer) = executor.peer.take() {
        peer.close(last_words);
    }
    drop(executor);
    runtime.shutdown_background();
    let Done {
        arrival,
        source,
        freeze_seconds,
        image_bytes,
    } = moved?;
    Ok(Moved {
        schema: SCHEMA,
        session: order.session,
        subject: container::describe(&options.subject),
        destination,
        source,
        freeze_seconds,
        total_seconds: clock.elapsed().as_secs_f64(),
        phases: clock.phases(),
        warmup_rounds: lists.precopy.rounds,
        precopy: lists.precopy,
        list: lists.size,
        image_bytes,
        refill: Refill::of(&arrival),
        arrival,
    })
}

/// Refuses what can't work on this host.
fn check_here(
    options: &Options,
    memory_bytes: u64,
    is_interrupted: &dyn Fn() -> bool,
) -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        let why = "CRIU needs root to dump: run migrator as root";
        return Err(Unsupported(why.into()).into());
    }
    let unsupported = |error: anyhow::Error| Unsupported(format!("{error:#}"));
    options.criu.version(is_interrupted).map_err(unsupported)?;
    options.criu.check(is_interrupted).map_err(unsupported)?;
    if let Some(images) = &options.images
        && !images.is_dir()
    {
        bail!("--images-dir {} is not a directory", images.display());
    }
    std::fs::create_dir_all(STORAGE).with_context(|| format!("failed to create {STORAGE}"))?;
    let directory = options.images.as_deref().unwrap_or(STORAGE.as_ref());
    let copies = container::copies(&options.subject);
    space::check(directory, space::needed(memory_bytes, copies))
}

fn order(
    options: &Options,
    session: &Session,
    processes: &[Process],
    files: Vec<OpenedFile>,
    memory_bytes: u64,
) -> anyhow::Result<Order> {
    let here = uname().context("failed to learn what this host is")?;
    Ok(Order {
        schema: ORDER_SCHEMA.into(),
        session: session.name(),
        subject: options.subject.clone(),
        machine: here.machine().to_string_lossy().into_owned(),
        pids: processes.iter().map(|process| process.pid).collect(),
        files,
        cgroup: match &options.subject {
            Subject::Process { .. } => None,
            _ => cgroup::path_of(options.root),
        },
        images: options.images.clone(),
        tcp_established: options.passed.tcp_established,
        host: here.nodename().to_string_lossy().into_owned(),
        memory_bytes,
    })
}

/// A migration in progress, as the host that the tree leaves sees it.
pub(super) struct Outgoing<'a> {
    pub(super) options: &'a Options,
    pub(super) signals: &'a Signals,
    pub(super) executor: Executor<'a>,
    pub(super) session: Session,
    pub(super) lists: Lists,
    pub(super) clock: Clock,
    /// Since when the tree runs on the destination, as this host learnt it.
    pub(super) runs_since: &'a Cell<Option<Instant>>,
    /// The last message, if there is one.
    pub(super) last_words: Option<Message>,
}

impl Outgoing<'_> {
    /// Leads it from the order to the report.
    fn lead(
        &mut self,
        order: &Order,
        tracker: impl FnOnce() -> anyhow::Result<(Tracker, &'static str)>,
    ) -> anyhow::Result<Done> {
        let watched = self.preflight(order).and_then(|accepted| {
            let Accepted {
                host, kernel, criu, ..
            } = accepted;
            let limit = humantime::format_duration(self.options.max_freeze);
            say!("{host} has Linux {kernel}, CRIU {criu}; the freeze is given up after {limit}");
            let cache = self.options.cache.as_ref();
            cache.map(|cache| self.watch(cache, tracker)).transpose()
        });
        let watched = match watched {
            Ok(watched) => watched,
            Err(error) => {
                self.last_words = Some(Message::Failed(format!("{error:#}")));
                return Err(error);
            }
        };
        let source = watched.as_ref().map(|watched| watched.name.to_owned());
        let mut watched = watched;
        let frozen = self.freeze(&mut watched);
        let done = frozen.and_then(|frozen| self.hand_over(frozen));
        // Not earlier: to take programs out of the kernel takes a while, in
        // which the tree would stand still.
        drop(watched);
        Ok(Done { source, ..done? })
    }

    /// Has the destination check whether it can restore the tree.
    fn preflight(&mut self, order: &Order) -> anyhow::Result<Accepted> {
        let began = Instant::now();
        let json = serde_json::to_vec(order).context("failed to encode the order")?;
        self.send(Message::Order(json.into()))?;
        while began.elapsed() < PREFLIGHT_LIMIT {
            self.check_signals()?;
            match self.recv(SIGNAL_POLL_INTERVAL)? {
                Some(Message::Accepted(json)) => {
                    self.clock.ended("check", began);
                    let accepted: Accepted = serde_json::from_slice(&json)
                        .context("malformed answer from the destination")?;
                    self.executor.expect(&accepted.identity, &accepted.host);
                    return Ok(accepted);
                }
                Some(message) => return Err(unexpected(&message)),
                None => {}
            }
        }
        bail!(
            "the destination's preflight check timed out after {} s",
            PREFLIGHT_LIMIT.as_secs()
        )
    }

    pub(super) fn check_signals(&self) -> anyhow::Result<()> {
        match self.signals.wait(None, Duration::ZERO)? {
            true => bail!("interrupted at the source"),
            false => Ok(()),
        }
    }

    pub(super) fn peer(&mut self) -> anyhow::Result<&mut Peer> {
        let peer = self.executor.peer.as_mut();
        peer.context("there is no connection to the destination")
    }

    pub(super) fn send(&mut self, message: Message) -> anyhow::Result<()> {
        let peer = self.peer()?;
        peer.send(message).map_err(|error| peer.explain(error))
    }

    /// Returns the next message but the number of lists that are warm.
    pub(super) fn recv(&mut self, wait: Duration) -> anyhow::Result<Option<Message>> {
        let peer = self.peer()?;
        match peer.recv(wait) {
            Ok(Some(Message::Warm(lists))) => {
                self.lists.warm = lists;
                Ok(None)
            }
            Ok(message) => Ok(message),
            Err(error) => Err(peer.explain(error)),
        }
    }
}

/// Prints the step that begins, for people and for programs that wait for one.
pub(super) fn step(name: &str) {
    say!("{name}");
}

pub(super) fn unexpected(message: &Message) -> anyhow::Error {
    anyhow!(
        "unexpected message from the destination: {:.40}",
        format!("{message:?}")
    )
}
