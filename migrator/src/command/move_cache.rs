//! `migrator move --cache-only`: observes, sends the list, and shows what the
//! destination made of it.

use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use bytesize::ByteSize;
use serde::Serialize;
use tokio::runtime::Runtime;

use super::prefetch::Bar;
use super::receive::outcome;
use super::track;
use crate::cli::{MoveArgs, SubjectArgs};
use crate::container;
use crate::destination::{Destination, split_rsh};
use crate::exit::{Outcome, Usage};
use crate::observe::{Ended, observe};
use crate::pagelist::PageIndexList;
use crate::pathmap::{self, Mapping};
use crate::prefetch::Report;
use crate::signals::{Signals, interruption};
use crate::target::Target;
use crate::transfer::{self, Link};

/// Runs the command.
pub(super) fn run(args: MoveArgs) -> anyhow::Result<Outcome> {
    let destination = Destination::parse(&args.to).map_err(Usage)?;
    let rsh = split_rsh(&args.rsh).map_err(Usage)?;
    // Nobody is to log in for a process that is not there.
    let target = target(&args)?;
    target.processes(Path::new("/proc"))?;
    let signals = Signals::block()?;
    let runtime = transfer::runtime()?;
    let moved = carry(&args, &target, destination, &rsh, &signals, &runtime);
    // A thread may wait with bytes of the list that nobody wants any more.
    runtime.shutdown_background();

    let moved = moved?;
    match args.json {
        true => print_json(&moved),
        false => print(&moved),
    }
    .context("failed to print the report")?;
    Ok(outcome(&moved.report))
}

/// Whose cache it is.
fn target(args: &MoveArgs) -> anyhow::Result<Target> {
    let SubjectArgs {
        pid,
        container,
        cgroup,
    } = &args.subject;
    Ok(match (pid, container, cgroup) {
        (Some(pid), ..) => Target::Process(*pid),
        (None, Some(name), _) => container::find(args.runtime.into(), name)?,
        (None, None, Some(path)) => Target::Cgroup(path.clone()),
        // clap requires one of the three.
        (None, None, None) => Target::All,
    })
}

/// `migrator move --json`
#[derive(Serialize)]
struct Moved {
    schema: &'static str,
    source: &'static str,
    destination: String,
    list: ListJson,
    observe_seconds: f64,
    transfer_seconds: f64,
    report: Report,
}

#[derive(Serialize)]
struct ListJson {
    files: u64,
    pages: u64,
    bytes: u64,
}

/// Connects, observes, and sends. To connect comes first: what does not work
/// there shows before anybody waits for an observation.
fn carry(
    args: &MoveArgs,
    target: &Target,
    destination: Destination,
    rsh: &[String],
    signals: &Signals,
    runtime: &Runtime,
) -> anyhow::Result<Moved> {
    let name = destination.to_string();
    let mut link = runtime.block_on(async {
        let connect = async {
            let connection = transfer::open(destination, rsh, &args.remote_path).await?;
            Link::start(connection).await
        };
        tokio::select! {
            // Ctrl-C ends ssh as well, and is then the reason for that.
            biased;
            ended = signals.came() => Err(interruption(ended, "source")),
            link = connect => link,
        }
    })?;

    let (mut list, source, observed) = match watch(args, target, signals, &link) {
        Ok(Some(watched)) => watched,
        Ok(None) => return Err(runtime.block_on(link.failure())),
        Err(error) => {
            runtime.block_on(link.cancel(&format!("{error:#}")));
            return Err(error);
        }
    };
    map(&args.maps, &mut list)?;
    let (files, pages) = (list.files.len() as u64, list.pages());

    let began = Instant::now();
    let bar = Bar::show(link.progress());
    let sent = runtime.block_on(async {
        let interrupted = tokio::select! {
            biased;
            ended = signals.came() => interruption(ended, "source"),
            sent = link.send(list) => return sent,
        };
        link.cancel(&format!("{interrupted:#}")).await;
        Err(interrupted)
    });
    drop(bar);
    let (report, bytes) = sent?;
    Ok(Moved {
        schema: "migrator.move/1",
        source,
        destination: name,
        list: ListJson {
            files,
            pages,
            bytes,
        },
        observe_seconds: observed.as_secs_f64(),
        transfer_seconds: began.elapsed().as_secs_f64(),
        report,
    })
}

/// Observes the target; nothing of ours is in the kernel afterwards. `None`
/// if the connection failed meanwhile.
fn watch(
    args: &MoveArgs,
    target: &Target,
    signals: &Signals,
    link: &Link,
) -> anyhow::Result<Option<(PageIndexList, &'static str, Duration)>> {
    let (mut tracker, chosen) = track::start(target.clone(), &args.source)?;
    let began = Instant::now();
    let ended = observe(
        &mut tracker,
        args.source.interval,
        Some(args.observe),
        None,
        signals,
        |_| match link.is_broken() {
            true => Err(anyhow!("the connection failed")),
            false => Ok(()),
        },
    );
    match ended {
        // Ctrl-C ends ssh as well, so this is asked first.
        Ok(Ended::Interrupted) => return Err(interruption(Ok(()), "source")),
        _ if link.is_broken() => return Ok(None),
        Ok(Ended::TargetGone) => crate::say!("the target has ended"),
        Ok(Ended::TimeUp) => {}
        Err(error) => return Err(error),
    }
    track::sample_lru(&mut tracker, &args.source);
    let snapshot = tracker.snapshot(args.source.min_heat)?;
    track::warn(&snapshot.lost);
    if snapshot.list.files.is_empty() {
        crate::say!(
            "warning: the target used no pages of files within {}",
            humantime::format_duration(args.observe)
        );
    }
    Ok(Some((snapshot.list, chosen.name, began.elapsed())))
}

/// Writes the paths as the destination has them. What it maps itself comes
/// after that. A file at another path is a copy, so its inode is not known.
fn map(maps: &[Mapping], list: &mut PageIndexList) -> anyhow::Result<()> {
    for file in &mut list.files {
        let identity = &mut file.identity;
        let path = pathmap::map(maps, &identity.path)
            .map_err(|why| anyhow!("failed to map {}: it {why}", identity.path.display()))?;
        if path != identity.path {
            identity.path = path;
            (identity.device, identity.inode) = (0, 0);
        }
    }
    Ok(())
}

/// Half a hot page cache is of little use, so an interrupted move stops,
/// where an interrupted `track` ends with what it has.
fn print(moved: &Moved) -> io::Result<()> {
    let ListJson {
        files,
        pages,
        bytes,
    } = moved.list;
    let mut out = io::stdout().lock();
    writeln!(
        out,
        "sent {pages} pages of {files} files to {}: a list of {}, in {:.2} s",
        moved.destination,
        ByteSize(bytes).display().iec(),
        moved.transfer_seconds
    )?;
    write!(out, "{}", moved.report)?;
    out.flush()
}

fn print_json(moved: &Moved) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, moved)?;
    writeln!(out)?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pagelist::{FileIdentity, HotFile};

    #[test]
    fn the_inode_of_a_mapped_file_is_not_known() {
        let file = |path: &str| HotFile {
            identity: FileIdentity {
                path: path.into(),
                device: 2049,
                inode: 12,
                size: 1,
                mtime_ns: 2,
            },
            runs: Vec::new(),
        };
        let mut list = PageIndexList {
            page_size: 4096,
            files: vec![file("/data/a"), file("/srv/b")],
        };
        let maps = [Mapping::parse("/data=/copy").expect("a mapping")];
        map(&maps, &mut list).expect("paths that can be mapped");
        let found = list.files.iter().map(|file| &file.identity);
        let found: Vec<_> = found
            .map(|it| (it.path.to_str(), it.device, it.inode))
            .collect();
        let expected = [(Some("/copy/a"), 0, 0), (Some("/srv/b"), 2049, 12)];
        assert_eq!(found, expected);
    }
}
