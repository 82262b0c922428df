//! `AccessService`.

use std::sync::Arc;

use postern_core::text::Justification;
use postern_core::{GrantId, Invalid, Role};
use postern_proto::CALLER_TOKEN;
use postern_proto::convert::page;
use postern_proto::status::invalid;
use postern_proto::v1;
use postern_proto::v1::access_service_server::AccessService;
use postern_provider::CallerToken;
use tonic::{Request, Response, Status};

use super::grant_view::{show, show_all};
use super::reads::{Reads, refused, within_answer};
use super::watch::{self, GrantFeed, WatchStream};
use crate::api::convert::{CallerSource, grant_filter, other_addresses, requested_access, wait};
use crate::api::error::to_status;
use crate::api::proof_end::until_proof_ends;
use crate::api::request::{authenticated, caller, page_token};
use crate::app::{App, Caller, Error, access};
use crate::clock::boottime;
use crate::limits::ReadKind;

pub(super) struct AccessApi {
    pub(super) app: Arc<App>,
    pub(super) feed: GrantFeed,
    pub(super) reads: Reads,
}

/// The grants that one read of the store returns at most.
const READ_SIZE: usize = 100;

#[tonic::async_trait]
impl AccessService for AccessApi {
    async fn request_access(
        &self,
        request: Request<v1::RequestAccessRequest>,
    ) -> Result<Response<v1::RequestAccessResponse>, Status> {
        let caller = Caller { token: token(&request)?, ..caller(&request)? };
        let others = other_addresses(&request.get_ref().caller_addresses, caller.address);
        let proofs = &self.app.address_proofs;
        let proven = others
            .map_err(|e| invalid(&e))?
            .into_iter()
            .find(|(address, proof)| proofs.holds(caller.principal.key(), *address, proof, boottime()));
        let caller = Caller { other_address: proven.map(|(address, _)| address), ..caller };
        let asked = requested_access(request.get_ref(), caller.address).map_err(|e| invalid(&e))?;
        let mut requested = access::request(&self.app, &caller, asked.request).await.map_err(to_status)?;
        if let Some(wait) = asked.wait {
            requested.grant = access::settled(&self.app, requested.grant, wait).await.map_err(to_status)?;
        }
        Ok(Response::new(v1::RequestAccessResponse {
            grant: Some(show(&self.app, &caller, &requested.grant).await),
            source_from_caller: asked.source == CallerSource::FromCaller,
            repeated_request: requested.repeated,
        }))
    }

    async fn get_caller_address(
        &self,
        request: Request<v1::GetCallerAddressRequest>,
    ) -> Result<Response<v1::GetCallerAddressResponse>, Status> {
        let caller = caller(&request)?;
        let seen = caller.address.map(|address| address.to_canonical());
        let address = seen.map(|address| v1::CallerAddress {
            address: address.to_string(),
            proof: self.app.address_proofs.prove(caller.principal.key(), address, boottime()),
        });
        Ok(Response::new(v1::GetCallerAddressResponse { address }))
    }

    async fn approve_access(
        &self,
        _: Request<v1::ApproveAccessRequest>,
    ) -> Result<Response<v1::ApproveAccessResponse>, Status> {
        Err(to_status(Error::Reserved { what: "ApproveAccess" }))
    }

    async fn deny_access(
        &self,
        _: Request<v1::DenyAccessRequest>,
    ) -> Result<Response<v1::DenyAccessResponse>, Status> {
        Err(to_status(Error::Reserved { what: "DenyAccess" }))
    }

    async fn revoke_access(
        &self,
        request: Request<v1::RevokeAccessRequest>,
    ) -> Result<Response<v1::RevokeAccessResponse>, Status> {
        let caller = caller(&request)?;
        let asked = request.get_ref();
        if asked.terminate {
            return Err(to_status(Error::Reserved { what: "terminate" }));
        }
        let id = grant_id(&asked.grant_id)?;
        let reason = Some(asked.reason.as_str())
            .filter(|reason| !reason.is_empty())
            .map(Justification::new)
            .transpose();
        let reason = reason.map_err(|e| invalid(&e.named("reason")))?;
        let wait = wait(asked.wait.as_ref()).map_err(|e| invalid(&e))?;
        let mut grant = access::revoke(&self.app, &caller, id, reason).await.map_err(to_status)?;
        if let Some(wait) = wait {
            grant = access::settled(&self.app, grant, wait).await.map_err(to_status)?;
        }
        Ok(Response::new(v1::RevokeAccessResponse { grant: Some(show(&self.app, &caller, &grant).await) }))
    }

    async fn get_grant(
        &self,
        request: Request<v1::GetGrantRequest>,
    ) -> Result<Response<v1::GetGrantResponse>, Status> {
        let caller = caller(&request)?;
        let id = grant_id(&request.get_ref().grant_id)?;
        let grant = access::visible(&self.app, &caller, id).await.map_err(to_status)?.record;
        Ok(Response::new(v1::GetGrantResponse { grant: Some(show(&self.app, &caller, &grant).await) }))
    }

    async fn list_grants(
        &self,
        request: Request<v1::ListGrantsRequest>,
    ) -> Result<Response<v1::ListGrantsResponse>, Status> {
        let caller = caller(&request)?;
        let filter = grant_filter(request.get_ref().filter.as_ref()).map_err(|e| invalid(&e))?;
        let (size, token) = page(request.get_ref().page.as_ref()).map_err(|e| invalid(&e))?;
        let before = page_token(token)?;
        // A filter of the store's indexes leaves few, and so do a requester's own grants.
        let is_narrow = filter.grant.is_some() || filter.target.is_some() || filter.principal.is_some();
        let _place = match is_narrow || caller.principal.role() == Role::Requester {
            true => None,
            false => Some(self.reads.enter(&caller, ReadKind::Page).await.map_err(refused)?),
        };
        let (mut grants, mut next, mut before) = (Vec::new(), None, before);
        while grants.len() < size {
            let wanted = (size - grants.len()).min(READ_SIZE);
            let page = access::list_grants(&self.app, &caller, &filter, wanted, before).await;
            let (read, after) = page.map_err(to_status)?;
            grants.extend(show_all(&self.app, &caller, &read).await);
            before = after;
            let (fitting, token) =
                within_answer(std::mem::take(&mut grants), after.map(|id| id.to_string()), |grant| {
                    grant.id.clone()
                });
            let is_full = after.is_none_or(|after| after.to_string() != token);
            (grants, next) = (fitting, Some(token));
            if is_full {
                break;
            }
        }
        Ok(Response::new(v1::ListGrantsResponse { grants, next_page_token: next.unwrap_or_default() }))
    }

    type WatchGrantsStream = WatchStream;

    async fn watch_grants(
        &self,
        request: Request<v1::WatchGrantsRequest>,
    ) -> Result<Response<Self::WatchGrantsStream>, Status> {
        let caller = caller(&request)?;
        let filter = grant_filter(request.get_ref().filter.as_ref()).map_err(|e| invalid(&e))?;
        let grants =
            watch::grants(Arc::clone(&self.app), (self.feed.clone(), self.reads.clone()), caller, filter);
        Ok(Response::new(until_proof_ends(authenticated(&request), &self.app.revocations, grants)))
    }
}

/// Returns the caller's token for a cloud, if the call carries one.
fn token<T>(request: &Request<T>) -> Result<Option<CallerToken>, Status> {
    let wrong = || Invalid::new(CALLER_TOKEN, "is not ASCII", "send the access token alone");
    let sent = request.metadata().get(CALLER_TOKEN);
    let text = sent.map(|value| value.to_str().map_err(|_| invalid(&wrong()))).transpose()?;
    text.map(|text| CallerToken::new(text).map_err(|e| invalid(&e.named(CALLER_TOKEN)))).transpose()
}

fn grant_id(text: &str) -> Result<GrantId, Status> {
    text.parse().map_err(|e: Invalid| invalid(&e.named("grant_id")))
}
