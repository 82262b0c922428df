//! The leases that this broker holds, as far as it may believe so.
//!
//! A lease is believed only while the membership is: until a little before the store would let it end, counted from when
//! its last renewal was *sent*, on a clock that counts suspend. A broker that hung finds it ended when it wakes up.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use postern_core::TargetId;
use postern_store::StoreError;
use postern_store::coordination::{Claim, Coordination, Lease, MEMBERSHIP_TTL, TakenLease};

use crate::clock::boottime;
use crate::telemetry::{LeaseChange, lease_changed};

/// The time for which the broker believes its membership after the last renewal was sent.
const BELIEVED_FOR: Duration = MEMBERSHIP_TTL.saturating_sub(Duration::from_secs(1));

/// The targets on which this broker may work.
pub struct Leases {
    coordination: Arc<dyn Coordination>,
    alone: bool,
    table: Mutex<LeaseTable>,
}

#[derive(Default)]
struct LeaseTable {
    /// The end of the belief in the membership, by [`boottime`].
    believed_until: Duration,
    held: HashMap<TargetId, LeaseEntry>,
}

#[derive(Clone, Copy)]
struct LeaseEntry {
    token: u64,
    inherits: bool,
    exclusive: bool,
}

/// A lease that this broker holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldLease {
    /// The lease.
    pub lease: Lease,
    /// Set if another broker had it before, and the windows that it may have left behind were not recorded yet.
    pub inherits: bool,
    /// Set if it is held for a lockdown or a release, of which the target's agent may know nothing.
    pub exclusive: bool,
}

impl HeldLease {
    fn of(target: &TargetId, entry: LeaseEntry) -> Self {
        let lease = Lease { target: target.clone(), token: entry.token };
        Self { lease, inherits: entry.inherits, exclusive: entry.exclusive }
    }
}

impl Leases {
    /// No leases yet.
    pub fn new(coordination: Arc<dyn Coordination>) -> Self {
        Self { alone: coordination.is_alone(), coordination, table: Mutex::default() }
    }

    /// Reports whether there can be no other broker.
    pub fn is_alone(&self) -> bool {
        self.alone
    }

    /// Takes the lock of this name, until this broker unlocks it or is gone. False if another broker has it.
    ///
    /// # Errors
    /// The store failed.
    pub async fn try_lock(&self, job: &str) -> Result<bool, StoreError> {
        self.coordination.try_lock(job).await
    }

    /// Gives a lock back.
    ///
    /// # Errors
    /// The store failed; the lock ends with the membership then.
    pub async fn unlock(&self, job: &str) -> Result<(), StoreError> {
        self.coordination.unlock(job).await
    }

    /// Asks the broker that holds a target's lease to look at its cloud again.
    ///
    /// # Errors
    /// The store failed.
    pub async fn ask_to_look(&self, target: &TargetId) -> Result<(), StoreError> {
        self.coordination.ask_to_look(target).await
    }

    /// Reports whether this broker may begin anything.
    pub fn is_member(&self) -> bool {
        self.alone || boottime() < self.lock().believed_until
    }

    /// Reports whether this broker works on the target.
    pub fn holds(&self, target: &TargetId) -> bool {
        if self.alone {
            return true;
        }
        let table = self.lock();
        boottime() < table.believed_until && table.held.contains_key(target)
    }

    /// Returns the lease of a target: the one that this broker holds, or the one that it can take on this ground.
    ///
    /// # Errors
    /// The store failed, or this broker is no member for the moment.
    pub async fn hold(&self, target: &TargetId, claim: Claim) -> Result<Option<HeldLease>, StoreError> {
        if self.alone {
            return Ok(Some(HeldLease::of(
                target,
                LeaseEntry { token: 0, inherits: false, exclusive: false },
            )));
        }
        if !self.is_member() {
            let what = "this broker has lost touch with its store".to_owned();
            return Err(StoreError::Fenced { what });
        }
        if claim != Claim::Exclusive
            && let Some(entry) = self.lock().held.get(target).copied()
        {
            return Ok(Some(HeldLease::of(target, entry)));
        }
        let Some(taken) = self.coordination.take(target, claim).await? else { return Ok(None) };
        Ok(Some(self.took(taken, claim)))
    }

    /// Records a lease that was taken.
    pub(super) fn took(&self, taken: TakenLease, claim: Claim) -> HeldLease {
        let TakenLease { lease, inherits } = taken;
        let why = match claim {
            Claim::Agent | Claim::Exclusive if inherits => LeaseChange::Forced,
            Claim::Free if inherits => LeaseChange::TakenOver,
            Claim::Free | Claim::Agent | Claim::Exclusive => LeaseChange::Taken,
        };
        let mut table = self.lock();
        let known = table.held.get(&lease.target).filter(|known| known.token == lease.token);
        // The same lease again: the windows left behind were recorded, or were not.
        let inherits = known.map_or(inherits, |known| known.inherits);
        let entry = LeaseEntry { token: lease.token, inherits, exclusive: claim == Claim::Exclusive };
        let is_new =
            table.held.insert(lease.target.clone(), entry).is_none_or(|old| old.token != entry.token);
        drop(table);
        if is_new {
            tracing::debug!(target = %lease.target, token = lease.token, why = why.word(), "lease taken");
            lease_changed(why);
        }
        HeldLease::of(&lease.target, entry)
    }

    /// Records that the windows which another broker may have left behind on a target are accounted for.
    pub fn has_inherited(&self, lease: &Lease) {
        if let Some(entry) =
            self.lock().held.get_mut(&lease.target).filter(|entry| entry.token == lease.token)
        {
            entry.inherits = false;
        }
    }

    /// Ends the exclusive hold of a lease. A lease that was taken from another broker is given back; any other stays.
    ///
    /// # Errors
    /// The store failed; the hold ends with the membership then.
    pub async fn end_exclusive(&self, held: &HeldLease, was_anothers: bool) -> Result<(), StoreError> {
        if self.alone {
            return Ok(());
        }
        if was_anothers {
            self.lock().held.remove(&held.lease.target);
            lease_changed(LeaseChange::Released);
            return self.coordination.give_back(&held.lease).await;
        }
        if let Some(entry) = self.lock().held.get_mut(&held.lease.target) {
            entry.exclusive = false;
        }
        self.coordination.end_exclusive(&held.lease).await
    }

    /// Gives back the lease of a target that is gone, so that nothing is kept of it here or in the store. Returns false if this
    /// broker does not hold it.
    ///
    /// # Errors
    /// The store failed; the target is forgotten here, and the lease ends with the membership.
    pub async fn forget_target(&self, target: &TargetId) -> Result<bool, StoreError> {
        let Some(entry) = self.lock().held.remove(target) else { return Ok(false) };
        lease_changed(LeaseChange::Released);
        self.coordination.forget(&HeldLease::of(target, entry).lease).await?;
        Ok(true)
    }

    /// Records that another broker has the target's lease. Returns whether this broker had it.
    pub(super) fn lose(&self, target: &TargetId) -> bool {
        let lost = self.lock().held.remove(target).is_some();
        if lost {
            lease_changed(LeaseChange::Lost);
        }
        lost
    }

    /// Records that a lease turned out to be another broker's, and logs it.
    pub fn found_lost(&self, target: &TargetId) {
        if !self.alone && self.lose(target) {
            tracing::info!(%target, "another broker has its lease");
        }
    }

    /// Records that a renewal that was sent at this moment succeeded.
    pub(crate) fn believe_from(&self, sent: Duration) {
        self.lock().believed_until = sent.saturating_add(BELIEVED_FOR);
    }

    /// Forgets every lease: the membership has ended. Returns their targets.
    pub(super) fn forget(&self) -> Vec<TargetId> {
        self.lock().held.drain().map(|(target, _)| target).collect()
    }

    /// Keeps only the leases that this broker has according to the store. Returns the targets of the others.
    pub(super) fn keep_only(&self, held: &std::collections::HashSet<TargetId>) -> Vec<TargetId> {
        let lost: Vec<TargetId> =
            self.targets().into_iter().filter(|target| !held.contains(target)).collect();
        lost.iter().for_each(|target| self.found_lost(target));
        lost
    }

    /// Returns the targets on which this broker works.
    pub fn targets(&self) -> Vec<TargetId> {
        self.lock().held.keys().cloned().collect()
    }

    /// Returns the number of leases.
    pub fn len(&self) -> usize {
        self.lock().held.len()
    }

    /// Reports whether there are no leases.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, LeaseTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use postern_store::single_broker::SingleBroker;

    use super::*;

    fn vm() -> TargetId {
        "host:vm-1".parse().unwrap()
    }

    /// Leases of a broker that is not alone, with one lease.
    fn with_a_lease() -> (Leases, Lease) {
        let mut leases = Leases::new(Arc::new(SingleBroker::default()));
        leases.alone = false;
        let lease = Lease { target: vm(), token: 7 };
        leases.took(TakenLease { lease: lease.clone(), inherits: true }, Claim::Free);
        (leases, lease)
    }

    #[test]
    fn i8_a_lease_is_believed_no_longer_than_the_membership() {
        let (leases, _) = with_a_lease();
        assert!(!leases.holds(&vm()), "it was never renewed");
        leases.believe_from(boottime());
        assert!(leases.holds(&vm()) && leases.is_member());
        let long_ago = boottime().saturating_sub(BELIEVED_FOR);
        leases.believe_from(long_ago);
        assert!(!leases.holds(&vm()) && !leases.is_member(), "what counts is when the renewal was sent");
    }

    #[tokio::test]
    async fn a_lease_that_is_held_is_not_taken_again_and_one_that_is_lost_is() {
        let (leases, lease) = with_a_lease();
        assert!(leases.hold(&vm(), Claim::Free).await.is_err(), "it is no member");
        leases.believe_from(boottime());
        let held = leases.hold(&vm(), Claim::Free).await.unwrap().unwrap();
        assert_eq!(held, HeldLease { lease: lease.clone(), inherits: true, exclusive: false });
        leases.has_inherited(&lease);
        assert!(!leases.hold(&vm(), Claim::Agent).await.unwrap().unwrap().inherits);
        leases.found_lost(&vm());
        assert!(!leases.holds(&vm()));
        let taken = leases.hold(&vm(), Claim::Free).await.unwrap().unwrap();
        assert_eq!(taken.lease.token, 0, "a lease that the store has just given");
        assert_eq!(leases.forget(), [vm()]);
        assert!(leases.is_empty());
    }

    #[test]
    fn i2_windows_left_behind_are_recorded_once_for_each_holder() {
        let (leases, lease) = with_a_lease();
        leases.has_inherited(&Lease { token: 6, ..lease.clone() });
        leases.believe_from(boottime());
        let again = TakenLease { lease: lease.clone(), inherits: false };
        assert!(leases.took(again, Claim::Agent).inherits, "taking the same lease again records nothing");
        leases.has_inherited(&lease);
        let newer = TakenLease { lease: Lease { token: 9, ..lease }, inherits: true };
        assert!(leases.took(newer, Claim::Agent).inherits);
    }
}
