//! The desired state of one host, as it is pushed to its agent.

use std::sync::Arc;

use postern_core::plan::DesiredHost;

/// A desired state with its generation.
#[derive(Debug, PartialEq, Eq)]
pub struct PushedState {
    /// Rises with every change.
    pub generation: u64,
    /// The generation of the policies from which the protection follows.
    pub policies: u64,
    /// The windows and the protection to hold.
    pub desired: DesiredHost,
}

/// The number of a desired state, and that of its policies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StateNumber {
    /// Rises with every change.
    pub generation: u64,
    /// The generation of the policies from which the protection follows; 0 if unknown.
    pub policies: u64,
}

/// The next message of a session's stream.
#[derive(Debug, Clone)]
pub enum Outgoing {
    /// Nothing yet.
    Nothing,
    /// A desired state.
    Push(Arc<PushedState>),
    /// Nothing more: end the stream, for this reason.
    End(&'static str),
}
