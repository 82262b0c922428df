//! Clocks that differ, stand still or step, and the certificates and windows that must not suffer by it.

use std::time::Duration;

use postern_agent::clock::{self, Moment};
use postern_agent::receipt::{self, Receipt};
use postern_agent::renew;
use postern_pki::credentials::Credentials;
use postern_proto::convert::{duration_to_wire, timestamp_to_wire};
use postern_proto::v1;
use postern_proto::v1::session_response::Message as ToAgent;
use postern_runtime::tasks::Tasks;
use postern_testkit::{AgentSession, FakeBroker, Fault};
use tokio::sync::Notify;
use tonic::Status;

use crate::sessions::{HOUR, agent, issue, none_tried, state};

/// Waits for a condition.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waited = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waited).await.unwrap_or_else(|_| panic!("no {what}"));
}

/// Sends a state with a window of ten minutes as the answer to the hello, received just now by a broker whose clock shows `sent_at`.
fn send_at(session: &AgentSession, generation: u64, remaining: Duration, sent_at: u64) {
    let mut desired = state(generation, 0);
    desired.windows[0].remaining = Some(duration_to_wire(remaining));
    session.send_response(v1::SessionResponse {
        heard: session.hello_at,
        heard_ago: Some(duration_to_wire(Duration::ZERO)),
        message: Some(ToAgent::Desired(desired)),
        sent_at,
        wall_clock: None,
    });
}

#[tokio::test]
async fn a_broker_that_was_stopped_and_goes_on_shortens_no_window() {
    let broker = FakeBroker::start().await;
    let agent = agent(&broker, Some(issue(&broker, HOUR)));
    let mut session = broker.session().await;
    let (began, window) = (clock::boottime(), Duration::from_secs(600));
    send_at(&session, 1, window, 1_000_000_000);
    assert_eq!(session.applied().await.error, "");
    let first = agent.host.deadlines();
    // The broker sends the same window again: it has received no more than the hello, and takes that for new, as it was stopped.
    tokio::time::sleep(Duration::from_millis(400)).await;
    let stopped = clock::boottime().since(began);
    let sent_at = 1_000_000_000 + u64::try_from(stopped.as_nanos()).unwrap();
    send_at(&session, 2, window - stopped, sent_at);
    assert_eq!(session.applied().await.error, "");
    assert_eq!(agent.host.deadlines(), first, "the end is the same");
}

#[tokio::test]
async fn i2_a_host_that_has_lost_time_asks_for_the_true_ends() {
    let broker = FakeBroker::start().await;
    let agent = agent(&broker, Some(issue(&broker, HOUR)));
    let mut session = broker.session().await;
    send_at(&session, 1, Duration::from_secs(600), 1_000_000_000);
    assert_eq!(session.applied().await.error, "");
    // Seen from the broker, ten seconds have passed that this host's clocks have not counted.
    send_at(&session, 1, Duration::from_secs(590), 11_000_000_000);
    session.ended().await;
    let mut second = broker.session().await;
    let begin = clock::boottime();
    send_at(&second, 1, Duration::from_secs(590), 12_000_000_000);
    assert_eq!(second.applied().await.error, "");
    let latest = agent.host.deadlines();
    assert!(latest.iter().all(|end| *end <= begin.plus(Duration::from_secs(590))), "{latest:?}");
}

#[tokio::test]
async fn the_difference_of_the_wall_clocks_is_in_the_status() {
    let broker = FakeBroker::start().await;
    let agent = agent(&broker, Some(issue(&broker, HOUR)));
    let session = broker.session().await;
    session.send_response(v1::SessionResponse {
        heard: session.hello_at,
        message: Some(ToAgent::Heartbeat(v1::HeartbeatReply {})),
        wall_clock: Some(timestamp_to_wire(clock::wall() - 2 * HOUR)),
        ..v1::SessionResponse::default()
    });
    until("difference", || agent.status_file.content().clock_ahead_seconds.is_some()).await;
    let ahead = agent.status_file.content().clock_ahead_seconds.unwrap();
    assert!((7190..=7210).contains(&ahead), "{ahead}");
}

#[tokio::test]
async fn a_certificate_that_the_broker_calls_ended_is_renewed_at_once() {
    let broker = FakeBroker::start().await;
    let identity = tempfile::tempdir().unwrap();
    let old = issue(&broker, HOUR);
    old.save(identity.path()).unwrap();
    let agent = agent(&broker, None);
    let refusal = Status::unauthenticated("your certificate has expired; renew it and connect again");
    broker.faults().fail("Session", 1, Fault::Refused(refusal));
    let (address, current) = (broker.url().to_owned(), agent.current.clone());
    let (ended, place) = (agent.tried.clone(), identity.path().to_owned());
    let mut renewal = Tasks::default();
    renewal.spawn("certificate", async move {
        renew::keep_renewed(&address, &place, &current, &ended, &Notify::new()).await;
        Ok(())
    });
    until("renewal", || broker.renewals() > 0).await;
    broker.session().await;
    until("new identity", || {
        Credentials::load(identity.path()).is_ok_and(|c| c.key_hash() != old.key_hash())
    })
    .await;
    let renewed = Credentials::load(identity.path()).unwrap();
    assert!(Receipt::load(identity.path(), &renewed).is_some(), "the time of receipt is beside it");
    assert!(Receipt::load(identity.path(), &old).is_none());
}

#[tokio::test]
async fn a_certificate_is_as_old_as_the_time_since_its_receipt_whatever_the_wall_clock_shows() {
    let broker = FakeBroker::start().await;
    // By the wall clock of this host it has ended two hours ago: its clock is ahead by three.
    let received = issue_ago(&broker, 3);
    let now = clock::moment();
    let receipt = Receipt::of(&received, &now).unwrap();
    assert!(receipt::age(&received, None, &now) >= receipt::life(&received), "by its dates it has ended");
    let later = Moment { boottime: now.boottime.plus(HOUR / 2), wall: now.wall + 9 * HOUR, ..now.clone() };
    assert_eq!(receipt::age(&received, Some(&receipt), &later), HOUR / 2);
    assert_eq!(receipt::life(&received), HOUR);

    // The agent takes it up, and does not renew it.
    let identity = tempfile::tempdir().unwrap();
    received.save(identity.path()).unwrap();
    receipt.save(identity.path()).unwrap();
    let current = std::sync::Arc::new(renew::CurrentIdentity::new(None));
    let (address, kept, place) = (broker.url().to_owned(), current.clone(), identity.path().to_owned());
    let mut renewal = Tasks::default();
    renewal.spawn("certificate", async move {
        renew::keep_renewed(&address, &place, &kept, &none_tried(), &Notify::new()).await;
        Ok(())
    });
    until("identity", || current.borrow().is_some()).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(broker.renewals(), 0);
}

/// Issues an identity of an hour, as an authority does whose clock is behind this host's by some hours.
fn issue_ago(broker: &FakeBroker, hours: u32) -> Credentials {
    let identity = postern_pki::SpiffeId::Agent(postern_testkit::TARGET.parse().unwrap());
    broker.issue(&identity, HOUR, clock::wall() - hours * HOUR)
}

#[tokio::test]
async fn a_broker_that_calls_each_certificate_ended_is_asked_for_fewer_and_fewer() {
    let broker = FakeBroker::start().await;
    let identity = tempfile::tempdir().unwrap();
    issue(&broker, HOUR).save(identity.path()).unwrap();
    let current = std::sync::Arc::new(renew::CurrentIdentity::new(None));
    let ended = std::sync::Arc::new(none_tried());
    let (address, kept, place) = (broker.url().to_owned(), current.clone(), identity.path().to_owned());
    let called_ended = ended.clone();
    let mut tasks = Tasks::default();
    tasks.spawn("certificate", async move {
        renew::keep_renewed(&address, &place, &kept, &called_ended, &Notify::new()).await;
        Ok(())
    });
    let mut identities = current.subscribe();
    tasks.spawn("refusals", async move {
        loop {
            let key = identities.borrow_and_update().as_ref().and_then(|it| it.key_hash().ok());
            ended.send_modify(|tried| tried.ended = key);
            identities.changed().await?;
        }
    });
    until("renewals", || broker.renewals() >= 2).await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    // One at once, and the next after pauses of a second at least, of two, and of four.
    assert!(broker.renewals() <= 4, "{}", broker.renewals());
}

#[tokio::test]
async fn a_refusal_by_the_broker_does_not_end_a_certificate_that_only_this_hosts_clock_calls_ended() {
    let broker = FakeBroker::start().await;
    broker.refuse(Status::resource_exhausted("too many sessions; try again later"));
    let agent = agent(&broker, Some(issue_ago(&broker, 3)));
    until("refusal", || agent.status_file.content().reason.contains("too many sessions")).await;
    assert_eq!(agent.tried.borrow().ended, None);
}

#[tokio::test]
async fn a_connection_that_is_lost_after_the_end_of_the_certificate_may_have_lost_the_refusal() {
    let broker = FakeBroker::start().await;
    broker.faults().fail("Session", usize::MAX, Fault::Dropped);
    let old = issue_ago(&broker, 3);
    let key = old.key_hash().unwrap();
    let agent = agent(&broker, Some(old));
    until("end of the certificate", || agent.tried.borrow().ended == Some(key)).await;
}

#[tokio::test]
async fn i2_a_session_ends_if_no_other_can_be_opened_for_the_true_ends() {
    let broker = FakeBroker::start().await;
    let agent = agent(&broker, Some(issue(&broker, HOUR)));
    let mut session = broker.session().await;
    send_at(&session, 1, Duration::from_secs(600), 1_000_000_000);
    assert_eq!(session.applied().await.error, "");
    broker.faults().fail("Session", 1, Fault::Refused(Status::unavailable("not now")));
    agent.ask_again.notify_one();
    // Before the silence of this broker would end it, which takes 15 s.
    tokio::time::timeout(Duration::from_secs(12), session.ended()).await.unwrap();
    let mut next = broker.session().await;
    send_at(&next, 1, Duration::from_secs(590), 12_000_000_000);
    assert_eq!(next.applied().await.error, "");
}

#[tokio::test]
async fn ends_that_are_in_doubt_come_from_a_new_session() {
    let broker = FakeBroker::start().await;
    let agent = agent(&broker, Some(issue(&broker, HOUR)));
    let mut session = broker.session().await;
    send_at(&session, 1, Duration::from_secs(600), 1_000_000_000);
    assert_eq!(session.applied().await.error, "");
    agent.ask_again.notify_one();
    broker.session().await;
    session.ended().await;
}
