//! The certificate authority in a running broker: its renewal, its state and its warnings.
//!
//! **The problem.** Every certificate ends. An authority that ends unnoticed locks out all agents and all people at once, in
//! the middle of open grants.
//!
//! **The words.**
//!
//! - The *root* is the certificate that every peer trusts. Its private key, the *root key*, signs intermediates only, and may
//!   be offline ([`RootKey`]).
//! - An *intermediate* signs the certificates of agents and of the broker, and another one those of people. The broker needs the key
//!   of the first alone. Each lives for a year, and every certificate under it ends with it at the latest.
//! - The *serving certificate* is the one that the broker shows. It lives for a day.
//!
//! **The course.** The [`Keeper`] looks at the clock and the disk every few seconds. It renews the intermediate at half of
//! its life if the root key is at hand, and takes up an intermediate that `postern-broker authority renew` has put on disk,
//! without a restart. Every certificate comes with the intermediate that signed it, so certificates of the old and of the
//! new intermediate are good side by side, on every broker under the root. [`Standing`] shows the state to other parts.
//!
//! While an operator replaces the root ([`roll_command`]), the keeper takes up each step within seconds. It writes down which agents
//! and people still need the old root ([`RollReport`]), because the commands cannot read the store that a broker holds. Agents are
//! asked to renew their certificates in their sessions ([`crate::app::agents`]).
//!
//! **The rules.** The end of a certificate never ends the broker. Certificates live by the wall clock, as peers judge them, and
//! never by the broker's own clock, which may be ahead of it ([`crate::clock`]).
//!
//! **On failure.** A renewal that fails becomes a warning at once, and is tried again after some minutes. With an ended
//! intermediate the broker starts, says so in its log, its metrics and its readiness, refuses every handshake, and goes on
//! closing: agents end the windows at hosts by themselves, and the reconciler ends those in clouds, for which it needs no
//! certificate (I2). An intermediate or a serving certificate that is not valid yet was made while the clock was ahead: the
//! keeper renews it at once, and without the root key it is treated as an ended one. A root key that cannot be used is a
//! warning from the first day on, and one that other users can read stops the start of the broker: it may have leaked.

pub mod command;
mod keeper;
pub mod revoke_command;
pub mod roll_command;
mod roll_report;
mod root_key;
mod standing;
mod warnings;

pub use keeper::{Keeper, LOOK_EVERY};
pub(crate) use keeper::{serving as first_serving, show_readiness};
pub use roll_report::RollReport;
pub use root_key::RootKey;
pub use standing::Standing;
pub(crate) use warnings::{CLOCK_TOLERANCE, humane};
