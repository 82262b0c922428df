//! The shutdown of the broker, as its parts see it.

/// The phase of the broker's shutdown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ShutdownPhase {
    /// The broker serves.
    Running,
    /// The broker still serves, and load balancers see that it will not for long.
    Draining,
    /// The broker takes nothing new.
    Stopping,
}
