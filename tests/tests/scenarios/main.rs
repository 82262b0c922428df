//! Scenarios: real brokers and agents in network namespaces, real connections against them. A scenario that proves an
//! invariant carries its number. Everything here needs root, and fails without it.

// Clippy takes the helpers of an integration test for production code.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod authority;
mod authority_repair;
mod authority_roll;
mod backup;
mod bad_config;
mod bad_request;
mod clocks;
mod clones;
mod command;
mod containers;
mod day_two;
mod enforce_on_trial;
mod enrolment;
mod forged_store;
mod harness;
mod i1_default_deny;
mod i2_nothing_outlives_its_end;
mod i3_established_connections;
mod i4_durable_before_open;
mod i5_whole_or_not_at_all;
mod i7_authorization;
mod i7_revoked_principals;
mod i8_convergence;
mod i8_desired_state;
mod i9_audit;
mod i9_checkpoints;
mod limits;
mod owned_table;
mod records;
mod sources;
mod standing;
mod store_faults;
mod tampering;
mod traces;
mod uninstall;
mod units;
mod watched;
mod way_in_the_log;
