//! When the precopy rounds end and the tree is frozen (pure).

use std::fmt;
use std::time::Duration;

use super::changes::RECENT_CHANGE;
use super::delta::Round;

/// A round has little new if it has at most this part of all pages sent.
const SMALL: f64 = 0.01;

/// How long a round lasts at least: the pages that are new in less say little
/// about whether the working set is known.
pub(super) const MIN_ROUND: Duration = Duration::from_secs(1);

/// How long after the first round files are waited for that have changed once.
/// Other files may change once by then, so the wait has to have an end.
const SETTLING_LIMIT: Duration = RECENT_CHANGE.saturating_add(MIN_ROUND);

/// What comes after a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Another round.
    Continue,
    /// The freeze.
    Freeze(Why),
}

/// Why the rounds end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// The working set is known.
    LittleIsNew,
    /// Pages are left in files that are being written, for after the freeze.
    OnlyInChangingFiles,
    /// The rounds have taken as long as they may.
    TimeIsUp,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LittleIsNew => "little is new",
            Self::OnlyInChangingFiles => "only files that keep changing have new pages",
            Self::TimeIsUp => "--max-warmup is over",
        })
    }
}

/// Decides after a round. `total` are the pages sent so far, those of the round
/// included; `elapsed` is the time since the first round.
pub(super) fn next(round: Round, total: u64, elapsed: Duration, limit: Duration) -> Next {
    let small = (total as f64 * SMALL) as u64;
    if elapsed >= limit {
        Next::Freeze(Why::TimeIsUp)
    } else if round.new > small || (round.settling > small && elapsed < SETTLING_LIMIT) {
        Next::Continue
    } else if round.settling + round.changing > small {
        Next::Freeze(Why::OnlyInChangingFiles)
    } else {
        Next::Freeze(Why::LittleIsNew)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    fn round(new: u64, settling: u64, changing: u64) -> Round {
        Round {
            new,
            settling,
            changing,
        }
    }

    fn after(second: u64, total: u64, round: Round) -> Next {
        next(round, total, Duration::from_secs(second), LIMIT)
    }

    #[test]
    fn many_new_pages_extend_it() {
        assert_eq!(after(0, 1000, round(1000, 0, 0)), Next::Continue);
        assert_eq!(after(30, 2000, round(21, 0, 0)), Next::Continue);
        assert_eq!(
            after(30, 2000, round(20, 0, 0)),
            Next::Freeze(Why::LittleIsNew)
        );
    }

    #[test]
    fn nothing_at_all_ends_it() {
        let ended = Next::Freeze(Why::LittleIsNew);
        assert_eq!(after(0, 0, round(0, 0, 0)), ended);
    }

    #[test]
    fn files_that_keep_changing_do_not_extend_it() {
        let ended = Next::Freeze(Why::OnlyInChangingFiles);
        assert_eq!(after(1, 100, round(0, 0, 5000)), ended);
        assert_eq!(after(0, 0, round(0, 0, 1)), ended);
    }

    #[test]
    fn files_that_may_settle_extend_it_for_a_while() {
        let settling = round(0, 500, 0);
        assert_eq!(after(0, 100, settling), Next::Continue);
        assert_eq!(after(4, 100, settling), Next::Continue);
        let ended = Next::Freeze(Why::OnlyInChangingFiles);
        assert_eq!(after(5, 100, settling), ended);
        // One that has settled is new.
        assert_eq!(after(5, 600, round(500, 0, 0)), Next::Continue);
    }

    #[test]
    fn the_limit_ends_it() {
        let ended = Next::Freeze(Why::TimeIsUp);
        assert_eq!(after(60, 1000, round(1000, 0, 0)), ended);
    }

    proptest! {
        #[test]
        fn it_ends_with_the_news_whatever_changes(
            second in 5..60_u64, total in 0..1000_u64, settling in 0..1000_u64,
            changing in 0..1000_u64,
        ) {
            let next = after(second, total, round(0, settling, changing));
            prop_assert_ne!(next, Next::Continue);
        }
    }
}
