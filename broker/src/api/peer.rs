//! The peer of a connection: its address and, where it has shown a certificate, its identity.

use std::net::SocketAddr;
use std::sync::Arc;

use jiff::Timestamp;
use postern_pki::identity::Identity;

/// The other end of a connection.
#[derive(Debug, Clone)]
pub struct Peer {
    /// The address that the broker sees.
    pub address: SocketAddr,
    /// Its certificate, if it has shown one. The handshake has verified it.
    pub certificate: Option<Arc<PeerCertificate>>,
}

/// A verified certificate.
#[derive(Debug)]
pub struct PeerCertificate {
    /// The identity that it proves.
    pub identity: Identity,
    /// Its end.
    pub not_after: Timestamp,
}
