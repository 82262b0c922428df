//! Trust between brokers, agents and clients: real handshakes, and the files that the crate reads and refuses.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod authority;
mod checkpoints;
mod forgery;
mod handshakes;
mod key_places;
mod parties;
mod purposes;
mod renewal;
mod roll;
