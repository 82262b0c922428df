//! `audit verify` and the signed checkpoints: what the command trusts, remembers and notices by itself (I9).

use std::os::unix::fs::PermissionsExt as _;

use jiff::Timestamp;
use postern_core::audit::{AuditEvent, AuditRecord, Head};
use postern_core::checkpoint::{CHECKPOINT_ACTION, CHECKPOINT_DETAIL, Checkpoint};
use postern_pki::{Authority, SignedCheckpoint, TrustDomain};
use postern_proto::v1;
use postern_testkit::Script;
use postern_testkit::clock::wall;

use super::run::{Ran, command, finish};
use super::world::CommandWorld;

fn head_of(log: &[String]) -> Head {
    log.last().map_or(Head::EMPTY, |line| serde_json::from_str::<AuditRecord>(line).unwrap().head())
}

fn push(log: &mut Vec<String>, event: AuditEvent) {
    log.push(AuditRecord::following(&head_of(log), event).to_line());
}

/// A log of requests, the same for each requester.
fn a_log(length: usize, requester: &str) -> Vec<String> {
    let mut log = Vec::new();
    for n in 0..length {
        push(&mut log, AuditEvent::done(Timestamp::UNIX_EPOCH, requester, "grant.requested").with("n", n));
    }
    log
}

fn sign(world: &CommandWorld, head: Head, accepted: bool) -> SignedCheckpoint {
    let checkpoint = Checkpoint::of("postern", "postern", head, wall(), accepted.then(wall));
    world.broker.same_authority().sign_checkpoint(checkpoint).unwrap()
}

/// Has the broker find its log sound, and vouch for its end.
fn vouch(world: &CommandWorld, log: &[String], checkpoint: &SignedCheckpoint, uncovered: u64) {
    let head = head_of(log);
    let mut script = world.script();
    script.log = log.to_vec();
    script.verified = Some(v1::VerifyAuditResponse {
        records: head.seq,
        head: head.hash.to_string(),
        sound: true,
        checkpoint: checkpoint.to_string(),
        uncovered,
        read_from: 1,
        ..v1::VerifyAuditResponse::default()
    });
}

async fn verify(world: &CommandWorld, code: i32) -> Ran {
    world.postern(&["audit", "verify"]).await.exits(code)
}

#[tokio::test]
async fn i9_a_verification_says_what_it_trusted_since_when_by_which_key_and_what_is_not_covered() {
    let world = CommandWorld::with(Script::default()).await;
    let log = a_log(5, "alice");
    let signed = sign(&world, head_of(&log[..3]), false);
    vouch(&world, &log, &signed, 2);
    let json = world.postern(&["audit", "verify", "--output", "json"]).await.exits(0).json();
    assert_eq!((&json["trusted"]["seq"], &json["uncovered"]), (&3.into(), &2.into()));
    assert_eq!(json["trusted"]["at"], signed.checkpoint.at.to_string());
    let signer = signed.signer().unwrap();
    assert!(json["trusted"]["signer"].as_str().unwrap().contains(&signer.serial), "{json}");
    let table = verify(&world, 0).await.out;
    for part in ["sound", "record 3", &signer.serial, "not covered yet  2", "remembered"] {
        assert!(table.contains(part), "{part}: {table}");
    }
}

#[tokio::test]
async fn i9_the_newest_checkpoint_is_remembered_in_a_private_file_and_a_later_one_takes_its_place() {
    let world = CommandWorld::with(Script::default()).await;
    for length in [3, 5, 4] {
        let log = a_log(5, "alice");
        vouch(&world, &log, &sign(&world, head_of(&log[..length]), false), 0);
        verify(&world, 0).await;
    }
    let file = std::fs::read_to_string(world.remembered()).unwrap();
    let kept: Vec<SignedCheckpoint> = serde_json::from_str(&file).unwrap();
    assert_eq!(kept.iter().map(|kept| kept.checkpoint.seq).collect::<Vec<_>>(), [5]);
    let mode = std::fs::metadata(world.remembered()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn i9_a_log_that_was_rewritten_or_cut_since_the_last_verification_is_noticed() {
    let cut = a_log(5, "alice")[..3].to_vec();
    for (log, problem) in [(a_log(5, "mallory"), "the log was rewritten"), (cut, "cut off")] {
        let world = CommandWorld::with(Script::default()).await;
        let honest = a_log(5, "alice");
        vouch(&world, &honest, &sign(&world, head_of(&honest), false), 0);
        verify(&world, 0).await;
        // The forged log with no checkpoint, as one who writes the store would have it.
        vouch(&world, &log, &sign(&world, head_of(&log), false), 0);
        world.script().verified.as_mut().unwrap().checkpoint.clear();
        for _ in 0..2 {
            verify(&world, 1).await.tells("line 5:").tells(problem);
        }
    }
}

#[tokio::test]
async fn i9_a_log_that_an_operator_accepted_is_no_fault_and_is_said() {
    let world = CommandWorld::with(Script::default()).await;
    let honest = a_log(5, "alice");
    vouch(&world, &honest, &sign(&world, head_of(&honest), false), 0);
    verify(&world, 0).await;
    let restored = a_log(3, "mallory");
    vouch(&world, &restored, &sign(&world, head_of(&restored), true), 0);
    let ran = verify(&world, 0).await;
    assert!(ran.out.contains("by an operator"), "{ran:?}");
}

#[tokio::test]
async fn i9_a_verification_says_from_which_record_the_broker_read_and_what_it_did_not_verify() {
    let world = CommandWorld::with(Script::default()).await;
    let log = a_log(5, "alice");
    vouch(&world, &log, &sign(&world, head_of(&log), false), 0);
    let change = |read_from, accepted_record| {
        let mut script = world.script();
        let verified = script.verified.as_mut().unwrap();
        (verified.read_from, verified.accepted_record) = (read_from, accepted_record);
        verified.verified_at = "2026-01-31T12:00:00Z".to_owned();
    };
    change(4, 0);
    let table = verify(&world, 0).await.out;
    for part in ["records 4 to 5", "records 1 to 3 were verified at 2026-01-31", "--full reads all"] {
        assert!(table.contains(part), "{part}: {table}");
    }
    vouch(&world, &log, &sign(&world, head_of(&log), true), 0);
    change(4, 3);
    let table = verify(&world, 0).await.out;
    assert!(table.contains("records up to 3: accepted by an operator at"), "{table}");
    assert!(!table.contains("were verified at"), "{table}");
}

#[tokio::test]
async fn i9_a_remembered_record_that_was_sealed_is_compared_with_the_beginning_of_the_log() {
    for (requester, code) in [("alice", 0), ("mallory", 1)] {
        let world = CommandWorld::with(Script::default()).await;
        let log = a_log(6, "alice");
        let checkpoint = sign(&world, head_of(&log[..5]), false);
        vouch(&world, &log, &checkpoint, 1);
        verify(&world, 0).await;
        vouch(&world, &a_log(6, requester)[5..], &checkpoint, 1);
        world.script().first = 6;
        verify(&world, code).await;
    }
}

#[tokio::test]
async fn i9_a_checkpoint_that_the_root_does_not_vouch_for_is_an_answer_that_is_refused() {
    let (world, other) =
        (CommandWorld::with(Script::default()).await, CommandWorld::with(Script::default()).await);
    let log = a_log(5, "alice");
    vouch(&world, &log, &sign(&other, head_of(&log), false), 0);
    verify(&world, 1).await.tells("its checkpoint of the audit log is not good");
}

#[tokio::test]
async fn i9_a_checkpoint_from_a_journal_or_an_agent_is_compared_with_every_record_read() {
    let world = CommandWorld::with(Script::default()).await;
    let log = a_log(5, "alice");
    let line = sign(&world, head_of(&log[..4]), false).to_string();
    let file = world.file("checkpoint.json", &line);
    world.script().log.clone_from(&log);
    let verify = ["audit", "verify", "--checkpoint", &file];
    let json = world.postern(&[&verify[..], &["--output", "json"]].concat()).await.exits(0).json();
    assert_eq!((&json["trusted"]["seq"], &json["uncovered"]), (&4.into(), &1.into()));
    // Without what the command remembers by now.
    std::fs::remove_file(world.remembered()).unwrap();
    world.script().log = a_log(5, "mallory");
    world.postern(&verify).await.exits(1).tells("line 4:").tells("rewritten");
    world.script().log.truncate(2);
    world.postern(&verify).await.exits(1).tells("line 3:").tells("cut off");
    world.file("checkpoint.json", "nothing");
    world.postern(&verify).await.exits(5).tells("checkpoint.json").tells("not a signed checkpoint");
}

#[tokio::test]
async fn i9_a_copy_is_verified_with_the_roots_certificate_alone() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::init(&dir.path().join("ca"), &TrustDomain::default(), wall()).unwrap();
    let mut log = a_log(5, "alice");
    let checkpoint = Checkpoint::of("postern", "postern", head_of(&log), wall(), None);
    let signed = authority.sign_checkpoint(checkpoint).unwrap();
    push(&mut log, AuditEvent::done(wall(), "broker", CHECKPOINT_ACTION).with(CHECKPOINT_DETAIL, &signed));
    push(&mut log, AuditEvent::done(wall(), "alice", "grant.requested"));
    let (file, root) = (dir.path().join("log.jsonl"), dir.path().join("ca/root.pem"));
    let verify = async |log: &[String], more: &[&str]| {
        std::fs::write(&file, log.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
        let args = ["audit", "verify", "--output", "json", "--file", file.to_str().unwrap()];
        finish(command(&[&args[..], more].concat())).await
    };
    let root = ["--root", root.to_str().unwrap()];
    let json = verify(&log, &root).await.exits(0).json();
    assert_eq!((&json["trusted"]["seq"], &json["uncovered"]), (&5.into(), &1.into()));
    // Rewritten with correct hashes, with the checkpoint's record as it was.
    let mut forged = a_log(5, "mallory");
    for line in &log[5..] {
        push(&mut forged, serde_json::from_str::<AuditRecord>(line).unwrap().event);
    }
    verify(&forged, &root).await.exits(1).tells("line 5:").tells("rewritten");
    let ran = verify(&forged, &[]).await.exits(0).tells("--root");
    assert_eq!(ran.json()["trusted"], serde_json::Value::Null);
}

#[tokio::test]
async fn i9_a_log_that_begins_after_a_named_checkpoint_needs_a_later_one_in_it() {
    let world = CommandWorld::with(Script::default()).await;
    let mut log = a_log(5, "alice");
    let file = world.file("checkpoint.json", &sign(&world, head_of(&log[..3]), false).to_string());
    let signed = sign(&world, head_of(&log), false);
    push(&mut log, AuditEvent::done(wall(), "broker", CHECKPOINT_ACTION).with(CHECKPOINT_DETAIL, &signed));
    let verify = ["audit", "verify", "--checkpoint", &file];
    let begins_with_5 = |log: &[String]| {
        let mut script = world.script();
        (script.log, script.first) = (log[4..].to_vec(), 5);
    };
    begins_with_5(&log);
    world.postern(&verify).await.exits(0).tells("verify its segment with --file");
    // Another log with correct hashes, which begins after the checkpoint's record so that the two are not compared.
    begins_with_5(&a_log(6, "mallory"));
    world.postern(&verify).await.exits(1).tells("line 5:");
    std::fs::remove_file(world.remembered()).unwrap();
    world.postern(&verify).await.exits(1).tells("line 5:").tells("no signed checkpoint in the log vouches");
}

#[tokio::test]
async fn i9_a_remembered_checkpoint_is_compared_wherever_the_log_that_is_read_begins_and_ends() {
    let world = CommandWorld::with(Script::default()).await;
    let honest = a_log(5, "alice");
    vouch(&world, &honest, &sign(&world, head_of(&honest), false), 0);
    verify(&world, 0).await;
    let (cut, forged) = (honest[..3].to_vec(), a_log(8, "mallory"));
    for (log, first, code, problem) in [
        (&honest[..], 1, 0, ""),
        (&cut[..], 1, 1, "the end of the log was cut off"),
        (&forged[6..], 7, 1, "vouches for what follows"),
        (&forged[5..], 6, 1, "the log was rewritten"),
        (&forged[..], 1, 1, "the log was rewritten"),
    ] {
        let head = head_of(log).hash.to_string();
        {
            let mut script = world.script();
            (script.log, script.first) = (log.to_vec(), first);
        }
        world.postern(&["audit", "verify", "--expect-head", &head]).await.exits(code).tells(problem);
    }
    // A copy may be older than what is remembered.
    let file = world.file("log.jsonl", &cut.iter().map(|line| format!("{line}\n")).collect::<String>());
    let ran = world.postern(&["audit", "verify", "--file", &file]).await;
    ran.exits(0).tells("record 5, which is not in the copy (records 1 to 3)");
}

#[tokio::test]
async fn i9_a_memory_that_cannot_be_read_fails_the_verification_and_is_not_written_over() {
    let world = CommandWorld::with(Script::default()).await;
    let log = a_log(5, "alice");
    vouch(&world, &log, &sign(&world, head_of(&log), false), 0);
    verify(&world, 0).await;
    let half = std::fs::read_to_string(world.remembered()).unwrap()[..100].to_owned();
    std::fs::write(world.remembered(), &half).unwrap();
    for args in
        [&["audit", "verify"][..], &["audit", "verify", "--expect-head", &head_of(&log).hash.to_string()]]
    {
        world.postern(args).await.exits(1).tells("audit-checkpoints.json").tells("move it away");
    }
    assert_eq!(std::fs::read_to_string(world.remembered()).unwrap(), half);
    std::fs::remove_file(world.remembered()).unwrap();
    std::fs::create_dir(world.remembered()).unwrap();
    verify(&world, 1).await.tells("audit-checkpoints.json");
    std::fs::remove_dir(world.remembered()).unwrap();
    verify(&world, 0).await;
}

#[tokio::test]
async fn i9_what_is_remembered_holds_after_the_root_was_replaced() {
    let (world, next) =
        (CommandWorld::with(Script::default()).await, CommandWorld::with(Script::default()).await);
    let log = a_log(5, "alice");
    vouch(&world, &log, &sign(&world, head_of(&log), false), 0);
    verify(&world, 0).await;
    // While the root is replaced, the identity trusts both.
    let roots = |world: &CommandWorld| world.identity().join("roots.pem");
    let both = [&world, &next].map(|world| std::fs::read_to_string(roots(world)).unwrap()).concat();
    std::fs::write(roots(&world), both).unwrap();
    verify(&world, 0).await;
    // A broker under the next root, of which a new identity knows nothing else.
    std::fs::create_dir_all(next.remembered().parent().unwrap()).unwrap();
    std::fs::copy(world.remembered(), next.remembered()).unwrap();
    vouch(&next, &a_log(5, "mallory"), &sign(&next, head_of(&log), false), 0);
    next.script().verified.as_mut().unwrap().checkpoint.clear();
    verify(&next, 1).await.tells("line 5:").tells("the log was rewritten");
    // A later checkpoint takes the place of the one by the old root.
    let longer = a_log(6, "alice");
    vouch(&next, &longer, &sign(&next, head_of(&longer), false), 0);
    verify(&next, 0).await;
    let kept: Vec<SignedCheckpoint> =
        serde_json::from_str(&std::fs::read_to_string(next.remembered()).unwrap()).unwrap();
    assert_eq!(kept.iter().map(|kept| kept.checkpoint.seq).collect::<Vec<_>>(), [6]);
}
