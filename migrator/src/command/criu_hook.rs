//! `migrator criu-hook`: what CRIU runs at each stage of a dump or a restore.

use std::env;

use anyhow::Context;

use crate::exit::Outcome;
use crate::handover::gate;

/// Runs the command. CRIU goes on when it ends well, and undoes what it has
/// done when it does not.
pub(super) fn run() -> anyhow::Result<Outcome> {
    let stage = env::var("CRTOOLS_SCRIPT_ACTION")
        .context("CRTOOLS_SCRIPT_ACTION is not set: this is what CRIU runs, see criu(8)")?;
    let Some(session) = gate::session() else {
        return Ok(Outcome::Done);
    };
    match gate::pass(&session, &stage)? {
        true => Ok(Outcome::Done),
        false => anyhow::bail!("the migration is given up"),
    }
}
