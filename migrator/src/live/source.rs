//! The source's side: leads a migration from the first list to the report.
//!
//! It leads because the tree is here, and with it the choice to stay: what
//! goes wrong before the point of no return costs the tree a pause and nothing
//! else. The steps are `warmup`, `freeze` and `commit`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use nix::sys::utsname::uname;
use tokio::runtime::Runtime;

use super::commit::Done;
use super::files;
use super::order::{Able, ORDER_SCHEMA, Order, Subject};
use super::outside;
use super::report::{Clock, Moved, SCHEMA};
use super::tree::{self, Process};
use super::warmup::Lists;
use crate::cgroup;
use crate::container;
use crate::criu::{Criu, Passed};
use crate::destination::Destination;
use crate::exit::Unsupported;
use crate::handover::Session;
use crate::handover::session::fresh_name;
use crate::handover::settle::{Journal, Origin};
use crate::pagelist::Heat;
use crate::prefetch::Progress;
use crate::protocol::{Message, hello::ability};
use crate::signals::{Signals, interruption};
use crate::tracker::Tracker;
use crate::transfer::{self, Peer};

/// How long the destination may take to say whether it is able: its CRIU
/// looks at its kernel for that.
const ABLE: Duration = Duration::from_secs(120);

/// Between two looks at whether somebody wants an end, where only the
/// destination has something to say.
pub(super) const PATIENT: Duration = Duration::from_millis(100);

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
    /// How long lists may go ahead of the freeze; not at all without.
    pub warmup: Option<Duration>,
}

/// Moves the tree. `tracker` is started when the destination has said that it
/// is able; it gives also the source's name.
///
/// # Errors
/// [`RolledBack`] when the tree was frozen and runs on here; anything else
/// when it was never touched.
pub fn run(
    options: &Options,
    signals: &Signals,
    progress: Arc<Progress>,
    tracker: impl FnOnce() -> anyhow::Result<(Tracker, &'static str)>,
) -> anyhow::Result<Moved> {
    let processes = tree::processes(options.root)?;
    if let Subject::Process { .. } = options.subject {
        // Runtimes bring terminals and pipes of a container along.
        outside::check_outside(&processes)?;
    }
    outside::check(&processes, options.passed.tcp_established)?;
    check_here(options)?;
    let mut clock = Clock::start();
    let to = Destination::parse(&options.to).map_err(crate::exit::Usage)?;
    let destination = to.to_string();
    let runtime = transfer::runtime()?;
    let peer = connect(options, to, &runtime, signals, progress)?;

    let session = Session::named(&fresh_name()?)?;
    let order = order(options, &session, &processes)?;
    let journal = Journal {
        subject: options.subject.clone(),
        images: options.images.clone(),
        cgroup: None,
        pids: Vec::new(),
        source: Some(Origin {
            processes,
            to: options.to.clone(),
            rsh: options.rsh.clone(),
            remote_path: options.remote_path.clone(),
            criu: options.criu.program().to_owned(),
            tcp_established: options.passed.tcp_established,
        }),
    };
    let mut host = Host {
        options,
        signals,
        peer,
        session,
        journal,
        lists: Lists::default(),
        clock: &mut clock,
        last_words: None,
    };
    let moved = host.lead(&order, tracker);
    let Host {
        peer,
        lists,
        last_words,
        ..
    } = host;
    peer.leave(last_words);
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
        warmup_rounds: lists.ahead,
        list: lists.size,
        image_bytes,
        arrival,
    })
}

/// Refuses what can't work on this host.
fn check_here(options: &Options) -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        let why = "CRIU needs root to dump: run migrator as root";
        return Err(Unsupported(why.into()).into());
    }
    let unsupported = |error: anyhow::Error| Unsupported(format!("{error:#}"));
    options.criu.version().map_err(unsupported)?;
    options.criu.check().map_err(unsupported)?;
    if let Some(images) = &options.images
        && !images.is_dir()
    {
        bail!("--images-dir {} is not a directory", images.display());
    }
    Ok(())
}

fn connect(
    options: &Options,
    to: Destination,
    runtime: &Runtime,
    signals: &Signals,
    progress: Arc<Progress>,
) -> anyhow::Result<Peer> {
    let connection = runtime.block_on(async {
        tokio::select! {
            biased;
            ended = signals.came() => Err(interruption(ended, "source")),
            connection = transfer::open(to, &options.rsh, &options.remote_path) => connection,
        }
    })?;
    let (peer, theirs) = Peer::source(connection, runtime.handle().clone(), progress)?;
    if theirs.abilities & ability::LIVE == 0 {
        let migrator = theirs.migrator;
        peer.leave(None);
        bail!(
            "{} ({migrator}) can't take over processes: use the same migrator",
            options.to
        );
    }
    Ok(peer)
}

fn order(options: &Options, session: &Session, processes: &[Process]) -> anyhow::Result<Order> {
    let here = uname().context("failed to learn what this host is")?;
    Ok(Order {
        schema: ORDER_SCHEMA.into(),
        session: session.name(),
        subject: options.subject.clone(),
        machine: here.machine().to_string_lossy().into_owned(),
        pids: processes.iter().map(|process| process.pid).collect(),
        files: match &options.subject {
            Subject::Process { .. } => files::files(processes),
            // Their paths are those of another mount namespace; the runtime
            // and CRIU look at them.
            _ => Vec::new(),
        },
        cgroup: match &options.subject {
            Subject::Process { .. } => None,
            _ => cgroup::path_of(options.root),
        },
        images: options.images.clone(),
        tcp_established: options.passed.tcp_established,
    })
}

/// The host that a tree is to leave.
pub(super) struct Host<'a> {
    pub(super) options: &'a Options,
    pub(super) signals: &'a Signals,
    pub(super) peer: Peer,
    pub(super) session: Session,
    pub(super) journal: Journal,
    pub(super) lists: Lists,
    pub(super) clock: &'a mut Clock,
    /// What to say at the end, if not nothing.
    pub(super) last_words: Option<Message>,
}

impl Host<'_> {
    /// All of it.
    fn lead(
        &mut self,
        order: &Order,
        tracker: impl FnOnce() -> anyhow::Result<(Tracker, &'static str)>,
    ) -> anyhow::Result<Done> {
        let watched = self.prepare(order).and_then(|able| {
            let Able { host, kernel, criu } = able;
            eprintln!("migrator: {host} has Linux {kernel}, CRIU {criu}");
            let cache = self.options.cache.as_ref();
            cache.map(|cache| self.watch(cache, tracker)).transpose()
        });
        let mut watched = watched.map_err(|error| self.roll_back(None, error))?;
        let source = watched.as_ref().map(|watched| watched.name.to_owned());
        let frozen = self.freeze(watched.as_mut());
        let done = match frozen {
            Ok(frozen) => self.hand_over(frozen),
            Err((frozen, error)) => Err(self.roll_back(frozen, error)),
        };
        // Not earlier: to take programs out of the kernel takes a while, in
        // which the tree would stand still.
        drop(watched);
        Ok(Done { source, ..done? })
    }

    /// Asks the destination whether it is able.
    fn prepare(&mut self, order: &Order) -> anyhow::Result<Able> {
        let began = Instant::now();
        let json = serde_json::to_vec(order).context("failed to encode the order")?;
        self.say(Message::Order(json.into()))?;
        while began.elapsed() < ABLE {
            if self.signals.wait(None, Duration::ZERO)? {
                bail!("interrupted at the source");
            }
            match self.hear(PATIENT)? {
                Some(Message::Able(json)) => {
                    self.clock.ended("check", began);
                    return serde_json::from_slice(&json)
                        .context("the destination's answer makes no sense");
                }
                Some(message) => return Err(out_of_turn(&message)),
                None => {}
            }
        }
        bail!(
            "the destination does not say within {} s whether it is able",
            ABLE.as_secs()
        )
    }

    pub(super) fn say(&mut self, message: Message) -> anyhow::Result<()> {
        self.peer
            .say(message)
            .map_err(|fault| self.peer.explain(fault))
    }

    /// The next message but how many lists are warm.
    pub(super) fn hear(&mut self, wait: Duration) -> anyhow::Result<Option<Message>> {
        match self.peer.hear(wait) {
            Ok(Some(Message::Warm(lists))) => {
                self.lists.warm = lists;
                Ok(None)
            }
            Ok(message) => Ok(message),
            Err(fault) => Err(self.peer.explain(fault)),
        }
    }
}

/// Says on stderr how far it is, for people and for whoever waits for a step.
pub(super) fn step(name: &str) {
    eprintln!("migrator: {name}");
}

pub(super) fn out_of_turn(message: &Message) -> anyhow::Error {
    anyhow!(
        "the destination says something out of turn: {:.40}",
        format!("{message:?}")
    )
}
