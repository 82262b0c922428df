//! The peer of a connection.

use std::net::SocketAddr;
use std::sync::Arc;

use super::authenticator::Authenticated;

/// The other end of a connection. Each request of the connection carries it.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    /// The address that the broker sees.
    pub(super) address: SocketAddr,
    /// The caller that its certificate proves; none if it has shown no certificate.
    pub(super) caller: Option<Arc<Authenticated>>,
}
