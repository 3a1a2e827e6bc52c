//! The `migrator` command: parses, dispatches, and turns the outcome into an
//! exit code.

use migrator::{cli, command, exit};

fn main() -> std::process::ExitCode {
    exit::code(exit::caught(|| command::run(cli::Cli::from_env())))
}
