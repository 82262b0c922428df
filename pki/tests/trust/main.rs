//! Who trusts whom: real handshakes between what this crate makes, and the files that it reads and refuses.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod authority;
mod handshakes;
mod parties;
mod renewal;
