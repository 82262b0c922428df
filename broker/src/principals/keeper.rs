//! The keeper: reads the revocations of the other brokers, and records the certificates that were issued.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use postern_core::KeyHash;
use postern_core::audit::{AuditEvent, Head};
use postern_pki::Authority;
use postern_store::{IssuedPrincipal, RevokedIntermediate, Store, StoreError, Transaction};

use super::{IssuedEntry, Journal, PendingEntry, Revocations};
use crate::clock::{Clock, boottime};
use crate::signals::rounds::RoundReporter;

/// The interval of the reads.
pub const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// The rounds after which the keeper reads the issued principals although nothing asks for it.
const ROUNDS_BETWEEN_READS: u32 = 30;
/// The most certificates that one round records.
const MAX_RECORDED: usize = 100;

/// Keeps what this broker knows of principals.
pub struct PrincipalKeeper {
    /// The store.
    pub store: Store,
    /// The revocations of this broker.
    pub revocations: Arc<Revocations>,
    /// The journal of `postern-broker issue`.
    pub journal: Journal,
    /// The authority, whose directory has a list of revoked intermediates.
    pub authority: Arc<Authority>,
    /// The broker's clock, for the audit records.
    pub clock: Clock,
}

/// The revocations in the store, as the keeper has read them last.
#[derive(Debug, Default)]
struct ReadSoFar {
    /// The end of the audit log before that read; none before the first.
    head: Option<Head>,
    /// The revoked intermediates in the store.
    intermediates: HashSet<KeyHash>,
}

impl PrincipalKeeper {
    /// Keeps until the process ends.
    ///
    /// # Errors
    /// Never: a round that fails is tried again.
    pub async fn keep(self, reporter: RoundReporter) -> anyhow::Result<()> {
        let (mut rounds, mut read) = (0, ReadSoFar::default());
        loop {
            let due = rounds % ROUNDS_BETWEEN_READS == 0;
            let round = self.round(due, &mut read).await.inspect_err(|error| {
                tracing::debug!(
                    error = format!("{error:#}"),
                    "cannot take up the changes of principals, will retry"
                );
            });
            // The whole list is read again after a round that failed.
            rounds = if round.is_ok() { rounds + 1 } else { 0 };
            reporter.report(boottime(), round.map_err(|error| format!("{error:#}")));
            tokio::select! {
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
                () = self.revocations.due() => rounds = 0,
            }
        }
    }

    /// Learns the revoked intermediates of the authority's list, reads the revocations if the audit log has moved past those that are
    /// read, and then records the certificates that wait. `due` asks for a read of the issued principals, too.
    async fn round(&self, due: bool, read: &mut ReadSoFar) -> anyhow::Result<()> {
        let listed = self.authority.revoked().context("cannot read the revoked intermediates");
        // What the list has holds at once, whether or not the store answers.
        self.revocations.learn_intermediates(listed.iter().flatten().copied());
        // Read before the revocations: it is not past what they show. Each revocation has an audit record.
        let head = self.store.audit_head().await.context("cannot read the end of the audit log")?;
        if read.head != Some(head) {
            let recorded = self.revocations.read(&self.store).await.context("cannot read the revocations")?;
            *read = ReadSoFar { head: Some(head), intermediates: recorded.into_iter().collect() };
        }
        let unrecorded = listed?.into_iter().filter(|key| !read.intermediates.contains(key)).collect();
        self.record_revoked_intermediates(unrecorded).await?;
        let pending = self.journal.pending(MAX_RECORDED)?;
        if pending.is_empty() && !due {
            return Ok(());
        }
        let (mut recorded, mut failed) = (Vec::new(), None);
        for pending in pending {
            match self.record(&pending).await {
                Ok(()) => recorded.push(pending),
                Err(error) => failed = Some(error),
            }
        }
        let known = self.store.issued_principals().await.context("cannot read the principals")?;
        let known: Vec<IssuedPrincipal> = known.into_iter().map(|principal| principal.record).collect();
        // Before the files go: `issue` finds each name in one of the two.
        self.journal.write_known(&known)?;
        for pending in &recorded {
            self.journal
                .remove(pending)
                .with_context(|| format!("cannot remove {}", pending.file.display()))?;
        }
        failed.map_or(Ok(()), Err)
    }

    /// Records the intermediates that the authority's list has as revoked, and that the store does not have yet.
    async fn record_revoked_intermediates(&self, unrecorded: Vec<KeyHash>) -> anyhow::Result<()> {
        for key in unrecorded {
            let known = self.store.to_replace::<RevokedIntermediate>(&key).await;
            let (known, expect) = known.context("cannot read the revoked intermediates")?;
            if known.is_some() {
                continue;
            }
            let at = self.clock.now();
            let event = AuditEvent::done(at, "broker", "authority.intermediate_revoked").with("key", key);
            let revoked = RevokedIntermediate { key, at };
            let changes = Transaction::default().put_revoked_intermediate(revoked, expect);
            match self.store.commit(changes.audit(event)).await {
                Ok(_) => {
                    tracing::warn!(event = "authority.intermediate_revoked", %key, "an intermediate of the authority is revoked");
                }
                // Another broker has recorded it.
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error).context("cannot record a revoked intermediate"),
            }
        }
        Ok(())
    }

    async fn record(&self, pending: &PendingEntry) -> anyhow::Result<()> {
        let entry = pending.entry.as_ref().map_err(|error| anyhow::anyhow!("{error:#}"))?;
        let event = issued_event(entry, "broker", self.clock.now());
        record_issued(&self.store, entry, event).await.context("cannot record an issued certificate")
    }
}

/// Writes a certificate into its principal's record, with this audit event; a certificate that is recorded stays as it is.
///
/// # Errors
/// The store failed, or another broker changed the record at the same time.
async fn record_issued(store: &Store, entry: &IssuedEntry, event: AuditEvent) -> Result<(), StoreError> {
    let changes = with_issued(store, entry).await?;
    match changes {
        Some(changes) => store.commit(changes.audit(event)).await.map(drop),
        None => Ok(()),
    }
}

/// Returns the change that writes a certificate into its principal's record; none if it is recorded.
///
/// # Errors
/// The store failed.
pub(crate) async fn with_issued(
    store: &Store,
    entry: &IssuedEntry,
) -> Result<Option<Transaction>, StoreError> {
    let key = entry.principal.key();
    let (mut record, expect) = match store.to_replace::<IssuedPrincipal>(key).await? {
        (Some(known), expect) => (known.record, expect),
        (None, expect) => (IssuedPrincipal::new(key.clone()), expect),
    };
    let is_new = record.add(entry.principal.role(), entry.certificate.clone());
    Ok(is_new.then(|| Transaction::default().put_issued_principal(record, expect)))
}

fn issued_event(entry: &IssuedEntry, actor: &str, now: jiff::Timestamp) -> AuditEvent {
    AuditEvent::done(now, actor, "principal.issued")
        .with("principal", &entry.principal)
        .with("serial", &entry.certificate.serial)
        .with("issued_at", entry.certificate.issued_at)
        .with("not_after", entry.certificate.not_after)
}

#[cfg(test)]
mod tests {
    use postern_core::{CertificateSerial, Principal, Role};
    use postern_store::Expect;
    use postern_store::testing::memory::{Fault, Memory};
    use postern_store::{IssuedCertificate, Record as _, Revocation, RevokedProof};

    use super::*;
    use crate::principals::Issuance;
    use crate::signals::rounds::Task;
    use crate::testing::builders::{at, key, name};

    fn keeper(store: &Memory, dir: &std::path::Path) -> PrincipalKeeper {
        PrincipalKeeper {
            store: store.store(),
            revocations: Arc::default(),
            journal: Journal::of(dir),
            authority: Arc::new(authority_in(dir)),
            clock: Clock::start(at(0)),
        }
    }

    fn authority_in(dir: &std::path::Path) -> Authority {
        Authority::init(&dir.join("ca"), &postern_pki::TrustDomain::default(), crate::clock::wall()).unwrap()
    }

    #[tokio::test]
    async fn i9_a_revoked_intermediate_of_the_list_is_known_at_once_and_audited_once() {
        let (store, dir) = (Memory::default(), tempfile::tempdir().unwrap());
        let keeper = keeper(&store, dir.path());
        let key = keeper.authority.intermediate().key;
        assert!(Authority::revoke_intermediate(&dir.path().join("ca"), key).unwrap());
        assert!(!Authority::revoke_intermediate(&dir.path().join("ca"), key).unwrap(), "it is no news");
        // Also while the store is away.
        store.fail_next([Fault::Full]);
        keeper.round(false, &mut ReadSoFar::default()).await.unwrap_err();
        assert!(keeper.revocations.cover_signers(&[key]));
        keeper.round(false, &mut ReadSoFar::default()).await.unwrap();
        keeper.round(false, &mut ReadSoFar::default()).await.unwrap();
        let lines = store.audit_lines(0, 100).await.unwrap();
        let audited = lines.iter().filter(|(_, line)| line.contains("authority.intermediate_revoked"));
        assert_eq!(audited.count(), 1);
        // A list that is recorded costs no read in a round.
        let mut read = ReadSoFar::default();
        keeper.round(false, &mut read).await.unwrap();
        let reads = || (store.reads_of(RevokedIntermediate::KIND), store.gets_of(RevokedIntermediate::KIND));
        let before = reads();
        for _ in 0..3 {
            keeper.round(false, &mut read).await.unwrap();
        }
        assert_eq!(reads(), before);
        // Another broker learns it from the store.
        let other = Revocations::default();
        other.read(&store.store()).await.unwrap();
        assert!(other.cover_signers(&[key]));
    }

    fn entry(digits: &str, second: i64) -> IssuedEntry {
        let serial = CertificateSerial::new(digits).unwrap();
        let certificate = IssuedCertificate { serial, issued_at: at(second), not_after: at(second + 60) };
        IssuedEntry { principal: Principal::local(Role::Requester, name("alice")), certificate }
    }

    async fn round(keeper: &PrincipalKeeper, due: bool) -> anyhow::Result<()> {
        keeper.round(due, &mut ReadSoFar::default()).await
    }

    #[tokio::test]
    async fn i10_the_revocations_are_read_only_if_the_audit_log_has_moved() {
        let (store, dir) = (Memory::default(), tempfile::tempdir().unwrap());
        let (keeper, mut read) = (keeper(&store, dir.path()), ReadSoFar::default());
        for _ in 0..3 {
            keeper.round(false, &mut read).await.unwrap();
        }
        assert_eq!(store.reads_of(Revocation::KIND), 1);
        store.commit(Transaction::default().audit(AuditEvent::done(at(1), "another", "test"))).await.unwrap();
        for _ in 0..3 {
            keeper.round(false, &mut read).await.unwrap();
        }
        assert_eq!(store.reads_of(Revocation::KIND), 2);
    }

    async fn audited(store: &Memory) -> usize {
        let lines = store.audit_lines(0, 100).await.unwrap();
        lines.iter().filter(|(_, line)| line.contains("principal.issued")).count()
    }

    #[tokio::test]
    async fn i9_each_issued_certificate_is_audited_and_its_principal_is_known() {
        let (store, dir) = (Memory::default(), tempfile::tempdir().unwrap());
        let keeper = keeper(&store, dir.path());
        round(&keeper, true).await.unwrap();
        keeper.journal.leave(&entry("02", 20)).unwrap();
        keeper.journal.leave(&entry("01", 10)).unwrap();
        // Nothing is lost while the store is away.
        store.fail_next([Fault::Full, Fault::Full]);
        round(&keeper, false).await.unwrap_err();
        assert_eq!(keeper.journal.pending(10).unwrap().len(), 2);
        // The answer to a commit was lost, also that of one that another certificate has superseded since: no certificate is
        // recorded twice.
        store.fail_next([Fault::After]);
        round(&keeper, false).await.unwrap_err();
        round(&keeper, false).await.unwrap();
        assert!(keeper.journal.pending(10).unwrap().is_empty());
        assert_eq!(audited(&store).await, 2, "a lost answer neither repeats a record nor loses one");
        let known = store.issued_principal(&key("alice")).await.unwrap().unwrap().record;
        assert_eq!(known.certificates[&Role::Requester], entry("02", 20).certificate);
        let others = keeper.journal.other_roles(&key("alice"), Role::Reader).unwrap();
        assert_eq!(others.into_iter().collect::<Vec<_>>(), [Role::Requester]);
    }

    #[tokio::test]
    async fn i7_a_revocation_of_another_broker_whose_event_is_lost_is_known_within_a_round() {
        let (store, dir) = (Memory::default(), tempfile::tempdir().unwrap());
        let keeper = keeper(&store, dir.path());
        let (revocations, by) =
            (Arc::clone(&keeper.revocations), Principal::local(Role::Administrator, name("root")));
        let keeping = keeper.keep(crate::testing::reporter(Task::Principals));
        let issuance = Issuance { at: at(0), serial: None };
        let story = async {
            // After the first round.
            tokio::time::sleep(Duration::from_millis(100)).await;
            let proof = RevokedProof::Principal(key("alice"));
            let changes = Transaction::default()
                .put_revocation(Revocation { proof, by, at: at(1), reason: None }, Expect::Absent);
            let event = AuditEvent::done(at(1), "another", "principal.revoked");
            store.commit(changes.audit(event)).await.unwrap();
            let (alice, known) = (key("alice"), Duration::from_secs(2));
            tokio::time::timeout(known, revocations.until_covered(&alice, &issuance)).await
        };
        tokio::select! {
            ended = keeping => panic!("{ended:?}"),
            known = story => known.expect("it is known within 2 s"),
        }
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_read_is_reported_and_holds_up_no_other() {
        let (store, dir) = (Memory::default(), tempfile::tempdir().unwrap());
        let keeper = keeper(&store, dir.path());
        std::fs::write(dir.path().join("issued-ff.json"), "half of a").unwrap();
        keeper.journal.leave(&entry("01", 10)).unwrap();
        let error = round(&keeper, false).await.unwrap_err();
        assert!(format!("{error:#}").contains("remove the file"), "{error:#}");
        assert_eq!(audited(&store).await, 1);
    }
}
