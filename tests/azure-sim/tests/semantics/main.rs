//! The semantics of the double of Azure Resource Manager, checked over HTTP.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod admission;
mod client;
mod etags;
mod faults;
mod firewall;
mod ids;
mod lists;
mod login;
mod operations;
mod parallel;
mod permissions;
mod removal;
mod rules;
