//! The destination's side: takes a tree over when the source lets go of it.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use tokio::sync::mpsc;

use super::images;
use super::order::Order;
use super::preflight;
use super::report::Arrival;
use super::space::{self, Reservation};
use crate::cgroup::{Group, Visit};
use crate::child;
use crate::container::{self, Subject};
use crate::criu::{self, Criu, Job, Passed, Work};
use crate::handover::incoming::executor::Executor;
use crate::handover::incoming::{Event, State};
use crate::handover::journal::{AT_WORK, JOURNAL, ROOT, STAYS_STOPPED, Side, Target};
use crate::handover::session::{Lock, sweep};
use crate::handover::{Identity, Journal, Session, guard, question};
use crate::prefetch::Options;
use crate::process::{self, Process};
use crate::protocol::{Message, PeerError};
use crate::say;
use crate::transfer::{Peer, Warmer};

/// Poll interval for messages while CRIU restores.
const RESTORE_POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Poll interval for a request to stop, where only the source has something to
/// say.
pub(super) const STOP_POLL_INTERVAL: Duration = Duration::from_millis(200);

/// How long a restored tree may take until each process is stopped: CRIU lets
/// go of them one after the other.
const STOPPED_LIMIT: Duration = Duration::from_secs(5);

/// How many pieces of images wait to be written.
const PIECES: usize = 64;

/// How many readers may read while the images come or the tree is restored:
/// one uses a link that is idle, and hardly takes it from others.
const READERS_DURING_RESTORE: u16 = 1;

/// Takes over what the order names. Returns what it did.
///
/// # Errors
/// Why the tree does not run here.
pub fn serve(
    peer: Peer,
    order: &[u8],
    criu: &Criu,
    options: Options,
    interrupted: &AtomicBool,
) -> anyhow::Result<Arrival> {
    let refuse = |peer: Peer, error: anyhow::Error| {
        peer.close(Some(Message::Failed(format!("{error:#}"))));
        error
    };
    let is_cancelled = || interrupted.load(Relaxed);
    let checked = preflight::read(order).and_then(|order| {
        let accepted = preflight::check(&order, criu, &is_cancelled)?;
        let prepared = Prepared::make(&order, &accepted.identity, criu)?;
        Ok((order, accepted, prepared))
    });
    let (order, accepted, prepared) = match checked {
        Ok(checked) => checked,
        Err(error) => return Err(refuse(peer, error)),
    };
    let started = serde_json::to_vec(&accepted)
        .context("failed to encode an answer")
        .and_then(|json| {
            let warmer = Warmer::start(options.clone(), peer.sender())?;
            peer.send(Message::Accepted(json.into()))
                .map_err(|error| anyhow!("the source {error}"))?;
            Ok(warmer)
        });
    let warmer = match started {
        Ok(warmer) => warmer,
        Err(error) => {
            prepared.discard();
            return Err(refuse(peer, error));
        }
    };
    let mut incoming = Incoming::new(peer, order, prepared, warmer, options, interrupted);
    let restored = incoming
        .take_images()
        .and_then(|()| incoming.restore(criu))
        .and_then(|()| incoming.run());
    match restored {
        Ok(()) => incoming.finish(),
        Err(error) => Err(incoming.give_up(error)),
    }
}

/// Answers a source that has lost its connection.
///
/// # Errors
/// It is no question, or the session can't be read or written.
pub fn answer(peer: Peer, question: &str, interrupted: &AtomicBool) -> anyhow::Result<()> {
    question::answer(peer, question, &|| interrupted.load(Relaxed))
}

/// What is there before the order is accepted: a session, room for the images,
/// and a guard.
struct Prepared {
    session: Session,
    journal: Journal,
    leader: Lock,
    room: Option<Reservation>,
    group: Option<Group>,
}

impl Prepared {
    /// Makes all of it, or leaves nothing behind.
    fn make(order: &Order, identity: &Identity, criu: &Criu) -> anyhow::Result<Self> {
        sweep();
        let session = Session::named(&order.session)?;
        let leader = session.create(Some(identity))?;
        let group = Group::create(&session.name());
        let journal = Journal {
            group: group.as_ref().map(|group| group.path().to_owned()),
            subject: order.subject.clone(),
            images: order.images.clone(),
            tcp_established: order.tcp_established,
            criu: criu.program().to_owned(),
            side: Side::Destination(Target {
                cgroup: order.cgroup.clone(),
                pids: match order.subject {
                    Subject::Process { .. } => order.pids.clone(),
                    // A container has ids of its own, and its runtime ends it.
                    _ => Vec::new(),
                },
                identity: identity.clone(),
                source_name: order.host.clone(),
            }),
        };
        let prepare = || {
            let copies = container::copies(&order.subject);
            let needed = space::needed(order.memory_bytes, copies);
            let room = match order.images {
                Some(_) => None,
                None => Some(Reservation::take(session.storage(), needed)?),
            };
            session.note(JOURNAL, &journal)?;
            guard::start(&session)?;
            Ok(room)
        };
        match prepare() {
            Ok(room) => Ok(Self {
                group,
                session,
                journal,
                leader,
                room,
            }),
            Err(error) => {
                if let Some(group) = group {
                    group.remove();
                }
                _ = session.remove();
                Err(error)
            }
        }
    }

    /// Removes all of it.
    fn discard(self) {
        if let Some(group) = &self.group {
            group.remove();
        }
        if let Err(error) = self.session.remove() {
            say!("{error:#}");
        }
    }
}

/// A migration in progress, as the host sees it to which the tree comes.
pub(super) struct Incoming<'a> {
    pub(super) executor: Executor,
    pub(super) order: Order,
    pub(super) session: Session,
    /// Dropped last: a guard takes over then.
    pub(super) leader: Lock,
    pub(super) warmer: Warmer,
    pub(super) options: Options,
    pub(super) interrupted: &'a AtomicBool,
    room: Option<Reservation>,
    group: Option<Group>,
    /// Where what is read before the restore is charged.
    visit: Option<Visit>,
    images_ended: Instant,
    pub(super) restore_seconds: f64,
}

impl<'a> Incoming<'a> {
    fn new(
        peer: Peer,
        order: Order,
        prepared: Prepared,
        warmer: Warmer,
        options: Options,
        interrupted: &'a AtomicBool,
    ) -> Self {
        let Prepared {
            session,
            journal,
            leader,
            room,
            group,
        } = prepared;
        Self {
            visit: order.cgroup.as_deref().and_then(|path| {
                let uncharged = |error| say!("not charged to the container yet: {error}");
                Visit::begin(path).map_err(uncharged).ok()
            }),
            executor: Executor::start(session.clone(), journal, peer),
            order,
            session,
            leader,
            warmer,
            options,
            interrupted,
            room,
            group,
            images_ended: Instant::now(),
            restore_seconds: 0.0,
        }
    }

    /// Returns the next message that is no list, if one comes within a time.
    fn recv(&mut self, wait: Duration) -> anyhow::Result<Option<Message>> {
        if self.interrupted.load(Relaxed) {
            bail!("interrupted at the destination");
        }
        let peer = self.executor.peer.as_mut();
        let peer = peer.context("there is no connection to the source")?;
        match peer.recv(wait) {
            Ok(Some(Message::List(bytes))) => {
                self.warmer.take(bytes)?;
                Ok(None)
            }
            // A source that has rolled back will not ask.
            Ok(Some(Message::Confirmed)) => {
                self.executor.set_confirmed();
                bail!("the source has given the migration up");
            }
            Ok(message) => Ok(message),
            Err(error) => {
                let gives_up = matches!(error, PeerError::Says(_));
                let explained = peer.explain(error);
                if gives_up {
                    self.executor.set_confirmed();
                }
                Err(explained)
            }
        }
    }

    /// Waits until all images are here.
    fn take_images(&mut self) -> anyhow::Result<()> {
        let mut writing: Option<(mpsc::Sender<Bytes>, JoinHandle<anyhow::Result<()>>)> = None;
        loop {
            if let Some((_, thread)) = &writing
                && thread.is_finished()
            {
                // It ends before the images do when it can't write.
                let (_, thread) = writing.take().context("no thread writes images")?;
                join(thread)?;
            }
            let Some(message) = self.recv(STOP_POLL_INTERVAL)? else {
                continue;
            };
            let Message::Images(mut piece) = message else {
                return Err(unexpected(&message));
            };
            self.options.at_once.store(READERS_DURING_RESTORE, Relaxed);
            let is_end = piece.is_empty();
            if self.order.images.is_none() {
                let (pieces, _) = match &mut writing {
                    Some(writing) => writing,
                    none => none.insert(self.write_images()?),
                };
                // A disk that does not answer must not keep this thread.
                loop {
                    match pieces.try_send(piece) {
                        Ok(()) => break,
                        // The thread has ended, and says why.
                        Err(mpsc::error::TrySendError::Closed(_)) => break,
                        Err(mpsc::error::TrySendError::Full(back)) => {
                            piece = back;
                            if self.interrupted.load(Relaxed) {
                                bail!("interrupted at the destination");
                            }
                            self.check_peer()?;
                            thread::sleep(Duration::from_millis(1));
                        }
                    }
                }
            }
            if is_end {
                if let Some((pieces, thread)) = writing.take() {
                    drop(pieces);
                    while !thread.is_finished() {
                        self.check_peer()?;
                        thread::sleep(Duration::from_millis(1));
                    }
                    join(thread)?;
                }
                self.images_ended = Instant::now();
                return Ok(());
            }
        }
    }

    /// Fails if the source is gone, without taking a message from it.
    fn check_peer(&mut self) -> anyhow::Result<()> {
        if self.interrupted.load(Relaxed) {
            bail!("interrupted at the destination");
        }
        match &self.executor.peer {
            Some(peer) if !peer.is_broken() => Ok(()),
            _ => bail!("the connection to the source is lost"),
        }
    }

    #[allow(clippy::type_complexity, reason = "used once")]
    fn write_images(
        &mut self,
    ) -> anyhow::Result<(mpsc::Sender<Bytes>, JoinHandle<anyhow::Result<()>>)> {
        let directory = self.session.images();
        let (send, receive) = mpsc::channel(PIECES);
        let mut room = self.room.take();
        let write = move || {
            images::receive(&directory, receive, |bytes| match &mut room {
                Some(room) => room.release(bytes),
                None => Ok(()),
            })?;
            if let Some(room) = room.take() {
                room.end();
            }
            Ok(())
        };
        let thread = thread::Builder::new()
            .name("images".into())
            .spawn(write)
            .context("failed to start a thread")?;
        Ok((send, thread))
    }

    fn images(&self) -> PathBuf {
        match &self.order.images {
            Some(shared) => shared.join(self.session.name()),
            None => self.session.images(),
        }
    }

    /// Restores the tree until it is complete and stopped.
    fn restore(&mut self, criu: &Criu) -> anyhow::Result<()> {
        let images = self.images();
        if let Some(visit) = &self.visit {
            // Runtimes want it empty, and what they start is not to be in it.
            visit.end()?;
        }
        let work = Work {
            images: &images,
            storage: self.session.storage(),
            group: self.group.as_ref(),
            passed: Passed {
                tcp_established: self.order.tcp_established,
            },
            restores_cgroups: false,
        };
        // A process that gives the session up kills what is noted, under the same
        // lock: nothing may start after that.
        let lock = self.session.finish()?;
        let lock = lock.context("the session is given up by another process")?;
        if self.session.decision()?.is_some() {
            bail!("the session was given up by another process");
        }
        let mut job = container::restore(&self.order.subject, work, criu)?;
        if let Err(error) = self.session.note(AT_WORK, job.at_work()) {
            // No other process knows of it.
            job.kill();
            return Err(error);
        }
        drop(lock);
        let root = self.await_restore(&mut job)?;
        self.session.note(ROOT, &root)?;
        let began = Instant::now();
        while !process::is_stopped(root) {
            if began.elapsed() > STOPPED_LIMIT {
                bail!("CRIU did not leave the restored tree stopped: use CRIU 3.17 or later");
            }
            thread::sleep(Duration::from_millis(1));
        }
        self.restore_seconds = self.images_ended.elapsed().as_secs_f64();
        match self.executor.run(Event::Restored) {
            State::Stopped => Ok(()),
            _ => Err(anyhow!("{}", self.executor.trouble())),
        }
    }

    /// Waits until CRIU, and the runtime that runs it, have succeeded.
    fn await_restore(&mut self, job: &mut Job) -> anyhow::Result<Process> {
        loop {
            if job.has_succeeded(RESTORE_POLL_INTERVAL)? {
                return job.restored_root();
            }
            if let Some(status) = job.wait(Duration::ZERO)? {
                if status.success() {
                    return job.restored_root();
                }
                // At once: what CRIU had let go of when it was killed runs.
                job.kill();
                let why = criu::complaint(self.session.storage(), "restore");
                bail!("failed to restore: {}: {why}", child::describe(status));
            }
            if let Some(message) = self.recv(Duration::ZERO)? {
                return Err(unexpected(&message));
            }
        }
    }

    /// Lets the tree run when the source says so.
    fn run(&mut self) -> anyhow::Result<()> {
        let stay = loop {
            match self.recv(RESTORE_POLL_INTERVAL)? {
                Some(Message::Resume(stay)) => break stay,
                Some(message) => return Err(unexpected(&message)),
                None => {}
            }
        };
        if !stay.is_empty() {
            self.session.note(STAYS_STOPPED, &stay)?;
        }
        let root = self.session.read::<Process>(ROOT)?;
        if !root.is_some_and(process::is_stopped) {
            bail!("the restored tree was killed, or continued by another process");
        }
        match self.executor.run(Event::Resume) {
            State::Running => Ok(()),
            // The decision to run holds, and the guard makes it true.
            State::Decided(crate::handover::Decision::Run) => Err(anyhow!(
                "the tree may run here and could not be continued yet: {}",
                self.executor.trouble()
            )),
            _ => bail!(
                "the source has asked whether the tree runs before it said that it may: {}",
                self.executor.trouble()
            ),
        }
    }

    /// Tells the source, and leaves nothing behind.
    fn give_up(mut self, error: anyhow::Error) -> anyhow::Error {
        self.options.stop.store(true, Relaxed);
        if let Some(visit) = &self.visit {
            // It may be there already, or its cgroup gone.
            _ = visit.end();
        }
        let state = match self.executor.state() {
            State::Restoring | State::Stopped => self.executor.run(Event::Failed),
            state => state,
        };
        if let Some(peer) = self.executor.peer.take() {
            peer.close(Some(Message::Failed(format!("{error:#}"))));
        }
        let tidied = self.executor.tidy();
        // Without its lock the guard goes on with what is left to do.
        drop(self.leader);
        _ = self.warmer.finish();
        match (state, tidied) {
            (State::Gone | State::Ended, Ok(())) => error,
            (_, Err(more)) => error.context(format!("failed to clean up: {more:#}")),
            (state, Ok(())) => error.context(format!(
                "the session is still {state:?} here, for its guard to go on with: {}",
                self.executor.trouble()
            )),
        }
    }
}

fn join(thread: JoinHandle<anyhow::Result<()>>) -> anyhow::Result<()> {
    thread
        .join()
        .map_err(|_| anyhow!("the thread that writes images panicked"))?
}

pub(super) fn unexpected(message: &Message) -> anyhow::Error {
    anyhow!(
        "unexpected message from the source: {:.40}",
        format!("{message:?}")
    )
}
