//! How much a process has read when, and what that says. Pure.

/// How much had been read at a time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Point {
    /// Seconds since the migration was ordered; negative before that.
    pub(crate) at: f64,
    /// Bytes since the process began.
    pub(crate) bytes: u64,
}

/// Where the process was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// On the host that it leaves.
    Source,
    /// On the host that it arrives on.
    Destination,
}

/// What was seen of one process on both hosts.
#[derive(Debug, Clone, Default)]
pub(crate) struct Curve {
    source: Vec<Point>,
    destination: Vec<Point>,
}

/// The time in which nothing was read, for the process was nowhere.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Freeze {
    /// When the source saw the last progress.
    pub(crate) stopped: f64,
    /// When the destination saw the first.
    pub(crate) resumed: f64,
    /// How much had been read in between.
    pub(crate) bytes: u64,
}

impl Freeze {
    /// How long it took.
    pub(crate) fn seconds(self) -> f64 {
        self.resumed - self.stopped
    }
}

/// One reading of the whole file (or of the hot part), from its first byte to
/// its last. The first byte is where the process was when it stopped.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Pass {
    /// 0 is the first one after the migration, -1 the last one before.
    pub(crate) number: i32,
    /// When it began.
    pub(crate) begin: f64,
    /// When it ended.
    pub(crate) end: f64,
}

impl Curve {
    /// Adds what was seen on a host; each host's points come in their order.
    pub(crate) fn push(&mut self, place: Place, point: Point) {
        match place {
            Place::Source => self.source.push(point),
            Place::Destination => self.destination.push(point),
        }
    }

    /// How much had been read at a time; between two looks, in proportion.
    pub(crate) fn bytes_at(&self, at: f64) -> Option<f64> {
        // The source goes on looking at a process that stands still, while the
        // other is at work: the destination's word counts as soon as it has one.
        let arrived = self.freeze().map(|freeze| freeze.resumed);
        match arrived {
            Some(resumed) if at >= resumed => interpolate(&self.destination, at),
            Some(_) => interpolate(&self.source, at).or_else(|| {
                let last = self.source.last()?;
                (at > last.at).then_some(last.bytes as f64)
            }),
            None => interpolate(&self.source, at),
        }
    }

    /// Bytes per second between two times.
    pub(crate) fn speed(&self, from: f64, to: f64) -> Option<f64> {
        Some((self.bytes_at(to)? - self.bytes_at(from)?) / (to - from))
    }

    /// When the process stopped and went on; nothing before it went on.
    pub(crate) fn freeze(&self) -> Option<Freeze> {
        let bytes = self.source.last()?.bytes;
        let stopped = self.source.iter().find(|point| point.bytes == bytes)?;
        let resumed = self.destination.iter().find(|point| point.bytes > bytes)?;
        Some(Freeze {
            stopped: stopped.at,
            resumed: resumed.at,
            bytes,
        })
    }

    /// The passes before and after the freeze, counted from it in both
    /// directions, so that none contains it.
    pub(crate) fn passes(&self, pass: u64) -> Vec<Pass> {
        let Some(freeze) = self.freeze() else {
            return Vec::new();
        };
        let mut passes = Vec::new();
        let mut end = freeze.stopped;
        for number in 1.. {
            let reached = freeze.bytes.checked_sub(pass * number);
            let Some(begin) = reached.and_then(|bytes| time_of(&self.source, bytes)) else {
                break;
            };
            let number = -(number as i32);
            passes.push(Pass { number, begin, end });
            end = begin;
        }
        passes.reverse();
        let mut begin = freeze.resumed;
        for number in 0.. {
            let Some(end) = time_of(&self.destination, freeze.bytes + pass * (number + 1)) else {
                break;
            };
            let number = number as i32;
            passes.push(Pass { number, begin, end });
            begin = end;
        }
        passes
    }

    /// The last time that anything was seen.
    pub(crate) fn end(&self) -> Option<f64> {
        let last = |points: &[Point]| points.last().map(|point| point.at);
        match (last(&self.source), last(&self.destination)) {
            (Some(a), Some(b)) => Some(a.max(b)),
            (a, b) => a.or(b),
        }
    }
}

fn interpolate(points: &[Point], at: f64) -> Option<f64> {
    let after = points.partition_point(|point| point.at < at);
    let right = points.get(after)?;
    if right.at == at {
        return Some(right.bytes as f64);
    }
    let left = points.get(after.checked_sub(1)?)?;
    let share = (at - left.at) / (right.at - left.at);
    Some(left.bytes as f64 + share * (right.bytes - left.bytes) as f64)
}

/// When so much had been read.
fn time_of(points: &[Point], bytes: u64) -> Option<f64> {
    let after = points.partition_point(|point| point.bytes < bytes);
    let right = points.get(after)?;
    if right.bytes == bytes {
        return Some(right.at);
    }
    let left = points.get(after.checked_sub(1)?)?;
    let share = (bytes - left.bytes) as f64 / (right.bytes - left.bytes) as f64;
    Some(left.at + share * (right.at - left.at))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 100 bytes a second until second 2, nothing until 4, 10 bytes a second
    /// for 10 seconds, then 100 again. Looked at every half second; the source
    /// sees the stopped process until second 3.
    fn migrated() -> Curve {
        let mut curve = Curve::default();
        for half in -4..=6 {
            let at = f64::from(half) / 2.0;
            let bytes = (200.0 + 100.0 * at.min(2.0)) as u64;
            curve.push(Place::Source, Point { at, bytes });
        }
        for half in 7..=40 {
            let at = f64::from(half) / 2.0;
            let slow = (at - 4.0).clamp(0.0, 10.0) * 10.0;
            let bytes = 400 + (slow + (at - 14.0).max(0.0) * 100.0) as u64;
            curve.push(Place::Destination, Point { at, bytes });
        }
        curve
    }

    #[test]
    fn the_freeze_is_from_the_last_progress_to_the_first() {
        let freeze = migrated().freeze().expect("it was moved");
        assert_eq!((freeze.stopped, freeze.resumed), (2.0, 4.5));
        assert_eq!((freeze.bytes, freeze.seconds()), (400, 2.5));
    }

    #[test]
    fn bytes_are_known_at_any_time_that_was_seen() {
        let curve = migrated();
        assert_eq!(curve.bytes_at(-1.25), Some(75.0));
        assert_eq!(curve.bytes_at(3.25), Some(400.0));
        assert_eq!(curve.bytes_at(5.25), Some(412.5));
        assert_eq!(curve.bytes_at(-2.5), None);
        assert_eq!(curve.bytes_at(20.5), None);
        assert_eq!(curve.end(), Some(20.0));
    }

    #[test]
    fn passes_are_counted_from_the_freeze_and_leave_it_out() {
        let passes = migrated().passes(100);
        let speeds: Vec<_> = passes
            .iter()
            .map(|pass| (pass.number, 100.0 / (pass.end - pass.begin)))
            .collect();
        assert_eq!(speeds.len(), 4 + 7);
        assert_eq!(speeds[3], (-1, 100.0));
        // The first was half a second under way when it was first seen.
        assert_eq!(speeds[4], (0, 100.0 / 9.5));
        assert_eq!(speeds[5], (1, 100.0));
    }

    #[test]
    fn a_process_that_has_not_arrived_has_no_freeze() {
        let mut curve = Curve::default();
        curve.push(Place::Source, Point { at: 0.0, bytes: 1 });
        assert_eq!(curve.freeze(), None);
        assert_eq!(curve.passes(1), []);
        assert_eq!(curve.bytes_at(0.0), Some(1.0));
    }
}
