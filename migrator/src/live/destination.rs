//! The destination's side: takes a tree over when the source lets go of it.

use std::fs;
use std::path::PathBuf;
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use nix::sys::utsname::uname;
use tokio::sync::mpsc;

use super::files;
use super::images;
use super::order::{Able, ORDER_SCHEMA, Order, Subject};
use super::report::Arrival;
use super::tree::{self, Process};
use crate::cgroup::{self, Visit};
use crate::container;
use crate::criu::{Criu, Passed};
use crate::handover::session::Leader;
use crate::handover::settle::{self, AT_WORK, ENDED, JOURNAL, Journal, RESTORED, RUNNING};
use crate::handover::{Decision, Session};
use crate::pagelist::HotFile;
use crate::prefetch::{self, Options};
use crate::protocol::{Fault, Message};
use crate::transfer::{Peer, Warmed, Warmer};

/// Between two looks at what else may have happened.
const LOOK: Duration = Duration::from_millis(5);

/// How many pieces of images wait to be written.
const PIECES: usize = 64;

/// How many readers may read while the images come or the tree is restored:
/// it uses a link that is idle, and hardly takes it from others.
const YIELDING: u16 = 1;

/// How many may read beside the tree when it runs, whose own reads come first.
const BESIDE: u16 = 4;

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
    while let Ok(message) = peer.hear(LOOK) {
        if runs && message == Some(Message::Ended) {
            return settle::forget(&session);
        }
    }
    Ok(())
}

fn read(order: &[u8]) -> anyhow::Result<Order> {
    let order: Order = serde_json::from_slice(order)
        .map_err(|error| anyhow!("the source's order makes no sense: {error}"))?;
    if order.schema != ORDER_SCHEMA {
        bail!("the source's order is of another version: use the same migrator on both hosts");
    }
    Ok(order)
}

/// Finds out whether this host can do it, before anything is done.
fn able(order: &Order, criu: &Criu) -> anyhow::Result<Able> {
    let here = uname().context("failed to learn what this host is")?;
    let machine = here.machine().to_string_lossy();
    if machine != order.machine.as_str() {
        bail!(
            "this host is {machine} and the source {}: CRIU can't restore here",
            order.machine
        );
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("CRIU needs root to restore: log in as root, or let --remote-path be a sudo script");
    }
    let version = criu.version()?;
    container::able(&order.subject, criu)?;
    if let Subject::Process { .. } = order.subject
        && let Some((pid, name)) = tree::taken(&order.pids)
    {
        bail!("process id {pid} is taken on this host, by {name}: CRIU can't restore it");
    }
    files::same_files(&order.files).map_err(anyhow::Error::msg)?;
    if let Some(images) = &order.images
        && !images.is_dir()
    {
        bail!(
            "{} is not a directory on this host: --images-dir has to be shared",
            images.display()
        );
    }
    Ok(Able {
        host: here.nodename().to_string_lossy().into_owned(),
        kernel: here.release().to_string_lossy().into_owned(),
        criu: version,
    })
}

/// A tree on its way here.
struct Guest<'a> {
    peer: Peer,
    order: Order,
    session: Session,
    journal: Journal,
    leader: Leader,
    warmer: Warmer,
    options: Options,
    interrupted: &'a AtomicBool,
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
                source: None,
            };
            session.note(JOURNAL, &journal)?;
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

    /// The next message that is no list. `None` if there is none now.
    fn hear(&mut self) -> anyhow::Result<Option<Message>> {
        if self.interrupted.load(Relaxed) {
            bail!("interrupted at the destination");
        }
        match self.peer.hear(LOOK) {
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
            let Some(message) = self.hear()? else {
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
        let mut command = container::restore(subject, &self.session, &images, criu, passed)?;
        let mut child = command
            .spawn()
            .with_context(|| format!("failed to run {:?}", command.get_program()))?;
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
            let why = container::complaint(&self.session, "restore");
            bail!("failed to restore: {status}: {why}");
        }
        self.hear()
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
            let why = container::complaint(&self.session, "restore");
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

    /// The tree runs. Whatever happens now, it stays.
    fn settle_in(self, restore_seconds: f64) -> anyhow::Result<Arrival> {
        if self.order.cgroup.is_some()
            && let Some(root) = self.session.read::<Process>(RESTORED)?
            && let Err(error) = cgroup::join(root.pid, BESIDE.into())
        {
            eprintln!("migrator: not charged to the container: {error}");
        }
        let Self {
            mut peer,
            order: _,
            session,
            journal,
            leader,
            warmer,
            options,
            interrupted,
            ..
        } = self;
        options.at_once.store(BESIDE, Relaxed);
        let ended = await_end(&mut peer, interrupted);
        let Warmed {
            report,
            files,
            error,
        } = warmer.finish();
        let mut arrival = Arrival {
            report,
            refill: None,
            prefetch_error: error.map(|error| format!("{error:#}")),
            restore_seconds,
        };
        if !files.is_empty() && !options.stop.load(Relaxed) {
            match refill(files, options) {
                Ok(report) => arrival.refill = Some(report),
                Err(error) => arrival.prefetch_error = Some(format!("{error:#}")),
            }
        }
        let json = serde_json::to_vec(&arrival).context("failed to encode the report")?;
        peer.leave(Some(Message::Report(json.into())));
        match ended {
            Ok(()) => session.note(ENDED, &())?,
            Err(fault) => eprintln!("migrator: the tree runs here, and the source {fault}"),
        }
        settle::finish(&session, &journal, Decision::Run)?;
        drop(leader);
        Ok(arrival)
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

/// Waits until the source's tree has ended.
fn await_end(peer: &mut Peer, interrupted: &AtomicBool) -> Result<(), Fault> {
    loop {
        match peer.hear(LOOK)? {
            Some(Message::Ended) => return Ok(()),
            _ if interrupted.load(Relaxed) => return Err(Fault::Closed),
            _ => {}
        }
    }
}

/// Looks at all pages again: taking locks and writes from the source have
/// made NFS drop some.
fn refill(mut files: Vec<HotFile>, mut options: Options) -> anyhow::Result<prefetch::Report> {
    // The tree runs, and writes.
    options.any_version = true;
    for file in &mut files {
        if let Ok(meta) = fs::symlink_metadata(&file.identity.path) {
            file.identity.size = meta.len();
        }
    }
    let list = crate::pagelist::PageIndexList {
        page_size: crate::kernel::page_size(),
        files,
    };
    prefetch::prefetch(list, options).context("failed to look at the pages again")
}
