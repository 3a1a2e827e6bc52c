//! `migrator recover`: settles what a move that was killed has left behind.

use std::thread;
use std::time::Duration;

use anyhow::bail;

use crate::cli::RecoverArgs;
use crate::exit::Outcome;
use crate::handover::settle::settle;
use crate::handover::{Decision, Session};

/// How often it looks whether somebody still leads the session.
const LOOK: Duration = Duration::from_millis(100);

/// Runs the command.
pub(super) fn run(args: RecoverArgs) -> anyhow::Result<Outcome> {
    let sessions = match &args.session {
        Some(name) => vec![Session::named(name)?],
        None => Session::all()?,
    };
    if args.session.is_none() && sessions.is_empty() {
        println!("there is nothing to recover");
    }
    for session in sessions {
        if !session.exists() {
            if args.wait {
                continue;
            }
            bail!("there is no session {} on this host", session.name());
        }
        if args.destination_is_dead {
            session.decide(Decision::Run)?;
        }
        recover(&session, args.wait)?;
    }
    Ok(Outcome::Done)
}

fn recover(session: &Session, wait: bool) -> anyhow::Result<()> {
    let leader = loop {
        match session.lead() {
            // It has ended well.
            _ if !session.exists() => return Ok(()),
            Ok(Some(leader)) => break leader,
            Ok(None) if wait => thread::sleep(LOOK),
            Ok(None) => {
                println!("session {}: under way, left alone", session.name());
                return Ok(());
            }
            Err(error) => return Err(error),
        }
    };
    let decision = settle(session, &leader)?;
    let name = session.name();
    match decision {
        Some(Decision::Run) => println!("session {name}: the tree runs here"),
        Some(Decision::End) => println!("session {name}: the tree has ended here"),
        None => println!("session {name}: nothing had begun"),
    }
    Ok(())
}
