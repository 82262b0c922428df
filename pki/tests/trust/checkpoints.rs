//! Signed checkpoints of the audit log: who can sign one, how long it is good, and what a log must agree with (I9).

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use jiff::Timestamp;
use postern_core::audit::{AuditEvent, AuditRecord, Head};
use postern_core::checkpoint::{CHECKPOINT_ACTION, CHECKPOINT_DETAIL, Checkpoint};
use postern_pki::credentials::load_certificates;
use postern_pki::{Authority, CheckpointError, CheckpointTrust, LogVerifier, SignedCheckpoint, TrustDomain};

use super::parties::{Ca, HOUR, now};

const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

fn checkpoint(head: Head, at: Timestamp) -> Checkpoint {
    Checkpoint::of("postern", "postern", head, at, None)
}

/// A log that grows record by record.
#[derive(Clone)]
struct Log {
    head: Head,
    lines: Vec<String>,
}

impl Log {
    fn of(length: usize) -> Self {
        let mut log = Self { head: Head::EMPTY, lines: Vec::new() };
        (0..length).for_each(|n| log.push(AuditEvent::done(now(), "requester/alice", "test").with("n", n)));
        log
    }

    fn push(&mut self, event: AuditEvent) {
        let record = AuditRecord::following(&self.head, event);
        self.head = record.head();
        self.lines.push(record.to_line());
    }

    /// Signs the present end, and appends the record that carries the checkpoint.
    fn sign(&mut self, ca: &Ca) -> SignedCheckpoint {
        let signed = ca.authority.sign_checkpoint(checkpoint(self.head, now())).unwrap();
        self.push(AuditEvent::done(now(), "broker", CHECKPOINT_ACTION).with(CHECKPOINT_DETAIL, &signed));
        signed
    }

    /// Writes every record from this one on again, the first with another content, all with correct hashes.
    fn rewritten_from(&self, seq: usize) -> Self {
        let mut forged = Self { head: Head::EMPTY, lines: Vec::new() };
        for (index, line) in self.lines.iter().enumerate() {
            let event = serde_json::from_str::<AuditRecord>(line).unwrap().event;
            forged.push(if index + 1 == seq { event.with("forged", true) } else { event });
        }
        forged
    }
}

fn verify(log: &Log, mut verifier: LogVerifier) -> Result<LogVerifier, String> {
    for line in &log.lines {
        verifier.line(line).map_err(|broken| broken.to_string())?;
    }
    verifier.end().map_err(|broken| broken.to_string())?;
    Ok(verifier)
}

fn verifier(ca: &Ca) -> LogVerifier {
    LogVerifier::new(ca.authority.roots())
}

#[test]
fn i9_a_checkpoint_verifies_with_the_root_alone_and_after_its_line_was_written_and_read() {
    let ca = Ca::new();
    let signed = ca.authority.sign_checkpoint(checkpoint(Log::of(3).head, now())).unwrap();
    let read = SignedCheckpoint::parse(&format!("{signed}\n")).unwrap();
    assert_eq!(read, signed);
    read.verify(&ca.authority.roots(), Some("postern")).unwrap();
    assert!(!signed.to_string().contains('\n'));
    assert_eq!(signed.signer().unwrap(), ca.authority.intermediate());
}

#[test]
fn i9_a_checkpoint_that_was_changed_in_any_field_does_not_verify() {
    let ca = Ca::new();
    let signed = ca.authority.sign_checkpoint(checkpoint(Log::of(3).head, now())).unwrap();
    let later = now() + HOUR;
    let changes: [fn(&mut Checkpoint, Timestamp); 6] = [
        |checkpoint, _| checkpoint.seq += 1,
        |checkpoint, _| checkpoint.hash = "1".repeat(64).parse().unwrap(),
        |checkpoint, later| checkpoint.at = later,
        |checkpoint, later| checkpoint.accepted = Some(later),
        |checkpoint, _| checkpoint.log.push('x'),
        |checkpoint, _| checkpoint.trust_domain.push('x'),
    ];
    for change in changes {
        let mut changed = signed.clone();
        change(&mut changed.checkpoint, later);
        assert_eq!(changed.verify(&ca.authority.roots(), None), Err(CheckpointError::BadSignature));
    }
}

#[test]
fn i9_neither_another_authority_nor_the_holder_of_a_certificate_can_sign_a_checkpoint() {
    let (ca, other) = (Ca::new(), Ca::new());
    let signed = other.authority.sign_checkpoint(checkpoint(Log::of(1).head, now())).unwrap();
    assert_eq!(signed.verify(&ca.authority.roots(), None), Err(CheckpointError::Untrusted));
    // The certificate of a person under this root, in the place of the intermediate's.
    let leaf = serde_json::to_value(&signed).unwrap();
    let principal = ca.authority.issue_server(
        &postern_pki::KeyPair::generate().unwrap().csr().unwrap(),
        &["broker.example.org".to_owned()],
        HOUR,
        now(),
    );
    let mut forged = leaf;
    forged["certificate"] = data_encoding::BASE64.encode(&principal.unwrap().chain[0]).into();
    let forged = SignedCheckpoint::parse(&forged.to_string()).unwrap();
    assert_eq!(forged.verify(&ca.authority.roots(), None), Err(CheckpointError::Untrusted));
    // The root itself signs no checkpoint either, and is no intermediate of another.
    assert!(matches!(
        signed.verify(&other.authority.roots(), Some("elsewhere")),
        Err(CheckpointError::OtherTrustDomain { .. })
    ));
}

/// Signs a checkpoint with the key of the intermediate for people, as a thief of that key can.
fn signed_by_people(ca: &Ca, checkpoint: Checkpoint) -> SignedCheckpoint {
    let key = std::fs::read_to_string(ca.dir.path().join("people.key")).unwrap();
    let key = rcgen::KeyPair::from_pem(&key).unwrap();
    let signature = rcgen::SigningKey::sign(&key, checkpoint.to_text().as_bytes()).unwrap();
    let certificate = load_certificates(&ca.dir.path().join("people.pem")).unwrap().remove(0);
    let mut line = serde_json::to_value(checkpoint).unwrap();
    line["signature"] = data_encoding::BASE64.encode(&signature).into();
    line["certificate"] = data_encoding::BASE64.encode(&certificate).into();
    SignedCheckpoint::parse(&line.to_string()).unwrap()
}

#[test]
fn i9_the_holder_of_the_key_for_people_can_sign_no_checkpoint() {
    let ca = Ca::new();
    let mut log = Log::of(3);
    let forged = signed_by_people(&ca, checkpoint(log.head, now()));
    assert_eq!(forged.verify(&ca.authority.roots(), None), Err(CheckpointError::OtherPurpose));
    log.push(AuditEvent::done(now(), "broker", CHECKPOINT_ACTION).with(CHECKPOINT_DETAIL, &forged));
    let verified = verify(&log, verifier(&ca)).unwrap();
    assert_eq!((verified.coverage().newest.as_ref(), verified.coverage().untrusted), (None, 1));
}

#[test]
fn i9_a_checkpoint_by_a_revoked_intermediate_proves_nothing_whenever_it_was_made() {
    let ca = Ca::new();
    let mut log = Log::of(3);
    let forged = log.sign(&ca);
    let mut trust = CheckpointTrust::from(ca.authority.roots());
    trust.verify(&forged, Some("postern")).unwrap();
    let key = ca.authority.intermediate().key;
    trust.revoked.insert(key);
    assert_eq!(trust.verify(&forged, Some("postern")), Err(CheckpointError::Revoked { key }));
    let verified = verify(&log, LogVerifier::new(trust.clone())).unwrap();
    assert_eq!((verified.coverage().newest.as_ref(), verified.coverage().untrusted), (None, 1));
    // Nor does it contradict a log.
    let rewritten = log.rewritten_from(2);
    verify(&rewritten, verifier(&ca)).unwrap_err();
    verify(&rewritten, LogVerifier::new(trust)).unwrap();
}

#[test]
fn i9_a_log_that_begins_after_a_kept_checkpoint_is_good_only_if_a_checkpoint_in_it_vouches_for_the_rest() {
    let ca = Ca::new();
    let mut log = Log::of(3);
    let kept = log.sign(&ca);
    log.push(AuditEvent::done(now(), "requester/alice", "test"));
    let base = log.head;
    log.push(AuditEvent::done(now(), "requester/alice", "test"));
    let signed = log.sign(&ca);
    let rest_of = |log: &Log, base: Head| {
        let mut verifier = LogVerifier::from_head(base, ca.authority.roots());
        verifier.expect(kept.clone());
        let from = usize::try_from(base.seq).unwrap();
        verify(&Log { lines: log.lines[from..].to_vec(), ..log.clone() }, verifier)
    };
    assert_eq!(rest_of(&log, base).unwrap().coverage().newest.as_ref(), Some(&signed));
    // An attacker writes another log, and has it begin after the kept checkpoint's record.
    let mut forged = Log::of(6).rewritten_from(2);
    let before: AuditRecord = serde_json::from_str(&forged.lines[4]).unwrap();
    let error = rest_of(&forged, before.before()).unwrap_err();
    assert!(error.contains("no signed checkpoint in the log vouches"), "{error}");
    // One with the hash of the kept record as its beginning is compared.
    let first: AuditRecord = serde_json::from_str(&forged.lines[3]).unwrap();
    assert!(rest_of(&forged, first.before()).unwrap_err().contains("the log was rewritten"));
    // After an acceptance the kept one no longer binds.
    let accepted = Checkpoint { accepted: Some(now()), ..checkpoint(forged.head, now()) };
    let accepted = ca.authority.sign_checkpoint(accepted).unwrap();
    forged.push(AuditEvent::done(now(), "broker", CHECKPOINT_ACTION).with(CHECKPOINT_DETAIL, &accepted));
    rest_of(&forged, before.before()).unwrap();
}

#[test]
fn i9_a_checkpoint_counts_as_carried_once_the_log_has_its_record() {
    let ca = Ca::new();
    let mut log = Log::of(3);
    let (kept, record) = (log.sign(&ca), log.lines[3].clone());
    let mut verifier = LogVerifier::after(kept, ca.authority.roots());
    assert_eq!(verifier.coverage().carried, 0);
    verifier.line(&record).unwrap();
    assert_eq!(verifier.coverage().carried, 3);
}

#[test]
fn i9_a_checkpoint_stays_good_after_its_intermediate_was_renewed_and_has_ended() {
    let ca = Ca::made_at(now() - YEAR - HOUR);
    let at = now() - YEAR;
    let signed = ca.authority.sign_checkpoint(checkpoint(Log::of(3).head, at)).unwrap();
    assert!(ca.authority.sign_checkpoint(checkpoint(Log::of(3).head, now())).is_err(), "it has ended");
    let root_key = ca.dir.path().join("root.key");
    Authority::renew(ca.dir.path(), &TrustDomain::default(), &root_key, now()).unwrap();
    assert!(ca.authority.reload().unwrap());
    signed.verify(&ca.authority.roots(), None).unwrap();
    let next = ca.authority.sign_checkpoint(checkpoint(Log::of(4).head, now())).unwrap();
    next.verify(&ca.authority.roots(), None).unwrap();
    assert_ne!(next.signer().unwrap(), signed.signer().unwrap());
}

#[test]
fn i9_a_log_that_was_rewritten_with_correct_hashes_contradicts_the_checkpoints_in_it() {
    let ca = Ca::new();
    let mut log = Log::of(5);
    let signed = log.sign(&ca);
    log.push(AuditEvent::done(now(), "requester/alice", "test"));
    let verified = verify(&log, verifier(&ca)).unwrap();
    let coverage = verified.coverage();
    assert_eq!((coverage.newest.as_ref(), coverage.uncovered), (Some(&signed), 1));
    let error = verify(&log.rewritten_from(2), verifier(&ca)).unwrap_err();
    assert!(error.contains("line 5: is another than the checkpoint of"), "{error}");
    // Without the root nothing shows.
    verify(&log.rewritten_from(2), LogVerifier::new(Vec::new())).unwrap();
    // After the checkpoint nothing vouches for a record yet.
    verify(&log.rewritten_from(7), verifier(&ca)).unwrap();
}

#[test]
fn i9_a_rewritten_and_a_cut_log_contradict_a_checkpoint_that_is_kept_elsewhere() {
    let ca = Ca::new();
    let mut log = Log::of(5);
    let kept = log.sign(&ca);
    let expecting = || {
        let mut verifier = verifier(&ca);
        verifier.expect(kept.clone());
        verifier
    };
    verify(&log, expecting()).unwrap();
    let mut without = Log { head: Head::EMPTY, lines: Vec::new() };
    Log::of(5).rewritten_from(3).lines.iter().for_each(|line| {
        without.push(serde_json::from_str::<AuditRecord>(line).unwrap().event);
    });
    verify(&without, verifier(&ca)).expect("no checkpoint is left in it");
    assert!(verify(&without, expecting()).unwrap_err().contains("the log was rewritten"));
    let cut = Log { lines: log.lines[..3].to_vec(), ..log.clone() };
    verify(&cut, verifier(&ca)).unwrap();
    let error = verify(&cut, expecting()).unwrap_err();
    assert!(error.contains("line 4:") && error.contains("cut off"), "{error}");
}

#[test]
fn i9_after_an_acceptance_the_checkpoints_before_it_contradict_nothing_and_those_after_it_do() {
    let ca = Ca::new();
    let mut log = Log::of(5);
    let kept = log.sign(&ca);
    let mut accepted = log.rewritten_from(2);
    let checkpoint = Checkpoint { accepted: Some(now()), ..checkpoint(accepted.head, now()) };
    let signed = ca.authority.sign_checkpoint(checkpoint).unwrap();
    accepted.push(AuditEvent::done(now(), "broker", CHECKPOINT_ACTION).with(CHECKPOINT_DETAIL, &signed));
    accepted.push(AuditEvent::done(now(), "requester/alice", "test"));
    let expecting = |kept: &SignedCheckpoint| {
        let mut verifier = verifier(&ca);
        verifier.expect(kept.clone());
        verifier
    };
    let verified = verify(&accepted, expecting(&kept)).unwrap();
    assert_eq!((verified.coverage().newest.as_ref(), verified.coverage().uncovered), (Some(&signed), 1));
    verify(&accepted.rewritten_from(3), verifier(&ca)).unwrap_err();
    verify(&accepted.rewritten_from(3), expecting(&signed)).unwrap_err();
}

#[test]
fn i9_a_record_with_a_forged_checkpoint_says_nothing() {
    let (ca, other) = (Ca::new(), Ca::new());
    let mut log = Log::of(5);
    log.sign(&other);
    log.push(AuditEvent::done(now(), "broker", CHECKPOINT_ACTION).with(CHECKPOINT_DETAIL, "{}"));
    let verified = verify(&log, verifier(&ca)).unwrap();
    let coverage = verified.coverage();
    assert_eq!((coverage.newest.as_ref(), coverage.uncovered, coverage.untrusted), (None, 5, 1));
}

#[test]
fn i9_a_log_is_verified_on_from_a_trusted_checkpoint_wherever_it_begins() {
    let ca = Ca::new();
    let mut log = Log::of(5);
    let kept = log.sign(&ca);
    log.push(AuditEvent::done(now(), "requester/alice", "test"));
    let mut verifier = LogVerifier::after(kept, ca.authority.roots());
    for line in &log.lines[5..] {
        verifier.line(line).unwrap();
    }
    assert_eq!((verifier.head(), verifier.coverage().uncovered), (log.head, 1));
}

/// The way that docs/operations.md shows.
#[test]
fn i9_openssl_verifies_a_checkpoint_without_postern() {
    let ca = Ca::new();
    let signed = ca.authority.sign_checkpoint(checkpoint(Log::of(3).head, now())).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("checkpoint.json"), signed.to_string()).unwrap();
    let line: serde_json::Value = serde_json::from_str(&signed.to_string()).unwrap();
    let field = |name: &str| line[name].as_str().unwrap().to_owned();
    let bytes = |name: &str| data_encoding::BASE64.decode(field(name).as_bytes()).unwrap();
    // Written from the documentation, not with the code under test.
    let text = format!(
        "postern audit checkpoint v1\ntrust_domain: {}\nlog: {}\nseq: {}\nhash: {}\nat: {}\naccepted: never\n",
        field("trust_domain"),
        field("log"),
        line["seq"],
        field("hash"),
        field("at")
    );
    std::fs::write(path("text"), &text).unwrap();
    std::fs::write(path("signature"), bytes("signature")).unwrap();
    std::fs::write(path("intermediate.der"), bytes("certificate")).unwrap();
    std::fs::write(path("root.pem"), std::fs::read(ca.dir.path().join("root.pem")).unwrap()).unwrap();
    let openssl = |args: &[&str]| run(dir.path(), args);
    let Some(_) = openssl(&["version"]) else {
        println!("openssl is not there");
        return;
    };
    openssl(&["x509", "-inform", "DER", "-in", "intermediate.der", "-out", "intermediate.pem"]).unwrap();
    let verified = openssl(&["verify", "-CAfile", "root.pem", "intermediate.pem"]).unwrap();
    assert!(verified.contains("intermediate.pem: OK"), "{verified}");
    let policies = openssl(&["x509", "-in", "intermediate.pem", "-noout", "-ext", "certificatePolicies"]);
    assert!(!policies.unwrap().contains("2.25.5066905392059839057318794779519774604"));
    let people = ca.dir.path().join("people.pem");
    let people = ["x509", "-in", people.to_str().unwrap(), "-noout", "-ext", "certificatePolicies"];
    assert!(openssl(&people).unwrap().contains("2.25.5066905392059839057318794779519774604"));
    openssl(&["x509", "-in", "intermediate.pem", "-pubkey", "-noout", "-out", "key.pem"]).unwrap();
    let check = ["dgst", "-sha256", "-verify", "key.pem", "-signature", "signature", "text"];
    assert!(openssl(&check).unwrap().contains("Verified OK"));
    std::fs::write(path("text"), text.replace("seq: 3", "seq: 4")).unwrap();
    assert!(openssl(&check).is_none_or(|out| !out.contains("Verified OK")));
}

/// Runs openssl in a directory. Returns its output if it succeeded.
fn run(dir: &Path, args: &[&str]) -> Option<String> {
    let output = Command::new("openssl").args(args).current_dir(dir).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}
