//! `AgentService.Session`: the stream between an agent and the broker.
//!
//! The agent opens it with a hello, and then sends heartbeats, confirmations of what it has applied, and reports of tampering.
//! The broker passes them to its sessions ([`crate::layers::host::sessions`]) and sends the desired state of the target, whole,
//! whenever it changes. Each window goes out with the time that remains of it, as the clocks of the two may differ.
//!
//! The broker ends the stream if the agent is silent for too long, at the end of its certificate, or when it bans the agent or
//! the agent connects again. The agent then connects again by itself; its windows end in its kernel in any case (I2).
//!
//! A session has no task and no buffer: the response stream itself reads the request stream, so an idle session costs little
//! more than its connection.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt as _, stream};
use jiff::Timestamp;
use postern_core::text::is_invisible;
use postern_core::{KeyHash, TargetId};
use postern_pki::SignedCheckpoint;
use postern_proto::convert::{duration, duration_to_wire, mode_to_wire, port_to_wire, timestamp_to_wire};
use postern_proto::status::{invalid, plain};
use postern_proto::v1;
use postern_proto::v1::session_request::Message as In;
use postern_proto::v1::session_response::Message as Out;
use tonic::{Code, Status, Streaming};

use super::checkpoint_feed::CheckpointFeed;
use crate::api::error::to_status;
use crate::api::request::report_text;
use crate::app::App;
use crate::app::agents::{
    Admission, AgentCaller, AgentRoots, TamperingReport, admitted, connect, is_renewal_wanted,
    record_contradiction, record_roots, record_tampering, record_unknown, take_kept_checkpoint,
};
use crate::clock::{boottime, wall};
use crate::layers::host::desired_state::{Outgoing, PushedState};
use crate::layers::host::sessions::{AgentSession, EnforcementPhase};
use crate::limits::line_due;

pub(super) type SessionStream = Pin<Box<dyn Stream<Item = Result<v1::SessionResponse, Status>> + Send>>;

/// The time in which the first message must come.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// The least time between two requests for a renewal in one session.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(60);
/// The silence after which the broker ends a session. An agent sends a heartbeat every 5 s.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(20);

/// Reads the hello, and opens the stream.
pub(super) async fn open(
    app: Arc<App>,
    caller: AgentCaller,
    admission: Admission,
    mut incoming: Streaming<v1::SessionRequest>,
) -> Result<SessionStream, Status> {
    let no_hello =
        || plain(Code::InvalidArgument, "HELLO_EXPECTED", "the first message of a session is a hello");
    let first = tokio::time::timeout(HELLO_TIMEOUT, incoming.message()).await.map_err(|_| no_hello())??;
    let first = first.ok_or_else(no_hello)?;
    let Some(In::Hello(hello)) = first.message else { return Err(no_hello()) };
    let version = report_text("hello.agent_version", &hello.agent_version).map_err(|e| invalid(&e))?;
    // Another text than a boot id names no machine.
    let boot_id = report_text("hello.boot_id", &hello.boot_id).unwrap_or_default();
    let of_certificate = admission.certificate_root(&caller);
    let session = connect(&app, &caller, admission, version.clone(), &boot_id).await.map_err(to_status)?;
    session.has_followed(hello.policy_generation);
    app.store.agent_follows(hello.policy_generation);
    take_kept_checkpoint(&app, &hello.checkpoint);
    let checkpoints = CheckpointFeed::new(app.checkpoints.subscribe());
    let target = caller.target.clone();
    if line_due(&target) {
        tracing::info!(%target, version, last_generation = hello.last_generation, "agent connected");
    }
    // A text that is no hash names no root.
    let trusted: Vec<KeyHash> = hello.trusted_roots.iter().filter_map(|root| root.parse().ok()).collect();
    record_roots(&app, &caller, &trusted).await.map_err(to_status)?;
    let open = OpenSession {
        app,
        target,
        certificate_ends: ends_at(caller.certificate_not_after),
        caller,
        roots: AgentRoots { trusted, of_certificate },
        renewal_asked_at: None,
        incoming,
        session,
        checkpoints,
        last: LastMessage { sent_at: first.sent_at, at: boottime() },
    };
    Ok(Box::pin(stream::unfold(Some(open), |open| async move {
        let mut open = open?;
        match open.next().await {
            Ok(Some(message)) => {
                let response = open.respond(message);
                Some((Ok(response), Some(open)))
            }
            Ok(None) => None,
            Err(end) => Some((Err(end), None)),
        }
    })))
}

/// Opens a session with an agent that has a certificate of this authority and no record: the store has lost the record, and
/// with it the grants of the agent's windows, or an administrator had the agent forgotten. The broker has the agent close its
/// windows and keep its protection (I1), and then ends the session.
pub(super) async fn open_unrecorded(
    app: Arc<App>,
    target: TargetId,
    mut incoming: Streaming<v1::SessionRequest>,
) -> Result<SessionStream, Status> {
    let heard = tokio::time::timeout(HELLO_TIMEOUT, incoming.message()).await;
    let heard = heard.ok().transpose()?.flatten().map_or(0, |first| first.sent_at);
    let generation = app.store.audit_head().await.map_err(|error| to_status(error.into()))?.seq;
    let desired = v1::DesiredState { generation, keep_protection: true, ..v1::DesiredState::default() };
    let first = response(heard, Duration::ZERO, Out::Desired(desired));
    let end = async move {
        let answered = tokio::time::timeout(HELLO_TIMEOUT, answer(&mut incoming)).await.unwrap_or(false);
        if let Err(error) = record_unknown(&app, &target, answered).await {
            tracing::error!(%target, error = &error as &dyn std::error::Error, "cannot record an unknown agent in the audit log");
        }
        // The answer to every agent without a record.
        Err(match admitted(&app, &target).await {
            Ok(_) => plain(Code::Aborted, "SESSION_ENDED", "the agent is known again; connect again"),
            Err(error) => to_status(error),
        })
    };
    Ok(Box::pin(stream::once(std::future::ready(Ok(first))).chain(stream::once(end))))
}

/// Waits for the agent's confirmation. Reports whether it applied the state without an error.
async fn answer(incoming: &mut Streaming<v1::SessionRequest>) -> bool {
    while let Ok(Some(message)) = incoming.message().await {
        if let Some(In::Applied(v1::Applied { error, .. })) = message.message {
            return error.is_empty();
        }
    }
    false
}

/// Returns the end of a certificate, as [`boottime`] counts.
fn ends_at(not_after: Timestamp) -> Duration {
    boottime().saturating_add(not_after.duration_since(wall()).try_into().unwrap_or_default())
}

struct OpenSession {
    app: Arc<App>,
    target: TargetId,
    caller: AgentCaller,
    /// The roots that the agent trusts, and that of its certificate.
    roots: AgentRoots,
    /// The time of the last request for a renewal, as [`boottime`] counts.
    renewal_asked_at: Option<Duration>,
    /// The end of the agent's certificate, as [`boottime`] counts: a step of the wall clock ends no session.
    certificate_ends: Duration,
    incoming: Streaming<v1::SessionRequest>,
    session: AgentSession,
    checkpoints: CheckpointFeed,
    last: LastMessage,
}

/// The last message of the agent: the time that the agent put on it, and the broker's time of its arrival.
struct LastMessage {
    sent_at: u64,
    at: Duration,
}

enum Reply {
    Heartbeat,
    Renewal,
    Desired(Arc<PushedState>),
    Checkpoint(Arc<SignedCheckpoint>),
}

impl OpenSession {
    async fn next(&mut self) -> Result<Option<Reply>, Status> {
        loop {
            let ended = |reason: &str| Err(plain(Code::Aborted, "SESSION_ENDED", reason));
            tokio::select! {
                outgoing = self.session.next() => match outgoing {
                    Outgoing::Nothing => {}
                    Outgoing::Push(state) => return Ok(Some(Reply::Desired(state))),
                    Outgoing::End(reason) => return ended(reason),
                },
                message = self.incoming.message() => match message? {
                    None => return Ok(None),
                    Some(message) => {
                        self.last = LastMessage { sent_at: message.sent_at, at: boottime() };
                        if boottime() >= self.certificate_ends {
                            return ended("your certificate has expired; renew it and connect again");
                        }
                        if let Some(reply) = self.take(message).await? {
                            return Ok(Some(reply));
                        }
                    }
                },
                checkpoint = self.checkpoints.next() => return Ok(Some(Reply::Checkpoint(checkpoint))),
                () = tokio::time::sleep(SILENCE_TIMEOUT) => return ended("the agent has sent nothing for too long"),
            }
        }
    }

    async fn take(&mut self, message: v1::SessionRequest) -> Result<Option<Reply>, Status> {
        match message.message {
            Some(In::Heartbeat(_)) => {
                self.session.mark_seen();
                Ok(Some(self.heartbeat()))
            }
            Some(In::Applied(v1::Applied { generation, error })) => {
                // People read an agent's error: keep its printable characters.
                let error: String =
                    error.chars().map(|c| if is_invisible(c) { ' ' } else { c }).take(300).collect();
                self.session.applied(generation, Some(error).filter(|error| !error.is_empty()));
                Ok(None)
            }
            Some(In::Tampering(report)) => {
                let report = TamperingReport {
                    what: report_text("tampering.what", &report.what).map_err(|e| invalid(&e))?,
                    process: report_text("tampering.process", &report.process).map_err(|e| invalid(&e))?,
                    pid: report.pid,
                    exposed_for: duration("tampering.exposed_for", report.exposed_for.as_ref())
                        .unwrap_or_default(),
                };
                record_tampering(&self.app, &self.target, report).await.map_err(to_status)?;
                Ok(None)
            }
            Some(In::CheckpointReport(v1::CheckpointReport { kept, received })) => {
                // The rest of a session's reports says the same.
                if self.checkpoints.takes_report() {
                    record_contradiction(&self.app, &self.target, &kept, &received)
                        .await
                        .map_err(to_status)?;
                }
                Ok(None)
            }
            Some(In::Enforcement(report)) => {
                self.session.set_phase(match report.phase() {
                    v1::EnforcementPhase::Trial => EnforcementPhase::Trial,
                    v1::EnforcementPhase::Lapsed => EnforcementPhase::Lapsed,
                    v1::EnforcementPhase::Unspecified
                    | v1::EnforcementPhase::Untried
                    | v1::EnforcementPhase::Confirmed => EnforcementPhase::Follows,
                });
                Ok(None)
            }
            // A second hello carries nothing new; a message of a newer agent is not known here.
            Some(In::Hello(_)) | None => Ok(None),
        }
    }

    /// Returns the answer to a heartbeat: a request for a renewal, if one is due.
    fn heartbeat(&mut self) -> Reply {
        let now = boottime();
        let is_fresh = self.renewal_asked_at.is_some_and(|at| now.saturating_sub(at) < RENEWAL_INTERVAL);
        if is_fresh || !is_renewal_wanted(&self.app, &self.caller, &self.roots) {
            return Reply::Heartbeat;
        }
        self.renewal_asked_at = Some(now);
        Reply::Renewal
    }

    /// Makes the message as it goes out now: the remaining time of each window counts from this moment.
    fn respond(&self, reply: Reply) -> v1::SessionResponse {
        let message = match reply {
            Reply::Heartbeat => Out::Heartbeat(v1::HeartbeatReply {}),
            Reply::Renewal => Out::Renewal(v1::RenewalRequested {}),
            Reply::Desired(state) => Out::Desired(wire(&state, self.app.clock.now())),
            Reply::Checkpoint(checkpoint) => {
                Out::Checkpoint(v1::AuditCheckpoint { line: checkpoint.to_string() })
            }
        };
        response(self.last.sent_at, boottime().saturating_sub(self.last.at), message)
    }
}

/// Makes a message with the broker's time. An agent counts ends from it: see `agent/src/broker_clock.rs`.
fn response(heard: u64, heard_ago: Duration, message: Out) -> v1::SessionResponse {
    v1::SessionResponse {
        heard,
        heard_ago: Some(duration_to_wire(heard_ago)),
        message: Some(message),
        sent_at: u64::try_from(boottime().as_nanos()).unwrap_or_default(),
        wall_clock: Some(timestamp_to_wire(wall())),
    }
}

fn wire(state: &PushedState, now: Timestamp) -> v1::DesiredState {
    let left = |not_after: Timestamp| Duration::try_from(not_after.duration_since(now)).unwrap_or_default();
    let desired = &state.desired;
    let protection = desired.protection.as_ref();
    v1::DesiredState {
        keep_protection: desired.protection.is_none(),
        generation: state.generation,
        policy_generation: state.policies,
        mode: protection.map_or(v1::Mode::Unspecified, |protection| mode_to_wire(protection.mode)).into(),
        ports: protection.iter().flat_map(|it| it.ports.iter().copied()).map(port_to_wire).collect(),
        windows: desired
            .windows
            .iter()
            .map(|window| v1::HostWindow {
                grant_id: window.grant.to_string(),
                port: Some(port_to_wire(window.port)),
                source: window.source.to_string(),
                remaining: Some(duration_to_wire(left(window.not_after))),
            })
            .collect(),
    }
}
