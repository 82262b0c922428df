//! The services of policies, of principals, of the audit log and of the brokers' state, as scripted.

use postern_proto::status::plain;
use postern_proto::v1;
use postern_proto::v1::audit_service_server::AuditService;
use postern_proto::v1::policy_service_server::PolicyService;
use postern_proto::v1::principal_service_server::PrincipalService;
use postern_proto::v1::status_service_server::StatusService;
use tonic::{Code, Request, Response, Status};

use super::access::Answers;
use super::services::Services;

#[tonic::async_trait]
impl PolicyService for Services {
    async fn put_policy(
        &self,
        request: Request<v1::PutPolicyRequest>,
    ) -> Result<Response<v1::PutPolicyResponse>, Status> {
        let policies = &mut self.0.script().policies;
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
        let name = request.into_inner().name;
        let policy = self.0.script().policies.iter().find(|policy| policy.name == name).cloned();
        let missing = || plain(Code::NotFound, "NOT_FOUND", format!("policy {name} does not exist"));
        Ok(Response::new(v1::GetPolicyResponse { policy: Some(policy.ok_or_else(missing)?) }))
    }

    async fn list_policies(
        &self,
        _: Request<v1::ListPoliciesRequest>,
    ) -> Result<Response<v1::ListPoliciesResponse>, Status> {
        let policies = self.0.script().policies.clone();
        Ok(Response::new(v1::ListPoliciesResponse { policies, ..v1::ListPoliciesResponse::default() }))
    }

    async fn delete_policy(
        &self,
        request: Request<v1::DeletePolicyRequest>,
    ) -> Result<Response<v1::DeletePolicyResponse>, Status> {
        let name = request.into_inner().name;
        self.0.script().policies.retain(|policy| policy.name != name);
        Ok(Response::new(v1::DeletePolicyResponse {}))
    }
}

#[tonic::async_trait]
impl PrincipalService for Services {
    async fn revoke_principal(
        &self,
        request: Request<v1::RevokePrincipalRequest>,
    ) -> Result<Response<v1::RevokePrincipalResponse>, Status> {
        let mut script = self.0.script();
        script.revocations.push(request.into_inner());
        Ok(Response::new(script.revoked.clone()))
    }

    async fn list_principals(
        &self,
        _: Request<v1::ListPrincipalsRequest>,
    ) -> Result<Response<v1::ListPrincipalsResponse>, Status> {
        Ok(Response::new(self.0.script().principals.clone()))
    }
}

#[tonic::async_trait]
impl AuditService for Services {
    type TailAuditStream = Answers<v1::TailAuditResponse>;

    async fn tail_audit(
        &self,
        request: Request<v1::TailAuditRequest>,
    ) -> Result<Response<Self::TailAuditStream>, Status> {
        let after = request.into_inner().after;
        let (log, first) = {
            let script = self.0.script();
            (script.log.clone(), script.first.max(1))
        };
        let lines = (first..).zip(log).filter(move |(seq, _)| *seq > after);
        let lines = lines.map(|(seq, line)| Ok(v1::TailAuditResponse { seq, line }));
        Ok(Response::new(Box::pin(tokio_stream::iter(lines))))
    }

    async fn verify_audit(
        &self,
        _: Request<v1::VerifyAuditRequest>,
    ) -> Result<Response<v1::VerifyAuditResponse>, Status> {
        if let Some(answer) = self.0.script().verified.clone() {
            return Ok(Response::new(answer));
        }
        let answer = v1::VerifyAuditResponse {
            records: 2,
            head: "00".repeat(32),
            sound: false,
            broken_line: 3,
            problem: "does not follow from the record before it".to_owned(),
            ..v1::VerifyAuditResponse::default()
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
        Ok(Response::new(self.0.script().status.clone()))
    }
}
