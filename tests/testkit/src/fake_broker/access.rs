//! The access service, as scripted.

use std::pin::Pin;

use postern_proto::v1;
use postern_proto::v1::access_service_server::AccessService;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status};

use super::script::a_grant;
use super::services::Services;

/// The answers of an RPC that sends several.
pub(super) type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AccessService for Services {
    async fn request_access(
        &self,
        request: Request<v1::RequestAccessRequest>,
    ) -> Result<Response<v1::RequestAccessResponse>, Status> {
        let mut script = self.0.script();
        let request = request.into_inner();
        let repeated_request = script.requests.iter().any(|r| r.idempotency_key == request.idempotency_key);
        script.requests.push(request);
        Ok(Response::new(v1::RequestAccessResponse { repeated_request, ..script.answer.clone() }))
    }

    async fn get_caller_address(
        &self,
        _: Request<v1::GetCallerAddressRequest>,
    ) -> Result<Response<v1::GetCallerAddressResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn approve_access(
        &self,
        _: Request<v1::ApproveAccessRequest>,
    ) -> Result<Response<v1::ApproveAccessResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn deny_access(
        &self,
        _: Request<v1::DenyAccessRequest>,
    ) -> Result<Response<v1::DenyAccessResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn revoke_access(
        &self,
        _: Request<v1::RevokeAccessRequest>,
    ) -> Result<Response<v1::RevokeAccessResponse>, Status> {
        let grant = Some(a_grant(v1::GrantState::Closing, v1::WindowState::Closing));
        Ok(Response::new(v1::RevokeAccessResponse { grant }))
    }

    async fn get_grant(
        &self,
        _: Request<v1::GetGrantRequest>,
    ) -> Result<Response<v1::GetGrantResponse>, Status> {
        let grant = Some(a_grant(v1::GrantState::Active, v1::WindowState::Open));
        Ok(Response::new(v1::GetGrantResponse { grant }))
    }

    async fn list_grants(
        &self,
        request: Request<v1::ListGrantsRequest>,
    ) -> Result<Response<v1::ListGrantsResponse>, Status> {
        let mut script = self.0.script();
        let v1::ListGrantsRequest { filter, page } = request.into_inner();
        script.filters.extend(filter);
        let page = page.unwrap_or_default();
        let start: u32 = page.token.parse().unwrap_or_default();
        // A broker may return less than the requested size.
        let end = script.grants.min(start + page.size.min(2));
        let grants = (start..end).map(|_| a_grant(v1::GrantState::Active, v1::WindowState::Open));
        let next_page_token = if end < script.grants { end.to_string() } else { String::new() };
        Ok(Response::new(v1::ListGrantsResponse { grants: grants.collect(), next_page_token }))
    }

    type WatchGrantsStream = Answers<v1::WatchGrantsResponse>;

    async fn watch_grants(
        &self,
        request: Request<v1::WatchGrantsRequest>,
    ) -> Result<Response<Self::WatchGrantsStream>, Status> {
        let mut script = self.0.script();
        script.filters.extend(request.into_inner().filter);
        if script.watches.is_empty() {
            return Ok(Response::new(Box::pin(tokio_stream::pending())));
        }
        let events = tokio_stream::iter(script.watches.remove(0)).map(Ok);
        if script.watches.is_empty() {
            return Ok(Response::new(Box::pin(events.chain(tokio_stream::pending()))));
        }
        let lost = tokio_stream::once(Err(Status::unavailable("the broker stops")));
        Ok(Response::new(Box::pin(events.chain(lost))))
    }
}
