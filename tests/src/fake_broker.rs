//! The fake broker of the kit on a host of a network, for agents that run as programs.

use std::path::Path;
use std::sync::Arc;

use postern_core::TargetId;
use postern_pki::authority::AGENT_LIFETIME;
use postern_proto::v1;
use tokio::sync::Mutex;

use crate::broker::PORT;
use crate::net::Host;
use crate::netns::Netns;

/// A broker that waits for agents on its host.
#[derive(Debug)]
pub struct FakeBroker {
    netns: Netns,
    broker: Arc<postern_testkit::FakeBroker>,
}

/// An agent's session, which a test leads step by step.
#[derive(Debug)]
pub struct AgentSession {
    netns: Netns,
    session: Arc<Mutex<postern_testkit::AgentSession>>,
}

impl FakeBroker {
    /// Starts a broker on a host.
    pub fn start(host: &Host) -> Self {
        let address = (host.v4(), PORT).into();
        let broker = host.netns().run(postern_testkit::FakeBroker::at(address));
        Self { netns: host.netns().clone(), broker: Arc::new(broker) }
    }

    /// Returns the broker's URL.
    pub fn url(&self) -> &str {
        self.broker.url()
    }

    /// Puts an agent's identity into a directory, as its enrolment would.
    ///
    /// # Panics
    /// `target` is no target, or the identity cannot be saved.
    pub fn issue(&self, target: &str, identity: &Path) {
        let target: TargetId = target.parse().expect("a target");
        self.broker.issue_agent(&target, AGENT_LIFETIME).save(identity).expect("the identity can be saved");
    }

    /// Waits for the next session, and receives its hello.
    pub fn session(&self) -> AgentSession {
        let broker = Arc::clone(&self.broker);
        let session = self.netns.run(async move { broker.session().await });
        AgentSession { netns: self.netns.clone(), session: Arc::new(Mutex::new(session)) }
    }
}

impl AgentSession {
    /// Sends the agent a desired state. The windows' remaining time counts from now.
    pub fn send(&self, desired: v1::DesiredState) {
        let session = Arc::clone(&self.session);
        self.netns.run(async move { session.lock().await.send_desired(desired) });
    }

    /// Waits for the answer to a generation, and returns its error; empty where the agent has applied it.
    pub fn answer_to(&self, generation: u64) -> String {
        let session = Arc::clone(&self.session);
        self.netns.run(async move { session.lock().await.answer_to(generation).await })
    }

    /// Ends the session.
    pub fn end(self) {
        Arc::into_inner(self.session).expect("no step of the session is left").into_inner().abort();
    }
}
