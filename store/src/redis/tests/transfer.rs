//! Stores that are moved: from SQLite to Redis and back, whole, or not at all.

use std::path::PathBuf;

use postern_core::{CloseReason, Event};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::*;
use crate::embedded::Embedded;
use crate::error::MigrationError;
use crate::kind::Part;
use crate::room::Medium;
use crate::seal::{Sealed, Sealer};
use crate::testing::builders::{a_policy, at, key as principal_key};
use crate::transfer::{Counts, Item, MigrationOptions, Page, Source, Target, transfer};

fn how() -> MigrationOptions {
    MigrationOptions {
        from: "here".into(),
        to: "there".into(),
        keep_source: false,
        overwrite_incomplete: false,
    }
}

async fn moved(
    source: &mut dyn Source,
    target: &mut dyn Target,
    how: &MigrationOptions,
) -> Result<Counts, StoreError> {
    let now = |last: Option<&postern_core::audit::AuditRecord>| last.map_or_else(start, |last| last.event.at);
    transfer(source, target, how, now).await.map(|moved| moved.counts)
}

/// A directory for databases, and a server.
struct Lab {
    server: RedisServer,
    dir: TempDir,
}

impl Lab {
    async fn new() -> Self {
        Self { server: RedisServer::durable().await, dir: TempDir::new().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn file(&self, name: &str) -> crate::embedded::Transfer {
        crate::embedded::Transfer::open(&self.path(name), &test_sealing()).unwrap()
    }

    async fn redis(&self, tenant: &str) -> Transfer {
        Transfer::open(&self.server.store(tenant), &test_sealing()).await.unwrap()
    }

    /// Makes a database with every kind of record, and with at least this many lines in its audit log.
    async fn filled(&self, name: &str, seed: u64, lines: usize) {
        let store = Embedded::open(&self.path(name), &test_sealing()).unwrap();
        fill(&store, &mut StdRng::seed_from_u64(seed), lines).await;
    }
}

fn event() -> AuditEvent {
    AuditEvent::done(start(), "a test", "tested").with("what", "\"quoted\", Zoë,\nand\\more")
}

fn change() -> Transaction {
    Transaction::default()
}

async fn commit(store: &Store, change: Transaction) {
    store.commit(change.audit(event())).await.unwrap();
}

/// Commits at random: every kind of record, in several versions, with deletions and taken tokens.
async fn fill(store: &Store, random: &mut StdRng, lines: usize) {
    for number in 0..random.random_range(5..120_u8) {
        let target = format!("host:vm-{}", random.random_range(0..4));
        let grant = a_grant().number(number).asked_at(at(i64::from(number))).of("alice.b").on(&target);
        let grant = grant.and_on("host:vm-both").build();
        commit(store, change().put_grant(grant.clone(), Expect::Absent)).await;
        let key = format!("key {number} \" ü\n");
        let who = principal_key(["alice.b", "bob"][usize::from(number % 2)]);
        commit(store, change().remember_request(&who, &key, grant.id)).await;
        if random.random_bool(0.6) {
            let closing = grant.after(Event::Close(CloseReason::Expired), at(200)).unwrap();
            commit(store, change().put_grant(closing.clone(), Expect::Any)).await;
            if random.random_bool(0.6) {
                let closed = closing.after(Event::ClosedEverywhere, at(201)).unwrap();
                commit(store, change().put_grant(closed, Expect::Any)).await;
            }
        }
    }
    for number in 0..random.random_range(3..20) {
        let policy = a_policy().named(&format!("policy-{}", random.random_range(0..6))).build();
        let is_there = store.policy(&policy.name).await.unwrap().is_some();
        if is_there && random.random_bool(0.5) {
            commit(store, change().delete_policy(&policy.name)).await;
        } else {
            commit(store, change().put_policy(policy, Expect::Any)).await;
        }
        let agent = AgentRecord {
            target: format!("host:vm-{}", random.random_range(0..6)).parse().unwrap(),
            enrolled_at: at(number),
            certificate_not_after: at(3600),
            banned: None,
            keys: None,
            cloned: None,
            forgotten: None,
            roots: Vec::new(),
        };
        commit(store, change().put_agent(agent.clone(), Expect::Any)).await;
        let hash = TokenHash(random.random());
        let token = TokenRecord { target: agent.target, created_at: start(), expires_at: at(600) };
        commit(store, change().put_token(hash, token)).await;
        if random.random_bool(0.5) {
            commit(store, change().take_token(&hash)).await;
        }
    }
    // The last one is of a policy that is not there any more.
    let policy = a_policy().named("gone").build();
    commit(store, change().put_policy(policy.clone(), Expect::Absent)).await;
    commit(store, change().delete_policy(&policy.name)).await;
    for _ in 0..lines / 100 {
        let group = (0..100).fold(Transaction::default(), |group, _| group.audit(event()));
        store.commit(group).await.unwrap();
    }
}

/// Returns a document without its seal, which has to fit.
fn unsealed(item: Item, sealer: &Sealer) -> Item {
    let Item::Document { kind, key, version, body: Some(text), indexes } = item else { return item };
    let body = sealer.open(Sealed { kind: &kind, key: &key, version }, &text).unwrap().to_owned();
    Item::Document { kind, key, version, body: Some(body), indexes }
}

/// Returns everything in a store, in the order of its text.
async fn everything(source: &mut dyn Source) -> Vec<String> {
    let mut all = Vec::new();
    for part in source.counts().await.unwrap().keys() {
        let (mut items, mut from): (Vec<String>, Option<String>) = (Vec::new(), None);
        loop {
            let page = source.page(part, from.as_deref()).await.unwrap();
            items.extend(page.items.into_iter().map(|item| format!("{:?}", unsealed(item, source.sealer()))));
            from = page.next;
            if from.is_none() {
                break;
            }
        }
        if *part != Part::Audit {
            items.sort();
            items.dedup();
        }
        all.extend(items);
    }
    all
}

/// Checks that both have the same records, except for `more` lines at the end of the second one's audit log.
fn assert_same(one: &[String], other: &[String], more: usize) {
    let lines = one.iter().take_while(|item| item.starts_with("Audit")).count();
    assert_eq!(other.len(), one.len() + more);
    assert_eq!(one[..lines], other[..lines]);
    assert!(other[lines..lines + more].iter().all(|item| item.contains("store.migrated")));
    assert_eq!(one[lines..], other[lines + more..]);
}

/// Checks that the reads of brokers give the same in both.
async fn assert_alike(first: &impl Leasing, second: &impl Leasing) {
    let (one, other) = (first.store(), second.store());
    assert_eq!(one.open_grants().await.unwrap(), other.open_grants().await.unwrap());
    assert_eq!(one.policies().await.unwrap(), other.policies().await.unwrap());
    assert_eq!(one.agents().await.unwrap(), other.agents().await.unwrap());
    for target in ["host:vm-0", "host:vm-1", "host:vm-both"] {
        let target: TargetId = target.parse().unwrap();
        let of_one = one.snapshot(&first.lease(&target).await).await.unwrap().grants;
        assert_eq!(of_one, other.snapshot(&second.lease(&target).await).await.unwrap().grants);
        let query = GrantQuery { target: Some(target), limit: 1000, ..GrantQuery::default() };
        assert_eq!(one.grants(query.clone()).await.unwrap(), other.grants(query).await.unwrap());
    }
    let query =
        GrantQuery { principal: Some(principal_key("alice.b")), limit: 1000, ..GrantQuery::default() };
    assert_eq!(one.grants(query.clone()).await.unwrap(), other.grants(query).await.unwrap());
}

async fn there_and_back(lab: &Lab, seed: u64, lines: usize) {
    let (first, tenant, last) = (format!("{seed}.db"), format!("t{seed}"), format!("{seed}-back.db"));
    lab.filled(&first, seed, lines).await;
    let before = everything(&mut lab.file(&first)).await;
    let counts = moved(&mut lab.file(&first), &mut lab.redis(&tenant).await, &how()).await.unwrap();
    assert_eq!(counts.values().sum::<u64>(), before.len() as u64, "seed {seed}");
    assert_same(&before, &everything(&mut lab.redis(&tenant).await).await, 1);
    let how = MigrationOptions { keep_source: true, ..how() };
    moved(&mut lab.redis(&tenant).await, &mut lab.file(&last), &how).await.unwrap();
    assert_same(&before, &everything(&mut lab.file(&last)).await, 2);

    let (redis, file) = (
        Broker::open(&lab.server.store(&tenant)).await.unwrap(),
        Embedded::open(&lab.path(&last), &test_sealing()).unwrap(),
    );
    assert_alike(&redis, &file).await;
    for store in [&*redis, &file] {
        let policy = a_policy().named("gone").build();
        commit(store, change().put_policy(policy.clone(), Expect::Absent)).await;
        assert_eq!(store.policy(&policy.name).await.unwrap().unwrap().version, 3, "versions count on");
        let lines = store.audit_lines(0, usize::MAX).await.unwrap();
        let head = verify(lines.iter().map(|(_, line)| line.as_str())).unwrap();
        assert_eq!(head, store.audit_head().await.unwrap());
    }
}

#[tokio::test]
async fn i9_whatever_is_in_a_store_arrives_as_it_was_and_comes_back() {
    let lab = Lab::new().await;
    for seed in 0..6 {
        there_and_back(&lab, seed, 0).await;
    }
}

#[tokio::test]
async fn i9_a_long_audit_log_arrives_line_for_line() {
    there_and_back(&Lab::new().await, 77, 10_000).await;
}

#[tokio::test]
async fn i8_entries_that_no_broker_can_have_written_stay_behind() {
    let lab = Lab::new().await;
    lab.filled("a.db", 5, 0).await;
    let before = everything(&mut lab.file("a.db")).await;
    let db = rusqlite::Connection::open(lab.path("a.db")).unwrap();
    for (place, version, body) in
        [("x'6772616e74732fff'", "1", "'a'"), ("'grants/a'", "-1", "'a'"), ("'grants/b'", "'x'", "'a'")]
    {
        let sql = format!("INSERT INTO documents VALUES (CAST({place} AS TEXT), {version}, '', {body})");
        db.execute(&sql, []).unwrap();
    }
    let others = "INSERT INTO documents VALUES ('agents/a', 1, '', CAST(x'ff' AS TEXT)), ('no slash', 1, '', 'a'), \
                  ('audit/1', 1, '', 'a')";
    db.execute(others, []).unwrap();
    drop(db);
    let move_it = async |source: &mut dyn Source, target: &mut dyn Target| {
        let moved =
            transfer(source, target, &how(), |last| last.map_or_else(start, |last| last.event.at)).await;
        moved.unwrap()
    };
    let there = move_it(&mut lab.file("a.db"), &mut lab.redis("t").await).await;
    assert_eq!((there.counts.values().sum::<u64>(), there.left_out), (before.len() as u64, 4));
    assert_same(&before, &everything(&mut lab.redis("t").await).await, 1);

    let store = Broker::open(&lab.server.store("t")).await.unwrap();
    let mut junk = redis::pipe();
    for (kind, key, text) in [
        ("grants", &b"\xff"[..], &b"1 a"[..]),
        ("grants", b"a", b"no version"),
        ("agents", b"a", b"1 \xff"),
        ("policies", b"a", b"9999999999999999 a"),
    ] {
        junk.hset(format!("{{postern:t}}:{kind}"), key, text);
    }
    junk.sadd("{postern:t}:kinds", "audit").sadd("{postern:t}:kinds", b"\xff");
    junk.query_async::<()>(&mut store.redis.reader.clone()).await.unwrap();
    let back = move_it(&mut lab.redis("t").await, &mut lab.file("b.db")).await;
    assert_eq!(back.left_out, 4);
    assert_same(&before, &everything(&mut lab.file("b.db")).await, 2);
}

#[tokio::test]
async fn a_store_that_was_moved_is_refused_and_says_where_it_went() {
    let lab = Lab::new().await;
    lab.filled("a.db", 1, 0).await;
    moved(&mut lab.file("a.db"), &mut lab.redis("t").await, &how()).await.unwrap();
    let refused = Embedded::open(&lab.path("a.db"), &test_sealing()).unwrap_err();
    assert_eq!(refused.to_string(), "this store moved to there; configure that one");

    let store = Broker::open(&lab.server.store("t")).await.unwrap();
    moved(&mut lab.redis("t").await, &mut lab.file("b.db"), &how()).await.unwrap();
    let late = store.commit(Transaction::default().audit(event())).await;
    assert!(format!("{late:?}").contains("was moved elsewhere"), "{late:?}");
    let refused = Broker::open(&lab.server.store("t")).await.unwrap_err();
    assert!(matches!(refused, StoreError::Migration(MigrationError::Moved { .. })), "{refused}");
    Embedded::open(&lab.path("b.db"), &test_sealing()).unwrap();
}

#[tokio::test]
async fn a_target_that_has_a_store_is_left_as_it_is() {
    let lab = Lab::new().await;
    lab.filled("a.db", 1, 0).await;
    lab.filled("b.db", 2, 0).await;
    Broker::open(&lab.server.store("t")).await.unwrap().commit(a_change(1)).await.unwrap();
    let how = MigrationOptions { overwrite_incomplete: true, ..how() };
    let refused = moved(&mut lab.file("a.db"), &mut lab.redis("t").await, &how).await.unwrap_err();
    assert!(matches!(refused, StoreError::Migration(MigrationError::NotEmpty)), "{refused}");
    let refused = moved(&mut lab.redis("t").await, &mut lab.file("b.db"), &how).await.unwrap_err();
    assert!(matches!(refused, StoreError::Migration(MigrationError::NotEmpty)), "{refused}");
    assert_eq!(Broker::open(&lab.server.store("t")).await.unwrap().audit_head().await.unwrap().seq, 1);
    assert!(
        Embedded::open(&lab.path("a.db"), &test_sealing()).is_ok()
            && Embedded::open(&lab.path("b.db"), &test_sealing()).is_ok()
    );
}

#[tokio::test]
async fn i9_a_source_whose_log_was_changed_is_not_moved() {
    let lab = Lab::new().await;
    lab.filled("a.db", 1, 0).await;
    let db = rusqlite::Connection::open(lab.path("a.db")).unwrap();
    db.execute("UPDATE audit SET line = replace(line, 'tested', 'pretended') WHERE seq = 7", []).unwrap();
    drop(db);
    let refused = moved(&mut lab.file("a.db"), &mut lab.redis("t").await, &how()).await.unwrap_err();
    let StoreError::Corrupt { source, .. } = refused else { panic!("{refused:?}") };
    assert!(source.to_string().starts_with("line 7:"), "{source}");
    let target = Broker::open(&lab.server.store("t")).await.unwrap();
    assert_eq!(target.audit_head().await.unwrap(), Head::EMPTY);

    // A log whose end was cut off: Redis knows where it ended.
    let store = Broker::open(&lab.server.store("cut")).await.unwrap();
    store.commit(a_change(1)).await.unwrap();
    store.commit(a_change(2)).await.unwrap();
    let mut pop = redis::cmd("RPOP");
    pop.arg("{postern:cut}:audit").query_async::<()>(&mut store.redis.reader.clone()).await.unwrap();
    let refused = moved(&mut lab.redis("cut").await, &mut lab.file("b.db"), &how()).await.unwrap_err();
    let StoreError::Corrupt { source, .. } = refused else { panic!("{refused:?}") };
    assert!(source.to_string().contains("ends with record 1, and the store says 2"), "{source}");
}

/// A store that fails for good after so many calls, as if the migration were killed there.
struct Until<T> {
    inner: T,
    left: usize,
}

impl<T> Until<T> {
    fn call(&mut self) -> Result<&mut T, StoreError> {
        self.left = self.left.checked_sub(1).ok_or(StoreError::Full(Medium::Disk))?;
        Ok(&mut self.inner)
    }
}

#[async_trait]
impl<T: Target> Target for Until<T> {
    fn sealer(&self) -> &Sealer {
        self.inner.sealer()
    }
    async fn begin(&mut self, from: &str, overwrite: bool) -> Result<(), StoreError> {
        self.call()?.begin(from, overwrite).await
    }
    async fn set_base(&mut self, base: Head) -> Result<(), StoreError> {
        self.call()?.set_base(base).await
    }
    async fn put(&mut self, items: Vec<Item>) -> Result<(), StoreError> {
        self.call()?.put(items).await
    }
    async fn arrived(&mut self) -> Result<Counts, StoreError> {
        self.call()?.arrived().await
    }
    async fn settle(&mut self) -> Result<(), StoreError> {
        self.call()?.settle().await
    }
    async fn finish(&mut self, last: &postern_core::audit::AuditRecord) -> Result<(), StoreError> {
        self.call()?.finish(last).await
    }
}

#[tokio::test]
async fn wherever_a_migration_breaks_off_no_store_is_opened_that_is_half_there() {
    let lab = Lab::new().await;
    lab.filled("a.db", 3, 1000).await;
    Broker::open(&lab.server.store("r")).await.unwrap();
    fill(&Broker::open(&lab.server.store("r")).await.unwrap(), &mut StdRng::seed_from_u64(4), 1000).await;
    let (in_file, in_redis) =
        (everything(&mut lab.file("a.db")).await, everything(&mut lab.redis("r").await).await);
    let again = MigrationOptions { overwrite_incomplete: true, ..how() };
    let mut finished = false;
    let first = how();
    for left in 1..30 {
        let how = if left == 1 { &first } else { &again };
        let mut target = Until { inner: lab.redis("t").await, left };
        let outcome = moved(&mut lab.file("a.db"), &mut target, how).await;
        let mut file = Until { inner: lab.file("b.db"), left };
        let back = moved(&mut lab.redis("r").await, &mut file, how).await;
        drop(file);
        assert_eq!(outcome.is_ok(), back.is_ok(), "{left}");
        if outcome.is_ok() {
            finished = true;
            break;
        }
        let (at_redis, at_file) =
            (Broker::open(&lab.server.store("t")).await, Embedded::open(&lab.path("b.db"), &test_sealing()));
        // After the last record nothing is missing but the last word on whether replicas have it.
        if let (Ok(_), Ok(_)) = (&at_redis, &at_file) {
            assert!(
                Embedded::open(&lab.path("a.db"), &test_sealing()).is_err()
                    && Broker::open(&lab.server.store("r")).await.is_err()
            );
            finished = true;
            break;
        }
        for refused in [at_redis.unwrap_err(), at_file.unwrap_err()] {
            assert!(refused.to_string().contains("from here into this store was broken off"), "{refused}");
        }
        let refused = moved(&mut lab.file("a.db"), &mut lab.redis("t").await, &first).await.unwrap_err();
        assert!(matches!(refused, StoreError::Migration(MigrationError::Incomplete { .. })), "{refused}");
    }
    assert!(finished);
    assert_same(&in_file, &everything(&mut lab.redis("t").await).await, 1);
    assert_same(&in_redis, &everything(&mut lab.file("b.db")).await, 1);
}

/// A source on which a broker commits once its first page was read.
struct Busy {
    inner: Transfer,
    store: Broker,
    pages: usize,
}

#[async_trait]
impl Source for Busy {
    fn sealer(&self) -> &Sealer {
        Source::sealer(&self.inner)
    }
    async fn head(&mut self) -> Result<Head, StoreError> {
        self.inner.head().await
    }
    async fn base(&mut self) -> Result<Head, StoreError> {
        self.inner.base().await
    }
    async fn counts(&mut self) -> Result<Counts, StoreError> {
        self.inner.counts().await
    }
    async fn page(&mut self, part: &Part, from: Option<&str>) -> Result<Page, StoreError> {
        self.pages += 1;
        if self.pages == 3 {
            self.store.commit(a_change(200)).await?;
        }
        self.inner.page(part, from).await
    }
    async fn mark_moved(&mut self, to: &str, head: &Head) -> Result<(), StoreError> {
        self.inner.mark_moved(to, head).await
    }
}

#[tokio::test]
async fn i9_a_log_whose_first_records_have_left_moves_with_its_base() {
    let lab = Lab::new().await;
    lab.filled("a.db", 7, 1_200).await;
    let store = Embedded::open(&lab.path("a.db"), &test_sealing()).unwrap();
    let line = store.audit_lines(599, 1).await.unwrap().remove(0).1;
    let upto = serde_json::from_str::<postern_core::audit::AuditRecord>(&line).unwrap().head();
    let cut = crate::AuditCut { from: Head::EMPTY, upto };
    store.commit(Transaction::default().cut_audit(cut).audit(event())).await.unwrap();
    let before = store.audit_lines(0, usize::MAX).await.unwrap();
    drop(store);
    moved(&mut lab.file("a.db"), &mut lab.redis("t").await, &how()).await.unwrap();
    moved(&mut lab.redis("t").await, &mut lab.file("b.db"), &how()).await.unwrap();
    let back = Embedded::open(&lab.path("b.db"), &test_sealing()).unwrap();
    assert_eq!(back.audit_base().await.unwrap(), upto);
    let lines = back.audit_lines(0, usize::MAX).await.unwrap();
    assert_eq!((before.first().map(|(seq, _)| *seq), lines[..before.len()] == before), (Some(601), true));
}

#[tokio::test]
async fn a_source_that_is_written_to_meanwhile_is_not_moved_and_goes_on() {
    let lab = Lab::new().await;
    let store = Broker::open(&lab.server.store("t")).await.unwrap();
    store.commit(a_change(1)).await.unwrap();
    let mut busy = Busy { inner: lab.redis("t").await, store, pages: 0 };
    let refused = moved(&mut busy, &mut lab.file("b.db"), &how()).await.unwrap_err();
    assert!(matches!(refused, StoreError::Migration(MigrationError::Changed)), "{refused}");
    busy.store.commit(a_change(2)).await.unwrap();
    assert!(Embedded::open(&lab.path("b.db"), &test_sealing()).is_err(), "what has arrived is no store");
}
