//! The services of agents and targets: one agent, on host:web-1.

use postern_proto::v1;
use postern_proto::v1::agent_service_server::AgentService;
use postern_proto::v1::target_service_server::TargetService;
use tonic::{Request, Response, Status, Streaming};

use super::services::{Answers, Services};

fn an_agent(status: v1::AgentStatus) -> v1::Agent {
    v1::Agent { target: "host:web-1".to_owned(), status: status.into(), ..v1::Agent::default() }
}

fn a_target() -> v1::Target {
    let layer = v1::TargetLayer {
        layer: v1::Layer::Host.into(),
        status: v1::LayerStatus::InSync.into(),
        ..v1::TargetLayer::default()
    };
    v1::Target {
        id: "host:web-1".to_owned(),
        mode: v1::Mode::Enforce.into(),
        layers: vec![layer],
        ..v1::Target::default()
    }
}

#[tonic::async_trait]
impl AgentService for Services {
    /// Returns a token that contains the requested target and lifetime.
    async fn create_join_token(
        &self,
        request: Request<v1::CreateJoinTokenRequest>,
    ) -> Result<Response<v1::CreateJoinTokenResponse>, Status> {
        self.let_in()?;
        let v1::CreateJoinTokenRequest { target, valid_for } = request.into_inner();
        let token = format!("postern1.{target}.{}", valid_for.unwrap_or_default().seconds);
        let expires_at = Some(prost_types::Timestamp { seconds: 1_748_779_200, nanos: 0 });
        Ok(Response::new(v1::CreateJoinTokenResponse { token, expires_at }))
    }

    async fn enroll(&self, _: Request<v1::EnrollRequest>) -> Result<Response<v1::EnrollResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn renew(&self, _: Request<v1::RenewRequest>) -> Result<Response<v1::RenewResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_agents(
        &self,
        _: Request<v1::ListAgentsRequest>,
    ) -> Result<Response<v1::ListAgentsResponse>, Status> {
        self.let_in()?;
        let agents = vec![an_agent(v1::AgentStatus::Online)];
        Ok(Response::new(v1::ListAgentsResponse { agents, next_page_token: String::new() }))
    }

    async fn forget_agent(
        &self,
        _: Request<v1::ForgetAgentRequest>,
    ) -> Result<Response<v1::ForgetAgentResponse>, Status> {
        self.let_in()?;
        Ok(Response::new(v1::ForgetAgentResponse {
            target: "host:web-1".to_owned(),
            held_until: Some(prost_types::Timestamp { seconds: 1_748_779_200, nanos: 0 }),
            held_grants: vec!["01jx0000000000000000000000".to_owned()],
        }))
    }

    async fn ban_agent(
        &self,
        _: Request<v1::BanAgentRequest>,
    ) -> Result<Response<v1::BanAgentResponse>, Status> {
        self.let_in()?;
        Ok(Response::new(v1::BanAgentResponse { agent: Some(an_agent(v1::AgentStatus::Banned)) }))
    }

    type SessionStream = Answers<v1::SessionResponse>;

    async fn session(
        &self,
        _: Request<Streaming<v1::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        Err(Status::unimplemented(""))
    }
}

#[tonic::async_trait]
impl TargetService for Services {
    async fn list_targets(
        &self,
        _: Request<v1::ListTargetsRequest>,
    ) -> Result<Response<v1::ListTargetsResponse>, Status> {
        self.let_in()?;
        Ok(Response::new(v1::ListTargetsResponse {
            targets: vec![a_target()],
            next_page_token: String::new(),
        }))
    }

    async fn get_target(
        &self,
        _: Request<v1::GetTargetRequest>,
    ) -> Result<Response<v1::GetTargetResponse>, Status> {
        self.let_in()?;
        Ok(Response::new(v1::GetTargetResponse { target: Some(a_target()) }))
    }

    async fn assess_targets(
        &self,
        request: Request<v1::AssessTargetsRequest>,
    ) -> Result<Response<v1::AssessTargetsResponse>, Status> {
        self.let_in()?;
        let mut script = self.0.lock().unwrap();
        script.assessments.push(request.into_inner());
        Ok(Response::new(script.assessment_report.clone()))
    }

    async fn lockdown_targets(
        &self,
        request: Request<v1::LockdownTargetsRequest>,
    ) -> Result<Response<v1::LockdownTargetsResponse>, Status> {
        self.let_in()?;
        let mut script = self.0.lock().unwrap();
        script.lockdowns.push(request.into_inner());
        Ok(Response::new(v1::LockdownTargetsResponse { results: script.results.clone() }))
    }

    async fn release_targets(
        &self,
        request: Request<v1::ReleaseTargetsRequest>,
    ) -> Result<Response<v1::ReleaseTargetsResponse>, Status> {
        self.let_in()?;
        let mut script = self.0.lock().unwrap();
        script.releases.push(request.into_inner());
        Ok(Response::new(v1::ReleaseTargetsResponse { results: script.results.clone() }))
    }
}
