//! The peer of a connection: its address and, where it has shown a certificate, its identity.

use std::net::SocketAddr;
use std::sync::Arc;

use jiff::Timestamp;
use postern_pki::identity::Identity;

/// Who is at the other end of a connection.
#[derive(Debug, Clone)]
pub struct Peer {
    /// From where the broker sees it.
    pub address: SocketAddr,
    /// Its certificate, if it showed one. The handshake has verified it.
    pub certificate: Option<Arc<PeerCertificate>>,
}

/// What a verified certificate says.
#[derive(Debug)]
pub struct PeerCertificate {
    /// Who.
    pub identity: Identity,
    /// Until when.
    pub not_after: Timestamp,
}
