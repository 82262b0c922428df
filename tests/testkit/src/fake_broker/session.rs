//! The sessions of agents, seen from the broker.

use std::time::{Duration, Instant};

use postern_proto::convert::duration_to_wire;
use postern_proto::v1;
use postern_proto::v1::session_request::Message as FromAgent;
use postern_proto::v1::session_response::Message as ToAgent;
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use crate::clock::{monotonic, within};

/// A session of an agent. Dropping it ends the session.
#[derive(Debug)]
pub struct AgentSession {
    /// The hello of the agent.
    pub hello: v1::Hello,
    /// The stamp of the hello.
    pub hello_at: u64,
    received_at: Instant,
    incoming: Streaming<v1::SessionRequest>,
    outgoing: mpsc::UnboundedSender<Result<v1::SessionResponse, Status>>,
}

impl AgentSession {
    /// Makes a session of its stream, whose first message is the hello, and of the channel to the agent.
    pub(super) async fn begin(
        mut incoming: Streaming<v1::SessionRequest>,
        outgoing: mpsc::UnboundedSender<Result<v1::SessionResponse, Status>>,
    ) -> Result<Self, Status> {
        let first = incoming.message().await?.unwrap_or_default();
        let Some(FromAgent::Hello(hello)) = first.message else {
            return Err(Status::invalid_argument("a session begins with a hello"));
        };
        Ok(Self { hello, hello_at: first.sent_at, received_at: monotonic(), incoming, outgoing })
    }

    /// Sends a message as the answer to the agent's message with this stamp, received just now.
    pub fn send(&self, heard: u64, message: ToAgent) {
        self.send_after(heard, Duration::ZERO, message);
    }

    /// Sends a desired state as the answer to the hello. The windows' remaining time counts from now.
    pub fn send_desired(&self, desired: v1::DesiredState) {
        self.send_after(self.hello_at, self.received_at.elapsed(), ToAgent::Desired(desired));
    }

    fn send_after(&self, heard: u64, ago: Duration, message: ToAgent) {
        let heard_ago = Some(duration_to_wire(ago));
        let response = v1::SessionResponse {
            heard,
            heard_ago,
            message: Some(message),
            ..v1::SessionResponse::default()
        };
        self.send_response(response);
    }

    /// Sends a whole message.
    ///
    /// # Panics
    /// The session has ended.
    pub fn send_response(&self, response: v1::SessionResponse) {
        self.outgoing.send(Ok(response)).expect("the session holds");
    }

    /// Returns the next message that is no heartbeat, with its stamp.
    ///
    /// # Panics
    /// The session ends, or no message comes in time.
    pub async fn next(&mut self) -> (u64, FromAgent) {
        within("a message of the agent", async {
            loop {
                let message = self.incoming.message().await.expect("the session holds");
                let message = message.expect("the session holds");
                let content = message.message.expect("a message has a content");
                if !matches!(content, FromAgent::Heartbeat(_)) {
                    return (message.sent_at, content);
                }
            }
        })
        .await
    }

    /// Returns the answer to a desired state, which must be the agent's next message.
    pub async fn applied(&mut self) -> v1::Applied {
        let message = self.next().await.1;
        let FromAgent::Applied(applied) = message else { panic!("{message:?}") };
        applied
    }

    /// Waits for the answer to a generation, and returns its error; empty where the agent has applied it.
    pub async fn answer_to(&mut self, generation: u64) -> String {
        loop {
            if let FromAgent::Applied(applied) = self.next().await.1
                && applied.generation == generation
            {
                return applied.error;
            }
        }
    }

    /// Ends the session with an error.
    pub fn abort(self) {
        // An agent that has gone already needs no end.
        self.outgoing.send(Err(Status::aborted("a test"))).ok();
    }

    /// Waits until the agent has ended the session.
    ///
    /// # Panics
    /// The session goes on.
    pub async fn ended(&mut self) {
        within("the end of the session", async { while let Ok(Some(_)) = self.incoming.message().await {} })
            .await;
    }
}
