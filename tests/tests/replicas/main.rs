//! Several brokers on one Redis: agents and people reach any of them, each may be killed, stopped or cut off, and nothing
//! that was acknowledged is lost, nothing is open past its end, nothing flaps.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail like tests")]

mod agent_fleet;
mod authority;
mod authority_roll;
mod check;
mod clones;
mod driver;
mod fake_clouds;
mod history;
mod lines;
mod load;
mod principals;
mod scenarios;
mod schedule;
mod status;
mod storm;
mod summary;
mod world;

/// The number of brokers of a storm.
const BROKERS: u16 = 3;
