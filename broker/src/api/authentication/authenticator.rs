//! The trait of authenticators.

use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;
use http::HeaderMap;

use super::authenticated::{Authenticated, Refusal};
use super::client_certificate::ClientCertificate;

/// An authenticator: turns one kind of proof into a caller.
#[async_trait]
pub trait Authenticator: Send + Sync + 'static {
    /// Returns the caller that the request proves; none if it shows no proof of this kind.
    ///
    /// # Errors
    /// The request shows a proof of this kind, and the authenticator does not accept it.
    async fn authenticate(&self, shown: &PresentedProof<'_>) -> Result<Option<Arc<Authenticated>>, Refusal>;
}

/// The parts of a request in which it can show a proof.
#[derive(Debug, Clone, Copy)]
pub struct PresentedProof<'a> {
    /// The client certificate of the connection, which the handshake has verified.
    pub certificate: Option<&'a ClientCertificate>,
    /// The headers of the request.
    pub headers: &'a HeaderMap,
    /// The address that the broker sees.
    pub address: IpAddr,
}
