//! `migrator move --cache-only`.

use crate::cli::MoveArgs;
use crate::exit::Outcome;

/// Runs the command.
pub(super) fn run(_args: MoveArgs) -> anyhow::Result<Outcome> {
    anyhow::bail!("not built yet")
}
