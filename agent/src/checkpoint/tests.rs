use futures_util::FutureExt as _;
use postern_core::audit::{Hash, Head};
use postern_core::checkpoint::Checkpoint;
use postern_core::{Name, Role};
use postern_pki::{Authority, KeyPair, SpiffeId, TrustDomain};
use tempfile::TempDir;

use super::*;
use crate::reports::{self, Reports};

struct World {
    authority: Authority,
    credentials: Arc<Credentials>,
    dir: TempDir,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority =
            Authority::init(&dir.path().join("ca"), &TrustDomain::default(), clock::wall()).unwrap();
        let key = KeyPair::generate().unwrap();
        let who = SpiffeId::Principal { role: Role::Reader, name: Name::new("any").unwrap() };
        let issued = authority.issue(&key.csr().unwrap(), &who, LOG_INTERVAL, clock::wall()).unwrap();
        let credentials = Arc::new(Credentials::new(key, issued.chain, authority.roots()).unwrap());
        Self { authority, credentials, dir }
    }

    fn keeper(&self) -> (CheckpointKeeper, Reports) {
        let (reporter, reports) = reports::channel();
        let mut keeper = CheckpointKeeper::in_dir(self.dir.path(), reporter);
        keeper.trust(Arc::clone(&self.credentials), false);
        (keeper, reports)
    }

    /// Signs a checkpoint of a record, some minutes from now, in a log whose hashes are these digits.
    fn sign(&self, seq: u64, minutes: i64, digit: char, accepted: Option<i64>) -> String {
        let minute = |minutes: i64| clock::wall() + jiff::SignedDuration::from_mins(minutes);
        let hash: Hash = digit.to_string().repeat(64).parse().unwrap();
        let head = Head { seq, hash };
        let checkpoint = Checkpoint::of("postern", "postern", head, minute(minutes), accepted.map(minute));
        self.authority.sign_checkpoint(checkpoint).unwrap().to_string()
    }

    fn kept(&self) -> KeptCheckpoint {
        read(self.dir.path()).unwrap()
    }
}

fn reported(reports: &mut Reports) -> Option<Report> {
    reports.next().now_or_never()
}

#[test]
fn i9_the_newest_checkpoint_is_kept_across_restarts_and_written_once_a_minute() {
    let world = World::new();
    let (mut keeper, mut reports) = world.keeper();
    keeper.receive(&world.sign(10, 0, 'a', None));
    assert_eq!(world.kept().newest.unwrap().checkpoint.seq, 10, "the first is written at once");
    for seq in 11..20 {
        keeper.receive(&world.sign(seq, 1, 'a', None));
    }
    keeper.flush();
    assert_eq!(world.kept().newest.unwrap().checkpoint.seq, 10, "the file is not written again so soon");
    assert_eq!(keeper.kept.newest.as_ref().unwrap().checkpoint.seq, 19);
    let (mut again, _) = world.keeper();
    again.receive(&world.sign(5, 0, 'a', None));
    assert_eq!(again.kept.newest.unwrap().checkpoint.seq, 10);
    assert!(keeper.kept.alarm.is_none() && reported(&mut reports).is_none());
}

#[test]
fn i9_a_log_that_went_back_or_was_rewritten_is_reported_and_the_kept_checkpoint_stays() {
    for (seq, minutes, digit) in [(7, 10, 'b'), (10, 0, 'b'), (10, -1, 'c')] {
        let world = World::new();
        let (mut keeper, mut reports) = world.keeper();
        let kept = world.sign(10, 0, 'a', None);
        keeper.receive(&kept);
        let received = world.sign(seq, minutes, digit, None);
        keeper.receive(&received);
        let report = Report::Checkpoint(CheckpointReport { kept: kept.clone(), received });
        assert_eq!(reported(&mut reports), Some(report.clone()));
        // Neither the next contradiction nor a longer log changes what is kept, or is reported again.
        keeper.receive(&world.sign(8, 11, 'b', None));
        keeper.receive(&world.sign(50, 12, 'b', None));
        assert_eq!(reported(&mut reports), None);
        assert_eq!(world.kept().newest.unwrap().to_string(), kept);
        let (_, mut reports) = world.keeper();
        assert_eq!(reported(&mut reports), Some(report), "it is reported again after a restart");
    }
}

#[test]
fn i9_a_log_that_an_operator_accepted_ends_the_alarm() {
    let world = World::new();
    let (mut keeper, mut reports) = world.keeper();
    keeper.receive(&world.sign(10, 0, 'a', None));
    keeper.receive(&world.sign(10, 1, 'b', None));
    assert!(world.kept().alarm.is_some() && reported(&mut reports).is_some());
    keeper.receive(&world.sign(3, 2, 'b', Some(2)));
    let kept = world.kept();
    assert!(kept.alarm.is_none());
    assert_eq!(kept.newest.unwrap().checkpoint.seq, 3);
}

#[test]
fn i9_a_checkpoint_of_another_authority_or_with_a_bad_signature_changes_nothing() {
    let (world, other) = (World::new(), World::new());
    let (mut keeper, mut reports) = world.keeper();
    keeper.receive(&world.sign(10, 0, 'a', None));
    let changed = world.sign(10, 0, 'a', None).replace(":10,", ":11,");
    for line in [other.sign(10, 1, 'b', None), changed, "{}".into(), "x".repeat(9000)] {
        keeper.receive(&line);
    }
    assert_eq!((keeper.kept.alarm, reported(&mut reports)), (None, None));
    assert_eq!(keeper.kept.newest.unwrap().checkpoint.seq, 10);
}

#[test]
fn i9_a_new_root_of_the_authority_neither_drops_what_is_kept_nor_ends_an_alarm() {
    let (world, rolled) = (World::new(), World::new());
    let (mut keeper, mut reports) = world.keeper();
    keeper.receive(&world.sign(10, 0, 'a', None));
    keeper.trust(Arc::clone(&rolled.credentials), false);
    keeper.receive(&rolled.sign(11, 1, 'b', None));
    assert_eq!(world.kept().newest.unwrap().checkpoint.seq, 10, "not yet written");
    assert_eq!(keeper.kept.newest.as_ref().unwrap().checkpoint.seq, 11, "the log goes on under the new root");
    keeper.receive(&rolled.sign(3, 9, 'c', None));
    assert!(world.kept().alarm.is_some() && reported(&mut reports).is_some());

    // An alarm that was raised under the old root stands, also after a restart.
    let third = World::new();
    for start in ["first", "second"] {
        let (mut keeper, mut reports) = world.keeper();
        keeper.trust(Arc::clone(&third.credentials), false);
        keeper.receive(&third.sign(50, 20, 'd', None));
        assert_eq!(world.kept().newest.unwrap().checkpoint.seq, 11, "{start}");
        assert!(world.kept().alarm.is_some() && reported(&mut reports).is_some(), "{start}");
        assert!(!keeper.line(&third.credentials, false).is_empty());
    }
}

#[test]
fn an_enrolment_under_another_authority_drops_what_is_kept() {
    let (world, other) = (World::new(), World::new());
    let (mut keeper, mut reports) = world.keeper();
    keeper.receive(&world.sign(10, 0, 'a', None));
    keeper.receive(&world.sign(10, 1, 'b', None));
    assert!(reported(&mut reports).is_some());
    // Under the same authority the log is the same.
    keeper.trust(Arc::clone(&world.credentials), true);
    assert!(world.kept().alarm.is_some() && !keeper.line(&world.credentials, true).is_empty());

    assert_eq!(keeper.line(&other.credentials, true), "", "the other broker is not shown it");
    keeper.trust(Arc::clone(&other.credentials), true);
    assert_eq!(world.kept(), KeptCheckpoint::default());
    keeper.receive(&other.sign(3, 9, 'b', None));
    assert_eq!((keeper.kept.alarm.clone(), reported(&mut reports)), (None, None));
    assert_eq!(keeper.kept.newest.unwrap().checkpoint.seq, 3);
}

#[test]
fn i9_a_file_that_cannot_be_read_is_not_written_over() {
    let world = World::new();
    let whole = {
        let (mut keeper, _) = world.keeper();
        keeper.receive(&world.sign(10, 0, 'a', None));
        keeper.receive(&world.sign(10, 1, 'b', None));
        std::fs::read(path(world.dir.path())).unwrap()
    };
    for damage in [&whole[..whole.len() / 2], b"[]"] {
        std::fs::write(path(world.dir.path()), damage).unwrap();
        let (mut keeper, mut reports) = world.keeper();
        keeper.receive(&world.sign(11, 2, 'a', None));
        keeper.flush();
        assert_eq!(std::fs::read(path(world.dir.path())).unwrap(), damage);
        assert!(matches!(read(world.dir.path()), Err(KeptCheckpointError::Damaged { .. })));
        assert_eq!(reported(&mut reports), None);
        // An operator restores it.
        std::fs::write(path(world.dir.path()), &whole).unwrap();
        keeper.receive(&world.sign(12, 3, 'a', None));
        assert!(keeper.kept.alarm.is_some() && reported(&mut reports).is_some());
    }
    std::fs::remove_file(path(world.dir.path())).unwrap();
    std::fs::create_dir(path(world.dir.path())).unwrap();
    assert!(matches!(read(world.dir.path()), Err(KeptCheckpointError::Read { .. })));
    let (mut keeper, _) = world.keeper();
    keeper.receive(&world.sign(13, 4, 'c', None));
    assert_eq!(keeper.kept, KeptCheckpoint::default());
    // An operator removes it.
    std::fs::remove_dir(path(world.dir.path())).unwrap();
    keeper.receive(&world.sign(13, 4, 'c', None));
    assert_eq!(world.kept().newest.unwrap().checkpoint.seq, 13);
}
