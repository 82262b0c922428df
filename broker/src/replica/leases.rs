//! The leases that this broker holds, as far as it may believe so.
//!
//! A lease is believed only while the membership is: until a little before the store would let it end, counted from when
//! its last renewal was *sent*, on a clock that counts suspend. A broker that hung finds it ended when it wakes up.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use postern_core::TargetId;

use crate::clock::boottime;
use crate::measure::{LeaseChange, lease_changed};
use crate::store::StoreError;
use crate::store::members::{Claim, Lease, MEMBERSHIP, Members, Taken};

/// How long a membership is believed after its last renewal was sent.
const BELIEF: Duration = MEMBERSHIP.saturating_sub(Duration::from_secs(1));

/// What this broker may work on.
pub struct Leases {
    members: Arc<dyn Members>,
    alone: bool,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    /// Until when the membership is believed, by [`boottime`].
    believed_until: Duration,
    held: HashMap<TargetId, Entry>,
}

#[derive(Clone, Copy)]
struct Entry {
    token: u64,
    inherits: bool,
    turn: bool,
}

/// A lease that is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The lease.
    pub lease: Lease,
    /// Whether another broker had it before, and what it may have left behind was not taken in yet.
    pub inherits: bool,
    /// Whether it is held for a lockdown or a release, which the target's agent may know nothing of.
    pub turn: bool,
}

impl Held {
    fn of(target: &TargetId, entry: Entry) -> Self {
        let lease = Lease { target: target.clone(), token: entry.token };
        Self { lease, inherits: entry.inherits, turn: entry.turn }
    }
}

impl Leases {
    pub(super) fn new(members: Arc<dyn Members>) -> Self {
        Self { alone: members.is_alone(), members, table: Mutex::default() }
    }

    /// Whether this broker may begin anything.
    pub fn is_member(&self) -> bool {
        self.alone || boottime() < self.lock().believed_until
    }

    /// Whether this broker works on the target.
    pub fn holds(&self, target: &TargetId) -> bool {
        if self.alone {
            return true;
        }
        let table = self.lock();
        boottime() < table.believed_until && table.held.contains_key(target)
    }

    /// The lease of a target: the one that is held, or the one that can be taken on this ground.
    ///
    /// # Errors
    /// The store failed, or this broker is no member for the moment.
    pub async fn hold(&self, target: &TargetId, claim: Claim) -> Result<Option<Held>, StoreError> {
        if self.alone {
            return Ok(Some(Held::of(target, Entry { token: 0, inherits: false, turn: false })));
        }
        if !self.is_member() {
            let what = "this broker has lost touch with its store".to_owned();
            return Err(StoreError::Fenced { what });
        }
        if claim != Claim::Turn
            && let Some(entry) = self.lock().held.get(target).copied()
        {
            return Ok(Some(Held::of(target, entry)));
        }
        let Some(taken) = self.members.take(target, claim).await? else { return Ok(None) };
        Ok(Some(self.took(taken, claim)))
    }

    /// Takes in a lease that was taken.
    pub(super) fn took(&self, taken: Taken, claim: Claim) -> Held {
        let Taken { lease, inherits } = taken;
        let why = match claim {
            Claim::Agent | Claim::Turn if inherits => LeaseChange::Forced,
            Claim::Free if inherits => LeaseChange::TakenOver,
            Claim::Free | Claim::Agent | Claim::Turn => LeaseChange::Taken,
        };
        let mut table = self.lock();
        let known = table.held.get(&lease.target).filter(|known| known.token == lease.token);
        // The same one again: what it left behind is taken in, or is not.
        let inherits = known.map_or(inherits, |known| known.inherits);
        let entry = Entry { token: lease.token, inherits, turn: claim == Claim::Turn };
        let is_new =
            table.held.insert(lease.target.clone(), entry).is_none_or(|old| old.token != entry.token);
        drop(table);
        if is_new {
            tracing::debug!(target = %lease.target, token = lease.token, why = why.word(), "lease taken");
            lease_changed(why);
        }
        Held::of(&lease.target, entry)
    }

    /// What another broker left behind on a target has been taken in.
    pub fn has_inherited(&self, lease: &Lease) {
        if let Some(entry) =
            self.lock().held.get_mut(&lease.target).filter(|entry| entry.token == lease.token)
        {
            entry.inherits = false;
        }
    }

    /// Ends a turn. A lease that was taken from another broker for it is given back; any other stays.
    ///
    /// # Errors
    /// The store failed; the turn ends with the membership then.
    pub async fn end_turn(&self, held: &Held, was_anothers: bool) -> Result<(), StoreError> {
        if self.alone {
            return Ok(());
        }
        if was_anothers {
            self.lock().held.remove(&held.lease.target);
            lease_changed(LeaseChange::Released);
            return self.members.give_back(&held.lease).await;
        }
        if let Some(entry) = self.lock().held.get_mut(&held.lease.target) {
            entry.turn = false;
        }
        self.members.end_turn(&held.lease).await
    }

    /// The target's lease is another's. Whether it was this broker's.
    pub(super) fn lose(&self, target: &TargetId) -> bool {
        let lost = self.lock().held.remove(target).is_some();
        if lost {
            lease_changed(LeaseChange::Lost);
        }
        lost
    }

    /// A lease turned out to be another's.
    pub fn found_lost(&self, target: &TargetId) {
        if !self.alone && self.lose(target) {
            tracing::info!(%target, "its lease is another broker's");
        }
    }

    /// The membership was renewed by what was sent then.
    pub(crate) fn believe_from(&self, sent: Duration) {
        self.lock().believed_until = sent.saturating_add(BELIEF);
    }

    /// Every lease is gone, with the membership. Which they were.
    pub(super) fn forget(&self) -> Vec<TargetId> {
        self.lock().held.drain().map(|(target, _)| target).collect()
    }

    /// Keeps only those leases that the store says are this broker's. Which were lost.
    pub(super) fn keep_only(&self, held: &std::collections::HashSet<TargetId>) -> Vec<TargetId> {
        let lost: Vec<TargetId> =
            self.targets().into_iter().filter(|target| !held.contains(target)).collect();
        lost.iter().for_each(|target| self.found_lost(target));
        lost
    }

    /// The targets that this broker works on.
    pub fn targets(&self) -> Vec<TargetId> {
        self.lock().held.keys().cloned().collect()
    }

    /// How many they are.
    pub fn len(&self) -> usize {
        self.lock().held.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::alone::Alone;

    fn vm() -> TargetId {
        "host:vm-1".parse().unwrap()
    }

    /// Leases of a broker that is not alone, with one lease.
    fn with_a_lease() -> (Leases, Lease) {
        let mut leases = Leases::new(Arc::new(Alone::default()));
        leases.alone = false;
        let lease = Lease { target: vm(), token: 7 };
        leases.took(Taken { lease: lease.clone(), inherits: true }, Claim::Free);
        (leases, lease)
    }

    #[test]
    fn i8_a_lease_is_believed_no_longer_than_the_membership() {
        let (leases, _) = with_a_lease();
        assert!(!leases.holds(&vm()), "it was never renewed");
        leases.believe_from(boottime());
        assert!(leases.holds(&vm()) && leases.is_member());
        let long_ago = boottime().saturating_sub(BELIEF);
        leases.believe_from(long_ago);
        assert!(!leases.holds(&vm()) && !leases.is_member(), "what counts is when the renewal was sent");
    }

    #[tokio::test]
    async fn a_lease_that_is_held_is_not_asked_for_again_and_one_that_is_lost_is() {
        let (leases, lease) = with_a_lease();
        assert!(leases.hold(&vm(), Claim::Free).await.is_err(), "it is no member");
        leases.believe_from(boottime());
        let held = leases.hold(&vm(), Claim::Free).await.unwrap().unwrap();
        assert_eq!(held, Held { lease: lease.clone(), inherits: true, turn: false });
        leases.has_inherited(&lease);
        assert!(!leases.hold(&vm(), Claim::Agent).await.unwrap().unwrap().inherits);
        leases.found_lost(&vm());
        assert!(!leases.holds(&vm()));
        let taken = leases.hold(&vm(), Claim::Free).await.unwrap().unwrap();
        assert_eq!(taken.lease.token, 0, "the store's new word");
        assert_eq!(leases.forget(), [vm()]);
        assert!(leases.is_empty());
    }

    #[test]
    fn i2_what_was_left_behind_is_taken_in_once_for_each_holder() {
        let (leases, lease) = with_a_lease();
        leases.has_inherited(&Lease { token: 6, ..lease.clone() });
        leases.believe_from(boottime());
        let again = Taken { lease: lease.clone(), inherits: false };
        assert!(leases.took(again, Claim::Agent).inherits, "taking the same one again takes nothing in");
        leases.has_inherited(&lease);
        let newer = Taken { lease: Lease { token: 9, ..lease }, inherits: true };
        assert!(leases.took(newer, Claim::Agent).inherits);
    }
}
