//! One session with the broker: what it wants is handed to the reconciler, and the reconciler's answer goes back.
//!
//! A session that is silent for too long is dead, whatever the network says of it.

use std::pin::Pin;
use std::time::Duration;

use postern_proto::convert;
use postern_proto::v1;
use postern_proto::v1::agent_service_client::AgentServiceClient;
use postern_proto::v1::session_request::Message as ToBroker;
use postern_proto::v1::session_response::Message as FromBroker;
use tokio::sync::mpsc;
use tokio::time::{Interval, MissedTickBehavior, Sleep};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use crate::clock::{self, BootTime};
use crate::desired_state::{DesiredState, anchor};
use crate::error_chain::status_chain;
use crate::host_reconciler::{Answer, ReconcilerHandle, answer_or_pending};
use crate::reports::Reports;

/// How often the agent says that it lives.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5);
/// How long the broker may be silent.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(15);
/// How long the broker may take to open a session.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// Messages that may wait for the network; more than there may be reports unheard.
const OUTGOING_QUEUE: usize = 64;
/// The largest message taken, in bytes: some hundred thousand windows.
const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// A session in progress.
#[derive(Debug)]
pub struct Session {
    outgoing: mpsc::Sender<v1::SessionRequest>,
    incoming: Streaming<v1::SessionResponse>,
    heartbeat: Interval,
    silence: Pin<Box<Sleep>>,
    /// The desired state that the reconciler is busy with.
    pending: Option<(u64, Answer)>,
    got_desired_state: bool,
}

/// A session ended, or none began.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The broker refused, or the connection broke.
    #[error("{}", status_chain(.0))]
    Broker(Box<Status>),
    /// The broker ended the stream without a word.
    #[error("the broker ended the session")]
    Ended,
    /// Nothing was heard.
    #[error("the broker has been silent for {} s", SILENCE_TIMEOUT.as_secs())]
    Silent,
    /// The network takes nothing any more.
    #[error("the broker has stopped listening")]
    Stuck,
    /// It did not open in time.
    #[error("the broker did not open a session within {} s", OPEN_TIMEOUT.as_secs())]
    NotOpened,
}

impl Session {
    /// Opens a session.
    ///
    /// # Errors
    /// The broker cannot be reached, refuses, or takes too long.
    pub async fn open(channel: Channel, reconciler: &ReconcilerHandle) -> Result<Self, SessionError> {
        let (outgoing, queue) = mpsc::channel(OUTGOING_QUEUE);
        let hello = v1::Hello {
            agent_version: env!("CARGO_PKG_VERSION").into(),
            boot_id: clock::boot_id().to_string(),
            last_generation: reconciler.begin_session().await,
        };
        // Stamped only as it goes out: making the connection may take seconds, and by so much windows would end early
        // until the first heartbeat.
        let hello = tokio_stream::once(ToBroker::Hello(hello)).map(stamped);
        let mut client = AgentServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let opening = client.session(hello.chain(ReceiverStream::new(queue)));
        let opened =
            tokio::time::timeout(OPEN_TIMEOUT, opening).await.map_err(|_| SessionError::NotOpened)?;
        let incoming = opened.map_err(stream_error)?.into_inner();
        let mut heartbeat = tokio::time::interval(HEARTBEAT_INTERVAL);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        heartbeat.reset();
        let silence = Box::pin(tokio::time::sleep(SILENCE_TIMEOUT));
        Ok(Self { outgoing, incoming, heartbeat, silence, pending: None, got_desired_state: false })
    }

    /// Whether the broker has told a desired state in this session.
    pub fn got_desired_state(&self) -> bool {
        self.got_desired_state
    }

    /// Runs until the session ends, and returns why. It may be dropped at any await and run again.
    pub async fn run(&mut self, reconciler: &ReconcilerHandle, reports: &mut Reports) -> SessionError {
        loop {
            if let Err(end) = self.step(reconciler, reports).await {
                return end;
            }
        }
    }

    async fn step(
        &mut self,
        reconciler: &ReconcilerHandle,
        reports: &mut Reports,
    ) -> Result<(), SessionError> {
        tokio::select! {
            biased;
            (generation, answer) = pending_answer(&mut self.pending), if self.pending.is_some() => {
                self.pending = None;
                // While the reconciler worked, nobody listened.
                self.reset_silence();
                let error = answer.err().unwrap_or_default();
                self.send(ToBroker::Applied(v1::Applied { generation, error })).map(drop)
            }
            // One at a time: the next desired state waits in the stream until the reconciler is done with this one.
            message = self.incoming.message(), if self.pending.is_none() => {
                let message = message.map_err(stream_error)?.ok_or(SessionError::Ended)?;
                self.reset_silence();
                reports.acknowledged(BootTime(message.heard));
                self.receive(message, reconciler)
            }
            () = &mut self.silence, if self.pending.is_none() => Err(SessionError::Silent),
            _ = self.heartbeat.tick() => self.send(ToBroker::Heartbeat(v1::Heartbeat {})).map(drop),
            report = reports.next() => {
                let sent_at = self.send(ToBroker::Tampering(report.to_wire()));
                // Sent or not, it is the queue's again: what was not heard is sent in the next session.
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
        let Some(FromBroker::Desired(wire)) = &message.message else { return Ok(()) };
        self.got_desired_state = true;
        if wire.keep_protection {
            tracing::warn!(
                generation = wire.generation,
                "the broker does not know this host: every window is closed"
            );
            self.pending = Some((wire.generation, reconciler.close_windows(wire.generation)));
            return Ok(());
        }
        // An age that is not told is taken for none: then every window ends the earlier.
        let heard_ago = convert::duration("heard_ago", message.heard_ago.as_ref()).unwrap_or_default();
        let anchor = anchor(BootTime(message.heard), heard_ago, clock::boottime());
        match DesiredState::from_wire(wire, anchor) {
            Ok(desired) => {
                self.pending = Some((desired.generation, reconciler.accept(desired)));
                Ok(())
            }
            Err(invalid) => {
                tracing::error!(generation = wire.generation, error = %invalid, "the broker told what no host can hold");
                let applied = v1::Applied { generation: wire.generation, error: invalid.to_string() };
                self.send(ToBroker::Applied(applied)).map(drop)
            }
        }
    }

    /// Sends a message, without waiting: [`Self::run`] may be dropped while it waits. Returns the stamp it carries.
    fn send(&mut self, message: ToBroker) -> Result<BootTime, SessionError> {
        let request = stamped(message);
        let stamp = BootTime(request.sent_at);
        self.outgoing.try_send(request).map_err(|_| SessionError::Stuck)?;
        Ok(stamp)
    }

    fn reset_silence(&mut self) {
        self.silence.as_mut().reset(tokio::time::Instant::now() + SILENCE_TIMEOUT);
    }
}

fn stamped(message: ToBroker) -> v1::SessionRequest {
    v1::SessionRequest { sent_at: clock::boottime().0, message: Some(message) }
}

/// The reconciler's answer that is pending. Safe to cancel.
async fn pending_answer(pending: &mut Option<(u64, Answer)>) -> (u64, Result<(), String>) {
    match pending {
        Some((generation, answer)) => (*generation, answer_or_pending(answer).await),
        None => std::future::pending().await,
    }
}

fn stream_error(status: Status) -> SessionError {
    SessionError::Broker(Box::new(status))
}
