//! The peer of a connection.

use std::net::SocketAddr;
use std::sync::Arc;

use super::authentication::ClientCertificate;

/// The other end of a connection. Each request of the connection carries it.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    /// The address that the broker sees.
    pub(super) address: SocketAddr,
    /// Its certificate, read once; none if it has shown none.
    pub(super) certificate: Option<Arc<ClientCertificate>>,
}
