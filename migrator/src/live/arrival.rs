//! After the arrival: the tree runs here, and its cache is completed.
//!
//! The tree's own reads come first now, and nothing that fails here takes it
//! away again: it is only told in the report.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use anyhow::Context;

use super::destination::{Guest, PATIENT};
use super::report::Arrival;
use super::tree::Process;
use crate::cgroup;
use crate::handover::Decision;
use crate::handover::settle::{self, ENDED, ROOT};
use crate::pagelist::HotFile;
use crate::prefetch::{self, Options};
use crate::protocol::{Fault, Message};
use crate::transfer::{Peer, Warmed};

/// How many may read beside the tree when it runs, whose own reads come first.
const BESIDE: u16 = 4;

/// The tree's first moments are its own: what it lacks now it reads itself, and
/// the second look is for the rest.
const ITS_OWN: Duration = Duration::from_secs(1);

impl Guest<'_> {
    /// The tree runs. Whatever happens now, it stays.
    pub(super) fn settle_in(self, restore_seconds: f64) -> anyhow::Result<Arrival> {
        if self.order.cgroup.is_some()
            && let Some(root) = self.session.read::<Process>(ROOT)?
            && let Err(error) = cgroup::join(root.pid, BESIDE.into())
        {
            eprintln!("migrator: not charged to the container: {error}");
        }
        let Self {
            mut peer,
            order: _,
            session,
            journal,
            leader,
            warmer,
            options,
            interrupted,
            ..
        } = self;
        options.at_once.store(BESIDE, Relaxed);
        let ended = await_end(&mut peer, interrupted);
        let Warmed {
            report,
            files,
            error,
        } = warmer.finish();
        let mut arrival = Arrival {
            report,
            refill: None,
            prefetch_error: error.map(|error| format!("{error:#}")),
            restore_seconds,
        };
        if !files.is_empty() && !options.stop.load(Relaxed) {
            thread::sleep(ITS_OWN);
            match refill(files, options) {
                Ok(report) => arrival.refill = Some(report),
                Err(error) => arrival.prefetch_error = Some(format!("{error:#}")),
            }
        }
        let json = serde_json::to_vec(&arrival).context("failed to encode the report")?;
        peer.leave(Some(Message::Report(json.into())));
        match ended {
            Ok(()) => session.note(ENDED, &())?,
            Err(fault) => eprintln!("migrator: the tree runs here, and the source {fault}"),
        }
        settle::finish(&session, &journal, Decision::Run)?;
        drop(leader);
        Ok(arrival)
    }
}

/// Waits until the source's tree has ended.
fn await_end(peer: &mut Peer, interrupted: &AtomicBool) -> Result<(), Fault> {
    loop {
        match peer.hear(PATIENT)? {
            Some(Message::Ended) => return Ok(()),
            _ if interrupted.load(Relaxed) => return Err(Fault::Closed),
            _ => {}
        }
    }
}

/// Looks at all pages again: taking locks and writes from the source have
/// made NFS drop some.
fn refill(mut files: Vec<HotFile>, mut options: Options) -> anyhow::Result<prefetch::Report> {
    // The tree runs, and writes.
    options.any_version = true;
    options.jobs = BESIDE;
    for file in &mut files {
        if let Ok(meta) = fs::symlink_metadata(&file.identity.path) {
            file.identity.size = meta.len();
        }
    }
    let list = crate::pagelist::PageIndexList {
        page_size: crate::kernel::page_size(),
        files,
    };
    prefetch::prefetch(list, options).context("failed to look at the pages again")
}
