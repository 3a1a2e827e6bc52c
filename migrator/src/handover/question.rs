//! The question of a source that does not know whether its tree runs on the
//! destination, and the destination's answer.

use std::fmt;
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use tokio::runtime::Handle;

use super::incoming::{self, Event, Found, State};
use super::journal::Origin;
use super::outgoing::Answer;
use super::{Identity, Session};
use crate::destination::Destination;
use crate::protocol::{Message, PeerError};
use crate::transfer::Peer;

/// How long a question may take, the connection included.
const QUESTION_LIMIT: Duration = Duration::from_secs(60);

/// How long the connection for a question may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(20);

/// Poll interval for the answer, and for a request to stop.
const ANSWER_POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Between two attempts to confirm.
const CONFIRM_INTERVAL: Duration = Duration::from_millis(500);

/// How long a destination waits for the confirmation after its answer.
const CONFIRM_LIMIT: Duration = Duration::from_secs(60);

/// A session and the host that accepted it, as [`Message::Ask`] carries them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The session's name.
    pub session: String,
    /// The host that is asked, in the boot in which it accepted the order.
    pub identity: Identity,
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.session, self.identity)
    }
}

impl FromStr for Question {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (session, identity) = text
            .split_once(' ')
            .context("a question names a session and a host")?;
        Ok(Self {
            session: session.to_owned(),
            identity: identity.parse()?,
        })
    }
}

/// Asks the destination. Returns its answer and the connection, over which it
/// waits for a [`Message::Confirmed`].
///
/// # Errors
/// It can't be reached, or does not answer.
pub fn ask(
    session: &Session,
    origin: &Origin,
    runtime: &Handle,
    is_cancelled: &dyn Fn() -> bool,
) -> anyhow::Result<(Answer, Peer)> {
    let identity = origin
        .destination
        .clone()
        .context("no destination has accepted the order")?;
    let to = Destination::parse(&origin.to).map_err(anyhow::Error::msg)?;
    let (mut peer, _) = Peer::connect(
        to,
        &origin.rsh,
        &origin.remote_path,
        runtime,
        Some(CONNECT_LIMIT),
        Default::default(),
        is_cancelled,
    )?;
    let question = Question {
        session: session.name(),
        identity,
    };
    let answer = (|| {
        peer.send(Message::Ask(question.to_string()))?;
        let began = Instant::now();
        while began.elapsed() < QUESTION_LIMIT && !is_cancelled() {
            match peer.recv(ANSWER_POLL_INTERVAL)? {
                Some(Message::Running) => return Ok(Answer::Running),
                Some(Message::NotRunning) => return Ok(Answer::NotRunning),
                Some(Message::NotKnown) => return Ok(Answer::NotKnown),
                _ => {}
            }
        }
        Err(PeerError::Silent(began.elapsed().as_secs()))
    })();
    match answer {
        Ok(answer) => Ok((answer, peer)),
        Err(error) => Err(peer.explain(error)),
    }
}

/// Answers a question. `is_cancelled` ends the wait for the confirmation.
///
/// # Errors
/// It is no question, or the session can't be read or written; the source is
/// told, and asks again.
pub fn answer(
    mut peer: Peer,
    question: &str,
    is_cancelled: &dyn Fn() -> bool,
) -> anyhow::Result<()> {
    let found = question
        .parse::<Question>()
        .and_then(|question| find(&question).map(|found| (question, found)));
    let answered = found.and_then(|(question, found)| {
        let session = Session::named(&question.session)?;
        let answer = match incoming::answer(found) {
            Some(answer) => answer,
            None => settle(&session)?,
        };
        Ok((session, answer))
    });
    let (session, answer) = match answered {
        Ok(answered) => answered,
        Err(error) => {
            peer.close(Some(Message::Failed(format!("{error:#}"))));
            return Err(error);
        }
    };
    let message = match answer {
        Answer::Running => Message::Running,
        Answer::NotRunning => Message::NotRunning,
        Answer::NotKnown => Message::NotKnown,
    };
    // Where this fails, the source asks again.
    _ = peer.send(message);
    let began = Instant::now();
    while began.elapsed() < CONFIRM_LIMIT && !is_cancelled() {
        match peer.recv(ANSWER_POLL_INTERVAL) {
            Ok(Some(Message::Confirmed)) if answer != Answer::NotKnown => {
                return incoming::executor::confirm(&session);
            }
            Ok(_) => {}
            Err(_) => return Ok(()),
        }
    }
    Ok(())
}

/// Looks for the session, without touching it.
fn find(question: &Question) -> anyhow::Result<Found> {
    let here = Identity::here()?;
    let session = Session::named(&question.session)?;
    let record = session.record()?;
    Ok(Found {
        same_host: question.identity.host == here.host,
        same_boot: question.identity.boot == here.boot,
        notes: session.exists(),
        record,
    })
}

/// Has the session's notes decide, as the machine does when it is asked.
fn settle(session: &Session) -> anyhow::Result<Answer> {
    let mut executor = incoming::executor::Executor::resume(session.clone())?;
    match executor.run(Event::Asked) {
        State::Running => Ok(Answer::Running),
        State::Gone | State::Ended => Ok(Answer::NotRunning),
        state => bail!(
            "session {} is still {state:?} here: {}",
            session.name(),
            executor.trouble()
        ),
    }
}

/// Tells a destination, over new connections, that no question will follow, so
/// that it keeps no note. It is done when the destination knows nothing of the
/// session any more.
///
/// # Errors
/// It can't be told before `is_enough`.
pub fn confirm(
    session: &Session,
    origin: &Origin,
    runtime: &Handle,
    is_enough: &dyn Fn() -> bool,
) -> anyhow::Result<()> {
    let mut is_told = false;
    loop {
        let trouble = match ask(session, origin, runtime, is_enough) {
            Ok((Answer::NotKnown, _)) if is_told => return Ok(()),
            // Another host may have answered.
            Ok((Answer::NotKnown, _)) => anyhow!("{} does not know the session", origin.to),
            Ok((_, peer)) => {
                peer.close(Some(Message::Confirmed));
                is_told = true;
                continue;
            }
            Err(error) => error,
        };
        if is_enough() {
            return Err(trouble);
        }
        thread::sleep(CONFIRM_INTERVAL);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_read_as_written() {
        let question = Question {
            session: "0123456789abcdef".into(),
            identity: Identity {
                host: "h".into(),
                boot: "b".into(),
            },
        };
        let text = question.to_string();
        assert_eq!(text, "0123456789abcdef h b");
        assert_eq!(text.parse::<Question>().unwrap(), question);
        for text in ["", "0123456789abcdef", "a b", "a b c d"] {
            assert!(text.parse::<Question>().is_err(), "{text}");
        }
    }
}
