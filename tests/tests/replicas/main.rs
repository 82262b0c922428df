//! Several brokers on one Redis: agents and people reach any of them, each may be killed, stopped or cut off, and nothing
//! that was acknowledged is lost, nothing is open past its end, nothing flaps.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail like tests")]

mod check;
mod driver;
mod herd;
mod history;
mod lines;
mod load;
mod scenarios;
mod schedule;
mod sky;
mod status;
mod storm;
mod summary;
mod world;

/// Whether brokers share a Redis as replicas. Those that do not fence each other out of it: then the storm runs over one
/// broker, and the scenarios that need two do not run.
const REPLICAS: bool = true;

/// How many brokers a storm runs over.
const BROKERS: u16 = if REPLICAS { 3 } else { 1 };
