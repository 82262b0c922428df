//! The agent: holds on one host, with nftables, what the broker wants held there.
//!
//! A desired state's way through this crate: [`session`] hears it, [`desired_state`] parses it and places it on this host's
//! clock, [`host_reconciler`] asks [`accepted`] whether it counts, has [`firewall`] put it into the kernel, writes it to the
//! [`ledger`], and answers. Everything else keeps that going: [`connection`] a session, [`renew`] the certificate,
//! [`tampering`] the table that others change. [`run`] puts the parts together.

pub mod accepted;
pub mod clock;
pub mod config;
pub mod connection;
pub mod desired_state;
pub mod doctor;
pub mod enroll;
mod error_chain;
pub mod files;
pub mod firewall;
pub mod host_reconciler;
pub mod ledger;
pub mod renew;
pub mod reports;
pub mod run;
pub mod session;
pub mod status;
pub mod tampering;
pub mod tasks;
pub mod uninstall;
mod window_log;
