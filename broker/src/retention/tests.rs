//! Retention over stores in memory and on disk, with real files.

mod killed;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use postern_core::audit::{AuditEvent, AuditRecord, Broken, Head, Verifier};
use postern_core::{CertificateSerial, CloseReason, Event, Grant, Principal, Role};
use postern_store::coordination::Claim;
use postern_store::embedded::Embedded;
use postern_store::testing::fake_peer::FakePeer;
use postern_store::testing::memory::{Fault, Memory};
use postern_store::testing::test_sealing;
use postern_store::{
    Expect, IssuedCertificate, Record as _, RequestKey, RequestRecord, StoreError, TokenHash, TokenRecord,
    Transaction,
};

use super::*;
use crate::app::audit::{Tail, verify};
use crate::principals::{IssuedEntry, with_issued};
use crate::signals::Wakeups;
use crate::testing::TestApp;
use crate::testing::builders::{a_grant, at, key, name};

const DAY: i64 = 24 * 3600;

fn event(second: i64) -> AuditEvent {
    AuditEvent::done(at(second), "a test", "tested")
}

/// Makes a round on this day after the builders' start.
async fn round_on(store: &Store, day: i64, audit: Option<Segments>) -> anyhow::Result<()> {
    round_of(store, &Cluster::alone(), day, audit).await
}

async fn round_of(
    store: &Store,
    cluster: &Arc<Cluster>,
    day: i64,
    audit: Option<Segments>,
) -> anyhow::Result<()> {
    let (clock, wakeups) = (Clock::start(at(0)), Arc::new(Wakeups::default()));
    let keeper = RetentionKeeper {
        store: store.clone(),
        cluster: Arc::clone(cluster),
        cloud: CloudLayer::new(BTreeMap::new(), clock, wakeups, Arc::clone(&cluster.leases)),
        checkpoints: Checkpoints::letting_leave(u64::MAX),
        settings: RetentionSettings { audit, ..RetentionSettings::default() },
        clock,
    };
    keeper.round(at(day * DAY)).await
}

fn asked(number: u8, day: i64) -> Grant {
    let mut grant = a_grant().number(number).asked_at(at(day * DAY)).build();
    grant.id = postern_core::GrantId::from_parts(at(day * DAY), u128::from(number));
    grant.idempotency_key = Some(format!("key-{number}"));
    grant
}

fn closed(grant: &Grant, day: i64) -> Grant {
    let closing = grant.after(Event::Close(CloseReason::Expired), at(day * DAY)).unwrap();
    closing.after(Event::ClosedEverywhere, at(day * DAY)).unwrap()
}

fn put(grant: &Grant) -> Transaction {
    let key = grant.idempotency_key.clone().unwrap();
    let changes = Transaction::default().put_grant(grant.clone(), Expect::Absent);
    changes.remember_request(grant.principal.key(), &key, grant.id).audit(event(0))
}

async fn events(store: &Store, action: &str) -> Vec<BTreeMap<String, String>> {
    let lines = store.audit_lines(0, 100_000).await.unwrap();
    let records = lines.iter().map(|(_, line)| serde_json::from_str::<AuditRecord>(line).unwrap().event);
    records.filter(|event| event.action == action).map(|event| event.details).collect()
}

#[tokio::test]
async fn i10_what_was_over_before_the_cutoff_leaves_and_nothing_else() {
    let (memory, alice) = (Memory::default(), key("alice"));
    let store = memory.store();
    // The cutoff is day 10. One closed before it, one after, one is open for so long, and one was never asked for by a key.
    let (gone, late, open) = (closed(&asked(1, 1), 2), closed(&asked(2, 1), 11), asked(3, 1));
    for grant in [&gone, &late, &open] {
        store.commit(put(grant)).await.unwrap();
    }
    let token = |day: i64| TokenRecord {
        target: "host:vm-1".parse().unwrap(),
        created_at: at(0),
        expires_at: at(day * DAY),
    };
    let tokens = Transaction::default().put_token(TokenHash([1; 32]), token(9));
    store.commit(tokens.put_token(TokenHash([2; 32]), token(11)).audit(event(0))).await.unwrap();
    for (who, role, digits, end) in [
        ("alice", Role::Requester, "01", 9),
        ("rita", Role::Reader, "02", 9),
        ("rita", Role::Administrator, "03", 11),
    ] {
        let serial = CertificateSerial::new(digits).unwrap();
        let certificate = IssuedCertificate { serial, issued_at: at(0), not_after: at(end * DAY) };
        let entry = IssuedEntry { principal: Principal::local(role, name(who)), certificate };
        let changes = with_issued(&store, &entry).await.unwrap().unwrap();
        store.commit(changes.audit(event(0))).await.unwrap();
    }
    round_on(&store, 100, None).await.unwrap();

    let is_there = async |grant: &Grant| {
        let key = grant.idempotency_key.as_deref().unwrap();
        let of_key = store.grant_of_request(&alice, key).await.unwrap();
        (store.grant(grant.id).await.unwrap().is_some(), of_key == Some(grant.id))
    };
    assert_eq!(is_there(&gone).await, (false, false), "with its idempotency key");
    assert_eq!((is_there(&late).await, is_there(&open).await), ((true, true), (true, true)));
    let token = async |byte| store.token(&TokenHash([byte; 32])).await.unwrap().is_some();
    assert_eq!((token(1).await, token(2).await), (false, true));
    assert!(store.issued_principal(&alice).await.unwrap().is_none());
    let rita = store.issued_principal(&key("rita")).await.unwrap().unwrap().record;
    assert_eq!(rita.certificates.into_keys().collect::<Vec<_>>(), [Role::Administrator]);

    let mut removed: BTreeMap<String, String> = BTreeMap::new();
    for details in events(&store, "retention.removed").await {
        removed.extend(details.into_iter().filter(|(name, _)| name != "before"));
    }
    let expected = [("certificates", 2), ("grants", 1), ("principals", 1), ("requests", 1), ("tokens", 1)];
    let expected = expected.map(|(name, count): (&str, usize)| (name.to_owned(), count.to_string()));
    assert_eq!(removed, expected.into());
    // A round with nothing to do says nothing.
    let head = store.audit_head().await.unwrap();
    round_on(&store, 100, None).await.unwrap();
    assert_eq!(store.audit_head().await.unwrap(), head);
}

#[tokio::test]
async fn i10_forged_records_leave_and_hold_up_no_other() {
    let memory = Memory::default();
    let store = memory.store();
    let all: Vec<Grant> = (0..=200).map(|number| closed(&asked(number, 1), 2)).collect();
    for grant in &all {
        store.commit(put(grant)).await.unwrap();
    }
    let young = closed(&asked(201, 50), 99);
    store.commit(put(&young)).await.unwrap();
    let token = |day: i64| TokenRecord {
        target: "host:vm-1".parse().unwrap(),
        created_at: at(0),
        expires_at: at(day * DAY),
    };
    let tokens = [1, 2].map(|byte| TokenHash([byte; 32]));
    let changes = Transaction::default().put_token(tokens[0], token(99)).put_token(tokens[1], token(9));
    store.commit(changes.audit(event(0))).await.unwrap();
    let forge = |kind, key: &str| drop(memory.tamper(kind, key, |text| text.replacen('{', "{ ", 1)));
    // More than a page of forged grants before the genuine ones, one whose idempotency key alone is forged, and one too young.
    for grant in all[..150].iter().chain([&young]) {
        forge(Grant::KIND, &grant.id.to_string());
    }
    let key = RequestKey::new(&key("alice"), all[200].idempotency_key.as_deref().unwrap());
    forge(RequestRecord::KIND, &key.to_string());
    forge(TokenRecord::KIND, &tokens[0].to_string());
    round_on(&store, 100, None).await.unwrap();

    for grant in &all {
        assert!(store.grant(grant.id).await.unwrap().is_none());
    }
    assert!(store.get::<RequestRecord>(&key).await.unwrap().is_none());
    for token in &tokens {
        assert!(store.token(token).await.unwrap().is_none());
    }
    let kept = store.grant(young.id).await;
    assert!(matches!(kept, Err(StoreError::Forged { .. })), "its id is not before the cutoff");
    let counts = events(&store, "retention.removed").await;
    let count = |name| counts.iter().filter_map(|it| it.get(name)?.parse::<usize>().ok()).sum::<usize>();
    assert_eq!(["forged", "grants", "requests", "tokens"].map(count), [151, 51, 51, 1]);
    assert!(store.forgeries().take().names.len() > 150, "each is named in the alarm");
}

#[tokio::test]
async fn i10_many_records_leave_in_batches_that_are_audited_each() {
    let memory = Memory::default();
    let store = memory.store();
    let all: Vec<Grant> = (0..=255).map(|number| closed(&asked(number, 1), 2)).collect();
    for grants in all.chunks(64) {
        let changes = grants.iter().fold(Transaction::default(), |changes, grant| {
            let key = grant.idempotency_key.as_deref().unwrap();
            let changes = changes.put_grant(grant.clone(), Expect::Absent);
            changes.remember_request(grant.principal.key(), key, grant.id)
        });
        store.commit(changes.audit(event(0))).await.unwrap();
    }
    // A store that fails in the middle has lost nothing else, and the next round does the rest.
    memory.fail_next([Fault::Nothing, Fault::Before]);
    round_on(&store, 100, None).await.unwrap_err();
    let left = async || store.range::<Grant>(postern_store::Range::all("all")).await.unwrap().len();
    assert_eq!(left().await, 128);
    round_on(&store, 100, None).await.unwrap();
    assert_eq!(left().await, 0);
    let batches = events(&store, "retention.removed").await;
    assert!(
        batches.iter().all(|batch| batch["grants"] == "128" && batch["requests"] == "128"),
        "{batches:?}"
    );
    assert_eq!(batches.len(), 2);
}

#[tokio::test]
async fn i10_the_leases_of_targets_that_are_gone_are_given_back() {
    let memory = Memory::default();
    let store = memory.store();
    let cluster = Cluster::of(Arc::new(FakePeer::default()));
    cluster.leases.believe_from(boottime());
    let target = |name: &str| format!("host:{name}").parse::<postern_core::TargetId>().unwrap();
    for name in ["gone", "forgotten", "agent", "grant", "peer"] {
        cluster.leases.hold(&target(name), Claim::Free).await.unwrap();
    }
    let forgotten = |day: i64| postern_store::Forgotten {
        by: Principal::local(Role::Administrator, name("root")),
        at: at(day * DAY),
        reason: String::new(),
    };
    // The cutoff is day 10.
    for (name, forgotten) in
        [("forgotten", Some(forgotten(9))), ("peer", Some(forgotten(11))), ("agent", None)]
    {
        let agent = postern_store::AgentRecord {
            target: target(name),
            enrolled_at: at(0),
            certificate_not_after: at(0),
            banned: None,
            keys: None,
            roots: Vec::new(),
            certificate_root: None,
            cloned: None,
            forgotten,
        };
        store.commit(Transaction::default().put_agent(agent, Expect::Absent).audit(event(0))).await.unwrap();
    }
    let mut grant = closed(&asked(1, 20), 21);
    grant.windows.iter_mut().for_each(|window| window.target = target("grant"));
    store.commit(put(&grant)).await.unwrap();
    round_of(&store, &cluster, 100, None).await.unwrap();
    let mut left = cluster.leases.targets();
    left.sort();
    assert_eq!(left, [target("agent"), target("grant"), target("peer")]);
}

fn rule(dir: &Path) -> Option<Segments> {
    Some(Segments { after: Duration::from_secs(10 * 24 * 3600), dir: dir.join("audit") })
}

/// Adds records of one day.
async fn log(store: &Store, day: i64, count: usize) {
    for _ in 0..count.div_ceil(100) {
        let group =
            (0..count.min(100)).fold(Transaction::default(), |group, _| group.audit(event(day * DAY)));
        store.commit(group).await.unwrap();
    }
}

fn segments(dir: &Path) -> Vec<String> {
    let Ok(files) = fs::read_dir(dir.join("audit")) else { return Vec::new() };
    let mut names: Vec<String> = files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Verifies the segments and the store's lines as one chain, and returns its head.
async fn whole(dir: &Path, store: &Store) -> Head {
    let mut verifier = Verifier::default();
    for name in segments(dir).iter().filter(|name| name.ends_with(".jsonl")) {
        let text = fs::read_to_string(dir.join("audit").join(name)).unwrap();
        text.lines().for_each(|line| drop(verifier.line(line).unwrap()));
        assert_eq!(fs::metadata(dir.join("audit").join(name)).unwrap().permissions().mode() & 0o777, 0o600);
    }
    assert_eq!(verifier.head(), store.audit_base().await.unwrap());
    for (_, line) in store.audit_lines(0, 100_000).await.unwrap() {
        verifier.line(&line).unwrap();
    }
    verifier.head()
}

#[tokio::test]
async fn i9_old_audit_records_go_into_segments_that_verify_with_the_rest_as_one_chain() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(&dir.path().join("a.db"), &test_sealing()).unwrap();
    log(&store, 1, 5_000).await;
    log(&store, 15, 300).await;
    log(&store, 30, 7).await;
    let round = async |day| round_on(&store, day, rule(dir.path())).await;
    round(25).await.unwrap();
    let names = |range: &[(u64, u64)]| -> Vec<String> {
        range.iter().map(|(first, last)| format!("audit-{first:020}-{last:020}.jsonl")).collect()
    };
    // The records of day 15 are old enough, and wait for a day for others that fill a segment.
    assert_eq!(segments(dir.path()), names(&[(1, 4096), (4097, 5000)]));
    assert_eq!(whole(dir.path(), &store).await, store.audit_head().await.unwrap());
    assert_eq!(events(&store, "audit.sealed").await.len(), 2);
    drop(store);

    // A broker that starts goes on from there.
    let store = Embedded::open(&dir.path().join("a.db"), &test_sealing()).unwrap();
    let round = async |day| round_on(&store, day, rule(dir.path())).await;
    round(25).await.unwrap();
    assert_eq!(segments(dir.path()).len(), 2, "nothing is due");
    round(27).await.unwrap();
    assert_eq!(segments(dir.path()), names(&[(1, 4096), (4097, 5000), (5001, 5300)]));
    // However old they are, the last record stays: the clock goes on from it.
    round(10_000).await.unwrap();
    assert!(!store.audit_lines(0, 10).await.unwrap().is_empty());
    assert_eq!(whole(dir.path(), &store).await, store.audit_head().await.unwrap());
}

#[tokio::test]
async fn i9_no_record_leaves_the_store_that_no_checkpoint_covers() {
    let (store, dir) = (Memory::default().store(), tempfile::tempdir().unwrap());
    log(&store, 1, 300).await;
    log(&store, 60, 5).await;
    for (upto, base) in [(0, 0), (120, 120), (120, 120), (250, 250), (u64::MAX, 300)] {
        let checkpoints = Checkpoints::letting_leave(upto);
        segments::seal(&store, &rule(dir.path()).unwrap(), at(30 * DAY), &checkpoints).await.unwrap();
        assert_eq!(store.audit_base().await.unwrap().seq, base);
    }
    assert_eq!(whole(dir.path(), &store).await, store.audit_head().await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn i9_an_alarm_that_is_raised_meanwhile_ends_the_sealing() {
    let (store, dir) = (Memory::default().store(), tempfile::tempdir().unwrap());
    log(&store, 1, 9_000).await;
    log(&store, 60, 5).await;
    let (rule, checkpoints) = (rule(dir.path()).unwrap(), Checkpoints::letting_leave(u64::MAX));
    let alarm = async {
        while store.audit_base().await.unwrap() == Head::EMPTY {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        checkpoints.report_broken(None, Broken { line: 8_000, problem: "was changed".into() });
    };
    let (sealed, ()) = tokio::join!(segments::seal(&store, &rule, at(30 * DAY), &checkpoints), alarm);
    sealed.unwrap();
    assert_eq!((store.audit_base().await.unwrap().seq, segments(dir.path()).len()), (4096, 1));
}

#[tokio::test]
async fn i9_the_broker_verifies_and_streams_its_log_from_the_base() {
    let (test, dir) = (TestApp::new(), tempfile::tempdir().unwrap());
    log(&test.store, 1, 300).await;
    log(&test.store, 60, 5).await;
    round_on(&test.store, 30, rule(dir.path())).await.unwrap();
    let verified = verify(&test.app, true).await.unwrap();
    assert_eq!((verified.head, verified.broken), (test.store.audit_head().await.unwrap(), None));
    let mut tail = Tail::new(Arc::clone(&test.app), 0, false);
    assert_eq!(tail.next().await.unwrap().map(|(seq, _)| seq), Some(301));
}

#[tokio::test]
async fn i9_a_broker_that_is_stopped_at_any_step_leaves_the_records_in_the_store_or_in_a_whole_file() {
    let (dir, memory) = (tempfile::tempdir().unwrap(), Memory::default());
    let store = memory.store();
    log(&store, 1, 300).await;
    log(&store, 60, 5).await;
    let round = async |day| round_on(&store, day, rule(dir.path())).await;
    // Stopped before the rename: a temporary file is no segment.
    fs::create_dir(dir.path().join("audit")).unwrap();
    let name = format!("audit-{:020}-{:020}", 1, 300);
    fs::write(dir.path().join("audit").join(format!("{name}.tmp")), "half of a").unwrap();
    // Stopped after the file and before the removal, or when the removal was not answered.
    for fault in [Fault::Before, Fault::After] {
        memory.fail_next([fault]);
        round(30).await.unwrap_err();
        assert_eq!(segments(dir.path()), [format!("{name}.jsonl")]);
    }
    assert_eq!(store.audit_base().await.unwrap().seq, 300);
    round(30).await.unwrap();
    assert_eq!(whole(dir.path(), &store).await, store.audit_head().await.unwrap());
}

#[tokio::test]
async fn i9_a_file_that_was_begun_with_fewer_records_is_completed_as_it_is() {
    let (dir, memory) = (tempfile::tempdir().unwrap(), Memory::default());
    let store = memory.store();
    log(&store, 1, 100).await;
    log(&store, 3, 100).await;
    log(&store, 60, 5).await;
    let round = async |day| round_on(&store, day, rule(dir.path())).await;
    memory.fail_next([Fault::Before]);
    round(13).await.unwrap_err();
    assert_eq!(segments(dir.path()).len(), 1);
    // More have become old before the next round.
    round(30).await.unwrap();
    assert_eq!((segments(dir.path()).len(), store.audit_base().await.unwrap().seq), (2, 200));
    assert_eq!(whole(dir.path(), &store).await, store.audit_head().await.unwrap());
}

#[tokio::test]
async fn i9_a_file_with_other_records_or_a_log_that_is_broken_keeps_the_records_in_the_store() {
    let (dir, memory) = (tempfile::tempdir().unwrap(), Memory::default());
    let store = memory.store();
    log(&store, 1, 100).await;
    log(&store, 60, 5).await;
    fs::create_dir(dir.path().join("audit")).unwrap();
    let path = dir.path().join("audit").join(format!("audit-{:020}-{:020}.jsonl", 1, 100));
    let round = async || round_on(&store, 30, rule(dir.path())).await;
    for other in ["", "others\n"] {
        fs::write(&path, other).unwrap();
        let error = round().await.unwrap_err();
        assert!(format!("{error:#}").contains("move it elsewhere"), "{error:#}");
        assert_eq!(fs::read_to_string(&path).unwrap(), other);
    }
    fs::remove_file(&path).unwrap();
    let longer = dir.path().join("audit").join(format!("audit-{:020}-{:020}.jsonl", 1, 4000));
    fs::write(&longer, "others\n").unwrap();
    round().await.unwrap_err();
    fs::remove_file(&longer).unwrap();
    // A directory that cannot be made.
    fs::remove_dir(dir.path().join("audit")).unwrap();
    fs::write(dir.path().join("audit"), "a file").unwrap();
    let error = round().await.unwrap_err();
    assert!(format!("{error:#}").contains("audit"), "{error:#}");
    assert_eq!(store.audit_base().await.unwrap(), Head::EMPTY);
    assert!(events(&store, "audit.sealed").await.is_empty());
    fs::remove_file(dir.path().join("audit")).unwrap();
    round().await.unwrap();
    assert_eq!(store.audit_base().await.unwrap().seq, 100);
}
