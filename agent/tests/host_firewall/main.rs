//! The host layer through real packets: the kernel's rules in one namespace, clients in others.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod containers;
mod edited;
mod expiry;
mod many;
mod others;
mod owned;
mod vm;
mod windows;
