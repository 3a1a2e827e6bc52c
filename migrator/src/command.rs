//! The commands: each turns its arguments into checked options, runs the
//! core, and prints.

mod check;
mod criu_hook;
mod list;
mod move_cache;
mod move_live;
mod prefetch;
mod receive;
mod recover;
mod show;
mod snapshot;
mod track;

use crate::cli::{Cli, Command};
use crate::exit::Outcome;
use crate::held;

/// Runs the command that was asked for.
///
/// # Errors
/// What went wrong, in a sentence fit for the user; [`crate::exit::code`]
/// turns it into an exit code.
pub fn run(cli: Cli) -> anyhow::Result<Outcome> {
    match cli.command {
        Command::Track(args) => track::run(args),
        Command::Snapshot(args) => snapshot::run(args),
        Command::Show(args) => show::run(args),
        Command::List(args) => list::run(args),
        Command::Prefetch(args) => prefetch::run(args),
        Command::Move(args) if args.cache_only => move_cache::run(args),
        Command::Move(args) => move_live::run(args),
        Command::Receive(args) => receive::run(args),
        Command::Recover(args) => recover::run(args),
        Command::CriuHook(args) => criu_hook::run(args),
        Command::Check(args) => check::run(args),
        Command::Hold(args) => match held::hold(&args.socket, &args.command)? {},
    }
}
