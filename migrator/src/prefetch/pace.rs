//! `--bandwidth`: when the next read may begin.

use std::time::{Duration, Instant};

/// A token bucket that holds a tenth of a second. It is asked by the one
/// thread that hands out the batches, so it needs no lock.
#[derive(Debug)]
pub(super) struct Pace {
    bytes_per_second: u64,
    /// When all that was handed out is paid for.
    paid: Instant,
}

/// What may be saved up while nothing is read.
const BURST: Duration = Duration::from_millis(100);

impl Pace {
    pub(super) fn new(bytes_per_second: u64, now: Instant) -> Self {
        Self {
            bytes_per_second: bytes_per_second.max(1),
            paid: now,
        }
    }

    /// How long to wait at `now` before reading so many bytes.
    pub(super) fn wait(&mut self, bytes: u32, now: Instant) -> Duration {
        let begin = now
            .checked_sub(BURST)
            .map_or(self.paid, |earliest| self.paid.max(earliest));
        let cost = Duration::from_secs_f64(f64::from(bytes) / self.bytes_per_second as f64);
        self.paid = begin + cost;
        begin.saturating_duration_since(now)
    }

    /// How large a batch may be so that reads come evenly.
    pub(super) fn batch_limit(&self) -> u32 {
        u32::try_from(self.bytes_per_second / 16).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_long_run_keeps_the_rate() {
        let start = Instant::now();
        let mut pace = Pace::new(1 << 20, start);
        let mut now = start;
        for _ in 0..160 {
            now += pace.wait(1 << 16, now);
        }
        // 160 batches of a sixteenth of a second each; the last one begins
        // when those before it are paid for, less the burst.
        let took = now - start;
        assert!(took >= Duration::from_millis(9_800), "{took:?}");
        assert!(took <= Duration::from_millis(10_000), "{took:?}");
    }

    #[test]
    fn idle_time_saves_up_no_more_than_a_burst() {
        let start = Instant::now();
        let mut pace = Pace::new(1000, start);
        let later = start + Duration::from_secs(3600);
        assert_eq!(pace.wait(100, later), Duration::ZERO);
        assert_eq!(pace.wait(100, later), Duration::ZERO);
        assert_eq!(pace.wait(100, later), Duration::from_millis(100));
    }
}
