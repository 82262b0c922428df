//! Builders of grants and policies: a test names what matters to it, and the rest is usual.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use postern_core::policy::{AllowedSource, Mode, PortRule, Requester, Unreachable, WidestPrefix, authorize};
use postern_core::text::Justification;
use postern_core::{AccessRequest, Grant, GrantId, Layers, Name, Policy, Principal, PrincipalKey, Role};

use crate::signals::rounds::{RoundReporter, Rounds, Task};

/// A moment to count from.
pub(crate) fn start() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

/// The moment so many seconds after [`start`].
pub(crate) fn at(seconds: i64) -> Timestamp {
    start() + Duration::from_secs(seconds.unsigned_abs())
}

/// The reporter of a task whose rounds no test reads.
pub(crate) fn reporter(task: Task) -> RoundReporter {
    Arc::new(Rounds::default()).reporter(task, None, Duration::ZERO)
}

/// A name.
pub(crate) fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// The key of the principal of this name, or with this text.
pub(crate) fn key(text: &str) -> PrincipalKey {
    PrincipalKey::parse(text).unwrap()
}

/// A requester of this name.
pub(crate) fn principal(text: &str) -> Principal {
    Principal::local(Role::Requester, name(text))
}

/// A policy for `host:vm-1`: tcp/22 from anywhere, an hour at most, enforced, failing without an agent.
pub(crate) fn a_policy() -> PolicyBuilder {
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
        },
    }
}

/// Builds a policy.
pub(crate) struct PolicyBuilder {
    policy: Policy,
}

impl PolicyBuilder {
    pub(crate) fn named(mut self, text: &str) -> Self {
        self.policy.name = name(text);
        self
    }

    /// For this target instead.
    pub(crate) fn on(mut self, selector: &str) -> Self {
        self.policy.targets = vec![selector.parse().unwrap()];
        self
    }

    pub(crate) fn layers(mut self, layers: Layers) -> Self {
        self.policy.layers = layers;
        self
    }

    pub(crate) fn waiting(mut self) -> Self {
        self.policy.unreachable = Unreachable::Wait;
        self
    }

    pub(crate) fn build(self) -> Policy {
        self.policy.checked().unwrap()
    }
}

/// A grant of alice on `host:vm-1`, tcp/22 from 192.0.2.7 for 60 s, asked for at [`start`].
pub(crate) fn a_grant() -> GrantBuilder {
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
pub(crate) struct GrantBuilder {
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
    pub(crate) fn number(mut self, number: u8) -> Self {
        self.number = number;
        self
    }

    pub(crate) fn of(mut self, who: &str) -> Self {
        self.who = who.to_owned();
        self
    }

    /// On this target instead.
    pub(crate) fn on(mut self, target: &str) -> Self {
        self.targets = vec![target.to_owned()];
        self
    }

    /// On this target, too.
    pub(crate) fn and_on(mut self, target: &str) -> Self {
        self.targets.push(target.to_owned());
        self
    }

    pub(crate) fn from(mut self, source: &str) -> Self {
        self.source = source.to_owned();
        self
    }

    pub(crate) fn seconds(mut self, seconds: u64) -> Self {
        self.seconds = seconds;
        self
    }

    pub(crate) fn asked_at(mut self, at: Timestamp) -> Self {
        self.asked_at = at;
        self
    }

    pub(crate) fn layers(mut self, layers: Layers) -> Self {
        self.layers = layers;
        self
    }

    pub(crate) fn waiting(mut self) -> Self {
        self.waiting = true;
        self
    }

    pub(crate) fn build(self) -> Grant {
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
        let authorized =
            authorize(&request, Requester { principal: &who, address: None, held: &[] }, &policies).unwrap();
        let id = GrantId::from_parts(self.asked_at, self.number.into());
        Grant::new(id, who, &request, authorized, self.asked_at)
    }
}
