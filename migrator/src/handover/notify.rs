//! The answer to CRIU at the end of a dump, while the tree stands still.
//!
//! A thread of `migrator move` gives it for a plain tree, an action script
//! (`migrator criu-hook`) for a container's.

use std::time::{Duration, Instant};
use std::{env, thread};

use super::outgoing::Intent;
use super::{Decision, Mark, Session, guard};
use crate::say;

/// The variable that names the session to an action script.
pub const VARIABLE: &str = "MIGRATOR_SESSION";

/// Poll interval for the decision.
const DECISION_POLL_INTERVAL: Duration = Duration::from_millis(2);

/// Poll interval for the death of the leader.
const LEADER_POLL_INTERVAL: Duration = Duration::from_millis(200);

/// How long a session may have no leader until another guard is started.
const ORPHANED: Duration = Duration::from_secs(1);

/// Notes that the dump is complete, as the action script of a container does,
/// and waits as [`hold_dump`].
pub fn on_post_dump(session: &Session) -> bool {
    match session.mark(Mark::Dumped) {
        Ok(_) => hold_dump(session),
        Err(error) => {
            say!("{error:#}");
            false
        }
    }
}

/// Waits until it is decided, and returns whether CRIU ends the tree.
///
/// An error lets CRIU go on with the tree. That is safe: before the commit each
/// process gets a SIGSTOP, which outlives CRIU.
pub fn hold_dump(session: &Session) -> bool {
    let (mut looked, mut led) = (Instant::now(), Instant::now());
    loop {
        match answer(session) {
            Ok(Some(ends)) => return ends,
            Ok(None) => thread::sleep(DECISION_POLL_INTERVAL),
            Err(error) => {
                say!("session {}: {error:#}", session.name());
                return false;
            }
        }
        if looked.elapsed() < LEADER_POLL_INTERVAL {
            continue;
        }
        looked = Instant::now();
        match session.lead() {
            Ok(None) => led = looked,
            Ok(Some(_)) if led.elapsed() < ORPHANED => {}
            Ok(Some(leader)) => {
                drop(leader);
                if let Err(error) = guard::start(session) {
                    say!("session {}: {error:#}", session.name());
                    return false;
                }
                led = Instant::now();
            }
            // A session that is removed has no lock to take.
            Err(_) => {}
        }
    }
}

fn answer(session: &Session) -> anyhow::Result<Option<bool>> {
    if !session.exists() {
        // What removes a session has ended what it was for.
        return Ok(Some(false));
    }
    if let Some(decision) = session.decision()? {
        return Ok(Some(decision == Decision::End));
    }
    if session.intent()? == Some(Intent::RollBack) {
        return Ok(Some(false));
    }
    Ok(session.has(Mark::Release).then_some(true))
}

/// Returns the session that CRIU works for, if `migrator move` has started it.
/// It may be gone, and then the tree runs on.
///
/// # Errors
/// It is no session's name.
pub fn session() -> anyhow::Result<Option<Session>> {
    match env::var(VARIABLE) {
        Ok(name) => Session::named(&name).map(Some),
        Err(_) => Ok(None),
    }
}
