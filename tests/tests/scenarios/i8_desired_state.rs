//! I8 on the agent's side: a desired state that arrives twice, late or out of order leaves the host as the newest one says.

use std::time::Duration;

use postern_proto::convert::{duration_to_wire, port_to_wire};
use postern_proto::v1;
use postern_tests::{Agent, FakeBroker, Net, Reach, TCP, VM};
use tempfile::TempDir;

/// An agent whose broker the test plays.
struct Stage {
    agent: Agent,
    broker: FakeBroker,
    net: Net,
    _dir: TempDir,
}

fn stage() -> Stage {
    let dir = TempDir::with_prefix("postern-").unwrap();
    let net = Net::new();
    net.vm.listen_tcp(TCP);
    let broker = FakeBroker::start(&net.hub);
    let mut agent = Agent::new(&net.vm, broker.url(), &dir.path().join("agent"), &[]);
    broker.issue(VM, &agent.state_dir().join("identity"));
    agent.run();
    Stage { agent, broker, net, _dir: dir }
}

impl Stage {
    fn alice(&self) -> Reach {
        self.net.alice.reach(self.net.vm.tcp(TCP))
    }

    fn mallory(&self) -> Reach {
        self.net.mallory.reach(self.net.vm.tcp(TCP))
    }
}

/// Builds a desired state with port 22 protected, and open for these last numbers of 192.0.2.0/24 for a minute.
fn desired(generation: u64, open_to: &[u8]) -> v1::DesiredState {
    let port = port_to_wire("tcp/22".parse().unwrap());
    let window = |host: &u8| v1::HostWindow {
        grant_id: format!("01arz3ndektsv4rrffq69g{host:04}"),
        port: Some(port),
        source: format!("192.0.2.{host}/32"),
        remaining: Some(duration_to_wire(Duration::from_secs(60))),
    };
    v1::DesiredState {
        keep_protection: false,
        policy_generation: 0,
        generation,
        mode: v1::Mode::Enforce.into(),
        ports: vec![port],
        windows: open_to.iter().map(window).collect(),
    }
}

#[test]
fn i8_a_state_that_is_sent_again_changes_nothing() {
    let stage = stage();
    let session = stage.broker.session();
    for _ in 0..3 {
        session.send(desired(5, &[20]));
        assert_eq!(session.answer_to(5), "");
        assert_eq!((stage.alice(), stage.mallory()), (Reach::Open, Reach::Filtered));
    }
}

#[test]
fn i8_an_older_state_that_arrives_late_opens_nothing_and_closes_nothing() {
    let stage = stage();
    let session = stage.broker.session();
    session.send(desired(7, &[20]));
    assert_eq!(session.answer_to(7), "");
    session.send(desired(6, &[30]));
    assert_ne!(session.answer_to(6), "", "an older state was accepted");
    assert_eq!((stage.alice(), stage.mallory()), (Reach::Open, Reach::Filtered));
}

#[test]
fn i8_a_new_session_brings_the_host_to_what_it_says_whatever_was_lost() {
    let mut stage = stage();
    let session = stage.broker.session();
    session.send(desired(7, &[20]));
    assert_eq!(session.answer_to(7), "");
    session.end();
    let session = stage.broker.session();
    session.send(desired(9, &[30]));
    assert_eq!(session.answer_to(9), "");
    assert_eq!((stage.alice(), stage.mallory()), (Reach::Filtered, Reach::Open));
    // And again after a restart of the agent, which remembers generation 9.
    stage.agent.restart();
    let session = stage.broker.session();
    session.send(desired(10, &[20, 30]));
    assert_eq!(session.answer_to(10), "");
    assert_eq!((stage.alice(), stage.mallory()), (Reach::Open, Reach::Open));
}

#[test]
fn i5_a_state_that_no_host_can_hold_is_refused_whole() {
    let stage = stage();
    let session = stage.broker.session();
    session.send(desired(5, &[20]));
    assert_eq!(session.answer_to(5), "");
    let mut impossible = desired(6, &[30, 20]);
    impossible.windows[1].source = "192.0.2.77/24".to_owned();
    session.send(impossible);
    assert!(session.answer_to(6).contains("windows[1].source"));
    assert_eq!(
        (stage.alice(), stage.mallory()),
        (Reach::Open, Reach::Filtered),
        "the state before still holds"
    );
}
