//! The sessions of this host, for people and programs.

use serde::Serialize;

use super::incoming::{self, Record};
use super::journal::{JOURNAL, Side};
use super::outgoing::{self, State};
use super::{Decision, Journal, Mark, Session};
use crate::container;

/// A session as `migrator recover --list` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// Its name, the same on both hosts.
    pub session: String,
    /// Which side this host is; `None` where the notes are gone.
    pub role: Option<&'static str>,
    /// What moves.
    pub subject: Option<String>,
    /// The other host.
    pub peer: Option<String>,
    /// Where it stands.
    pub state: String,
    /// A process leads it.
    pub led: bool,
    /// Where its images are, if there are any.
    pub images: Option<String>,
}

/// Returns a session as it stands. Notes that can't be read are reported in
/// `state`.
pub fn list(session: &Session) -> Listed {
    let mut listed = Listed {
        session: session.name(),
        role: None,
        subject: None,
        peer: None,
        state: String::new(),
        led: false,
        images: None,
    };
    if session.images().is_dir() {
        listed.images = Some(session.images().display().to_string());
    }
    if !session.exists() {
        listed.state = from_disk(session);
        return listed;
    }
    listed.led = matches!(session.lead(), Ok(None));
    match session.read::<Journal>(JOURNAL) {
        Ok(Some(journal)) => {
            listed.subject = Some(container::describe(&journal.subject));
            let (role, peer, state) = match journal.side {
                Side::Source(origin) => ("source", origin.destination_name, source(session)),
                Side::Destination(target) => {
                    ("destination", target.source_name, destination(session))
                }
            };
            listed.role = Some(role);
            listed.peer = (!peer.is_empty()).then_some(peer);
            listed.state = state.unwrap_or_else(|error| format!("unreadable: {error:#}"));
        }
        Ok(None) => listed.state = "not begun".into(),
        Err(error) => listed.state = format!("unreadable: {error:#}"),
    }
    listed
}

fn source(session: &Session) -> anyhow::Result<String> {
    let notes = outgoing::Notes {
        intent: session.intent()?,
        decision: session.decision()?,
    };
    Ok(match State::of(notes) {
        State::Frozen => "frozen, before the commit",
        State::Committed => "committed: the destination has to say whether it runs there",
        State::Decided(Decision::Run) => "rolling back",
        State::Decided(Decision::End) => "runs on the destination, ending here",
        State::Ended(_) => "ended",
    }
    .into())
}

fn destination(session: &Session) -> anyhow::Result<String> {
    let notes = incoming::Notes {
        decision: session.decision()?,
        running: session.has(Mark::Running),
    };
    Ok(match incoming::State::of(notes) {
        incoming::State::Running => "running here, the source has not confirmed",
        incoming::State::Decided(Decision::Run) => "may run here, not continued yet",
        incoming::State::Decided(Decision::End) => "given up, ending here",
        _ if session.has(Mark::Restored) => "restored and stopped",
        _ => "restoring",
    }
    .into())
}

fn from_disk(session: &Session) -> String {
    match session.record() {
        Ok(Some(Record::Tombstone)) => "never ran here; kept for the source's question".into(),
        Ok(Some(Record::NotAllowed)) => {
            "never ran here, and this host was booted since; kept for the source's question".into()
        }
        Ok(Some(Record::Allowed)) => {
            "was allowed to run here, and this host was booted since".into()
        }
        Ok(None) => "this host was booted since it began".into(),
        Err(error) => format!("unreadable: {error:#}"),
    }
}
