//! `migrator receive`.

use crate::cli::ReceiveArgs;
use crate::exit::Outcome;

/// Runs the command.
pub(super) fn run(_args: ReceiveArgs) -> anyhow::Result<Outcome> {
    anyhow::bail!("not built yet")
}
