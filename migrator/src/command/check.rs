//! `migrator check`.

use crate::cli::CheckArgs;
use crate::exit::Outcome;

/// Runs the command.
pub(super) fn run(_args: CheckArgs) -> anyhow::Result<Outcome> {
    anyhow::bail!("not built yet")
}
