//! The services, as scripted.

use std::pin::Pin;
use std::sync::{Arc, Mutex};

use postern_proto::status::plain;
use postern_proto::v1;
use postern_proto::v1::access_service_server::{AccessService, AccessServiceServer};
use postern_proto::v1::agent_service_server::AgentServiceServer;
use postern_proto::v1::audit_service_server::{AuditService, AuditServiceServer};
use postern_proto::v1::policy_service_server::{PolicyService, PolicyServiceServer};
use postern_proto::v1::status_service_server::{StatusService, StatusServiceServer};
use postern_proto::v1::target_service_server::TargetServiceServer;
use tokio_stream::{Stream, StreamExt as _};
use tonic::transport::Server;
use tonic::transport::server::Router;
use tonic::{Code, Request, Response, Status};

use super::{Script, a_grant};

#[derive(Clone)]
pub(super) struct Services(pub(super) Arc<Mutex<Script>>);

/// Adds every service.
pub(super) fn all(mut server: Server, script: &Arc<Mutex<Script>>) -> Router {
    let services = Services(Arc::clone(script));
    server
        .add_service(AccessServiceServer::new(services.clone()))
        .add_service(PolicyServiceServer::new(services.clone()))
        .add_service(AuditServiceServer::new(services.clone()))
        .add_service(AgentServiceServer::new(services.clone()))
        .add_service(StatusServiceServer::new(services.clone()))
        .add_service(TargetServiceServer::new(services))
}

impl Services {
    pub(super) fn let_in(&self) -> Result<(), Status> {
        self.0.lock().unwrap().refusal.clone().map_or(Ok(()), Err)
    }
}

pub(super) type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AccessService for Services {
    async fn request_access(
        &self,
        request: Request<v1::RequestAccessRequest>,
    ) -> Result<Response<v1::RequestAccessResponse>, Status> {
        self.let_in()?;
        let mut script = self.0.lock().unwrap();
        let request = request.into_inner();
        let repeated_request = script.requests.iter().any(|r| r.idempotency_key == request.idempotency_key);
        script.requests.push(request);
        if script.cut > 0 {
            script.cut -= 1;
            script.cut_now = true;
        }
        Ok(Response::new(v1::RequestAccessResponse { repeated_request, ..script.answer.clone() }))
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
        self.let_in()?;
        let grant = Some(a_grant(v1::GrantState::Closing, v1::WindowState::Closing));
        Ok(Response::new(v1::RevokeAccessResponse { grant }))
    }

    async fn get_grant(
        &self,
        _: Request<v1::GetGrantRequest>,
    ) -> Result<Response<v1::GetGrantResponse>, Status> {
        self.let_in()?;
        let grant = Some(a_grant(v1::GrantState::Active, v1::WindowState::Open));
        Ok(Response::new(v1::GetGrantResponse { grant }))
    }

    async fn list_grants(
        &self,
        request: Request<v1::ListGrantsRequest>,
    ) -> Result<Response<v1::ListGrantsResponse>, Status> {
        self.let_in()?;
        let mut script = self.0.lock().unwrap();
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
        self.let_in()?;
        let mut script = self.0.lock().unwrap();
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

#[tonic::async_trait]
impl PolicyService for Services {
    async fn put_policy(
        &self,
        request: Request<v1::PutPolicyRequest>,
    ) -> Result<Response<v1::PutPolicyResponse>, Status> {
        self.let_in()?;
        let policies = &mut self.0.lock().unwrap().policies;
        let mut policy = request.into_inner().policy.unwrap();
        let before = policies.iter().position(|kept| kept.name == policy.name).map(|i| policies.remove(i));
        policy.version = before.map_or(0, |before| before.version) + 1;
        policies.push(policy.clone());
        Ok(Response::new(v1::PutPolicyResponse { policy: Some(policy) }))
    }

    async fn get_policy(
        &self,
        request: Request<v1::GetPolicyRequest>,
    ) -> Result<Response<v1::GetPolicyResponse>, Status> {
        self.let_in()?;
        let name = request.into_inner().name;
        let policy = self.0.lock().unwrap().policies.iter().find(|policy| policy.name == name).cloned();
        let missing = || plain(Code::NotFound, "NOT_FOUND", format!("policy {name} does not exist"));
        Ok(Response::new(v1::GetPolicyResponse { policy: Some(policy.ok_or_else(missing)?) }))
    }

    async fn list_policies(
        &self,
        _: Request<v1::ListPoliciesRequest>,
    ) -> Result<Response<v1::ListPoliciesResponse>, Status> {
        self.let_in()?;
        let policies = self.0.lock().unwrap().policies.clone();
        Ok(Response::new(v1::ListPoliciesResponse { policies, next_page_token: String::new() }))
    }

    async fn delete_policy(
        &self,
        request: Request<v1::DeletePolicyRequest>,
    ) -> Result<Response<v1::DeletePolicyResponse>, Status> {
        self.let_in()?;
        let name = request.into_inner().name;
        self.0.lock().unwrap().policies.retain(|policy| policy.name != name);
        Ok(Response::new(v1::DeletePolicyResponse {}))
    }
}

#[tonic::async_trait]
impl AuditService for Services {
    type TailAuditStream = Answers<v1::TailAuditResponse>;

    async fn tail_audit(
        &self,
        request: Request<v1::TailAuditRequest>,
    ) -> Result<Response<Self::TailAuditStream>, Status> {
        self.let_in()?;
        let after = request.into_inner().after;
        let log = self.0.lock().unwrap().log.clone();
        let lines = (1u64..).zip(log).filter(move |(seq, _)| *seq > after);
        let lines = lines.map(|(seq, line)| Ok(v1::TailAuditResponse { seq, line }));
        Ok(Response::new(Box::pin(tokio_stream::iter(lines))))
    }

    async fn verify_audit(
        &self,
        _: Request<v1::VerifyAuditRequest>,
    ) -> Result<Response<v1::VerifyAuditResponse>, Status> {
        self.let_in()?;
        let answer = v1::VerifyAuditResponse {
            records: 2,
            head: "00".repeat(32),
            sound: false,
            broken_line: 3,
            problem: "does not follow from the record before it".to_owned(),
        };
        Ok(Response::new(answer))
    }
}

#[tonic::async_trait]
impl StatusService for Services {
    async fn get_status(
        &self,
        _: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusResponse>, Status> {
        self.let_in()?;
        Ok(Response::new(self.0.lock().unwrap().status.clone()))
    }
}
