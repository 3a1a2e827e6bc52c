//! Lets a tracker run for a while, epoch by epoch.

use std::time::{Duration, Instant};

use crate::signals::Signals;
use crate::tracker::Tracker;

/// How often the source is looked at within an epoch, so that its map stays
/// far from full.
pub const COLLECT_EVERY: Duration = Duration::from_millis(100);

/// Why an observation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The time asked for is over.
    TimeUp,
    /// A signal came.
    Interrupted,
    /// There is nobody left to observe.
    TargetGone,
}

/// Observes in steps, for whoever has something else to do in between.
#[derive(Debug)]
pub struct Epochs {
    interval: Duration,
    end: Instant,
}

impl Epochs {
    /// The first of them begins now.
    pub fn every(interval: Duration) -> Self {
        Self {
            interval,
            end: Instant::now() + interval,
        }
    }

    /// Observes for so long, which is to be no more than [`COLLECT_EVERY`]. Gives
    /// whether a signal came.
    ///
    /// # Errors
    /// The source failed.
    pub fn step(
        &mut self,
        tracker: &mut Tracker,
        signals: &Signals,
        time: Duration,
    ) -> anyhow::Result<bool> {
        if Instant::now() >= self.end {
            tracker.next_epoch()?;
            // An epoch that took too long is not made up for by short ones.
            self.end = (self.end + self.interval).max(Instant::now());
        }
        let interrupted = signals.wait(tracker.wakes(), time)?;
        tracker.collect()?;
        Ok(interrupted)
    }
}

/// Observes for some time, or until a signal comes or the target is gone.
/// `each` is called after each epoch of length `interval`.
///
/// # Errors
/// The source failed, or `each` did.
pub fn observe(
    tracker: &mut Tracker,
    interval: Duration,
    duration: Option<Duration>,
    signals: &Signals,
    mut each: impl FnMut(&mut Tracker) -> anyhow::Result<()>,
) -> anyhow::Result<Ended> {
    let began = Instant::now();
    let end = duration.map(|duration| began + duration);
    let mut epoch = began + interval;
    loop {
        let now = Instant::now();
        if end.is_some_and(|end| now >= end) {
            return Ok(Ended::TimeUp);
        }
        if now >= epoch {
            tracker.next_epoch()?;
            // An epoch that took too long is not made up for by short ones.
            epoch = (epoch + interval).max(now);
            each(tracker)?;
            if !tracker.is_alive() {
                return Ok(Ended::TargetGone);
            }
        }
        let next = epoch.min(now + COLLECT_EVERY).min(end.unwrap_or(epoch));
        if signals.wait(tracker.wakes(), next.saturating_duration_since(now))? {
            return Ok(Ended::Interrupted);
        }
        tracker.collect()?;
    }
}
