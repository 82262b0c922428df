//! `AgentService`.

use std::sync::Arc;

use postern_core::text::free_text;
use postern_proto::convert::{self, timestamp_to_wire};
use postern_proto::status::invalid;
use postern_proto::v1;
use postern_proto::v1::agent_service_server::AgentService;
use postern_store::CloneAlarm;
use tonic::{Request, Response, Status, Streaming};

use super::reads::{Reads, refused, within_answer};
use super::session::{self, SessionStream};
use crate::api::error::to_status;
use crate::api::request::{agent, caller, page_token, target_id};
use crate::app::App;
use crate::app::agents::{self, AgentView, Arrival};
use crate::clock::wall;
use crate::limits::ReadKind;

pub(super) struct AgentApi {
    pub(super) app: Arc<App>,
    pub(super) reads: Reads,
}

#[tonic::async_trait]
impl AgentService for AgentApi {
    async fn create_join_token(
        &self,
        request: Request<v1::CreateJoinTokenRequest>,
    ) -> Result<Response<v1::CreateJoinTokenResponse>, Status> {
        let caller = caller(&request)?;
        let asked = request.get_ref();
        let target = target_id("target", &asked.target)?;
        let valid_for = asked.valid_for.as_ref().map(|wire| convert::duration("valid_for", Some(wire)));
        let valid_for = valid_for.transpose().map_err(|e| invalid(&e))?;
        let (token, expires_at) =
            agents::create_token(&self.app, &caller, target, valid_for).await.map_err(to_status)?;
        let expires_at = Some(timestamp_to_wire(expires_at));
        Ok(Response::new(v1::CreateJoinTokenResponse { token: token.to_text(), expires_at }))
    }

    async fn enroll(
        &self,
        request: Request<v1::EnrollRequest>,
    ) -> Result<Response<v1::EnrollResponse>, Status> {
        let asked = request.get_ref();
        let (target, issued) =
            agents::enroll(&self.app, &asked.token, &asked.csr).await.map_err(to_status)?;
        Ok(Response::new(v1::EnrollResponse {
            certificates: issued.chain,
            roots: self.app.authority.roots(),
            target: target.to_string(),
            wall_clock: Some(timestamp_to_wire(wall())),
        }))
    }

    async fn renew(&self, request: Request<v1::RenewRequest>) -> Result<Response<v1::RenewResponse>, Status> {
        let caller = agent(&request)?;
        let csr = &request.get_ref().csr;
        let issued = if caller.certificate_not_after <= wall() {
            agents::renew_late(&self.app, &caller, csr).await
        } else {
            agents::renew(&self.app, &caller, csr).await
        };
        let issued = issued.map_err(to_status)?;
        Ok(Response::new(v1::RenewResponse {
            certificates: issued.chain,
            roots: self.app.authority.roots(),
            wall_clock: Some(timestamp_to_wire(wall())),
        }))
    }

    async fn list_agents(
        &self,
        request: Request<v1::ListAgentsRequest>,
    ) -> Result<Response<v1::ListAgentsResponse>, Status> {
        let caller = caller(&request)?;
        let (size, token) = convert::page(request.get_ref().page.as_ref()).map_err(|e| invalid(&e))?;
        let _place = self.reads.enter(&caller, ReadKind::Page).await.map_err(refused)?;
        let (agents, next) = agents::list(&self.app, size, page_token(token)?).await.map_err(to_status)?;
        let (agents, next_page_token) = within_answer(
            agents.into_iter().map(wire).collect(),
            next.map(|target| target.to_string()),
            |agent: &v1::Agent| agent.target.clone(),
        );
        Ok(Response::new(v1::ListAgentsResponse { agents, next_page_token }))
    }

    async fn ban_agent(
        &self,
        request: Request<v1::BanAgentRequest>,
    ) -> Result<Response<v1::BanAgentResponse>, Status> {
        let caller = caller(&request)?;
        let asked = request.get_ref();
        let target = target_id("target", &asked.target)?;
        free_text("reason", &asked.reason, 500).map_err(|e| invalid(&e))?;
        let agent =
            agents::ban(&self.app, &caller, &target, asked.reason.clone()).await.map_err(to_status)?;
        Ok(Response::new(v1::BanAgentResponse { agent: Some(wire(agent)) }))
    }

    async fn forget_agent(
        &self,
        request: Request<v1::ForgetAgentRequest>,
    ) -> Result<Response<v1::ForgetAgentResponse>, Status> {
        let caller = caller(&request)?;
        let asked = request.get_ref();
        let target = target_id("target", &asked.target)?;
        free_text("reason", &asked.reason, 500).map_err(|e| invalid(&e))?;
        let (reason, accepts_held) = (asked.reason.clone(), asked.accept_held_windows);
        let held =
            agents::forget(&self.app, &caller, &target, reason, accepts_held).await.map_err(to_status)?;
        Ok(Response::new(v1::ForgetAgentResponse {
            target: target.to_string(),
            held_until: held.until().map(timestamp_to_wire),
            held_grants: held.grants.iter().map(|(grant, _)| grant.to_string()).collect(),
        }))
    }

    type SessionStream = SessionStream;

    async fn session(
        &self,
        request: Request<Streaming<v1::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let caller = agent(&request)?;
        let arrival = agents::arrive(&self.app, &caller).await.map_err(to_status)?;
        let (app, incoming) = (Arc::clone(&self.app), request.into_inner());
        Ok(Response::new(match arrival {
            Arrival::Admitted(admission) => session::open(app, caller, *admission, incoming).await?,
            Arrival::Unrecorded => session::open_unrecorded(app, caller.target, incoming).await?,
        }))
    }
}

fn wire(agent: AgentView) -> v1::Agent {
    let AgentView { record, host } = agent;
    let status = match (&record.banned, host.online) {
        (Some(_), _) => v1::AgentStatus::Banned,
        (None, true) => v1::AgentStatus::Online,
        (None, false) => v1::AgentStatus::Offline,
    };
    v1::Agent {
        target: record.target.to_string(),
        status: status.into(),
        enrolled_at: Some(timestamp_to_wire(record.enrolled_at)),
        certificate_not_after: Some(timestamp_to_wire(record.certificate_not_after)),
        version: host.version,
        last_seen: host.last_seen.map(timestamp_to_wire),
        cloned: record.cloned.as_ref().map(clone_alarm),
    }
}

/// Returns an alarm as it is sent.
pub(super) fn clone_alarm(alarm: &CloneAlarm) -> v1::CloneAlarm {
    v1::CloneAlarm {
        first_at: Some(timestamp_to_wire(alarm.first_at)),
        last_at: Some(timestamp_to_wire(alarm.last_at)),
        attempts: alarm.attempts,
        reason: alarm.reason.clone(),
    }
}
