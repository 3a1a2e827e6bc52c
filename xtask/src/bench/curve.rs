//! How much a process has read when, and what that says. Pure.

/// How much had been read at a time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Point {
    /// Seconds since the migration was ordered; negative before that.
    pub(crate) at: f64,
    /// Bytes since the process began.
    pub(crate) bytes: u64,
}

/// How one process read on both hosts.
#[derive(Debug, Clone, Default)]
pub(crate) struct Curve {
    points: Vec<Point>,
    freeze: Option<Freeze>,
}

/// The time in which nothing was read, for the process was nowhere.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Freeze {
    /// When it made the last progress on the source.
    pub(crate) stopped: f64,
    /// When it made the first on the destination.
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
    /// Joins what was seen of it on the host that it leaves, and on the one that
    /// it arrives on, each in its order.
    pub(crate) fn of(source: &[Point], destination: &[Point]) -> Self {
        let freeze = freeze(source, destination);
        let Some(Freeze {
            stopped,
            resumed,
            bytes,
        }) = freeze
        else {
            return Self {
                points: source.to_vec(),
                freeze,
            };
        };
        let before = source.iter().filter(|point| point.at < stopped);
        let still = [stopped, resumed].map(|at| Point { at, bytes });
        let after = destination.iter().filter(|point| point.at > resumed);
        Self {
            points: before.chain(&still).chain(after).copied().collect(),
            freeze,
        }
    }

    /// How much had been read at a time; between two looks, in proportion.
    pub(crate) fn bytes_at(&self, at: f64) -> Option<f64> {
        let after = self.points.partition_point(|point| point.at < at);
        let right = self.points.get(after)?;
        if right.at == at {
            return Some(right.bytes as f64);
        }
        let left = self.points.get(after.checked_sub(1)?)?;
        let share = (at - left.at) / (right.at - left.at);
        Some(left.bytes as f64 + share * (right.bytes - left.bytes) as f64)
    }

    /// When so much had been read.
    fn time_of(&self, bytes: u64) -> Option<f64> {
        let after = self.points.partition_point(|point| point.bytes < bytes);
        let right = self.points.get(after)?;
        if right.bytes == bytes {
            return Some(right.at);
        }
        let left = self.points.get(after.checked_sub(1)?)?;
        let share = (bytes - left.bytes) as f64 / (right.bytes - left.bytes) as f64;
        Some(left.at + share * (right.at - left.at))
    }

    /// Bytes per second between two times.
    pub(crate) fn speed(&self, from: f64, to: f64) -> Option<f64> {
        Some((self.bytes_at(to)? - self.bytes_at(from)?) / (to - from))
    }

    /// When the process stopped and went on; nothing before it went on.
    pub(crate) fn freeze(&self) -> Option<Freeze> {
        self.freeze
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
            let Some(begin) = reached.and_then(|bytes| self.time_of(bytes)) else {
                break;
            };
            let number = -(number as i32);
            passes.push(Pass { number, begin, end });
            end = begin;
        }
        passes.reverse();
        let mut begin = freeze.resumed;
        for number in 0.. {
            let Some(end) = self.time_of(freeze.bytes + pass * (number + 1)) else {
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
        Some(self.points.last()?.at)
    }
}

fn freeze(source: &[Point], destination: &[Point]) -> Option<Freeze> {
    let bytes = source.last()?.bytes;
    let last = source.partition_point(|point| point.bytes < bytes);
    let first = destination.partition_point(|point| point.bytes <= bytes);
    destination.get(first)?;
    Some(Freeze {
        stopped: stopped(source, last),
        resumed: resumed(destination, first, bytes),
        bytes,
    })
}

/// When a process stopped that was first seen with its last byte at `points[last]`:
/// after the point before that, as long after it as its speed says.
fn stopped(points: &[Point], last: usize) -> f64 {
    let seen = points[last];
    let Some([before, moving]) = last
        .checked_sub(2)
        .map(|first| [points[first], points[first + 1]])
    else {
        return seen.at;
    };
    let speed = (moving.bytes - before.bytes) as f64 / (moving.at - before.at);
    let left = (seen.bytes - moving.bytes) as f64;
    // Where the speed says nothing (0), the sum is infinite or no number.
    (moving.at + left / speed).min(seen.at)
}

/// When a process went on from `bytes` that was first seen with more at
/// `points[first]`: as long before that as its speed afterwards says, and not
/// before it was last seen standing still.
fn resumed(points: &[Point], first: usize, bytes: u64) -> f64 {
    let seen = points[first];
    let still = first.checked_sub(1).map(|before| points[before].at);
    let speed = points.get(first + 1).map(|next| {
        let read = (next.bytes - seen.bytes) as f64;
        read / (next.at - seen.at)
    });
    let read = (seen.bytes - bytes) as f64;
    let extrapolated = match speed {
        Some(speed) if speed > 0.0 => seen.at - read / speed,
        _ => seen.at,
    };
    // Unseen, it stood still for as long as one looks away at most.
    let away = points.get(first + 1).map_or(0.0, |next| next.at - seen.at);
    extrapolated.max(still.unwrap_or(seen.at - away))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(points: &[(f64, u64)]) -> Vec<Point> {
        let point = |&(at, bytes)| Point { at, bytes };
        points.iter().map(point).collect()
    }

    /// 100 bytes a second until second 2, nothing until 4, 10 bytes a second
    /// for 10 seconds, then 100 again. Looked at every half second; the source
    /// sees the stopped process until second 3.
    fn migrated() -> Curve {
        let source = (-4..=6).map(|half| {
            let at = f64::from(half) / 2.0;
            (at, (200.0 + 100.0 * at.min(2.0)) as u64)
        });
        let destination = (7..=40).map(|half| {
            let at = f64::from(half) / 2.0;
            let slow = (at - 4.0).clamp(0.0, 10.0) * 10.0;
            (at, 400 + (slow + (at - 14.0).max(0.0) * 100.0) as u64)
        });
        let (source, destination): (Vec<_>, Vec<_>) = (source.collect(), destination.collect());
        Curve::of(&points(&source), &points(&destination))
    }

    #[test]
    fn the_freeze_is_from_the_last_progress_to_the_first() {
        let freeze = migrated().freeze().expect("it was moved");
        assert_eq!((freeze.stopped, freeze.resumed), (2.0, 4.0));
        assert_eq!((freeze.bytes, freeze.seconds()), (400, 2.0));
    }

    #[test]
    fn what_was_not_seen_is_found_from_the_speed() {
        // 10 bytes a second; it stops at 2.5, and goes on at 5.5 as fast.
        let source = points(&[(0.0, 0), (1.0, 10), (2.0, 20), (3.0, 25), (4.0, 25)]);
        let mut destination = points(&[(5.0, 25), (6.0, 30), (7.0, 40)]);
        let curve = Curve::of(&source, &destination);
        let freeze = curve.freeze().expect("it was moved");
        assert_eq!((freeze.stopped, freeze.resumed), (2.5, 5.5));
        assert_eq!(curve.bytes_at(2.25), Some(22.5));
        assert_eq!(curve.bytes_at(5.75), Some(27.5));
        assert_eq!(curve.bytes_at(6.5), Some(35.0));
        // However slow it is later, it can't have gone on before it stood still.
        destination[2].bytes = 31;
        let curve = Curve::of(&source, &destination);
        assert_eq!(curve.freeze().expect("it was moved").resumed, 5.0);
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
        assert_eq!(speeds[4], (0, 10.0));
        assert_eq!(speeds[5], (1, 100.0));
    }

    #[test]
    fn a_process_that_has_not_arrived_has_no_freeze() {
        let curve = Curve::of(&points(&[(0.0, 1)]), &[]);
        assert_eq!(curve.freeze(), None);
        assert_eq!(curve.passes(1), []);
        assert_eq!(curve.bytes_at(0.0), Some(1.0));
    }
}
