//! What is noted once.

use crate::handover::Decision;
use crate::handover::outgoing::Intent;

/// A fact that is noted once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// Source: the dump is complete. The action script of a container makes it.
    Dumped,
    /// Source: the tree ends with its dump and is restored here if the
    /// migration fails.
    Release,
    /// Source: what it has set out to do.
    Intent(Intent),
    /// Either: what becomes of this host's copy.
    Decision(Decision),
    /// Source: the decision is true.
    Finished,
    /// Destination: the tree is complete and stopped, and the source knows.
    Restored,
    /// Destination: the tree runs.
    Running,
    /// Destination: the source will not ask.
    Confirmed,
}

impl Mark {
    pub(super) const ALL: [Self; 10] = [
        Self::Dumped,
        Self::Release,
        Self::Intent(Intent::Commit),
        Self::Intent(Intent::RollBack),
        Self::Decision(Decision::Run),
        Self::Decision(Decision::End),
        Self::Finished,
        Self::Restored,
        Self::Running,
        Self::Confirmed,
    ];

    /// Returns the file's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dumped => "dumped",
            Self::Release => "release",
            Self::Intent(_) => "intent",
            Self::Decision(_) => "decision",
            Self::Finished => "finished",
            Self::Restored => "restored",
            Self::Running => "running",
            Self::Confirmed => "confirmed",
        }
    }

    /// Returns the file's content.
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Intent(Intent::Commit) => "commit",
            Self::Intent(Intent::RollBack) => "roll back",
            Self::Decision(Decision::Run) => "run",
            Self::Decision(Decision::End) => "end",
            _ => "",
        }
    }

    /// Returns the name of the file before it is moved to its own.
    pub(super) fn prepared(self) -> String {
        format!(".{}{}", self.name(), self.text().replace(' ', "-"))
    }
}
