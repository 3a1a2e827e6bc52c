//! `cargo xtask`: builds and tests migrator, and brings up hosts to try it on.
//!
//! It is a library beside the program so that tests can have the hosts, too.

mod bench;
mod build;
mod command;
mod demo;
mod headers;
mod marked;
mod matrix;
mod module;
mod packages;
mod suite;
mod test;
mod toolchain;
pub mod vm;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use workspace::Workspace;

/// Builds and tests migrator.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Build the eBPF object, the static migrator that embeds it, and kernel modules, into target/dist.
    Build(build::Args),
    /// Run every check and test; those on the running kernel need root.
    Test(test::Args),
    /// Measure migrations on the test hosts.
    Bench(bench::Args),
    /// Show a migration: CRIU alone, then migrator, with live graphs.
    Demo(demo::Args),
    /// Bring up three virtual machines: an NFS server and two of its clients.
    Vm(vm::Args),
}

/// Does what the command line says.
pub fn main() -> ExitCode {
    let task = Cli::parse().task;
    let result = Workspace::find().and_then(|workspace| match task {
        Task::Build(args) => build::command(&workspace, &args),
        Task::Test(args) => test::run(&workspace, &args),
        Task::Bench(args) => bench::run(&workspace, args),
        Task::Demo(args) => demo::run(&workspace, args),
        Task::Vm(args) => vm::run(&workspace, &args),
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cargo xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
