//! Authorization: every call is checked against the table of [`super::permissions`] before a service sees it.
//!
//! A denial of a caller with a certificate is recorded in the audit log (I7). If the record fails, the call is denied all the
//! same. A caller without a certificate leaves no record, or anyone could fill the log.

use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use postern_core::audit::AuditEvent;
use postern_pki::identity::Identity;
use postern_proto::status;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Layer, Service};

use super::permissions::{RENEW, row};
use crate::api::authenticator::Authenticated;
use crate::api::peer::Peer;
use crate::app::{App, Caller};
use crate::clock::wall;

/// The characters of an unknown path that the log and the audit log keep.
const MAX_LOGGED_PATH: usize = 128;

/// Puts the authorization before a service.
#[derive(Clone)]
pub(in crate::api) struct AuthorizeLayer {
    pub(in crate::api) app: Arc<App>,
}

impl<S> Layer<S> for AuthorizeLayer {
    type Service = Authorize<S>;
    fn layer(&self, inner: S) -> Authorize<S> {
        Authorize { app: Arc::clone(&self.app), inner }
    }
}

/// A service behind the authorization.
#[derive(Clone)]
pub(in crate::api) struct Authorize<S> {
    app: Arc<App>,
    inner: S,
}

impl<S> Service<Request<Body>> for Authorize<S>
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

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        match admit(&self.app, &request) {
            Ok(Some(caller)) => {
                request.extensions_mut().insert(caller);
                Box::pin(self.inner.call(request))
            }
            Ok(None) => Box::pin(self.inner.call(request)),
            Err(refusal) => {
                let app = Arc::clone(&self.app);
                Box::pin(async move {
                    if let Some(event) = refusal.event
                        && let Err(error) = app.record_denial(*event).await
                    {
                        tracing::error!(
                            error = &error as &dyn std::error::Error,
                            "cannot record a denial in the audit log"
                        );
                    }
                    Ok(refusal.status.into_http())
                })
            }
        }
    }
}

/// The answer to a call that the table does not admit.
struct Refusal {
    status: Box<Status>,
    /// The record for the audit log; none for a caller without a certificate.
    event: Option<Box<AuditEvent>>,
}

/// Admits a call, and returns its principal. Agents and calls without a certificate have none: the services read their
/// [`Peer`].
fn admit(app: &App, request: &Request<Body>) -> Result<Option<Caller>, Refusal> {
    let path = request.uri().path();
    let peer = request.extensions().get::<Peer>();
    let caller = match peer.and_then(|peer| peer.caller.as_ref()) {
        Some(caller) if caller.not_after <= wall() && !may_still(path, &caller.identity) => {
            let message = "your certificate has expired; renew it and connect again";
            let status = status::plain(Code::Unauthenticated, "CERTIFICATE_EXPIRED", message);
            return Err(Refusal { status: Box::new(status), event: None });
        }
        caller => caller,
    };
    let identity = caller.map(|caller| &caller.identity);
    if row(path).is_some_and(|allow| allow.admits(identity)) {
        let address = peer.map(|peer| peer.address.ip());
        return Ok(caller.and_then(|caller| principal(caller, address)));
    }
    let Some(caller) = caller else {
        let message = "this call needs a client certificate; see `postern --help` on --identity";
        let status = status::plain(Code::Unauthenticated, "CERTIFICATE_REQUIRED", message);
        return Err(Refusal { status: Box::new(status), event: None });
    };
    let actor = &caller.display_name;
    // A path that is in no table may be as long as a request's headers.
    let path: String = path.chars().take(MAX_LOGGED_PATH).collect();
    tracing::warn!(%actor, path, "the permission table denies this call");
    let message = format!("{actor} may not call {path}");
    let status = status::plain(Code::PermissionDenied, "RPC_NOT_ALLOWED", message);
    let event = AuditEvent::denied(app.clock.now(), actor, "rpc.called").with("rpc", path);
    Err(Refusal { status: Box::new(status), event: Some(Box::new(event)) })
}

/// Reports whether a certificate past its end admits this call: an agent may renew it, within the grace that the handshake
/// allows.
fn may_still(path: &str, identity: &Identity) -> bool {
    matches!(identity, Identity::Agent(_)) && path == RENEW
}

/// Returns the caller of a use case, if a principal calls.
fn principal(caller: &Authenticated, address: Option<IpAddr>) -> Option<Caller> {
    match &caller.identity {
        Identity::Principal(principal) => Some(Caller {
            principal: principal.clone(),
            key: caller.key.clone(),
            display_name: caller.display_name.clone(),
            address,
            token: None,
        }),
        Identity::Agent(_) | Identity::Broker => None,
    }
}

#[cfg(test)]
mod tests;
