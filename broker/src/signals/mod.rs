//! The signals between the broker's parts.
//!
//! The parts of a broker share no queues of work. Each keeps its state where it can be read again (the store, an agent's
//! session, a cloud), and a signal says only that a look is due. So a signal carries no data, a lost one costs time and
//! nothing else, and two of the same kind are as good as one.
//!
//! - [`Wakeups`] names the targets at which the reconciler looks next.
//! - [`GrantChanges`] names the grants that changed, for callers who watch them.
//! - [`Heartbeat`] shows that the reconciler's loop runs.
//! - [`ShutdownPhase`] says how far the shutdown of this broker has come.
//! - [`parts`] names the parts that can keep a broker from its work.
//!
//! Everything here stands below the store, the layers and the reconciler, and uses none of them.

pub mod grant_changes;
mod heartbeat;
pub mod parts;
mod shutdown;
mod wakeups;

pub use grant_changes::GrantChanges;
pub use heartbeat::Heartbeat;
pub use shutdown::ShutdownPhase;
pub use wakeups::Wakeups;
