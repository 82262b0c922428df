//! I7: a principal that is revoked has no rights any more, whatever certificates it holds, until it is issued a later one.

use std::path::Path;
use std::time::Duration;

use postern_core::Role;
use postern_proto::v1;
use postern_proto::v1::access_service_client::AccessServiceClient;
use postern_proto::v1::audit_service_client::AuditServiceClient;
use postern_tests::clock::{monotonic, wait_until};
use postern_tests::{Client, HostWorld, Reach, Refusal, STEP_TIMEOUT, TCP, ask_for, usual_policy};
use tonic::Code;

/// The time within which every broker knows a revocation.
const KNOWN_WITHIN: Duration = Duration::from_secs(2);

fn is_revoked<T: std::fmt::Debug>(answer: Result<T, tonic::Status>) -> bool {
    let refusal = Refusal::from(answer.unwrap_err());
    (refusal.code, refusal.reason.as_str()) == (Code::Unauthenticated, "PROOF_REVOKED")
}

fn lists(client: &Client) -> Result<(), tonic::Status> {
    let request = v1::ListGrantsRequest::default();
    client
        .run(|channel| async move { AccessServiceClient::new(channel).list_grants(request).await.map(drop) })
}

/// Issues a second certificate for a name, in a later second than every revocation so far, in a directory of its own.
fn issue_again(world: &HostWorld, name: &str, dir: &Path) -> Client {
    std::thread::sleep(Duration::from_millis(1100));
    world.broker.must(&["issue", name, "--role", "requester", "--out", &dir.to_string_lossy()]);
    Client::new(&world.net.alice, world.broker.url(), dir)
}

#[test]
fn i7_a_revoked_principal_loses_its_calls_streams_and_grants_until_it_has_a_later_certificate() {
    let mut world = HostWorld::new();
    let (admin, port) = (world.admin.cli(), world.net.vm.tcp(TCP));
    let rita = world.broker.client(&world.net.mallory, "rita", Role::Reader);
    let grant = world.alice.open(&ask_for(&world.net.alice).seconds(600));
    let connection = world.net.alice.connect(port);
    let watch = v1::WatchGrantsRequest { filter: None };
    let streams = (
        world.alice.start(|channel| async move {
            let mut grants =
                AccessServiceClient::new(channel).watch_grants(watch).await.unwrap().into_inner();
            loop {
                if let Err(end) = grants.message().await {
                    return end;
                }
            }
        }),
        rita.start(|channel| async move {
            let request = v1::TailAuditRequest { after: 0, follow: true };
            let mut lines = AuditServiceClient::new(channel).tail_audit(request).await.unwrap().into_inner();
            loop {
                if let Err(end) = lines.message().await {
                    return end;
                }
            }
        }),
    );
    lists(&world.alice).unwrap();

    let began = monotonic();
    let revoked = admin.json(&["principals", "revoke", "alice", "--reason", "left"]).remove(0);
    assert_eq!(revoked["closed_grants"][0], grant.id.as_str(), "{revoked}");
    admin.json(&["principals", "revoke", "rita"]);
    assert!(is_revoked(lists(&world.alice)) && is_revoked(lists(&rita)));
    assert!(is_revoked::<()>(Err(streams.0.join())) && is_revoked::<()>(Err(streams.1.join())));
    assert!(began.elapsed() < KNOWN_WITHIN * 2, "two commands and two streams: {:?}", began.elapsed());
    wait_until("the window to close", STEP_TIMEOUT, || world.net.alice.reach(port) == Reach::Filtered);
    assert!(connection.echoes(), "I3: an established connection stays");
    assert!(world.alice.cli().run(&["grants"]).code == 3, "denied, in words");

    // The revocation outlives the broker.
    world.broker.process().kill9();
    world.broker.serve();
    assert!(is_revoked(lists(&world.alice)));
    let again = issue_again(&world, "alice", &world.dir().join("alice-again"));
    lists(&again).unwrap();
    assert!(is_revoked(lists(&world.alice)), "the old one stays revoked");
    let lines = world.admin.audited("principal.revoked");
    assert!(lines.len() == 2 && lines[0].contains("left"), "{lines:?}");
}

#[test]
fn i7_one_certificate_is_revoked_by_the_serial_number_that_the_list_shows() {
    let world = HostWorld::without_agent(usual_policy());
    let admin = world.admin.cli();
    let known = |name: &str| {
        let list = admin.json(&["principals", "list"]).remove(0);
        list["principals"].as_array().unwrap().iter().find(|known| known["name"] == name).cloned()
    };
    wait_until("the broker to take up what was issued", STEP_TIMEOUT, || known("alice").is_some());
    let first = known("alice").unwrap()["certificates"][0]["serial"].as_str().unwrap().to_owned();
    let again = issue_again(&world, "alice", &world.dir().join("alice-again"));
    admin.json(&["principals", "revoke", "--serial", &first.to_uppercase()]);
    assert!(is_revoked(lists(&world.alice)));
    lists(&again).unwrap();
    wait_until("the broker to take up the second", STEP_TIMEOUT, || {
        known("alice").is_some_and(|alice| alice["certificates"][0]["serial"] != first.as_str())
    });
    let alice = known("alice").unwrap();
    assert_eq!((&alice["revoked"], &alice["certificates"][0]["revoked"]), (&false.into(), &false.into()));
    let bad = admin.run(&["principals", "revoke", "--serial", "xyz"]);
    assert!(bad.code == 2 && bad.err.contains("hexadecimal"), "{bad:?}");
}

#[test]
fn i7_an_administrator_revokes_itself_only_if_it_says_so_and_issue_lets_it_in_again() {
    let world = HostWorld::without_agent(usual_policy());
    let admin = world.admin.cli();
    let refused = admin.run(&["principals", "revoke", "admin"]);
    assert!(refused.err.contains("--allow-self"), "{refused:?}");
    admin.json(&["principals", "list"]);
    let unknown = admin.run(&["principals", "revoke", "no-such-name"]);
    assert!(unknown.succeeded() && unknown.err.contains("no record"), "{unknown:?}");
    assert!(admin.run(&["principals", "revoke", "admin", "--allow-self"]).succeeded());
    assert_eq!(admin.run(&["principals", "list"]).code, 3);
    std::thread::sleep(Duration::from_millis(1100));
    let out = world.dir().join("admin-again");
    world.broker.must(&["issue", "admin", "--role", "administrator", "--out", &out.to_string_lossy()]);
    Client::new(&world.net.hub, world.broker.url(), &out).cli().json(&["principals", "list"]);
}

#[test]
fn i7_a_name_is_not_issued_in_another_role_unless_the_operator_says_so_and_each_certificate_is_audited() {
    let world = HostWorld::without_agent(usual_policy());
    let issue = |name: &str, role: &str, more: &[&str]| {
        let out = world.dir().join(format!("{name}-{role}"));
        let out = out.to_string_lossy();
        let issued = world.broker.command(&[&["issue", name, "--role", role, "--out", &out], more].concat());
        (issued.status.success(), String::from_utf8_lossy(&issued.stderr).into_owned())
    };
    let audited = |count| {
        wait_until("the audit log to have it", STEP_TIMEOUT, || {
            world.admin.audited("principal.issued").len() == count
        });
    };
    // Before the broker has recorded alice and after it.
    assert!(!issue("alice", "administrator", &[]).0);
    audited(1);
    let (issued, said) = issue("alice", "administrator", &[]);
    assert!(!issued && said.contains("--allow-other-role"), "{said}");
    let (issued, said) = issue("admin", "requester", &[]);
    assert!(!issued && said.contains("as administrator"), "the one that init made: {said}");
    assert!(issue("alice", "reader", &["--allow-other-role"]).0);
    assert!(issue("bob", "requester", &[]).0);
    audited(3);
    let lines = world.admin.audited("principal.issued");
    assert!(
        lines.iter().any(|line| line.contains("reader/alice") && line.contains("\"serial\"")),
        "{lines:?}"
    );
}
