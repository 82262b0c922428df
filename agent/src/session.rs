//! One session with the broker: what it wants is handed to the keeper, and the keeper's answer goes back.
//!
//! A session that is silent for too long is dead, whatever the network says of it.

use std::pin::Pin;
use std::time::Duration;

use postern_proto::convert;
use postern_proto::v1;
use postern_proto::v1::agent_service_client::AgentServiceClient;
use postern_proto::v1::session_request::Message as Out;
use postern_proto::v1::session_response::Message as In;
use tokio::sync::mpsc;
use tokio::time::{Interval, MissedTickBehavior, Sleep};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use crate::clock::{self, BootTime};
use crate::desired::{Desired, anchor};
use crate::explain;
use crate::keeper::{Answer, KeeperHandle, forever};
use crate::reports::Reports;

/// How often the agent says that it lives.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// How long the broker may be silent.
const SILENCE: Duration = Duration::from_secs(15);
/// How long the broker may take to open a session.
const OPENING: Duration = Duration::from_secs(10);
/// Messages that may wait for the network; more than there may be reports unheard.
const QUEUE: usize = 64;
/// The largest message taken, in bytes: some hundred thousand windows.
const LARGEST: usize = 64 << 20;

/// A session in progress.
#[derive(Debug)]
pub struct Session {
    outgoing: mpsc::Sender<v1::SessionRequest>,
    incoming: Streaming<v1::SessionResponse>,
    heartbeat: Interval,
    silence: Pin<Box<Sleep>>,
    /// The desired state that the keeper is busy with.
    asked: Option<(u64, Answer)>,
    told: bool,
}

/// A session ended, or none began.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The broker refused, or the connection broke.
    #[error("{}", explain::status(.0))]
    Broker(Box<Status>),
    /// The broker ended the stream without a word.
    #[error("the broker ended the session")]
    Ended,
    /// Nothing was heard.
    #[error("the broker has been silent for {} s", SILENCE.as_secs())]
    Silent,
    /// The network takes nothing any more.
    #[error("the broker has stopped listening")]
    Stuck,
    /// It did not open in time.
    #[error("the broker did not open a session within {} s", OPENING.as_secs())]
    NotOpened,
}

impl Session {
    /// Opens a session.
    ///
    /// # Errors
    /// The broker cannot be reached, refuses, or takes too long.
    pub async fn open(channel: Channel, keeper: &KeeperHandle) -> Result<Self, SessionError> {
        let (outgoing, queue) = mpsc::channel(QUEUE);
        let hello = v1::Hello {
            agent_version: env!("CARGO_PKG_VERSION").into(),
            boot_id: clock::boot_id().to_string(),
            last_generation: keeper.begin_session().await,
        };
        // Stamped only as it goes out: making the connection may take seconds, and by so much windows would end early
        // until the first heartbeat.
        let hello = tokio_stream::once(Out::Hello(hello)).map(stamped);
        let mut client = AgentServiceClient::new(channel).max_decoding_message_size(LARGEST);
        let opening = client.session(hello.chain(ReceiverStream::new(queue)));
        let opened = tokio::time::timeout(OPENING, opening).await.map_err(|_| SessionError::NotOpened)?;
        let incoming = opened.map_err(broken)?.into_inner();
        let mut heartbeat = tokio::time::interval(HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        heartbeat.reset();
        let silence = Box::pin(tokio::time::sleep(SILENCE));
        Ok(Self { outgoing, incoming, heartbeat, silence, asked: None, told: false })
    }

    /// Whether the broker has told a desired state in this session.
    pub fn was_told(&self) -> bool {
        self.told
    }

    /// Runs until the session ends, and returns why. It may be dropped at any await and run again.
    pub async fn run(&mut self, keeper: &KeeperHandle, reports: &mut Reports) -> SessionError {
        loop {
            if let Err(end) = self.step(keeper, reports).await {
                return end;
            }
        }
    }

    async fn step(&mut self, keeper: &KeeperHandle, reports: &mut Reports) -> Result<(), SessionError> {
        tokio::select! {
            biased;
            (generation, answer) = answered(&mut self.asked), if self.asked.is_some() => {
                self.asked = None;
                // While the keeper worked, nobody listened.
                self.heard_something();
                let error = answer.err().unwrap_or_default();
                self.say(Out::Applied(v1::Applied { generation, error })).map(drop)
            }
            // One at a time: the next desired state waits in the stream until the keeper is done with this one.
            message = self.incoming.message(), if self.asked.is_none() => {
                let message = message.map_err(broken)?.ok_or(SessionError::Ended)?;
                self.heard_something();
                reports.heard(BootTime(message.heard));
                self.take(message, keeper)
            }
            () = &mut self.silence, if self.asked.is_none() => Err(SessionError::Silent),
            _ = self.heartbeat.tick() => self.say(Out::Heartbeat(v1::Heartbeat {})).map(drop),
            report = reports.next() => {
                let sent_at = self.say(Out::Tampering(report.to_wire()));
                // Sent or not, it is the queue's again: what was not heard is sent in the next session.
                reports.sent(*sent_at.as_ref().unwrap_or(&BootTime(u64::MAX)), report);
                sent_at.map(drop)
            }
        }
    }

    fn take(&mut self, message: v1::SessionResponse, keeper: &KeeperHandle) -> Result<(), SessionError> {
        let Some(In::Desired(wire)) = &message.message else { return Ok(()) };
        self.told = true;
        if wire.keep_protection {
            tracing::warn!(
                generation = wire.generation,
                "the broker does not know this host: every window is closed"
            );
            self.asked = Some((wire.generation, keeper.close_windows(wire.generation)));
            return Ok(());
        }
        // An age that is not told is taken for none: then every window ends the earlier.
        let heard_ago = convert::duration("heard_ago", message.heard_ago.as_ref()).unwrap_or_default();
        let anchor = anchor(BootTime(message.heard), heard_ago, clock::boottime());
        match Desired::from_wire(wire, anchor) {
            Ok(told) => {
                self.asked = Some((told.generation, keeper.accept(told)));
                Ok(())
            }
            Err(invalid) => {
                tracing::error!(generation = wire.generation, error = %invalid, "the broker told what no host can hold");
                let applied = v1::Applied { generation: wire.generation, error: invalid.to_string() };
                self.say(Out::Applied(applied)).map(drop)
            }
        }
    }

    /// Sends a message, without waiting: [`Self::run`] may be dropped while it waits. Returns the stamp it carries.
    fn say(&mut self, message: Out) -> Result<BootTime, SessionError> {
        let request = stamped(message);
        let stamp = BootTime(request.sent_at);
        self.outgoing.try_send(request).map_err(|_| SessionError::Stuck)?;
        Ok(stamp)
    }

    fn heard_something(&mut self) {
        self.silence.as_mut().reset(tokio::time::Instant::now() + SILENCE);
    }
}

fn stamped(message: Out) -> v1::SessionRequest {
    v1::SessionRequest { sent_at: clock::boottime().0, message: Some(message) }
}

/// The keeper's answer to what it was asked. Safe to cancel.
async fn answered(asked: &mut Option<(u64, Answer)>) -> (u64, Result<(), String>) {
    match asked {
        Some((generation, answer)) => (*generation, forever(answer).await),
        None => std::future::pending().await,
    }
}

fn broken(status: Status) -> SessionError {
    SessionError::Broker(Box::new(status))
}
