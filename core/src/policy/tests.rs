//! Policies: what each limit denies, and what a principal may hold in all.

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
    let requester = Requester { principal: &alice, address, other_address: None, held: &held };
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
    for (policy, local, same, other) in [(of("alice"), true, false, false), (of(text), false, true, false)] {
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
fn i7_no_two_rules_join_to_allow_more_than_either() {
    let policy = |name: &str, sources: &[&str], ipv4: u8, hours: u64| {
        let mut policy = Policy { name: Name::new(name).unwrap(), ..a_policy() };
        policy.ports[0].sources = sources.iter().map(|source| source.parse().unwrap()).collect();
        policy.ports[0].widest = WidestPrefix { ipv4, ipv6: 32 };
        policy.ports[0].max_duration = Duration::from_secs(hours * 3600);
        policy
    };
    let (day, hour) = (24 * 3600, 3600);
    let denied = Some(PolicyLimit::Source);
    // The width of one star and the duration of another.
    let stars = [policy("narrow-day", &["*"], 32, 24), policy("wide-hour", &["*"], 16, 1)];
    // A prefix for an hour, and a star that is narrow, for a day.
    let named = [policy("named-hour", &["203.0.0.0/8"], 16, 1), policy("narrow-day", &["*"], 32, 24)];
    for (policies, held, source, seconds, limit) in [
        (&stars, &[][..], "203.0.0.0/16", day, denied),
        (&stars, &[], "203.0.0.0/16", hour, None),
        (&stars, &[], "203.0.0.1", day, None),
        (&stars, &[], "203.0.0.1", day + 1, Some(PolicyLimit::Duration)),
        (&named, &[], "203.0.0.0/8", day, denied),
        (&named, &[], "203.0.0.0/8", hour, None),
        (&named, &[], "203.0.0.1", day, None),
        (&named, &["host:web-1 203.0.0.1"], "203.0.0.2", day, denied),
        (&named, &["host:web-1 203.0.0.1"], "203.0.0.2", hour, None),
    ] {
        let request = asks("host:web-1", "tcp/22", source, seconds);
        assert_eq!(limit_met_from(None, held, &request, policies), limit, "{held:?} {source} {seconds}");
    }
}

#[test]
fn i11_a_window_needs_no_approval_if_one_rule_allows_it_whole_without() {
    let policy = |name: &str, sources: &[&str], approval_required| {
        let mut policy = Policy { name: Name::new(name).unwrap(), approval_required, ..a_policy() };
        policy.ports[0].sources = sources.iter().map(|source| source.parse().unwrap()).collect();
        policy.ports[0].widest = WidestPrefix { ipv4: 24, ipv6: 32 };
        policy
    };
    let star = policy("any", &["*"], false);
    let named = policy("named", &["10.0.0.0/8"], true);
    let star_too = policy("any-approved", &["*"], true);
    let (approved, free, denied) = (Some(true), Some(false), None);
    for (policies, held, sources, expected) in [
        (&[&star, &named][..], &[][..], &["10.1.2.3"][..], free),
        (&[&named, &star], &[], &["10.1.2.0/24"], free),
        (&[&star, &named], &[], &["10.1.0.0/16"], approved),
        (&[&star, &named], &[], &["192.0.2.0/24"], free),
        (&[&star, &named], &[], &["192.0.2.0/23"], denied),
        // What is named and alone too wide for `*` never comes through it, and does not count there.
        (&[&star, &named], &["10.0.0.0/8"], &["192.0.2.0/24"], free),
        (&[&star, &named], &[], &["10.0.0.0/8", "192.0.2.0/24"], approved),
        // A range that is too wide cannot be had in parts without an approval.
        (&[&star, &named], &["192.0.2.0/24"], &["10.1.2.0/24"], approved),
        (&[&star, &named], &["10.1.2.0/24"], &["192.0.2.0/24"], denied),
        (&[&star, &named], &["10.1.2.0/24"], &["10.1.3.0/24"], approved),
        (&[&named], &[], &["10.1.2.3"], approved),
        (&[&star_too, &named], &["10.1.2.0/24"], &["192.0.2.0/24"], approved),
        (&[&star_too, &policy("named-free", &["10.0.0.0/8"], false)], &[], &["10.0.0.0/8"], free),
    ] {
        let policies: Vec<Policy> = policies.iter().map(|&policy| policy.clone()).collect();
        let opening = |source: &&str| Opening {
            target: "host:web-1".parse().unwrap(),
            port: "tcp/22".parse().unwrap(),
            source: source.parse().unwrap(),
        };
        let held: Vec<Opening> = held.iter().map(opening).collect();
        let request = AccessRequest::new(
            vec!["host:web-1".parse().unwrap()],
            vec!["tcp/22".parse().unwrap()],
            sources.iter().map(|source| source.parse().unwrap()).collect(),
            Duration::from_secs(60),
            Justification::new("test").unwrap(),
        )
        .unwrap();
        let alice = alice();
        let requester = Requester { principal: &alice, address: None, other_address: None, held: &held };
        let decided = authorize(&request, requester, &policies).ok().map(|it| it.approval_required);
        assert_eq!(decided, expected, "{sources:?} beside {held:?}");
    }
}

#[test]
fn i7_a_caller_source_allows_the_callers_own_address_and_no_other() {
    let mut policy = a_policy();
    policy.ports[0].sources = vec![AllowedSource::Caller];
    let policies = [policy];
    let from =
        |address, source| limit_met_from(address, &[], &asks("host:web-1", "tcp/22", source, 60), &policies);
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
