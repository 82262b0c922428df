//! Watching, with a client that reads now and then.

use futures_util::StreamExt as _;
use postern_core::audit::AuditEvent;
use postern_core::{Event, Grant, Role};
use postern_store::testing::fake_peer::FakePeer;
use postern_store::{Expect, Transaction};

use super::*;
use crate::testing::builders::{GrantBuilder, a_grant};
use crate::testing::{TestApp, caller};

async fn put(test: &TestApp, grant: &Grant) {
    let event = AuditEvent::done(grant.requested_at, "a test", "put");
    test.store
        .commit(Transaction::default().put_grant(grant.clone(), Expect::Any).audit(event))
        .await
        .unwrap();
    test.app.grant_changes.changed(grant.id);
}

async fn kept(test: &TestApp, grant: GrantBuilder) -> Grant {
    let grant = grant.build();
    put(test, &grant).await;
    grant
}

/// Reads all that the stream has now: each grant's id and state, and `None` for the mark after a listing.
async fn read(stream: &mut WatchStream) -> Vec<Option<(String, v1::GrantState)>> {
    let mut read = Vec::new();
    while let Ok(item) = tokio::time::timeout(std::time::Duration::from_millis(20), stream.next()).await {
        let grant = item.expect("it goes on").unwrap().grant;
        read.push(grant.map(|grant| (grant.id.clone(), grant.state())));
    }
    read
}

fn watching(test: &TestApp, role: Role, who: &str, states: &[&'static str]) -> WatchStream {
    let filter = GrantFilter { target: None, states: states.to_vec(), principal: None, grant: None };
    let reads = crate::limits::ExpensiveReads::new(&crate::limits::Limits::default());
    grants(Arc::clone(&test.app), (GrantFeed::default(), reads), caller(role, who), filter)
}

fn sent(grant: &Grant, state: v1::GrantState) -> Option<(String, v1::GrantState)> {
    Some((grant.id.to_string(), state))
}

#[tokio::test]
async fn a_watcher_reads_every_grant_then_a_mark_then_each_change() {
    let test = TestApp::new();
    let grant = kept(&test, a_grant()).await;
    let mut stream = watching(&test, Role::Reader, "carol", &[]);
    let opening = sent(&grant, v1::GrantState::Opening);
    assert_eq!(read(&mut stream).await, [opening, None]);
    put(&test, &grant.after(Event::Confirmed, grant.requested_at).unwrap()).await;
    assert_eq!(read(&mut stream).await, [sent(&grant, v1::GrantState::Active)]);
}

#[tokio::test]
async fn i7_a_watching_requester_sees_its_own_grants_alone() {
    let test = TestApp::new();
    let mut stream = watching(&test, Role::Requester, "alice", &[]);
    assert_eq!(read(&mut stream).await, [None]);
    let own = kept(&test, a_grant()).await;
    kept(&test, a_grant().number(2).of("bob")).await;
    assert_eq!(read(&mut stream).await, [sent(&own, v1::GrantState::Opening)]);
}

#[tokio::test]
async fn i8_a_grant_that_leaves_the_filter_is_sent_once_more_also_to_a_watcher_that_fell_behind() {
    let test = TestApp::new();
    let (one, other) = (kept(&test, a_grant()).await, kept(&test, a_grant().number(2)).await);
    let mut stream = watching(&test, Role::Reader, "carol", &["opening"]);
    assert_eq!(read(&mut stream).await.len(), 3);
    put(&test, &one.after(Event::Confirmed, one.requested_at).unwrap()).await;
    assert_eq!(read(&mut stream).await, [sent(&one, v1::GrantState::Active)]);

    put(&test, &other.after(Event::Confirmed, other.requested_at).unwrap()).await;
    let third = kept(&test, a_grant().number(3)).await;
    (0..10_000).for_each(|_| test.app.grant_changes.changed(third.id));
    let read = read(&mut stream).await;
    let (active, opening) = (sent(&other, v1::GrantState::Active), sent(&third, v1::GrantState::Opening));
    assert_eq!(read[..3], [opening.clone(), active, None]);
    assert!(read[3..].iter().all(|item| *item == opening), "what was not missed is sent as it comes");
}

#[tokio::test]
async fn i10_a_watcher_that_is_not_read_holds_one_page() {
    let test = TestApp::new();
    for number in 1..=200 {
        kept(&test, a_grant().number(number)).await;
    }
    let reads = crate::limits::ExpensiveReads::new(&crate::limits::Limits::default());
    let mut watch = Watch {
        app: Arc::clone(&test.app),
        feed: GrantFeed::default(),
        reads,
        caller: caller(Role::Reader, "carol"),
        filter: GrantFilter::default(),
        changes: test.app.grant_changes.watch(),
        queue: VecDeque::new(),
        inside: HashSet::new(),
        position: Position::Listing { before: None, left: HashSet::new() },
    };
    let mut sent = HashSet::new();
    while let Some(grant) = watch.next().await.unwrap().unwrap().grant {
        assert!(watch.queue.len() < PAGE_SIZE && watch.inside.is_empty(), "{}", watch.queue.len());
        sent.insert(grant.id);
    }
    assert_eq!(sent.len(), 200);
    // It has fallen behind by more changes than it may: it lists again, and holds no more.
    let grant = a_grant().number(7).build();
    (0..10_000).for_each(|_| test.app.grant_changes.changed(grant.id));
    assert!(watch.next().await.unwrap().unwrap().grant.is_some());
    assert!(watch.queue.len() < PAGE_SIZE);
}

#[tokio::test]
async fn i10_watchers_of_one_change_share_one_read_of_what_other_brokers_report_and_a_page_is_one_more() {
    let peer = Arc::new(FakePeer::default());
    let test = TestApp::beside(&peer);
    for number in 1..=20 {
        kept(&test, a_grant().number(number)).await;
    }
    let reads = crate::limits::ExpensiveReads::new(&crate::limits::Limits::default());
    let feed = GrantFeed::default();
    let mut streams = Vec::new();
    for number in 1..=10 {
        let app = Arc::clone(&test.app);
        let watcher = caller(Role::Reader, "carol");
        let mut stream = grants(app, (feed.clone(), reads.clone()), watcher, GrantFilter::default());
        assert_eq!(read(&mut stream).await.len(), 21);
        assert_eq!(peer.status_reads(), number, "one for its listing");
        streams.push(stream);
    }
    let grant = a_grant().number(7).build();
    put(&test, &grant.after(Event::Confirmed, grant.requested_at).unwrap()).await;
    for stream in &mut streams {
        assert_eq!(read(stream).await, [sent(&grant, v1::GrantState::Active)]);
    }
    assert_eq!(peer.status_reads(), 11, "one for all watchers of the change");
}

#[tokio::test]
async fn i10_watchers_share_one_read_of_a_grant_that_changed() {
    let peer = Arc::new(FakePeer::default());
    let test = TestApp::beside(&peer);
    let grant = kept(&test, a_grant()).await;
    let feed = GrantFeed::default();
    let first = feed.read(&test.app, grant.id, 1).await.unwrap().unwrap();
    for _ in 0..2_000 {
        let again = feed.read(&test.app, grant.id, 1).await.unwrap().unwrap();
        assert!(Arc::ptr_eq(&first.grant, &again.grant), "it is one grant in memory");
    }
    assert_eq!(peer.status_reads(), 1, "and one answer of the other brokers");
    let active = grant.after(Event::Confirmed, grant.requested_at).unwrap();
    put(&test, &active).await;
    let newest = test.app.grant_changes.newest();
    assert_eq!(
        *feed.read(&test.app, grant.id, newest).await.unwrap().unwrap().grant,
        active,
        "a later change is read"
    );
}
