//! `migrator show`.

use crate::cli::ShowArgs;
use crate::exit::Outcome;

/// Runs the command.
pub(super) fn run(_args: ShowArgs) -> anyhow::Result<Outcome> {
    anyhow::bail!("not built yet")
}
