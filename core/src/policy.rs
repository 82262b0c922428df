//! Policies, and the decision that they make: whether a principal may have the windows of a request.
//!
//! This module keeps I7: a request that no policy allows is denied, and the denial names the limit.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::target::TargetSelector;
use crate::{
    AccessRequest, Invalid, Layers, Name, Principal, ProtectedPort, Role, SourcePrefix, TargetId, Window,
};

/// The action of an agent on traffic to a protected port without a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Count and log the traffic that enforcement would drop, and drop nothing.
    Monitor,
    /// Drop the traffic.
    Enforce,
}

/// The rule for a grant whose target's agent cannot be reached while it opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unreachable {
    /// The grant fails at once.
    Fail,
    /// The grant stays `opening` until the agent returns or the grant's end passes.
    Wait,
}

/// A source that a port may be opened to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum AllowedSource {
    /// `*`: the requester may choose any source except the whole internet.
    Any,
    /// A prefix: it allows itself and every part of it. `0.0.0.0/0` or `::/0` here also allows a request for
    /// exactly that.
    Prefix(SourcePrefix),
}

impl AllowedSource {
    fn allows(&self, source: &SourcePrefix) -> bool {
        match self {
            Self::Any => !source.is_any(),
            Self::Prefix(prefix) => prefix.covers(source),
        }
    }
}

impl fmt::Display for AllowedSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Prefix(prefix) => prefix.fmt(f),
        }
    }
}

impl FromStr for AllowedSource {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        if text == "*" { Ok(Self::Any) } else { text.parse().map(Self::Prefix) }
    }
}

impl TryFrom<String> for AllowedSource {
    type Error = Invalid;
    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<AllowedSource> for String {
    fn from(source: AllowedSource) -> String {
        source.to_string()
    }
}

/// The limits of one protected port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortRule {
    /// The port.
    pub port: ProtectedPort,
    /// The allowed sources; a request's source must lie within one of them.
    pub sources: Vec<AllowedSource>,
    /// The longest grant, [`Policy::MIN_DURATION`] to [`Policy::MAX_DURATION`].
    pub max_duration: Duration,
}

/// The protected ports of a set of targets, and their limits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// The name.
    pub name: Name,
    /// The targets it covers.
    pub targets: Vec<TargetSelector>,
    /// The protected ports; each port at most once.
    pub ports: Vec<PortRule>,
    /// The requesters that may use this policy; empty means every requester.
    pub requesters: Vec<Name>,
    /// True if a grant waits for an approval.
    pub approval_required: bool,
    /// The layers that must confirm.
    pub layers: Layers,
    /// The rule for a grant whose agent is away.
    pub unreachable: Unreachable,
    /// The mode of the agents of its targets.
    pub mode: Mode,
}

impl Policy {
    /// The smallest `max_duration`: 5 minutes in the reference; 1 second here, for machines that request access for
    /// themselves.
    pub const MIN_DURATION: Duration = Duration::from_secs(1);
    /// The largest `max_duration`, 24 hours, as in the reference.
    pub const MAX_DURATION: Duration = Duration::from_secs(24 * 3600);

    /// Checks the rules that the types alone cannot express: lists that must not be empty, bounds, duplicates.
    ///
    /// # Errors
    /// The first invalid field.
    pub fn checked(self) -> Result<Self, Invalid> {
        if self.targets.is_empty() {
            return Err(Invalid::new("targets", "is empty", "name a target or a prefix such as host:*"));
        }
        if self.ports.is_empty() {
            return Err(Invalid::new("ports", "is empty", "name at least one port to protect"));
        }
        let mut seen = BTreeSet::new();
        for (i, rule) in self.ports.iter().enumerate() {
            let field = format!("ports[{i}]");
            if !seen.insert(rule.port) {
                let problem = format!("{} appears twice", rule.port);
                return Err(Invalid::new("port", problem, "join the two rules").within(&field));
            }
            if rule.sources.is_empty() {
                let remedy = "name a range, or \"*\" to let the requester choose";
                return Err(Invalid::new("sources", "is empty", remedy).within(&field));
            }
            if !(Self::MIN_DURATION..=Self::MAX_DURATION).contains(&rule.max_duration) {
                let problem = format!("{} s is out of range", rule.max_duration.as_secs_f64());
                return Err(Invalid::new("max_duration", problem, "use 1s to 24h").within(&field));
            }
        }
        let host_only = |selector: &TargetSelector| selector.to_string().starts_with("host:");
        if self.layers != Layers::Host && self.targets.iter().any(host_only) {
            return Err(Invalid::new("layers", "a host: target has no cloud layer", "use layers = \"host\""));
        }
        Ok(self)
    }

    /// Reports whether the policy covers the target.
    pub fn covers(&self, target: &TargetId) -> bool {
        self.targets.iter().any(|selector| selector.covers(target))
    }

    fn rule(&self, port: ProtectedPort) -> Option<&PortRule> {
        self.ports.iter().find(|rule| rule.port == port)
    }

    /// Reports whether the principal may request access under the policy.
    pub fn admits(&self, principal: &Principal) -> bool {
        principal.role != Role::Reader
            && (self.requesters.is_empty() || self.requesters.contains(&principal.name))
    }
}

/// The denial of a request. It names the field that met a limit, and the values that are allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{invalid}")]
pub struct Denial {
    /// The limit that was met.
    pub limit: PolicyLimit,
    /// The field, the problem and the remedy.
    pub invalid: Invalid,
}

/// The limit that a denied request met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PolicyLimit {
    /// No policy covers the target.
    Target,
    /// The policies of the target do not name the principal.
    Requester,
    /// The port is not protected on the target.
    Port,
    /// The source lies outside the allowed sources.
    Source,
    /// The duration is past the maximum.
    Duration,
    /// The policy requires an approval, which is not available yet.
    Approval,
}

impl PolicyLimit {
    /// Returns a stable word for machines.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Target => "TARGET_WITHOUT_POLICY",
            Self::Requester => "REQUESTER_NOT_ALLOWED",
            Self::Port => "PORT_NOT_IN_POLICY",
            Self::Source => "SOURCE_NOT_ALLOWED",
            Self::Duration => "DURATION_BEYOND_MAXIMUM",
            Self::Approval => "APPROVAL_NOT_AVAILABLE",
        }
    }
}

/// The windows of an authorized request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authorized {
    /// Every (target, port, source) of the request.
    pub windows: Vec<Window>,
    /// `Wait` only if every policy involved says so.
    pub unreachable: Unreachable,
    /// True if any policy involved requires an approval.
    pub approval_required: bool,
}

/// Decides a request: a policy that covers its target must allow each window, or the whole request is denied.
///
/// # Errors
/// The first limit that was met, in the order target, requester, port, source, duration.
pub fn authorize(
    request: &AccessRequest,
    principal: &Principal,
    policies: &[Policy],
) -> Result<Authorized, Denial> {
    let mut authorized =
        Authorized { windows: Vec::new(), unreachable: Unreachable::Wait, approval_required: false };
    for target in request.targets() {
        let covering: Vec<&Policy> = policies.iter().filter(|policy| policy.covers(target)).collect();
        if covering.is_empty() {
            let problem = format!("{target} is under no policy");
            return deny(
                PolicyLimit::Target,
                "targets",
                problem,
                "ask an administrator to put it under a policy",
            );
        }
        let mine: Vec<&Policy> = covering.into_iter().filter(|policy| policy.admits(principal)).collect();
        if mine.is_empty() {
            let problem = format!("{} may not request access to {target}", principal.name);
            return deny(
                PolicyLimit::Requester,
                "targets",
                problem,
                "ask an administrator to be named in its policy",
            );
        }
        for &port in request.ports() {
            let rules: Vec<(&Policy, &PortRule)> =
                mine.iter().filter_map(|policy| Some((*policy, policy.rule(port)?))).collect();
            for source in request.sources() {
                let policy = allowing(&rules, target, port, source, request.duration())?;
                authorized.windows.push(Window {
                    target: target.clone(),
                    port,
                    source: *source,
                    layers: policy.layers,
                });
                authorized.approval_required |= policy.approval_required;
                if policy.unreachable == Unreachable::Fail {
                    authorized.unreachable = Unreachable::Fail;
                }
            }
        }
    }
    Ok(authorized)
}

/// Returns a policy that allows the window, preferably one without an approval.
fn allowing<'a>(
    rules: &[(&'a Policy, &'a PortRule)],
    target: &TargetId,
    port: ProtectedPort,
    source: &SourcePrefix,
    duration: Duration,
) -> Result<&'a Policy, Denial> {
    if rules.is_empty() {
        let problem = format!("{port} is not a protected port of {target}");
        return deny(
            PolicyLimit::Port,
            "ports",
            problem,
            "see `postern targets` for the ports of each target",
        );
    }
    let mut by_source =
        rules.iter().filter(|(_, rule)| rule.sources.iter().any(|allowed| allowed.allows(source))).peekable();
    if by_source.peek().is_none() {
        let allowed: BTreeSet<String> =
            rules.iter().flat_map(|(_, rule)| &rule.sources).map(ToString::to_string).collect();
        let allowed = allowed.into_iter().collect::<Vec<_>>().join(", ");
        let problem = format!("{source} is not an allowed source for {port} of {target}");
        return deny(PolicyLimit::Source, "sources", problem, &format!("ask for a source within {allowed}"));
    }
    let by_source: Vec<_> = by_source.collect();
    let longest = by_source.iter().map(|(_, rule)| rule.max_duration).max().unwrap_or_default();
    by_source
        .into_iter()
        .filter(|(_, rule)| duration <= rule.max_duration)
        .map(|(policy, _)| *policy)
        .min_by_key(|policy| policy.approval_required)
        .ok_or_else(|| Denial {
            limit: PolicyLimit::Duration,
            invalid: Invalid::new(
                "duration",
                format!("{} s is beyond the maximum for {port} of {target}", duration.as_secs()),
                format!("ask for at most {} s", longest.as_secs()),
            ),
        })
}

fn deny<T>(limit: PolicyLimit, field: &str, problem: String, remedy: &str) -> Result<T, Denial> {
    Err(Denial { limit, invalid: Invalid::new(field, problem, remedy) })
}

/// Returns the protection of a target from every policy that covers it: the union of the protected ports, and the
/// strictest mode. A target under no policy has no protected port.
pub fn protection(target: &TargetId, policies: &[Policy]) -> Protection {
    let covering = policies.iter().filter(|policy| policy.covers(target));
    let mut protection = Protection { mode: Mode::Monitor, ports: BTreeSet::new() };
    for policy in covering {
        protection.mode = protection.mode.max(policy.mode);
        protection.ports.extend(policy.ports.iter().map(|rule| rule.port));
    }
    protection
}

/// The protected ports of a target, and the mode for those without a window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Protection {
    /// The strictest mode of the covering policies.
    pub mode: Mode,
    /// The union of their ports.
    pub ports: BTreeSet<ProtectedPort>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Justification;

    fn a_policy() -> Policy {
        Policy {
            name: Name::new("web").unwrap(),
            targets: vec!["host:web-*".parse().unwrap()],
            ports: vec![PortRule {
                port: "tcp/22".parse().unwrap(),
                sources: vec!["10.0.0.0/8".parse().unwrap()],
                max_duration: Duration::from_secs(3600),
            }],
            requesters: vec![],
            approval_required: false,
            layers: Layers::Host,
            unreachable: Unreachable::Fail,
            mode: Mode::Enforce,
        }
    }

    fn alice() -> Principal {
        Principal { role: Role::Requester, name: Name::new("alice").unwrap() }
    }

    fn asks(target: &str, port: &str, source: &str, seconds: u64) -> AccessRequest {
        AccessRequest::new(
            vec![target.parse().unwrap()],
            vec![port.parse().unwrap()],
            vec![source.parse().unwrap()],
            Duration::from_secs(seconds),
            Justification::new("test").unwrap(),
        )
        .unwrap()
    }

    fn limit_met(request: &AccessRequest, policies: &[Policy]) -> Option<PolicyLimit> {
        authorize(request, &alice(), policies).err().map(|denial| denial.limit)
    }

    #[test]
    fn i7_each_limit_denies_and_names_its_field() {
        let policies = [a_policy()];
        for (request, limit) in [
            (asks("host:web-1", "tcp/22", "10.1.0.0/16", 3600), None),
            (asks("host:db-1", "tcp/22", "10.1.0.0/16", 60), Some(PolicyLimit::Target)),
            (asks("host:web-1", "tcp/3389", "10.1.0.0/16", 60), Some(PolicyLimit::Port)),
            (asks("host:web-1", "udp/22", "10.1.0.0/16", 60), Some(PolicyLimit::Port)),
            (asks("host:web-1", "tcp/22", "192.0.2.1", 60), Some(PolicyLimit::Source)),
            (asks("host:web-1", "tcp/22", "8.0.0.0/5", 60), Some(PolicyLimit::Source)),
            (asks("host:web-1", "tcp/22", "10.0.0.1", 3601), Some(PolicyLimit::Duration)),
        ] {
            assert_eq!(limit_met(&request, &policies), limit, "{request:?}");
        }
        assert_eq!(
            limit_met(&asks("host:web-1", "tcp/22", "10.0.0.1", 60), &[]),
            Some(PolicyLimit::Target),
            "default deny"
        );
    }

    #[test]
    fn i7_a_policy_that_names_requesters_admits_no_other() {
        let policy = Policy { requesters: vec![Name::new("bob").unwrap()], ..a_policy() };
        assert_eq!(
            limit_met(&asks("host:web-1", "tcp/22", "10.0.0.1", 60), &[policy]),
            Some(PolicyLimit::Requester)
        );
    }

    #[test]
    fn a_star_lets_the_requester_choose_but_not_the_whole_internet() {
        let mut policy = a_policy();
        policy.ports[0].sources = vec![AllowedSource::Any];
        let policies = [policy];
        assert_eq!(limit_met(&asks("host:web-1", "tcp/22", "203.0.113.0/24", 60), &policies), None);
        assert_eq!(
            limit_met(&asks("host:web-1", "tcp/22", "0.0.0.0/0", 60), &policies),
            Some(PolicyLimit::Source)
        );
    }

    #[test]
    fn one_window_outside_denies_the_whole_request() {
        let request = AccessRequest::new(
            vec!["host:web-1".parse().unwrap(), "host:db-1".parse().unwrap()],
            vec!["tcp/22".parse().unwrap()],
            vec!["10.0.0.1".parse().unwrap()],
            Duration::from_secs(60),
            Justification::new("test").unwrap(),
        )
        .unwrap();
        assert_eq!(limit_met(&request, &[a_policy()]), Some(PolicyLimit::Target));
    }

    #[test]
    fn protection_is_the_union_of_ports_and_the_strictest_mode() {
        let mut other = a_policy();
        other.mode = Mode::Monitor;
        other.ports[0].port = "tcp/3389".parse().unwrap();
        let held = protection(&"host:web-1".parse().unwrap(), &[other, a_policy()]);
        assert_eq!((held.mode, held.ports.len()), (Mode::Enforce, 2));
        assert!(protection(&"host:db-1".parse().unwrap(), &[a_policy()]).ports.is_empty());
    }

    #[test]
    fn a_policy_is_checked_field_by_field() {
        let mut twice = a_policy();
        twice.ports.push(twice.ports[0].clone());
        assert_eq!(twice.checked().unwrap_err().field, "ports[1].port");
        let mut long = a_policy();
        long.ports[0].max_duration = Duration::from_secs(86_401);
        assert_eq!(long.checked().unwrap_err().field, "ports[0].max_duration");
        assert_eq!(Policy { layers: Layers::Both, ..a_policy() }.checked().unwrap_err().field, "layers");
    }
}
