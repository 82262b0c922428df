//! The host layer through real packets: the kernel's own rules on one namespace, clients on others.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod containers;
mod edited;
mod expiry;
mod many;
mod others;
mod vm;
mod windows;
