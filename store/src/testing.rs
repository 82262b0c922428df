//! The helpers of tests: the store in memory with faults, the fake of another broker, builders of records, and the suite
//! that every store passes.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "helpers of tests, built for tests alone"
)]

pub mod builders;
pub mod conformance;
pub mod fake_peer;
pub mod memory;

use crate::seal::{RecordsKey, Sealing};

/// Returns the key of the tests' stores.
pub fn test_sealing() -> Sealing {
    Sealing::with(RecordsKey::from_bytes([7; 32]))
}

/// Returns the same key, of a data directory that has not sealed a store yet.
pub fn first_sealing() -> Sealing {
    Sealing::first(RecordsKey::from_bytes([7; 32]))
}
