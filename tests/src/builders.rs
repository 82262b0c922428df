//! Builders of policies and requests: a test sets what matters to it, and the rest is usual.

use std::time::Duration;

use postern_proto::convert::{duration_to_wire, port_to_wire};
use postern_proto::v1;

/// A policy for one VM: nothing protected yet, any source, an hour at most, enforced, failing without an agent.
pub fn a_policy() -> PolicyBuilder {
    PolicyBuilder {
        policy: v1::Policy {
            name: "test".to_owned(),
            layers: v1::Layers::Host.into(),
            unreachable: v1::Unreachable::Fail.into(),
            mode: v1::Mode::Enforce.into(),
            ..v1::Policy::default()
        },
    }
}

/// Builds a policy.
#[derive(Debug, Clone)]
pub struct PolicyBuilder {
    policy: v1::Policy,
}

impl PolicyBuilder {
    /// Sets the policy's name.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        self.policy.name = name.to_owned();
        self
    }

    /// Covers these targets, too.
    #[must_use]
    pub fn on(mut self, selector: &str) -> Self {
        self.policy.targets.push(selector.to_owned());
        self
    }

    /// Protects this port, from any source, for an hour at most.
    #[must_use]
    pub fn port(self, port: &str) -> Self {
        self.port_within(port, &["*"], Duration::from_secs(3600))
    }

    /// Protects this port within limits.
    #[must_use]
    pub fn port_within(mut self, port: &str, sources: &[&str], max_duration: Duration) -> Self {
        self.policy.ports.push(v1::PortRule {
            port: Some(wire_port(port)),
            sources: sources.iter().map(|source| (*source).to_owned()).collect(),
            max_duration: Some(duration_to_wire(max_duration)),
            widest: None,
        });
        self
    }

    /// Lets grants wait for an agent that is away.
    #[must_use]
    pub fn waiting_for_agents(mut self) -> Self {
        self.policy.unreachable = v1::Unreachable::Wait.into();
        self
    }

    /// Requires these layers.
    #[must_use]
    pub fn layers(mut self, layers: v1::Layers) -> Self {
        self.policy.layers = layers.into();
        self
    }

    /// Sets monitor mode: nothing is dropped.
    #[must_use]
    pub fn monitoring(mut self) -> Self {
        self.policy.mode = v1::Mode::Monitor.into();
        self
    }

    /// The policy as it goes over the wire.
    pub fn wire(self) -> v1::Policy {
        self.policy
    }
}

/// A request for one hour of nothing yet.
pub fn a_request() -> RequestBuilder {
    RequestBuilder {
        wire: v1::RequestAccessRequest {
            duration: Some(duration_to_wire(Duration::from_secs(3600))),
            justification: "a test".to_owned(),
            ..v1::RequestAccessRequest::default()
        },
    }
}

/// Builds a request.
#[derive(Debug, Clone)]
pub struct RequestBuilder {
    wire: v1::RequestAccessRequest,
}

impl RequestBuilder {
    /// Adds a target.
    #[must_use]
    pub fn on(mut self, target: &str) -> Self {
        self.wire.targets.push(target.to_owned());
        self
    }

    /// Adds a port.
    #[must_use]
    pub fn port(mut self, port: &str) -> Self {
        self.wire.ports.push(wire_port(port));
        self
    }

    /// Adds a source.
    #[must_use]
    pub fn from(mut self, source: impl ToString) -> Self {
        self.wire.sources.push(source.to_string());
        self
    }

    /// Sets the duration in seconds.
    #[must_use]
    pub fn seconds(mut self, seconds: u64) -> Self {
        self.wire.duration = Some(duration_to_wire(Duration::from_secs(seconds)));
        self
    }

    /// Sets the idempotency key.
    #[must_use]
    pub fn key(mut self, key: &str) -> Self {
        self.wire.idempotency_key = key.to_owned();
        self
    }

    /// Lets the answer wait for the grant to be active.
    #[must_use]
    pub fn waiting(mut self, wait: Duration) -> Self {
        self.wire.wait = Some(duration_to_wire(wait));
        self
    }

    /// Changes the request by hand, where the builder would not let it be wrong.
    #[must_use]
    pub fn but(mut self, change: impl FnOnce(&mut v1::RequestAccessRequest)) -> Self {
        change(&mut self.wire);
        self
    }

    /// The request as it goes over the wire.
    pub fn wire(&self) -> v1::RequestAccessRequest {
        self.wire.clone()
    }
}

/// The end of a grant.
///
/// # Panics
/// It has none.
pub fn end_of(grant: &v1::Grant) -> jiff::Timestamp {
    let end = grant.not_after.as_ref().expect("the grant has an end");
    postern_proto::convert::timestamp("not_after", end).expect("the end is a time")
}

fn wire_port(port: &str) -> v1::ProtectedPort {
    port_to_wire(port.parse().unwrap_or_else(|error| panic!("{port}: {error}")))
}
