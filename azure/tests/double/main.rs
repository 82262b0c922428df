//! The provider on the double of Azure Resource Manager.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod burst;
mod conformance;
mod crashes;
mod credentials;
mod drift;
mod edited;
mod faults;
mod firewall;
mod lockdown;
mod replicas;
mod world;
