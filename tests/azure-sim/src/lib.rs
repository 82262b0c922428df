//! A double of Azure Resource Manager for tests: the semantics of network security groups and Azure Firewall that no
//! emulator has, asynchronous operations, identities, and faults on demand.
//!
//! What it does follows the public documentation of Azure and its REST specification; `tests/` proves each of its rules.
//! It is part of no product: whoever runs it says so.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "built for tests alone"
)]

mod answer;
mod faults;
mod http;
mod lab;
mod login;
mod oracle;
mod rules;
mod sim;
mod state;

pub use faults::{Call, CrashPoint, Fault, When};
pub use lab::{Lab, Vm};
pub use oracle::Verdict;
pub use sim::AzureSim;
