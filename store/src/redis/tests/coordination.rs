//! Members of one store, each with connections of its own.

use super::*;
use crate::coordination::{ChangedRecord, ClusterEvent, MemberInfo, PublishedStatus, RenewalReply};

/// Two brokers on one store.
async fn two(server: &RedisServer) -> (Broker, Broker) {
    let settings = server.store("t");
    (Broker::open(&settings).await.unwrap(), Broker::open(&settings).await.unwrap())
}

fn vm() -> TargetId {
    "host:vm-1".parse().unwrap()
}

async fn take(store: &Broker, claim: Claim) -> Option<crate::coordination::TakenLease> {
    store.redis.take(&vm(), claim).await.unwrap()
}

/// Ends the membership of a broker, as if it had been cut off for too long.
async fn end_membership(server: &RedisServer, store: &Broker) {
    let mut connection =
        redis::Client::open(server.url()).unwrap().get_multiplexed_async_connection().await.unwrap();
    let key = format!("{{postern:t}}:alive:{}", store.redis.membership.id());
    let removed: u32 = redis::cmd("DEL").arg(key).query_async(&mut connection).await.unwrap();
    assert_eq!(removed, 1);
}

async fn renew(store: &Broker) -> RenewalReply {
    store.redis.renew(&MemberInfo { name: "broker".into(), ..MemberInfo::default() }).await.unwrap()
}

fn is_fenced<T>(outcome: &Result<T, StoreError>) -> bool {
    matches!(outcome, Err(StoreError::Fenced { .. }))
}

#[tokio::test]
async fn i8_one_member_holds_a_lease_and_one_that_lost_it_reads_and_writes_nothing_under_it() {
    let server = RedisServer::durable().await;
    let (one, other) = two(&server).await;
    let first = take(&one, Claim::Free).await.unwrap();
    assert!(!first.inherits, "no broker had it before");
    assert_eq!(take(&one, Claim::Free).await.unwrap(), first, "one that is held is kept");
    assert_eq!(take(&other, Claim::Free).await, None);
    one.commit(a_change(1).under(first.lease.clone())).await.unwrap();
    one.snapshot(&first.lease).await.unwrap();

    // The agent connects to the other.
    let second = take(&other, Claim::Agent).await.unwrap();
    assert!(second.inherits && second.lease.token > first.lease.token);
    assert!(is_fenced(&one.snapshot(&first.lease).await));
    assert!(is_fenced(&one.commit(a_change(2).under(first.lease.clone())).await));
    // Nor does it with the other's token.
    assert!(is_fenced(&one.commit(a_change(2).under(second.lease.clone())).await));
    assert!(one.grant(a_grant().number(2).build().id).await.unwrap().is_none(), "nothing was changed");
    one.commit(a_change(3)).await.unwrap();
    other.commit(a_change(4).under(second.lease.clone())).await.unwrap();
    assert_eq!(other.snapshot(&second.lease).await.unwrap().seq, 3);
}

#[tokio::test]
async fn i8_in_a_group_of_commits_only_the_one_whose_lease_is_lost_is_refused() {
    let server = RedisServer::durable().await;
    let (one, other) = two(&server).await;
    let lost = take(&one, Claim::Free).await.unwrap().lease;
    take(&other, Claim::Agent).await.unwrap();
    let commits = (1..=20).map(|number| match number % 4 {
        0 => one.commit(a_change(number).under(lost.clone())),
        _ => one.commit(a_change(number)),
    });
    let outcomes = futures_util::future::join_all(commits).await;
    let refused: Vec<usize> = (1..).zip(&outcomes).filter(|(_, it)| is_fenced(it)).map(|(n, _)| n).collect();
    assert_eq!(refused, [4, 8, 12, 16, 20]);
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 15);
}

#[tokio::test]
async fn i8_a_broker_whose_membership_has_ended_writes_nothing_until_it_has_joined_again() {
    let server = RedisServer::durable().await;
    let (one, other) = two(&server).await;
    let lease = take(&one, Claim::Free).await.unwrap().lease;
    end_membership(&server, &one).await;
    assert!(is_fenced(&one.commit(a_change(1)).await));
    assert!(is_fenced(&one.snapshot(&lease).await));
    assert!(is_fenced(&one.redis.take(&vm(), Claim::Agent).await));
    assert_eq!(
        take(&other, Claim::Free).await.map(|taken| taken.inherits),
        Some(true),
        "any member may take it"
    );

    let reply = renew(&one).await;
    assert!(reply.joined && reply.store_time.is_some());
    one.commit(a_change(2)).await.unwrap();
    assert!(is_fenced(&one.commit(a_change(3).under(lease)).await), "its leases went with the membership");
}

#[tokio::test]
async fn i8_a_membership_whose_first_answer_was_lost_is_reported_as_new_by_the_next_renewal() {
    let server = RedisServer::durable().await;
    let (one, _) = two(&server).await;
    assert!(!renew(&one).await.joined, "it joined as it opened the store");
    end_membership(&server, &one).await;
    let before = one.redis.membership.id();
    let joins = async {
        while one.redis.membership.id() == before {
            tokio::task::yield_now().await;
        }
    };
    // The renewal is given up once it has asked to join; the server does that.
    tokio::select! {
        biased;
        () = joins => {}
        reply = renew(&one) => panic!("{reply:?}"),
    }
    assert!(renew(&one).await.joined, "every lease of the membership before is lost");
    assert!(!renew(&one).await.joined, "and that is reported once");
}

#[tokio::test]
async fn i2_what_a_member_that_is_gone_worked_on_is_taken_over_once() {
    let server = RedisServer::durable().await;
    let (one, other) = two(&server).await;
    for number in 0..250 {
        one.redis.take(&format!("host:vm-{number}").parse().unwrap(), Claim::Free).await.unwrap().unwrap();
    }
    assert_eq!(renew(&one).await.gone, [] as [&str; 0]);
    renew(&other).await;
    assert_eq!(other.redis.take_over(&one.redis.membership.id()).await.unwrap(), [], "it is still there");
    one.redis.leave().await.unwrap();
    let gone = renew(&other).await.gone;
    assert_eq!(gone, [one.redis.membership.id()]);
    let mut taken = Vec::new();
    loop {
        let some = other.redis.take_over(&gone[0]).await.unwrap();
        if some.is_empty() {
            break;
        }
        taken.extend(some);
    }
    let targets: std::collections::BTreeSet<_> = taken.iter().map(|taken| &taken.lease.target).collect();
    assert_eq!((taken.len(), targets.len()), (250, 250));
    assert!(taken.iter().all(|taken| taken.inherits && taken.lease.token > 250));
    assert_eq!(renew(&other).await.gone, [] as [&str; 0], "and forgotten");
    assert_eq!(other.redis.list_members().await.unwrap().len(), 1);
}

#[tokio::test]
async fn an_exclusive_lease_is_taken_away_by_no_agent_and_what_is_given_back_is_inherited() {
    let server = RedisServer::durable().await;
    let (one, other) = two(&server).await;
    take(&one, Claim::Agent).await.unwrap();
    let turn = take(&other, Claim::Exclusive).await.unwrap();
    assert!(turn.inherits);
    assert_eq!(take(&one, Claim::Agent).await, None);
    other.redis.give_back(&turn.lease).await.unwrap();
    let back = take(&one, Claim::Agent).await.unwrap();
    assert!(back.inherits && back.lease.token > turn.lease.token);
    // One that ends without being given back leaves the lease where it is.
    let own = take(&one, Claim::Exclusive).await.unwrap();
    assert_eq!(own.lease, back.lease);
    assert_eq!(take(&other, Claim::Agent).await, None);
    one.redis.end_exclusive(&own.lease).await.unwrap();
    assert!(take(&other, Claim::Agent).await.is_some());
    take(&one, Claim::Agent).await.unwrap();
    // A turn ends with its member.
    let turn = take(&other, Claim::Exclusive).await.unwrap();
    end_membership(&server, &other).await;
    assert!(take(&one, Claim::Free).await.unwrap().lease.token > turn.lease.token);
}

#[tokio::test]
async fn i10_nothing_is_kept_of_a_target_that_is_forgotten_and_only_its_holder_forgets_it() {
    let server = RedisServer::durable().await;
    let (one, other) = two(&server).await;
    let lost = take(&other, Claim::Free).await.unwrap().lease;
    let lease = take(&one, Claim::Agent).await.unwrap().lease;
    let status = |lease: &Lease| PublishedStatus {
        lease: lease.clone(),
        status: "status".into(),
        awaited_by: Vec::new(),
    };
    one.redis.publish(vec![status(&lease)]).await.unwrap();
    other.redis.forget(&lost).await.unwrap();
    assert_eq!(one.redis.statuses(std::slice::from_ref(&lease.target)).await.unwrap().len(), 1);
    one.redis.forget(&lease).await.unwrap();
    assert!(one.redis.statuses(std::slice::from_ref(&lease.target)).await.unwrap().is_empty());
    assert!(one.redis.held().await.unwrap().is_empty());
    let client = redis::Client::open(server.url()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    for name in ["leases", "statuses", "exclusive"] {
        let mut length = redis::cmd("HLEN");
        length.arg(format!("{{postern:t}}:{name}"));
        assert_eq!(length.query_async::<u64>(&mut connection).await.unwrap(), 0, "{name}");
    }
    // A target that comes back begins from the start, with a token that no holder had.
    let again = take(&other, Claim::Free).await.unwrap();
    assert!(!again.inherits && again.lease.token > lease.token);
}

#[tokio::test]
async fn a_lock_has_one_member_at_a_time_and_none_once_that_is_gone() {
    let server = RedisServer::durable().await;
    let (one, other) = two(&server).await;
    assert!(one.redis.try_lock("lockdown").await.unwrap());
    assert!(!other.redis.try_lock("lockdown").await.unwrap());
    other.redis.unlock("lockdown").await.unwrap();
    assert!(!other.redis.try_lock("lockdown").await.unwrap(), "it is not its own to end");
    one.redis.unlock("lockdown").await.unwrap();
    assert!(other.redis.try_lock("lockdown").await.unwrap());
    end_membership(&server, &other).await;
    assert!(one.redis.try_lock("lockdown").await.unwrap());
}

#[tokio::test]
async fn every_commit_is_an_event_with_its_records_and_the_targets_to_look_at() {
    let server = RedisServer::durable().await;
    let (one, other) = two(&server).await;
    let (mut here, mut there) =
        (one.redis.subscribe().await.unwrap(), other.redis.subscribe().await.unwrap());
    one.commit(a_change(1)).await.unwrap();
    let (Some(ClusterEvent::Committed(own)), Some(ClusterEvent::Committed(received))) =
        (here.next().await, there.next().await)
    else {
        panic!("no event");
    };
    assert!(own.own && !received.own);
    assert_eq!((received.before, received.after), (0, 1));
    let grant = ChangedRecord { kind: "grants".into(), key: a_grant().number(1).build().id.to_string() };
    assert_eq!((received.records, received.targets), (vec![grant], vec![vm()]));
    // What one works on is nothing to the other.
    take(&one, Claim::Free).await.unwrap();
    one.commit(a_change(2)).await.unwrap();
    let Some(ClusterEvent::Committed(received)) = there.next().await else { panic!("no event") };
    assert_eq!((received.before, received.after, received.targets), (1, 2, vec![]));
    take(&other, Claim::Agent).await.unwrap();
    assert_eq!(
        there.next().await,
        Some(ClusterEvent::LeaseTaken { target: vm(), mine: true, exclusive: false })
    );
    other.redis.ask_to_look(&vm()).await.unwrap();
    other.redis.leave().await.unwrap();
    here.next().await;
    assert_eq!(
        here.next().await,
        Some(ClusterEvent::LeaseTaken { target: vm(), mine: false, exclusive: false })
    );
    assert_eq!(
        (here.next().await, here.next().await),
        (Some(ClusterEvent::LookRequested(vm())), Some(ClusterEvent::MemberLeft))
    );
}

#[tokio::test]
async fn i5_a_status_is_shown_only_while_the_member_that_published_it_works_on_the_target() {
    let server = RedisServer::durable().await;
    let (one, other) = two(&server).await;
    let views = async || other.redis.statuses(&["host:vm-9".parse().unwrap(), vm()]).await.unwrap();
    let post = |lease: &Lease, view: &str| {
        vec![PublishedStatus { lease: lease.clone(), status: view.to_owned(), awaited_by: vec![] }]
    };
    let lease = take(&one, Claim::Free).await.unwrap().lease;
    assert_eq!(views().await, []);
    one.redis.publish(post(&lease, "{\"of\":\"one\"}")).await.unwrap();
    assert_eq!(views().await, [(vm(), "{\"of\":\"one\"}".to_owned())]);
    let newer = take(&other, Claim::Agent).await.unwrap().lease;
    assert_eq!(views().await, [], "the holder has published nothing");
    one.redis.publish(post(&lease, "late")).await.unwrap();
    assert_eq!(views().await, []);
    other.redis.publish(post(&newer, "now")).await.unwrap();
    assert_eq!(views().await, [(vm(), "now".to_owned())]);
    end_membership(&server, &other).await;
    assert_eq!(views().await, [], "and the status of a holder that is gone is not shown");
}

#[tokio::test]
async fn brokers_that_write_at_once_make_one_log_and_lose_nothing() {
    let server = RedisServer::durable().await;
    let settings = server.store("t");
    let mut brokers = Vec::new();
    for _ in 0..3 {
        brokers.push(Broker::open(&settings).await.unwrap());
    }
    let all = brokers.iter().zip([0u8, 60, 120]).map(|(broker, from)| async move {
        for some in (from..from + 60).collect::<Vec<_>>().chunks(10) {
            let commits = some.iter().map(|number| broker.commit(a_change(*number)));
            for outcome in futures_util::future::join_all(commits).await {
                outcome.unwrap();
            }
        }
    });
    futures_util::future::join_all(all).await;
    let lines = brokers[0].audit_lines(0, 1000).await.unwrap();
    assert_eq!(lines.len(), 180);
    let head = verify(lines.iter().map(|(_, line)| line.as_str())).unwrap();
    assert_eq!(brokers[2].audit_head().await.unwrap(), head);
    assert_eq!(brokers[1].open_grants().await.unwrap().len(), 180);
}

#[tokio::test]
async fn a_store_that_was_one_brokers_alone_is_taken_over_and_that_one_refused() {
    let server = RedisServer::durable().await;
    let client = redis::Client::open(server.url()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let mut before = redis::pipe();
    before.set("{postern:t}:schema", 1).ignore().set("{postern:t}:writer", 4).ignore();
    before.query_async::<()>(&mut connection).await.unwrap();
    Broker::open(&server.store("t")).await.unwrap().commit(a_change(1)).await.unwrap();
    let mut after = redis::pipe();
    after.get("{postern:t}:schema").exists("{postern:t}:writer");
    let after: (u32, bool) = after.query_async(&mut connection).await.unwrap();
    assert_eq!(after, (SCHEMA, false));
}

#[tokio::test]
async fn a_member_finds_out_that_a_newer_broker_wrote_the_store() {
    let server = RedisServer::durable().await;
    let store = Broker::open(&server.store("t")).await.unwrap();
    let client = redis::Client::open(server.url()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    redis::cmd("SET")
        .arg("{postern:t}:schema")
        .arg(SCHEMA + 1)
        .query_async::<()>(&mut connection)
        .await
        .unwrap();
    let reply = store.redis.renew(&MemberInfo::default()).await;
    assert!(matches!(reply, Err(StoreError::NewerSchema { .. })), "{reply:?}");
}
