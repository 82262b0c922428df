//! The gRPC edge: parses calls into core types, asks [`crate::app`], and writes the answers. No decision is made here.

mod bounded;
mod connection;
mod convert;
mod error;
mod listener;
mod middleware;
mod peer;
mod request;
mod run_to_completion;
mod server;
mod services;

pub use listener::Listener;
pub use peer::{Peer, PeerCertificate};
pub use server::serve;
pub use services::health::report_health;
