//! The provider on the double of Azure Resource Manager.

#![allow(clippy::disallowed_methods, reason = "tests start what they need, and wait by tokio's clock")]
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
mod obstacles;
mod replicas;
mod states;
mod unjudged;
mod unread;
mod world;
