//! The end of a migration, one way or the other: the tree runs there and ends
//! here, or runs on here.
//!
//! The machine of the handover decides (`handover::outgoing`). This side only
//! feeds it, and reports what came of it.

use std::time::Instant;

use super::freeze::Frozen;
use super::report::Arrival;
use super::source::{Outgoing, SIGNAL_POLL_INTERVAL};
use crate::handover::Decision;
use crate::handover::outgoing::Event;
use crate::handover::outgoing::executor::Standing;
use crate::protocol::Message;
use crate::say;

/// What came of a migration.
pub(super) struct Done {
    pub(super) arrival: Arrival,
    pub(super) source: Option<String>,
    pub(super) freeze_seconds: f64,
    pub(super) image_bytes: u64,
}

impl Outgoing<'_> {
    /// Commits, and waits for the destination's report.
    ///
    /// # Errors
    /// The tree runs on here, or it is not known where it runs.
    pub(super) fn hand_over(&mut self, frozen: Frozen) -> anyhow::Result<Done> {
        let standing = self.executor.run(Event::Restored);
        say::set_urgent(false);
        if standing != Standing::Ended(Decision::End) {
            let words = match self.executor.trouble() {
                "" => "the destination could not run the tree".to_owned(),
                trouble => trouble.to_owned(),
            };
            return Err(self.conclude(standing, words));
        }
        let since = self.runs_since.get().unwrap_or_else(Instant::now);
        let freeze_seconds = since.duration_since(frozen.since).as_secs_f64();
        let image_bytes = frozen.image_bytes;
        drop(frozen);

        let began = Instant::now();
        let arrival = self.await_report().unwrap_or_else(|error| {
            // The confirmation may have been lost with the connection.
            self.executor.confirm_anew();
            Arrival {
                prefetch_error: Some(format!("{error:#}")),
                ..Arrival::default()
            }
        });
        self.clock.ended("warming afterwards", began);
        Ok(Done {
            arrival,
            source: None,
            freeze_seconds,
            image_bytes,
        })
    }

    /// Waits for the report. The tree runs there: to stop this ends the
    /// waiting, nothing else.
    fn await_report(&mut self) -> anyhow::Result<Arrival> {
        loop {
            if self.check_signals().is_err() {
                anyhow::bail!("interrupted: the destination goes on warming");
            }
            if let Some(Message::Report(json)) = self.recv(SIGNAL_POLL_INTERVAL)? {
                return serde_json::from_slice(&json).map_err(|error| {
                    anyhow::anyhow!("malformed report from the destination: {error}")
                });
            }
        }
    }
}
