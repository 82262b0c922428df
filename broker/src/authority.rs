//! The authority's life in a running broker.
//!
//! The *intermediate* signs everything that agents, people and the broker itself show; it lives for a year, and everything
//! ends with it. So the [`Keeper`] renews it at half of its life, wherever the *root key* is at hand, and takes up one that
//! `postern-broker authority renew` has put on disk, without a restart. Every peer trusts the *root* and every certificate
//! comes with the intermediate that signed it, so certificates of the old intermediate and of the new are good side by side,
//! on every broker under the root.
//!
//! The rule that is kept: an end of a certificate never ends the broker. With an ended intermediate the broker starts, says
//! so in its log, its metrics and its readiness, refuses every handshake, and goes on closing: windows at hosts end by
//! themselves, and those in clouds are the reconciler's, which needs no certificate (I2).

pub mod command;
mod keeper;
mod root_key;
mod standing;
mod warnings;

pub use keeper::Keeper;
pub(crate) use keeper::{serving as first_serving, show_readiness};
pub use root_key::RootKey;
pub use standing::Standing;
pub(crate) use warnings::humane;
