//! What can go wrong between the agent and the kernel's firewall.

use std::io;
use std::time::Duration;

/// What can go wrong with the host firewall.
#[derive(Debug, thiserror::Error)]
pub enum FirewallError {
    /// There is no `nft`.
    #[error("the command nft is in none of {places}; install the package nftables")]
    NftMissing {
        /// Where it was looked for.
        places: String,
    },
    /// `nft` could not be run.
    #[error("cannot run {nft}")]
    NftFailed {
        /// Its path.
        nft: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// `nft` did not end in time, and was killed.
    #[error("nft did not end within {} s", timeout.as_secs())]
    NftSlow {
        /// How long it had.
        timeout: Duration,
    },
    /// `nft` refused.
    #[error("nft refused: {message}")]
    NftRefused {
        /// What it said, first line.
        message: String,
    },
    /// The kernel refused a request over netlink.
    #[error(
        "the kernel refused to {what}; this agent needs root (CAP_NET_ADMIN) and a kernel with nf_tables"
    )]
    Netlink {
        /// What was asked.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel answered something that this agent does not understand.
    #[error("the kernel's answer has no {what}")]
    Answer {
        /// What is missing in it.
        what: &'static str,
    },
    /// Another process changes the rules so often that none of our transactions fits between.
    #[error("other processes kept changing the firewall while it was being set; it will be tried again")]
    Interfered,
    /// The kernel does not hold what it confirmed.
    #[error("the kernel does not hold what it was told: {what}")]
    Unverified {
        /// What differs.
        what: String,
    },
}
