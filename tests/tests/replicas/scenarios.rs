//! The scenarios of several replicas, one rule at a time.

use std::time::Duration;

use postern_proto::v1;
use postern_proto::v1::access_service_client::AccessServiceClient;
use postern_proto::v1::{GrantState, Layers};
use postern_tests::clock::{monotonic, sleep_until, wait_until, wall};
use postern_tests::{Client, FakeAgent, RequestBuilder, STEP_TIMEOUT, a_policy, a_request, end_of};

use crate::BROKERS;
use crate::history::{Opening, WindowChange};
use crate::world::{Options, ReplicaWorld};

/// The time after which another replica usually acts on a change at the latest: without the cluster's events it takes two
/// seconds.
const AT_ONCE: Duration = Duration::from_secs(1);
/// The time within which another replica must close what a killed one opened, on a machine that is busy: the membership
/// lasts 6 s.
const TAKEN_OVER: Duration = Duration::from_secs(12);
/// The source of every request here.
pub(crate) const SOURCE: &str = "10.0.0.1";
/// The target of an agent that a scenario leads by hand.
pub(crate) const LED: &str = "host:led";

/// Starts two replicas without agents.
fn two() -> ReplicaWorld {
    ReplicaWorld::new(&Options { brokers: 2, hosts: 0, instances: 0, agents_at: None })
}

pub(crate) fn at(world: &ReplicaWorld, replica: usize) -> Client {
    world.replicas.admin_at(&world.net.alice, world.replicas.replica(replica).url())
}

pub(crate) fn led_by_hand(world: &ReplicaWorld, replica: usize) -> FakeAgent {
    let token = world.admin.join_token(LED, None).unwrap();
    let url = world.replicas.replica(replica).url();
    FakeAgent::enroll(&world.net.vm, url, &token, &world.dir.path().join("led")).unwrap()
}

fn ask(target: &str, seconds: u64) -> RequestBuilder {
    a_request().on(target).port("tcp/22").from(SOURCE).seconds(seconds)
}

/// Returns the number of windows that were opened or closed at all hosts.
fn changes(world: &ReplicaWorld, is_counted: fn(&WindowChange) -> bool) -> usize {
    world.fleet.record().hosts().iter().filter(|event| is_counted(&event.change)).count()
}

fn closings(world: &ReplicaWorld) -> usize {
    changes(world, |what| *what == WindowChange::Closed)
}

#[test]
fn an_agent_at_one_replica_gets_a_window_that_is_granted_at_another_at_once() {
    let world = two();
    let session = led_by_hand(&world, 0).session().unwrap();
    session.applied(session.desired().generation);
    let other = at(&world, 1);
    other.wait_in_sync(LED);
    let mut took = Vec::new();
    for round in 0..5 {
        let start = monotonic();
        let ask = ask(LED, 60).but(|wire| wire.sources = vec![format!("10.0.1.{round}")]);
        let answer = other.start_request(&ask.waiting(STEP_TIMEOUT));
        let desired = session.desired();
        assert_eq!(desired.windows.len(), round + 1);
        session.applied(desired.generation);
        let grant = answer.join().unwrap().grant.unwrap();
        took.push(start.elapsed());
        assert_eq!(grant.state(), GrantState::Active);
    }
    // At the median: a busy machine may stop anything for a while.
    took.sort_unstable();
    assert!(took[2] < AT_ONCE, "{took:?}");
}

#[test]
fn a_watcher_at_one_replica_sees_what_changes_at_another() {
    let world = two();
    let session = led_by_hand(&world, 0).session().unwrap();
    session.applied(session.desired().generation);
    let (seen, sees) = std::sync::mpsc::channel();
    let _watching = at(&world, 1).start(|channel| async move {
        let request = v1::WatchGrantsRequest { filter: None };
        let answer = AccessServiceClient::new(channel).watch_grants(request).await.unwrap();
        let mut stream = answer.into_inner();
        while let Ok(Some(message)) = stream.message().await {
            seen.send(message.grant.map(|grant| (grant.id.clone(), grant.state()))).unwrap();
        }
    });
    assert_eq!(sees.recv_timeout(STEP_TIMEOUT).unwrap(), None, "the first listing is empty");
    let grant = at(&world, 0).request(&ask(LED, 60)).unwrap().grant.unwrap();
    assert_eq!(sees.recv_timeout(STEP_TIMEOUT).unwrap(), Some((grant.id.clone(), GrantState::Opening)));
    session.applied(session.desired().generation);
    assert_eq!(sees.recv_timeout(STEP_TIMEOUT).unwrap(), Some((grant.id.clone(), GrantState::Active)));
}

#[test]
fn a_ban_at_one_replica_cuts_the_stream_at_another() {
    let world = two();
    let session = led_by_hand(&world, 1).session().unwrap();
    session.applied(session.desired().generation);
    at(&world, 0).ban(LED).unwrap();
    session.end();
}

#[test]
fn i2_what_a_killed_replica_opened_in_a_cloud_is_closed_by_another() {
    // The agent speaks only to the replica that is killed, so that this is the one that works on the target.
    let world = ReplicaWorld::new(&Options { brokers: 2, hosts: 0, instances: 1, agents_at: Some(0) });
    let (fake_clouds, target) = (world.fake_clouds.as_ref().unwrap(), &world.aims.clouds[0]);
    let watcher = fake_clouds.watch();
    let grant = at(&world, 0).open(&ask(target, 6));
    world.replicas.replica(0).kill9();
    sleep_until(end_of(&grant));
    wait_until("another replica to close it", TAKEN_OVER, || fake_clouds.look().open.is_empty());
    let seen: Vec<_> = watcher.stop().into_iter().filter(|look| look.asked < end_of(&grant)).collect();
    let first = seen.iter().position(|look| !look.open.is_empty()).unwrap();
    assert!(seen[first..].iter().all(|look| !look.open.is_empty()), "it was open until its end");
    // Its agent can speak to no other broker: the grant is over once that agent has confirmed the end, too.
    world.replicas.replica(0).want(true);
    world.replicas.replica(0).tend();
    at(&world, 1).wait_for_state(&grant.id, GrantState::Closed);
}

#[test]
fn i4_a_replica_that_was_stopped_for_longer_than_it_is_believed_does_no_harm_when_it_goes_on() {
    let world = ReplicaWorld::new(&Options { brokers: 2, hosts: 8, instances: 0, agents_at: None });
    let (one, other) = (at(&world, 0), at(&world, 1));
    for target in world.aims.hosts.iter() {
        one.open(&ask(target, 120));
    }
    world.replicas.replica(0).freeze();
    // Waits in its socket until it goes on: it is refused then, or taken and kept.
    let late_ask = ask(&world.aims.hosts[0], 100).but(|wire| wire.sources = vec!["10.0.0.2".to_owned()]);
    let late = one.start_request(&late_ask);
    std::thread::sleep(Duration::from_secs(12));
    for target in world.aims.hosts.iter() {
        other.wait_in_sync(target);
    }
    // Something changes that the stopped one does not know of.
    let target = &world.aims.hosts[1];
    let known = other.grants().into_iter().find(|grant| grant.windows[0].target == *target).unwrap();
    assert_eq!(other.revoke(&known.id).unwrap().state(), GrantState::Closed);
    assert_eq!(closings(&world), 1);

    world.replicas.replica(0).thaw();
    let answer = late.join();
    std::thread::sleep(Duration::from_secs(5));
    if let Ok(answer) = answer {
        other.grant(&answer.grant.unwrap().id).unwrap();
    }
    assert_eq!(closings(&world), 1, "nothing was closed or flapped");
    assert!(!world.fleet.record().is_open(&Opening::new(target, SOURCE)), "what was closed stays closed");
    assert!(world.fresh_admin().verify_audit().sound);
}

#[test]
fn a_replica_that_is_asked_to_end_hands_its_agents_over_and_answers_what_it_was_asked() {
    let world = ReplicaWorld::new(&Options { brokers: 2, hosts: 8, instances: 0, agents_at: None });
    for target in world.aims.hosts.iter() {
        world.admin.open(&ask(target, 120));
    }
    // Its agent never answers, so this request is being waited for.
    let session = led_by_hand(&world, 1).session().unwrap();
    session.applied(session.desired().generation);
    let asked = at(&world, 0).start_request(&ask(LED, 60).waiting(STEP_TIMEOUT));
    session.desired();

    world.replicas.replica(0).terminate();
    let start = monotonic();
    let answer = asked.join().unwrap().grant.unwrap();
    assert_eq!(answer.state(), GrantState::Opening, "it is answered as it stands");
    wait_until("it to end", STEP_TIMEOUT, || !world.replicas.replica(0).is_ready());
    assert!(start.elapsed() < STEP_TIMEOUT, "it waited as long as it was asked to: {:?}", start.elapsed());
    let all = world.aims.hosts.len();
    wait_until("every agent to have moved", STEP_TIMEOUT, || world.fleet.record().connected() == all);
    for target in world.aims.hosts.iter() {
        at(&world, 1).wait_in_sync(target);
    }
    assert_eq!(closings(&world), 0, "no window flapped");
}

#[test]
fn i1_a_redis_that_comes_back_empty_ends_every_broker_and_unknown_windows_are_closed() {
    let mut world = ReplicaWorld::new(&Options { brokers: BROKERS, hosts: 2, instances: 1, agents_at: None });
    let fake_clouds = world.fake_clouds.as_ref().unwrap();
    let (host, cloud) = (&world.aims.hosts[0], &world.aims.clouds[0]);
    world.admin.open(&ask(host, 12));
    let grant = world.admin.open(&ask(cloud, 600));
    assert_eq!(fake_clouds.look().open.len(), 1);
    world.redis.lose();
    world.redis.resume();
    let mut ended = vec![false; usize::from(BROKERS)];
    wait_until("every broker to end", STEP_TIMEOUT, || {
        let each = world.replicas.all().iter().zip(&mut ended);
        each.for_each(|(replica, ended)| *ended |= replica.tend());
        ended.iter().all(|ended| *ended)
    });
    wait_until("the cloud's window to close", STEP_TIMEOUT, || {
        for replica in world.replicas.all() {
            replica.tend();
        }
        fake_clouds.look().open.is_empty()
    });
    assert!(wall() < end_of(&grant));
    wait_until("a line in the log", STEP_TIMEOUT, || {
        world.replicas.all().iter().all(|replica| replica.is_ready())
            && world.fresh_admin().audit().iter().any(|line| line.contains("cloud.unknown_window_closed"))
    });
    wait_until("the kernel to end the host's window", STEP_TIMEOUT, || {
        !world.fleet.record().is_open(&Opening::new(host, SOURCE))
    });
    let policy = a_policy().named("hosts").on("host:*").port("tcp/22").layers(Layers::Host);
    world.fresh_admin().put_policy(policy.wire()).unwrap();
}
