//! `migrator prefetch`.

use crate::cli::PrefetchArgs;
use crate::exit::Outcome;

/// Runs the command.
pub(super) fn run(_args: PrefetchArgs) -> anyhow::Result<Outcome> {
    anyhow::bail!("not built yet")
}
