//! Lets a tracker run for a while, epoch by epoch.

use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};

use crate::duty::{self, Duty};
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

/// Something that is done beside an observation, in the time between two looks.
pub trait Beside {
    /// What wakes it.
    fn events(&self) -> Vec<PollFd<'_>>;
    /// When it wants to go on, whatever happens.
    fn deadline(&self) -> Option<Instant>;
    /// Goes on until about a moment.
    fn work(&mut self, tracker: &mut Tracker, until: Instant);
}

/// Nothing.
impl Beside for () {
    fn events(&self) -> Vec<PollFd<'_>> {
        Vec::new()
    }

    fn deadline(&self) -> Option<Instant> {
        None
    }

    fn work(&mut self, _: &mut Tracker, _: Instant) {}
}

/// How long what is done beside may take at a time, at least and at most.
const SLICE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(50));

/// Observes for some time, or until a signal comes or the target is gone: all the
/// time, or as `duty` says. `each` is called after each epoch of length `interval`,
/// in pauses as well.
///
/// # Errors
/// The source failed, or `each` did.
pub fn observe(
    tracker: &mut Tracker,
    interval: Duration,
    duration: Option<Duration>,
    duty: Option<Duty>,
    signals: &Signals,
    each: impl FnMut(&mut Tracker) -> anyhow::Result<()>,
) -> anyhow::Result<Ended> {
    observe_beside(tracker, interval, duration, duty, signals, &mut (), each)
}

/// The same with something that is done beside.
///
/// # Errors
/// As for [`observe`].
pub fn observe_beside(
    tracker: &mut Tracker,
    interval: Duration,
    duration: Option<Duration>,
    mut duty: Option<Duty>,
    signals: &Signals,
    beside: &mut impl Beside,
    mut each: impl FnMut(&mut Tracker) -> anyhow::Result<()>,
) -> anyhow::Result<Ended> {
    let began = Instant::now();
    let end = duration.map(|duration| began + duration);
    let mut epoch = began + interval;
    // Epochs that are left of a pause.
    let mut pause = 0;
    if duty.is_some() {
        tracker.gather_news();
    }
    loop {
        let now = Instant::now();
        if end.is_some_and(|end| now >= end) {
            return Ok(Ended::TimeUp);
        }
        if now >= epoch {
            if !tracker.is_paused() {
                tracker.next_epoch()?;
            }
            // An epoch that took too long is not made up for by short ones.
            epoch = (epoch + interval).max(now);
            each(tracker)?;
            if !tracker.is_alive() {
                return Ok(Ended::TargetGone);
            }
            if let Some(duty) = &mut duty {
                pause = obey(tracker, duty, pause)?;
                // A window is not shorter for what it takes to open it.
                epoch = Instant::now() + interval;
            }
        }
        let mut next = epoch.min(end.unwrap_or(epoch));
        if !tracker.is_paused() {
            next = next.min(now + COLLECT_EVERY);
        }
        next = next.min(beside.deadline().unwrap_or(next));
        let wakes = tracker.wakes().map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        let events = wakes.into_iter().chain(beside.events());
        let interrupted = signals.wait_for(events, next.saturating_duration_since(now))?;
        tracker.collect()?;
        if interrupted {
            return Ok(Ended::Interrupted);
        }
        let now = Instant::now();
        let slice = match tracker.is_paused() {
            true => SLICE.1,
            false => tracker.is_due_at().saturating_duration_since(now),
        };
        beside.work(tracker, now + slice.clamp(SLICE.0, SLICE.1));
    }
}

/// Begins a pause or ends it, where it is time for that. `left` is how many epochs
/// of a pause are left, with the one that is over; gives how many are then.
fn obey(tracker: &mut Tracker, duty: &mut Duty, left: u32) -> anyhow::Result<u32> {
    match left {
        0 => {
            let pause = duty.pause(tracker.news());
            if pause.epochs > 0 {
                tracker.pause(pause.fades)?;
            }
            Ok(pause.epochs)
        }
        1 => match tracker.resume() {
            Ok(()) => Ok(0),
            // Memory may be short, or another tracer in our place. What is known
            // so far is worth more than the end of a tracker that was left on.
            Err(error) => {
                crate::say!("warning: {error:#}; the next window is tried later");
                Ok(duty::EVERY.0)
            }
        },
        left => Ok(left - 1),
    }
}
