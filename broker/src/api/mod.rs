//! The gRPC edge: parses calls into core types, asks [`crate::app`], and writes the answers. No decision is made here.

mod access;
mod agent;
mod audit;
pub mod authorization;
mod bounded;
mod connection;
mod errands;
mod gate;
mod health;
mod listener;
mod operator;
mod policy;
mod server;
mod session;
mod status;
mod target;
mod traced;
mod watch;

pub use health::report_health;
pub use listener::{Listener, Peer};
pub use server::serve;
