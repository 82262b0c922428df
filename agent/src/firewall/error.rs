//! Errors between the agent and the kernel's firewall.

use std::io;
use std::time::Duration;

/// An error of the host firewall.
#[derive(Debug, thiserror::Error)]
pub enum FirewallError {
    /// The command `nft` is missing.
    #[error("the command nft is in none of {places}; install the package nftables")]
    NftMissing {
        /// The paths that were tried.
        places: String,
    },
    /// The command `nft` could not be run.
    #[error("cannot run {nft}")]
    NftFailed {
        /// The path of `nft`.
        nft: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The command `nft` did not end in time, and was killed.
    #[error("nft did not end within {} s", timeout.as_secs())]
    NftSlow {
        /// The time that it had.
        timeout: Duration,
    },
    /// The command `nft` refused.
    #[error("nft refused: {message}")]
    NftRefused {
        /// The first line of its error.
        message: String,
    },
    /// The kernel refused a request over netlink.
    #[error(
        "the kernel refused to {what}; this agent needs root (CAP_NET_ADMIN) and a kernel with nf_tables"
    )]
    Netlink {
        /// The request, as "refused to …".
        what: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Another socket owns the table.
    #[error(
        "a socket of another process (netlink port {owner}) owns the table inet {table}, and only that can change it; stop the agent \
         first with `systemctl stop postern-agent`"
    )]
    Owned {
        /// The name of the table.
        table: String,
        /// The netlink port of its owner.
        owner: u32,
    },
    /// The kernel gave an answer that this agent does not understand.
    #[error("the kernel's answer has no {what}")]
    Answer {
        /// The missing part.
        what: &'static str,
    },
    /// Other processes change the rules so often that no transaction of the agent succeeded.
    #[error("other processes kept changing the firewall while the agent set it; the agent will try again")]
    Interfered,
    /// The kernel does not hold what it confirmed.
    #[error("the kernel does not hold what it confirmed: {what}")]
    Unverified {
        /// The difference.
        what: String,
    },
}
