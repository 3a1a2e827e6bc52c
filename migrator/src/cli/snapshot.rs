//! The arguments of `migrator snapshot`.

use std::path::PathBuf;

use clap::Args;

use super::heat;
use crate::pagelist::Heat;

/// `migrator snapshot`
#[derive(Debug, Args)]
pub struct SnapshotArgs {
    /// Files, and directories with all below them.
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// List only pages of at least this heat: resident, referenced, active, or a number
    /// from 1 (resident) to 255.
    #[arg(long, value_name = "HEAT", default_value = "resident", value_parser = heat)]
    pub min_heat: Heat,
    /// Write the page index list to this file, atomically; `-` is standard output, and
    /// text then goes to standard error.
    #[arg(long, value_name = "LIST")]
    pub output: Option<PathBuf>,
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}
