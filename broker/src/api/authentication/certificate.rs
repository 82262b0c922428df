//! The authenticator of client certificates.

use std::sync::Arc;

use async_trait::async_trait;

use super::authenticated::{Authenticated, Refusal};
use super::authenticator::{Authenticator, PresentedProof};

/// Authenticates callers by the client certificates of their connections.
#[derive(Debug)]
pub struct CertificateAuthenticator;

#[async_trait]
impl Authenticator for CertificateAuthenticator {
    async fn authenticate(&self, shown: &PresentedProof<'_>) -> Result<Option<Arc<Authenticated>>, Refusal> {
        Ok(shown.certificate.map(|certificate| Arc::clone(certificate.caller())))
    }
}
