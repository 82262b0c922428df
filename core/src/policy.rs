//! Policies, and the decision that they make: whether a principal may have the windows of a request.
//!
//! This module keeps I7: a request that no policy allows is denied, and the denial names the limit.

use std::borrow::Borrow;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::target::TargetSelector;
use crate::{
    AccessRequest, Invalid, Layers, Name, Principal, PrincipalKey, ProtectedPort, Role, SourcePrefix,
    TargetId, Window,
};
pub use sources::{AllowedSource, WidestPrefix};

mod sources;

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

/// The limits of one protected port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortRule {
    /// The port.
    pub port: ProtectedPort,
    /// The allowed sources; a request's source must lie within one of them.
    pub sources: Vec<AllowedSource>,
    /// The most addresses that one principal may have open at once through `*`.
    #[serde(default, skip_serializing_if = "WidestPrefix::is_default")]
    pub widest: WidestPrefix,
    /// The longest grant, [`Policy::MIN_DURATION`] to [`Policy::MAX_DURATION`].
    pub max_duration: Duration,
}

impl PortRule {
    /// Reports whether the requester may choose its sources.
    fn has_star(&self) -> bool {
        self.sources.contains(&AllowedSource::Any)
    }
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
    /// The keys of the requesters that may use this policy; empty means every requester, of every issuer.
    pub requesters: Vec<PrincipalKey>,
    /// True if a grant waits for an approval.
    pub approval_required: bool,
    /// The layers that must confirm.
    pub layers: Layers,
    /// The rule for a grant whose agent is away.
    pub unreachable: Unreachable,
    /// The mode of the agents of its targets.
    pub mode: Mode,
    /// The most grants that one principal may have open on the targets of the policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_open_grants: Option<u32>,
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
            rule.widest.checked().map_err(|invalid| invalid.within(&field))?;
            if !(Self::MIN_DURATION..=Self::MAX_DURATION).contains(&rule.max_duration) {
                let problem = format!("{} s is out of range", rule.max_duration.as_secs_f64());
                return Err(Invalid::new("max_duration", problem, "use 1s to 24h").within(&field));
            }
        }
        if self.max_open_grants == Some(0) {
            return Err(Invalid::new("max_open_grants", "is 0", "use 1 or more, or leave it out"));
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

    /// Reports whether a requester may choose any source for some port.
    pub fn lets_choose_sources(&self) -> bool {
        self.ports.iter().any(PortRule::has_star)
    }

    /// Reports whether the principal may request access under the policy.
    pub fn admits(&self, principal: &Principal) -> bool {
        principal.role() != Role::Reader
            && (self.requesters.is_empty() || self.requesters.contains(principal.key()))
    }
}

/// The denial of a request. It names the field that met a limit, and the values that are allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{invalid}")]
pub struct Denial {
    /// The limit that was met.
    pub limit: PolicyLimit,
    /// The target that no policy covers, or for which none names the principal.
    pub target: Option<Box<TargetId>>,
    /// The field, the problem and the remedy.
    pub invalid: Invalid,
}

impl Denial {
    fn of_requester(principal: &PrincipalKey, target: &TargetId) -> Self {
        let problem = format!("{principal} may not request access to {target}");
        let invalid = Invalid::new("targets", problem, "ask an administrator to be named in its policy");
        Self { limit: PolicyLimit::Requester, target: Some(Box::new(target.clone())), invalid }
    }

    /// Returns the denial for a principal that may not learn which targets exist: the same for a target under no policy as for one
    /// whose policies do not name the principal.
    #[must_use]
    pub fn without_existence(self, principal: &PrincipalKey) -> Self {
        match (self.limit, &self.target) {
            (PolicyLimit::Target, Some(target)) => Self::of_requester(principal, target),
            _ => self,
        }
    }
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

/// The principal of a request, with all of it that a decision depends on.
#[derive(Debug, Clone, Copy)]
pub struct Requester<'a> {
    /// The principal.
    pub principal: &'a Principal,
    /// The address from which the principal calls, if the broker knows it.
    pub address: Option<IpAddr>,
    /// The address of another family from which the principal has called a moment ago, if the broker knows it.
    pub other_address: Option<IpAddr>,
    /// The openings of the principal's grants that are not closed yet, and of its requests that are being decided.
    pub held: &'a [Opening],
}

/// A port of a target that is, or will be, open for a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opening {
    /// The target.
    pub target: TargetId,
    /// The port.
    pub port: ProtectedPort,
    /// The source.
    pub source: SourcePrefix,
}

/// Decides a request: a policy that covers its target must allow each window, or the whole request is denied.
///
/// # Errors
/// The first limit that was met, in the order target, requester, port, source, duration.
pub fn authorize(
    request: &AccessRequest,
    requester: Requester<'_>,
    policies: &[impl Borrow<Policy>],
) -> Result<Authorized, Denial> {
    let principal = requester.principal;
    let mut authorized =
        Authorized { windows: Vec::new(), unreachable: Unreachable::Wait, approval_required: false };
    for target in request.targets() {
        let covering: Vec<&Policy> =
            policies.iter().map(Borrow::borrow).filter(|policy| policy.covers(target)).collect();
        if covering.is_empty() {
            let problem = format!("{target} is under no policy");
            let invalid = Invalid::new("targets", problem, "ask an administrator to put it under a policy");
            return Err(Denial {
                limit: PolicyLimit::Target,
                target: Some(Box::new(target.clone())),
                invalid,
            });
        }
        let mine: Vec<&Policy> = covering.into_iter().filter(|policy| policy.admits(principal)).collect();
        if mine.is_empty() {
            return Err(Denial::of_requester(principal.key(), target));
        }
        for &port in request.ports() {
            let rules: Vec<(&Policy, &PortRule)> =
                mine.iter().filter_map(|policy| Some((*policy, policy.rule(port)?))).collect();
            let place = Place::new(target, port, &rules, request, requester);
            for source in request.sources() {
                let policy = place.allowing(source)?;
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

/// A port of a target, with what a decision about one of its windows depends on.
///
/// A rule allows a window as a whole, by its own sources, width and duration: no two rules join to allow more than either does.
struct Place<'a> {
    target: &'a TargetId,
    port: ProtectedPort,
    duration: Duration,
    /// The address from which the principal calls.
    caller: Option<IpAddr>,
    /// The same in another family.
    other: Option<IpAddr>,
    rules: Vec<JudgedRule<'a>>,
}

/// A rule that admits the principal.
struct JudgedRule<'a> {
    policy: &'a Policy,
    rule: &'a PortRule,
    /// The prefix length that the principal's sources exceed if `*` of this rule allows them, for IPv4 and for IPv6.
    exceeded: [Option<u8>; 2],
}

impl<'a> Place<'a> {
    fn new(
        target: &'a TargetId,
        port: ProtectedPort,
        rules: &[(&'a Policy, &'a PortRule)],
        request: &AccessRequest,
        requester: Requester<'_>,
    ) -> Self {
        let (duration, caller, other) = (request.duration(), requester.address, requester.other_address);
        let no_width = |&(policy, rule)| JudgedRule { policy, rule, exceeded: [None, None] };
        let rules = rules.iter().map(no_width).collect();
        let mut place = Self { target, port, duration, caller, other, rules };
        // `*` is judged on the union of what is asked for and what is held, so that a range that is too wide cannot be had in
        // parts.
        let here = requester.held.iter().filter(|held| held.target == *target && held.port == port);
        let all: Vec<&SourcePrefix> = request.sources().iter().chain(here.map(|held| &held.source)).collect();
        let exceeded = |it: &JudgedRule<'_>| {
            [true, false].map(|is_ipv4| {
                let of_family = all.iter().copied().filter(|source| source.is_ipv4() == is_ipv4);
                it.rule.widest.exceeded_by(of_family.filter(|source| place.counts(it, source)))
            })
        };
        let widths: Vec<_> = place.rules.iter().map(exceeded).collect();
        for (it, exceeded) in place.rules.iter_mut().zip(widths) {
            it.exceeded = exceeded;
        }
        place
    }

    /// Reports whether a source counts in the union that `*` of a rule is judged on. It does not if a rule that asks for no more
    /// approval names it, nor if another rule names it and it alone is wider than `*` of this one allows: then it never comes
    /// through that.
    fn counts(&self, star: &JudgedRule<'_>, source: &SourcePrefix) -> bool {
        let mut naming = self
            .rules
            .iter()
            .filter(|it| self.is_long_enough(it.rule) && self.names(it.rule, source))
            .peekable();
        let is_too_wide =
            naming.peek().is_some() && star.rule.widest.exceeded_by(std::iter::once(source)).is_some();
        !is_too_wide && naming.all(|it| it.policy.approval_required && !star.policy.approval_required)
    }

    /// Returns a policy that allows the window, preferably one without an approval.
    fn allowing(&self, source: &SourcePrefix) -> Result<&'a Policy, Denial> {
        if self.rules.is_empty() {
            return self.deny_port();
        }
        let by_source = || self.rules.iter().filter(|it| self.names(it.rule, source) || it.rule.has_star());
        if by_source().next().is_none() {
            return self.deny_source(source);
        }
        let usable = || by_source().filter(|it| self.is_long_enough(it.rule));
        let exceeded = |it: &&JudgedRule<'a>| it.exceeded[usize::from(!source.is_ipv4())];
        let allows = |it: &&JudgedRule<'a>| {
            self.names(it.rule, source)
                || it.rule.has_star() && self.counts(it, source) && exceeded(it).is_none()
        };
        if let Some(it) = usable().filter(allows).min_by_key(|it| it.policy.approval_required) {
            return Ok(it.policy);
        }
        match usable().filter_map(|it| exceeded(&it)).min() {
            Some(length) => self.deny_width(length),
            None => self.deny_duration(by_source().map(|it| it.rule.max_duration).max().unwrap_or_default()),
        }
    }

    /// Reports whether the rule names the source, by a prefix or as the caller's own.
    fn names(&self, rule: &PortRule, source: &SourcePrefix) -> bool {
        rule.sources
            .iter()
            .any(|allowed| allowed.names(source, self.caller) || allowed.names(source, self.other))
    }

    fn is_long_enough(&self, rule: &PortRule) -> bool {
        self.duration <= rule.max_duration
    }

    fn deny_port<T>(&self) -> Result<T, Denial> {
        let problem = format!("{} is not a protected port of {}", self.port, self.target);
        let remedy = "see `postern targets` for the ports of each target";
        deny(PolicyLimit::Port, "ports", problem, remedy)
    }

    fn deny_source<T>(&self, source: &SourcePrefix) -> Result<T, Denial> {
        let allowed = self.rules.iter().flat_map(|it| &it.rule.sources);
        let allowed: BTreeSet<String> = allowed.map(|allowed| allowed.in_words(self.caller)).collect();
        let allowed = allowed.into_iter().collect::<Vec<_>>().join(", ");
        let problem = format!("{source} is not an allowed source for {} of {}", self.port, self.target);
        deny(PolicyLimit::Source, "sources", problem, &format!("ask for a source within {allowed}"))
    }

    fn deny_width<T>(&self, length: u8) -> Result<T, Denial> {
        let problem = format!(
            "the sources that you ask for, with those that you have open for {} of {}, hold more addresses than a /{length}",
            self.port, self.target
        );
        let remedy = format!("ask for sources of at most a /{length} in all, or revoke a grant first");
        deny(PolicyLimit::Source, "sources", problem, &remedy)
    }

    fn deny_duration<T>(&self, longest: Duration) -> Result<T, Denial> {
        let problem = format!(
            "{} s is beyond the maximum for {} of {}",
            self.duration.as_secs(),
            self.port,
            self.target
        );
        let remedy = format!("ask for at most {} s", longest.as_secs());
        deny(PolicyLimit::Duration, "duration", problem, &remedy)
    }
}

fn deny<T>(limit: PolicyLimit, field: &str, problem: String, remedy: &str) -> Result<T, Denial> {
    Err(Denial { limit, target: None, invalid: Invalid::new(field, problem, remedy) })
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
mod tests;
