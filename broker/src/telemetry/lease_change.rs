//! The ways in which a lease changes hands, as the metrics count them.

/// What becomes of a lease on a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseChange {
    /// It was free.
    Taken,
    /// Its holder is gone.
    TakenOver,
    /// It was taken from a living holder, because the target's agent came to this replica.
    Forced,
    /// Another replica took it, or this one's membership ended.
    Lost,
    /// It was given back.
    Released,
}

impl LeaseChange {
    /// The word in the metric's label.
    pub fn word(self) -> &'static str {
        match self {
            Self::Taken => "taken",
            Self::TakenOver => "taken_over",
            Self::Forced => "forced",
            Self::Lost => "lost",
            Self::Released => "released",
        }
    }
}
