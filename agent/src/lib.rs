//! The agent: holds on one host, with nftables, what the broker wants held there.
//!
//! A desired state's way through this crate: [`session`] hears it, [`desired`] parses it and places it on this host's
//! clock, [`keeper`] asks [`state`] whether it counts, has [`firewall`] put it into the kernel, writes it to the
//! [`ledger`], and answers. Everything else keeps that going: [`link`] a session, [`renew`] the certificate,
//! [`tampering`] the table that others change. [`run`] puts the parts together.

pub mod clock;
pub mod config;
pub mod desired;
pub mod doctor;
pub mod enroll;
mod explain;
pub mod files;
pub mod firewall;
pub mod keeper;
pub mod ledger;
pub mod link;
pub mod renew;
pub mod reports;
pub mod run;
pub mod session;
pub mod state;
pub mod status;
pub mod tampering;
pub mod tasks;
mod trace;
pub mod uninstall;
