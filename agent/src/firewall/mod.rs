//! The host layer: one nftables table of ours, `inet postern`, and nothing else on this host (I6).
//!
//! [`policy`] says what is wanted. [`ruleset`] and [`elements`] turn that, purely, into a table and the elements of its
//! sets; [`enforcer`] compares it with what the kernel holds and changes the difference, through [`nft`] where the whole
//! table is replaced and through [`kernel`] where only elements change. [`watch`] hears when someone else touches it.

mod diagnose;
mod elements;
mod enforcer;
mod error;
mod established;
mod fingerprint;
mod kernel;
mod nft;
pub mod policy;
mod ruleset;
pub mod watch;

pub use diagnose::diagnose;
pub use enforcer::Enforcer;
pub use error::FirewallError;

/// The name of our table.
pub const TABLE: &str = "postern";

/// Removes our table, if it is there. Established connections are not cut, and every port is as open as the rest of the
/// host's rules leave it.
///
/// # Errors
/// The kernel refused, or `nft` cannot be run.
pub fn remove_table() -> Result<(), FirewallError> {
    nft::Nft::find()?.run(&ruleset::removal()).map(drop)
}
