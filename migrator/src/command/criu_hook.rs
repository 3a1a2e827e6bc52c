//! `migrator criu-hook`: CRIU's action script.

use std::env;
use std::panic;
use std::path::Path;
use std::process;

use anyhow::Context;

use crate::cli::{CriuHookArgs, HookPart};
use crate::criu_hook::stage::{Call, Stage};
use crate::criu_hook::{install, list, look, supervise, worker};
use crate::exit::{Outcome, Usage};
use crate::handover::gate;

/// Runs the command. As an action script of `migrator move` it holds CRIU.
/// Otherwise nothing that goes wrong with the page cache is an error: CRIU
/// would give up.
pub(super) fn run(args: CriuHookArgs) -> anyhow::Result<Outcome> {
    if args.install || args.remove {
        return configure(&args);
    }
    if let Some(session) = gate::session()? {
        let stage = env::var("CRTOOLS_SCRIPT_ACTION").context("CRIU tells no stage")?;
        return match gate::pass(&session, &stage)? {
            true => Ok(Outcome::Done),
            false => anyhow::bail!("the migration is given up"),
        };
    }
    let call = match Call::read(|name| env::var_os(name)) {
        Ok(call) => call,
        Err(error) => {
            eprintln!("migrator: {error}");
            return Ok(Outcome::Done);
        }
    };
    match call.stage {
        Stage::Other => return Ok(Outcome::Done),
        Stage::PostDump | Stage::PreRestore | Stage::PostSetupNamespaces | Stage::PreResume => {}
    }
    cache(&call, &args);
    Ok(Outcome::Done)
}

/// The page cache's part.
fn cache(call: &Call, args: &CriuHookArgs) {
    let tell = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        tell(info);
        process::exit(0);
    }));
    let done = match args.part {
        None => supervise::run(call),
        Some(HookPart::Look) => write_list(call),
        Some(HookPart::Prefetch) => match args.restore {
            Some(restore) => worker::run(call, restore),
            None => Err(Usage("--part prefetch needs --restore".into()).into()),
        },
    };
    if let Err(error) = done {
        eprintln!("migrator: page cache: {error:#}");
    }
}

/// Looks at the frozen tree, and leaves the list among the images.
fn write_list(call: &Call) -> anyhow::Result<()> {
    let init = call.init.context("CRTOOLS_INIT_PID is not set")?;
    let start = std::time::Instant::now();
    // Whatever comes of the look, an old list must not stay.
    list::remove(&call.images.join(crate::criu_hook::LIST))?;
    let seen = look::look(init, supervise::LOOK)?;
    let looked = start.elapsed();
    list::write(&call.images, &seen.list)?;
    eprintln!(
        "migrator: page cache: {} pages of {} files in {}, looked for {looked:.1?}, in all {:.1?}; by {}",
        seen.list.pages(),
        seen.list.files.len(),
        crate::criu_hook::LIST,
        start.elapsed(),
        seen.how,
    );
    if !seen.complete {
        eprintln!("migrator: page cache: there was no time for more");
    }
    for (why, count) in &seen.left_out {
        eprintln!("migrator: page cache: left out {count}: {why}");
    }
    Ok(())
}

/// `--install` and `--remove`.
fn configure(args: &CriuHookArgs) -> anyhow::Result<Outcome> {
    let binary = env::current_exe().context("failed to find this program")?;
    let root = args.root.as_deref().unwrap_or(Path::new("/"));
    let done = match args.install {
        true => install::install(root, &binary)?,
        false => install::remove(root, &binary)?,
    };
    for line in done {
        println!("{line}");
    }
    Ok(Outcome::Done)
}
