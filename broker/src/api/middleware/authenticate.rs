//! Authentication: every call gets the caller that its proof establishes, before the authorization judges it.
//!
//! A refused proof ends the call, whatever it asks for. It leaves no record in the audit log, or anyone could fill the log.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::request::Parts;
use http::{Request, Response};
use tonic::body::Body;
use tower::{Layer, Service};
use tracing::{Span, field};

use crate::api::authentication::{Authenticated, Authenticators, PresentedProof, Refusal};
use crate::api::peer::Peer;

/// Puts the authentication before a service.
#[derive(Debug, Clone)]
pub(in crate::api) struct AuthenticateLayer {
    pub(in crate::api) authenticators: Arc<Authenticators>,
}

impl<S> Layer<S> for AuthenticateLayer {
    type Service = Authenticate<S>;
    fn layer(&self, inner: S) -> Authenticate<S> {
        Authenticate { authenticators: Arc::clone(&self.authenticators), inner }
    }
}

/// A service behind the authentication.
#[derive(Debug, Clone)]
pub(in crate::api) struct Authenticate<S> {
    authenticators: Arc<Authenticators>,
    inner: S,
}

impl<S> Service<Request<Body>> for Authenticate<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // The service that was polled ready takes the call; its clone waits for the next one.
        let next = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, next);
        let authenticators = Arc::clone(&self.authenticators);
        Box::pin(async move {
            let (mut parts, body) = request.into_parts();
            match authenticate(&authenticators, &parts).await {
                Ok(Some(caller)) => {
                    Span::current().record("caller", field::display(&caller.kind));
                    parts.extensions.insert(caller);
                }
                Ok(None) => {}
                Err(refusal) => return Ok(refusal.to_status().into_http()),
            }
            inner.call(Request::from_parts(parts, body)).await
        })
    }
}

async fn authenticate(
    authenticators: &Authenticators,
    parts: &Parts,
) -> Result<Option<Arc<Authenticated>>, Refusal> {
    let Some(peer) = parts.extensions.get::<Peer>() else { return Ok(None) };
    let shown = PresentedProof {
        certificate: peer.certificate.as_deref(),
        headers: &parts.headers,
        address: peer.address.ip(),
    };
    authenticators.authenticate(&shown).await
}
