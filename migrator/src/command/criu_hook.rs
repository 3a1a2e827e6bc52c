//! `migrator criu-hook`: CRIU's action script.

use std::env;
use std::fs;
use std::io::{self, Write};
use std::panic;
use std::path::Path;
use std::process;
use std::time::Instant;

use anyhow::Context;

use crate::cli::{CriuHookArgs, HookPart};
use crate::criu_hook::look::{self, Seen};
use crate::criu_hook::stage::{Call, Stage};
use crate::criu_hook::{LIST, RUN, install, list, supervise, worker};
use crate::exit::{Outcome, Usage};
use crate::handover::notify;

/// Runs the command. As an action script of `migrator move` it holds CRIU.
/// Otherwise nothing that goes wrong with the page cache is an error: CRIU
/// would give up.
pub(super) fn run(args: CriuHookArgs) -> anyhow::Result<Outcome> {
    if args.install || args.remove {
        return configure(&args);
    }
    if let Some(session) = notify::session()? {
        return match notify::hold_dump(&session) {
            true => Ok(Outcome::Done),
            false => anyhow::bail!("the migration is given up"),
        };
    }
    let print = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        print(info);
        process::exit(0);
    }));
    let call = match Call::read(|name| env::var_os(name)) {
        Ok(call) => call,
        Err(error) => {
            tell(&error.to_string());
            return Ok(Outcome::Done);
        }
    };
    match call.stage {
        Stage::Other => return Ok(Outcome::Done),
        Stage::PreDump
        | Stage::PostDump
        | Stage::PreRestore
        | Stage::PostSetupNamespaces
        | Stage::PreResume => {}
    }
    cache(&call, &args);
    Ok(Outcome::Done)
}

/// The page cache's part.
fn cache(call: &Call, args: &CriuHookArgs) {
    let done = match (args.part, args.criu) {
        (None, _) => supervise::run(call),
        (Some(HookPart::Look), Some(criu)) => write_list(call, criu),
        (Some(HookPart::Prefetch), Some(criu)) => worker::run(call, criu),
        (Some(_), None) => Err(Usage("--part needs --criu".into()).into()),
    };
    if let Err(error) = done {
        tell(&format!("page cache: {error:#}"));
    }
}

/// Looks at the tree. Before the freeze the list is kept, at the end of the
/// dump it goes to the images.
fn write_list(call: &Call, criu: i32) -> anyhow::Result<()> {
    let init = call.init.context("CRTOOLS_INIT_PID is not set")?;
    // Should memory run out, let it be us rather than CRIU or the tree.
    _ = fs::write("/proc/self/oom_score_adj", "1000");
    let start = Instant::now();
    let early = list::early(criu);
    if call.stage == Stage::PreDump {
        supervise::make_run().with_context(|| format!("failed to make {RUN}"))?;
        list::sweep();
        let seen = look::look(init, supervise::LOOK, None)?;
        list::write(&early, &seen.list)?;
        report(&seen, &early, start);
        return Ok(());
    }
    let path = call.images.join(LIST);
    // Whatever comes of the look, an old list must not stay.
    list::remove(&path)?;
    let earlier = list::open(&early)?.map(list::read).transpose();
    list::remove(&early)?;
    let earlier = earlier.unwrap_or_else(|error| {
        tell(&format!("page cache: {error:#}"));
        None
    });
    let seen = look::look(init, supervise::LOOK, earlier)?;
    list::write(&path, &seen.list)?;
    report(&seen, &path, start);
    Ok(())
}

fn report(seen: &Seen, path: &Path, start: Instant) {
    tell(&format!(
        "page cache: {} pages of {} files in {} after {:.1?}; by {}",
        seen.list.pages(),
        seen.list.files.len(),
        path.display(),
        start.elapsed(),
        seen.how,
    ));
    if let Some(since) = &seen.tracker {
        tell(&format!(
            "page cache: with what the tracker knows that runs since {since}"
        ));
    }
    if !seen.complete {
        tell("page cache: there was no time for more");
    }
    for (why, count) in &seen.left_out {
        tell(&format!("page cache: left out {count}: {why}"));
    }
}

/// Into CRIU's log, if there is room: a full log is no error.
fn tell(what: &str) {
    _ = writeln!(io::stderr(), "migrator: {what}");
}

/// `--install` and `--remove`.
fn configure(args: &CriuHookArgs) -> anyhow::Result<Outcome> {
    let binary = env::current_exe().context("failed to find this program")?;
    let root = args.root.as_deref().unwrap_or(Path::new("/"));
    let done = match args.install {
        true => install::install(root, &binary)?,
        false => install::remove(root, &binary)?,
    };
    let mut out = io::stdout().lock();
    for line in done {
        writeln!(out, "{line}").context("failed to print what was done")?;
    }
    Ok(Outcome::Done)
}
