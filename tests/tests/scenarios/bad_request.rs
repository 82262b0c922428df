//! Bad input over the wire: the right status, the field and the remedy, nothing changed, and an audit line where it was a
//! decision.

use std::time::Duration;

use postern_proto::v1;
use postern_tests::{HostWorld, Refusal, RequestBuilder, VM, a_policy, a_request};
use prost_types::Duration as WireDuration;
use tonic::Code;

/// A bad request: its fault, and what the answer must say.
struct Bad {
    what: &'static str,
    ask: RequestBuilder,
    code: Code,
    field: &'static str,
    says: &'static str,
    /// A decision against policy, which is audited; the rest is not even a request.
    decision: bool,
}

fn usual() -> RequestBuilder {
    a_request().on(VM).port("tcp/22").from("192.0.2.20").seconds(60)
}

fn bad_requests() -> Vec<Bad> {
    let malformed =
        |what, field, says, ask| Bad { what, ask, code: Code::InvalidArgument, field, says, decision: false };
    let denied =
        |what, field, says, ask| Bad { what, ask, code: Code::PermissionDenied, field, says, decision: true };
    let source = |source: &str| usual().but(|wire| wire.sources = vec![source.to_owned()]);
    let port = |number| usual().but(|wire| wire.ports[0].number = number);
    let lasting = |seconds, nanos| usual().but(|wire| wire.duration = Some(WireDuration { seconds, nanos }));
    let because = |text: &str| usual().but(|wire| wire.justification = text.to_owned());
    let mut bad = vec![
        denied("an unknown target", "targets", "named in its policy", usual().on("host:nowhere")),
        malformed("no target", "targets", "name at least one", usual().but(|wire| wire.targets.clear())),
        malformed(
            "a malformed target",
            "targets[0]",
            "host:<name>",
            usual().but(|wire| wire.targets[0] = "vm-1".into()),
        ),
        malformed("no port", "ports", "name at least one", usual().but(|wire| wire.ports.clear())),
        malformed("port 0", "ports[0].number", "1 to 65535", port(0)),
        malformed("port 65536", "ports[0].number", "1 to 65535", port(65_536)),
        malformed(
            "an unknown protocol",
            "ports[0].protocol",
            "tcp or udp",
            usual().but(|wire| wire.ports[0].protocol = 9),
        ),
        denied("a port outside the policy", "ports", "see `postern targets`", usual().port("tcp/3389")),
        denied("a protocol outside the policy", "ports", "see `postern targets`", usual().port("udp/22")),
        malformed("no duration", "duration", "positive duration", usual().but(|wire| wire.duration = None)),
        malformed("duration zero", "duration", "1s or more", lasting(0, 0)),
        malformed("a negative duration", "duration", "positive duration", lasting(-60, 0)),
        malformed("half a second more", "duration", "whole seconds", lasting(60, 500_000_000)),
        denied("a duration beyond the maximum", "duration", "at most 3600 s", lasting(3601, 0)),
        denied("a duration beyond the end of time", "duration", "at most 3600 s", lasting(i64::MAX, 0)),
        malformed("a malformed range", "sources[0]", "203.0.113.7", source("192.0.2.0/33")),
        malformed("a name for a source", "sources[0]", "203.0.113.7", source("example.org")),
        malformed("host bits set", "sources[0]", "write 10.0.0.0/8", source("10.1.2.3/8")),
        malformed(
            "an IPv4-mapped IPv6 source",
            "sources[0]",
            "write 192.0.2.20",
            source("::ffff:192.0.2.20"),
        ),
        malformed(
            "an IPv4-mapped IPv6 range",
            "sources[0]",
            "write 192.0.2.0/24",
            source("::ffff:192.0.2.0/120"),
        ),
        denied("the whole internet", "sources", "at most a /16 in all", source("0.0.0.0/0")),
        denied("the whole IPv6 internet", "sources", "at most a /32 in all", source("::/0")),
        malformed("an empty justification", "justification", "why access is needed", because("  ")),
        malformed("a justification of 10 kB", "justification", "at most 500", because(&"x".repeat(10_240))),
        malformed("a wait past the maximum", "wait", "at most 60s", usual().waiting(Duration::from_secs(61))),
        malformed("a key with control characters", "idempotency_key", "printable", usual().key("a\nb")),
        malformed("a key that is too long", "idempotency_key", "at most 64", usual().key(&"k".repeat(65))),
    ];
    for text in ["two\nlines", "a bell \u{7}", "an escape \u{1b}[31m", "reordered \u{202e}", "a null \0"] {
        bad.push(malformed(
            "control characters in a justification",
            "justification",
            "printable",
            because(text),
        ));
    }
    bad
}

#[test]
fn i7_every_bad_request_is_refused_with_its_field_and_remedy_and_changes_nothing() {
    let world = HostWorld::without_agent(a_policy().on(VM).port("tcp/22"));
    // The broker records the certificate that the world has just issued when it next looks.
    let audit = || -> Vec<String> {
        let lines = world.admin.audit_without_checkpoints().into_iter();
        lines.filter(|line| !line.contains("principal.issued")).collect()
    };
    for bad in bad_requests() {
        let before = audit().len();
        let refused = Refusal::from(world.alice.request(&bad.ask).expect_err(bad.what));
        assert_eq!(
            (refused.code, refused.field.as_str()),
            (bad.code, bad.field),
            "{}: {refused:?}",
            bad.what
        );
        assert!(refused.description.contains(bad.says), "{}: {refused:?}", bad.what);
        let log = audit();
        assert_eq!(log.len() - before, usize::from(bad.decision), "audit lines of {}: {log:#?}", bad.what);
        if let Some(line) = log.get(before) {
            assert!(line.contains("\"denied\"") && line.contains("\"requester/alice\""), "{line}");
        }
    }
    assert!(world.admin.grants().is_empty());
}

#[test]
fn every_bad_policy_is_refused_with_its_field_and_remedy_and_changes_nothing() {
    let world = HostWorld::without_agent(a_policy().on(VM).port("tcp/22"));
    let good = || a_policy().named("other").on(VM).port("tcp/22").wire();
    let changed = |change: fn(&mut v1::Policy)| {
        let mut policy = good();
        change(&mut policy);
        policy
    };
    let before = world.admin.audit_without_checkpoints().len();
    for (field, says, policy) in [
        ("name", "a-z", changed(|p| p.name = "a\tb".into())),
        ("name", "a-z", changed(|p| p.name.clear())),
        ("targets", "name a target", changed(|p| p.targets.clear())),
        ("targets[0]", "host:", changed(|p| p.targets[0] = "nowhere-*".into())),
        ("ports", "at least one port", changed(|p| p.ports.clear())),
        ("ports[1].port", "join the two rules", changed(|p| p.ports.push(p.ports[0].clone()))),
        ("ports[0].port.number", "1 to 65535", changed(|p| p.ports[0].port.as_mut().unwrap().number = 0)),
        ("ports[0].sources", "name a range", changed(|p| p.ports[0].sources.clear())),
        ("ports[0].sources[0]", "write 10.0.0.0/8", changed(|p| p.ports[0].sources[0] = "10.0.0.1/8".into())),
        (
            "ports[0].max_duration",
            "1s to 24h",
            changed(|p| p.ports[0].max_duration.as_mut().unwrap().seconds = 86_401),
        ),
        ("requesters[0]", "a-z", changed(|p| p.requesters = vec!["al\u{202e}ice".into()])),
        ("mode", "enforce or monitor", changed(|p| p.mode = 0)),
        ("layers", "host, cloud or both", changed(|p| p.layers = 0)),
        ("layers", "layers = \"host\"", changed(|p| p.layers = v1::Layers::Both.into())),
        ("unreachable", "fail or wait", changed(|p| p.unreachable = 0)),
    ] {
        let refused = Refusal::from(world.admin.put_policy(policy).expect_err(field));
        assert_eq!((refused.code, refused.field.as_str()), (Code::InvalidArgument, field), "{refused:?}");
        assert!(refused.description.contains(says), "{refused:?}");
    }
    let stale = v1::Policy { version: 7, ..a_policy().on(VM).port("tcp/22").wire() };
    assert_eq!(world.admin.put_policy(stale).unwrap_err().code(), Code::Aborted);
    assert_eq!(
        world.admin.audit_without_checkpoints().len(),
        before,
        "nothing was changed, so nothing was written"
    );
}

#[test]
fn what_people_write_beside_a_request_is_checked_too() {
    let world = HostWorld::without_agent(a_policy().on(VM).port("tcp/22"));
    let refused = |status: tonic::Status| {
        let refusal = Refusal::from(status);
        (refusal.code, refusal.field)
    };
    let reason = || "a\u{1b}[2Jb".to_owned();
    let revoke = v1::RevokeAccessRequest { grant_id: "x".into(), reason: reason(), ..Default::default() };
    let revoked = world.alice.run(|channel| async move {
        v1::access_service_client::AccessServiceClient::new(channel).revoke_access(revoke).await
    });
    assert_eq!(refused(revoked.unwrap_err()), (Code::InvalidArgument, "grant_id".into()));
    let revoke = v1::RevokeAccessRequest {
        grant_id: "01arz3ndektsv4rrffq69g5fav".into(),
        reason: reason(),
        ..Default::default()
    };
    let revoked = world.alice.run(|channel| async move {
        v1::access_service_client::AccessServiceClient::new(channel).revoke_access(revoke).await
    });
    assert_eq!(refused(revoked.unwrap_err()), (Code::InvalidArgument, "reason".into()));
    let ban = v1::BanAgentRequest { target: VM.into(), reason: reason() };
    let banned = world.admin.run(|channel| async move {
        v1::agent_service_client::AgentServiceClient::new(channel).ban_agent(ban).await
    });
    assert_eq!(refused(banned.unwrap_err()), (Code::InvalidArgument, "reason".into()));
    assert_eq!(
        refused(world.admin.join_token("host:a b", None).unwrap_err()),
        (Code::InvalidArgument, "target".into())
    );
    assert_eq!(world.admin.ban("host:unknown").unwrap_err().code(), Code::NotFound);
}

#[test]
fn the_reserved_parts_of_the_interface_say_so() {
    let world = HostWorld::without_agent(a_policy().on(VM).port("tcp/22"));
    let needs_approval =
        v1::Policy { approval_required: true, ..a_policy().named("later").on(VM).port("tcp/22").wire() };
    assert_eq!(world.admin.put_policy(needs_approval).unwrap_err().code(), Code::Unimplemented);
    let approve = world.admin.run(|channel| async move {
        let request = v1::ApproveAccessRequest { grant_id: "01arz3ndektsv4rrffq69g5fav".into() };
        v1::access_service_client::AccessServiceClient::new(channel).approve_access(request).await
    });
    assert_eq!(approve.unwrap_err().code(), Code::Unimplemented);
}
