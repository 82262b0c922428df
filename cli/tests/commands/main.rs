//! The real `postern` against a fake broker over loopback and mTLS, and without a broker.

#![allow(clippy::disallowed_methods, reason = "tests start what they need, and wait by tokio's clock")]

#[cfg(test)]
mod access;
#[cfg(test)]
mod admin;
#[cfg(test)]
mod checkpoints;
#[cfg(test)]
mod lockdown;
#[cfg(test)]
mod offline;
#[cfg(test)]
mod run;
#[cfg(test)]
mod status;
#[cfg(test)]
mod trust;
#[cfg(test)]
mod world;
