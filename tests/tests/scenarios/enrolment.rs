//! I7: who may become an agent, and for how long. Join tokens, bans, and enrolling again.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use postern_pki::{Authority, Credentials, KeyPair, SpiffeId, TrustDomain};
use postern_proto::v1::{AgentStatus, GrantState, LayerStatus};
use postern_tests::clock::{sleep_until, wait_until, wall};
use postern_tests::{
    Agent, FakeAgent, HostWorld, Line, Reach, Refusal, Relay, RelayTarget, STEP_TIMEOUT, TCP, VM, ask_for,
    end_of, usual_policy,
};
use tonic::Code;

use crate::records::edit_agent_record;

fn enroll(world: &HostWorld, name: &str, token: &str) -> Result<FakeAgent, Refusal> {
    FakeAgent::enroll(&world.net.vm, world.broker.url(), token, &world.dir().join(name))
        .map_err(Refusal::from)
}

#[test]
fn i7_a_join_token_works_once_even_when_it_is_used_twice_at_the_same_time() {
    let world = HostWorld::without_agent(usual_policy());
    let token = world.admin.join_token(VM, None).unwrap();
    let enrolled = std::thread::scope(|scope| {
        let tries: Vec<_> =
            ["a", "b", "c", "d"].map(|name| scope.spawn(|| enroll(&world, name, &token))).into();
        tries.into_iter().map(|one| one.join().unwrap()).filter(Result::is_ok).count()
    });
    assert_eq!(enrolled, 1);
    let refused = enroll(&world, "late", &token).unwrap_err();
    assert_eq!((refused.code, refused.reason.as_str()), (Code::Unauthenticated, "NOT_PROVEN"));
}

#[test]
fn i7_a_join_token_expires() {
    let world = HostWorld::without_agent(usual_policy());
    let token = world.admin.join_token(VM, Some(Duration::from_secs(1))).unwrap();
    std::thread::sleep(Duration::from_millis(1200));
    let refused = enroll(&world, "late", &token).unwrap_err();
    assert_eq!((refused.code, refused.reason.as_str()), (Code::Unauthenticated, "NOT_PROVEN"));
    let log = world.admin.audit();
    assert!(
        log.iter().any(|line| line.contains("agent.enrolled") && line.contains("\"denied\"")),
        "{log:#?}"
    );
    for valid_for in [0, 601] {
        let refused =
            Refusal::from(world.admin.join_token(VM, Some(Duration::from_secs(valid_for))).unwrap_err());
        assert_eq!((refused.code, refused.field.as_str()), (Code::InvalidArgument, "valid_for"));
    }
}

#[test]
fn i7_the_enroll_command_says_what_is_wrong_with_a_token() {
    let world = HostWorld::without_agent(usual_policy());
    let token = world.admin.join_token(VM, None).unwrap();
    world.agent.enroll(&token);
    let said = |output: &std::process::Output| String::from_utf8_lossy(&output.stderr).into_owned();
    for bad in [token.as_str(), "postern1.aa.bb", ""] {
        let output = world.agent.try_enroll(bad);
        assert!(!output.status.success() && said(&output).contains("token"), "{bad}: {}", said(&output));
    }
}

#[test]
fn i7_a_token_in_the_arguments_or_in_an_open_file_is_refused_with_the_remedy() {
    let world = HostWorld::without_agent(usual_policy());
    let token = world.admin.join_token(VM, None).unwrap();
    let said = |output: &std::process::Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let output = world.agent.command(&["enroll", "--token", &token]);
    assert!(said(&output).contains("--token-file -") && !said(&output).contains(&token), "{}", said(&output));
    assert_eq!(output.status.code(), Some(2));
    let open = world.dir().join("open-token");
    fs::write(&open, &token).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o644)).unwrap();
    let output = world.agent.command(&["enroll", "--token-file", &open.to_string_lossy()]);
    assert!(said(&output).contains("mode 0644"), "{}", said(&output));
    let output = world.agent.command(&["enroll"]);
    assert!(said(&output).contains("--token-file FILE"), "{}", said(&output));
    assert!(world.admin.agents().is_empty());

    // From standard input, and for a unit from a credential.
    let shell = format!("printf '%s\\n' \"$(cat {})\" | exec \"$@\"", open.display());
    let agent = postern_tests::binary("postern-agent");
    let run = |script: &str, arguments: &[&str]| {
        let program = [agent.to_string_lossy().into_owned(), "--config".into()];
        let config = world.agent.config().to_string_lossy().into_owned();
        let arguments = arguments.iter().map(ToString::to_string);
        let all: Vec<String> = ["-c".to_owned(), script.to_owned(), "sh".to_owned()]
            .into_iter()
            .chain(program)
            .chain([config])
            .chain(arguments)
            .collect();
        world.net.vm.must("sh", &all.iter().map(String::as_str).collect::<Vec<_>>())
    };
    run(&shell, &["enroll", "--token-file", "-"]);
    assert_eq!(world.admin.agents().len(), 1);

    let credentials = world.dir().join("credentials");
    fs::create_dir(&credentials).unwrap();
    let credential = credentials.join("postern.token");
    fs::write(&credential, world.admin.join_token(VM, None).unwrap()).unwrap();
    fs::set_permissions(&credential, fs::Permissions::from_mode(0o400)).unwrap();
    run(&format!("CREDENTIALS_DIRECTORY={} exec \"$@\"", credentials.display()), &["enroll"]);
}

#[test]
fn i7_a_key_is_not_written_where_others_can_write() {
    let world = HostWorld::without_agent(usual_policy());
    let token = world.admin.join_token(VM, None).unwrap();
    fs::create_dir(world.agent.state_dir()).unwrap();
    let open = |mode| fs::set_permissions(world.agent.state_dir(), fs::Permissions::from_mode(mode)).unwrap();
    open(0o777);
    let output = world.agent.try_enroll(&token);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("mode 0777"), "{said}");
    open(0o700);
    world.agent.enroll(&token);
}

#[test]
fn i7_a_token_of_another_broker_is_not_sent_to_this_one() {
    let world = HostWorld::without_agent(usual_policy());
    let other = HostWorld::without_agent(usual_policy());
    let token = other.admin.join_token(VM, None).unwrap();
    assert!(!world.agent.try_enroll(&token).status.success());
    assert!(world.admin.agents().is_empty());
    // It was not spent either.
    other.agent.enroll(&token);
}

#[test]
fn i7_a_ban_cuts_the_live_session_and_keeps_the_agent_out_until_it_enrols_again() {
    let mut world = HostWorld::new();
    let grant = world.alice.open(&ask_for(&world.net.alice).seconds(5));
    let watch = world.net.alice.watch(world.net.vm.tcp(TCP));
    world.admin.ban(VM).unwrap();
    wait_until("the session to be cut", STEP_TIMEOUT, || {
        world.admin.host_layer(VM) == Some(LayerStatus::Unreachable)
    });
    assert_eq!(world.admin.agents()[0].status(), AgentStatus::Banned);

    // It cannot come back, not even after a restart, and its port stays protected.
    world.agent.restart();
    sleep_until(end_of(&grant) + Duration::from_millis(1500));
    watch.stop().assert_closed_at(end_of(&grant));
    assert_eq!(world.admin.host_layer(VM), Some(LayerStatus::Unreachable));
    let denied =
        world.alice.request(&ask_for(&world.net.alice).waiting(STEP_TIMEOUT)).unwrap().grant.unwrap();
    assert!(matches!(denied.state(), GrantState::Closing | GrantState::Failed), "{denied:?}");
    assert_eq!(world.net.alice.reach(world.net.vm.tcp(TCP)), Reach::Filtered);

    world.agent.process().terminate();
    world.enroll_agent();
    world.agent.run();
    world.admin.wait_in_sync(VM);
    assert_eq!(world.admin.agents()[0].status(), AgentStatus::Online);
    world.alice.wait_for_state(&grant.id, GrantState::Closed);
}

/// Gives the agent a certificate that ended a while ago, as if its machine had been off. Returns when it ended.
fn let_certificate_end(world: &HostWorld) -> jiff::Timestamp {
    let authority = Authority::load(&world.broker.data_dir().join("ca"), &TrustDomain::default()).unwrap();
    let key = KeyPair::generate().unwrap();
    let identity = SpiffeId::Agent(VM.parse().unwrap());
    // An authority signs nothing for a time before its own, and this one is young.
    let from = wall().checked_sub(Duration::from_secs(30)).unwrap();
    let issued = authority.issue(&key.csr().unwrap(), &identity, Duration::from_secs(10), from).unwrap();
    let not_after = issued.not_after;
    let ended = Credentials::new(key, issued.chain, authority.roots()).unwrap();
    ended.save(&world.agent.state_dir().join("identity")).unwrap();
    not_after
}

/// Has the broker remember that the agent's newest certificate ended then.
fn remember_as_newest(world: &mut HostWorld, ended: jiff::Timestamp) {
    let key = Credentials::load(&world.agent.state_dir().join("identity")).unwrap().key_hash().unwrap();
    edit_agent_record(world, |record| {
        record["certificate_not_after"] = ended.to_string().into();
        record["keys"]["newest"] = key.to_string().into();
    });
}

#[test]
fn i7_an_agent_whose_certificate_ended_while_it_was_off_renews_it_and_goes_on() {
    let mut world = HostWorld::without_agent(usual_policy());
    world.enroll_agent();
    let ended = let_certificate_end(&world);
    remember_as_newest(&mut world, ended);
    world.agent.run();
    world.admin.wait_in_sync(VM);
    assert!(world.agent.log().contains("renewed the certificate"), "{}", world.agent.log());
    world.alice.open(&ask_for(&world.net.alice));
}

#[test]
fn i8_a_late_renewal_whose_answer_was_lost_is_repeated_by_an_agent_that_was_killed() {
    let mut world = HostWorld::without_agent(usual_policy());
    let broker: SocketAddr = world.broker.url().trim_start_matches("https://").parse().unwrap();
    let line = SocketAddr::new(broker.ip(), broker.port() + 1);
    let relay = world.net.hub.netns().run(Relay::start(line, RelayTarget::Address(broker)));
    world.agent = Agent::new(&world.net.vm, &format!("https://{line}"), &world.dir().join("behind"), &[]);
    world.enroll_agent();
    let ended = let_certificate_end(&world);
    remember_as_newest(&mut world, ended);
    let identity = world.agent.state_dir().join("identity");
    let key = || Credentials::load(&identity).unwrap().key_hash().unwrap();
    let ended = key();

    // The broker commits the renewal, and the agent is killed before it has the answer.
    relay.set(Line::OneAnswer);
    world.agent.run();
    wait_until("the broker to renew", STEP_TIMEOUT, || !world.admin.audited("agent.renewed").is_empty());
    world.agent.process().kill9();
    assert_eq!(key(), ended, "the answer was lost");

    relay.set(Line::Whole);
    world.agent.run();
    world.admin.wait_in_sync(VM);
    assert_ne!(key(), ended);
    assert!(world.admin.audited("agent.renewed").len() > 1);
    assert!(world.admin.audited("agent.cloned").is_empty());
    world.alice.open(&ask_for(&world.net.alice));
}

#[test]
fn i7_an_ended_certificate_is_good_for_its_own_renewal_and_for_nothing_else() {
    let mut world = HostWorld::without_agent(usual_policy());
    world.enroll_agent();
    let_certificate_end(&world);
    let identity = world.agent.state_dir().join("identity");
    let session = FakeAgent::with_identity(&world.net.vm, world.broker.url(), &identity).session();
    assert_eq!(session.map_err(Refusal::from).unwrap_err().reason, "CERTIFICATE_EXPIRED");

    // The broker has issued a newer one since: this may be an old backup. The record of an earlier version knows no key.
    edit_agent_record(&mut world, |record| record["keys"] = serde_json::Value::Null);
    world.agent.run();
    let refused = |world: &HostWorld, word: &str| {
        wait_until(&format!("a refusal for being {word}"), STEP_TIMEOUT, || world.agent.log().contains(word));
    };
    refused(&world, "newer certificates");
    assert!(world.admin.audit().iter().any(|line| line.contains("OLD_CERTIFICATE")));

    world.admin.ban(VM).unwrap();
    let ended = let_certificate_end(&world);
    remember_as_newest(&mut world, ended);
    world.agent.restart();
    refused(&world, "banned");
    assert_eq!(world.admin.host_layer(VM), Some(LayerStatus::Unreachable));
}
