//! The guard: a process beside the leader that takes over when it dies, or
//! keeps a tree frozen beyond its limit.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};

use super::journal::{Freeze, JOURNAL, Side};
use super::recovery::{Operator, Patience, recover};
use super::{Journal, Session};
use crate::{child, say};

/// What a guard prints when it watches.
const WATCHING: &str = "watching\n";

/// How long a guard may take until it watches.
const START_LIMIT: Duration = Duration::from_secs(10);

/// Poll interval for the death of the leader.
const LEADER_POLL_INTERVAL: Duration = Duration::from_millis(100);

/// How long beyond its limit a leader may keep a tree frozen before it counts
/// as hanging.
const OVERDUE_GRACE: Duration = Duration::from_secs(1);

/// Between two attempts to recover a session that could not be recovered.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);

/// Starts a guard from the running binary, which may have been replaced on the
/// disk, and waits until it watches.
///
/// # Errors
/// It can't be started, or does not watch within 10 s.
pub fn start(session: &Session) -> anyhow::Result<()> {
    let path = session.storage().join("guard.log");
    let mut options = File::options();
    let log = options
        .append(true)
        .create(true)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("failed to open {}", path.display()))?;
    let mut guard = child::spawn(
        Command::new("/proc/self/exe")
            .args(["recover", "--wait", &session.name()])
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log),
    )
    .context("failed to start a guard")?;
    let (tell, told) = mpsc::channel();
    let pipe = guard.stdout.take();
    let listen = move || {
        let mut bytes = vec![0; WATCHING.len()];
        let read = pipe.map(|mut pipe| pipe.read_exact(&mut bytes));
        // Nothing waits for it any more if this fails.
        _ = tell.send(matches!(read, Some(Ok(()))) && bytes == WATCHING.as_bytes());
    };
    let listening = thread::Builder::new()
        .name("guard".into())
        .spawn(listen)
        .context("failed to start a thread");
    let watches = listening.map(|_| told.recv_timeout(START_LIMIT).unwrap_or(false));
    match watches {
        Ok(true) => Ok(()),
        Ok(false) => {
            child::kill(&mut guard);
            bail!("the guard does not watch; {} may say why", path.display())
        }
        Err(error) => {
            child::kill(&mut guard);
            Err(error)
        }
    }
}

/// Is the guard of a session: watches its leader, and recovers the session when
/// it has none any more.
pub fn watch(session: &Session) {
    // Not in the reach of a terminal that is closed. It fails where this
    // process leads a group, and then a terminal is not in the way either.
    _ = nix::unistd::setsid();
    say::also_to_syslog();
    let mut stdout = io::stdout();
    // A leader that does not read this has died, which is seen below.
    _ = stdout
        .write_all(WATCHING.as_bytes())
        .and_then(|()| stdout.flush());
    let mut last = String::new();
    // Noted before the guard is started, and not changed.
    let freeze = freeze(session);
    let is_overdue = || freeze.is_some_and(|freeze| freeze.is_over(OVERDUE_GRACE));
    while session.exists() {
        let leader = match session.lead() {
            Ok(None) if !is_overdue() => {
                thread::sleep(LEADER_POLL_INTERVAL);
                continue;
            }
            // A leader that hangs keeps its lock. What it may still do is
            // bound by notes that are made once.
            Ok(leader) => leader,
            Err(_) if !session.exists() => return,
            Err(error) => {
                report(session, &error, &mut last);
                thread::sleep(RETRY_INTERVAL);
                continue;
            }
        };
        match recover(session, Operator::None, Patience::Endless, &|| false) {
            Ok(recovered) => {
                say!("session {}: {recovered}", session.name());
                return;
            }
            Err(error) => report(session, &error, &mut last),
        }
        drop(leader);
        thread::sleep(RETRY_INTERVAL);
    }
}

/// Prints an error once.
fn report(session: &Session, error: &anyhow::Error, last: &mut String) {
    let text = format!("session {}: {error:#}", session.name());
    if text != *last {
        say!("{text}; trying again");
        *last = text;
    }
}

fn freeze(session: &Session) -> Option<Freeze> {
    match session.read::<Journal>(JOURNAL).ok()??.side {
        Side::Source(origin) => origin.freeze,
        Side::Destination(_) => None,
    }
}
