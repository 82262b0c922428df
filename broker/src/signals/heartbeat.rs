//! The heartbeat of the reconciler's loop.

use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;

/// The moment at which a loop last went round.
#[derive(Debug, Default)]
pub struct Heartbeat(Mutex<Option<Timestamp>>);

impl Heartbeat {
    /// Records that the loop went round.
    pub fn beat(&self, now: Timestamp) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
    }

    /// Returns the moment of the last round; none before the first.
    pub fn last(&self) -> Option<Timestamp> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
