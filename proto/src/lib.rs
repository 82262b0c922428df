//! `postern.v1`: the generated code, and the only conversions between wire and core.
//!
//! A message from outside becomes core types in [`convert`] or it becomes a [`status`]; nothing behind the edge
//! looks at the wire again.

pub mod client;
pub mod convert;
pub mod status;

/// The generated messages, clients and servers.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::pedantic,
    clippy::wildcard_enum_match_arm,
    rust_2018_idioms,
    reason = "prost and tonic write this code"
)]
pub mod v1 {
    tonic::include_proto!("postern.v1");
}

/// The metadata key of RequestAccess for the caller's own token for a cloud, as an ASCII value.
pub const CALLER_TOKEN: &str = "postern-caller-token";

/// The encoded descriptors of every `.proto` file, for reflection and for tests that walk every RPC.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/postern.v1.bin"));
