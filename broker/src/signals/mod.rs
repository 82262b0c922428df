//! The signals between the broker's parts, and the signs of life of its tasks.
//!
//! The parts of a broker share no queues of work. Each keeps its state where it can be read again (the store, an agent's
//! session, a cloud), and a *wake-up* says only that a look is due: it carries no data, a lost one costs time and nothing
//! else, and two of the same kind are as good as one.
//!
//! - [`Wakeups`] names the targets at which the reconciler looks next.
//! - [`GrantChanges`] names the grants that changed, for callers who watch them.
//!
//! A *sign of life* is a value that its task overwrites and that others read at any time:
//!
//! - [`rounds`] says when each task last went round, and with what result.
//! - [`ShutdownPhase`] says how far the shutdown of this broker has come.
//!
//! [`parts`] has the names of the parts that can keep a broker from its work.
//!
//! Everything here stands below the store, the layers and the reconciler, and uses none of them.

pub mod grant_changes;
pub mod parts;
pub mod rounds;
mod shutdown;
mod wakeups;

pub use grant_changes::GrantChanges;
pub use shutdown::ShutdownPhase;
pub use wakeups::Wakeups;
