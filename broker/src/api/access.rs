//! `AccessService`.

use std::collections::BTreeSet;
use std::sync::Arc;

use postern_core::text::Justification;
use postern_core::{Grant, GrantId, Invalid, TargetId, Window};
use postern_proto::CALLER_TOKEN;
use postern_proto::convert::{self, CallerSource};
use postern_proto::status::{invalid, plain};
use postern_proto::v1;
use postern_proto::v1::access_service_server::AccessService;
use postern_provider::CallerToken;
use tonic::{Code, Request, Response, Status};

use super::status::status;
use super::watch::{self, WatchStream};
use crate::app::{App, Caller, Error, access};
use crate::replica::Sights;

pub(super) struct Access {
    pub(super) app: Arc<App>,
}

#[tonic::async_trait]
impl AccessService for Access {
    async fn request_access(
        &self,
        request: Request<v1::RequestAccessRequest>,
    ) -> Result<Response<v1::RequestAccessResponse>, Status> {
        let caller = Caller { token: token(&request)?, ..caller(&request)? };
        let asked = convert::requested_access(request.get_ref(), caller.address).map_err(|e| invalid(&e))?;
        let (source, wait) = (asked.source, asked.wait);
        let mut requested = access::request(&self.app, &caller, asked).await.map_err(status)?;
        if let Some(wait) = wait {
            requested.grant = access::settled(&self.app, requested.grant, wait).await.map_err(status)?;
        }
        Ok(Response::new(v1::RequestAccessResponse {
            grant: Some(wire(&self.app, &requested.grant).await),
            source_from_caller: source == CallerSource::FromCaller,
            repeated_request: requested.repeated,
        }))
    }

    async fn approve_access(
        &self,
        _: Request<v1::ApproveAccessRequest>,
    ) -> Result<Response<v1::ApproveAccessResponse>, Status> {
        Err(status(Error::Reserved { what: "ApproveAccess" }))
    }

    async fn deny_access(
        &self,
        _: Request<v1::DenyAccessRequest>,
    ) -> Result<Response<v1::DenyAccessResponse>, Status> {
        Err(status(Error::Reserved { what: "DenyAccess" }))
    }

    async fn revoke_access(
        &self,
        request: Request<v1::RevokeAccessRequest>,
    ) -> Result<Response<v1::RevokeAccessResponse>, Status> {
        let caller = caller(&request)?;
        let asked = request.get_ref();
        if asked.terminate {
            return Err(status(Error::Reserved { what: "terminate" }));
        }
        let id = grant_id(&asked.grant_id)?;
        let reason = Some(asked.reason.as_str())
            .filter(|reason| !reason.is_empty())
            .map(Justification::new)
            .transpose();
        let reason = reason.map_err(|e| invalid(&e.named("reason")))?;
        let wait = convert::wait(asked.wait.as_ref()).map_err(|e| invalid(&e))?;
        let mut grant = access::revoke(&self.app, &caller, id, reason).await.map_err(status)?;
        if let Some(wait) = wait {
            grant = access::settled(&self.app, grant, wait).await.map_err(status)?;
        }
        Ok(Response::new(v1::RevokeAccessResponse { grant: Some(wire(&self.app, &grant).await) }))
    }

    async fn get_grant(
        &self,
        request: Request<v1::GetGrantRequest>,
    ) -> Result<Response<v1::GetGrantResponse>, Status> {
        let caller = caller(&request)?;
        let id = grant_id(&request.get_ref().grant_id)?;
        let grant = access::visible(&self.app, &caller, id).await.map_err(status)?.record;
        Ok(Response::new(v1::GetGrantResponse { grant: Some(wire(&self.app, &grant).await) }))
    }

    async fn list_grants(
        &self,
        request: Request<v1::ListGrantsRequest>,
    ) -> Result<Response<v1::ListGrantsResponse>, Status> {
        let caller = caller(&request)?;
        let asked = convert::grant_filter(request.get_ref().filter.as_ref()).map_err(|e| invalid(&e))?;
        let (size, token) = convert::page(request.get_ref().page.as_ref()).map_err(|e| invalid(&e))?;
        let before = page_token(token)?;
        let (grants, next) =
            access::list_grants(&self.app, &caller, &asked, size, before).await.map_err(status)?;
        let sights = sights(&self.app, &grants).await;
        Ok(Response::new(v1::ListGrantsResponse {
            grants: grants.iter().map(|grant| seen(&self.app, grant, &sights)).collect(),
            next_page_token: next.map(|id| id.to_string()).unwrap_or_default(),
        }))
    }

    type WatchGrantsStream = WatchStream;

    async fn watch_grants(
        &self,
        request: Request<v1::WatchGrantsRequest>,
    ) -> Result<Response<Self::WatchGrantsStream>, Status> {
        let caller = caller(&request)?;
        let asked = convert::grant_filter(request.get_ref().filter.as_ref()).map_err(|e| invalid(&e))?;
        Ok(Response::new(watch::grants(Arc::clone(&self.app), caller, asked)))
    }
}

/// The grant as the wire shows it, with what the layers say right now.
pub(super) async fn wire(app: &App, grant: &Grant) -> v1::Grant {
    let sights = sights(app, std::slice::from_ref(grant)).await;
    seen(app, grant, &sights)
}

/// What the other brokers tell of the targets of these grants. Where the store cannot say, nothing is known of them.
async fn sights(app: &App, grants: &[Grant]) -> Sights {
    let open = grants.iter().filter(|grant| !grant.state.is_final());
    let targets: BTreeSet<&TargetId> = open.flat_map(Grant::targets).collect();
    app.sights(targets).await.unwrap_or_default()
}

fn seen(app: &App, grant: &Grant, sights: &Sights) -> v1::Grant {
    let is_here = |window: &Window| app.replica.leases.holds(&window.target);
    let observe = |window: &_, layer| app.observe(grant, window, layer, sights);
    let is_over = grant.state.is_final();
    let endpoint = |window: &_| match is_over {
        true => None,
        false if is_here(window) => app.clouds.endpoint(window),
        false => sights.endpoint(grant, window),
    };
    convert::grant_to_wire(grant, observe, endpoint)
}

/// The principal that the gate let through.
pub(super) fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    let caller = request.extensions().get::<Caller>().cloned();
    caller.ok_or_else(|| {
        plain(Code::Unauthenticated, "CERTIFICATE_REQUIRED", "this call needs a principal's certificate")
    })
}

/// The caller's own token for a cloud, if one came along.
fn token<T>(request: &Request<T>) -> Result<Option<CallerToken>, Status> {
    let wrong = || Invalid::new(CALLER_TOKEN, "is not ASCII", "send the access token alone");
    let sent = request.metadata().get(CALLER_TOKEN);
    let text = sent.map(|value| value.to_str().map_err(|_| invalid(&wrong()))).transpose()?;
    text.map(|text| CallerToken::new(text).map_err(|e| invalid(&e.named(CALLER_TOKEN)))).transpose()
}

/// A page token, in the type that the list is ordered by.
pub(super) fn page_token<T: std::str::FromStr>(token: Option<String>) -> Result<Option<T>, Status> {
    let wrong = || Invalid::new("page.token", "is not a page token", "use the token of the page before");
    token.map(|token| token.parse().map_err(|_| invalid(&wrong()))).transpose()
}

fn grant_id(text: &str) -> Result<GrantId, Status> {
    text.parse().map_err(|e: Invalid| invalid(&e.named("grant_id")))
}
