//! The keeper over a store in memory that an attacker writes: at the start, while the broker runs, and beside other brokers.

mod between_reads;
mod failures;
mod signers;
mod two_brokers;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use postern_core::audit::{AuditEvent, AuditRecord, Broken, Hash, Head};
use postern_core::checkpoint::{CHECKPOINT_ACTION, Checkpoint};
use postern_pki::{Authority, SignedCheckpoint, TrustDomain};
use postern_store::testing::memory::{Fault, Memory as Store};
use postern_store::{AuditCut, Transaction};
use tempfile::TempDir;

use super::keeper::KeeperState;
use super::*;
use crate::app::audit::{AuditedStore, Verifications};
use crate::clock::{Clock, wall};
use crate::testing::builders::at;

/// Two brokers on one store can be made of one world: each has a data directory of its own.
struct World {
    store: Store,
    authority: Arc<Authority>,
    dir: TempDir,
}

/// A broker's keeper with its data directory.
struct Broker {
    keeper: CheckpointKeeper,
    state: KeeperState,
    dir: TempDir,
}

impl World {
    async fn with_records(count: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::init(&dir.path().join("ca"), &TrustDomain::default(), wall()).unwrap();
        let world = Self { store: Store::default(), authority: Arc::new(authority), dir };
        world.add(count).await;
        world
    }

    async fn add(&self, count: usize) {
        for n in 0..count {
            let event = AuditEvent::done(at(0), "requester/alice", "test").with("n", n);
            self.store.commit(Transaction::default().audit(event)).await.unwrap();
        }
    }

    fn broker(&self) -> Broker {
        self.broker_in(tempfile::tempdir().unwrap())
    }

    /// A broker that starts with this data directory.
    fn broker_in(&self, dir: TempDir) -> Broker {
        let keeper = self.keeper(dir.path());
        Broker { keeper, state: KeeperState::default(), dir }
    }

    fn keeper(&self, dir: &Path) -> CheckpointKeeper {
        CheckpointKeeper {
            store: self.store.store(),
            authority: Arc::clone(&self.authority),
            revocations: Arc::default(),
            checkpoints: Arc::default(),
            file: MemoryFile::of(dir),
            records: 3,
            every: Duration::from_secs(3600),
            trust_domain: "postern".into(),
            log: "postern".into(),
            clock: Clock::start(at(0)),
        }
    }

    async fn lines(&self) -> Vec<String> {
        let lines = self.store.audit_lines(0, 1000).await.unwrap();
        lines.into_iter().map(|(_, line)| line).collect()
    }

    /// Writes the log again with one record changed, and correct hashes from there on.
    async fn rewrite(&self, seq: usize) {
        let mut head = Head::EMPTY;
        let forged = self.lines().await.into_iter().enumerate().map(|(index, line)| {
            let event = serde_json::from_str::<AuditRecord>(&line).unwrap().event;
            let event = if index + 1 == seq { event.with("forged", true) } else { event };
            let record = AuditRecord::following(&head, event);
            head = record.head();
            record.to_line()
        });
        self.store.replace_audit(forged.collect());
    }

    async fn cut(&self, left: usize) {
        let mut lines = self.lines().await;
        lines.truncate(left);
        self.store.replace_audit(lines);
    }

    async fn audited(&self, action: &str) -> usize {
        let quoted = format!("\"action\":\"{action}\"");
        self.lines().await.iter().filter(|line| line.contains(&quoted)).count()
    }
}

impl Broker {
    async fn round(&mut self) {
        self.keeper.round(&mut self.state).await.unwrap();
    }

    fn newest(&self) -> Arc<SignedCheckpoint> {
        self.keeper.checkpoints.newest().expect("there is a checkpoint")
    }

    fn alarm(&self) -> Option<AlarmKind> {
        self.keeper.checkpoints.alarm().map(|alarm| alarm.kind)
    }

    /// Accepts a head as the command does.
    async fn accept(&mut self, head: Head) {
        let acceptance = Acceptance { seq: head.seq, hash: head.hash, reason: "restored".into() };
        self.keeper.file.leave(&acceptance).unwrap();
        self.round().await;
        assert_eq!(self.keeper.file.acceptance().unwrap(), None);
    }
}

#[tokio::test]
async fn i9_a_broker_signs_the_first_head_and_then_one_after_so_many_records() {
    let world = World::with_records(5).await;
    let mut broker = world.broker();
    broker.round().await;
    assert_eq!(broker.newest().checkpoint.seq, 5);
    broker.newest().verify(&world.authority.roots(), Some("postern")).unwrap();
    // The record of the checkpoint itself asks for no other one, however often the keeper looks.
    for _ in 0..5 {
        broker.round().await;
    }
    world.add(2).await;
    broker.round().await;
    assert_eq!((broker.newest().checkpoint.seq, world.audited(CHECKPOINT_ACTION).await), (5, 1));
    world.add(1).await;
    broker.round().await;
    assert_eq!((broker.newest().checkpoint.seq, world.audited(CHECKPOINT_ACTION).await), (9, 2));
}

#[tokio::test]
async fn i9_a_broker_signs_a_checkpoint_after_some_time_only_if_the_log_grew() {
    let world = World::with_records(5).await;
    let mut broker = world.broker();
    broker.keeper.every = Duration::ZERO;
    broker.round().await;
    broker.round().await;
    assert_eq!(broker.newest().checkpoint.seq, 5);
    world.add(1).await;
    broker.round().await;
    assert_eq!(broker.newest().checkpoint.seq, 7);
}

#[tokio::test]
async fn i9_honest_restarts_renewals_of_the_intermediate_and_a_store_that_fails_raise_nothing() {
    let world = World::with_records(5).await;
    let mut broker = world.broker();
    broker.round().await;
    let signer = broker.newest().signer().unwrap();
    // A restart, and an intermediate that was renewed meanwhile.
    let ca = world.dir.path().join("ca");
    Authority::renew(&ca, &TrustDomain::default(), &ca.join("root.key"), wall()).unwrap();
    world.authority.reload().unwrap();
    let mut broker = world.broker_in(broker.dir);
    broker.round().await;
    assert_eq!((broker.alarm(), broker.newest().checkpoint.seq), (None, 5));
    world.add(3).await;
    world.store.fail_next([Fault::Before]);
    broker.keeper.round(&mut broker.state).await.unwrap_err();
    broker.round().await;
    assert_eq!((broker.alarm(), broker.newest().checkpoint.seq), (None, 9));
    assert_ne!(broker.newest().signer().unwrap(), signer);
    assert_eq!(broker.keeper.checkpoints.warnings(), [""; 0]);
}

#[tokio::test]
async fn i9_a_record_that_a_failover_may_lose_is_covered_by_no_checkpoint() {
    let world = World::with_records(5).await;
    let mut broker = world.broker();
    broker.round().await;
    world.store.fail_next([Fault::Nothing, Fault::Nothing, Fault::Unconfirmed]);
    for n in 0..3 {
        let event = AuditEvent::done(at(0), "requester/alice", "test").with("n", n);
        world.store.commit(Transaction::default().audit(event)).await.ok();
    }
    broker.keeper.round(&mut broker.state).await.unwrap_err();
    assert_eq!((broker.alarm(), broker.newest().checkpoint.seq), (None, 5));
    // The failover: the record that was never confirmed is gone, and another takes its number.
    let mut lines = world.lines().await;
    lines.pop();
    world.store.replace_audit(lines);
    world.add(2).await;
    broker.round().await;
    assert_eq!((broker.alarm(), broker.newest().checkpoint.seq), (None, 10));
}

#[tokio::test]
async fn i9_a_broker_that_restarts_on_a_rewritten_log_notices_and_signs_nothing() {
    let world = World::with_records(5).await;
    let mut broker = world.broker();
    broker.round().await;
    let kept = broker.newest();
    world.rewrite(2).await;
    let mut broker = world.broker_in(broker.dir);
    for _ in 0..3 {
        broker.round().await;
        world.add(4).await;
    }
    assert_eq!(broker.alarm(), Some(AlarmKind::Rewritten));
    assert_eq!((broker.newest(), world.audited("audit.rewritten").await), (kept, 1), "audited once");
    let warnings = broker.keeper.checkpoints.warnings();
    assert!(warnings.len() == 1 && warnings[0].contains("accept-head --seq"), "{warnings:?}");
    // It is noticed again after each restart, and not audited again.
    let mut broker = world.broker_in(broker.dir);
    broker.round().await;
    assert_eq!((broker.alarm(), world.audited("audit.rewritten").await), (Some(AlarmKind::Rewritten), 1));
}

#[tokio::test]
async fn i9_a_running_broker_notices_a_rewritten_a_cut_and_a_broken_log() {
    for (name, kind) in
        [("rewritten", AlarmKind::Rewritten), ("cut", AlarmKind::WentBack), ("broken", AlarmKind::Broken)]
    {
        let world = World::with_records(5).await;
        let mut broker = world.broker();
        broker.round().await;
        match name {
            "rewritten" => world.rewrite(5).await,
            "cut" => world.cut(4).await,
            _ => {
                world.add(2).await;
                let mut lines = world.lines().await;
                lines[6] = lines[6].replace("alice", "mallory");
                world.store.replace_audit(lines);
            }
        }
        broker.round().await;
        assert_eq!(broker.alarm(), Some(kind), "{name}");
        assert_eq!(world.audited(kind.action()).await, 1, "{name}");
    }
}

#[tokio::test]
async fn i9_an_alarm_that_the_store_does_not_take_is_audited_once_it_does() {
    let world = World::with_records(5).await;
    let mut broker = world.broker();
    broker.round().await;
    world.cut(3).await;
    world.store.fail_next([Fault::Before]);
    broker.keeper.round(&mut broker.state).await.unwrap_err();
    assert_eq!(broker.alarm(), Some(AlarmKind::WentBack), "it is shown at once");
    let mut broker = world.broker_in(broker.dir);
    broker.round().await;
    assert_eq!(world.audited("audit.went_back").await, 1);
}

#[tokio::test]
async fn i9_an_operator_accepts_a_head_after_an_alarm_and_every_broker_learns_of_it() {
    let world = World::with_records(5).await;
    let (mut one, mut other) = (world.broker(), world.broker());
    one.round().await;
    other.round().await;
    world.cut(3).await;
    one.round().await;
    other.round().await;
    assert_eq!((one.alarm(), other.alarm()), (Some(AlarmKind::WentBack), Some(AlarmKind::WentBack)));
    // A head that is not in the log is refused.
    one.accept(Head { seq: 3, hash: Hash::ZERO }).await;
    assert!(one.alarm().is_some());
    let head = world.store.audit_head().await.unwrap();
    one.accept(head).await;
    assert_eq!((one.alarm(), world.audited("audit.head_accepted").await), (None, 1));
    assert!(one.newest().checkpoint.accepted.is_some());
    other.round().await;
    assert_eq!((other.alarm(), other.newest().checkpoint.accepted), (None, one.newest().checkpoint.accepted));
    // Both go on from there.
    world.add(3).await;
    one.round().await;
    other.round().await;
    assert_eq!((one.alarm(), other.alarm()), (None, None));
    assert_eq!(one.newest(), other.newest());
}

#[tokio::test]
async fn i9_without_an_alarm_nothing_is_accepted() {
    let world = World::with_records(5).await;
    let mut broker = world.broker();
    broker.round().await;
    let before = world.lines().await;
    broker.accept(world.store.audit_head().await.unwrap()).await;
    assert_eq!((broker.newest().checkpoint.accepted, world.lines().await), (None, before));
}

#[tokio::test]
async fn i9_brokers_on_one_store_take_up_each_others_checkpoints_and_no_forged_ones() {
    let world = World::with_records(5).await;
    let (mut one, mut other) = (world.broker(), world.broker());
    one.round().await;
    other.round().await;
    assert_eq!(
        one.newest(),
        other.newest(),
        "a broker without a file verifies the log, and trusts what vouches for it"
    );
    assert_eq!(world.audited(CHECKPOINT_ACTION).await, 1);
    let forger = World::with_records(0).await;
    let head = world.store.audit_head().await.unwrap();
    let forged = Checkpoint::of("postern", "postern", head, wall(), None);
    let forged = forger.authority.sign_checkpoint(forged).unwrap();
    let event = AuditEvent::done(at(0), "broker", CHECKPOINT_ACTION).with("checkpoint", forged);
    world.store.commit(Transaction::default().audit(event)).await.unwrap();
    other.round().await;
    assert_eq!((other.newest(), other.alarm()), (one.newest(), None));
}

#[tokio::test]
async fn i9_a_broker_that_lost_its_file_learns_from_an_agents_checkpoint_that_the_log_went_back() {
    let world = World::with_records(5).await;
    let mut broker = world.broker();
    broker.round().await;
    let kept = broker.newest().as_ref().clone();
    world.cut(3).await;
    let mut fresh = world.broker();
    fresh.round().await;
    assert_eq!((fresh.alarm(), fresh.newest().checkpoint.seq), (None, 3), "it cannot know");
    fresh.keeper.checkpoints.offer(kept.clone());
    fresh.round().await;
    assert_eq!((fresh.alarm(), fresh.newest().as_ref()), (Some(AlarmKind::WentBack), &kept));
    // After an acceptance the same report proves nothing.
    fresh.accept(world.store.audit_head().await.unwrap()).await;
    fresh.keeper.checkpoints.offer(kept);
    fresh.round().await;
    assert_eq!(fresh.alarm(), None);
}

#[tokio::test]
async fn i9_an_agents_checkpoint_that_the_log_agrees_with_raises_nothing() {
    let world = World::with_records(5).await;
    let mut broker = world.broker();
    broker.round().await;
    broker.keeper.checkpoints.offer(broker.newest().as_ref().clone());
    world.add(3).await;
    broker.round().await;
    assert_eq!((broker.alarm(), broker.newest().checkpoint.seq), (None, 9));
}

#[tokio::test]
async fn a_file_that_cannot_be_read_is_named() {
    let world = World::with_records(1).await;
    let mut broker = world.broker();
    std::fs::write(broker.dir.path().join("audit-checkpoint"), "half of a").unwrap();
    let error = broker.keeper.round(&mut broker.state).await.unwrap_err();
    assert!(format!("{error:#}").contains("audit-checkpoint is malformed"), "{error:#}");
}

impl World {
    async fn head_at(&self, seq: u64) -> Head {
        let line = self.store.audit_lines(seq - 1, 1).await.unwrap().remove(0).1;
        postern_core::audit::head_of_line(&line).unwrap()
    }

    fn sign(&self, head: Head) -> SignedCheckpoint {
        let checkpoint = Checkpoint::of("postern", "postern", head, wall(), None);
        self.authority.sign_checkpoint(checkpoint).unwrap()
    }

    /// Removes the records up to this one, as retention does and as an attacker can.
    async fn seal(&self, upto: u64) {
        let cut = AuditCut { from: self.store.audit_base().await.unwrap(), upto: self.head_at(upto).await };
        let event = AuditEvent::done(at(0), "broker", "audit.sealed").with("last", upto);
        self.store.commit(Transaction::default().cut_audit(cut).audit(event)).await.unwrap();
    }
}

#[tokio::test]
async fn i9_the_trusted_record_and_those_of_agents_may_leave_the_store_without_an_alarm() {
    let world = World::with_records(5).await;
    let mut broker = world.broker();
    broker.round().await;
    let older = world.sign(world.head_at(3).await);
    let trusted = broker.newest();
    assert_eq!((trusted.checkpoint.seq, broker.keeper.checkpoints.sealable()), (5, 5));
    world.seal(5).await;
    broker.round().await;
    let mut broker = world.broker_in(broker.dir);
    for kept in [older, trusted.as_ref().clone()] {
        broker.keeper.checkpoints.offer(kept);
        broker.round().await;
    }
    assert_eq!(broker.alarm(), None);
    // A head of that number with another hash is still noticed.
    let forged = Head { seq: 5, hash: Hash::ZERO };
    broker.keeper.checkpoints.offer(world.sign(forged));
    broker.round().await;
    assert_eq!((broker.alarm(), broker.keeper.checkpoints.sealable()), (Some(AlarmKind::Rewritten), 0));
}

#[tokio::test]
async fn i9_a_base_past_the_trusted_record_is_believed_only_if_a_checkpoint_vouches_for_what_follows() {
    for vouched in [true, false] {
        let world = World::with_records(5).await;
        let (mut late, mut other) = (world.broker(), world.broker());
        late.round().await;
        world.add(10).await;
        if vouched {
            other.round().await;
        }
        world.seal(12).await;
        late.round().await;
        let mut late = world.broker_in(late.dir);
        late.round().await;
        let alarm = (!vouched).then_some(AlarmKind::Rewritten);
        assert_eq!((late.alarm(), late.newest().checkpoint.seq > 5), (alarm, vouched));
    }
}

#[tokio::test]
async fn i9_a_record_that_is_cut_out_of_the_middle_is_not_taken_for_sealed() {
    let world = World::with_records(5).await;
    let mut broker = world.broker();
    broker.round().await;
    let mut lines = world.lines().await;
    lines.remove(4);
    world.store.replace_audit(lines);
    broker.round().await;
    assert!(broker.alarm().is_some());
}

#[tokio::test]
async fn i9_a_log_that_a_verification_found_broken_is_an_alarm_that_stays() {
    let world = World::with_records(5).await;
    let mut broker = world.broker();
    broker.round().await;
    let broken = || Broken { line: 3, problem: "was changed after it was written".into() };
    broker.keeper.checkpoints.report_broken(Some(wall()), broken());
    broker.round().await;
    assert_eq!(broker.alarm(), None, "another log was accepted since");
    for _ in 0..2 {
        broker.keeper.checkpoints.report_broken(None, broken());
        broker.round().await;
    }
    let mut broker = world.broker_in(broker.dir);
    broker.round().await;
    assert_eq!((broker.alarm(), world.audited("audit.broken").await), (Some(AlarmKind::Broken), 1));
    assert!(broker.keeper.checkpoints.warnings()[0].contains("record 3 was changed"));
}

#[tokio::test]
async fn i9_an_accepted_log_verifies_from_the_accepted_record_on_although_those_before_do_not_follow() {
    let world = World::with_records(5).await;
    let (mut broker, mut other) = (world.broker(), world.broker());
    broker.round().await;
    other.round().await;
    world.add(1).await;
    let before = world.lines().await;
    world.rewrite(2).await;
    let mut mixed = world.lines().await;
    mixed.truncate(5);
    mixed.extend_from_slice(&before[5..]);
    world.store.replace_audit(mixed);
    broker.round().await;
    other.round().await;
    assert_eq!(broker.alarm(), Some(AlarmKind::Rewritten));
    // What follows record 5 does not hold: that acceptance would be of no use.
    broker.accept(world.head_at(5).await).await;
    assert_eq!(broker.alarm(), Some(AlarmKind::Rewritten));
    let accepted = world.store.audit_head().await.unwrap();
    broker.accept(accepted).await;
    world.add(4).await;
    broker.round().await;
    other.round().await;
    assert_eq!((broker.alarm(), other.alarm()), (None, None));
    let dir = broker.dir;
    let mut broker = world.broker_in(dir);
    broker.round().await;
    let store = world.store.store();
    let trust = world.authority.roots().into();
    let audited = AuditedStore { store: &store, checkpoints: &broker.keeper.checkpoints, trust };
    let verification = Verifications::default().verify(&audited, true).await.unwrap();
    assert_eq!((verification.broken, verification.accepted_record), (None, Some(accepted.seq)));
    assert_eq!(verification.read_from, accepted.seq + 1);
}
