//! The cloud layer on Azure: the broker, and where it matters the agent, on the double of Azure Resource Manager.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail like tests")]

mod broker;
mod callers;
mod crashes;
mod firewall;
