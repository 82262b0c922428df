//! The store behind sentinels: it follows a failover by itself, and what it says of what it has answered is true.

use std::time::Duration;

use jiff::Timestamp;
use postern_core::audit::{AuditEvent, verify};
use postern_core::{GrantId, PrincipalKey};
use postern_store::coordination::{Coordination as _, MemberInfo};
use postern_store::redis::{Endpoint, RedisSettings, Sentinels};
use postern_store::{StoreError, Transaction};
use postern_tests::clock::wait_until;
use postern_tests::redis::{FAILOVER, Group, MASTER};
use postern_tests::{Net, STEP_TIMEOUT};

use crate::broker::StoreBroker;

pub(crate) fn settings(group: &Group, replicas: usize) -> RedisSettings {
    let sentinels =
        Sentinels { urls: group.sentinel_urls(), master: MASTER.to_owned(), user: None, password_file: None };
    let endpoint = Endpoint::Sentinels(sentinels);
    // The group is reached over a network of the test's own.
    RedisSettings { endpoint, replicas, insecure: true, ..RedisSettings::at("", "t") }
}

fn who() -> PrincipalKey {
    PrincipalKey::parse("alice").unwrap()
}

/// A change that leaves something behind beside its line in the audit log.
fn change(number: u64) -> Transaction {
    let grant = GrantId::from_parts(Timestamp::UNIX_EPOCH, number.into());
    let event = AuditEvent::done(Timestamp::UNIX_EPOCH, "a test", "tested").with("number", number);
    Transaction::default().remember_request(&who(), &format!("key-{number}"), grant).audit(event)
}

/// Commits one change after the other until `done`, and returns those that were answered.
async fn commit_until(store: &StoreBroker, from: u64, done: impl Fn(&[u64], u32) -> bool) -> (Vec<u64>, u32) {
    let (mut answered, mut refused) = (Vec::new(), 0);
    for number in from.. {
        match store.commit(change(number)).await {
            Ok(_) => answered.push(number),
            Err(StoreError::Unavailable { .. }) => {
                refused += 1;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            // A failover takes longer than a membership lasts. A broker joins again by itself; here the test does.
            Err(StoreError::Fenced { .. }) => {
                refused += 1;
                store.redis.renew(&MemberInfo::default()).await.ok();
            }
            Err(other) => panic!("{other:?}"),
        }
        if done(&answered, refused) {
            break;
        }
    }
    (answered, refused)
}

#[test]
fn i4_with_replicas_nothing_that_was_answered_is_lost_in_a_failover_and_the_store_goes_on() {
    let net = Net::new();
    let mut group = Group::start(&net.hub, 3);
    let settings = settings(&group, 1);
    let netns = net.hub.netns().clone();
    let store = netns.run({
        let settings = settings.clone();
        async move { StoreBroker::open(&settings).await.unwrap() }
    });
    let (sender, started) = std::sync::mpsc::channel();
    let committing = netns.start(async move {
        let (before, _) = commit_until(&store, 1, |answered, _| answered.len() == 100).await;
        sender.send(()).unwrap();
        // The new primary has no replica: until the old one is back, nothing is answered.
        let (after, refused) = tokio::time::timeout(
            FAILOVER * 2,
            commit_until(&store, 1000, |answered, refused| {
                refused > 0
                    && answered.last().is_some_and(|last| {
                        answered.iter().rev().take(20).zip(0..).all(|(number, back)| *number == last - back)
                    })
                    && answered.len() > 20
            }),
        )
        .await
        .expect("it goes on by itself");
        let head = store.audit_head().await.unwrap();
        let lines = store.audit_lines(0, 100_000).await.unwrap();
        for number in before.iter().chain(&after) {
            let kept = store.grant_of_request(&who(), &format!("key-{number}")).await.unwrap();
            assert!(kept.is_some(), "{number} was answered and is lost");
        }
        (head, lines, refused)
    });
    started.recv().unwrap();
    group.kill9(0);
    group.wait_for_primary(1);
    group.restart(0);
    let (head, lines, refused) = committing.join();
    assert!(refused > 0, "meanwhile nothing is answered");
    assert_eq!(verify(lines.iter().map(|(_, line)| line.as_str())).unwrap(), head);
}

#[test]
fn without_replicas_a_failover_loses_what_was_answered_and_the_store_says_so() {
    let net = Net::new();
    let mut group = Group::start(&net.hub, 1);
    let settings = settings(&group, 0);
    let netns = net.hub.netns().clone();
    let (store, first) = netns.run(async move {
        let store = StoreBroker::open(&settings).await.unwrap();
        let first = commit_until(&store, 1, |answered, _| answered.len() == 10).await.0;
        (store, first)
    });
    wait_until("the replica to have that", STEP_TIMEOUT, || {
        group.cli(1, &["GET", "{postern:t}:head"]).starts_with("10 ")
    });
    group.cut_replication();
    let (store, lost) = netns.run(async move {
        let lost = commit_until(&store, 100, |answered, _| answered.len() == 10).await.0;
        (store, lost)
    });
    group.kill9(0);
    group.resume(1);
    group.wait_for_primary(1);
    let (first, lost, reason) = netns.run(async move {
        let mut tries = 0..200;
        let reason = loop {
            match store.audit_head().await {
                Ok(head) => panic!("{head:?} is believed"),
                Err(StoreError::Unavailable { source }) if source.to_string().contains("went back") => {
                    break source.to_string();
                }
                Err(_) => assert!(tries.next().is_some(), "it does not come back"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        assert!(store.commit(change(1000)).await.is_err());
        let kept = async |numbers: Vec<u64>| {
            let mut kept = 0;
            for number in numbers {
                let found = store.grant_of_request(&who(), &format!("key-{number}")).await.unwrap();
                kept += usize::from(found.is_some());
            }
            kept
        };
        (kept(first).await, kept(lost).await, reason)
    });
    assert_eq!((first, lost), (10, 0), "what only the primary had is gone, and no more: {reason}");
    assert!(reason.contains("from audit record 20 to 10"), "{reason}");
}

#[test]
fn a_sentinel_that_is_gone_and_one_that_knows_less_do_not_matter() {
    let net = Net::new();
    let mut group = Group::start(&net.hub, 3);
    let settings = settings(&group, 1);
    let netns = net.hub.netns().clone();
    group.kill_sentinel(0);
    let head = netns.run({
        let settings = settings.clone();
        async move {
            let store = StoreBroker::open(&settings).await.unwrap();
            store.commit(change(1)).await.unwrap()
        }
    });
    assert_eq!(head.seq, 1);
    let Endpoint::Sentinels(sentinels) = settings.endpoint.clone() else { panic!("{settings:?}") };
    let other = Sentinels { master: "other".to_owned(), ..sentinels };
    let other = RedisSettings { endpoint: Endpoint::Sentinels(other), ..settings };
    let error = netns.run(async move { format!("{:?}", StoreBroker::open(&other).await.unwrap_err()) });
    assert!(error.contains("no sentinel names a primary") && error.contains("No such master"), "{error}");
}
