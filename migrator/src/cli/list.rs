//! The arguments of `migrator list`.

use std::path::PathBuf;

use bytesize::ByteSize;
use clap::{Args, Subcommand};

use super::heat;
use crate::pagelist::Heat;

/// `migrator list`
#[derive(Debug, Args)]
pub struct ListArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: ListCommand,
}

/// What to do with lists.
#[derive(Debug, Subcommand)]
pub enum ListCommand {
    /// Join lists: a page of several has the greatest heat.
    Merge(MergeArgs),
    /// Keep a part of a list.
    Filter(FilterArgs),
    /// Compare two lists, page by page.
    Diff(DiffArgs),
    /// Make a list of lines `PATH OFFSET LENGTH`.
    FromText(FromTextArgs),
}

/// Where a list goes to.
#[derive(Debug, Args)]
pub struct OutputArgs {
    /// Write the page index list to this file, atomically; `-` is standard output,
    /// and text then goes to standard error.
    #[arg(long, value_name = "LIST")]
    pub output: PathBuf,
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}

/// `migrator list merge`
#[derive(Debug, Args)]
pub struct MergeArgs {
    /// The lists, .pil files; `-` reads standard input.
    #[arg(required = true, value_name = "LIST")]
    pub lists: Vec<PathBuf>,
    #[command(flatten)]
    #[allow(missing_docs, reason = "flattened into the help of its parent")]
    pub output: OutputArgs,
}

/// `migrator list filter`
#[derive(Debug, Args)]
pub struct FilterArgs {
    /// The list, a .pil file; `-` reads standard input.
    pub list: PathBuf,
    /// Keep only pages of at least this heat: resident, referenced, once, active, again,
    /// or a number from 1 (resident) to 255.
    #[arg(long, value_name = "HEAT", default_value = "resident", value_parser = heat)]
    pub min_heat: Heat,
    /// Keep only this file, or those below this directory; may be repeated.
    #[arg(long = "path", value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// Leave out this file, or those below this directory; may be repeated.
    #[arg(long, value_name = "PATH")]
    pub exclude: Vec<PathBuf>,
    /// Keep at most so much, the hottest pages.
    #[arg(long, value_name = "SIZE")]
    pub budget: Option<ByteSize>,
    #[command(flatten)]
    #[allow(missing_docs, reason = "flattened into the help of its parent")]
    pub output: OutputArgs,
}

/// `migrator list diff`
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// The first list, a .pil file; `-` reads standard input.
    pub a: PathBuf,
    /// The second list.
    pub b: PathBuf,
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}

/// `migrator list from-text`
#[derive(Debug, Args)]
pub struct FromTextArgs {
    /// The text; `-` reads standard input. Offset and length are in bytes or as in 8k,
    /// 1M; pages that they touch are listed. `\n`, `\\` and `\NNN` (octal) stand for
    /// bytes of a path.
    #[arg(default_value = "-")]
    pub text: PathBuf,
    /// The heat of the pages: resident, referenced, once, active, again, or a number
    /// from 1 (resident) to 255.
    #[arg(long, value_name = "HEAT", default_value = "once", value_parser = heat)]
    pub heat: Heat,
    #[command(flatten)]
    #[allow(missing_docs, reason = "flattened into the help of its parent")]
    pub output: OutputArgs,
}
