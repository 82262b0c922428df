//! Authorization: every call is checked against the table of [`super::permissions`] before a service sees it.
//!
//! A denial of an authenticated caller is recorded in the audit log (I7). If the record fails, the call is denied all the
//! same. A caller without a proof leaves no record, or anyone could fill the log.

use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use postern_core::CallerKind;
use postern_core::audit::AuditEvent;
use postern_core::text::{MAX_REPEATED, clipped};
use postern_proto::status;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Layer, Service};

use super::permissions::{RENEW, row};
use crate::api::authentication::{Authenticated, REVOKED};
use crate::api::peer::Peer;
use crate::app::{App, Caller};
use crate::clock::wall;
use crate::limits::{Owner, log_due};

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
            Err(denial) => {
                let app = Arc::clone(&self.app);
                Box::pin(async move {
                    if let Some(record) = denial.record {
                        keep(&app, *record).await;
                    }
                    Ok(denial.status.into_http())
                })
            }
        }
    }
}

/// The answer to a call that the table does not admit.
struct RefusedCall {
    status: Box<Status>,
    /// The record for the audit log; none for a caller without a proof.
    record: Option<Box<DenialRecord>>,
}

/// The record of a denial, with its caller.
struct DenialRecord {
    caller: Owner,
    event: AuditEvent,
}

/// Records a denial in the audit log and in the log, unless the caller has had too many.
async fn keep(app: &App, DenialRecord { caller, event }: DenialRecord) {
    let (actor, rpc) = (event.actor.clone(), event.details.get("rpc").cloned().unwrap_or_default());
    match app.record_denial(caller, event).await {
        Ok(true) => tracing::warn!(actor, path = rpc, "the permission table denies this call"),
        Ok(false) => {}
        Err(error) => {
            if let Some(omitted) = log_due("denial without a record") {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    omitted,
                    "cannot record a denial in the audit log"
                );
            }
        }
    }
}

/// Admits a call, and returns its principal. Agents and calls without a proof have none: the services read the
/// [`Authenticated`] caller.
fn admit(app: &App, request: &Request<Body>) -> Result<Option<Caller>, RefusedCall> {
    let path = request.uri().path();
    let caller = request.extensions().get::<Arc<Authenticated>>();
    if let Some(caller) = caller
        && caller.not_after <= wall()
        && !may_still(path, &caller.kind)
    {
        return Err(RefusedCall { status: Box::new(caller.when_expired.to_status()), record: None });
    }
    if let Some(caller) = caller.filter(|caller| caller.is_revoked(&app.revocations)) {
        // No record, as for an ended proof: its holder could fill the log. The revocation itself is in it.
        if let Some(omitted) = log_due("revoked proof") {
            tracing::warn!(event = "principal.refused", actor = %caller.kind, omitted, "refused a proof that is revoked");
        }
        return Err(RefusedCall { status: Box::new(REVOKED.to_status()), record: None });
    }
    if row(path).is_some_and(|allow| allow.admits(caller.map(|caller| &caller.kind))) {
        let address = request.extensions().get::<Peer>().map(|peer| peer.address.ip());
        return Ok(caller.and_then(|caller| principal(caller, address)));
    }
    let Some(caller) = caller else {
        let message = "this call needs a client certificate; see `postern --help` on --identity";
        let status = status::plain(Code::Unauthenticated, "CERTIFICATE_REQUIRED", message);
        return Err(RefusedCall { status: Box::new(status), record: None });
    };
    let actor = &caller.kind;
    // A path that is in no table may be as long as a request's headers.
    let path = clipped(path, MAX_REPEATED);
    let message = format!("{actor} may not call {path}");
    let status = status::plain(Code::PermissionDenied, "RPC_NOT_ALLOWED", message);
    let event = AuditEvent::denied(app.clock.now(), actor, "rpc.called").with("rpc", path);
    let record = DenialRecord { caller: Owner::from(actor), event };
    Err(RefusedCall { status: Box::new(status), record: Some(Box::new(record)) })
}

/// Reports whether a proof past its end admits this call: an agent may renew its certificate, within the grace that the
/// handshake allows.
fn may_still(path: &str, kind: &CallerKind) -> bool {
    matches!(kind, CallerKind::Agent(_)) && path == RENEW
}

/// Returns the caller of a use case, if a principal calls.
fn principal(caller: &Authenticated, address: Option<IpAddr>) -> Option<Caller> {
    match &caller.kind {
        CallerKind::Principal(principal) => {
            let (principal, issuance) = (principal.clone(), caller.issuance.clone());
            Some(Caller { principal, issuance, address, other_address: None, token: None })
        }
        CallerKind::Agent(_) | CallerKind::Broker => None,
    }
}

#[cfg(test)]
mod tests;
