//! The revocations in memory.

use std::collections::{HashMap, HashSet};

use jiff::Timestamp;
use postern_core::{CertificateSerial, KeyHash, PrincipalKey};
use postern_pki::CheckpointTrust;
use postern_store::{Expect, Revocation, RevokedProof, Store, StoreError, Version, Versioned};
use tokio::sync::{Notify, watch};

/// The origin of a proof, by which it can be revoked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issuance {
    /// The time at which it was issued, by the wall clock of its issuer.
    pub at: Timestamp,
    /// The serial number, if the proof is a certificate.
    pub serial: Option<CertificateSerial>,
}

/// The revocations that this broker knows. They only grow.
#[derive(Debug, Default)]
pub struct Revocations {
    known: watch::Sender<KnownRevocations>,
    due: Notify,
}

#[derive(Debug, Default)]
struct KnownRevocations {
    principals: HashMap<PrincipalKey, RevokedUpTo>,
    certificates: HashSet<CertificateSerial>,
    /// The public keys of intermediates.
    intermediates: HashSet<KeyHash>,
    /// The number of revocations that this broker has written.
    written: u64,
}

/// The revocation of a principal.
#[derive(Debug, Clone, Copy)]
struct RevokedUpTo {
    at: Timestamp,
    /// The version in the store; none if the store has lost it.
    version: Option<Version>,
}

impl Revocations {
    /// Reports whether this proof of a principal is revoked.
    pub fn cover(&self, principal: &PrincipalKey, issuance: &Issuance) -> bool {
        self.known.borrow().cover(principal, issuance)
    }

    /// Waits until this proof of a principal is revoked.
    pub async fn until_covered(&self, principal: &PrincipalKey, issuance: &Issuance) {
        let mut known = self.known.subscribe();
        // The sender lives as long as this borrow, so that the wait ends with a revocation alone.
        known.wait_for(|known| known.cover(principal, issuance)).await.ok();
    }

    /// Reports whether an intermediate with one of these keys is revoked.
    pub fn cover_signers(&self, signers: &[KeyHash]) -> bool {
        self.known.borrow().cover_signers(signers)
    }

    /// Waits until an intermediate with one of these keys is revoked.
    pub async fn until_signers_covered(&self, signers: &[KeyHash]) {
        let mut known = self.known.subscribe();
        known.wait_for(|known| known.cover_signers(signers)).await.ok();
    }

    /// Returns the trust in checkpoints of the audit log under these roots (DER): by each intermediate that is not revoked.
    pub fn checkpoint_trust(&self, roots: Vec<Vec<u8>>) -> CheckpointTrust {
        CheckpointTrust { roots, revoked: self.known.borrow().intermediates.clone() }
    }

    /// Learns revoked intermediates, by their keys.
    pub fn learn_intermediates(&self, keys: impl IntoIterator<Item = KeyHash>) {
        self.known.send_if_modified(|known| {
            let before = known.intermediates.len();
            known.intermediates.extend(keys);
            known.intermediates.len() > before
        });
    }

    /// Returns the condition that the principal's revocation in the store is the one that this broker knows. If the store has lost it,
    /// the condition is that it has none.
    pub fn as_known(&self, principal: &PrincipalKey) -> Expect {
        let known = self.known.borrow();
        let version = known.principals.get(principal).and_then(|known| known.version);
        version.map_or(Expect::Absent, Expect::Version)
    }

    /// Returns the time up to which the proofs of a principal are revoked, if they are.
    pub fn revoked_up_to(&self, principal: &PrincipalKey) -> Option<Timestamp> {
        self.known.borrow().principals.get(principal).map(|known| known.at)
    }

    /// Learns revocations that were read. One that is known with a later time, or with the same in a later version, stays as it is.
    pub fn learn(&self, revocations: impl IntoIterator<Item = Versioned<Revocation>>) {
        // The write lock is for news alone: every call waits for it.
        let is_news = |revocation: &Versioned<Revocation>| self.known.borrow().is_news(revocation, false);
        let news: Vec<_> = revocations.into_iter().filter(is_news).collect();
        if !news.is_empty() {
            self.known.send_modify(|known| news.into_iter().for_each(|news| known.learn(news, false)));
        }
    }

    /// Learns a revocation that this broker has just written: its version is the one in the store, whatever was known.
    pub fn learn_written(&self, revocation: Versioned<Revocation>) {
        self.known.send_modify(|known| {
            known.written += 1;
            known.learn(revocation, true);
        });
    }

    /// Learns every revocation in the store, with its version there: a store that has lost a revocation counts its versions from 1, and
    /// what it has lost stays known. Returns the revoked intermediates in the store, by their keys.
    ///
    /// # Errors
    /// The store failed; what is known stays.
    pub async fn read(&self, store: &Store) -> Result<Vec<KeyHash>, StoreError> {
        let before = self.known.borrow().written;
        let read = store.revocations().await?;
        self.learn_all(read, before);
        let intermediates = store.revoked_intermediates().await?;
        let keys: Vec<KeyHash> = intermediates.into_iter().map(|revoked| revoked.record.key).collect();
        self.learn_intermediates(keys.iter().copied());
        Ok(keys)
    }

    /// Learns a whole list that was read when this broker had written `before` revocations. If it has written one since, the list may be
    /// older than that.
    fn learn_all(&self, read: Vec<Versioned<Revocation>>, before: u64) {
        let is_current = self.known.borrow().written == before;
        let news = |known: &KnownRevocations| {
            let there: HashSet<&PrincipalKey> =
                read.iter().filter_map(|it| principal_of(&it.record)).collect();
            let lost =
                known.principals.iter().filter(|(key, it)| it.version.is_some() && !there.contains(key));
            let lost: Vec<PrincipalKey> = lost.filter(|_| is_current).map(|(key, _)| key.clone()).collect();
            (lost, read.iter().any(|it| known.is_news(it, is_current)))
        };
        let (lost, is_news) = news(&self.known.borrow());
        if lost.is_empty() && !is_news {
            return;
        }
        self.known.send_modify(|known| {
            let is_current = known.written == before;
            for key in lost.iter().filter(|_| is_current) {
                if let Some(known) = known.principals.get_mut(key) {
                    known.version = None;
                }
            }
            read.into_iter().for_each(|read| known.learn(read, is_current));
        });
    }

    /// Asks for a read of the store: another broker has changed a principal.
    pub fn look(&self) {
        self.due.notify_one();
    }

    /// Waits until [`Self::look`] asks for a read.
    pub(super) async fn due(&self) {
        self.due.notified().await;
    }
}

impl KnownRevocations {
    fn cover(&self, principal: &PrincipalKey, issuance: &Issuance) -> bool {
        self.principals.get(principal).is_some_and(|known| issuance.at <= known.at)
            || issuance.serial.as_ref().is_some_and(|serial| self.certificates.contains(serial))
    }

    fn cover_signers(&self, signers: &[KeyHash]) -> bool {
        signers.iter().any(|signer| self.intermediates.contains(signer))
    }

    /// Reports whether a revocation is news. `is_current`: its version is the one in the store.
    fn is_news(&self, Versioned { record, version }: &Versioned<Revocation>, is_current: bool) -> bool {
        match &record.proof {
            RevokedProof::Certificate(serial) => !self.certificates.contains(serial),
            RevokedProof::Principal(key) => self.principals.get(key).is_none_or(|known| {
                known.at < record.at
                    || (known.at == record.at && known.version < Some(*version))
                    || (is_current && known.version != Some(*version))
            }),
        }
    }

    fn learn(&mut self, revocation: Versioned<Revocation>, is_current: bool) {
        if !self.is_news(&revocation, is_current) {
            return;
        }
        let Versioned { record, version } = revocation;
        match record.proof {
            RevokedProof::Certificate(serial) => drop(self.certificates.insert(serial)),
            RevokedProof::Principal(principal) => {
                let known = self.principals.get(&principal).map(|known| known.at);
                let at = known.map_or(record.at, |known| known.max(record.at));
                self.principals.insert(principal, RevokedUpTo { at, version: Some(version) });
            }
        }
    }
}

fn principal_of(revocation: &Revocation) -> Option<&PrincipalKey> {
    match &revocation.proof {
        RevokedProof::Principal(key) => Some(key),
        RevokedProof::Certificate(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use postern_core::{Principal, Role};

    use super::*;
    use crate::testing::builders::{at, key, name};

    fn serial(text: &str) -> CertificateSerial {
        CertificateSerial::new(text).unwrap()
    }

    fn issued(second: i64, digits: &str) -> Issuance {
        Issuance { at: at(second), serial: Some(serial(digits)) }
    }

    fn revocation(proof: RevokedProof, second: i64, version: Version) -> Versioned<Revocation> {
        let by = Principal::local(Role::Administrator, name("root"));
        Versioned { record: Revocation { proof, by, at: at(second), reason: None }, version }
    }

    #[test]
    fn i7_a_principal_is_revoked_up_to_a_moment_and_a_certificate_for_good() {
        let revocations = Revocations::default();
        assert_eq!(revocations.as_known(&key("alice")), Expect::Absent);
        revocations.learn([
            revocation(RevokedProof::Principal(key("alice")), 10, 1),
            revocation(RevokedProof::Certificate(serial("0b")), 10, 1),
        ]);
        let is_revoked = |who, issuance| revocations.cover(&key(who), &issuance);
        assert!(is_revoked("alice", issued(9, "01")) && is_revoked("alice", issued(10, "01")));
        assert!(!is_revoked("alice", issued(11, "01")), "a later certificate admits again");
        assert!(!is_revoked("bob", issued(9, "01")));
        assert!(is_revoked("bob", issued(99, "0b")), "in whatever hands");
        let token = |second| Issuance { at: at(second), serial: None };
        assert!(is_revoked("alice", token(10)) && !is_revoked("alice", token(11)));
        assert_eq!(revocations.as_known(&key("alice")), Expect::Version(1));
    }

    #[test]
    fn i7_what_is_revoked_stays_so_whatever_an_older_read_says() {
        let revocations = Revocations::default();
        let alice = || RevokedProof::Principal(key("alice"));
        revocations.learn([revocation(alice(), 20, 2)]);
        revocations.learn([revocation(alice(), 10, 1)]);
        assert!(revocations.cover(&key("alice"), &issued(20, "01")));
        revocations.learn([]);
        assert!(revocations.cover(&key("alice"), &issued(20, "01")), "nor does an empty store");
        // A wall clock that was stepped back revokes nothing less.
        revocations.learn_all(vec![revocation(alice(), 5, 3)], 0);
        assert!(revocations.cover(&key("alice"), &issued(20, "01")));
        assert_eq!(revocations.as_known(&key("alice")), Expect::Version(3));
    }

    #[test]
    fn i7_a_revocation_that_the_store_has_lost_is_made_again_whatever_its_version() {
        let alice = || RevokedProof::Principal(key("alice"));
        let is_revoked = |known: &Revocations, second| known.cover(&key("alice"), &issued(second, "01"));
        let [here, there] = [(); 2].map(|()| Revocations::default());
        for known in [&here, &there] {
            known.learn([revocation(alice(), 10, 3)]);
            known.learn_all(Vec::new(), 0);
            assert!(is_revoked(known, 10) && !is_revoked(known, 20), "what is lost stays known");
            assert_eq!(known.as_known(&key("alice")), Expect::Absent, "later proofs of her get grants");
        }
        here.learn_written(revocation(alice(), 20, 1));
        here.learn_all(vec![revocation(alice(), 10, 3)], 0);
        there.learn_all(vec![revocation(alice(), 20, 1)], 0);
        for known in [&here, &there] {
            assert!(is_revoked(known, 20) && !is_revoked(known, 21));
            assert_eq!(known.as_known(&key("alice")), Expect::Version(1));
        }
        // Over a forged one of a high version, and the wall clock has stepped back.
        here.learn_written(revocation(alice(), 15, 1_001));
        there.learn_all(vec![revocation(alice(), 15, 1_001)], 0);
        for known in [&here, &there] {
            assert_eq!(
                (is_revoked(known, 20), known.as_known(&key("alice"))),
                (true, Expect::Version(1_001))
            );
        }
    }

    #[tokio::test]
    async fn a_revocation_ends_a_wait_for_it_and_for_no_other() {
        let (revocations, alice, issuance) = (Revocations::default(), key("alice"), issued(1, "01"));
        let (bob, other) = (key("bob"), issued(1, "02"));
        let mut waiting = Box::pin(revocations.until_covered(&alice, &issuance));
        let mut others = Box::pin(revocations.until_covered(&bob, &other));
        let wait = Duration::from_millis(10);
        assert!(tokio::time::timeout(wait, &mut waiting).await.is_err());
        revocations.learn([revocation(RevokedProof::Certificate(serial("01")), 10, 1)]);
        tokio::time::timeout(Duration::from_secs(10), waiting).await.unwrap();
        assert!(tokio::time::timeout(wait, &mut others).await.is_err());
    }
}
