//! I7: no caller gets more than it is allowed. Every RPC against every kind of caller, and what one may see of another's.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use http::uri::PathAndQuery;
use postern_core::Role;
use postern_pki::authority::Authority;
use postern_pki::credentials::{Credentials, KeyPair};
use postern_pki::identity::{SpiffeId, TrustDomain};
use postern_pki::tls::pinned_client_config;
use postern_proto::client::channel;
use postern_proto::v1;
use postern_tests::clock::wall;
use postern_tests::{Client, FakeAgent, Host, HostWorld, Refusal, VM, a_request, ask_for, usual_policy};
use prost::Message as _;
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// A second target, whose agent the test leads by hand.
const OTHER: &str = "host:vm-2";

/// The callers that may call each RPC, written down independently of the broker: a administrator, q requester, r reader, g
/// agent, n a caller that the broker does not know.
const MAY_CALL: &[(&str, &str)] = &[
    ("AccessService/RequestAccess", "aq"),
    ("AccessService/GetCallerAddress", "aq"),
    ("AccessService/ApproveAccess", "a"),
    ("AccessService/DenyAccess", "a"),
    ("AccessService/RevokeAccess", "aq"),
    ("AccessService/GetGrant", "aqr"),
    ("AccessService/ListGrants", "aqr"),
    ("AccessService/WatchGrants", "aqr"),
    ("PolicyService/PutPolicy", "a"),
    ("PolicyService/GetPolicy", "ar"),
    ("PolicyService/ListPolicies", "aqr"),
    ("PolicyService/DeletePolicy", "a"),
    ("TargetService/AssessTargets", "ar"),
    ("TargetService/LockdownTargets", "a"),
    ("TargetService/ReleaseTargets", "a"),
    ("TargetService/ListTargets", "aqr"),
    ("TargetService/GetTarget", "aqr"),
    ("AgentService/CreateJoinToken", "a"),
    ("AgentService/Enroll", "aqrgn"),
    ("AgentService/Renew", "g"),
    ("AgentService/ListAgents", "ar"),
    ("AgentService/BanAgent", "a"),
    ("AgentService/ForgetAgent", "a"),
    ("AgentService/Session", "g"),
    ("PrincipalService/RevokePrincipal", "a"),
    ("PrincipalService/ListPrincipals", "ar"),
    ("AuditService/TailAudit", "ar"),
    ("AuditService/VerifyAudit", "ar"),
    ("StatusService/GetStatus", "ar"),
];

/// Lists every RPC of `postern.v1`, as `Service/Method`.
fn every_rpc() -> BTreeSet<String> {
    let set = prost_types::FileDescriptorSet::decode(postern_proto::FILE_DESCRIPTOR_SET).unwrap();
    let services =
        set.file.into_iter().filter(|file| file.package() == "postern.v1").flat_map(|file| file.service);
    let rpcs = services.flat_map(|service| {
        let name = service.name().to_owned();
        service.method.into_iter().map(move |method| format!("{name}/{}", method.name()))
    });
    rpcs.collect()
}

#[test]
fn i7_every_rpc_admits_exactly_the_callers_that_it_should() {
    let world = HostWorld::without_agent(usual_policy());
    let table: BTreeMap<&str, &str> = MAY_CALL.iter().copied().collect();
    assert_eq!(
        every_rpc(),
        table.keys().map(|rpc| (*rpc).to_owned()).collect(),
        "the table above misses an RPC"
    );

    let agent = FakeAgent::enroll(
        &world.net.vm,
        world.broker.url(),
        &token(&world, OTHER),
        &world.dir().join("agent"),
    );
    let agent = Client::new(&world.net.vm, world.broker.url(), agent.unwrap().identity());
    let callers = [
        ('a', world.admin.clone()),
        ('q', world.alice.clone()),
        ('r', world.broker.client(&world.net.mallory, "rita", Role::Reader)),
        ('g', agent),
    ];
    for (kind, client) in &callers {
        for (rpc, may) in &table {
            let answer = client.run({
                let path = path(rpc);
                |channel| call(channel, path)
            });
            let admitted = !denied_at_the_gate(answer.as_ref().err());
            assert_eq!(admitted, may.contains(*kind), "{rpc} by {kind}: {answer:?}");
        }
    }
    for (rpc, may) in &table {
        let answer = call_without_certificate(&world, &world.net.mallory, path(rpc));
        assert_eq!(
            !denied_at_the_gate(answer.as_ref().err()),
            may.contains('n'),
            "{rpc} by an unknown caller: {answer:?}"
        );
    }

    // Every denial of someone known is a decision, and stands in the log.
    let log = world.admin.audit();
    for (actor, kind) in [("requester/alice", 'q'), ("reader/rita", 'r'), ("agent/host:vm-2", 'g')] {
        for (rpc, _) in table.iter().filter(|(_, may)| !may.contains(kind)) {
            let written = |line: &&String| {
                line.contains(&format!("{actor:?}"))
                    && line.contains("\"denied\"")
                    && line.contains(&path(rpc).to_string())
            };
            assert!(log.iter().any(|line| written(&line)), "no audit line for {rpc} by {actor}");
        }
    }
}

fn path(rpc: &str) -> PathAndQuery {
    format!("/postern.v1.{rpc}").parse().unwrap()
}

/// Calls with an empty message. Unary or streaming is the same on the wire, as far as one message goes.
async fn call(channel: Channel, path: PathAndQuery) -> Result<(), Status> {
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    let request = tonic::Request::new(tokio_stream::once(()));
    let mut answer = grpc.streaming(request, path, codec).await?.into_inner();
    // A stream that stays quiet was let through.
    match timeout(Duration::from_millis(200), answer.message()).await {
        Ok(message) => message.map(|_| ()),
        Err(_) => Ok(()),
    }
}

fn call_without_certificate(world: &HostWorld, host: &Host, path: PathAndQuery) -> Result<(), Status> {
    let token: postern_pki::join::JoinToken = token(world, VM).parse().unwrap();
    let tls = pinned_client_config(token.fingerprint()).unwrap();
    let url = world.broker.url().to_owned();
    host.netns().run(async move { call(channel(&url, tls).unwrap(), path).await })
}

fn denied_at_the_gate(status: Option<&Status>) -> bool {
    let reason = status.map(|status| Refusal::from(status.clone()).reason);
    matches!(reason.as_deref(), Some("RPC_NOT_ALLOWED" | "CERTIFICATE_REQUIRED"))
}

fn token(world: &HostWorld, target: &str) -> String {
    world.admin.join_token(target, None).unwrap()
}

#[test]
fn i7_a_certificate_of_another_authority_or_of_the_past_opens_no_connection() {
    let world = HostWorld::without_agent(usual_policy());
    let (now, domain) = (wall(), TrustDomain::default());
    let principal = |role, name| SpiffeId::Principal { role, name: postern_core::Name::new(name).unwrap() };
    let foreign = Authority::init(&world.dir().join("foreign"), &domain, now).unwrap();
    let own = Authority::load(&world.broker.data_dir().join("ca"), &domain).unwrap();
    // An authority signs nothing for a time before its own.
    let before = now.checked_sub(Duration::from_secs(30)).unwrap();
    let identities = [
        ("foreign", &foreign, now, Duration::from_secs(3600)),
        ("expired", &own, before, Duration::from_secs(10)),
    ];
    for (name, authority, issued_at, valid_for) in identities {
        let key = KeyPair::generate().unwrap();
        let identity = principal(Role::Administrator, name);
        let issued = authority.issue(&key.csr().unwrap(), &identity, valid_for, issued_at).unwrap();
        // It trusts the broker, so that the connection fails on the broker's own check.
        let directory = world.dir().join(name);
        Credentials::new(key, issued.chain, own.roots()).unwrap().save(&directory).unwrap();
        let client = Client::new(&world.net.mallory, world.broker.url(), &directory);
        let refused = client.grant("01arz3ndektsv4rrffq69g5fav").unwrap_err();
        assert!(
            matches!(refused.code(), Code::Unavailable | Code::Unknown | Code::Cancelled),
            "{name}: {refused:?}"
        );
    }
    assert!(!world.admin.audit().iter().any(|line| line.contains("foreign") || line.contains("expired")));
}

#[test]
fn i7_a_requester_neither_sees_nor_revokes_what_is_anothers() {
    let world = HostWorld::new();
    let bob = world.broker.client(&world.net.mallory, "bob", Role::Requester);
    let grant = world.alice.open(&ask_for(&world.net.alice).seconds(60));
    assert_eq!(bob.grant(&grant.id).unwrap_err().code(), Code::NotFound);
    assert_eq!(bob.revoke(&grant.id).unwrap_err().code(), Code::NotFound);
    assert!(bob.grants().is_empty());
    assert_eq!(world.alice.grants().len(), 1);
    let reader = world.broker.client(&world.net.mallory, "rita", Role::Reader);
    assert_eq!(reader.grant(&grant.id).unwrap().id, grant.id);
    assert_eq!(reader.revoke(&grant.id).unwrap_err().code(), Code::PermissionDenied);
}

#[test]
fn i7_an_agent_receives_its_own_target_and_speaks_for_no_other() {
    let world = HostWorld::under(usual_policy().on(OTHER));
    let agent = other_agent(&world, &world.dir().join("other-agent"));
    let session = agent.session().unwrap();
    session.applied(session.desired().generation);
    let grant = world.alice.open(&ask_for(&world.net.alice).seconds(60));
    // The VM's agent received the window; this one receives nothing new.
    assert_eq!(session.desired_within(Duration::from_millis(500)), None);

    let second =
        world.alice.request(&a_request().on(OTHER).port("tcp/22").from("192.0.2.20").seconds(60)).unwrap();
    let desired = session.desired();
    let second = second.grant.unwrap().id;
    assert_eq!(desired.windows.iter().map(|window| window.grant_id.clone()).collect::<Vec<_>>(), [second]);
    assert_ne!(desired.windows[0].grant_id, grant.id);
}

#[test]
fn i7_the_owner_of_an_agents_certificate_gets_no_further_than_that_agent() {
    let world = HostWorld::new();
    // A thief on another host, with the certificate that the VM's agent earned.
    let stolen = world.agent.state_dir().join("identity");
    let thief = FakeAgent::with_identity(&world.net.mallory, world.broker.url(), &stolen);
    let client = Client::new(&world.net.mallory, world.broker.url(), &stolen);
    assert_eq!(client.request(&ask_for(&world.net.mallory)).unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(client.put_policy(usual_policy().wire()).unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(client.join_token(OTHER, None).unwrap_err().code(), Code::PermissionDenied);
    let session = thief.session().unwrap();
    let desired = session.desired();
    assert!(desired.windows.is_empty() && desired.ports.len() == 2, "{desired:?}");
    // A ban ends it, for every holder of the certificate.
    world.admin.ban(VM).unwrap();
    session.end();
    assert_eq!(thief.session().unwrap_err().code(), Code::PermissionDenied);
}

fn other_agent(world: &HostWorld, identity: &Path) -> FakeAgent {
    FakeAgent::enroll(&world.net.mallory, world.broker.url(), &token(world, OTHER), identity).unwrap()
}

#[test]
fn i7_a_requester_stays_within_the_limits_of_policy() {
    let world = HostWorld::under(postern_tests::a_policy().on(VM).port_within(
        "tcp/22",
        &["192.0.2.0/27"],
        Duration::from_secs(60),
    ));
    let denied = |ask: &postern_tests::RequestBuilder| Refusal::from(world.alice.request(ask).unwrap_err());
    let ask = || a_request().on(VM).port("tcp/22").from("192.0.2.20").seconds(60);
    assert_eq!(denied(&ask().from("192.0.2.40")).reason, "SOURCE_NOT_ALLOWED");
    assert_eq!(denied(&ask().from("192.0.2.0/26")).reason, "SOURCE_NOT_ALLOWED");
    assert_eq!(denied(&ask().port("tcp/80")).reason, "PORT_NOT_IN_POLICY");
    assert_eq!(denied(&ask().seconds(61)).reason, "DURATION_BEYOND_MAXIMUM");
    // A requester does not learn which targets exist.
    assert_eq!(denied(&ask().on("host:vm-9")).reason, "REQUESTER_NOT_ALLOWED");
    assert_eq!(world.alice.grants(), Vec::<v1::Grant>::new());
    assert_eq!(world.alice.open(&ask()).windows.len(), 1);
}
