//! The decision that both machines come to.

/// What becomes of one host's copy of the tree. It is made once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Decision {
    /// It runs (on).
    Run,
    /// It ends.
    End,
}
