//! A new root, and a stolen intermediate, with a real broker, a real agent and real commands: the steps of docs/operations.md.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use postern_core::{KeyHash, Name, Role};
use postern_pki::identity::key_hash;
use postern_pki::{Authority, Credentials, KeyPair, SpiffeId, TrustDomain};
use postern_proto::v1;
use postern_proto::v1::access_service_client::AccessServiceClient;
use postern_runtime::clock::wall;
use postern_tests::clock::wait_until;
use postern_tests::{Client, FakeAgent, HostWorld, Refusal, STEP_TIMEOUT, VM, ask_for};
use tonic::Code;

/// The time for a step that waits for the broker's next look at its authority, for a heartbeat, and for the spread of the agents.
const STEP: std::time::Duration = STEP_TIMEOUT.saturating_mul(4);

fn ca(world: &HostWorld) -> PathBuf {
    world.broker.data_dir().join("ca")
}

/// Runs `postern-broker authority` with these arguments, and returns whether it succeeded and its text.
fn authority(world: &HostWorld, arguments: &[&str]) -> (bool, String) {
    let output = world.broker.command(&[&["authority"], arguments].concat());
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

/// Runs it until it succeeds.
fn until_it_succeeds(world: &HostWorld, arguments: &[&str]) {
    let mut last = String::new();
    let done = || {
        let (succeeded, text) = authority(world, arguments);
        last = text;
        succeeded
    };
    wait_until(&format!("postern-broker authority {arguments:?}"), STEP, done);
}

/// Waits until `roll status` has these words.
fn wait_for_status(world: &HostWorld, words: &str) {
    wait_until(words, STEP, || authority(world, &["roll", "status"]).1.contains(words));
}

/// Issues a certificate to a person again.
fn issue_again(world: &HostWorld, name: &str, role: &str) -> PathBuf {
    let out = world.dir().join(format!("{name}-again"));
    world.broker.must(&["issue", name, "--role", role, "--out", &out.to_string_lossy()]);
    out
}

fn roots(identity: &Path) -> usize {
    Credentials::load(identity).unwrap().roots().len()
}

fn lists(client: &Client) -> Result<(), tonic::Status> {
    let request = v1::ListGrantsRequest::default();
    client
        .run(|channel| async move { AccessServiceClient::new(channel).list_grants(request).await.map(drop) })
}

/// The key of the intermediate that signed an agent's certificate.
fn signer_of(identity: &Path) -> KeyHash {
    key_hash(&Credentials::load(identity).unwrap().chain()[1]).unwrap()
}

#[test]
fn the_root_is_replaced_while_everything_runs_and_no_agent_is_enrolled_again() {
    let mut world = HostWorld::new();
    world.admin.wait_in_sync(VM);
    let identity = world.agent.state_dir().join("identity");
    let (old_admin, old_alice) = (world.admin.identity().to_owned(), world.alice.identity().to_owned());
    let root_key = ca(&world).join("root.key").to_string_lossy().into_owned();
    let (refused, text) = authority(&world, &["roll", "switch"]);
    assert!(!refused && text.contains("roll begin"), "{text}");

    assert!(authority(&world, &["roll", "begin", "--root-key", &root_key]).0);
    let (switched, text) = authority(&world, &["roll", "switch"]);
    assert!(!switched, "the agent has not confirmed: {text}");
    wait_for_status(&world, "every agent trusts the next root");
    assert_eq!(roots(&identity), 2);
    // A command learns both roots with its first call.
    assert_eq!(roots(&old_alice), 1);
    assert!(world.alice.cli().run(&["grants"]).succeeded());
    assert_eq!(roots(&old_alice), 2);

    until_it_succeeds(&world, &["roll", "switch"]);
    let (finished, text) = authority(&world, &["roll", "finish"]);
    assert!(!finished, "certificates under the old root are in use: {text}");
    wait_for_status(&world, "every agent has a certificate of the new intermediate");
    let (finished, text) = authority(&world, &["roll", "finish"]);
    assert!(!finished && text.contains("alice"), "{text}");
    // A certificate under the old root is good until the end.
    world.alice.open(&ask_for(&world.net.alice).seconds(60));
    let new_admin = issue_again(&world, "admin", "administrator");
    let new_alice = issue_again(&world, "alice", "requester");
    until_it_succeeds(&world, &["roll", "finish"]);

    let admin = Client::new(&world.net.hub, world.broker.url(), &new_admin);
    let alice = Client::new(&world.net.alice, world.broker.url(), &new_alice);
    wait_until("the old root to be refused", STEP, || {
        let old = Client::new(&world.net.hub, world.broker.url(), &old_admin);
        lists(&old).is_err()
    });
    lists(&admin).unwrap();
    // The broker serves under the next root alone a moment after it refuses the old one.
    wait_until("the command to drop the old root", STEP, || {
        assert!(alice.cli().run(&["grants"]).succeeded());
        roots(&new_alice) == 1
    });
    world.agent.restart();
    admin.wait_in_sync(VM);
    alice.open(&ask_for(&world.net.alice));
    assert_eq!(admin.audited("agent.enrolled").len(), 1);
    for step in ["roll_begun", "roll_switched", "roll_finished"] {
        assert_eq!(admin.audited(&format!("authority.{step}")).len(), 1, "{step}");
    }
    // A join token pins the new root now.
    world.agent.enroll(&admin.join_token(VM, None).unwrap());
    assert!(!ca(&world).join("roll.pem").exists() && ca(&world).join("retired-root.key").exists());
}

/// The authority in the hands of a thief: a copy of its directory.
fn stolen(world: &HostWorld) -> Authority {
    let copy = world.dir().join("stolen");
    assert!(Command::new("cp").arg("-a").arg(ca(world)).arg(&copy).status().unwrap().success());
    Authority::load(&copy, &TrustDomain::default()).unwrap()
}

fn forge(authority: &Authority, id: &SpiffeId, to: &Path) {
    let (key, day) = (KeyPair::generate().unwrap(), std::time::Duration::from_secs(24 * 3600));
    let issued = authority.issue(&key.csr().unwrap(), id, day, wall()).unwrap();
    Credentials::new(key, issued.chain, authority.roots()).unwrap().save(to).unwrap();
}

#[test]
fn i7_after_the_theft_of_both_intermediates_the_thief_is_refused_and_every_agent_renews_by_itself() {
    let world = HostWorld::new();
    world.admin.wait_in_sync(VM);
    let thief = stolen(&world);
    let eve = SpiffeId::Principal { role: Role::Administrator, name: Name::new("eve").unwrap() };
    forge(&thief, &eve, &world.dir().join("eve"));
    let eve = Client::new(&world.net.mallory, world.broker.url(), &world.dir().join("eve"));
    lists(&eve).unwrap();
    let watched = eve.start(|channel| async move {
        let watch = v1::WatchGrantsRequest { filter: None };
        let mut grants = AccessServiceClient::new(channel).watch_grants(watch).await.unwrap().into_inner();
        loop {
            if let Err(end) = grants.message().await {
                return end;
            }
        }
    });

    let (agents, people) =
        (thief.intermediate().key.to_string(), thief.people().unwrap().unwrap().key.to_string());
    let shown = authority(&world, &["status"]).1;
    assert!(shown.contains(&agents) && shown.contains(&people), "{shown}");
    let root_key = ca(&world).join("root.key").to_string_lossy().into_owned();
    let (revoked, text) = authority(&world, &["revoke-intermediate", &agents]);
    assert!(!revoked && text.contains("--root-key"), "it signs now: {text}");
    for key in [&people, &agents] {
        let (revoked, text) = authority(&world, &["revoke-intermediate", key, "--root-key", &root_key]);
        assert!(revoked, "{text}");
    }

    let is_revoked = |refusal: tonic::Status| {
        let refusal = Refusal::from(refusal);
        (refusal.code, refusal.reason.as_str()) == (Code::Unauthenticated, "PROOF_REVOKED")
    };
    assert!(is_revoked(watched.join()), "her stream ends");
    assert!(is_revoked(lists(&eve).unwrap_err()) && is_revoked(lists(&world.admin).unwrap_err()));
    let admin = issue_again(&world, "admin", "administrator");
    let admin = Client::new(&world.net.hub, world.broker.url(), &admin);
    lists(&admin).unwrap();
    assert_eq!(admin.audited("authority.intermediate_revoked").len(), 2);

    // A forged certificate of the agent ends later than its own, and counts for nothing.
    let forged = world.dir().join("forged");
    forge(&thief, &SpiffeId::Agent(VM.parse().unwrap()), &forged);
    let forged = FakeAgent::with_identity(&world.net.mallory, world.broker.url(), &forged);
    let refused = forged.session().map_err(Refusal::from).unwrap_err();
    assert_eq!(refused.code, Code::PermissionDenied, "{refused:?}");
    // The agent comes under the new intermediate by itself.
    let identity = world.agent.state_dir().join("identity");
    wait_until("the agent to renew", STEP, || signer_of(&identity).to_string() != agents);
    admin.wait_in_sync(VM);
    let alice = issue_again(&world, "alice", "requester");
    Client::new(&world.net.alice, world.broker.url(), &alice).open(&ask_for(&world.net.alice));
    assert_eq!(admin.audited("agent.enrolled").len(), 1);
}

#[test]
fn i7_a_copy_of_the_data_directory_without_the_key_for_people_makes_no_administrator() {
    let world = HostWorld::new();
    // As the documentation says: the key for people goes out of the broker's reach.
    let (from, to) = (ca(&world).join("people.key"), world.dir().join("people.key"));
    fs::rename(&from, &to).unwrap();
    let thief = stolen(&world);
    let csr = KeyPair::generate().unwrap().csr().unwrap();
    let eve = SpiffeId::Principal { role: Role::Administrator, name: Name::new("eve").unwrap() };
    assert!(thief.issue(&csr, &eve, STEP, wall()).is_err());
    let out = world.dir().join("bob").to_string_lossy().into_owned();
    let issue = ["issue", "bob", "--role", "reader", "--out", &out];
    let refused = world.broker.command(&issue);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--people-key"), "{refused:?}");
    world.broker.must(&[&issue[..], &["--people-key", &to.to_string_lossy()]].concat());
    lists(&Client::new(&world.net.alice, world.broker.url(), Path::new(&out))).unwrap();
    let (_, status) = authority(&world, &["status"]);
    assert!(status.contains("offline (there is no"), "{status}");
}

#[test]
fn a_lost_key_for_people_and_a_lost_administrator_are_replaced_on_the_brokers_machine() {
    let world = HostWorld::new();
    fs::remove_file(ca(&world).join("people.key")).unwrap();
    let out = world.dir().join("admin2").to_string_lossy().into_owned();
    let issue = ["issue", "admin2", "--role", "administrator", "--out", &out];
    assert!(!world.broker.command(&issue).status.success());
    let root_key = ca(&world).join("root.key").to_string_lossy().into_owned();
    let renew = ["renew", "--root-key", &root_key];
    assert!(authority(&world, &renew).1.contains("--people-key"));
    let (renewed, text) = authority(&world, &[&renew[..], &["--replace-people"]].concat());
    assert!(renewed, "{text}");
    world.broker.must(&issue);
    lists(&Client::new(&world.net.hub, world.broker.url(), Path::new(&out))).unwrap();
    lists(&world.admin).unwrap();
}
