//! The parts of a request that several services read: who calls, and the fields that occur in many messages.

use std::sync::Arc;

use postern_core::text::free_text;
use postern_core::{CallerKind, Invalid, TargetId};
use postern_proto::status::{invalid, plain};
use tonic::{Code, Request, Status};

use super::authentication::Authenticated;
use super::peer::Peer;
use crate::app::Caller;
use crate::app::agents::AgentCaller;

/// Returns the principal that the authorization let through.
pub(super) fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    let caller = request.extensions().get::<Caller>().cloned();
    caller.ok_or_else(|| {
        plain(Code::Unauthenticated, "CERTIFICATE_REQUIRED", "this call needs a principal's certificate")
    })
}

/// Returns the caller that an authenticator has established; none if the request has shown no proof.
pub(super) fn authenticated<T>(request: &Request<T>) -> Option<&Arc<Authenticated>> {
    request.extensions().get::<Arc<Authenticated>>()
}

/// Returns the agent that calls. An agent speaks for its own target alone (I7): no message names one.
pub(super) fn agent<T>(request: &Request<T>) -> Result<AgentCaller, Status> {
    let of_agent = |caller: &Arc<Authenticated>| match (&caller.kind, caller.certificate_key) {
        (CallerKind::Agent(target), Some(key)) => Some(AgentCaller {
            target: target.clone(),
            key,
            certificate_issued_at: caller.issuance.at,
            certificate_not_after: caller.not_after,
            signers: caller.signers.clone(),
            address: request.extensions().get::<Peer>().map(|peer| peer.address.ip().to_canonical()),
        }),
        (CallerKind::Agent(_) | CallerKind::Principal(_) | CallerKind::Broker, _) => None,
    };
    authenticated(request).and_then(of_agent).ok_or_else(|| {
        plain(Code::Unauthenticated, "CERTIFICATE_REQUIRED", "this call needs an agent's certificate")
    })
}

/// Parses a page token into the type that the list is ordered by.
pub(super) fn page_token<T: std::str::FromStr>(token: Option<String>) -> Result<Option<T>, Status> {
    let wrong = || Invalid::new("page.token", "is not a page token", "use the token of the page before");
    token.map(|token| token.parse().map_err(|_| invalid(&wrong()))).transpose()
}

/// Parses a target's id.
pub(super) fn target_id(field: &str, text: &str) -> Result<TargetId, Status> {
    text.parse().map_err(|e: Invalid| invalid(&e.named(field)))
}

/// Checks a text that an agent reports: one line of at most 200 characters.
pub(super) fn report_text(field: &str, text: &str) -> Result<String, Invalid> {
    free_text(field, text, 200).map(|()| text.to_owned())
}
