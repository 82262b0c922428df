//! Policies, and the decision that they make: whether a principal may have the windows of a request.
//!
//! This module keeps I7: a request that no policy allows is denied, and the denial names the limit.

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
        self.ports.iter().any(|rule| rule.sources.contains(&AllowedSource::Any))
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
    /// The policies that allow the windows. The decision holds while each of them stays as it was read.
    pub policies: BTreeSet<Name>,
}

/// The principal of a request, with all of it that a decision depends on.
#[derive(Debug, Clone, Copy)]
pub struct Requester<'a> {
    /// The principal.
    pub principal: &'a Principal,
    /// The address from which the principal calls, if the broker knows it.
    pub address: Option<IpAddr>,
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
    policies: &[Policy],
) -> Result<Authorized, Denial> {
    let principal = requester.principal;
    let mut authorized = Authorized {
        windows: Vec::new(),
        unreachable: Unreachable::Wait,
        approval_required: false,
        policies: BTreeSet::new(),
    };
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
            let problem = format!("{} may not request access to {target}", principal.key());
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
            let place = Place { target, port, rules: &rules };
            place.judge_union(request, requester)?;
            for source in request.sources() {
                let policy = place.allowing(source, requester.address, request.duration())?;
                authorized.policies.insert(policy.name.clone());
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

/// A port of a target, with the rules for it that admit the principal.
struct Place<'a> {
    target: &'a TargetId,
    port: ProtectedPort,
    rules: &'a [(&'a Policy, &'a PortRule)],
}

impl<'a> Place<'a> {
    /// Denies a request whose sources, together with those that the principal holds here, are wider than `*` allows.
    ///
    /// `*` is judged on the union, so that a range that is too wide cannot be had in parts. Sources that a prefix or `caller`
    /// allows do not count.
    fn judge_union(&self, request: &AccessRequest, requester: Requester<'_>) -> Result<(), Denial> {
        let stars = self.rules.iter().filter(|(_, rule)| rule.sources.contains(&AllowedSource::Any));
        let Some(widest) = stars.map(|(_, rule)| rule.widest).reduce(WidestPrefix::max) else {
            return Ok(());
        };
        let through_star = |source: &&SourcePrefix| {
            let mut others = self.rules.iter().flat_map(|(_, rule)| &rule.sources);
            !others.any(|allowed| *allowed != AllowedSource::Any && allowed.allows(source, requester.address))
        };
        let asked = request.sources().iter().filter(through_star);
        let here = requester.held.iter().filter(|held| held.target == *self.target && held.port == self.port);
        // A family that the request does not ask for is as it was.
        let in_asked_family = |held: &&SourcePrefix| asked.clone().any(|new| new.is_ipv4() == held.is_ipv4());
        let held = here.map(|held| &held.source).filter(through_star).filter(in_asked_family);
        let Some(length) = widest.exceeded_by(asked.clone().chain(held)) else { return Ok(()) };
        let problem = format!(
            "the sources that you ask for, with those that you have open for {} of {}, hold more addresses than a /{length}",
            self.port, self.target
        );
        let remedy = format!("ask for sources of at most a /{length} in all, or revoke a grant first");
        deny(PolicyLimit::Source, "sources", problem, &remedy)
    }

    /// Returns a policy that allows the window, preferably one without an approval.
    fn allowing(
        &self,
        source: &SourcePrefix,
        caller: Option<IpAddr>,
        duration: Duration,
    ) -> Result<&'a Policy, Denial> {
        let Self { target, port, rules } = self;
        if rules.is_empty() {
            let problem = format!("{port} is not a protected port of {target}");
            return deny(
                PolicyLimit::Port,
                "ports",
                problem,
                "see `postern targets` for the ports of each target",
            );
        }
        let by_source: Vec<_> = rules
            .iter()
            .filter(|(_, rule)| rule.sources.iter().any(|allowed| allowed.allows(source, caller)))
            .collect();
        if by_source.is_empty() {
            let allowed: BTreeSet<String> = rules
                .iter()
                .flat_map(|(_, rule)| &rule.sources)
                .map(|allowed| allowed.in_words(caller))
                .collect();
            let allowed = allowed.into_iter().collect::<Vec<_>>().join(", ");
            let problem = format!("{source} is not an allowed source for {port} of {target}");
            return deny(
                PolicyLimit::Source,
                "sources",
                problem,
                &format!("ask for a source within {allowed}"),
            );
        }
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
    use crate::{DisplayName, Issuer, Justification, Subject};

    fn a_policy() -> Policy {
        Policy {
            name: Name::new("web").unwrap(),
            targets: vec!["host:web-*".parse().unwrap()],
            ports: vec![PortRule {
                port: "tcp/22".parse().unwrap(),
                sources: vec!["10.0.0.0/8".parse().unwrap()],
                widest: WidestPrefix::default(),
                max_duration: Duration::from_secs(3600),
            }],
            requesters: vec![],
            approval_required: false,
            layers: Layers::Host,
            unreachable: Unreachable::Fail,
            mode: Mode::Enforce,
            max_open_grants: None,
        }
    }

    fn alice() -> Principal {
        Principal::local(Role::Requester, Name::new("alice").unwrap())
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
        limit_met_from(None, &[], request, policies)
    }

    fn limit_met_from(
        address: Option<&str>,
        held: &[&str],
        request: &AccessRequest,
        policies: &[Policy],
    ) -> Option<PolicyLimit> {
        let window = |text: &&str| {
            let (target, source) = text.split_once(' ').unwrap();
            Opening {
                target: target.parse().unwrap(),
                port: "tcp/22".parse().unwrap(),
                source: source.parse().unwrap(),
            }
        };
        let held: Vec<Opening> = held.iter().map(window).collect();
        let alice = alice();
        let address = address.map(|address| address.parse().unwrap());
        let requester = Requester { principal: &alice, address, held: &held };
        authorize(request, requester, policies).err().map(|denial| denial.limit)
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
        let policy = Policy { requesters: vec!["bob".parse().unwrap()], ..a_policy() };
        assert_eq!(
            limit_met(&asks("host:web-1", "tcp/22", "10.0.0.1", 60), &[policy]),
            Some(PolicyLimit::Requester)
        );
    }

    #[test]
    fn i7_a_policy_names_a_requester_by_its_key_and_never_by_its_display_name() {
        let foreign = |subject: &str| {
            let issuer = Issuer::new("https://issuer.example").unwrap();
            let (subject, shown) = (Subject::new(subject).unwrap(), DisplayName::new("alice").unwrap());
            Principal::foreign(Role::Requester, issuer, subject, shown)
        };
        let of = |who: &str| Policy { requesters: vec![who.parse().unwrap()], ..a_policy() };
        let text = "https://issuer.example#alice";
        for (policy, local, same, other) in
            [(of("alice"), true, false, false), (of(text), false, true, false)]
        {
            let admitted = [alice(), foreign("alice"), foreign("bob")].map(|who| policy.admits(&who));
            assert_eq!(admitted, [local, same, other], "{:?}", policy.requesters);
            let json = serde_json::to_string(&policy).unwrap();
            assert_eq!(serde_json::from_str::<Policy>(&json).unwrap(), policy);
        }
    }

    #[test]
    fn i7_a_policy_as_it_was_stored_before_foreign_issuers_opens_and_is_written_the_same() {
        let text = concat!(
            r#"{"name":"web","targets":["host:vm-*"],"ports":[{"port":"tcp/22","sources":["*"],"#,
            r#""max_duration":{"secs":10800,"nanos":0}}],"requesters":["alice"],"approval_required":false,"#,
            r#""layers":"host","unreachable":"wait","mode":"enforce"}"#,
        );
        let policy: Policy = serde_json::from_str(text).unwrap();
        assert!(policy.admits(&alice()));
        assert_eq!(serde_json::to_string(&policy).unwrap(), text);
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
    fn i7_a_star_allows_no_range_that_is_too_wide_in_one_or_in_parts() {
        let mut policy = a_policy();
        policy.ports[0].sources = vec![AllowedSource::Any, "10.0.0.0/8".parse().unwrap()];
        let policies = [policy];
        let denied = Some(PolicyLimit::Source);
        for (held, source, limit) in [
            (&[][..], "0.0.0.0/1", denied),
            (&[], "203.0.0.0/16", None),
            (&[], "203.0.0.0/15", denied),
            (&[], "2001:db8::/32", None),
            (&[], "2000::/31", denied),
            (&["host:web-1 203.0.0.0/16"], "203.1.0.0/32", denied),
            (&["host:web-1 203.0.0.0/17", "host:web-1 9.0.0.0/18"], "203.0.128.0/18", None),
            (&["host:web-1 203.0.0.0/17", "host:web-1 9.0.0.0/18"], "203.0.128.0/17", denied),
            (&["host:web-1 203.0.0.0/16"], "203.0.0.0/16", None),
            (&["host:web-1 203.0.0.0/16"], "203.0.4.0/24", None),
            (&["host:web-2 203.0.0.0/16"], "203.1.0.0/16", None),
            (&["host:web-1 203.0.0.0/16"], "2001:db8::1", None),
            // A prefix allows what it names, however wide, and it counts for nothing.
            (&["host:web-1 203.0.0.0/16"], "10.0.0.0/8", None),
            (&["host:web-1 10.0.0.0/8"], "203.0.0.0/16", None),
        ] {
            let request = asks("host:web-1", "tcp/22", source, 60);
            assert_eq!(limit_met_from(None, held, &request, &policies), limit, "{held:?} {source}");
        }
        let halves = AccessRequest::new(
            vec!["host:web-1".parse().unwrap()],
            vec!["tcp/22".parse().unwrap()],
            vec!["203.0.0.0/16".parse().unwrap(), "203.1.0.0/16".parse().unwrap()],
            Duration::from_secs(60),
            Justification::new("test").unwrap(),
        );
        assert_eq!(limit_met(&halves.unwrap(), &policies), denied);
    }

    #[test]
    fn i7_the_widest_prefix_is_the_policys() {
        let mut policy = a_policy();
        policy.ports[0].sources = vec![AllowedSource::Any];
        policy.ports[0].widest = WidestPrefix { ipv4: 32, ipv6: 64 };
        let policies = [policy.clone()];
        let met = |source| limit_met(&asks("host:web-1", "tcp/22", source, 60), &policies);
        assert_eq!((met("192.0.2.1"), met("192.0.2.0/31")), (None, Some(PolicyLimit::Source)));
        assert_eq!((met("2001:db8::/64"), met("2001:db8::/63")), (None, Some(PolicyLimit::Source)));
        for (ipv4, ipv6, field) in [(0, 32, "ipv4"), (33, 32, "ipv4"), (16, 0, "ipv6"), (16, 129, "ipv6")] {
            policy.ports[0].widest = WidestPrefix { ipv4, ipv6 };
            let invalid = policy.clone().checked().unwrap_err();
            assert_eq!(invalid.field, format!("ports[0].widest.{field}"));
        }
    }

    #[test]
    fn i7_a_caller_source_allows_the_callers_own_address_and_no_other() {
        let mut policy = a_policy();
        policy.ports[0].sources = vec![AllowedSource::Caller];
        let policies = [policy];
        let from = |address, source| {
            limit_met_from(address, &[], &asks("host:web-1", "tcp/22", source, 60), &policies)
        };
        assert_eq!(from(Some("192.0.2.7"), "192.0.2.7"), None);
        assert_eq!(from(Some("::ffff:192.0.2.7"), "192.0.2.7"), None);
        assert_eq!(from(Some("2001:db8::7"), "2001:db8::7"), None);
        for (address, source) in [
            (Some("192.0.2.7"), "192.0.2.8"),
            (Some("192.0.2.7"), "192.0.2.0/24"),
            (Some("192.0.2.7"), "192.0.2.6/31"),
            (Some("2001:db8::7"), "2001:db8::/64"),
            (None, "192.0.2.7"),
        ] {
            assert_eq!(from(address, source), Some(PolicyLimit::Source), "{address:?} {source}");
        }
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
