//! A session with the broker: receives desired states, hands them to the reconciler, and sends back its answers.
//!
//! A session is one bidirectional stream. The agent opens it with a *hello* that names the last generation it accepted;
//! the broker answers with the whole desired state, and sends it again whenever it changes. The agent sends for each one
//! an *applied* with the generation and, where the state was refused, the error.
//!
//! Every message of the agent carries a *stamp*: the agent's `CLOCK_BOOTTIME` at sending. Every message of the broker
//! hands back the stamp of the last message that it received (`heard`), with the time since (`heard_ago`), and tells its own time. From
//! these [`crate::broker_clock`] derives a moment that is not after the broker's sending, so that no delay lengthens a window (I2).
//! The broker's wall clock shows whether this host's own is right; the status file has the difference. The same stamp acknowledges
//! reports ([`crate::reports`]).
//!
//! The session applies one state at a time. While the reconciler works, the next message waits in the stream, and the
//! session neither reads nor counts the broker's silence.
//!
//! The agent reports its phase on the way to enforcement ([`crate::enforcement`]) unless it is confirmed, when the session begins, and
//! after each change.
//!
//! A broker also sends checkpoints of its audit log, which [`crate::checkpoint`] keeps.
//!
//! - A state that cannot be parsed is answered with the field that is wrong; the earlier state stays.
//! - A message that is larger than the agent's bounds need ([`StateLimits::message_bytes`]) ends the session.
//! - A state with `keep_protection` comes from a broker that does not know this host, or cannot read its policies: the agent
//!   closes every window that is not in it, and keeps its ports protected.
//! - A request for a renewal goes to [`crate::renew`]. The broker sends one when the authority has a new root or a revoked intermediate,
//!   and reads in the hello which roots this host trusts.
//! - A broker that is silent for 15 s, or that does not read for so long that the outgoing queue is full, is dead,
//!   whatever the network reports. The session ends with an error, and [`crate::connection`] opens the next.
//! - An answer that is lost with its session is not sent again: the hello of the next session says what was accepted, and
//!   the broker sends the state again.

use std::os::unix::fs::MetadataExt as _;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use postern_proto::convert;
use postern_proto::v1;
use postern_proto::v1::agent_service_client::AgentServiceClient;
use postern_proto::v1::session_request::Message as ToBroker;
use postern_proto::v1::session_response::Message as FromBroker;
use postern_runtime::clock::instant;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Interval, MissedTickBehavior, Sleep};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use crate::broker_clock::{BrokerClock, Placed, Stamps, wall_ahead};
use crate::checkpoint::CheckpointHandle;
use crate::clock::{self, BootTime};
use crate::desired_state::DesiredState;
use crate::enforcement::PhaseName;
use crate::host_reconciler::{CommandAnswer, FollowedGenerations, ReconcilerHandle, answer_or_pending};
use crate::limits::StateLimits;
use crate::reports::Reports;
use crate::status::{RunningStatus, StatusFile};
use crate::status_chain::{is_certificate_refused, is_connection_lost, status_chain};

/// The interval of heartbeats.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5);
/// The silence of the broker after which a session is dead.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(15);
/// The longest wait for the broker to open a session.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// The most messages that may wait for the network; more than the reports that may be unacknowledged.
const OUTGOING_QUEUE: usize = 64;

/// A session in progress.
#[derive(Debug)]
pub struct BrokerSession {
    outgoing: mpsc::Sender<v1::SessionRequest>,
    incoming: Streaming<v1::SessionResponse>,
    heartbeat: Interval,
    silence: Pin<Box<Sleep>>,
    /// The generation that the reconciler is applying, with its answer to come.
    pending: Option<(u64, CommandAnswer)>,
    got_desired_state: bool,
    renewal: Arc<Notify>,
    broker_clock: BrokerClock,
    status_file: Arc<StatusFile>,
    changes: watch::Receiver<RunningStatus>,
    /// The phase of this host on its way to enforcement, as the broker knows it: a session begins as that of a confirmed one.
    reported_phase: PhaseName,
}

/// The parts of a session that concern the certificates of both sides.
#[derive(Debug, Default)]
pub struct BrokerTrust {
    /// The roots that this host trusts, by the hashes of their public keys, for the hello.
    pub trusted_roots: Vec<String>,
    /// Notified when the broker asks for a renewal of this host's certificate.
    pub renewal: Arc<Notify>,
}

/// A session ended, or none began.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The broker refused, or the connection broke.
    #[error("{}", status_chain(.0))]
    Broker(Box<Status>),
    /// The broker ended the stream without an error.
    #[error("the broker ended the session")]
    Ended,
    /// The broker sent nothing for too long.
    #[error("the broker has been silent for {} s", SILENCE_TIMEOUT.as_secs())]
    Silent,
    /// The hypervisor paused this host, whose clocks lost time: windows would end late.
    #[error("this machine was paused for {:.1} s; the agent asks the broker for the true ends of windows", .0.as_secs_f64())]
    LostTime(Duration),
    /// The queue to the network is full.
    #[error("the broker has stopped reading")]
    Stuck,
    /// The broker did not open a session in time.
    #[error("the broker did not open a session within {} s", OPEN_TIMEOUT.as_secs())]
    NotOpened,
}

impl SessionError {
    /// Reports whether the broker has refused the certificate itself: by the broker's clock it has ended.
    pub fn is_certificate_refused(&self) -> bool {
        matches!(self, Self::Broker(status) if is_certificate_refused(status))
    }

    /// Reports whether the connection failed, or was closed, before the broker could answer.
    pub fn is_connection_lost(&self) -> bool {
        matches!(self, Self::Broker(status) if is_connection_lost(status))
    }
}

impl BrokerSession {
    /// Opens a session. `followed` is what the reconciler returned when it began the session, and `checkpoint` the line of the kept
    /// checkpoint of the audit log; empty if there is none.
    ///
    /// # Errors
    /// The broker cannot be reached, refuses, or takes too long.
    pub async fn open(
        channel: Channel,
        followed: FollowedGenerations,
        limits: StateLimits,
        link: BrokerTrust,
        checkpoint: String,
        status_file: Arc<StatusFile>,
    ) -> Result<Self, SessionError> {
        let BrokerTrust { trusted_roots, renewal } = link;
        let (outgoing, queue) = mpsc::channel(OUTGOING_QUEUE);
        let hello = v1::Hello {
            agent_version: env!("CARGO_PKG_VERSION").into(),
            boot_id: machine_boot(),
            last_generation: followed.state,
            policy_generation: followed.policies,
            trusted_roots,
            checkpoint,
        };
        // Stamped only when it is sent: connecting may take seconds, and with an earlier stamp windows would end that much
        // early until the first heartbeat.
        let hello = tokio_stream::once(ToBroker::Hello(hello)).map(stamped);
        let mut client = AgentServiceClient::new(channel).max_decoding_message_size(limits.message_bytes());
        let opening = client.session(hello.chain(ReceiverStream::new(queue)));
        let opened =
            tokio::time::timeout(OPEN_TIMEOUT, opening).await.map_err(|_| SessionError::NotOpened)?;
        let incoming = opened.map_err(stream_error)?.into_inner();
        let mut heartbeat = tokio::time::interval(HEARTBEAT_INTERVAL);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        heartbeat.reset();
        let silence = Box::pin(tokio::time::sleep(SILENCE_TIMEOUT));
        Ok(Self {
            outgoing,
            incoming,
            heartbeat,
            silence,
            pending: None,
            got_desired_state: false,
            renewal,
            broker_clock: BrokerClock::default(),
            changes: status_file.subscribe(),
            reported_phase: PhaseName::Confirmed,
            status_file,
        })
    }

    /// Reports whether the broker has sent a desired state in this session.
    pub fn got_desired_state(&self) -> bool {
        self.got_desired_state
    }

    /// Runs until the session ends, and returns the reason. The future may be dropped at any await and run again.
    pub async fn run(
        &mut self,
        reconciler: &ReconcilerHandle,
        reports: &mut Reports,
        checkpoints: &CheckpointHandle,
    ) -> SessionError {
        loop {
            if let Err(end) = self.step(reconciler, reports, checkpoints).await {
                return end;
            }
        }
    }

    async fn step(
        &mut self,
        reconciler: &ReconcilerHandle,
        reports: &mut Reports,
        checkpoints: &CheckpointHandle,
    ) -> Result<(), SessionError> {
        tokio::select! {
            biased;
            (generation, answer) = pending_answer(&mut self.pending), if self.pending.is_some() => {
                self.pending = None;
                // The session did not read while the reconciler worked.
                self.reset_silence();
                let error = answer.err().unwrap_or_default();
                self.send(ToBroker::Applied(v1::Applied { generation, error })).map(drop)
            }
            // One state at a time: the next waits in the stream until the reconciler is done with this one.
            message = self.incoming.message(), if self.pending.is_none() => {
                let message = message.map_err(stream_error)?.ok_or(SessionError::Ended)?;
                self.reset_silence();
                reports.acknowledged(BootTime(message.heard));
                if let Some(FromBroker::Checkpoint(checkpoint)) = &message.message {
                    checkpoints.receive(checkpoint.line.clone());
                }
                self.receive(message, reconciler)
            }
            () = &mut self.silence, if self.pending.is_none() => Err(SessionError::Silent),
            // The sender is this session's own status file.
            Ok(()) = self.changes.changed() => self.report_phase(),
            _ = self.heartbeat.tick() => {
                checkpoints.flush();
                self.send(ToBroker::Heartbeat(v1::Heartbeat {})).map(drop)
            }
            report = reports.next() => {
                let sent_at = self.send(report.to_wire());
                // Sent or not, the report goes back to the queue, which sends it in the next session unless acknowledged.
                reports.sent(*sent_at.as_ref().unwrap_or(&BootTime(u64::MAX)), report);
                sent_at.map(drop)
            }
        }
    }

    fn receive(
        &mut self,
        message: v1::SessionResponse,
        reconciler: &ReconcilerHandle,
    ) -> Result<(), SessionError> {
        let now = clock::moment();
        // A missing age counts as zero: then every window ends earlier, never later.
        let heard_ago = convert::duration("heard_ago", message.heard_ago.as_ref()).unwrap_or_default();
        let stamps = Stamps { heard: BootTime(message.heard), heard_ago, sent_at: message.sent_at };
        let Placed { anchor, lost } = self.broker_clock.place(stamps, now.boottime);
        if let Some(wall) = convert::optional_timestamp(message.wall_clock.as_ref()) {
            self.compare_clocks(wall_ahead(now.wall, wall, now.boottime.since(anchor)));
        }
        if let Some(lost) = lost {
            return Err(SessionError::LostTime(lost));
        }
        let wire = match &message.message {
            Some(FromBroker::Desired(wire)) => wire,
            Some(FromBroker::Renewal(_)) => {
                self.renewal.notify_one();
                return Ok(());
            }
            // The session has handed a checkpoint to its keeper.
            Some(FromBroker::Checkpoint(_) | FromBroker::Heartbeat(_)) | None => return Ok(()),
        };
        self.got_desired_state = true;
        let generation = wire.generation;
        let answer = if wire.keep_protection {
            let windows = DesiredState::windows_from_wire(wire, anchor);
            windows.map(|windows| reconciler.keep_protection(generation, windows))
        } else {
            DesiredState::from_wire(wire, anchor).map(|desired| reconciler.accept(desired))
        };
        match answer {
            Ok(answer) => {
                self.pending = Some((generation, answer));
                Ok(())
            }
            Err(invalid) => {
                tracing::error!(generation = wire.generation, error = %invalid, "the broker sent a desired state that is not valid");
                let applied = v1::Applied { generation: wire.generation, error: invalid.to_string() };
                self.send(ToBroker::Applied(applied)).map(drop)
            }
        }
    }

    /// Sends the phase of this host on its way to enforcement, if the broker does not know it.
    fn report_phase(&mut self) -> Result<(), SessionError> {
        let phase = self.changes.borrow_and_update().phase;
        let Some(phase) = phase.filter(|phase| self.reported_phase != *phase) else { return Ok(()) };
        self.reported_phase = phase;
        let phase = match phase {
            PhaseName::Untried => v1::EnforcementPhase::Untried,
            PhaseName::Trial => v1::EnforcementPhase::Trial,
            PhaseName::Lapsed => v1::EnforcementPhase::Lapsed,
            PhaseName::Confirmed => v1::EnforcementPhase::Confirmed,
        };
        self.send(ToBroker::Enforcement(v1::EnforcementReport { phase: phase.into() })).map(drop)
    }

    /// Notes the difference of the wall clocks, and warns once when it becomes large.
    fn compare_clocks(&self, ahead: SignedDuration) {
        let seconds_ahead = (ahead + SignedDuration::from_millis(500 * i64::from(ahead.signum()))).as_secs();
        if self.status_file.set_clock_ahead(seconds_ahead) {
            tracing::warn!(
                event = "clock.differs",
                seconds_ahead,
                "the wall clock of this host differs from the broker's; set it and keep it set (NTP): certificates depend on it"
            );
        }
    }

    /// Sends a message without waiting, because [`Self::run`] may be dropped at an await. Returns the stamp of the message.
    fn send(&mut self, message: ToBroker) -> Result<BootTime, SessionError> {
        let request = stamped(message);
        let stamp = BootTime(request.sent_at);
        self.outgoing.try_send(request).map_err(|_| SessionError::Stuck)?;
        Ok(stamp)
    }

    fn reset_silence(&mut self) {
        self.silence.as_mut().reset(instant() + SILENCE_TIMEOUT);
    }
}

/// Returns the id of this boot of this machine, by which the broker tells two machines with one key apart. Containers share the boot of
/// their host, and each has a network namespace of its own, as it has a table, so the id names both.
fn machine_boot() -> String {
    let boot = clock::boot_id().to_string();
    match std::fs::metadata("/proc/self/ns/net") {
        Ok(namespace) if !boot.is_empty() => format!("{boot}:{}", namespace.ino()),
        Ok(_) | Err(_) => boot,
    }
}

fn stamped(message: ToBroker) -> v1::SessionRequest {
    v1::SessionRequest { sent_at: clock::boottime().0, message: Some(message) }
}

/// Waits for the reconciler's answer to the pending state. Safe to cancel.
async fn pending_answer(pending: &mut Option<(u64, CommandAnswer)>) -> (u64, Result<(), String>) {
    match pending {
        Some((generation, answer)) => (*generation, answer_or_pending(answer).await),
        None => std::future::pending().await,
    }
}

fn stream_error(status: Status) -> SessionError {
    SessionError::Broker(Box::new(status))
}
