//! The end of the broker, as its parts hear of it.

/// How far the end of the broker has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ending {
    /// It serves.
    NotYet,
    /// It serves, and says that it will not for long.
    Announced,
    /// It takes nothing new.
    Begun,
}
