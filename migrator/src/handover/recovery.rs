//! Brings a session to its end when its leader has died, or has lost the
//! destination at the wrong moment.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail};

use super::journal::{JOURNAL, Origin, Side};
use super::outgoing::executor::{Executor, Standing};
use super::outgoing::{Answer, Event, Intent};
use super::{Decision, Journal, Session, incoming, question};
use crate::transfer;

/// How long the destination is tried to be told that no question will follow.
const CONFIRM_LIMIT: Duration = Duration::from_secs(10);

/// What an operator knows that no host can find out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator<'a> {
    /// Nothing.
    None,
    /// The destination, of this name, is gone for good.
    DestinationIsDead(&'a str),
}

/// How long to wait for a destination that does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// Ask once.
    Once,
    /// Ask until there is an answer.
    Endless,
}

/// What has become of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovered {
    /// The tree runs here.
    Runs,
    /// It runs here, and the source has not confirmed yet that it knows.
    RunsUnconfirmed,
    /// It would run here, and CRIU has taken it along when it was killed.
    Lost,
    /// It has ended here.
    Ended,
    /// Nothing had begun.
    Nothing,
}

impl fmt::Display for Recovered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Runs => "the tree runs here",
            Self::RunsUnconfirmed => {
                "the tree runs here; a note is kept until the source confirms that it knows"
            }
            Self::Lost => "the tree has ended here: CRIU was killed while it dumped it",
            Self::Ended => "the tree has ended here",
            Self::Nothing => "nothing had begun",
        })
    }
}

/// It is not known whether the tree runs on the destination.
#[derive(Debug, thiserror::Error)]
#[error(
    "it is not known whether the tree runs on {host}, so it stays stopped here; a guard asks \
     again in the background. If {host} is gone for good, `migrator recover \
     --destination-is-dead {host} {session}` lets the tree run here"
)]
pub struct Undecided {
    /// The session's name.
    pub session: String,
    /// The destination's name.
    pub host: String,
}

/// Brings a session to its end. `is_interrupted` is true once for each signal.
///
/// # Errors
/// [`Undecided`]; or what can't be done. The session stays.
pub fn recover(
    session: &Session,
    operator: Operator<'_>,
    patience: Patience,
    is_interrupted: &dyn Fn() -> bool,
) -> anyhow::Result<Recovered> {
    if !session.exists() {
        return recover_from_disk(session, is_interrupted);
    }
    let Some(journal) = session.read::<Journal>(JOURNAL)? else {
        // It ended before it began.
        session.remove()?;
        return Ok(Recovered::Nothing);
    };
    match journal.side {
        Side::Source(origin) => {
            recover_source(session, &origin, operator, patience, is_interrupted)
        }
        Side::Destination(_) if operator != Operator::None => bail!(
            "--destination-is-dead is for the source of a handover, and this host is the \
             destination of session {}",
            session.name()
        ),
        Side::Destination(_) => recover_destination(session),
    }
}

fn recover_source(
    session: &Session,
    origin: &Origin,
    operator: Operator<'_>,
    patience: Patience,
    is_interrupted: &dyn Fn() -> bool,
) -> anyhow::Result<Recovered> {
    let runtime = transfer::runtime()?;
    let (mut executor, actions) =
        Executor::take_over(session.clone(), runtime.handle().clone(), is_interrupted)?;
    if patience == Patience::Once {
        executor.ask_once();
    }
    let standing = match operator {
        Operator::None => executor.carry_out_all(actions),
        Operator::DestinationIsDead(name) => {
            check_dead(session, origin, name)?;
            executor.run(Event::DestinationIsDead)
        }
    };
    let peer = executor.peer.take();
    if let Some(peer) = peer {
        peer.close(None);
    }
    runtime.shutdown_background();
    match standing {
        Standing::Ended(Decision::Run) => match executor.lost() {
            None => Ok(Recovered::Runs),
            Some(_) => Ok(Recovered::Lost),
        },
        Standing::Ended(Decision::End) => Ok(Recovered::Ended),
        Standing::Undecided => Err(Undecided {
            session: session.name(),
            host: origin.destination_name.clone(),
        }
        .into()),
        Standing::Open | Standing::Stuck => Err(anyhow!("{}", executor.trouble())),
    }
}

/// Refuses what an operator says where it can't be the case.
fn check_dead(session: &Session, origin: &Origin, name: &str) -> anyhow::Result<()> {
    if session.decision()?.is_some() || session.intent()? != Some(Intent::Commit) {
        bail!(
            "session {} is not undecided: `migrator recover {0}` is enough",
            session.name()
        );
    }
    if name != origin.destination_name {
        bail!(
            "the destination of session {} is {}, not {name}",
            session.name(),
            origin.destination_name
        );
    }
    Ok(())
}

fn recover_destination(session: &Session) -> anyhow::Result<Recovered> {
    let mut executor = incoming::executor::Executor::resume(session.clone())?;
    let state = executor.take_over();
    let recovered = match state {
        incoming::State::Running if executor.is_confirmed() => Recovered::Runs,
        incoming::State::Running => Recovered::RunsUnconfirmed,
        incoming::State::Gone | incoming::State::Ended => Recovered::Ended,
        _ => return Err(anyhow!("{}", executor.trouble())),
    };
    executor.tidy()?;
    Ok(recovered)
}

/// Recovers a session whose notes a boot has removed, with the tree.
fn recover_from_disk(
    session: &Session,
    is_interrupted: &dyn Fn() -> bool,
) -> anyhow::Result<Recovered> {
    if session.record()?.is_some() {
        // Kept for the source's question, which needs nothing else.
        session.remove_images()?;
        return Ok(Recovered::Ended);
    }
    let journal = session.kept_on_disk::<Journal>()?;
    let Some(Side::Source(origin)) = journal.map(|journal| journal.side) else {
        if !session.storage().exists() {
            bail!("there is no session {} on this host", session.name());
        }
        // It was booted before anything had begun.
        session.remove()?;
        return Ok(Recovered::Nothing);
    };
    let runtime = transfer::runtime()?;
    let asked = question::ask(session, &origin, runtime.handle(), is_interrupted);
    let answer = asked.map(|(answer, peer)| {
        peer.close(None);
        answer
    });
    let began = Instant::now();
    let is_enough = || is_interrupted() || began.elapsed() > CONFIRM_LIMIT;
    let confirmed = match answer {
        Ok(Answer::Running) => question::confirm(session, &origin, runtime.handle(), &is_enough),
        _ => Ok(()),
    };
    runtime.shutdown_background();
    confirmed?;
    match answer {
        Ok(Answer::Running) => {
            session.remove()?;
            Ok(Recovered::Ended)
        }
        Ok(Answer::NotRunning | Answer::NotKnown) | Err(_) => bail!(
            "this host was booted while the tree was on its way, and it does not run on {} as far \
             as that says; its images, if they are complete, are in {}: restore them with CRIU, or \
             remove that directory",
            origin.destination_name,
            session.storage().display()
        ),
    }
}
