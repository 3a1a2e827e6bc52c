//! `migrator recover`: cleans up after a killed `move` or `receive`.

use std::io::{self, Write};
use std::time::Duration;

use anyhow::{Context, bail};
use serde::Serialize;

use crate::cli::RecoverArgs;
use crate::exit::{Outcome, Usage};
use crate::handover::Session;
use crate::handover::guard;
use crate::handover::listing::{Listed, list};
use crate::handover::recovery::{Operator, Patience, Undecided, recover};
use crate::handover::session::sweep;
use crate::say;
use crate::signals::{Signals, ignore_file_limit};

/// Names the JSON form of what is printed.
const SCHEMA: &str = "migrator.recover/1";

/// What is printed with `--json`.
#[derive(Debug, Serialize)]
struct Printed {
    schema: &'static str,
    sessions: Vec<Recovered>,
}

/// A session, and what has become of it.
#[derive(Debug, Serialize)]
struct Recovered {
    #[serde(flatten)]
    listed: Listed,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Runs the command.
pub(super) fn run(args: RecoverArgs) -> anyhow::Result<Outcome> {
    if let (true, Some(name)) = (args.wait, &args.session) {
        ignore_file_limit()?;
        guard::watch(&Session::named(name)?);
        return Ok(Outcome::Done);
    }
    let sessions = match &args.session {
        Some(name) => {
            let session = Session::named(name).map_err(|error| Usage(error.to_string()))?;
            if !session.exists() && !session.storage().exists() {
                bail!("there is no session {name} on this host; `migrator recover --list`");
            }
            vec![session]
        }
        None => Session::all()?,
    };
    let signals = Signals::block()?;
    ignore_file_limit()?;
    if args.session.is_none() && !args.list {
        sweep();
    }
    let mut printed = Printed {
        schema: SCHEMA,
        sessions: Vec::new(),
    };
    for session in sessions {
        let listed = list(&session);
        // A tombstone is there to be asked for, and nothing else.
        let is_shown = args.list || args.session.is_some() || !session.is_tombstone();
        if !is_shown {
            continue;
        }
        let mut recovered = Recovered {
            listed,
            outcome: None,
            error: None,
        };
        if !args.list {
            match attempt(&session, &args, &signals) {
                Ok(outcome) => recovered.outcome = Some(outcome),
                Err(error) => recovered.error = Some(format!("{error:#}")),
            }
        }
        printed.sessions.push(recovered);
    }
    print(&printed, &args).context("failed to print what was done")?;
    let failed: Vec<&Recovered> = printed
        .sessions
        .iter()
        .filter(|it| it.error.is_some())
        .collect();
    match failed.as_slice() {
        [] => Ok(Outcome::Done),
        [one] => bail!(
            "session {}: {}",
            one.listed.session,
            one.error.as_deref().unwrap_or_default()
        ),
        more => bail!("{} sessions could not be recovered, see above", more.len()),
    }
}

fn attempt(session: &Session, args: &RecoverArgs, signals: &Signals) -> anyhow::Result<String> {
    let is_interrupted = || signals.wait(None, Duration::ZERO).unwrap_or(false);
    let operator = match &args.destination_is_dead {
        Some(name) => Operator::DestinationIsDead(name),
        None => Operator::None,
    };
    let leader = match session.exists() {
        true => match session.lead()? {
            Some(leader) => Some(leader),
            // Its guard is at it, for instance, and asks on. What the operator
            // knows is noted for it.
            None if operator != Operator::None => None,
            None => return Ok("in progress, left alone".into()),
        },
        false => None,
    };
    let recovered = recover(session, operator, Patience::Once, &is_interrupted);
    drop(leader);
    if let Err(error) = &recovered
        && error.is::<Undecided>()
        && let Err(error) = guard::start(session)
    {
        say!("{error:#}");
    }
    Ok(recovered?.to_string())
}

fn print(printed: &Printed, args: &RecoverArgs) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if args.json {
        serde_json::to_writer(&mut out, printed)?;
        writeln!(out)?;
        return out.flush();
    }
    if printed.sessions.is_empty() {
        writeln!(out, "nothing to recover")?;
    }
    for Recovered {
        listed,
        outcome,
        error,
    } in &printed.sessions
    {
        let name = &listed.session;
        match (outcome, error) {
            (Some(outcome), _) => writeln!(out, "session {name}: {outcome}")?,
            (None, Some(error)) => writeln!(out, "session {name}: {error}")?,
            (None, None) => {
                let subject = listed.subject.as_deref().unwrap_or("unknown");
                write!(out, "session {name}: {subject}")?;
                if let (Some(role), Some(peer)) = (listed.role, &listed.peer) {
                    let peer = crate::protocol::printable(peer.as_bytes());
                    let towards = match role {
                        "source" => "to",
                        _ => "from",
                    };
                    write!(out, " {towards} {peer}")?;
                }
                let led = if listed.led { " (in progress)" } else { "" };
                writeln!(out, ": {}{led}", listed.state)?;
                if let Some(images) = &listed.images {
                    writeln!(out, "    images in {images}")?;
                }
            }
        }
    }
    out.flush()
}
