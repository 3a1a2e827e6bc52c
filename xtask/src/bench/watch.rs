//! Watching a process on two hosts at once, in this host's time.
//!
//! `workload watch` runs on both and writes what it sees into a pipe, each line
//! with the time of its own clock. The clocks of the guests differ, and lines
//! arrive late, some more than others. That which arrived with the least delay
//! says how far a clock is from ours.

use std::io::{BufRead, BufReader};
use std::process::Child;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::curve::{Curve, Point};
use super::stage::{Stage, WORKLOAD};

/// How often the process is looked at.
const EVERY: Duration = Duration::from_millis(20);

/// Where a process is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Source,
    Destination,
}

/// A line, as it arrived.
#[derive(Debug, Clone, Copy)]
struct Look {
    place: Place,
    /// Seconds of our clock.
    arrived: f64,
    /// Seconds of the guest's.
    taken: f64,
    /// Bytes read, and bytes of a pass, where the process is there.
    read: Option<(u64, u64)>,
}

/// Two hosts that are watched.
#[derive(Debug)]
pub(crate) struct Watch {
    begin: Instant,
    watchers: Vec<Child>,
    arriving: Receiver<Look>,
    looks: Vec<Look>,
}

impl Watch {
    /// Begins to watch a process.
    ///
    /// # Errors
    /// When ssh can't be started.
    pub(crate) fn begin(stage: &Stage, pid: u32) -> Result<Self> {
        let begin = Instant::now();
        let (sender, arriving) = mpsc::channel();
        let hosts = [
            (Place::Source, &stage.hosts.source),
            (Place::Destination, &stage.hosts.destination),
        ];
        let mut watchers = Vec::new();
        for (place, host) in hosts {
            let command = format!("exec {WORKLOAD} watch {pid} {}", EVERY.as_millis());
            let mut child = host.spawn(&command)?;
            let lines = BufReader::new(child.stdout.take().context("there is no pipe")?);
            watchers.push(child);
            let sender = sender.clone();
            thread::spawn(move || {
                for line in lines.lines().map_while(Result::ok) {
                    let arrived = begin.elapsed().as_secs_f64();
                    let look = parse(&line).map(|(taken, read)| Look {
                        place,
                        arrived,
                        taken,
                        read,
                    });
                    // Nobody listens any more when the watch is over.
                    if look.is_none_or(|look| sender.send(look).is_err()) {
                        return;
                    }
                }
            });
        }
        Ok(Self {
            begin,
            watchers,
            arriving,
            looks: Vec::new(),
        })
    }

    /// Takes in what arrives within a time.
    ///
    /// # Errors
    /// When a guest no longer answers.
    pub(crate) fn listen(&mut self, time: Duration) -> Result<()> {
        let until = Instant::now() + time;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.arriving.recv_timeout(left) {
                Ok(look) => self.looks.push(look),
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => bail!("the hosts are no longer watched"),
            }
        }
        for watcher in &mut self.watchers {
            if let Some(status) = watcher.try_wait().context("failed to wait for ssh")? {
                bail!("`workload watch` ended: {status}");
            }
        }
        Ok(())
    }

    /// What was seen so far, in seconds since a time.
    pub(crate) fn curve(&self, since: Instant) -> Curve {
        let since = match since.checked_duration_since(self.begin) {
            Some(after) => after.as_secs_f64(),
            None => -self.begin.duration_since(since).as_secs_f64(),
        };
        curve(&self.looks, since)
    }

    /// How many bytes a pass has, once the process has told.
    pub(crate) fn pass(&self) -> Option<u64> {
        let mut looks = self.looks.iter().rev();
        looks.find_map(|look| look.read).map(|(_, pass)| pass)
    }

    /// How much has been read, as far as is known.
    pub(crate) fn bytes(&self) -> u64 {
        let mut looks = self.looks.iter().rev();
        looks
            .find_map(|look| look.read)
            .map_or(0, |(bytes, _)| bytes)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        for watcher in &mut self.watchers {
            // It may have ended with its guest.
            let _ = watcher.kill();
            let _ = watcher.wait();
        }
    }
}

fn parse(line: &str) -> Option<(f64, Option<(u64, u64)>)> {
    let mut fields = line.split_ascii_whitespace();
    let taken = fields.next()?.parse().ok()?;
    let mut number = || fields.next()?.parse().ok();
    let read = match (number(), number()) {
        (Some(bytes), Some(pass)) => Some((bytes, pass)),
        _ => None,
    };
    Some((taken, read))
}

fn curve(looks: &[Look], since: f64) -> Curve {
    let points = |place: Place| -> Vec<Point> {
        let here = || looks.iter().filter(move |look| look.place == place);
        let ahead = here()
            .map(|look| look.arrived - look.taken)
            .fold(f64::INFINITY, f64::min);
        let point = |look: &Look| {
            let at = look.taken + ahead - since;
            look.read.map(|(bytes, _)| Point { at, bytes })
        };
        here().filter_map(point).collect()
    };
    Curve::of(&points(Place::Source), &points(Place::Destination))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_may_be_only_a_time() {
        assert_eq!(parse("1.5 10 20"), Some((1.5, Some((10, 20)))));
        assert_eq!(parse("1.5"), Some((1.5, None)));
        assert_eq!(parse("bash: workload: not found"), None);
    }

    #[test]
    fn the_least_delayed_line_sets_the_clock() {
        let look = |arrived, taken, bytes| Look {
            place: Place::Source,
            arrived,
            taken,
            read: Some((bytes, 8)),
        };
        // The guest's clock is 4 behind ours and lines take 1, 0 and 2.
        let looks = [look(6.0, 1.0, 1), look(6.0, 2.0, 2), look(9.0, 3.0, 4)];
        let curve = curve(&looks, 5.0);
        assert_eq!(curve.bytes_at(0.0), Some(1.0));
        assert_eq!(curve.bytes_at(1.5), Some(3.0));
    }
}
