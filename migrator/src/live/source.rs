//! The source's side: leads a migration from the first list to the report.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Child;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use nix::sys::signal::Signal;
use nix::sys::utsname::uname;
use tokio::runtime::Runtime;

use super::images;
use super::order::{Able, ORDER_SCHEMA, Order, Subject};
use super::report::{Arrival, Clock, ListSize, Moved, SCHEMA};
use super::rounds::Rounds;
use super::tree::{self, Process};
use crate::cgroup;
use crate::container;
use crate::criu::{Criu, Passed};
use crate::destination::Destination;
use crate::exit::{RolledBack, Unsupported};
use crate::handover::session::{Leader, fresh_name};
use crate::handover::settle::{
    self, AT_WORK, COMMITTING, DUMPED, JOURNAL, Journal, Origin, RELEASE,
};
use crate::handover::{Decision, Session};
use crate::observe::Epochs;
use crate::pagelist::{Heat, PageIndexList};
use crate::prefetch::Progress;
use crate::protocol::{Fault, Message, hello::ability};
use crate::signals::Signals;
use crate::tracker::Tracker;
use crate::transfer::{self, Peer, write_list};

/// Between two looks at what else may have happened.
const LOOK: Duration = Duration::from_millis(2);

/// How long the destination may take to say whether it is able: its CRIU
/// looks at its kernel for that.
const ABLE: Duration = Duration::from_secs(120);

/// How long the tree may stand still before it is given up to move it.
const FROZEN: Duration = Duration::from_secs(600);

/// How long a tree may take to stand still.
const STOP: Duration = Duration::from_secs(60);

/// A round of fewer pages than this part of all that were sent is the last
/// before the freeze.
const SMALL: f64 = 0.01;

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
        tree::check_outside(&processes)?;
    }
    tree::check(&processes, options.passed.tcp_established)?;
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

/// What came of it.
struct Done {
    arrival: Arrival,
    source: Option<String>,
    freeze_seconds: f64,
    image_bytes: u64,
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
            ended = signals.came() => Err(interruption(ended)),
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
            Subject::Process { .. } => tree::files(processes),
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

/// A tracker, and until when its epoch lasts.
struct Watched {
    tracker: Tracker,
    name: &'static str,
    epochs: Epochs,
    min_heat: Heat,
}

/// What was sent of lists.
#[derive(Default)]
struct Lists {
    rounds: Rounds,
    size: ListSize,
    /// How many lists were sent, how many of them before the freeze, and how
    /// many the destination has prefetched.
    sent: u32,
    ahead: u32,
    warm: u32,
}

/// The host that a tree is to leave.
struct Host<'a> {
    options: &'a Options,
    signals: &'a Signals,
    peer: Peer,
    session: Session,
    journal: Journal,
    lists: Lists,
    clock: &'a mut Clock,
    /// What to say at the end, if not nothing.
    last_words: Option<Message>,
}

/// A tree that stands still.
struct Frozen {
    leader: Leader,
    dump: Option<Child>,
    since: Instant,
    processes: Vec<Process>,
    /// It ends with its dump.
    releases: bool,
    sending: Option<JoinHandle<anyhow::Result<u64>>>,
    image_bytes: u64,
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
        // From here on nothing of ours is in the kernel.
        drop(watched);
        match frozen {
            Ok(frozen) => Ok(Done {
                source,
                ..self.hand_over(frozen)?
            }),
            Err((frozen, error)) => Err(self.roll_back(frozen, error)),
        }
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
            match self.hear(Duration::from_millis(100))? {
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

    /// Observes, and lets lists go ahead while the tree still runs.
    fn watch(
        &mut self,
        cache: &Cache,
        tracker: impl FnOnce() -> anyhow::Result<(Tracker, &'static str)>,
    ) -> anyhow::Result<Watched> {
        let began = Instant::now();
        let (tracker, name) = tracker()?;
        let mut watched = Watched {
            tracker,
            name,
            epochs: Epochs::every(cache.interval),
            min_heat: cache.min_heat,
        };
        step("observe");
        self.let_run(&mut watched, cache.observe, |_| false)?;
        self.clock.ended("observe", began);
        let Some(limit) = cache.warmup else {
            return Ok(watched);
        };
        let began = Instant::now();
        loop {
            // What the tree may still write waits until it can't.
            let waits = self.written()?;
            let pages = self.send_news(&mut watched, &waits, &BTreeSet::new())?;
            self.lists.ahead = self.lists.sent;
            let enough = (self.lists.size.pages as f64 * SMALL) as u64;
            let left = limit.saturating_sub(began.elapsed());
            if pages > 0 {
                step(&format!(
                    "warm-up, round {}: {pages} pages",
                    self.lists.sent
                ));
                self.let_run(&mut watched, left, |lists| lists.warm == lists.sent)?;
            }
            if pages <= enough || began.elapsed() >= limit {
                self.clock.ended("warm-up", began);
                return Ok(watched);
            }
        }
    }

    /// The files that the tree can write to.
    fn written(&self) -> anyhow::Result<BTreeSet<PathBuf>> {
        let files = tree::files(&tree::processes(self.options.root)?);
        let written = files.into_iter().filter(|file| file.writable);
        Ok(written.map(|file| file.path).collect())
    }

    /// Observes for so long, or until it is enough.
    fn let_run(
        &mut self,
        watched: &mut Watched,
        time: Duration,
        is_enough: impl Fn(&Lists) -> bool,
    ) -> anyhow::Result<()> {
        let began = Instant::now();
        loop {
            if let Some(message) = self.hear(Duration::ZERO)? {
                return Err(out_of_turn(&message));
            }
            let left = time.saturating_sub(began.elapsed());
            if left.is_zero() || is_enough(&self.lists) {
                return Ok(());
            }
            let wait = left.min(Duration::from_millis(20));
            if watched
                .epochs
                .step(&mut watched.tracker, self.signals, wait)?
            {
                bail!("interrupted at the source");
            }
            if !watched.tracker.is_alive() {
                bail!("process {} has ended", self.options.root);
            }
        }
    }

    /// Sends what is new, but for some files. Gives how many pages that are.
    /// Others were written until just now.
    fn send_news(
        &mut self,
        watched: &mut Watched,
        without: &BTreeSet<PathBuf>,
        written: &BTreeSet<PathBuf>,
    ) -> anyhow::Result<u64> {
        let mut list = watched.tracker.snapshot(watched.min_heat)?.list;
        refresh(&mut list, written);
        self.lists.rounds.news(&mut list, without);
        let pages = list.pages();
        if pages == 0 {
            return Ok(0);
        }
        self.lists.size.pages += pages;
        self.lists.size.files += list.files.len() as u64;
        self.lists.size.bytes += write_list(&list, self.peer.sender())?;
        self.lists.sent += 1;
        Ok(pages)
    }

    /// Stops the tree, dumps it, and lets list and images go.
    fn freeze(
        &mut self,
        watched: Option<&mut Watched>,
    ) -> Result<Frozen, (Option<Frozen>, anyhow::Error)> {
        step("freeze");
        let mut frozen = self.stop().map_err(|error| (None, error))?;
        match self.dump(&mut frozen, watched) {
            Ok(()) => Ok(frozen),
            Err(error) => Err((Some(frozen), error)),
        }
    }

    fn stop(&mut self) -> anyhow::Result<Frozen> {
        let leader = self.session.create()?;
        let start = || -> anyhow::Result<Child> {
            self.session.note(JOURNAL, &self.journal)?;
            settle::start(&self.session)?;
            let images = self.images();
            fs::create_dir_all(&images)
                .with_context(|| format!("failed to create {}", images.display()))?;
            let Options {
                subject,
                criu,
                passed,
                ..
            } = self.options;
            let mut command = container::dump(subject, &self.session, &images, criu, *passed)?;
            let dump = command
                .spawn()
                .with_context(|| format!("failed to run {:?}", command.get_program()))?;
            if let Some(process) = Process::of(dump.id() as i32) {
                self.session.note(AT_WORK, &process)?;
            }
            Ok(dump)
        };
        match start() {
            Ok(dump) => Ok(Frozen {
                leader,
                dump: Some(dump),
                since: Instant::now(),
                processes: Vec::new(),
                releases: false,
                sending: None,
                image_bytes: 0,
            }),
            Err(error) => {
                _ = self.session.remove();
                Err(error)
            }
        }
    }

    fn images(&self) -> PathBuf {
        match &self.options.images {
            Some(shared) => shared.join(self.session.name()),
            None => self.session.images(),
        }
    }

    fn dump(&mut self, frozen: &mut Frozen, watched: Option<&mut Watched>) -> anyhow::Result<()> {
        // Until it stands still, the tree runs and loses nothing.
        let ordered = Instant::now();
        loop {
            frozen.processes = tree::processes(self.options.root)?;
            if frozen.processes.iter().all(|process| process.is_held()) {
                break;
            }
            self.look(frozen)?;
            if ordered.elapsed() > STOP {
                bail!("the tree does not stand still");
            }
            thread::sleep(Duration::from_millis(1));
        }
        frozen.since = Instant::now();
        step("dump");
        frozen.releases = container::ends_with_dump(&self.options.subject)
            || tree::holds_locks(&frozen.processes);
        if let Some(origin) = &mut self.journal.source {
            // What was forked since the order was written is known now.
            origin.processes.clone_from(&frozen.processes);
        }
        self.session.note(JOURNAL, &self.journal)?;
        frozen.sending = Some(self.send_images()?);

        let began = Instant::now();
        let written = tree::sync(&frozen.processes)?;
        self.clock.ended("fsync", began);
        if let Some(watched) = watched {
            let began = Instant::now();
            self.send_news(watched, &BTreeSet::new(), &written)?;
            self.clock.ended("last list", began);
        }
        if frozen.releases {
            // Not before: what has been read and written is asked of the tree.
            self.session.note(RELEASE, &())?;
        }
        let mut dumped = false;
        loop {
            self.look(frozen)?;
            if !dumped && self.session.has(DUMPED) {
                dumped = true;
                self.clock.ended("dump", frozen.since);
                step("images");
            }
            if frozen.sending.as_ref().is_some_and(JoinHandle::is_finished)
                && let Some(sending) = frozen.sending.take()
            {
                let sent = sending.join();
                frozen.image_bytes =
                    sent.map_err(|_| anyhow!("the thread that sends images panicked"))??;
                self.clock.ended("dump and images", frozen.since);
                step("restore");
            }
            match self.hear(LOOK)? {
                Some(Message::Restored) => {
                    self.clock.ended("until restored", frozen.since);
                    step("restored");
                    return Ok(());
                }
                Some(message) => return Err(out_of_turn(&message)),
                None => {}
            }
        }
    }

    /// Sends the images while they are written.
    fn send_images(&self) -> anyhow::Result<JoinHandle<anyhow::Result<u64>>> {
        let (session, messages) = (self.session.clone(), self.peer.sender());
        let (directory, shared) = (self.images(), self.options.images.is_some());
        // podman makes an archive of the images when CRIU has ended.
        let archived = container::ends_with_dump(&self.options.subject);
        let at_work = session.read::<Process>(AT_WORK)?;
        let is_complete = move || {
            if session.has(DUMPED) {
                return Ok(!(archived && at_work.is_some_and(Process::is_alive)));
            }
            if !session.exists() || session.decision().is_some() {
                bail!("the dump did not come to its end");
            }
            Ok(false)
        };
        let send = move || {
            if !shared {
                return images::send(&directory, &messages, is_complete);
            }
            while !is_complete()? {
                thread::sleep(LOOK);
            }
            let end = Message::Images(bytes::Bytes::new());
            messages
                .blocking_send(end)
                .context("the connection is lost")?;
            Ok(0)
        };
        thread::Builder::new()
            .name("images".into())
            .spawn(send)
            .context("failed to start a thread")
    }

    /// Whether something has happened that ends the migration.
    fn look(&mut self, frozen: &mut Frozen) -> anyhow::Result<()> {
        if self.signals.wait(None, Duration::ZERO)? {
            bail!("interrupted at the source");
        }
        if frozen.since.elapsed() > FROZEN {
            bail!("the tree has stood still for {} s", FROZEN.as_secs());
        }
        if let Some(dump) = &mut frozen.dump
            && let Some(status) = dump.try_wait().context("failed to wait for CRIU")?
            && !(frozen.releases && status.success() && self.session.has(DUMPED))
        {
            let why = container::complaint(&self.session, "dump");
            bail!("failed to dump: {status}: {why}");
        }
        Ok(())
    }

    /// The point of no return, and what lies behind it.
    fn hand_over(&mut self, mut frozen: Frozen) -> anyhow::Result<Done> {
        match self.commit(&mut frozen) {
            Ok(true) => {}
            Ok(false) => {
                let error = anyhow!("the destination could not let the tree run");
                return Err(self.roll_back(Some(frozen), error));
            }
            // The guard goes on asking as soon as this process has ended.
            Err(error) if error.is::<settle::Undecided>() => return Err(error),
            Err(error) => return Err(self.roll_back(Some(frozen), error)),
        }
        let freeze_seconds = frozen.since.elapsed().as_secs_f64();
        step("running");
        self.session.decide(Decision::End)?;
        wait(&mut frozen);
        settle::finish(&self.session, &self.journal, Decision::End)
            .context("the tree runs on the destination; failed to clean up here")?;
        drop(frozen.leader);

        let began = Instant::now();
        _ = self.peer.say(Message::Ended);
        let arrival = loop {
            match self.hear(Duration::from_millis(100)) {
                Ok(Some(Message::Report(json))) => {
                    break serde_json::from_slice(&json)
                        .context("the destination's report makes no sense")?;
                }
                Ok(_) => {}
                Err(error) => {
                    // So that nothing is kept there for us to ask for.
                    if let Some(origin) = &self.journal.source {
                        settle::tell_ended(&self.session, origin);
                    }
                    break Arrival {
                        prefetch_error: Some(format!("{error:#}")),
                        ..Arrival::default()
                    };
                }
            }
        };
        self.clock.ended("warming afterwards", began);
        Ok(Done {
            arrival,
            source: None,
            freeze_seconds,
            image_bytes: frozen.image_bytes,
        })
    }

    /// Lets the destination run the tree. Gives whether it does; not to know
    /// is no result, and so this may take as long as the destination can't be
    /// reached.
    fn commit(&mut self, frozen: &mut Frozen) -> anyhow::Result<bool> {
        self.look(frozen)?;
        self.session.note(COMMITTING, &())?;
        // From now on a CRIU that dies, or an action script that is killed,
        // does not make the tree run: the signal is what it finds first.
        settle::signal(&frozen.processes, Signal::SIGSTOP);
        self.look(frozen)?;
        if !frozen.processes.iter().all(|process| process.is_held()) {
            bail!("a process has been let go of meanwhile");
        }
        step("resume");
        let began = Instant::now();
        let mut answer = self.peer.say(Message::Resume).map(|()| None);
        while let Ok(None) = answer {
            answer = match self.peer.hear(LOOK) {
                Ok(Some(Message::Running)) => Ok(Some(true)),
                Ok(Some(Message::NotRunning)) => Ok(Some(false)),
                Ok(_) if began.elapsed() < FROZEN => Ok(None),
                Ok(_) => Err(Fault::Silent(FROZEN.as_secs())),
                Err(fault) => Err(fault),
            };
        }
        match answer {
            Ok(runs) => Ok(runs == Some(true)),
            Err(fault) => {
                let error = self.peer.explain(fault);
                eprintln!("migrator: {error:#}; asking whether the tree runs there");
                let is_enough = || self.signals.wait(None, Duration::ZERO).unwrap_or(false);
                let origin = self.journal.source.as_ref();
                let origin = origin.context("a source's journal is a destination's")?;
                let (decision, peer) = settle::decide(&self.session, origin, &is_enough)?;
                if let Some(peer) = peer {
                    self.peer = peer;
                }
                Ok(decision == Decision::End)
            }
        }
    }

    /// Lets the tree go on here.
    fn roll_back(&mut self, frozen: Option<Frozen>, error: anyhow::Error) -> anyhow::Error {
        let Some(mut frozen) = frozen else {
            self.last_words = Some(Message::Failed(format!("{error:#}")));
            return error;
        };
        let decision = self.session.decide(Decision::Run);
        let words = format!("{error:#}");
        let settled = decision.and_then(|decision| {
            if decision == Decision::End {
                bail!("it has been decided that the tree ends here");
            }
            wait(&mut frozen);
            settle::finish(&self.session, &self.journal, decision)
        });
        self.last_words = Some(Message::Failed(words.clone()));
        match settled {
            Ok(()) => RolledBack(words).into(),
            Err(more) => anyhow!("{words}; and then failed to let the tree go on: {more:#}"),
        }
    }

    fn say(&mut self, message: Message) -> anyhow::Result<()> {
        self.peer
            .say(message)
            .map_err(|fault| self.peer.explain(fault))
    }

    /// The next message but how many lists are warm.
    fn hear(&mut self, wait: Duration) -> anyhow::Result<Option<Message>> {
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

/// Waits for CRIU to do as decided.
fn wait(frozen: &mut Frozen) {
    if let Some(mut dump) = frozen.dump.take() {
        // What became of it, the processes tell.
        _ = dump.wait();
    }
}

/// Takes size and time of each file as they are now: what was written since
/// its path was found has changed them. Of those written until just now the
/// server knows more than this host: NFS asks it when a file is opened.
fn refresh(list: &mut PageIndexList, written: &BTreeSet<PathBuf>) {
    for file in &mut list.files {
        let identity = &mut file.identity;
        let path = &identity.path;
        let meta = match written.contains(path) {
            true => fs::File::open(path).and_then(|file| file.metadata()),
            false => fs::symlink_metadata(path),
        };
        let Ok(meta) = meta else { continue };
        if (meta.is_file(), inode(&meta)) == (true, identity.inode) {
            let now = super::order::OpenedFile::new(PathBuf::new(), &meta, false);
            (identity.size, identity.mtime_ns) = (now.size, now.mtime_ns);
        }
    }
}

fn inode(meta: &fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::ino(meta)
}

/// Says on stderr how far it is, for people and for whoever waits for a step.
fn step(name: &str) {
    eprintln!("migrator: {name}");
}

fn out_of_turn(message: &Message) -> anyhow::Error {
    anyhow!(
        "the destination says something out of turn: {:.40}",
        format!("{message:?}")
    )
}

fn interruption(ended: anyhow::Result<()>) -> anyhow::Error {
    ended.map_or_else(|error| error, |()| anyhow!("interrupted at the source"))
}
