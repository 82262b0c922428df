//! The shutdown of the broker, as its parts see it.

/// How far the shutdown of the broker has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ShutdownPhase {
    /// It serves.
    Running,
    /// It still serves, and load balancers see that it will not for long.
    Draining,
    /// It takes nothing new.
    Stopping,
}
