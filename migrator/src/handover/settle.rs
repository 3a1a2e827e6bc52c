//! Brings a session to its end when whoever led it has died, or has lost the
//! other side at the wrong moment.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::session::Leader;
use super::{Decision, Session};
use crate::cgroup;
use crate::container;
use crate::destination::Destination;
use crate::live::order::Subject;
use crate::live::tree::{Process, half_made, processes};
use crate::protocol::{Fault, Message};
use crate::transfer::{self, Peer};

/// Notes of a session. This one: what it is about, a [`Journal`].
pub const JOURNAL: &str = "journal";
/// CRIU, or what runs it, has been started: a [`Process`].
pub const AT_WORK: &str = "at-work";
/// Source: the dump is complete. The gate makes this note.
pub const DUMPED: &str = "dumped";
/// Source: the tree ends with its dump, because it holds locks that the
/// destination has to take; it is restored here if the migration fails.
pub const RELEASE: &str = "release";
/// Source: the destination may have been told to run the tree.
pub const COMMITTING: &str = "committing";
/// Destination: the tree is restored and stopped. The gate makes this note.
pub const RESTORED: &str = "restored";
/// Destination: the id of the restored tree's root, as CRIU tells it; complete as
/// soon as there is [`RESTORED`].
pub const INIT: &str = "init";
/// Destination: the restored tree's root, a [`Process`].
pub const ROOT: &str = "root";
/// Destination: the tree has run.
pub const RUNNING: &str = "running";
/// Destination: the source's tree has ended, so that nobody will ask.
pub const ENDED: &str = "ended";

/// Between two questions to a destination that does not answer.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// How long an answer may take. The destination waits for its CRIU with it.
const ANSWER: Duration = Duration::from_secs(60);

/// How often a tree is looked at that seems to wait for a CRIU that is gone.
const LOOKS: u32 = 10;

/// How long CRIU may take to end a tree, or to let it go.
const CRIU_ENDS: Duration = Duration::from_secs(60);

/// What a session is about.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Journal {
    /// What moves.
    pub subject: Subject,
    /// Images outside of the session's directory.
    pub images: Option<PathBuf>,
    /// The cgroup that the destination made ahead for the container.
    pub cgroup: Option<PathBuf>,
    /// The ids that the processes have on the destination, where they are those
    /// of the source.
    pub pids: Vec<i32>,
    /// What only the source knows.
    pub source: Option<Origin>,
}

/// What the source has to know to find the destination again, and its tree.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Origin {
    /// The tree. It may have changed until it was frozen.
    pub processes: Vec<Process>,
    /// `--to`
    pub to: String,
    /// `--rsh`
    pub rsh: Vec<String>,
    /// `--remote-path`
    pub remote_path: PathBuf,
    /// `--criu`
    pub criu: PathBuf,
    /// `--tcp-established`
    pub tcp_established: bool,
}

/// Starts a process that settles the session as soon as nobody leads it, and
/// lives in no terminal's session and no pipe's reach.
///
/// # Errors
/// It can't be started.
pub fn start(session: &Session) -> anyhow::Result<()> {
    let program = std::env::current_exe().context("failed to find migrator's own program")?;
    // setsid(1) forks where it has to, so that no child of ours remains.
    Command::new("setsid")
        .args(["--fork", "--"])
        .arg(program)
        .args(["recover", "--wait", &session.name()])
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .context("failed to run setsid")?;
    Ok(())
}

/// Brings a session to its end: decides as the other side has, and cleans up.
///
/// # Errors
/// What can't be done; the session stays.
pub fn settle(session: &Session, _leader: &Leader) -> anyhow::Result<Option<Decision>> {
    // Nobody asks this process to stop; it may be killed.
    let never = || false;
    let Some(journal) = session.read::<Journal>(JOURNAL)? else {
        // It ended before it began.
        session.remove()?;
        return Ok(None);
    };
    let (decision, peer) = match &journal.source {
        Some(origin) => decide(session, origin, &never)?,
        None => (session.decide(Decision::End)?, None),
    };
    finish(session, &journal, decision)?;
    if let Some(peer) = peer {
        peer.leave((decision == Decision::End).then_some(Message::Ended));
    }
    Ok(Some(decision))
}

/// Makes what has been decided true, and removes the session.
///
/// # Errors
/// What can't be done; the session stays.
pub fn finish(session: &Session, journal: &Journal, decision: Decision) -> anyhow::Result<()> {
    if let Some(at_work) = session.read::<Process>(AT_WORK)? {
        if journal.source.is_none() && decision == Decision::End && !session.has(RESTORED) {
            kill_tree(at_work);
        }
        let began = Instant::now();
        while at_work.is_alive() {
            if began.elapsed() > CRIU_ENDS {
                bail!("process {} of CRIU does not end", at_work.pid);
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
    match &journal.source {
        Some(origin) => finish_source(session, journal, origin, decision)?,
        None => finish_destination(session, journal, decision)?,
    }
    if journal.source.is_none() && decision == Decision::Run && !session.has(ENDED) {
        // The source may ask, and is to hear that it runs here.
        return session.remove_storage();
    }
    // The source may have needed them until now.
    if let (Some(images), Some(_)) = (&journal.images, &journal.source) {
        _ = std::fs::remove_dir_all(images.join(session.name()));
    }
    session.remove()
}

/// It is not known whether the tree runs on the destination, and nobody waits
/// here any longer for it to tell.
#[derive(Debug, thiserror::Error)]
#[error(
    "it is not known whether the tree runs on the destination, so it stays stopped here; migrator \
     asks on in the background. If the destination is gone for good, `migrator recover \
     --destination-is-dead {0}` lets it go on here"
)]
pub struct Undecided(String);

/// The source's tree has ended: nobody will ask again.
///
/// # Errors
/// The session can't be written.
pub fn forget(session: &Session) -> anyhow::Result<()> {
    session.note(ENDED, &())?;
    match session.lead()? {
        Some(_leader) => session.remove(),
        // Whoever leads it sees the note when it is done.
        None => Ok(()),
    }
}

/// The source's decision: made already, its own as long as the destination
/// can't have been told to run the tree, and the destination's after that,
/// which is asked until it answers or `is_enough`.
///
/// # Errors
/// [`Undecided`]; or the session can't be read or written.
pub fn decide(
    session: &Session,
    origin: &Origin,
    is_enough: &dyn Fn() -> bool,
) -> anyhow::Result<(Decision, Option<Peer>)> {
    if let Some(decision) = session.decision() {
        return Ok((decision, None));
    }
    if !session.has(COMMITTING) {
        return Ok((session.decide(Decision::Run)?, None));
    }
    let runtime = transfer::runtime()?;
    let mut told = false;
    // The tree stands still: the first question follows at once.
    let (runs_there, peer) = loop {
        match ask(session, origin, &runtime) {
            Ok(answer) => break answer,
            Err(error) if !told => {
                eprintln!(
                    "migrator: session {}: {error:#}. It is not known whether the tree runs \
                     there, so it stays stopped here; asking again until there is an answer",
                    session.name()
                );
                told = true;
            }
            Err(_) => {}
        }
        // Somebody may have decided meanwhile that the destination is dead.
        if let Some(decision) = session.decision() {
            return Ok((decision, None));
        }
        if is_enough() {
            return Err(Undecided(session.name()).into());
        }
        thread::sleep(ASK_AGAIN);
    };
    // The connection goes on, and is the process's until it ends.
    std::mem::forget(runtime);
    let decision = session.decide(match runs_there {
        true => Decision::End,
        false => Decision::Run,
    })?;
    Ok((decision, Some(peer)))
}

/// Tells a destination that runs the tree, and whose connection is lost, that
/// the source's has ended: once, for it only lets it clean up.
pub fn tell_ended(session: &Session, origin: &Origin) {
    let Ok(runtime) = transfer::runtime() else {
        return;
    };
    if let Ok((true, peer)) = ask(session, origin, &runtime) {
        peer.leave(Some(Message::Ended));
    }
    runtime.shutdown_background();
}

/// Asks the destination whether the tree runs there. If it does not, it never
/// will.
fn ask(
    session: &Session,
    origin: &Origin,
    runtime: &tokio::runtime::Runtime,
) -> anyhow::Result<(bool, Peer)> {
    let to = Destination::parse(&origin.to).map_err(anyhow::Error::msg)?;
    let open = transfer::open(to, &origin.rsh, &origin.remote_path);
    let connection = runtime.block_on(open)?;
    let (mut peer, _) = Peer::source(connection, runtime.handle().clone(), Default::default())?;
    let answer = (|| {
        peer.say(Message::Ask(session.name()))?;
        let began = Instant::now();
        while began.elapsed() < ANSWER {
            match peer.hear(ASK_AGAIN)? {
                Some(Message::Running) => return Ok(true),
                Some(Message::NotRunning) => return Ok(false),
                _ => {}
            }
        }
        Err(Fault::Silent(ANSWER.as_secs()))
    })();
    match answer {
        Ok(answer) => Ok((answer, peer)),
        Err(fault) => Err(peer.explain(fault)),
    }
}

/// The destination's answer to [`ask`].
///
/// # Errors
/// The session can't be read or written.
pub fn answer(session: &Session) -> anyhow::Result<bool> {
    if !session.exists() && session.may_have_run() {
        bail!(
            "this host was told to run the tree and has been booted since then; whether the tree \
             has run here is not known"
        );
    }
    if !session.exists() || session.decide(Decision::End)? == Decision::End {
        return Ok(false);
    }
    // It was told to run. Its CRIU may be at that still.
    let began = Instant::now();
    loop {
        if session.has(RUNNING) {
            return Ok(true);
        }
        let at_work = session.read::<Process>(AT_WORK)?;
        if !at_work.is_some_and(Process::is_alive) || began.elapsed() > CRIU_ENDS {
            return has_run(session);
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Whether a tree runs that was allowed to, when its CRIU has ended before it
/// said so. CRIU lets all processes go at once; when it is killed before that,
/// they wait in its restorer for ever, and are killed here. When it fails, it
/// has killed them itself.
///
/// # Errors
/// The session can't be read or written.
pub fn has_run(session: &Session) -> anyhow::Result<bool> {
    let Some(root) = session.read::<Process>(ROOT)? else {
        return Ok(false);
    };
    for _ in 0..LOOKS {
        if session.has(RUNNING) {
            return Ok(true);
        }
        if !root.is_alive() {
            return Ok(false);
        }
        if !root.is_in_restorer() {
            session.note(RUNNING, &())?;
            return Ok(true);
        }
        // It may have been on its way out.
        thread::sleep(Duration::from_millis(20));
    }
    kill_tree(root);
    Ok(false)
}

fn finish_source(
    session: &Session,
    journal: &Journal,
    origin: &Origin,
    decision: Decision,
) -> anyhow::Result<()> {
    match decision {
        Decision::Run => {
            if session.has(COMMITTING) {
                signal(&origin.processes, Signal::SIGCONT);
            }
            let has_ended = !origin.processes.iter().any(|process| process.is_alive());
            match session.has(RELEASE) && session.has(DUMPED) && has_ended {
                true => container::go_on(session, journal, origin),
                false => Ok(()),
            }
        }
        Decision::End => {
            // CRIU has killed them, unless it was killed itself.
            signal(&origin.processes, Signal::SIGKILL);
            container::forget(&journal.subject)
        }
    }
}

fn finish_destination(
    session: &Session,
    journal: &Journal,
    decision: Decision,
) -> anyhow::Result<()> {
    if decision == Decision::Run {
        return Ok(());
    }
    if let Some(root) = session.read::<Process>(ROOT)? {
        // CRIU has killed it, unless it was killed itself.
        signal(
            &processes(root.pid).unwrap_or_else(|_| vec![root]),
            Signal::SIGKILL,
        );
    }
    if let Some(criu) = session.read::<Process>(AT_WORK)? {
        kill_half_made(session, journal, criu);
        container::discard(&journal.subject)?;
    }
    if let Some(cgroup) = &journal.cgroup {
        cgroup::remove(cgroup);
    }
    Ok(())
}

/// Kills what a CRIU that was killed itself has left of a tree: processes that
/// are nobody's children any more.
fn kill_half_made(session: &Session, journal: &Journal, criu: Process) {
    for _ in 0..LOOKS {
        let left = half_made(&journal.pids, criu, session.storage());
        if left.is_empty() && !journal.pids.iter().any(|pid| Process::of(*pid).is_some()) {
            return;
        }
        // Some may not have reached the place where they wait.
        signal(&left, Signal::SIGKILL);
        thread::sleep(Duration::from_millis(20));
    }
}

/// Kills CRIU and what it has made so far. A restore that waits for a lock
/// hears nothing else, and what it has made stays when it alone is killed.
pub fn kill_tree(root: Process) {
    if root.is_alive() {
        signal(&processes(root.pid).unwrap_or_default(), Signal::SIGKILL);
    }
}

/// Sends a signal to those that still are.
pub fn signal(processes: &[Process], signal: Signal) {
    for process in processes.iter().filter(|process| process.is_alive()) {
        // One that has ended meanwhile needs none.
        _ = kill(Pid::from_raw(process.pid), signal);
    }
}
