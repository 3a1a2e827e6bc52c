//! The destination's side: takes a tree over when the source lets go of it.

use std::path::PathBuf;
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use tokio::sync::mpsc;

use super::able::{able, read};
use super::images;
use super::order::{Order, Subject};
use super::report::Arrival;
use super::tree::Process;
use crate::cgroup::Visit;
use crate::container;
use crate::criu::{Criu, Passed};
use crate::handover::session::Leader;
use crate::handover::settle::{self, AT_WORK, JOURNAL, Journal, RESTORED, RUNNING};
use crate::handover::{Decision, Session, gate};
use crate::prefetch::Options;
use crate::protocol::Message;
use crate::transfer::{Peer, Warmer};

/// Between two looks at what CRIU may have done.
const LOOK: Duration = Duration::from_millis(5);

/// Between two looks at whether somebody wants an end, where only the source
/// has something to say. It may be a while: the tree still runs there.
pub(super) const PATIENT: Duration = Duration::from_millis(200);

/// How many pieces of images wait to be written.
const PIECES: usize = 64;

/// How many readers may read while the images come or the tree is restored:
/// it uses a link that is idle, and hardly takes it from others.
const YIELDING: u16 = 1;

/// Takes over what the order names. Gives what it did; none if the source
/// gave up, or this side refused.
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
    let order = match read(order).and_then(|order| Ok((able(&order, criu)?, order))) {
        Ok((able, order)) => {
            let json = serde_json::to_vec(&able).context("failed to encode an answer")?;
            peer.say(Message::Able(json.into()))?;
            order
        }
        Err(error) => {
            peer.leave(Some(Message::Failed(format!("{error:#}"))));
            return Err(error);
        }
    };
    let mut guest = match Guest::expect(peer, order, options, interrupted) {
        Ok(guest) => guest,
        Err(refused) => {
            let (peer, error) = *refused;
            peer.leave(Some(Message::Failed(format!("{error:#}"))));
            return Err(error);
        }
    };
    let restored = guest.take_images().and_then(|()| guest.restore(criu));
    match restored.and_then(|mut child| guest.run(&mut child).map(|seconds| (child, seconds))) {
        Ok((_child, seconds)) => guest.settle_in(seconds),
        Err(error) => Err(guest.give_up(error)),
    }
}

/// Answers a source that has lost its connection.
///
/// # Errors
/// It is no session's name, or the session can't be read.
pub fn answer(mut peer: Peer, name: &str) -> anyhow::Result<()> {
    let session = Session::named(name)?;
    let answer = match settle::answer(&session) {
        Ok(true) => Message::Running,
        Ok(false) => Message::NotRunning,
        Err(error) => {
            peer.leave(Some(Message::Failed(format!("{error:#}"))));
            return Err(error);
        }
    };
    let runs = answer == Message::Running;
    peer.say(answer)?;
    // The source tells when its tree has ended; if it can't, it asks again.
    while let Ok(message) = peer.hear(PATIENT) {
        if runs && message == Some(Message::Ended) {
            return settle::forget(&session);
        }
    }
    Ok(())
}

/// A tree on its way here.
pub(super) struct Guest<'a> {
    pub(super) peer: Peer,
    pub(super) order: Order,
    pub(super) session: Session,
    pub(super) journal: Journal,
    pub(super) leader: Leader,
    pub(super) warmer: Warmer,
    pub(super) options: Options,
    pub(super) interrupted: &'a AtomicBool,
    /// Where what is read before the restore is charged.
    visit: Option<Visit>,
    images_ended: Instant,
    restore_seconds: f64,
}

impl<'a> Guest<'a> {
    fn expect(
        peer: Peer,
        order: Order,
        options: Options,
        interrupted: &'a AtomicBool,
    ) -> Result<Self, Box<(Peer, anyhow::Error)>> {
        let prepare = || {
            let session = Session::named(&order.session)?;
            let leader = session.create()?;
            let journal = Journal {
                subject: order.subject.clone(),
                images: order.images.clone(),
                cgroup: order.cgroup.clone(),
                pids: match order.subject {
                    Subject::Process { .. } => order.pids.clone(),
                    // A container has ids of its own, and its runtime ends it.
                    _ => Vec::new(),
                },
                source: None,
            };
            session.note(JOURNAL, &journal)?;
            session.prepare_to_run()?;
            settle::start(&session)?;
            let warmer = Warmer::start(options.clone(), peer.sender())?;
            Ok((session, leader, journal, warmer))
        };
        match prepare() {
            Ok((session, leader, journal, warmer)) => Ok(Self {
                visit: order.cgroup.as_deref().and_then(|path| {
                    let uncharged =
                        |error| eprintln!("migrator: not charged to the container yet: {error}");
                    Visit::begin(path).map_err(uncharged).ok()
                }),
                peer,
                order,
                session,
                journal,
                leader,
                warmer,
                options,
                interrupted,
                images_ended: Instant::now(),
                restore_seconds: 0.0,
            }),
            Err(error) => Err(Box::new((peer, error))),
        }
    }

    /// The next message that is no list. `None` if there is none within `wait`.
    fn hear(&mut self, wait: Duration) -> anyhow::Result<Option<Message>> {
        if self.interrupted.load(Relaxed) {
            bail!("interrupted at the destination");
        }
        match self.peer.hear(wait) {
            Ok(Some(Message::List(bytes))) => {
                self.warmer.take(bytes)?;
                Ok(None)
            }
            Ok(message) => Ok(message),
            Err(fault) => Err(self.peer.explain(fault)),
        }
    }

    /// Waits until all images are here.
    fn take_images(&mut self) -> anyhow::Result<()> {
        let mut writing: Option<(mpsc::Sender<Bytes>, JoinHandle<anyhow::Result<()>>)> = None;
        loop {
            let Some(message) = self.hear(PATIENT)? else {
                continue;
            };
            let Message::Images(piece) = message else {
                return Err(self.out_of_turn(&message));
            };
            self.options.at_once.store(YIELDING, Relaxed);
            let is_end = piece.is_empty();
            if self.order.images.is_none() {
                let (pieces, _) = match &mut writing {
                    Some(writing) => writing,
                    none => none.insert(self.write_images()?),
                };
                // Where this fails the thread has ended, and says why.
                let taken = pieces.blocking_send(piece).is_ok();
                if (is_end || !taken)
                    && let Some((pieces, thread)) = writing.take()
                {
                    drop(pieces);
                    let written = thread.join();
                    written.map_err(|_| anyhow!("the thread that writes images panicked"))??;
                }
            }
            if is_end {
                self.images_ended = Instant::now();
                return Ok(());
            }
        }
    }

    #[allow(clippy::type_complexity, reason = "used once")]
    fn write_images(
        &self,
    ) -> anyhow::Result<(mpsc::Sender<Bytes>, JoinHandle<anyhow::Result<()>>)> {
        let directory = self.session.images();
        let (send, receive) = mpsc::channel(PIECES);
        let thread = thread::Builder::new()
            .name("images".into())
            .spawn(move || images::receive(&directory, receive))
            .context("failed to start a thread")?;
        Ok((send, thread))
    }

    fn images(&self) -> PathBuf {
        match &self.order.images {
            Some(shared) => shared.join(self.session.name()),
            None => self.session.images(),
        }
    }

    /// Restores the tree, and waits until it is whole and stopped.
    fn restore(&mut self, criu: &Criu) -> anyhow::Result<Child> {
        let passed = Passed {
            tcp_established: self.order.tcp_established,
        };
        let images = self.images();
        if let Some(visit) = &self.visit {
            // Runtimes want it empty, and what they start shall not be in it.
            visit.end()?;
        }
        let subject = &self.order.subject;
        let mut child = container::restore(subject, &self.session, &images, criu, passed)?;
        if let Some(process) = Process::of(child.id() as i32) {
            self.session.note(AT_WORK, &process)?;
        }
        while !self.session.has(RESTORED) {
            match self.wait_for(&mut child) {
                Ok(Some(message)) => return Err(self.out_of_turn(&message)),
                Ok(None) => {}
                Err(error) => {
                    self.kill(&mut child);
                    return Err(error);
                }
            }
        }
        if let Err(error) = gate::note_root(&self.session) {
            self.kill(&mut child);
            return Err(error);
        }
        self.restore_seconds = self.images_ended.elapsed().as_secs_f64();
        if let Err(fault) = self.peer.say(Message::Restored) {
            self.kill(&mut child);
            return Err(self.peer.explain(fault));
        }
        Ok(child)
    }

    /// Hears, while the restore must not end.
    fn wait_for(&mut self, child: &mut Child) -> anyhow::Result<Option<Message>> {
        if let Some(status) = child.try_wait().context("failed to wait for CRIU")? {
            let why = Criu::complaint(&self.session, "restore");
            bail!("failed to restore: {status}: {why}");
        }
        self.hear(LOOK)
    }

    /// Makes sure that a restored tree does not run, or what is restored is
    /// never whole.
    fn kill(&mut self, child: &mut Child) {
        // The gate closes with this; before it is reached, CRIU dies and its
        // half-made processes with it.
        if self
            .session
            .decide(Decision::End)
            .is_ok_and(|it| it == Decision::End)
        {
            if !self.session.has(RESTORED)
                && let Some(process) = Process::of(child.id() as i32)
            {
                settle::kill_tree(process);
            }
            _ = child.wait();
        }
    }

    /// Lets the tree run when the source says so. Gives how long the restore
    /// took.
    fn run(&mut self, child: &mut Child) -> anyhow::Result<f64> {
        loop {
            match self.wait_for(child) {
                Ok(Some(Message::Resume)) => break,
                Ok(Some(message)) => return Err(self.out_of_turn(&message)),
                Ok(None) => {}
                Err(error) => {
                    self.kill(child);
                    return Err(error);
                }
            }
        }
        if self.session.decide_to_run()? == Decision::End {
            _ = child.wait();
            bail!("the source has asked whether the tree runs before it said that it may");
        }
        let status = child.wait().context("failed to wait for CRIU")?;
        if !status.success() && !settle::has_run(&self.session)? {
            let why = Criu::complaint(&self.session, "restore");
            let error = anyhow!("failed to let the restored tree run: {status}: {why}");
            eprintln!("migrator: {error:#}");
            _ = self.peer.say(Message::NotRunning);
            return Err(error);
        }
        self.session.note(RUNNING, &())?;
        // Where this fails, the source asks again.
        _ = self.peer.say(Message::Running);
        Ok(self.restore_seconds)
    }

    fn out_of_turn(&mut self, message: &Message) -> anyhow::Error {
        anyhow!(
            "the source says something out of turn: {:.40}",
            format!("{message:?}")
        )
    }

    /// Tells the source, and leaves nothing behind.
    fn give_up(self, error: anyhow::Error) -> anyhow::Error {
        self.options.stop.store(true, Relaxed);
        if let Some(visit) = &self.visit {
            // It may be there already, or its cgroup gone.
            _ = visit.end();
        }
        let cleaned = self
            .session
            .decide(Decision::End)
            .and_then(|decision| settle::finish(&self.session, &self.journal, decision));
        self.peer.leave(Some(Message::Failed(format!("{error:#}"))));
        _ = self.warmer.finish();
        match cleaned {
            Ok(()) => error,
            Err(more) => error.context(format!("failed to clean up: {more:#}")),
        }
    }
}
