//! Whose checkpoints count: revoked intermediates, other logs, and acceptances by clocks that differ.

use jiff::SignedDuration;

use super::*;

/// The holder of the intermediate's key as it was before it was renewed and revoked.
async fn a_thief(world: &World, broker: &mut Broker) -> Authority {
    let (ca, domain) = (world.dir.path().join("ca"), TrustDomain::default());
    let thief = Authority::load(&ca, &domain).unwrap();
    broker.round().await;
    Authority::renew(&ca, &domain, &ca.join("root.key"), wall()).unwrap();
    world.authority.reload().unwrap();
    broker.keeper.revocations.learn_intermediates([thief.intermediate().key]);
    thief
}

#[tokio::test]
async fn i9_a_checkpoint_by_a_revoked_intermediate_is_not_adopted_accepts_nothing_and_raises_nothing() {
    let world = World::with_records(5).await;
    let mut broker = world.broker();
    let thief = a_thief(&world, &mut broker).await;
    let forged = |head, accepted| {
        thief.sign_checkpoint(Checkpoint::of("postern", "postern", head, wall(), accepted)).unwrap()
    };
    let put = async |checkpoint: SignedCheckpoint| {
        let event = AuditEvent::done(at(0), "broker", CHECKPOINT_ACTION).with("checkpoint", checkpoint);
        world.store.commit(Transaction::default().audit(event)).await.unwrap();
    };
    broker.round().await;
    let by = broker.newest().signer().unwrap();
    assert_eq!(by, world.authority.intermediate(), "the broker signs another in the place of its own");
    broker.keeper.checkpoints.offer(forged(Head { seq: 5, hash: Hash::ZERO }, None));
    broker.round().await;
    assert_eq!(broker.alarm(), None, "an agent may show what the thief has sent it");
    let trusted = broker.newest();
    put(forged(world.store.audit_head().await.unwrap(), None)).await;
    broker.round().await;
    assert_eq!((broker.newest(), broker.alarm()), (trusted, None), "another broker's would be adopted");
    world.cut(3).await;
    put(forged(world.store.audit_head().await.unwrap(), Some(wall()))).await;
    for _ in 0..3 {
        broker.round().await;
        assert_eq!(broker.alarm(), Some(AlarmKind::WentBack), "no operator has accepted that");
    }
}

#[tokio::test]
async fn i9_a_broker_whose_own_intermediate_is_revoked_signs_nothing_and_says_why() {
    let world = World::with_records(5).await;
    let mut broker = world.broker();
    broker.keeper.revocations.learn_intermediates([world.authority.intermediate().key]);
    let error = broker.keeper.round(&mut broker.state).await.unwrap_err().to_string();
    assert!(error.contains("is revoked; run `postern-broker authority renew"), "{error}");
    assert_eq!((broker.keeper.checkpoints.newest(), world.audited(CHECKPOINT_ACTION).await), (None, 0));
}

#[tokio::test]
async fn i9_an_acceptance_by_a_clock_that_is_behind_takes_the_place_of_the_one_before() {
    let world = World::with_records(5).await;
    let (mut broker, mut other) = (world.broker(), world.broker());
    let ahead = wall() + SignedDuration::from_hours(1);
    let head = world.store.audit_head().await.unwrap();
    let before = Checkpoint::of("postern", "postern", head, wall(), Some(ahead));
    let before = world.authority.sign_checkpoint(before).unwrap();
    for broker in [&mut broker, &mut other] {
        broker.round().await;
        broker.keeper.trust(&mut broker.state, before.clone()).unwrap();
        broker.state.verifier = None;
        broker.round().await;
    }
    world.cut(3).await;
    broker.round().await;
    other.round().await;
    assert_eq!((broker.alarm(), other.alarm()), (Some(AlarmKind::WentBack), Some(AlarmKind::WentBack)));
    broker.accept(world.store.audit_head().await.unwrap()).await;
    other.round().await;
    assert_eq!((broker.alarm(), other.alarm()), (None, None));
    let accepted = before.checkpoint.accepted.unwrap() + SignedDuration::from_secs(1);
    assert_eq!(other.newest().checkpoint.accepted, Some(accepted));
}

#[tokio::test]
async fn i9_an_agents_checkpoint_of_another_log_is_compared_with_nothing() {
    let world = World::with_records(5).await;
    let mut broker = world.broker();
    broker.round().await;
    let head = Head { seq: 5, hash: Hash::ZERO };
    let other = Checkpoint::of("postern", "another-tenant", head, wall(), None);
    broker.keeper.checkpoints.offer(world.authority.sign_checkpoint(other).unwrap());
    broker.round().await;
    assert_eq!(broker.alarm(), None);
    assert_eq!(broker.keeper.checkpoints.offered(), []);
}

#[tokio::test]
async fn i10_of_the_checkpoints_that_agents_show_at_once_the_latest_are_compared() {
    let world = World::with_records(100).await;
    let mut broker = world.broker();
    broker.round().await;
    for seq in 1..=64 {
        broker.keeper.checkpoints.offer(world.sign(world.head_at(seq).await));
        broker.keeper.checkpoints.offer(world.sign(world.head_at(seq).await));
    }
    broker.keeper.checkpoints.offer(world.sign(Head { seq: 90, hash: Hash::ZERO }));
    assert_eq!(broker.keeper.checkpoints.offered().len(), MAX_OFFERED);
    broker.round().await;
    assert_eq!((broker.alarm(), broker.newest().checkpoint.seq), (Some(AlarmKind::Rewritten), 90));
}
