//! Builders of grants and policies: a test names what matters to it, and the rest is usual.

use std::time::Duration;

use jiff::Timestamp;
use postern_core::policy::{AllowedSource, Mode, PortRule, Requester, Unreachable, WidestPrefix, authorize};
use postern_core::text::Justification;
use postern_core::{AccessRequest, Grant, GrantId, Layers, Name, Policy, Principal, PrincipalKey, Role};

/// A moment to count from.
pub fn start() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

/// The moment so many seconds after [`start`].
pub fn at(seconds: i64) -> Timestamp {
    start() + Duration::from_secs(seconds.unsigned_abs())
}

/// A name.
pub fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// The key of the principal of this name, or with this text.
pub fn key(text: &str) -> PrincipalKey {
    PrincipalKey::parse(text).unwrap()
}

/// A requester of this name.
pub fn principal(text: &str) -> Principal {
    Principal::local(Role::Requester, name(text))
}

/// A policy for `host:vm-1`: tcp/22 from anywhere, an hour at most, enforced, failing without an agent.
pub fn a_policy() -> PolicyBuilder {
    let targets = vec!["host:vm-1".parse().unwrap()];
    PolicyBuilder {
        policy: Policy {
            name: name("usual"),
            targets,
            ports: vec![PortRule {
                port: "tcp/22".parse().unwrap(),
                sources: vec!["*".parse::<AllowedSource>().unwrap()],
                widest: WidestPrefix::default(),
                max_duration: Duration::from_secs(3600),
            }],
            requesters: Vec::new(),
            approval_required: false,
            layers: Layers::Host,
            unreachable: Unreachable::Fail,
            mode: Mode::Enforce,
            max_open_grants: None,
        },
    }
}

/// Builds a policy.
#[derive(Debug, Clone)]
pub struct PolicyBuilder {
    policy: Policy,
}

impl PolicyBuilder {
    /// With this name.
    pub fn named(mut self, text: &str) -> Self {
        self.policy.name = name(text);
        self
    }

    /// For this target instead.
    pub fn on(mut self, selector: &str) -> Self {
        self.policy.targets = vec![selector.parse().unwrap()];
        self
    }

    /// With these layers.
    pub fn layers(mut self, layers: Layers) -> Self {
        self.policy.layers = layers;
        self
    }

    /// Waiting for agents that are away.
    pub fn waiting(mut self) -> Self {
        self.policy.unreachable = Unreachable::Wait;
        self
    }

    /// Returns the policy.
    pub fn build(self) -> Policy {
        self.policy.checked().unwrap()
    }
}

/// A grant of alice on `host:vm-1`, tcp/22 from 192.0.2.7 for 60 s, asked for at [`start`].
pub fn a_grant() -> GrantBuilder {
    GrantBuilder {
        number: 1,
        who: "alice".to_owned(),
        targets: vec!["host:vm-1".to_owned()],
        source: "192.0.2.7".to_owned(),
        seconds: 60,
        asked_at: start(),
        layers: Layers::Host,
        waiting: false,
    }
}

/// Builds a grant.
#[derive(Debug, Clone)]
pub struct GrantBuilder {
    number: u8,
    who: String,
    targets: Vec<String>,
    source: String,
    seconds: u64,
    asked_at: Timestamp,
    layers: Layers,
    waiting: bool,
}

impl GrantBuilder {
    /// With another id; greater numbers are younger where the moment is the same.
    pub fn number(mut self, number: u8) -> Self {
        self.number = number;
        self
    }

    /// Of this principal.
    pub fn of(mut self, who: &str) -> Self {
        self.who = who.to_owned();
        self
    }

    /// On this target instead.
    pub fn on(mut self, target: &str) -> Self {
        self.targets = vec![target.to_owned()];
        self
    }

    /// On this target, too.
    pub fn and_on(mut self, target: &str) -> Self {
        self.targets.push(target.to_owned());
        self
    }

    /// From this source.
    pub fn from(mut self, source: &str) -> Self {
        self.source = source.to_owned();
        self
    }

    /// For so many seconds.
    pub fn seconds(mut self, seconds: u64) -> Self {
        self.seconds = seconds;
        self
    }

    /// Asked for at this time.
    pub fn asked_at(mut self, at: Timestamp) -> Self {
        self.asked_at = at;
        self
    }

    /// With these layers.
    pub fn layers(mut self, layers: Layers) -> Self {
        self.layers = layers;
        self
    }

    /// Waiting for agents that are away.
    pub fn waiting(mut self) -> Self {
        self.waiting = true;
        self
    }

    /// Returns the grant.
    pub fn build(self) -> Grant {
        let who = principal(&self.who);
        let request = AccessRequest::new(
            self.targets.iter().map(|target| target.parse().unwrap()).collect(),
            vec!["tcp/22".parse().unwrap()],
            vec![self.source.parse().unwrap()],
            Duration::from_secs(self.seconds),
            Justification::new("a test").unwrap(),
        )
        .unwrap();
        let policies: Vec<Policy> = self
            .targets
            .iter()
            .map(|target| {
                let policy =
                    a_policy().named(&target.replace([':', '/'], "-")).on(target).layers(self.layers);
                if self.waiting { policy.waiting().build() } else { policy.build() }
            })
            .collect();
        let authorized = authorize(
            &request,
            Requester { principal: &who, address: None, other_address: None, held: &[] },
            &policies,
        )
        .unwrap();
        let id = GrantId::from_parts(self.asked_at, self.number.into());
        Grant::new(id, who, &request, authorized, self.asked_at)
    }
}
