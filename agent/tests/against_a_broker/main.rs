//! The agent's connection, identity and reconciler against a broker over real TLS; only the kernel is faked.

#![allow(clippy::disallowed_methods, reason = "tests start what they need, and wait by tokio's clock")]

#[cfg(test)]
mod clocks;
#[cfg(test)]
mod memory_host;
#[cfg(test)]
mod sessions;
