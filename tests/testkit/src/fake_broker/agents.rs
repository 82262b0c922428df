//! The services of agents and targets: one agent, on [`TARGET`]. A session goes to the test.

use postern_pki::authority::AGENT_LIFETIME;
use postern_pki::identity::SpiffeId;
use postern_proto::convert::timestamp_to_wire;
use postern_proto::v1;
use postern_proto::v1::agent_service_server::AgentService;
use postern_proto::v1::target_service_server::TargetService;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::script::TARGET;
use super::services::Services;
use super::session::AgentSession;
use super::shared::lock;
use crate::clock::wall;

fn an_agent(status: v1::AgentStatus) -> v1::Agent {
    v1::Agent { target: TARGET.to_owned(), status: status.into(), ..v1::Agent::default() }
}

fn a_target() -> v1::Target {
    let layer = v1::TargetLayer {
        layer: v1::Layer::Host.into(),
        status: v1::LayerStatus::InSync.into(),
        ..v1::TargetLayer::default()
    };
    v1::Target {
        id: TARGET.to_owned(),
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
        let v1::CreateJoinTokenRequest { target, valid_for } = request.into_inner();
        let token = format!("postern1.{target}.{}", valid_for.unwrap_or_default().seconds);
        let expires_at = Some(prost_types::Timestamp { seconds: 1_748_779_200, nanos: 0 });
        Ok(Response::new(v1::CreateJoinTokenResponse { token, expires_at }))
    }

    async fn enroll(
        &self,
        request: Request<v1::EnrollRequest>,
    ) -> Result<Response<v1::EnrollResponse>, Status> {
        let v1::EnrollRequest { token, csr } = request.into_inner();
        if !lock(&self.0.tokens).remove(&token) {
            return Err(Status::permission_denied("the token is not known or was used before"));
        }
        let (certificates, roots) = (self.sign(&csr)?, self.0.authority.roots());
        let wall_clock = Some(timestamp_to_wire(wall()));
        Ok(Response::new(v1::EnrollResponse { certificates, roots, target: TARGET.to_owned(), wall_clock }))
    }

    async fn renew(&self, request: Request<v1::RenewRequest>) -> Result<Response<v1::RenewResponse>, Status> {
        *lock(&self.0.renewals) += 1;
        if let Some(answer) = lock(&self.0.renewal_answer.0).as_ref() {
            return Ok(Response::new(answer(&request.get_ref().csr)));
        }
        let (certificates, roots) = (self.sign(&request.into_inner().csr)?, self.0.authority.roots());
        Ok(Response::new(v1::RenewResponse {
            certificates,
            roots,
            wall_clock: Some(timestamp_to_wire(wall())),
        }))
    }

    async fn list_agents(
        &self,
        _: Request<v1::ListAgentsRequest>,
    ) -> Result<Response<v1::ListAgentsResponse>, Status> {
        let agents = vec![an_agent(v1::AgentStatus::Online)];
        Ok(Response::new(v1::ListAgentsResponse { agents, next_page_token: String::new() }))
    }

    async fn forget_agent(
        &self,
        _: Request<v1::ForgetAgentRequest>,
    ) -> Result<Response<v1::ForgetAgentResponse>, Status> {
        Ok(Response::new(v1::ForgetAgentResponse {
            target: TARGET.to_owned(),
            held_until: Some(prost_types::Timestamp { seconds: 1_748_779_200, nanos: 0 }),
            held_grants: vec!["01jx0000000000000000000000".to_owned()],
        }))
    }

    async fn ban_agent(
        &self,
        _: Request<v1::BanAgentRequest>,
    ) -> Result<Response<v1::BanAgentResponse>, Status> {
        Ok(Response::new(v1::BanAgentResponse { agent: Some(an_agent(v1::AgentStatus::Banned)) }))
    }

    type SessionStream = UnboundedReceiverStream<Result<v1::SessionResponse, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (outgoing, responses) = mpsc::unbounded_channel();
        let session = AgentSession::begin(request.into_inner(), outgoing).await?;
        self.0.sessions.send(session).map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(UnboundedReceiverStream::new(responses)))
    }
}

impl Services {
    fn sign(&self, csr: &[u8]) -> Result<Vec<Vec<u8>>, Status> {
        let identity = SpiffeId::Agent(TARGET.parse().expect("the target is one"));
        let issued = self.0.authority.issue(csr, &identity, AGENT_LIFETIME, wall());
        Ok(issued.map_err(|error| Status::invalid_argument(error.to_string()))?.chain)
    }
}

#[tonic::async_trait]
impl TargetService for Services {
    async fn list_targets(
        &self,
        _: Request<v1::ListTargetsRequest>,
    ) -> Result<Response<v1::ListTargetsResponse>, Status> {
        Ok(Response::new(v1::ListTargetsResponse {
            targets: vec![a_target()],
            next_page_token: String::new(),
        }))
    }

    async fn get_target(
        &self,
        _: Request<v1::GetTargetRequest>,
    ) -> Result<Response<v1::GetTargetResponse>, Status> {
        Ok(Response::new(v1::GetTargetResponse { target: Some(a_target()) }))
    }

    async fn assess_targets(
        &self,
        request: Request<v1::AssessTargetsRequest>,
    ) -> Result<Response<v1::AssessTargetsResponse>, Status> {
        let mut script = self.0.script();
        script.assessments.push(request.into_inner());
        Ok(Response::new(script.assessment_report.clone()))
    }

    async fn lockdown_targets(
        &self,
        request: Request<v1::LockdownTargetsRequest>,
    ) -> Result<Response<v1::LockdownTargetsResponse>, Status> {
        let mut script = self.0.script();
        script.lockdowns.push(request.into_inner());
        Ok(Response::new(v1::LockdownTargetsResponse { results: script.results.clone() }))
    }

    async fn release_targets(
        &self,
        request: Request<v1::ReleaseTargetsRequest>,
    ) -> Result<Response<v1::ReleaseTargetsResponse>, Status> {
        let mut script = self.0.script();
        script.releases.push(request.into_inner());
        Ok(Response::new(v1::ReleaseTargetsResponse { results: script.results.clone() }))
    }
}
