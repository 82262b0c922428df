//! The ways in which a lease changes hands, as the metrics count them.

/// A change of a lease on a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseChange {
    /// The broker took a free lease.
    Taken,
    /// The broker took it over from a member that is gone.
    TakenOver,
    /// The broker took it from a living holder, because the target's agent connected here.
    Forced,
    /// Another broker took it, or the broker's membership ended.
    Lost,
    /// The broker gave it back.
    Released,
}

impl LeaseChange {
    /// Returns the metric's label.
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
