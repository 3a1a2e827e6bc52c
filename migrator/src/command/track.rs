//! `migrator track`.

use crate::cli::TrackArgs;
use crate::exit::Outcome;

/// Runs the command.
pub(super) fn run(_args: TrackArgs) -> anyhow::Result<Outcome> {
    anyhow::bail!("not built yet")
}
