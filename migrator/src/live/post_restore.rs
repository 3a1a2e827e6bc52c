//! After the restore: the tree runs here, and its cache is completed.
//!
//! The tree's own reads come first now, and nothing that fails here takes it
//! away again: it is only reported.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use anyhow::Context;

use super::destination::{Incoming, STOP_POLL_INTERVAL};
use super::report::Arrival;
use crate::cgroup;
use crate::handover::incoming::executor::{Executor, remove_confirmed};
use crate::handover::journal::ROOT;
use crate::pagelist::HotFile;
use crate::prefetch::{self, Accepts, Options};
use crate::process::Process;
use crate::protocol::{Message, PeerError};
use crate::say;
use crate::transfer::Warmed;

/// How many readers may read beside the tree when it runs.
const READERS_BESIDE: u16 = 4;

/// How long the tree reads alone at first: what it lacks now it reads itself,
/// and the second look is for the rest.
const REFILL_DELAY: Duration = Duration::from_secs(1);

impl Incoming<'_> {
    /// Completes the cache of a tree that runs. Whatever happens now, it stays.
    ///
    /// # Errors
    /// The session can't be removed.
    pub(super) fn finish(self) -> anyhow::Result<Arrival> {
        if self.order.cgroup.is_some()
            && let Ok(Some(root)) = self.session.read::<Process>(ROOT)
            && let Err(error) = cgroup::join(root.pid, READERS_BESIDE.into())
        {
            say!("not charged to the container: {error}");
        }
        let Self {
            mut executor,
            session,
            leader,
            warmer,
            options,
            interrupted,
            restore_seconds,
            ..
        } = self;
        options.at_once.store(READERS_BESIDE, Relaxed);
        let confirmed = await_confirmation(&mut executor, interrupted);
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
            thread::sleep(REFILL_DELAY);
            match refill(files, options) {
                Ok(report) => arrival.refill = Some(report),
                Err(error) => arrival.prefetch_error = Some(format!("{error:#}")),
            }
        }
        let json = serde_json::to_vec(&arrival).context("failed to encode the report")?;
        // The report is the receipt: without it, the source confirms once more.
        let report = match confirmed {
            Ok(()) => {
                executor.set_confirmed();
                Some(Message::Report(json.into()))
            }
            Err(error) => {
                say!("the tree runs here, and the source {error}");
                None
            }
        };
        if let Some(peer) = executor.peer.take() {
            peer.close(report);
        }
        executor.tidy()?;
        drop(leader);
        remove_confirmed(&session)?;
        Ok(arrival)
    }
}

/// Waits until the source's copy is dealt with.
fn await_confirmation(executor: &mut Executor, interrupted: &AtomicBool) -> Result<(), PeerError> {
    let Some(peer) = &mut executor.peer else {
        return Err(PeerError::Closed);
    };
    loop {
        match peer.recv(STOP_POLL_INTERVAL)? {
            Some(Message::Confirmed) => return Ok(()),
            _ if interrupted.load(Relaxed) => return Err(PeerError::Closed),
            _ => {}
        }
    }
}

/// Looks at all pages again, hottest first over all files: taking locks, and
/// writes from the source, have made NFS drop some.
fn refill(files: Vec<HotFile>, mut options: Options) -> anyhow::Result<prefetch::Report> {
    // The tree runs, and writes.
    options.accepts = Accepts::AnyVersion;
    options.jobs = READERS_BESIDE;
    let list = crate::pagelist::PageIndexList {
        page_size: crate::kernel::page_size(),
        files,
    };
    prefetch::prefetch(list, options).context("failed to look at the pages again")
}
