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
