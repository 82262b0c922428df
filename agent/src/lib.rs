//! The agent: makes one host hold, with nftables, the state that the broker desires for it.
//!
//! The way of a desired state through this crate: [`session`] receives it, [`broker_clock`] and [`desired_state`] place it on this
//! host's clock, and [`host_reconciler`] asks [`accepted`] whether it is newer, has [`firewall`] put it into the kernel,
//! writes it to the [`ledger`], and answers. The other parts keep that going: [`connection`] keeps a session, [`renew`] the
//! certificate ([`receipt`] has its age), [`enforcement`] closes a machine on trial first, [`tampering`] repairs the table when others change it, and [`checkpoint`] remembers the brokers'
//! audit log. [`run`] puts the parts together.
//! If one of them ends, the process ends, and the service manager starts it again; the kernel holds the table meanwhile.

pub mod accepted;
pub mod broker_clock;
pub mod checkpoint;
pub mod clock;
pub mod config;
pub mod connection;
pub mod desired_state;
pub mod doctor;
pub mod enforcement;
pub mod enroll;
pub mod enrolment_mark;
pub mod firewall;
pub mod host_reconciler;
pub mod join_token;
pub mod ledger;
pub mod limits;
pub mod lock;
pub mod receipt;
pub mod renew;
pub mod reports;
pub mod run;
pub mod session;
pub mod status;
mod status_chain;
pub mod tampering;
pub mod uninstall;
mod window_log;
