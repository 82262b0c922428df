//! `StatusService`.

use std::sync::Arc;

use postern_core::TargetId;
use postern_core::plan::Layer;
use postern_pki::authority::CaCertificate;
use postern_proto::convert::{duration_to_wire, timestamp_to_wire};
use postern_proto::v1;
use postern_proto::v1::status_service_server::StatusService;
use postern_store::CloneAlarm;
use postern_store::coordination::MemberInfo;
use tonic::{Request, Response, Status};

use super::agent::clone_alarm;
use crate::app::status::{
    self, AgentCounts, GrantCounts, Overview, StoredStatus, StuckClose, TaskStatus, Unconfirmed,
};
use crate::app::{App, StoreKind};
use crate::authority::RootKey;
use crate::readiness::in_words;

pub(super) struct StatusApi {
    pub(super) app: Arc<App>,
}

#[tonic::async_trait]
impl StatusService for StatusApi {
    async fn get_status(
        &self,
        _: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusResponse>, Status> {
        let Overview { not_ready, tasks, stored } = status::overview(&self.app).await;
        let kind = match self.app.about.store {
            StoreKind::Embedded => v1::StoreKind::Embedded,
            StoreKind::Redis => v1::StoreKind::Redis,
        };
        let answer = v1::GetStatusResponse {
            replica: self.app.about.name.clone(),
            ready: not_ready.is_empty(),
            not_ready,
            store: Some(v1::StoreStatus { kind: kind.into(), ..v1::StoreStatus::default() }),
            authority: Some(self.authority()),
            tasks: tasks.into_iter().map(task).collect(),
            ..v1::GetStatusResponse::default()
        };
        Ok(Response::new(match stored {
            Ok(stored) => self.with(answer, stored),
            Err(error) => without(answer, error),
        }))
    }
}

impl StatusApi {
    /// Returns how this broker's authority stands.
    fn authority(&self) -> v1::AuthorityStatus {
        let App { authority, standing, .. } = self.app.as_ref();
        let root_key = match standing.root_key(authority) {
            RootKey::AtHand => v1::RootKey::AtHand,
            RootKey::Offline => v1::RootKey::Offline,
            RootKey::Unusable { .. } => v1::RootKey::Unusable,
        };
        v1::AuthorityStatus {
            root: Some(ca_certificate(&authority.root())),
            intermediate: Some(ca_certificate(&authority.intermediate())),
            root_key: root_key.into(),
            warnings: [
                standing.warnings(),
                in_words(&self.app.readiness.shortages()),
                self.app.checkpoints.warnings(),
                self.app.store.forgeries().warnings(),
            ]
            .concat(),
        }
    }

    /// Completes the answer with what the store returned.
    fn with(&self, answer: v1::GetStatusResponse, stored: StoredStatus) -> v1::GetStatusResponse {
        let me = self.app.cluster.coordination.membership();
        let store = v1::StoreStatus {
            audit_records: stored.head.seq,
            audit_head: stored.head.hash.to_string(),
            ..answer.store.unwrap_or_default()
        };
        v1::GetStatusResponse {
            replicas: stored.replicas.into_iter().map(|card| replica(card, &me)).collect(),
            store: Some(store),
            agents: Some(agents(&stored.agents)),
            cloned_agents: stored.cloned_agents.into_iter().map(cloned_agent).collect(),
            grants: Some(grants(&stored.grants)),
            stuck_closes: stored.stuck.into_iter().map(stuck_close).collect(),
            stuck_closes_total: count(stored.stuck_total),
            oldest_unconfirmed: stored.oldest.as_ref().map(unconfirmed),
            ..answer
        }
    }
}

/// Completes the answer with the reason why the store did not answer.
fn without(answer: v1::GetStatusResponse, error: String) -> v1::GetStatusResponse {
    let store = v1::StoreStatus { error, ..answer.store.unwrap_or_default() };
    v1::GetStatusResponse { store: Some(store), ..answer }
}

fn replica(card: MemberInfo, me: &str) -> v1::Replica {
    v1::Replica {
        answers: card.membership == me,
        name: card.name,
        version: card.version,
        started_at: Some(timestamp_to_wire(card.started_at)),
        agents: card.agents,
        targets: card.targets,
        failing_clouds: card.stuck,
        ending: card.ending,
        not_ready: card.not_ready,
        clock_ahead_ms: card.clock_ahead_ms,
        warnings: card.warnings,
    }
}

fn task(task: TaskStatus) -> v1::TaskStatus {
    let TaskStatus { task, every, age, result, overdue, failing } = task;
    v1::TaskStatus {
        task: task.to_owned(),
        every: every.map(duration_to_wire),
        age: age.map(duration_to_wire),
        result,
        overdue,
        failing,
    }
}

fn ca_certificate(certificate: &CaCertificate) -> v1::CaCertificate {
    let CaCertificate { subject, serial, life, .. } = certificate;
    v1::CaCertificate {
        subject: subject.clone(),
        serial: serial.clone(),
        not_before: Some(timestamp_to_wire(life.not_before)),
        not_after: Some(timestamp_to_wire(life.not_after)),
    }
}

fn agents(agents: &AgentCounts) -> v1::AgentCounts {
    let AgentCounts { enrolled, connected, banned, cloned } = *agents;
    v1::AgentCounts { enrolled: count(enrolled), connected, banned: count(banned), cloned: count(cloned) }
}

fn cloned_agent((target, alarm): (TargetId, CloneAlarm)) -> v1::ClonedAgent {
    v1::ClonedAgent { target: target.to_string(), alarm: Some(clone_alarm(&alarm)) }
}

fn grants(grants: &GrantCounts) -> v1::GrantCounts {
    let GrantCounts { pending_approval, opening, active, closing } = *grants;
    v1::GrantCounts { pending_approval, opening, active, closing }
}

fn stuck_close(close: StuckClose) -> v1::StuckClose {
    let layers = close.layers.into_iter().map(|(target, layer, detail)| {
        let layer = match layer {
            Layer::Host => v1::Layer::Host,
            Layer::Cloud => v1::Layer::Cloud,
        };
        v1::UnconfirmedLayer { target: target.to_string(), layer: layer.into(), detail }
    });
    v1::StuckClose {
        grant_id: close.grant.to_string(),
        since: Some(timestamp_to_wire(close.since)),
        age: Some(duration_to_wire(close.age)),
        targets: close.targets.iter().map(ToString::to_string).collect(),
        layers: layers.collect(),
    }
}

fn unconfirmed(waiting: &Unconfirmed) -> v1::UnconfirmedGrant {
    v1::UnconfirmedGrant {
        grant_id: waiting.grant.to_string(),
        closing: waiting.closing,
        since: Some(timestamp_to_wire(waiting.since)),
        age: Some(duration_to_wire(waiting.age)),
    }
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}
