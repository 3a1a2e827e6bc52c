//! `migrator move`: moves a process tree or a container.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use super::prefetch::Bar;
use super::track;
use crate::cli::{MoveArgs, RuntimeChoice};
use crate::container::{self, Subject};
use crate::criu::{Criu, Passed};
use crate::destination::split_rsh;
use crate::exit::{Outcome, Usage};
use crate::live::report::Moved;
use crate::live::source::{self, Cache, Options};
use crate::prefetch::Progress;
use crate::signals::Signals;
use crate::target::Target;

/// Runs the command.
pub(super) fn run(args: MoveArgs) -> anyhow::Result<Outcome> {
    let rsh = split_rsh(&args.rsh).map_err(Usage)?;
    let signals = Signals::block()?;
    let is_interrupted = || signals.wait(None, Duration::ZERO).unwrap_or(false);
    let (subject, root) = match (args.subject.pid, &args.subject.container) {
        (Some(pid), _) => (Subject::Process { pid }, pid),
        (None, Some(name)) => match args.runtime {
            RuntimeChoice::Podman => container::podman_subject(name, &is_interrupted)?,
            RuntimeChoice::Runc => container::runc_subject(name, &is_interrupted)?,
            RuntimeChoice::Docker => {
                let why = "a container of docker can't be moved, only its page cache: --cache-only";
                return Err(Usage(why.into()).into());
            }
        },
        // clap requires one of them.
        (None, None) => return Err(Usage("name a --pid or a --container".into()).into()),
    };
    let live = args.live;
    let warmup = (!live.no_warmup).then_some(live.max_warmup);
    let options = Options {
        subject,
        root,
        to: args.to,
        rsh,
        remote_path: args.remote_path,
        images: live.images_dir,
        criu: Criu::new(live.criu),
        passed: Passed {
            tcp_established: live.tcp_established,
        },
        max_freeze: live.max_freeze,
        cache: (!live.no_prefetch).then_some(Cache {
            observe: args.observe,
            interval: args.source.interval,
            min_heat: args.source.min_heat,
            lru: track::wants_lru(&args.source),
            warmup,
        }),
    };
    let progress = Arc::new(Progress::default());
    let observe = args.source;
    let tracker = || {
        let (tracker, chosen) = track::start(Target::Process(root), &observe)?;
        Ok((tracker, chosen.name))
    };
    let moved = {
        let _bar = Bar::show(&progress);
        source::run(&options, &signals, Arc::clone(&progress), tracker)?
    };
    if let Err(error) = print(&moved, args.json) {
        // It has moved, whether the report is read or not.
        crate::say!("failed to print the report: {error}");
    }
    Ok(match moved.is_complete() {
        true => Outcome::Done,
        false => Outcome::Incomplete,
    })
}

fn print(moved: &Moved, json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match json {
        true => {
            serde_json::to_writer(&mut out, moved)?;
            writeln!(out)?;
        }
        false => write!(out, "{moved}")?,
    }
    out.flush()
}
