//! The gate: holds CRIU until the session has decided.
//!
//! CRIU asks at many stages. At two of them the tree is whole and stands still;
//! there it waits for an answer: of a thread of the migrator that has started it,
//! or of an action script, which is a process of its own. That one decides nothing
//! itself but that a restored tree whose migrator has died does not run.

use std::time::{Duration, Instant};
use std::{env, thread};

use anyhow::Context;

use super::settle::{self, DUMPED, INIT, RELEASE, RESTORED, ROOT};
use super::{Decision, Session};
use crate::live::tree::Process;

/// How often it looks whether it is decided. The tree stands still meanwhile.
const LOOK: Duration = Duration::from_millis(2);

/// How often it looks whether somebody leads the session.
const LOOK_FOR_LEADER: Duration = Duration::from_millis(200);

/// How long nobody may lead a session on the source before somebody is
/// started who does.
const ORPHANED: Duration = Duration::from_secs(1);

/// As [`pass`], where CRIU itself tells, at every stage: notes what the shell does
/// for an action script. `root` is the restored tree's, when it is whole.
///
/// # Errors
/// As [`pass`]; or CRIU has told no root.
pub fn tell(session: &Session, stage: &str, root: Option<i32>) -> anyhow::Result<bool> {
    match stage {
        "post-dump" => session.note(DUMPED, &())?,
        "post-restore" => {
            session.note(INIT, &root.context("CRIU tells no root")?)?;
            session.note(RESTORED, &())?;
        }
        _ => {}
    }
    pass(session, stage)
}

/// Does what the stage wants. Gives whether CRIU shall go on: at the end of a
/// dump that means that the tree ends, at that of a restore that it runs.
///
/// # Errors
/// The session can't be read or written. CRIU is not to go on then.
pub fn pass(session: &Session, stage: &str) -> anyhow::Result<bool> {
    match stage {
        "post-dump" => hold_dump(session),
        "post-restore" => {
            note_root(session)?;
            hold_restore(session)
        }
        _ => Ok(true),
    }
}

fn hold_dump(session: &Session) -> anyhow::Result<bool> {
    let (mut looked, mut led) = (Instant::now(), Instant::now());
    loop {
        match session.decision() {
            Some(decision) => return Ok(decision == Decision::End),
            None if session.has(RELEASE) => return Ok(true),
            // Who removes a session has ended what it was for.
            None if !session.exists() => return Ok(false),
            None => thread::sleep(LOOK),
        }
        if looked.elapsed() < LOOK_FOR_LEADER {
            continue;
        }
        looked = Instant::now();
        match session.lead()? {
            None => led = looked,
            Some(_) if led.elapsed() < ORPHANED => {}
            Some(leader) => {
                drop(leader);
                settle::start(session)?;
                led = Instant::now();
            }
        }
    }
}

fn hold_restore(session: &Session) -> anyhow::Result<bool> {
    let mut looked = Instant::now();
    loop {
        match session.decision() {
            Some(decision) => return Ok(decision == Decision::Run),
            None if !session.exists() => return Ok(false),
            None => thread::sleep(LOOK),
        }
        if looked.elapsed() >= LOOK_FOR_LEADER {
            looked = Instant::now();
            if session.lead()?.is_some() {
                return Ok(session.decide(Decision::End)? == Decision::Run);
            }
        }
    }
}

/// Notes which process is the root of the tree that has been restored. Both the
/// gate and who leads the session do, so that either may die.
///
/// # Errors
/// There is no such process, or the session can't be read or written.
pub fn note_root(session: &Session) -> anyhow::Result<()> {
    let init: i32 = session
        .read(INIT)?
        .context("CRIU has told no CRTOOLS_INIT_PID")?;
    let root = Process::of(init)
        .with_context(|| format!("there is no process {init}, which CRIU has restored"))?;
    session.note(ROOT, &root)
}

/// The session that CRIU works for, if it works for `migrator move`. It may be
/// gone, and then CRIU is not to go on.
///
/// # Errors
/// It is no session's name.
pub fn session() -> anyhow::Result<Option<Session>> {
    match env::var(super::session::VARIABLE) {
        Ok(name) => Session::named(&name).map(Some),
        Err(_) => Ok(None),
    }
}
